"""What a policy file builds: upstreams, services, budgets and limits, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from budget_proxy.core.balance import Watch
from budget_proxy.core.budget import Budget
from budget_proxy.core.rate import ModelPrices
from budget_proxy.core.retention import RETENTION_S
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.verdict import Rules
from budget_proxy.core.webhook import Webhook

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


@dataclass(frozen=True, slots=True)
class Service:
    """An internal caller. `keys` are SHA-256 digests; the keys themselves are never kept."""

    name: str
    keys: tuple[bytes, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: Priority = "normal"
    weight: int = 1

    @property
    def rank(self) -> int:
        """Of its priority: the lowest goes first."""
        return PRIORITIES.index(self.priority)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each part of a call may take, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 120.0
    total_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """A paid API. `credential` is put where the tariff says; None passes the caller's own."""

    name: str
    url: str
    tariff: Tariff
    mount: str
    host: str | None = None
    credential: str | None = field(default=None, repr=False)
    prices: ModelPrices | None = None
    dialect: str = "problem"
    max_output: int | None = None
    """Tokens; written into requests that name no limit of their own."""
    floor: int | None = None
    """Nanos held for calls whose cost has no bound in the request; None refuses them."""
    charge_unpriced: int | None = None
    """Nanos charged for a model or tier without a price; None refuses it."""
    on_unmatched: Literal["refuse", "pass"] | int = "refuse"
    """Routes no tariff covers: refuse, let pass at no cost, or charge so many nanos."""
    currency: str = "USD"
    on_disconnect: Literal["drain", "cancel"] = "drain"
    drain_s: float = 30.0
    stops_on_disconnect: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    keepalive_s: float = 4.0
    max_connections: int = 1000
    ca: str | None = None
    proxy: str | None = field(default=None, repr=False)
    allow_encoded_slash: bool = False
    rules: Rules = field(default_factory=Rules, repr=False)
    """What its refusals mean for the money."""
    watch: Watch | None = None
    """Where its prepaid balance is asked for; None: it is not watched."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the listener. Bytes, seconds, counts."""

    max_body: int = 8 * 1024 * 1024
    max_buffered: int = 256 * 1024 * 1024
    """All request bodies held in memory at once."""
    max_connections: int = 10_000
    max_header_line: int = 16 * 1024
    header_timeout_s: float = 60.0
    """From connect or the last answer to complete headers: also the keep-alive time."""
    body_timeout_s: float = 30.0
    """Between two pieces of a request body; a body that is read before the hold may take four
    times as long in all."""
    write_timeout_s: float = 60.0
    """How long a caller may leave its answer unread."""
    grace_s: float = 30.0
    """How long calls may go on after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Bounds of the waiting line."""

    max_requests: int = 1000
    max_per_service: int = 500
    max_body: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate and key files of the listener."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class House:
    """Everything a policy says. One is in force at a time; a call keeps the one it began under."""

    listen: tuple[str, int]
    admin: tuple[str, int]
    ledger: str = field(repr=False)
    """Its URL, which may hold a password."""
    upstreams: Mapping[str, Upstream]
    services: Mapping[str, Service]
    budgets: tuple[Budget, ...]
    limits: Limits = field(default_factory=Limits)
    waiting: Waiting = field(default_factory=Waiting)
    tls: Tls | None = None
    admin_token: bytes | None = field(default=None, repr=False)
    """SHA-256 digest."""
    hosts: tuple[str, ...] = ()
    """Host names served; empty: any well-formed one."""
    metrics_max_accounts: int = 1000
    loss_file: str = ""
    """Where calls are noted that pass without the ledger; empty: beside it."""
    retention_s: float = RETENTION_S
    """How long the ledger keeps entries, and accounts whose window has ended."""
    webhooks: Mapping[str, Webhook] = field(default_factory=dict)
    """Where alerts go, by name."""
    services_by_digest: Mapping[bytes, Service] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_digest = {key: service for service in self.services.values() for key in service.keys}
        object.__setattr__(self, "services_by_digest", by_digest)
