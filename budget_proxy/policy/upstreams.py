"""The `upstreams:` section, built. Credentials are placed here and shown nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from budget_proxy.core.house import Timeouts, Upstream
from budget_proxy.core.money import is_currency
from budget_proxy.core.rate import ModelPrices
from budget_proxy.core.tariff import Tariff
from budget_proxy.policy.authorities import ca_file
from budget_proxy.policy.balances import build_watch
from budget_proxy.policy.credentials import checked, placed
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.mistakes import quoted
from budget_proxy.policy.model import ChargeEntry, UpstreamEntry
from budget_proxy.policy.network import host_name, http_url, mount_path, overlaps, proxy_url
from budget_proxy.policy.providers import Providers
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.tariffs import (
    Catalogue,
    Draft,
    PricesOf,
    build_tariff,
    read_overrides,
)
from budget_proxy.policy.values import Amount

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_PASS = "pass"  # noqa: S105 - the word that means: none of ours
_AS_GIVEN = frozenset(
    {
        "max_output",
        "on_disconnect",
        "drain",
        "stops_on_disconnect",
        "keepalive",
        "max_connections",
        "allow_encoded_slash",
    }
)


@dataclass(frozen=True, slots=True)
class Supplies:
    """Where tariffs, model prices and what is known of providers come from."""

    catalogue: Catalogue
    prices: PricesOf | None
    providers: Providers


def check_name(spot: Spot, name: str) -> None:
    """Say where the name of an upstream, service or budget cannot be one."""
    if not NAME.match(name):
        spot.wrong(f"{quoted(name)} is not a name: lower-case letters, digits, - and _, at most 64")


def given(
    entry: Entry | None, kind: type[Any], only: frozenset[str] | None = None
) -> dict[str, Any]:
    """What an entry sets, under the names of a core type; there, seconds end in `_s`."""
    names = {field.name for field in fields(kind)}
    return {
        key if key in names else f"{key}_s": value
        for key, value in entry or ()
        if value is not None and (only is None or key in only)
    }


def build_upstream(
    spot: Spot, name: str, entry: UpstreamEntry, supplies: Supplies
) -> Upstream | None:
    """One upstream; None where its tariff cannot be had."""
    check_name(spot, name)
    url = http_url(spot.at("url"), entry.url)
    mount = mount_path(spot.at("mount"), entry.mount) if entry.mount else f"/{name}"
    host = host_name(spot.at("host"), entry.host) if entry.host else None
    draft = _draft(spot.at("tariff"), name, entry, supplies.catalogue)
    if draft is None:
        return None
    tariff, credential = _credential(spot, entry, draft)
    currency = _currency(tariff, entry)
    upstream = Upstream(
        name=name,
        url=url,
        tariff=tariff,
        mount=mount,
        host=host,
        credential=credential,
        prices=_prices(spot, entry, draft, supplies.prices),
        dialect=entry.dialect or tariff.dialect,
        floor=_money(spot.at("floor"), entry.floor, currency),
        charge_unpriced=_charge(spot.at("on_unpriced"), entry.on_unpriced, currency),
        on_unmatched=_unmatched(spot, entry, currency),
        currency=currency,
        timeouts=Timeouts(**given(entry.timeouts, Timeouts)),
        ca=ca_file(spot.at("ca"), entry.ca),
        proxy=proxy_url(spot.at("proxy"), entry.proxy) if entry.proxy else None,
        **given(entry, Upstream, _AS_GIVEN),
    )
    provider = supplies.providers.of(spot.at("provider"), entry.provider, url)
    watch = build_watch(spot.at("balance"), entry.balance, upstream, supplies.providers)
    return replace(upstream, rules=provider.rules, watch=watch)


def _draft(spot: Spot, name: str, entry: UpstreamEntry, catalogue: Catalogue) -> Draft | None:
    if isinstance(entry.tariff, str):
        return catalogue.draft(spot, entry.tariff)
    return build_tariff(spot, name, entry.tariff)


def _credential(spot: Spot, entry: UpstreamEntry, draft: Draft) -> tuple[Tariff, str | None]:
    """The tariff with the place that the policy says, and what goes there."""
    tariff, form = draft.tariff, entry.credential
    if form is None:
        if draft.from_catalogue:
            spot.wrong_key(
                "credential",
                "the key 'credential' is missing; give the provider's key, as in "
                "`credential: ${PROVIDER_KEY}`, or write `credential: pass` to let the caller's "
                "own key through",
            )
        return tariff, ""
    spot = spot.at("credential")
    if isinstance(form, str):
        if form == _PASS:
            return tariff, None
        return tariff, checked(spot, form)
    place, name, value = placed(spot, form)
    return replace(tariff, credential=place, credential_name=name), value


def _prices(
    spot: Spot, entry: UpstreamEntry, draft: Draft, prices: PricesOf | None
) -> ModelPrices | None:
    overrides = {}
    if entry.models is not None:
        overrides = read_overrides(spot.at("models"), entry.models, draft)
    if draft.models is None or prices is None:
        return None
    try:
        return prices(draft.models, overrides, draft.max_outputs)
    except (ValueError, LookupError) as error:
        spot.at("tariff").wrong(f"no model prices from {quoted(draft.models)}: {error}")
        return None


def _currency(tariff: Tariff, entry: UpstreamEntry) -> str:
    """That of the priced routes; without one, what the amounts of the upstream itself are in."""
    priced = [route.currency for route in tariff.routes if not route.free]
    charges = [
        form.charge.unit
        for form in (entry.on_unmatched, entry.on_unpriced)
        if isinstance(form, ChargeEntry) and is_currency(form.charge.unit)
    ]
    return (priced + charges + ["USD"])[0]


def _money(spot: Spot, amount: Amount | None, currency: str) -> int | None:
    if amount is None:
        return None
    if not is_currency(amount.unit):
        spot.wrong(f"{quoted(str(amount))} is not money; write it as in 0.10 {currency}")
    elif amount.unit != currency:
        spot.wrong(f"is in {amount.unit}, but this upstream is priced in {currency}")
    return amount.steps


def _charge(spot: Spot, form: str | ChargeEntry | None, currency: str) -> int | None:
    if not isinstance(form, ChargeEntry):
        return None
    return _money(spot.at("charge"), form.charge, currency)


def _unmatched(spot: Spot, entry: UpstreamEntry, currency: str) -> Literal["refuse", "pass"] | int:
    form = entry.on_unmatched
    if isinstance(form, ChargeEntry):
        return _money(spot.at("on_unmatched", "charge"), form.charge, currency) or 0
    return form or "refuse"


def check_mounts(spot: Spot, upstreams: Mapping[str, Upstream]) -> None:
    """Say where two upstreams would be served under the same paths."""
    seen: list[Upstream] = []
    for upstream in upstreams.values():
        for other in seen:
            if upstream.host == other.host and overlaps(upstream.mount, other.mount):
                where = spot.at(upstream.name, "mount")
                where.wrong(
                    f"the mount {quoted(upstream.mount)} overlaps {quoted(other.mount)} of "
                    f"upstream {quoted(other.name)}"
                )
        seen.append(upstream)
