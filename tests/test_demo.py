"""`budget-proxy demo` as a user runs it: the lines that it prints, pasted into a shell."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEADLINE_S, Process, environment, run, settle, started

pytestmark = pytest.mark.xdist_group("demo")
FREE_PORTS = {"BUDGET_PROXY_LISTEN": "127.0.0.1:0", "BUDGET_PROXY_ADMIN": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("demo")
    with started("demo", cwd=folder, **FREE_PORTS) as process:
        settle(lambda: process.ready or not process.running, "it does not start")
        assert process.ready, process.err
        yield process


def recipes(demo: Process) -> dict[str, str]:
    """What is printed: each comment, and the command lines below it."""
    parts = re.split(r"^# (.+)\n", demo.out, flags=re.MULTILINE)[1:]
    return {
        title.partition(":")[0]: text.partition("\n\n")[0]
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def paste(commands: str) -> str:
    """Into a shell; what it prints."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", commands],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_one_passes(demo: Process) -> None:
    answer = json.loads(paste(recipes(demo)["passes"]))
    assert answer["choices"][0]["message"]["content"].startswith("the quick brown fox")
    assert answer["usage"]["completion_tokens"] == 16


def test_one_streams(demo: Process) -> None:
    events = paste(recipes(demo)["streams"]).split("\n\n")
    assert len(events) > 16
    assert events[-2:] == ["data: [DONE]", ""]
    assert not any('"usage":{' in event for event in events), "the usage we asked for is ours"


def test_one_is_refused(demo: Process) -> None:
    answer = paste(recipes(demo)["is refused"])
    assert answer.startswith("HTTP/1.1 402 ")
    assert "above budget 'single'" in answer
    assert '"code":"too_large"' in answer


def test_four_geocodes_pass_and_the_fifth_is_refused(demo: Process) -> None:
    line = recipes(demo)["four of these pass, the fifth is refused"]
    answers = [paste(line) for _ in range(5)]
    assert [answer.split(" ", 2)[1] for answer in answers] == ["200"] * 4 + ["402"]
    assert "Budget 'pocket'" in answers[-1]


def test_what_is_left_and_the_metrics(demo: Process) -> None:
    status, charges, metrics = recipes(demo)[
        "what is left, what the sandbox charged, and the metrics"
    ].splitlines()
    paste(recipes(demo)["passes"])
    listed = paste(f"PATH=/usr/bin:/bin; {status}")  # a terminal that knows nothing of ours
    assert re.search(r"^company +\(all\) +\S+ +0 +5 +USD ", listed, re.MULTILINE)
    charged = json.loads(paste(charges))["charges"]
    assert "/v1/chat/completions" in {charge["path"] for charge in charged}
    text = paste(metrics)
    assert 'budget_proxy_requests_total{outcome="served"' in text
    assert "budget_proxy_account_spent{" in text
    assert text.count("\n") < 40, "it can be read at a glance"


def test_ctrl_c_stops_it_and_leaves_nothing(demo: Process) -> None:
    before = demo.out
    demo.send(signal.SIGINT)
    assert asyncio.run(demo.ended()) == 0
    assert demo.out == before
    assert not list(demo.cwd.glob("*.db*")), "its ledger lay in a folder of its own"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with started("demo", cwd=tmp_path, **FREE_PORTS) as first:
        settle(lambda: first.ready, "it does not start")
        address = first.url.removeprefix("http://")
        second = run("demo", cwd=tmp_path, **FREE_PORTS | {"BUDGET_PROXY_LISTEN": address})
        assert second.returncode == 1
        first_line, hint = second.stderr.splitlines()
        assert first_line == f"cannot start: listen: {address}: Address already in use"
        assert "BUDGET_PROXY_LISTEN=" in hint
        assert second.stdout == ""


def test_what_the_environment_has_does_not_disturb_it(tmp_path: Path) -> None:
    """Keys and URLs of other days."""
    others = {"DEMO_KEY": "not-the-printed-one", "SANDBOX_URL": "https://elsewhere.example.com"}
    (tmp_path / "quickstart.yaml").write_text("mine: and something else\n")
    with started("demo", cwd=tmp_path, **FREE_PORTS, **others) as process:
        settle(lambda: process.ready or not process.running, "it does not start")
        assert "quick brown fox" in paste(recipes(process)["passes"])
        process.send(signal.SIGTERM)
        assert asyncio.run(process.ended()) == 0
