"""What an upstream's refusal means for the money: out of it, capped, too big, or only busy. Pure.

| means         | what is to be done                                                              |
| ---           | ---                                                                             |
| account_empty | nothing passes with this credential until somebody pays                         |
| key_cap       | nothing passes with this credential until a limit is raised or its window ends  |
| too_big       | this request costs more than is left; smaller ones may pass                     |
| transient     | nothing about money: a rate, or money held by calls in flight; it may be retried |
| other         | nothing about our money: that of a caller's customer, whose card was declined    |

A provider's rules are data (`budget_proxy/providers`), first match wins. A status alone decides
nothing: the same one means a full queue here and an empty account there. There are two exceptions,
402 without Retry-After, whose only meaning is money, and rules for what is transient. Answers that
no rule knows have no verdict, and nothing is to be done about them.

Everything that is read here was written by others: bodies are cut at MAX_BODY, patterns have no
repeat without a bound, and what is said of an answer is printable, short, and without anything that
looks like a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Literal

from budget_proxy.core.jsonpath import Path, find, path_of, read_json, said

Means = Literal["account_empty", "key_cap", "too_big", "transient", "other"]
Scope = Literal["credential", "request", "none"]
SCOPES: Mapping[Means, Scope] = {
    "account_empty": "credential",
    "key_cap": "credential",
    "too_big": "request",
    "transient": "none",
    "other": "none",
}
"""What has to stop: everything with this credential, requests of this size and above, nothing."""

MAX_BODY = 64 * 1024
MAX_SAID = 200
_MAX_TEXT = 8 * 1024
"""Characters of one value that a pattern looks at; a whole body may have more."""

_WORDS = tuple(
    path_of(text)
    for text in (
        *("error.message", "message", "error", "error_message", "detail.message", "detail"),
        *("err_msg", "errors[*]", "error.code", "code"),
    )
)
"""Where providers put the words for people."""
_LOOKS_SECRET = re.compile(
    r"\S{1,200}@\S{1,200}"  # addresses, and URLs with a password
    r"|\b(?:(?:sk|pk|rk|xai|gsk)[-_]|(?:Bearer|Basic) )[\w.+/=*-]{4,200}"
    r"|(?=[\w-]{0,100}[0-9])[\w-]{16,200}",  # long, with a digit in it
    re.IGNORECASE,
)
_DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:(?:T| at | )([0-9]{2}:[0-9]{2}(?::[0-9]{2})?))?"
    r"(?:\.[0-9]{1,9})?\s?(Z|UTC|[+-][0-9]{2}:?[0-9]{2})?"
)
_LATEST_S = 4_102_444_800  # the year 2100
_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class HeaderTest:
    """A header is there or not; with `value`, its value matches that glob in small letters."""

    name: str
    """In small letters; a glob."""
    present: bool = True
    value: str = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """One shape of an answer. All that it says has to fit."""

    means: Means
    statuses: frozenset[int]
    headers: tuple[HeaderTest, ...] = ()
    at: tuple[Path, ...] = ()
    """Where its words stand: any of these. Empty: the whole body, as text."""
    pattern: re.Pattern[str] | None = None
    one_of: frozenset[str] = frozenset()
    until: Path | None = None
    """Where it says when calls pass again: a time in seconds or milliseconds, or a text with a
    date in it."""
    of_anybody: bool = False
    """It is not known what else such an answer repeats: only the words that fit are said."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A provider's rules, the generic ones last. `name` is the provider's."""

    name: str = "none"
    rules: tuple[Rule, ...] = ()
    _statuses: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        statuses = frozenset[int]().union(*(rule.statuses for rule in self.rules))
        object.__setattr__(self, "_statuses", statuses)

    def reads(self, status: int) -> bool:
        """Whether an answer with this status can have a verdict; else no byte is to be kept."""
        return status in self._statuses


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. `said`: its own words, fit for logs and for other callers."""

    means: Means
    said: str
    until_s: float | None
    """When the provider says that calls pass again, in seconds since 1970."""
    scope: Scope


def judge(
    rules: Rules,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Sequence[str] = (),
) -> Verdict | None:
    """The verdict on an answer; None: nothing that is known.

    Header names are in small letters, the body is decoded (no Content-Encoding). `secrets` are cut
    out of what is said: the credential that was sent.
    """
    if not rules.reads(status):
        return None
    answer = _Answer(headers, body[:MAX_BODY])
    for rule in rules.rules:
        if status in rule.statuses and answer.fits(rule):
            until_s = answer.time_at(rule.until)
            said = answer.words(rule, secrets) or f"status {status}"
            return Verdict(rule.means, said, until_s, SCOPES[rule.means])
    return None


class _Answer:
    """An answer, read once for all rules."""

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        self._headers = headers
        self._text = body.decode("utf-8", "replace")
        self._document: Any = None
        try:
            self._document = read_json(body)
        except ValueError:
            return  # a text is an answer too

    def fits(self, rule: Rule) -> bool:
        if not all(self._has(test) for test in rule.headers):
            return False
        return self._fitting(rule) is not None

    def _fitting(self, rule: Rule) -> str | None:
        """The words that a rule goes by: none where it has the status alone; None: not there."""
        if rule.pattern is None and not rule.one_of:
            return ""
        for text in self._texts(rule.at):
            if text in rule.one_of:
                return text
            if rule.pattern is not None and (found := rule.pattern.search(text)):
                return found[0]
        return None

    def _has(self, test: HeaderTest) -> bool:
        found = any(
            fnmatchcase(name, test.name) and fnmatchcase(value.lower(), test.value)
            for name, value in self._headers.items()
        )
        return found is test.present

    def _texts(self, at: Sequence[Path]) -> list[str]:
        if not at:
            return [self._text]
        values = [value for path in at for value in find(path, self._document)]
        return [text[:_MAX_TEXT] for value in values if (text := said(value)) is not None]

    def words(self, rule: Rule, secrets: Sequence[str]) -> str:
        """What it says, for people; the words of the rule's own place where there are no others."""
        if rule.of_anybody:
            return fit_to_show(self._fitting(rule) or "", secrets)
        texts = [text for text in self._texts((*_WORDS, *rule.at)) if not text.isdigit()]
        return fit_to_show(texts[0] if texts else self._text[:_MAX_TEXT], secrets)

    def time_at(self, path: Path | None) -> float | None:
        found = [] if path is None else find(path, self._document)
        return _time(found[0]) if found else None


def fit_to_show(text: str, secrets: Sequence[str] = ()) -> str:
    """A text of an upstream's as a log may hold it: short, printable, without a key."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    shown = " ".join("".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).split())
    shown = _LOOKS_SECRET.sub("***", shown[: 4 * MAX_SAID])
    return shown if len(shown) <= MAX_SAID else shown[: MAX_SAID - 1] + "…"


def _time(value: Any) -> float | None:
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        if not 0 < value < _LATEST_S * _MILLISECONDS:
            return None  # a large exponent would be written out in full
        whole = int(value)
        return _believed(whole if whole < _LATEST_S else whole // _MILLISECONDS)
    match = _DATE.search(value[:_MAX_TEXT]) if isinstance(value, str) else None
    if match is None:
        return None
    clock, zone = match[2] or "00:00", match[3] or "Z"
    try:
        moment = datetime.fromisoformat(f"{match[1]}T{clock}{zone.replace('UTC', 'Z')}")
        return _believed(moment.astimezone(UTC).timestamp())
    except (ValueError, OverflowError):  # no date, or one before the first
        return None


def _believed(seconds: float) -> float | None:
    return seconds if 0 < seconds < _LATEST_S else None
