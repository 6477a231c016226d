"""What is wrong in a policy file, and where.

No message here or anywhere in this package may show a credential, a key or a part of one: values
that came through `${...}` are shown by that name (`sheet` sees to it), and fields that hold secrets
are never quoted at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MAX_SHOWN = 500
"""Mistakes told of one load; a file of junk does not fill a terminal's history."""
_MAX_WORD = 80


class Mark(NamedTuple):
    """A place in a file; lines and columns are counted from 1, columns in characters."""

    line: int
    column: int


@dataclass(frozen=True, order=True, slots=True)
class Mistake:
    """One thing wrong, at one place."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class PolicyError(Exception):
    """A policy that cannot be used; `str()` is every mistake, one a line, in file order."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes))
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        lines = [str(mistake) for mistake in self.mistakes[:MAX_SHOWN]]
        more = len(self.mistakes) - MAX_SHOWN
        if more > 0:
            last = self.mistakes[-1]
            lines.append(str(Mistake(last.file, last.line, last.column, f"and {more} more")))
        return "\n".join(lines)


def suggest(word: str, options: Iterable[str], nearness: float = 0.6) -> str:
    """`; did you mean 'x'?` for the nearest option, or nothing where none is near (1: the same)."""
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower()[:_MAX_WORD], by_lower, n=1, cutoff=nearness)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def quoted(word: str) -> str:
    """A word of the file for a message: printable, on one line, never long."""
    return repr(word if len(word) <= _MAX_WORD else word[: _MAX_WORD - 1] + "…")


def listed(words: Iterable[str]) -> str:
    """`a, b, c` in a stable order."""
    return ", ".join(sorted(words))
