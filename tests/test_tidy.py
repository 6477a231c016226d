"""The habits of the house, held by a test: what is only written down drifts.

Exceptions are listed with their reason. A list may only get shorter: an exception that is no
longer needed fails too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import budget_proxy

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "budget_proxy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_LINES = 60
LONG_FUNCTIONS: dict[str, int] = {}
"""Functions that are longer all the same: file:name and how long; never longer than that."""

FLOATS = {
    "arrival.py": "seconds a caller will wait",
    "metrics/asked.py": "Prometheus has nothing else; figures leave here and never come back",
    "metrics/text.py": "how much an Accept header likes something",
    "opening.py": "the instant a window began",
    "policy/values.py": "durations",
    "sandbox/balances.py": "some providers write their figures as JSON numbers",
    "sandbox/settings.py": "durations, and whole numbers that are checked to be whole",
}
DIVISIONS = {
    "standing.py": "figures for Prometheus",
    "__main__.py": "paths of files",
    "call_log.py": "seconds of microseconds",
    "core/headroom.py": "how fast others spend: a forecast, whole steps before it meets an amount",
    "core/history.py": "seconds as minutes",
    "core/runway.py": "forecasts: rates and durations, of which no amount is made",
    "ledgers/patience.py": "seconds",
    "metrics/accounts.py": "Prometheus wants whole units",
    "metrics/asked.py": "of ceilings in thousandths",
    "metrics/counting.py": "Prometheus wants whole units",
    "policy/providers.py": "paths of files",
    "policy/tariffs.py": "paths of files",
    "report.py": "of Decimals, for a bar twenty characters wide",
    "sandbox/geo.py": "degrees of the places it makes up",
    "sandbox/openai.py": "the numbers of the vectors it makes up",
}
MONEY = (
    *("accounts_view.py", "catalogue.py", "opening.py", "records.py"),
    *(f"core/{name}.py" for name in ("binding", "book", "estimate", "jsonpath", "learned")),
    "core/meter.py",
    "core/money.py",
    *(f"core/{name}.py" for name in ("figure", "rate", "route", "settlement", "sheet", "source")),
    *("core/spans.py", "sandbox/bank.py"),
    *(f"sandbox/{name}.py" for name in ("prices", "purse", "topups")),
)
"""Where amounts are made: not even the constant 0.5 may stand there."""

FOLDERS = (".ci", "budget_proxy", "docs", "policies", "tests")
FILES = ("README.md", "CHANGELOG.md", "Dockerfile", ".dockerignore", ".gitignore", "pyproject.toml")
# Written so that this file does not find itself.
UNFINISHED = re.compile(r"\b(?:[T]ODO|[F]IXME)\b")
MACHINE = re.compile(r"(?<![\w.}])/(?:(?:work|root|Users)/|home/\w|tmp/v\b)")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())


def tree() -> Iterator[tuple[str, str]]:
    """Every text file that people write here."""
    files = [ROOT / name for name in FILES]
    for folder in FOLDERS:
        files += [
            file
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc"
        ]
    for file in files:
        yield file.relative_to(ROOT).as_posix(), file.read_text(errors="replace")


def test_functions_are_short() -> None:
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, module in sources()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert long.keys() == LONG_FUNCTIONS.keys(), "split it; or, if one became short, delist it"
    assert all(long[name] <= most for name, most in LONG_FUNCTIONS.items()), "never longer"


def test_every_module_says_what_it_is() -> None:
    for name, module in sources():
        header = ast.get_docstring(module) or ""
        first = header.partition("\n\n")[0]
        assert len(first) > 20, f"{name} has no header that says what it is"
        assert first.rstrip()[-1] in ".:", f"{name}: the header's first paragraph is a sentence"


def test_no_amount_becomes_a_float() -> None:
    calls, divisions = Counter[str](), Counter[str]()
    for name, module in sources():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "float":
                calls[name] += 1
            if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
                divisions[name] += 1
    assert calls.keys() == FLOATS.keys(), "float() on an amount loses cents"
    assert divisions.keys() == DIVISIONS.keys(), "/ makes a float of two integers: use ceil_div"


def test_where_amounts_are_made_there_is_no_float_at_all() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, module in sources()
        if name in MONEY
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, float)
    ]
    assert found == []
    missing = [name for name in MONEY if not (PACKAGE / name).is_file()]
    assert missing == [], "a file that moved takes its place in the list along"


def test_the_tree_names_no_machine_and_nothing_unfinished() -> None:
    for name, text in tree():
        for number, line in enumerate(text.splitlines(), 1):
            assert not UNFINISHED.search(line), f"{name}:{number}: {line.strip()}"
            assert not MACHINE.search(line), f"{name}:{number}: {line.strip()}"


def test_the_version_is_one() -> None:
    version = budget_proxy.__version__
    assert PROJECT["project"]["version"] == version
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_in_ci_a_skipped_test_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_skips(): pytest.skip('no such tool')\n"
        "@pytest.mark.skip(reason='not today')\n"
        "def test_is_marked(): pass\n"
        "@pytest.mark.xfail(strict=True, reason='known')\n"
        "def test_known(): assert False\n"
        "def test_passes(): pass\n"
    )
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n"
    )
    counts = {}
    for ci in ("", "true"):
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
                *("--continue-on-collection-errors", str(tmp_path)),
            ],
            cwd=tmp_path,
            env={**os.environ, "CI": ci},
            capture_output=True,
            text=True,
            check=False,
        )
        summary = run.stdout.strip().splitlines()[-1]
        counts[ci] = dict(reversed(pair.split(" ")) for pair in re.findall(r"\d+ [a-z]+", summary))
    assert counts[""] == {"passed": "1", "skipped": "3", "xfailed": "1"}
    assert counts["true"] == {"failed": "1", "errors": "2", "passed": "1", "xfailed": "1"}
