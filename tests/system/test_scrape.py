"""What Prometheus reads from a busy proxy: real parsers, promtool, and the families promised."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import BASE, Rig, chat, house_of, running
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as read_plain

from budget_proxy.core.events import InvariantBroken
from budget_proxy.ledgers import LedgerDownError

read_exact: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
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
    "budget_proxy_overruns": {"budget"},
    "budget_proxy_overrun_amount": {"budget", "unit"},
    "budget_proxy_retries_after_final": {"service"},
    "budget_proxy_invariant_violations": set(),
}
"""Families that must have samples after `busy`, with exactly these labels."""
CUT = 7
"""Which of the charges was for the call whose answer was cut."""


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
                ours(list(read_exact(exact))),
            ):
                for name, labels in PROMISED.items():
                    samples = families[name].samples
                    assert samples, f"{name} has no sample"
                    for sample in samples:
                        assert sample.labels.keys() - {"le"} == labels, sample
                    assert families[name].documentation.endswith("."), name

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


ALARMS = {
    "budget_proxy_overruns",
    "budget_proxy_overrun_amount",
    "budget_proxy_unknown_outcomes",
    "budget_proxy_presumed_holds",
    "budget_proxy_invariant_violations",
    "budget_proxy_refusals",
    "budget_proxy_reported",
    "budget_proxy_waits",
    "budget_proxy_upstream_errors",
    "budget_proxy_retries_after_final",
    "budget_proxy_policy_reloads",
    "budget_proxy_log_lines_dropped",
    "budget_proxy_requests",
    "budget_proxy_cost",
    "budget_proxy_estimate_ratio",
}
"""Families that an alert or a rate is made of."""


def series(families: dict[str, Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of those, with its labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for name in ALARMS
        for sample in families[name].samples
    }


async def alarms(rig: Rig) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return series(ours(list(read_plain((await scrape(rig))[0]))))


def test_no_series_begins_with_its_first_event(tmp_path: Path) -> None:
    """Or `increase(...) > 0` would miss that one: what there is in the end was there at 0."""

    async def story() -> None:
        async with running(tmp_path, BUDGETS) as rig:
            before = await alarms(rig)
        assert set(before.values()) == {0.0}
        names = {name.removesuffix("_total") for name, _ in before}
        assert {n for n in ALARMS if n != "budget_proxy_estimate_ratio"} <= names
        (tmp_path / "ledger.db").unlink()
        async with busy(tmp_path) as rig:
            rig.app._emit(InvariantBroken("only a test"))
            for status in ("401", "402", "403", "429", "500", "503"):
                fault = {"x-sandbox-fail": status, "x-stainless-retry-count": "1"}
                await rig.post("/openai/v1/chat/completions", chat(), headers=fault)
                async with rig.session.get(f"{rig.url}/geo/v1/geocode", headers=fault) as answer:
                    assert answer.status == 401, "without a key"
            after = await alarms(rig)
            assert after.keys() == before.keys()
            assert len([value for value in after.values() if value]) > 20

    asyncio.run(story())


def test_a_reload_begins_what_it_brings_and_forgets_nothing(tmp_path: Path) -> None:
    more = """
    budgets:
      fresh: {limit: 9 requests, per: hour, on_shortfall: wait}
    """
    text = BASE.replace("  geo:\n", "  maps:\n").replace("  tests:", "  other:")

    async def story() -> None:
        async with busy(tmp_path) as rig:
            before = await alarms(rig)
            next_house = house_of(text + textwrap.dedent(more), tmp_path, SANDBOX=rig.sandbox_url)
            rig.app._load = lambda: next_house
            assert await rig.app.reload() == []
            after = await alarms(rig)
            fresh = {key: value for key, value in after.items() if key not in before}
            assert set(fresh.values()) == {0.0}
            labels = {pair for _, pairs in fresh for pair in pairs}
            assert {("budget", "fresh"), ("upstream", "maps"), ("service", "other")} <= labels
            kept = {key: value for key, value in after.items() if key in before}
            reloads = ("budget_proxy_policy_reloads_total", frozenset({("result", "ok")}))
            assert kept == before | {reloads: 1.0}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "status_401"), (402, "status_402"), (403, "status_403"), (429, "status_429"),
     (500, "status_5xx"), (529, "status_5xx"), (400, ""), (404, ""), (422, "")],
)  # fmt: skip
def test_an_answer_that_fails_the_caller_is_passed_on_and_counted(
    tmp_path: Path, status: int, kind: str
) -> None:
    """A 401 of the provider's means that our credential is wrong, and every call fails."""

    async def story() -> None:
        async with running(tmp_path) as rig:
            fault = {"x-sandbox-fail": str(status)}
            path = "/openai/v1/chat/completions"
            assert (await rig.post(path, chat(), headers=fault))[0] == status
            assert (rig.calls[0].outcome, rig.calls[0].reason, rig.calls[0].status) == (
                "upstream_error" if kind else "served",
                kind,
                status,
            )
            errors = {
                key: count for key, count in (await alarms(rig)).items() if "errors" in key[0]
            }
            counted = {
                dict(labels)["kind"]: count for (_, labels), count in errors.items() if count
            }
            assert counted == ({kind: 1.0} if kind else {})

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
