"""The upstream's credential, put in where the provider wants it. Pure.

Services never see it. Forbidden here: logging.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from budget_proxy.core import headers as header_rules
from budget_proxy.core.headers import HeaderList
from budget_proxy.core.house import Upstream
from budget_proxy.core.target import Target
from budget_proxy.identify import QUERY_KEY


def kept(upstream: Upstream) -> frozenset[bytes]:
    if upstream.credential is not None:
        return frozenset()
    return header_rules.CREDENTIALS - {header_rules.BUDGET_KEY}


def header(upstream: Upstream) -> tuple[bytes, bytes] | None:
    credential, tariff = upstream.credential, upstream.tariff
    if not credential or tariff.credential == "query":
        return None
    if tariff.credential == "bearer":
        return b"Authorization", b"Bearer " + credential.encode()
    if tariff.credential == "basic":
        return b"Authorization", b"Basic " + base64.b64encode(credential.encode())
    return tariff.credential_name.encode(), credential.encode()


class _Ours(NamedTuple):
    """One credential as an upstream may repeat it."""

    plain: tuple[bytes, ...]
    spelled: re.Pattern[bytes]
    """Any of them, each character as it is or percent-encoded, once or more often."""


SHORT = 8
"""Below so many characters a credential may be a piece of any word: it is cut out only where it
stands alone."""
MAX_DECODED = 4
"""How often a header may be percent-encoded: a URL in a URL in a URL is the most there is."""


@lru_cache(maxsize=1024)
def _ours(credential: str, place: str) -> _Ours:
    plain = [credential.encode()]
    if place == "basic":
        plain.append(base64.b64encode(plain[0]))
    either = b"|".join(b"".join(map(_spelled, ours)) for ours in plain)
    if len(credential) < SHORT:
        either = rb"(?<![0-9A-Za-z])(?:" + either + rb")(?![0-9A-Za-z])"
    return _Ours(tuple(plain), re.compile(either))


def _spelled(byte: int) -> bytes:
    code = b"".join(
        b"[%c%c]" % (digit, digit + 32) if digit > ord("9") else b"%c" % digit
        for digit in b"%02X" % byte
    )
    return b"(?:%b|%%(?:25)*%b)" % (re.escape(b"%c" % byte), code)


def without_ours(upstream: Upstream, headers: HeaderList) -> HeaderList:
    """The headers of an answer without our credential: an upstream that redirects repeats its
    query, and one that is being debugged any header. In bodies nothing is looked for."""
    if not upstream.credential:
        return headers
    ours = _ours(upstream.credential, upstream.tariff.credential)
    if not _repeats(b"\n".join([value for _, value in headers]), ours.plain):
        return headers
    return [(name, ours.spelled.sub(b"", value)) for name, value in headers]


def _repeats(values: bytes, plain: tuple[bytes, ...]) -> bool:
    """Whether one of these is in there. A pattern would look at every byte, and mostly in vain."""
    for _ in range(MAX_DECODED):
        for ours in plain:
            if ours in values:
                return True
        if b"%" not in values:
            return False
        values = unquote_to_bytes(values)
    return False


def in_target(upstream: Upstream, target: Target) -> Target:
    """The target with our credential where the upstream wants it in the query."""
    if upstream.credential is None:
        return target
    target = target.without(frozenset({QUERY_KEY}))
    if upstream.tariff.credential == "query" and upstream.credential:
        name = upstream.tariff.credential_name or QUERY_KEY
        target = target.without(frozenset({name}))
        pair = f"{quote(name, safe='')}={quote(upstream.credential, safe='')}"
        query = f"{target.query}&{pair}" if target.query else pair
        return Target(target.path, query)
    return target
