"""`${NAME}`, `${NAME:-default}` and `${file:/run/secrets/name}` in scalar values.

`$${` stands for a plain `${`. What is put in is not looked at again. Keys of mappings are left
alone. The environment and the file reader are arguments; a value never reaches a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from budget_proxy.policy.mistakes import Mark, quoted, suggest
from budget_proxy.policy.nodes import Entry, Items, Node, Scalar, Table

ReadFile = Callable[[str], str]
MAX_SECRET = 64 * 1024
"""Characters a `${file:...}` may have."""

_PATTERN = re.compile(r"\$\$\{|\$\{(?P<inner>[^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(slots=True)
class Filled:
    """A tree with its variables put in, and what must not be shown."""

    tree: Node
    secrets: dict[str, str] = field(repr=False)
    """What was put in, and the `${...}` to show in its place."""
    broken: frozenset[Mark]
    """Scalars whose variable has no value: one mistake each is enough."""


class _NoValueError(Exception):
    """A variable that cannot be filled in; the message says why."""


def fill(
    tree: Node,
    *,
    environment: Mapping[str, str],
    read_file: ReadFile,
    report: Callable[[Mark, str], None],
) -> Filled:
    """Put values in for every variable; those without one are reported by name."""
    filler = _Filler(environment, read_file, report)
    return Filled(filler.node(tree), filler.secrets, frozenset(filler.broken))


class _Filler:
    def __init__(
        self,
        environment: Mapping[str, str],
        read_file: ReadFile,
        report: Callable[[Mark, str], None],
    ) -> None:
        self._environment = environment
        self._read_file = read_file
        self._report = report
        self._done: dict[int, Node] = {}
        self.secrets: dict[str, str] = {}
        self.broken: set[Mark] = set()

    def node(self, node: Node) -> Node:
        # Remembered by identity: what several aliases share is filled in, and reported, once.
        if id(node) not in self._done:
            self._done[id(node)] = self._fill(node)
        return self._done[id(node)]

    def _fill(self, node: Node) -> Node:
        if isinstance(node, Items):
            return replace(node, items=tuple(map(self.node, node.items)))
        if isinstance(node, Table):
            entries = {
                key: Entry(entry.mark, self.node(entry.value))
                for key, entry in node.entries.items()
            }
            return replace(node, entries=entries)
        if "${" not in node.text:
            return node
        return self._scalar(node)

    def _scalar(self, node: Scalar) -> Scalar:
        def value(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            try:
                return self._value(match["inner"])
            except _NoValueError as error:
                self._report(node.mark, str(error))
                self.broken.add(node.mark)
                return ""

        return replace(node, text=_PATTERN.sub(value, node.text))

    def _value(self, inner: str | None) -> str:
        if inner is None:
            raise _NoValueError("a ${ is not closed; write $${ for the two characters themselves")
        if inner.startswith("file:"):
            found = self._file(inner.removeprefix("file:"))
        else:
            name, has_default, default = inner.partition(":-")
            if not _NAME.match(name):
                raise _NoValueError(f"{quoted(name)} is not the name of a variable")
            if has_default and not self._environment.get(name):
                return default
            found = self._variable(name)
        self.secrets[found] = f"${{{inner}}}"
        return found

    def _variable(self, name: str) -> str:
        try:
            return self._environment[name]
        except KeyError:
            # Most of them end in _KEY or _URL: that alone makes no two near.
            hint = suggest(name, self._environment, nearness=0.75)
            raise _NoValueError(f"the variable {name} is not set{hint}") from None

    def _file(self, path: str) -> str:
        try:
            text = self._read_file(path)
        except UnicodeError:
            raise _NoValueError(f"{quoted(path)} is not UTF-8 text") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise _NoValueError(f"{quoted(path)} cannot be read: {reason}") from None
        except ValueError:
            raise _NoValueError(f"{quoted(path)} is not the path of a file") from None
        if len(text) > MAX_SECRET:
            raise _NoValueError(f"{quoted(path)} has more than {MAX_SECRET} characters")
        # Editors and `echo` end files with a newline that is no part of a secret.
        return text.rstrip("\r\n")


def read_text(path: str) -> str:
    """The default reader of `${file:...}`; reads little more than MAX_SECRET."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - Path has no bounded read
        return file.read(MAX_SECRET + 1)
