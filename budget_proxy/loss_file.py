"""What passed while the ledger could not be written: a small file of its own, one for a machine.

Append-only JSON lines, each on the disk before its call is forwarded. All workers share it under a
`flock`: each reads what the others added before it decides, so an allowance is one for all of them.
Records: a call that passed (as the hold to be booked), how it ended, and that it is booked, after
which its room is free again. Once nothing is left to be booked, the file is emptied.

- A last line that is cut short was never answered for: whoever writes next takes it off.
- Any other line that cannot be read stops everything: it may be money.
- A new beginning has a new first line, so that nobody reads on at an old place.

Blocks: never on the event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from budget_proxy.core.book import Hold, Release, Settle
from budget_proxy.core.loss import Draw, Purse, purse_of, used_up
from budget_proxy.core.refusal import Barred

LOCK_WAIT_S = 0.05
"""How long to wait for another worker's append."""
_HEAD_BYTES = len(f'{{"begins":"{"0" * 16}"}}\n')
_POLL_S = 0.001


class LossFileError(OSError):
    """The file cannot be used; the message names it and the remedy."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: one of these."""

    begins: str = ""
    hold: Hold | None = None
    settle: Settle | None = None
    release: Release | None = None
    booked: str = ""
    """The id of a call that is in the ledger, or was never sent."""


class Wanted(NamedTuple):
    """A call that would pass: what is to be booked, and what it takes of allowances."""

    hold: Hold
    draws: tuple[Draw, ...]


@dataclass(slots=True)
class Unbooked:
    """A call that passed and is not in the ledger yet; `end`: once it is over."""

    hold: Hold
    end: Settle | Release | None = None

    def amounts(self) -> Iterator[tuple[Purse, int]]:
        """What it counts for."""
        for leg in self.hold.legs:
            amount = leg.amount
            if isinstance(self.end, Release):
                amount = 0
            elif self.end is not None:
                amount = self.end.amounts.get(leg.unit, leg.amount)
            yield purse_of(leg), amount


@dataclass(slots=True)
class _Read:
    """What was read so far, up to where."""

    head: bytes = b""
    offset: int = 0
    calls: dict[str, Unbooked] = field(default_factory=dict)
    let_through: dict[Purse, int] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        if record.hold is not None:
            self._put(record.hold.id, Unbooked(record.hold))
        end = record.settle or record.release
        if end is not None and end.id in self.calls:
            self._put(end.id, Unbooked(self.calls[end.id].hold, end))
        if record.booked:
            self._put(record.booked, None)

    def _put(self, name: str, call: Unbooked | None) -> None:
        before = self.calls.get(name)
        for sign, one in ((-1, before), (1, call)):
            for purse, amount in one.amounts() if one is not None else ():
                self.let_through[purse] = self.let_through.get(purse, 0) + sign * amount
        if call is not None:
            self.calls[name] = call
            return
        self.calls.pop(name, None)
        if not self.calls:
            self.let_through.clear()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class LossFile:
    """The file of one machine. Its methods raise OSError, and then nothing was added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        self._read = _Read()

    def write(
        self, wanted: Sequence[Wanted], records: Sequence[Record] = ()
    ) -> list[Barred | None]:
        """Add the records, and each wanted call that has room; None: it had, else what is used up.
        On the disk when this returns."""
        with self._locked() as handle:
            for record in records:
                self._read.take(record)
            lines = list(map(_line, records))
            answers = []
            for one in wanted:
                answers.append(used_up(one.draws, self._read.let_through))
                if answers[-1] is None:
                    record = Record(hold=one.hold)
                    self._read.take(record)
                    lines.append(_line(record))
            self._append(handle, b"".join(lines))
        return answers

    def unbooked(self) -> list[Unbooked]:
        """The calls that are not in the ledger yet, of all who share the file."""
        if not self._path.exists():
            return []
        with self._locked():
            return list(self._read.calls.values())

    def close(self) -> None:
        """Give up the handle."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._read = _Read()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            handle = self._open()
            self._lock(handle)
            try:
                self._catch_up(handle)
                yield handle
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)
        except BaseException:
            # Whatever was half done is read anew.
            self.close()
            raise

    def _open(self) -> int:
        if self._handle is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._handle)):
                    return self._handle
            self.close()
        is_new = not self._path.exists()
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if is_new:
            self._sync_folder()
        return self._handle

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _lock(self, handle: int) -> None:
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise LossFileError(f"{self._path} is locked by another process") from None
                time.sleep(_POLL_S)
            else:
                return

    def _catch_up(self, handle: int) -> None:
        """Read what was added, by whom ever, and take off a last line that is cut short."""
        size = os.fstat(handle).st_size
        head = os.pread(handle, _HEAD_BYTES, 0)
        if head != self._read.head or size < self._read.offset:
            self._read = _Read(head if len(head) == _HEAD_BYTES else b"")
        data = os.pread(handle, size - self._read.offset, self._read.offset)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(handle, self._read.offset + len(whole))
        for line in whole.splitlines():
            try:
                self._read.take(_decode(line))
            except msgspec.MsgspecError as error:
                raise LossFileError(
                    f"{self._path} cannot be read ({error}): book what it lists with 'budget-proxy "
                    "ledger adjust', and move it away"
                ) from None
        self._read.offset += len(whole)

    def _append(self, handle: int, lines: bytes) -> None:
        if not lines:
            return
        if not self._read.calls:
            # All that ever passed is booked: nothing here has to be kept.
            os.ftruncate(handle, 0)
            os.fsync(handle)
            self._read = _Read()
            return
        if not self._read.offset:
            self._read.head = _line(Record(begins=secrets.token_hex(8)))
            lines = self._read.head + lines
        try:
            _write_all(handle, lines, self._read.offset)
            os.fsync(handle)
        except OSError:
            # Its calls are told that they did not pass: they may not be booked either.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._read.offset)
            raise
        self._read.offset += len(lines)


def _line(record: Record) -> bytes:
    return _encode(record) + b"\n"


def _write_all(handle: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
