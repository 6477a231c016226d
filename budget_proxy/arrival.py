"""What an incoming request must look like, which upstream it is for, and what it says of itself.

Pure: a call's first lines and bytes go in; a value or a refusal comes out. A service's SDK sends
the same first lines with every call but for the length of the body, so what follows from them is
remembered, under a digest: no key is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping

import msgspec

from budget_proxy import credential
from budget_proxy.call import Call
from budget_proxy.core import headers as header_rules
from budget_proxy.core.document import Document
from budget_proxy.core.guards import check_first_lines
from budget_proxy.core.headers import Index
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.rate import Rate
from budget_proxy.core.reading import Reading
from budget_proxy.core.refusal import Reason, RefusedError, refuse
from budget_proxy.core.route import Route
from budget_proxy.core.target import Target, check_host, check_separators, parse_target
from budget_proxy.identify import identify

MAX_PREFER_S = 86_400
MAX_REMEMBERED = 2048
FREE_ROUTE = Route(name="(unmatched)", methods=frozenset(), template="/**", free=True)


class Arrival(msgspec.Struct):
    """What follows from a request's first lines alone."""

    upstream: Upstream
    service: Service
    target: Target
    """As the tariff sees it: without our mount."""
    sent: Target
    """As it is sent: also without the caller's key."""
    query: Mapping[str, str]
    headers: Index
    """As they are forwarded, but for our credential and the length of the body: see `_seen`."""
    routes: tuple[tuple[Route, Mapping[str, str]], ...]
    """Those that may cover the request, with their path captures."""
    reads_body: bool
    """Whether one of them must see the body."""
    reading: Reading
    """How they read it."""
    patience_s: float | None
    """How long the caller lets us wait (`Prefer: wait`)."""
    traceparent: str
    retry: int
    """Which attempt its SDK says it is; 0 is the first."""
    _forwarded: dict[tuple[bool, bool], bytes] = {}

    @property
    def compressed(self) -> bool:
        """Whether the body is encoded."""
        return self.headers.raw(b"content-encoding") is not None

    def forwarded(
        self, headers: header_rules.HeaderList, *, metered: bool, streamed: bool
    ) -> bytes:
        """The lines of the headers as they are sent, but for the length of the body."""
        found = self._forwarded.get((metered, streamed))
        if found is None:
            codings = None
            if metered:
                codings = header_rules.readable_codings(self.headers, streamed=streamed)
            forwarded = header_rules.to_upstream(
                headers,
                keep=credential.kept(self.upstream),
                credential=credential.header(self.upstream),
                codings=codings,
            )
            found = self._forwarded[metered, streamed] = header_rules.lines_of(forwarded)
        return found


class Arrivals:
    """Reads first lines under one policy, and remembers what it found."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._known: dict[bytes, Arrival] = {}
        self._readings: dict[tuple[str, ...], Reading] = {}

    def of(self, call: Call) -> Arrival:
        """What follows from a call's first lines. Raises RefusedError."""
        lines = [b"%d.%d %b" % (*call.version, f"{call.method} {call.target}".encode())]
        lines += [
            name + b":" + value
            for name, value in call.headers
            if len(name) != _LENGTH or name.lower() != b"content-length"
        ]
        key = hashlib.sha256(b"\n".join(lines)).digest()
        found = self._known.get(key)
        if found is None:
            found = self._read(call)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = found
        return found

    def _read(self, call: Call) -> Arrival:
        headers = header_rules.by_name(call.headers)
        host = check_form(call, headers, self._house)
        target = parse_target(call.target)
        upstream, inner = find_upstream(self._house, host, target)
        try:
            return self._read_for(upstream, inner, call, headers)
        except RefusedError as refused:
            refused.upstream, refused.dialect = upstream.name, upstream.dialect
            raise

    def _read_for(self, upstream: Upstream, inner: Target, call: Call, headers: Index) -> Arrival:
        if not upstream.allow_encoded_slash:
            check_separators(inner.path)
        service = identify(self._house, upstream, call.headers, inner)
        routes = tuple(
            (route, captures)
            for route in upstream.tariff.routes
            if (captures := route.captures(call.method, inner.plain)) is not None
        )
        reading = self._reading(upstream, tuple(route for route, _ in routes))
        if reading.beside:
            check_first_lines(reading.beside, inner, _passed(upstream, call.headers))
        traceparent, retry = marks(headers)
        return Arrival(
            upstream=upstream,
            service=service,
            target=inner,
            sent=credential.in_target(upstream, inner),
            query=inner.fields(),
            headers=_seen(upstream, call.headers),
            routes=routes,
            reads_body=any(route.reads_body for route, _ in routes),
            reading=reading,
            patience_s=patience(headers),
            traceparent=traceparent,
            retry=retry,
            _forwarded={},
        )

    def _reading(self, upstream: Upstream, routes: tuple[Route, ...]) -> Reading:
        key = (upstream.name, *(route.name for route in routes))
        found = self._readings.get(key)
        if found is None:
            found = self._readings[key] = Reading(routes)
        return found


_LENGTH = len(b"content-length")


def _passed(upstream: Upstream, headers: header_rules.HeaderList) -> header_rules.HeaderList:
    """The caller's headers that go on to the upstream."""
    return header_rules.to_upstream(
        headers, keep=credential.kept(upstream), credential=None, codings=None
    )


def _seen(upstream: Upstream, headers: header_rules.HeaderList) -> Index:
    """The caller's headers that the upstream will see, from which all is read that decides what a
    call costs and who pays. A header that `Connection` names ends here, so a figure in it is one
    that the upstream never sees; to refuse such a request would refuse honest proxies, which name
    headers of their own."""
    ours = credential.header(upstream)
    found = header_rules.by_name(_passed(upstream, headers))
    return found if ours is None else found.without(ours[0].lower())


def check_form(call: Call, headers: Index, house: House) -> str:
    """The host the request is for. Raises RefusedError for what cannot be forwarded faithfully."""
    if call.method == "CONNECT":
        raise refuse(
            Reason.METHOD,
            "budget-proxy is a reverse proxy: do not set it as HTTP_PROXY or HTTPS_PROXY; point "
            "the SDK's base URL at it, as in http://HOST:8080/openai/v1.",
        )
    if call.method == "TRACE":
        raise refuse(
            Reason.METHOD, "TRACE is not forwarded: its answer would repeat the provider's key."
        )
    if call.version not in ((1, 0), (1, 1)):
        raise refuse(Reason.VERSION, "Speak HTTP/1.1.")
    header_rules.check(call.headers)
    header_rules.named_by_connection(call.headers)
    expect = headers.raw(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise refuse(Reason.EXPECTATION, "Only Expect: 100-continue is understood.")
    if (headers.raw(b"upgrade") or b"").lower() == b"websocket":
        raise refuse(Reason.NOT_IMPLEMENTED, "WebSockets are not proxied.")
    coding = headers.raw(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or call.version == (1, 0)):
        raise refuse(Reason.NOT_IMPLEMENTED, "Only Transfer-Encoding: chunked is understood.")
    host = headers.raw(b"host")
    if host is None and call.version == (1, 0) and not house.hosts:
        return ""
    return check_host((host or b"").decode("latin-1"), house.hosts)


def find_upstream(house: House, host: str, target: Target) -> tuple[Upstream, Target]:
    """The upstream a request is for, and its target there. Raises RefusedError (404)."""
    best: Upstream | None = None
    for upstream in house.upstreams.values():
        if upstream.host is not None and upstream.host != host:
            continue
        mount = upstream.mount.rstrip("/")
        under = target.path.startswith(mount) and target.path[len(mount) : len(mount) + 1] in (
            "",
            "/",
        )
        if under and (best is None or _rank(upstream) > _rank(best)):
            best = upstream
    if best is None:
        known = ", ".join(sorted(upstream.mount for upstream in house.upstreams.values()))
        raise refuse(Reason.NO_UPSTREAM, f"Upstreams are served under {known}.")
    inner = target.path[len(best.mount.rstrip("/")) :] or "/"
    return best, Target(inner, target.query)


def _rank(upstream: Upstream) -> tuple[bool, int]:
    return upstream.host is not None, len(upstream.mount)


def unmatched(upstream: Upstream, method: str, target: Target) -> Route:
    if upstream.on_unmatched == "refuse":
        meant = _meant(upstream, method, target.path)
        hint = (
            f"did you mean {upstream.mount.rstrip('/')}{meant}? Then mend the SDK's base URL."
            if meant
            else "add a route to its tariff, or set on_unmatched."
        )
        raise refuse(
            Reason.NO_TARIFF,
            f"No tariff of upstream {upstream.name!r} covers {method} {target.path[:200]}; {hint}",
        )
    if upstream.on_unmatched == "pass":
        return dataclasses.replace(FREE_ROUTE, currency=upstream.currency)
    rates = {"requests": Rate(upstream.on_unmatched)}
    return dataclasses.replace(FREE_ROUTE, free=False, rates=rates, currency=upstream.currency)


def _meant(upstream: Upstream, method: str, path: str) -> str | None:
    """The path with one `/v1` more or less, if that is one the tariff covers: the usual mistake in
    a base URL."""
    for other in (f"/v1{path}", path.removeprefix("/v1")):
        routes = upstream.tariff.routes
        if other != path and any(route.captures(method, other) is not None for route in routes):
            return other
    return None


def decoded(document: Document, body: bytes, reading: Reading, limit: int) -> Document:
    """The document with its JSON, for a body that decides the price. Raises RefusedError (400)."""
    if not body:
        return document
    coding = document.headers.get("content-encoding", "identity").strip().lower()
    plain = body if coding == "identity" else _inflate(body, coding, limit)
    return reading.document(document, plain)


def _inflate(body: bytes, coding: str, limit: int) -> bytes:
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 47}.get(coding)
    if bits is None:
        raise refuse(
            Reason.BAD_REQUEST,
            "The body's Content-Encoding cannot be read to price it; send gzip, deflate or none.",
        )
    inflate = zlib.decompressobj(bits)
    try:
        plain = inflate.decompress(body, limit)
    except zlib.error:
        raise refuse(Reason.BAD_REQUEST, f"The body is not {coding} as it says.") from None
    if inflate.unconsumed_tail or not inflate.eof:
        if inflate.unconsumed_tail:
            raise too_large(limit)
        raise refuse(Reason.BAD_REQUEST, f"The body's {coding} ends too early.")
    if inflate.unused_data:
        # A second part: some readers take it, some do not.
        raise refuse(Reason.BAD_REQUEST, f"The body goes on after the end of its {coding}.")
    return plain


def too_large(limit: int) -> RefusedError:
    """The refusal of a body above the limit."""
    return refuse(
        Reason.BODY_TOO_LARGE, f"The request body is above {limit} bytes (limits: max_body)."
    )


def too_slow() -> RefusedError:
    """The refusal of a body that does not come."""
    return refuse(Reason.BODY_TIMEOUT, "The request body came too slowly.")


def not_framed() -> RefusedError:
    """The refusal of a body whose end cannot be told."""
    return refuse(Reason.BAD_REQUEST, "The request body is not framed as HTTP asks.")


def answer_length(method: str, status: int, headers: Index) -> int | None:
    """How many body bytes an answer will have; None where only its end tells."""
    if method == "HEAD" or status in (204, 304):
        return None
    value = headers.raw(b"content-length") or b""
    return int(value) if value.isdigit() else None


def patience(headers: Index) -> float | None:
    """What `Prefer: wait=N` (RFC 7240 §4.3) says, in seconds."""
    value = headers.raw(b"prefer")
    if value is None:
        return None
    for piece in value.decode("latin-1").split(","):
        name, _, number = piece.strip().partition("=")
        if name.strip().lower() == "wait" and number.strip().isdigit():
            return float(min(int(number.strip()[:9]), MAX_PREFER_S))
    return None


def marks(headers: Index) -> tuple[str, int]:
    """The trace the call belongs to, and which attempt its SDK says it is (0 is the first)."""
    trace = headers.raw(b"traceparent") or b""
    retry = headers.raw(b"x-stainless-retry-count") or b"0"
    attempt = int(retry[:4]) if retry.isdigit() else 0
    return trace.decode("latin-1")[:64], attempt
