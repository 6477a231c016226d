"""Usage that counts nothing: whether the answer itself says otherwise.

Gateways fill in zeros where they know no usage. A call is not free for that: zeros beside a total
that is none, or beside content, are no usage at all. Forbidden here: doubting figures that are not
all zero, or that nothing speaks against (a cached or a failed answer may well be free).
"""

from __future__ import annotations

from collections.abc import Mapping

from budget_proxy.core.document import Document
from budget_proxy.core.estimate import OUTPUT
from budget_proxy.core.place import json_place
from budget_proxy.core.route import Route

TOTALS = ("total_tokens", "totalTokens", "totalTokenCount")
"""What APIs call the sum of all tokens (facts: OpenAI and its kin, Bedrock, Gemini)."""
_MADE = tuple(
    map(
        json_place,
        (
            "choices.*.message",
            "choices.*.text",
            "content.*",
            "output.*",
            "response.output.*",
            "candidates.*.content",
        ),
    )
)
"""Where answers carry what was generated: chats, messages, responses (a stream's last event wraps
one), Gemini's candidates."""
_NAMES = frozenset(
    (
        "type",
        "role",
        "id",
        "call_id",
        "object",
        "status",
        "phase",
        "index",
        "stop_reason",
        "stop_sequence",
        "finish_reason",
        "finishReason",
    )
)
"""Members that say what a thing is, or how it ended, and are none of its content."""


def tells_nothing(route: Route, quantities: Mapping[str, int]) -> bool:
    """Whether an answer that has to tell its cost counts zero of everything; where it has to tell
    tokens, of all tokens: what else there was (a search) was not done without any."""
    tokens = not route.needed.isdisjoint(route.total_of)
    return bool(route.needed) and not any(
        quantities.get(name) for name in (route.total_of if tokens else quantities)
    )


def says_more(route: Route, document: Document, *, long: bool = False) -> bool:
    """Whether an answer that counts nothing has a total, or content where that is counted. Of a
    `long` one only the usage was kept: it had content."""
    if type(document.json) is not dict:
        return False
    usages = (document.json, *(document.json.get(head) for head in route.figure_heads))
    if any(map(_has_total, usages)):
        return True
    if not route.needed.isdisjoint(route.input_kinds) and (long or _has_data(document.json)):
        return True
    return OUTPUT in route.needed and (
        long or any(_has_content(value) for place in _MADE for value in place.values(document))
    )


def _has_data(answer: Mapping[str, object]) -> bool:
    """Whether something was made of the input (embeddings)."""
    data = answer.get("data")
    return type(data) is list and bool(data)


def _has_content(value: object) -> bool:
    """Whether there is any text in a JSON value, or numbers in a list, names left out. Iterative:
    it may be nested deeply."""
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is str and item:
            return True
        if type(item) is dict:
            pending.extend(item[name] for name in item if name not in _NAMES)
        elif type(item) is list:
            if any(type(inner) in (int, float) for inner in item):
                return True
            pending.extend(item)
    return False


def _has_total(usage: object) -> bool:
    """Whether there is a total above zero in what holds figures, or one step below (a stream's
    events wrap the answer)."""
    if not isinstance(usage, dict):
        return False
    inner = [usage, *(value for value in usage.values() if type(value) is dict)]
    return any(
        type(part.get(name)) in (int, float) and part[name] > 0 for part in inner for name in TOTALS
    )
