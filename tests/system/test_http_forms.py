"""Odd, wrong and hostile requests: each has its answer, none is a 500, none is passed on."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from pathlib import Path

import pytest
from harness import Rig
from raw_upstream import (
    FLAT,
    GENEROUS,
    JSON,
    PAGE,
    Answer,
    Caller,
    Peer,
    answering,
    ask,
    calling,
    connections,
    ended,
    fronting,
    head_only,
    http,
    narrow,
    policy,
    request,
    spent,
    then_hang,
)

OK = http("200 OK", b"ok")
KEYED = "Host: proxy\r\nX-Api-Key: test-key-0000\r\n"
OURS = {400, 401, 402, 403, 404, 405, 408, 413, 417, 421, 429, 501, 502, 503, 504, 505}
"""Every status of `core/refusal.py`."""


def line(target: str, method: str = "GET", version: str = "HTTP/1.1", more: str = "") -> bytes:
    return f"{method} {target} {version}\r\n{KEYED}{more}\r\n".encode("latin-1")


def host(value: str | None, version: str = "HTTP/1.1") -> bytes:
    named = "" if value is None else f"Host: {value}\r\n"
    return f"GET /flat/x {version}\r\nX-Api-Key: test-key-0000\r\n{named}\r\n".encode()


def with_header(header: bytes | str, body: bytes = b"", method: str = "GET") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return method.encode() + b" /flat/x HTTP/1.1\r\n" + KEYED.encode() + header + b"\r\n\r\n" + body


async def answered(rig: Rig, data: bytes) -> Answer:
    method = data.partition(b" ")[0].decode("latin-1")
    try:
        return await ask(rig, data, method)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise AssertionError(f"no answer to {data[:60]!r}") from error


TARGETS = {
    # not a path
    "http://proxy/flat/x": 400,
    "http://evil.example/flat/x": 400,
    "http://user:secret@evil.example:1/": 400,
    "http://evil?q": 400,
    "https://evil/flat/x": 400,
    "ftp://evil/": 400,
    "proxy/flat/x": 400,
    "?q": 400,
    "*": 400,
    # a path with two readings
    "//flat/x": 400,
    "//evil/flat/x": 400,
    "/flat//x": 400,
    "/flat/x//": 400,
    "/flat/../meter/v1": 400,
    "/flat/..": 400,
    "/flat/./x": 400,
    "/flat/.": 400,
    "/./flat/x": 400,
    "/flat/%2e%2e/x": 400,
    "/flat/.%2E": 400,
    "/flat/%2e/x": 400,
    "/flat/..;/x": 400,
    "/flat/.%2e%3bv=1/x": 400,
    "/flat/a%2fb": 400,
    "/flat/a%2Fb": 400,
    "/flat/a%5cb": 400,
    "/flat/..%2f..%5cx": 400,
    "/flat/a\\b": 400,
    "/flat/..\\b": 400,
    "/flat/%00": 400,
    "/flat/%0d%0aX:%201": 400,
    "/flat/%7f": 400,
    "/flat/%zz": 400,
    "/flat/%4": 400,
    "/flat/%": 400,
    "/flat/x?%": 400,
    "/flat/x?a=%g1": 400,
    "/flat/x#fragment": 400,
    "/flat/x?q#fragment": 400,
    "/flat/a|b": 400,
    '/flat/a"b': 400,
    "/flat/<x>": 400,
    "/flat/\xe9": 400,
    "/flat/a b": 400,
    "/flat/a\tb": 400,
    "/flat/x?a\x0bb": 400,
    # nowhere
    "/": 404,
    "/fla": 404,
    "/flatter/x": 404,
    "/%66lat/x": 404,
    "/FLAT/x": 404,
    # fine
    "/flat": 200,
    "/flat/...": 200,
    "/flat/x?a=/../b//c%00": 200,
    "/flat/" + "a" * 8000: 200,
    "/flat/" + "a" * 20000: 400,
}
CHUNKS = b"0\r\n\r\n"
FORMS = {
    "CONNECT": (b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n", 405),
    "CONNECT, path": (line("/flat/x", "CONNECT"), 405),
    "CONNECT, bytes behind": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n\x16\x03\x01", 405),
    "OPTIONS *": (line("*", "OPTIONS"), 400),
    "lower-case method": (line("/flat/x", "get"), 400),
    "no such method": (line("/flat/x", "FROBNICATE"), 400),
    "HTTP/0.9": (b"GET /flat/x\r\n\r\n", 505),
    "HTTP/1.2": (line("/flat/x", version="HTTP/1.2"), 400),
    "HTTP/2.0": (line("/flat/x", version="HTTP/2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http/1.1": (line("/flat/x", version="http/1.1"), 400),
    "no version": (b"GET /flat/x \r\n" + KEYED.encode() + b"\r\n", 400),
    "HTTP/1.0": (line("/flat/x", version="HTTP/1.0"), 200),
    "TLS": (b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + b"x" * 64, 400),
    "garbage": (b"\x00\xff\xfe\r\n\r\n", 400),
    "bare LF": (b"GET /flat/x HTTP/1.1\nHost: a\n\n", 400),
    # Host
    "no host": (host(None), 400),
    "no host, HTTP/1.0": (host(None, "HTTP/1.0"), 200),
    "empty host": (host(""), 400),
    "two hosts": (host("a\r\nHost: a"), 400),
    "host with a path": (host("a/b"), 400),
    "host with a user": (host("u:p@a"), 400),
    "host with a space": (host("a b"), 400),
    "host with a huge port": (host("a:99999999"), 400),
    "host with a port too large": (host("a:65536"), 400),
    "host with a word for a port": (host("a:b"), 400),
    "list of hosts": (host("a,b"), 400),
    "host with a query": (host("a?b"), 400),
    "host, IPv6": (host("[::1]:8080"), 200),
    "host, IPv6 unclosed": (host("[::1"), 400),
    "any host": (host("evil.example:1"), 200),
    # framing
    "TE gzip, chunked": (with_header("Transfer-Encoding: gzip, chunked", CHUNKS, "POST"), 501),
    "TE chunked, identity": (with_header("Transfer-Encoding: chunked, identity"), 400),
    "TE xchunked": (with_header("Transfer-Encoding: xchunked", method="POST"), 400),
    "TE twice": (with_header("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400),
    "TE and length": (with_header("Transfer-Encoding: chunked\r\nContent-Length: 1"), 400),
    "length and TE": (with_header("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
    "TE in HTTP/1.0": (
        line("/flat/x", "POST", "HTTP/1.0", "Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        501,
    ),
    "two lengths": (with_header("Content-Length: 1\r\nContent-Length: 2", b"ab"), 400),
    "list of lengths": (with_header("Content-Length: 1, 1", b"a"), 400),
    "negative length": (with_header("Content-Length: -1"), 400),
    "signed length": (with_header("Content-Length: +1", b"a"), 400),
    "hex length": (with_header("Content-Length: 0x1", b"a"), 400),
    "empty length": (with_header("Content-Length:"), 400),
    "length with _": (with_header("Content-Length: 1_0", b"a" * 10), 400),
    "huge length": (with_header("Content-Length: 1" + "0" * 30), 400),
    "length of 2**64 - 1": (with_header("Content-Length: 18446744073709551615", b"a"), 400),
    "length of many digits": (with_header(f"Content-Length: {1:05000}", b"a"), 400),
    # headers
    "Expect: x": (with_header("Expect: x"), 417),
    "websocket": (with_header("Connection: Upgrade\r\nUpgrade: websocket"), 501),
    "WebSocket": (with_header("Connection: upgrade\r\nUpgrade: WebSocket"), 501),
    "h2c": (with_header("Connection: Upgrade\r\nUpgrade: h2c"), 200),
    "name with a space": (with_header("X Y: 1"), 400),
    "space before the colon": (with_header("X-A : 1"), 400),
    "no name": (with_header(": 1"), 400),
    "no colon": (with_header("X-A"), 400),
    "odd name": (with_header("X(A): 1"), 400),
    "name not ASCII": (with_header(b"X-\xe9: 1"), 400),
    "folded": (with_header("X-A: 1\r\n 2"), 400),
    "NUL": (with_header(b"X-A: a\x00b"), 400),
    "control": (with_header(b"X-A: a\x01b"), 400),
    "CR alone": (with_header(b"X-A: a\rb"), 400),
    "value not UTF-8": (with_header(b"X-A: \xff\xfe"), 400),
    "value in UTF-8": (with_header("X-A: é"), 200),
    "long value": (with_header("X-A: " + "a" * 20000), 400),
    "fairly long value": (with_header("X-A: " + "a" * 8000), 200),
    "many headers": (with_header("\r\n".join(f"X-{n}: 1" for n in range(300))), 400),
    "Connection: Authorization": (with_header("Connection: close, Authorization"), 400),
    "Connection: x-api-key": (with_header("Connection: x-api-key"), 400),
    "Connection: X-Budget-Key": (with_header("Connection: X-Budget-Key"), 400),
    "Connection: Host": (with_header("Connection: Host"), 400),
    "Connection: Content-Length": (with_header("Connection: Content-Length"), 400),
    "Connection: Content-Encoding": (with_header("Connection: Content-Encoding"), 400),
    "Connection, twice": (with_header("Connection: close\r\nConnection: authorization"), 400),
}  # fmt: skip


def test_targets_are_plain_paths_or_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            got = {target: (await answered(rig, line(target))).status for target in TARGETS}
            assert got == TARGETS
            fine = [target for target, status in TARGETS.items() if status == 200]
            assert len(upstream.requests) == len(fine)
            assert await spent(rig) == len(fine) * FLAT

    asyncio.run(story())


def test_every_form_has_its_answer(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            answers = {name: await answered(rig, data) for name, (data, _) in FORMS.items()}
            wanted = {name: status for name, (_, status) in FORMS.items()}
            assert {name: answer.status for name, answer in answers.items()} == wanted
            assert len(upstream.requests) == list(wanted.values()).count(200)
            for name, answer in answers.items():
                assert answer.head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), name
                assert answer.whole, name
                if answer.status != 200:
                    assert answer.values(b"content-type")[0].startswith(
                        b"application/problem+json"
                    ), name
                    assert json.loads(answer.body)["status"] == answer.status, name
                    assert b"xchunked" not in answer.body, "the caller's bytes are quoted"

    asyncio.run(story())


class Lines(io.BytesIO):
    """A stream for the call log that survives its close."""

    def close(self) -> None:
        pass


WRONG = {
    "a path": (line("/flat/../x"), "The path has an empty or dot segment"),
    "an upstream": (line("/nowhere"), "Upstreams are served under /"),
    "a key": (request("/flat/x", key="some-other-key"), "The service key is not known"),
    "no key": (request("/flat/x", key=None), "The request has no service key; send one as"),
    "a route": (line("/meter/v1/none"), "No tariff of upstream 'meter' covers GET /v1/none"),
    "no JSON": (request("/meter/v1/pages", b'{"pages'), "The body is not JSON"),
    "a figure": (request("/meter/v1/pages", b'{"pages": "secret"}'), "pages is not a whole number"),
    "a model": (request("/llm/v1/chat/completions", b'{"model": "no-such", "max_tokens": 1}'),
                "No price is known for model 'no-such'"),
}  # fmt: skip
"""A request, and how the detail of its refusal begins."""


def test_the_log_says_what_was_wrong_as_the_answer_does(tmp_path: Path) -> None:
    lines = Lines()

    async def story() -> None:
        async with fronting(tmp_path, answering(OK), log=lines) as (rig, upstream):
            for name, (data, begins) in WRONG.items():
                answer = await answered(rig, data)
                assert answer.status >= 400, name
                assert begins in answer.body.decode(), name
            assert upstream.connections == 0

    asyncio.run(story())
    written = [json.loads(text) for text in lines.getvalue().splitlines()]
    for found, (name, (_, begins)) in zip(written, WRONG.items(), strict=True):
        assert found["detail"].startswith(begins), name
        assert found["reason"], name
    assert b"some-other-key" not in lines.getvalue()
    assert b"secret" not in lines.getvalue()


def test_who_takes_us_for_a_forward_proxy_is_told_what_to_do(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _):
            connect = await ask(rig, FORMS["CONNECT"][0], "CONNECT")
            assert "base URL" in json.loads(connect.body)["detail"]
            absolute = await ask(rig, line("http://api.example.com/v1/models"))
            assert "HTTP_PROXY" in json.loads(absolute.body)["detail"]

    asyncio.run(story())


def test_with_hosts_only_those_are_served(tmp_path: Path) -> None:
    rows = {
        "good.example": 200,
        "GOOD.example:8080": 200,
        "good.example:0": 200,
        "evil.example": 421,
        "good.example.evil": 421,
        "agood.example": 421,
        "127.0.0.1": 421,
        "good.example:port": 400,
    }

    async def story() -> None:
        text = policy("", GENEROUS + "hosts: [good.example]\n")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            got = {name: (await answered(rig, host(name))).status for name in rows}
            assert got == rows
            assert (await answered(rig, host(None, "HTTP/1.0"))).status == 400
            assert len(upstream.requests) == 3

    asyncio.run(story())


def test_upstreams_are_found_by_host_and_by_the_longest_mount(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy().replace("  flat:\n", "  flat:\n    host: flat.example\n    mount: /\n")
        text = text.replace("  meter:\n", "  meter:\n    mount: /a/b\n", 1)
        text = text.replace("  talk:\n", "  talk:\n    mount: /a\n", 1)
        text = text.replace("mount: /a\n", "mount: /a-c\n")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            pages = b'{"pages": 1}'
            call = f"POST /a/b/v1/pages HTTP/1.1\r\n{KEYED}Content-Length: {len(pages)}\r\n\r\n"
            assert (await ask(rig, call.encode() + pages)).status == 200
            anywhere = (
                b"GET /a/b/c?d HTTP/1.1\r\nHost: flat.example\r\nApi-Key: test-key-0000\r\n\r\n"
            )
            assert (await ask(rig, anywhere)).status == 200
            assert (await ask(rig, line("/a/x"))).status == 404
            assert [got.target for got in upstream.requests] == [b"/v1/pages", b"/a/b/c?d"]

    asyncio.run(story())


def test_encoded_slashes_pass_where_the_upstream_wants_them(tmp_path: Path) -> None:
    rows = {
        "/flat/a%2fb": 200,
        "/flat/a%5Cb": 200,
        "/flat/a%2F%2Fb": 200,
        "/flat/a%2f..%2fb": 400,
        "/flat/a%2f%2e%2e": 400,
        "/flat/..%5cb": 400,
        "/flat/a/..%2fb": 400,
    }

    async def story() -> None:
        text = policy("allow_encoded_slash: true")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            got = {target: (await answered(rig, line(target))).status for target in rows}
            assert got == rows
            passed = [seen.target.decode() for seen in upstream.requests]
            assert passed == ["/a%2fb", "/a%5Cb", "/a%2F%2Fb"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("upstream", "envelope"),
    [("llm", ("error",)), ("claude", ("type", "error")), ("meter", ("message", "type"))],
)
def test_once_the_upstream_is_known_a_refusal_is_in_its_dialect(
    tmp_path: Path, upstream: str, envelope: tuple[str, ...]
) -> None:
    path = {
        "llm": "/llm/v1/chat/completions",
        "claude": "/claude/v1/messages",
        "meter": "/meter/v1/pages",
    }[upstream]
    rows = {
        "no key": (request(path, b"{}", key=None), 401),
        "wrong key": (request(path, b"{}", key="wrong-key-000"), 401),
        "no route": (request(f"/{upstream}/v9/none"), 403),
        "bad body": (request(path, b"{"), 400),
        "body too large": (head_only(path, "Content-Length: 99999999"), 413),
        "encoded slash": (request(path + "%2f"), 400),
    }

    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, there):
            for name, (data, status) in rows.items():
                answer = await ask(rig, data, "POST")
                assert answer.status == status, name
                said = json.loads(answer.body)
                assert list(said)[: len(envelope)] == list(envelope), name
                if upstream != "meter":
                    assert said["error"]["message"], name
                    assert set(said["error"]) >= {"message", "type"}, name
                assert answer.values(b"x-should-retry") == [b"false"], name
                assert answer.values(b"x-request-id"), name
            assert there.connections == 0
            assert await spent(rig) == 0

    asyncio.run(story())


def test_a_refusal_keeps_the_connection_where_it_can(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _), calling(rig) as caller:
            for data, status in (
                (request("/flat/x", key=None), 401),
                (request("/nowhere"), 404),
                (request("/meter/v1/pages", b"{"), 400),
                (request("/flat/..", b"body"), 400),
                (request("/flat/x"), 200),
            ):
                await caller.send(data)
                assert (await caller.answer()).status == status

    asyncio.run(story())


def test_after_an_upgrade_that_was_not_taken_the_connection_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        upgrade = ["Connection: Upgrade", "Upgrade: h2c"]
        async with fronting(tmp_path, answering(OK)) as (rig, upstream), calling(rig) as caller:
            for body in (b"body", b"more", None):
                await caller.send(request("/flat/x", body, *upgrade))
                assert (await caller.answer()).status == 200
            assert [got.body for got in upstream.requests] == [b"body", b"more", b""]

    asyncio.run(story())


# -- mutations -------------------------------------------------------------------------------------


def mutated(dice: random.Random, data: bytes) -> bytes:
    """A good request with a few bytes wrong."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data))
        kind = dice.randrange(5)
        if kind == 0:
            data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + dice.randint(1, 5) :]
        elif kind == 2:
            data = data[:at] + dice.choice(PIECES) + data[at:]
        elif kind == 3:
            end = at + dice.randint(1, 40)
            data = data[:end] + data[at:end] + data[end:]
        else:
            data = data[:at] + data[at:].replace(b"\r\n", dice.choice((b"\n", b"\r\n\r\n")), 1)
    return data


PIECES = [
    *(b"\r\n", b"\x00", b"%2e%2e/", b"//", b"?", b"#", b" ", b"\t", b":", b"{", b'"', b"\\u0000"),
    *(b"9" * 40, b"1e999", b"NaN", b"\xff\xfe", b"Host: b\r\n", b"Connection: upgrade\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Content-Length: 3\r\n"),
]
GOOD = [
    request("/flat/a/b?c=d&key=test-key-0000", None, "Accept: */*"),
    request("/meter/v1/pages", b'{"pages": 3, "note": ["a", 1.5, null]}', JSON),
    request("/talk/v1/talk", b'{"input": 5, "max": 6, "stream": true}', JSON),
    request("/llm/v1/chat/completions", b'{"model":"gpt-4o-mini","max_tokens":3,"messages":[]}'),
    head_only("/meter/v1/pages", "Transfer-Encoding: chunked") + b'c\r\n{"pages": 1}\r\n0\r\n\r\n',
]


async def statuses(rig: Rig, data: bytes) -> list[int]:
    """Every status that some bytes are answered with, until the proxy closes."""
    async with calling(rig) as caller:
        await caller.send(data)
        got = await caller.closed()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", got)]


def test_no_bytes_are_answered_with_a_500(tmp_path: Path) -> None:
    dice = random.Random(2)

    async def story() -> None:
        text = policy("", GENEROUS + "limits: {header_timeout: 300ms, body_timeout: 200ms}\n")
        async with fronting(tmp_path, answering(OK), text) as (rig, _):
            for _ in range(3):
                batch = [mutated(dice, dice.choice(GOOD)) for _ in range(100)]
                for data, got in zip(
                    batch,
                    await asyncio.gather(*(statuses(rig, data) for data in batch)),
                    strict=True,
                ):
                    assert set(got) <= {200, 100} | OURS - {502, 503, 504}, data

    asyncio.run(story())


# -- deadlines and bounds --------------------------------------------------------------------------


def limits(**values: str) -> str:
    pairs = ", ".join(f"{name}: {value}" for name, value in values.items())
    return policy("", GENEROUS + f"limits: {{{pairs}}}\n")


async def drip(caller: Caller, data: bytes, every_s: float) -> None:
    """Send byte by byte until all is sent or the connection is gone."""
    try:
        for byte in data:
            await caller.send(bytes([byte]))
            await asyncio.sleep(every_s)
    except ConnectionError:
        pass


HALF = b"GET /flat/x HTTP/1.1\r\nHost: a\r\nX-"


@pytest.mark.parametrize(
    ("begun", "slowly"),
    [(b"", False), (b"GET /flat", False), (b"GET /flat", True), (HALF, False), (HALF, True)],
)
def test_headers_have_a_deadline(tmp_path: Path, begun: bytes, slowly: bool) -> None:
    async def story() -> None:
        text = limits(header_timeout="300ms")
        async with fronting(tmp_path, answering(OK), text) as (rig, _), calling(rig) as caller:
            await caller.send(begun)
            dripping = asyncio.create_task(drip(caller, b"a" * slowly * 10_000, 0.02))
            assert await caller.closed() == b""
            dripping.cancel()
            assert rig.calls == []

    asyncio.run(story())


def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    async def story() -> None:
        text = limits(header_timeout="300ms")
        async with fronting(tmp_path, answering(OK), text) as (rig, _), calling(rig) as caller:
            await caller.send(request("/flat/x"))
            assert (await caller.answer()).status == 200
            assert await caller.closed() == b""

    asyncio.run(story())


@pytest.mark.parametrize("rest", [b"", b"        " * 1000], ids=["stalls", "drips"])
def test_a_body_read_for_its_price_has_a_deadline(tmp_path: Path, rest: bytes) -> None:
    async def story() -> None:
        text = limits(body_timeout="200ms")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            async with calling(rig) as caller:
                await caller.send(head_only("/meter/v1/pages", "Content-Length: 99999") + b"{")
                dripping = asyncio.create_task(drip(caller, rest, 0.05))
                answer = await caller.answer()
                assert answer.status == 408
                assert answer.values(b"connection") == [b"close"]
                await caller.closed()
                dripping.cancel()
            assert upstream.connections == 0
            assert await spent(rig) == 0

    asyncio.run(story())


def test_a_streamed_body_has_a_deadline(tmp_path: Path) -> None:
    """The upstream has seen the request: it may bill it."""

    async def story() -> None:
        text = limits(body_timeout="200ms")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            answer = await ask(rig, head_only("/flat/upload", "Content-Length: 9") + b"half")
            assert answer.status == 408
            assert (await ended(rig), await spent(rig)) == ("hold_no_answer", FLAT)
            await rig.until(lambda: upstream.open == 0)
            assert not upstream.requests[0].whole

    asyncio.run(story())


BROKEN = [
    b"zz\r\n",
    b"-1\r\n",
    b"0x3\r\nabc\r\n",
    b"3\r\nabcd\r\n",
    b"ffffffffffffffffff\r\n",
    b"\r\n",
]


@pytest.mark.parametrize("target", ["/meter/v1/pages", "/flat/upload"])
def test_a_body_that_is_not_framed_is_a_bad_request(tmp_path: Path, target: str) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            for broken in BROKEN:
                async with calling(rig) as caller:
                    await caller.send(head_only(target, "Transfer-Encoding: chunked"))
                    await caller.send(b"1\r\n{\r\n")
                    await rig.until(lambda: rig.app._listener.in_flight == 1)
                    await caller.send(broken)
                    answer = await caller.answer()
                    assert (answer.status, await caller.closed()) == (400, b""), broken
            assert [got for got in upstream.requests if got.whole] == []

    asyncio.run(story())


HEADS = {
    "until the close": b"HTTP/1.1 200 OK\r\n\r\nbegun",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbegun",
}


@pytest.mark.parametrize("framing", HEADS)
@pytest.mark.parametrize("broken", [b"", b"zz\r\n"], ids=["too slow", "not framed"])
def test_an_answer_does_not_look_whole_when_its_upload_fails(
    tmp_path: Path, framing: str, broken: bytes
) -> None:
    """We cut it, and not after its time-out."""

    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(HEADS[framing])
            await peer.gone()

        text = policy("timeouts: {idle: 60s}") + "limits: {body_timeout: 300ms}\n"
        async with fronting(tmp_path, script, text) as (rig, upstream), calling(rig) as caller:
            await caller.send(
                head_only("/flat/upload", "Transfer-Encoding: chunked") + b"1\r\n{\r\n"
            )
            head = await caller.head()
            await caller.send(broken)
            rest = await caller.closed()
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert not rest.endswith(b"0\r\n\r\n"), "a cut answer ended as if it were whole"
            assert (await ended(rig), await spent(rig)) == ("actual", FLAT)
            assert rig.calls[0].outcome == "rejected"
            await rig.until(lambda: upstream.open == 0)

    asyncio.run(story())


def test_no_body_above_the_bound_is_read(tmp_path: Path) -> None:
    fits = b'{"pages": 1}' + b" " * 1012
    too_long = fits + b" "

    def in_chunks(body: bytes) -> bytes:
        head = head_only("/meter/v1/pages", "Transfer-Encoding: chunked")
        return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    rows = {
        "declared": (head_only("/meter/v1/pages", "Content-Length: 1025"), 413),
        "declared, huge": (head_only("/meter/v1/pages", "Content-Length: 1" + "0" * 15), 413),
        "chunks": (in_chunks(too_long), 413),
        "endless chunks": (in_chunks(too_long * 100)[:-5], 413),
        "just fits": (request("/meter/v1/pages", fits), 200),
        "just fits, in chunks": (in_chunks(fits), 200),
        "streamed": (request("/flat/upload", too_long * 100), 200),
    }

    async def story() -> None:
        async with fronting(tmp_path, answering(OK), limits(max_body="1 KiB")) as (rig, upstream):
            got = {name: (await ask(rig, data)).status for name, (data, _) in rows.items()}
            assert got == {name: status for name, (_, status) in rows.items()}
            assert len(upstream.requests) == 3
            assert await spent(rig) == 2 * PAGE + FLAT

    asyncio.run(story())


def test_all_bodies_together_have_a_bound(tmp_path: Path) -> None:
    body = b'{"pages": 1}' + b" " * 600

    async def story() -> None:
        held = asyncio.Event()

        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                await held.wait()
                await peer.send(OK)

        text = limits(max_body="1 KiB", max_buffered="1 KiB")
        async with fronting(tmp_path, script, text) as (rig, upstream), calling(rig) as caller:
            await caller.send(request("/meter/v1/pages", body))
            await rig.until(lambda: len(upstream.requests) == 1)
            for data in (
                request("/meter/v1/pages", body),
                head_only("/meter/v1/pages", "Transfer-Encoding: chunked"),
                head_only("/meter/v1/pages", "Content-Length: 500", "Expect: 100-continue"),
            ):
                answer = await ask(rig, data)
                assert (answer.status, answer.interim) == (503, [])
                assert answer.values(b"x-budget-proxy-reason") == [b"busy"]
            held.set()
            assert (await caller.answer()).status == 200
            assert (await ask(rig, request("/meter/v1/pages", body))).status == 200
            assert len(upstream.requests) == 2

    asyncio.run(story())


@pytest.mark.parametrize("size", [40_000, 4_000_000], ids=["small", "big"])
def test_an_answer_that_is_not_read_is_given_up(tmp_path: Path, size: int) -> None:
    async def story() -> None:
        text = limits(write_timeout="300ms")
        server = fronting(tmp_path, answering(http("200 OK", b"x" * size)), text)
        async with server as (rig, _), calling(rig, 4096) as caller:
            await narrow(rig)
            await caller.send(request("/flat/x"))
            assert (await ended(rig), await spent(rig)) == ("actual", FLAT)
            assert rig.calls[0].outcome == "hung_up"
            await rig.until(lambda: not connections(rig))

    asyncio.run(story())


def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    async def story() -> None:
        text = limits(max_connections="2")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            async with calling(rig) as first, calling(rig) as second:
                for caller in (first, second):
                    await caller.send(request("/flat/x"))
                    assert (await caller.answer()).status == 200
                async with calling(rig) as third:
                    assert await third.closed() == b""
                await second.send(request("/flat/x"))
                assert (await second.answer()).status == 200
            await rig.until(lambda: not connections(rig))
            assert (await ask(rig, request("/flat/x"))).status == 200
            assert len(upstream.requests) == 4

    asyncio.run(story())


def test_an_upstream_has_only_so_many_connections(tmp_path: Path) -> None:
    """Who finds none free in time is told so; nothing was sent, nothing is charged."""

    async def story() -> None:
        text = policy("max_connections: 1\ntimeouts: {first_byte: 300ms}")
        async with fronting(tmp_path, then_hang(), text) as (rig, upstream):
            answers = await asyncio.gather(*(ask(rig, request(f"/flat/{n}")) for n in range(3)))
            # One that began to wait late may still get the connection of the first.
            sent = len(upstream.requests)
            assert sent in (1, 2)
            expected = [502] * (3 - sent) + [504] * sent
            assert sorted(answer.status for answer in answers) == expected
            assert await spent(rig) == sent * FLAT

    asyncio.run(story())
