"""The tariff language as it is written: which requests cost what.

Shape only; `tariffs` builds `core.tariff` from it and checks what refers to what. Descriptions go
into the JSON Schema, which is the reference of the language.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from budget_proxy.policy.entry import Entry
from budget_proxy.policy.values import (
    BY_SHAPE,
    LIST,
    MAPPING,
    TEXT,
    Count,
    CountOrNull,
    Currency,
    Flag,
    Positive,
    PriceText,
    Text,
    TextList,
    Texts,
)

Dialect = Literal["openai", "anthropic", "problem"]


class PlaceEntry(Entry):
    """Where one value stands: exactly one of json, query, header and path."""

    json_path: Text | None = Field(
        None, alias="json", description="Dotted path in the JSON body; * is every element."
    )
    query: Text | None = Field(None, description="Name of a query field.")
    header: Text | None = Field(None, description="Name of a header; case does not matter.")
    path: Text | None = Field(None, description="Name of a {segment} of the route's path.")


class TestEntry(PlaceEntry):
    """Something stands at a place (false, "" and [] count as nothing), and fits the globs."""

    __test__: ClassVar[bool] = False  # not for pytest

    among: Texts | None = Field(None, description="Its text matches one of these globs.")
    outside: Texts | None = Field(None, description="Its text matches none of these globs.")
    without: Text | None = Field(None, description="Nothing stands at this dotted JSON path.")
    lacks: Texts | None = Field(None, description="It is an object that has none of these members.")


class SourceEntry(Entry):
    """Where a quantity comes from: exactly one form, then bounds on it."""

    json_path: Texts | None = Field(
        None, alias="json", description="The number at a dotted path, or at the first that has one."
    )
    query: Text | None = Field(None, description="The number in a query field.")
    header: Text | None = Field(None, description="The number in a header.")
    path: Text | None = Field(None, description="The number in a {segment} of the path.")
    body: Literal["body"] | None = Field(
        None, alias="bytes", description="`bytes: body`, the size of the decoded body."
    )
    length: Text | None = Field(
        None, description="UTF-8 bytes of all the text under a dotted JSON path."
    )
    count: Text | None = Field(
        None, description="How many elements the list at a dotted JSON path has."
    )
    sum_of: list[Source] | None = Field(
        None, alias="sum", description="All of these together; a missing one counts 0."
    )
    product: list[Source] | None = Field(
        None, description="All of these multiplied; a missing one counts 1."
    )
    max_of: list[Source] | None = Field(None, alias="max", description="The largest of these.")
    minus: list[Source] | None = Field(
        None, description="The first less all the others; never below 0."
    )
    default: Count | None = Field(None, description="The figure where there is none.")
    at_least: Count | None = Field(None, description="A smaller figure counts as this.")
    at_most: Count | None = Field(
        None,
        description="A larger figure counts as this: where the API itself bills no more.",
    )
    step: Positive | None = Field(None, description="Rounded up to a multiple of this.")


Source = Annotated[
    Annotated[Count, TEXT] | Annotated[SourceEntry, MAPPING],
    BY_SHAPE,
]
"""A constant, or where to read the figure."""


class QuantityEntry(Entry):
    """A figure of a call: before it is sent (an upper bound), and after (the truth)."""

    before: Source = Field(description="Read from the request; an upper bound.")
    after: Source | None = Field(
        None, description="Read from the answer, or from the events of a stream; else `before`."
    )
    optional: Flag = Field(
        default=False, description="true: an answer without it means 0, not unknown."
    )
    of: Text | None = Field(
        None,
        description="The quantity whose pieces these may turn out to be (cached of input): the "
        "hold counts them there, at the dearest price of all.",
    )
    possible: list[TestEntry] | None = Field(
        None,
        description="With `of`: only a request for which one of these holds can have any. None: "
        "every request can.",
    )


class CliffEntry(Entry):
    """A price that changes with the size of the request's input."""

    price: PriceText = Field(description="The price up to the first size.")
    above: dict[str, PriceText] = Field(
        description="Size of the input in tokens: price of all of it, above that size."
    )


PriceOf = Annotated[
    Annotated[PriceText, TEXT] | Annotated[CliffEntry, MAPPING],
    BY_SHAPE,
]
Prices = Annotated[
    Annotated[Literal["models"], TEXT] | Annotated[dict[str, PriceOf], MAPPING],
    BY_SHAPE,
]


class MatchEntry(Entry):
    """Which requests a route covers."""

    method: Texts | None = Field(None, description="One method or several; none: any method.")
    path: Text = Field(description="/v1/{id} is one segment each, a last /** any rest.")
    where: list[TestEntry] | None = Field(None, description="Tests of the request; all must hold.")


class UnboundedEntry(TestEntry):
    """A form of request whose cost cannot be read from it."""

    why: Text = Field(description="What the caller is told.")


class PartsEntry(Entry):
    """Typed content parts ({"type": "image_url", ...}) that are not billed as text."""

    nullable: ClassVar[frozenset[str]] = frozenset({"ceiling"})

    types: TextList = Field(description="Values of their `type`.")
    ceiling: CountOrNull = Field(
        description="Tokens that each costs at most; null: no bound is known."
    )
    why: Text | None = Field(None, description="What the caller is told where there is no bound.")


class OutputEntry(Entry):
    """The request's own limit on the size of its answer."""

    fields_read: TextList = Field(
        alias="fields", description="Dotted fields that limit the output; the largest counts."
    )
    put: Text = Field(description="The field that `max_output` of the upstream is written to.")
    times: Source | None = Field(None, description="How many answers are asked for.")


class StreamingEntry(Entry):
    """How a streamed answer (server-sent events) tells what was used."""

    when: PlaceEntry = Field(description="The request streams if this is there and not false.")
    final: TestEntry = Field(description="Holds for the event after which the figures are final.")
    ask_usage: Text | None = Field(
        None, description="Dotted field set to true in the request, so that usage is told."
    )
    drop: TestEntry | None = Field(
        None, description="The event that exists only because we asked; taken out again."
    )
    delivered: PlaceEntry | None = Field(None, description="Where an event carries text.")


class RouteEntry(Entry):
    """One kind of request: how it is recognised, measured and priced."""

    name: Text | None = Field(None, description="For `when: {route: ...}`; default: the path.")
    match: MatchEntry = Field(description="Which requests this covers; the first route that fits.")
    free: Flag = Field(
        default=False, description="true: costs nothing; it still counts as a request."
    )
    price: Prices | None = Field(
        None, description="Price of each quantity (`requests` is always 1), or `models`."
    )
    quantities: dict[str, QuantityEntry] | None = Field(
        None, description="What is counted, by name; each is also a unit for limits."
    )
    model: PlaceEntry | None = Field(None, description="Where the request names its model.")
    tier: PlaceEntry | None = Field(None, description="Where the request names its price tier.")
    answer_tier: list[PlaceEntry] | None = Field(
        None, description="Where the answer names the tier that was used."
    )
    answer_model: list[PlaceEntry] | None = Field(
        None, description="Where the answer names the model that was used."
    )
    guards: TextList | None = Field(
        None,
        description="More dotted fields of which duplicates and case variants are refused. All "
        "that the tariff reads have it anyhow, but for tests inside a list.",
    )
    unbounded: list[UnboundedEntry] | None = Field(
        None, description="Requests whose cost has no bound; refused unless there is a `floor`."
    )
    parts: list[PartsEntry] | None = Field(None, description="Images, files, audio in the body.")
    output: OutputEntry | None = Field(None, description="The request's limit on its output.")
    streaming: StreamingEntry | None = Field(None, description="How streams are metered.")
    not_billed: Texts | None = Field(
        None,
        description="Statuses that the provider surely does not bill, as in [4xx, 500, 503]. "
        "Default: 4xx (400 to 499).",
    )
    total_of: TextList | None = Field(
        None, description="Quantities whose sum is the unit `tokens`."
    )


class HeaderPlace(Entry):
    """The credential goes into a header or a query field."""

    header: Text | None = Field(None, description="Name of the header.")
    query: Text | None = Field(None, description="Name of the query field.")


class TariffEntry(Entry):
    """All the routes of one API, in the order they are tried."""

    description: Text | None = Field(None, description="For people.")
    dialect: Dialect | None = Field(
        None, description="The error shape its SDKs understand; default: problem (RFC 9457)."
    )
    credential: (
        Annotated[
            Annotated[Literal["bearer", "basic"], TEXT] | Annotated[HeaderPlace, MAPPING],
            BY_SHAPE,
        ]
        | None
    ) = Field(None, description="Where the API wants its credential; default: bearer.")
    currency: Currency | None = Field(
        None, description="Currency of routes priced by model; default: USD."
    )
    models: Text | None = Field(
        None, description="Where model prices come from, as in genai-prices/openai."
    )
    max_output: dict[str, Positive] | None = Field(
        None, description="Glob of models: the largest output they give, in tokens."
    )
    routes: list[RouteEntry] = Field(description="The first that covers a request counts.")


TariffForm = Annotated[
    Annotated[Text, TEXT] | Annotated[list[RouteEntry], LIST] | Annotated[TariffEntry, MAPPING],
    BY_SHAPE,
]
"""A name from the catalogue, a list of routes, or a tariff in full."""

SourceEntry.model_rebuild()
