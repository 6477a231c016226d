"""What is refused, in whose words, and that it costs nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from sandbox_server import CHAT, Served, claude, hello, sandbox

from budget_proxy.sandbox import Settings

DEEP = b'{"model":"gpt-4o-mini","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def refused(
    path: str, raw: bytes, settings: Settings | None = None, **headers: str
) -> tuple[int, Any]:
    async def scenario() -> tuple[int, Any]:
        async with sandbox(settings) as served:
            answer = await served.post(path, raw=raw, **headers)
            assert await served.charges() == []
            return answer

    return asyncio.run(scenario())


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/embeddings", "/v1/messages"])
def test_a_body_that_is_not_a_json_object_is_a_400(path: str) -> None:
    async def scenario() -> None:
        async with sandbox() as served:
            for raw in (b"", b"{", b"[]", b"null", b"\xff", b'"x"', b"[" * 200_000, b"9" * 5000):
                status, answer = await served.post(path, raw=raw)
                assert status == 400, raw[:20]
                assert answer["error"]["type"] == "invalid_request_error"
            assert await served.charges() == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": 7},
        {"model": ""},
        {"messages": None},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [7]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [7]}]},
        {"messages": [{"role": "user", "content": {"text": "x"}}]},
        {"max_tokens": "9"},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": 10**30},
        {"stream": "yes"},
    ],
)
@pytest.mark.parametrize("make", [hello, claude])
def test_wrong_types_are_a_400_from_both_providers(make: Any, change: dict[str, object]) -> None:
    path = CHAT if make is hello else "/v1/messages"
    status, answer = refused(path, json.dumps(make(**change)).encode())
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": 129},
        {"max_tokens": 0},
        {"max_tokens": 4, "max_completion_tokens": 4},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": 7},
        {"stream": True, "stream_options": {"include_usage": "x"}},
    ],
)
def test_what_openai_does_not_allow_is_a_400(change: dict[str, object]) -> None:
    assert refused(CHAT, json.dumps(hello(**change)).encode())[0] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "gpt-4o-mini"}),
        ("/v1/responses", {"model": "gpt-4o-mini", "input": 7}),
        ("/v1/responses", {"model": "gpt-4o-mini", "input": "x", "previous_response_id": "r"}),
        ("/v1/responses", {"model": "gpt-4o-mini", "input": "x", "background": True}),
        ("/v1/embeddings", {"model": "text-embedding-3-small"}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": []}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": ["x", 1]}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": [[]]}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x", "dimensions": 0}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x", "encoding_format": 1}),
        ("/v1/messages", {**hello(), "model": "claude-sonnet-5-5"}),
        ("/v1/messages", claude(system=7)),
    ],
)
def test_other_endpoints_refuse_what_they_cannot_read(path: str, body: object) -> None:
    assert refused(path, json.dumps(body).encode())[0] == 400


def test_absurdly_deep_json_and_half_surrogates_are_no_500() -> None:
    assert refused(CHAT, DEEP)[0] == 400
    half = json.dumps(hello(model="\ud800", max_tokens=1)).encode()
    assert refused(CHAT, half)[0] == 404


@pytest.mark.parametrize("model", ["gpt-4o-foo", "claude-sonnet-5-5", "x" * 10_000, "whisper-1"])
def test_a_model_that_openai_does_not_sell_for_chat_is_its_404(model: str) -> None:
    status, answer = refused(CHAT, json.dumps(hello(model=model)).encode())
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_a_chat_model_makes_no_embeddings_and_the_other_way_round() -> None:
    body = json.dumps({"model": "gpt-4o-mini", "input": "x"}).encode()
    assert refused("/v1/embeddings", body)[0] == 404
    assert refused(CHAT, json.dumps(hello(model="text-embedding-3-small")).encode())[0] == 404


def test_an_unknown_model_is_anthropics_404() -> None:
    status, answer = refused("/v1/messages", json.dumps(claude(model="gpt-4o")).encode())
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
    assert answer["type"] == "error"


def test_an_empty_balance_is_refused_in_each_providers_words_and_shape() -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post(CHAT, hello())
        assert (status, answer) == (
            429,
            {
                "error": {
                    "message": "You exceeded your current quota, please check your plan and "
                    "billing details.",
                    "type": "insufficient_quota",
                    "param": None,
                    "code": "credit_balance_exhausted",
                }
            },
        )
        status, answer = await served.post("/v1/messages", claude())
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert answer["error"]["message"].startswith("Your credit balance is too low to access")
        assert (await served.get("/v1/geocode?q=x"))[0] == 402
        assert await served.charges() == []

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=10_349)))


def test_a_balance_of_exactly_the_price_pays_once() -> None:
    async def scenario(served: Served) -> None:
        assert (await served.post(CHAT, hello()))[0] == 200
        assert (await served.post(CHAT, hello()))[0] == 429
        assert await served.balance() == "0"
        await served.post("/_sandbox/topup", {"amount": "0.00001035 USD"})
        assert (await served.post(CHAT, hello()))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=10_350)))


def test_a_required_key_is_found_in_each_usual_place() -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post(CHAT, hello())
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        status, answer = await served.post("/v1/messages", claude(), x_api_key="wrong")
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        assert (await served.get("/v1/geocode?q=x"))[0] == 401
        assert (await served.get("/v1/models"))[0] == 401
        assert await served.charges() == []
        assert (await served.post(CHAT, hello(), Authorization="Bearer sesame"))[0] == 200
        assert (await served.post("/v1/messages", claude(), x_api_key="sesame"))[0] == 200
        assert (await served.get("/v1/geocode?q=x&key=sesame"))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(require_key="sesame")))


def test_unknown_paths_and_methods_are_answered_as_json() -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.get("/v1/nothing")
        assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
        status, answer = await served.get("/v1/messages")
        assert (status, answer["type"]) == (405, "error")
        assert (await served.get("/v1/geocode"))[0] == 400

    asyncio.run(in_sandbox(scenario))


def test_a_compressed_request_is_read_and_remembered_as_it_came() -> None:
    async def scenario(served: Served) -> None:
        plain = json.dumps(hello()).encode()
        packed = gzip.compress(plain, mtime=0)
        status, _ = await served.post(CHAT, raw=packed, Content_Encoding="gzip")
        assert status == 200
        _, seen = await served.get("/_sandbox/requests")
        assert seen["requests"][0]["body_bytes"] == len(packed)
        for raw, coding, expected in (
            (b"not gzip", "gzip", 400),
            (packed[:-3], "gzip", 400),
            (packed + b"x", "gzip", 400),
            (gzip.compress(bytes(33 * 1024 * 1024)), "gzip", 413),
            (plain, "zstd", 415),
        ):
            status, _ = await served.post(CHAT, raw=raw, Content_Encoding=coding)
            assert status == expected

    asyncio.run(in_sandbox(scenario))


def test_a_body_that_is_too_large_is_a_413_and_a_broken_one_is_no_500() -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post("/v1/messages", raw=bytes(33 * 1024 * 1024))
        assert (status, answer["error"]["type"]) == (413, "request_too_large")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer_line = await exchange(served, head.encode() + b"5\r\n{", b"zzzz\r\nnot a chunk\r\n")
        assert b" 400 " in answer_line
        await served.until("open", 0)

    asyncio.run(in_sandbox(scenario))


def test_a_wrong_sandbox_header_is_a_400_that_says_so() -> None:
    body = json.dumps(hello()).encode()
    status, answer = refused(CHAT, body, x_sandbox_latencys="1")
    assert status == 400
    assert "latencys" in answer["error"]["message"]


async def exchange(served: Served, *pieces: bytes) -> bytes:
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()


async def in_sandbox(scenario: Any, settings: Settings | None = None) -> None:
    async with sandbox(settings) as served:
        await scenario(served)
