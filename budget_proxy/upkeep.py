"""What the command line does with ledgers and running proxies, away from any server of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from budget_proxy import opening
from budget_proxy.accounts_view import known_payers
from budget_proxy.app import adjusted_account, correction_for, ledger_path
from budget_proxy.core.book import AccountState, Adjust, Adjusted, OpenHold
from budget_proxy.core.house import House
from budget_proxy.core.ids import make_id
from budget_proxy.core.money import exact
from budget_proxy.ledgers import LedgerDownError, LedgerRefusedError
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.records import readable

ANSWER_S = 10.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class CannotError(Exception):
    """It cannot be done; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _open(path: Path) -> SqliteLedger:
    if not path.is_file():
        raise CannotError(
            f"{path} is not a ledger file: there is none at {path.absolute()} (in a policy, "
            "sqlite:///NAME is relative to the working directory, sqlite:////NAME absolute)",
            2,
        )
    try:
        return SqliteLedger.open(path)
    except LedgerRefusedError as error:
        raise CannotError(str(error), 2) from error


async def accounts_of(path: Path) -> list[dict[str, Any]]:
    """The open accounts of a ledger file. Raises CannotError."""
    ledger = _open(path)
    try:
        rows = await ledger.accounts()
    except LedgerDownError as error:
        raise CannotError(str(error), 1) from error
    finally:
        await ledger.close()
    return [_plain(row._asdict()) for row in sorted(rows)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    unit = row["unit"]
    shown = {name: exact(row[name], unit) for name in ("limit", "spent", "held")}
    free = max(0, row["limit"] - row["spent"] - row["held"])
    return {
        "budget": row["budget"],
        "payer": row["payer"],
        "window_start": _utc(row["start_s"]) if row["end_s"] else None,
        "window_end": _utc(row["end_s"]) if row["end_s"] else None,
        "unit": unit,
        **shown,
        "free": exact(free, unit),
    }


def _utc(instant_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(instant_s))


def accounts_from(admin: str, token: str | None) -> list[dict[str, Any]]:
    """The open accounts of a running proxy. Asked directly: no proxy of the environment stands
    between us and an admin port. Raises CannotError."""
    if not admin.startswith(("http://", "https://")):
        raise CannotError(f"{admin!r} is not the URL of an admin port", 2)
    try:
        request = urllib.request.Request(admin.rstrip("/") + "/api/accounts")  # noqa: S310
        if token:
            request.add_header("authorization", f"Bearer {token}")
        with _direct.open(request, timeout=ANSWER_S) as answer:
            accounts: list[dict[str, Any]] = json.load(answer)["accounts"]
    except urllib.error.HTTPError as error:
        hint = " (set BUDGET_PROXY_TOKEN to the admin_token)" if error.code in (401, 403) else ""
        raise CannotError(f"{admin} answered {error.code}{hint}", 1) from error
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        why = " ".join(str(error).split())  # it may quote what answered
        raise CannotError(
            f"no budget-proxy answers at {admin} ({why}); name another with --admin, or a "
            "ledger file with --ledger",
            1,
        ) from error
    return accounts


def _check_payer(house: House, correction: Adjust, accounts: Sequence[AccountState]) -> None:
    """A correction of an account that nobody has is a slip of the hand. Raises CannotError."""
    budget = next(known for known in house.budgets if known.name == correction.budget)
    payers = {account.payer for account in accounts if account.budget == budget.name}
    payers |= set(known_payers(budget, house.services.values()))
    if correction.payer not in payers:
        known = ", ".join(repr(payer) for payer in sorted(payers)[:10]) or "none so far"
        raise CannotError(
            f"budget {budget.name!r} has no account of {correction.payer!r}; it has {known}",
            2,
        )


async def adjust(
    house: House, budget: str, payer: str, amount: str, reason: str, *, who: str
) -> dict[str, Any]:
    """Correct an account in a policy's ledger; the account after it. Raises CannotError."""
    call_id = make_id(time.time(), secrets.randbits(80))
    try:
        correction = correction_for(house, budget, payer, amount, reason, who, call_id)
    except ValueError as error:
        raise CannotError(str(error), 2) from error
    ledger = _open(ledger_path(house.ledger))
    try:
        _check_payer(house, correction, await ledger.accounts())
        outcome = (await ledger.commit([correction]))[0]
    except LedgerDownError as error:
        raise CannotError(str(error), 1) from error
    finally:
        await ledger.close()
    assert isinstance(outcome, Adjusted), "a correction is answered with its account"
    return adjusted_account(outcome, house).as_json()


async def lines(path: Path, what: str) -> list[str]:
    """`holds` or `entries` as JSON lines, or what `check` finds wrong. Raises CannotError."""
    ledger = _open(path)
    try:
        if what == "check":
            return await ledger.check()
        if what == "entries":
            return [json.dumps(readable(entry)) for entry in await ledger.entries(0)]
        return [json.dumps(_plain_hold(hold)) for hold in await ledger.holds()]
    except LedgerDownError as error:
        raise CannotError(str(error), 1) from error
    finally:
        await ledger.close()


def _plain_hold(hold: OpenHold) -> dict[str, Any]:
    legs = [leg._asdict() for leg in hold.legs]
    return {**hold._asdict(), "legs": legs, "about": json.loads(hold.about)}


def new_budgets(house: House) -> list[str]:
    """What `check` says of budgets that this policy's ledger has not served in this shape."""
    path = ledger_path(house.ledger)
    if not path.is_file():
        return []

    async def read() -> list[str]:
        ledger = _open(path)
        try:
            known = await ledger.budgets()
            begun = await opening.look(ledger, house.budgets, known, time.time())
            return [budget.note for budget in begun]
        finally:
            await ledger.close()

    try:
        return asyncio.run(read())
    except (CannotError, LedgerDownError) as error:
        return [str(error)]
