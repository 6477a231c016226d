"""Histories by the thousand, and the faults that they must find.

How many: 10,000, or as many as SIMULATED_HISTORIES says. For a million there is
`python -m simulation` (see this package).
"""

from __future__ import annotations

import os
import sys

import pytest

from simulation.__main__ import main
from simulation.faults import FAULTS, planted
from simulation.history import Toll
from simulation.run import failure_of, first_failure, told

HISTORIES = int(os.environ.get("SIMULATED_HISTORIES", "10000"))
CHUNKS = 20
MOST = 10_000
"""A planted fault is found within so many histories."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_is_kept_in_every_history(chunk: int) -> None:
    seeds = range(HISTORIES)[chunk::CHUNKS]
    assert seeds, "each chunk has a share"
    if (failure := first_failure(seeds)) is not None:
        pytest.fail(failure, pytrace=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    with planted(fault):
        found = next((seed for seed in range(MOST) if failure_of(seed) is not None), None)
        assert found is not None, f"{fault}: not found in {MOST} histories"
        statement = told(found)[0]
    print(f"{fault}: found in history {found}, after {found + 1}")
    assert "BROKEN" in statement
    assert f"--seed {found}" in statement
    assert failure_of(found) is None, "the same history is well without the fault"


EVENTS = {
    *("refused", "not sent", "billed", "settled twice", "late truth", "hung up", "line tried"),
    *("in line", "waited, and was served"),
    *("not committed", "answer lost", "commit hangs", "commit arrives", "commit arrives late"),
    *("deadline of a commit", "answered late", "answer never came", "arrives again"),
    *("clock forward", "clock back", "overdue", "limit", "pauses", "wakes", "dies", "owner dead"),
    *("settled", "released", "presumed", "corrected"),
}


def test_much_happens_in_a_few_histories() -> None:
    """Those in which nothing is late, lost or dead would prove little."""
    toll = Toll()
    for seed in range(500):
        assert failure_of(seed, toll) is None
    rare = {what for what in EVENTS if toll.counts.get(what, 0) < 10}
    assert rare == set()


def test_a_seed_is_a_history() -> None:
    first, again, other = told(11), told(11), told(12)
    assert first == again
    assert first[1]
    assert first[0] != other[0]


def test_the_command_tells_one_and_counts_many(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["simulation", *words])
        return main(), capsys.readouterr().out.splitlines()

    code, lines = run("--seed", "7")
    assert (code, lines[0], lines[-1]) == (0, "History 7", "all promises held")
    code, lines = run("--first", "40", "--histories", "12")
    assert (code, len(lines)) == (0, 1)
    assert "12 histories, all promises held" in lines[0]
    with planted("settling takes the cost off"):
        code, lines = run("--histories", "500")
        assert code == 1
        seed = lines[0].removeprefix("History ")
        assert lines[-1] == f"Replay it: PYTHONPATH=tests python -m simulation --seed {seed}"
        assert run("--seed", seed) == (1, lines)
