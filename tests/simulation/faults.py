"""Mistakes planted into the real modules, for as long as a test needs them: a simulation that
finds nothing must be one that could.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from budget_proxy import admission, waitlist
from budget_proxy.core import book, marks
from budget_proxy.ledgers import pending


class Fault(NamedTuple):
    """In a function of a module or class, `wrong` in the place of `right`."""

    place: Any
    function: str
    right: str
    wrong: str


FAULTS = {
    # The five that a book may least of all have.
    "settling takes the cost off": Fault(
        book, "_end", "account.spent + actual", "account.spent - actual"
    ),
    "settling does not take the hold back": Fault(book, "_end", "account.held -= held", "pass"),
    "the comparison lets one step too many through": Fault(
        book, "_shortfall", "leg.amount <= limit", "leg.amount <= limit + 1"
    ),
    "an orphan is freed": Fault(book, "_actual", "        return held", "        return 0"),
    "a hold that comes again is held again": Fault(
        book, "_hold", "if operation.id in page.holds:", "if operation.id in ():"
    ),
    # Others of the book.
    "a limit that follows a balance only rises": Fault(
        book, "_cap", "= operation.limit\n", "= max(account.limit, operation.limit)\n"
    ),
    "what is reserved is for everybody": Fault(
        book, "_shortfall", "account.limit - leg.reserve", "account.limit"
    ),
    "the comparison refuses the last step": Fault(
        book, "_shortfall", "leg.amount <= limit", "leg.amount < limit"
    ),
    "what others hold is not compared": Fault(
        book, "_shortfall", "account.spent + account.held", "account.spent"
    ),
    "a hold that has ended is held again": Fault(
        book, "_hold", "if operation.id in page.ended:", "if operation.id in ():"
    ),
    "what has ended is ended again": Fault(
        book, "_end_again", 'if entry.kind != "presumed" or', "if"
    ),
    "the late truth comes on top": Fault(
        book, "_end_again", "change = actual - leg.amount", "change = actual"
    ),
    "the late truth is not taken": Fault(book, "_end_again", 'entry.kind != "presumed" or', "1 or"),
    "an overrun is cut off": Fault(
        book,
        "_actual",
        "operation.amounts.get(unit, held)",
        "min(held, operation.amounts.get(unit, held))",
    ),
    "a settled hold stays open": Fault(book, "_end", "page.closed.add(hold_id)", "pass"),
    "an account that changed is not saved": Fault(
        book, "_hold", "page.touched.add(account.key)", "pass"
    ),
    # Who waits elsewhere.
    "nobody heeds who waits elsewhere": Fault(
        book, "_shortfall", "if account.marks else 0", "if False else 0"
    ),
    "who came first heeds who came later": Fault(
        book, "ahead", "mark[:2] < (rank, name)", "mark[:2] != (rank, name)"
    ),
    "an owner heeds its own line": Fault(book, "ahead", "mark.owner != owner", "True"),
    "the dead wait for ever": Fault(marks, "_stands", "now_s < mark.until_s <=", "mark.until_s <="),
    "who would not wait heeds those who do": Fault(
        book, "_waited_for", "or hold.patience_s == 0", ""
    ),
    "who waits is not marked": Fault(book, "_may_come", 'shortfall.kind == "held"', "False"),
    "a mark is not renewed": Fault(book, "marked", "> RENEW_S", "> 0"),
    "the late truth finds no account": Fault(book, "late_keys", '== "presumed"', '== "settled"'),
    # What gathers operations, and what waits.
    "a hold that failed is not given back": Fault(
        pending.Pending, "failed", "isinstance(asked.operation, Hold)", "False"
    ),
    "a settlement that failed is forgotten": Fault(
        pending.Pending, "failed", "if asked.must_land\n", "if False\n"
    ),
    "who was told that it failed keeps its hold": Fault(
        pending.Pending, "_answer", "elif isinstance(outcome, Held) and", "elif False and"
    ),
    "what is repeated and had landed counts as lost": Fault(
        pending.Pending, "_answer", "asked.again and", "False and"
    ),
    "who left the line keeps what it got": Fault(
        admission.Admission, "_judge", "self._give_back(outcome)", "pass"
    ),
    "who waits keeps the old limits": Fault(
        admission, "_under", "limit=limit,", "limit=leg.limit,"
    ),
    "who is served stays in line": Fault(
        waitlist.Waitlist, "leave", "self._tickets.pop(", "self._tickets.get("
    ),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The function is compiled anew, with the fault in it, among its own names."""
    place, function, right, wrong = FAULTS[name]
    real = getattr(place, function)
    source = textwrap.dedent(inspect.getsource(real))
    assert right in source, f"{function} is written otherwise now: plant {name!r} anew"
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(right, wrong)
    exec(compile(code, f"<{name}>", "exec"), real.__globals__, made)
    setattr(place, function, made[function])
    try:
        yield
    finally:
        setattr(place, function, real)
