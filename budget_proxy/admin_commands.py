"""Commands that ask a running proxy: its balances, top-ups, and what is stopped.

As those of `__main__`: each is a function that returns an exit code, and imports what it needs.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from typing import Any

OK, WRONG = 0, 2
DEFAULT_ADMIN = "http://127.0.0.1:9090"
SCOPES = ("upstream", "budget", "service")
Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no other name for it


def add_admin(parser: argparse._ActionsContainer) -> None:
    """The argument that names a running proxy."""
    parser.add_argument(
        "--admin",
        metavar="URL",
        default=_default_admin(os.environ.get("BUDGET_PROXY_ADMIN")),
        help="a running proxy (default: the address in BUDGET_PROXY_ADMIN, or "
        f"{DEFAULT_ADMIN}); BUDGET_PROXY_TOKEN is sent where it wants a token",
    )


def _default_admin(address: str | None) -> str:
    """Where the shipped policies put the admin port: they read the same variable."""
    return f"http://{address}" if address else DEFAULT_ADMIN


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Put these commands into the command line."""
    _add_balance(commands)
    _add_topup(commands)
    _add_stops(commands)


def _add_balance(commands: Commands[argparse.ArgumentParser]) -> None:
    balance = commands.add_parser("balance", help="print prepaid balances; enter one by hand")
    balance.set_defaults(command=lambda _options: _help(balance))
    inner = balance.add_subparsers(title="balance commands", metavar="COMMAND")
    listing = inner.add_parser("list", help="print every balance: what is left, and how long")
    _finish(listing, _list_balances)
    for verb, explained in (
        ("set", "say what a balance is, where nobody can ask or the answer is not believed"),
        ("add", "say what was paid in, or with a minus what was taken out"),
    ):
        command = inner.add_parser(
            verb,
            help=explained,
            description=f"{explained.capitalize()}. Needs BUDGET_PROXY_TOKEN.",
        )
        command.add_argument("name", help="the upstream")
        command.add_argument("amount", help="with its unit, as in 100USD or '50 USD'")
        command.add_argument("--reason", required=True, help="kept in the ledger, with your name")
        command.set_defaults(verb=verb)
        _finish(command, _enter_balance)


def _add_topup(commands: Commands[argparse.ArgumentParser]) -> None:
    topup = commands.add_parser(
        "topup",
        help="look at attempts to top up a balance, and say what a person has to",
        description="Attempts of a running proxy to top up a balance. BUDGET_PROXY_TOKEN has to be "
        "the admin_token for everything but `list`.",
    )
    topup.set_defaults(command=lambda _options: _help(topup))
    inner = topup.add_subparsers(title="topup commands", metavar="COMMAND")
    listing = inner.add_parser("list", help="print the attempts; ! waits for a person")
    _finish(listing, _list_topups)
    for verb, explained in (
        ("approve", "let an attempt run that asked for it"),
        ("refuse", "let it not"),
        ("decide", "say whether the money of an attempt came, when no reading tells"),
    ):
        command = inner.add_parser(verb, help=explained)
        command.add_argument("id", help="as `list` shows it")
        if verb == "refuse":
            command.add_argument("--reason", required=True, help="kept in the ledger")
        if verb == "decide":
            landed = command.add_mutually_exclusive_group(required=True)
            landed.add_argument("--landed", action="store_true", help="the money is on the account")
            landed.add_argument(
                "--not-landed", action="store_true", help="it is not, and will not come"
            )
        command.set_defaults(verb=verb)
        _finish(command, _answer_topup)


def _add_stops(commands: Commands[argparse.ArgumentParser]) -> None:
    pause = commands.add_parser(
        "pause",
        help="let no call of an upstream, budget or service pass",
        description="Let no call of an upstream, a budget or a service pass, in every process, "
        "until it is resumed. Calls in flight finish. Needs BUDGET_PROXY_TOKEN.",
    )
    resume = commands.add_parser(
        "resume",
        help="end a pause, or what stops an upstream that is out of money",
        description="End a pause; of an upstream also the stop for want of money. Needs "
        "BUDGET_PROXY_TOKEN.",
    )
    for command in (pause, resume):
        command.add_argument("scope", choices=SCOPES)
        command.add_argument("name")
    pause.add_argument("--reason", required=True, help="told to callers, kept in the ledger")
    end = pause.add_mutually_exclusive_group()
    end.add_argument("--for", dest="for_", metavar="TIME", help="as in 2h; then it ends by itself")
    end.add_argument("--until", metavar="TIME", help="as in 2026-11-22T18:00:00Z")
    _finish(pause, _pause)
    _finish(resume, _resume)


Asking = Callable[[argparse.Namespace, str | None], tuple[Any, str]]
"""Asks with a token; the answer, and the text of it for people."""


def _finish(parser: argparse.ArgumentParser, asking: Asking) -> None:
    add_admin(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def command(options: argparse.Namespace) -> int:
        from budget_proxy.upkeep import CannotError  # noqa: PLC0415

        try:
            answer, text = asking(options, os.environ.get("BUDGET_PROXY_TOKEN"))
        except CannotError as error:
            print(error, file=sys.stderr)
            return error.code
        print(json.dumps(answer, indent=2) if options.json else text)
        return OK

    parser.set_defaults(command=command)


def _user() -> str:
    """Who asks, as far as this machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container a user may have no name
        return ""


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return WRONG


def _list_balances(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415
    from budget_proxy.report import balances_table  # noqa: PLC0415

    balances = admin_client.balances_from(options.admin, token)
    return {"balances": balances}, balances_table(balances)


def _enter_balance(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415
    from budget_proxy.report import balances_table  # noqa: PLC0415

    what = "balance" if options.verb == "set" else "add"
    word = {what: options.amount.strip(), "reason": options.reason, "by": _user()}
    balance = admin_client.set_balance(options.admin, token, options.name, word)
    return balance, balances_table([balance])


def _list_topups(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415
    from budget_proxy.report import topups_table  # noqa: PLC0415

    topups = admin_client.topups_from(options.admin, token)
    return {"topups": topups}, topups_table(topups)


def _answer_topup(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415
    from budget_proxy.report import topups_table  # noqa: PLC0415

    word: dict[str, object] = {"by": _user()}
    if options.verb == "refuse":
        word["reason"] = options.reason
    if options.verb == "decide":
        word["landed"] = options.landed
    topup = admin_client.answer_topup(options.admin, token, options.id, options.verb, word)
    return topup, topups_table([topup])


def _pause(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415
    from budget_proxy.report import stops_table  # noqa: PLC0415

    word = {"scope": options.scope, "name": options.name, "reason": options.reason}
    word["by"] = _user()
    if options.for_ is not None:
        word["for"] = options.for_
    if options.until is not None:
        word["until"] = options.until
    stop = admin_client.ask(options.admin, token, "/api/pause", word)
    return stop, stops_table([stop])


def _resume(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    from budget_proxy import admin_client  # noqa: PLC0415

    word = {"scope": options.scope, "name": options.name, "by": _user()}
    answer = admin_client.ask(options.admin, token, "/api/resume", word)
    what = f"{options.scope} {options.name}"
    return answer, f"{what} is resumed" if answer.get("resumed") else f"{what} was not stopped"
