"""A figure: a JSON value as a whole number of pieces, or as so many bytes of text.

Forbidden here: where the value stood (`place`), and which quantity it is of (`source`).
"""

from __future__ import annotations

from typing import Any

MAX_QUANTITY = 10**12
"""Beyond a million million pieces a figure is a mistake or an attack, not a quantity."""


class BadQuantityError(ValueError):
    """A quantity in a request is not one: negative, not whole, not a number, too large."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}")
        self.where = where


def whole(value: Any, where: str, *, text_allowed: bool) -> int:
    """A JSON value as a quantity. Raises BadQuantityError for anything but a sane whole number."""
    if text_allowed and isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) <= len(str(MAX_QUANTITY)) else MAX_QUANTITY + 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadQuantityError(where, "is not a whole number")
    if value < 0:
        raise BadQuantityError(where, "is negative")
    if value > MAX_QUANTITY:
        raise BadQuantityError(where, f"is above {MAX_QUANTITY}")
    return value


def text_bytes(value: Any) -> int:
    """The UTF-8 size of all the text in a JSON value. Iterative: it may be nested deeply."""
    size = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is str:
            size += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        elif type(item) is dict:
            pending.extend(item.values())
        elif type(item) is list:
            pending.extend(item)
    return size
