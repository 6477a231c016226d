"""The upstream's credential, put in where the provider wants it. Pure.

Services never see it. Forbidden here: logging.
"""

from __future__ import annotations

import base64
from urllib.parse import quote

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


_URLS = frozenset({b"location", b"content-location", b"link", b"refresh"})


def without_ours(upstream: Upstream, headers: HeaderList) -> HeaderList:
    """The headers of an answer. An upstream that redirects repeats its query, and our credential
    with it: that does not go on to the caller."""
    if not upstream.credential or upstream.tariff.credential != "query":
        return headers
    spellings = {
        upstream.credential,
        quote(upstream.credential),
        quote(upstream.credential, safe=""),
    }
    kept = []
    for name, value in headers:
        clean = value
        if name.lower() in _URLS:
            for spelling in spellings:
                clean = clean.replace(spelling.encode(), b"")
        kept.append((name, clean))
    return kept


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
