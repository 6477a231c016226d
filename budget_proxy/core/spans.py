"""Where the members of a JSON object stand in its bytes: to look for duplicates, and to change one
member while every other byte stays as it came.

It does not validate: bodies are decoded by a real parser as well. Forbidden here: decoding and
encoding a whole body, which would change its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_OPENING = b"{["
_CLOSING = b"}]"
_SPACE = b" \t\r\n"


class Member(NamedTuple):
    """One member: its decoded name and where its value starts and ends."""

    name: str
    start: int
    end: int


class DuplicateError(ValueError):
    """Two members that parsers may take for the same one; `field` is how we spell it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def members(body: bytes, start: int = 0) -> list[Member]:
    """The members of the object that opens at or after `start`, in order, duplicates included.

    For bytes that a JSON parser accepts; nothing for anything but an object.
    """
    opening = _first(body, start)
    if opening is None or body[opening : opening + 1] != b"{":
        return []
    found: list[Member] = []
    depth, name, value_start, last_string = 0, "", -1, b""
    for token in _TOKEN.finditer(body, opening):
        mark = token[0]
        if mark in _OPENING:
            depth += 1
        elif mark in _CLOSING:
            depth -= 1
            if depth == 0:
                _add(found, body, name, value_start, token.start())
                return found
        elif depth == 1:
            if mark == b":":
                name, value_start = _decode(last_string), token.end()
            elif mark == b",":
                _add(found, body, name, value_start, token.start())
                value_start = -1
            else:
                last_string = mark
    return found


def _first(body: bytes, start: int) -> int | None:
    for position in range(start, len(body)):
        if body[position] not in _SPACE:
            return position
    return None


def _decode(string: bytes) -> str:
    if b"\\" in string:
        text: str = json.loads(string)
        return text
    return string[1:-1].decode("utf-8", "replace")


def _add(found: list[Member], body: bytes, name: str, start: int, end: int) -> None:
    if start < 0:
        return
    while start < end and body[start] in _SPACE:
        start += 1
    while end > start and body[end - 1] in _SPACE:
        end -= 1
    found.append(Member(name, start, end))


def check_guarded(body: bytes, guards: Iterable[str]) -> None:
    """Refuse a second or differently cased spelling of a guarded field: parsers differ in which
    one they take, so the price could be read from one and charged by the other.

    Guards are dotted; at most two levels. Raises DuplicateError.
    """
    wanted: dict[str, list[str]] = {}
    for guard in guards:
        head, _, rest = guard.partition(".")
        wanted.setdefault(head, [])
        if rest:
            wanted[head].append(rest)
    top = members(body)
    _check_level(top, wanted, "")
    for head, inner in wanted.items():
        if inner:
            for member in top:
                if member.name == head:
                    _check_level(members(body[member.start : member.end]), inner, f"{head}.")


def _check_level(found: list[Member], guards: Iterable[str], prefix: str) -> None:
    folded = {guard.casefold(): guard for guard in guards}
    seen: set[str] = set()
    for member in found:
        guard = folded.get(member.name.casefold())
        if guard is None:
            continue
        field = prefix + guard
        if member.name != guard:
            raise DuplicateError(field, f"{member.name!r} is a case variant of {field!r}")
        if guard in seen:
            raise DuplicateError(field, f"{field!r} occurs twice")
        seen.add(guard)


def put(body: bytes, field: str, value: bytes) -> bytes:
    """The body with a dotted field (at most two levels) set to encoded JSON, every other byte as
    it was. A field that is missing (or whose parent is missing or null) is put in first place.
    """
    head, _, rest = field.partition(".")
    for member in members(body):
        if member.name == head:
            old = body[member.start : member.end]
            new = value if not rest else _put_inner(old, rest, value)
            return body[: member.start] + new + body[member.end :]
    new = value if not rest else _put_inner(b"null", rest, value)
    return _insert_first(body, head, new)


def _put_inner(old: bytes, field: str, value: bytes) -> bytes:
    return put(old if old.startswith(b"{") else b"{}", field, value)


def _insert_first(body: bytes, name: str, value: bytes) -> bytes:
    opening = body.index(b"{") + 1
    following = _first(body, opening)
    empty = following is not None and body[following : following + 1] == b"}"
    pair = json.dumps(name).encode() + b":" + value + (b"" if empty else b",")
    return body[:opening] + pair + body[opening:]
