"""A call and an answer, in the terms of the story: no HTTP library's types.

`listener` makes calls, `upstream` makes answers; `proxy` speaks of nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

Headers = list[tuple[bytes, bytes]]
"""Name and value as they came, in order, repeats included."""
CHUNK = 64 * 1024


class Departure:
    """Whether the caller has hung up, and what is to happen when it does."""

    __slots__ = ("_gone", "_then")

    def __init__(self) -> None:
        self._gone = False
        self._then: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return self._gone

    def happen(self) -> None:
        """The caller is gone."""
        self._gone = True
        then, self._then = self._then, None
        if then is not None:
            then()

    def then(self, act: Callable[[], None] | None) -> None:
        """Act when the caller leaves (at once if it has); None: no longer."""
        self._then = act
        if self._gone and act is not None:
            self.happen()


class CallerGoneError(Exception):
    """The caller hung up, or stopped reading or sending for longer than it may."""


class BodyBrokenError(CallerGoneError):
    """The request body is not framed as HTTP asks; what follows on the connection is lost too."""


class BodyTooLargeError(Exception):
    """The request body is above the bound it was read with."""


class BodyTimeoutError(Exception):
    """The request body came too slowly."""


class Call(Protocol):
    """One request of a service, and the way to answer it."""

    method: str
    target: str
    """The raw request target."""
    version: tuple[int, int]
    headers: Headers
    has_body: bool
    declared: int | None
    """What Content-Length says of the body, if it is there."""
    gone: Departure

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLargeError, BodyTimeoutError, BodyBrokenError,
        CallerGoneError."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BodyTimeoutError, BodyBrokenError, CallerGoneError."""

    async def proceed(self) -> None:
        """Tell a caller that waits for it to send the body (`100 Continue`)."""

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """Begin the answer. Raises CallerGoneError."""

    def write(self, chunk: bytes) -> None:
        """Pass on a piece of the answer, without waiting for the caller to take it. Raises
        CallerGoneError."""

    async def drained(self) -> None:
        """Wait until the caller has taken most of what was written. Raises CallerGoneError."""

    async def end(self) -> None:
        """End the answer properly. Raises CallerGoneError."""

    def abort(self) -> None:
        """Cut the connection: the answer must not look complete."""

    def close_after(self) -> None:
        """Close the connection after this answer."""


class NotSentError(Exception):
    """The upstream surely saw nothing of the call."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class NoAnswerError(Exception):
    """The call may have reached the upstream, but no usable answer came."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class AnswerCutError(Exception):
    """The upstream's answer broke off before its end."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Head(NamedTuple):
    """The first line and headers of an answer."""

    status: int
    reason: str
    headers: Headers


class Answer(Protocol):
    """One answer of an upstream."""

    head: Head

    async def chunk(self) -> bytes:
        """The next piece; empty at the proper end. Raises AnswerCutError."""

    def close(self) -> None:
        """Give the connection up (or back, after the end)."""
