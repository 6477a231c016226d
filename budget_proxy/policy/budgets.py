"""The `budgets:` section, built, and checked against the upstreams and services there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from budget_proxy.core.alert import Threshold
from budget_proxy.core.book import FROM_LEDGER
from budget_proxy.core.budget import FACT_KEYS, Budget, Condition, PayerPart
from budget_proxy.core.house import Service, Upstream
from budget_proxy.core.route import Route
from budget_proxy.core.window import Span
from budget_proxy.policy.alerts import Shares, given_thresholds
from budget_proxy.policy.effective import (
    Target,
    is_glob,
    may_bind,
    targets,
    touches,
    uses_json,
    uses_model,
)
from budget_proxy.policy.mistakes import listed, quoted, suggest
from budget_proxy.policy.model import BudgetEntry, CallerPayer, WhenForm
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.sources import dotted, header_name, one_of
from budget_proxy.policy.upstreams import check_name
from budget_proxy.policy.values import Amount, Follows, Share, texts

DEFAULT_MAX_WAIT_S = 20.0
MAX_PAYERS = 10_000_000
_TIMELESS = ("request", "total")
_NOT_OF_A_BALANCE = ("per", "timezone", "for_each", "limits", "was", "opening")
_CALLER_PLACES = {"header": "header", "json": "json_path"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a budget can speak of. Names include those of entries that have mistakes of their own;
    `whole` is false where there are any, and what depends on all of them is not judged then."""

    upstreams: Mapping[str, Upstream]
    services: Mapping[str, Service]
    upstream_names: frozenset[str]
    service_names: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether every upstream and service is known in full."""
        built = len(self.upstreams) + len(self.services)
        return built == len(self.upstream_names) + len(self.service_names)

    @property
    def labels(self) -> frozenset[str]:
        """Every label that at least one service has."""
        return frozenset(name for service in self.services.values() for name in service.labels)

    @property
    def routes(self) -> frozenset[str]:
        """The name of every route of every upstream."""
        found = (route for upstream in self.upstreams.values() for route in upstream.tariff.routes)
        return frozenset(route.name for route in found)

    def names_of(self, key: str) -> frozenset[str] | None:
        """The possible values of a fact; None where they are not known."""
        if key == "upstream":
            return self.upstream_names
        if key == "service":
            return self.service_names
        return self.routes if key == "route" and self.whole else None


def build_budget(spot: Spot, name: str, entry: BudgetEntry, scope: Scope) -> Budget:
    """One budget; what is wrong with it is said at the spot."""
    check_name(spot, name)
    timeless = entry.per in _TIMELESS
    zone = "UTC" if timeless else entry.timezone or "UTC"
    parts = tuple(_parts(spot.at("for_each"), entry, scope))
    _check_window(spot, entry)
    _check_waiting(spot, entry)
    _check_payers(spot, entry, parts)
    limit = _limit(spot, entry, scope)
    reserve = _reserve(spot.at("reserve"), entry, limit)
    return Budget(
        name=name,
        limit=limit.steps,
        unit=limit.unit,
        span=Span(entry.per, zone),
        when=tuple(_conditions(spot.at("when"), entry.when or {}, scope)),
        for_each=parts,
        limits=_limits(spot.at("limits"), entry, limit.unit, parts, scope),
        on_shortfall=entry.on_shortfall or "refuse",
        max_wait_s=_max_wait_s(entry),
        missing=entry.missing or "refuse",
        max_payers=entry.max_payers,
        was=entry.was,
        opening=entry.opening or "history",
        loss_allowance=_loss_allowance(spot, entry, limit.unit),
        balance=entry.limit.upstream if isinstance(entry.limit, Follows) else None,
        keep=_keep(spot, entry, limit.unit),
        reserve=reserve.steps if isinstance(reserve, Amount) else 0,
        reserve_percent=reserve.percent if isinstance(reserve, Share) else 0,
        alerts=_alerts(spot, entry, limit),
        gone_before_s=entry.gone_before,
    )


def _limit(spot: Spot, entry: BudgetEntry, scope: Scope) -> Amount:
    """The limit with its unit, which is that of the balance where it follows one."""
    if isinstance(entry.limit, Amount):
        return entry.limit
    name = entry.limit.upstream
    here = spot.at("limit")
    if name not in scope.upstream_names:
        hint = suggest(name, scope.upstream_names) or f"; there are {listed(scope.upstream_names)}"
        here.wrong(f"there is no upstream {quoted(name)}{hint}")
    for key in _NOT_OF_A_BALANCE:
        if key in entry.model_fields_set:
            spot.wrong_key(key, f"`{key}` is not for a budget on a balance, which is one account")
    upstream = scope.upstreams.get(name)
    if upstream is not None and upstream.watch is None:
        here.wrong(
            f"upstream {quoted(name)} has no `balance:`; name a preset there, say how to ask for "
            "it, or write `balance: manual`"
        )
    _check_sees_all(spot, entry, name, scope)
    watch = None if upstream is None else upstream.watch
    return Amount(FROM_LEDGER, "USD" if watch is None else watch.unit)


def _check_sees_all(spot: Spot, entry: BudgetEntry, upstream: str, scope: Scope) -> None:
    """A budget on a balance knows what is spent of it only if it binds every call, and no other."""
    when = entry.when or {}
    others = sorted(when.keys() - {"upstream"})
    for key in others:
        spot.at("when").wrong_key(
            key,
            "a budget on a balance has to see all that is spent of it: only `upstream` may stand "
            "here; keep shares apart with `reserve` or further budgets",
        )
    named = when.get("upstream")
    globs = () if named is None or isinstance(named, dict) else texts(named)
    if named is None and len(scope.upstream_names) > 1:
        spot.wrong(
            f"write `when: {{upstream: {upstream}}}`: else calls of other upstreams count as if "
            "they were paid from this balance"
        )
    elif globs and not any(fnmatchcase(upstream, glob) for glob in globs):
        spot.at("when", "upstream").wrong(f"must be {quoted(upstream)}, whose balance it is")


def _keep(spot: Spot, entry: BudgetEntry, unit: str) -> int:
    if entry.keep is None:
        return 0
    if not isinstance(entry.limit, Follows):
        spot.wrong_key("keep", "`keep` is for a budget on a balance; a limit is simply lower")
    elif entry.keep.unit != unit:
        spot.at("keep").wrong(f"must be in {unit}, as the balance is, not {entry.keep.unit}")
    return entry.keep.steps


def _reserve(spot: Spot, entry: BudgetEntry, limit: Amount) -> Amount | Share | None:
    reserve = entry.reserve
    if reserve is None:
        return None
    if entry.per == "request":
        spot.wrong("a limit per request has nothing that others could use up")
    if isinstance(reserve, Share):
        if limit.steps == FROM_LEDGER:
            spot.wrong("must be an amount: a balance has no limit to take a share of")
        return reserve
    if reserve.unit != limit.unit:
        spot.wrong(f"must be in {limit.unit}, as `limit` is, not {reserve.unit}")
    elif limit.steps != FROM_LEDGER and reserve.steps >= limit.steps:
        spot.wrong("must be less than the limit: else only priority high could ever call")
    return reserve


def _alerts(spot: Spot, entry: BudgetEntry, limit: Amount) -> tuple[Threshold, ...]:
    if entry.per == "request":
        for key in ("alert", "gone_before"):
            if getattr(entry, key) is not None:
                spot.wrong_key(key, "a limit per request has no account that fills")
        return ()
    if entry.per == "minute" and (entry.alert or entry.gone_before):
        spot.note("alerts on a budget per minute: that is an alert in every busy minute")
    here, exceeds = spot.at("alert"), entry.on_shortfall == "report"
    if limit.steps == FROM_LEDGER:
        return given_thresholds(here, entry.alert, limit.unit, limit=None, shares="none")
    shares: Shares = "beyond" if exceeds else "up to it"
    return given_thresholds(here, entry.alert, limit.unit, limit=limit.steps, shares=shares)


def _max_wait_s(entry: BudgetEntry) -> float:
    if entry.on_shortfall != "wait":
        return 0.0
    return DEFAULT_MAX_WAIT_S if entry.max_wait is None else entry.max_wait


def _check_window(spot: Spot, entry: BudgetEntry) -> None:
    if entry.per != "request":
        return
    if entry.on_shortfall == "wait":
        spot.at("on_shortfall").wrong("a limit per request never gets better by waiting")
    if entry.for_each is not None:
        spot.wrong_key("for_each", "a limit per request is for each request already")


def _check_waiting(spot: Spot, entry: BudgetEntry) -> None:
    if entry.max_wait is not None and entry.on_shortfall != "wait":
        spot.wrong_key("max_wait", "`max_wait` needs `on_shortfall: wait`")


def _loss_allowance(spot: Spot, entry: BudgetEntry, unit: str) -> int | None:
    given = entry.on_ledger_loss
    if given is None or isinstance(given, str):
        return None
    here = spot.at("on_ledger_loss")
    if entry.per == "request":
        here.wrong("a limit per request needs no ledger")
    elif entry.on_shortfall == "report":
        here.wrong("a budget that only reports is never in the way")
    if given.allow.unit != unit:
        here.at("allow").wrong(f"must be in {quoted(unit)}, as the limit is")
    return given.allow.steps


def _check_payers(spot: Spot, entry: BudgetEntry, parts: tuple[PayerPart, ...]) -> None:
    from_caller = any(part.kind != "fact" for part in parts)
    if from_caller and entry.max_payers is None:
        spot.wrong_key("for_each", "a payer that the caller names needs `max_payers`")
    if entry.max_payers is not None and not from_caller:
        spot.wrong_key("max_payers", "`max_payers` is for payers that the caller names")
    elif entry.max_payers is not None and entry.max_payers > MAX_PAYERS:
        spot.at("max_payers").wrong(f"must be at most {MAX_PAYERS}")
    if entry.missing is not None and entry.for_each is None:
        spot.wrong_key("missing", "`missing` needs `for_each`")
    if entry.limits is not None and entry.for_each is None:
        spot.wrong_key("limits", "`limits` for payers need `for_each`")


def _conditions(spot: Spot, when: Mapping[str, WhenForm], scope: Scope) -> Iterator[Condition]:
    for key, values in when.items():
        if key == "not":
            yield from _negated(spot.at("not"), values, scope)
        elif isinstance(values, dict):
            spot.at(key).wrong("must be text or a list, not a mapping")
        else:
            yield _condition(spot, key, texts(values), scope, negate=False)


def _negated(spot: Spot, values: WhenForm, scope: Scope) -> Iterator[Condition]:
    if not isinstance(values, dict):
        spot.wrong("must be a mapping, as in not: {team: research}")
        return
    for key, inner in values.items():
        yield _condition(spot, key, texts(inner), scope, negate=True)


def _condition(
    spot: Spot, key: str, globs: tuple[str, ...], scope: Scope, *, negate: bool
) -> Condition:
    _check_key(spot, key, scope)
    for index, glob in enumerate(globs):
        _check_value(spot.at(key, index), key, glob, scope)
    return Condition(key, globs, negate)


def _check_key(spot: Spot, key: str, scope: Scope) -> None:
    known = {*FACT_KEYS, *scope.labels}
    if key not in known and scope.whole:
        hint = suggest(key, known) or f"; there are {listed(known)}"
        spot.wrong_key(key, f"no service has the label {quoted(key)}{hint}")


def _check_value(spot: Spot, key: str, glob: str, scope: Scope) -> None:
    names = scope.names_of(key)
    if names is None or any(fnmatchcase(name, glob) for name in names):
        return
    if is_glob(glob):
        spot.wrong(f"no {key} fits {quoted(glob)}; there are {listed(names)}")
    else:
        hint = suggest(glob, names) or f"; there are {listed(names)}"
        spot.wrong(f"there is no {key} {quoted(glob)}{hint}")


def _parts(spot: Spot, entry: BudgetEntry, scope: Scope) -> Iterator[PayerPart]:
    form = entry.for_each
    if form is None:
        return
    forms = form if isinstance(form, list) else [form]
    if not forms:
        spot.wrong("is an empty list")
    seen: set[PayerPart] = set()
    for index, one in enumerate(forms):
        where = spot.at(index) if isinstance(form, list) else spot
        part = _part(where, one, scope)
        if part in seen:
            where.wrong(f"{quoted(str(part))} stands here twice")
        seen.add(part)
        yield part


def _part(spot: Spot, form: str | CallerPayer, scope: Scope) -> PayerPart:
    if isinstance(form, str):
        known = {*FACT_KEYS, *scope.labels}
        if form not in known and scope.whole:
            hint = suggest(form, known) or f"; there are {listed(known)}"
            spot.wrong(f"no service has the label {quoted(form)}{hint}")
        return PayerPart("fact", form)
    kind = one_of(spot, form, _CALLER_PLACES)
    if kind == "header":
        return PayerPart("header", header_name(spot.at("header"), form.header or ""))
    return PayerPart("json", dotted(spot.at("json"), form.json_path) if form.json_path else "_")


def _limits(
    spot: Spot, entry: BudgetEntry, unit: str, parts: tuple[PayerPart, ...], scope: Scope
) -> dict[str, int]:
    given: Mapping[str, Amount] = entry.limits or {}
    single = parts[0] if len(parts) == 1 and parts[0].kind == "fact" else None
    names = scope.names_of(single.name) if single is not None else None
    for payer, amount in given.items():
        if amount.unit != unit:
            spot.at(payer).wrong(f"must be in {unit}, as `limit` is, not {amount.unit}")
        if single is not None and names is not None and payer not in names:
            hint = suggest(payer, names) or f"; there are {listed(names)}"
            spot.wrong_key(payer, f"there is no {single.name} {quoted(payer)}{hint}")
    return {_as_paid(payer, parts): amount.steps for payer, amount in given.items()}


def _as_paid(payer: str, parts: tuple[PayerPart, ...]) -> str:
    """The payer as calls name it: a model is one in any case."""
    names = payer.split("|")
    if len(names) != len(parts):
        return payer
    by_model = [part.kind == "fact" and part.name == "model" for part in parts]
    pairs = zip(names, by_model, strict=True)
    return "|".join(name.lower() if is_model else name for name, is_model in pairs)


def check_together(
    spot: Spot,
    budgets: Iterable[Budget],
    names: frozenset[str],
    given: Mapping[str, BudgetEntry],
    scope: Scope,
) -> None:
    """Say what is wrong between budgets, upstreams and services."""
    heirs: dict[str, str] = {}
    owners: dict[str, str] = {}
    for budget in budgets:
        here = spot.at(budget.name)
        _check_was(here, budget, names, heirs)
        if budget.balance is not None:
            owner = owners.setdefault(budget.balance, budget.name)
            if owner != budget.name:
                here.at("limit").wrong(
                    f"budget {quoted(owner)} is on this balance already: each of two would let all "
                    "of it through"
                )
        if scope.whole:
            _check_unit(here, budget, scope)
            _check_labels(here, budget, given[budget.name], scope)


def _check_was(spot: Spot, budget: Budget, names: frozenset[str], heirs: dict[str, str]) -> None:
    if budget.was is None:
        return
    if budget.was in names:
        spot.at("was").wrong(f"{quoted(budget.was)} is still a budget of this policy")
    heir = heirs.setdefault(budget.was, budget.name)
    if heir != budget.name:
        spot.at("was").wrong(f"{quoted(heir)} goes on with the counts of {quoted(budget.was)}")


def _check_unit(spot: Spot, budget: Budget, scope: Scope) -> None:
    bound = [
        target
        for target in targets(scope.upstreams.values())
        if any(may_bind(budget, service, target) for service in scope.services.values())
    ]
    yielded = frozenset[str]().union(*(target.units for target in bound))
    if yielded and budget.unit not in yielded:
        hint = suggest(budget.unit, yielded) or f"; they have {listed(yielded)}"
        spot.at("limit").wrong(f"no call it binds has an amount of {quoted(budget.unit)}{hint}")


def _check_labels(spot: Spot, budget: Budget, entry: BudgetEntry, scope: Scope) -> None:
    if entry.missing is not None:
        return
    everything = list(targets(scope.upstreams.values()))
    bound = {
        service.name: service
        for service in scope.services.values()
        if any(touches(budget, service, target) for target in everything)
    }
    for part in budget.for_each:
        if part.kind != "fact" or part.name in FACT_KEYS or part.name not in scope.labels:
            continue
        without = [name for name, service in bound.items() if part.name not in service.labels]
        if without:
            spot.wrong_key(
                "for_each",
                f"these services have no label {quoted(part.name)}: {listed(without)}; give it to "
                "them, or write `missing: skip`, `share` or `refuse`",
            )


def with_bodies(
    upstream: Upstream, budgets: Iterable[Budget], services: Iterable[Service]
) -> Upstream:
    """The upstream, reading the body of every route where a budget needs what is in it."""
    budgets, services = list(budgets), list(services)

    def bound(route: Route, budget: Budget) -> bool:
        target = Target(upstream.name, route.name, route.units, route.model is not None)
        return any(touches(budget, service, target) for service in services)

    def needed(route: Route) -> bool:
        in_body = route.model is not None and route.model.kind == "json"
        return any(
            (uses_json(budget) or (in_body and uses_model(budget))) and bound(route, budget)
            for budget in budgets
        )

    routes = tuple(
        replace(route, reads_body=True) if not route.reads_body and needed(route) else route
        for route in upstream.tariff.routes
    )
    return replace(upstream, tariff=replace(upstream.tariff, routes=routes))
