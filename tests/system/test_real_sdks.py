"""The real SDKs through the whole proxy: what they get, what it costs, and what a refusal is to
them. With their default retries: a final refusal must still be one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message
from harness import GENEROUS, KEY, Rig, running
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

TALK: Any = [{"role": "user", "content": "twenty bytes of text"}]
SAID = "the quick brown fox jumps over a lazy dog while seven wise owls watch from an"
CHAT: Any = {"model": "gpt-4o-mini", "messages": TALK, "max_tokens": 16}
RESPONSE: Any = {"model": "gpt-4o-mini", "input": "twenty bytes of text", "max_output_tokens": 16}
MESSAGE: Any = {"model": "claude-sonnet-4-6", "messages": TALK, "max_tokens": 16}
USAGE: Any = {"include_usage": True}


class Clients:
    """Every client a developer could have, each with nothing changed but URL and key."""

    def __init__(self, rig: Rig, **more: Any) -> None:
        to_openai: Any = {"base_url": f"{rig.url}/openai/v1", "api_key": KEY} | more
        to_anthropic: Any = {"base_url": f"{rig.url}/anthropic", "api_key": KEY} | more
        self.openai = openai.AsyncOpenAI(**to_openai)
        self.openai_sync = openai.OpenAI(**to_openai)
        self.anthropic = anthropic.AsyncAnthropic(**to_anthropic)
        self.anthropic_sync = anthropic.Anthropic(**to_anthropic)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()
        self.openai_sync.close()
        self.anthropic_sync.close()


@asynccontextmanager
async def clients(
    tmp_path: Path, budgets: str = GENEROUS, **knobs: Any
) -> AsyncIterator[tuple[Rig, Clients]]:
    async with running(tmp_path, budgets, **knobs) as rig:
        ours = Clients(rig)
        try:
            yield rig, ours
        finally:
            await ours.close()


# -- what passes: each is a kind of call, and how a developer reads its answer --------------------


async def chat(by: Clients) -> str | None:
    answer: ChatCompletion = await by.openai.chat.completions.create(**CHAT)
    assert answer.usage is not None
    return answer.choices[0].message.content


async def chat_sync(by: Clients) -> str | None:
    def ask() -> ChatCompletion:
        answer: ChatCompletion = by.openai_sync.chat.completions.create(**CHAT)
        return answer

    return (await asyncio.to_thread(ask)).choices[0].message.content


async def chat_stream(by: Clients) -> str:
    text = ""
    async for chunk in await by.openai.chat.completions.create(**CHAT, stream=True):
        assert chunk.usage is None
        assert len(chunk.choices) == 1, "the extra chunk is ours alone"
        text += chunk.choices[0].delta.content or ""
    return text


async def chat_stream_sync(by: Clients) -> str:
    def read() -> str:
        chunks = list(by.openai_sync.chat.completions.create(**CHAT, stream=True))
        assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    return await asyncio.to_thread(read)


async def chat_stream_with_usage(by: Clients) -> str:
    stream = await by.openai.chat.completions.create(**CHAT, stream=True, stream_options=USAGE)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


async def chat_stream_helper(by: Clients) -> str | None:
    # One token to spare: the helper takes an answer that fills its limit for one cut short.
    async with by.openai.chat.completions.stream(**CHAT | {"max_tokens": 17}) as stream:
        return (await stream.get_final_completion()).choices[0].message.content


async def response(by: Clients) -> str:
    answer: Response = await by.openai.responses.create(**RESPONSE)
    return answer.output_text


async def response_stream(by: Clients) -> str:
    text = ""
    async for event in await by.openai.responses.create(**RESPONSE, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
    return text


async def embedding(by: Clients) -> str:
    made = await by.openai.embeddings.create(
        model="text-embedding-3-small", input=["twenty bytes of text"] * 3
    )
    assert [len(one.embedding) for one in made.data] == [8, 8, 8]
    return SAID


async def message(by: Clients) -> str:
    answer = await by.anthropic.messages.create(**MESSAGE)
    return "".join(block.text for block in answer.content if block.type == "text")


async def message_sync(by: Clients) -> str:
    def ask() -> Message:
        answer: Message = by.anthropic_sync.messages.create(**MESSAGE)
        return answer

    answer = await asyncio.to_thread(ask)
    return "".join(block.text for block in answer.content if block.type == "text")


async def message_stream(by: Clients) -> str:
    async with by.anthropic.messages.stream(**MESSAGE) as stream:
        return await stream.get_final_text()


async def message_events(by: Clients) -> str:
    text = ""
    async for event in await by.anthropic.messages.create(**MESSAGE, stream=True):
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
    return text


Kind = Callable[[Clients], Coroutine[Any, Any, str | None]]
OPENAI: list[Kind] = [
    chat,
    chat_sync,
    chat_stream,
    chat_stream_sync,
    chat_stream_with_usage,
    chat_stream_helper,
    response,
    response_stream,
    embedding,
]
ANTHROPIC: list[Kind] = [message, message_sync, message_stream, message_events]
ALL = OPENAI + ANTHROPIC


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_kind_of_call_passes_and_costs_what_the_provider_charged(
    tmp_path: Path, kind: Kind
) -> None:
    async def story() -> None:
        async with clients(tmp_path) as (rig, by):
            assert await kind(by) == SAID
            (charge,) = await rig.charges()
            (entry,) = await rig.entries()
            (call,) = rig.calls
            assert entry.legs[0].amount == call.cost == charge["amount_nanos"] > 0
            assert (entry.rule, call.outcome, call.retry) == ("actual", "served", 0)
            assert entry.legs[0].held >= entry.legs[0].amount
            account = await rig.account("company")
            assert account is not None
            assert (account.spent, account.held) == (charge["amount_nanos"], 0)
            (seen,) = await rig.arrived()
            headers = {name.lower(): value for name, value in seen["headers"]}
            assert KEY not in str(seen), "the key of the service stays here"
            assert "sandbox-key" in (
                headers.get("authorization", "").removeprefix("Bearer "),
                headers.get("x-api-key"),
            )

    asyncio.run(story())


def test_many_at_once_cost_what_the_provider_charged(tmp_path: Path) -> None:
    async def story() -> None:
        async with clients(tmp_path, latency_s=0.02) as (rig, by):
            answers = await asyncio.gather(*(kind(by) for kind in ALL for _ in range(4)))
            assert set(answers) == {SAID}
            account = await rig.account("company")
            assert account is not None
            assert (account.spent, account.held) == (await rig.charged_nanos(), 0)
            charged = sorted(charge["amount_nanos"] for charge in await rig.charges())
            assert sorted(entry.legs[0].amount for entry in await rig.entries()) == charged

    asyncio.run(story())


def test_models_are_listed_for_free(tmp_path: Path) -> None:
    async def story() -> None:
        async with clients(tmp_path) as (rig, by):
            assert "gpt-4o-mini" in [model.id async for model in by.openai.models.list()]
            assert [model.id async for model in by.anthropic.models.list()]
            assert await rig.charges() == []
            account = await rig.account("company")
            assert account is None or account.spent == 0

    asyncio.run(story())


# -- what is refused -------------------------------------------------------------------------------

TINY = "budgets: {tiny: {limit: 0.000001 USD, per: day}}\n"
# One chat holds 0.000034 and costs 0.00001: a second one fits neither beside nor after it.
SMALL = "budgets: {small: {limit: 0.00004 USD, per: year}}\n"
ONE = "budgets: {one: {limit: 1 requests, per: year}}\n"


async def refused(rig: Rig, attempt: Awaitable[Any], error: type[Exception]) -> Any:
    """The exception that an attempt raises; it is one attempt, and nothing went upstream."""
    before = len(rig.calls)
    arrived = (await rig.stats())["requests"]
    with pytest.raises(error) as caught:
        await attempt
    assert type(caught.value) is error
    await rig.until(lambda: len(rig.calls) > before)
    assert len(rig.calls) == before + 1, "not tried again"
    assert (await rig.stats())["requests"] == arrived
    return caught.value


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_call_that_is_too_large_is_refused_once_in_the_sdks_own_words(
    tmp_path: Path, kind: Kind
) -> None:
    error = openai.APIStatusError if kind in OPENAI else anthropic.PaymentRequiredError

    async def story() -> None:
        async with clients(tmp_path, TINY) as (rig, by):
            caught = await refused(rig, kind(by), error)
            assert caught.status_code == 402
            assert "budget-proxy" in str(caught)
            assert "'tiny'" in str(caught)
            assert "0.000001 USD" in str(caught)
            (call,) = rig.calls
            assert (call.reason, call.budget, call.retry) == ("too_large", "tiny", 0)
            assert caught.request_id == call.request_id, "what the developer has leads to the log"

    asyncio.run(story())


def test_a_spent_budget_refuses_for_good(tmp_path: Path) -> None:
    async def story() -> None:
        async with clients(tmp_path, SMALL) as (rig, by):
            assert await chat(by) == SAID
            caught = await refused(rig, chat(by), openai.APIStatusError)
            assert (caught.status_code, caught.code) == (402, "spent")
            assert caught.type == "insufficient_quota"
            assert "Budget 'small' has too little left" in str(caught)
            caught = await refused(rig, chat_stream(by), openai.APIStatusError)
            assert caught.code == "spent", "of a stream, before it begins"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (chat, openai.RateLimitError),
        (chat_stream, openai.RateLimitError),
        (message, anthropic.RateLimitError),
        (message_events, anthropic.RateLimitError),
    ],
    ids=lambda value: value.__name__,
)
def test_what_others_hold_is_a_rate_limit(
    tmp_path: Path, kind: Kind, error: type[Exception]
) -> None:
    async def story() -> None:
        async with clients(tmp_path, ONE, latency_s=600) as (rig, by):
            first = asyncio.create_task(kind(by))
            async with asyncio.timeout(10):
                while not (await rig.stats())["open"]:  # noqa: ASYNC110 - asked over the network
                    await asyncio.sleep(0.002)
            once = Clients(rig, max_retries=0)
            caught = await refused(rig, kind(once), error)
            assert "Budget 'one'" in str(caught)
            assert 1 <= int(caught.response.headers["retry-after"]) <= 60
            assert [call.reason for call in rig.calls] == ["held"]
            await once.close()
            first.cancel()

    asyncio.run(story())


def test_an_sdk_that_may_try_again_gets_through(tmp_path: Path) -> None:
    """The default retries: a `held` with its Retry-After is waited out by the SDK itself."""

    async def story() -> None:
        async with clients(tmp_path, SMALL, latency_s=0.5, output_tokens=1) as (rig, by):
            answers = await asyncio.gather(chat(by), chat(by))
            assert set(answers) == {"the"}
            assert [(call.reason, call.retry) for call in rig.calls] == [
                ("held", 0),
                ("", 0),
                ("", 1),
            ]
            assert (await rig.stats())["requests"] == 2

    asyncio.run(story())


MISTAKES: list[tuple[str, Any, type[Exception], str]] = [
    ("an unknown model", {"model": "gpt-99"}, openai.APIStatusError, "unpriced"),
    ("no bound", {"extra_body": {"web_search_options": {}}}, openai.APIStatusError, "no_bound"),
    ("a wrong field", {"extra_body": {"n": "5"}}, openai.BadRequestError, "bad_request"),
]


@pytest.mark.parametrize(
    ("more", "error", "code"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_what_has_no_price_is_refused_once(
    tmp_path: Path, more: Any, error: type[Exception], code: str
) -> None:
    async def story() -> None:
        async with clients(tmp_path) as (rig, by):
            asked = by.openai.chat.completions.create(**CHAT | more)
            caught = await refused(rig, asked, error)
            assert caught.code == code
            assert "budget-proxy" in str(caught)

    asyncio.run(story())


def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    async def story() -> None:
        async with clients(tmp_path) as (rig, by):
            theirs = by.openai.with_options(api_key="sk-a-key-of-somebody")
            attempt = theirs.chat.completions.create(**CHAT)
            caught = await refused(rig, attempt, openai.AuthenticationError)
            assert "sk-a-key" not in str(caught)
            other = by.anthropic.with_options(api_key="sk-ant-somebody")
            caught = await refused(
                rig, other.messages.create(**MESSAGE), anthropic.AuthenticationError
            )
            assert "sk-ant" not in str(caught)

    asyncio.run(story())


def test_the_providers_own_errors_come_through_as_they_are(tmp_path: Path) -> None:
    """Its empty balance is its own 429, and costs nothing here."""

    async def story() -> None:
        async with clients(tmp_path, balance_nanos=0) as (rig, by):
            once = by.openai.with_options(max_retries=0)
            with pytest.raises(openai.RateLimitError) as caught:
                await once.chat.completions.create(**CHAT)
            assert caught.value.code == "credit_balance_exhausted"
            (entry,) = await rig.entries()
            assert (entry.kind, entry.rule) == ("released", "not_billed")
            with pytest.raises(anthropic.APIStatusError):
                await by.anthropic.with_options(max_retries=0).messages.create(**MESSAGE)
            account = await rig.account("company")
            assert account is not None
            assert (account.spent, account.held) == (0, 0)

    asyncio.run(story())


def test_a_stream_that_is_cut_raises_and_is_paid(tmp_path: Path) -> None:
    async def story() -> None:
        async with clients(tmp_path, cut_after=5) as (rig, by):
            for kind in (chat_stream, message_events):
                # One wraps the error of its HTTP library, the other does not.
                with pytest.raises(Exception, match=r"Connection error|peer closed"):
                    await kind(by)
            await rig.until(lambda: len(rig.calls) == 2)
            account = await rig.account("company")
            assert account is not None
            assert account.spent >= await rig.charged_nanos() > 0
            assert {call.rule for call in rig.calls} == {"hold_cut"}

    asyncio.run(story())
