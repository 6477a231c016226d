"""The book: what each operation does to accounts, holds and entries. The only place that decides.

A store locks, loads the `Page` that a batch touches, lets `apply` turn it, and saves it. Rules:

- a hold is taken in all its accounts or in none, and only if in every enforcing account
  spent + held + amount stays within the limit then in force;
- a hold ends once: settled, released or presumed. A second attempt is answered, not applied;
- settling posts the actual whatever it is: above the hold it is an overrun, recorded in full;
- a presumed hold (crash, deadline) may be corrected once, when the truth arrives late;
- who would wait for an account is marked in it, and takes nothing from those who are marked and
  come before (see `marks`); nobody else is in any way concerned by a mark;
- every operation carries the id that makes repeating it harmless.

Windows are looked up here, with the ledger's clock, inside the store's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from budget_proxy.core.events import Overrun
from budget_proxy.core.marks import Mark, Marks, ahead, marked, until_s, without
from budget_proxy.core.money import saturated
from budget_proxy.core.refusal import Shortfall
from budget_proxy.core.window import REQUEST, Span, Window


class Key(NamedTuple):
    """An account: one budget, one payer, one window, one unit, and nothing else. Amounts of two
    units have no sum, so a budget that changes its unit has another account."""

    budget: str
    payer: str
    window: str
    unit: str


class AccountState(NamedTuple):
    """An account as readers see it. Amounts in steps of `unit`."""

    budget: str
    payer: str
    unit: str
    window: str
    start_s: int
    end_s: int | None
    limit: int
    spent: int
    held: int


@dataclass(slots=True)
class Account:
    """An account while a page is open."""

    key: Key
    start_s: int
    end_s: int | None
    limit: int
    spent: int = 0
    held: int = 0
    marks: Marks = ()
    """Who waits for it."""

    def state(self) -> AccountState:
        """A frozen copy."""
        budget, payer, window, unit = self.key
        return AccountState(
            budget,
            payer,
            unit,
            window,
            self.start_s,
            self.end_s,
            self.limit,
            self.spent,
            self.held,
        )


FROM_LEDGER = -1
"""In the place of a limit: the one that the account has in the ledger counts (see `Cap`)."""


class Leg(NamedTuple):
    """What one call asks of one budget."""

    budget: str
    payer: str
    unit: str
    span: Span
    limit: int
    amount: int
    enforced: bool = True
    """False: report mode; counted, never in the way."""
    reserve: int = 0
    """Steps below the limit that are kept for calls of a higher priority."""
    wait_s: float = 0
    """How long the budget lets a call wait that does not fit."""


class HeldLeg(NamedTuple):
    """What one open hold keeps in one account."""

    budget: str
    payer: str
    window: str
    unit: str
    amount: int

    @property
    def key(self) -> Key:
        """The account it is kept in."""
        return Key(self.budget, self.payer, self.window, self.unit)


class OpenHold(NamedTuple):
    """A hold that has not ended."""

    id: str
    owner: str
    at_s: float
    deadline_s: float
    legs: tuple[HeldLeg, ...]
    about: bytes
    """JSON: who, upstream, route, model, estimate; copied into the entry."""


EntryKind = Literal["settled", "released", "presumed", "corrected", "adjusted", "noted"]


class EntryLeg(NamedTuple):
    """What an entry did to one account: `held` came back, `amount` was spent."""

    budget: str
    payer: str
    window: str
    unit: str
    held: int
    amount: int


class Entry(NamedTuple):
    """One line of the audit trail; never changed, but for `presumed` → `corrected`, and summed up
    at the end of its retention."""

    id: str
    at_s: float
    kind: EntryKind
    rule: str
    legs: tuple[EntryLeg, ...]
    about: bytes
    result: bytes
    """JSON: quantities, cost, status; empty where nothing is known."""


class Hold(msgspec.Struct, frozen=True):
    """Set amounts aside for a call. `lifetime_s`: after it the hold is presumed spent. `fresh`: its
    id was made just now and given to nobody before, so a store need not look for it."""

    id: str
    owner: str
    legs: tuple[Leg, ...]
    lifetime_s: float
    about: bytes = b"{}"
    fresh: bool = False
    rank: int = 0
    """Of its priority, among those who wait: the lowest goes first."""
    patience_s: float | None = None
    """How long its caller would wait; None: as long as budgets let it."""


class Settle(msgspec.Struct, frozen=True):
    """End a hold at the actual amounts by unit; a unit that is missing settles at its hold."""

    id: str
    amounts: Mapping[str, int]
    rule: str
    result: bytes = b"{}"


class Release(msgspec.Struct, frozen=True):
    """End a hold at nothing: the call was surely not sent, or surely is not billed."""

    id: str
    rule: str
    result: bytes = b"{}"


class Presume(msgspec.Struct, frozen=True):
    """End a hold at its full amount because nobody else did."""

    id: str
    why: Literal["owner_dead", "deadline"]


@dataclass(frozen=True, slots=True)
class Adjust:
    """A person's correction of one account: `amount` is added to what is spent."""

    id: str
    budget: str
    payer: str
    unit: str
    span: Span
    limit: int
    amount: int
    about: bytes
    """JSON: who and why."""


@dataclass(frozen=True, slots=True)
class Cap:
    """The limit of one account whose limit is not in the policy, as far as is known now."""

    id: str
    """Nothing else has it; no entry is written."""
    budget: str
    payer: str
    unit: str
    span: Span
    limit: int


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that belongs in the audit trail and moves no amount: a top-up, for one."""

    id: str
    rule: str
    about: bytes
    """JSON: who, what and why."""


Operation = Hold | Settle | Release | Presume | Adjust | Cap | Remark


class Held(NamedTuple):
    """The hold stands. `reported`: report-mode budgets it does not fit."""

    id: str
    reported: tuple[Shortfall, ...] = ()


class Short(NamedTuple):
    """The hold was not taken; every account that is too small, the hardest reason first."""

    shortfalls: tuple[Shortfall, ...]


class Ended(NamedTuple):
    """The hold ended now."""

    kind: EntryKind
    overruns: tuple[Overrun, ...] = ()


class AlreadyEnded(NamedTuple):
    """The hold had ended before, this way; nothing was changed."""

    kind: EntryKind


class NoSuchHold(NamedTuple):
    """No hold of that id was ever taken, or its entry is past its retention."""

    id: str


class Adjusted(NamedTuple):
    """The account after a correction, and what was applied: an account never owes less than
    nothing."""

    account: AccountState
    amount: int


class Capped(NamedTuple):
    """The account under its new limit."""

    account: AccountState


class Noted(NamedTuple):
    """The remark is in the audit trail."""

    id: str


Outcome = Held | Short | Ended | AlreadyEnded | NoSuchHold | Adjusted | Capped | Noted


@dataclass(slots=True)
class Page:
    """The part of the ledger a batch touches, and what the batch did to it."""

    accounts: dict[Key, Account] = field(default_factory=dict)
    holds: dict[str, OpenHold] = field(default_factory=dict)
    ended: dict[str, Entry] = field(default_factory=dict)
    touched: set[Key] = field(default_factory=set)
    opened: dict[str, OpenHold] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    written: dict[str, Entry] = field(default_factory=dict)

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to save."""
        return bool(self.touched or self.opened or self.closed or self.written)


def keys_of(operation: Operation, holds: Mapping[str, OpenHold], now_s: float) -> Iterable[Key]:
    """The accounts an operation needs on the page, once the holds it names are there."""
    if isinstance(operation, Hold):
        return [
            Key(leg.budget, leg.payer, leg.span.at(now_s).key, leg.unit)
            for leg in operation.legs
            if leg.span.per != "request"
        ]
    if isinstance(operation, Adjust | Cap):
        window = operation.span.at(now_s).key
        return [Key(operation.budget, operation.payer, window, operation.unit)]
    hold = holds.get(operation.id)
    return [] if hold is None else [held.key for held in hold.legs]


def late_keys(operation: Operation, ended: Mapping[str, Entry]) -> Iterable[Key]:
    """The accounts needed to correct a presumed entry with a late settlement."""
    if isinstance(operation, Settle | Release):
        entry = ended.get(operation.id)
        if entry is not None and entry.kind == "presumed":
            for leg in entry.legs:
                yield Key(*leg[:4])


def apply(operation: Operation, page: Page, now_s: float) -> Outcome:
    """Carry out one operation on the page and say what came of it."""
    if isinstance(operation, Hold):
        return _hold(operation, page, now_s)
    if isinstance(operation, Settle):
        return _end(operation.id, page, now_s, "settled", operation.rule, operation)
    if isinstance(operation, Release):
        return _end(operation.id, page, now_s, "released", operation.rule, operation)
    if isinstance(operation, Presume):
        return _end(operation.id, page, now_s, "presumed", operation.why, operation)
    if isinstance(operation, Adjust):
        return _adjust(operation, page, now_s)
    if isinstance(operation, Cap):
        return _cap(operation, page, now_s)
    return _note(operation, page, now_s)


def _hold(operation: Hold, page: Page, now_s: float) -> Outcome:
    if operation.id in page.holds:
        return Held(operation.id)
    if operation.id in page.ended:
        return AlreadyEnded(page.ended[operation.id].kind)
    accounts = [_account(leg, page, now_s) for leg in operation.legs]
    shortfalls = _shortfalls(operation, accounts, now_s)
    refused = _refused(shortfalls)
    if refused is not None:
        for account, marks in _new_marks(operation, accounts, refused, now_s):
            account.marks = marks
            page.accounts[account.key] = account
            page.touched.add(account.key)
        return refused
    held = []
    for leg, account in zip(operation.legs, accounts, strict=True):
        if account.key.window == REQUEST.key:
            continue
        before = account.held
        account.held = saturated(before + leg.amount)
        if account.marks:
            account.marks = without(account.marks, operation.id, now_s)
        page.accounts[account.key] = account
        page.touched.add(account.key)
        # What was really added: what comes back at the end must be no more than that.
        held.append(HeldLeg(*account.key, account.held - before))
    deadline_s = now_s + operation.lifetime_s
    hold = OpenHold(operation.id, operation.owner, now_s, deadline_s, tuple(held), operation.about)
    page.holds[hold.id] = page.opened[hold.id] = hold
    return Held(hold.id, tuple(shortfalls))


def refusal_of(operation: Hold, page: Page, now_s: float) -> Short | None:
    """What a fresh hold would be answered if it does not fit; None if it does, or is to be marked
    where it waits. Takes nothing, writes nothing."""
    accounts = [_account(leg, page, now_s) for leg in operation.legs]
    refused = _refused(_shortfalls(operation, accounts, now_s))
    if refused is not None and _new_marks(operation, accounts, refused, now_s):
        return None
    return refused


def _shortfalls(operation: Hold, accounts: Sequence[Account], now_s: float) -> list[Shortfall]:
    return [
        shortfall
        for leg, account in zip(operation.legs, accounts, strict=True)
        if (shortfall := _shortfall(leg, account, operation, now_s)) is not None
    ]


def _new_marks(
    operation: Hold, accounts: Sequence[Account], refused: Short, now_s: float
) -> list[tuple[Account, Marks]]:
    """The accounts in which to note that a hold that was refused waits, with their marks then."""
    if operation.patience_s == 0 or not any(leg.wait_s for leg in operation.legs):
        return []
    if not all(map(_may_come, refused.shortfalls)):
        return []
    short = {(it.budget, it.payer, it.unit) for it in refused.shortfalls}
    legs = zip(operation.legs, accounts, strict=True)
    waits = [(leg, account) for leg, account in legs if leg.enforced and leg[:3] in short]
    waits_s = min(leg.wait_s for leg, _ in waits)
    if operation.patience_s is not None:
        waits_s = min(waits_s, operation.patience_s)
    if waits_s <= 0:
        return []
    who, ends_s = (operation.rank, operation.id, operation.owner), until_s(now_s, waits_s)
    found = []
    for leg, account in waits:
        marks = marked(account.marks, Mark(*who, leg.amount, ends_s), now_s)
        # Of an account without figures nobody has ever had anything.
        if marks is not account.marks and (account.limit or account.spent):
            found.append((account, marks))
    return found


def _may_come(shortfall: Shortfall) -> bool:
    """Whether there may be room at any time: not only when the window turns."""
    return shortfall.kind == "held" or shortfall.follows


def _refused(shortfalls: Sequence[Shortfall]) -> Short | None:
    refused = [shortfall for shortfall in shortfalls if shortfall.enforced]
    return Short(tuple(sorted(refused, key=_hardness))) if refused else None


def _account(leg: Leg, page: Page, now_s: float) -> Account:
    """The leg's account on the page with the limit now in force; a new one is only proposed."""
    window = leg.span.at(now_s)
    account = page.accounts.get(Key(leg.budget, leg.payer, window.key, leg.unit))
    if account is None:
        return _new_account(Key(leg.budget, leg.payer, window.key, leg.unit), window, leg.limit)
    if leg.limit != FROM_LEDGER:
        account.limit = leg.limit
    return account


def _new_account(key: Key, window: Window, limit: int) -> Account:
    return Account(key, window.start_s, window.end_s, opening_limit(limit))


def opening_limit(limit: int) -> int:
    """The limit of an account that is not in the ledger yet: nothing, where only the ledger has
    it."""
    return 0 if limit == FROM_LEDGER else limit


_HARDNESS = {"too_large": 0, "spent": 1, "held": 2}


def _hardness(shortfall: Shortfall) -> int:
    return _HARDNESS[shortfall.kind]


def _shortfall(leg: Leg, account: Account, hold: Hold, now_s: float) -> Shortfall | None:
    limit, follows = account.limit - leg.reserve, leg.limit == FROM_LEDGER
    waited_for = _waited_for(leg, account, hold, now_s) if account.marks else 0
    if account.spent + account.held + waited_for + leg.amount <= limit:
        return None
    kind: Literal["too_large", "spent", "held"] = "held"
    if leg.amount > limit and not follows:
        kind = "too_large"
    elif account.spent + leg.amount > limit:
        kind = "spent"
    return Shortfall(
        budget=leg.budget,
        payer=leg.payer,
        unit=leg.unit,
        limit=account.limit,
        spent=account.spent,
        held=account.held + waited_for,
        amount=leg.amount,
        kind=kind,
        window=account.key.window,
        resets_at_s=account.end_s,
        enforced=leg.enforced,
        reserve=leg.reserve,
        follows=follows,
    )


def _waited_for(leg: Leg, account: Account, hold: Hold, now_s: float) -> int:
    """What is kept for those who wait before this one. Who would not wait is refused by nobody who
    does."""
    if not leg.enforced or leg.wait_s <= 0 or hold.patience_s == 0:
        return 0
    return ahead(account.marks, hold.rank, hold.id, hold.owner, now_s)


def _end(
    hold_id: str,
    page: Page,
    now_s: float,
    kind: EntryKind,
    rule: str,
    operation: Settle | Release | Presume,
) -> Outcome:
    hold = page.holds.get(hold_id)
    if hold is None:
        return _end_again(hold_id, page, now_s, rule, operation)
    legs: list[EntryLeg] = []
    overruns: list[Overrun] = []
    for budget, payer, window, unit, held in hold.legs:
        actual = _actual(unit, held, operation)
        key = Key(budget, payer, window, unit)
        account = page.accounts[key]
        account.held -= held
        account.spent = saturated(account.spent + actual)
        page.touched.add(key)
        legs.append(EntryLeg(budget, payer, window, unit, held, actual))
        if actual > held:
            overruns.append(Overrun(budget, payer, unit, actual - held))
    del page.holds[hold_id]
    if page.opened.pop(hold_id, None) is None:
        page.closed.add(hold_id)
    result = b"{}" if isinstance(operation, Presume) else operation.result
    _write(Entry(hold_id, now_s, kind, rule, tuple(legs), hold.about, result), page)
    return Ended(kind, tuple(overruns))


def _actual(unit: str, held: int, operation: Settle | Release | Presume) -> int:
    if isinstance(operation, Presume):
        return held
    if isinstance(operation, Release):
        return 0
    return operation.amounts.get(unit, held)


def _end_again(
    hold_id: str, page: Page, now_s: float, rule: str, operation: Settle | Release | Presume
) -> Outcome:
    """The hold is not open: a presumed one takes the late truth once, anything else stands."""
    entry = page.ended.get(hold_id)
    if entry is None:
        return NoSuchHold(hold_id)
    if entry.kind != "presumed" or isinstance(operation, Presume):
        return AlreadyEnded(entry.kind)
    legs: list[EntryLeg] = []
    overruns: list[Overrun] = []
    for leg in entry.legs:
        actual = _actual(leg.unit, leg.held, operation)
        key = Key(*leg[:4])
        change = actual - leg.amount
        account = page.accounts.get(key)
        if account is not None:
            # A person may have taken it back meanwhile: as in `_adjust`, never less than nothing.
            change = max(change, -account.spent)
            account.spent = saturated(account.spent + change)
            page.touched.add(key)
        legs.append(leg._replace(amount=leg.amount + change))
        if actual > leg.held:
            overruns.append(Overrun(leg.budget, leg.payer, leg.unit, actual - leg.held))
    corrected = entry._replace(
        at_s=now_s, kind="corrected", rule=rule, legs=tuple(legs), result=operation.result
    )
    _write(corrected, page)
    return Ended("corrected", tuple(overruns))


def _adjust(operation: Adjust, page: Page, now_s: float) -> Outcome:
    window = operation.span.at(now_s)
    key = Key(operation.budget, operation.payer, window.key, operation.unit)
    account = page.accounts.get(key)
    if account is None:
        account = page.accounts[key] = _new_account(key, window, operation.limit)
    if operation.id in page.ended:
        return Adjusted(account.state(), sum(leg.amount for leg in page.ended[operation.id].legs))
    # A correction never makes an account owe less than nothing: the entry says what was applied.
    amount = max(operation.amount, -account.spent)
    account.spent = saturated(account.spent + amount)
    if operation.limit != FROM_LEDGER:
        account.limit = operation.limit
    page.touched.add(key)
    leg = EntryLeg(*key, 0, amount)
    _write(Entry(operation.id, now_s, "adjusted", "person", (leg,), operation.about, b"{}"), page)
    return Adjusted(account.state(), amount)


def _cap(operation: Cap, page: Page, now_s: float) -> Outcome:
    window = operation.span.at(now_s)
    key = Key(operation.budget, operation.payer, window.key, operation.unit)
    account = page.accounts.get(key)
    if account is None:
        account = page.accounts[key] = _new_account(key, window, operation.limit)
    account.limit = operation.limit
    page.touched.add(key)
    return Capped(account.state())


def _note(operation: Remark, page: Page, now_s: float) -> Outcome:
    if operation.id not in page.ended:
        rule, about = operation.rule, operation.about
        _write(Entry(operation.id, now_s, "noted", rule, (), about, b"{}"), page)
    return Noted(operation.id)


def _write(entry: Entry, page: Page) -> None:
    page.ended[entry.id] = page.written[entry.id] = entry
