"""The caller hangs up, at every phase of a call: what is charged, and what becomes of the upstream.

`drain` reads the upstream's answer to its end to learn the truth; `cancel` hangs up on it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import Rig
from raw_upstream import (
    EVENTS,
    FLAT,
    Caller,
    Peer,
    calling,
    chunked,
    ended,
    events,
    fronting,
    head_only,
    http,
    policy,
    request,
    spent,
)

from budget_proxy.core.events import WaitEnded

INPUT, OUTPUT = 1_000_000, 10_000_000
"""Nanos a token of the `talk` upstream costs."""
HELD = 100 * INPUT + 50 * OUTPUT
ACTUAL = 80 * INPUT + 20 * OUTPUT
TEN = "ten bytes!"
PARTIAL = 100 * INPUT + 12 * OUTPUT
"""The input's ceiling, and ten delivered bytes with their margin of 15 %, rounded up."""
USAGE = {"usage": {"input": 80, "output": 20}}
BIG = 8 * 1024 * 1024
"""More than the sockets of two connections swallow."""


def talk(**more: object) -> bytes:
    return request("/talk/v1/talk", json.dumps({"input": 100, "max": 50} | more).encode())


class Stage:
    """What the upstream has done so far, and what it waits for."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def finish(self, peer: Peer, rest: bytes) -> None:
        """Send the rest when told to; note whether the proxy hangs up before that."""
        gone = asyncio.create_task(peer.gone())
        gone.add_done_callback(lambda _: self.hung_up.set())
        told = asyncio.create_task(self.go_on.wait())
        try:
            await asyncio.wait((gone, told), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                await peer.send(rest)
                await gone
        finally:
            gone.cancel()
            told.cancel()


async def noticed(rig: Rig) -> None:
    """Wait until the proxy knows that every caller is gone."""
    await rig.until(lambda: all(call.gone for call in rig.app._listener._calls))


@dataclass(frozen=True)
class Phase:
    """How far the upstream has answered when the caller leaves."""

    id: str
    call: bytes
    first: bytes
    rest: bytes
    cut: str
    """The rule when it is cancelled."""


STREAM_HEAD = chunked(*events({"text": TEN}), headers=f"{EVENTS}\r\n", end=False)
STREAM_REST = b"".join(
    b"%x\r\n%b\r\n" % (len(event), event) for event in events({"text": "more"}, USAGE)
)
BIG_ANSWER = http("200 OK", json.dumps({"text": "x" * BIG} | USAGE).encode())
PHASES = [
    Phase("before the first byte", talk(), b"", http("200 OK", json.dumps(USAGE).encode()),
          "hold_no_answer"),
    Phase("in a stream", talk(stream=True), STREAM_HEAD, STREAM_REST + b"0\r\n\r\n", "hold_cut"),
    Phase("in a big answer", talk(), BIG_ANSWER[:1000], BIG_ANSWER[1000:], "hold_cut"),
]  # fmt: skip


def outcome(phase: Phase, way: str, stops: bool) -> tuple[str, int]:
    """What the outcome table says."""
    if way == "drain":
        return "actual", ACTUAL
    if phase.cut == "hold_cut" and stops:
        # What is not a stream tells nothing of what it delivered: the input's ceiling.
        return "partial", PARTIAL if phase.id == "in a stream" else 100 * INPUT
    return phase.cut, HELD


def leaving() -> Iterator[Any]:
    for phase in PHASES:
        for way in ("drain", "cancel"):
            for stops in (False, True):
                name = f"{phase.id}-{way}-{'stops' if stops else 'goes on'}"
                yield pytest.param(phase, way, stops, id=name.replace(" ", "_"))


@pytest.mark.parametrize(("phase", "way", "stops"), list(leaving()))
@pytest.mark.parametrize("leave", [Caller.close, Caller.reset], ids=["FIN", "RST"])
def test_a_caller_who_leaves_pays_by_the_table(
    tmp_path: Path, phase: Phase, way: str, stops: bool, leave: Callable[[Caller], None]
) -> None:
    async def story() -> None:
        stage = Stage()

        async def script(peer: Peer) -> None:
            await peer.request()
            stage.asked.set()
            await peer.send(phase.first)
            await stage.finish(peer, phase.rest)

        stops_so = f"stops_on_disconnect: {str(stops).lower()}"
        text = policy(f"on_disconnect: {way}\ndrain: 1h\n{stops_so}")
        async with fronting(tmp_path, script, text) as (rig, upstream), calling(rig) as caller:
            await caller.send(phase.call)
            await stage.asked.wait()
            if phase.first:
                assert await caller.head()
                assert await caller.reader.readexactly(10)
            leave(caller)
            if way == "drain":
                await noticed(rig)
                assert not stage.hung_up.is_set()
                stage.go_on.set()
            else:
                await stage.hung_up.wait()
            await ended(rig)
            assert (rig.calls[0].rule, await spent(rig)) == outcome(phase, way, stops)
            assert rig.calls[0].outcome == "hung_up"
            assert len(upstream.requests) == 1

    asyncio.run(story())


@pytest.mark.parametrize(("stops", "rule", "charged"), [
    (False, "hold_cut", HELD), (True, "partial", PARTIAL),
])  # fmt: skip
def test_draining_has_an_end(tmp_path: Path, stops: bool, rule: str, charged: int) -> None:
    async def story() -> None:
        stage = Stage()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(STREAM_HEAD)
            await stage.finish(peer, b"")

        text = policy(f"drain: 100ms\nstops_on_disconnect: {str(stops).lower()}")
        async with fronting(tmp_path, script, text) as (rig, _), calling(rig) as caller:
            await caller.send(talk(stream=True))
            await caller.head()
            caller.close()
            await stage.hung_up.wait()
            assert (await ended(rig), await spent(rig)) == (rule, charged)

    asyncio.run(story())


@pytest.mark.parametrize("way", ["drain", "cancel"])
@pytest.mark.parametrize("expects", [False, True], ids=["sends", "expects 100"])
def test_leaving_while_a_body_is_read_for_its_price_costs_nothing(
    tmp_path: Path, way: str, expects: bool
) -> None:
    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()

        text = policy(f"on_disconnect: {way}")
        async with fronting(tmp_path, script, text) as (rig, upstream), calling(rig) as caller:
            more = ["Expect: 100-continue"] if expects else []
            await caller.send(head_only("/talk/v1/talk", "Content-Length: 999", *more))
            if expects:
                assert await caller.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await caller.send(b'{"input"')
            await rig.until(lambda: rig.app._listener.in_flight == 1)
            caller.reset()
            assert (await ended(rig), await spent(rig)) == ("", 0)
            assert rig.calls[0].outcome == "hung_up"
            assert await rig.entries() == []
            assert upstream.connections == 0

    asyncio.run(story())


@pytest.mark.parametrize("way", ["drain", "cancel"])
@pytest.mark.parametrize("framing", ["Content-Length: 999", "Transfer-Encoding: chunked"])
def test_leaving_while_a_body_streams_through_is_charged(
    tmp_path: Path, way: str, framing: str
) -> None:
    """The upstream has seen the request: it may bill it. It never sees a body that looks whole."""

    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()

        text = policy(f"on_disconnect: {way}")
        async with fronting(tmp_path, script, text) as (rig, upstream), calling(rig) as caller:
            await caller.send(head_only("/flat/upload", framing))
            await caller.send(b"4\r\nbody\r\n" if "chunked" in framing else b"body")
            await rig.until(lambda: [got.body for got in upstream.requests] == [b"body"])
            caller.reset()
            assert (await ended(rig), await spent(rig)) == ("hold_no_answer", FLAT)
            assert rig.calls[0].outcome == "hung_up"
            await rig.until(lambda: upstream.open == 0)
            assert not upstream.requests[0].whole

    asyncio.run(story())


def test_leaving_the_line_costs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage()

        async def script(peer: Peer) -> None:
            await peer.request()
            stage.asked.set()
            await stage.finish(peer, http("200 OK", b"{}"))

        budgets = "budgets: {one: {limit: 0.005 USD, on_shortfall: wait, max_wait: 60s}}\n"
        text = policy("", budgets)
        async with fronting(tmp_path, script, text) as (rig, upstream):
            async with calling(rig) as first, calling(rig) as second:
                await first.send(request("/flat/first"))
                await stage.asked.wait()
                await second.send(request("/flat/second"))
                await rig.until(lambda: rig.app._admission.waiting == 1)
                second.close()
                await rig.until(lambda: rig.app._admission.waiting == 0)
                await ended(rig)
                stage.go_on.set()
                assert (await first.answer()).status == 200
            await ended(rig, 2)
            assert [(call.outcome, call.rule) for call in rig.calls] == [
                ("hung_up", ""),
                ("served", "actual"),
            ]
            waits = [event for event in rig.events if isinstance(event, WaitEnded)]
            assert [wait.how for wait in waits] == ["hung_up"]
            assert await spent(rig, "one") == FLAT
            assert len(upstream.requests) == 1

    asyncio.run(story())


class GatedLedger:
    """A ledger whose commits wait for a gate."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def commit(self, batch: Any, more: Any) -> Any:
        self.asked.set()
        await self.gate.wait()
        return await self._ledger.commit(batch, more)

    def glance(self, hold: Any) -> None:
        return None


def test_leaving_while_the_hold_commits_costs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()

        async with fronting(tmp_path, script) as (rig, upstream), calling(rig) as caller:
            commit: Any = rig.app._commit
            commit._ledger = ledger = GatedLedger(commit._ledger)
            await caller.send(talk())
            await ledger.asked.wait()
            caller.close()
            await noticed(rig)
            ledger.gate.set()
            assert (await ended(rig), await spent(rig)) == ("not_sent", 0)
            assert [entry.kind for entry in await rig.entries()] == ["released"]
            assert upstream.connections == 0

    asyncio.run(story())


def test_a_caller_gone_before_its_100_continue_is_no_error(tmp_path: Path) -> None:
    """The connection can be lost in the same turn in which we would write to it."""

    async def story() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()

        async with fronting(tmp_path, script) as (rig, _):
            head = head_only("/talk/v1/talk", "Content-Length: 5", "Expect: 100-continue")
            for _ in range(20):
                async with calling(rig) as caller:
                    caller.writer.write(head)
                    caller.reset()
            await rig.until(lambda: rig.app._listener.in_flight == 0)
            assert await spent(rig) == 0

    asyncio.run(story())


def test_what_is_pipelined_behind_a_call_dies_with_its_caller(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage()

        async def script(peer: Peer) -> None:
            await peer.request()
            stage.asked.set()
            await stage.finish(peer, http("200 OK", json.dumps(USAGE).encode()))

        async with fronting(tmp_path, script) as (rig, upstream), calling(rig) as caller:
            await caller.send(talk() + talk())
            await stage.asked.wait()
            caller.reset()
            await noticed(rig)
            stage.go_on.set()
            assert (await ended(rig), await spent(rig)) == ("actual", ACTUAL)
            assert len(upstream.requests) == len(rig.calls) == 1

    asyncio.run(story())


def test_stopping_the_proxy_settles_what_it_hangs_up_on(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(STREAM_HEAD)
            stage.asked.set()
            await stage.finish(peer, b"")

        text = policy("on_disconnect: cancel")
        async with fronting(tmp_path, script, text) as (rig, _), calling(rig) as caller:
            await caller.send(talk(stream=True))
            await stage.asked.wait()
            await caller.head()
            await rig.app._listener.stop(0.0)
            assert not (await caller.closed()).endswith(b"0\r\n\r\n")
            assert (await ended(rig), await spent(rig)) == ("hold_cut", HELD)

    asyncio.run(story())
