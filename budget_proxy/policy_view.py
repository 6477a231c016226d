"""The policy in force, for people and programs: what of it may be shown.

Pure. Everything shown is named here, one by one, so that a new field of a policy stays out until it
is listed. Forbidden here: I/O, clocks, credentials and their digests, and any part of a URL but its
host.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from budget_proxy.core.budget import EVERYONE, Budget, Condition
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.money import exact
from budget_proxy.policy.effective import shown_limit


def policy_json(house: House) -> dict[str, Any]:
    """What may be shown of a policy. Limits are exact decimal strings."""
    return {
        "listen": _address(house.listen),
        "admin": _address(house.admin),
        "ledger": house.ledger.partition(":")[0],
        "upstreams": [_upstream(upstream) for upstream in house.upstreams.values()],
        "services": [_service(service) for service in house.services.values()],
        "budgets": [_budget(budget) for budget in house.budgets],
    }


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _upstream(upstream: Upstream) -> dict[str, Any]:
    return {
        "name": upstream.name,
        "host": urlsplit(upstream.url).hostname or "",
        "mount": upstream.mount,
        "tariff": upstream.tariff.name,
        "dialect": upstream.dialect,
        "currency": upstream.currency,
    }


def _service(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "labels": dict(service.labels),
        "priority": service.priority,
        "weight": service.weight,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "name": budget.name,
        "limit": shown_limit(budget, EVERYONE),
        "limits": {payer: exact(limit, budget.unit) for payer, limit in budget.limits.items()},
        "per": budget.span.per,
        "timezone": budget.span.zone,
        "for_each": [str(part) for part in budget.for_each],
        "when": [_condition(condition) for condition in budget.when],
        "on_shortfall": budget.on_shortfall,
        "max_wait_s": budget.max_wait_s,
    }


def _condition(condition: Condition) -> dict[str, Any]:
    return {"key": condition.key, "any_of": list(condition.globs), "not": condition.negate}
