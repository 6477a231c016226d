"""A server on the loopback that gets webhooks, and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Hooks:
    """What came, and what is answered: the next of `answers`, then 200."""

    url: str = ""
    got: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers, document."""
    answers: list[web.Response | asyncio.Event] = field(default_factory=list)
    """An event: no answer before it is set."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def texts(self) -> list[str]:
        return [document["text"] for _, _, document in self.got]


@contextlib.asynccontextmanager
async def running_hooks() -> AsyncIterator[Hooks]:
    hooks = Hooks()

    async def answer(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        hooks.got.append((request.path, headers, json.loads(await request.read())))
        hooks.arrived.set()
        told = hooks.answers.pop(0) if hooks.answers else web.Response(text="ok")
        if isinstance(told, asyncio.Event):
            await told.wait()
            return web.Response(text="ok")
        return told

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    hooks.url = f"http://{host}:{port}"
    try:
        yield hooks
    finally:
        await runner.cleanup()
