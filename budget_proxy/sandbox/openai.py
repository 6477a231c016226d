"""The sandbox's OpenAI: chat completions, responses, embeddings, models, and its errors.

DeepSeek, which took over the form of the chat, is served by it too, at its own prices.

Each plan is made from the request alone. Shapes follow the `openai` SDK's types; texts of errors
are the provider's. Forbidden here: sending, waiting, charging.

Not served, and refused rather than billed wrongly: earlier responses by id, background responses.
"""

from __future__ import annotations

import base64
import struct
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
    from collections.abc import Iterable, Iterator, Mapping

    from budget_proxy.sandbox.prices import PriceList, ProviderName

_MALFORMED = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not "
    "valid JSON.)"
)
_NO_MODEL = "you must provide a model parameter"
_MAX_CHOICES = 128
_MAX_INPUTS = 2048
_DIMENSIONS = 8
_MAX_DIMENSIONS = 3072
# Stands for the text of a chunk while the rest of it is written, once per choice.
_MARK = '"\\u0000"'

_SELLERS: tuple[ProviderName, ...] = ("openai", "deepseek")
"""Who sells in this form. No two have a model of the same name."""

_TYPES = {401: "invalid_request_error", 429: "requests"}
_CODES = {429: "rate_limit_exceeded", 401: "invalid_api_key"}


class OpenAI:
    """OpenAI's way to word errors."""

    empty_as = "openai"

    def error(self, refusal: Refusal, number: int) -> Object:  # noqa: ARG002 (others name it)
        kind = _TYPES.get(refusal.status, "invalid_request_error")
        if refusal.status >= 500:
            kind = "server_error"
        return {
            "error": {
                "message": refusal.message,
                "type": kind,
                "param": refusal.param,
                "code": refusal.code,
            }
        }

    def failure(self, status: int) -> Refusal:
        return Refusal(status, f"The sandbox was told to fail: {status}.", code=_CODES.get(status))

    def bad_key(self) -> Refusal:
        return Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    def headers(self, number: int) -> Mapping[str, str]:
        return {"x-request-id": f"req_{number:016x}"}


def chat(ask: Ask) -> Plan:
    """`POST /v1/chat/completions`, with `stream` and `n`."""
    asked = read_object(ask.body, _MALFORMED)
    model = text_field(asked, "model", _NO_MODEL)
    choices = whole_field(asked, "n", least=1, most=_MAX_CHOICES) or 1
    counted = _input(ask, message_texts(asked))
    each, limited = output_tokens(ask.settings, _chat_limit(asked))
    stream = flag_field(asked, "stream")
    with_usage = _include_usage(asked, stream) and not ask.settings.omit_usage
    answer = _Chat(ask, model, choices, counted, each, "length" if limited else "stop")
    return Plan(
        model,
        _bill(ask, model, counted, choices * each),
        body=None if stream else answer.body,
        events=partial(answer.events, with_usage) if stream else None,
        delivered=partial(_bill, ask, model, counted),
    )


def responses(ask: Ask) -> Plan:
    """`POST /v1/responses`, with `stream`."""
    asked = read_object(ask.body, _MALFORMED)
    model = text_field(asked, "model", _NO_MODEL)
    if asked.get("previous_response_id") is not None:
        raise Refusal(
            400,
            "Previous response not found: the sandbox keeps none.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    if flag_field(asked, "background"):
        raise Refusal(400, "The sandbox has no background responses.", param="background")
    counted = _input(ask, _response_texts(asked))
    limit = whole_field(asked, "max_output_tokens", least=1)
    produced, limited = output_tokens(ask.settings, limit)
    stream = flag_field(asked, "stream")
    answer = _Response(ask, model, counted, produced, limit, limited)
    return Plan(
        model,
        _bill(ask, model, counted, produced),
        body=None if stream else answer.final,
        events=answer.events if stream else None,
        delivered=partial(_bill, ask, model, counted),
    )


def embeddings(ask: Ask) -> Plan:
    """`POST /v1/embeddings`, in floats or base64."""
    asked = read_object(ask.body, _MALFORMED)
    model = text_field(asked, "model", _NO_MODEL)
    inputs = _embedding_inputs(asked.get("input"))
    coding = asked.get("encoding_format") or "float"
    if coding not in ("float", "base64"):
        raise Refusal(400, "Invalid 'encoding_format'.", param="encoding_format")
    size = whole_field(asked, "dimensions", least=1, most=_MAX_DIMENSIONS) or _DIMENSIONS
    text_bytes = sum(utf8_length(item) for item in inputs if isinstance(item, str))
    given = sum(item for item in inputs if isinstance(item, int))
    counted = input_tokens(
        ask.settings, body_bytes=len(ask.body), text_bytes=text_bytes, given=given
    )
    usage = {"prompt_tokens": counted, "total_tokens": counted}

    def body() -> Object:
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(index, size, coding)}
            for index in range(len(inputs))
        ]
        answer: Object = {"object": "list", "data": data, "model": model}
        return answer if ask.settings.omit_usage else {**answer, "usage": usage}

    return Plan(model, _bill(ask, model, counted, 0, generates=False), body=body)


def models(prices: PriceList) -> Object:
    """`GET /v1/models`: every model that has a price here. Free."""
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "sandbox"}
        for seller in _SELLERS
        for name in prices.names(seller)
    ]
    return {"object": "list", "data": data}


class _Chat:
    """The answer to one chat request, as a body or as events."""

    def __init__(
        self, ask: Ask, model: str, choices: int, counted: int, each: int, finish: str
    ) -> None:
        self._ask = ask
        self._choices = choices
        self._each = each
        self._finish = finish
        self._usage = {
            "prompt_tokens": counted,
            "completion_tokens": choices * each,
            "total_tokens": counted + choices * each,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        if model.lower().startswith("deepseek"):
            self._usage |= {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": counted}
        self._common = {
            "id": f"chatcmpl-{ask.number:016x}",
            "created": int(ask.at_s),
            "model": model,
            "service_tier": "default",
            "system_fingerprint": None,
        }

    def body(self) -> Object:
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(words(self._each, index)),
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": self._finish,
            }
            for index in range(self._choices)
        ]
        answer: Object = {**self._common, "object": "chat.completion", "choices": choices}
        if not self._ask.settings.omit_usage:
            answer["usage"] = self._usage
        return answer

    def events(self, with_usage: bool) -> Iterator[Event]:
        tail: Object = {"usage": None} if with_usage else {}
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, tail), 0
        for index in range(self._choices):
            before, after = self._around(index, tail)
            for word in words(self._each, index):
                yield f'{before}"{word}"{after}'.encode(), 1
        for index in range(self._choices):
            yield self._chunk(index, {}, self._finish, tail), 0
        if with_usage:
            yield self._event({"choices": [], "usage": self._usage}), 0
        yield b"data: [DONE]\n\n", 0

    def _around(self, index: int, tail: Object) -> tuple[str, str]:
        # A chunk differs from the next in its word only, and words need no escaping.
        chunk = self._chunk(index, {"content": "\0"}, None, tail).decode()
        before, _, after = chunk.rpartition(_MARK)
        return before, after

    def _chunk(self, index: int, delta: Object, finish: str | None, tail: Object) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event({"choices": [choice], **tail})

    def _event(self, fields: Object) -> bytes:
        chunk = {**self._common, "object": "chat.completion.chunk", **fields}
        return b"data: " + dumps(chunk) + b"\n\n"


class _Response:
    """The answer to one request to the responses endpoint, as a body or as events."""

    def __init__(
        self, ask: Ask, model: str, counted: int, produced: int, limit: int | None, limited: bool
    ) -> None:
        self._ask = ask
        self._model = model
        self._counted = counted
        self._produced = produced
        self._limit = limit
        self._status = "incomplete" if limited else "completed"
        self._item_id = f"msg_{ask.number:016x}"

    def final(self) -> Object:
        text = "".join(words(self._produced))
        usage = None if self._ask.settings.omit_usage else self._usage()
        return self._response(self._status, [self._item(self._status, [_part(text)])], usage)

    def events(self) -> Iterator[Event]:
        for number, (kind, fields, tokens) in enumerate(self._story()):
            event = {"type": kind, "sequence_number": number, **fields}
            yield b"event: " + kind.encode() + b"\ndata: " + dumps(event) + b"\n\n", tokens

    def _story(self) -> Iterator[tuple[str, Object, int]]:
        text = "".join(words(self._produced))
        place: Object = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        begun = self._response("in_progress", [], None)
        yield "response.created", {"response": begun}, 0
        yield "response.in_progress", {"response": begun}, 0
        item = self._item("in_progress", [])
        yield "response.output_item.added", {"output_index": 0, "item": item}, 0
        yield "response.content_part.added", {**place, "part": _part("")}, 0
        for word in words(self._produced):
            yield "response.output_text.delta", {**place, "delta": word, "logprobs": []}, 1
        yield "response.output_text.done", {**place, "text": text, "logprobs": []}, 0
        yield "response.content_part.done", {**place, "part": _part(text)}, 0
        item = self._item(self._status, [_part(text)])
        yield "response.output_item.done", {"output_index": 0, "item": item}, 0
        yield f"response.{self._status}", {"response": self.final()}, 0

    def _usage(self) -> Object:
        return {
            "input_tokens": self._counted,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self._produced,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._counted + self._produced,
        }

    def _item(self, status: str, content: list[Object]) -> Object:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, output: list[Object], usage: Object | None) -> Object:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self._ask.number:016x}",
            "object": "response",
            "created_at": int(self._ask.at_s),
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": None,
            "max_output_tokens": self._limit,
            "metadata": {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "service_tier": "default",
            "temperature": 1,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1,
            "usage": usage,
        }


def _part(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _bill(ask: Ask, model: str, counted: int, produced: int, *, generates: bool = True) -> Bill:
    price = None
    for seller in _SELLERS:
        price = price or ask.prices.price(
            seller, model, input_tokens=counted, output_tokens=produced, at_s=ask.at_s
        )
    # A model without a price for what the endpoint makes is not a model of this endpoint; served
    # all the same, it would be free.
    if price is None or price.generates != generates or price.total_nanos == 0:
        raise Refusal(
            404,
            f"The model `{model}` does not exist or you do not have access to it.",
            code="model_not_found",
        )
    quantities = {"input_tokens": counted}
    if generates:
        quantities["output_tokens"] = produced
    return Bill(quantities, price.total_nanos)


def _input(ask: Ask, parts: Iterable[str]) -> int:
    text_bytes = sum(map(utf8_length, parts))
    return input_tokens(ask.settings, body_bytes=len(ask.body), text_bytes=text_bytes)


def _chat_limit(asked: Object) -> int | None:
    newer = whole_field(asked, "max_completion_tokens", least=1)
    older = whole_field(asked, "max_tokens", least=1)
    if newer is not None and older is not None:
        raise Refusal(
            400,
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            code="invalid_parameter_combination",
            param="max_tokens",
        )
    return newer if newer is not None else older


def _include_usage(asked: Object, stream: bool) -> bool:
    options = asked.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise Refusal(
            400,
            "The 'stream_options' parameter is an object, only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return flag_field(options, "include_usage")


def _response_texts(asked: Object) -> Iterator[str]:
    given = asked.get("input")
    if given is None:
        raise Refusal(400, "Missing required parameter: 'input'.", param="input")
    return chain(texts(asked.get("instructions"), "instructions"), texts(given, "input"))


def _embedding_inputs(given: object) -> list[str | int]:
    """One entry for each vector to make: its text, or how many token ids it came as."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not 0 < len(given) <= _MAX_INPUTS:
        raise Refusal(400, f"Invalid 'input': give 1 to {_MAX_INPUTS} texts.", param="input")
    if all(isinstance(item, str) for item in given):
        return given
    if _are_token_ids(given):
        return [len(given)]
    if all(_are_token_ids(item) for item in given):
        return [len(item) for item in given]
    raise Refusal(400, "Invalid 'input': expected texts or token ids.", param="input")


def _are_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _vector(index: int, size: int, coding: str) -> list[float] | str:
    values = [((index + position) % 7 - 3) / 4 for position in range(size)]
    if coding == "base64":
        return base64.b64encode(struct.pack(f"<{size}f", *values)).decode()
    return values
