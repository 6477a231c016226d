"""Notes: small durable facts beside the money: readings, pauses, alerts, attempts to top up.

A note has a kind, a name within it and a version that rises with each change. Changes are made all
or none, each only if the version it was decided on is still the one there: so of several workers
and machines that decide at once, one is heard. The body is JSON; what it says is known only to the
module that owns the kind. Never a secret: a ledger can be read by whoever backs it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_BODY = 256 * 1024
"""Bytes of one note."""


class Note(NamedTuple):
    """One fact as it stands."""

    kind: str
    name: str
    version: int
    """1 for the first one of its name, one more with each change."""
    body: bytes


class Change(NamedTuple):
    """What is to take a note's place."""

    kind: str
    name: str
    version: int
    """That of the note which must be there; 0: there must be none."""
    body: bytes | None
    """None: the note is deleted."""

    @property
    def after(self) -> Note | None:
        """The note once the change is made."""
        if self.body is None:
            return None
        return Note(self.kind, self.name, self.version + 1, self.body)


Names = Mapping[tuple[str, str], int]


def may_all(changes: Sequence[Change], there: Names) -> bool:
    """Whether each change finds the version it was decided on; `there`: those of the notes."""
    return all(there.get((kind, name), 0) == version for kind, name, version, _ in changes)


def must_be_sound(changes: Sequence[Change]) -> None:
    """Programmer errors: a note named twice, nothing deleted, a body without end."""
    assert all(change.version or change.body is not None for change in changes), "it is there"
    assert len({change[:2] for change in changes}) == len(changes), "each note is changed once"
    assert all(len(change.body or b"") <= MAX_BODY for change in changes), "a note is small"
