"""Paths into the JSON of a provider: `data.balance`, `infos[currency=USD].total`, `a[*].amount`.

A path is made when the policy is read, and followed in documents that nobody here wrote: in one of
another shape it finds nothing, and never raises. Documents are read exactly (`read_json`): a figure
with a decimal point is a Decimal, never a float.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

MAX_FOUND = 1000
"""Values that one path finds; a longer list is not one of a balance."""
_KEY = r"[^.\s$\[\]=]+"
_STEP = re.compile(rf"({_KEY})?((?:\[(?:\*|{_KEY}=[^\[\]\s]+)\])?)\Z")
_MAX_PATH = 200


class PathError(ValueError):
    """The text is no path; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Step:
    """Into a member; then, where `each`, into the elements of the list that stands there."""

    key: str
    each: bool = False
    only: tuple[str, str] | None = None
    """Only elements whose member has this text."""


@dataclass(frozen=True, slots=True)
class Path:
    """Where values stand. `text` is how it was written."""

    text: str
    steps: tuple[Step, ...]

    @property
    def only(self) -> tuple[str, str] | None:
        """The filter on a list's elements, if it has one."""
        return next((step.only for step in self.steps if step.only is not None), None)


def path_of(text: str) -> Path:
    """The path that a text writes. Raises PathError."""
    steps = [_step(part) for part in _parts(text)] if 0 < len(text) <= _MAX_PATH else []
    if not steps or None in steps:
        raise PathError(
            "is not a path, as in data.balance, infos[currency=USD].total or items[*].amount"
        )
    found = tuple(step for step in steps if step is not None)
    if sum(step.each for step in found) > 1:
        raise PathError("goes into more than one list; one [...] is the most there may be")
    return Path(text, found)


def _parts(text: str) -> list[str]:
    """At each dot that is not inside [...]."""
    return re.split(r"\.(?![^\[]*\])", text)


def _step(part: str) -> Step | None:
    match = _STEP.match(part)
    if match is None or not part:
        return None
    key, inside = match[1] or "", match[2][1:-1]
    if not inside:
        return Step(key)
    name, equals, text = inside.partition("=")
    return Step(key, each=True, only=(name, text) if equals else None)


def find(path: Path, document: Any) -> list[Any]:
    """Every value that stands there, null included; empty where the document has another shape."""
    found = [document]
    for step in path.steps:
        found = [inner for value in found for inner in _inside(step, value)]
    return found


def _inside(step: Step, value: Any) -> list[Any]:
    if step.key:
        if not isinstance(value, dict) or step.key not in value:
            return []
        value = value[step.key]
    if not step.each:
        return [value]
    if not isinstance(value, list) or len(value) > MAX_FOUND:
        return []
    if step.only is None:
        return value
    key, text = step.only
    return [item for item in value if isinstance(item, dict) and said(item.get(key)) == text]


def said(value: Any) -> str | None:
    """A scalar as text, as it would be compared or shown; None for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | Decimal) else None


def read_json(data: bytes, *, each_key_once: bool = False) -> Any:
    """A document, with exact numbers. Raises ValueError for anything that is not JSON; with
    `each_key_once` also where an object has a key twice, so that it says two things."""
    try:
        return json.loads(
            data.decode("utf-8-sig"),
            parse_float=_decimal,
            parse_int=_whole,
            parse_constant=_no_number,
            object_pairs_hook=_each_once if each_key_once else None,
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None


_MAX_DIGITS = 100


def _decimal(text: str) -> Decimal:
    if len(text) > _MAX_DIGITS:
        raise ValueError("has a number that is too long")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError("has a number beyond any") from None


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("has a number that is too long")
    return int(text)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("has a key twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
