"""The tester's side of the sandbox, `/_sandbox/`: read the account, turn the knobs, start over.

Free, needs no key, and is never counted among the requests. Forbidden here: the providers' shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from budget_proxy.sandbox.answering import json_answer
from budget_proxy.sandbox.bank import CURRENCY, format_amount, parse_amount
from budget_proxy.sandbox.call import Object, Refusal, read_object
from budget_proxy.sandbox.emptiness import REFUSALS
from budget_proxy.sandbox.serving import SANDBOX
from budget_proxy.sandbox.settings import SettingError, as_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from budget_proxy.sandbox.bank import Bank, Charge

PREFIX = "/_sandbox/"
MAX_HEARD_BYTES = 64 * 1024


def add_control_routes(app: web.Application) -> None:
    """Put every control endpoint into the application."""
    app.router.add_get(f"{PREFIX}charges", _charges)
    app.router.add_get(f"{PREFIX}balance", _balance)
    app.router.add_get(f"{PREFIX}stats", _stats)
    app.router.add_get(f"{PREFIX}requests", _requests)
    app.router.add_get(f"{PREFIX}settings", _settings)
    app.router.add_post(f"{PREFIX}settings", _change_settings)
    app.router.add_post(f"{PREFIX}topup", _top_up)
    app.router.add_get(f"{PREFIX}topups", _top_ups)
    app.router.add_post(f"{PREFIX}spend", _spend)
    app.router.add_get(f"{PREFIX}refusals", _refusals)
    app.router.add_post(f"{PREFIX}hooks", _hear)
    app.router.add_get(f"{PREFIX}hooks", _heard)
    app.router.add_post(f"{PREFIX}reset", _reset)


async def _charges(request: web.Request) -> web.Response:
    """`?after=SEQ` leaves out what was read before."""
    after = request.query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        return _bad("after must be a whole number")
    bank = request.app[SANDBOX].bank
    lines = [_line(charge) for charge in bank.charges(int(after))]
    return json_answer({"charges": lines, "dropped": bank.dropped})


async def _balance(request: web.Request) -> web.Response:
    return json_answer(_account(request.app[SANDBOX].present_bank()))


async def _stats(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    return json_answer(
        {
            "requests": sandbox.requests,
            "open": sandbox.open,
            "open_max": sandbox.open_max,
            "calls": sandbox.calls,
            "charges": sandbox.bank.count,
        }
    )


async def _requests(request: web.Request) -> web.Response:
    return json_answer({"requests": [seen.as_json() for seen in request.app[SANDBOX].seen]})


async def _settings(request: web.Request) -> web.Response:
    return json_answer(as_json(request.app[SANDBOX].present_settings()))


async def _change_settings(request: web.Request) -> web.Response:
    async def change(values: Object) -> web.Response:
        request.app[SANDBOX].turn(values)
        return await _settings(request)

    return await _with_object(request, change)


async def _top_up(request: web.Request) -> web.Response:
    """`{"amount": "5 USD"}` is there at once."""
    sandbox = request.app[SANDBOX]
    return await _with_amount(request, lambda nanos: sandbox.bank.top_up(nanos, sandbox.clock()))


async def _spend(request: web.Request) -> web.Response:
    """`{"amount": "5 USD"}` is gone at once: somebody else has spent it."""
    sandbox = request.app[SANDBOX]
    return await _with_amount(
        request, lambda nanos: sandbox.bank.purse.spend(nanos, sandbox.clock())
    )


async def _with_amount(request: web.Request, act: Callable[[int], None]) -> web.Response:
    async def move(values: Object) -> web.Response:
        amount = values.get("amount")
        if not isinstance(amount, str):
            return _bad('give {"amount": "5 USD"}')
        act(parse_amount(amount))
        return await _balance(request)

    return await _with_object(request, move)


async def _top_ups(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    attempts = [attempt.as_json() for attempt in sandbox.topups.attempts]
    return json_answer({"topups": attempts, "dropped": sandbox.topups.dropped})


async def _refusals(request: web.Request) -> web.Response:  # noqa: ARG001 (it is the same for all)
    rows = [
        {
            "name": row.name,
            "meaning": row.meaning,
            "status": row.status,
            "headers": dict(row.headers),
            "body": row.body,
        }
        for row in REFUSALS.values()
    ]
    return json_answer({"refusals": rows})


async def _hear(request: web.Request) -> web.Response:
    """A webhook to try alerts with: takes anything."""
    text = (await request.read())[:MAX_HEARD_BYTES].decode("utf-8", "replace")
    request.app[SANDBOX].heard.append(text)
    return web.Response(text="ok")


async def _heard(request: web.Request) -> web.Response:
    return json_answer({"hooks": list(request.app[SANDBOX].heard)})


async def _reset(request: web.Request) -> web.Response:
    request.app[SANDBOX].reset()
    return await _balance(request)


async def _with_object(
    request: web.Request, act: Callable[[Object], Awaitable[web.Response]]
) -> web.Response:
    try:
        return await act(read_object(await request.read(), "give a JSON object"))
    except (Refusal, SettingError, ValueError) as error:
        return _bad(str(error))


def _bad(message: str) -> web.Response:
    return json_answer({"error": message}, status=400)


def _account(bank: Bank) -> Object:
    nanos = bank.balance_nanos
    return {
        "balance": None if nanos is None else format_amount(nanos),
        "balance_nanos": nanos,
        "charged": format_amount(bank.charged_nanos),
        "charged_nanos": bank.charged_nanos,
        "drained": format_amount(bank.purse.drained_nanos),
        "drained_nanos": bank.purse.drained_nanos,
        "credited": format_amount(bank.credited_nanos),
        "credited_nanos": bank.credited_nanos,
        "currency": CURRENCY,
        "charges": bank.count,
    }


def _line(charge: Charge) -> Object:
    sale = charge.sale
    return {
        "seq": charge.seq,
        "at_s": charge.at_s,
        "path": sale.path,
        "model": sale.model,
        "service": sale.service,
        "request_id": sale.request_id,
        "quantities": sale.quantities,
        "amount": format_amount(sale.amount_nanos),
        "amount_nanos": sale.amount_nanos,
        "currency": CURRENCY,
        "status": charge.status,
    }
