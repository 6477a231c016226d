"""The shipped tariffs with their real prices, and calls to price, for tests of money."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from msgspec.structs import replace

from budget_proxy.arrival import decoded
from budget_proxy.catalogue import Catalogue
from budget_proxy.core.document import Document
from budget_proxy.core.estimate import Estimate, estimate
from budget_proxy.core.headers import by_name
from budget_proxy.core.house import Upstream
from budget_proxy.core.meter import Figures, Meter, meter_for
from budget_proxy.core.rate import Rate
from budget_proxy.core.reading import Reading
from budget_proxy.core.refusal import Reason, Refusal, RefusedError
from budget_proxy.core.route import Route
from budget_proxy.policy import load

UNHURRIED = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
"""For tests with made-up values: on a busy machine nothing is late."""
NOW_S = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
POLICY = """
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
ledger: sqlite:///ledger.db
upstreams:
  openai: {url: "https://api.openai.com", tariff: openai, credential: pass}
  anthropic: {url: "https://api.anthropic.com", tariff: anthropic, credential: pass}
  deepseek: {url: "https://api.deepseek.com", tariff: deepseek, credential: pass}
services: {tests: {key: test-key-0000}}
budgets: {company: {limit: 1000 USD, per: total}}
"""


@cache
def _upstreams() -> dict[str, Upstream]:
    with TemporaryDirectory() as folder:
        file = Path(folder, "policy.yaml")
        file.write_text(POLICY)
        return dict(load(file, environment={}, prices=Catalogue).upstreams)


def shipped(name: str, **more: Any) -> Upstream:
    """An upstream as a policy builds it, with some members changed."""
    return dataclasses.replace(_upstreams()[name], **more)


def route_of(upstream: Upstream, name: str) -> Route:
    """One of its routes."""
    return next(route for route in upstream.tariff.routes if route.name == name)


def priced(
    upstream: Upstream,
    route: str,
    body: bytes | dict[str, Any],
    *,
    now_s: float = NOW_S,
    editable: bool = True,
) -> Estimate:
    """The ceiling of a call with this body; not `editable`: as one that came compressed."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = route_of(upstream, route)
    reading = Reading([found])
    document = decoded(Document(), data, reading, len(data))
    kept = data if editable else None
    narrow = reading.narrow(found, document.names)
    answer = estimate(narrow, upstream, document, kept, now_s)
    # What is left out of a route for want of its names changes nothing.
    assert answer == estimate(found, upstream, replace(document, names=None), kept, now_s)
    return answer


def refused(
    upstream: Upstream, route: str, body: bytes | dict[str, Any], reason: Reason, **more: Any
) -> Refusal:
    """The refusal that a call with this body gets."""
    with pytest.raises(RefusedError) as caught:
        priced(upstream, route, body, **more)
    assert caught.value.refusal.reason is reason, caught.value.refusal.detail
    return caught.value.refusal


def meter(
    route: Route, kind: str = "application/json", *, drops: bool = False, **more: str
) -> Meter:
    """A meter for an answer of this content type; `more` are headers, with `_` for `-`."""
    pairs = [(b"content-type", kind.encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    return meter_for(route, drops_usage=drops, headers=by_name(pairs))


def read(meter: Meter, *chunks: bytes) -> tuple[bytes, Figures]:
    """What passes of an answer in these pieces, and its figures at the end."""
    passed = b"".join([meter.feed(chunk) for chunk in chunks])
    passed += meter.close()
    return passed, meter.figures


class Prices:
    """Made-up model prices: by model and tier, in nanos a piece."""

    def __init__(self, table: dict[tuple[str, str], dict[str, int]], max_output: int | None = None):
        self.table = table
        self.most = max_output

    def rates(self, model: str, tier: str, now_s: float) -> dict[str, Rate] | None:
        found = self.table.get((model, tier))
        return None if found is None else {name: Rate(nanos) for name, nanos in found.items()}

    def max_output(self, model: str) -> int | None:
        return self.most
