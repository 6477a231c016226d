"""What holds for every test: under CI=true nothing may skip, and some run by option only.

A skip is for a machine that lacks a tool (promtool, a client library); CI installs them all, so
there a skip is a test that nobody runs any more, and it fails. Expected failures stay what they
are: they run, and are strict.

Tests marked `by_option` are left out, and counted as deselected, but with FAULTS=N
(fault_rounds.py).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

NOTHING_SKIPS = os.environ.get("CI", "").lower() in ("true", "1")

FAULTS = int(os.environ.get("FAULTS", "0"))


def pytest_configure(config: pytest.Config) -> None:
    """Make known the marks of this file."""
    config.addinivalue_line("markers", "faults: takes more rounds with FAULTS=N")
    config.addinivalue_line("markers", "by_option: runs only with FAULTS=N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what nobody asked for."""
    left_out = [item for item in items if not FAULTS and item.get_closest_marker("by_option")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _failed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NOTHING_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}, and in CI nothing may skip"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself, or is marked so."""
    report = yield
    _failed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole file that skips itself."""
    report = yield
    _failed(report)
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server for all tests (of this worker) that do it no harm."""
    from postgres_server import running_server

    with running_server() as server:
        yield server
