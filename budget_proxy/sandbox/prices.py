"""What a model costs in the sandbox, by the arithmetic of the `genai_prices` package.

The sandbox judges the proxy's bookkeeping, so it must not share the proxy's arithmetic: prices are
looked up and multiplied by `genai_prices` itself, in decimals, and turned into integer nanos once
per call, rounded up. Forbidden here: the proxy's tariffs, floats, and remembering anything longer
than a price can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Literal

from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

ProviderName = Literal["openai", "anthropic", "deepseek"]

_NANOS = Decimal(10**9)
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Price:
    """What one call costs, in nanos (10^-9 US dollar), rounded up.

    `generates` tells whether the model has a price for output at all.
    """

    total_nanos: int
    generates: bool


class PriceList:
    """Prices by provider, model and quantities, as they are at a moment.

    Both memories are bounded. Prices are kept for one second: a list price may change with the date
    or the time of day, and both are given in whole seconds.
    """

    def __init__(self, *, kept: int = 10_000) -> None:
        self._snapshot = get_snapshot()
        self._kept = kept
        self._second = 0
        self._prices: dict[tuple[str, str, int, int], Price] = {}
        self._models: dict[tuple[str, str], ModelInfo | None] = {}

    def price(
        self,
        provider: ProviderName,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int,
        at_s: float,
    ) -> Price | None:
        """The price of a call made at `at_s` (seconds since 1970), or None for an unknown model."""
        second = int(at_s)
        if second != self._second or len(self._prices) >= self._kept:
            self._second = second
            self._prices.clear()
        key = (provider, model, input_tokens, output_tokens)
        known = self._prices.get(key)
        if known is None:
            known = self._calculate(provider, model, input_tokens, output_tokens)
            if known is not None:
                self._prices[key] = known
        return known

    def names(self, provider: ProviderName) -> list[str]:
        """The models of a provider that have a price."""
        return [model.id for model in self._provider(provider).models]

    def _calculate(
        self, provider: ProviderName, name: str, input_tokens: int, output_tokens: int
    ) -> Price | None:
        model = self._model(provider, name)
        if model is None:
            return None
        moment = datetime.fromtimestamp(self._second, UTC)
        seller = self._provider(provider)
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        cost = model.calc_price(usage, seller, genai_request_timestamp=moment)
        one = model.calc_price(Usage(output_tokens=1), seller, genai_request_timestamp=moment)
        nanos = (cost.total_price * _NANOS).to_integral_value(rounding=ROUND_CEILING)
        return Price(int(nanos), one.output_price > 0)

    def _model(self, provider: ProviderName, name: str) -> ModelInfo | None:
        # Asked of the provider directly: the package's own look-up remembers every name it was ever
        # asked for, and names come from callers.
        if len(name) > _MAX_NAME:
            return None
        key = (provider, name)
        if key not in self._models:
            if len(self._models) >= self._kept:
                self._models.clear()
            self._models[key] = self._provider(provider).find_model(
                name, all_providers=self._snapshot.providers
            )
        return self._models[key]

    def _provider(self, provider: ProviderName) -> Provider:
        return self._snapshot.find_provider(None, provider, None)
