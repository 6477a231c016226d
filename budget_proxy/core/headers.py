"""Which headers go on, which are dropped, which are put in: the written list (promise P5).

To the upstream: dropped are hop-by-hop headers (RFC 9110 §7.6.1) and those `Connection` names,
`Host` (it is the upstream's), `Expect` (answered by us), the caller's credentials, any other
header of our credential's name, and those that are one of these once `_` is read as `-`; put in
are `Via` and our credential; on metered routes `Accept-Encoding` is narrowed to what the meter
can read.
To the caller: dropped are hop-by-hop headers and those `Connection` names; put in is `Date` where
it is missing (by `listener`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from budget_proxy.core.refusal import Reason, refuse

HeaderList = list[tuple[bytes, bytes]]
VIA = b"1.1 budget-proxy"
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"x-budget-key"}
)
BUDGET_KEY = b"x-budget-key"
_NOT_TO_BE_NAMED = CREDENTIALS | {b"host", b"content-length", b"content-encoding", b"expect"}
_DROPPED = HOP_BY_HOP | CREDENTIALS | {b"host", b"expect", b"content-length"}
_SPACE = 0x20
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READABLE_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity"})


def check(headers: HeaderList) -> None:
    """Refuse (400) what cannot be passed on as it is."""
    for name, value in headers:
        if not _TOKEN.match(name):
            raise refuse(Reason.BAD_REQUEST, "A header has a name that is not a token.")
        if not value.isascii():
            try:
                value.decode("utf-8")
            except UnicodeDecodeError:
                raise refuse(
                    Reason.BAD_REQUEST, f"The value of header {name.decode()} is not UTF-8."
                ) from None


def named_by_connection(headers: HeaderList) -> frozenset[bytes]:
    """The headers that `Connection` makes hop-by-hop. Raises RefusedError (400) where it names one
    that decides how the request is read or paid."""
    named = _named(headers)
    if named & _NOT_TO_BE_NAMED:
        raise refuse(
            Reason.BAD_REQUEST, "Connection names a header that must not be dropped on the way."
        )
    return named


def _named(headers: HeaderList) -> frozenset[bytes]:
    pieces = [
        piece.strip().lower()
        for name, value in headers
        if len(name) == len(b"connection") and name.lower() == b"connection"
        for piece in value.split(b",")
    ]
    return frozenset(pieces)


class Index(Mapping[str, str]):
    """The first value of each header, by lower-case name; decoded only when asked for as text."""

    __slots__ = ("_raw",)

    def __init__(self, raw: dict[bytes, bytes]) -> None:
        self._raw = raw

    def raw(self, name: bytes) -> bytes | None:
        """The value as it came."""
        return self._raw.get(name)

    def without(self, name: bytes) -> Index:
        """The same without one header."""
        return Index({key: value for key, value in self._raw.items() if key != name})

    def get(self, name: str, default: Any = None) -> Any:
        """The value as text."""
        value = self._raw.get(name.encode("latin-1", "replace"))
        return default if value is None else value.decode("utf-8", "replace")

    def __getitem__(self, name: str) -> str:
        return self._raw[name.encode("latin-1", "replace")].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)


NO_HEADERS = Index({})


def by_name(headers: HeaderList) -> Index:
    """Lower-case name to first value."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        low = name.lower()
        if low not in found:
            found[low] = value
    return Index(found)


def to_upstream(
    headers: HeaderList,
    *,
    keep: frozenset[bytes],
    credential: tuple[bytes, bytes] | None,
    codings: Iterable[bytes] | None,
) -> HeaderList:
    """The headers of the forwarded request. `keep`: credentials of the caller that go through.
    `codings`: what the answer may be encoded in; None leaves that to the caller."""
    dropped = _DROPPED if not keep else _DROPPED - keep
    named = named_by_connection(headers)
    if named:
        dropped |= named
    if credential is not None:
        dropped |= {credential[0].lower()}
    # A server may read `_` as `-`: our credential must be the only one it can find.
    hidden = dropped | CREDENTIALS if keep else dropped
    out: HeaderList = []
    via: list[bytes] = []
    for name, value in headers:
        low = name.lower()
        if low in dropped or (b"_" in low and low.replace(b"_", b"-") in hidden):
            continue
        if low == b"via":
            via.append(value)
        elif low != b"accept-encoding" or codings is None:
            out.append((name, value))
    if codings is not None:
        out.append((b"Accept-Encoding", b", ".join(codings)))
    out.append((b"Via", b", ".join([*via, VIA])))
    if credential is not None:
        out.append(credential)
    return out


def lines_of(headers: HeaderList) -> bytes:
    """The headers as they stand in a message."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    assert lines.count(b"\n") == len(headers), "a header does not end in the middle of itself"
    return lines


def readable_codings(headers: Index, *, streamed: bool) -> list[bytes]:
    """What of the caller's Accept-Encoding the meter can read too; identity for streams."""
    if streamed:
        return [b"identity"]
    pieces = (headers.raw(b"accept-encoding") or b"").split(b",")
    kept = [
        piece.strip()
        for piece in pieces
        if piece.partition(b";")[0].strip().lower() in _READABLE_CODINGS
    ]
    return kept or [b"identity"]


def to_caller(headers: HeaderList) -> HeaderList:
    """The headers of the answer passed on. The parser takes `Content-Length : 5` and a few more
    of the headers that frame an answer for what they are, but leaves the space in the name; not
    every reader would, so they end here like those they stand for (RFC 9112 §5.1)."""
    named = _named(headers)
    dropped = HOP_BY_HOP | named if named else HOP_BY_HOP
    return [pair for pair in headers if pair[0].lower() not in dropped and pair[0][-1] != _SPACE]
