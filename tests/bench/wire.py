"""The two ends of a bench: a static upstream and a load generator, both as thin as Python lets them
be (event-loop protocols, no HTTP library), so that what is measured is the proxy between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

ANSWER_BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"'
    + b"lorem ipsum "
    * 55
    + b'"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":160,'
    b'"total_tokens":410}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ANSWER_BODY),
    ANSWER_BODY,
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":'
    b'[{"index":0,"delta":{"content":" lorem"},"finish_reason":null}],"usage":null}\n\n'
)
USAGE_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":'
    b'[],"usage":{"prompt_tokens":250,"completion_tokens":100,"total_tokens":350}}\n\n'
)
DONE_EVENT = b"data: [DONE]\n\n"
CHAT_TEXT = b"Say something that is about one kilobyte long, please. " * 17


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def chat_request(port: int, key: str, path: str, *, more: bytes = b"") -> bytes:
    """A chat call of about 1 KB, as bytes."""
    body = (
        b'{"model":"gpt-4o-mini","max_tokens":200,' + more + b'"messages":[{"role":"user",'
        b'"content":"' + CHAT_TEXT + b'"}]}'
    )
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nAccept: application/json\r\n"
        f"User-Agent: bench/1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class StaticUpstream(asyncio.Protocol):
    """Answers every request with ANSWER; one that says stream with a hundred events, one that says
    slow, too, with twenty in ten seconds."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if b'"stream":true' in body:
                self.task = asyncio.get_running_loop().create_task(self.stream(body))
            elif head.startswith(b"get /flood"):
                self.task = asyncio.get_running_loop().create_task(self.flood())
            else:
                self.transport.write(ANSWER)

    async def stream(self, body: bytes) -> None:
        events, pause_s = (20, 0.5) if b'"slow":true' in body else (100, 0.0)
        self.transport.write(STREAM_HEAD)
        for _ in range(events):
            self.transport.write(chunked(EVENT))
            if pause_s:
                await asyncio.sleep(pause_s)
            await self.writable.wait()
        self.transport.write(chunked(USAGE_EVENT) + chunked(DONE_EVENT) + b"0\r\n\r\n")

    async def flood(self) -> None:
        """64 MiB for a reader that does not read."""
        size = 64 * 1024 * 1024
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = b"x" * 65536
        for _ in range(size // len(piece)):
            await self.writable.wait()
            if self.transport.is_closing():
                return
            self.transport.write(piece)


class Client(asyncio.Protocol):
    """One keep-alive connection: sends bytes, tells when the answer is complete."""

    def __init__(self) -> None:
        self.buffer = b""
        self.expected = -1
        self.waiter: asyncio.Future[int] | None = None
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.expected < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.status = int(self.buffer[9:12])
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            if at < 0:
                self.expected = -2
            else:
                self.expected = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        done = (
            self.buffer.endswith(b"0\r\n\r\n")
            if self.expected == -2
            else len(self.buffer) >= self.expected
        )
        if done and self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(self.status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(exc or ConnectionResetError())

    async def call(self, request: bytes) -> int:
        """Send one request; the status of its whole answer."""
        self.buffer, self.expected = b"", -1
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiter


async def connect(port: int) -> Client:
    """A client's connection."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", port)
    return client


async def closed_loop(port: int, request: bytes, connections: int, seconds: float) -> float:
    """Calls per second with every connection always busy."""
    clients = [await connect(port) for _ in range(connections)]
    ends_s = time.perf_counter() + seconds
    done = 0

    async def work(client: Client) -> None:
        nonlocal done
        while time.perf_counter() < ends_s:
            status = await client.call(request)
            assert status == 200, status
            done += 1

    began_s = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    took_s = time.perf_counter() - began_s
    for client in clients:
        client.transport.close()
    return done / took_s


async def open_loop(
    port: int, request: bytes, rate: float, seconds: float, expect: int = 200
) -> list[float]:
    """Seconds from the intended moment of sending to the end of the answer, sorted."""
    idle: list[Client] = []
    took: list[float] = []
    tasks: list[asyncio.Task[None]] = []
    began_s = time.perf_counter() + 0.05

    async def one(intended_s: float) -> None:
        client = idle.pop() if idle else await connect(port)
        status = await client.call(request)
        assert status == expect, status
        took.append(time.perf_counter() - intended_s)
        idle.append(client)

    for number in range(int(rate * seconds)):
        intended_s = began_s + number / rate
        wait_s = intended_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(intended_s)))
    await asyncio.gather(*tasks)
    for client in idle:
        client.transport.close()
    return sorted(took)


def quantile(ordered: list[float], share: float) -> float:
    """The figure that this share of all does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def serve_upstream(port: int, ready: Callable[[], None]) -> None:
    """Run the static upstream until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StaticUpstream, "127.0.0.1", port, backlog=2048)
    ready()
    await server.serve_forever()
