"""How the supervisor and a worker talk: JSON lines over a socket pair.

Either side asks and is answered, or tells and is not. An end that is gone is the news of a death.
Forbidden here: knowing what is said.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

MAX_LINE = 16 * 1024 * 1024
"""A snapshot of a thousand series is a few hundred kilobytes."""
Message = dict[str, Any]
Answerer = Callable[[Message], Awaitable[Message | None]]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class GoneError(Exception):
    """Nobody is at the other end any more."""


class Channel:
    """One end. `answer` is called for each message that is not an answer; what it returns goes
    back to who asked."""

    def __init__(self, answer: Answerer) -> None:
        self._answer = answer
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._last = 0
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self.gone = asyncio.Event()
        """The other end is closed."""

    async def open(self, end: socket.socket) -> None:
        """Begin to listen to the other end."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=MAX_LINE)
        self._reading = asyncio.get_running_loop().create_task(self._read(reader), name="channel")

    async def ask(self, message: Message, timeout_s: float) -> Message:
        """The other end's answer. Raises GoneError, TimeoutError."""
        self._last += 1
        number = self._last
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._send(message | {"ask": number})
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._asked[number]

    def tell(self, message: Message) -> None:
        """Say something. Raises GoneError."""
        self._send(message)

    def _send(self, message: Message) -> None:
        if self._writer is None or self.gone.is_set() or self._writer.is_closing():
            raise GoneError("the other end is closed")
        self._writer.write(_encode(message) + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._took(_decode(line))
        except (ConnectionError, ValueError):
            pass  # as good as closed
        finally:
            self.gone.set()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(GoneError("the other end closed"))

    def _took(self, message: Message) -> None:
        answered = message.pop("answer", None)
        if answered is None:
            task = asyncio.get_running_loop().create_task(self._reply(message), name="reply")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        waiting = self._asked.get(answered)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    async def _reply(self, message: Message) -> None:
        asked = message.pop("ask", None)
        answer = await self._answer(message)
        if asked is not None and not self.gone.is_set():
            self._send((answer or {}) | {"answer": asked})

    def close(self) -> None:
        """Hang up."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
