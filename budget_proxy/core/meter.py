"""The actual figures in an answer: read from a copy of the bytes as they pass.

A meter never delays or changes a stream, with one exception: the usage event that we ourselves
asked for is taken out again. Forbidden here: raising. An answer that cannot be read is an answer
without figures, and is settled at its hold.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from budget_proxy.core.tariff import BadQuantityError, Document, Route, Streaming, Test

MAX_ANSWER = 4 * 1024 * 1024
"""Decoded bytes of one answer kept for reading; of a longer one the end is searched."""
TAIL = 64 * 1024
MAX_EVENT = 1024 * 1024
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_decode = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Figures:
    """What an answer told. `final`: nothing more would have come."""

    quantities: dict[str, int] = field(default_factory=dict)
    model: str = ""
    tier: str = ""
    final: bool = False
    delivered_bytes: int = 0
    """Text that a stream carried."""
    why_not: str = ""
    """Why there are no figures, where there are none."""


class Meter(Protocol):
    """Reads the bytes of one answer."""

    def feed(self, chunk: bytes) -> bytes:
        """Take note of a chunk; what is to be passed on of it."""

    def close(self) -> bytes:
        """The upstream's end was seen; what was kept back."""

    @property
    def figures(self) -> Figures:
        """What is known so far."""


def meter_for(route: Route, *, drops_usage: bool, headers: Mapping[str, str]) -> Meter:
    """The meter that can read an answer with these headers (lower-case names)."""
    if all(quantity.after is None for quantity in route.quantities):
        return Blind(Figures(final=True))
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in _DECODERS:
        return Blind(Figures(why_not="coding"))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream" and route.streaming is not None:
        if coding != "identity":
            return Blind(Figures(why_not="coding"))
        return EventMeter(route, route.streaming, drop=drops_usage)
    return BodyMeter(route, headers, coding)


@dataclass(slots=True)
class Blind:
    """Passes everything on and knows what it was told."""

    figures: Figures

    def feed(self, chunk: bytes) -> bytes:
        """The chunk."""
        return chunk

    def close(self) -> bytes:
        """Nothing."""
        return b""


_DECODERS = {"identity": 0, "": 0, "gzip": 31, "x-gzip": 31, "deflate": 47}


class BodyMeter:
    """Reads the figures of one JSON answer, once it is whole."""

    def __init__(self, route: Route, headers: Mapping[str, str], coding: str) -> None:
        self._route = route
        self._headers = headers
        self._inflate = zlib.decompressobj(_DECODERS[coding]) if _DECODERS[coding] else None
        self._chunks: list[bytes] = []
        self._size = 0
        self._cut = False
        self.figures = Figures(why_not="cut")

    def feed(self, chunk: bytes) -> bytes:
        """Keep a copy, bounded."""
        try:
            self._keep(self._inflate.decompress(chunk, MAX_ANSWER) if self._inflate else chunk)
        except zlib.error:
            self._cut, self._chunks = True, []
        if self._inflate is not None and self._inflate.unconsumed_tail:
            # More than the bound out of one chunk: not an answer to be read.
            self._cut, self._chunks, self._inflate = True, [], None
        return chunk

    def _keep(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self._cut = True
            self._chunks = [b"".join(self._chunks)[-TAIL:]]
            self._size = len(self._chunks[0])

    def close(self) -> bytes:
        """Read the whole answer."""
        body = b"".join(self._chunks)
        decoded = _usage_at_end(body) if self._cut else _json(body)
        self.figures = Figures(why_not="unreadable")
        document = Document(json=decoded, headers=self._headers)
        if decoded is not None and _read(self._route, document, self.figures):
            self.figures.final = True
        self._chunks = []
        return b""


def _json(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')


def _usage_at_end(tail: bytes) -> Any:
    """The last `usage` object in the end of a long answer (embeddings put it there). Inside a JSON
    string those quotes would be escaped, so what matches is a member."""
    last = None
    for last in _USAGE.finditer(tail):  # noqa: B007 - the last one is wanted
        pass
    if last is None:
        return None
    end = tail.find(b"}", last.end())
    while end >= 0:
        usage = _json(tail[last.end() : end + 1])
        if usage is not None:
            return {"usage": usage}
        end = tail.find(b"}", end + 1)
    return None


class EventMeter:
    """Reads server-sent events: of each quantity the last figure, final when the tariff says."""

    def __init__(self, route: Route, streaming: Streaming, *, drop: bool) -> None:
        self._route = route
        self._streaming = streaming
        self._drop: Test | None = streaming.drop if drop else None
        self._rest = b""
        self.figures = Figures(why_not="cut")

    def feed(self, chunk: bytes) -> bytes:
        """Read every event that is now whole. With an event to drop, only whole ones pass."""
        data = self._rest + chunk if self._rest else chunk
        start = 0
        kept: list[bytes] = []
        for end in _END_OF_EVENT.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if not self._is_ours(event):
                kept.append(event)
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT:
            # No provider sends such an event: stop reading, keep passing on.
            kept.append(self._rest)
            self._rest = b""
        return b"".join(kept) if self._drop is not None else chunk

    def close(self) -> bytes:
        """An event that was never ended is passed on as it is."""
        rest, self._rest = self._rest, b""
        if rest:
            self._is_ours(rest)
        return rest if self._drop is not None else b""

    def _is_ours(self, event: bytes) -> bool:
        """Take note of an event; whether it is the one to drop."""
        decoded = _event_data(event)
        if decoded is None:
            return False
        document = Document(json=decoded)
        _read(self._route, document, self.figures)
        if self._streaming.delivered is not None:
            for text in self._streaming.delivered.values(document):
                self.figures.delivered_bytes += len(text) if isinstance(text, str) else 0
        if not self.figures.final and self._streaming.final.holds(document):
            self.figures.final = _complete(self._route, self.figures)
        return self._drop is not None and self._drop.holds(document)


def _event_data(event: bytes) -> Any:
    position = event.find(b"data:")
    if position < 0 or (position > 0 and event[position - 1] not in b"\r\n"):
        return None
    lines = event[position:].splitlines()
    data = b"\n".join(line[5:].lstrip() for line in lines if line.startswith(b"data:"))
    return _json(data) if data.startswith(b"{") else None


def _read(route: Route, document: Document, figures: Figures) -> bool:
    """Copy what a document tells into the figures; whether all that is needed is there."""
    for quantity in route.quantities:
        if quantity.after is None:
            continue
        try:
            figure = quantity.after.read(document)
        except BadQuantityError:
            figures.why_not = "unreadable"
            return False
        if figure is not None:
            figures.quantities[quantity.name] = figure
    for place in route.answer_model:
        figures.model = place.text(document) or figures.model
    if route.answer_tier is not None:
        figures.tier = route.answer_tier.text(document) or figures.tier
    return _complete(route, figures)


def _complete(route: Route, figures: Figures) -> bool:
    return all(
        quantity.after is None or quantity.optional or quantity.name in figures.quantities
        for quantity in route.quantities
    )
