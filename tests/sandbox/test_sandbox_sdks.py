"""The real SDKs against a real sandbox: they read its answers, its streams and its refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest
from sandbox_server import CHAT, Served, events, hello, sandbox

from budget_proxy.sandbox import Settings

TALK: Any = [{"role": "user", "content": "twenty bytes of text"}]
SIXTEEN = "the quick brown fox jumps over a lazy dog while seven wise owls watch from an"


async def with_openai(scenario: Any, settings: Settings | None = None) -> None:
    async with (
        sandbox(settings) as served,
        openai.AsyncOpenAI(
            api_key="k", base_url=f"{served.url}/v1", max_retries=0, timeout=5
        ) as client,
    ):
        await scenario(client, served)


async def with_anthropic(scenario: Any, settings: Settings | None = None) -> None:
    async with (
        sandbox(settings) as served,
        anthropic.AsyncAnthropic(
            api_key="k", base_url=served.url, max_retries=0, timeout=5
        ) as client,
    ):
        await scenario(client, served)


def test_openai_reads_a_chat() -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=TALK)
        assert answer.choices[0].message.content == SIXTEEN
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)
        assert answer._request_id is not None

    asyncio.run(with_openai(scenario))


def test_openai_reads_a_chat_stream_with_its_usage_at_the_end() -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini",
            messages=TALK,
            stream=True,
            stream_options={"include_usage": True},
            n=2,
        )
        chunks = [chunk async for chunk in stream]
        texts = ["", ""]
        finishes = []
        for chunk in chunks[:-1]:
            assert chunk.usage is None
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            finishes.append(choice.finish_reason)
        assert texts == [SIXTEEN, SIXTEEN.removeprefix("the ") + " old"]
        assert finishes[-2:] == ["stop", "stop"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 32
        (line,) = await served.charges()
        assert line["amount_nanos"] == 750 + 32 * 600

    asyncio.run(with_openai(scenario))


def test_a_chat_stream_has_no_usage_unless_asked_for() -> None:
    async def scenario() -> None:
        async with sandbox() as served:
            _, plain, headers = await served.text(CHAT, hello(stream=True))
            assert headers["Content-Type"].startswith("text/event-stream")
            assert plain.endswith("data: [DONE]\n\n")
            assert all("usage" not in event for event in events(plain))
            asked = hello(stream=True, stream_options={"include_usage": True})
            _, text, _ = await served.text(CHAT, asked)
            usages = [event["usage"] for event in events(text)]
            assert set(map(str, usages[:-1])) == {"None"}
            assert usages[-1]["total_tokens"] == 21

    asyncio.run(scenario())


@pytest.mark.parametrize(("limit", "ending"), [(None, "completed"), (3, "incomplete")])
def test_openai_reads_a_response_and_its_stream(limit: int | None, ending: str) -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        asked: Any = {
            "model": "gpt-4o-mini",
            "input": "twenty bytes of text",
            "max_output_tokens": limit,
        }
        whole = await client.responses.create(**asked)
        assert (whole.status, whole.output_text) == (ending, " ".join(SIXTEEN.split()[:limit]))
        kinds = []
        text = ""
        async for event in await client.responses.create(**asked, stream=True):
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type in ("response.completed", "response.incomplete"):
                final = event.response
        assert kinds[0] == "response.created"
        assert kinds[-1] == f"response.{ending}"
        assert text == final.output_text == whole.output_text
        assert final.usage is not None
        assert final.usage.input_tokens == 5
        assert final.usage.output_tokens == (limit or 16)
        async with client.responses.stream(**asked) as helper:
            async for _ in helper:
                pass
        amounts = [line["amount_nanos"] for line in await served.charges()]
        assert amounts == [750 + (limit or 16) * 600] * 3

    asyncio.run(with_openai(scenario))


def test_openai_reads_embeddings_and_models() -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        made = await client.embeddings.create(
            model="text-embedding-3-small", input=["a", "b"], dimensions=4
        )
        assert [len(one.embedding) for one in made.data] == [4, 4]
        same = await client.embeddings.create(
            model="text-embedding-3-small", input=["a", "b"], dimensions=4, encoding_format="float"
        )
        assert [one.embedding for one in same.data] == [one.embedding for one in made.data]
        assert "gpt-4o" in [model.id async for model in client.models.list()]

    asyncio.run(with_openai(scenario))


def test_openai_raises_its_own_errors() -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        ask = client.chat.completions.create
        with pytest.raises(openai.RateLimitError) as empty:
            await ask(model="gpt-4o-mini", messages=TALK)
        assert empty.value.code == "credit_balance_exhausted"
        assert empty.value.type == "insufficient_quota"
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(model="gpt-4o-foo", messages=TALK)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.InternalServerError):
            await ask(model="gpt-4o-mini", messages=TALK, extra_headers={"x-sandbox-fail": "503"})

    asyncio.run(with_openai(scenario, Settings(balance_nanos=0)))


def test_openai_raises_on_a_stream_that_was_cut() -> None:
    async def scenario(client: openai.AsyncOpenAI, served: Served) -> None:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=TALK, stream=True
        )
        for _ in range(3):
            await anext(stream)
        with pytest.raises(openai.APIConnectionError):
            await anext(stream)

    asyncio.run(with_openai(scenario, Settings(cut_after=3)))


def test_anthropic_reads_a_message() -> None:
    async def scenario(client: anthropic.AsyncAnthropic, served: Served) -> None:
        answer = await client.messages.create(
            model="claude-sonnet-5-5", max_tokens=4, messages=TALK, system="four"
        )
        assert answer.content[0].type == "text"
        assert answer.content[0].text == "the quick brown fox"
        assert answer.stop_reason == "max_tokens"
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 4)
        assert "claude-sonnet-5-5" in [model.id async for model in client.models.list()]

    asyncio.run(with_anthropic(scenario))


def test_anthropic_reads_a_stream_with_cumulative_usage() -> None:
    async def scenario(client: anthropic.AsyncAnthropic, served: Served) -> None:
        asked: Any = {"model": "claude-sonnet-5-5", "max_tokens": 1024, "messages": TALK}
        seen = [event async for event in await client.messages.create(**asked, stream=True)]
        assert [seen[0].type, seen[1].type] == ["message_start", "content_block_start"]
        assert [event.type for event in seen[-3:]] == [
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert seen[0].type == "message_start"
        assert seen[0].message.usage.input_tokens == 5
        assert seen[-2].type == "message_delta"
        assert seen[-2].usage.output_tokens == 16
        async with client.messages.stream(**asked) as helper:
            final = await helper.get_final_message()
        assert final.content[0].type == "text"
        assert (final.content[0].text, final.stop_reason) == (SIXTEEN, "end_turn")
        assert (final.usage.input_tokens, final.usage.output_tokens) == (5, 16)
        amounts = [line["amount_nanos"] for line in await served.charges()]
        assert amounts == [5 * 2_000 + 16 * 10_000] * 2

    asyncio.run(with_anthropic(scenario))


def test_anthropic_raises_its_own_errors() -> None:
    async def scenario(client: anthropic.AsyncAnthropic, served: Served) -> None:
        asked: Any = {"max_tokens": 1024, "messages": TALK}
        with pytest.raises(anthropic.BadRequestError, match="credit balance is too low"):
            await client.messages.create(model="claude-sonnet-5-5", **asked)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="claude-nothing", **asked)
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(
                model="claude-sonnet-5-5", extra_headers={"x-sandbox-fail": "429"}, **asked
            )

    asyncio.run(with_anthropic(scenario, Settings(balance_nanos=0)))
