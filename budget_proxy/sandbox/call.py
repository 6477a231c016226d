"""One call, as the provider's handlers see it: what was asked, what is decided, what is refused.

Values only. A provider's room reads an `Ask` and returns a `Plan`, or raises a `Refusal`; it never
waits, charges or sends: `serving.py` does that, once, for all of them. Forbidden here: the HTTP
library and the bank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from budget_proxy.sandbox.prices import PriceList
    from budget_proxy.sandbox.settings import Settings

MAX_BODY_BYTES = 32 * 1024 * 1024

_MAX_NESTING = 8
_JSON = json.JSONEncoder(separators=(",", ":"))

Object = dict[str, Any]
Event = tuple[bytes, int]
"""One event of a stream as it is sent, and how many output tokens it carries."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as it arrived: body with its coding undone, and the settings that hold for it.

    `number` is unique for the life of the sandbox; `at_s` is in seconds since 1970.
    """

    body: bytes
    query: Mapping[str, str]
    settings: Settings
    prices: PriceList
    number: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Bill:
    """Quantities and what they cost together, in nanos (10^-9 US dollar)."""

    quantities: Mapping[str, int]
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen: what it costs, and the answer, either a body or the events of a stream.

    `delivered` bills only the first so many output tokens, for a stream that was cut short.
    """

    model: str | None
    bill: Bill
    body: Callable[[], Object] | None = None
    events: Callable[[], Iterator[Event]] | None = None
    delivered: Callable[[int], Bill] | None = None


class Refusal(Exception):  # noqa: N818 (not an error of the program: an answer)
    """A request that is answered with an error and costs nothing."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


class Dialect(Protocol):
    """How one provider words its errors."""

    @property
    def empty_as(self) -> str:
        """The row of `emptiness.py` for a call that the prepaid balance cannot carry."""
        ...

    def error(self, refusal: Refusal, number: int) -> Object:
        """The JSON body of an error."""
        ...

    def failure(self, status: int) -> Refusal:
        """What the provider answers when it fails with this status."""
        ...

    def bad_key(self) -> Refusal:
        """What the provider answers to a missing or wrong key."""
        ...

    def headers(self, number: int) -> Mapping[str, str]:
        """The headers that the provider puts on every answer."""
        ...


def dumps(value: object) -> bytes:
    """Compact JSON; half surrogates stay escaped, so that no text can break the answer."""
    return _JSON.encode(value).encode()


def read_object(body: bytes, complaint: str) -> Object:
    """The JSON object in the body, or a 400 with the provider's complaint."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refusal(400, complaint) from None
    if not isinstance(value, dict):
        raise Refusal(400, complaint)
    return value


def text_field(asked: Object, name: str, missing: str) -> str:
    """A text that must be there."""
    value = asked.get(name)
    if value is None:
        raise Refusal(400, missing, param=name)
    if not isinstance(value, str) or not value:
        raise Refusal(400, f"Invalid type for '{name}': expected a string.", param=name)
    return value


def flag_field(asked: Object, name: str) -> bool:
    """A boolean that may be absent or null, which is false."""
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"Invalid type for '{name}': expected a boolean.", param=name)
    return bool(value)


def whole_field(asked: Object, name: str, *, least: int, most: int = 2**31) -> int | None:
    """A whole number that may be absent or null."""
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(400, f"Invalid type for '{name}': expected an integer.", param=name)
    if not least <= value <= most:
        raise Refusal(
            400, f"Invalid '{name}': expected a value from {least} to {most}.", param=name
        )
    return value


def texts(content: object, name: str, depth: int = 0) -> Iterator[str]:
    """Every text of a message's content: a string, or parts with a `text` or a `content`.

    Parts of other kinds (pictures, tool calls) hold no text and count nothing.
    """
    if content is None:
        return
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list) or depth > _MAX_NESTING:
        raise Refusal(400, f"Invalid type for '{name}': expected a string or parts.", param=name)
    for part in content:
        if not isinstance(part, dict):
            raise Refusal(400, f"Invalid type for '{name}': expected objects.", param=name)
        text = part.get("text")
        if isinstance(text, str):
            yield text
        if "content" in part:
            yield from texts(part["content"], name, depth + 1)


def message_texts(asked: Object) -> Iterator[str]:
    """Every text of `messages`, which must be a list of objects that each have a role."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(
            400, "Invalid 'messages': expected a list that is not empty.", param="messages"
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(
                400, "Invalid 'messages': each must be an object with a role.", param="messages"
            )
        yield from texts(message.get("content"), "messages")
