"""`balance:` of an upstream, built: the preset, and what the policy puts over it.

A credential goes to the origin of the balance's URL alone. The upstream's own goes to the
upstream's origin alone; a balance on another one needs a credential of its own.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from budget_proxy.core.alert import Threshold
from budget_proxy.core.balance import LEAST_EVERY_S, Credential, Shape, Watch
from budget_proxy.core.house import Upstream
from budget_proxy.core.money import NANOS, is_currency
from budget_proxy.core.topup import Plan
from budget_proxy.policy.alerts import given_thresholds
from budget_proxy.policy.balance_model import (
    BalanceEntry,
    CredentialPlaceEntry,
    CurrencyForm,
    CurrencyPlace,
    FigureEntry,
    PresetEntry,
)
from budget_proxy.policy.credentials import checked, placed, say_no_pair
from budget_proxy.policy.mistakes import listed, quoted, suggest
from budget_proxy.policy.network import balance_url
from budget_proxy.policy.providers import Provider, Providers, json_path
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.sources import one_of
from budget_proxy.policy.standins import UNSET_HOST
from budget_proxy.policy.topups import build_topup
from budget_proxy.policy.values import read_unit_of_money, texts

MANUAL = "manual"
_SCALE = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,18})?\Z")
_UNIT = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_YOURS = re.compile(r"\{[A-Za-z_]+\}")
_ASKED = frozenset(FigureEntry.model_fields) | {
    *("url", "method", "credential", "stale_after", "on_stale")
}
"""Keys that say how to ask; none of them has a meaning where nothing is asked."""


def build_watch(
    spot: Spot, form: str | BalanceEntry | None, upstream: Upstream, providers: Providers
) -> Watch | None:
    """The watch on an upstream's balance; None where the policy says none, or says it wrong."""
    if form is None:
        return None
    entry = BalanceEntry.model_construct(preset=form) if isinstance(form, str) else form
    where = spot if isinstance(form, str) else spot.at("preset")
    if entry.preset == MANUAL:
        return _manual(spot, entry, upstream)
    if entry.preset is None:
        return _Builder(spot, entry, None, upstream).build()
    if entry.preset not in providers.presets():
        _say_unknown(where, entry.preset, providers)
        return None
    return _Builder(spot, entry, providers.named(entry.preset), upstream).build()


def _say_unknown(spot: Spot, name: str, providers: Providers) -> None:
    known = [*providers.presets(), MANUAL]
    if name in providers.names():
        spot.wrong(f"{quoted(name)} tells its balance nowhere; write `balance: manual`, or a url")
        return
    hint = suggest(name, known) or f"; there are {listed(known)}"
    spot.wrong(f"there is no preset {quoted(name)}{hint}")


def _manual(spot: Spot, entry: BalanceEntry, upstream: Upstream) -> Watch:
    for key in sorted(_ASKED & entry.model_fields_set):
        spot.wrong_key(key, f"`{key}` means nothing where the balance is manual")
    return Watch(
        unit=upstream.currency,
        manual=True,
        preset=MANUAL,
        lag_s=0.0,
        alerts=_alerts(spot, entry, upstream.currency),
        gone_before_s=entry.gone_before,
        topup=_topup(spot, entry, upstream.name, upstream.currency),
    )


def _alerts(spot: Spot, entry: BalanceEntry, unit: str) -> tuple[Threshold, ...]:
    return given_thresholds(spot.at("alert"), entry.alert, unit, limit=None, shares="none")


def _topup(spot: Spot, entry: BalanceEntry, upstream: str, unit: str) -> Plan | None:
    if entry.topup is None:
        return None
    return build_topup(spot.at("topup"), entry.topup, upstream, unit)


class _Unit(NamedTuple):
    """What a figure is in, and what its amount is in."""

    expects: str
    unit: str
    rate: Fraction
    path: str | None = None
    """Where the answer names its currency."""


class _Builder:
    """One watch from its entry; a class only to spare every step the same four arguments."""

    def __init__(
        self, spot: Spot, entry: BalanceEntry, provider: Provider | None, upstream: Upstream
    ) -> None:
        self._spot = spot
        self._entry = entry
        self._preset: PresetEntry | None = None if provider is None else provider.preset
        self._upstream = upstream
        self._at_provider = provider is not None and provider.serves(upstream.url)

    def build(self) -> Watch | None:
        url = self._url()
        if url is None:
            return None
        credential = self._credential(url)
        unit = self._unit(url)
        shape = self._shape(unit)
        if shape is None:
            return None
        # A stand-in for the provider has no such rule.
        least_s = LEAST_EVERY_S
        if self._preset is not None and self._at_provider:
            least_s = self._preset.least_every or least_s
        return Watch(
            unit=unit.unit,
            url=url,
            method=self._entry.method or "GET",
            credential=credential,
            shape=shape,
            preset=self._entry.preset or "",
            least_every_s=least_s,
            alerts=_alerts(self._spot, self._entry, unit.unit),
            gone_before_s=self._entry.gone_before,
            topup=_topup(self._spot, self._entry, self._upstream.name, unit.unit),
            **self._times(least_s),
        )

    def _of(self, key: str) -> Any:
        """What the policy says, else what the preset does."""
        mine = getattr(self._entry, key)
        return getattr(self._preset, key, None) if mine is None else mine

    def _at(self, key: str) -> Spot:
        return self._spot.at(key)

    # -- where to ask -------------------------------------------------------------------------

    def _url(self) -> str | None:
        mine, preset = self._entry.url, self._preset
        if mine is not None:
            return balance_url(self._at("url"), mine, origin(self._upstream.url))
        if preset is None:
            self._spot.wrong_key("url", "the key 'url' is missing; where is the balance asked for?")
            return None
        if _YOURS.search(preset.url):
            self._spot.wrong_key(
                "url", f"give `url` with your own part in it, as in {quoted(preset.url)}"
            )
            return None
        if preset.url.startswith("/"):
            return origin(self._upstream.url) + preset.url
        if self._at_provider:
            return preset.url
        self._spot.wrong_key("url", "the preset's is on a host of its own; give the `url` to ask")
        return None

    def _is_unset(self, url: str) -> bool:
        return UNSET_HOST in (urlsplit(url).hostname, urlsplit(self._upstream.url).hostname)

    # -- with what ----------------------------------------------------------------------------

    def _credential(self, url: str) -> Credential:
        form, spot = self._entry.credential, self._at("credential")
        if form is None:
            return self._upstreams_own(url)
        if not isinstance(form, str):
            return Credential(*placed(spot, form))
        return self._in_place(spot, checked(spot, form))

    def _upstreams_own(self, url: str) -> Credential:
        value, why = self._upstream.credential, ""
        if self._preset is not None and self._preset.needs_own_credential:
            why = "the provider does not take the key of its API here"
        elif not value:
            if value == "" and self._preset is None:
                return Credential()
            why = "the upstream puts none in"
        elif origin(url) != origin(self._upstream.url) and not self._is_unset(url):
            why = "the upstream's own goes to the upstream's host alone"
        if why:
            self._spot.wrong_key(
                "credential", f"the balance needs a `credential` of its own: {why}"
            )
        if self._preset is not None and self._preset.place is not None:
            return self._in_place(None, value or "")
        tariff = self._upstream.tariff
        return Credential(tariff.credential, tariff.credential_name, value or "")

    def _in_place(self, spot: Spot | None, value: str) -> Credential:
        """Where the preset wants it; else where the upstream does."""
        place = None if self._preset is None else self._preset.place
        if isinstance(place, CredentialPlaceEntry):
            if place.query is not None:
                return Credential("query", place.query, value)
            prefix = "" if value.startswith(place.prefix) else place.prefix
            return Credential("header", place.header or "", prefix + value)
        tariff = self._upstream.tariff
        if place is None and self._preset is None and tariff.credential_name:
            return Credential(tariff.credential, tariff.credential_name, value)
        if place == "basic" or (self._preset is None and tariff.credential == "basic"):
            if spot is not None:
                say_no_pair(spot, value)
            elif ":" not in value:
                self._spot.wrong_key(
                    "credential", "give one as user:password; the upstream's is not"
                )
            return Credential("basic", "", value)
        return Credential("bearer", "", value)

    # -- what the answer says -----------------------------------------------------------------

    def _unit(self, url: str) -> _Unit:
        entry, own = self._entry, self._upstream.currency
        unit, currency, rate = self._of("unit"), self._of("currency"), self._of("rate")
        if entry.unit is not None and entry.currency is not None:
            self._spot.wrong_key("unit", "must have one of currency, unit; not both")
        if entry.currency is not None or entry.unit is not None:
            unit, currency, rate = entry.unit, entry.currency, entry.rate
        if unit is not None and not _UNIT.match(unit):
            self._at("unit").wrong(
                f"{quoted(unit)} is not a unit, as in credits; money goes under `currency`"
            )
        path = currency.path if isinstance(currency, CurrencyPlace) else None
        expects = unit or self._currency(currency, url)
        if rate is not None:
            if rate.currency != own:
                self._at("rate").wrong(
                    f"is in {rate.currency}, but this upstream is priced in {own}"
                )
            return _Unit(expects, rate.currency, Fraction(rate.nanos, rate.pieces * NANOS), path)
        if unit is None and expects != own:
            self._at("currency" if entry.currency is not None else "preset").wrong(
                f"the balance is in {expects}, but this upstream is priced in {own}; give the "
                f"`rate`, what one {expects} costs"
            )
        return _Unit(expects, expects, Fraction(1), path)

    def _currency(self, form: CurrencyForm | None, url: str) -> str:
        spot, own = self._at("currency"), self._upstream.currency
        if isinstance(form, CurrencyPlace):
            kind = one_of(spot, form, {"path": "path", "host": "host"})
            return self._by_host(form, url) if kind == "host" else own
        if form is None:
            return own
        try:
            return read_unit_of_money(form)
        except ValueError as error:
            spot.wrong(str(error))
            return own

    def _by_host(self, form: CurrencyPlace, url: str) -> str:
        known, host = form.host or {}, (urlsplit(url).hostname or "").lower()
        for name, currency in known.items():
            if not is_currency(currency):
                self._at("currency").at("host", name).wrong(f"{quoted(currency)} is not a currency")
                return self._upstream.currency
        if host not in known and not self._is_unset(url):
            self._spot.wrong_key(
                "currency",
                f"the answer names no currency, and for the host {quoted(host)} none is known: "
                "give `currency:`",
            )
        return known.get(host, self._upstream.currency)

    def _shape(self, unit: _Unit) -> Shape | None:
        if self._of("path") is None:
            self._spot.wrong_key("path", "the key 'path' is missing; where does the figure stand?")
            return None
        gate = self._of("gate")
        return Shape(
            paths=self._paths("path", unit),
            unit=unit.unit,
            minus=self._paths("minus", unit),
            scale=self._scale(),
            rate=unit.rate,
            negate=bool(self._of("negate")),
            currency=None
            if unit.path is None
            else json_path(self._at("currency").at("path"), unit.path),
            expects=unit.expects,
            gate=None if gate is None else json_path(self._at("gate"), gate),
            allow_negative=bool(self._of("allow_negative")),
            allow_unlimited=bool(self._of("allow_unlimited")),
        )

    def _paths(self, key: str, unit: _Unit) -> tuple[Any, ...]:
        written = texts(self._of(key) or [])
        return tuple(
            json_path(self._at(key), text.replace("{currency}", unit.expects)) for text in written
        )

    def _scale(self) -> Fraction:
        text = self._of("scale") or "1"
        if not _SCALE.match(text) or not Decimal(text):
            self._at("scale").wrong(f"{quoted(text)} is not a factor above zero, as in 0.01")
            return Fraction(1)
        return Fraction(Decimal(text))

    # -- when ---------------------------------------------------------------------------------

    def _times(self, least_s: float) -> dict[str, Any]:
        entry, default = self._entry, Watch()
        every_s = self._of("every") or max(default.every_s, least_s)
        if every_s < least_s:
            self._at("every").wrong(f"is more often than this provider is asked: {least_s:g}s")
        stale_s = entry.stale_after or max(default.stale_after_s, 3 * every_s)
        if stale_s <= every_s:
            key = "stale_after" if entry.stale_after is not None else "every"
            self._at(key).wrong("every answer would be stale before the next one is asked for")
        lag_s = self._of("lag")
        return {
            "every_s": every_s,
            "lag_s": default.lag_s if lag_s is None else lag_s,
            "stale_after_s": stale_s,
            "on_stale": entry.on_stale or default.on_stale,
        }


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()
