"""The supervisor's own folder for copies of the policy, and those that dead ones left behind.

While a supervisor lives it has a `flock` on a file in its folder, which the system gives up with
the process, however that ends: a lock that can be had is the proof that nobody uses the folder any
more. The file gets its name only once it is locked, so that no folder that has just been made looks
left behind. Forbidden here: deleting what is not surely ours and dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from itertools import islice
from pathlib import Path

PREFIX = "budget-proxy-"
LOCK = "alive"
MOST_LOOKED_AT = 10_000
"""Names in the folder of all temporary files."""
MOST_SWEPT = 100
MOST_FILES = 10_000
"""In one folder: as many as policies were read."""
_OURS = re.compile(r"budget-proxy-[a-z0-9_]{8}")
_FILES = re.compile(r"policy-[0-9]+\.yaml")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Scratch:
    """A folder that only we can read, for as long as we live. Raises OSError."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        begun = Path(self._folder.name, "begun")
        self._lock = os.open(begun, _LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            begun.rename(begun.with_name(LOCK))
        except OSError:  # no locks here: then nobody can tell later, and nobody will sweep
            begun.unlink(missing_ok=True)

    def policy(self, number: int) -> Path:
        """Where the copy of a policy goes."""
        return Path(self._folder.name, f"policy-{number}.yaml")

    def cleanup(self) -> None:
        """Delete it with all that is in it."""
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep(place: Path | None = None) -> int:
    """Delete the folders that dead supervisors of ours left behind (`place`: not where temporary
    files are); how many it were. Never raises: what cannot be swept stays."""
    swept = 0
    with contextlib.suppress(OSError), os.scandir(place or tempfile.gettempdir()) as found:
        names = [
            entry.path for entry in islice(found, MOST_LOOKED_AT) if _OURS.fullmatch(entry.name)
        ]
        for path in names:
            with contextlib.suppress(OSError):
                swept += _swept(path)
            if swept == MOST_SWEPT:
                break
    return swept


def _swept(path: str) -> bool:
    """Whether a folder was left behind, and is gone now. Raises OSError."""
    folder = os.open(path, _FOLDER_FLAGS)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            return False
        lock = os.open(LOCK, _LOCK_FLAGS, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                return False
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _emptied(folder) and _removed(path, folder)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _emptied(folder: int) -> bool:
    """Delete what a supervisor writes, the lock last; False: something else is in it too."""
    with os.scandir(folder) as found:
        names = [entry.name for entry in islice(found, MOST_FILES)]
    if any(name != LOCK and not _FILES.fullmatch(name) for name in names):
        return False
    for name in sorted(names, key=LOCK.__eq__):
        os.unlink(name, dir_fd=folder)
    return True


def _removed(path: str, folder: int) -> bool:
    if not os.path.samestat(Path(path).lstat(), os.fstat(folder)):
        return False
    Path(path).rmdir()
    return True
