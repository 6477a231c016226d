"""Usage that counts nothing: whether the answer itself says otherwise.

Gateways fill in zeros where they know no usage. A call is not free for that: zeros beside a total
that is none, or beside text, are no usage at all. Forbidden here: doubting figures that are not all
zero, or that nothing speaks against (a cached or a failed answer may well be free).
"""

from __future__ import annotations

from collections.abc import Mapping

from budget_proxy.core.document import Document
from budget_proxy.core.estimate import OUTPUT
from budget_proxy.core.figure import text_bytes
from budget_proxy.core.place import json_place
from budget_proxy.core.route import Route

TOTALS = ("total_tokens", "totalTokens", "totalTokenCount")
"""What APIs call the sum of all tokens (facts: OpenAI and its kin, Bedrock, Gemini)."""
_TEXT = tuple(
    map(
        json_place,
        (
            "choices.*.message.content",
            "choices.*.message.reasoning_content",
            "choices.*.message.tool_calls.*.function",
            "choices.*.text",
            "content.*.text",
            "content.*.thinking",
            "content.*.name",
            "output.*.content.*.text",
            "output.*.arguments",
            "candidates.*.content.parts.*.text",
        ),
    )
)
"""Where whole answers carry what was generated: chats, messages, responses, Gemini's candidates."""


def tells_nothing(route: Route, quantities: Mapping[str, int]) -> bool:
    """Whether an answer that has to tell its cost counts zero of everything."""
    return bool(route.needed) and not any(quantities.values())


def says_more(route: Route, document: Document) -> bool:
    """Whether an answer that counts nothing has a total, or text where output is counted."""
    if type(document.json) is not dict:
        return False
    usages = (document.json, *(document.json.get(head) for head in route.figure_heads))
    if any(map(_has_total, usages)):
        return True
    return OUTPUT in route.needed and any(
        text_bytes(value) for place in _TEXT for value in place.values(document)
    )


def _has_total(usage: object) -> bool:
    """Whether there is a total above zero in what holds figures, or one step below (a stream's
    events wrap the answer)."""
    if not isinstance(usage, dict):
        return False
    inner = [usage, *(value for value in usage.values() if type(value) is dict)]
    return any(
        type(part.get(name)) in (int, float) and part[name] > 0 for part in inner for name in TOTALS
    )
