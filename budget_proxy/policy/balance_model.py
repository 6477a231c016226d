"""The language of balances and of providers' errors, as it is written.

`BalanceEntry` stands in a policy, `ProviderEntry` is a file of `budget_proxy/providers`. Shape
only; `balances` and `providers` build from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from budget_proxy.core.verdict import Means
from budget_proxy.policy.alerts import AlertForm
from budget_proxy.policy.credentials import CredentialForm
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.topups import TopUpEntry
from budget_proxy.policy.values import (
    BY_SHAPE,
    LIST,
    MAPPING,
    TEXT,
    Flag,
    PriceText,
    Seconds,
    SecondsOrNone,
    Text,
    TextList,
    Texts,
)


class CurrencyPlace(Entry):
    """Where a currency is found: one of path and host."""

    path: Text | None = Field(None, description="Where the answer names it.")
    host: dict[str, Text] | None = Field(
        None, description="By the host that is asked: {api.example.com: USD}."
    )


CurrencyForm = Annotated[Annotated[Text, TEXT] | Annotated[CurrencyPlace, MAPPING], BY_SHAPE]


class FigureEntry(Entry):
    """How an answer says its figure."""

    path: Texts | None = Field(
        None,
        description="Where the figure stands: data.balance, infos[currency=USD].total (elements "
        "with that text), items[*].amount (all); several are added up. Of a list of paths the "
        "first that has one.",
    )
    minus: Texts | None = Field(None, description="What is taken off it, as what was used.")
    scale: Text | None = Field(
        None, description="What one of the figure is: 0.01 where it counts cents. Default: 1."
    )
    negate: Flag | None = Field(
        None, description="Money that is there is written below zero. Default: false."
    )
    currency: CurrencyForm | None = Field(
        None, description="Of the figure: a constant, or a mapping. Default: the upstream's."
    )
    unit: Text | None = Field(
        None, description="In place of `currency`: credits, searches, ... Default: it is money."
    )
    rate: PriceText | None = Field(
        None, description="What one of them costs; then the balance counts as money."
    )
    gate: Text | None = Field(
        None, description="Path of true or false; false is empty, whatever the figure says."
    )
    allow_negative: Flag | None = Field(
        None, description="A figure below zero is a debt. Default: false, it is a bad answer."
    )
    allow_unlimited: Flag | None = Field(
        None, description="null is no limit. Default: false, it is a bad answer."
    )
    every: Seconds | None = Field(
        None, description="How often it is asked for, more or less. Default 60s."
    )
    lag: SecondsOrNone | None = Field(
        None, description="How old the provider's figure may be. Default 120s."
    )


class BalanceEntry(FigureEntry):
    """Where a balance is asked for. What stands beside `preset` comes before it."""

    preset: Text | None = Field(
        None, description="A name from the list of providers, or manual: people enter top-ups."
    )
    url: Text | None = Field(
        None,
        description="Absolute, or a path on the upstream's host. Default: the preset's.",
    )
    method: Literal["GET", "POST"] | None = Field(
        None, description="How it is asked for. Default: GET."
    )
    credential: CredentialForm | None = Field(
        None,
        description="As an upstream's; it is sent to the host of `url` alone. Default: the "
        "upstream's, on the upstream's host.",
    )
    stale_after: Seconds | None = Field(
        None, description="How old the last good answer may get. Default 900s."
    )
    on_stale: Literal["refuse", "trust_ledger"] | None = Field(
        None,
        description="And then: refuse (default), or trust_ledger: go on with what the ledger says.",
    )
    alert: AlertForm | None = Field(
        None, description="Alert once less than that is usable: 25 USD, or a list."
    )
    gone_before: Seconds | None = Field(
        None, description="Alert when it will be used up sooner than that."
    )
    topup: TopUpEntry | None = Field(
        None, description="Buy more when it is short. Default: nobody does."
    )


BalanceForm = Annotated[Annotated[Text, TEXT] | Annotated[BalanceEntry, MAPPING], BY_SHAPE]


class CredentialPlaceEntry(Entry):
    """A header or a query field: one of them."""

    header: Text | None = Field(None, description="Name of the header.")
    prefix: str = Field("", description="What stands before the credential there.")
    query: Text | None = Field(None, description="Name of the query field.")


class PresetEntry(FigureEntry):
    """A provider's balance as it is documented."""

    url: Text = Field(
        description="A path on the host of the API, or absolute; {...} is the user's."
    )
    place: (
        Annotated[
            Annotated[Literal["bearer", "basic"], TEXT] | Annotated[CredentialPlaceEntry, MAPPING],
            BY_SHAPE,
        ]
        | None
    ) = Field(None, description="Where the credential goes. Default: bearer.")
    needs_own_credential: Flag = Field(False, description="It does not take the key of the API.")
    least_every: Seconds | None = Field(None, description="It must not be asked more often.")


class ErrorEntry(Entry):
    """One shape of an answer, and what it means."""

    status: Texts = Field(description="402, or 4xx, or a list.")
    header: dict[str, Text] | None = Field(
        None, description="By name: present, absent, or a glob of the value."
    )
    at: Texts | None = Field(None, description="Where the words stand; none: the whole body.")
    matches: Text | None = Field(None, description="A pattern, any case, no endless repeat.")
    equals: Text | None = Field(None, description="The whole text.")
    one_of: TextList | None = Field(None, description="The whole text is one of these.")
    means: Means = Field(description="What it means.")
    until: Text | None = Field(None, description="Where it says when calls pass again.")


class ProviderEntry(Entry):
    """What is known of a provider."""

    hosts: TextList | None = Field(None, description="Hosts of its API; * fits in them.")
    balance: PresetEntry | None = Field(None, description="Where its balance is asked for.")
    errors: (
        Annotated[Annotated[Text, TEXT] | Annotated[list[ErrorEntry], LIST], BY_SHAPE] | None
    ) = Field(None, description="First match wins; a name: those of that provider.")
    generic: Flag = Field(True, description="The generic rules are asked after its own.")
