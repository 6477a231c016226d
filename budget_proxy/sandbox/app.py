"""Wiring: the sandbox's routes, its server, and its command.

Forbidden here: anything that a route does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from aiohttp import web

from budget_proxy.sandbox import anthropic, geo, openai
from budget_proxy.sandbox.answering import json_answer
from budget_proxy.sandbox.bank import CURRENCY, format_amount
from budget_proxy.sandbox.billing import add_billing_routes
from budget_proxy.sandbox.call import MAX_BODY_BYTES, Dialect
from budget_proxy.sandbox.control import PREFIX, add_control_routes
from budget_proxy.sandbox.serving import SANDBOX, check_key, observer, priced
from budget_proxy.sandbox.settings import (
    SettingError,
    Settings,
    parse_listen,
    settings_from_args,
)
from budget_proxy.sandbox.state import Sandbox

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine

_OPENAI = openai.OpenAI()
_ANTHROPIC = anthropic.Anthropic()
_GEOCODER = geo.Geocoder()
_STOP_TIMEOUT_S = 2.0
_CHAT_ROOTS = ("", "/v1", "/api/v1", "/openai/v1")
"""Where OpenAI, and those who took over its chat (DeepSeek, OpenRouter, Groq), serve it."""


def create_app(settings: Settings, *, clock: Callable[[], float] = time.time) -> web.Application:
    """A sandbox with its own balance and memory. `clock` answers seconds since 1970."""
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[observer(_dialect_of, PREFIX)],
        handler_args={
            # A caller that leaves is noticed at once, so that `open` tells who is still there.
            "handler_cancellation": True,
            # Bodies are remembered as they were received.
            "auto_decompress": False,
            "access_log": None,
        },
    )
    app[SANDBOX] = Sandbox(settings, clock)
    for root in _CHAT_ROOTS:
        app.router.add_post(f"{root}/chat/completions", priced(_OPENAI, openai.chat))
    app.router.add_post("/v1/responses", priced(_OPENAI, openai.responses))
    app.router.add_post("/v1/embeddings", priced(_OPENAI, openai.embeddings))
    app.router.add_post("/v1/messages", priced(_ANTHROPIC, anthropic.messages))
    app.router.add_get("/v1/geocode", priced(_GEOCODER, geo.geocode), allow_head=False)
    app.router.add_get("/v1/models", _models)
    add_billing_routes(app, _OPENAI)
    add_control_routes(app)
    return app


async def run(
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], None] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Serve until cancelled. `ready` is called once with the base URL, its port the real one."""
    runner = web.AppRunner(create_app(settings, clock=clock), shutdown_timeout=_STOP_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        if ready is not None:
            ready(_base_url(host, runner.addresses[0][1]))
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(namespace: argparse.Namespace) -> int:
    """The command `sandbox`: serve until SIGINT or SIGTERM. Answers the exit code."""
    try:
        settings = settings_from_args(namespace)
        host, port = parse_listen(namespace.listen)
    except SettingError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_until_signalled(run(settings, host, port, _announcer(settings))))
    except OSError as error:
        number = error.errno or 0  # below zero: of a look-up
        why = os.strerror(number) if number > 0 else error.strerror
        print(f"sandbox: cannot listen on {namespace.listen}: {why}", file=sys.stderr)
        return 1
    return 0


async def _models(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    dialect = _dialect_of(request)
    check_key(request, sandbox.settings.require_key, dialect)
    provider = anthropic if dialect is _ANTHROPIC else openai
    return json_answer(provider.models(sandbox.prices))


def _dialect_of(request: web.Request) -> Dialect:
    if request.path == "/v1/messages" or "anthropic-version" in request.headers:
        return _ANTHROPIC
    return _GEOCODER if request.path == "/v1/geocode" else _OPENAI


def _base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_signalled(serving: Coroutine[object, object, None]) -> None:
    task = asyncio.ensure_future(serving)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise


def _announcer(settings: Settings) -> Callable[[str], None]:
    nanos = settings.balance_nanos
    balance = "no limit" if nanos is None else f"{format_amount(nanos)} {CURRENCY}"
    chat = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'

    def announce(url: str) -> None:
        print(f"sandbox listens on {url}  balance: {balance}  try:")
        print(f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{chat}'")
        print(f"  curl '{url}/v1/geocode?q=Oslo'")
        print(f"  curl {url}{PREFIX}charges", flush=True)

    return announce
