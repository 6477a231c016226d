"""The log of calls: one JSON line per request, and one per other event, for people and for audit.

The loop only builds the line; a thread of its own writes it. A reader that stalls costs lines,
which are counted, and never a request. The ledger is the truth about money: a lost line loses
no cent.

Forbidden here: bodies, keys, query strings, waiting for the stream on the caller's side, and
strings of the caller's choosing beyond MAX_TEXT characters (MAX_DETAIL in a refusal's).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from threading import Event as Flag
from threading import Thread
from typing import Any, Protocol

import msgspec

from budget_proxy.core.events import (
    CallEnded,
    CeilingMoved,
    Event,
    FailedOpen,
    HoldPresumed,
    InvariantBroken,
    LedgerChanged,
    Overrun,
    PolicyReloaded,
    Stage,
    TopUpMoved,
    UpstreamFailed,
    WaitEnded,
)
from budget_proxy.core.money import exact

MAX_TEXT = 256
MAX_DETAIL = 600
"""As much of a refusal's detail as its answer shows."""
MAX_LINES = 10_000
_BATCH_BYTES = 128 * 1024
ATOMIC_BYTES = 4096
"""What a pipe takes whole, whoever else writes to it (PIPE_BUF of Linux). A line is shorter but for
extreme labels; one that is not is written alone."""
_LINGER_S = 0.01
"""Lines are gathered this long, so that the writer wakes a hundred times a second at most."""
_RETRY_S = 0.01
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_CALM = frozenset({"served", "hung_up"})


class Stream(Protocol):
    """Where lines go: a binary file. It may block and may write less than it was given."""

    def write(self, data: memoryview, /) -> int | None:
        """Write some of the data and say how much."""

    def flush(self) -> None:
        """Pass on what is buffered."""


def standard_output() -> Stream:
    """Standard output without a buffer.

    `sys.stdout.buffer` has a lock: a write stalled under it at exit is a fatal interpreter error.
    """
    return open(1, "wb", buffering=0, closefd=False)


class _OverrunLine(msgspec.Struct):
    budget: str
    payer: str
    unit: str
    amount: str


class _CallLine(msgspec.Struct):
    """The order of the fields is the order in the line."""

    ts: str
    level: str
    event: str
    request_id: str
    service: str
    labels: Mapping[str, str]
    upstream: str
    route: str
    model: str
    method: str
    path: str
    status: int
    outcome: str
    reason: str
    detail: str
    budget: str
    rule: str
    currency: str
    held: str
    cost: str
    estimated: Mapping[str, int]
    quantities: Mapping[str, int]
    stages: Mapping[str, float]
    bytes_in: int
    bytes_out: int
    overruns: list[_OverrunLine]
    reported: list[str]
    traceparent: str
    retry: int


class CallLog:
    """Writes events as JSON lines. An observer: never raises, never blocks."""

    def __init__(
        self,
        stream: Stream,
        *,
        max_lines: int = MAX_LINES,
        clock: Callable[[], float] = time.time,
        shared: bool = False,
    ) -> None:
        """`shared`: other processes write to the same stream, and no line may end up inside
        another."""
        self._encode = msgspec.json.Encoder().encode
        self._clock = clock
        self._stamp = _Stamp()
        self._lines = _Writer(stream, max_lines, ATOMIC_BYTES if shared else _BATCH_BYTES)

    def __call__(self, event: Event, /) -> None:
        """Put one event in line to be written."""
        try:
            line = self._call(event) if type(event) is CallEnded else self._other(event)
        except Exception:  # an observer never takes part
            self._lines.refuse()
        else:
            self._lines.put(line)

    @property
    def dropped(self) -> int:
        """How many lines were lost: the stream too slow, gone or full, or an event unreadable."""
        return self._lines.dropped

    def close(self, timeout_s: float) -> bool:
        """Write what is waiting; False (and counted) if the stream did not take it in time."""
        return self._lines.close(timeout_s)

    def _call(self, call: CallEnded) -> bytes:
        currency = call.currency
        return self._line(
            _CallLine(
                self._stamp.of(call.at_s),
                "info" if call.outcome in _CALM and not call.overruns else "warning",
                "call_ended",
                _short(call.request_id),
                _short(call.service),
                call.labels,
                _short(call.upstream),
                _short(call.route),
                _short(call.model),
                _short(call.method),
                _short(call.path.partition("?")[0]),
                call.status,
                call.outcome,
                _short(call.reason),
                _short(call.detail, MAX_DETAIL),
                call.budget,
                call.rule,
                currency,
                exact(call.held, currency),
                exact(call.cost, currency),
                call.estimated,
                call.quantities,
                _in_microseconds(call.stages),
                call.bytes_in,
                call.bytes_out,
                [_overrun(overrun) for overrun in call.overruns],
                [shortfall.budget for shortfall in call.reported],
                _traceparent(call.traceparent),
                call.retry,
            )
        )

    def _other(self, event: Event) -> bytes:
        name, level, fields = _described(event)
        ts = self._stamp.of(event.at_s if isinstance(event, PolicyReloaded) else self._clock())
        return self._line({"ts": ts, "level": level, "event": name, **fields})

    def _line(self, record: object) -> bytes:
        try:
            return self._encode(record) + b"\n"
        except UnicodeError:  # half a surrogate pair: rare, so mended only here
            return self._encode(_mended(msgspec.to_builtins(record))) + b"\n"


def _described(event: Event) -> tuple[str, str, dict[str, Any]]:
    """Name, level and fields of the events that are not calls."""
    fields: dict[str, Any]
    match event:
        case HoldPresumed(hold_id, upstream, why):
            fields = {"hold_id": _short(hold_id), "upstream": upstream, "why": why}
            return "hold_presumed", "warning", fields
        case FailedOpen(budget, payer, unit, amount):
            fields = {"budget": budget, "payer": _short(payer), "unit": unit}
            return "failed_open", "warning", fields | {"amount": exact(amount, unit)}
        case CeilingMoved():
            return _ceiling(event)
        case TopUpMoved():
            return _top_up(event)
        case UpstreamFailed(upstream, kind):
            return "upstream_failed", "warning", {"upstream": upstream, "kind": _short(kind)}
        case WaitEnded(budget, how, waited_s):
            fields = {"budget": budget, "how": how, "waited_s": round(waited_s, 6)}
            return "wait_ended", "info", fields
        case LedgerChanged(up, why):
            return "ledger_changed", "info" if up else "error", {"up": up, "why": _short(why)}
        case InvariantBroken(what):
            return "invariant_broken", "error", {"what": _short(what)}
        case PolicyReloaded(ok, _, why):
            return "policy_reloaded", "info" if ok else "error", {"ok": ok, "why": _short(why)}
        case _:
            raise TypeError(f"no line for {type(event).__name__}")


def _top_up(moved: TopUpMoved) -> tuple[str, str, dict[str, Any]]:
    fields = {
        "upstream": moved.upstream,
        "topup": moved.attempt,
        "state": moved.state,
        "amount": exact(moved.amount, moved.unit),
        "unit": moved.unit,
        "why": _short(moved.why),
    }
    bad = moved.needs_person or moved.state in ("failed", "unknown")
    return "topup", "warning" if bad else "info", fields


def _ceiling(moved: CeilingMoved) -> tuple[str, str, dict[str, Any]]:
    fields = {
        "upstream": moved.upstream,
        "route": _short(moved.route),
        "model": _short(moved.model),
        "unit": moved.unit,
        "ratio_permille": moved.ratio,
        "surplus": exact(moved.surplus, moved.unit),
    }
    if moved.raised:
        return "ceiling_raised", "warning", fields
    return "ceiling_lowered", "info", fields


class _Writer:
    """A bounded line of lines, and the thread that writes them."""

    def __init__(self, stream: Stream, max_lines: int, batch_bytes: int) -> None:
        self._stream = stream
        self._batch_bytes = batch_bytes
        self._max_lines = max_lines
        self._waiting: deque[bytes] = deque()
        self._awake = Flag()
        self._closing = Flag()
        self._gone = False
        # Two counters, because each side may add only to its own.
        self._refused = 0
        self._lost = 0
        self._in_hand = 0
        self._thread = Thread(target=self._run, name="call-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def refuse(self) -> None:
        self._refused += 1

    def put(self, line: bytes) -> None:
        if self._gone or self._closing.is_set() or len(self._waiting) >= self._max_lines:
            self._refused += 1
            return
        self._waiting.append(line)
        if not self._awake.is_set():
            self._awake.set()

    def close(self, timeout_s: float) -> bool:
        self._closing.set()
        self._awake.set()
        self._thread.join(timeout_s)
        left = len(self._waiting) + (self._in_hand if self._thread.is_alive() else 0)
        self._refused += left
        self._waiting.clear()
        return left == 0

    def _run(self) -> None:
        while not self._gone:
            self._awake.wait()
            self._closing.wait(_LINGER_S)
            # Cleared before the line is emptied: what is put in between wakes us once more.
            self._awake.clear()
            self._empty()
            if self._closing.is_set() and not self._waiting:
                return

    def _empty(self) -> None:
        while batch := self._batch():
            try:
                self._write(b"".join(batch))
            except (BrokenPipeError, ValueError):  # the reader left, or the stream was closed
                self._gone = True
                self._lost += len(batch) + len(self._waiting)
                self._waiting.clear()
            except OSError:  # a full disk may have room again later
                self._lost += len(batch)

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0]) <= self._batch_bytes):
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self._in_hand = len(batch)
        return batch

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                written = self._stream.write(rest)
            except BlockingIOError as error:
                written = error.characters_written
            if not written:  # a stream in non-blocking mode that is full
                time.sleep(_RETRY_S)
            else:
                rest = rest[written:]
        self._stream.flush()


class _Stamp:
    """RFC 3339 with milliseconds; the text of the current second is kept."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def of(self, at_s: float) -> str:
        second = int(at_s)
        ms = int(at_s * 1000) - second * 1000
        if second != self._second:
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        return f"{self._text}.{ms:03d}Z"


def _in_microseconds(stages: Mapping[Stage, float]) -> dict[str, float]:
    """Seconds without what is smaller. `round` costs five times as much, five times a call."""
    whole: dict[str, float] = {}
    for stage, seconds in stages.items():
        whole[stage] = (seconds * 1e6 + 0.5) // 1 / 1e6
    return whole


def _short(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _traceparent(text: str) -> str:
    """Only what has the form of one: a header is a place where people also put keys."""
    return text if text and _TRACEPARENT.match(text) else ""


def _overrun(overrun: Overrun) -> _OverrunLine:
    amount = exact(overrun.amount, overrun.unit)
    return _OverrunLine(overrun.budget, _short(overrun.payer), overrun.unit, amount)


def _mended(value: Any) -> Any:
    """The same value in what JSON can carry."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_mended(key): _mended(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_mended(item) for item in value]
    return value
