"""Which headers go on, which are dropped, which are put in: the written list (promise P5).

To the upstream: dropped are hop-by-hop headers (RFC 9110 §7.6.1) and those `Connection` names,
`Host` (it is the upstream's), `Expect` (answered by us), the caller's credentials, and headers
whose name is a credential's with `_` for `-`; put in are `Via` and our credential; on metered
routes `Accept-Encoding` is narrowed to what the meter can read.
To the caller: dropped are hop-by-hop headers and those `Connection` names; nothing is put in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"expect", b"content-length"}
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_READABLE_CODINGS = (b"gzip", b"deflate", b"identity")


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
    named: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            named.update(piece.strip().lower() for piece in value.split(b","))
    if named & _NOT_TO_BE_NAMED:
        raise refuse(
            Reason.BAD_REQUEST, "Connection names a header that must not be dropped on the way."
        )
    return frozenset(named)


def first(headers: HeaderList, wanted: bytes) -> bytes | None:
    """The first value of a header (lower-case name)."""
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return None


def by_name(headers: HeaderList) -> dict[str, str]:
    """Lower-case name to first value, as text, for reading quantities and payers."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), value.decode("utf-8", "replace"))
    return found


def to_upstream(
    headers: HeaderList,
    *,
    keep: frozenset[bytes],
    credential: tuple[bytes, bytes] | None,
    codings: Iterable[bytes] | None,
) -> HeaderList:
    """The headers of the forwarded request. `keep`: credentials of the caller that go through.
    `codings`: what the answer may be encoded in; None leaves that to the caller."""
    dropped = (_NOT_FORWARDED | named_by_connection(headers) | CREDENTIALS) - keep
    out: HeaderList = []
    via = VIA
    for name, value in headers:
        low = name.lower()
        if low in dropped or low.replace(b"_", b"-") in dropped:
            continue
        if low == b"via":
            via = value + b", " + VIA
        elif low != b"accept-encoding" or codings is None:
            out.append((name, value))
    if codings is not None:
        out.append((b"Accept-Encoding", b", ".join(codings)))
    out.append((b"Via", via))
    if credential is not None:
        out.append(credential)
    return out


def readable_codings(headers: HeaderList, *, streamed: bool) -> list[bytes]:
    """What of the caller's Accept-Encoding the meter can read too; identity for streams."""
    if streamed:
        return [b"identity"]
    wanted = (first(headers, b"accept-encoding") or b"").lower()
    kept = [coding for coding in _READABLE_CODINGS if coding in wanted]
    return kept or [b"identity"]


def to_caller(headers: HeaderList) -> HeaderList:
    """The headers of the answer passed on."""
    named: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            named.update(piece.strip().lower() for piece in value.split(b","))
    if not named:
        return [pair for pair in headers if pair[0].lower() not in HOP_BY_HOP]
    dropped = HOP_BY_HOP | named
    return [pair for pair in headers if pair[0].lower() not in dropped]
