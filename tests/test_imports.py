"""The architecture, read from the imports: which room knows what."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "budget_proxy"

ROOMS = {
    "aiohttp": ("listener", "upstream", "admin", "app", "control_client", "sandbox."),
    "yarl": ("upstream", "control_client"),
    "prometheus_client": ("metrics.",),
    "yaml": ("policy.nodes",),
    "pydantic": ("policy.",),
    "pydantic_core": ("policy.",),
    "genai_prices": ("catalogue", "sandbox.prices"),
    "uvloop": ("run",),
    "msgspec": ("",),
    "psycopg": ("ledgers.postgres", "ledgers.link", "ledgers.tables"),
    "sqlite3": (
        *("ledgers.sqlite", "ledgers.sqlite_file", "ledgers.sqlite_page"),
        *("ledgers.upgrade", "ledgers.wal"),
    ),
}
"""Each library's room: modules, or (with a dot at the end) packages. msgspec reads and writes
JSON wherever there is any. sqlite3 is of the standard library and has its room all the same."""

PURE = frozenset(
    {
        *("__future__", "array", "base64", "collections", "collections.abc", "dataclasses"),
        *("datetime", "decimal", "enum", "fnmatch", "fractions", "functools", "heapq"),
        *("itertools", "json", "math", "re", "typing"),
        *("urllib.parse", "zlib", "zoneinfo"),
    }
)
"""What the core may import of the standard library: nothing with a clock, a network, a file,
randomness or a thread."""

HTTP_NAMES = re.compile(
    r"\b(?:(?:web\.|aiohttp\.)(?:Base)?Request|(?:Stream|Client)Response|web\.Response"
    r"|ClientSession|ClientRequest)\b"
)
HTTP_ROOMS = ("listener", "upstream", "admin", "control_client", "sandbox.")
"""app starts and stops aiohttp's servers, and knows no request either."""

WIRING = {
    "listener": ("app", "run"),
    "admin": ("app",),
    "metrics.counting": ("app",),
    "call_log": ("app", "run", "worker"),
    "app": ("run", "supervisor", "worker"),
    "run": ("__main__", "worker"),
    "supervisor": ("run",),
    "worker": (),
    "catalogue": ("__main__",),
    "ledgers.sqlite": ("ledgers.opener",),
    "ledgers.sqlite_file": ("ledgers.sqlite",),
    "ledgers.sqlite_page": ("ledgers.sqlite",),
    "ledgers.postgres": ("ledgers.opener",),
    "ledgers.opener": ("app", "upkeep"),
    "sandbox": ("__main__", "run"),
}
"""Who may import the outer rooms: only those who put things together. So observers take no part,
the story does not know what carries it, and nothing depends on a particular store."""


class Import(NamedTuple):
    """`name`, imported by `module`; `lazy`: in a function, or for type checkers only."""

    module: str
    name: str
    lazy: bool


def modules() -> dict[str, Path]:
    """Every module by its name inside the package; packages by that of their folder."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: imports are written in full"
                yield from (Import(module, name, lazy) for name in _targets(child))
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                    isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                )
                yield from walk(child, lazy or later)

    yield from walk(ast.parse(MODULES[module].read_text()), lazy=False)


def _targets(node: ast.ImportFrom) -> set[str]:
    """`from a import b` imports a.b where that is a module of ours, else a."""
    source = node.module or ""
    inside = source.removeprefix("budget_proxy").removeprefix(".")
    if source.partition(".")[0] != "budget_proxy":
        return {source}
    names = {f"{inside}.{alias.name}".removeprefix(".") for alias in node.names}
    return {f"budget_proxy.{name}" if name in MODULES else source for name in names}


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def ours(name: str) -> str | None:
    """The module's name inside the package; None for a foreign one."""
    top, _, inside = name.partition(".")
    return inside if top == "budget_proxy" else None


def lives_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(
        f"{module}.".startswith(room) if room.endswith(".") or not room else module == room
        for room in rooms
    )


def test_the_core_knows_neither_clock_nor_network_nor_anything_above_it() -> None:
    for module, name, _ in IMPORTS:
        if lives_in(module, ("core.",)):
            inside = ours(name)
            pure = name in PURE or name.partition(".")[0] == "msgspec"
            assert pure or (inside is not None and lives_in(inside, ("core.",))), (module, name)


def test_the_core_does_not_ask_what_time_it_is() -> None:
    for module, file in MODULES.items():
        if lives_in(module, ("core.",)):
            asked = [
                node.attr
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Attribute) and node.attr in ("now", "today", "utcnow")
            ]
            assert asked == [], module


def test_the_core_awaits_nothing() -> None:
    waits = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    for module, file in MODULES.items():
        if lives_in(module, ("core.",)):
            nodes = ast.walk(ast.parse(file.read_text()))
            assert not any(isinstance(node, waits) for node in nodes), module


@pytest.mark.parametrize("library", ROOMS)
def test_each_library_has_its_room(library: str) -> None:
    users = {
        module for module, name, _ in IMPORTS if name == library or name.startswith(f"{library}.")
    }
    assert users, "nobody uses it: take it out"
    strangers = {module for module in users if not lives_in(module, ROOMS[library])}
    assert strangers == set()
    for room in ROOMS[library]:
        assert any(lives_in(module, (room,)) for module in users), f"{room} no longer needs it"


def test_every_library_is_known_and_declared() -> None:
    foreign = {
        name.partition(".")[0]
        for _, name, _ in IMPORTS
        if ours(name) is None and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign == ROOMS.keys() - {"sqlite3"}, "a new library needs a room"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["speed"], *extras["postgres"]]
    declared = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in lines}
    brought = {"yarl", "pydantic_core"}  # by aiohttp and pydantic, as their types
    known_as = {"pyyaml": "yaml"}
    unused = {known_as.get(name, name) for name in declared} - foreign - {"tzdata"}
    assert unused == set(), "declared, and imported nowhere"
    assert foreign - brought <= {known_as.get(name, name) for name in declared}


def test_no_other_file_speaks_of_the_http_librarys_requests() -> None:
    for module, file in MODULES.items():
        if not lives_in(module, HTTP_ROOMS):
            assert HTTP_NAMES.findall(file.read_text()) == [], module


@pytest.mark.parametrize("room", WIRING)
def test_outer_rooms_are_known_only_to_those_who_wire(room: str) -> None:
    importers = {
        module
        for module, name, _ in IMPORTS
        if ours(name) == room and not lives_in(module, (f"{room}.",))
    }
    assert importers == set(WIRING[room])


def test_the_sandbox_imports_nothing_of_the_proxy() -> None:
    for module, name, _ in IMPORTS:
        inside = ours(name)
        if lives_in(module, ("sandbox.",)) and inside is not None:
            assert lives_in(inside, ("sandbox.",)), (module, name)


def test_nothing_in_the_policy_or_the_dialects_reaches_up() -> None:
    allowed = {
        "policy": ("policy.", "core."),
        "dialects": ("dialects.", "core."),
        "ledgers": ("ledgers.", "core."),
    }
    for package, rooms in allowed.items():
        for module, name, _ in IMPORTS:
            inside = ours(name)
            if lives_in(module, (f"{package}.",)) and inside is not None:
                assert lives_in(inside, rooms), (module, name)


def test_imports_make_no_circle() -> None:
    above = {
        module: {inside for name in _eager(module) if (inside := ours(name)) in MODULES}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(above[module] - {module}):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def _eager(module: str) -> set[str]:
    return {found.name for found in IMPORTS if found.module == module and not found.lazy}
