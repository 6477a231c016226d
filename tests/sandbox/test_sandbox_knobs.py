"""Every knob, turned in the settings, at run time, or for one request."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
from typing import Any

import aiohttp
import pytest
from sandbox_server import CHAT, Served, claude, events, hello, sandbox

from budget_proxy.sandbox import Settings

STREAM = hello(stream=True, stream_options={"include_usage": True})


async def in_sandbox(scenario: Any, settings: Settings | None = None) -> None:
    async with sandbox(settings) as served:
        await scenario(served)


async def read_until_cut(served: Served, body: object, **headers: str) -> str:
    """The text that arrived before the connection broke."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    text = b""
    async with served.session.post(served.url + CHAT, json=body, headers=named) as answer:
        try:
            async for piece in answer.content.iter_any():
                text += piece
        except aiohttp.ClientPayloadError:
            return text.decode()
    raise AssertionError("the stream ended as if it were complete")


@pytest.mark.parametrize("clean", [True, False])
def test_a_stream_is_cut_after_so_many_events_and_stays_billed_in_full(clean: bool) -> None:
    async def scenario(served: Served) -> None:
        if clean:
            _, text, _ = await served.text(
                CHAT, STREAM, x_sandbox_cut_after="4", x_sandbox_cut_clean="true"
            )
        else:
            text = await read_until_cut(served, STREAM, x_sandbox_cut_after="4")
        assert len(events(text)) == 4
        assert "[DONE]" not in text
        (line,) = await served.charges()
        assert (line["amount_nanos"], line["status"]) == (10_350, "full")

    asyncio.run(in_sandbox(scenario))


def test_a_cut_stream_is_billed_as_delivered_where_the_provider_does_so() -> None:
    async def scenario(served: Served) -> None:
        await read_until_cut(served, STREAM)
        (line,) = await served.charges()
        # Four events: the role, and three tokens.
        assert line["quantities"] == {"input_tokens": 5, "output_tokens": 3}
        assert (line["amount_nanos"], line["status"]) == (750 + 3 * 600, "delivered")
        assert await served.balance() == "0.99999745"

    settings = Settings(balance_nanos=10**9, cut_after=4, bill_cut="delivered")
    asyncio.run(in_sandbox(scenario, settings))


def test_a_cut_before_any_byte_sends_nothing() -> None:
    async def scenario(served: Served) -> None:
        for body in (hello(), STREAM):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await served.post(CHAT, body, x_sandbox_cut_after="0")
        status, text, _ = await served.text(
            CHAT, hello(), x_sandbox_cut_after="0", x_sandbox_cut_clean="1"
        )
        assert (status, text) == (200, "")
        assert len(await served.charges()) == 3

    asyncio.run(in_sandbox(scenario))


def test_a_cut_behind_the_last_event_takes_only_the_end_of_the_body_away() -> None:
    async def scenario(served: Served) -> None:
        _, whole, _ = await served.text(CHAT, STREAM)
        count = str(len(events(whole)) + 1)  # with the [DONE]
        text = await read_until_cut(served, STREAM, x_sandbox_cut_after=count)
        assert text.endswith("data: [DONE]\n\n")

    asyncio.run(in_sandbox(scenario))


@pytest.mark.parametrize("handler_cancellation", [True, False])
@pytest.mark.parametrize(("mode", "status"), [("full", "full"), ("delivered", "delivered")])
def test_a_caller_who_leaves_a_stream_is_billed_as_the_setting_says(
    mode: Any, status: str, handler_cancellation: bool
) -> None:
    async def scenario() -> None:
        settings = Settings(bill_cut=mode, chunk_delay_s=0.01, output_tokens=1000)
        async with sandbox(settings, handler_cancellation=handler_cancellation) as served:
            async with served.session.post(served.url + CHAT, json=STREAM) as answer:
                await answer.content.readuntil(b"quick")
            await served.until("open", 0)
            (line,) = await served.charges()
            assert line["status"] == status
            if mode == "full":
                assert line["quantities"]["output_tokens"] == 1000
            else:
                assert 2 <= line["quantities"]["output_tokens"] < 1000

    asyncio.run(scenario())


def test_a_stream_read_to_its_end_is_never_corrected() -> None:
    async def scenario(served: Served) -> None:
        for path, body in ((CHAT, STREAM), ("/v1/messages", claude(stream=True))):
            status, _, _ = await served.text(path, body)
            assert status == 200
        assert [line["status"] for line in await served.charges()] == ["full", "full"]

    asyncio.run(in_sandbox(scenario, Settings(bill_cut="delivered")))


def test_a_caller_who_leaves_before_the_answer_has_spent_its_money() -> None:
    async def scenario(served: Served) -> None:
        task = asyncio.create_task(served.post(CHAT, hello()))
        await served.until("charges", 1)
        assert (await served.stats())["open"] == 1
        task.cancel()
        await served.until("open", 0)
        assert [line["amount_nanos"] for line in await served.charges()] == [10_350]

    asyncio.run(in_sandbox(scenario, Settings(latency_s=60)))


def test_a_caller_who_leaves_before_the_stream_was_delivered_nothing() -> None:
    async def scenario(served: Served) -> None:
        task = asyncio.create_task(served.text(CHAT, STREAM))
        await served.until("charges", 1)
        task.cancel()
        await served.until("open", 0)
        (line,) = await served.charges()
        assert (line["quantities"]["output_tokens"], line["status"]) == (0, "delivered")
        assert line["amount_nanos"] == 750

    asyncio.run(in_sandbox(scenario, Settings(latency_s=60, bill_cut="delivered")))


def test_latency_and_chunk_delay_are_waited_for() -> None:
    async def scenario(served: Served) -> None:
        before = time.monotonic()
        await served.post(CHAT, hello(), x_sandbox_latency_s="0.05")
        assert time.monotonic() - before >= 0.05
        before = time.monotonic()
        # role, 2 tokens, finish, [DONE]: four pauses
        await served.text(CHAT, hello(stream=True, max_tokens=2), x_sandbox_chunk_delay_s="0.02")
        assert time.monotonic() - before >= 0.08

    asyncio.run(in_sandbox(scenario))


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        (CHAT, hello(), 500, "server_error"),
        (CHAT, STREAM, 503, "server_error"),
        (CHAT, hello(), 429, "requests"),
        ("/v1/messages", claude(), 529, "overloaded_error"),
        ("/v1/messages", claude(), 429, "rate_limit_error"),
    ],
)
def test_a_failure_has_the_providers_shape_and_is_billed_only_if_told(
    path: str, body: object, status: int, kind: str
) -> None:
    async def scenario(served: Served) -> None:
        got, answer = await served.post(path, body, x_sandbox_fail=str(status))
        assert (got, answer["error"]["type"]) == (status, kind)
        assert await served.charges() == []
        got, _ = await served.post(
            path, body, x_sandbox_fail=str(status), x_sandbox_fail_billed="true"
        )
        assert got == status
        assert len(await served.charges()) == 1

    asyncio.run(in_sandbox(scenario))


def test_only_every_nth_priced_call_fails() -> None:
    async def scenario(served: Served) -> None:
        statuses = []
        for _ in range(6):
            await served.get("/v1/models")
            statuses.append((await served.get("/v1/geocode?q=x"))[0])
        assert statuses == [200, 200, 500, 200, 200, 500]
        assert len(await served.charges()) == 4

    asyncio.run(in_sandbox(scenario, Settings(fail=500, fail_every=3)))


def test_usage_can_be_left_out_everywhere() -> None:
    async def scenario(served: Served) -> None:
        for path, body in (
            (CHAT, hello()),
            ("/v1/messages", claude()),
            ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}),
        ):
            assert "usage" not in (await served.post(path, body))[1]
        _, answer = await served.post("/v1/responses", {"model": "gpt-4o-mini", "input": "x"})
        assert answer["usage"] is None
        for path, body in ((CHAT, STREAM), ("/v1/messages", claude(stream=True))):
            assert "usage" not in (await served.text(path, body))[1]
        assert len(await served.charges()) == 6

    asyncio.run(in_sandbox(scenario, Settings(omit_usage=True)))


def test_a_json_answer_can_be_compressed_though_nobody_asked() -> None:
    async def scenario() -> None:
        async with sandbox(Settings(answer_gzip=True)) as served:
            headers = {"Accept-Encoding": "identity"}
            async with (
                aiohttp.ClientSession(auto_decompress=False) as session,
                session.post(served.url + CHAT, json=hello(), headers=headers) as answer,
            ):
                assert answer.headers["Content-Encoding"] == "gzip"
                plain = gzip.decompress(await answer.read())
                assert json.loads(plain)["usage"]["prompt_tokens"] == 5

    asyncio.run(scenario())


def test_garbage_is_not_json_or_not_even_http_and_is_billed() -> None:
    async def scenario(served: Served) -> None:
        status, text, _ = await served.text(CHAT, hello(), x_sandbox_garbage="json")
        assert status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
        with pytest.raises(aiohttp.ClientError):
            await served.text(CHAT, hello(), x_sandbox_garbage="http")
        assert len(await served.charges()) == 2

    asyncio.run(in_sandbox(scenario))


def test_a_webhook_is_taken_as_it_comes_and_shown() -> None:
    async def scenario(served: Served) -> None:
        for raw in (b'{"text": "gone"}', b"\xff not JSON"):
            assert (await served.text("/_sandbox/hooks", raw=raw))[:2] == (200, "ok")
        _, told = await served.get("/_sandbox/hooks")
        assert told == {"hooks": ['{"text": "gone"}', "\ufffd not JSON"]}
        await served.post("/_sandbox/reset")
        assert (await served.get("/_sandbox/hooks"))[1] == {"hooks": []}

    asyncio.run(in_sandbox(scenario))


def test_settings_are_changed_at_run_time_and_reset_to_the_start() -> None:
    async def scenario(served: Served) -> None:
        change = {"output_tokens": 2, "balance": "1 USD", "fail": None}
        status, now = await served.post("/_sandbox/settings", change)
        assert (status, now["output_tokens"], now["balance"]) == (200, 2, "1 USD")
        await served.post(CHAT, hello())
        _, now = await served.get("/_sandbox/settings")
        assert now["balance"] == "0.99999805 USD"
        status, answer = await served.post("/_sandbox/settings", {"fail": 7})
        assert status == 400
        assert "fail" in answer["error"]
        _, account = await served.post("/_sandbox/reset")
        assert (account["balance"], account["charges"]) == ("5", 0)
        _, now = await served.get("/_sandbox/settings")
        assert now["output_tokens"] == 16
        assert await served.stats() == {
            "requests": 0,
            "open": 0,
            "open_max": 0,
            "calls": 0,
            "charges": 0,
        }

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=5 * 10**9)))


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("topup", b"{}"),
        ("topup", b'{"amount": 5}'),
        ("topup", b'{"amount": "-5 USD"}'),
        ("topup", b"nonsense"),
        ("settings", b"[]"),
        ("settings", b'{"nope": 1}'),
    ],
)
def test_wrong_control_calls_are_a_400(path: str, raw: bytes) -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post(f"/_sandbox/{path}", raw=raw)
        assert status == 400
        assert answer["error"]
        assert (await served.get("/_sandbox/charges?after=x"))[0] == 400

    asyncio.run(in_sandbox(scenario))


def test_what_arrived_is_remembered_as_it_was_sent() -> None:
    async def scenario(served: Served) -> None:
        raw = b'{"model": 7}'
        await served.post(f"{CHAT}?a=%20b", raw=raw, X_Odd="1")
        _, seen = await served.get("/_sandbox/requests")
        (first,) = seen["requests"]
        assert (first["method"], first["path"]) == ("POST", f"{CHAT}?a=%20b")
        assert ["X-Odd", "1"] in first["headers"]
        assert first["body_bytes"] == len(raw)
        assert first["body_sha256"] == hashlib.sha256(raw).hexdigest()
        stats = await served.stats()
        assert (stats["requests"], stats["open_max"], stats["charges"]) == (1, 1, 0)

    asyncio.run(in_sandbox(scenario))


def test_only_the_last_thousand_requests_are_remembered_and_all_are_counted() -> None:
    async def scenario(served: Served) -> None:
        for _ in range(1_005):
            await served.get("/nothing")
        _, seen = await served.get("/_sandbox/requests")
        assert [one["number"] for one in seen["requests"]] == list(range(6, 1_006))
        assert (await served.stats())["requests"] == 1_005

    asyncio.run(in_sandbox(scenario))


def test_charges_can_be_read_on_from_the_last_one_seen() -> None:
    async def scenario(served: Served) -> None:
        for _ in range(3):
            await served.get("/v1/geocode?q=x")
        _, page = await served.get("/_sandbox/charges?after=2")
        assert [line["seq"] for line in page["charges"]] == [3]

    asyncio.run(in_sandbox(scenario))
