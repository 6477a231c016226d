"""The sandbox's geocoder: a paid API that is no language model. Each look-up costs the same.

Forbidden here: sending, waiting, charging.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from budget_proxy.sandbox.call import Ask, Bill, Object, Plan, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOKUP_NANOS = 5_000_000
"""0.005 US dollar for one look-up."""

_STATUSES = {400: "INVALID_REQUEST", 402: "PAYMENT_REQUIRED", 429: "OVER_QUERY_LIMIT"}


class Geocoder:
    """The geocoder's way to word errors."""

    empty_as = "geocoder"

    def error(self, refusal: Refusal, number: int) -> Object:  # noqa: ARG002 (others name it)
        other = "UNKNOWN_ERROR" if refusal.status >= 500 else "REQUEST_DENIED"
        return {
            "status": _STATUSES.get(refusal.status, other),
            "error_message": refusal.message,
            "results": [],
        }

    def failure(self, status: int) -> Refusal:
        return Refusal(status, f"The sandbox was told to fail: {status}.")

    def bad_key(self) -> Refusal:
        return Refusal(401, "The provided API key is invalid.")

    def headers(self, number: int) -> Mapping[str, str]:
        return {"x-request-id": f"req_{number:016x}"}


def geocode(ask: Ask) -> Plan:
    """`GET /v1/geocode?q=`: a made-up place, the same for the same question."""
    question = ask.query.get("q")
    if not question:
        raise Refusal(400, "Missing parameter: q.", param="q")
    place = zlib.crc32(question.encode("utf-8", "surrogatepass"))

    def body() -> Object:
        location = {"lat": place % 180_000 / 1000 - 90, "lng": place % 360_000 / 1000 - 180}
        return {"status": "OK", "results": [{"query": question, "location": location}]}

    return Plan(None, Bill({"requests": 1}, LOOKUP_NANOS), body=body)
