"""The outcome table of `core/settlement.py`, row by row, through the whole proxy."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Rig
from raw_upstream import (
    EVENTS,
    FLAT,
    JSON,
    PAGE,
    Answer,
    Peer,
    Script,
    answering,
    ask,
    calling,
    chunked,
    ended,
    event_stream,
    events,
    fronting,
    head_only,
    http,
    narrow,
    policy,
    request,
    spent,
    then_close,
    then_hang,
    then_reset,
)

from budget_proxy.core.events import UpstreamFailed

HELD, USED = 10, 3
"""Pages of the hold, and those that an answer tells."""
TOLD = json.dumps({"used": USED}).encode()
TURNS = 10_000
MOVED = http("302 Found", b"", "Location: /elsewhere")
UNTOLD = b'{"text": "nothing about usage"}'
CERTIFICATE = Path(__file__).with_name("untrusted.pem")


def pages(*headers: str, **more: object) -> bytes:
    """A call whose hold is ten pages."""
    body = json.dumps({"pages": HELD} | more).encode()
    return request("/meter/v1/pages", body, JSON, *headers)


def stream() -> bytes:
    return pages(stream=True)


def flat() -> bytes:
    return request("/flat/anything")


def head_of(pairs: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n{pairs}\r\n\r\n".encode()


async def answer_before_body(peer: Peer) -> None:
    """Answer as soon as the head is there, and read the body afterwards."""
    received = await peer.head()
    await peer.send(http("200 OK", TOLD, JSON))
    await peer.body(received)
    await peer.gone()


async def endless_headers(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while not peer.writer.is_closing():
        await peer.send(b"X-More: " + b"m" * 1000 + b"\r\n")


async def endless_header(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nX-More: ")
    while not peer.writer.is_closing():
        await peer.send(b"m" * 1000)


async def endless_interim(peer: Peer) -> None:
    await peer.request()
    while not peer.writer.is_closing():
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


async def trickle(peer: Peer) -> None:
    """An answer that never stops."""
    await peer.request()
    await peer.send(head_of("Transfer-Encoding: chunked"))
    while not peer.writer.is_closing():
        await peer.send(b"1\r\nx\r\n")
        await asyncio.sleep(0.01)


async def flood(peer: Peer) -> None:
    """An answer that never stops and never pauses."""
    await peer.request()
    await peer.send(head_of("Transfer-Encoding: chunked"))
    while not peer.writer.is_closing():
        await peer.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")


@dataclass(frozen=True)
class Row:
    """What the upstream does with a call, and what comes of it."""

    id: str
    script: Script
    rule: str
    charged: int
    status: int | None = 200
    """None: the connection is cut, never ended."""
    call: Callable[[], bytes] = pages
    more: str = ""
    """Settings of the upstream."""


ALL, SOME = HELD * PAGE, USED * PAGE
SHORT = "timeouts: {first_byte: 300ms, idle: 300ms, total: 30s}"
TOTAL = "timeouts: {total: 300ms}"
ROWS = [
    # the answer told its usage
    Row("usage told", answering(http(body=TOLD)), "actual", SOME),
    Row("usage of nothing", answering(http(body=b'{"used": 0}')), "actual", 0),
    Row("usage above the hold", answering(http(body=b'{"used": 12}')), "actual", 12 * PAGE),
    Row("in chunks", answering(chunked(TOLD[:5], TOLD[5:])), "actual", SOME),
    Row("up to the close", then_close(head_of(JSON) + TOLD), "actual", SOME),
    Row(
        "length, space before its colon",
        then_hang(head_of(f"Content-Length : {len(TOLD)}") + TOLD),
        "actual",
        SOME,
    ),
    Row(
        "chunks, space before the colon",
        then_hang(chunked(TOLD).replace(b"Encoding:", b"Encoding :")),
        "actual",
        SOME,
    ),
    Row(
        "gzip",
        answering(http("200 OK", gzip.compress(TOLD), "Content-Encoding: gzip")),
        "actual",
        SOME,
    ),
    Row(
        "deflate",
        answering(http("200 OK", zlib.compress(TOLD), "Content-Encoding: deflate")),
        "actual",
        SOME,
    ),
    Row(
        "interim answers first",
        then_close(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", http(body=TOLD)),
        "actual",
        SOME,
    ),
    Row("before the body is read", answer_before_body, "actual", SOME),
    Row("failed, but told usage", answering(http("400 Bad Request", TOLD)), "actual", SOME, 400),
    Row("5xx, but told usage", answering(http("503 Busy", TOLD)), "actual", SOME, 503),
    # an answer to a call whose price is in the request
    Row("constant price", answering(http(body=b"x")), "actual", FLAT, call=flat),
    Row("constant, redirect", answering(MOVED), "actual", FLAT, 302, flat),
    Row("constant, 500", answering(http("500 Oops")), "actual", FLAT, 500, flat),
    Row("constant, 204", answering(b"HTTP/1.1 204 No\r\n\r\n"), "actual", FLAT, 204, flat),
    Row("constant, 304", answering(b"HTTP/1.1 304 Same\r\n\r\n"), "actual", FLAT, 304, flat),
    Row(
        "constant, HEAD",
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        "actual",
        FLAT,
        call=lambda: request("/flat/x", method="HEAD"),
    ),
    Row("constant, br", answering(http("200 OK", b"x", "Content-Encoding: br")), "actual", FLAT,
        call=flat),
    # a status that is not billed
    Row("4xx", answering(http("422 No", UNTOLD)), "not_billed", 0, 422),
    Row("listed 5xx", answering(http("503 Busy", UNTOLD)), "not_billed", 0, 503),
    Row("constant, 404", answering(http("404 No")), "not_billed", 0, 404, flat),
    Row("4xx, cut", then_close(http("429 Slow", b"{", length=9)), "not_billed", 0, None),
    # a whole answer without usage
    Row("5xx", answering(http("500 Oops", UNTOLD)), "hold_no_usage", ALL, 500),
    Row("no usage", answering(http(body=UNTOLD)), "hold_no_usage", ALL),
    Row("no body", answering(http()), "hold_no_usage", ALL),
    Row("not JSON", answering(http(body=b"<html>")), "hold_no_usage", ALL),
    Row("usage is text", answering(http(body=b'{"used": "3"}')), "hold_no_usage", ALL),
    Row("zero beside a total", answering(http(body=b'{"used": 0, "total_tokens": 3}')),
        "hold_no_usage", ALL),
    Row("usage is negative", answering(http(body=b'{"used": -3}')), "hold_no_usage", ALL),
    Row("204", answering(b"HTTP/1.1 204 No\r\n\r\n"), "hold_no_usage", ALL, 204),
    Row("304", answering(b"HTTP/1.1 304 Same\r\n\r\n"), "hold_no_usage", ALL, 304),
    Row(
        "br",
        answering(http("200 OK", TOLD, "Content-Encoding: br")),
        "hold_no_usage",
        ALL,
    ),
    Row(
        "gzip that is none",
        answering(http("200 OK", TOLD, "Content-Encoding: gzip")),
        "hold_no_usage",
        ALL,
    ),
    # no answer
    Row("closed", then_close(), "hold_no_answer", ALL, 502),
    Row("reset", then_reset(), "hold_no_answer", ALL, 502),
    Row("constant, closed", then_close(), "hold_no_answer", FLAT, 502, flat),
    Row("half a head", then_close(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n"), "hold_no_answer", ALL, 502),
    Row("silence", then_hang(), "hold_no_answer", ALL, 504, more=SHORT),
    Row("silence, total", then_hang(), "hold_no_answer", ALL, 504, more=TOTAL),
    Row("interim only", endless_interim, "hold_no_answer", ALL, 504, more=SHORT),
    Row("not HTTP", then_close(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "hold_no_answer", ALL, 502),
    Row("HTTP/0.9", then_close(b"just text\n"), "hold_no_answer", ALL, 502),
    Row("bad status", then_close(b"HTTP/1.1 2xx OK\r\n\r\n"), "hold_no_answer", ALL, 502),
    Row(
        "two lengths",
        then_close(http("200 OK", TOLD, "Content-Length: 99")),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "length and chunks",
        then_close(chunked(TOLD, headers="Content-Length: 5\r\n")),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "length of many digits",
        then_hang(head_of(f"Content-Length: {len(TOLD):05000}") + TOLD),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "length of 2**64 - 1",
        then_hang(head_of("Content-Length: 18446744073709551615") + TOLD),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "transfer coding gzip",
        then_close(head_of("Transfer-Encoding: gzip") + TOLD),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "chunks of gzip",
        then_close(chunked(TOLD).replace(b": chunked", b": gzip, chunked")),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row(
        "chunks of gzip, in two headers",
        then_close(chunked(TOLD, headers="Transfer-Encoding: gzip\r\n")),
        "hold_no_answer",
        ALL,
        502,
    ),
    Row("endless headers", endless_headers, "hold_no_answer", ALL, 502),
    Row("endless header", endless_header, "hold_no_answer", ALL, 502),
    Row(
        "101 unasked",
        then_hang(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        "hold_no_answer",
        ALL,
        502,
    ),
    # a cut answer
    Row("cut", then_close(http(body=TOLD, length=99)), "hold_cut", ALL, None),
    Row("cut by reset", then_reset(http(body=TOLD, length=99)), "hold_cut", ALL, None),
    Row("cut chunk", then_close(chunked(TOLD) [:-12]), "hold_cut", ALL, None),
    Row("no last chunk", then_close(chunked(TOLD, end=False)), "hold_cut", ALL, None),
    Row("reset, no length", then_reset(head_of(JSON), TOLD), "hold_cut", ALL, None),
    Row("reset, coding identity", then_reset(head_of("Transfer-Encoding: identity"), TOLD),
        "hold_cut", ALL, None),
    Row("stalled", then_hang(http(body=TOLD, length=99)), "hold_cut", ALL, None, more=SHORT),
    Row("for ever", trickle, "hold_cut", ALL, None, more=TOTAL),
    Row("for ever at full speed", flood, "hold_cut", ALL, None, more=TOTAL),
    # streams
    Row(
        "stream",
        answering(event_stream({"text": "a"}, {"used": 1}, {"used": 3, "done": True})),
        "actual",
        SOME,
        call=stream,
    ),
    Row(
        "stream cut after its usage",
        then_close(event_stream({"used": 3, "done": True}, end=False)),
        "actual",
        SOME,
        None,
        stream,
    ),
    Row(
        "stream cut before its usage",
        then_close(event_stream({"text": "a"}, {"used": 1}, end=False)),
        "hold_cut",
        ALL,
        None,
        stream,
    ),
    Row(
        "stream stalled",
        then_hang(event_stream({"used": 1}, end=False)),
        "hold_cut",
        ALL,
        None,
        stream,
        SHORT,
    ),
    Row(
        "stream without its last event",
        answering(event_stream({"text": "a"}, {"used": 1})),
        "hold_no_usage",
        ALL,
        call=stream,
    ),
    Row("stream of nothing", answering(event_stream()), "hold_no_usage", ALL, call=stream),
    Row(
        "stream, encoded",
        answering(
            chunked(
                gzip.compress(b"".join(events({"used": 3, "done": True}))),
                headers=f"{EVENTS}\r\nContent-Encoding: gzip\r\n",
            )
        ),
        "hold_no_usage",
        ALL,
        call=stream,
    ),
    Row("asked for a stream, got an error", answering(http("400 No", UNTOLD)), "not_billed", 0,
        400, stream),
    Row("asked for a stream, got one answer", answering(http("200 OK", TOLD, JSON)), "actual",
        SOME, call=stream),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id.replace(" ", "_"))
def test_a_call_ends_as_the_outcome_table_says(tmp_path: Path, row: Row) -> None:
    async def story() -> None:
        async with fronting(tmp_path, row.script, policy(row.more)) as (rig, upstream):
            answer = await ask(rig, row.call())
            await ended(rig)
            if row.status is None:
                assert not answer.whole, "a cut answer ended as if it were whole"
            else:
                assert (answer.status, answer.whole) == (row.status, True)
            if row.status in (502, 504):
                _is_ours(answer, rig)
            assert (rig.calls[0].rule, await spent(rig)) == (row.rule, row.charged)
            entries = await rig.entries()
            assert [entry.rule for entry in entries] == [row.rule]
            assert rig.calls[0].status == answer.status
            assert upstream.connections == 1
            assert len(upstream.requests) == 1

    asyncio.run(story())


def _is_ours(answer: Answer, rig: Rig) -> None:
    """What the upstream did is told in our own words."""
    timed_out = answer.status == 504
    reason = "upstream_timeout" if timed_out else "upstream_broken"
    assert answer.values(b"x-budget-proxy-reason") == [reason.encode()]
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert "its hold is charged" in problem["detail"]
    assert rig.calls[0].outcome == "upstream_error"


async def refuse_tls(peer: Peer) -> None:
    await peer.reader.read(1)
    await peer.send(b"HTTP/1.1 400 This is no TLS\r\n\r\n")


async def hold_still(peer: Peer) -> None:
    await peer.gone()


async def at_once_closed(peer: Peer) -> None:
    await peer.reader.read(1)


def _untrusted() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


@dataclass(frozen=True)
class Unsent:
    """A way not to get a connection."""

    id: str
    kind: str
    url: str = "https://localhost:{port}"
    script: Script = hold_still
    ssl: Callable[[], ssl.SSLContext | None] = lambda: None
    more: str = ""


UNSENT = [
    Unsent("refused", "connect", "http://127.0.0.1:1"),
    Unsent("no such host", "dns", "http://no-such-host.invalid"),
    Unsent("not TLS", "tls", script=refuse_tls),
    Unsent("closed in the handshake", "connect", script=at_once_closed),
    Unsent("no handshake", "connect_timeout"),
    Unsent("a certificate nobody trusts", "tls", ssl=_untrusted),
    Unsent(
        "a certificate for another name",
        "tls",
        "https://127.0.0.1:{port}",
        ssl=_untrusted,
        more=f"ca: {CERTIFICATE}",
    ),
]


@pytest.mark.parametrize("row", UNSENT, ids=lambda row: row.id.replace(" ", "_"))
def test_a_call_that_was_surely_not_sent_costs_nothing(tmp_path: Path, row: Unsent) -> None:
    async def story() -> None:
        text = policy("timeouts: {connect: 1s}")
        server = fronting(tmp_path, row.script, text, ssl=row.ssl(), url=row.url)
        async with server as (rig, upstream):
            answer = await ask(rig, pages())
            assert (answer.status, answer.whole) == (502, True)
            assert answer.values(b"x-budget-proxy-reason") == [b"upstream_unreachable"]
            assert b"nothing was charged" in answer.body
            assert (await ended(rig), await spent(rig)) == ("not_sent", 0)
            failures = [event.kind for event in rig.events if isinstance(event, UpstreamFailed)]
            assert failures == [row.kind]
            assert [entry.kind for entry in await rig.entries()] == ["released"]
            assert upstream.requests == []

    asyncio.run(story())


def test_a_body_that_turns_into_garbage_is_cut(tmp_path: Path) -> None:
    async def story() -> None:
        begun = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(chunked(TOLD, end=False))
            await begun.wait()
            await peer.send(b"no size\r\n")
            await peer.gone()

        async with fronting(tmp_path, script) as (rig, _), calling(rig) as caller:
            await caller.send(pages())
            head = await caller.head()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            begun.set()
            assert not (await caller.closed()).endswith(b"0\r\n\r\n")
            assert (await ended(rig), await spent(rig)) == ("hold_cut", ALL)

    asyncio.run(story())


def test_a_caller_that_reads_slowly_cannot_outlast_the_total(tmp_path: Path) -> None:
    async def story() -> None:
        more = policy("timeouts: {total: 300ms}")
        async with fronting(tmp_path, flood, more) as (rig, _), calling(rig, 16384) as caller:
            await narrow(rig)
            await caller.send(pages())
            for _ in range(TURNS):
                if not await caller.reader.read(16384):
                    break
                await asyncio.sleep(0.001)
            assert (await ended(rig), await spent(rig)) == ("hold_cut", ALL)

    asyncio.run(story())


def test_the_time_to_the_first_byte_runs_from_the_end_of_the_request(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy("timeouts: {first_byte: 1s, total: 30s}")
        async with fronting(tmp_path, answering(http(body=b"x")), text) as (rig, _):
            async with calling(rig) as caller:
                await caller.send(head_only("/flat/upload", "Content-Length: 2"))
                await caller.send(b"a")
                await asyncio.sleep(1.2)
                await caller.send(b"b")
                assert (await caller.answer()).status == 200
            assert await ended(rig) == "actual"

    asyncio.run(story())


def test_a_streamed_upload_that_gets_no_answer_times_out(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, then_hang(), policy(SHORT)) as (rig, _):
            answer = await ask(rig, request("/flat/upload", b"ab"))
            assert answer.status == 504
            assert (await ended(rig), await spent(rig)) == ("hold_no_answer", FLAT)

    asyncio.run(story())


def test_an_answer_cut_for_a_caller_of_http_1_0_does_not_look_whole(tmp_path: Path) -> None:
    """Without a length, the end of the connection is the end of the answer: it must be no end."""

    async def story() -> None:
        script = then_close(chunked(TOLD, end=False))
        async with fronting(tmp_path, script) as (rig, _), calling(rig) as caller:
            body = json.dumps({"pages": HELD}).encode()
            await caller.send(request("/meter/v1/pages", body, version="HTTP/1.0"))
            with pytest.raises(ConnectionResetError):
                await caller.reader.read()
            assert await ended(rig) == "hold_cut"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (http("200 OK", b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'), "declared"),
        (http("200 OK", UNTOLD), "hold_no_usage"),
    ],
    ids=["told", "untold"],
)
def test_what_has_no_price_is_charged_as_declared(tmp_path: Path, answer: bytes, rule: str) -> None:
    async def story() -> None:
        text = policy("on_unpriced: {charge: 0.10 USD}")
        body = json.dumps({"model": "unheard-of", "messages": [], "max_tokens": 1}).encode()
        async with fronting(tmp_path, answering(answer), text) as (rig, _):
            assert (await ask(rig, request("/llm/v1/chat/completions", body))).status == 200
            assert (await ended(rig), await spent(rig)) == (rule, 100_000_000)

    asyncio.run(story())
