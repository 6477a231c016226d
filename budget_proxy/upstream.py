"""Forward calls to upstreams and bring their answers back. One of the two rooms that know the HTTP
library.

Of the library this uses the connector (pool, name look-up, TLS, proxies) and the parser of answers;
the request is written here, as bytes. So targets and headers go out as they came, nothing is ever
sent twice (the library does that to GET, PUT and DELETE on a connection that turns out dead),
redirects and cookies are not followed, no proxy is taken from the environment, every wait has a
deadline, and "was it sent?" has an answer: not before there is a connection.
Forbidden here: knowing what a budget is.
"""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import ClientRequest, ClientTimeout, hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import EmptyStreamReader, EofStream, StreamReader
from aiohttp.tracing import Trace
from yarl import URL

from budget_proxy.call import (
    CHUNK,
    AnswerCutError,
    Head,
    NoAnswerError,
    NotSentError,
)
from budget_proxy.core.house import Timeouts, Upstream

MAX_HEADER = 32 * 1024
MAX_STALE = 8
"""Pooled connections that are looked at for one that has nothing unread in it."""
MAX_LENGTH_DIGITS = 18
"""A longer Content-Length is one that some readers take for another, or for none."""
Body = bytes | AsyncIterator[bytes] | None
_EXPECT_BODY = frozenset({"POST", "PUT", "PATCH"})
"""Methods that say so when they have none (RFC 9110 §8.6): some servers insist."""


class _TooLateError(Exception):
    """The first byte of the answer did not come in time."""


class _Wire(ResponseHandler):
    """A connection that can give up waiting, and that remembers how it was lost: an answer without
    a length lasts until the connection ends, and the library takes any end for a proper one. And
    none at all for that of a body that turned into garbage."""

    broken = False
    _answered = True
    _due_s = math.inf
    """When an answer must have begun; infinite while none is waited for."""
    _alarm: asyncio.TimerHandle | None = None
    """Looks at that, then or earlier. It outlives calls, since one is set sooner than cancelled."""

    @property
    def is_clean(self) -> bool:
        """Whether it is open, and nothing unasked has come."""
        return self.is_connected() and not self.should_close and not len(self)

    def begin(self, method: str) -> None:
        """Make ready for one answer."""
        self._answered = False
        self.set_response_params(
            skip_payload=method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=CHUNK,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )

    def rest(self) -> None:
        """Nothing is to come until the next request: what comes all the same, whole or not, is
        kept unread in the library's tail, which is bounded and makes the connection unclean."""
        self._parser = None

    async def head(self) -> tuple[RawResponseMessage, StreamReader]:
        """The first lines of the answer and its body to come; interim answers are dropped."""
        try:
            while True:
                message, payload = await self.read()
                if message.code >= 200 or message.code == 101:
                    return message, payload
        finally:
            self._answered = True
            self._due_s = math.inf

    def expect_by(self, when_s: float) -> None:
        """Give up at this time (of the loop) if no answer has begun."""
        if self._answered:
            return
        self._due_s = when_s
        if self._alarm is None or self._alarm.when() > when_s:
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._due_s, self._look_at_time)

    def _look_at_time(self) -> None:
        self._alarm = None
        if self._due_s <= self._loop.time():
            self.set_exception(_TooLateError())
        elif self._due_s < math.inf:
            self._set_alarm()

    def give_up(self, error: Exception) -> None:
        """Cut the connection; whoever waits for the answer, or for more of it, is told why. Of an
        answer without a length, too, this is no end."""
        body = self._payload
        self.set_exception(error)
        if body is not None and not body.is_eof():
            body.set_exception(error)
        self.abort()

    async def drained(self) -> None:
        """Wait until more may be written. Raises ConnectionError."""
        await self._drain_helper()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading, if it was paused: the library asks after every read, and each time hands
        the parser nothing to parse."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone; with an error, not because the upstream was done."""
        self.broken = exc is not None
        if self._alarm is not None:
            self._alarm.cancel()
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

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        try:
            return await super()._create_connection(req, traces, timeout)
        except TimeoutError as error:  # not that of the pool, which is outside
            raise NotSentError("connect_timeout", "cannot connect in time") from error


class _Uploading:
    """A body that goes out in pieces, while the answer may already come."""

    def __init__(self, wire: _Wire, pieces: AsyncIterator[bytes], *, chunked: bool) -> None:
        self._wire = wire
        self._pieces = pieces
        self._chunked = chunked
        self._task = asyncio.get_running_loop().create_task(self._run(), name="upload")

    def then(self, act: Callable[[], None]) -> None:
        """Act when the request is out."""
        self._task.add_done_callback(lambda _: act())

    @property
    def is_done(self) -> bool:
        """Whether the whole request is out."""
        return self._task.done()

    def stop(self) -> None:
        """Send no more of it."""
        self._task.cancel()

    async def _run(self) -> None:
        wire = self._wire
        try:
            async for piece in self._pieces:
                if piece:
                    self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
                    await wire.drained()
            if self._chunked:
                self._write(b"0\r\n\r\n")
        except ConnectionError:
            pass  # the answer may be there all the same; if not, the connection says so
        except Exception as error:
            # The upstream must not take what it has for the whole; whoever waits is told why.
            wire.give_up(error)

    def _write(self, data: bytes) -> None:
        if self._wire.transport is None:
            raise ConnectionResetError
        self._wire.transport.write(data)


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """One huge write would block the loop."""
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]


class UpstreamAnswer:
    """An `Answer` on one of aiohttp's connections."""

    def __init__(
        self,
        message: RawResponseMessage,
        payload: StreamReader,
        connection: Connection,
        wire: _Wire,
        uploading: _Uploading | None,
        timeouts: Timeouts,
        ends_s: float,
    ) -> None:
        self.head = Head(message.code, message.reason or "", list(message.raw_headers))
        self._framed = message.chunked or hdrs.CONTENT_LENGTH in message.headers
        self._content = payload
        self._connection = connection
        self._wire = wire
        self._uploading = uploading
        self._timeouts = timeouts
        self._ends_s = ends_s
        self._loop = asyncio.get_running_loop()

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        content = self._content
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
        if not data and self._was_broken_off:
            raise AnswerCutError("cut", "the upstream cut its answer short")
        return data

    @property
    def _was_broken_off(self) -> bool:
        """Whether what looks like its end was none."""
        if self._framed or isinstance(self._content, EmptyStreamReader):
            return False
        return self._wire.broken

    def close(self) -> None:
        """See `Answer.close`."""
        uploaded = self._uploading is None or self._uploading.is_done
        if uploaded and self._content.is_eof():
            self._wire.rest()
            self._connection.release()
            return
        if self._uploading is not None:
            self._uploading.stop()
        self._connection.close()


class Outgoing:
    """The connections to one upstream."""

    def __init__(self, upstream: Upstream, tls: ssl.SSLContext | bool) -> None:
        self.upstream = upstream
        """Whose connections these are, as the policy in force has it."""
        self._loop = asyncio.get_running_loop()
        timeouts = upstream.timeouts
        self._connector = _Connector(
            limit=upstream.max_connections,
            keepalive_timeout=upstream.keepalive_s,
            ssl=tls,
        )
        patience_s = min(timeouts.first_byte_s, timeouts.total_s)
        self._patience = ClientTimeout(connect=patience_s, sock_connect=timeouts.connect_s)
        # What the connector wants to know: where to, and by which proxy.
        proxy = URL(upstream.proxy) if upstream.proxy else None
        self._whereto = ClientRequest("GET", URL(upstream.url), loop=self._loop, proxy=proxy)
        scheme, _, rest = upstream.url.partition("://")
        _, slash, path = rest.partition("/")
        self._prefix = slash + path
        if proxy is not None and scheme == "http":  # a proxy is told the whole URL
            self._prefix = f"{scheme}://{self._whereto.headers['Host']}{self._prefix}"
        self._host = b"Host: %b\r\n" % self._whereto.headers["Host"].encode()

    def serves(self, upstream: Upstream) -> bool:
        """Whether these are the connections such an upstream would have too. What its calls cost
        is no matter of connections, and is built anew with every reading of the policy."""
        return _wiring(upstream) == _wiring(self.upstream)

    async def send(
        self, method: str, target: str, headers: bytes, body: Body, length: int | None
    ) -> UpstreamAnswer:
        """Send one request, once; `target` as it stands behind the upstream's URL, `headers` as
        their lines. `length` of the body in bytes; None: unknown, or nothing was said of one.

        Raises NotSentError, NoAnswerError, and of a body that is streamed through CallerGoneError
        and BodyTimeoutError."""
        ends_s = self._loop.time() + self.upstream.timeouts.total_s
        connection = await self._connect()
        wire = connection.protocol
        assert isinstance(wire, _Wire), "our connector makes our wires"
        uploading: _Uploading | None = None
        try:
            wire.begin(method)
            uploading = self._write(wire, method, target, headers, body, length)
            if uploading is None:
                self._sent(wire, ends_s)
            else:
                wire.expect_by(ends_s)
                uploading.then(functools.partial(self._sent, wire, ends_s))
            message, payload = await wire.head()
            if message.code == 101:
                raise NoAnswerError("garbage", "the upstream switched protocols unasked")
            _check_framing(message)
            timeouts = self.upstream.timeouts
            return UpstreamAnswer(message, payload, connection, wire, uploading, timeouts, ends_s)
        except BaseException as error:
            if uploading is not None:
                uploading.stop()
            connection.close()
            told = _told(error)
            if told is None:
                raise
            raise told from error

    def _sent(self, wire: _Wire, ends_s: float) -> None:
        """The request is out: from now on the first byte of the answer is waited for."""
        wire.expect_by(min(ends_s, self._loop.time() + self.upstream.timeouts.first_byte_s))

    async def _connect(self) -> Connection:
        """A connection from the pool, or a new one. Raises NotSentError."""
        try:
            for _ in range(MAX_STALE):
                connection = await self._connector.connect(self._whereto, [], self._patience)
                wire = connection.protocol
                if isinstance(wire, _Wire) and wire.is_clean:
                    return connection
                # Something came while it was idle: it would be taken for the answer to this call.
                connection.close()
            raise NotSentError("connect", "every pooled connection had something unread in it")
        except aiohttp.ClientConnectorError as error:
            raise NotSentError(_kind(error), f"cannot connect: {_brief(error)}") from error
        except TimeoutError as error:
            raise NotSentError("pool_timeout", "no connection became free") from error
        except (aiohttp.ClientHttpProxyError, aiohttp.InvalidURL) as error:
            raise NotSentError("proxy", f"cannot connect: {_brief(error)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NotSentError("connect", f"cannot connect: {_brief(error)}") from error

    def _write(
        self,
        wire: _Wire,
        method: str,
        target: str,
        headers: bytes,
        body: Body,
        length: int | None,
    ) -> _Uploading | None:
        """Send the head and what is there of the body; the rest goes out in pieces."""
        if length is None and body is None and method in _EXPECT_BODY:
            length = 0
        framing = b""
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif body is not None:
            framing = b"Transfer-Encoding: chunked\r\n"
        if self.upstream.proxy is not None:
            authorization = self._whereto.headers.get("Proxy-Authorization")
            if authorization is not None:
                headers += f"Proxy-Authorization: {authorization}\r\n".encode()
        first = f"{method} {self._prefix}{target} HTTP/1.1\r\n".encode()
        head = b"%b%b%b%b\r\n" % (first, self._host, headers, framing)
        if wire.transport is None:
            raise NotSentError("connect", "the connection was lost before anything was sent")
        if isinstance(body, bytes) and len(body) <= CHUNK:
            wire.transport.write(head + body)
            return None
        wire.transport.write(head)
        if body is None:
            return None
        pieces = _in_pieces(body) if isinstance(body, bytes) else body
        return _Uploading(wire, pieces, chunked=length is None)

    async def close(self) -> None:
        """Close every connection."""
        await self._connector.close()


def _check_framing(message: RawResponseMessage) -> None:
    """Refuse an answer whose end a caller would not find where we found it. Raises
    NoAnswerError."""
    headers = message.headers
    length = headers.get(hdrs.CONTENT_LENGTH)
    if length is not None:  # then there is no coding: the parser takes one of them only
        if len(length) > MAX_LENGTH_DIGITS:
            raise NoAnswerError("garbage", "the upstream's answer has no length that can be read")
        return
    codings = headers.getall(hdrs.TRANSFER_ENCODING, ())
    if codings and not _KNOWN_CODINGS.issuperset(map(str.lower, codings)):
        # It was not asked for, and is taken off here only if it is chunks.
        raise NoAnswerError("garbage", "the upstream's answer has an unknown transfer coding")


_KNOWN_CODINGS = frozenset({"chunked", "identity"})


def _told(error: BaseException) -> NoAnswerError | None:
    """What went wrong on a connection, in the story's terms; None: it is in them already."""
    if isinstance(error, _TooLateError):
        return NoAnswerError("timeout", "the upstream did not answer in time")
    if isinstance(error, HttpProcessingError):
        return NoAnswerError("garbage", "the upstream's answer is not HTTP")
    if isinstance(error, aiohttp.ClientError | OSError | EofStream):
        return NoAnswerError("lost", "the upstream closed the connection")
    return None


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

    async def abandon(self, prepared: Mapping[str, Outgoing]) -> None:
        """Close what was prepared and will not serve."""
        for name, outgoing in prepared.items():
            if self._outgoing.get(name) is not outgoing:
                await outgoing.close()

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
