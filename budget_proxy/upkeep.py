"""What the command line does with ledgers, away from any server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal, TypeVar

from budget_proxy.core.book import Adjusted, OpenHold
from budget_proxy.core.house import House
from budget_proxy.core.ids import make_id
from budget_proxy.core.money import exact
from budget_proxy.correction import Corrected, corrected, correction_for, must_have_account
from budget_proxy.export import PAGE_S, Wanted, export
from budget_proxy.ledgers import (
    Ledger,
    LedgerDownError,
    LedgerRefusedError,
    is_shared,
    ledger_name,
    ledger_path,
)
from budget_proxy.ledgers.opener import create, migrate, open_ledger, open_to_read
from budget_proxy.records import readable

ANSWER_S = 10.0
"""How long a question about the accounts may take, to a proxy or a file."""
EXPORT_S = 600.0
"""How long reading all that a ledger has may take."""
FINDINGS = 1000
"""How many things that are wrong are named; the first ones tell."""
T = TypeVar("T")


class CannotError(Exception):
    """It cannot be done; the message says why, `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _must_be_there(url: str) -> None:
    path = ledger_path(url)
    if not is_shared(url) and not path.is_file():
        raise CannotError(
            f"{path} is not a ledger file: there is none at {path.absolute()} (in a policy, "
            "sqlite:///NAME is relative to the working directory, sqlite:////NAME absolute)",
            2,
        )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a ledger, as CannotError."""
    try:
        yield
    except LedgerRefusedError as error:
        raise CannotError(str(error), 2) from error
    except LedgerDownError as error:
        raise CannotError(str(error), 1) from error


async def _read(url: str, question: Callable[[Ledger], Awaitable[T]], within_s: float | None) -> T:
    """Ask a ledger something, without a lock and without a change to it. Raises CannotError, also
    after `within_s` (None: the question has deadlines of its own)."""
    _must_be_there(url)
    try:
        with _told():
            async with asyncio.timeout(within_s):
                return await _answer(await open_to_read(url), question)
    except TimeoutError as error:
        raise CannotError(
            f"{ledger_name(url)} was not read within {within_s or PAGE_S:g} s: a disk or another "
            "program keeps it, or it is very long. Try again, or ask the running proxy (status "
            "--admin URL)",
            1,
        ) from error


async def _answer(ledger: Ledger, question: Callable[[Ledger], Awaitable[T]]) -> T:
    """The answer, and the ledger closed: but not where we are out of time, since closing would wait
    for the same thing."""
    try:
        answer = await question(ledger)
    except Exception:
        await ledger.close()
        raise
    await ledger.close()
    return answer


async def make_ready(url: str, how: Literal["init", "migrate"]) -> str:
    """Make a ledger, or bring one of an older version up to date; a line that says so. Raises
    CannotError, and then nothing was changed."""
    with _told():
        if how == "init":
            await create(url)
        else:
            _must_be_there(url)
            await migrate(url)
    return f"{ledger_name(url)} is a ledger of this version, ready to be served from"


async def accounts_of(url: str) -> list[dict[str, Any]]:
    """The open accounts of a ledger. Raises CannotError."""
    rows = await _read(url, lambda ledger: ledger.accounts(), ANSWER_S)
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


async def adjust(
    house: House, budget: str, payer: str, amount: str, reason: str, *, who: str
) -> Corrected:
    """Correct an account in a policy's ledger; what came of it. Raises CannotError."""
    call_id = make_id(time.time(), secrets.randbits(80))
    try:
        correction = correction_for(house, budget, payer, amount, reason, who, call_id)
    except ValueError as error:
        raise CannotError(str(error), 2) from error
    _must_be_there(house.ledger)
    with _told():
        ledger = await open_ledger(house.ledger)
        try:
            try:
                must_have_account(correction, await ledger.accounts(), house)
            except ValueError as error:
                raise CannotError(str(error), 2) from error
            outcome = (await ledger.commit([correction]))[0]
        finally:
            await ledger.close()
    assert isinstance(outcome, Adjusted), "a correction is answered with its account"
    return corrected(correction, outcome, house)


def shown(url: str) -> str:
    """A ledger as it may be shown: as it was written, but for a password."""
    return ledger_name(url) if is_shared(url) else url


async def audit(url: str) -> list[str]:
    """What breaks a promise anywhere in a ledger: the first FINDINGS. Raises CannotError."""
    return await _read(url, lambda ledger: ledger.audit(FINDINGS), EXPORT_S)


async def write_entries(
    url: str, wanted: Wanted, write: Callable[[str], object], progress: Callable[[int], object]
) -> None:
    """Write the audit trail. Raises CannotError."""
    await _read(url, lambda ledger: export(ledger, wanted, write, progress), None)


async def lines(url: str, what: str) -> list[str]:
    """`holds` or `entries` as JSON lines. Raises CannotError."""

    async def read(ledger: Ledger) -> list[str]:
        if what == "entries":
            return [json.dumps(readable(entry)) for entry in await ledger.entries(0)]
        return [json.dumps(_plain_hold(hold)) for hold in await ledger.holds()]

    return await _read(url, read, EXPORT_S)


def _plain_hold(hold: OpenHold) -> dict[str, Any]:
    legs = [leg._asdict() for leg in hold.legs]
    return {**hold._asdict(), "legs": legs, "about": json.loads(hold.about)}


def new_budgets(house: House) -> list[str]:
    """What `check` says of budgets that this policy's ledger has not served in this shape."""
    from budget_proxy import opening  # noqa: PLC0415 - what only looks at accounts starts faster

    if not is_shared(house.ledger) and not ledger_path(house.ledger).is_file():
        return []

    async def read(ledger: Ledger) -> list[str]:
        known = await ledger.budgets()
        begun = await opening.look(ledger, house.budgets, known, time.time())
        return [budget.note for budget in begun]

    try:
        return asyncio.run(_read(house.ledger, read, EXPORT_S))
    except CannotError as error:
        return [str(error)]
