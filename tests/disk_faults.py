"""A disk that fails on the nth write or sync of a ledger, for whole processes: `disk_faults.c`,
compiled here and loaded into them before the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WRITE, SYNC = 1, 2
ANY_FILE, LEDGER, LOG = 0, 1, 2
FOR_EVER = -1
"""Until it is healed."""
SOURCE = Path(__file__).with_name("disk_faults.c")
_FIELDS = ("kind", "only", "skip", "most", "number", "torn", "failed", "seen")


class Orders(ctypes.Structure):
    """What fails, and what has: `struct orders`."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]


@dataclass(frozen=True)
class Fault:
    """From now on `skip` calls of a kind do well, and the next `most` fail."""

    kind: int
    number: int
    skip: int = 0
    most: int = 1
    only: int = ANY_FILE
    torn: bool = False

    def __str__(self) -> str:
        what = {WRITE: "write", SYNC: "sync", WRITE | SYNC: "call"}[self.kind]
        where = ("", " of the ledger file", " of its log")[self.only]
        length = "once" if self.most == 1 else "for ever" if self.most < 0 else f"{self.most} times"
        name = errno.errorcode[self.number]
        return f"{name} {length} on {what} {self.skip + 1}{where}{', torn' * self.torn}"


class FailingDisk:
    """The disk under one ledger file."""

    def __init__(self, orders: Orders, variables: dict[str, str]) -> None:
        self._orders = orders
        self.variables = variables
        """For the environment of the processes."""

    @property
    def seen(self) -> int:
        """Calls so far: none, and nothing of ours was loaded."""
        return int(self._orders.seen)

    @property
    def failed(self) -> int:
        """Calls that failed since the last order."""
        return int(self._orders.failed)

    def fail(self, fault: Fault) -> None:
        """From now on, in every process."""
        self.heal()
        self._orders.failed = 0
        for name in ("only", "skip", "most", "number", "torn"):
            setattr(self._orders, name, int(getattr(fault, name)))
        self._orders.kind = fault.kind

    def heal(self) -> None:
        """All is well again."""
        self._orders.kind = 0


@contextlib.contextmanager
def failing_disk(ledger: Path, folder: Path) -> Iterator[FailingDisk]:
    """For processes that are started with its `variables`. Without a compiler the test fails: who
    asks for these faults wants them."""
    library, orders = folder / "disk_faults.so", folder / "disk_faults.orders"
    _compile(library)
    orders.write_bytes(bytes(ctypes.sizeof(Orders)))
    with orders.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        mapped = Orders.from_buffer(shared)
        disk = FailingDisk(
            mapped,
            {
                "LD_PRELOAD": str(library),
                "DISK_FAULTS_FILE": str(ledger.resolve()),
                "DISK_FAULTS_ORDERS": str(orders),
            },
        )
        try:
            yield disk
        finally:
            disk.heal()
            disk._orders = Orders()
            del mapped  # a mapping that is in use cannot be closed


def _compile(library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.fail(
            "FAULTS asks for disks that fail, and that needs a C compiler: neither cc, gcc nor "
            "clang is there (Debian: apt-get install gcc libc6-dev)",
            pytrace=False,
        )
    words = (compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.fail(f"{SOURCE.name} cannot be compiled here:\n{done.stderr}", pytrace=False)
