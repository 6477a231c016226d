"""What dead supervisors left behind goes, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DEADLINE_S

from budget_proxy import run, scratch
from budget_proxy.core.house import House
from budget_proxy.scratch import LOCK, Scratch, sweep


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(place: Path, name: str = "budget-proxy-abcd_123") -> Path:
    """As a supervisor that was killed leaves it."""
    folder = place / name
    folder.mkdir(0o700)
    (folder / LOCK).touch(0o600)
    for number in (1, 2):
        (folder / f"policy-{number}.yaml").write_text("a policy")
    return folder


def test_a_folder_is_ours_alone_and_goes_with_us(place: Path) -> None:
    ours = Scratch()
    ours.policy(1).write_text("a policy")
    (folder,) = place.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.name for file in folder.iterdir()} == {LOCK, "policy-1.yaml"}
    ours.cleanup()
    assert list(place.iterdir()) == []


def test_what_somebody_uses_stays_as_it_is(place: Path) -> None:
    ours = Scratch()
    ours.policy(1).write_text("a policy")
    assert sweep() == 0
    assert ours.policy(1).read_text() == "a policy"
    ours.cleanup()


def test_what_was_left_behind_goes(place: Path) -> None:
    left_behind(place)
    left_behind(place, "budget-proxy-xxxxxxxx")
    assert sweep() == 2
    assert list(place.iterdir()) == []
    assert sweep() == 0


KILLED = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from budget_proxy.scratch import Scratch
ours = Scratch()
ours.policy(1).write_text("a policy")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_goes_and_its_lock_was_the_proof(place: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, place], check=False, timeout=DEADLINE_S)
    (folder,) = place.iterdir()
    assert {file.name for file in folder.iterdir()} == {LOCK, "policy-1.yaml"}
    assert sweep() == 1
    assert list(place.iterdir()) == []


def _other_name(folder: Path) -> None:
    folder.rename(folder.with_name("budget-proxy-demo-abcd_123"))


def _no_lock(folder: Path) -> None:
    (folder / LOCK).unlink()


def _lock_is_a_link(folder: Path) -> None:
    (folder / LOCK).unlink()
    (folder.parent / "elsewhere").touch()
    (folder / LOCK).symlink_to(folder.parent / "elsewhere")


def _lock_is_a_pipe(folder: Path) -> None:
    (folder / LOCK).unlink()
    os.mkfifo(folder / LOCK)


def _link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


STAY: dict[str, Callable[[Path], object]] = {
    "another name": _other_name,
    "no lock": _no_lock,
    "a lock that is a link": _lock_is_a_link,
    "a lock that is a pipe": _lock_is_a_pipe,
    "a folder that is a link": _link,
    "others may read it": lambda folder: folder.chmod(0o755),
    "something else is in it": lambda folder: (folder / "notes.txt").touch(),
    "a folder is in it": lambda folder: (folder / "more").mkdir(),
}


@pytest.mark.parametrize("case", STAY)
def test_what_is_not_surely_ours_and_dead_stays(case: str, place: Path) -> None:
    STAY[case](left_behind(place))
    before = sorted(str(path) for path in place.rglob("*"))
    assert sweep() == 0
    assert sorted(str(path) for path in place.rglob("*")) == before


def test_what_belongs_to_somebody_else_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = left_behind(place)
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    assert sweep() == 0
    assert (folder / "policy-1.yaml").exists()


def test_the_work_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "MOST_SWEPT", 3)
    for number in range(5):
        left_behind(place, f"budget-proxy-abcd_12{number}")
    assert [sweep(), sweep(), sweep()] == [3, 2, 0]


def test_folders_that_stay_do_not_hide_those_that_can_go(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MOST_SWEPT", 1)
    for number in range(9):
        _no_lock(left_behind(place, f"budget-proxy-abcd_12{number}"))
    left_behind(place, "budget-proxy-zzzzzzzz")
    left_behind(place, "budget-proxy-aaaaaaaa")
    assert [sweep(), sweep(), sweep()] == [1, 1, 0]


def test_a_place_that_is_not_there_is_no_trouble(place: Path) -> None:
    assert sweep(place / "missing") == 0


def test_without_a_place_for_it_a_start_says_what_is_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere(**_: object) -> None:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)
    assert run.serve(place / "policy.yaml", _never_loaded, workers=2) == run.WRONG
    said = capsys.readouterr().err
    assert said.startswith("cannot start: ")
    assert "no usable temporary directory found. Remedy: name a folder" in said


def _never_loaded(path: Path) -> House:
    raise AssertionError(path)
