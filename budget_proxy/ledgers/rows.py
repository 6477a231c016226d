"""Rows as every SQL store keeps them: the legs of holds and entries are JSON in one column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from budget_proxy.core.book import Account, Entry, EntryLeg, HeldLeg, Key, OpenHold
from budget_proxy.core.marks import Marks

HOLD = "id, owner, at_s, deadline_s, legs, about"
ENTRY = "id, at_s, kind, rule, legs, about, result"
encode = msgspec.json.Encoder().encode
_decode_held = msgspec.json.Decoder(tuple[HeldLeg, ...]).decode
_decode_entry = msgspec.json.Decoder(tuple[EntryLeg, ...]).decode
_decode_marks = msgspec.json.Decoder(Marks).decode


def account_row(account: Account) -> tuple[Any, ...]:
    """What `account_of` reads."""
    marks = encode(account.marks).decode() if account.marks else None
    figures = (account.limit, account.spent, account.held, marks)
    return (*account.key, account.start_s, account.end_s, *figures)


def account_of(row: tuple[Any, ...]) -> Account:
    """From budget, payer, window, unit, start, end, limit, spent, held, and marks where somebody
    is to decide."""
    account = Account(Key(*row[:4]), *row[4:9])
    if len(row) > 9 and row[9]:
        account.marks = _decode_marks(row[9])
    return account


def hold_row(hold: OpenHold) -> tuple[Any, ...]:
    """The columns of HOLD."""
    return (hold.id, hold.owner, hold.at_s, hold.deadline_s, encode(hold.legs), hold.about)


def hold_of(row: tuple[Any, ...]) -> OpenHold:
    """From the columns of HOLD."""
    hold_id, owner, at_s, deadline_s, legs, about = row
    return OpenHold(hold_id, owner, at_s, deadline_s, _decode_held(legs), about)


def entry_row(entry: Entry) -> tuple[Any, ...]:
    """The columns of ENTRY."""
    legs = encode(entry.legs)
    return (entry.id, entry.at_s, entry.kind, entry.rule, legs, entry.about, entry.result)


def entry_of(row: tuple[Any, ...]) -> Entry:
    """From the columns of ENTRY."""
    entry_id, at_s, kind, rule, legs, about, result = row
    return Entry(entry_id, at_s, kind, rule, _decode_entry(legs), about, result)


def unbalanced(holds: Iterable[OpenHold], held: dict[Key, int]) -> list[str]:
    """Where accounts do not hold what the open holds keep in them, both read at one point in time.
    `held`: the accounts that hold anything."""
    kept: dict[Key, int] = {}
    for hold in holds:
        for leg in hold.legs:
            kept[leg.key] = kept.get(leg.key, 0) + leg.amount
    return [
        f"account {key} holds {held.get(key, 0)}, its open holds {kept.get(key, 0)}"
        for key in sorted(kept.keys() | held.keys())
        if kept.get(key, 0) != held.get(key, 0)
    ]
