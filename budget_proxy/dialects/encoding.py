"""Bytes that are safe in a header or a body, whatever a caller put into a name.

Everything that leaves this room is ASCII: JSON escapes the rest, headers lose it. No header
holds CR, LF or another control character.
"""

from __future__ import annotations

import json
import re

import msgspec

_NOT_TOKEN = re.compile(r"[^A-Za-z0-9._~-]")
_NOT_VISIBLE = re.compile(r"[^ -~]")
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_encode = msgspec.json.Encoder().encode
MAX_HEADER = 200
_DELETE = b"\x7f"


def json_bytes(value: dict[str, object]) -> bytes:
    """One line of ASCII JSON."""
    try:
        data = _encode(value)
    except UnicodeEncodeError:  # half a surrogate pair
        data = b"\xff"
    # Nearly always it is; what is not, the slower encoder escapes.
    plain = data.isascii() and _DELETE not in data
    return data if plain else _JSON.encode(value).encode("ascii")


def sse_event(data: bytes, *, name: str = "") -> bytes:
    """One server-sent event; `data` is one line."""
    event = f"event: {name}\n".encode("ascii") if name else b""
    return event + b"data: " + data + b"\n\n"


def scalar(text: str) -> str:
    """The text without unpaired surrogates, which strict JSON readers refuse."""
    return text.encode("utf-8", "replace").decode()


def token(text: str) -> str:
    """The text with all but URI-unreserved characters replaced."""
    return _NOT_TOKEN.sub("_", text)[:MAX_HEADER]


def header_text(text: str) -> bytes:
    """A header value: visible ASCII and spaces."""
    return _NOT_VISIBLE.sub("?", text)[:MAX_HEADER].strip().encode("ascii")


def quoted(text: str) -> bytes:
    """A string of RFC 9651 (structured fields), quotes included."""
    # Shortened before it is escaped, so that no escape is cut in half.
    inner = header_text(text).replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'"' + inner + b'"'
