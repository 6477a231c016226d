"""Locks on whole files (`flock`): taking one, and who has one."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from budget_proxy.ledgers import LedgerRefusedError

LOCKS = Path("/proc/locks")
ORPHANS_S = 3.0
"""How long the workers of a supervisor that died may still have the ledger."""


def holder_of(lock: Path) -> int | None:
    """The process that has the `flock` on a file, as Linux tells; None: none, or nobody says."""
    try:
        status = lock.stat()
        table = LOCKS.read_text(encoding="ascii")
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in table.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF"; "1: -> FLOCK ..." only waits.
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[5:6] == [device]:
            return int(words[4])
    return None


def take(handle: int) -> bool:
    """Lock an open file; False: somebody else has it. Raises OSError."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_for_life(path: Path, ledger: Path) -> int:
    """The open lock file of whoever serves a ledger. Raises LedgerRefusedError, OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline_s = time.monotonic() + ORPHANS_S
    try:
        while not take(handle):
            if time.monotonic() > deadline_s:
                raise LedgerRefusedError(
                    f"{ledger} is in use by another budget-proxy. Stop it, or give this one a "
                    "ledger of its own (for more processes on one machine there is --workers)."
                )
            time.sleep(0.02)
    except BaseException:
        os.close(handle)
        raise
    return handle
