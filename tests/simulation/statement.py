"""A history as a statement of account: what happened, and how the accounts stand after it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from budget_proxy.core.book import Page

if TYPE_CHECKING:
    from simulation.store import Store


class Statement:
    """The lines of one history."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lines: list[str] = []
        store.on_commit = self._committed

    def say(self, who: str, what: str) -> None:
        """Somebody did something."""
        now = datetime.fromtimestamp(self._store.now_s, UTC)
        self.lines.append(f"{now:%m-%d %H:%M:%S}  {who:<4} {what}")

    def _committed(self, batch: Sequence[Any], outcomes: Sequence[Any], page: Page) -> None:
        for operation, outcome in zip(batch, outcomes, strict=True):
            self.say("", f"    {_asked(operation):<44} {_became(outcome)}")
        for key in sorted(page.touched):
            account = page.accounts[key]
            name = f"{key.budget} {key.payer}, {key.window}"
            self.say(
                "",
                f"        {name:<40} spent {account.spent:>4} held {account.held:>4} "
                f"of {account.limit:>4} {key.unit}",
            )


def _asked(operation: Any) -> str:
    name = type(operation).__name__.lower()
    if name == "hold":
        return f"hold {operation.id}: {max(leg.amount for leg in operation.legs)}"
    if name == "settle":
        return f"settle {operation.id}: {operation.amounts.get('USD', 'at its hold')}"
    return f"{name} {operation.id}"


def _became(outcome: Any) -> str:
    name = type(outcome).__name__
    if name == "Short":
        return "short on " + ", ".join(f"{s.budget} ({s.kind})" for s in outcome.shortfalls)
    if name == "Ended" and outcome.overruns:
        over = ", ".join(f"{overrun.budget} +{overrun.amount}" for overrun in outcome.overruns)
        return f"{outcome.kind}, overran {over}"
    return getattr(outcome, "kind", name.lower()) + (" before" if name == "AlreadyEnded" else "")
