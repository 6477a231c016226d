"""Accept connections and turn requests into calls. One of the two rooms that know the HTTP library.

Here are its traps closed: bodies stay compressed, `100 Continue` is ours to send, deadlines on
headers, bodies and unread answers, bounds on connections, an end of the call when the caller hangs
up, and parse errors answered without quoting the caller's bytes.
Forbidden here: knowing what a budget is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from budget_proxy.call import (
    CHUNK,
    BodyTimeoutError,
    BodyTooLargeError,
    Call,
    CallerGoneError,
    Departure,
    Headers,
)
from budget_proxy.core.house import Limits

BACKLOG = 1024
LINGER_S = 1.0
SHUTDOWN_S = 2.0
"""After the grace period: how long a call may take to notice that it is over."""
WHOLE_BODY_TIMES = 4
"""A body that is read before its hold may take so many times `body_timeout_s` in all."""
Story = Callable[[Call], Awaitable[None]]


class _Answer(web.StreamResponse):
    """A response whose headers are ours alone (and `Date`, which RFC 9110 §6.6.1 asks for)."""

    async def _prepare_headers(self) -> None:
        typed = "Content-Type" in self._headers
        named = "Server" in self._headers
        await super()._prepare_headers()
        if not typed:
            self._headers.pop("Content-Type", None)
        if not named:
            self._headers.pop("Server", None)


class IncomingCall:
    """A `Call` on an aiohttp request."""

    def __init__(self, request: web.BaseRequest, limits: Limits) -> None:
        self._request = request
        self._limits = limits
        self._answer: _Answer | None = None
        self._close = False
        self.aborted = False
        self.method = request.method
        self.target = request.raw_path
        version = request.version
        self.version = (version.major, version.minor)
        self.headers: Headers = list(request.raw_headers)
        self.has_body = request.body_exists
        self.gone = Departure()
        self._expects = any(name.lower() == b"expect" for name, _ in self.headers)

    def __repr__(self) -> str:
        return f"<call {self.method} {self.target.partition('?')[0]}>"

    async def proceed(self) -> None:
        """See `Call.proceed`."""
        if self._expects and self.version >= (1, 1):
            self._expects = False
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What has been written so far is no part of the answer.
            writer.output_size = 0

    async def read(self, limit: int) -> bytes:
        """See `Call.read`."""
        await self.proceed()
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
        content = self._request.content
        while True:
            try:
                chunk = content.read_nowait(CHUNK)
                if not chunk and not content.at_eof():
                    async with asyncio.timeout(self._limits.body_timeout_s):
                        chunk = await content.read(CHUNK)
            except TimeoutError:
                raise BodyTimeoutError from None
            except (ConnectionError, web.RequestPayloadError, HttpProcessingError) as error:
                raise CallerGoneError(str(error)) from error
            if not chunk:
                return
            yield chunk

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """See `Call.start`."""
        multi: CIMultiDict[str] = CIMultiDict()
        for name, value in headers:
            multi.add(name.decode("latin-1"), _text(value))
        self._answer = _Answer(status=status, reason=reason, headers=multi)
        if self._close or self._expects:
            # Who still waits for 100 Continue may or may not send its body after this answer.
            self._answer.force_close()
        await self._writing(self._answer.prepare(self._request))

    async def send(self, chunk: bytes) -> None:
        """See `Call.send`."""
        assert self._answer is not None, "an answer is started before it is sent"
        await self._writing(self._answer.write(chunk))

    async def end(self) -> None:
        """See `Call.end`."""
        assert self._answer is not None, "an answer is started before it ends"
        await self._writing(self._answer.write_eof())

    async def _writing(self, step: Awaitable[Any]) -> None:
        if self.gone:
            _discard(step)
            raise CallerGoneError
        transport = self._request.transport
        try:
            if transport is None or transport.get_write_buffer_size() == 0:
                await step
                return
            async with asyncio.timeout(self._limits.write_timeout_s):
                await step
        except TimeoutError:
            self.abort()
            raise CallerGoneError("the caller stopped reading") from None
        except (ConnectionError, RuntimeError) as error:
            raise CallerGoneError(str(error)) from error

    def abort(self) -> None:
        """See `Call.abort`."""
        self.aborted = True
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    def close_after(self) -> None:
        """See `Call.close_after`."""
        self._close = True

    @property
    def answer(self) -> web.StreamResponse:
        """What aiohttp is told was answered."""
        if self._answer is None or self.aborted:
            raise ConnectionResetError("the answer was cut on purpose")
        return self._answer


def _discard(step: Awaitable[Any]) -> None:
    if asyncio.iscoroutine(step):
        step.close()


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


class _Protocol(RequestHandler):
    """One connection: tells its call when the caller hangs up."""

    call: IncomingCall | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The caller is gone."""
        super().connection_lost(exc)
        if self.call is not None:
            self.call.gone.happen()
            self.call = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the caller's bytes
    ) -> web.StreamResponse:
        """Answer what the parser refused, without quoting it."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun") from exc
        answer = web.Response(
            status=status,
            text='{"type":"urn:budget-proxy:problem:bad_request","title":"Bad request",'
            f'"status":{status},"detail":"This is not an HTTP/1.1 request that can be read."}}\n',
            content_type="application/problem+json",
        )
        answer.force_close()
        return answer


class _Server(web.Server):
    """The factory of connections, with a bound on how many there are."""

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection, or cut it where there are too many."""
        super().connection_made(handler, transport)
        if len(self._connections) > self._max_connections:
            transport.abort()

    def __call__(self) -> RequestHandler:
        """One connection's protocol."""
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Listener:
    """The proxy's port. `story` is called for each request and must answer it."""

    def __init__(self, story: Story, limits: Limits) -> None:
        self._story = story
        self._limits = limits
        self._calls: set[IncomingCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._runner: web.ServerRunner | None = None
        self._sites: list[web.BaseSite] = []
        self._server: _Server | None = None

    @property
    def in_flight(self) -> int:
        """Calls being answered."""
        return len(self._calls)

    async def start(
        self, address: tuple[str, int], tls: ssl.SSLContext | None = None
    ) -> tuple[str, int]:
        """Listen; the address really bound (port 0 picks one)."""
        self._server = _Server(
            self._handle,
            max_connections=self._limits.max_connections,
            keepalive_timeout=self._limits.header_timeout_s,
            max_line_size=self._limits.max_header_line,
            max_field_size=self._limits.max_header_line,
            read_bufsize=CHUNK,
            auto_decompress=False,
            lingering_time=LINGER_S,
            access_log=None,
        )
        self._runner = web.ServerRunner(
            self._server, handle_signals=False, shutdown_timeout=SHUTDOWN_S
        )
        await self._runner.setup()
        bound = _bind(address)
        site = web.SockSite(self._runner, bound, ssl_context=tls, backlog=BACKLOG)
        await site.start()
        self._sites.append(site)
        host, port = bound.getsockname()[:2]
        return host, port

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = IncomingCall(request, self._limits)
        protocol = request.protocol
        assert isinstance(protocol, _Protocol), "our server makes our protocols"
        protocol.call = call
        self._calls.add(call)
        self._idle.clear()
        try:
            await self._story(call)
        finally:
            protocol.call = None
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()
        return call.answer

    async def stop(self, grace_s: float) -> None:
        """Take no more connections; let calls finish for a while, then hang up on them."""
        for site in self._sites:
            await site.stop()
        if self._server is not None:
            self._server.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        for call in list(self._calls):
            call.abort()
        if self._runner is not None:
            await self._runner.cleanup()


def _bind(address: tuple[str, int]) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def slow_parser() -> bool:
    """Whether the library's parser is the pure-Python one, which is weaker."""
    return "_http_parser" not in HttpRequestParser.__module__
