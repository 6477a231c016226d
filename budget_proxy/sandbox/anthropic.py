"""The sandbox's Anthropic: messages, models, and its errors.

Shapes follow the `anthropic` SDK's types; texts of errors are the provider's. Forbidden here:
sending, waiting, charging.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from budget_proxy.sandbox.call import (
    Ask,
    Bill,
    Event,
    Object,
    Plan,
    Refusal,
    dumps,
    flag_field,
    message_texts,
    read_object,
    text_field,
    texts,
    whole_field,
)
from budget_proxy.sandbox.words import input_tokens, output_tokens, utf8_length, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from budget_proxy.sandbox.prices import PriceList

_MALFORMED = "The request body is not valid JSON"
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Anthropic:
    """Anthropic's way to word errors."""

    empty_as = "anthropic"

    def error(self, refusal: Refusal, number: int) -> Object:
        other = "api_error" if refusal.status >= 500 else "invalid_request_error"
        return {
            "type": "error",
            "error": {"type": _TYPES.get(refusal.status, other), "message": refusal.message},
            "request_id": _request_id(number),
        }

    def failure(self, status: int) -> Refusal:
        return Refusal(status, f"The sandbox was told to fail: {status}.")

    def bad_key(self) -> Refusal:
        return Refusal(401, "invalid x-api-key")

    def headers(self, number: int) -> Mapping[str, str]:
        return {"request-id": _request_id(number)}


def messages(ask: Ask) -> Plan:
    """`POST /v1/messages`, with `stream`."""
    asked = read_object(ask.body, _MALFORMED)
    model = text_field(asked, "model", "model: Field required")
    # Zero is allowed: it fills the provider's cache, and costs the input.
    limit = whole_field(asked, "max_tokens", least=0)
    if limit is None:
        raise Refusal(400, "max_tokens: Field required")
    parts = chain(texts(asked.get("system"), "system"), message_texts(asked))
    text_bytes = sum(map(utf8_length, parts))
    counted = input_tokens(ask.settings, body_bytes=len(ask.body), text_bytes=text_bytes)
    produced, limited = output_tokens(ask.settings, limit)
    stream = flag_field(asked, "stream")
    answer = _Message(ask, model, counted, produced, "max_tokens" if limited else "end_turn")
    return Plan(
        model,
        _bill(ask, model, counted, produced),
        body=None if stream else answer.body,
        events=answer.events if stream else None,
        delivered=partial(_bill, ask, model, counted),
    )


def models(prices: PriceList) -> Object:
    """`GET /v1/models` in Anthropic's shape: every model that has a price here. Free."""
    data = [
        {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
        }
        for name in prices.names("anthropic")
    ]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


class _Message:
    """The answer to one messages request, as a body or as events."""

    def __init__(self, ask: Ask, model: str, counted: int, produced: int, stop: str) -> None:
        self._ask = ask
        self._model = model
        self._counted = counted
        self._produced = produced
        self._stop = stop

    def body(self) -> Object:
        content = [{"type": "text", "text": "".join(words(self._produced))}]
        return self._message(content if self._produced else [], self._stop, self._produced)

    def events(self) -> Iterator[Event]:
        # As the provider does, the first count of output is a beginning, not the truth.
        start = self._message([], None, min(1, self._produced))
        yield _event("message_start", {"message": start}), 0
        if self._produced:
            yield from self._content()
        delta: Object = {"delta": {"stop_reason": self._stop, "stop_sequence": None}}
        if not self._ask.settings.omit_usage:
            delta["usage"] = self._usage(self._produced)
        yield _event("message_delta", delta), 0
        yield _event("message_stop", {}), 0

    def _content(self) -> Iterator[Event]:
        block = {"type": "text", "text": ""}
        yield _event("content_block_start", {"index": 0, "content_block": block}), 0
        yield _event("ping", {}), 0
        for word in words(self._produced):
            delta = {"type": "text_delta", "text": word}
            yield _event("content_block_delta", {"index": 0, "delta": delta}), 1
        yield _event("content_block_stop", {"index": 0}), 0

    def _message(self, content: list[Object], stop: str | None, produced: int) -> Object:
        message: Object = {
            "id": f"msg_{self._ask.number:016x}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
        }
        if not self._ask.settings.omit_usage:
            message["usage"] = {**self._usage(produced), "service_tier": "standard"}
        return message

    def _usage(self, produced: int) -> Object:
        return {
            "input_tokens": self._counted,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": produced,
        }


def _event(kind: str, fields: Object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + dumps({"type": kind, **fields}) + b"\n\n"


def _request_id(number: int) -> str:
    return f"req_{number:016x}"


def _bill(ask: Ask, model: str, counted: int, produced: int) -> Bill:
    price = ask.prices.price(
        "anthropic", model, input_tokens=counted, output_tokens=produced, at_s=ask.at_s
    )
    if price is None:
        raise Refusal(404, f"model: {model}")
    return Bill({"input_tokens": counted, "output_tokens": produced}, price.total_nanos)
