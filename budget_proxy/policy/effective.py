"""Which budgets bind which calls: the answer that `check` prints, and the warnings it gives.

A call's model is known only when it comes, so a condition on the model is left open here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from budget_proxy.core.budget import FACT_KEYS, SHARED_PAYER, Budget, Condition, Facts
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.money import is_currency, show
from budget_proxy.core.window import Per
from budget_proxy.policy.mistakes import listed, quoted

LONG_WAIT_S = 60
"""Ingresses and SDKs give up at about a minute."""
_GLOB = frozenset("*?[")
UNMATCHED = "(unmatched)"
"""The route of a call that no route covers."""


class Target(NamedTuple):
    """A route of an upstream, and what its calls have amounts of."""

    upstream: str
    route: str
    units: frozenset[str]
    names_model: bool


class EffectiveBudget(NamedTuple):
    """One budget as one service meets it."""

    budget: str
    limit: str
    per: Per
    zone: str
    payer: str
    on_shortfall: str
    max_wait_s: float
    applies: tuple[str, ...]
    """`openai` for all its routes, else `openai: chat, embeddings`."""
    models: tuple[str, ...]
    """What the call's model must (not) be, as in `gpt-*-pro` or `not o1-*`."""


class Warned(NamedTuple):
    """Something odd that is no mistake, and where in the policy."""

    steps: tuple[str | int, ...]
    message: str


def is_glob(text: str) -> bool:
    """Whether a value of `when` is a pattern and no plain name."""
    return not _GLOB.isdisjoint(text)


def targets(upstreams: Iterable[Upstream]) -> Iterator[Target]:
    """Every kind of call that can go through."""
    for upstream in upstreams:
        for route in upstream.tariff.routes:
            yield Target(upstream.name, route.name, route.units, route.model is not None)
        if upstream.on_unmatched == "pass":
            yield Target(upstream.name, UNMATCHED, frozenset({"requests"}), False)
        elif upstream.on_unmatched != "refuse":
            units = frozenset({"requests", upstream.currency})
            yield Target(upstream.name, UNMATCHED, units, False)


def may_bind(budget: Budget, service: Service, target: Target) -> bool:
    """Whether this budget can pay for such a call, for some model."""
    facts = Facts(target.upstream, service.name, target.route, "", service.labels)
    return all(
        (condition.key == "model" and target.names_model) or condition.holds(facts)
        for condition in budget.when
    )


def touches(budget: Budget, service: Service, target: Target) -> bool:
    """Whether such a call can take something from this budget: bound, and in its unit."""
    return budget.unit in target.units and may_bind(budget, service, target)


def uses_model(budget: Budget) -> bool:
    """Whether the budget has to know the model of a call."""
    named = {condition.key for condition in budget.when}
    named |= {part.name for part in budget.for_each if part.kind == "fact"}
    return "model" in named


def uses_json(budget: Budget) -> bool:
    """Whether the payer stands in the body of a call."""
    return any(part.kind == "json" for part in budget.for_each)


def effective(house: House) -> dict[str, list[EffectiveBudget]]:
    """For each service, the budgets that its calls can touch, in the order of the policy."""
    return {service.name: list(_of_service(house, service)) for service in house.services.values()}


def _of_service(house: House, service: Service) -> Iterator[EffectiveBudget]:
    everything = list(targets(house.upstreams.values()))
    for budget in house.budgets:
        bound = [target for target in everything if touches(budget, service, target)]
        payer = _payer(budget, service)
        if not bound or payer is None:
            continue
        yield EffectiveBudget(
            budget=budget.name,
            limit=shown_limit(budget, payer) + _reserved(budget, payer),
            per=budget.span.per,
            zone=budget.span.zone,
            payer=payer,
            on_shortfall=budget.on_shortfall,
            max_wait_s=budget.max_wait_s,
            applies=tuple(_applies(bound, everything)),
            models=tuple(_models(budget.when)),
        )


def shown_limit(budget: Budget, payer: str) -> str:
    """A budget's limit for people: an amount, or where it comes from."""
    if budget.balance is None:
        return show(budget.limit_for(payer), budget.unit)
    kept = f" - {show(budget.keep, budget.unit)}" if budget.keep else ""
    return f"balance({budget.balance}){kept}"


def _reserved(budget: Budget, payer: str) -> str:
    """What of a limit only some may use."""
    reserve = budget.reserve_for(payer)
    return f", {show(reserve, budget.unit)} of it for priority high" if reserve else ""


def _payer(budget: Budget, service: Service) -> str | None:
    """Who pays, as far as the policy tells; None where the budget skips this service."""
    if not budget.for_each:
        return budget.everyone
    names: list[str] = []
    for part in budget.for_each:
        if part.kind == "fact" and part.name == "service":
            names.append(service.name)
        elif part.kind != "fact" or part.name in FACT_KEYS:
            names.append(f"each {part}")
        elif part.name in service.labels:
            names.append(service.labels[part.name])
        elif budget.missing == "skip":
            return None
        else:
            names.append(SHARED_PAYER if budget.missing == "share" else f"(no {part}: refused)")
    return "|".join(names)


def _applies(bound: list[Target], everything: list[Target]) -> Iterator[str]:
    for upstream in dict.fromkeys(target.upstream for target in bound):
        routes = [target.route for target in bound if target.upstream == upstream]
        total = sum(target.upstream == upstream for target in everything)
        names = ", ".join(routes)
        yield upstream if len(routes) == total else f"{upstream}: {names}"


def _models(when: Iterable[Condition]) -> Iterator[str]:
    for condition in when:
        if condition.key == "model":
            for glob in condition.globs:
                yield f"not {glob}" if condition.negate else glob


def warned(house: House) -> list[Warned]:
    """What is odd about a policy."""
    return [
        *_doubled_paths(house),
        *_long_waits(house),
        *_idle_budgets(house),
        *_idle_reserves(house),
        *_idle_allowances(house),
        *_free_riders(house),
        *_unanswered_topups(house),
    ]


def warnings(house: House) -> list[str]:
    """What is odd about a policy, one line each."""
    return [f"{'.'.join(map(str, steps))}: {message}" for steps, message in warned(house)]


def _doubled_paths(house: House) -> Iterator[Warned]:
    """`url: https://api.example.com/v1` below a tariff whose paths all begin with /v1 already."""
    for name, upstream in house.upstreams.items():
        last = urlsplit(upstream.url).path.rpartition("/")[2]
        templates = [route.template for route in upstream.tariff.routes]
        if last and all(template.startswith(f"/{last}/") for template in templates):
            yield Warned(
                ("upstreams", name, "url"),
                f"ends in /{last}, as the paths of its tariff begin: calls would be sent to "
                f"/{last}/{last}/...; leave it out here",
            )


def _long_waits(house: House) -> Iterator[Warned]:
    for budget in house.budgets:
        if budget.max_wait_s > LONG_WAIT_S:
            yield Warned(
                ("budgets", budget.name, "max_wait"),
                f"waits up to {budget.max_wait_s:g} s, but ingresses and SDKs give up at about "
                f"{LONG_WAIT_S} s",
            )


def _idle_budgets(house: House) -> Iterator[Warned]:
    everything = list(targets(house.upstreams.values()))
    for budget in house.budgets:
        place = ("budgets", budget.name)
        odd = list(_odd_labels(budget, house.services))
        yield from (Warned((*place, *where), message) for where, message in odd)
        binds = any(
            may_bind(budget, service, target)
            for service in house.services.values()
            for target in everything
        )
        if not binds:
            yield Warned((*place, "when"), "no call can meet this, so the budget never binds")


def _idle_reserves(house: House) -> Iterator[Warned]:
    """What is kept for calls that cannot come."""
    everything = list(targets(house.upstreams.values()))
    urgent = [service for service in house.services.values() if service.priority == "high"]
    for budget in house.budgets:
        if not (budget.reserve or budget.reserve_percent):
            continue
        if not any(touches(budget, service, call) for service in urgent for call in everything):
            yield Warned(
                ("budgets", budget.name, "reserve"),
                "no service of priority high is bound by this budget: nobody may use what is "
                "reserved",
            )


def _idle_allowances(house: House) -> Iterator[Warned]:
    """What may pass without the ledger by one budget, and by another of the same calls never."""
    everything = list(targets(house.upstreams.values()))
    strict = [
        budget
        for budget in house.budgets
        if budget.loss_allowance is None
        and budget.span.per != "request"
        and budget.on_shortfall != "report"
    ]
    for budget in house.budgets:
        if budget.loss_allowance is None:
            continue
        refusing = [
            next((other.name for other in strict if _surely_binds(other, service, call)), None)
            for service in house.services.values()
            for call in everything
            if touches(budget, service, call) and _payer(budget, service) is not None
        ]
        names = [name for name in dict.fromkeys(refusing) if name is not None]
        if names and None not in refusing:
            yield Warned(
                ("budgets", budget.name, "on_ledger_loss"),
                f"lets nothing pass: its calls are also in {listed(names)}, where "
                "`on_ledger_loss` is refuse (the default), and the strictest budget decides",
            )


def _surely_binds(budget: Budget, service: Service, target: Target) -> bool:
    """Whether every such call takes something from this budget, whatever it says of itself."""
    of_all_models = all(condition.key != "model" for condition in budget.when)
    skips = budget.missing == "skip" and (
        budget.caller_names_payer or uses_model(budget) or _payer(budget, service) is None
    )
    return of_all_models and not skips and touches(budget, service, target)


def _unanswered_topups(house: House) -> Iterator[Warned]:
    """What a person has to say yes to, where nobody is let."""
    if house.admin_token is not None:
        return
    for name, upstream in house.upstreams.items():
        plan = None if upstream.watch is None else upstream.watch.topup
        if plan is None:
            continue
        place = ("upstreams", name, "balance", "topup")
        if plan.mode == "ask":
            said = "each top-up waits for a person, and without `admin_token` nobody can approve it"
            yield Warned((*place, "mode"), said)
        else:
            said = (
                "whether the money came is for a person to decide where no reading tells, and "
                "without `admin_token` nobody can"
            )
            yield Warned(place, said)


def _odd_labels(budget: Budget, services: Mapping[str, Service]) -> Iterator[Warned]:
    for condition in budget.when:
        steps = ("when", "not") if condition.negate else ("when",)
        for glob in condition.globs:
            if condition.key not in FACT_KEYS and not _anyone(condition.key, glob, services):
                said = f"no service has the label {condition.key}: {quoted(glob)[1:-1]}"
                yield Warned((*steps, condition.key), said)
    if len(budget.for_each) == 1 and budget.for_each[0].kind == "fact":
        name = budget.for_each[0].name
        for payer in budget.limits if name not in FACT_KEYS else ():
            if all(service.labels.get(name) != payer for service in services.values()):
                said = f"no service has the label {name}: {quoted(payer)[1:-1]}"
                yield Warned(("limits", payer), said)


def _anyone(key: str, glob: str, services: Mapping[str, Service]) -> bool:
    condition = Condition(key, (glob,))
    return any(
        condition.holds(Facts("", name, "", "", service.labels))
        for name, service in services.items()
    )


def _free_riders(house: House) -> Iterator[Warned]:
    bound = effective(house)
    upstreams = listed(house.upstreams)
    for name, budgets in bound.items():
        if not budgets:
            yield Warned(
                ("services", name),
                f"no budget binds this service: what it spends on {upstreams} has no limit",
            )
        else:
            yield from _uncapped(house, house.services[name])


def _uncapped(house: House, service: Service) -> Iterator[Warned]:
    """The upstreams whose money no enforcing budget of a service counts."""
    enforcing = [budget for budget in house.budgets if budget.on_shortfall != "report"]
    for name, upstream in house.upstreams.items():
        calls = list(targets([upstream]))
        spent = {unit for call in calls for unit in call.units if is_currency(unit)}
        capped = {
            budget.unit
            for budget in enforcing
            for call in calls
            if budget.unit in call.units and may_bind(budget, service, call)
        }
        for currency in sorted(spent - capped):
            yield Warned(
                ("upstreams", name),
                f"what service {service.name} spends here in {currency} is in no budget that "
                "refuses or waits: nothing caps it",
            )
