"""The actual figures in an answer: read from a copy of the bytes as they pass.

A meter never delays or changes a stream, with one exception: the usage event that we ourselves
asked for is taken out again. Forbidden here: raising. An answer that cannot be read is an answer
without figures, and is settled at its hold.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from budget_proxy.core.document import Document
from budget_proxy.core.doubt import says_more, tells_nothing
from budget_proxy.core.fallen import fallen, figures_kept, laid_over, moved, with_zeros_undone
from budget_proxy.core.figure import MAX_QUANTITY, BadQuantityError, text_bytes
from budget_proxy.core.headers import Index
from budget_proxy.core.place import Place, Test
from budget_proxy.core.route import Route, Streaming
from budget_proxy.core.source import Source

MAX_ANSWER = 4 * 1024 * 1024
"""Decoded bytes of one answer kept for reading; of a longer one the end is searched."""
MAX_INFLATED = 128 * 1024 * 1024
"""Beyond this a compressed answer is not an answer to be read (embeddings reach 75 MB)."""
TAIL = 64 * 1024
MAX_EVENT = 4 * 1024 * 1024
"""The last event of a response repeats all of it, tools included."""
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"
_END_OF_EVENT = re.compile(_LINE_END + _LINE_END)
_LONGEST_END = 4
_DATA = re.compile(rb"(?:\A|[\r\n])data:([^\r\n]*)")
_BEFORE_FIELDS = re.compile(rb"(?:(?::[^\r\n]*)?(?:\r\n|\n|\r))*")
_COMMENTS = re.compile(rb"(?::[^\r\n]*\r?\n)+")
_decode = msgspec.json.Decoder().decode


class Figures(msgspec.Struct):
    """What an answer told. `final`: nothing more would have come."""

    quantities: dict[str, int] = {}
    model: str = ""
    tier: str = ""
    final: bool = False
    delivered_bytes: int = 0
    """Text that a stream carried."""
    why_not: str = ""
    """Why there are no figures, where there are none."""


class Meter(Protocol):
    """Reads the bytes of one answer."""

    @property
    def edits(self) -> bool:
        """Whether what is passed on may be less than what came."""

    def feed(self, chunk: bytes) -> bytes:
        """Take note of a chunk; what is to be passed on of it."""

    def close(self) -> bytes:
        """The upstream's end was seen; what was kept back."""

    @property
    def figures(self) -> Figures:
        """What is known so far."""


def meter_for(route: Route, *, drops_usage: bool, headers: Index) -> Meter:
    """The meter that can read an answer with these headers (lower-case names)."""
    if not route.metered:
        return Blind(Figures(final=True))
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in _DECODERS:
        return Blind(Figures(why_not="coding"))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream" and route.streaming is not None:
        if _DECODERS[coding]:
            return Blind(Figures(why_not="coding"))
        return EventMeter(route, route.streaming, drop=drops_usage)
    return BodyMeter(route, headers, coding)


@dataclass(slots=True)
class Blind:
    """Passes everything on and knows what it was told."""

    figures: Figures
    edits: bool = False

    def feed(self, chunk: bytes) -> bytes:
        """The chunk."""
        return chunk

    def close(self) -> bytes:
        """Nothing."""
        return b""


_DECODERS = {"identity": 0, "": 0, "gzip": 31, "x-gzip": 31, "deflate": 47}


class BodyMeter:
    """Reads the figures of one JSON answer, once it is whole."""

    edits = False

    def __init__(self, route: Route, headers: Index, coding: str) -> None:
        self._route = route
        self._headers = headers
        self._inflate = zlib.decompressobj(_DECODERS[coding]) if _DECODERS[coding] else None
        self._chunks: list[bytes] = []
        self._size = 0
        self._inflated = 0
        self._cut = False
        self._readable = True
        self.figures = Figures(why_not="cut")

    def feed(self, chunk: bytes) -> bytes:
        """Keep a copy, bounded."""
        if self._readable:
            data = chunk if self._inflate is None else self._plain(chunk)
            self._chunks.append(data)
            self._size += len(data)
            if self._size > (2 * TAIL if self._cut else MAX_ANSWER):
                self._cut = True
                self._chunks = [b"".join(self._chunks)[-TAIL:]]
                self._size = TAIL
        return chunk

    def _plain(self, chunk: bytes) -> bytes:
        """The chunk decompressed; what is damaged, or far more than it seems, is not read."""
        assert self._inflate is not None, "only compressed answers"
        try:
            data = self._inflate.decompress(chunk, MAX_ANSWER)
        except zlib.error:
            data, self._readable = b"", False
        self._inflated += len(data)
        if self._inflate.unconsumed_tail or self._inflated > MAX_INFLATED:
            self._readable = False
        if not self._readable:
            self._chunks, self._size, self._inflate = [], 0, None
            return b""
        return data

    def close(self) -> bytes:
        """Read the whole answer."""
        body = b"".join(self._chunks)
        self._chunks = []
        decoded = None
        if self._readable:
            decoded = _usage_at_end(body) if self._cut else _json(body)
        self.figures = figures = Figures(why_not="unreadable")
        route, document = self._route, Document(decoded, headers=self._headers)
        try:
            _read(route, document, figures)
        except BadQuantityError:
            return b""
        figures.final = route.needed <= figures.quantities.keys() and not (
            tells_nothing(route, figures.quantities) and says_more(route, document, long=self._cut)
        )
        return b""


def _json(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_MAX_BRACES = 64


def _usage_at_end(tail: bytes) -> Any:
    """The last `usage` object in the end of a long answer (embeddings put it there). Inside a JSON
    string those quotes would be escaped, so what matches is a member."""
    start = max((found.end() for found in _USAGE.finditer(tail)), default=-1)
    if start < 0:
        return None
    end = start
    for _ in range(_MAX_BRACES):
        end = tail.find(b"}", end) + 1
        if end == 0:
            return None
        usage = _json(tail[start:end])
        if usage is not None:
            return {"usage": usage}
    return None


class EventMeter:
    """Reads server-sent events: of each quantity the last figure (they grow, so that a later zero
    is none, but for pieces that turn out to be of another kind), final when the tariff says.
    Figures that are all nothing are so at the end only, if nothing speaks against them."""

    @property
    def edits(self) -> bool:
        """Whether there is an event to take out."""
        return self._drop is not None

    def __init__(self, route: Route, streaming: Streaming, *, drop: bool) -> None:
        self._route = route
        self._streaming = streaming
        self._drop: Test | None = streaming.drop if drop else None
        self._drops_last = self._drop == streaming.final
        """Whether the event to take out is the one that makes the figures final."""
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._too_long = False
        self._seen: dict[str, Any] = {}
        self._damaged = False
        self._nothing = False
        """Whether the event came that makes figures final, and they were all nothing."""
        self.figures = Figures(why_not="cut")

    def feed(self, chunk: bytes) -> bytes:
        """Read every event that is now whole. With an event to drop, only whole ones pass."""
        if not self._rest and _is_one_event(chunk):
            passed = self._passed(chunk)
            return chunk if self._drop is None else passed
        kept: list[bytes] = []
        rest = self._whole_events(chunk, kept)
        if rest:
            self._keep(rest, kept)
        return chunk if self._drop is None else b"".join(kept)

    def _whole_events(self, chunk: bytes, kept: list[bytes]) -> bytes:
        """Read the events that end in a chunk; what is left of it after the last."""
        begun = 0
        data = chunk
        if self._rest:
            # Every byte is looked at once and joined once, in however many pieces it comes.
            end = self._rest[-1][1 - _LONGEST_END :]
            if len(end) < _LONGEST_END - 1:
                end = b"".join(self._rest[1 - _LONGEST_END :])[1 - _LONGEST_END :]
            if _END_OF_EVENT.search(end + chunk) is None:
                return chunk
            begun = max(0, self._rest_size - len(end))
            data = b"".join([*self._rest, chunk])
            self._rest, self._rest_size = [], 0
        start = 0
        for found in _END_OF_EVENT.finditer(data, begun):
            kept.append(self._passed(data[start : found.end()]))
            start = found.end()
        return data[start:] if start else data

    def _passed(self, event: bytes) -> bytes:
        """Read an event; what is to be passed on of it."""
        if self._too_long:
            self._too_long = False
            return event
        if not self._is_ours(event):
            return event
        before = _BEFORE_FIELDS.match(event)
        return before[0] if before is not None else b""

    def _keep(self, rest: bytes, kept: list[bytes]) -> None:
        """Wait for the end of an event, but let keep-alives through at once."""
        begins = self._rest[0] if self._rest else rest
        if self._drop is not None and b"\n" in rest and begins.startswith(b":"):
            rest = b"".join([*self._rest, rest])
            self._rest, self._rest_size = [], 0
            comments = _COMMENTS.match(rest)
            if comments is not None:
                kept.append(comments[0])
                rest = rest[comments.end() :]
        if rest:
            self._rest.append(rest)
            self._rest_size += len(rest)
        if self._rest_size > MAX_EVENT:
            # No provider sends such an event: pass it on unread.
            kept.extend(self._rest)
            self._rest, self._rest_size = [], 0
            self._too_long = True

    def close(self) -> bytes:
        """An event that was never ended counts as one."""
        rest = b"".join(self._rest)
        self._rest, self._rest_size = [], 0
        passed = self._passed(rest) if rest else b""
        if self._nothing and not self._damaged and not self.figures.final:
            self._doubt()
        return b"" if self._drop is None else passed

    def _doubt(self) -> None:
        """Believe what came after the event that had to be the last; or figures that are all
        nothing, unless the answer itself says otherwise."""
        route, figures = self._route, self.figures
        figures.final = not tells_nothing(route, figures.quantities) or not (
            figures.delivered_bytes or says_more(route, Document(self._seen))
        )
        figures.why_not = "unreadable"

    def _is_ours(self, event: bytes) -> bool:
        """Take note of an event; whether it is the one to drop."""
        decoded = _event_data(event)
        if decoded is None:
            return False
        streaming, figures = self._streaming, self.figures
        document = Document(decoded)
        before = self._seen
        if self._remember(decoded):
            self._read(before, decoded)
        if streaming.delivered is not None:
            figures.delivered_bytes += _delivered(streaming.delivered, document)
        ours = self._drop is not None and self._drop.holds(document)
        if not figures.final and (ours if self._drops_last else streaming.final.holds(document)):
            known = not self._damaged and self._route.needed <= figures.quantities.keys()
            self._nothing = known and tells_nothing(self._route, figures.quantities)
            figures.final = known and not self._nothing
        return ours

    def _remember(self, event: dict[str, Any]) -> bool:
        """Lay what an event tells over what earlier ones told (a later one repeats only a part);
        whether there are figures in it."""
        told = False
        for head in self._route.answer_heads:
            new = event.get(head)
            if new is None:
                continue
            both = laid_over(self._seen.get(head), new) if type(new) is dict else new
            if head in self._route.figure_heads:
                told = True
                self._seen = self._seen | {head: both}
            else:
                self._seen[head] = both
        return told

    def _read(self, before: dict[str, Any], event: dict[str, Any]) -> None:
        """Read what is told by now. Where a figure fell to zero, it depends."""
        route, figures = self._route, self.figures
        old = figures.quantities
        try:
            figures.quantities = dict(old)
            _read(route, Document(self._seen), figures)
            new = figures.quantities
            if 0 in new.values() and any(n and not new[name] for name, n in old.items()):
                kept = Figures(dict(old))
                for names in fallen(route, old, new):
                    undone = with_zeros_undone(route, names, before, self._seen)
                    if not moved(route, names, event, before, self._seen, undone):
                        self._seen = undone
                        _read(route, Document(undone), kept)
                        new |= figures_kept(route, names, old, kept.quantities)
        except BadQuantityError:
            self._damaged = True
            figures.final, figures.why_not = False, "unreadable"


def _is_one_event(chunk: bytes) -> bool:
    """Whether a chunk is, as nearly always, one event with plain line ends."""
    return 0 <= chunk.find(b"\n\n") == len(chunk) - 2 and b"\r" not in chunk


def _event_data(event: bytes) -> dict[str, Any] | None:
    """The JSON object an event carries, in one line or several."""
    start = 5 if event.startswith(b"data:") else event.find(b"\ndata:") + 6
    end = event.find(b"\n", start)
    at_line = start > 5 or event.startswith(b"data:")
    if at_line and end == len(event) - 2 and b"\r" not in event:
        data = event[start:end]
    else:
        data = b"\n".join(_DATA.findall(event))
    decoded = _json(data) if b"{" in data else None
    return decoded if type(decoded) is dict else None


_NO_TEXT = frozenset(("type", "role", "stop_reason", "stop_sequence"))


def _delivered(place: Place, document: Document) -> int:
    """The size of the text an event carries, the names of its kind, role and end left out."""
    size = 0
    for value in place.values(document):
        if type(value) is dict:
            size += sum([text_bytes(value[name]) for name in value if name not in _NO_TEXT])
        else:
            size += text_bytes(value)
    return size


def _read(route: Route, document: Document, figures: Figures) -> None:
    """Copy what a document tells into the figures. Raises BadQuantityError for absurd ones."""
    sheet = route.sheet
    found = None if sheet is None else sheet.found(document.json)
    if sheet is None or found is None:
        _read_each(route, document, figures)
        return
    for name, first, less, source in sheet.lines:
        if source is not None:
            _read_one(name, source, document, figures)
            continue
        figure = found[first]
        if figure is not None:
            for at in less:
                figure -= found[at] or 0
            figures.quantities[name] = max(0, figure)
    for at in sheet.model:
        if type(found[at]) is str:
            figures.model = found[at] or figures.model
    for at in sheet.tier:
        if type(found[at]) is str:
            figures.tier = found[at] or figures.tier


def _read_each(route: Route, document: Document, figures: Figures) -> None:
    """The same, source by source."""
    for name, source in route.answered:
        _read_one(name, source, document, figures)
    for place in route.answer_model:
        figures.model = place.text(document) or figures.model
    for place in route.answer_tier:
        figures.tier = place.text(document) or figures.tier


def _read_one(name: str, source: Source, document: Document, figures: Figures) -> None:
    figure = source.read(document)
    if figure is not None:
        if figure > MAX_QUANTITY:
            raise BadQuantityError(name, f"is above {MAX_QUANTITY}")
        figures.quantities[name] = figure
