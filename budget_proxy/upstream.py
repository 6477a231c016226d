"""Forward calls to upstreams and bring their answers back. One of the two rooms that know the HTTP
library.

Here are its traps closed: nothing is ever sent twice, redirects and cookies are not followed, no
proxy is taken from the environment, targets go out as they came, header names cannot fold into
each other, every wait has a deadline, and "was it sent?" has an answer.
Forbidden here: knowing what a budget is.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientTimeout
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.streams import EmptyStreamReader
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from budget_proxy.call import (
    CHUNK,
    AnswerCutError,
    BodyTimeoutError,
    CallerGoneError,
    Head,
    Headers,
    NoAnswerError,
    NotSentError,
)
from budget_proxy.core.house import Timeouts, Upstream

MAX_HEADER = 32 * 1024
LARGE = 1024 * 1024
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
Body = bytes | AsyncIterator[bytes] | None


class _LostError(Exception):
    """A connection broke after the request may have left (see `_Attempt`)."""


class _Request(ClientRequest):
    """A request that knows whether it got a connection: from then on a byte may have left."""

    connected = False


class _Attempt:
    """The one attempt to send a request.

    Keeps the library from sending it again when a reused connection turns out dead: it does so
    for GET, PUT and DELETE, and each attempt may be billed.
    """

    connected = False

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Be the middleware of the request."""
        assert isinstance(request, _Request), "our session makes our requests"
        try:
            return await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise _LostError(str(error)) from error
        finally:
            self.connected = request.connected


class _Wire(ResponseHandler):
    """A connection that remembers how it was lost: an answer without a length lasts until the
    connection ends, and the library takes any end for a proper one. And none at all for that of a
    body that turned into garbage."""

    broken = False

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone; with an error, not because the upstream was done."""
        self.broken = exc is not None
        body = self._payload
        super().connection_lost(exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the body is not HTTP"))


class _Connector(aiohttp.TCPConnector):
    """Makes connections of that kind."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        wires: Callable[..., ResponseHandler] = _Wire
        self._factory = functools.partial(wires, loop=self._loop)

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        """Get a connection from the pool, or a new one."""
        connection = await super().connect(req, traces, timeout)
        if isinstance(req, _Request):
            req.connected = True
        return connection


class _Response(ClientResponse):
    """A response that knows its connection to the end."""

    @property
    def was_broken_off(self) -> bool:
        """Whether what looks like its end was none."""
        framed = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        if framed or isinstance(self.content, EmptyStreamReader):
            return False
        return isinstance(self._protocol, _Wire) and self._protocol.broken


class UpstreamAnswer:
    """An `Answer` on an aiohttp response."""

    def __init__(self, response: _Response, timeouts: Timeouts, ends_s: float) -> None:
        self._response = response
        self._timeouts = timeouts
        self._ends_s = ends_s
        self._loop = asyncio.get_running_loop()
        self.head = Head(response.status, response.reason or "", list(response.raw_headers))

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        content = self._response.content
        now_s = self._loop.time()
        if now_s > self._ends_s:
            raise AnswerCutError("timeout", "the call took too long")
        try:
            data = content.read_nowait(CHUNK)
            if not data and not content.at_eof():
                async with asyncio.timeout_at(min(now_s + self._timeouts.idle_s, self._ends_s)):
                    data = await content.read(CHUNK)
        except TimeoutError:
            raise AnswerCutError("timeout", "the upstream stopped sending") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise AnswerCutError("cut", "the upstream cut its answer short") from error
        if not data and self._response.was_broken_off:
            raise AnswerCutError("cut", "the upstream cut its answer short")
        return data

    def close(self) -> None:
        """See `Answer.close`."""
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()


class Outgoing:
    """The connections to one upstream."""

    def __init__(self, upstream: Upstream, tls: ssl.SSLContext | bool) -> None:
        self.upstream = upstream
        """Whose connections these are, as the policy in force has it."""
        timeouts = upstream.timeouts
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=upstream.max_connections,
                keepalive_timeout=upstream.keepalive_s,
                ssl=tls,
            ),
            timeout=ClientTimeout(total=None, sock_connect=timeouts.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=_SKIPPED,
            request_class=_Request,
            response_class=_Response,
            read_bufsize=CHUNK,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )

    def serves(self, upstream: Upstream) -> bool:
        """Whether these are the connections such an upstream would have too. What its calls cost
        is no matter of connections, and is built anew with every reading of the policy."""
        return _wiring(upstream) == _wiring(self.upstream)

    async def send(self, method: str, url: str, headers: Headers, body: Body) -> UpstreamAnswer:
        """Send one request, once. Raises NotSentError, NoAnswerError, CallerGoneError and
        BodyTimeoutError (from a body that is streamed through)."""
        timeouts = self.upstream.timeouts
        attempt = _Attempt()
        ends_s = asyncio.get_running_loop().time() + timeouts.total_s
        try:
            async with asyncio.timeout_at(ends_s) as deadline:
                response = await self._session.request(
                    method,
                    _as_it_is(url),
                    headers=_names_lowered(headers),
                    data=_timed(body, deadline, timeouts.first_byte_s),
                    allow_redirects=False,
                    proxy=self.upstream.proxy,
                    middlewares=(attempt,),
                )
        except (CallerGoneError, BodyTimeoutError):
            raise
        except aiohttp.ClientConnectorError as error:
            raise NotSentError(_kind(error), f"cannot connect: {_brief(error)}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise NotSentError("connect_timeout", "cannot connect in time") from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            if not attempt.connected:
                raise NotSentError("pool_timeout", "no connection became free") from error
            raise NoAnswerError("timeout", "the upstream did not answer in time") from error
        except (aiohttp.ClientHttpProxyError, aiohttp.InvalidURL) as error:
            raise NotSentError("proxy", f"cannot connect: {_brief(error)}") from error
        except aiohttp.ClientResponseError as error:
            raise NoAnswerError("garbage", "the upstream's answer is not HTTP") from error
        except (_LostError, aiohttp.ClientError, ConnectionError, ValueError) as error:
            _raise_callers_own(error)
            raise NoAnswerError("lost", "the upstream closed the connection") from error
        if response.status == 101:
            response.close()
            raise NoAnswerError("garbage", "the upstream switched protocols unasked")
        assert isinstance(response, _Response), "our session makes our responses"
        return UpstreamAnswer(response, timeouts, ends_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def _as_it_is(url: str) -> URL:
    """The URL with its target untouched; read as a whole it would lose a `?` at its end."""
    scheme, _, rest = url.partition("://")
    authority, _, target = rest.partition("/")
    return URL.build(scheme=scheme, authority=authority, path="/" + target, encoded=True)


def _timed(body: Body, deadline: asyncio.Timeout, first_byte_s: float) -> Any:
    """The body in the form the library takes best. The time to the answer's first byte runs from
    the request's end, as far as the total allows."""
    if not isinstance(body, bytes | None):
        return _then(body, lambda: _shorten(deadline, first_byte_s))
    _shorten(deadline, first_byte_s)
    if body is not None and len(body) > LARGE:
        return io.BytesIO(body)  # goes out in pieces: one huge write would block the loop
    return body


async def _then(body: AsyncIterator[bytes], act: Callable[[], None]) -> AsyncIterator[bytes]:
    yield b""  # or the library keeps the head back until there is a piece of the body
    async for chunk in body:
        yield chunk
    act()


def _shorten(deadline: asyncio.Timeout, seconds: float) -> None:
    when_s = asyncio.get_running_loop().time() + seconds
    before_s = deadline.when()
    with contextlib.suppress(RuntimeError):  # the answer came before the request's end
        deadline.reschedule(when_s if before_s is None else min(before_s, when_s))


def _raise_callers_own(error: BaseException) -> None:
    """A streamed body that broke on the caller's side comes wrapped in the library's error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CallerGoneError | BodyTimeoutError):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _names_lowered(headers: Headers) -> CIMultiDict[str]:
    # The library folds names that differ in case and loses values; in one case all arrive.
    multi: CIMultiDict[str] = CIMultiDict()
    for name, value in headers:
        multi.add(name.decode("latin-1").lower(), value.decode("utf-8"))
    return multi


def _kind(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    return "connect"


def _brief(error: Exception) -> str:
    """What went wrong without the URL, which can carry a credential."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause or error).__name__


def _tls(upstream: Upstream) -> ssl.SSLContext | bool:
    if upstream.ca is None:
        return True
    return ssl.create_default_context(cafile=upstream.ca)


def _wiring(upstream: Upstream) -> tuple[object, ...]:
    return (
        *(upstream.url, upstream.credential, upstream.ca, upstream.proxy, upstream.timeouts),
        *(upstream.drain_s, upstream.keepalive_s, upstream.max_connections),
    )


class Switchboard:
    """The connections to all upstreams of the policy in force."""

    def __init__(self) -> None:
        self._outgoing: dict[str, Outgoing] = {}
        self._retired: list[Outgoing] = []

    def prepare(self, upstreams: Mapping[str, Upstream]) -> dict[str, Outgoing]:
        """Connections for these upstreams, those of unchanged ones kept; not served yet. Raises
        OSError."""
        kept = {
            name: old
            for name, old in self._outgoing.items()
            if name in upstreams and old.serves(upstreams[name])
        }
        # All of them first: a file that cannot be read leaves no connections that nobody closes.
        fresh = {name: _tls(one) for name, one in upstreams.items() if name not in kept}
        return kept | {name: Outgoing(upstreams[name], tls) for name, tls in fresh.items()}

    def connect(
        self, upstreams: Mapping[str, Upstream], prepared: Mapping[str, Outgoing]
    ) -> list[Outgoing]:
        """Serve these upstreams as was prepared; the connections that are retired by it."""
        retired = [old for name, old in self._outgoing.items() if prepared.get(name) is not old]
        self._retired += retired
        self._outgoing = dict(prepared)
        for name, outgoing in prepared.items():
            outgoing.upstream = upstreams[name]
        return retired

    def to(self, upstream: Upstream) -> Outgoing:
        """The connections of an upstream; of a retired one until it is closed."""
        found = self._outgoing.get(upstream.name)
        if found is not None and (found.upstream is upstream or found.serves(upstream)):
            return found
        for old in self._retired:
            if old.upstream.name == upstream.name and old.serves(upstream):
                return old
        assert found is not None, "a call's upstream is connected or retired"
        return found

    async def close_retired(self, retired: Iterable[Outgoing]) -> None:
        """Close these; call it when their calls have ended."""
        for outgoing in retired:
            self._retired.remove(outgoing)
            await outgoing.close()

    async def close(self) -> None:
        """Close everything."""
        for outgoing in [*self._retired, *self._outgoing.values()]:
            await outgoing.close()
        self._retired.clear()
        self._outgoing.clear()
