"""Model prices: the data of `genai-prices`, read into our own integer rates as models are asked
for, with the policy's own models before it.

The only file that imports genai_prices, and only once a policy names a model tariff (it costs a
third of a second and 30 MB). Its arithmetic is not used: it is Decimal, and 300 times slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from budget_proxy.core.money import NANOS
from budget_proxy.core.rate import ModelOverride, Rate, Rates

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

V = TypeVar("V")
MINUTE_S = 60
MAX_CACHED = 4096
_TIER_KEYS = frozenset({"service_tier", "speed"})
"""What a caller may choose. Not `processing`: batch prices are those of another route."""
STANDARD_TIERS = frozenset({"", "auto", "default", "standard"})
_QUANTITIES = {
    "input_mtok": ("input_tokens", 1_000_000),
    "cache_read_mtok": ("cached_tokens", 1_000_000),
    "cache_write_mtok": ("cache_write_tokens", 1_000_000),
    "cache_write_1h_mtok": ("cache_write_1h_tokens", 1_000_000),
    "input_audio_mtok": ("audio_input_tokens", 1_000_000),
    "output_mtok": ("output_tokens", 1_000_000),
    "output_audio_mtok": ("audio_output_tokens", 1_000_000),
    "web_searches_kcount": ("web_searches", 1_000),
    "storage_searches_kcount": ("file_searches", 1_000),
}


class UnknownSourceError(ValueError):
    """No price data of that name."""


class Catalogue:
    """The rates of one provider's models (a `core.rate.ModelPrices`)."""

    def __init__(
        self,
        source: str,
        own: Mapping[str, ModelOverride],
        max_outputs: Mapping[str, int],
    ) -> None:
        """`source` as in a tariff's `models:` (`genai-prices/openai`); `own` and `max_outputs` by
        glob, in any case: the data knows models in any case too. Raises UnknownSourceError.
        """
        self._own = _lowered(own)
        self._max_outputs = _lowered(max_outputs)
        self._provider = _provider(source)
        self._cache: dict[tuple[str, str, int], Rates | None] = {}

    def __eq__(self, other: object) -> bool:
        """Whether the other one prices alike: it says the same, of the same provider."""
        return isinstance(other, Catalogue) and self._says() == other._says()

    __hash__ = None  # type: ignore[assignment]

    def _says(self) -> tuple[object, ...]:
        return id(self._provider), self._own, self._max_outputs

    def rates(self, model: str, tier: str, now_s: float) -> Rates | None:
        """The rates in force at an instant; None for an unknown model or tier."""
        key = (model, tier, int(now_s // MINUTE_S))  # prices change by the date and the clock
        if key not in self._cache:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[key] = self._look_up(model, tier, now_s)
        return self._cache[key]

    def max_output(self, model: str) -> int | None:
        """The largest output of a model, in tokens."""
        own = _by_glob(self._own, model)
        if own is not None and own.max_output is not None:
            return own.max_output
        return _by_glob(self._max_outputs, model)

    def _look_up(self, model: str, tier: str, now_s: float) -> Rates | None:
        own = _by_glob(self._own, model)
        if own is not None:
            return own.rates if tier in STANDARD_TIERS else None
        info = self._provider.find_model(model) if self._provider else None
        if info is None:
            return None
        now = datetime.fromtimestamp(now_s, UTC)
        context = _context(info, tier, now)
        if context is None:
            return None
        prices = info.get_prices(now, context)
        rates = {
            name: _rate(value, count)
            for field, (name, count) in _QUANTITIES.items()
            if (value := getattr(prices, field, None)) is not None
        }
        return rates or None


def _lowered(table: Mapping[str, V]) -> dict[str, V]:
    """The table with its globs in lower case; of two that become one, the first counts."""
    lowered: dict[str, V] = {}
    for glob, value in table.items():
        lowered.setdefault(glob.lower(), value)
    return lowered


def _by_glob(table: Mapping[str, V], model: str) -> V | None:
    name = model.lower()
    if name in table:
        return table[name]
    return next((value for glob, value in table.items() if fnmatchcase(name, glob)), None)


def _provider(source: str) -> Provider | None:
    if source == "none":
        return None
    library, _, name = source.partition("/")
    if library != "genai-prices":
        raise UnknownSourceError(f"{source!r} is no price source; write genai-prices/PROVIDER")
    from genai_prices.data import providers  # noqa: PLC0415 - see the header

    for provider in providers:
        if provider.id == name:
            return provider
    known = ", ".join(provider.id for provider in providers)
    raise UnknownSourceError(f"genai-prices knows no provider {name!r}; it knows {known}")


def _context(info: ModelInfo, tier: str, now: datetime) -> dict[str, str] | None:
    """What selects the tier's prices; None where the model has no such tier (yet)."""
    if tier in STANDARD_TIERS:
        return {}
    for variant in info.price_variants or ():
        begun = variant.constraint is None or variant.constraint.active(now)
        if begun and variant.when.keys() <= _TIER_KEYS and tier in variant.when.values():
            return dict(variant.when)
    return None


def _rate(value: Any, count: int) -> Rate:
    if isinstance(value, Decimal):
        return Rate(_nanos(value), count)
    cliffs = tuple((tier.start, _nanos(tier.price)) for tier in value.tiers)
    return Rate(_nanos(value.base), count, cliffs)


def _nanos(price: Decimal) -> int:
    nanos = price * NANOS
    # A price finer than a nano per million pieces does not exist; round up if one ever does.
    return int(nanos.to_integral_value(rounding="ROUND_CEILING"))
