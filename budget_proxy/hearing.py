"""What an upstream's refusal says about the money: a bounded copy of the answer, and the verdict.

Only answers whose status can mean anything (`Rules.reads`) are copied. With `credential: pass` the
account is the caller's own, and nothing of it stops others. Forbidden here: deciding what it means
(`core.verdict`), and what is done about it (`stops`).
"""

from __future__ import annotations

import zlib

from budget_proxy.core.headers import Index
from budget_proxy.core.house import Upstream
from budget_proxy.core.stops import Stop, StopKind
from budget_proxy.core.verdict import MAX_BODY, judge

_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_STOPS: dict[str, StopKind] = {
    "account_empty": "account_empty",
    "key_cap": "key_cap",
    "too_big": "too_big",
}


class Hearing:
    """Hears one answer to its end."""

    def __init__(self, upstream: Upstream, status: int, headers: Index) -> None:
        self._upstream = upstream
        self._status = status
        self._headers = headers
        self._body = b""

    def feed(self, chunk: bytes) -> None:
        """A piece of the body, as it came."""
        if len(self._body) < MAX_BODY:
            self._body += chunk[: MAX_BODY - len(self._body)]

    def stop(self, nanos: int, now_s: float) -> Stop | None:
        """What has to stop, if anything. `nanos`: what the call could cost at most."""
        secrets = [self._upstream.credential or ""]
        body = _plain(self._body, self._headers.get("content-encoding", ""))
        verdict = judge(self._upstream.rules, self._status, self._headers, body, secrets=secrets)
        kind = None if verdict is None else _STOPS.get(verdict.means)
        if verdict is None or kind is None:
            return None
        above = max(0, nanos - 1) if kind == "too_big" else None
        name, until_s = self._upstream.name, verdict.until_s
        return Stop(kind, "upstream", name, verdict.said, now_s, until_s, above)


def hearing_of(upstream: Upstream, status: int, headers: Index) -> Hearing | None:
    """Who hears an answer; None: nothing in it can matter."""
    if upstream.credential is None or not upstream.rules.reads(status):
        return None
    return Hearing(upstream, status, headers)


def _plain(body: bytes, coding: str) -> bytes:
    """The body without its coding as far as it can be read; what is no text says nothing."""
    bits = _BITS.get(coding.strip().lower())
    if bits is None:
        return body
    try:
        return zlib.decompressobj(bits).decompress(body, MAX_BODY)
    except zlib.error:
        return b""
