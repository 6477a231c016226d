"""A real sandbox on the loopback address, for the tests in this folder."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from budget_proxy.sandbox import Settings, create_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CHAT = "/v1/chat/completions"
NOON = 1_790_000_000.0
"""A fixed moment, so that no list price changes under a test (seconds since 1970)."""


@dataclass
class Clock:
    """Moves when it is told to (seconds since 1970)."""

    now_s: float = NOON

    def __call__(self) -> float:
        return self.now_s


def hello(**more: object) -> dict[str, object]:
    """A chat request with 20 bytes of text: five input tokens."""
    messages = [{"role": "user", "content": "twenty bytes of text"}]
    return {"model": "gpt-4o-mini", "messages": messages, **more}


def claude(**more: object) -> dict[str, object]:
    """A messages request with 20 bytes of text: five input tokens."""
    return {**hello(), "model": "claude-sonnet-5-5", "max_tokens": 1024, **more}


def events(text: str) -> list[Any]:
    """The JSON of each event of a stream, without the `[DONE]`."""
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@dataclass
class Served:
    url: str
    session: aiohttp.ClientSession

    async def post(
        self, path: str, body: object = None, *, raw: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        status, text, _ = await self.text(path, body, raw=raw, **headers)
        return status, json.loads(text)

    async def text(
        self, path: str, body: object = None, *, raw: bytes | None = None, **headers: str
    ) -> tuple[int, str, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = io.BytesIO(json.dumps(body).encode() if raw is None else raw)
        async with self.session.post(self.url + path, data=data, headers=named) as answer:
            return answer.status, await answer.text(), answer.headers

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.url + path, headers=named) as answer:
            return answer.status, json.loads(await answer.text())

    async def charges(self) -> list[Any]:
        found: list[Any] = (await self.get("/_sandbox/charges"))[1]["charges"]
        return found

    async def balance(self) -> Any:
        return (await self.get("/_sandbox/balance"))[1]["balance"]

    async def stats(self) -> Any:
        return (await self.get("/_sandbox/stats"))[1]

    async def until(self, name: str, value: int) -> None:
        """Wait until a figure of the stats has this value; at most five seconds."""
        deadline = asyncio.get_running_loop().time() + 5
        while (await self.stats())[name] != value:
            assert asyncio.get_running_loop().time() < deadline, f"{name} never became {value}"


@asynccontextmanager
async def sandbox(
    settings: Settings | None = None,
    *,
    handler_cancellation: bool | None = None,
    clock: Callable[[], float] = lambda: NOON,
) -> AsyncIterator[Served]:
    app = create_app(settings or Settings(), clock=clock)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    if handler_cancellation is not None:
        assert runner.server is not None
        runner.server.handler_cancellation = handler_cancellation
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()
