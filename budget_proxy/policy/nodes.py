"""YAML text as a small tree: every scalar kept as text, every node with its line and column.

PyYAML guesses nothing here: `12:30`, `NO`, `010` and `1e3` stay what was written. Everything is
bounded (bytes, depth, nodes after aliases are unfolded), so that no file costs more than a moment.
Only this file imports PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from budget_proxy.policy.mistakes import Mark, quoted

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 100_000
"""Counted as if every alias were written out: an alias bomb ends here."""
MAX_SCALAR = 64 * 1024
"""Characters of one value."""

# Quotes end it: in a quoted scalar nothing needs hiding, and an unclosed `${` must not swallow
# what comes after the quote.
_VARIABLE = re.compile(r"\$\{[^{}\n\"']*\}")
_HIDDEN = "{}[],:# "
_BASE = 0xE000
# YAML ends a plain scalar in a flow mapping at the first brace: {key: ${NAME}} would not parse.
# So what could mean something to YAML inside ${...} is replaced by private characters, one for
# one (columns stay), and put back in every scalar.
_HIDE = {ord(char): chr(_BASE + ord(char)) for char in _HIDDEN}
_SHOW = {_BASE + ord(char): char for char in _HIDDEN}
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NULLS = ("", "~", "null")

Report = Callable[[Mark, str], None]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `raw` is what stands in the file; `text` may be a secret put in for it."""

    mark: Mark
    text: str = field(repr=False)
    quoted: bool
    raw: str = field(repr=False)
    size: int = 1
    height: int = 0

    @property
    def is_null(self) -> bool:
        """Whether nothing was written, or a plain `~` or `null`."""
        return not self.quoted and self.raw in _NULLS


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    mark: Mark
    items: tuple[Node, ...]
    size: int
    height: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping."""

    mark: Mark
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, in the order of the file."""

    mark: Mark
    entries: dict[str, Entry]
    size: int
    height: int


Node: TypeAlias = Scalar | Items | Table


class TreeError(Exception):
    """The text has no tree: not YAML, or beyond the bounds."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


def decode(data: bytes) -> str:
    """The file's bytes as text. Raises TreeError where they are none, or too many."""
    if len(data) > MAX_BYTES:
        raise TreeError(Mark(1, 1), f"the file is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        raise TreeError(Mark(line, column), "the file is not UTF-8 text") from None
    for index, char in enumerate(text):
        if ord(char) in _SHOW:
            line = text.count("\n", 0, index) + 1
            mark = Mark(line, index - text.rfind("\n", 0, index))
            raise TreeError(mark, f"the character U+{ord(char):04X} has no use here")
    return text


def read_tree(text: str, report: Report) -> Node | None:
    """The tree of the one document in a text; None for an empty one.

    Mistakes that leave a tree (a duplicate key, a tag) go to `report`; TreeError for the others.
    """
    hidden = _VARIABLE.sub(lambda match: "$" + match[0][1:].translate(_HIDE), text)
    try:
        return _Builder(yaml.parse(hidden, Loader=_LOADER), report).document()
    except yaml.MarkedYAMLError as error:
        raise TreeError(_mark(error.problem_mark), _problem(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, max(0, error.position)) + 1
        raise TreeError(Mark(line, 1), "not YAML: a control character stands here") from None
    except yaml.YAMLError:
        raise TreeError(Mark(1, 1), "not YAML") from None


def _mark(mark: Any) -> Mark:
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


def _problem(error: yaml.MarkedYAMLError) -> str:
    text = (error.problem or "cannot be read").translate(_SHOW)
    hint = ""
    if "flow" in (error.context or "") and error.context_mark is not None:
        # It is noticed where the next line goes on, and mended where the bracket stands.
        line, column = _mark(error.context_mark)
        hint = f" (to end what begins at {line}:{column})"
    if "cannot start any token" in text:
        hint = " (indent with spaces, never tabs; quote text that starts with a special character)"
    return f"not YAML: {text}{hint}"


class _Builder:
    def __init__(self, events: Iterator[Any], report: Report) -> None:
        self._events = events
        self._report = report
        self._anchors: dict[str, Node | None] = {}
        self._nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self._events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if root is not None:
                raise TreeError(_mark(event.start_mark), "a second document starts here")
            root = self._node(next(self._events), 0)
        return None if isinstance(root, Scalar) and root.is_null else root

    def _node(self, event: Any, depth: int) -> Node:
        mark = _mark(event.start_mark)
        if depth > MAX_DEPTH:
            raise TreeError(mark, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self._counted(self._alias(mark, event.anchor, depth))
        if event.tag not in (None, "!"):
            self._report(mark, f"tags such as {quoted(event.tag)} have no use here")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = self._counted(self._value(event, mark, depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _counted(self, node: Node) -> Node:
        # A collection's parts are counted already, an alias's parts are counted again.
        self._nodes += 1
        if max(self._nodes, node.size) > MAX_NODES:
            raise TreeError(node.mark, f"more than {MAX_NODES} values, aliases written out")
        return node

    def _alias(self, mark: Mark, name: str | None, depth: int) -> Node:
        if name is None or name not in self._anchors:
            raise TreeError(mark, f"the alias {quoted(name or '')} has no anchor before it")
        node = self._anchors[name]
        if node is None:
            raise TreeError(mark, f"the alias {quoted(name)} contains itself")
        if depth + node.height > MAX_DEPTH:
            raise TreeError(mark, f"nested more than {MAX_DEPTH} deep, aliases written out")
        return node

    def _value(self, event: Any, mark: Mark, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            text = event.value.translate(_SHOW)
            if len(text) > MAX_SCALAR:
                raise TreeError(mark, f"a value of more than {MAX_SCALAR} characters")
            return Scalar(mark, text, event.style in ("'", '"', "|", ">"), text)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(mark, depth)
        return self._table(mark, depth)

    def _items(self, mark: Mark, depth: int) -> Items:
        items: list[Node] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, depth + 1))
        height = 1 + max((item.height for item in items), default=0)
        return Items(mark, tuple(items), 1 + sum(item.size for item in items), height)

    def _table(self, mark: Mark, depth: int) -> Table:
        entries: dict[str, Entry] = {}
        size = height = 1
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            size += 1 + value.size
            height = max(height, 1 + value.height)
            self._enter(entries, key, _mark(event.start_mark), value)
        return Table(mark, entries, size, height)

    def _enter(self, entries: dict[str, Entry], key: Node, mark: Mark, value: Node) -> None:
        if not isinstance(key, Scalar) or key.is_null:
            self._report(mark, "a key must be plain text")
        elif key.text in entries:
            first = entries[key.text].mark.line
            self._report(
                mark, f"the key {quoted(key.text)} stands here twice, first in line {first}"
            )
        else:
            entries[key.text] = Entry(mark, value)


def plain(node: Node) -> Any:
    """The tree as dicts, lists, text and None."""
    if isinstance(node, Table):
        return {key: plain(entry.value) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return None if node.is_null else node.text
