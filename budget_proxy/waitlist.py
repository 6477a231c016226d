"""The line: who waits for budget, and who goes next. Pure: no clock, no await.

Order: higher priority first; between services of one priority weighted-fair (each turn costs a
service 1/weight); within a service first come, first served.

A ticket that does not fit may be passed by those behind it that do, but only MAX_PASSED times:
then nobody behind it takes from an account it waits for. So small requests cannot starve a big
one, and a big one cannot block requests that need other accounts. Whether a ticket fits is only a
guess until it is tried, so those tried together are never more than may pass the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from budget_proxy.core.book import Leg
from budget_proxy.core.house import PRIORITIES, Priority, Waiting

MAX_PASSED = 8
TURN = 720_720
"""What a turn costs at weight 1: every weight up to 16 divides it."""

Purse = tuple[str, str]
"""A budget and a payer: an account whatever its window."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request."""

    id: str
    service: str
    priority: Priority
    weight: int
    legs: Sequence[Leg]
    joined_s: float
    deadline_s: float
    body_bytes: int
    short_on: frozenset[Purse] = frozenset()
    passed: int = 0
    number: int = field(default=0)

    @property
    def purses(self) -> Iterable[tuple[Purse, int]]:
        """What it needs of each enforcing account."""
        return (((leg.budget, leg.payer), leg.amount) for leg in self.legs if leg.enforced)


class Waitlist:
    """The tickets in line."""

    def __init__(self, bounds: Waiting) -> None:
        self.bounds = bounds
        self._tickets: dict[str, Ticket] = {}
        self._by_service: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._body_bytes = 0
        self._joined = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket.id in self._tickets

    def __repr__(self) -> str:
        return f"Waitlist({len(self)} waiting, {self._body_bytes} body bytes)"

    def tickets(self) -> list[Ticket]:
        """Everyone in line, in the order they came."""
        return list(self._tickets.values())

    def join(self, ticket: Ticket) -> bool:
        """Put a ticket in line; False where a bound stands in the way."""
        of_service = self._by_service.get(ticket.service, 0)
        if (
            len(self._tickets) >= self.bounds.max_requests
            or of_service >= self.bounds.max_per_service
            or self._body_bytes + ticket.body_bytes > self.bounds.max_body
        ):
            return False
        self._joined += 1
        ticket.number = self._joined
        if not of_service:
            # Who comes back after a pause does not bring the turns it did not use.
            others = [self._turns[name] for name in self._by_service if name in self._turns]
            turn = self._turns.get(ticket.service, 0)
            self._turns[ticket.service] = max(turn, min(others, default=0))
        self._tickets[ticket.id] = ticket
        self._by_service[ticket.service] = of_service + 1
        self._body_bytes += ticket.body_bytes
        return True

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket out of the line, if it is in it."""
        if self._tickets.pop(ticket.id, None) is None:
            return
        self._body_bytes -= ticket.body_bytes
        self._by_service[ticket.service] -= 1
        if not self._by_service[ticket.service]:
            del self._by_service[ticket.service]
        if not self._tickets:
            self._turns.clear()

    def serve(self, ticket: Ticket) -> None:
        """A ticket got its budget: it leaves, its service has used a turn, and those it passed
        remember it."""
        for other in self.order():
            if other is ticket:
                break
            if other.short_on & {purse for purse, _ in ticket.purses}:
                other.passed += 1
        self._turns[ticket.service] = self._turns.get(ticket.service, 0) + TURN // ticket.weight
        self.leave(ticket)

    def would_barge(self, legs: Sequence[Leg], priority: Priority) -> bool:
        """Whether someone of at least that priority already waits for an account of these."""
        if not self._tickets:
            return False
        wanted = {(leg.budget, leg.payer) for leg in legs if leg.enforced}
        rank = PRIORITIES.index(priority)
        return any(
            PRIORITIES.index(ticket.priority) <= rank and ticket.short_on & wanted
            for ticket in self._tickets.values()
        )

    def order(self) -> list[Ticket]:
        """Everyone in line, who goes next first."""
        ordered: list[Ticket] = []
        for priority in PRIORITIES:
            queues: dict[str, list[Ticket]] = {}
            for ticket in self._tickets.values():
                if ticket.priority == priority:
                    queues.setdefault(ticket.service, []).append(ticket)
            heap = [
                (self._turns.get(name, 0), queue[0].number, name, 0)
                for name, queue in queues.items()
            ]
            heapify(heap)
            while heap:
                turn, _, name, position = heappop(heap)
                ticket = queues[name][position]
                ordered.append(ticket)
                if position + 1 < len(queues[name]):
                    number = queues[name][position + 1].number
                    heappush(heap, (turn + TURN // ticket.weight, number, name, position + 1))
        return ordered

    def pick(self, free: Callable[[Purse], int | None]) -> list[Ticket]:
        """Who may be tried now, in order. `free` tells what is left in an account, None where
        that is not known: then a few are tried."""
        left: dict[Purse, int | None] = {}
        passes: dict[Purse, int] = {}
        picked: list[Ticket] = []
        for ticket in self.order():
            needs = list(ticket.purses)
            for purse, _ in needs:
                if purse not in left:
                    left[purse] = free(purse)
            if all(_fits(purse, amount, left, passes) for purse, amount in needs):
                picked.append(ticket)
                for purse, amount in needs:
                    _take(purse, amount, left, passes)
            for purse in ticket.short_on:
                passes[purse] = min(passes.get(purse, MAX_PASSED), MAX_PASSED - ticket.passed)
        return picked


def _fits(
    purse: Purse, amount: int, left: Mapping[Purse, int | None], passes: Mapping[Purse, int]
) -> bool:
    known = left[purse]
    return (known is None or known >= amount) and passes.get(purse, MAX_PASSED) > 0


def _take(
    purse: Purse, amount: int, left: dict[Purse, int | None], passes: dict[Purse, int]
) -> None:
    if (known := left[purse]) is not None:
        left[purse] = known - amount
    if purse in passes:
        passes[purse] -= 1
