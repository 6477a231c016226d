"""The sandbox against the files of the providers: two readings of the same documentation.

The sandbox shares no code with the proxy. Where what it plays is not understood, one of them is
wrong.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from harness import running_sandbox

from budget_proxy.catalogue import Catalogue
from budget_proxy.core.balance import Bad, Reading, Watch, read, request_of
from budget_proxy.core.verdict import judge
from budget_proxy.policy import load
from budget_proxy.policy.providers import packaged
from budget_proxy.sandbox.balances import BALANCES
from budget_proxy.sandbox.emptiness import REFUSALS, Row

ACCOUNT = "/2010-04-01/Accounts/AC7/Balance.json"
LEFT = 12_345_678_901
KEY = "key-0123456789"

WATCHES: dict[str, tuple[str, Reading]] = {
    "deepseek": ("deepseek", Reading(12_340_000_000, "USD")),
    "openrouter_credits": (
        "{preset: openrouter, credential: '${KEY}'}",
        Reading(12_345_678_901, "USD"),
    ),
    "openrouter_key": ("openrouter-key", Reading(12_345_678_901, "USD")),
    "moonshot": ("{preset: moonshot, currency: USD}", Reading(12_345_670_000, "USD")),
    "siliconflow": ("{preset: siliconflow, currency: USD}", Reading(12_340_000_000, "USD")),
    "xai": (
        "{preset: xai, credential: '${KEY}', url: /v1/billing/teams/t/prepaid/balance}",
        Reading(12_340_000_000, "USD"),
    ),
    "deepinfra": ("deepinfra", Reading(12_345_678_901, "USD")),
    "novita": ("novita", Reading(12_345_600_000, "USD")),
    "venice": ("venice", Reading(12_345_678_901, "USD")),
    "twilio": (
        f"{{preset: twilio, credential: {{basic: 'AC7:${{KEY}}'}}, url: {ACCOUNT}}}",
        Reading(12_340_000_000, "USD"),
    ),
    "elevenlabs": ("elevenlabs", Reading(123_456, "credits")),
    "serpapi": ("serpapi", Reading(1_234, "searches")),
    "stability": ("stability", Reading(12_345_678_901, "USD")),
    "deepgram": ("{preset: deepgram, url: /v1/projects/p/balances}", Reading(LEFT, "USD")),
}
"""By the sandbox's endpoint: how a policy asks for it, and what is read."""

FILES = {"google_maps": "google-maps", "google_places": "google-maps"}
STOPS = ("account_empty", "key_cap", "too_big")


def watch_of(balance: str, origin: str, folder: Path) -> Watch:
    file = folder / "policy.yaml"
    file.write_text(
        f"upstreams: {{it: {{url: '{origin}', credential: '${{KEY}}', balance: {balance}, "
        "tariff: [{match: {path: /**}, price: {requests: 0.005 USD}}]}}\n"
        "services: {app: {key: app-key-0000}}\nbudgets: {day: {limit: 5 USD, per: day}}\n"
    )
    found = load(file, environment={"KEY": KEY}, prices=Catalogue).upstreams["it"].watch
    assert found is not None
    return found


async def asked(watch: Watch, **knobs: str) -> Reading | Bad:
    url, headers = request_of(watch)
    headers += [(f"x-sandbox-{name.replace('_', '-')}", value) for name, value in knobs.items()]
    assert watch.shape is not None
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return read(watch.shape, answer.status, answer.content_type, await answer.read())


def test_every_balance_of_the_sandbox_is_in_the_table() -> None:
    assert {endpoint.name for endpoint in BALANCES} == WATCHES.keys()


@pytest.mark.parametrize("name", WATCHES)
def test_a_preset_reads_the_balance_that_the_sandbox_shows(name: str, tmp_path: Path) -> None:
    balance, expected = WATCHES[name]

    async def story() -> None:
        async with running_sandbox(balance_nanos=LEFT, require_key=KEY) as origin:
            assert await asked(watch_of(balance, origin, tmp_path)) == expected

    asyncio.run(story())


def test_a_preset_is_not_fooled_by_what_the_sandbox_garbles(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_sandbox(balance_nanos=LEFT) as origin:
            watch = watch_of("deepseek", origin, tmp_path)
            found = {
                kind: await asked(watch, balance_garbage=kind)
                for kind in ("html", "json", "shape", "currency", "negative")
            }
            kinds = {kind: bad.kind for kind, bad in found.items() if isinstance(bad, Bad)}
            assert kinds == {
                "html": "html",
                "json": "not_json",
                "shape": "shape",
                "currency": "currency",
                "negative": "negative",
            }
            failed = await asked(watch, balance_fail="503")
            assert isinstance(failed, Bad)
            assert failed.kind == "status"
            jumped = await asked(watch, balance_garbage="jump")
            assert jumped == Reading(12_345_670_000_000, "USD")

    asyncio.run(story())


def provider_of(row: Row) -> str:
    long = next((file for name, file in FILES.items() if row.name.startswith(name)), None)
    short = row.name.partition("_")[0]
    return long or (short if short in packaged().names() else "generic")


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_of_the_sandbox_is_understood(row: Row) -> None:
    rules = packaged().named(provider_of(row)).rules
    found = judge(rules, row.status, row.headers, json.dumps(row.body_for(7)).encode())
    means = None if found is None else found.means
    if row.meaning in STOPS:
        assert means == row.meaning
    else:
        assert means not in STOPS
