"""Histories, run: quietly, and told where one fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from simulation.history import History, Toll

CHUNK = 1_000


def failure_of(seed: int, toll: Toll | None = None) -> str | None:
    """None where all promises hold; else the history as a statement, and how to replay it."""
    try:
        History(seed, toll=toll).run()
    except Exception:
        return told(seed)[0]
    return None


def told(seed: int) -> tuple[str, bool]:
    """A history as a statement; and whether all promises hold in it."""
    history = History(seed, tell=True)
    assert history.statement is not None, "it was asked for"
    lines = history.statement.lines
    try:
        history.run()
        end, is_well = "all promises held", True
    except Exception as error:
        end, is_well = f"BROKEN: {type(error).__name__}: {error}", False
        end += f"\nReplay it: PYTHONPATH=tests python -m simulation --seed {seed}"
    return "\n".join([f"History {seed}", *lines, end]), is_well


def first_failure(seeds: range) -> str | None:
    """The first of these histories that fails, told."""
    return next(filter(None, map(failure_of, seeds)), None)


def chunks(seeds: range, jobs: int) -> Iterator[tuple[int, str | None]]:
    """Run them, in so many processes: how many are done, and the first failure among the last."""
    parts = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if jobs == 1:
        yield from _counted(parts, map(first_failure, parts))
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from _counted(parts, pool.map(first_failure, parts))
        pool.shutdown(cancel_futures=True)


def _counted(
    parts: Sequence[range], failures: Iterable[str | None]
) -> Iterator[tuple[int, str | None]]:
    done = 0
    for part, failure in zip(parts, failures, strict=True):
        done += len(part)
        yield done, failure
        if failure is not None:
            return
