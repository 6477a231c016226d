"""How many connections each worker has, in memory that all of them see, so that each takes its
share. Left to the kernel, whoever is idle at the moment takes a connection, and keeps it: of two
workers one often had most of them, and the other one a free processor.

One cell for each worker, written by that worker alone, but for those of the dead. A figure that is
a moment old does no harm. Forbidden here: waiting for another process.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_CELL_BYTES = 8
_NOBODY = 0
"""In a cell: nobody takes connections there. Otherwise it is one more than that worker has."""


class Share:
    """What one worker has of the connections, and whether others have fewer."""

    def __init__(self, cells: memoryview, number: int) -> None:
        self._cells = cells
        self._number = number

    @classmethod
    def opened(cls, handle: int, number: int) -> Share:
        """A worker's, in the memory that its supervisor handed down. Raises OSError."""
        return cls(_mapped(handle), number)

    def has(self, connections: int) -> None:
        """Take note of how many connections there are."""
        self._cells[self._number] = connections + 1

    def takes_no_more(self) -> None:
        """The others need not look here any more."""
        self._cells[self._number] = _NOBODY

    @property
    def is_least(self) -> bool:
        """Whether no other worker has fewer."""
        others = [cell for cell in self._cells if cell != _NOBODY]
        return not others or self._cells[self._number] <= min(others)


class Shares:
    """The shares of all workers; `workers`: how many may live at a time. Raises OSError."""

    def __init__(self, workers: int) -> None:
        self.handle = _memory()
        """The open file that workers inherit."""
        os.write(self.handle, bytes(workers * _CELL_BYTES))
        self._cells = _mapped(self.handle)
        self._given: set[int] = set()

    def close(self) -> None:
        """No worker lives any more."""
        os.close(self.handle)

    def give(self) -> int:
        """The number of a worker that is about to start."""
        number = min(set(range(len(self._cells))) - self._given)
        self._given.add(number)
        return number

    def take_back(self, number: int) -> None:
        """That worker is dead."""
        self._given.discard(number)
        self._cells[number] = _NOBODY


def _memory() -> int:
    """A file without a name, which is gone with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("budget-proxy-shares")
    with tempfile.TemporaryFile() as file:  # where there is no such thing: on a disk
        return os.dup(file.fileno())


def _mapped(handle: int) -> memoryview:
    return memoryview(mmap.mmap(handle, 0)).cast("q")
