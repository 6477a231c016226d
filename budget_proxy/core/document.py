"""Document: what a quantity is read from, before the call and after it.

Plain data, made where a request or an answer is decoded. Forbidden here: reading anything from it
(`place`, `source`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from budget_proxy.core.headers import NO_HEADERS, Index


class Document(msgspec.Struct, frozen=True):
    """What a quantity is read from: a request, or an answer (or one event of a stream)."""

    json: Any = None
    body_bytes: int = 0
    query: Mapping[str, str] = {}
    headers: Index = NO_HEADERS
    captures: Mapping[str, str] = {}
    names: frozenset[bytes] | None = None
    """Of the names that are asked for (`needle_of`) those that stand in the body's bytes: another
    is surely no member in the JSON. None: nobody looked."""
