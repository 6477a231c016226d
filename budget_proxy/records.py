"""What the ledger keeps of a call beside the money: who, what and how it was priced, as JSON.

Read again by `opening`, `relearning` and `folding`, and by people. Forbidden here: keys, bodies,
anything a caller typed but the model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from budget_proxy.core.book import Entry
from budget_proxy.core.budget import Facts
from budget_proxy.core.estimate import Estimate
from budget_proxy.core.house import Service, Upstream
from budget_proxy.core.learned import Class
from budget_proxy.core.route import Route
from budget_proxy.core.settlement import Settlement

_encode = msgspec.json.Encoder().encode


class About(msgspec.Struct, omit_defaults=True):
    """What is known when a hold is taken."""

    service: str = ""
    labels: dict[str, str] = {}
    upstream: str = ""
    route: str = ""
    model: str = ""
    estimate: dict[str, int] = {}
    """What was held at most, by unit; nanos for currencies."""
    ceiling: dict[str, int] = {}
    """The plain ceilings by unit, where the holds of its class were raised above them."""
    unbounded: bool = False
    """Whether a floor was held instead of a ceiling."""
    who: str = ""
    why: str = ""
    """Of a person's correction, or a remark."""
    what: dict[str, str] = {}
    """The facts of a remark."""
    fail_open: bool = False
    """Whether it passed while the ledger could not be written."""


class Result(msgspec.Struct, omit_defaults=True):
    """What is known when it ends."""

    amounts: dict[str, int] = {}
    """The actuals by unit; nanos for currencies."""
    status: int = 0
    calls: int = 0
    """How many calls a sum of old ones stands for."""


_about = msgspec.json.Decoder(About).decode
_result = msgspec.json.Decoder(Result).decode


def about_call(upstream: Upstream, service: Service, route: Route, estimate: Estimate) -> bytes:
    """The record of a hold."""
    return _encode(
        About(
            service.name,
            dict(service.labels),
            upstream.name,
            route.name,
            estimate.model,
            dict(estimate.amounts),
            dict(estimate.ceilings or {}),
            not estimate.bounded,
        )
    )


def passed_without_ledger(about: bytes) -> bytes:
    """The record of the same call, marked."""
    return _encode(msgspec.structs.replace(_about(about), fail_open=True))


def about_correction(who: str, why: str) -> bytes:
    """The record of a person's correction."""
    return _encode(About(who=who, why=why))


def about_remark(who: str, why: str, what: Mapping[str, str]) -> bytes:
    """The record of something that moves no amount, such as an attempt to top up."""
    return _encode(About(who=who, why=why, what=dict(what)))


def result_of(settlement: Settlement, status: int | None) -> bytes:
    """The record of an end."""
    return _encode(Result(dict(settlement.amounts or {}), status or 0))


def upstream_of(about: bytes) -> str:
    """The upstream of the call a hold or entry is about."""
    return _about(about).upstream


def facts_of(about: bytes) -> Facts:
    """The facts of the call a hold or entry is about."""
    call = _about(about)
    return Facts(call.upstream, call.service, call.route, call.model, call.labels)


def estimate_of(about: bytes) -> Mapping[str, int]:
    """What the call of a hold can cost at most, by unit."""
    return _about(about).estimate


def amounts_of(entry: Entry) -> Mapping[str, int]:
    """What an entry's call cost by unit: the actuals, or the ceilings where it was presumed."""
    if entry.kind == "released":
        return {}
    if entry.kind == "presumed":
        return estimate_of(entry.about)
    return _result(entry.result).amounts


def spent_since(entries: Iterable[Entry], budget: str) -> int:
    """What these entries spent of a budget."""
    return sum(leg.amount for entry in entries for leg in entry.legs if leg.budget == budget)


class Lesson(NamedTuple):
    """What an ended call teaches about ceilings: how high its own was, and what it really cost."""

    of: Class
    ceilings: Mapping[str, int]
    actual: Mapping[str, int]


def lesson_of(entry: Entry) -> Lesson | None:
    """What an entry teaches; None where no actual is known, or no ceiling was held."""
    if entry.rule != "actual":
        return None
    call = _about(entry.about)
    if call.unbounded:
        return None
    of = Class(call.upstream, call.route, call.model)
    return Lesson(of, call.ceiling or call.estimate, _result(entry.result).amounts)


class Sum(NamedTuple):
    """What calls cost together, by unit, and how many they were."""

    amounts: Mapping[str, int]
    calls: int


def sum_of(entry: Entry) -> Sum:
    """What one entry stands for: a call, a correction, or the sum of many."""
    calls = _result(entry.result).calls or 1
    return Sum({}, calls) if entry.kind == "adjusted" else Sum(amounts_of(entry), calls)


def result_of_sum(found: Sum) -> bytes:
    """The record of the end of many."""
    return _encode(Result(dict(found.amounts), calls=found.calls))


def about_sum(entry: Entry) -> bytes:
    """What is kept of who and what when an old entry is summed up."""
    if entry.kind == "adjusted":
        return about_correction("budget-proxy", "sum of old corrections")
    call = _about(entry.about)
    kept = About(call.service, call.labels, call.upstream, call.route, call.model)
    return _encode(kept)


def kind_of_call(about: bytes) -> Any:
    """What calls of one kind have in common, to compare."""
    return msgspec.to_builtins(_about(about))


def readable(entry: Entry) -> dict[str, Any]:
    """An entry for people and exports."""
    about, result = _about(entry.about), _result(entry.result)
    return {
        "id": entry.id,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "rule": entry.rule,
        **msgspec.to_builtins(about),
        **msgspec.to_builtins(result),
        "budgets": [leg._asdict() for leg in entry.legs],
    }
