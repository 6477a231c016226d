"""Calls of our own to servers that are slow, endless, elsewhere, or no servers at all."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from budget_proxy.control_client import Answer, ControlError, fetch

SECRET = "sk-secret-0123456789"
TLS_HELLO = b"\x16"
Answering = Callable[[asyncio.StreamWriter, asyncio.Event], Awaitable[None]]
"""What is written to whoever asks, perhaps until the test is over."""


@dataclass
class Server:
    """What was sent to it, head by head with what came after."""

    port: int
    heard: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/balance?key={SECRET}"


@contextlib.asynccontextmanager
async def serving(answering: Answering) -> AsyncIterator[Server]:
    """A server that answers every connection in this way, and then closes it."""
    found, over = Server(0), asyncio.Event()
    tasks = set[asyncio.Task[Any]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.read(1)
            if head != TLS_HELLO:
                head += await reader.readuntil(b"\r\n\r\n")
                if b"Content-Length: " in head:
                    length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                    head += await reader.readexactly(length)
                found.heard.append(head)
                await answering(writer, over)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        over.set()
        server.close()
        await asyncio.gather(*tasks)


def saying(data: bytes) -> Answering:
    async def answering(writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
        writer.write(data)
        await writer.drain()

    return answering


def whole(body: bytes, status: str = "200 OK", head: str = "") -> Answering:
    text = f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n"
    return saying(text.encode() + body)


async def endless(writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()


async def silent(writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
    await over.wait()


async def stalling(writer: asyncio.StreamWriter, over: asyncio.Event) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"balance"')
    await over.wait()


def asked(answering: Answering, **given: Any) -> tuple[Answer | ControlError, Server]:
    async def story() -> tuple[Answer | ControlError, Server]:
        async with serving(answering) as server:
            try:
                return await fetch(server.url, **given), server
            except ControlError as error:
                return error, server

    return asyncio.run(story())


def test_an_answer_comes_with_its_status_headers_and_body() -> None:
    found, server = asked(
        whole(b'{"balance": 1}', head="Content-Type: application/json\r\n"),
        headers=[("Authorization", f"Bearer {SECRET}")],
    )
    assert isinstance(found, Answer)
    assert (found.status, found.body) == (200, b'{"balance": 1}')
    assert found.headers["content-type"] == "application/json"
    (heard,) = server.heard
    assert heard.startswith(f"GET /balance?key={SECRET} HTTP/1.1\r\n".encode())
    assert f"Authorization: Bearer {SECRET}".encode() in heard
    assert b"Accept-Encoding: identity" in heard


def test_a_body_is_sent_as_it_is() -> None:
    _, server = asked(
        whole(b""), method="POST", body=b'{"a": 1}', headers=[("Content-Type", "application/json")]
    )
    (heard,) = server.heard
    assert heard.startswith(b"POST ")
    assert heard.endswith(b'\r\n\r\n{"a": 1}')
    assert heard.count(b"Content-Type: application/json") == 1


@pytest.mark.parametrize("status", ["401 Unauthorized", "429 Too Many Requests", "503 Busy"])
def test_a_refusal_is_an_answer(status: str) -> None:
    found, _ = asked(whole(b"<html>no", status))
    assert isinstance(found, Answer)
    assert (found.status, found.body) == (int(status[:3]), b"<html>no")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Again", "308 For ever"])
def test_a_redirect_is_not_followed_anywhere(status: str) -> None:
    async def story() -> tuple[Answer, list[bytes]]:
        async with serving(whole(b"here")) as other:
            there = whole(b"", status, f"Location: http://127.0.0.1:{other.port}/\r\n")
            async with serving(there) as server:
                headers = [("Authorization", f"Bearer {SECRET}")]
                return await fetch(server.url, headers=headers), other.heard

    found, heard = asyncio.run(story())
    assert found.status == int(status[:3])
    assert heard == []


def test_an_answer_without_end_is_cut() -> None:
    found, _ = asked(endless, max_bytes=100_000)
    assert isinstance(found, ControlError)
    assert found.kind == "too_large"


@pytest.mark.parametrize(("size", "kind"), [(1000, "whole"), (1001, "too_large")])
def test_the_bound_is_on_bytes(size: int, kind: str) -> None:
    found, _ = asked(whole(b"x" * size), max_bytes=1000)
    assert kind == (found.kind if isinstance(found, ControlError) else "whole")


def test_what_was_compressed_unasked_is_read() -> None:
    found, _ = asked(whole(gzip.compress(b'{"a": 1}'), head="Content-Encoding: gzip\r\n"))
    assert isinstance(found, Answer)
    assert found.body == b'{"a": 1}'


def test_what_grows_when_it_is_read_is_bounded_too() -> None:
    bomb = gzip.compress(b"x" * 10_000_000)
    found, _ = asked(whole(bomb, head="Content-Encoding: gzip\r\n"), max_bytes=20_000)
    assert isinstance(found, ControlError)
    assert found.kind == "too_large"


@pytest.mark.parametrize("answering", [silent, stalling])
def test_a_server_that_hangs_is_given_up(answering: Answering) -> None:
    found, server = asked(answering, timeout_s=0.2)
    assert isinstance(found, ControlError)
    assert found.kind == "timeout"
    assert not found.surely_not_sent
    assert len(server.heard) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "no HTTP", "cut", "no chunks", "no gzip", "long header"],
)
def test_an_answer_that_breaks_off_leaves_the_outcome_unknown(data: bytes) -> None:
    """And is asked for once: who repeats it is for others to decide."""
    found, server = asked(saying(data))
    assert isinstance(found, ControlError)
    assert found.kind == "broken"
    assert not found.surely_not_sent
    assert len(server.heard) == 1


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("http://127.0.0.1:PORT/", {}),
        ("https://127.0.0.1:SERVER/", {}),
        ("http://nowhere.invalid/", {}),
        ("https://127.0.0.1:1/", {"ca": "/no/such/file"}),
        ("http://127.0.0.1:SERVER/", {"proxy": "http://127.0.0.1:PORT"}),
        ("https://example.com/", {"proxy": "http://127.0.0.1:SERVER"}),
    ],
    ids=["no server", "no TLS", "no such host", "no such ca", "no proxy", "proxy refuses"],
)
def test_what_was_surely_not_sent_is_told_apart(url: str, given: dict[str, str]) -> None:
    async def story() -> tuple[ControlError, list[bytes]]:
        async with serving(whole(b"no", "403 Forbidden")) as server:
            ports = {"PORT": str(free_port()), "SERVER": str(server.port)}

            def put_in(text: str) -> str:
                for name, port in ports.items():
                    text = text.replace(name, port)
                return text

            more: dict[str, Any] = {name: put_in(text) for name, text in given.items()}
            with pytest.raises(ControlError) as caught:
                await fetch(
                    put_in(url) + f"?key={SECRET}",
                    headers=[("X-Key", SECRET)],
                    timeout_s=20,
                    **more,
                )
            return caught.value, server.heard

    error, heard = asyncio.run(story())
    assert (error.kind, error.surely_not_sent) == ("refused", True)
    assert not any(SECRET.encode() in head for head in heard)
    assert SECRET not in str(error)
    assert "127.0.0.1" not in str(error)


def test_a_forward_proxy_is_asked(tmp_path: Path) -> None:
    async def story() -> tuple[Answer, list[bytes]]:
        async with serving(whole(b"by the proxy")) as proxy:
            answer = await fetch(
                "http://api.example.com/balance", proxy=f"http://127.0.0.1:{proxy.port}"
            )
            return answer, proxy.heard

    found, (heard,) = asyncio.run(story())
    assert found.body == b"by the proxy"
    assert heard.startswith(b"GET http://api.example.com/balance HTTP/1.1")


@pytest.mark.parametrize("answering", [silent, endless, saying(b"HTTP/1.1 nonsense\r\n\r\n")])
def test_no_error_repeats_a_secret(answering: Answering) -> None:
    found, _ = asked(
        answering, timeout_s=0.2, max_bytes=1000, headers=[("Authorization", f"Bearer {SECRET}")]
    )
    assert isinstance(found, ControlError)
    assert SECRET not in str(found)
    assert found.__cause__ is None


def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    found, _ = asked(whole(b"direct"))
    assert isinstance(found, Answer)
    assert found.body == b"direct"
