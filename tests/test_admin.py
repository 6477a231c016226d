"""The admin application over a real socket: who may do what, and what bad input gets."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from budget_proxy import admin
from budget_proxy.accounts_view import AccountsView, AccountView, open_accounts
from budget_proxy.admin import MAX_BODY, State, admin_runner, build_admin
from budget_proxy.burn import Line, LineRunway
from budget_proxy.core.balance import Watch
from budget_proxy.core.budget import Budget, Condition, PayerPart
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.money import NANOS, parse_amount
from budget_proxy.core.runway import Runway
from budget_proxy.core.stops import Scope, Stop
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.topup import NoSuchTopUpError, NotNowError, TopUpAnswer
from budget_proxy.core.window import Span
from budget_proxy.correction import Corrected
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.metrics.counting import Metrics
from budget_proxy.policy_view import policy_json
from budget_proxy.watch import BalanceView

TOKEN = "admin-token-canary"
SECRET = "sk-credential-canary"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ADJUSTMENT = {"budget": "company", "payer": "(all)", "amount": "-1.50 USD", "reason": "refund"}
READS = ("/api/accounts", "/api/policy", "/api/balances", "/api/stops", "/api/topups")
CHANGES = ("/api/adjust", "/api/reload")


def house(token: str | None = TOKEN) -> House:
    upstream = Upstream(
        "openai",
        f"https://user:{SECRET}@api.example.com/base?key={SECRET}",
        Tariff("openai", ()),
        "/openai",
        credential=SECRET,
        proxy=f"http://u:{SECRET}@proxy:3128",
    )
    prepaid = Upstream(
        "prepaid", "https://prepaid.example.com", Tariff("none", ()), "/prepaid", watch=Watch()
    )
    services = {
        "checkout": Service("checkout", (hashlib.sha256(SECRET.encode()).digest(),), {"team": "a"}),
        "batch": Service("batch", (), {"team": "b"}),
    }
    team = (PayerPart("fact", "team"),)
    budgets = (
        Budget("company", 5 * NANOS, "USD", Span("month", "Europe/Berlin")),
        Budget("team", NANOS, "USD", Span("day"), for_each=team, limits={"b": NANOS // 2}),
        Budget("batch", 9, "requests", Span("day"), when=(Condition("service", ("batch",)),)),
    )
    digest = None if token is None else hashlib.sha256(token.encode()).digest()
    return House(
        ("127.0.0.1", 8080),
        ("127.0.0.1", 9090),
        f"postgres://user:{SECRET}@db/x",
        {"openai": upstream, "prepaid": prepaid},
        services,
        budgets,
        admin_token=digest,
    )


VIEW = BalanceView(
    upstream="prepaid",
    unit="USD",
    state="failing",
    manual=False,
    amount=100 * NANOS,
    at_s=1_700_000_000.0,
    usable=74_500_000_001,
    held=500_000_000,
    drift_per_s=11_574.0,
    why="answered 502",
)
STOP = Stop("account_empty", "upstream", "prepaid", "no money", 1_700_000_000.0)
LINE = Line("company", "(all)", "USD")


def runway(line: Line, seconds: float | None, basis: Any = "recent") -> LineRunway:
    low = None if seconds is None else seconds / 2
    found = Runway(seconds, low, None, {}, basis, None, lasts=seconds is None)
    return LineRunway(line, 5 * NANOS, 5 * NANOS, None, 0.0, found)


@dataclass
class Keeper:
    """Plays the standing duties."""

    failure: Exception | None = None
    stops: Sequence[Stop] = (STOP,)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    known: list[LineRunway] = field(default_factory=list)

    async def balances(self) -> list[BalanceView]:
        if self.failure is not None:
            raise self.failure
        return [VIEW]

    def runways(self) -> list[LineRunway]:
        return self.known

    async def pause(
        self, scope: Scope, name: str, *, why: str, who: str, until_s: float | None
    ) -> Stop:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("pause", scope, name, why, who, until_s))
        return Stop("paused", scope, name, why, 1_700_000_000.0, until_s)

    async def resume(self, scope: Scope, name: str, *, who: str) -> bool:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("resume", scope, name, who))
        return name == "prepaid"

    async def set_balance(
        self, upstream: str, amount: int, *, add: bool, who: str, why: str
    ) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("balance", upstream, amount, add, who, why))


@dataclass
class Proxy:
    """Plays the proxy: a `Control` that remembers what it was asked."""

    house: House = field(default_factory=house)
    state: State = "serving"
    mistakes: list[str] = field(default_factory=list)
    failure: Exception | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)
    render: Callable[[str], tuple[bytes, str]] = Metrics(tuple, version="1").render
    keeper: Keeper = field(default_factory=Keeper)

    @property
    def keeping(self) -> Keeper:
        return self.keeper

    async def accounts(self) -> AccountsView:
        if self.failure is not None:
            raise self.failure
        return open_accounts((), self.house, 1_700_000_000)

    async def adjust(
        self, budget: str, payer: str, amount_text: str, reason: str, who: str
    ) -> Corrected:
        if self.failure is not None:
            raise self.failure
        if budget not in {known.name for known in self.house.budgets}:
            raise ValueError(f"no budget is called {budget!r}")
        amount, unit = parse_amount(amount_text)
        self.asked.append(("adjust", budget, payer, amount_text, reason, who))
        account = AccountView(budget, payer, 0, None, unit, 5 * NANOS, amount, 0)
        return Corrected(account, amount, amount // 2)

    async def topups(self) -> list[dict[str, Any]]:
        if self.failure is not None:
            raise self.failure
        return [{"id": "k1", "state": "asked"}]

    async def answer_topup(
        self, attempt_id: str, answer: TopUpAnswer, why: str, who: str
    ) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("topup", attempt_id, answer, why, who))
        return {"id": attempt_id}

    async def reload(self) -> list[str]:
        self.asked.append(("reload",))
        return self.mistakes

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return self.render(accept)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends exactly what it is told: http.client neither adds nor mends much."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Answer:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            lowered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lowered, response.read())
        finally:
            connection.close()


@contextmanager
def served(control: Proxy, **options: Any) -> Iterator[Client]:
    """The application on a loopback port, its loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    async def start() -> tuple[web.AppRunner, int]:
        runner = admin_runner(build_admin(control, **options))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    runner, port = on_loop(start())
    try:
        yield Client(port)
    finally:
        on_loop(runner.cleanup())
        on_loop(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def assert_problem(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json
    assert (document["status"], document["type"]) == (status, "about:blank")
    assert document["title"]
    assert document["detail"]
    return document


def test_health_tells_the_state() -> None:
    control = Proxy()
    with served(control) as ask:
        for state, ready in (("starting", 503), ("serving", 200), ("draining", 503)):
            control.state = state  # type: ignore[assignment]
            assert ask("GET", "/livez").status == 200
            answer = ask("GET", "/readyz")
            assert (answer.status, answer.json) == (ready, {"state": state})


def test_every_answer_has_the_security_headers() -> None:
    with served(Proxy()) as ask:
        for path in ("/", "/metrics", "/livez", "/api/accounts", "/api/adjust", "/nowhere"):
            answer = ask("GET", path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "aiohttp" not in answer.headers["server"]


def test_index_names_every_route() -> None:
    with served(Proxy()) as ask:
        answer = ask("GET", "/")
        assert answer.headers["content-type"].startswith("text/plain")
        text = answer.body.decode()
    application = build_admin(Proxy())
    for route in application.router.routes():
        assert route.resource is not None
        assert route.resource.canonical in text


# Who may do what.


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_on_loopback_reading_needs_no_token(address: str) -> None:
    for token in (None, TOKEN):
        with served(Proxy(house(token)), address=address) as ask:
            for path in READS:
                assert ask("GET", path).status == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "", "::", "10.0.0.1", "admin.internal"])
def test_elsewhere_reading_needs_the_token(address: str) -> None:
    with served(Proxy(), address=address) as ask:
        for path in READS:
            assert_problem(ask("GET", path), 401)
            assert ask("GET", path, BEARER).status == 200
        for path in ("/", "/metrics", "/livez", "/readyz"):
            assert ask("GET", path).status == 200


def test_the_address_of_the_policy_is_the_default() -> None:
    with served(Proxy()) as ask:
        assert ask("GET", "/api/accounts").status == 200


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_changing_state_always_needs_the_token(path: str, address: str) -> None:
    control = Proxy()
    with served(control, address=address) as ask:
        answer = ask("POST", path, body=ADJUSTMENT)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert control.asked == []
        assert ask("POST", path, BEARER, ADJUSTMENT).status == 200
        assert len(control.asked) == 1


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}",
        "Bearer \xff\xfe",
    ],
)
def test_a_wrong_token_is_no_token(authorization: str) -> None:
    control = Proxy()
    with served(control) as ask:
        assert_problem(ask("POST", "/api/reload", {"Authorization": authorization}), 401)
    assert control.asked == []


def test_the_scheme_is_read_in_any_case() -> None:
    with served(Proxy()) as ask:
        assert ask("POST", "/api/reload", {"Authorization": f"bearer  {TOKEN}"}).status == 200


@pytest.mark.parametrize("path", CHANGES)
def test_without_a_configured_token_nothing_can_be_changed(path: str) -> None:
    control = Proxy(house(token=None))
    with served(control) as ask:
        for headers in ({}, BEARER, {"Authorization": "Bearer "}):
            assert "admin_token:" in assert_problem(ask("POST", path, headers), 403)["detail"]
    assert control.asked == []


def test_a_reloaded_token_counts_at_once() -> None:
    control = Proxy()
    with served(control) as ask:
        control.house = house("another")
        assert_problem(ask("POST", "/api/reload", BEARER), 401)
        assert ask("POST", "/api/reload", {"Authorization": "Bearer another"}).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9090", 200),
        ("[::1]:9090", 200),
        ("[::1]", 200),
        ("192.0.2.7:9090", 200),
        ("localhost:9090", 200),
        ("LOCALHOST", 200),
        ("admin.internal:9090", 200),
        ("Admin.Internal.", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil@127.0.0.1", 421),
        ("127.0.0.1/x", 421),
        ("127.0.0.1:port", 421),
        ("2130706433", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_rebinding_guard(host: str, status: int) -> None:
    with served(Proxy(), hosts=["admin.internal"]) as ask:
        for path in ("/livez", "/metrics", "/api/accounts"):
            answer = ask("GET", path, {"Host": host})
            assert answer.status == status
            if status == 421:
                assert_problem(answer, 421)


def test_a_request_without_a_host_is_misdirected() -> None:
    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    with served(Proxy()) as client:
        assert b" 421 " in asyncio.run(ask(client.port)).splitlines()[0]


# Accounts and policy.


def test_accounts_are_exact_and_filtered() -> None:
    with served(Proxy()) as ask:

        def names(query: str) -> list[tuple[str, str]]:
            accounts = ask("GET", f"/api/accounts{query}").json["accounts"]
            return [(account["budget"], account["payer"]) for account in accounts]

        everything = [("company", "(all)"), ("team", "a"), ("team", "b"), ("batch", "(all)")]
        assert names("") == everything
        assert names("?budget=team") == [("team", "a"), ("team", "b")]
        assert names("?budget=team&payer=b") == [("team", "b")]
        assert names("?service=checkout") == [("company", "(all)"), ("team", "a")]
        assert names("?service=batch&budget=batch") == [("batch", "(all)")]
        assert names("?service=nobody") == []
        assert names("?budget=%FF%00") == []
        team = ask("GET", "/api/accounts?budget=team&payer=b").json["accounts"][0]
        assert (team["limit"], team["spent"], team["free"]) == ("0.5", "0", "0.5")
        assert team["window_end"] == "2023-11-15T00:00:00Z"


def test_accounts_say_how_long_they_last_where_that_is_known() -> None:
    team = Line("team", "a", "USD")
    nobody_knows = runway(Line("batch", "(all)", "requests"), None, "none")
    keeper = Keeper(known=[runway(LINE, 3600.4), runway(team, None), nobody_knows])
    with served(Proxy(keeper=keeper)) as ask:
        accounts = ask("GET", "/api/accounts").json["accounts"]
    shown = {
        (account["budget"], account["payer"]): (account["runway"], account["runway_s"])
        for account in accounts
    }
    assert shown == {
        ("company", "(all)"): ("ends", 3600),
        ("team", "a"): ("not_in_sight", None),
        ("team", "b"): ("unknown", None),
        ("batch", "(all)"): ("unknown", None),
    }


# Balances and stops.


def test_balances_are_exact() -> None:
    company = Budget("company", 0, "USD", Span("total"), balance="prepaid")
    control = Proxy(keeper=Keeper(known=[runway(LINE, 7200.0)]))
    control.house = replace(control.house, budgets=(company,))
    with served(control) as ask:
        (balance,) = ask("GET", "/api/balances").json["balances"]
    assert balance.pop("age_s") > 0
    assert balance == {
        "upstream": "prepaid",
        "unit": "USD",
        "state": "failing",
        "manual": False,
        "balance": "100",
        "usable": "74.500000001",
        "held": "0.5",
        "drift_per_day": "0.9999936",
        "last_read": "2023-11-14T22:13:20Z",
        "why": "answered 502",
        "runway": "ends",
        "runway_s": 7200,
        "runway_low_s": 3600,
        "runway_high_s": None,
    }


def test_stops_say_what_and_why() -> None:
    with served(Proxy()) as ask:
        assert ask("GET", "/api/stops").json["stops"] == [
            {
                "scope": "upstream",
                "name": "prepaid",
                "kind": "account_empty",
                "why": "no money",
                "since": "2023-11-14T22:13:20Z",
                "until": None,
            }
        ]


def test_a_pause_ends_when_it_was_said_to() -> None:
    control = Proxy()
    pause = {"scope": "budget", "name": "team", "reason": "a bill too many", "by": "ada"}
    with served(control) as ask:
        before_s = time.time()
        assert ask("POST", "/api/pause", BEARER, pause).json["until"] is None
        assert ask("POST", "/api/pause", BEARER, {**pause, "for": "2h"}).status == 200
        in_a_day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before_s + 86_400))
        answer = ask("POST", "/api/pause", BEARER, {**pause, "until": in_a_day})
        assert answer.json["until"] == in_a_day
    for_ever, two_hours, a_day = (asked[-1] for asked in control.keeper.asked)
    assert for_ever is None
    assert 7200 <= two_hours - before_s <= 7200 + 60
    assert a_day == int(before_s) + 86_400
    who = {asked[4] for asked in control.keeper.asked}
    assert who == {"ada, admin API from 127.0.0.1"}


def test_resuming_says_whether_something_was_stopped() -> None:
    control = Proxy()
    with served(control) as ask:
        for name, resumed in (("prepaid", True), ("openai", False)):
            answer = ask("POST", "/api/resume", BEARER, {"scope": "upstream", "name": name})
            assert (answer.status, answer.json) == (200, {"resumed": resumed})


def test_what_the_policy_no_longer_has_can_still_be_resumed() -> None:
    gone = Stop("paused", "budget", "old", "long ago", 0.0)
    control = Proxy(keeper=Keeper(stops=(gone,)))
    with served(control) as ask:
        resume = {"scope": "budget", "name": "old"}
        assert ask("POST", "/api/resume", BEARER, resume).status == 200
        control.keeper.stops = ()
        assert_problem(ask("POST", "/api/resume", BEARER, resume), 400)


def test_a_balance_is_set_or_added_to_in_its_own_unit() -> None:
    control = Proxy()
    with served(control) as ask:
        for word in ({"balance": "100 USD"}, {"add": "50USD"}, {"add": "-0.5 USD"}):
            answer = ask("POST", "/api/balances/prepaid", BEARER, {**word, "reason": "paid"})
            assert answer.json["balance"] == "100"
    entered = [asked[2:4] for asked in control.keeper.asked]
    assert entered == [(100 * NANOS, False), (50 * NANOS, True), (-NANOS // 2, True)]


PAUSE = {"scope": "upstream", "name": "openai", "reason": "why"}
WRONG: list[tuple[str, object, str]] = [
    ("/api/pause", {**PAUSE, "name": "openay"}, "did you mean 'openai'?"),
    ("/api/pause", {**PAUSE, "name": "x"}, "there is no upstream 'x'; the policy has openai, pre"),
    ("/api/pause", {**PAUSE, "scope": "service"}, "there is no service 'openai'"),
    ("/api/pause", {**PAUSE, "scope": "world"}, "Invalid enum value 'world'"),
    ("/api/pause", {**PAUSE, "reason": ""}, "length >= 1"),
    ("/api/pause", {**PAUSE, "reason": "a\nb"}, "is not a line of text"),
    ("/api/pause", {**PAUSE, "reason": " "}, "is not a line of text"),
    ("/api/pause", {**PAUSE, "for": "2"}, "has no unit"),
    ("/api/pause", {**PAUSE, "for": "-2h"}, "is not a duration"),
    ("/api/pause", {**PAUSE, "for": "0s"}, "longer than nothing"),
    ("/api/pause", {**PAUSE, "for": "9999999d"}, "longer than a year"),
    ("/api/pause", {**PAUSE, "for": "2h", "until": "2999-01-01"}, "not both"),
    ("/api/pause", {**PAUSE, "until": "tomorrow"}, "is not a time"),
    ("/api/pause", {**PAUSE, "until": "2001-01-01"}, "is over already"),
    ("/api/pause", {**PAUSE, "until": "9999-12-31T23:59:59-12:00"}, "a clock|more than a year"),
    ("/api/pause", {**PAUSE, "until": "0001-01-01T00:00:00+14:00"}, "a clock|over already"),
    ("/api/pause", {"scope": "upstream", "name": "openai"}, "missing required field `reason`"),
    ("/api/pause", {**PAUSE, "whom": "x"}, "unknown field `whom`"),
    ("/api/pause", b"{", "is not a pause"),
    ("/api/pause", b"\xff", "is not a pause"),
    ("/api/resume", {"scope": "upstream", "name": "prepayd"}, "did you mean 'prepaid'?"),
    ("/api/resume", {"scope": "upstream", "name": 7}, "is not a resume"),
    ("/api/balances/prepayd", {"add": "1 USD", "reason": "x"}, "did you mean 'prepaid'?"),
    ("/api/balances/openai", {"add": "1 USD", "reason": "x"}, "has no balance: in the policy"),
    ("/api/balances/%ff", {"add": "1 USD", "reason": "x"}, "there is no balance"),
    ("/api/balances/prepaid", {"reason": "x"}, "give one of"),
    ("/api/balances/prepaid", {"add": "1 USD", "balance": "1 USD", "reason": "x"}, "give one of"),
    ("/api/balances/prepaid", {"add": "1 USD"}, "missing required field `reason`"),
    ("/api/balances/prepaid", {"add": "1 EUR", "reason": "x"}, "is in USD, not in EUR"),
    ("/api/balances/prepaid", {"add": "much", "reason": "x"}, "is not an amount"),
    ("/api/balances/prepaid", {"add": "0 USD", "reason": "x"}, "changes nothing"),
    ("/api/balances/prepaid", {"balance": "-1 USD", "reason": "x"}, "not below nothing"),
    ("/api/balances/prepaid", {"balance": "9e9 USD", "reason": "x"}, "is not an amount"),
    ("/api/balances/prepaid", {"balance": "1000000000 USD", "reason": "x"}, "beyond the largest"),
    ("/api/balances/prepaid", {"balance": "1 USD", "reason": "\u0000"}, "is not a line of text"),
]


def test_what_cannot_be_meant_is_400_and_changes_nothing() -> None:
    control = Proxy()
    with served(control) as ask:
        for path, body, says in WRONG:
            problem = assert_problem(ask("POST", path, BEARER, body), 400)
            assert re.search(says, problem["detail"]) or says in problem["detail"], (body, problem)
    assert control.keeper.asked == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/balances", None),
        ("POST", "/api/pause", PAUSE),
        ("POST", "/api/resume", {"scope": "upstream", "name": "openai"}),
        ("POST", "/api/balances/prepaid", {"add": "1 USD", "reason": "x"}),
    ],
)
def test_without_the_ledger_none_of_it_can_be_had(method: str, path: str, body: object) -> None:
    control = Proxy(keeper=Keeper(failure=LedgerDownError("the disk is full")))
    with served(control) as ask:
        assert_problem(ask(method, path, BEARER, body), 503)
        assert ask("GET", "/api/stops").status == 200


@pytest.mark.parametrize("path", ["/api/pause", "/api/resume", "/api/balances/prepaid"])
def test_stops_and_balances_are_changed_with_the_token_only(path: str) -> None:
    control = Proxy()
    with served(control) as ask:
        assert_problem(ask("POST", path, body=PAUSE), 401)
    with served(Proxy(house(None))) as ask:
        assert_problem(ask("POST", path, BEARER, PAUSE), 403)
    assert control.keeper.asked == []


def test_the_policy_is_shown_without_credentials() -> None:
    with served(Proxy()) as ask:
        answer = ask("GET", "/api/policy")
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    for secret in (SECRET, digest, TOKEN, hashlib.sha256(TOKEN.encode()).hexdigest()):
        assert secret.encode() not in answer.body
    assert answer.json == policy_json(house())


def test_a_ledger_that_does_not_answer_is_503(caplog: pytest.LogCaptureFixture) -> None:
    for failure in (OSError(SECRET), ValueError(SECRET)):
        with served(Proxy(failure=failure)) as ask:
            answer = ask("GET", "/api/accounts")
            assert_problem(answer, 503)
            assert SECRET.encode() not in answer.body
    with served(Proxy(failure=OSError())) as ask:
        assert_problem(ask("POST", "/api/adjust", BEARER, ADJUSTMENT), 503)


def test_a_ledger_that_is_down_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with served(Proxy(failure=LedgerDownError("ledger.db: the file is gone"))) as ask:
        assert_problem(ask("GET", "/api/accounts"), 503)
    (record,) = [record for record in caplog.records if record.name == "budget_proxy.admin"]
    assert record.getMessage() == "the ledger did not answer: ledger.db: the file is gone"
    assert record.exc_info is None


# What changes state.


def test_adjust_says_who_and_why() -> None:
    control = Proxy()
    with served(control) as ask:
        answer = ask("POST", "/api/adjust", BEARER, ADJUSTMENT)
        assert answer.json["spent"] == "-1.5"
        assert (answer.json["asked"], answer.json["applied"]) == ("-1.5", "-0.75")
        without_payer = {key: ADJUSTMENT[key] for key in ("budget", "amount", "reason")}
        assert ask("POST", "/api/adjust", BEARER, without_payer).status == 200
    asked = ("adjust", "company", "(all)", "-1.50 USD", "refund", "admin API from 127.0.0.1")
    assert control.asked == [asked, asked]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"budget": "\xff"}',
        b"[" * 60_000,
        b'{"budget": ' + b"[" * 60_000,
        {"budget": "company"},
        ADJUSTMENT | {"amount": 1.5},
        ADJUSTMENT | {"amount": None},
        ADJUSTMENT | {"amount": "much"},
        ADJUSTMENT | {"amount": "1e999 USD"},
        ADJUSTMENT | {"amount": "9" * 60 + " USD"},
        ADJUSTMENT | {"amount": "1 USD " * 20},
        ADJUSTMENT | {"reason": ""},
        ADJUSTMENT | {"reason": "x" * 2000},
        ADJUSTMENT | {"budget": "nobody's"},
        ADJUSTMENT | {"budget": ""},
        ADJUSTMENT | {"ammount": "1 USD"},
    ],
)
def test_bad_bodies_are_400(body: object) -> None:
    control = Proxy()
    with served(control) as ask:
        assert_problem(ask("POST", "/api/adjust", BEARER, body), 400)
    assert control.asked == []


def test_bodies_are_bounded() -> None:
    with served(Proxy()) as ask:
        for path in CHANGES:
            assert_problem(ask("POST", path, BEARER, b" " * (MAX_BODY + 1)), 413)
        bomb = gzip.compress(b" " * 100 * MAX_BODY)
        assert len(bomb) < MAX_BODY
        encoded = BEARER | {"Content-Encoding": "gzip"}
        assert_problem(ask("POST", "/api/adjust", encoded, bomb), 413)
        assert_problem(ask("POST", "/api/adjust", encoded, b"not gzip"), 400)
        exact = json.dumps(ADJUSTMENT).encode().ljust(MAX_BODY)
        assert ask("POST", "/api/adjust", BEARER, exact).status == 200


def test_a_body_that_never_comes_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "BODY_DEADLINE_S", 0.05)
    head = f"POST /api/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: 10\r\n\r\n1".encode())
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    control = Proxy()
    with served(control) as client:
        assert b" 408 " in asyncio.run(ask(client.port))
    assert control.asked == []


WORDS: dict[tuple[str, str], dict[str, Any]] = {
    ("approve", "approve"): {},
    ("refuse", "refuse"): {"reason": "no"},
    ("decide", "landed"): {"landed": True},
    ("decide", "not_landed"): {"landed": False},
}


@pytest.mark.parametrize(("verb", "answer"), WORDS)
def test_a_word_on_a_top_up_says_who(verb: str, answer: str) -> None:
    control = Proxy()
    body = WORDS[verb, answer]
    with served(control) as ask:
        path = f"/api/topups/k1/{verb}"
        assert_problem(ask("POST", path, body=body), 401)
        assert control.asked == []
        assert ask("POST", path, BEARER, body | {"by": "ada"}).json == {"id": "k1"}
    why = body.get("reason", "")
    assert control.asked == [("topup", "k1", answer, why, "ada, admin API from 127.0.0.1")]


def test_what_cannot_be_said_to_a_top_up_is_a_problem() -> None:
    control = Proxy()
    with served(control) as ask:
        assert ask("GET", "/api/topups").json == {"topups": [{"id": "k1", "state": "asked"}]}
        assert_problem(ask("POST", "/api/topups/k1/decide", BEARER), 400)
        assert_problem(ask("POST", "/api/topups/k1/decide", BEARER, {"landed": 1}), 400)
        assert_problem(ask("POST", "/api/topups/k1/praise", BEARER), 404)
        assert control.asked == []
        for failure, status in (
            (NotNowError("it is sent"), 400),
            (NoSuchTopUpError("there is none"), 404),
            (LedgerDownError("disk"), 503),
        ):
            control.failure = failure
            assert_problem(ask("POST", "/api/topups/k1/approve", BEARER), status)


def test_reload_says_what_is_wrong() -> None:
    control = Proxy()
    with served(control) as ask:
        assert ask("POST", "/api/reload", BEARER).json == {"ok": True}
        control.mistakes = ["policy.yaml:3:5: no such tariff"]
        problem = assert_problem(ask("POST", "/api/reload", BEARER), 422)
        assert problem["mistakes"] == control.mistakes


def test_wrong_paths_and_methods_are_problems_too() -> None:
    with served(Proxy()) as ask:
        assert_problem(ask("GET", "/nowhere"), 404)
        assert_problem(ask("GET", "//api/accounts"), 404)
        answer = ask("GET", "/api/adjust", BEARER)
        assert_problem(answer, 405)
        assert answer.headers["allow"] == "POST"
        assert ask("HEAD", "/livez").status == 200


UNREADABLE = {
    "a header that is none": f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization Bearer {TOKEN}\r\n\r\n",
    "a name with a space": f"GET / HTTP/1.1\r\nHost: a\r\nX {TOKEN}: 1\r\n\r\n",
    "a value with a NUL": f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\x00\r\n\r\n",
    "a first line": f"GET /{TOKEN} {TOKEN}\r\n\r\n",
    "a method": f"{TOKEN} / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a line without an end": f"GET / HTTP/1.1\r\nX: {TOKEN * 2000}\r\n\r\n",
    "a chunk": "POST /api/reload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    f"Authorization: Bearer {TOKEN}\r\n\r\n{TOKEN}\r\n",
}


@pytest.mark.parametrize("sent", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_neither_logged_nor_repeated(
    sent: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line that cannot be read may be the one with the token."""
    caplog.set_level(logging.DEBUG)
    with served(Proxy()) as client, socket.create_connection(("127.0.0.1", client.port), 10) as one:
        one.sendall(sent.encode())
        answer = b"".join(iter(lambda: one.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.")
    assert answer.split(b" ")[1] == b"400"
    assert b"application/problem+json" in answer
    written = capfd.readouterr()
    for text in (answer.decode(), caplog.text, written.out, written.err):
        assert TOKEN not in text
        assert "Traceback" not in text


def test_a_bug_of_ours_is_a_problem_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_accept: str) -> tuple[bytes, str]:
        raise RuntimeError(SECRET)

    with served(Proxy(render=broken)) as ask:
        answer = ask("GET", "/metrics")
        assert_problem(answer, 500)
        assert SECRET.encode() not in answer.body
        assert ask("GET", "/livez").status == 200
    assert [record.levelno for record in caplog.records if record.name == admin.__name__] == [
        logging.ERROR
    ]


# Metrics.


def test_metrics_in_both_formats() -> None:
    with served(Proxy()) as ask:
        text = ask("GET", "/metrics")
        assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"budget_proxy_invariant_violations_total 0.0" in text.body
        wanted = {"Accept": "application/openmetrics-text;version=1.0.0"}
        answer = ask("GET", "/metrics", wanted)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")


def test_a_stuck_scrape_blocks_nothing_and_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SCRAPE_DEADLINE_S", 0.05)
    go_on, begun = threading.Event(), []

    def stuck(_accept: str) -> tuple[bytes, str]:
        begun.append(threading.current_thread())
        assert go_on.wait(10)
        return b"done\n", "text/plain"

    with served(Proxy(render=stuck)) as ask:
        try:
            for _ in range(3):
                assert_problem(ask("GET", "/metrics"), 503)
                assert ask("GET", "/livez").status == 200
            assert len(begun) == 1, "however often it is asked, one thread is stuck"
            assert begun[0] is not threading.current_thread()
        finally:
            go_on.set()
        monkeypatch.setattr(admin, "SCRAPE_DEADLINE_S", 10.0)
        assert ask("GET", "/metrics").body == b"done\n"


def test_scrapes_take_turns() -> None:
    inside, most = [0], [0]
    barrier = threading.Barrier(4, timeout=10)

    def render(_accept: str) -> tuple[bytes, str]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        return b"", "text/plain"

    with served(Proxy(render=render)) as ask:
        statuses: list[int] = []

        def scrape() -> None:
            barrier.wait()
            statuses.extend(ask("GET", "/metrics").status for _ in range(5))

        threads = [threading.Thread(target=scrape) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (statuses, most) == ([200] * 20, [1])
