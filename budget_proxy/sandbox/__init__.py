"""The sandbox: paid APIs to test against, with a prepaid balance and an exact list of charges.

The proxy's tests, benches and tutorials talk to it instead of a provider: it answers in the shapes
that the providers' SDKs read, charges real list prices by an arithmetic of its own, and can be told
to be slow, to fail, to cut and to garble. It shares no code with the proxy that it judges.

The path of a request, file by file:

    app.py         routes, the server, the command
    serving.py     take in, charge, wait, answer; every refusal is worded here
    openai.py      |
    anthropic.py   | what is asked, what it costs, what is answered
    geo.py         |
    call.py        the values between those two: Ask, Plan, Refusal; reading JSON fields
    words.py       how tokens are counted and what is said
    prices.py      what a model costs
    bank.py        the balance and the charges
    purse.py       what is left over time, with what others take and what is still to come
    emptiness.py   how providers say that the money is gone, and what only looks like it
    billing.py     balance endpoints and top-ups
    balances.py    | what a balance looks like at each provider
    topups.py      | which top-up is a repetition
    answering.py   how an answer travels: whole, streamed, cut, garbled
    control.py     `/_sandbox/`: charges, balance, settings, what arrived
    settings.py    the knobs, for the command line, at run time, and for one request
    state.py       what one running sandbox holds

Forbidden in this package: importing any other part of `budget_proxy`.
"""

from __future__ import annotations

from budget_proxy.sandbox.app import create_app, main, run
from budget_proxy.sandbox.bank import parse_amount
from budget_proxy.sandbox.settings import (
    SettingError,
    Settings,
    add_arguments,
    settings_from_args,
)

__all__ = [
    "SettingError",
    "Settings",
    "add_arguments",
    "create_app",
    "main",
    "parse_amount",
    "run",
    "settings_from_args",
]
