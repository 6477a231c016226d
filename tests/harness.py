"""A whole proxy on loopback in front of a whole sandbox, for tests that want the real thing."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from budget_proxy import sandbox
from budget_proxy.app import App, with_ledger
from budget_proxy.catalogue import Catalogue
from budget_proxy.core.book import AccountState, Entry, OpenHold
from budget_proxy.core.events import CallEnded, Event
from budget_proxy.core.house import House
from budget_proxy.policy import load

KEY = "test-key-0000"
AUTH = {"authorization": f"Bearer {KEY}"}

BASE = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  openai: {url: "${SANDBOX}", tariff: openai, credential: sandbox-key}
  anthropic: {url: "${SANDBOX}", tariff: anthropic, credential: sandbox-key}
  geo:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services:
  tests: {key: test-key-0000, labels: {team: tests}}
"""
TOO_LOW = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  chat:
    url: ${SANDBOX}
    tariff:
      - match: {method: POST, path: /v1/chat/completions}
        quantities:
          output_tokens: {before: 10, after: {json: usage.completion_tokens}}
        price: {output_tokens: 0.001 USD}
services:
  tests: {key: test-key-0000}
"""
"""A policy with a tariff whose ceiling is of ten tokens, whatever is asked for."""
GENEROUS = "budgets: {company: {limit: 1000 USD, per: total}}\n"


def chat(max_tokens: int | None = 16, **more: Any) -> dict[str, Any]:
    """A chat body that costs little."""
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return body | more


class Rig:
    """A running proxy and what can be asked of it."""

    def __init__(self, app: App, sandbox_url: str, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.sandbox_url = sandbox_url
        self.session = session
        self.events: list[Event] = []

    @property
    def host(self) -> str:
        return self.app.address[0]

    @property
    def port(self) -> int:
        return self.app.address[1]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def admin_url(self) -> str:
        host, port = self.app.admin_address
        return f"http://{host}:{port}"

    @property
    def calls(self) -> list[CallEnded]:
        """The ends of calls so far."""
        return [event for event in self.events if isinstance(event, CallEnded)]

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """POST JSON with the service's key; (status, decoded answer or bytes)."""
        headers = AUTH | more.pop("headers", {})
        async with self.session.post(self.url + path, json=body, headers=headers, **more) as got:
            data = await got.read()
            is_json = "json" in got.content_type
            return got.status, await got.json(content_type=None) if is_json else data

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        """GET with the service's key."""
        headers = AUTH | more.pop("headers", {})
        async with self.session.get(self.url + path, headers=headers, **more) as got:
            data = await got.read()
            is_json = "json" in got.content_type
            return got.status, await got.json(content_type=None) if is_json else data

    async def charges(self) -> list[dict[str, Any]]:
        """What the sandbox says it charged: the truth."""
        async with self.session.get(self.sandbox_url + "/_sandbox/charges") as got:
            found: list[dict[str, Any]] = (await got.json())["charges"]
            return found

    async def charged_nanos(self) -> int:
        """The sum of the charges."""
        return sum(charge["amount_nanos"] for charge in await self.charges())

    async def settings(self, **knobs: Any) -> None:
        """Turn the sandbox's knobs."""
        async with self.session.post(self.sandbox_url + "/_sandbox/settings", json=knobs) as got:
            assert got.status == 200, await got.text()

    async def stats(self) -> dict[str, Any]:
        """The sandbox's counters."""
        async with self.session.get(self.sandbox_url + "/_sandbox/stats") as got:
            found: dict[str, Any] = await got.json()
            return found

    async def arrived(self) -> list[dict[str, Any]]:
        """The requests the sandbox saw."""
        async with self.session.get(self.sandbox_url + "/_sandbox/requests") as got:
            found: list[dict[str, Any]] = (await got.json())["requests"]
            return found

    async def landed(self) -> None:
        """Wait until every settlement is in the ledger."""
        await self.app._commit.settled()

    async def account(self, budget: str, payer: str = "(all)") -> AccountState | None:
        """One account as the ledger has it."""
        await self.landed()
        for account in await self.app._open_ledger.accounts():
            if (account.budget, account.payer) == (budget, payer):
                return account
        return None

    async def entries(self) -> list[Entry]:
        """The audit trail."""
        await self.landed()
        return await self.app._open_ledger.entries(0)

    async def holds(self) -> list[OpenHold]:
        """Open holds."""
        await self.landed()
        return await self.app._open_ledger.holds()

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait for a condition on this side, turn by turn of the loop."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - anything may be waited for
                await asyncio.sleep(0.002)


def house_of(policy: str, tmp_path: Path, **variables: str) -> House:
    """Load a policy text; its ledger lies in tmp_path."""
    file = tmp_path / "policy.yaml"
    file.write_text(textwrap.dedent(policy))
    house = load(file, environment=variables, prices=Catalogue)
    return with_ledger(house, tmp_path / "ledger.db")


@contextlib.asynccontextmanager
async def running_sandbox(**knobs: Any) -> AsyncIterator[str]:
    """A sandbox on a free port; its URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        sandbox.run(sandbox.Settings(**knobs), "127.0.0.1", 0, ready.set_result)
    )
    try:
        yield await ready
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path,
    budgets: str = GENEROUS,
    *,
    base: str = BASE,
    clock: Callable[[], float] = time.time,
    **knobs: Any,
) -> AsyncIterator[Rig]:
    """The proxy with BASE and these budgets, in front of a sandbox with these knobs."""
    async with running_sandbox(**knobs) as sandbox_url, aiohttp.ClientSession() as session:
        rig: Rig | None = None
        house = house_of(base + textwrap.dedent(budgets), tmp_path, SANDBOX=sandbox_url)
        events: list[Event] = []
        app = App(lambda: house, observers=[events.append], clock=clock)
        await app.start()
        rig = Rig(app, sandbox_url, session)
        rig.events = events
        try:
            yield rig
        finally:
            await app.stop(1.0)


async def raw(rig: Rig, data: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send bytes on a connection of their own and read until the proxy closes it."""
    reader, writer = await asyncio.open_connection(rig.host, rig.port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    finally:
        writer.close()
