"""The policy file as it is written, section by section.

Shape only: what a value looks like, which keys there are. What refers to what is checked where the
house is built (`build` and its neighbours). Descriptions go into `budget-proxy schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from budget_proxy.core.budget import Missing, OnShortfall, Opening
from budget_proxy.core.house import Priority
from budget_proxy.core.window import Per
from budget_proxy.policy.alerts import AlertForm, AlertsEntry
from budget_proxy.policy.balance_model import BalanceForm
from budget_proxy.policy.credentials import CredentialForm
from budget_proxy.policy.entry import Entry, PolicySchema
from budget_proxy.policy.tariff_model import Dialect, TariffForm
from budget_proxy.policy.values import (
    BY_SHAPE,
    LIST,
    MAPPING,
    TEXT,
    Count,
    Days,
    Flag,
    Limit,
    Money,
    Positive,
    Reserve,
    Seconds,
    SecondsOrNone,
    Secret,
    SecretList,
    Size,
    Text,
    TextList,
    Texts,
    Zone,
)


class ChargeEntry(Entry):
    """A fixed amount for each such call."""

    charge: Money = Field(description="What each such call is charged, as in 0.10 USD.")


class AllowEntry(Entry):
    """So much may pass without the ledger."""

    allow: Money = Field(
        description="What each account may let through on each machine until the ledger is back."
    )


class TimeoutsEntry(Entry):
    """How long each part of a call may take."""

    connect: Seconds | None = Field(None, description="Until connected, TLS included. Default 5s.")
    first_byte: Seconds | None = Field(
        None, description="From the request's end to the answer's first byte. Default 300s."
    )
    idle: Seconds | None = Field(None, description="Between two pieces of it. Default 120s.")
    total: Seconds | None = Field(None, description="The whole call. Default 900s.")


class UpstreamEntry(Entry):
    """A paid API."""

    url: Text = Field(description="https://... , perhaps with a path that goes before each target.")
    tariff: TariffForm = Field(
        description="What its calls cost: a name from the catalogue, a list of routes, or a tariff."
    )
    credential: CredentialForm | None = Field(
        None,
        description="Put in where the provider wants it; services never see it. `pass` lets the "
        "caller's own through. Left out under an inline tariff: none is put in.",
    )
    mount: Text | None = Field(None, description="The path it is served under; default: /NAME.")
    host: Text | None = Field(None, description="Serve it only under this host name.")
    dialect: Dialect | None = Field(None, description="Error shape; default: the tariff's.")
    max_output: Positive | None = Field(
        None, description="Tokens; written into requests that name no limit of their own."
    )
    floor: Money | None = Field(
        None, description="Held for calls whose cost has no bound in the request; else refused."
    )
    on_unpriced: (
        Annotated[Annotated[Literal["refuse"], TEXT] | Annotated[ChargeEntry, MAPPING], BY_SHAPE]
        | None
    ) = Field(None, description="A model or tier without a price: refuse (default), {charge: ...}.")
    on_unmatched: (
        Annotated[
            Annotated[Literal["refuse", "pass"], TEXT] | Annotated[ChargeEntry, MAPPING],
            BY_SHAPE,
        ]
        | None
    ) = Field(None, description="A request no route covers: refuse (default), pass, {charge: ...}.")
    on_disconnect: Literal["drain", "cancel"] | None = Field(
        None, description="When the caller leaves: read the answer to its end (default), or cancel."
    )
    drain: SecondsOrNone | None = Field(None, description="For how long. Default 30s.")
    stops_on_disconnect: Flag | None = Field(
        None, description="The provider stops, and stops billing, when a stream is cut."
    )
    timeouts: TimeoutsEntry | None = Field(None, description="How long a call may take.")
    keepalive: SecondsOrNone | None = Field(
        None, description="How long an idle connection is kept. Default 4s: below most servers'."
    )
    max_connections: Positive | None = Field(None, description="At once. Default 1000.")
    ca: Text | None = Field(None, description="File of the certificate authorities to trust.")
    proxy: Secret | None = Field(None, description="http://host:port of a forward proxy.")
    allow_encoded_slash: Flag | None = Field(None, description="Let %2F pass in paths.")
    models: dict[str, dict[str, Text]] | None = Field(
        None,
        description="Prices of models the catalogue does not know, by glob: "
        "{input_tokens: 3 USD per 1M, output_tokens: 12 USD per 1M, max_output: 16384}.",
    )
    provider: Text | None = Field(
        None,
        description="Whose errors it answers with: a name from the list of providers, or generic. "
        "Default: by the host of the URL.",
    )
    balance: BalanceForm | None = Field(
        None,
        description="Where its prepaid balance is asked for: a preset's name, manual, or a "
        "mapping. Default: it is not watched.",
    )


class ServiceEntry(Entry):
    """An internal caller, known by its keys."""

    key: Secret | None = Field(
        None, description="Its key: ${NAME}, ${file:...}, or sha256: and 64 hex digits."
    )
    keys: SecretList | None = Field(None, description="Several, as while one replaces another.")
    labels: dict[str, Text] | None = Field(None, description="team: payments, env: prod, ...")
    priority: Priority | None = Field(None, description="In the waiting line. Default normal.")
    weight: Positive | None = Field(None, description="Share of the waiting line. Default 1.")


class CallerPayer(Entry):
    """A payer that the caller names: one of header and json. Needs `max_payers`."""

    header: Text | None = Field(None, description="The header that names the payer.")
    json_path: Text | None = Field(None, alias="json", description="The dotted field that does.")


PayerForm = Annotated[Annotated[Text, TEXT] | Annotated[CallerPayer, MAPPING], BY_SHAPE]
WhenForm = Annotated[
    Annotated[Text, TEXT] | Annotated[TextList, LIST] | Annotated[dict[str, Texts], MAPPING],
    BY_SHAPE,
]


class BudgetEntry(Entry):
    """A limit on a unit, over a window, for whom it says."""

    limit: Limit = Field(
        description="A number and a unit: 200 USD, 600 requests, 2000000 tokens. Or "
        "balance(UPSTREAM): what is left of its prepaid balance."
    )
    keep: Money | None = Field(
        None, description="With balance(...): so much of it is never touched."
    )
    reserve: Reserve | None = Field(
        None, description="So much of the limit, or a share of it, is kept for priority high."
    )
    per: Per = Field("total", description="The window; none: a total, ever.")
    timezone: Zone | None = Field(None, description="Whose calendar cuts the windows. Default UTC.")
    when: dict[str, WhenForm] | None = Field(
        None,
        description="Which calls: upstream, service, route, model or a label; scalars, lists or "
        "globs; all must fit. `not: {...}`: none of these may fit.",
    )
    for_each: (
        Annotated[
            Annotated[Text, TEXT]
            | Annotated[list[PayerForm], LIST]
            | Annotated[CallerPayer, MAPPING],
            BY_SHAPE,
        ]
        | None
    ) = Field(
        None, description="One account for each: a label or fact, {header: ..}, {json: ..}, a list."
    )
    limits: dict[str, Money] | None = Field(None, description="Other limits for single payers.")
    on_shortfall: OnShortfall | None = Field(
        None, description="refuse (default), wait in line, or report: count it and let it pass."
    )
    max_wait: Seconds | None = Field(
        None,
        description="With wait: how long. Where neither a hold nor the window can end in that "
        "time, the call is refused at once. Default 20s.",
    )
    max_payers: Positive | None = Field(
        None, description="How many payers callers may name in a window; needed where they do."
    )
    missing: Missing | None = Field(
        None, description="A call without the payer: refuse, skip this budget, or share an account."
    )
    was: Text | None = Field(None, description="The budget's old name, so that its counts go on.")
    opening: Opening | None = Field(
        None, description="What a new budget starts with: history (default), or zero."
    )
    on_ledger_loss: (
        Annotated[Annotated[Literal["refuse"], TEXT] | Annotated[AllowEntry, MAPPING], BY_SHAPE]
        | None
    ) = Field(
        None, description="While the ledger cannot be written: refuse (default), {allow: ...}."
    )
    alert: AlertForm | None = Field(
        None,
        description="Alert once so much of an account is spent, or less than that is left: 80%, "
        "20 USD, or a list.",
    )
    gone_before: Seconds | None = Field(
        None,
        description="Alert when an account will be used up sooner than that, and before its "
        "window ends.",
    )


class LimitsEntry(Entry):
    """Bounds of the listener."""

    max_body: Size | None = Field(None, description="Of one request. Default 8 MiB.")
    max_buffered: Size | None = Field(
        None, description="Of all request bodies in memory. Default 256 MiB."
    )
    max_connections: Positive | None = Field(None, description="At once. Default 10000.")
    max_header_line: Size | None = Field(None, description="Default 16 KiB.")
    header_timeout: Seconds | None = Field(
        None, description="To complete headers, from connect or the last answer. Default 60s."
    )
    body_timeout: Seconds | None = Field(
        None, description="Between two pieces of a request's body. Default 30s."
    )
    write_timeout: Seconds | None = Field(
        None, description="How long a caller may leave its answer unread. Default 60s."
    )
    grace: SecondsOrNone | None = Field(
        None, description="How long calls may go on after SIGTERM. Default 30s."
    )


class WaitingEntry(Entry):
    """Bounds of the waiting line."""

    max_requests: Count | None = Field(None, description="In line at once. Default 1000.")
    max_per_service: Count | None = Field(None, description="Of one service. Default 500.")
    max_body: Size | None = Field(None, description="Of all bodies in line. Default 64 MiB.")


class TlsEntry(Entry):
    """TLS of the listener."""

    cert: Text = Field(description="File with the certificate chain (PEM).")
    key: Text = Field(description="File with the private key (PEM).")


class MetricsEntry(Entry):
    """What /metrics shows."""

    max_accounts: Count | None = Field(
        None, description="Accounts shown; further ones are counted only. Default 1000."
    )


class PolicyEntry(Entry):
    """A budget-proxy policy."""

    listen: Text = Field(
        "127.0.0.1:8080", description="host:port that services point their base URL at."
    )
    admin: Text = Field(
        "127.0.0.1:9090", description="host:port of /metrics, /livez, /readyz and /api."
    )
    ledger: Text = Field(
        "sqlite:///budget-proxy.db",
        description="Where spending is kept: sqlite:/// and a file, or the postgresql:// URL of a "
        "database.",
    )
    upstreams: dict[str, UpstreamEntry] = Field(description="The paid APIs, by name.")
    services: dict[str, ServiceEntry] = Field(description="Who may call, by name.")
    budgets: dict[str, BudgetEntry] = Field(description="What may be spent, by name.")
    limits: LimitsEntry | None = Field(None, description="Bounds of the listener.")
    waiting: WaitingEntry | None = Field(None, description="Bounds of the waiting line.")
    tls: TlsEntry | None = Field(None, description="TLS of the listener; none: plain HTTP.")
    admin_token: Secret | None = Field(
        None, description="Bearer token for /api; at least 16 characters."
    )
    hosts: Texts | None = Field(None, description="Host names served; none: any.")
    metrics: MetricsEntry | None = Field(None, description="Bounds of the metrics.")
    loss_file: Text | None = Field(
        None,
        description="Where calls are noted that pass without the ledger, one file per machine. "
        "Default: beside an SQLite ledger, its name and .loss; else budget-proxy.loss in the "
        "working directory.",
    )
    retention: Days | None = Field(
        None,
        description="How long the ledger keeps entries, and accounts whose window has ended; at "
        "least 367d. Default 400d.",
    )
    alerts: AlertsEntry | None = Field(None, description="Where alerts are sent.")


SECTIONS = ("upstreams", "services", "budgets")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the policy file, for editors."""
    schema = PolicyEntry.model_json_schema(schema_generator=PolicySchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
