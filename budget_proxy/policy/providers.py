"""What is known of providers: the YAML files of `budget_proxy/providers`, one each.

Their errors become `core.verdict.Rules` here; their balances are presets for `balances`. The files
are a part of the program: a mistake in one is a mistake of ours, and a test finds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from urllib.parse import urlsplit

from pydantic import ValidationError

from budget_proxy.core.jsonpath import Path, PathError, path_of
from budget_proxy.core.verdict import HeaderTest, Rule, Rules
from budget_proxy.policy.balance_model import ErrorEntry, PresetEntry, ProviderEntry
from budget_proxy.policy.mistakes import Mistake, listed, quoted, suggest
from budget_proxy.policy.nodes import TreeError, decode, plain, read_tree
from budget_proxy.policy.sheet import Sheet, Spot
from budget_proxy.policy.tariffs import say_all
from budget_proxy.policy.values import texts

GENERIC = "generic"
HARMLESS = ("transient", "other")
"""What stops nothing, so that a status alone may say it."""
_STATUS = re.compile(r"[1-5](?:xx|[0-9]{2})\Z")
_ENDLESS = re.compile(r"(?<!\\)[*+]|\{[0-9]{0,9},\}|\)\{")
"""Repeats without a bound, and repeats of a group: bodies are written by others."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One of them. `preset` is its balance as written, None where none can be asked for."""

    name: str
    hosts: tuple[str, ...] = ()
    rules: Rules = field(default_factory=Rules)
    preset: PresetEntry | None = None

    def serves(self, url: str) -> bool:
        """Whether the host of a URL is one of its API."""
        host = (urlsplit(url).hostname or "").lower()
        return any(fnmatchcase(host, glob) for glob in self.hosts)


@cache
def packaged() -> Providers:
    """Those that come with the package, read once."""
    return Providers(files("budget_proxy") / "providers")


class Providers:
    """All the files of a folder; what is wrong with them is in `mistakes`."""

    def __init__(self, folder: Traversable) -> None:
        self.mistakes: list[Mistake] = []
        names = sorted(
            item.name.removesuffix(".yaml")
            for item in folder.iterdir()
            if item.name.endswith(".yaml")
        )
        self._entries = {
            name: found for name in names if (found := self._entry(folder, name)) is not None
        }
        self._rules: dict[str, tuple[Rule, ...]] = {}
        self._known = {name: self._provider(name) for name in self._entries}

    def names(self) -> list[str]:
        """Every provider there is."""
        return sorted(self._known)

    def presets(self) -> dict[str, PresetEntry]:
        """The balances that can be asked for, by name."""
        return {
            name: provider.preset
            for name, provider in self._known.items()
            if provider.preset is not None
        }

    def named(self, name: str) -> Provider:
        """The provider of that name. Raises KeyError."""
        return self._known[name]

    def of(self, spot: Spot, name: str | None, url: str) -> Provider:
        """The provider that a policy names, else the one whose host a URL has, else generic."""
        generic = self._known[GENERIC]
        if name is None:
            served = (known for known in self._known.values() if known.serves(url))
            return next(served, generic)
        if name not in self._known:
            hint = suggest(name, self._known) or f"; there are {listed(self._known)}"
            spot.wrong(f"there is no provider {quoted(name)}{hint}")
        return self._known.get(name, generic)

    def _entry(self, folder: Traversable, name: str) -> tuple[Sheet, ProviderEntry] | None:
        file = f"providers/{name}.yaml"
        try:
            text = decode((folder / f"{name}.yaml").read_bytes())
            tree = read_tree(
                text, lambda mark, said: self.mistakes.append(Mistake(file, *mark, said))
            )
        except TreeError as error:
            self.mistakes.append(Mistake(file, *error.mark, error.message))
            return None
        if tree is None:
            self.mistakes.append(Mistake(file, 1, 1, "the file is empty"))
            return None
        sheet = Sheet(file, tree)
        try:
            return sheet, ProviderEntry.model_validate(plain(tree))
        except ValidationError as error:
            say_all(sheet, error)
            self.mistakes += sheet.mistakes
            return None

    def _provider(self, name: str) -> Provider:
        entry, rules = self._entries[name][1], self._rules_of(name)
        if entry.generic and name != GENERIC:
            rules += self._rules_of(GENERIC)
        return Provider(name, tuple(entry.hosts or ()), Rules(name, rules), entry.balance)

    def _rules_of(self, name: str) -> tuple[Rule, ...]:
        if name not in self._entries:
            return ()
        if name not in self._rules:
            sheet, entry = self._entries[name]
            self._rules[name] = ()  # what two files say of each other is nothing
            spot = sheet.root().at("errors")
            self._rules[name] = self._built(spot, entry, of_anybody=name == GENERIC)
            self.mistakes += sheet.mistakes
        return self._rules[name]

    def _built(self, spot: Spot, entry: ProviderEntry, *, of_anybody: bool) -> tuple[Rule, ...]:
        errors = entry.errors or []
        if isinstance(errors, str):
            if errors not in self._entries:
                spot.wrong(f"there is no provider {quoted(errors)}")
            return self._rules_of(errors)
        rules = (build_rule(spot.at(index), error) for index, error in enumerate(errors))
        return tuple(replace(rule, of_anybody=of_anybody) for rule in rules)


def build_rule(spot: Spot, entry: ErrorEntry) -> Rule:
    """One rule; what is wrong with it is said at the spot."""
    statuses = _statuses(spot.at("status"), texts(entry.status))
    headers = tuple(
        _header(name.lower(), text.lower()) for name, text in (entry.header or {}).items()
    )
    words = [entry.equals] if entry.equals is not None else entry.one_of or []
    if sum(form is not None for form in (entry.matches, entry.equals, entry.one_of)) > 1:
        spot.wrong("must have one of matches, equals, one_of")
    if entry.matches is None and not words and entry.means not in HARMLESS and statuses != {402}:
        spot.wrong("a status alone says nothing about money; it needs matches, equals or one_of")
    return Rule(
        means=entry.means,
        statuses=statuses,
        headers=headers,
        at=tuple(json_path(spot.at("at"), text) for text in texts(entry.at or [])),
        pattern=None if entry.matches is None else _pattern(spot.at("matches"), entry.matches),
        one_of=frozenset(words),
        until=None if entry.until is None else json_path(spot.at("until"), entry.until),
    )


def json_path(spot: Spot, text: str) -> Path:
    """A path into JSON; said at the spot where it is none."""
    try:
        return path_of(text)
    except PathError as error:
        spot.wrong(f"{quoted(text)} {error}")
        return Path(text, ())


def _header(name: str, text: str) -> HeaderTest:
    if text in ("present", "absent"):
        return HeaderTest(name, text == "present")
    return HeaderTest(name, value=text)


def _statuses(spot: Spot, written: tuple[str, ...]) -> frozenset[int]:
    found = set[int]()
    for text in written:
        if not _STATUS.match(text):
            spot.wrong(f"{quoted(text)} is not a status, as in 402 or 4xx")
        elif text.endswith("xx"):
            found.update(range(int(text[0]) * 100, int(text[0]) * 100 + 100))
        else:
            found.add(int(text))
    return frozenset(found)


def _pattern(spot: Spot, text: str) -> re.Pattern[str]:
    if _ENDLESS.search(text):
        spot.wrong(f"{quoted(text)} repeats without a bound; write one, as in .{{0,80}}")
        return re.compile("")
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        spot.wrong(f"{quoted(text)} is not a pattern: {error}")
        return re.compile("")
