"""What an audit finds: a table of ledgers with one fault each, and none with a sound one."""

from __future__ import annotations

import pytest

from budget_proxy.core.audit import Posting, audit
from budget_proxy.core.book import Account, Key

CAP = Key("cap", "(all)", "total", "USD")
DAY = Key("day", "red", "day 2026-11-21T23:00Z", "requests")
CENT = 10_000_000


def cap(spent: int = 3 * CENT, held: int = 2 * CENT) -> Account:
    return Account(CAP, 0, None, 100 * CENT, spent, held)


def day(spent: int = 4, held: int = 1, start_s: int = 100, end_s: int | None = 200) -> Account:
    return Account(DAY, start_s, end_s, 60, spent, held)


HELD: list[Posting] = [(CAP, CENT), (CAP, CENT), (DAY, 1)]
POSTED: list[Posting] = [(CAP, CENT), (CAP, 4 * CENT), (CAP, -2 * CENT), (DAY, 4)]

FAULTS: dict[str, tuple[list[Account], list[Posting], list[Posting], list[str]]] = {
    "none": ([cap(), day()], HELD, POSTED, []),
    "nothing at all": ([], [], [], []),
    "an account that holds too much": (
        [cap(held=3 * CENT), day()],
        HELD,
        POSTED,
        ["account 'cap' of '(all)' (total, USD) holds 0.03 USD, its open holds 0.02 USD"],
    ),
    "a hold that was lost": (
        [cap(), day()],
        HELD[:2],
        POSTED,
        [
            (
                "account 'day' of 'red' (day 2026-11-21T23:00Z, requests) holds 1 requests, "
                "its open holds 0 requests"
            )
        ],
    ),
    "an entry that was lost": (
        [cap(), day()],
        HELD,
        POSTED[1:],
        ["account 'cap' of '(all)' (total, USD) has spent 0.03 USD, its entries come to 0.02 USD"],
    ),
    "a total that was lost": (
        [day()],
        HELD,
        POSTED,
        [
            "account 'cap' of '(all)' (total, USD) is missing, and open holds keep 0.02 USD",
            "account 'cap' of '(all)' (total, USD) is missing, and entries spent 0.03 USD in it",
        ],
    ),
    "a window that was lost while something is held in it": (
        [cap()],
        HELD,
        POSTED,
        [
            (
                "account 'day' of 'red' (day 2026-11-21T23:00Z, requests) is missing, "
                "and open holds keep 1 requests"
            )
        ],
    ),
    "a window that was forgotten": ([cap()], HELD[:2], POSTED, []),
    "less than nothing": (
        [cap(spent=-1, held=-1), day()],
        [(CAP, -1), (DAY, 1)],
        [(CAP, -1), (DAY, 4)],
        [
            "account 'cap' of '(all)' (total, USD) has -0.000000001 USD held, less than nothing",
            "account 'cap' of '(all)' (total, USD) has -0.000000001 USD spent, less than nothing",
        ],
    ),
    "a window without an end": (
        [cap(), day(end_s=None)],
        HELD,
        POSTED,
        [
            (
                "account 'day' of 'red' (day 2026-11-21T23:00Z, requests) "
                "is a total with an end, or a window without one"
            )
        ],
    ),
    "a window that ends before it begins": (
        [cap(), day(start_s=200)],
        HELD,
        POSTED,
        ["account 'day' of 'red' (day 2026-11-21T23:00Z, requests) ends before it begins"],
    ),
    "no unit": (
        [Account(Key("cap", "(all)", "total", ""), 0, None, 1)],
        [],
        [],
        ["account 'cap' of '(all)' (total, ) has no unit"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_audit_finds_each_fault_and_nothing_else(fault: str) -> None:
    accounts, held, posted, found = FAULTS[fault]
    assert list(audit(accounts, held, posted)) == found


def test_what_is_full_is_no_fault() -> None:
    """A sum that stops at the largest figure is the sum."""
    most = 2**63 - 1
    full = Account(CAP, 0, None, 1, spent=most)
    assert list(audit([full], [], [(CAP, most), (CAP, most)])) == []
