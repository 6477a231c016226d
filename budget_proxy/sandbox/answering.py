"""How an answer travels: whole, compressed, as a stream, cut short, or garbled.

Forbidden here: deciding what an answer says or costs.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from budget_proxy.sandbox.call import Event, Object, Plan, dumps

if TYPE_CHECKING:
    from budget_proxy.sandbox.settings import Settings

Correction = Callable[[int], None]
"""Bills only so many output tokens, for a stream that did not reach its end."""

_STREAM_TIMEOUT_S = 3600
_FLUSH_STEPS = 100
_FLUSH_STEP_S = 0.01
_NOT_JSON = b'{"id": "sandbox", "usage": {"prompt_tok'
_NOT_HTTP = b"\x16\x03\x01 this is not an HTTP answer\r\n\r\n"


def json_answer(
    value: Object,
    headers: Mapping[str, str] | None = None,
    *,
    status: int = 200,
    zipped: bool = False,
) -> web.Response:
    """A JSON answer, compressed where the sandbox was told to."""
    every = {"Content-Type": "application/json", **(headers or {})}
    body = dumps(value)
    if zipped:
        every["Content-Encoding"] = "gzip"
        body = gzip.compress(body, compresslevel=1, mtime=0)
    return web.Response(status=status, body=body, headers=every)


def half_json(headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer that calls itself JSON and breaks off."""
    named = {"Content-Type": "application/json", **(headers or {})}
    return web.Response(body=_NOT_JSON, headers=named)


async def pause(seconds: float) -> None:
    """Wait, where there is something to wait for."""
    if seconds:
        await asyncio.sleep(seconds)


async def answer(
    request: web.Request,
    settings: Settings,
    plan: Plan,
    headers: Mapping[str, str],
    correct: Correction | None,
) -> web.StreamResponse:
    """Wait for the latency, then send what was planned in the way the settings ask for."""
    if plan.events is not None and settings.garbage is None:
        correct = correct if settings.bill_cut == "delivered" else None
        return await _stream(request, settings, plan.events(), headers, correct)
    await pause(settings.latency_s)
    if settings.garbage == "http":
        return await _not_http(request)
    if settings.garbage == "json":
        return half_json(headers)
    if settings.cut_after == 0:
        return web.Response(headers=headers) if settings.cut_clean else await cut(request)
    assert plan.body is not None
    return json_answer(plan.body(), headers, zipped=settings.answer_gzip)


async def _stream(
    request: web.Request,
    settings: Settings,
    events: Iterator[Event],
    headers: Mapping[str, str],
    correct: Correction | None,
) -> web.StreamResponse:
    """Send the events; a stream that did not reach its end is corrected, whoever ended it.

    The latency counts as a part of the stream: a caller who leaves in it was delivered nothing.
    """
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            **headers,
        }
    )
    pump = _Pump(settings)
    try:
        async with asyncio.timeout(_STREAM_TIMEOUT_S):
            await pause(settings.latency_s)
            if settings.cut_after != 0 or settings.cut_clean:
                await response.prepare(request)
                await pump.run(response, events)
    except (ConnectionError, TimeoutError):
        return await cut(request, response)
    finally:
        if correct is not None and not pump.complete:
            correct(pump.tokens)
    if pump.complete or settings.cut_clean:
        return response  # the server writes the end of the body
    return await cut(request, response)


class _Pump:
    """Writes events, paced, up to the cut; knows how many output tokens it has written."""

    def __init__(self, settings: Settings) -> None:
        self._delay_s = settings.chunk_delay_s
        self._left = settings.cut_after
        self._first = True
        self.tokens = 0
        self.complete = False

    async def run(self, response: web.StreamResponse, events: Iterator[Event]) -> None:
        for event, tokens in events:
            if self._iscut():
                return
            if not self._first:
                await pause(self._delay_s)
            await response.write(event)
            self._first = False
            self.tokens += tokens
        # A cut behind the last event still takes the end of the body away.
        self.complete = not self._iscut()

    def _iscut(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0


async def cut(
    request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    """Abort the connection, once what was written is on its way (bounded, about one second)."""
    transport = request.transport
    if transport is not None:
        await _flushed(transport)
        transport.abort()
    # The server finishes the answer on a closed transport, which sends nothing.
    return response if response is not None else web.Response()


async def _not_http(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        transport.write(_NOT_HTTP)
    return await cut(request)


async def _flushed(transport: asyncio.Transport) -> None:
    for _ in range(_FLUSH_STEPS):
        if transport.is_closing() or not transport.get_write_buffer_size():
            return
        await asyncio.sleep(_FLUSH_STEP_S)
