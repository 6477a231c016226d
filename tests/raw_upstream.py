"""Both ends of the proxy as plain sockets: an upstream that records the exact bytes it is sent and
answers with exact bytes, and a caller that sends exact bytes and can tell that an answer was cut.

`fronting` starts a real proxy between the two and, at the end, checks what must hold after every
story: nothing in flight, no hold, no task, no broken invariant, nothing logged as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from harness import KEY, Rig, house_of

from budget_proxy.app import App
from budget_proxy.core.events import Event, InvariantBroken

OURS = "sk-ours-for-the-upstream"
"""The credential that the proxy puts in."""
PAGE = 10_000_000
"""Nanos a page of the `meter` upstream costs; a call of `flat` costs half of it."""
FLAT = PAGE // 2
TIMEOUT_S = 15.0
STORY_S = 40.0
JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"

POLICY = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  meter:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff:
      - name: pages
        match: {method: POST, path: /v1/pages}
        quantities: {pages: {before: {json: pages}, after: {json: used}}}
        price: {pages: 0.01 USD}
        guards: [pages]
        not_billed: [4xx, 503]
        streaming: {when: {json: stream}, final: {json: done}}
    MORE
  talk:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff:
      - name: talk
        match: {method: POST, path: /v1/talk}
        quantities:
          input_tokens: {before: {json: input}, after: {json: usage.input}}
          output_tokens: {before: {json: max}, after: {json: usage.output}}
        price: {input_tokens: 0.001 USD, output_tokens: 0.01 USD}
        streaming: {when: {json: stream}, final: {json: usage}, delivered: {json: text}}
    MORE
  flat:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff: [{match: {path: /**}, price: {requests: 0.005 USD}}]
    MORE
  llm:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff: openai
    MORE
  claude:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff: anthropic
    MORE
services:
  tests: {key: test-key-0000, labels: {team: tests}}
"""
GENEROUS = "budgets: {company: {limit: 1000 USD}}\n"


def policy(upstream: str = "", rest: str = GENEROUS) -> str:
    """The policy with more settings for each upstream (`timeouts: {...}, ...`), and the rest."""
    more = "\n    ".join(upstream.strip().splitlines())
    return POLICY.replace("MORE", more) + rest


# -- the upstream's side ---------------------------------------------------------------------------


@dataclass
class Received:
    """One request as it came over the wire."""

    head: bytes
    body: bytes = b""
    """Decoded from chunks where it was chunked."""
    wire: bytes = b""
    """The body as it was framed."""
    whole: bool = False

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return _headers(self.head)

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


class Peer:
    """One connection that the proxy made to us."""

    def __init__(
        self, upstream: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._upstream = upstream
        self.reader = reader
        self.writer = writer

    async def head(self) -> Received:
        """The head of the next request, recorded; its body is still to be read."""
        received = Received(await self.reader.readuntil(b"\r\n\r\n"))
        self._upstream.requests.append(received)
        return received

    async def body(self, received: Received) -> Received:
        """The rest of a request."""
        async for piece in _body(self.reader, received.head):
            received.wire += piece.wire
            received.body += piece.data
        received.whole = True
        return received

    async def request(self) -> Received:
        """The next request, whole."""
        return await self.body(await self.head())

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the proxy closes the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        reset(self.writer)


Script = Callable[[Peer], Awaitable[None]]


class RawUpstream:
    """Listens, and runs the script for each connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Received] = []
        self.connections = 0
        self.open = 0
        self.url = ""
        self.port = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, ssl: Any = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if ssl else 'http'}://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            await self.script(Peer(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def http(
    status: str = "200 OK", body: bytes = b"", *headers: str, length: int | None = None
) -> bytes:
    """An answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {_length(body, length)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _length(body: bytes, length: int | None) -> int:
    return len(body) if length is None else length


def chunked(*chunks: bytes, headers: str = "", end: bool = True) -> bytes:
    """An answer in chunks."""
    head = f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + (b"0\r\n\r\n" if end else b"")


def events(*pieces: object) -> list[bytes]:
    """Server-sent events."""
    return [b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces]


def event_stream(*pieces: object, end: bool = True) -> bytes:
    """An answer that is a stream of events, one a chunk."""
    return chunked(*events(*pieces), headers=f"{EVENTS}\r\n", end=end)


def answering(*answers: bytes) -> Script:
    """Read each request whole, give the next answer (the last one again and again)."""

    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def then_close(*answers: bytes) -> Script:
    """Read one request whole, send the pieces, close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*answers)

    return script


def then_reset(*answers: bytes) -> Script:
    """Read one request whole, send the pieces, reset the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*answers)
        peer.reset()

    return script


def then_hang(*answers: bytes) -> Script:
    """Read one request whole, send the pieces, and nothing more until the proxy hangs up."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*answers)
        await peer.gone()

    return script


# -- the caller's side -----------------------------------------------------------------------------


@dataclass
class Answer:
    """An answer as a caller sees it. `whole`: it came to the end that its framing promises."""

    head: bytes
    body: bytes = b""
    whole: bool = False
    interim: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return _headers(self.head)

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


class Caller:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, method: str = "GET") -> Answer:
        """The next final answer; cut ones are returned as far as they came."""
        interim: list[bytes] = []
        async with asyncio.timeout(TIMEOUT_S):
            while (head := await self.reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1] < b"200":
                interim.append(head)
            answer = Answer(head, interim=interim)
            if method == "HEAD" or answer.status in (204, 304):
                answer.whole = True
                return answer
            body = bytearray()
            try:
                async for piece in _body(self.reader, head, until_eof=True):
                    body += piece.data
                answer.whole = True
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                body += getattr(error, "partial", b"")
            answer.body = bytes(body)
            return answer

    async def closed(self) -> bytes:
        """Wait until the proxy closes the connection; what came before."""
        data = b""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(65536):
                    data += piece
        return data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        reset(self.writer)


@contextlib.asynccontextmanager
async def calling(rig: Rig, buffer: int | None = None) -> AsyncIterator[Caller]:
    """A connection to the proxy; `buffer`: bytes that its kernel takes before the reader does."""
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (rig.host, rig.port))
    limit = 2**16 if buffer is None else buffer
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


def connections(rig: Rig) -> list[Any]:
    """Of callers to the proxy."""
    server = rig.app._listener._server
    assert server is not None
    return server.connections


async def narrow(rig: Rig) -> None:
    """Let the kernel take little of what the proxy sends to its callers: the rest stays with us."""
    await rig.until(lambda: connections(rig))
    for connection in connections(rig):
        sock = connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def request(
    target: str,
    body: bytes | None = None,
    *headers: str,
    method: str | None = None,
    key: str | None = KEY,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request with the service's key and, with a body, its length."""
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} {version}", "Host: proxy"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    lines += headers
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def head_only(target: str, *headers: str, method: str = "POST", key: str | None = KEY) -> bytes:
    """The head of a request; the headers say what body follows."""
    return request(target, None, *headers, method=method, key=key)


async def ask(rig: Rig, data: bytes, method: str | None = None) -> Answer:
    """Send one request on a connection of its own; its answer."""
    async with calling(rig) as caller:
        await caller.send(data)
        return await caller.answer(method or data.partition(b" ")[0].decode())


# -- the proxy between them ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def fronting(
    tmp_path: Path,
    script: Script,
    text: str | None = None,
    *,
    log: Any = None,
    ssl: Any = None,
    url: str = "",
    stop_s: float = 2.0,
    **variables: str,
) -> AsyncIterator[tuple[Rig, RawUpstream]]:
    """A proxy with this policy in front of a scripted upstream; `url`: where the proxy is told to
    find it ({port} is filled in)."""
    before = asyncio.all_tasks()
    upstream = RawUpstream(script)
    await upstream.start(ssl)
    upstream.url = url.format(port=upstream.port) or upstream.url
    events: list[Event] = []
    names = {"UPSTREAM": upstream.url, "OURS": OURS} | variables
    house = house_of(policy() if text is None else text, tmp_path, **names)
    app = App(lambda: house, observers=[events.append], log=log)
    with _errors_logged() as errors:
        await app.start()
        async with aiohttp.ClientSession() as session:
            rig = Rig(app, upstream.url, session)
            rig.events = events
            try:
                async with asyncio.timeout(STORY_S):
                    yield rig, upstream
                await rig.until(lambda: app._listener.in_flight == 0)
                holds = await rig.holds()
            finally:
                await app.stop(stop_s)
                await upstream.stop()
        assert holds == [], "a hold was left open"
        assert app._listener.in_flight == 0
        assert app._proxy._buffered == 0, "bytes of bodies are still counted"
        await rig.until(lambda: asyncio.all_tasks() <= before)
    assert [event for event in events if isinstance(event, InvariantBroken)] == []
    assert errors == []


@contextlib.contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """Everything logged as an error meanwhile."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Handler(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


async def ended(rig: Rig, calls: int = 1) -> str:
    """Wait for the end of a number of calls; the rule of the last one."""
    await rig.until(lambda: len(rig.calls) >= calls)
    return rig.calls[-1].rule


async def spent(rig: Rig, budget: str = "company") -> int:
    """What a budget has spent, and that nothing is held."""
    account = await rig.account(budget)
    if account is None:
        return 0
    assert account.held == 0, "something is still held"
    return account.spent


# -- framing ---------------------------------------------------------------------------------------


@dataclass
class _Piece:
    wire: bytes
    data: bytes


def _headers(head: bytes) -> list[tuple[bytes, bytes]]:
    lines = head.split(b"\r\n")[1:-2]
    return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


async def _body(
    reader: asyncio.StreamReader, head: bytes, *, until_eof: bool = False
) -> AsyncIterator[_Piece]:
    """The body that a head promises. Raises IncompleteReadError or ConnectionError if it is cut."""
    found = {name.lower(): value for name, value in _headers(head)}
    if found.get(b"transfer-encoding", b"").lower() == b"chunked":
        async for piece in _chunks(reader):
            yield piece
    elif b"content-length" in found:
        left = int(found[b"content-length"])
        while left:
            data = await reader.read(min(left, 65536))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            yield _Piece(data, data)
    elif until_eof:
        while data := await reader.read(65536):
            yield _Piece(data, data)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[_Piece]:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        data = await reader.readexactly(size)
        end = await reader.readexactly(2)
        assert end == b"\r\n", "a chunk is not framed"
        yield _Piece(line + data + end, data)
        if size == 0:
            return


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
