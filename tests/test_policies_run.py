"""Every policy that is shipped, run as it stands: the real URLs lead to the sandbox, nothing else
is changed, and one call of each service to each upstream goes through and is counted. The sandbox
has a balance, and whoever asks for it must have been answered before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from harness import running_sandbox
from polling import eventually
from processes import DEADLINE_S

from budget_proxy.app import App, with_ledger
from budget_proxy.catalogue import Catalogue
from budget_proxy.core.events import CallEnded, Event
from budget_proxy.core.house import House
from budget_proxy.policy import load

POLICIES = Path(__file__).resolve().parent.parent / "policies"
NAMES = sorted(path.name for path in POLICIES.iterdir() if path.is_file())
KEYS = {
    "demo": "demo-key-0000",
    "app": "app-key-canary-0000",
    "checkout": "checkout-key-canary",
    "support": "support-key-canary",
    "research": "research-key-canary",
    "batch": "batch-key-canary",
}
"""What each service sends."""
ENVIRONMENT = {
    "OPENAI_API_KEY": "provider-key-openai",
    "ANTHROPIC_API_KEY": "provider-key-anthropic",
    "GEO_KEY": "provider-key-geo",
    "BUDGET_PROXY_KEY": KEYS["app"],
    "CHECKOUT_KEY": KEYS["checkout"],
    "SUPPORT_KEY": KEYS["support"],
    "RESEARCH_KEY": KEYS["research"],
    "RESEARCH_KEY_NEXT": "research-key-canary-2",
    "DEEPSEEK_API_KEY": "provider-key-deepseek",
    "BATCH_KEY": KEYS["batch"],
    "ALERT_WEBHOOK": "http://127.0.0.1:9/alerts",
    "TOPUP_URL": "http://127.0.0.1:9/topups",
    "BUDGET_PROXY_TOKEN": "admin-token-canary",
}
BALANCE = 1_000 * 10**9
TALK: Any = [{"role": "user", "content": "hi"}]


class Sample(NamedTuple):
    """One call to an upstream; without a limit on its output where the policy puts one in."""

    method: str
    path: str
    body: Any
    credential: str


SAMPLES = {
    "openai": Sample(
        *("POST", "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": TALK}),
        "Bearer provider-key-openai",
    ),
    "anthropic": Sample(
        *("POST", "/v1/messages", {"model": "claude-sonnet-4-6", "messages": TALK}),
        "provider-key-anthropic",
    ),
    "deepseek": Sample(
        *("POST", "/chat/completions", {"model": "deepseek-flash", "messages": TALK}),
        "Bearer provider-key-deepseek",
    ),
    "geo": Sample("GET", "/v1/geocode?q=Oslo", None, "key=provider-key-geo"),
}


def house_of(name: str, folder: Path, sandbox: str) -> House:
    """The policy, with its ledger in a folder, on free ports, and every upstream at the sandbox."""
    environment = ENVIRONMENT | {"DEEPSEEK_URL": sandbox}
    house = load(POLICIES / name, environment=environment, prices=Catalogue)
    upstreams = {
        upstream.name: replace(upstream, url=sandbox) for upstream in house.upstreams.values()
    }
    any_port = ("127.0.0.1", 0)
    moved = replace(house, upstreams=upstreams, listen=any_port, admin=any_port)
    return with_ledger(moved, folder / "ledger.db")


async def until_balances_are_read(app: App) -> None:
    """Before that no call of a budget on a balance passes."""

    async def all_are_read() -> bool:
        return all(view.usable is not None for view in await app.keeping.balances())

    await eventually(all_are_read, within_s=DEADLINE_S)


def body_for(name: str, upstream: str) -> Any:
    """Anthropic wants max_tokens; only the quickstart does not put it in."""
    body = SAMPLES[upstream].body
    return (
        body | {"max_tokens": 16} if (name, upstream) == ("quickstart.yaml", "anthropic") else body
    )


def test_there_is_nothing_but_policies_there() -> None:
    assert {
        "quickstart.yaml",
        "openai.yaml",
        "anthropic.yaml",
        "teams.yaml",
        "prepaid.yaml",
    } <= set(NAMES)
    assert all(name.endswith(".yaml") for name in NAMES)
    folders = {path.name for path in POLICIES.iterdir() if path.is_dir()}
    assert folders == {"prometheus"}, "what is no policy stands apart"


@pytest.mark.parametrize("name", NAMES)
def test_every_service_gets_through_to_every_upstream_and_is_counted(
    tmp_path: Path, name: str
) -> None:
    async def story() -> None:
        events: list[Event] = []
        async with (
            running_sandbox(balance_nanos=BALANCE) as sandbox,
            aiohttp.ClientSession() as session,
        ):
            house = house_of(name, tmp_path, sandbox)
            app = App(lambda: house, observers=[events.append])
            await app.start()
            await until_balances_are_read(app)
            host, port = app.address
            try:
                for service in house.services:
                    for upstream in house.upstreams:
                        sample = SAMPLES[upstream]
                        async with session.request(
                            sample.method,
                            f"http://{host}:{port}/{upstream}{sample.path}",
                            json=body_for(name, upstream),
                            headers={"authorization": f"Bearer {KEYS[service]}"},
                        ) as answer:
                            assert answer.status == 200, await answer.text()
                await app._commit.settled()
                await judge(app, session, sandbox, events)
            finally:
                await app.stop(1.0)

    asyncio.run(story())


async def judge(
    app: App, session: aiohttp.ClientSession, sandbox: str, events: list[Event]
) -> None:
    """Everything was charged, counted to the nano in every budget, and nobody saw another's key."""
    async with session.get(f"{sandbox}/_sandbox/charges") as answer:
        charges = (await answer.json())["charges"]
    async with session.get(f"{sandbox}/_sandbox/requests") as answer:
        arrived = (await answer.json())["requests"]
        requests = [request for request in arrived if "balance" not in request["path"]]
    calls = [event for event in events if isinstance(event, CallEnded)]
    assert len(calls) == len(charges) == len(app.house.services) * len(app.house.upstreams)
    assert [call.cost for call in calls] == [charge["amount_nanos"] for charge in charges]
    assert {call.rule for call in calls} == {"actual"}
    total = sum(charge["amount_nanos"] for charge in charges)
    widest = [budget for budget in app.house.budgets if not budget.when and not budget.for_each]
    spent = {view.budget: view.spent for view in await app.accounts() if view.payer == "(all)"}
    for budget in widest:
        if budget.span.per != "request":
            assert spent[budget.name] == (total if budget.unit == "USD" else len(calls))
    assert any(budget.unit == "USD" and budget.span.per != "request" for budget in widest)
    for call, request in zip(calls, requests, strict=True):
        assert not any(key in str(request) for key in KEYS.values())
        if app.house.upstreams[call.upstream].credential in ENVIRONMENT.values():
            assert SAMPLES[call.upstream].credential in str(request)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_without_a_limit_gets_the_policys(tmp_path: Path, name: str) -> None:
    """`max_output` is what keeps a hold small: it must reach the provider."""

    async def story() -> None:
        async with running_sandbox(output_tokens=100_000, balance_nanos=BALANCE) as sandbox:
            house = house_of(name, tmp_path, sandbox)
            app = App(lambda: house)
            await app.start()
            await until_balances_are_read(app)
            service = next(iter(house.services))
            limited = [up for up in house.upstreams.values() if up.max_output is not None]
            assert limited
            try:
                async with aiohttp.ClientSession() as session:
                    for upstream in limited:
                        sample = SAMPLES[upstream.name]
                        async with session.post(
                            "http://{}:{}/{}{}".format(*app.address, upstream.name, sample.path),
                            json=sample.body,
                            headers={"authorization": f"Bearer {KEYS[service]}"},
                        ) as answer:
                            usage = (await answer.json())["usage"]
                        written = usage.get("completion_tokens", usage.get("output_tokens"))
                        assert written == upstream.max_output
            finally:
                await app.stop(1.0)

    asyncio.run(story())
