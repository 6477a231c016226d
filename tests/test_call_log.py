"""The call log: valid lines, no secrets, and a stream that stalls, breaks or fills costs lines."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from budget_proxy import call_log
from budget_proxy.call_log import ATOMIC_BYTES, MAX_DETAIL, MAX_TEXT, CallLog
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
    TopUpMoved,
    UpstreamFailed,
    WaitEnded,
)
from budget_proxy.core.refusal import Shortfall

NOW_S = 1_700_000_000.25
CANARY = "sk-canary-0123456789"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def call(**changes: Any) -> CallEnded:
    facts: dict[str, Any] = {
        "at_s": NOW_S,
        "request_id": "r1",
        "method": "POST",
        "path": "/openai/v1/chat/completions",
        "upstream": "openai",
        "service": "checkout",
        "labels": {"team": "payments"},
        "route": "chat",
        "model": "gpt-5",
        "status": 200,
        "outcome": "served",
        "reason": "",
        "budget": "",
        "rule": "actual",
        "currency": "USD",
        "held": 4_200_000,
        "cost": 1,
        "estimated": {"output_tokens": 100},
        "quantities": {"output_tokens": 25},
        "stages": {"price": 0.0002, "total": 0.123456789},
        "bytes_in": 10,
        "bytes_out": 20,
    }
    return CallEnded(**(facts | changes))


class Stream:
    """A stream in memory; `script` says what the first writes do instead of writing all."""

    def __init__(self, *script: Exception | int) -> None:
        self.data = b""
        self.pieces: list[bytes] = []
        self.writes = 0
        self.scripted = threading.Event()
        self._script = list(script)

    def write(self, data: memoryview) -> int:
        self.writes += 1
        if self._script:
            step = self._script.pop(0)
            if not self._script:
                self.scripted.set()
            if isinstance(step, Exception):
                raise step
            data = data[:step]
        self.data += bytes(data)
        self.pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.splitlines()]


def logged(*events: Event) -> list[dict[str, Any]]:
    stream = Stream()
    log = CallLog(stream, clock=lambda: NOW_S)
    for event in events:
        log(event)
    assert log.close(5)
    assert log.dropped == 0
    return stream.lines


def test_a_call_is_one_line_with_everything() -> None:
    short = Shortfall("pilot", "(all)", "USD", 1, 1, 0, 1, "spent", "total", None, enforced=False)
    overrun = Overrun("company", "(all)", "USD", 500_000_000)
    [line] = logged(call(reported=(short,), overruns=(overrun,), traceparent=TRACEPARENT, retry=1))
    assert line == {
        "ts": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "call_ended",
        "request_id": "r1",
        "service": "checkout",
        "labels": {"team": "payments"},
        "upstream": "openai",
        "route": "chat",
        "model": "gpt-5",
        "method": "POST",
        "path": "/openai/v1/chat/completions",
        "status": 200,
        "outcome": "served",
        "reason": "",
        "detail": "",
        "budget": "",
        "rule": "actual",
        "currency": "USD",
        "held": "0.0042",
        "cost": "0.000000001",
        "estimated": {"output_tokens": 100},
        "quantities": {"output_tokens": 25},
        "stages": {"price": 0.0002, "total": 0.123457},
        "bytes_in": 10,
        "bytes_out": 20,
        "overruns": [{"budget": "company", "payer": "(all)", "unit": "USD", "amount": "0.5"}],
        "reported": ["pilot"],
        "traceparent": TRACEPARENT,
        "retry": 1,
    }


def test_a_refusal_says_what_was_wrong_and_not_too_much_of_it() -> None:
    lines = logged(call(detail="The request must name its model."), call(detail="x" * 10_000))
    assert lines[0]["detail"] == "The request must name its model."
    assert lines[1]["detail"] == "x" * (MAX_DETAIL - 1) + "…"


@pytest.mark.parametrize(
    ("outcome", "level"),
    [("served", "info"), ("hung_up", "info"), ("refused", "warning"), ("aborted", "warning")],
)
def test_levels_of_calls(outcome: str, level: str) -> None:
    [line] = logged(call(outcome=outcome))
    assert line["level"] == level


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            HoldPresumed("h1", "openai", "deadline"),
            {
                "event": "hold_presumed",
                "level": "warning",
                "hold_id": "h1",
                "upstream": "openai",
                "why": "deadline",
            },
        ),
        (
            FailedOpen("company", "ada", "USD", 4_200_000),
            {
                "event": "failed_open",
                "level": "warning",
                "budget": "company",
                "payer": "ada",
                "unit": "USD",
                "amount": "0.0042",
            },
        ),
        (
            CeilingMoved("openai", "chat", "gpt-4o", "USD", 2200, 1_200_000, raised=True),
            {
                "event": "ceiling_raised",
                "level": "warning",
                "upstream": "openai",
                "route": "chat",
                "model": "gpt-4o",
                "unit": "USD",
                "ratio_permille": 2200,
                "surplus": "0.0012",
            },
        ),
        (
            CeilingMoved("openai", "chat", "gpt-4o", "input_tokens", 1000, 0, raised=False),
            {
                "event": "ceiling_lowered",
                "level": "info",
                "upstream": "openai",
                "route": "chat",
                "model": "gpt-4o",
                "unit": "input_tokens",
                "ratio_permille": 1000,
                "surplus": "0",
            },
        ),
        (
            TopUpMoved("acme", "k1", "unknown", 50 * 10**9, "USD", "the hook answered 500"),
            {
                "event": "topup",
                "level": "warning",
                "upstream": "acme",
                "topup": "k1",
                "state": "unknown",
                "amount": "50",
                "unit": "USD",
                "why": "the hook answered 500",
            },
        ),
        (
            TopUpMoved("acme", "k1", "confirmed", 50 * 10**9, "USD", landed=True),
            {
                "event": "topup",
                "level": "info",
                "upstream": "acme",
                "topup": "k1",
                "state": "confirmed",
                "amount": "50",
                "unit": "USD",
                "why": "",
            },
        ),
        (
            UpstreamFailed("openai", "connect"),
            {
                "event": "upstream_failed",
                "level": "warning",
                "upstream": "openai",
                "kind": "connect",
            },
        ),
        (
            WaitEnded("rate", "timeout", 1.23456789),
            {
                "event": "wait_ended",
                "level": "info",
                "budget": "rate",
                "how": "timeout",
                "waited_s": 1.234568,
            },
        ),
        (
            LedgerChanged(up=False, why="disk full"),
            {"event": "ledger_changed", "level": "error", "up": False, "why": "disk full"},
        ),
        (
            InvariantBroken("spent above limit"),
            {"event": "invariant_broken", "level": "error", "what": "spent above limit"},
        ),
        (
            PolicyReloaded(ok=True, at_s=NOW_S),
            {"event": "policy_reloaded", "level": "info", "ok": True, "why": ""},
        ),
    ],
)
def test_other_events_are_lines_too(event: Event, expected: dict[str, Any]) -> None:
    assert logged(event) == [{"ts": "2023-11-14T22:13:20.250Z", **expected}]


def test_seconds_turn_and_milliseconds_do_not_round_up() -> None:
    instants = (59.9999, 60.0, 59.0, 0.0015)
    lines = logged(*(call(at_s=instant) for instant in instants))
    assert [line["ts"][17:] for line in lines] == ["59.999Z", "00.000Z", "59.000Z", "00.001Z"]


def test_no_secret_that_a_caller_misplaced_is_written() -> None:
    stream = Stream()
    log = CallLog(stream)
    log(call(path=f"/v1/x?key={CANARY}", traceparent=CANARY))
    log(call(path="/v1/x", traceparent=f"{TRACEPARENT}-{CANARY}"))
    log(call(traceparent=f"{TRACEPARENT}\n"))
    assert log.close(5)
    assert CANARY.encode() not in stream.data
    assert [line["traceparent"] for line in stream.lines] == ["", "", ""]


def test_strings_of_callers_are_bounded() -> None:
    long = "x" * 100_000
    fields = ("request_id", "method", "path", "model", "route", "reason", "service")
    [line] = logged(
        call(**dict.fromkeys(fields, long), overruns=(Overrun("b", long, "requests", 2),))
    )
    assert {len(line[field]) for field in fields} == {MAX_TEXT}
    assert line["path"].endswith("x…")
    assert len(line["overruns"][0]["payer"]) == MAX_TEXT
    [failed] = logged(UpstreamFailed("openai", long))
    assert len(failed["kind"]) == MAX_TEXT


def test_what_json_cannot_carry_is_mended() -> None:
    lines = logged(
        call(model="half \ud800", labels={"\udfff": "x"}),
        call(quantities={"\ud800": 10**30}),
        call(path="/a\nb\x00\u2028"),
        call(stages={"total": float("nan")}),
    )
    assert lines[0]["model"] == "half ?"
    assert lines[0]["labels"] == {"?": "x"}
    assert lines[1]["quantities"] == {"?": 10**30}
    assert lines[2]["path"] == "/a\nb\x00\u2028"
    assert lines[3]["stages"] == {"total": None}


def test_an_event_that_cannot_be_read_is_counted_not_raised() -> None:
    stream = Stream()
    log = CallLog(stream)
    log("not an event")  # type: ignore[arg-type]
    log(call(at_s="noon"))
    log(call(labels={"x": object()}))
    assert log.close(5)
    assert (log.dropped, stream.data) == (3, b"")


def test_lines_are_gathered() -> None:
    stream = Stream()
    log = CallLog(stream)
    for number in range(1000):
        log(call(retry=number))
    assert log.close(5)
    assert [line["retry"] for line in stream.lines] == list(range(1000))
    assert stream.writes < 100


def test_what_shares_a_pipe_writes_whole_lines_that_the_pipe_takes_whole() -> None:
    stream = Stream()
    log = CallLog(stream, shared=True)
    for number in range(100):
        log(UpstreamFailed("geo", f"kind-{number}-" + "x" * 180))
    assert log.close(5)
    assert len(stream.lines) == 100
    assert len(stream.pieces) >= 6
    for piece in stream.pieces:
        assert len(piece) <= ATOMIC_BYTES
        assert piece.endswith(b"\n")


def test_the_writer_sleeps_between_lines() -> None:
    stream = Stream(10_000)
    log = CallLog(stream)
    log(call())
    assert stream.scripted.wait(5)
    assert not log._lines._awake.is_set(), "else it would spin"
    assert log.close(5)


def test_a_stalled_stream_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as stream:
        log = CallLog(stream, max_lines=100)
        for number in range(5000):  # nobody reads: this returning at all is the test
            log(call(retry=number))
        assert log.dropped > 0
        read: list[bytes] = []
        with os.fdopen(reading, "rb") as reader:
            thread = threading.Thread(target=lambda: read.append(reader.read()))
            thread.start()
            assert log.close(10)
            stream.close()
            thread.join()
    numbers = [json.loads(line)["retry"] for line in read[0].splitlines()]
    assert numbers == sorted(numbers)
    assert len(numbers) + log.dropped == 5000, "each line is either written or counted"


def test_closing_does_not_wait_for_ever() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as stream:
        log = CallLog(stream, max_lines=1000)
        for _ in range(1000):
            log(call())
        assert not log.close(0.05)
        assert log.dropped > 0
        os.close(reading)
        log.close(5)  # the stalled write has failed now: the thread ends before its stream


def test_a_reader_that_left_ends_the_writing_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        log = CallLog(stream)
        for _ in range(10):
            log(call())
        assert log.close(5)
    log(call())
    assert log.dropped == 11


def test_a_closed_stream_ends_the_writing_quietly() -> None:
    log = CallLog(Stream(ValueError("write to closed file")))
    log(call())
    assert log.close(5)
    assert log.dropped == 1


def test_a_full_disk_may_have_room_again() -> None:
    stream = Stream(OSError(errno.ENOSPC, "no space"))
    log = CallLog(stream)
    log(call(retry=1))
    assert stream.scripted.wait(5)
    log(call(retry=2))
    assert log.close(5)
    assert [line["retry"] for line in stream.lines] == [2]
    assert log.dropped == 1


def test_short_writes_are_finished() -> None:
    stream = Stream(7, BlockingIOError(errno.EAGAIN, "full", 0), 1)
    log = CallLog(stream)
    log(call(retry=3))
    assert log.close(5)
    assert [line["retry"] for line in stream.lines] == [3]
    assert log.dropped == 0


def test_nothing_is_written_after_closing() -> None:
    stream = Stream()
    log = CallLog(stream)
    assert log.close(5)
    assert log.close(5)
    log(call())
    assert (log.dropped, stream.data) == (1, b"")


PROCESS_WITH_A_STALLED_STDOUT = """
from budget_proxy import call_log
from budget_proxy.call_log import CallLog, standard_output
from budget_proxy.core.events import InvariantBroken
log = CallLog(standard_output())
for _ in range(3000):
    log(InvariantBroken("x" * 200))
assert not log.close(0.05)
"""


def test_a_process_whose_output_is_stalled_can_still_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS_WITH_A_STALLED_STDOUT],
        cwd=Path(call_log.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.wait(20) == 0  # its output is read only now
    output, errors = process.communicate()
    assert (errors, output[:6]) == (b"", b'{"ts":')
