"""The real SDKs, with their default retries, against the bytes we render.

A final refusal costs one attempt. That `x-should-retry: true` is sent is in test_render: here it
would cost the SDK's sleep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from loopback import Loopback, running
from refusal_samples import NOW_S, REQUEST_ID, refusal

from budget_proxy.core.refusal import Reason
from budget_proxy.dialects import render, stream_error

FINAL = {
    Reason.SPENT: (openai.APIStatusError, anthropic.PaymentRequiredError),
    Reason.TOO_LARGE: (openai.APIStatusError, anthropic.PaymentRequiredError),
    Reason.UNPRICED: (openai.APIStatusError, anthropic.PaymentRequiredError),
    Reason.NO_BOUND: (openai.APIStatusError, anthropic.PaymentRequiredError),
    Reason.NO_TARIFF: (openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    Reason.UNKEEPABLE: (openai.BadRequestError, anthropic.BadRequestError),
    Reason.NO_PAYER: (openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    Reason.UNAUTHORIZED: (openai.AuthenticationError, anthropic.AuthenticationError),
    Reason.BAD_REQUEST: (openai.BadRequestError, anthropic.BadRequestError),
    Reason.NO_UPSTREAM: (openai.NotFoundError, anthropic.NotFoundError),
    Reason.BODY_TOO_LARGE: (openai.APIStatusError, anthropic.ContentTooLargeError),
    Reason.NOT_IMPLEMENTED: (openai.InternalServerError, anthropic.HTTPNotImplementedError),
}
"""Reasons that no SDK may try again, with the class that each raises."""
RETRIED = {
    Reason.HELD: (openai.RateLimitError, anthropic.RateLimitError),
    Reason.WAITED: (openai.RateLimitError, anthropic.RateLimitError),
    Reason.LINE_FULL: (openai.RateLimitError, anthropic.RateLimitError),
    Reason.WINDOW_TURNS: (openai.RateLimitError, anthropic.RateLimitError),
    Reason.LEDGER_DOWN: (openai.InternalServerError, anthropic.ServiceUnavailableError),
    Reason.UPSTREAM_BROKEN: (openai.InternalServerError, anthropic.InternalServerError),
    Reason.UPSTREAM_TIMEOUT: (openai.InternalServerError, anthropic.GatewayTimeoutError),
}
MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
)
CREATED = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
    b'"item_id":"i","output_index":0,"content_index":0,"delta":"Hel","logprobs":[],'
    b'"sequence_number":1}\n\n'
)
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hel"}}\n\n'
)


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def openai_client(loopback: Loopback) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{loopback.url}/v1", api_key="k", http_client=http) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(loopback: Loopback) -> Iterator[anthropic.Anthropic]:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(base_url=loopback.url, api_key="k", http_client=http) as client:
        yield client


def give(loopback: Loopback, dialect: str, reason: Reason) -> None:
    loopback.give(render(dialect, refusal(reason), request_id=REQUEST_ID, now_s=NOW_S))


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES, **more)


def message(client: anthropic.Anthropic, **more: Any) -> Any:
    return client.messages.create(model="m", max_tokens=5, messages=MESSAGES, **more)


@pytest.mark.parametrize("dialect", ["openai", "problem"])
@pytest.mark.parametrize("reason", FINAL)
def test_openai_gives_up_at_once(
    loopback: Loopback, openai_client: openai.OpenAI, dialect: str, reason: Reason
) -> None:
    give(loopback, dialect, reason)
    with pytest.raises(openai.APIStatusError) as caught:
        chat(openai_client)
    error = caught.value
    assert loopback.attempts == 1
    assert type(error) is FINAL[reason][0]
    assert "budget-proxy" in str(error)
    assert error.request_id == REQUEST_ID
    if dialect == "openai":
        assert error.type in (
            "insufficient_quota",
            "invalid_request_error",
            "permission_error",
        ) or (error.type == "server_error")
        unauthorized = reason is Reason.UNAUTHORIZED
        assert error.code == ("invalid_api_key" if unauthorized else reason.value)
        assert error.param == ("model" if reason is Reason.UNPRICED else None)
        body: Any = error.body
        assert body["message"] in str(error)


@pytest.mark.parametrize("reason", FINAL)
def test_anthropic_gives_up_at_once(
    loopback: Loopback, anthropic_client: anthropic.Anthropic, reason: Reason
) -> None:
    give(loopback, "anthropic", reason)
    with pytest.raises(anthropic.APIStatusError) as caught:
        message(anthropic_client)
    error = caught.value
    assert loopback.attempts == 1
    assert type(error) is FINAL[reason][1]
    assert "budget-proxy" in str(error)
    assert error.api_message is not None
    assert error.api_message in str(error)
    assert error.error_code == reason.value
    assert error.request_id == REQUEST_ID


def test_what_a_developer_reads(
    loopback: Loopback, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    words = "Budget 'each-team' of payments is spent: 200 USD of 200 USD used in this day"
    give(loopback, "openai", Reason.SPENT)
    with pytest.raises(openai.APIStatusError) as caught:
        chat(openai_client)
    assert str(caught.value).startswith(f"Error code: 402 - {words}")
    assert caught.value.type == "insufficient_quota"
    give(loopback, "anthropic", Reason.SPENT)
    with pytest.raises(anthropic.PaymentRequiredError) as other:
        message(anthropic_client)
    assert other.value.api_message is not None
    assert other.value.api_message.startswith(words)
    assert other.value.type == "billing_error"
    start = "Error code: 402 - {'type': 'error', 'error': {'type': 'billing_error', 'message': "
    assert str(other.value).startswith(f'{start}"{words}')


@pytest.mark.parametrize("reason", RETRIED)
def test_what_may_be_tried_again_has_its_usual_class(
    loopback: Loopback,
    openai_client: openai.OpenAI,
    anthropic_client: anthropic.Anthropic,
    reason: Reason,
) -> None:
    give(loopback, "openai", reason)
    with pytest.raises(openai.APIStatusError) as caught:
        chat(openai_client.with_options(max_retries=0))
    assert type(caught.value) is RETRIED[reason][0]
    assert caught.value.code == reason.value
    give(loopback, "anthropic", reason)
    with pytest.raises(anthropic.APIStatusError) as other:
        message(anthropic_client.with_options(max_retries=0))
    assert type(other.value) is RETRIED[reason][1]
    assert other.value.error_code == reason.value


def test_the_sdks_do_want_to_try_again_when_we_say_so(
    loopback: Loopback, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    """Asked of the SDK's own rule, since a real retry sleeps."""
    calls: tuple[tuple[Any, str, Callable[..., Any]], ...]
    calls = ((openai_client, "openai", chat), (anthropic_client, "anthropic", message))
    for reason in (*FINAL, *RETRIED):
        for client, dialect, call in calls:
            give(loopback, dialect, reason)
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                call(client.with_options(max_retries=0))
            error: Any = caught.value
            assert client._should_retry(error.response) == (reason in RETRIED)


@pytest.mark.parametrize("reason", [Reason.UPSTREAM_BROKEN, Reason.DRAINING, Reason.SPENT])
def test_a_chat_stream_that_ends_early_raises(
    loopback: Loopback, openai_client: openai.OpenAI, reason: Reason
) -> None:
    loopback.give_stream(CHUNK, stream_error("openai", refusal(reason), REQUEST_ID))
    with chat(openai_client, stream=True) as stream:
        assert next(stream).choices[0].delta.content == "Hel"
        with pytest.raises(openai.APIError, match="ended this stream early") as caught:
            next(stream)
    assert caught.value.code == reason.value
    assert loopback.attempts == 1


def test_a_responses_stream_that_ends_early_raises(
    loopback: Loopback, openai_client: openai.OpenAI
) -> None:
    broken = refusal(Reason.UPSTREAM_BROKEN)
    loopback.give_stream(CREATED, stream_error("openai", broken, REQUEST_ID))
    with openai_client.responses.create(model="m", input="hi", stream=True) as stream:
        event = next(stream)
        assert event.type == "response.output_text.delta"
        assert event.delta == "Hel"
        with pytest.raises(openai.APIError, match="ended this stream early") as caught:
            next(stream)
    assert caught.value.code == "upstream_broken"


@pytest.mark.parametrize("reason", [Reason.UPSTREAM_BROKEN, Reason.DRAINING, Reason.SPENT])
def test_a_message_stream_that_ends_early_raises(
    loopback: Loopback, anthropic_client: anthropic.Anthropic, reason: Reason
) -> None:
    loopback.give_stream(DELTA, stream_error("anthropic", refusal(reason), REQUEST_ID))
    with message(anthropic_client, stream=True) as stream:
        assert next(stream).delta.text == "Hel"
        with pytest.raises(anthropic.APIStatusError, match="ended this stream early") as caught:
            next(stream)
    assert caught.value.error_code == reason.value
    assert caught.value.type
