"""The command line. Each command is a function that returns an exit code:

0 it did what was asked; 1 it could not (the network, a running proxy); 2 what it was given is wrong
(the policy, the ledger, an argument): the message says what to change.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budget_proxy import __version__, admin_commands
from budget_proxy.admin_commands import add_admin

if TYPE_CHECKING:
    from budget_proxy.core.house import House

# Every command imports what it needs itself: `status` is for a machine in trouble, where a second
# of computing can take a minute.

OK, FAILED, WRONG = 0, 1, 2
_NEGATIVE = re.compile(r"-[0-9]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # An amount such as -1.50USD is not an option: a leading space tells argparse so.
    given = [f" {word}" if _NEGATIVE.match(word) else word for word in given]
    parser = build_parser(sandbox="sandbox" in given)
    options = parser.parse_args(given)
    command: Callable[[argparse.Namespace], int] | None = options.command
    if command is None:
        parser.print_help()
        return WRONG
    try:
        code = command(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`).
        _drop_output()
        return OK
    except OSError as error:
        # Every command words the errors of its own work: what is left is a full disk.
        _drop_output()
        print(f"the output cannot be written: {error}", file=sys.stderr)
        return FAILED
    return code


def _drop_output() -> None:
    """Or the interpreter would try to write the rest at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(*, sandbox: bool = True) -> argparse.ArgumentParser:
    """The whole command line; the arguments of `sandbox` only on demand, since they load it."""
    parser = argparse.ArgumentParser(
        prog="budget-proxy",
        description="A hard spending cap between your services and the paid APIs they call.",
        epilog="Exit codes: 0 done, 1 could not be done now, 2 the input is wrong.",
    )
    parser.add_argument("--version", action="version", version=f"budget-proxy {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_serve(commands)
    _add_check(commands)
    _add_status(commands)
    admin_commands.add(commands)
    _add_ledger(commands)
    schema = commands.add_parser("schema", help="print the JSON Schema of policy files")
    schema.set_defaults(command=_schema)
    demo = commands.add_parser("demo", help="run everything here, against the built-in sandbox")
    demo.set_defaults(command=_with_policy(_demo))
    sandbox_parser = commands.add_parser("sandbox", help="run an upstream to test against")
    if sandbox:
        _add_sandbox(sandbox_parser)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="run the proxy",
        description="Run the proxy. SIGHUP reloads the policy (a wrong one is refused as a whole); "
        "SIGTERM lets calls finish for the policy's grace period, a second one ends at once.",
    )
    serve.add_argument("policy", help="the policy file (or the name of one that is shipped)")
    serve.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="how many processes answer calls, on one ledger (default: one for each processor); "
        "1 is a single process. SIGUSR2 replaces them one by one",
    )
    serve.set_defaults(command=_with_policy(_serve))


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_WORKERS}")
    return int(text)


def _processors() -> int:
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system tells
        return os.cpu_count() or 1


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    checks = commands.add_parser(
        "check",
        help="check a policy file; print every mistake and the budgets of each service",
        description="Print every mistake of a policy as file:line:column: message and exit 2, or "
        "the budgets that bind each service and exit 0.",
    )
    checks.add_argument("policy", help="the policy file (or the name of one that is shipped)")
    checks.add_argument("--json", action="store_true", help="print the result as JSON")
    checks.set_defaults(command=_check)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status",
        help="print every open account: limit, spent, held, when it resets; balances; stops",
        description="Print every open account: limit, spent, held, when it resets, and how long it "
        "lasts as money goes now; every prepaid balance; what is stopped. In the bar, # is spent, "
        "+ is held, . is free. A ledger alone knows of accounts only.",
    )
    source = status.add_mutually_exclusive_group()
    add_admin(source)
    source.add_argument(
        "--ledger", metavar="LEDGER", help="a ledger file or URL, instead of a running proxy"
    )
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    status.set_defaults(command=_status)


def _add_ledger(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ledger = commands.add_parser("ledger", help="look into a ledger, correct an account")
    ledger.set_defaults(command=_helped(ledger))
    inner = ledger.add_subparsers(title="ledger commands", metavar="COMMAND")
    adjust = inner.add_parser(
        "adjust",
        help="correct what an account has spent",
        description="Add an amount to what an account has spent in the window that runs now "
        "(negative: give back, never below 0). Works beside a running proxy, and needs none of "
        "the policy's keys and credentials. Example: "
        "budget-proxy ledger adjust company '(all)' -1.50USD --policy p.yaml --reason 'crash'",
    )
    adjust.add_argument("budget")
    adjust.add_argument("payer", help="'(all)' for a budget without for_each")
    adjust.add_argument("amount", help="with its unit, as in -1.50USD or +20requests")
    adjust.add_argument("--reason", required=True, help="kept in the ledger, with your name")
    adjust.add_argument("--policy", required=True, help="the policy file the ledger belongs to")
    adjust.add_argument("--json", action="store_true", help="print the result as JSON")
    adjust.set_defaults(command=_with_policy(_adjust))
    ways: tuple[tuple[Literal["init", "migrate"], str], ...] = (
        ("init", "make a ledger where there is none"),
        ("migrate", "bring a ledger of an older version up to date"),
    )
    for way, explained in ways:
        command = inner.add_parser(
            way,
            help=explained,
            description=f"{explained.capitalize()}. `serve` does it by itself "
            "where it may; this is for a role that may while that of `serve` may not.",
        )
        command.add_argument(
            "ledger", help="its URL, its file, or the policy (.yaml) that names it"
        )
        command.set_defaults(command=_with_policy(_make_ready(way)))
    for name, explained in (
        ("holds", "print the holds that have not ended, as JSON lines"),
        ("entries", "print the audit trail, oldest first, as JSON lines"),
    ):
        command = inner.add_parser(name, help=explained)
        command.add_argument("ledger", help="the ledger's file or URL")
        command.set_defaults(command=_LEDGER_COMMANDS[name])
    _add_audit(inner)
    _add_export(inner)


def _add_audit(inner: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = inner.add_parser(
        "check",
        help="check what must always hold; exit 1 where it does not",
        description="Compare every account of a ledger with its holds and entries, at one point in "
        "time, also beside a running proxy. Prints a line for each thing that is wrong.",
    )
    command.add_argument("ledger", help="the ledger's file or URL")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(command=_audit)


def _add_export(inner: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = inner.add_parser(
        "export",
        help="write the audit trail, for a spreadsheet or a data base",
        description="Write the audit trail to standard output, in the order in which the calls "
        "began, page by page, also beside a running proxy. Amounts are exact decimals.",
    )
    command.add_argument("ledger", help="the ledger's file or URL")
    command.add_argument(
        "--format",
        choices=("csv", "jsonl"),
        default="csv",
        help="csv (default): a row for each account an entry was posted to; jsonl: a line for "
        "each entry",
    )
    command.add_argument("--since", metavar="TIME", help="as in 2026-11-22; without a zone, UTC")
    command.add_argument("--until", metavar="TIME", help="the first instant that is left out")
    command.set_defaults(command=_export)


def _helped(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def command(_options: argparse.Namespace) -> int:
        parser.print_help()
        return WRONG

    return command


def _with_policy(command: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
    """The command, and the mistakes of the policy it reads said."""

    def reading(options: argparse.Namespace) -> int:
        from budget_proxy.policy import PolicyError  # noqa: PLC0415 - for commands with a policy

        try:
            return command(options)
        except PolicyError as error:
            print(error, file=sys.stderr)
            return WRONG

    return reading


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    from budget_proxy import sandbox  # noqa: PLC0415 - loads the price data

    sandbox.add_arguments(parser)
    parser.set_defaults(command=sandbox.main)


# -- policies ------------------------------------------------------------------------------------


def find_policy(name: str) -> Path:
    """The file of that name, or the shipped policy: `openai`, `openai.yaml` or
    `policies/openai.yaml`. A file missing from any other folder is missing."""
    path = Path(name)
    if path.exists() or path.parent not in (Path(), Path("policies")):
        return path
    return shipped(path.name) or path


def shipped(name: str) -> Path | None:
    """The policy of that name that comes with the package."""
    for folder in (Path(str(files("budget_proxy"))) / "policies", _CHECKOUT / "policies"):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    return None


MAX_WORKERS = 64
_CHECKOUT = Path(__file__).resolve().parent.parent


def read_policy(name: str, *, with_secrets: bool = True) -> House:
    """Load a policy with the environment's values; without secrets: to look at, not to serve.
    Raises PolicyError."""
    from budget_proxy.catalogue import Catalogue  # noqa: PLC0415
    from budget_proxy.policy import load  # noqa: PLC0415

    return load(
        find_policy(name), environment=os.environ, prices=Catalogue, with_secrets=with_secrets
    )


def _check(options: argparse.Namespace) -> int:
    from budget_proxy.catalogue import Catalogue  # noqa: PLC0415
    from budget_proxy.policy import PolicyError, check, effective  # noqa: PLC0415
    from budget_proxy.report import budgets_table  # noqa: PLC0415

    path = find_policy(options.policy)
    try:
        checked = check(path, environment=os.environ, prices=Catalogue)
    except PolicyError as error:
        if options.json:
            print(
                json.dumps(
                    {"ok": False, "mistakes": [asdict(mistake) for mistake in error.mistakes]}
                )
            )
        else:
            print(error, file=sys.stderr)
        return WRONG
    from budget_proxy.upkeep import new_budgets  # noqa: PLC0415 - opens a ledger

    begun = new_budgets(checked.house)
    budgets = effective(checked.house)
    if options.json:
        rows = {name: [row._asdict() for row in rows] for name, rows in budgets.items()}
        notes = [str(warning) for warning in checked.warnings] + begun
        print(json.dumps({"ok": True, "warnings": notes, "services": rows}, indent=2))
        return OK
    # As compilers say it: editors find the place.
    for mistake in checked.warnings:
        print(replace(mistake, message=f"warning: {mistake.message}"), file=sys.stderr)
    for note in begun:
        print(f"warning: {note}", file=sys.stderr)
    print(budgets_table(budgets))
    print(f"{path}: ok")
    return OK


def _schema(_options: argparse.Namespace) -> int:
    from budget_proxy.policy import json_schema  # noqa: PLC0415

    print(json.dumps(json_schema(), indent=2))
    return OK


# -- running -------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from budget_proxy.run import serve  # noqa: PLC0415 - loads the HTTP library

    log_to_stderr()
    workers = options.workers or min(_processors(), MAX_WORKERS)
    return serve(find_policy(options.policy), lambda path: read_policy(str(path)), workers)


def _demo(_options: argparse.Namespace) -> int:
    from budget_proxy.catalogue import Catalogue  # noqa: PLC0415
    from budget_proxy.policy import load  # noqa: PLC0415
    from budget_proxy.run import DEMO_KEY, demo  # noqa: PLC0415 - loads the HTTP library

    log_to_stderr()
    policy = shipped("quickstart")
    assert policy is not None, "the quickstart policy is a part of the package"
    with tempfile.TemporaryDirectory(prefix="budget-proxy-demo-") as folder:

        def read(sandbox_url: str) -> House:
            ours = {"SANDBOX_URL": sandbox_url, "DEMO_KEY": DEMO_KEY}
            house = load(policy, environment={**os.environ, **ours}, prices=Catalogue)
            return replace(house, ledger=f"sqlite:///{folder}/ledger.db")

        return demo(read)


def log_to_stderr() -> None:
    """Write what the operator is told to the error stream, one line each."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


# -- ledgers -------------------------------------------------------------------------------------


def _ledger_url(word: str) -> str:
    """What a person calls a ledger, as a URL."""
    from budget_proxy.ledgers import SQLITE, is_shared  # noqa: PLC0415

    return word if is_shared(word) or word.startswith(SQLITE) else f"{SQLITE}{word}"


def _is_ledger(word: str, command: str) -> None:
    """Nothing, unless somebody names the policy in place of its ledger. Raises CannotError."""
    from budget_proxy.upkeep import CannotError, shown  # noqa: PLC0415

    path = Path(word)
    if path.suffix not in _POLICIES or not path.is_file() or _begins_as_ledger(path):
        return
    from budget_proxy.policy import PolicyError  # noqa: PLC0415

    try:
        url = shown(read_policy(word, with_secrets=False).ledger)
    except PolicyError:
        said = f"its ledger is what stands under 'ledger:' in it: run budget-proxy {command} LEDGER"
    else:
        said = f"its ledger is {url}: run budget-proxy {command} {url}"
    raise CannotError(f"{word} is a policy; {said}", WRONG)


def _begins_as_ledger(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_HEAD)) == _SQLITE_HEAD
    except OSError:
        return True  # whoever opens it says why it cannot be read


_POLICIES = (".yaml", ".yml")
_SQLITE_HEAD = b"SQLite format 3"


def _make_ready(how: Literal["init", "migrate"]) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        from budget_proxy import upkeep  # noqa: PLC0415

        url = _ledger_url(options.ledger)
        if options.ledger.endswith(_POLICIES):
            url = read_policy(options.ledger, with_secrets=False).ledger
        try:
            print(asyncio.run(upkeep.make_ready(url, how)))
        except upkeep.CannotError as error:
            print(error, file=sys.stderr)
            return error.code
        return OK

    return command


def _status(options: argparse.Namespace) -> int:
    from budget_proxy import upkeep  # noqa: PLC0415
    from budget_proxy.report import status_report  # noqa: PLC0415

    try:
        if options.ledger is not None:
            _is_ledger(options.ledger, "status --ledger")
            accounts = asyncio.run(upkeep.accounts_of(_ledger_url(options.ledger)))
            status: dict[str, list[dict[str, Any]]] = {"accounts": accounts}
        else:
            status = _status_from(options.admin, os.environ.get("BUDGET_PROXY_TOKEN"))
    except upkeep.CannotError as error:
        print(error, file=sys.stderr)
        return error.code
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print(status_report(status, colours=_on_a_terminal()))
    return OK


def _status_from(admin: str, token: str | None) -> dict[str, list[dict[str, Any]]]:
    from budget_proxy import admin_client  # noqa: PLC0415

    return {
        "accounts": admin_client.accounts_from(admin, token),
        "balances": admin_client.balances_from(admin, token),
        "stops": admin_client.stops_from(admin, token),
    }


def _on_a_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _adjust(options: argparse.Namespace) -> int:
    from budget_proxy import upkeep  # noqa: PLC0415
    from budget_proxy.report import accounts_table  # noqa: PLC0415

    house = read_policy(options.policy, with_secrets=False)
    words = (options.budget, options.payer, options.amount.strip(), options.reason)
    try:
        done = asyncio.run(upkeep.adjust(house, *words, who=getpass.getuser()))
    except upkeep.CannotError as error:
        print(error, file=sys.stderr)
        return error.code
    if options.json:
        print(json.dumps(done.as_json(), indent=2))
        return OK
    print(accounts_table([done.account.as_json()], colours=_on_a_terminal()))
    if done.note:
        print(done.note)
    return OK


def _print_lines(what: str) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        from budget_proxy import upkeep  # noqa: PLC0415

        try:
            _is_ledger(options.ledger, f"ledger {what}")
            lines = asyncio.run(upkeep.lines(_ledger_url(options.ledger), what))
        except upkeep.CannotError as error:
            print(error, file=sys.stderr)
            return error.code
        for line in lines:
            print(line)
        return OK

    return command


_LEDGER_COMMANDS = {name: _print_lines(name) for name in ("holds", "entries")}


def _audit(options: argparse.Namespace) -> int:
    from budget_proxy import upkeep  # noqa: PLC0415

    try:
        _is_ledger(options.ledger, "ledger check")
        findings = asyncio.run(upkeep.audit(options.ledger))
    except upkeep.CannotError as error:
        print(error, file=sys.stderr)
        return error.code
    if options.json:
        print(json.dumps({"ok": not findings, "findings": findings}, indent=2))
    else:
        for line in findings or [f"{upkeep.shown(options.ledger)}: ok"]:
            print(line)
    return FAILED if findings else OK


def _export(options: argparse.Namespace) -> int:
    from budget_proxy import export, upkeep  # noqa: PLC0415

    try:
        since_s, until_s = (
            None if text is None else export.instant(text)
            for text in (options.since, options.until)
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return WRONG
    wanted = export.Wanted(options.format, since_s, until_s)
    told = sys.stderr is not None and sys.stderr.isatty()

    def progress(entries: int) -> None:
        if told:
            print(f"\r{entries:,} entries read", end="", file=sys.stderr, flush=True)

    try:
        _is_ledger(options.ledger, "ledger export")
        asyncio.run(upkeep.write_entries(options.ledger, wanted, sys.stdout.write, progress))
    except upkeep.CannotError as error:
        print(error, file=sys.stderr)
        return error.code
    finally:
        if told:
            print(file=sys.stderr)
    return OK


if __name__ == "__main__":
    sys.exit(main())
