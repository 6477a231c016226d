"""A policy file, from bytes to a House: every mistake at once, or none.

The order: text, tree, variables, shape of each entry, each section, and what refers to what. An
entry with a mistake of its own is left out of the later steps, which then do not judge what
depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from budget_proxy.core.budget import Budget
from budget_proxy.core.house import House, Limits, Service, Tls, Upstream, Waiting
from budget_proxy.core.retention import RETENTION_S
from budget_proxy.policy.alerts import build_webhooks
from budget_proxy.policy.budgets import Scope, build_budget, check_together, with_bodies
from budget_proxy.policy.database import has_password, mistake_in
from budget_proxy.policy.effective import warned
from budget_proxy.policy.mistakes import Mistake, PolicyError, listed, quoted, suggest
from budget_proxy.policy.model import SECTIONS, PolicyEntry
from budget_proxy.policy.network import address, host_name, is_loopback
from budget_proxy.policy.nodes import MAX_BYTES, Table, TreeError, decode, plain, read_tree
from budget_proxy.policy.providers import packaged
from budget_proxy.policy.services import build_service
from budget_proxy.policy.sheet import Sheet, Spot
from budget_proxy.policy.standins import without_secrets
from budget_proxy.policy.tariffs import Catalogue, PricesOf, say_all
from budget_proxy.policy.upstreams import Supplies, build_upstream, check_mounts, given
from budget_proxy.policy.values import texts
from budget_proxy.policy.variables import ReadFile, fill, read_text

MIN_TOKEN = 16
_SQLITE = "sqlite:///"
_NEEDED = ("upstreams", "services")


@dataclass(frozen=True, slots=True)
class Checked:
    """A policy that can be used, and what is odd about it."""

    house: House
    warnings: list[Mistake]
    """Sorted by place; nothing here stops a proxy from starting."""


def load(
    path: Path | str,
    *,
    environment: Mapping[str, str],
    read_file: ReadFile = read_text,
    prices: PricesOf | None = None,
    catalogue: Traversable | None = None,
    with_secrets: bool = True,
) -> House:
    """The house that a policy file describes.

    `read_file` reads `${file:...}`, `prices` has the prices of models (None: upstreams get
    none), `catalogue` is the folder of tariffs (None: the one in the package). Without secrets
    the house is not fit to serve, and no variable of a credential, key or URL needs a value.
    Raises PolicyError with every mistake.
    """
    return _checked(
        _open(Path(path), environment, read_file, with_secrets), prices, catalogue
    ).house


def check(
    path: Path | str,
    *,
    environment: Mapping[str, str],
    read_file: ReadFile = read_text,
    prices: PricesOf | None = None,
    catalogue: Traversable | None = None,
) -> Checked:
    """Like `load`, with warnings."""
    return _checked(_open(Path(path), environment, read_file), prices, catalogue)


def _checked(sheet: Sheet, prices: PricesOf | None, catalogue: Traversable | None) -> Checked:
    tariffs, providers = Catalogue(catalogue), packaged()
    entry = _entries(sheet)
    house = None
    if entry is not None:
        house = _Builder(sheet.root(), entry, Supplies(tariffs, prices, providers)).build()
    ours = [*tariffs.mistakes, *providers.mistakes]
    if sheet.mistakes or ours or house is None:
        raise PolicyError([*sheet.mistakes, *ours])
    for steps, message in warned(house):
        sheet.note(steps, message)
    return Checked(house, sorted(set(sheet.notes)))


def _open(
    path: Path, environment: Mapping[str, str], read_file: ReadFile, with_secrets: bool = True
) -> Sheet:
    file = str(path)
    early: list[Mistake] = []
    try:
        text = decode(_read(path))
        tree = read_tree(text, lambda mark, said: early.append(Mistake(file, *mark, said)))
    except TreeError as error:
        raise PolicyError([*early, Mistake(file, *error.mark, error.message)]) from None
    if tree is None:
        raise PolicyError([*early, Mistake(file, 1, 1, "the file is empty")])
    filled = fill(
        tree if with_secrets else without_secrets(tree),
        environment=environment,
        read_file=read_file,
        report=lambda mark, said: early.append(Mistake(file, *mark, said)),
    )
    sheet = Sheet(file, filled.tree, secrets=filled.secrets, broken=filled.broken)
    sheet.mistakes += early
    return sheet


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PolicyError([Mistake(str(path), 1, 1, f"cannot be read: {reason}")]) from None
    except ValueError:
        raise PolicyError([Mistake(repr(str(path)), 1, 1, "is not the path of a file")]) from None


def _entries(sheet: Sheet) -> PolicyEntry | None:
    """Every entry whose shape is right; what is wrong with the others is said."""
    if not isinstance(sheet.tree, Table):
        keys = ", ".join(SECTIONS)
        sheet.report((), f"the file must be a mapping with keys such as {keys}")
        return None
    data: dict[str, Any] = plain(sheet.tree)
    # Each round leaves out what was wrong, so the second passes; the bound is for safety.
    for _ in range(3):
        try:
            return PolicyEntry.model_validate(data)
        except ValidationError as error:
            say_all(sheet, error)
            data = _without(data, [line["loc"] for line in error.errors(include_url=False)])
    return None


def _without(data: dict[str, Any], places: list[tuple[int | str, ...]]) -> dict[str, Any]:
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for place in places:
        section = str(place[0]) if place else ""
        entries = kept.get(section)
        if section not in SECTIONS:
            kept.pop(section, None)
        elif len(place) > 1 and isinstance(entries, dict):
            entries.pop(place[1], None)
        else:
            kept[section] = {}
    return kept


class _Builder:
    """From entries to the house; a class only for what every section needs to see."""

    def __init__(self, root: Spot, entry: PolicyEntry, supplies: Supplies) -> None:
        self._root = root
        self._entry = entry
        self._supplies = supplies

    def build(self) -> House:
        entry, root = self._entry, self._root
        self._say_empty()
        upstreams = self._upstreams()
        services = self._services()
        budgets = self._budgets(upstreams, services)
        listen = address(root.at("listen"), entry.listen)
        admin = address(root.at("admin"), entry.admin)
        if listen == admin and listen[1]:
            where = "admin" if "admin" in entry.model_fields_set else "listen"
            root.at(where).wrong("`listen` and `admin` must be different ports")
        hosts = tuple(
            host_name(root.at("hosts", index), host)
            for index, host in enumerate(texts(entry.hosts) if entry.hosts else ())
        )
        self._check_hosts(upstreams, hosts)
        return House(
            listen=listen,
            admin=admin,
            ledger=self._ledger(),
            upstreams={
                name: with_bodies(upstream, budgets, services.values())
                for name, upstream in upstreams.items()
            },
            services=services,
            budgets=budgets,
            limits=Limits(**given(entry.limits, Limits)),
            waiting=Waiting(**given(entry.waiting, Waiting)),
            tls=None if entry.tls is None else Tls(entry.tls.cert, entry.tls.key),
            admin_token=self._admin_token(admin[0]),
            hosts=hosts,
            **self._metrics(),
            loss_file=entry.loss_file or "",
            retention_s=RETENTION_S if entry.retention is None else entry.retention,
            webhooks=build_webhooks(root.at("alerts", "webhooks"), entry.alerts),
        )

    def _named(self, section: str) -> frozenset[str]:
        node = self._root.sheet.spot((section,)).node
        return frozenset(node.entries) if isinstance(node, Table) else frozenset()

    def _say_empty(self) -> None:
        for section in _NEEDED:
            spotted = self._root.sheet.spot((section,))
            if spotted.steps and isinstance(spotted.node, Table) and not spotted.node.entries:
                self._root.at(section).wrong("is empty; nothing could be called")

    def _upstreams(self) -> dict[str, Upstream]:
        section = self._root.at("upstreams")
        built = {
            name: build_upstream(section.at(name), name, entry, self._supplies)
            for name, entry in self._entry.upstreams.items()
        }
        upstreams = {name: upstream for name, upstream in built.items() if upstream is not None}
        check_mounts(section, upstreams)
        return upstreams

    def _services(self) -> dict[str, Service]:
        section = self._root.at("services")
        owners: dict[bytes, str] = {}
        return {
            name: build_service(section.at(name), name, entry, owners)
            for name, entry in self._entry.services.items()
        }

    def _budgets(
        self, upstreams: Mapping[str, Upstream], services: Mapping[str, Service]
    ) -> tuple[Budget, ...]:
        section = self._root.at("budgets")
        scope = Scope(upstreams, services, self._named("upstreams"), self._named("services"))
        budgets = tuple(
            build_budget(section.at(name), name, entry, scope)
            for name, entry in self._entry.budgets.items()
        )
        check_together(section, budgets, self._named("budgets"), self._entry.budgets, scope)
        return budgets

    def _check_hosts(self, upstreams: Mapping[str, Upstream], hosts: tuple[str, ...]) -> None:
        for name, upstream in upstreams.items():
            if hosts and upstream.host is not None and upstream.host not in hosts:
                hint = suggest(upstream.host, hosts) or f"; there are {listed(hosts)}"
                where = self._root.at("upstreams", name, "host")
                where.wrong(f"{quoted(upstream.host)} is not among `hosts`{hint}")

    def _ledger(self) -> str:
        ledger, spot = self._entry.ledger, self._root.at("ledger")
        # The text is not quoted: the URL of a database holds a password.
        if ledger.startswith(("postgres://", "postgresql://")):
            mistake = mistake_in(ledger)
            if mistake is not None:
                spot.wrong(mistake)
            elif spot.is_literal and has_password(ledger):
                spot.note("the password stands in this file as it is; ${NAME} keeps it out")
        elif not ledger.startswith(_SQLITE):
            spot.wrong(
                "must be sqlite:/// and a file, as in sqlite:///budget-proxy.db, or the "
                "postgresql:// URL of a database"
            )
        elif ledger in (_SQLITE, f"{_SQLITE}:memory:") or "\0" in ledger:
            spot.wrong("must name a file: what is spent has to outlive the process")
        return ledger

    def _admin_token(self, host: str) -> bytes | None:
        token = self._entry.admin_token
        if token is None:
            if not is_loopback(host):
                self._root.at("admin").wrong("anyone could reach this; it needs an `admin_token`")
            return None
        spot = self._root.at("admin_token")
        if len(token) < MIN_TOKEN:
            spot.wrong(f"must have at least {MIN_TOKEN} characters")
        elif not token.isascii() or not token.isprintable() or " " in token:
            spot.wrong("must be printable ASCII without spaces")
        elif spot.is_literal:
            spot.note("the token stands in this file as it is; ${NAME} or ${file:...} keeps it out")
        return hashlib.sha256(token.encode()).digest()

    def _metrics(self) -> dict[str, Any]:
        metrics = self._entry.metrics
        if metrics is None or metrics.max_accounts is None:
            return {}
        return {"metrics_max_accounts": metrics.max_accounts}
