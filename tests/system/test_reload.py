"""SIGHUP: a valid policy is in force at once and what was counted stays; an invalid one stays out
as a whole, and a metric tells."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import threading
from decimal import Decimal
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from callers import calling
from harness import BASE, house_of, running_sandbox
from processes import AUTH, CAP, GEO, POLICY, Gate, Process, run, serving, status_of, until

from budget_proxy.app import App
from budget_proxy.core.house import House

TOKEN = {"authorization": "Bearer admin-token-0000"}


def cap(limit: str, more: str = "") -> str:
    """POLICY with this one budget."""
    return f"{POLICY}budgets: {{cap: {{limit: {limit}, per: total{more}}}}}\n"


async def metrics(session: aiohttp.ClientSession, process: Process) -> dict[str, float]:
    """Every sample of ours, as it is written."""
    async with session.get(f"{process.admin}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("budget_proxy_"))
    return {name: float(value) for name, value in pairs}


async def reload(session: aiohttp.ClientSession, process: Process, policy: str | None) -> str:
    """Write the policy (None: take it away), send SIGHUP, wait; whether it was taken."""

    def results(samples: dict[str, float]) -> dict[str, float]:
        name = 'budget_proxy_policy_reloads_total{{result="{}"}}'
        return {result: samples[name.format(result)] for result in ("ok", "refused")}

    path = process.cwd / "policy.yaml"
    path.unlink() if policy is None else path.write_text(policy)
    before = results(await metrics(session, process))
    process.send(signal.SIGHUP)
    async with asyncio.timeout(60):
        while True:
            after = results(await metrics(session, process))
            if after != before:
                (result,) = [name for name in after if after[name] == before[name] + 1]
                return result
            await asyncio.sleep(0.01)


def test_a_valid_policy_changes_limits_and_keeps_what_was_counted(tmp_path: Path) -> None:
    spent = 'budget_proxy_account_spent{budget="cap",payer="(all)",unit="USD"}'
    limit = spent.replace("_spent", "_limit")
    served = 'budget_proxy_requests_total{outcome="served",service="tests",upstream="geo"}'
    cost = 'budget_proxy_cost_total{currency="USD",service="tests",upstream="geo"}'

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(tmp_path, cap("0.01 USD"), SANDBOX=sandbox) as process,
        ):
            calls = [await status_of(session, process.url + GEO) for _ in range(3)]
            assert calls == [200, 200, 402]
            assert await reload(session, process, cap("0.02 USD")) == "ok"
            now = await metrics(session, process)
            assert (now[limit], now[spent], now[served], now[cost]) == (0.02, 0.01, 2, 0.01)
            calls = [await status_of(session, process.url + GEO) for _ in range(3)]
            assert calls == [200, 200, 402]
            assert await reload(session, process, cap("0.001 USD")) == "ok"
            assert await status_of(session, process.url + GEO) == 402
            now = await metrics(session, process)
            assert (now[limit], now[spent], now[served], now[cost]) == (0.001, 0.02, 4, 0.02)
            assert now["budget_proxy_invariant_violations_total"] == 0
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())


REFUSED: dict[str | None, str] = {
    cap("0.02"): "policy.yaml:12:24: ",
    cap("0.02 USD") + "nonsense: 1\n": "nonsense",
    "{": "policy.yaml:2:1: not YAML",
    None: "policy.yaml",
    cap("9 USD").replace(":-127.0.0.1:0}", ":-127.0.0.1:1}", 1): "listen: cannot change while",
    cap("9 USD").replace("ledger.db", "other.db"): "ledger: cannot change while serving",
    cap("9 USD").replace("  geo:\n", "  geo:\n    ca: missing.pem\n"): "No such file or directory",
}
"""Policies that cannot be put in force (None: there is none), and what is said."""


def test_a_policy_that_cannot_be_stays_out_as_a_whole(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(tmp_path, cap("0.005 USD"), SANDBOX=sandbox) as process,
        ):
            assert await status_of(session, process.url + GEO) == 200
            for number, (policy, says) in enumerate(REFUSED.items(), 2):
                before = process.err
                assert await reload(session, process, policy) == "refused", says
                said = process.err.removeprefix(before)
                assert "the policy was not reloaded: " in said
                assert says in said
                assert await status_of(session, process.url + GEO) == 402, "the old one is in force"
                # And what was wrong is not in the way of the next one.
                assert await reload(session, process, cap(f"{0.005 * number:.3f} USD")) == "ok"
                calls = [await status_of(session, process.url + GEO) for _ in range(2)]
                assert calls == [200, 402]
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())


def test_services_and_upstreams_come_and_go(tmp_path: Path) -> None:
    other = cap("1 USD").replace("test-key-0000", "next-key-0000").replace("  geo:", "  maps:")
    key = {"authorization": "Bearer next-key-0000"}

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(tmp_path, cap("1 USD"), SANDBOX=sandbox) as process,
        ):
            assert await status_of(session, process.url + GEO) == 200
            assert await reload(session, process, other) == "ok"
            assert await status_of(session, process.url + GEO) == 404
            maps = process.url + GEO.replace("/geo/", "/maps/")
            assert await status_of(session, maps) == 401
            async with session.get(maps, headers=key) as answer:
                assert answer.status == 200
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())


def test_who_waits_for_budget_goes_on_when_there_is_more(tmp_path: Path) -> None:
    waits = ", on_shortfall: wait, max_wait: 60s"

    async def story() -> None:
        async with (
            Gate.standing() as gate,
            aiohttp.ClientSession() as session,
            serving(tmp_path, cap("0.005 USD", waits), SANDBOX=gate.url) as process,
        ):
            calls = [asyncio.create_task(status_of(session, process.url + GEO)) for _ in range(2)]
            await gate.holds(1)

            async def one_waits() -> bool:
                return (await metrics(session, process))["budget_proxy_waiting"] == 1

            async with asyncio.timeout(30):
                while not await one_waits():  # noqa: ASYNC110 - it is asked over the network
                    await asyncio.sleep(0.01)
            assert await reload(session, process, cap("0.01 USD", waits)) == "ok"
            await gate.holds(2)
            gate.opened.set()
            assert await asyncio.gather(*calls) == [200, 200]
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())


def test_reloads_without_end_disturb_nobody(tmp_path: Path) -> None:
    """Under load, with a credential that changes each time so that connections are made anew."""

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(tmp_path, POLICY + CAP, SANDBOX=sandbox) as process,
        ):
            statuses: list[int] = []

            async def call() -> None:
                statuses.append(await status_of(session, process.url + GEO))

            def reloaded(before: int) -> bool:
                return process.err.count("the policy was reloaded") > before

            async with calling(call, 4):
                for number in range(15):
                    limit = f"{100 + number} USD"
                    mine = cap(limit).replace("  geo:\n", f"  geo:\n    credential: k{number}\n")
                    (tmp_path / "policy.yaml").write_text(mine)
                    told = process.err.count("the policy was reloaded")
                    for _ in range(3):
                        process.send(signal.SIGHUP)
                    await until(partial(reloaded, told), "it is not reloaded")
            assert set(statuses) == {200}
            now = await metrics(session, process)
            assert now["budget_proxy_invariant_violations_total"] == 0
            process.send(signal.SIGTERM)
            assert await process.ended() == 0
            status = run("status", "--ledger", "ledger.db", "--json", cwd=tmp_path)
            (account,) = json.loads(status.stdout)["accounts"]
            assert Decimal(account["spent"]) == len(statuses) * Decimal("0.005")

    asyncio.run(story())


def test_of_two_reloads_at_once_the_later_policy_is_in_force(tmp_path: Path) -> None:
    """Even where reading the first one takes longer."""
    limits = iter(("1 USD", "2 USD", "3 USD"))
    slow = threading.Event()

    def load() -> House:
        limit = next(limits)
        if limit == "2 USD":
            assert slow.wait(30)
        cap = f"budgets: {{cap: {{limit: {limit}, per: total}}}}\n"
        return house_of(BASE + cap, tmp_path, SANDBOX="http://127.0.0.1:9")

    async def story() -> None:
        app = App(load)
        await app.start()
        first = asyncio.create_task(app.reload())
        second = asyncio.create_task(app.reload())
        done, _ = await asyncio.wait((first, second), timeout=0.2)
        slow.set()
        assert [await first, await second] == [[], []]
        assert not done, "the second waits for the first"
        (view,) = await app.accounts()
        assert view.limit == 3 * 10**9
        await app.stop(1.0)

    asyncio.run(story())


def test_a_call_keeps_its_connection_over_any_number_of_reloads(tmp_path: Path) -> None:
    """A later reload retires connections that must close early; those of an earlier policy, whose
    call may last longer, stay until that call must be over."""
    limits = "limits: {body_timeout: 10ms}\n"

    gate_url = ""

    def under(credential: str, timeouts: str = "") -> House:
        more = f"  geo:\n    credential: {credential}\n{timeouts}"
        base = BASE.replace("  geo:\n", more)
        return house_of(limits + base + CAP, tmp_path, SANDBOX=gate_url)

    async def story() -> None:
        nonlocal gate_url
        async with Gate.standing() as gate, aiohttp.ClientSession() as session:
            gate_url = gate.url
            short = "    timeouts: {total: 20ms}\n    drain: 20ms\n"
            houses = iter([under("first"), under("second", short), under("third")])
            app = App(lambda: next(houses))
            await app.start()
            url = "http://{}:{}".format(*app.address)
            call = asyncio.create_task(status_of(session, url + GEO))
            await gate.holds(1)
            assert await app.reload() == []
            assert await app.reload() == []

            def credentials() -> list[str | None]:
                return [old.upstream.credential for old in app._switchboard._retired]

            await until(lambda: credentials() == ["first"], "the second's are not closed")
            gate.opened.set()
            assert await call == 200
            assert await status_of(session, url + GEO) == 200, "under the third"
            await app.stop(1.0)
            assert credentials() == []

    asyncio.run(story())


def test_a_reload_that_fails_half_way_leaves_no_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One upstream is new and fine, the next one's authorities cannot be read."""
    good = BASE.replace("${SANDBOX}", "http://127.0.0.1:9") + CAP
    wrong = good.replace("credential: sandbox-key", "credential: another-key")
    wrong = wrong.replace("  geo:\n", f"  geo:\n    ca: {tmp_path / 'missing.pem'}\n")
    houses = iter([house_of(good, tmp_path), house_of(wrong, tmp_path), house_of(good, tmp_path)])

    async def story() -> None:
        app = App(lambda: next(houses))
        await app.start()
        made = app._switchboard.to(app.house.upstreams["openai"])
        (said,) = await app.reload()
        assert "No such file or directory" in said
        assert app._switchboard.to(app.house.upstreams["openai"]) is made
        gc.collect()
        assert await app.reload() == []
        assert app._switchboard._retired == []
        await app.stop(1.0)

    asyncio.run(story())
    assert "Unclosed" not in caplog.text


def test_the_admin_port_reloads_and_says_what_is_wrong(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(tmp_path, cap("0.005 USD"), SANDBOX=sandbox) as process,
        ):
            where = f"{process.admin}/api/reload"
            (tmp_path / "policy.yaml").write_text(cap("0.02"))
            async with session.post(where, headers=TOKEN) as answer:
                assert answer.status == 422
                (mistake,) = (await answer.json())["mistakes"]
                assert mistake.startswith("policy.yaml:12:")
            (tmp_path / "policy.yaml").write_text(cap("0.01 USD"))
            async with session.post(where, headers=AUTH) as answer:
                assert answer.status == 401
            async with session.post(where, headers=TOKEN) as answer:
                assert (answer.status, await answer.json()) == (200, {"ok": True})
            calls = [await status_of(session, process.url + GEO) for _ in range(3)]
            assert calls == [200, 200, 402]
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())
