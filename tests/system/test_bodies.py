"""Bodies that decide a price: what cannot be priced is refused, and what passes is covered.

A body that two parsers read differently could be priced as one thing and billed as another.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import chat, running
from raw_upstream import (
    JSON,
    PAGE,
    Answer,
    answering,
    ask,
    fronting,
    head_only,
    http,
    policy,
    request,
    spent,
)

CHAT = "/llm/v1/chat/completions"
OK = http("200 OK", b"{}")
GOOD = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
GOOD_BYTES = json.dumps(GOOD).encode()


def having(pairs: str) -> bytes:
    """The good body with more members at its end."""
    return GOOD_BYTES[:-1] + b", " + pairs.encode() + b"}"


def without(*names: str, **more: object) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k not in names} | more).encode()


def deep(levels: int) -> bytes:
    return having('"x": ' + "[" * levels + "]" * levels)


REFUSED = {
    # not JSON
    "empty": b"",
    "space": b"   ",
    "half": GOOD_BYTES[:-1],
    "twice": GOOD_BYTES + GOOD_BYTES,
    "with a tail": GOOD_BYTES + b" x",
    "not JSON": b"model=gpt-4o-mini",
    "array": b"[" + GOOD_BYTES + b"]",
    "text": b'"model"',
    "number": b"1",
    "null": b"null",
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "UTF-16 without mark": json.dumps(GOOD).encode("utf-16-le"),
    "UTF-32": json.dumps(GOOD).encode("utf-32"),
    "BOM": b"\xef\xbb\xbf" + GOOD_BYTES,
    "latin-1": having('"x": "café"').decode().encode("latin-1"),
    "NaN": having('"temperature": NaN'),
    "Infinity": having('"temperature": -Infinity'),
    "single quotes": GOOD_BYTES.replace(b'"', b"'"),
    "comment": having('"x": 1 /* y */'),
    "last comma": GOOD_BYTES[:-1] + b",}",
    "NUL": GOOD_BYTES + b"\x00",
    "control in text": having('"x": "a\nb"'),
    "deep": deep(100_000),
    "deep and open": GOOD_BYTES[:-1] + b', "x": ' + b"[" * 100_000,
    # two readings
    "model twice": having('"model": "gpt-4o"'),
    "model twice, escaped": having('"\\u006dodel": "gpt-4o"'),
    "model in capitals": having('"Model": "gpt-4o"'),
    "model in capitals, escaped": having('"\\u004dODEL": "gpt-4o"'),
    "max_tokens twice": having('"max_tokens": 5000'),
    "max_tokens, case": having('"Max_Tokens": 5000'),
    "n twice": having('"n": 1, "n": 5'),
    "n, case": having('"n": 1, "N": 5'),
    "messages twice": having('"messages": []'),
    "stream twice": having('"stream": false, "stream": true'),
    "stream, long s": having('"stream": false, "\u017ftream": true'),
    "service_tier twice": having('"service_tier": "flex", "service_tier": "priority"'),
    "stream_options twice": having('"stream_options": {}, "stream_options": {}'),
    "usage twice": having('"stream_options": {"include_usage": true, "include_usage": false}'),
    "usage, case": having('"stream_options": {"Include_Usage": true}'),
    "usage, escaped": having(
        '"stream_options": {"include_usage": true, "include\\u005fusage": false}'
    ),
    # figures that are none
    "n huge": having('"n": 1000000000000000'),
    "n negative": having('"n": -1'),
    "n text": having('"n": "5"'),
    "n fraction": having('"n": 1.5'),
    "n true": having('"n": true'),
    "n list": having('"n": [5]'),
    "n 1e999": having('"n": 1e999'),
    "n with 5000 digits": having('"n": ' + "9" * 5000),
    "max_tokens negative": without("max_tokens", max_tokens=-1),
    "max_tokens text": without("max_tokens", max_tokens="5"),
    "max_tokens 1e999": having('"max_completion_tokens": 1e999'),
    "max_tokens object": without("max_tokens", max_tokens={}),
    "no model": without("model"),
    "model empty": without("model", model=""),
    "model number": without("model", model=5),
    "model list": without("model", model=["gpt-4o"]),
    "model with a newline": without("model", model="gpt-4o\nx"),
    "model long": without("model", model="g" * 1000),
}


def refused(answer: Answer, name: str) -> str:
    """What is wrong with an answer that should be a 400 in OpenAI's dialect; empty: nothing."""
    if answer.status != 400:
        return f"{name}: {answer.status}"
    said = json.loads(answer.body)["error"]
    wanted = {"type": "invalid_request_error", "code": "bad_request"}
    fits = said["message"] and wanted.items() <= said.items()
    return "" if fits else f"{name}: {said}"


def test_what_cannot_be_priced_is_refused_and_not_forwarded(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            wrong = [
                refused(await ask(rig, request(CHAT, body, JSON)), name)
                for name, body in REFUSED.items()
            ]
            assert [said for said in wrong if said] == []
            assert upstream.connections == 0
            assert await spent(rig) == 0
            assert await rig.entries() == []

    asyncio.run(story())


COVERED = {
    "n": having('"n": 100'),
    "n null": having('"n": null'),
    "no limit": without("max_tokens"),
    "no limit, null": without("max_tokens", max_tokens=None),
    "text full of escapes": without(messages=[{"role": "user", "content": "\\u0041" * 200}]),
    "numbers": having('"x": [1, -0.5, 1e-9, 1e308]'),
    "keys outside the price twice": having('"metadata": {"a": 1, "a": 2, "Model": 1}'),
    "a model inside": having('"metadata": {"model": "gpt-4o"}'),
    "fairly deep": deep(200),
    "stream": having('"stream": true'),
}


def test_what_passes_is_covered_by_its_hold(tmp_path: Path) -> None:
    """The upstream bills each byte of the text as a token and generates all that it may."""

    async def story() -> None:
        knobs: dict[str, Any] = {"tokens": "bytes", "output_tokens": 16_384}
        async with running(tmp_path, **knobs) as rig:

            def come(number: int) -> bool:
                return len(rig.calls) == number

            for number, (name, body) in enumerate(COVERED.items(), 1):
                headers = {"content-type": "application/json"}
                target = "/openai/v1/chat/completions"
                status, answer = await rig.post(target, None, data=body, headers=headers)
                assert status == 200, (name, answer)
                await rig.until(partial(come, number))
                call = rig.calls[-1]
                charge = (await rig.charges())[-1]["amount_nanos"]
                assert call.rule == "actual", name
                assert 0 < charge <= call.held, name
                assert call.cost == charge, name
            account = await rig.account("company")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)

    asyncio.run(story())


def test_a_wish_for_a_thousand_million_choices_is_held_for_or_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            answer = await ask(rig, request(CHAT, having('"n": 1000000000'), JSON))
            assert answer.status == 402
            assert answer.values(b"x-budget-proxy-reason") == [b"too_large"]
            assert upstream.connections == 0

    asyncio.run(story())


def test_numbers_that_go_astray_in_a_parser_are_not_taken(tmp_path: Path) -> None:
    """An inline tariff reads its figure anywhere in the JSON, the same rules hold."""
    rows = [
        "-1",
        '"5"',
        "1.5",
        "1e999",
        "NaN",
        "true",
        "[1]",
        "{}",
        "null",
        "9" * 400,
        "1e12",
        "01",
    ]

    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            for figure in rows:
                body = f'{{"pages": {figure}}}'.encode()
                answer = await ask(rig, request("/meter/v1/pages", body))
                wanted = 402 if figure == "1e12" else 400
                assert answer.status == wanted, figure
            for body in (b'{"pages": 1, "pages": 1}', b'{"pages": 1, "PAGES": 9}', b"{}", b""):
                assert (await ask(rig, request("/meter/v1/pages", body))).status == 400, body
            assert upstream.connections == 0

    asyncio.run(story())


# -- compressed ------------------------------------------------------------------------------------


def packed(body: bytes, coding: str) -> bytes:
    return gzip.compress(body) if "gzip" in coding else zlib.compress(body)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZip", " gzip "])
def test_a_compressed_body_is_priced_by_what_is_in_it_and_passed_on_as_it_is(
    tmp_path: Path, coding: str
) -> None:
    body = json.dumps(GOOD | {"messages": [{"content": "x" * 50_000}]}).encode()
    wire = packed(body, coding.lower())

    async def story() -> None:
        async with fronting(tmp_path, answering(OK), policy("max_output: 10")) as (rig, upstream):
            more = f"Content-Encoding: {coding}"
            assert (await ask(rig, request(CHAT, wire, JSON, more))).status == 200
            assert upstream.requests[0].body == wire
            assert upstream.requests[0].values(b"content-encoding") == [coding.strip().encode()]
            assert rig.calls[0].estimated["input_tokens"] >= len(body)

    asyncio.run(story())


def bomb(size: int) -> bytes:
    """A good body that grows a thousandfold."""
    return gzip.compress(without(messages="x" * size))


PACKED = gzip.compress(GOOD_BYTES)
CODED = {
    "bomb": (bomb(50_000_000), "gzip", 413),
    "bomb, deflate": (zlib.compress(b" " * 50_000_000), "deflate", 413),
    "truncated": (PACKED[:-9], "gzip", 400),
    "head only": (PACKED[:10], "gzip", 400),
    "wrong sum": (PACKED[:-8] + b"\x00" * 8, "gzip", 400),
    "a second part": (PACKED + gzip.compress(b" "), "gzip", 400),
    "a tail": (PACKED + b"{}", "gzip", 400),
    "not gzip": (GOOD_BYTES, "gzip", 400),
    "gzip in gzip": (gzip.compress(PACKED), "gzip", 400),
    "two codings": (gzip.compress(PACKED), "gzip, gzip", 400),
    "br": (GOOD_BYTES, "br", 400),
    "zstd": (GOOD_BYTES, "zstd", 400),
    "unknown": (GOOD_BYTES, "rot13", 400),
    "empty": (b"", "gzip", 400),
    "bad JSON inside": (gzip.compress(b"{"), "gzip", 400),
    "a second model inside": (gzip.compress(having('"model": "gpt-4o"')), "gzip", 400),
    "identity": (GOOD_BYTES, "identity", 200),
}


def test_compressed_bodies_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            got = {}
            for name, (body, coding, _) in CODED.items():
                data = request(CHAT, body, JSON, f"Content-Encoding: {coding}")
                got[name] = (await ask(rig, data)).status
            assert got == {name: status for name, (_, _, status) in CODED.items()}
            assert [seen.body for seen in upstream.requests] == [GOOD_BYTES]

    asyncio.run(story())


def test_what_has_no_price_in_its_body_may_be_anything(tmp_path: Path) -> None:
    """A route with a constant price never looks into the body."""

    async def story() -> None:
        bodies = [b"{", b"\xff\xfe", PACKED[:-9], b"x" * 9_000_000]
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            for body in bodies:
                data = request("/flat/x", body, "Content-Encoding: gzip", JSON)
                assert (await ask(rig, data)).status == 200
            assert [seen.body for seen in upstream.requests] == bodies

    asyncio.run(story())


# -- routes chosen by their body -------------------------------------------------------------------


CHOOSY = """
      - name: cheap
        match: {method: POST, path: /v1/pages, where: [{json: mode, among: [cheap]}]}
        quantities: {pages: {before: {json: pages}, after: {json: used}}}
        price: {pages: 0.001 USD}
        guards: [mode, pages]
"""


def _choosy(on_unmatched: str) -> str:
    text = policy(f"on_unmatched: {on_unmatched}")
    return text.replace(
        "      - name: pages\n", CHOOSY.lstrip("\n") + "      - name: pages\n"
    ).replace(
        "match: {method: POST, path: /v1/pages}",
        "match: {method: POST, path: /v1/pages, where: [{json: mode, among: [dear]}]}",
    )


def test_a_body_read_for_a_route_that_does_not_fit_is_passed_on_all_the_same(
    tmp_path: Path,
) -> None:
    body = b'{"mode": "free", "pages": 3}'

    async def story() -> None:
        async with fronting(tmp_path, answering(OK), _choosy("pass")) as (rig, upstream):
            in_chunks = head_only("/meter/v1/pages", "Transfer-Encoding: chunked")
            in_chunks += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            for data in (in_chunks, request("/meter/v1/pages", body, JSON)):
                async with asyncio.timeout(2.0):
                    assert (await ask(rig, data)).status == 200
            assert [seen.body for seen in upstream.requests] == [body, body]

    asyncio.run(story())


def test_the_body_chooses_the_route(tmp_path: Path) -> None:
    async def story() -> None:
        answer = http("200 OK", b'{"used": 2}')
        async with fronting(tmp_path, answering(answer), _choosy("refuse")) as (rig, _):
            for mode, status in (("cheap", 200), ("dear", 200), ("free", 403)):
                body = json.dumps({"mode": mode, "pages": 3}).encode()
                assert (await ask(rig, request("/meter/v1/pages", body))).status == status
            assert [call.route for call in rig.calls] == ["cheap", "pages", ""]
            assert [call.cost for call in rig.calls] == [2_000_000, 20_000_000, 0]

    asyncio.run(story())


def test_the_guards_of_every_route_that_may_fit_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        text = _choosy("refuse").replace("guards: [mode, pages]", "guards: [mode]")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            body = b'{"mode": "dear", "pages": 9, "pages": 1}'
            assert (await ask(rig, request("/meter/v1/pages", body))).status == 400
            assert upstream.connections == 0

    asyncio.run(story())


PLAIN = """
  plain:
    url: ${UPSTREAM}
    credential: ${OURS}
    tariff:
      - name: sms
        match: {method: POST, path: /v1/sms}
        quantities: {sent: {before: {product: [{count: to, default: 1}, {json: n, default: 1}]}}}
        price: {sent: 0.01 USD}
      - name: read
        match: {method: GET, path: /v1/read}
        quantities: {pages: {before: {query: max, default: 1}}}
        price: {pages: 0.01 USD}
"""
AMBIGUOUS = {
    "a list twice": b'{"to": [1, 2, 3], "to": []}',
    "a number twice": b'{"n": 9, "n": 1}',
    "a number, escaped": b'{"n": 1, "\\u006e": 9}',
    "another case": b'{"N": 9}',
    "both cases": b'{"n": 1, "N": 9}',
}


def test_what_a_tariff_reads_is_guarded_though_it_does_not_say_so(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy().replace("services:", PLAIN.lstrip("\n") + "services:")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            for name, body in AMBIGUOUS.items():
                answer = await ask(rig, request("/plain/v1/sms", body))
                assert answer.status == 400, name
                assert "ambiguous" in json.loads(answer.body)["detail"], name
            for query in ("?max=9&max=1", "?Max=9"):
                assert (await ask(rig, request(f"/plain/v1/read{query}"))).status == 400
            assert upstream.connections == 0
            assert (await ask(rig, request("/plain/v1/sms", b'{"n": 2, "to": [1]}'))).status == 200
            assert (await ask(rig, request("/plain/v1/read?max=3"))).status == 200
            assert await spent(rig) == 5 * PAGE

    asyncio.run(story())


def test_the_sandbox_sees_nothing_of_a_refused_chat(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as rig:
            for body in (chat(n=-1), chat(n="5"), chat(model=""), [chat()]):
                status, answer = await rig.post("/openai/v1/chat/completions", body)
                assert (status, answer["error"]["code"]) == (400, "bad_request")
            assert await rig.arrived() == []
            assert await rig.charges() == []

    asyncio.run(story())
