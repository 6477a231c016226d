"""A TCP proxy that does to a connection what networks do: delay, black-hole, cut, reset.

Faults are set while it runs and hold for connections that are open as well as for new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PIECE = 64 * 1024
Upstream = tuple[str, int] | Path
"""An address, or a Unix socket."""
Way = Literal["up", "down"]
"""From the client to the server, or back."""


@dataclass
class Faults:
    """What happens to bytes. All of it can change at any time."""

    delay_s: dict[Way, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    """How much later each piece arrives."""
    lost: set[Way] = field(default_factory=set)
    """Black holes: what goes this way never arrives, and nobody is told."""
    stalled: set[Way] = field(default_factory=set)
    """What goes this way waits until `heal`, and arrives even if its sender has gone."""
    cut_after: dict[Way, int | None] = field(default_factory=lambda: {"up": None, "down": None})
    """How many more bytes pass this way (over all connections) before theirs is reset."""
    on_piece: Callable[[Way, bytes], bytes] | None = None
    """Looks at every piece and passes it on, changed or not; may set other faults."""


class FaultProxy:
    """Between a client and `upstream`. Start it with `async with FaultProxy.standing(...)`."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.faults = Faults()
        self.address = ("", 0)
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._healed = asyncio.Event()
        self._healed.set()

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""
        return self.address[1]

    @property
    def open(self) -> int:
        """Connections of clients that are open."""
        return len(self._writers) // 2

    def black_hole(self, *ways: Way) -> None:
        """From now on bytes vanish (without ways: both). New connections are accepted by the
        machine and hear nothing."""
        self.faults.lost |= set(ways or ("up", "down"))
        self._healed.clear()

    def stall(self, *ways: Way) -> None:
        """From now on bytes are kept back until `heal`."""
        self.faults.stalled |= set(ways)
        self._healed.clear()

    def heal(self) -> None:
        """No more faults. What vanished stays lost: connections that lost bytes are reset, as their
        ends would find out sooner or later."""
        self.faults = Faults()
        self._healed.set()

    def reset(self) -> None:
        """Reset every open connection, both ends."""
        for writer in list(self._writers):
            _reset(writer)

    # -- one connection --------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            await self._healed_if_lost()
            there_reader, there = await self._connect()
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, there}
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump("up", reader, there))
                ways.create_task(self._pump("down", there_reader, writer))
        except* (ConnectionError, OSError):
            pass
        finally:
            for end in (writer, there):
                self._writers.discard(end)
                _reset(end)

    async def _healed_if_lost(self) -> None:
        if "up" in self.faults.lost:
            await self._healed.wait()
            raise ConnectionResetError

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(*self._upstream)

    async def _pump(
        self, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        while piece := await source.read(PIECE):
            if self.faults.on_piece is not None:
                piece = self.faults.on_piece(way, piece)
            if self.faults.delay_s[way]:
                await asyncio.sleep(self.faults.delay_s[way])
            if way in self.faults.lost:
                await self._healed.wait()
                raise ConnectionResetError
            if way in self.faults.stalled:
                await self._healed.wait()
            target.write(self._before_cut(way, piece))
            await target.drain()
            if self.faults.cut_after[way] == 0:
                raise ConnectionResetError
        raise ConnectionResetError  # one end is done: so is the other

    def _before_cut(self, way: Way, piece: bytes) -> bytes:
        left = self.faults.cut_after[way]
        if left is None:
            return piece
        passed = piece[:left]
        self.faults.cut_after[way] = left - len(passed)
        return passed

    @classmethod
    @contextlib.asynccontextmanager
    async def standing(cls, upstream: Upstream) -> AsyncIterator[FaultProxy]:
        """One on a free port of 127.0.0.1."""
        proxy = cls(upstream)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await proxy._serve(reader, writer)
            except asyncio.CancelledError:
                pass  # at the end of the block; nobody above wants to hear of it
            finally:
                tasks.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy.address = server.sockets[0].getsockname()
        try:
            yield proxy
        finally:
            server.close()
            proxy._healed.set()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, where there is such a thing."""
    ours: socket.socket | None = writer.get_extra_info("socket")
    if ours is not None and ours.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport = writer.transport
    if not transport.is_closing():
        transport.abort()
