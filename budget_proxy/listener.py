"""Accept connections and turn requests into calls. One of the two rooms that know the HTTP library.

Here are its traps closed: bodies stay compressed, `100 Continue` is ours to send, deadlines on
headers, bodies and unread answers, bounds on connections, an end of the call when the caller hangs
up, and parse errors answered without quoting the caller's bytes.
Forbidden here: knowing what a budget is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EmptyStreamReader, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from budget_proxy.call import (
    CHUNK,
    BodyBrokenError,
    BodyTimeoutError,
    BodyTooLargeError,
    Call,
    CallerGoneError,
    Departure,
    Headers,
)
from budget_proxy.core.house import Limits
from budget_proxy.shares import Share

logger = logging.getLogger(__name__)
BACKLOG = 1024
LINGER_S = 1.0
PAUSE_S = 1.0
"""After a connection could not be taken for want of file descriptors."""
LEFT_S = 0.002
"""How long a connection is left to a worker that has fewer. Not less: see `ledgers.sqlite`."""
NEWCOMERS_S = 0.02
"""At the end: how long the request of a caller who has just come may take to be there."""
SHUTDOWN_S = 2.0
"""After the grace period: how long a call may take to notice that it is over."""
WHOLE_BODY_TIMES = 4
"""A body that is read before its hold may take so many times `body_timeout_s` in all."""
MAX_LENGTH_DIGITS = 18
"""Of a longer Content-Length the library makes no body at all, or nobody a number."""
_BODILESS = frozenset({204, 304})
Story = Callable[[Call], Awaitable[None]]


class _Answer:
    """An answer, as bytes: its headers are the story's, byte for byte; put in are only what frames
    it, and `Date`. The library's own would encode them anew, drop some and add others."""

    __slots__ = ("_chunked", "_head", "_left", "_protocol", "is_framed", "keep_alive")

    def __init__(
        self,
        protocol: _Protocol,
        request: RawRequestMessage,
        status: int,
        reason: str,
        headers: Headers,
        *,
        close: bool,
    ) -> None:
        new = request.version >= HttpVersion11
        empty = request.method == "HEAD" or status in _BODILESS
        lines = [b"HTTP/1.%d %d %b\r\n" % (new, status, reason.encode("utf-8", "surrogateescape"))]
        self._left: int | None = None
        dated = False
        for name, value in headers:
            low = name.lower()
            if low == b"content-length":
                self._left = int(value) if value.isdigit() else None
            elif low == b"date":
                dated = True
            lines.append(b"%b: %b\r\n" % (name, value))
        if empty:
            self._left = 0
        self._chunked = self._left is None and new
        self.is_framed = self._left is not None or new
        """Whether a caller can tell its end from a lost connection."""
        self.keep_alive = self.is_framed and not (close or request.should_close)
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        if not dated:
            lines.append(b"Date: %b\r\n" % rfc822_formatted_time().encode())
        if self.keep_alive is not new:
            lines.append(b"Connection: %b\r\n" % (b"close" if new else b"keep-alive"))
        lines.append(b"\r\n")
        self._protocol = protocol
        # Kept for the first piece of the body, if that is there in this turn of the loop.
        self._head = b"".join(lines)
        asyncio.get_running_loop().call_soon(self._send_head)

    def _send_head(self) -> None:
        transport = self._protocol.transport
        if self._head and transport is not None and not transport.is_closing():
            transport.write(self._head)
            self._head = b""

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Write, without waiting for it to leave. Raises ConnectionError."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        if self._chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n\r\n"
        elif self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            transport.write(data)


_LOST = (TimeoutError, ConnectionError, RuntimeError)
"""What goes wrong in a step towards the caller where the caller is gone."""


class IncomingCall:
    """A `Call` on what aiohttp's parser makes of a connection's bytes."""

    def __init__(
        self,
        message: RawRequestMessage,
        content: StreamReader,
        protocol: _Protocol,
        limits: Limits,
        length: str,
    ) -> None:
        """`length`: what Content-Length says."""
        self._message = message
        self._content = content
        self._protocol = protocol
        self._limits = limits
        self._answer: _Answer | None = None
        self._close = False
        self._ended = False
        self.method = message.method
        self.target = message.path
        version = message.version
        self.version = (version.major, version.minor)
        self.headers: Headers = list(message.raw_headers)
        self.has_body = not isinstance(content, EmptyStreamReader)
        self.declared = int(length) if length.isdigit() else None
        self.gone = Departure()
        self._expects = "Expect" in message.headers

    def __repr__(self) -> str:
        return f"<call {self.method} {self.target.partition('?')[0]}>"

    async def proceed(self) -> None:
        """See `Call.proceed`."""
        if self._expects and self.version >= (1, 1):
            self._expects = False
            self._must_be_there()
            try:
                self._transport().write(b"HTTP/1.1 100 Continue\r\n\r\n")
            except _LOST as error:
                raise self._gone(error) from error

    def _must_be_there(self) -> None:
        if self.gone:
            raise CallerGoneError

    def _gone(self, error: Exception) -> CallerGoneError:
        """What a step towards the caller that went wrong means."""
        if isinstance(error, TimeoutError):
            self.abort()
            return CallerGoneError("the caller stopped reading")
        return CallerGoneError(str(error))

    def _transport(self) -> asyncio.Transport:
        transport = self._protocol.transport
        if transport is None:
            raise ConnectionResetError
        return transport

    async def read(self, limit: int) -> bytes:
        """See `Call.read`."""
        content = self._content
        if content.is_eof() and content.exception() is None:  # all there: no deadline to arm
            body = content.read_nowait()
            if len(body) > limit:
                raise BodyTooLargeError
            return body
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s * WHOLE_BODY_TIMES):
                async for chunk in self.chunks():
                    size += len(chunk)
                    if size > limit:
                        raise BodyTooLargeError
                    chunks.append(chunk)
        except TimeoutError:
            raise BodyTimeoutError from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Call.chunks`."""
        await self.proceed()
        content = self._content
        while True:
            try:
                chunk = content.read_nowait(CHUNK)
                if not chunk and not content.at_eof():
                    async with asyncio.timeout(self._limits.body_timeout_s):
                        chunk = await content.read(CHUNK)
            except TimeoutError:
                raise BodyTimeoutError from None
            except ConnectionError as error:
                raise CallerGoneError(str(error)) from error
            except (web.RequestPayloadError, HttpProcessingError) as error:
                raise BodyBrokenError(str(error)) from error
            if not chunk:
                return
            yield chunk

    def cannot_go_on(self) -> None:
        """Nothing more of the request, or of what follows it, can be read."""
        body = self._content
        if not body.is_eof() and body.exception() is None:
            self._close = True
            body.set_exception(web.RequestPayloadError("the body is not HTTP"))
            body.feed_eof()  # or the library waits for more of it after the answer

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """See `Call.start`."""
        # Who still waits for 100 Continue may or may not send its body after this answer.
        close = self._close or self._expects
        self._must_be_there()
        self._answer = _Answer(self._protocol, self._message, status, reason, headers, close=close)

    def write(self, chunk: bytes) -> None:
        """See `Call.write`."""
        assert self._answer is not None, "an answer is started before it is sent"
        self._must_be_there()
        try:
            self._answer.write(chunk)
        except _LOST as error:
            raise self._gone(error) from error

    async def drained(self) -> None:
        """See `Call.drained`."""
        try:
            if self._protocol.writing_paused:
                async with asyncio.timeout(self._limits.write_timeout_s):
                    await self._protocol.drained()
        except _LOST as error:
            raise self._gone(error) from error

    async def end(self) -> None:
        """See `Call.end`."""
        assert self._answer is not None, "an answer is started before it ends"
        self._must_be_there()
        try:
            self._answer.write(b"", last=True)
            if self._transport().get_write_buffer_size() > 0:
                async with asyncio.timeout(self._limits.write_timeout_s):
                    await self._flush()
        except _LOST as error:
            raise self._gone(error) from error
        self._ended = True

    async def _flush(self) -> None:
        """Wait until the kernel has it all: a connection closes only when its last byte is out."""
        transport = self._transport()
        transport.set_write_buffer_limits(0)
        await self._protocol.drained()
        transport.set_write_buffer_limits()

    def abort(self) -> None:
        """See `Call.abort`."""
        self._ended = False
        transport = self._protocol.transport
        if transport is None:
            return
        if self._answer is not None and not self._answer.is_framed:
            _reset(transport)
        transport.abort()

    def close_after(self) -> None:
        """See `Call.close_after`."""
        self._close = True

    def done(self) -> bool:
        """The story is over; whether the connection can carry another call."""
        if self._answer is None or not self._ended:
            self.abort()
            return False
        return self._answer.keep_alive and not self._close

    def lost(self) -> None:
        """The connection is gone."""
        if self._content.exception() is None:
            self._content.set_exception(ConnectionResetError("the caller hung up"))
        self.gone.happen()


def _reset(transport: asyncio.Transport) -> None:
    """Let a connection end with RST: an answer that lasts until the close must not look whole."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Protocol(RequestHandler):
    """One connection: its calls one after the other. The library's own way to do that makes a
    task, a request and a response for each, and answers errors with the caller's bytes in them."""

    call: IncomingCall | None = None

    @property
    def has_come(self) -> bool:
        """Whether a request is there that nobody has taken up yet."""
        return bool(self._messages) and self.transport is not None

    async def start(self) -> None:
        """Answer what comes, until the connection ends."""
        try:
            while not self._force_close:
                message, content = await self._next()
                if isinstance(message, _ErrInfo):
                    self._refuse(message.status)
                    break
                stays = await self._tell(message, content)
                if not stays or self._close or self._force_close:
                    break
                self._await_next()
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception:
            logger.exception("a connection failed in the proxy")
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next(self) -> tuple[RawRequestMessage | _ErrInfo, StreamReader]:
        """The next request, or what is wrong with it."""
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, content = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return message, content

    async def _tell(self, message: RawRequestMessage, content: StreamReader) -> bool:
        """Let one call be answered; whether the connection can carry another."""
        server = self._manager
        if not isinstance(server, _Server):
            return False  # it was lost meanwhile
        length = message.headers.get("Content-Length", "")
        if len(length) > MAX_LENGTH_DIGITS:
            self._refuse(400)
            return False
        self._request_in_progress = True
        call = self.call = IncomingCall(message, content, self, server.limits, length)
        try:
            await server.tell(call)
        finally:
            self.call = None
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
        # Whoever asked to upgrade may speak another protocol from here on.
        return call.done() and not self._upgraded and await self._is_read(content)

    async def _is_read(self, content: StreamReader) -> bool:
        """Whether the end of a request's body has come; the rest of it is waited for shortly."""
        if content.is_eof():
            return True
        try:
            async with asyncio.timeout(LINGER_S):
                while not content.is_eof():
                    await content.readany()
        except (TimeoutError, ConnectionError, web.RequestPayloadError, HttpProcessingError):
            return False
        except RuntimeError:  # an upload that was stopped has not let go of it yet
            return False
        return True

    def _await_next(self) -> None:
        """From now on the next request's headers may take as long as the first one's."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )

    def _refuse(self, status: int) -> None:
        """Answer what the parser refused, without quoting it."""
        if self.transport is None:
            return
        body = (
            '{"type":"urn:budget-proxy:problem:bad_request","title":"Bad request",'
            f'"status":{status},"detail":"This is not an HTTP/1.1 request that can be read."}}\n'
        )
        head = (
            f"HTTP/1.1 {status} Bad Request\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write((head + body).encode())

    async def drained(self) -> None:
        """Wait until more may be written. Raises ConnectionError."""
        await self._drain_helper()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading, if it was paused: the library asks after every read, and each time hands
        the parser nothing to parse."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or cut it where there are too many."""
        assert isinstance(self._manager, _Server), "our server makes our protocols"
        if self._manager.is_full:
            # Not all loops' transports are of this class, but all have its methods.
            cast("asyncio.Transport", transport).abort()
        else:
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came. What follows a body before its end can only be the parser's complaint."""
        super().data_received(data)
        if self._messages and self.call is not None:
            self.call.cannot_go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The caller is gone."""
        manager, task = self._manager, self._task_handler
        super().connection_lost(exc)
        if isinstance(manager, _Server):
            manager.lost(task)
        if self.call is not None:
            self.call.lost()
            self.call = None


class _Server(web.Server):
    """The factory of connections, with a bound on how many there are."""

    def __init__(
        self,
        tell: Callable[[IncomingCall], Awaitable[None]],
        limits: Limits,
        changed: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        """`changed` is called when there is a connection less."""
        super().__init__(_never, **kwargs)
        self.tell = tell
        self.limits = limits
        self._changed = changed

    def lost(self, task: asyncio.Task[None] | None) -> None:
        """A caller is gone; his connection counts until its task is over, too."""
        if task is None:
            self._changed()
        else:
            task.add_done_callback(lambda _task: self._changed())

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether no more connections are taken."""
        return self.count >= self.limits.max_connections

    @property
    def wires(self) -> Iterator[_Protocol]:
        """Every connection."""
        return (wire for wire in self._connections if isinstance(wire, _Protocol))

    def __call__(self) -> RequestHandler:
        """One connection's protocol."""
        return _Protocol(self, loop=self._loop, **self._kwargs)


async def _never(_request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError("our protocol hands requests to nobody else")


class Listener:
    """The proxy's port. `story` is called for each request and must answer it."""

    def __init__(self, story: Story, limits: Limits, share: Share | None = None) -> None:
        """`share`: this worker's, where there are others on the same socket."""
        self._story = story
        self._limits = limits
        self._share = share
        self._left_over = 1
        """How many to take of the connections that another worker was to have, and did not."""
        self._calls: set[IncomingCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: _Server | None = None
        self._listening: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._taking: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Calls being answered."""
        return len(self._calls)

    def start(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take connections from a socket of `bind`, which other processes may share."""
        self._server = _Server(
            self._tell,
            self._limits,
            self._count,
            keepalive_timeout=self._limits.header_timeout_s,
            max_line_size=self._limits.max_header_line,
            max_field_size=self._limits.max_header_line,
            read_bufsize=CHUNK,
            auto_decompress=False,
            access_log=None,
        )
        self._listening, self._tls = listening, tls
        self._count()
        self._listen()

    def _listen(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._has_come)

    def _has_come(self) -> None:
        """A connection has. It is left to a worker that has fewer, unless that one is busy."""
        assert self._listening is not None, "it is listening"
        if self._share is None or self._share.is_least:
            self._left_over = 1
            self._accept()
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening)
        loop.call_later(LEFT_S, self._accept_left_over)

    def _accept_left_over(self) -> None:
        """Take a connection that nobody else has taken, and twice as many as the time before: who
        has fewer may have been stopped, and nobody is to wait for that one."""
        self._listen()
        for _ in range(self._left_over):
            if self._listening is None or not self._accept():
                self._left_over = 1
                return
        self._left_over = min(2 * self._left_over, BACKLOG)

    def _count(self) -> None:
        if self._share is not None and self._listening is not None and self._server is not None:
            self._share.has(self._server.count + len(self._taking))

    def _accept(self) -> bool:
        """Take one connection, if one is there: who took all would leave the other workers none."""
        assert self._listening is not None, "it is listening"
        loop = asyncio.get_running_loop()
        try:
            taken, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker has it, or the caller is gone
        except OSError as error:  # no file descriptors, no memory
            logger.error("no connection can be taken: %s", error)
            loop.remove_reader(self._listening)
            loop.call_later(PAUSE_S, self._listen)
            return False
        taken.setblocking(False)
        task = loop.create_task(self._take(taken), name="connection")
        self._taking.add(task)
        task.add_done_callback(self._taken)
        self._count()
        return True

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._taking.discard(task)
        self._count()

    async def _take(self, taken: socket.socket) -> None:
        assert self._server is not None, "it was started"
        patience_s = self._limits.header_timeout_s if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, taken, ssl=self._tls, ssl_handshake_timeout=patience_s
            )
        except (OSError, TimeoutError):
            taken.close()  # it did not get through the handshake

    async def _tell(self, call: IncomingCall) -> None:
        self._calls.add(call)
        self._idle.clear()
        try:
            await self._story(call)
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()

    async def stop(self, grace_s: float) -> None:
        """Take no more connections than have come; let calls finish for a while, then hang up on
        them."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            while self._accept():
                pass  # whom the kernel has let in would be cut off with the socket
            self._listening.close()
            self._listening = None
            if self._share is not None:
                self._share.takes_no_more()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._quiet(self._server)
        for call in list(self._calls):
            call.abort()
        for task in list(self._taking):
            task.cancel()
        if self._server is not None:
            await self._server.shutdown(SHUTDOWN_S)

    async def _quiet(self, server: _Server) -> None:
        """Close what is idle, and wait until nobody is answered nor will be: a request that has
        come is a call, though nobody has looked at it yet."""
        if self._taking or server.connections:
            await asyncio.sleep(NEWCOMERS_S)
        server.pre_shutdown()
        while self._calls or self._taking or any(wire.has_come for wire in server.wires):
            await self._idle.wait()
            await asyncio.sleep(NEWCOMERS_S)
            server.pre_shutdown()


def bind(address: tuple[str, int]) -> socket.socket:
    """A socket that listens; port 0 picks one. Raises OSError."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def slow_parser() -> bool:
    """Whether the library's parser is the pure-Python one, which is weaker."""
    return "_http_parser" not in HttpRequestParser.__module__
