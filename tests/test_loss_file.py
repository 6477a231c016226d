"""The file of what passed without the ledger: shared, never short of a call, soon empty again."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_proxy import loss_file
from budget_proxy.core.book import Hold, Leg, Release, Settle
from budget_proxy.core.loss import Draw
from budget_proxy.core.refusal import Barred
from budget_proxy.core.window import Span
from budget_proxy.loss_file import LossFile, LossFileError, Record, Wanted

ALLOWANCE = 50
PURSE = ("cap", "ada", "USD")


def wanted(name: str, amount: int = 10, allowance: int = ALLOWANCE) -> Wanted:
    leg = Leg("cap", "ada", "USD", Span("day", "Europe/Berlin"), 10**12, amount, enforced=False)
    hold = Hold(name, "me", (leg,), 60.0, b'{"service":"\xc3\xa4"}')
    return Wanted(hold, (Draw(PURSE, amount, allowance),))


def passes(file: LossFile, name: str, amount: int = 10) -> bool:
    return file.write([wanted(name, amount)]) == [None]


def settled(name: str, amount: int) -> Record:
    return Record(settle=Settle(name, {"USD": amount}, "fail_open", b'{"status":200}'))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db.loss"


def test_calls_pass_up_to_the_allowance(path: Path) -> None:
    file = LossFile(path)
    assert [passes(file, name, 20) for name in "123"] == [True, True, False]
    assert [passes(file, name, 10) for name in "45"] == [True, False]
    assert [call.hold.id for call in file.unbooked()] == ["1", "2", "4"]
    file.close()


def test_several_at_once_are_judged_one_after_the_other(path: Path) -> None:
    file = LossFile(path)
    answers = file.write([wanted("1", 30), wanted("2", 30), wanted("3", 20)])
    assert answers == [None, Barred("used_up", *PURSE, ALLOWANCE, 30, 30), None]
    file.close()


ENDS: dict[str, tuple[Record, int]] = {
    "cheaper than held": (settled("1", 5), 45),
    "as held": (settled("1", 40), 10),
    "dearer than held": (settled("1", 60), 0),
    "at its hold": (Record(settle=Settle("1", {}, "fail_open")), 10),
    "not sent": (Record(release=Release("1", "fail_open")), 50),
    "booked": (Record(booked="1"), 50),
    "another one's end": (settled("2", 0), 10),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("reads", ["itself", "anew"])
def test_what_a_call_counts_for_once_it_has_ended(how: str, reads: str, path: Path) -> None:
    record, room = ENDS[how]
    file = LossFile(path)
    assert passes(file, "1", 40)
    file.write([], [record])
    if reads == "anew":
        file.close()
        file = LossFile(path)
    assert not passes(file, "8", room + 1)
    assert room == 0 or passes(file, "9", room)
    file.close()


def test_what_was_written_is_read_as_it_was(path: Path) -> None:
    file = LossFile(path)
    file.write([wanted("1"), wanted("2"), wanted("3")], [])
    file.write([], [settled("1", 7), Record(release=Release("2", "fail_open", b'{"status":0}'))])
    file.close()
    first, second, third = LossFile(path).unbooked()
    assert (first.hold, first.end) == (wanted("1").hold, settled("1", 7).settle)
    assert (second.hold, second.end) == (
        wanted("2").hold,
        Release("2", "fail_open", b'{"status":0}'),
    )
    assert (third.hold, third.end) == (wanted("3").hold, None)


def test_two_who_share_it_have_one_allowance(path: Path) -> None:
    one, other = LossFile(path), LossFile(path)
    assert passes(one, "1", 30)
    assert not passes(other, "2", 30)
    assert passes(other, "3", 20)
    one.write([], [Record(booked="3")])
    assert passes(other, "4", 20)
    one.write([], [Record(booked="1"), Record(booked="4")])
    assert path.stat().st_size == 0, "nothing is left to be booked"
    assert passes(other, "5", 50)
    assert not passes(one, "6", 1)
    one.write([], [Record(booked="5")])
    # As long as before, but begun anew: nobody reads on in the middle.
    assert passes(one, "7", 10)
    assert passes(other, "8", 40)
    assert [call.hold.id for call in one.unbooked()] == ["7", "8"]
    one.close()
    other.close()


def compete(path: Path, name: str, results: Any) -> None:
    """Another process: lets through what it can."""
    file = LossFile(path)
    passed = []
    for number in range(60):
        call = wanted(f"{name}-{number}", 1, 70)
        while True:
            try:
                if file.write([call]) == [None]:
                    passed.append(call.hold.id)
                break
            except LossFileError:  # the other one was quicker for a while
                continue
    results.put(passed)


def test_processes_that_share_it_let_exactly_the_allowance_through(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [context.Process(target=compete, args=(path, name, results)) for name in "xyz"]
    for racer in racers:
        racer.start()
    passed = [name for _ in racers for name in results.get(timeout=60)]
    for racer in racers:
        racer.join(60)
    assert len(passed) == 70
    assert sorted(call.hold.id for call in LossFile(path).unbooked()) == sorted(passed)


def test_a_last_line_that_is_cut_short_was_never_answered_for(path: Path) -> None:
    file = LossFile(path)
    assert passes(file, "1")
    whole = path.read_bytes()
    assert passes(file, "2")
    both = path.read_bytes()
    file.close()
    for size in range(len(whole), len(both)):
        path.write_bytes(both[:size])
        again = LossFile(path)
        assert [call.hold.id for call in again.unbooked()] == ["1"]
        assert passes(again, "3", 40)
        assert not passes(again, "4", 1)
        again.close()
        assert [call.hold.id for call in LossFile(path).unbooked()] == ["1", "3"]


def test_a_first_line_that_is_cut_short_is_begun_again(path: Path) -> None:
    for size in range(1, loss_file._HEAD_BYTES):
        path.write_bytes(b'{"begins":"0123456789abcdef"}\n'[:size])
        file = LossFile(path)
        assert passes(file, "1", 50)
        assert not passes(file, "2", 1)
        file.close()
        path.unlink()


@pytest.mark.parametrize("line", [b"not json\n", b'{"hold":{"id":1}}\n', b"\x00\x00\n"])
def test_a_line_that_nobody_can_read_stops_everything(line: bytes, path: Path) -> None:
    file = LossFile(path)
    assert passes(file, "1")
    with path.open("ab") as other:
        other.write(line)
    for _ in range(2):
        with pytest.raises(LossFileError, match=r"ledger\.db\.loss cannot be read .* move it away"):
            passes(file, "2")
        with pytest.raises(LossFileError):
            LossFile(path).unbooked()
    assert path.read_bytes().endswith(line), "and it is left as it is"


def full(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def half(handle: int, data: bytes, offset: int) -> int:
    if len(data) < 20:
        raise OSError(28, "No space left on device")
    return REAL_PWRITE(handle, data[: len(data) // 2], offset)


REAL_PWRITE = os.pwrite
FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nothing can be written": ("pwrite", full),
    "a part can be written": ("pwrite", half),
    "nothing reaches the disk": ("fsync", full),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_written_did_not_pass(
    fault: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LossFile(path)
    assert passes(file, "1", 30)
    name, breaks = FAULTS[fault]
    with monkeypatch.context() as patch:
        patch.setattr(os, name, breaks)
        with pytest.raises(OSError, match="No space"):
            passes(file, "2", 20)
    assert [call.hold.id for call in LossFile(path).unbooked()] == ["1"]
    assert passes(file, "3", 20)
    file.close()


def test_a_lock_that_is_kept_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_file, "LOCK_WAIT_S", 0.01)
    file = LossFile(path)
    assert passes(file, "1")
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(LossFileError, match="is locked by another process"):
        passes(file, "2")
    os.close(handle)
    assert passes(file, "2")
    file.close()


def test_a_file_that_was_deleted_is_begun_anew(path: Path) -> None:
    file = LossFile(path)
    assert passes(file, "1", 50)
    path.unlink()
    assert passes(file, "2", 50)
    assert [call.hold.id for call in LossFile(path).unbooked()] == ["2"]
    file.close()


def test_nobody_else_may_read_it_and_asking_makes_none(path: Path) -> None:
    file = LossFile(path)
    assert file.unbooked() == []
    assert not path.exists()
    assert passes(file, "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.close()
