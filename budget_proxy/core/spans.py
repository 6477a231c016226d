"""Where the members of a JSON object stand in its bytes: to look for duplicates, and to change one
member while every other byte stays as it came.

It does not validate: bodies are decoded by a real parser as well. Forbidden here: decoding and
encoding a whole body, which would change its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_raw_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_EVERY = "*"
_NAME = re.compile(rb'[ \t\r\n,]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*\Z")
_BLACK = re.compile(rb"[^ \t\r\n]")
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
    return _distinct(body, opening) or _scanned(body, opening)


def _distinct(body: bytes, opening: int) -> list[Member] | None:
    """The members of an object in which no name comes twice, found without looking into their
    values: one is as long as a parser says, and the next must begin where it ends. None if not."""
    try:
        values = _raw_members(memoryview(body)[opening:])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    found: list[Member] = []
    position = opening + 1
    for name, value in values.items():
        written = _NAME.match(body, position)
        if written is None or _decode(written[1]) != name:
            return None
        start, text = written.end(), bytes(value)
        if not body.startswith(text, start):
            return None
        position = start + len(text)
        found.append(Member(name, start, position))
    return found if _END.match(body, position) else None


def _scanned(body: bytes, opening: int) -> list[Member]:
    """The members, token by token: for what is nested too deeply or names a member twice."""
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
    found = _BLACK.search(body, start)
    return None if found is None else found.start()


def _decode(string: bytes) -> str:
    if b"\\" in string:
        text: str = json.loads(string)
        return text
    return string[1:-1].decode("utf-8", "replace")


def _add(found: list[Member], body: bytes, name: str, start: int, end: int) -> None:
    if start < 0:
        return
    value = body[start:end].lstrip(_SPACE)
    start = end - len(value)
    found.append(Member(name, start, start + len(value.rstrip(_SPACE))))


def check_guarded(body: bytes, guards: Iterable[str]) -> None:
    """Refuse a second or differently cased spelling of a guarded field: parsers differ in which
    one they take, so the price could be read from one and charged by the other.

    Guards are dotted, and guard what they lead through as well; `*` is every element of a list or
    every member. Raises DuplicateError.
    """
    _check_level(body, _tree(tuple(guards)), "")


class _Guarded(NamedTuple):
    """A guarded name, and the names that are guarded in what it stands for."""

    name: str
    inner: dict[str, _Guarded]


@lru_cache(maxsize=256)
def _tree(guards: tuple[str, ...]) -> dict[str, _Guarded]:
    """The guards, level by level, by their folded names."""
    top: dict[str, _Guarded] = {}
    for guard in guards:
        level = top
        for name in guard.split("."):
            level = level.setdefault(name.casefold(), _Guarded(name, {})).inner
    return top


def _check_level(value: bytes, level: dict[str, _Guarded], prefix: str) -> None:
    found = members(value)
    every = level.get(_EVERY)
    if every is not None:
        below = [value[member.start : member.end] for member in found] or _elements(value)
        for element in below:
            _check_level(element, every.inner, f"{prefix}{_EVERY}.")
    _check_names(found, level, prefix)
    for member in found:
        guarded = level.get(member.name.casefold())
        if guarded is not None and guarded.inner:
            inner = value[member.start : member.end]
            _check_level(inner, guarded.inner, f"{prefix}{guarded.name}.")


def _elements(value: bytes) -> list[bytes]:
    """The elements of a list; nothing for anything else."""
    if not value.lstrip(_SPACE).startswith(b"["):
        return []
    return [bytes(element) for element in _raw_elements(value)]


def _check_names(found: list[Member], level: dict[str, _Guarded], prefix: str) -> None:
    seen: set[str] = set()
    for member in found:
        name = member.name
        guarded = level.get(name.casefold())
        if guarded is None or guarded.name == _EVERY:
            continue
        guard = guarded.name
        if name != guard:
            field = prefix + guard
            raise DuplicateError(field, f"{name!r} is a case variant of {field!r}")
        if guard in seen:
            field = prefix + guard
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
