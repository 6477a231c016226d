"""What the service sends is what the upstream gets, and back: byte for byte, as it flows (P5)."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Rig
from raw_upstream import (
    EVENTS,
    FLAT,
    JSON,
    OURS,
    PAGE,
    Peer,
    RawUpstream,
    answering,
    ask,
    calling,
    chunked,
    ended,
    events,
    fronting,
    head_only,
    http,
    policy,
    request,
    spent,
    then_close,
)

OK = http("200 OK", b"ok")
CERTIFICATE = Path(__file__).with_name("untrusted.pem")
MIB = 1024 * 1024
Headers = list[tuple[bytes, bytes]]


def forwarded(upstream: RawUpstream, *pairs: tuple[bytes, bytes]) -> Headers:
    """What the upstream gets of a request's headers: as they came, and ours."""
    host = upstream.url.encode().rpartition(b"/")[2]
    ours = [(b"Via", b"1.1 budget-proxy"), (b"Authorization", b"Bearer " + OURS.encode())]
    return [(b"Host", host), *pairs, *ours]


def plain(*lines: str, target: str = "/flat/x", method: str = "GET", body: bytes = b"") -> bytes:
    """A request with these header lines and the service's key."""
    own = ["Host: proxy", "X-Api-Key: test-key-0000"]
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *own, *lines])
    return head.encode() + b"\r\n\r\n" + body


# -- requests --------------------------------------------------------------------------------------


def test_headers_arrive_in_order_with_every_duplicate(tmp_path: Path) -> None:
    sent: Headers = [
        (b"User-Agent", b"a service/1.0"),
        (b"X-Twice", b"one"),
        (b"Accept", b"*/*"),
        (b"x-twice", b"two"),
        (b"X-Twice", b"one"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        (b"tracestate", b"vendor=1"),
        (b"Cookie", b"a=1"),
        (b"Cookie", b"b=2"),
        (b"X-Empty", b""),
        (b"X-Tab", b"a\tb  c"),
        (b"X-Name", "Zoë 中".encode()),
        (b"X_Under_Score", b"kept"),
        (b"Accept-Encoding", b"br;q=1.0, zstd"),
        (b"Range", b"bytes=0-1"),
        (b"If-None-Match", b'"x"'),
        (b"Content-Type", b"text/weird; charset=odd"),
    ]
    lines = [b"%b: %b" % pair for pair in sent]
    head = b"GET /flat/x HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer test-key-0000\r\n"

    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            await ask(rig, head + b"\r\n".join(lines) + b"\r\n\r\n")
            assert upstream.requests[0].headers == forwarded(upstream, *sent)

    asyncio.run(story())


@pytest.mark.parametrize(
    "headers",
    [
        ["Connection: X-Mine, close", "X-Mine: 1"],
        ["Connection: x-a", "Connection: X-B", "X-A: 1", "X-B: 2"],
        ["Connection: keep-alive", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive"],
        ["TE: trailers", "Trailer: X-Sum"],
        ["Proxy-Authorization: Basic eDp5", "Proxy-Authenticate: Basic"],
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
        ["Expect: 100-continue"],
        ["X-Api-Key: test-key-0000", "Api-Key: test-key-0000", "X-Goog-Api-Key: test-key-0000"],
        ["X-Budget-Key: test-key-0000", "X_Api_Key: other", "X_Budget_Key: other"],
        ["Content_Length: 99", "Transfer_Encoding: chunked", "Proxy_Authorization: x"],
    ],
    ids=lambda headers: headers[0],
)
def test_headers_for_this_hop_and_keys_stay_here(tmp_path: Path, headers: list[str]) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            assert (await ask(rig, plain(*headers, "X-Kept: 1"))).status == 200
            assert upstream.requests[0].headers == forwarded(upstream, (b"X-Kept", b"1"))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("headers", "via"),
    [
        (["Via: 1.0 first"], b"1.0 first, 1.1 budget-proxy"),
        (["Via: 1.0 first, 2 second"], b"1.0 first, 2 second, 1.1 budget-proxy"),
        (["Via: 1.0 first", "via: 2 second"], b"1.0 first, 2 second, 1.1 budget-proxy"),
    ],
    ids=["one", "a list", "two"],
)
def test_via_grows(tmp_path: Path, headers: list[str], via: bytes) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            await ask(rig, plain(*headers))
            assert upstream.requests[0].values(b"via") == [via]

    asyncio.run(story())


TARGETS = [
    "/",
    "/a%20b",
    "/%41%7e%E4%B8%AD",
    "/a;b=c,d:e@f!$&'()*+",
    "/trailing/",
    "/x?",
    "/x?a=1&&b=+&c=%2F%2f%00&=&d",
    '/x?q={}|^"<>`[]\\',
    "/x??a=/../b//c",
    "/...",
    "/.well-known/x",
    "/..x/y..",
]


def test_targets_arrive_as_they_came(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            async with calling(rig) as caller:
                for target in TARGETS:
                    await caller.send(request("/flat" + target))
                    assert (await caller.answer()).status == 200, target
            assert [got.target.decode() for got in upstream.requests] == TARGETS

    asyncio.run(story())


def test_a_base_url_with_a_path_is_joined_plainly(tmp_path: Path) -> None:
    async def story() -> None:
        url = "http://127.0.0.1:{port}/v9/%7Ebase"
        async with fronting(tmp_path, answering(OK), url=url) as (rig, upstream):
            for target in ("/flat", "/flat/", "/flat/v1/x?y=1", "/flat?y"):
                assert (await ask(rig, request(target))).status == 200
            targets = [got.target for got in upstream.requests]
            base = b"/v9/%7Ebase"
            assert targets == [base + b"/", base + b"/", base + b"/v1/x?y=1", base + b"/?y"]

    asyncio.run(story())


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY",
           "PURGE", "M-SEARCH", "REPORT", "LOCK"]  # fmt: skip


@pytest.mark.parametrize("body", [None, b"", b"with a body"], ids=["none", "empty", "some"])
def test_any_method_passes_with_and_without_a_body(tmp_path: Path, body: bytes | None) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(http())) as (rig, upstream):
            for method in METHODS:
                answer = await ask(rig, request("/flat/x", body, method=method))
                assert answer.status == 200, method
            assert [got.method.decode() for got in upstream.requests] == METHODS
            assert {got.body for got in upstream.requests} == {body or b""}

    asyncio.run(story())


@pytest.mark.parametrize("credential", [OURS, "pass"])
def test_trace_is_the_one_method_that_is_refused(tmp_path: Path, credential: str) -> None:
    """Its answer is the request as it arrived: the caller would read our credential in it. Where
    the caller's own goes through, whatever stands between (a script in a page) would."""

    async def story() -> None:
        text = policy().replace("${OURS}", credential)
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            for body in (None, b"", b"with a body"):
                answer = await ask(rig, request("/flat/x", body, method="TRACE"))
                assert (answer.status, answer.whole) == (405, True)
                assert answer.values(b"x-budget-proxy-reason") == [b"method_not_allowed"]
                assert "TRACE" in json.loads(answer.body)["detail"]
            assert upstream.connections == 0, "nothing reached the upstream"
            assert await rig.entries() == []
            assert [call.outcome for call in rig.calls] == ["rejected"] * 3

    asyncio.run(story())


def test_bodies_arrive_as_they_came(tmp_path: Path) -> None:
    """Streamed or read for its price, with a length or in chunks, encoded or not, small or big."""
    blob = os.urandom(300_000)
    encoded = gzip.compress(b'{"pages": 1}')
    loose = b' {"pages" :\t1.0 , "z":"\\u00e9\xc3\xa9"}\r\n'
    big = b'{"pages": 1, "text": "' + b"x" * (3 * MIB) + b'"}'
    rows: list[tuple[str, bytes, list[str]]] = [
        ("/flat/x", blob, []),
        ("/flat/x", gzip.compress(blob), ["Content-Encoding: gzip"]),
        ("/meter/v1/pages", loose, [JSON]),
        ("/meter/v1/pages", encoded, [JSON, "Content-Encoding: gzip"]),
        ("/meter/v1/pages", big, [JSON]),
    ]

    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            for target, body, more in rows:
                await ask(rig, request(target, body, *more))
                pieces = b"%x;ext=1\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body)
                if b"\r\n0\r\n" not in pieces[:-1]:
                    raise AssertionError
                head = head_only(target, *more, "Transfer-Encoding: chunked")
                assert (await ask(rig, head + pieces, "POST")).status == 200
            sent = [body for _, body, _ in rows for _ in (1, 2)]
            assert [got.body for got in upstream.requests] == sent
            for got, (_, body, more) in zip(upstream.requests[::2], rows, strict=True):
                assert got.values(b"content-length") == [str(len(body)).encode()]
                assert got.values(b"content-type") == [b"application/json"] * (JSON in more)
            streamed = [got.values(b"transfer-encoding") for got in upstream.requests[1::2]]
            assert streamed == [[b"chunked"], [b"chunked"], [], [], []]

    asyncio.run(story())


def test_an_upload_flows_while_it_is_sent(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream), calling(rig) as caller:

            def come(size: int) -> bool:
                return [len(got.body) for got in upstream.requests] == [size]

            await caller.send(head_only("/flat/upload", "Transfer-Encoding: chunked"))
            for size in range(1, 6):
                await caller.send(b"1\r\n%d\r\n" % size)
                await rig.until(partial(come, size))
            await caller.send(b"0\r\n\r\n")
            assert (await caller.answer()).status == 200
            assert upstream.requests[0].body == b"12345"

    asyncio.run(story())


async def plateau(progress: Callable[[], int]) -> int:
    """Wait until something no longer grows."""
    seen, still = -1, 0
    while still < 20:
        await asyncio.sleep(0.01)
        still = still + 1 if progress() == seen else 0
        seen = progress()
    return seen


HUGE = 96 * MIB
SWALLOWED = 32 * MIB
"""More than the kernel's buffers of two connections, less than all."""


def test_an_upstream_that_does_not_read_slows_the_caller_down(tmp_path: Path) -> None:
    async def story() -> None:
        read_on = asyncio.Event()
        total = 0

        async def script(peer: Peer) -> None:
            nonlocal total
            await peer.head()
            await read_on.wait()
            while total < HUGE:
                total += len(await peer.reader.read(MIB))
            await peer.send(OK)
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, _), calling(rig) as caller:
            await caller.send(head_only("/flat/upload", f"Content-Length: {HUGE}"))
            sent = 0

            async def upload() -> None:
                nonlocal sent
                while sent < HUGE:
                    await caller.send(bytes(MIB))
                    sent += MIB

            uploading = asyncio.create_task(upload())
            assert await plateau(lambda: sent) < SWALLOWED
            read_on.set()
            await uploading
            assert (await caller.answer()).status == 200
            assert total == HUGE

    asyncio.run(story())


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"200 OK", b"200 ", b"200", b"299 Own Words", b"404 Not Here", b"500 Gr\xc3\xbc\xc3\x9fe",
     b"503 caf\xe9", b"999 Whatever"],
)  # fmt: skip
def test_status_and_reason_come_back(tmp_path: Path, line: bytes) -> None:
    async def story() -> None:
        answer = b"HTTP/1.1 " + line + b"\r\nContent-Length: 2\r\n\r\nok"
        async with fronting(tmp_path, answering(answer)) as (rig, _):
            got = await ask(rig, request("/flat/x"))
            assert got.head.partition(b"\r\n")[0].strip() == b"HTTP/1.1 " + line.strip()
            assert (got.body, got.whole) == (b"ok", True)

    asyncio.run(story())


def test_headers_come_back_in_order_with_every_duplicate(tmp_path: Path) -> None:
    pairs: Headers = [
        (b"Server", b"theirs/1.0"),
        (b"Date", b"Tue, 15 Nov 1994 08:12:31 GMT"),
        (b"Set-Cookie", b"a=1; Path=/"),
        (b"X-Request-Id", b"their-own"),
        (b"Set-Cookie", b"b=2, 3"),
        (b"x-twice", b"1"),
        (b"X-Twice", b"2"),
        (b"Content-Disposition", b'attachment; filename="caf\xe9.pdf"'),
        (b"X-Name", "Zoë".encode()),
        (b"X-Empty", b""),
        (b"Content-Type", b"text/odd"),
        (b"Retry-After", b"7"),
        (b"Content-Length", b"2"),
    ]
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    hop = b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n"

    async def story() -> None:
        async with fronting(tmp_path, answering(head + hop + b"\r\nok")) as (rig, _):
            got = await ask(rig, request("/flat/x"))
            assert got.headers == pairs

    asyncio.run(story())


@pytest.mark.parametrize("name", ["Content-Length ", "Content-Length  ", "Connection "])
def test_no_header_with_a_space_before_its_colon_comes_back(tmp_path: Path, name: str) -> None:
    """Readers differ in what they take for its name, and so in where the answer ends."""

    async def story() -> None:
        answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n" + name.encode() + b": 2\r\n\r\nok"
        async with fronting(tmp_path, then_close(answer)) as (rig, _):
            got = await ask(rig, request("/flat/x"))
            assert (got.body, got.whole) == (b"ok", True)
            names = [key for key, _ in got.headers]
            assert names == [b"X-A", b"Transfer-Encoding", b"Date"]

    asyncio.run(story())


def test_nothing_is_added_to_an_answer_but_its_date(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _):
            got = await ask(rig, request("/flat/x"))
            assert [name.lower() for name, _ in got.headers] == [b"content-length", b"date"]

    asyncio.run(story())


@pytest.mark.parametrize("where", ["/flat/x", "/meter/v1/pages"])
def test_encoded_answers_stay_encoded(tmp_path: Path, where: str) -> None:
    packed = gzip.compress(b'{"used": 1}' + b" " * 5000)

    async def story() -> None:
        answer = http("200 OK", packed, "Content-Encoding: gzip", "Vary: Accept-Encoding")
        async with fronting(tmp_path, answering(answer)) as (rig, _):
            got = await ask(rig, request(where, b'{"pages": 1}', "Accept-Encoding: gzip"))
            assert got.body == packed
            assert got.values(b"content-encoding") == [b"gzip"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (http("200 OK", b""), b""),
        (chunked(b"ab", b"c"), b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
        (http("200 OK", os.urandom(100_000)), None),
    ],
    ids=["empty", "chunks", "to the close", "HTTP/1.0", "binary"],
)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_bodies_come_back_whole(
    tmp_path: Path, answer: bytes, body: bytes | None, version: str
) -> None:
    async def story() -> None:
        async with fronting(tmp_path, then_close(answer)) as (rig, _):
            got = await ask(rig, request("/flat/x", version=version))
            wanted = answer.partition(b"\r\n\r\n")[2] if body is None else body
            assert (got.body, got.whole) == (wanted, True)
            if version == "HTTP/1.0":
                assert got.values(b"transfer-encoding") == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", http("200 OK", length=12345)),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'),
        ("GET", http("304 Not Modified", length=12345)),
    ],
)
def test_answers_without_a_body_keep_the_connection(
    tmp_path: Path, method: str, answer: bytes
) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(answer, answer, OK)) as (rig, upstream):
            async with calling(rig) as caller:
                for _ in range(2):
                    await caller.send(request("/flat/x", method=method))
                    got = await caller.answer(method)
                    assert got.status == int(answer[9:12])
                    if b"12345" in answer:
                        assert got.values(b"content-length") == [b"12345"]
                await caller.send(request("/flat/x"))
                assert (await caller.answer()).body == b"ok"
            assert upstream.connections == 1

    asyncio.run(story())


def test_a_stream_flows_event_by_event(tmp_path: Path) -> None:
    async def story() -> None:
        next_one = asyncio.Queue[None]()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(chunked(headers=f"{EVENTS}\r\n", end=False))
            for number in range(5):
                await next_one.get()
                [event] = events({"text": number})
                await peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            await peer.send(b"0\r\n\r\n")
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, _), calling(rig) as caller:
            await caller.send(request("/talk/v1/talk", b'{"input":1,"max":1,"stream":true}'))
            await caller.head()
            for number in range(5):
                next_one.put_nowait(None)
                [event] = events({"text": number})
                assert await caller.reader.readuntil(b"\n\n\r\n") == b"%x\r\n%b\r\n" % (
                    len(event),
                    event,
                )
            assert await caller.reader.readexactly(5) == b"0\r\n\r\n"

    asyncio.run(story())


def test_the_usage_that_only_we_asked_for_is_taken_out_again(tmp_path: Path) -> None:
    chunk = {"model": "gpt-4o-mini", "choices": [{"delta": {"content": "hi"}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    done = b"data: [DONE]\n\n"
    body = {"model": "gpt-4o-mini", "messages": [], "max_tokens": 5, "stream": True}
    asked = {"stream_options": {"include_usage": True}}

    async def story() -> None:
        sent = chunked(*events(chunk, usage), done, headers=f"{EVENTS}\r\n")
        async with fronting(tmp_path, answering(sent)) as (rig, upstream):
            for more, passed in ((dict[str, Any](), [chunk]), (asked, [chunk, usage])):
                call = request("/llm/v1/chat/completions", json.dumps(body | more).encode())
                got = await ask(rig, call)
                assert got.body == b"".join(events(*passed)) + done
                assert json.loads(upstream.requests[-1].body) == body | asked
            assert [call.rule for call in rig.calls] == ["actual", "actual"]

    asyncio.run(story())


def test_an_error_keeps_its_length_though_we_asked_for_usage(tmp_path: Path) -> None:
    body = {"model": "gpt-4o-mini", "messages": [], "max_tokens": 5, "stream": True}

    async def story() -> None:
        refused = http("400 Bad Request", b'{"error": {}}', JSON)
        async with fronting(tmp_path, answering(refused)) as (rig, _):
            got = await ask(rig, request("/llm/v1/chat/completions", json.dumps(body).encode()))
            assert (got.body, got.values(b"content-length")) == (b'{"error": {}}', [b"13"])

    asyncio.run(story())


def test_a_caller_that_does_not_read_slows_the_upstream_down(tmp_path: Path) -> None:
    async def story() -> None:
        sent = 0

        async def script(peer: Peer) -> None:
            nonlocal sent
            await peer.request()
            await peer.send(http("200 OK", length=HUGE))
            while sent < HUGE:
                await peer.send(bytes(MIB))
                sent += MIB
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, _), calling(rig) as caller:
            await caller.send(request("/flat/download"))
            assert await plateau(lambda: sent) < SWALLOWED
            got = await caller.answer()
            assert (len(got.body), got.whole) == (HUGE, True)

    asyncio.run(story())


# -- connections -----------------------------------------------------------------------------------


def test_connections_are_kept_on_both_sides(tmp_path: Path) -> None:
    async def story() -> None:
        answers = answering(OK, chunked(b"ok"), OK, http("404 No"), OK)
        async with fronting(tmp_path, answers) as (rig, upstream), calling(rig) as caller:
            for _ in range(5):
                await caller.send(request("/flat/x", b"body"))
                await caller.answer()
            assert upstream.connections == 1
            assert len(upstream.requests) == 5

    asyncio.run(story())


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def story() -> None:
        answers = answering(*(http("200 OK", b"%d" % number) for number in range(5)))
        async with fronting(tmp_path, answers) as (rig, upstream), calling(rig) as caller:
            await caller.send(b"".join(request(f"/flat/{number}") for number in range(5)))
            got = [(await caller.answer()).body for _ in range(5)]
            assert got == [b"0", b"1", b"2", b"3", b"4"]
            assert [seen.target for seen in upstream.requests] == [b"/%d" % n for n in range(5)]

    asyncio.run(story())


@pytest.mark.parametrize("close", ["Connection: close", "HTTP/1.0"])
def test_an_upstream_that_closes_is_connected_to_anew(tmp_path: Path, close: str) -> None:
    async def story() -> None:
        answer = http("200 OK", b"ok", *([close] if ":" in close else []))
        if close == "HTTP/1.0":
            answer = answer.replace(b"HTTP/1.1", b"HTTP/1.0")
        async with fronting(tmp_path, then_close(answer)) as (rig, upstream):
            async with calling(rig) as caller:
                for _ in range(3):
                    await caller.send(request("/flat/x"))
                    assert (await caller.answer()).body == b"ok"
            assert upstream.connections == 3

    asyncio.run(story())


UNASKED = {
    "an answer": http("200 OK", b"stale"),
    "half an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
    "a byte": b"H",
}


@pytest.mark.parametrize("unasked", UNASKED)
def test_what_comes_unasked_between_two_calls_is_no_answer(tmp_path: Path, unasked: str) -> None:
    async def story() -> None:
        at_rest = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(http("200 OK", b"ok"))
            await at_rest.wait()
            await peer.send(UNASKED[unasked])
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, upstream), calling(rig) as caller:
            await caller.send(request("/flat/x"))
            assert (await caller.answer()).body == b"ok"
            await rig.until(lambda: _idle(rig))
            at_rest.set()
            await rig.until(lambda: not _idle(rig)[0].is_clean)
            await caller.send(request("/flat/x"))
            assert (await caller.answer()).body == b"ok"
            assert upstream.connections == 2
            assert len(upstream.requests) == 2

    asyncio.run(story())


def _idle(rig: Rig) -> list[Any]:
    """The connections to the upstream that wait for their next call."""
    pool = rig.app._switchboard._outgoing["flat"]._connector._conns
    return [wire for kept in pool.values() for wire, _ in kept]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST"])
@pytest.mark.parametrize("way", ["FIN", "RST"])
def test_nothing_is_ever_sent_twice(tmp_path: Path, method: str, way: str) -> None:
    """On a kept connection that turns out to be dead the library would send some methods again,
    and each attempt may be billed."""

    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.request()
            if way == "RST":
                peer.reset()

        async with fronting(tmp_path, script) as (rig, upstream), calling(rig) as caller:
            await caller.send(request("/flat/first"))
            await caller.answer()
            await caller.send(request("/flat/second", method=method))
            assert (await caller.answer(method)).status == 502
            assert [got.target for got in upstream.requests] == [b"/first", b"/second"]
            assert upstream.connections == 1
            assert await spent(rig) == 2 * FLAT

    asyncio.run(story())


@pytest.mark.parametrize("upload", [b"", b"x" * 1000], ids=["head only", "half sent"])
def test_an_answer_that_comes_before_the_body_ends_the_upload(
    tmp_path: Path, upload: bytes
) -> None:
    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(http("413 Too Large", b"enough"))
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, upstream), calling(rig) as caller:
            await caller.send(head_only("/flat/upload", "Content-Length: 100000") + upload)
            got = await caller.answer()
            assert (got.status, got.body) == (413, b"enough")
            assert (await ended(rig), await spent(rig)) == ("not_billed", 0)
            await rig.until(lambda: upstream.open == 0)
            await caller.closed()

    asyncio.run(story())


def test_tls_to_an_upstream_of_ones_own_authority(tmp_path: Path) -> None:
    async def story() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
        text = policy(f"ca: {CERTIFICATE}")
        server = fronting(
            tmp_path, answering(OK), text, ssl=context, url="https://localhost:{port}"
        )
        async with server as (rig, upstream):
            assert (await ask(rig, request("/flat/x", b"over TLS"))).body == b"ok"
            assert upstream.requests[0].body == b"over TLS"

    asyncio.run(story())


# -- Expect: 100-continue --------------------------------------------------------------------------


EXPECT = "Expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def _expecting(rig: Rig, target: str, body: bytes) -> tuple[list[bytes], int]:
    async with calling(rig) as caller:
        await caller.send(head_only(target, EXPECT, f"Content-Length: {len(body)}"))
        assert await caller.head() == CONTINUE
        await caller.send(body)
        got = await caller.answer()
        assert got.values(b"connection") == [], "the connection could have been kept"
        return got.interim, got.status


@pytest.mark.parametrize("target", ["/flat/upload", "/meter/v1/pages"])
def test_100_continue_is_ours_to_send_and_is_sent_once(tmp_path: Path, target: str) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            assert await _expecting(rig, target, b'{"pages": 1}') == ([], 200)
            assert upstream.requests[0].values(b"expect") == []
            assert upstream.requests[0].body == b'{"pages": 1}'

    asyncio.run(story())


def test_a_streamed_body_is_asked_for_only_when_its_cost_is_held(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _), calling(rig) as caller:
            await caller.send(head_only("/flat/upload", EXPECT, "Content-Length: 2"))
            assert await caller.head() == CONTINUE
            assert [leg.amount for hold in await rig.holds() for leg in hold.legs] == [FLAT]
            await caller.send(b"ab")
            assert (await caller.answer()).status == 200

    asyncio.run(story())


def test_what_is_refused_is_refused_before_its_body_is_sent(tmp_path: Path) -> None:
    rows: list[tuple[str, str | None, int, int]] = [
        ("/meter/v1/pages", "wrong-key-000", 9, 401),
        ("/meter/v1/pages", None, 9, 401),
        ("/meter/v1/pages", "test-key-0000", 10**7, 413),
        ("/flat/upload", "wrong-key-000", 9, 401),
        ("/flat/upload", "test-key-0000", 9, 402),
        ("/nowhere/x", "test-key-0000", 9, 404),
        ("/meter/v2/none", "test-key-0000", 9, 403),
    ]

    async def refused(rig: Rig, target: str, key: str | None, length: int) -> int:
        async with calling(rig) as caller:
            await caller.send(head_only(target, EXPECT, f"Content-Length: {length}", key=key))
            got = await caller.answer()
            assert got.interim == []
            assert got.values(b"connection") == [b"close"]
            assert await caller.closed() == b""
            return got.status

    async def story() -> None:
        text = policy("", "budgets: {one: {limit: 0.004 USD}}\n")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            got = await asyncio.gather(*(refused(rig, *row[:3]) for row in rows))
            assert got == [row[3] for row in rows]
            assert upstream.connections == 0

    asyncio.run(story())


def test_an_upstream_out_of_reach_is_told_before_the_body_is_sent(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK), url="http://127.0.0.1:1") as (rig, _):
            async with calling(rig) as caller:
                await caller.send(head_only("/flat/upload", EXPECT, "Content-Length: 9"))
                got = await caller.answer()
                assert (got.status, got.interim) == (502, [])
                assert await caller.closed() == b""
            assert (await ended(rig), await spent(rig)) == ("not_sent", 0)

    asyncio.run(story())


def test_a_caller_of_http_1_0_is_never_told_to_continue(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _):
            call = request("/meter/v1/pages", b'{"pages": 1}', EXPECT, version="HTTP/1.0")
            got = await ask(rig, call)
            assert (got.status, got.interim) == (200, [])

    asyncio.run(story())


# -- Accept-Encoding on metered routes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "forwarded"),
    [
        ([], b"identity"),
        (["Accept-Encoding: br, gzip"], b"gzip"),
        (["Accept-Encoding: br;q=1.0, gzip;q=0.8, deflate;q=0.1"], b"gzip;q=0.8, deflate;q=0.1"),
        (["Accept-Encoding: GZIP"], b"GZIP"),
        (["Accept-Encoding: gzip;q=0, identity"], b"gzip;q=0, identity"),
        (["Accept-Encoding: br, zstd, *"], b"identity"),
        (["Accept-Encoding: not-gzip-at-all"], b"identity"),
    ],
)
def test_on_metered_routes_answers_are_asked_for_in_what_we_can_read(
    tmp_path: Path, lines: list[str], forwarded: bytes
) -> None:
    async def story() -> None:
        answer = http("200 OK", b'{"used": 1}')
        async with fronting(tmp_path, answering(answer)) as (rig, upstream):
            await ask(rig, request("/meter/v1/pages", b'{"pages": 1}', *lines))
            assert upstream.requests[0].values(b"accept-encoding") == [forwarded]
            stream = b'{"pages": 1, "stream": true}'
            await ask(rig, request("/meter/v1/pages", stream, *lines))
            assert upstream.requests[1].values(b"accept-encoding") == [b"identity"]
            assert await spent(rig) == 2 * PAGE

    asyncio.run(story())
