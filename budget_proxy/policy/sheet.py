"""One file while it is read: its tree, where each value stands, and what is wrong with it.

Every message passes through `Sheet.report`, the one place where values that came through `${...}`
are taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from budget_proxy.policy.mistakes import Mark, Mistake, quoted
from budget_proxy.policy.nodes import Node, Scalar, Table

Steps = tuple[str | int, ...]
"""The way to a value: keys and list positions. Steps that lead nowhere are passed over, so that
the names pydantic gives to members of a union may stand among them."""

_MIN_SECRET = 8
"""Shorter values are replaced only where a message quotes the whole scalar they stand in: replacing
`team` everywhere would garble messages, and is no secret."""


class Spotted(NamedTuple):
    """What a way leads to: the last node, its key, and the steps that led somewhere."""

    node: Node
    key: Mark
    steps: Steps


class Sheet:
    """A file's tree with its mistakes and notes."""

    def __init__(
        self,
        file: str,
        tree: Node,
        *,
        secrets: Mapping[str, str] | None = None,
        broken: frozenset[Mark] = frozenset(),
    ) -> None:
        self.file = file
        self.tree = tree
        self.mistakes: list[Mistake] = []
        self.notes: list[Mistake] = []
        self._secrets = _to_hide(secrets or {})
        self._broken = broken

    def __repr__(self) -> str:
        return f"Sheet({self.file!r}, {len(self.mistakes)} mistakes, {len(self.notes)} notes)"

    def root(self) -> Spot:
        """The place of the whole file."""
        return Spot(self, ())

    def spot(self, steps: Steps) -> Spotted:
        """Where a way leads."""
        node, key, taken = self.tree, self.tree.mark, list[str | int]()
        for step in steps:
            if isinstance(node, Table) and step in node.entries:
                entry = node.entries[str(step)]
                node, key = entry.value, entry.mark
            elif isinstance(node, Scalar | Table) or not _inside(step, len(node.items)):
                continue
            else:
                node = node.items[int(step)]
                key = node.mark
            taken.append(step)
        return Spotted(node, key, tuple(taken))

    def scalar(self, steps: Steps) -> Scalar | None:
        """The scalar a way leads to."""
        node = self.spot(steps).node
        return node if isinstance(node, Scalar) else None

    def report(self, steps: Steps, message: str, *, key: str | None = None) -> None:
        """Say that something is wrong at a place; with `key`, with that key or its absence."""
        found = self._said(steps, message, key)
        if found is not None:
            self.mistakes.append(found)

    def note(self, steps: Steps, message: str) -> None:
        """Say something that `check` warns of."""
        found = self._said(steps, message, None)
        if found is not None:
            self.notes.append(found)

    def _said(self, steps: Steps, message: str, key: str | None) -> Mistake | None:
        at = self.spot(steps)
        mark = at.node.mark if isinstance(at.node, Scalar) and at.node.raw else at.key
        if key is not None:
            mark = self.spot((*steps, key)).key
        if at.node.mark in self._broken:
            return None
        where = _dotted(at.steps)
        text = f"{where}: {message}" if where else message
        return Mistake(self.file, mark.line, mark.column, self._clean(text, at.node))

    def _clean(self, text: str, node: Node) -> str:
        if isinstance(node, Scalar) and node.text != node.raw:
            text = text.replace(quoted(node.text), quoted(node.raw))
        for secret, shown in self._secrets:
            text = text.replace(secret, shown)
        return text


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a sheet, to be handed to what builds from it."""

    sheet: Sheet
    steps: Steps

    def at(self, *steps: str | int) -> Spot:
        """A place below this one."""
        return Spot(self.sheet, (*self.steps, *steps))

    def wrong(self, message: str) -> None:
        """Say that something is wrong here."""
        self.sheet.report(self.steps, message)

    def wrong_key(self, key: str, message: str) -> None:
        """Say that a key of this mapping is wrong, or missing."""
        self.sheet.report(self.steps, message, key=key)

    def note(self, message: str) -> None:
        """Say something that `check` warns of."""
        self.sheet.note(self.steps, message)

    @property
    def is_literal(self) -> bool:
        """Whether a scalar stands here as it is, without a variable."""
        scalar = self.sheet.scalar(self.steps)
        return scalar is not None and "${" not in scalar.raw


def _inside(step: str | int, length: int) -> bool:
    return isinstance(step, int) and 0 <= step < length


def _forms(secret: str) -> list[str]:
    """How a text can look in a message: as it is, and as `quoted` and `repr` write it."""
    return [quoted(secret)[1:-1].removesuffix("…"), repr(secret)[1:-1], secret]


def _to_hide(secrets: Mapping[str, str]) -> list[tuple[str, str]]:
    found = [
        (form, shown)
        for secret, shown in secrets.items()
        if len(secret) >= _MIN_SECRET
        for form in _forms(secret)
    ]
    # The longest first: one secret can be a part of another.
    return sorted(set(found), key=lambda pair: (-len(pair[0]), pair))


def _dotted(steps: Steps) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{quoted(step)[1:-1]}" if text else quoted(step)[1:-1]
    return text
