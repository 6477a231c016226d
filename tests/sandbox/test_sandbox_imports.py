"""The sandbox judges the proxy, so it may share nothing with it."""

from __future__ import annotations

import ast
from pathlib import Path

import budget_proxy.sandbox

FOLDER = Path(budget_proxy.sandbox.__file__).parent
PURE = (
    *("bank", "purse", "words", "settings", "call", "prices", "openai", "anthropic", "geo"),
    *("balances", "emptiness", "topups"),
)


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: imports are written in full"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def test_the_sandbox_imports_nothing_else_of_the_proxy() -> None:
    for file in FOLDER.glob("*.py"):
        ours = {name for name in imported(file) if name.startswith("budget_proxy")}
        assert all(name.startswith("budget_proxy.sandbox") for name in ours), file.name


def test_the_pure_files_know_neither_network_nor_clock() -> None:
    for name in PURE:
        known = imported(FOLDER / f"{name}.py")
        assert not known & {"aiohttp", "asyncio", "time", "random"}, name


def test_each_library_has_one_room() -> None:
    prices = {file.name for file in FOLDER.glob("*.py") if "genai_prices" in imported(file)}
    assert prices == {"prices.py"}
