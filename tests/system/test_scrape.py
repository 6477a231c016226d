"""What Prometheus reads from a busy proxy: real parsers, promtool, and the families promised."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import Rig, chat, running
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain

from budget_proxy.core.events import InvariantBroken
from budget_proxy.ledgers import LedgerDownError

OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
BUDGETS = """
budgets:
  company: {limit: 1000 USD, per: month, timezone: Europe/Berlin}
  cap: {limit: 0.02 USD, per: total, when: {upstream: geo}}
  single: {limit: 1 USD, per: request}
  rate: {limit: 1000 requests, per: minute, for_each: service}
  line: {limit: 1 requests, per: total, when: {model: gpt-4o}, on_shortfall: wait, max_wait: 50ms}
  pilot: {limit: 0.001 USD, when: {upstream: geo}, on_shortfall: report}
"""
PROMISED: dict[str, set[str]] = {
    "budget_proxy_requests": {"upstream", "service", "outcome"},
    "budget_proxy_cost": {"upstream", "service", "currency"},
    "budget_proxy_account_limit": {"budget", "payer", "unit"},
    "budget_proxy_account_spent": {"budget", "payer", "unit"},
    "budget_proxy_account_held": {"budget", "payer", "unit"},
    "budget_proxy_account_window_end_timestamp_seconds": {"budget", "payer"},
    "budget_proxy_accounts_omitted": set(),
    "budget_proxy_refusals": {"budget", "reason"},
    "budget_proxy_reported": {"budget"},
    "budget_proxy_ledger_up": set(),
    "budget_proxy_estimate_ratio": {"upstream"},
    "budget_proxy_stage_seconds": {"stage"},
    "budget_proxy_waiting": set(),
    "budget_proxy_wait_seconds": set(),
    "budget_proxy_waits": {"budget", "how"},
    "budget_proxy_upstream_errors": {"upstream", "kind"},
    "budget_proxy_presumed_holds": {"why"},
    "budget_proxy_unknown_outcomes": {"upstream"},
    "budget_proxy_invariant_violations": set(),
}
"""Families that must have samples after `busy`, with exactly these labels."""
CUT = 7
"""Which of the charges was for the call whose answer was cut."""
EMPTY: dict[str, str] = {"budget_proxy_overruns": "counter"}
"""Families that are there without a sample, since nothing of the kind has happened."""


@asynccontextmanager
async def busy(tmp_path: Path) -> AsyncIterator[Rig]:
    """A proxy that has seen one of everything."""
    async with running(tmp_path, BUDGETS) as rig:
        for _ in range(2):
            assert (await rig.post("/openai/v1/chat/completions", chat()))[0] == 200
        stream = chat(stream=True)
        assert (await rig.post("/openai/v1/chat/completions", stream))[0] == 200
        geo = [(await rig.get("/geo/v1/geocode?q=x"))[0] for _ in range(5)]
        assert geo == [200, 200, 200, 200, 402]
        assert (await rig.get("/geo/v1/nothing"))[0] == 403
        too_much = chat(16_000_000)
        assert (await rig.post("/openai/v1/chat/completions", too_much))[0] == 402
        cut = {"x-sandbox-cut-after": "0"}
        assert (await rig.post("/openai/v1/chat/completions", chat(), headers=cut))[0] == 502
        # Of two that wait for the same single request one is too late.
        hold = {"x-sandbox-latency-s": "0.3"}
        first = asyncio.create_task(
            rig.post("/openai/v1/chat/completions", chat(model="gpt-4o"), headers=hold)
        )
        await rig.until(lambda: rig.app._listener.in_flight == 1)
        late = await rig.post("/openai/v1/chat/completions", chat(model="gpt-4o"))
        assert late[0] == 429
        assert (await first)[0] == 200
        await rig.landed()
        yield rig


async def scrape(rig: Rig, **headers: str) -> tuple[str, str]:
    """Text and content type."""
    async with rig.session.get(f"{rig.admin_url}/metrics", headers=headers) as answer:
        assert answer.status == 200
        return await answer.text(), answer.headers["content-type"]


def ours(families: list[Metric]) -> dict[str, Metric]:
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family is written once"
    return {family.name: family for family in families if family.name.startswith("budget_proxy_")}


def value(family: Metric, name: str, **labels: str) -> float:
    (found,) = [
        sample.value for sample in family.samples if sample.name == name and sample.labels == labels
    ]
    return found


def test_every_promised_family_is_there_with_exactly_its_labels(tmp_path: Path) -> None:
    async def story() -> None:
        async with busy(tmp_path) as rig:
            plain, plain_type = await scrape(rig)
            exact, exact_type = await scrape(rig, **OPENMETRICS)
            assert plain_type == "text/plain; version=0.0.4; charset=utf-8"
            assert exact_type.startswith("application/openmetrics-text; version=1.0.0")
            assert exact.endswith("# EOF\n")
            for families in (
                ours(list(read_plain(plain))),
                ours(list(read_openmetrics(exact))),
            ):
                for name, labels in PROMISED.items():
                    samples = families[name].samples
                    assert samples, f"{name} has no sample"
                    for sample in samples:
                        assert sample.labels.keys() - {"le"} == labels, sample
                    assert families[name].documentation.endswith("."), name
                for name, kind in EMPTY.items():
                    assert (families[name].type, families[name].samples) == (kind, [])

    asyncio.run(story())


def test_the_figures_are_those_of_the_ledger_and_the_sandbox(tmp_path: Path) -> None:
    async def story() -> None:
        async with busy(tmp_path) as rig:
            families = ours(list(read_plain((await scrape(rig))[0])))
            cost = sum(sample.value for sample in families["budget_proxy_cost"].samples)
            company = await rig.account("company")
            assert company is not None
            assert round(cost * 10**9) == company.spent
            # The call whose answer was cut is charged at its hold, everything else exactly.
            cut = [entry for entry in await rig.entries() if entry.rule != "actual"]
            (leg,) = [leg for entry in cut for leg in entry.legs if leg.budget == "company"]
            others = sum(
                leg.amount
                for entry in await rig.entries()
                for leg in entry.legs
                if leg.budget == "company" and entry not in cut
            )
            charges = sorted(charge["amount_nanos"] for charge in await rig.charges())
            assert company.spent == others + leg.held
            assert others == sum(charges) - (await rig.charges())[CUT]["amount_nanos"]

            requests = families["budget_proxy_requests"]
            name = "budget_proxy_requests_total"
            geo = {"upstream": "geo", "service": "tests"}
            assert value(requests, name, **geo, outcome="served") == 4
            assert value(requests, name, **geo, outcome="refused") == 1
            assert value(requests, name, **geo, outcome="rejected") == 1
            refusals = families["budget_proxy_refusals"]
            name = "budget_proxy_refusals_total"
            assert value(refusals, name, budget="cap", reason="spent") == 1
            assert value(refusals, name, budget="single", reason="too_large") == 1
            assert value(refusals, name, budget="line", reason="waited") == 1
            reported = families["budget_proxy_reported"]
            assert value(reported, "budget_proxy_reported_total", budget="pilot") == 4
            waits = families["budget_proxy_waits"]
            assert value(waits, "budget_proxy_waits_total", budget="line", how="timeout") == 1
            spent = families["budget_proxy_account_spent"]
            labels = {"budget": "cap", "payer": "(all)", "unit": "USD"}
            assert value(spent, spent.name, **labels) == 0.02
            invariants = families["budget_proxy_invariant_violations"]
            assert value(invariants, f"{invariants.name}_total") == 0
            stages = {s.labels["stage"] for s in families["budget_proxy_stage_seconds"].samples}
            assert stages == {"price", "hold", "wait", "first_byte", "total"}

    asyncio.run(story())


async def ledger_up(rig: Rig) -> tuple[float, float, int]:
    """Whether it says so, how many geocodes it counts, and how many accounts it shows."""
    families = ours(list(read_plain((await scrape(rig))[0])))
    up, served = families["budget_proxy_ledger_up"], families["budget_proxy_requests"]
    labels = {"upstream": "geo", "service": "tests", "outcome": "served"}
    count = value(served, "budget_proxy_requests_total", **labels)
    return value(up, up.name), count, len(families["budget_proxy_account_spent"].samples)


def test_with_a_ledger_that_cannot_be_written_the_rest_still_scrapes(tmp_path: Path) -> None:
    async def story() -> None:
        async with busy(tmp_path) as rig:
            before = await ledger_up(rig)
            assert before[0] == 1
            (tmp_path / "ledger.db").rename(tmp_path / "elsewhere.db")
            assert (await rig.post("/openai/v1/chat/completions", chat()))[0] == 503
            assert (await ledger_up(rig))[:2] == (0, before[1])
            async with rig.session.get(f"{rig.admin_url}/readyz") as ready:
                assert ready.status == 200, "a proxy that is taken away cannot explain itself"
            (tmp_path / "elsewhere.db").rename(tmp_path / "ledger.db")
            await rig.until(lambda: rig.app._commit.up)
            assert (await rig.post("/openai/v1/chat/completions", chat()))[0] == 200
            assert await ledger_up(rig) == before

    asyncio.run(story())


def test_with_a_ledger_that_cannot_be_read_the_rest_still_scrapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable() -> None:
        raise LedgerDownError("the disk is gone")

    async def story() -> None:
        async with busy(tmp_path) as rig:
            before = await ledger_up(rig)
            with monkeypatch.context() as broken:
                broken.setattr(rig.app._open_ledger, "accounts", unreadable)
                assert await ledger_up(rig) == (0, before[1], 0)
                async with rig.session.get(f"{rig.admin_url}/api/accounts") as answer:
                    assert answer.status == 503
            assert await ledger_up(rig) == before

    asyncio.run(story())


def test_a_broken_promise_and_a_late_hold_are_counted(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path) as rig:
            rig.app._emit(InvariantBroken("only a test"))
            families = ours(list(read_plain((await scrape(rig))[0])))
            name = "budget_proxy_invariant_violations"
            assert value(families[name], f"{name}_total") == 1
            presumed = families["budget_proxy_presumed_holds"]
            whys = {sample.labels["why"]: sample.value for sample in presumed.samples}
            assert whys == {"owner_dead": 0, "deadline": 0}, "an alert needs the zero before"

    asyncio.run(story())


def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH, nor named by PROMTOOL")

    async def story() -> str:
        async with busy(tmp_path) as rig:
            return (await scrape(rig))[0]

    text = asyncio.run(story())
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
