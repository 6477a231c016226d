"""Locks on whole files (`flock`), and who has one."""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = Path("/proc/locks")


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
