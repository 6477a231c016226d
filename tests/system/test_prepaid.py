"""A prepaid balance in front of the sandbox: calls pass while there is money, and whatever a
provider answers, no more is spent than what was seen to be there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import Rig, running, running_sandbox
from polling import eventually
from processes import AUTH, GEO, Process, started, status_of

from budget_proxy.core.money import NANOS
from budget_proxy.hearing import Hearing
from budget_proxy.watch import BalanceView

PRICE = 0.005
DEADLINE_S = 15.0
"""Of anything that is waited for."""
TOKEN = {"authorization": "Bearer admin-token-0000"}
BASE = """
listen: ${{LISTEN:-127.0.0.1:0}}
admin: ${{ADMIN:-127.0.0.1:0}}
admin_token: admin-token-0000
ledger: sqlite:///ledger.db
upstreams:
  geo:
    url: ${{SANDBOX}}
    credential: sandbox-key
    provider: deepseek
    tariff: [{{match: {{method: GET, path: /v1/geocode}}, price: {{requests: 0.005 USD}}}}]
    {balance}
services:
  tests: {{key: test-key-0000, labels: {{team: tests}}}}
"""
LOOKED_AT = (
    "balance: {url: /user/balance, credential: balance-key, currency: USD, gate: is_available,"
    " path: 'balance_infos[currency=USD].total_balance', every: 1s, lag: 0s, stale_after: 10m}"
)
STALE_SOON = LOOKED_AT.replace("stale_after: 10m", "stale_after: 2s")
FOLLOWS = "budgets: {account: {limit: balance(geo), when: {upstream: geo}}}\n"
WAITS = FOLLOWS.replace("geo}}", "geo}, on_shortfall: wait, max_wait: 60s}")
CAP = "budgets: {cap: {limit: 100 USD, per: total}}\n"
KEYS: dict[str, Any] = {"balance_key": "balance-key"}


def base(balance: str = LOOKED_AT) -> str:
    return BASE.format(balance=balance)


async def view_of(rig: Rig) -> BalanceView:
    (view,) = await rig.app.keeping.balances()
    return view


async def seen(rig: Rig, found: Callable[[BalanceView], bool]) -> BalanceView:
    """Wait until the balance is seen so."""
    views: list[BalanceView] = []

    async def is_so() -> bool:
        views.append(await view_of(rig))
        return found(views[-1])

    await eventually(is_so, within_s=DEADLINE_S)
    return views[-1]


def fresh(amount: float) -> Callable[[BalanceView], bool]:
    return lambda view: view.state == "fresh" and view.amount == round(amount * NANOS)


async def deposit(url: str, amount: str) -> None:
    body = {"amount": amount, "currency": "USD"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{url}/billing/topups", json=body, headers={"authorization": "Bearer balance-key"}
        ) as got,
    ):
        assert got.status < 300, await got.text()


async def admin(rig: Rig, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    method = "GET" if body is None else "POST"
    url = rig.admin_url + path
    async with rig.session.request(method, url, json=body, headers=TOKEN) as got:
        return got.status, await got.json(content_type=None)


# -- the balance as a limit ------------------------------------------------------------------------


def test_calls_pass_until_the_balance_is_spent(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, FOLLOWS, base=base(), balance_nanos=20_000_000, **KEYS) as rig:
            await seen(rig, fresh(0.02))
            statuses = [(await rig.get(GEO))[0] for _ in range(5)]
            assert statuses == [200] * 4 + [402]
            status, problem = await rig.get(GEO)
            assert (status, problem["code"]) == (402, "balance_low")
            assert len(await rig.charges()) == 4, "no call was sent that did not fit"

    asyncio.run(story())


def test_what_is_kept_and_reserved_is_left(tmp_path: Path) -> None:
    async def story() -> None:
        budgets = FOLLOWS.replace("when:", "keep: 0.01 USD, reserve: 0.005 USD, when:")
        services = "  urgent: {key: urgent-key-0000, priority: high}\n"
        urgent = {"authorization": "Bearer urgent-key-0000"}
        async with running(
            tmp_path, budgets, base=base() + services, balance_nanos=30_000_000, **KEYS
        ) as rig:
            await seen(rig, fresh(0.03))
            assert [(await rig.get(GEO))[0] for _ in range(4)] == [200, 200, 200, 402]
            assert [(await rig.get(GEO, headers=urgent))[0] for _ in range(2)] == [200, 402]
            assert len(await rig.charges()) == 4

    asyncio.run(story())


def test_a_top_up_lets_the_call_go_that_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, WAITS, base=base(), balance_nanos=10_000_000, **KEYS) as rig:
            await seen(rig, fresh(0.01))
            assert [(await rig.get(GEO))[0] for _ in range(2)] == [200, 200]
            waiting = asyncio.create_task(rig.get(GEO))
            await rig.until(lambda: rig.app._admission.waiting == 1, DEADLINE_S)
            await deposit(rig.sandbox_url, "5.00")
            async with asyncio.timeout(DEADLINE_S):
                assert (await waiting)[0] == 200

    asyncio.run(story())


def test_what_others_spend_is_not_spent_twice(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, FOLLOWS, base=base(), balance_nanos=NANOS, **KEYS) as rig:
            await seen(rig, fresh(1))
            body = {"amount": "0.99 USD"}
            url = f"{rig.sandbox_url}/_sandbox/spend"
            async with rig.session.post(url, json=body) as got:
                assert got.status == 200
            await seen(rig, lambda view: view.amount == NANOS // 100)
            assert [(await rig.get(GEO))[0] for _ in range(3)] == [200, 200, 402]

    asyncio.run(story())


# -- bad answers -----------------------------------------------------------------------------------

SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "an error": ({"balance_fail": 502}, "answered 502"),
    "no credential": ({"balance_fail": 401}, "answered 401"),
    "a page": ({"balance_garbage": "html"}, "a page for people"),
    "half of it": ({"balance_garbage": "json"}, "no JSON"),
    "another shape": ({"balance_garbage": "shape"}, ""),
    "another currency": ({"balance_garbage": "currency"}, "USD"),
    "below zero": ({"balance_garbage": "negative"}, "less than nothing"),
    "a thousand times too high": ({"balance_garbage": "jump"}, "more than a hundred times"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_bad_answer_raises_nothing_and_stops_nothing_yet(tmp_path: Path, name: str) -> None:
    knobs, why = SPOILT[name]

    async def story() -> None:
        async with running(tmp_path, FOLLOWS, base=base(), balance_nanos=NANOS, **KEYS) as rig:
            good = await seen(rig, fresh(1))
            await rig.settings(**knobs)
            bad = await seen(rig, lambda view: view.state == "failing")
            assert why in bad.why
            assert (bad.amount, bad.usable) == (NANOS, NANOS)
            assert bad.at_s is not None
            assert good.at_s is not None
            assert (await rig.get(GEO))[0] == 200
            await rig.landed()
            less = await view_of(rig)
            assert less.usable == NANOS - round(PRICE * NANOS), "own spending counts down"
            await rig.settings(balance_fail=None, balance_garbage=None)
            await seen(rig, fresh(0.99))  # it shows whole cents

    asyncio.run(story())


@pytest.mark.parametrize(("on_stale", "status"), [("refuse", 402), ("trust_ledger", 200)])
def test_after_a_while_the_policy_says_what_a_stale_figure_is_worth(
    tmp_path: Path, on_stale: str, status: int
) -> None:
    async def story() -> None:
        balance = STALE_SOON.replace("}", f", on_stale: {on_stale}}}")
        async with running(
            tmp_path, FOLLOWS, base=base(balance), balance_nanos=NANOS, **KEYS
        ) as rig:
            await seen(rig, fresh(1))
            await rig.settings(balance_fail=503)
            await seen(rig, lambda view: view.state == "stale")
            if on_stale == "refuse":
                await seen(rig, lambda view: view.usable == 0)
            assert (await rig.get(GEO))[0] == status
            await rig.settings(balance_fail=None)
            await seen(rig, lambda view: view.state == "fresh")
            assert (await rig.get(GEO))[0] == 200

    asyncio.run(story())


def test_a_provider_that_is_down_from_the_start_lets_nothing_pass(tmp_path: Path) -> None:
    async def story() -> None:
        knobs: dict[str, Any] = {"balance_nanos": NANOS, "balance_fail": 500, **KEYS}
        async with running(tmp_path, FOLLOWS, base=base(), **knobs) as rig:
            await seen(rig, lambda view: bool(view.why))
            status, problem = await rig.get(GEO)
            assert (status, problem["code"]) == (402, "balance_low")
            await rig.settings(balance_fail=None)
            await seen(rig, fresh(1))
            assert (await rig.get(GEO))[0] == 200

    asyncio.run(story())


# -- out of money ----------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_heard_is_passed_on_and_settled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise OverflowError("sk-of-a-provider")

    monkeypatch.setattr(Hearing, "stop", broken)

    async def story() -> None:
        async with running(tmp_path, CAP, base=base(), balance_nanos=NANOS, **KEYS) as rig:
            await seen(rig, fresh(1))
            await rig.settings(refuse_as="deepseek")
            for _ in range(3):
                status, answer = await rig.get(GEO)
                assert (status, answer["error"]["message"]) == (402, "Insufficient Balance")
            await rig.landed()
            assert await rig.holds() == []
            assert [one.outcome for one in rig.calls] == ["upstream_error"] * 3

    asyncio.run(story())
    said = [one.getMessage() for one in caplog.records if "heard" in one.getMessage()]
    assert said == ["what an upstream's answer says of the money was not heard: OverflowError"]


async def sent_to(rig: Rig) -> int:
    """How many calls the upstream has seen."""
    return sum(one["path"].startswith("/v1/geocode") for one in await rig.arrived())


def test_a_provider_out_of_money_stops_all_calls_until_the_balance_shows_some(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with running(tmp_path, CAP, base=base(), balance_nanos=NANOS, **KEYS) as rig:
            await seen(rig, fresh(1))
            await rig.settings(refuse_as="deepseek", balance_fail=500)
            await seen(rig, lambda view: view.state == "failing")
            assert (await rig.get(GEO))[0] == 402, "the provider's own answer is passed on"
            sent = await sent_to(rig)
            status, problem = await rig.get(GEO)
            assert (status, problem["code"]) == (402, "out_of_money")

            async def told() -> bool:
                _, found = await admin(rig, "/api/stops")
                stops = [(one["name"], one["kind"]) for one in found["stops"]]
                return stops == [("geo", "account_empty")]

            await eventually(told)
            assert await sent_to(rig) == sent
            await rig.settings(refuse_as=None, balance_fail=None)

            async def served() -> bool:
                return (await rig.get(GEO))[0] == 200

            await eventually(served)
            await eventually_no_stops(rig)

    asyncio.run(story())


async def eventually_no_stops(rig: Rig) -> None:
    async def none() -> bool:
        return not (await admin(rig, "/api/stops"))[1]["stops"]

    await eventually(none)


def test_where_nobody_watches_one_call_tries_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budget_proxy.stop_keeper.FIRST_TRY_S", 2.0)

    async def story() -> None:
        async with running(tmp_path, CAP, base=base(""), balance_nanos=NANOS) as rig:
            await rig.settings(refuse_as="deepseek")
            assert (await rig.get(GEO))[0] == 402
            before = await sent_to(rig)

            async def tried() -> bool:
                assert (await rig.get(GEO))[0] == 402
                return await sent_to(rig) > before

            await eventually(tried)
            await rig.settings(refuse_as=None)

            async def served() -> bool:
                return (await rig.get(GEO))[0] == 200

            await eventually(served)
            await eventually_no_stops(rig)
            assert (await rig.get(GEO))[0] == 200

    asyncio.run(story())


def test_a_person_ends_the_stop_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, CAP, base=base(""), balance_nanos=NANOS) as rig:
            await rig.settings(refuse_as="deepseek")
            for _ in range(2):
                assert (await rig.get(GEO))[0] == 402
            await rig.settings(refuse_as=None)
            resume = {"scope": "upstream", "name": "geo"}

            async def resumed() -> bool:  # the keeper hears of it a moment later
                return bool((await admin(rig, "/api/resume", resume))[1]["resumed"])

            await eventually(resumed)
            assert (await rig.get(GEO))[0] == 200

    asyncio.run(story())


# -- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "name"), [("upstream", "geo"), ("budget", "cap"), ("service", "tests")]
)
def test_a_pause_stops_calls_before_they_are_sent(tmp_path: Path, scope: str, name: str) -> None:
    async def story() -> None:
        async with running(tmp_path, CAP, base=base(""), balance_nanos=NANOS) as rig:
            assert (await rig.get(GEO))[0] == 200
            pause = {"scope": scope, "name": name, "reason": "the bill", "for": "1h"}
            status, stop = await admin(rig, "/api/pause", pause)
            assert (status, stop["kind"]) == (200, "paused")
            status, problem = await rig.get(GEO)
            assert (status, problem["code"]) == (402, "paused")
            assert "the bill" in problem["detail"]
            assert len(await rig.charges()) == 1
            status, found = await admin(rig, "/api/resume", {"scope": scope, "name": name})
            assert (status, found) == (200, {"resumed": True})
            assert (await rig.get(GEO))[0] == 200

    asyncio.run(story())


def test_a_balance_that_a_person_enters_counts_down(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, FOLLOWS, base=base("balance: manual")) as rig:
            assert (await rig.get(GEO))[0] == 402
            entered = {"balance": "0.01 USD", "reason": "their page"}
            status, shown = await admin(rig, "/api/balances/geo", entered)
            assert (status, shown["usable"], shown["manual"]) == (200, "0.01", True)
            assert [(await rig.get(GEO))[0] for _ in range(3)] == [200, 200, 402]
            added = {"add": "0.005 USD", "reason": "paid in"}
            _, shown = await admin(rig, "/api/balances/geo", added)
            assert (shown["balance"], shown["usable"]) == ("0.005", "0.005")
            assert [(await rig.get(GEO))[0] for _ in range(2)] == [200, 402]

    asyncio.run(story())


def test_all_of_it_stands_in_the_metrics(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, FOLLOWS, base=base(), balance_nanos=NANOS, **KEYS) as rig:
            await seen(rig, fresh(1))
            pause = {"scope": "service", "name": "tests", "reason": "the bill"}
            await admin(rig, "/api/pause", pause)
            async with rig.session.get(rig.admin_url + "/metrics") as got:
                lines = (await got.text()).splitlines()
            for line in (
                'budget_proxy_balance_usable{unit="USD",upstream="geo"} 1.0',
                'budget_proxy_balance_polled{unit="USD",upstream="geo"} 1.0',
                'budget_proxy_breaker_open{kind="account_empty",upstream="geo"} 0.0',
                'budget_proxy_paused{name="tests",scope="service"} 1.0',
                'budget_proxy_paused{name="geo",scope="upstream"} 0.0',
                'budget_proxy_balance_polls_total{result="html",upstream="geo"} 0.0',
            ):
                assert line in lines, line

    asyncio.run(story())


# -- workers ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def fleet(cwd: Path, policy: str, url: str) -> AsyncIterator[Process]:
    (cwd / "policy.yaml").write_text(policy)
    words = ("serve", "policy.yaml", "--workers", "2")
    with started(*words, cwd=cwd, SANDBOX=url) as process:
        await process.is_ready()
        yield process


async def call(url: str) -> tuple[int, str]:
    """One call on a connection of its own, so that any worker may take it; status and reason."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(url + GEO, headers=AUTH) as got,
    ):
        body = await got.json(content_type=None)
        return got.status, str(body.get("code", ""))


async def all_of(url: str, status: int, reason: str) -> None:
    """Wait until 30 calls in a row, so of both workers, are answered so."""

    async def alike() -> bool:
        answers = [await call(url) for _ in range(30)]
        return set(answers) == {(status, reason)}

    await eventually(alike)


async def turn(url: str, **knobs: Any) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/_sandbox/settings", json=knobs) as got,
    ):
        assert got.status == 200, await got.text()


async def post(process: Process, path: str, body: dict[str, Any]) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.post(process.admin + path, json=body, headers=TOKEN) as got,
    ):
        assert got.status == 200, await got.text()
        return await got.json()


def test_what_one_worker_hears_stops_the_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(balance_nanos=100_000_000_000) as url,
            fleet(tmp_path, base("") + CAP, url) as process,
        ):
            await all_of(process.url, 200, "")
            await turn(url, refuse_as="deepseek")
            assert (await call(process.url))[0] == 402
            await all_of(process.url, 402, "out_of_money")
            await turn(url, refuse_as=None)
            assert (await post(process, "/api/resume", {"scope": "upstream", "name": "geo"}))[
                "resumed"
            ]
            await all_of(process.url, 200, "")

    asyncio.run(story())


def test_a_pause_reaches_every_worker(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(balance_nanos=100_000_000_000) as url,
            fleet(tmp_path, base("") + CAP, url) as process,
        ):
            named = {"scope": "service", "name": "tests"}
            await post(process, "/api/pause", {**named, "reason": "the bill"})
            await all_of(process.url, 402, "paused")
            await post(process, "/api/resume", named)
            await all_of(process.url, 200, "")

    asyncio.run(story())


def test_workers_spend_one_balance_together(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox(balance_nanos=100_000_000, **KEYS) as url,
            fleet(tmp_path, base() + FOLLOWS, url) as process,
        ):

            async def passes() -> bool:
                async with aiohttp.ClientSession() as session:
                    return await status_of(session, process.url + GEO) == 200

            await eventually(passes)
            answers = await asyncio.gather(*(call(process.url) for _ in range(60)))
            # A look meanwhile shows whole cents: two calls less.
            assert sum(status == 200 for status, _ in answers) in (17, 18, 19)
            refused = {answer for answer in answers if answer[0] != 200}
            assert refused <= {(402, "balance_low"), (429, "held")}
            await deposit(url, "5.00")
            await eventually(passes)

    asyncio.run(story())
