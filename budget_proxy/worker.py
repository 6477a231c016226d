"""One worker: the answering half of a proxy, in a process of its own.

The supervisor gives it the listening socket and a share of what comes there, the instance lock (so
that the ledger stays taken as long as anyone of this service lives), a name for its holds and a
channel. Where the channel ends the supervisor is dead: the worker stops at once, since nobody would
bury it later.
Forbidden here: writing anything to the ledger but its own calls.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from budget_proxy.app import App
from budget_proxy.call_log import standard_output
from budget_proxy.channel import Channel, GoneError, Message
from budget_proxy.core.house import House
from budget_proxy.core.stops import Stop
from budget_proxy.ledgers import LedgerDownError, LedgerRefusedError
from budget_proxy.policy import PolicyError
from budget_proxy.shares import Share

PUSH_S = 1.0
"""How often the figures go to the supervisor: what a killed worker counted since is lost."""
ASK_S = 5.0
"""How long a call waits to hear whether it may try an upstream that was stopped."""
OK, FAILED = 0, 1


class Worker:
    """Answers calls until it is told to stop."""

    def __init__(
        self,
        load: Callable[[str], House],
        policy: str,
        *,
        owner: str,
        listening: socket.socket,
        share: Share,
        channel: socket.socket,
    ) -> None:
        self._load = load
        self._app = App(
            lambda: load(policy), log=standard_output(), part="worker", owner=owner, share=share
        )
        self._listening = listening
        self._end = channel
        self._channel = Channel(self._answer)
        self._stopping = asyncio.Event()
        self._started = asyncio.Event()

    async def run(self) -> int:
        """Serve; the exit code."""
        loop = asyncio.get_running_loop()
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)  # a terminal sends them to all of us
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        await self._channel.open(self._end)
        try:
            await self._app.start(self._listening)
        except (LedgerRefusedError, LedgerDownError, OSError) as error:
            _say_why(error)
            await self._app.stop(0)
            return FAILED
        self._app.stops.report = self._heard_stop
        self._app.stops.tried = self._heard_try
        self._app.stops.ask = self._may_try
        self._started.set()
        with contextlib.suppress(GoneError):  # then it stops below
            self._channel.tell({"tell": "ready"})
        pushing = loop.create_task(self._push(), name="push")
        stopping = loop.create_task(self._stopping.wait())
        orphaned = loop.create_task(self._channel.gone.wait())
        await asyncio.wait((stopping, orphaned), return_when=asyncio.FIRST_COMPLETED)
        await self._app.stop(0 if self._channel.gone.is_set() else None)
        for task in (pushing, stopping, orphaned):
            task.cancel()
        with contextlib.suppress(GoneError):
            self._channel.tell(self._figures())
        await asyncio.sleep(0)
        self._channel.close()
        return OK

    async def _push(self) -> None:
        while True:
            await asyncio.sleep(PUSH_S)
            with contextlib.suppress(GoneError):
                self._channel.tell(self._figures())

    def _heard_stop(self, stop: Stop) -> None:
        with contextlib.suppress(GoneError):
            self._channel.tell({"tell": "stopped", "stop": msgspec.to_builtins(stop)})

    def _heard_try(self, upstream: str, served: bool) -> None:
        with contextlib.suppress(GoneError):
            self._channel.tell({"tell": "tried", "upstream": upstream, "served": served})

    async def _may_try(self, upstream: str) -> bool | None:
        try:
            may = (await self._channel.ask({"may try": upstream}, ASK_S))["may"]
        except (GoneError, TimeoutError):
            return None
        return None if may is None else bool(may)

    def _figures(self) -> Message:
        return {"tell": "figures", "snapshot": list(self._app.instruments.snapshot())}

    async def _answer(self, message: Message) -> Message | None:
        match message:
            case {"do": "prepare", "policy": str(policy)}:
                await self._started.wait()  # who asks has a deadline
                return {"mistakes": await self._app.prepare(lambda: self._load(policy))}
            case {"do": "put in force"}:
                await self._app.put_prepared_in_force()
                return {}
            case {"do": "abandon"}:
                await self._app.abandon_prepared()
                return {}
            case {"do": "snapshot"}:
                return self._figures()
            case {"do": "stops", "stops": stops, "due": list(due)}:
                self._app.stops.put(msgspec.convert(stops, list[Stop]), due)
                return None
            case {"do": "more money"}:
                self._app.more_money()
                return None
        raise AssertionError(f"the supervisor says {message}")


def main() -> int:
    """Be a worker of the supervisor that started this process; the exit code."""
    from budget_proxy.__main__ import log_to_stderr, read_policy  # noqa: PLC0415
    from budget_proxy.run import on_a_loop  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--owner", required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--listening", type=int, required=True)
    parser.add_argument("--shares", type=int, required=True)
    parser.add_argument("--share", type=int, required=True)
    options = parser.parse_args()
    log_to_stderr()
    try:
        worker = Worker(
            read_policy,
            options.policy,
            owner=options.owner,
            listening=socket.socket(fileno=options.listening),
            share=Share.opened(options.shares, options.share),
            channel=socket.socket(fileno=options.channel),
        )
    except (OSError, PolicyError) as error:
        _say_why(error)
        return FAILED
    return on_a_loop(worker.run())


def _say_why(error: Exception) -> None:
    print(f"a worker cannot start: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
