"""What is worth telling people about budgets and balances, and that it is told once.

Pure: figures in, alerts out, and what has been told so far (`Told`) in between, to be kept where
every machine sees it. The rules:

- A threshold is told once when it is reached, and once when it is over; then it may be told again.
- It is over when there is clearly more left than at the threshold: a tenth more, and for a share of
  a limit at least one per cent of that limit. A runway is long enough again when it is a quarter
  longer than it had to be. So a figure that moves around a threshold is told once.
- Thresholds reached in one look are one alert: the one with the least left, which names the others.
- A new window starts afresh, without a word about the old one: every alert says when it ends. A
  look by a clock that is late never brings an old window back.
- A condition (a stale balance, an open breaker, ...) is told once it has held for a while, and is
  over once it has not for a while: `CONDITIONS`. What is not in the facts is unknown: nothing
  changes.
- At most `MAX_TOLD` things stand told at once, `MAX_TOLD_ALIKE` of one budget; what is more is only
  counted. One look makes at most `MAX_ALIKE` alerts of one kind for one budget: the last of them
  says how many more there are.

Forbidden here: I/O, clocks, and floats of amounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from budget_proxy.core.money import exact, show

MAX_TOLD = 500
MAX_TOLD_ALIKE = 100
MAX_ALIKE = 5
MAX_REASON = 200
"""Characters of a reason."""
MAX_PAYER = 100
"""Bytes of a payer's name here: what was told must fit into a note, whoever makes up names."""
WHOLE = 10_000
"""A share of 100 %."""
_LATE_S = 3600
"""How long after its end a window is remembered: clocks differ by less."""
_KEEP_S = 90 * 86_400
"""How long what has no window is remembered."""

Severity = Literal["warning", "critical"]
SubjectKind = Literal["budget", "balance", "upstream", "topup"]
ConditionKind = Literal[
    "balance_stale",
    "bad_reading",
    "breaker_open",
    "drift",
    "topup_asked",
    "topup_failed",
    "topup_unknown",
]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Reached when a share of the limit is `spent` (`amount` in hundredths of a per cent), or when
    less than an amount is `left` (in steps of the unit)."""

    kind: Literal["spent", "left"]
    amount: int


class Subject(NamedTuple):
    """Whom an alert is about."""

    kind: SubjectKind
    name: str
    payer: str = ""


class Gauge(NamedTuple):
    """The figures of an account or a balance now. Amounts in steps of `unit`."""

    subject: Subject
    unit: str
    left: int
    """Of a budget: limit - spent, what is held still in it. Of a balance: what is usable."""
    thresholds: tuple[Threshold, ...] = ()
    gone_before_s: float | None = None
    limit: int | None = None
    """None: nothing is a share of it."""
    spent: int | None = None
    runway_s: float | None = None
    """Until nothing is left, as far as can be told; None: it cannot; infinite: never."""
    window_start_s: int = 0
    window_end_s: int | None = None


class Condition(NamedTuple):
    """Something that is so, or is not."""

    subject: Subject
    kind: ConditionKind
    holds: bool
    since_s: float
    """Since when it is so, or is not."""
    reason: str = ""
    """Why, for people; without secrets."""
    item: str = ""
    """Which one, where a subject can have several: a top-up's id, the kind of a breaker."""


class Facts(NamedTuple):
    """One look at everything."""

    gauges: tuple[Gauge, ...] = ()
    conditions: tuple[Condition, ...] = ()
    names: frozenset[tuple[SubjectKind, str]] = frozenset()
    """Kind and name of all that the policy has; what was told of others is forgotten."""


class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message. `key` is that of the thing told, the same when it is over; `id` is this one's.
    Figures are exact decimal strings, empty where there is none."""

    id: str
    key: str
    subject: SubjectKind
    name: str
    payer: str = ""
    kind: str
    """spent, left, gone_before, or the kind of a condition."""
    severity: Severity
    what: str
    """A sentence for people."""
    threshold: str = ""
    also: tuple[str, ...] = ()
    """The other thresholds of this message."""
    unit: str = ""
    limit: str = ""
    spent: str = ""
    left: str = ""
    runway_s: int | None = None
    reason: str = ""
    window_end_s: int | None = None
    at_s: float
    recovered: bool = False


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was told and is not over."""

    subject: Subject
    rule: str
    at_s: float
    window_start_s: int = 0
    window_end_s: int | None = None


class Step(NamedTuple):
    """What one look leads to."""

    told: Mapping[str, Told]
    """By key: what stands told after it."""
    alerts: tuple[Alert, ...]
    """To be sent."""
    omitted: int
    """Things to be told for which there is no room."""


class _Rule(NamedTuple):
    """A condition: its words, how grave it is, and how long it must hold, or not, to be told."""

    words: str
    severity: Severity
    holds_s: float
    over_s: float
    over: str = ""
    """The words when it is over, where no reason says more; empty: `over: ` and the others."""


CONDITIONS: Mapping[ConditionKind, _Rule] = {
    "balance_stale": _Rule("the last good balance is too old", "warning", 0, 0),
    "bad_reading": _Rule("the balance cannot be read", "warning", 120, 120),
    "breaker_open": _Rule("calls are stopped: the provider is out of money", "critical", 0, 60),
    "drift": _Rule("others spend from this account", "warning", 0, 300),
    "topup_asked": _Rule(
        "a top-up waits for somebody's approval", "warning", 0, 0, "no top-up waits for approval"
    ),
    "topup_failed": _Rule("a top-up failed", "critical", 0, 0, "no top-up is failed any more"),
    "topup_unknown": _Rule(
        *("nobody knows whether a top-up was paid", "critical", 0, 0),
        over="of every top-up it is known what became of it",
    ),
}


def step(told: Mapping[str, Told], facts: Facts, now_s: float) -> Step:
    """What is to be told after what was told, and what then stands told."""
    look = _Look(told, facts, now_s)
    for gauge in facts.gauges:
        look.measure(gauge)
    for condition in facts.conditions:
        look.note(condition)
    return Step(look.told, tuple(_collapsed(look.alerts, now_s)), look.omitted)


class _Mark(NamedTuple):
    """A threshold of a gauge, as far as it is now."""

    rule: str
    kind: str
    words: str
    reached: bool
    over: bool


def marks_of(gauge: Gauge, now_s: float) -> list[_Mark]:
    """Every threshold of a gauge, the one with the least left last."""
    marks = [] if gauge.gone_before_s is None else [_runway_mark(gauge, gauge.gone_before_s, now_s)]
    amounts = [
        (_bar(gauge, threshold), threshold)
        for threshold in gauge.thresholds
        if threshold.kind == "left" or gauge.limit is not None
    ]
    amounts.sort(key=lambda pair: pair[0], reverse=True)
    return marks + [_amount_mark(gauge, threshold, bar) for bar, threshold in amounts]


def _bar(gauge: Gauge, threshold: Threshold) -> int:
    """What is left at a threshold, in steps times WHOLE."""
    if threshold.kind == "left":
        return threshold.amount * WHOLE
    return (gauge.limit or 0) * (WHOLE - threshold.amount)


def _amount_mark(gauge: Gauge, threshold: Threshold, bar: int) -> _Mark:
    left, margin = gauge.left * WHOLE, abs(bar) // 10
    words = threshold_words(threshold, gauge.unit)
    if threshold.kind == "left":
        return _Mark(f"left {words}", "left", words, left < bar, left >= bar + margin)
    margin = max(margin, (gauge.limit or 0) * (WHOLE // 100))
    return _Mark(f"spent {words}", "spent", words, left <= bar, left > bar and left >= bar + margin)


def _runway_mark(gauge: Gauge, gone_before_s: float, now_s: float) -> _Mark:
    runway_s, bar_s = gauge.runway_s, gone_before_s
    if gauge.window_end_s is not None:
        bar_s = min(bar_s, gauge.window_end_s - now_s)
    reached = runway_s is not None and runway_s < bar_s
    over = runway_s is not None and runway_s * 4 >= bar_s * 5
    return _Mark("gone_before", "gone_before", duration(gone_before_s), reached, over)


def threshold_words(threshold: Threshold, unit: str) -> str:
    """A threshold as it is written in the policy: `80%`, `20 USD`."""
    if threshold.kind == "left":
        return show(threshold.amount, unit)
    whole, rest = divmod(threshold.amount, 100)
    fraction = f".{rest:02d}".rstrip("0") if rest else ""
    return f"{whole}{fraction}%"


class _Look:
    """One look; a class only for what all its parts add to."""

    def __init__(self, told: Mapping[str, Told], facts: Facts, now_s: float) -> None:
        self.told = {k: v for k, v in told.items() if not _is_past(v, facts.names, now_s)}
        self.alerts: list[Alert] = []
        self.omitted = 0
        self._now_s = now_s
        self._alike: dict[tuple[SubjectKind, str], int] = {}
        for known in self.told.values():
            self._count(known.subject, 1)
        self._rules: dict[Subject, set[str]] = {}
        for known in self.told.values():
            self._rules.setdefault(known.subject, set()).add(known.rule)

    def measure(self, gauge: Gauge) -> None:
        """Every threshold of an account or a balance."""
        marks = marks_of(gauge, self._now_s)
        standing = self._rules.get(gauge.subject)
        if standing is None and not any(mark.reached for mark in marks):
            return
        if not self._in_this_window(gauge, marks):
            return
        reached, over = [], []
        for mark in marks:
            key = key_of(gauge.subject, mark.rule)
            if key in self.told:
                if mark.over:
                    over.append(mark)
            elif mark.reached:
                reached.append(mark)
        if over:
            self._tell_over(gauge, over)
        if reached:
            self._tell_reached(gauge, marks, reached)

    def _in_this_window(self, gauge: Gauge, marks: list[_Mark]) -> bool:
        """Forget what was told of an older window, and of thresholds that are no more; False: what
        was told is of a later window than this look."""
        rules = {mark.rule for mark in marks}
        for rule in self._rules.get(gauge.subject, ()):
            key = key_of(gauge.subject, rule)
            known = self.told.get(key)
            if known is None or is_condition(rule):
                continue
            if known.window_start_s > gauge.window_start_s:
                return False
            if known.window_start_s < gauge.window_start_s or rule not in rules:
                self._drop(key)
        return True

    def _tell_over(self, gauge: Gauge, over: list[_Mark]) -> None:
        told = [self._drop(key_of(gauge.subject, mark.rule)) for mark in over]
        alert_id = _id_over(told[-1])
        self.alerts.append(_of_gauge(gauge, over, "warning", alert_id, self._now_s, recovered=True))

    def _tell_reached(self, gauge: Gauge, marks: list[_Mark], reached: list[_Mark]) -> None:
        if not self._has_room(gauge.subject, len(reached)):
            self.omitted += len(reached)
            return
        window = gauge.window_start_s, gauge.window_end_s
        told = [Told(gauge.subject, mark.rule, self._now_s, *window) for mark in reached]
        for one in told:
            self._add(one)
        alert_id = _id(told[-1])
        amounts = [mark for mark in marks if mark.kind != "gone_before"]
        grave = len(amounts) > 1 and reached[-1] is amounts[-1]
        self.alerts.append(
            _of_gauge(
                *(gauge, reached, "critical" if grave else "warning", alert_id, self._now_s),
                recovered=False,
            )
        )

    def note(self, condition: Condition) -> None:
        """One condition."""
        rule = CONDITIONS[condition.kind]
        name = f"{condition.kind}:{condition.item}"
        key = key_of(condition.subject, name)
        lasted_s = self._now_s - condition.since_s
        known = self.told.get(key)
        if known is not None and not condition.holds and lasted_s >= rule.over_s:
            alert_id = _id_over(self._drop(key))
            self.alerts.append(_of_condition(condition, key, alert_id, self._now_s, recovered=True))
        elif known is None and condition.holds and lasted_s >= rule.holds_s:
            if not self._has_room(condition.subject, 1):
                self.omitted += 1
                return
            told = Told(condition.subject, name, self._now_s)
            self._add(told)
            self.alerts.append(
                _of_condition(condition, key, _id(told), self._now_s, recovered=False)
            )

    def _has_room(self, subject: Subject, more: int) -> bool:
        alike = self._alike.get((subject.kind, subject.name), 0)
        return len(self.told) + more <= MAX_TOLD and alike + more <= MAX_TOLD_ALIKE

    def _add(self, told: Told) -> None:
        self.told[key_of(told.subject, told.rule)] = told
        self._count(told.subject, 1)

    def _drop(self, key: str) -> Told:
        told = self.told.pop(key)
        self._count(told.subject, -1)
        return told

    def _count(self, subject: Subject, more: int) -> None:
        alike = (subject.kind, subject.name)
        self._alike[alike] = self._alike.get(alike, 0) + more


def payer_label(payer: str) -> str:
    """A payer's name, printable and bounded; two that differ stay different."""
    plain = "".join(char if char.isprintable() else "?" for char in payer)
    data = plain.encode(errors="replace")
    if plain == payer and len(data) <= MAX_PAYER:
        return payer
    check = f"{crc32(payer.encode(errors='surrogatepass')):08x}"
    return f"{data[: MAX_PAYER - 9].decode(errors='ignore')}~{check}"


def key_of(subject: Subject, rule: str) -> str:
    """What names a thing that is told; the payer, who can be anything, comes last."""
    return f"{subject.kind}/{subject.name}/{rule}/{subject.payer}"


def _id(told: Told) -> str:
    return f"{key_of(told.subject, told.rule)}@{int(told.at_s)}"


def _id_over(told: Told) -> str:
    return f"{_id(told)}/over"


def is_condition(rule: str) -> bool:
    """Whether a rule is that of a condition, not of a threshold."""
    return ":" in rule


def _is_past(told: Told, names: frozenset[tuple[SubjectKind, str]], now_s: float) -> bool:
    if (told.subject.kind, told.subject.name) not in names:
        return True
    if told.window_end_s is not None:
        return told.window_end_s + _LATE_S <= now_s
    # A threshold of a total stands as long as it is reached; a top-up nobody speaks of any more
    # does not.
    return is_condition(told.rule) and told.at_s + _KEEP_S <= now_s


# -- words ----------------------------------------------------------------------------------------


def _of_gauge(
    gauge: Gauge,
    marks: list[_Mark],
    severity: Severity,
    alert_id: str,
    now_s: float,
    *,
    recovered: bool,
) -> Alert:
    chief, unit = marks[-1], gauge.unit
    runway_s = gauge.runway_s
    is_finite = runway_s is not None and runway_s < _KEEP_S * 100
    return Alert(
        id=alert_id,
        key=key_of(gauge.subject, chief.rule),
        subject=gauge.subject.kind,
        name=gauge.subject.name,
        payer=gauge.subject.payer,
        kind=chief.kind,
        severity=severity,
        what=_sentence(gauge, chief, recovered=recovered) + _others(marks),
        threshold=chief.words,
        also=tuple(mark.words for mark in marks[:-1]),
        unit=unit,
        limit="" if gauge.limit is None else exact(gauge.limit, unit),
        spent="" if gauge.spent is None else exact(gauge.spent, unit),
        left=exact(gauge.left, unit),
        runway_s=int(runway_s) if runway_s is not None and is_finite else None,
        window_end_s=gauge.window_end_s,
        at_s=now_s,
        recovered=recovered,
    )


def _others(marks: list[_Mark]) -> str:
    others = ", ".join(mark.words for mark in marks[:-1])
    return f" (also: {others})" if others else ""


def _sentence(gauge: Gauge, mark: _Mark, *, recovered: bool) -> str:
    left = show(gauge.left, gauge.unit)
    if mark.kind == "gone_before":
        if recovered:
            told = f"lasts longer than {mark.words} again; {left} left"
        else:
            told = f"gone in about {duration(gauge.runway_s or 0)} as it is spent now; {left} left"
    elif mark.kind == "spent":
        limit = show(gauge.limit or 0, gauge.unit)
        again = "no longer " if recovered else ""
        told = f"{again}{mark.words} of {limit} spent; {left} left"
    else:
        told = f"{'more than' if recovered else 'less than'} {mark.words} left: {left}"
    if gauge.window_end_s is not None:
        told += f", until {_utc(gauge.window_end_s)}"
    return f"{subject_words(gauge.subject)}: {told}"


def _of_condition(
    condition: Condition, key: str, alert_id: str, now_s: float, *, recovered: bool
) -> Alert:
    rule, subject = CONDITIONS[condition.kind], condition.subject
    reason = _line(condition.reason)
    item = f" ({_line(condition.item)})" if condition.item else ""
    because = f": {reason}" if reason else ""
    said = f"{rule.words}{item}{because}"
    if recovered:
        said = (reason or f"{rule.over}{item}") if rule.over else f"over: {said}"
    return Alert(
        id=alert_id,
        key=key,
        subject=subject.kind,
        name=subject.name,
        payer=subject.payer,
        kind=condition.kind,
        severity="warning" if recovered else rule.severity,
        what=f"{subject_words(subject)}: {said}",
        reason=reason,
        at_s=now_s,
        recovered=recovered,
    )


def subject_words(subject: Subject) -> str:
    """A subject for people: `Budget team, payments`; a payer on one line, whatever it is."""
    of = {"budget": "Budget", "balance": "Balance of", "upstream": "Upstream", "topup": "Top-up of"}
    payer = _line(subject.payer)
    named = f"{of[subject.kind]} {subject.name}"
    return f"{named}, {payer}" if payer and payer not in ("(all)", "(balance)") else named


def _line(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(plain.split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"


def duration(seconds: float) -> str:
    """For people, in the two largest parts: `6 h`, `2 d 4 h`, `3 min 20 s`."""
    rest, parts = int(seconds), []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def _utc(instant_s: int) -> str:
    return f"{datetime.fromtimestamp(instant_s, UTC):%Y-%m-%d %H:%M} UTC"


def _collapsed(alerts: Iterable[Alert], now_s: float) -> Iterable[Alert]:
    """Many alike are a few and how many more."""
    groups: dict[tuple[str, str, str, bool], list[Alert]] = {}
    for alert in alerts:
        groups.setdefault((alert.subject, alert.name, alert.kind, alert.recovered), []).append(
            alert
        )
    for group in groups.values():
        if len(group) <= MAX_ALIKE:
            yield from group
        else:
            yield from group[: MAX_ALIKE - 1]
            yield _summary(group[MAX_ALIKE - 1 :], now_s)


def _summary(group: list[Alert], now_s: float) -> Alert:
    first, many = group[0], len(group)
    over = "over" if first.recovered else "reached"
    named = subject_words(Subject(first.subject, first.name))
    return Alert(
        id=f"{first.id}/and {many - 1} more",
        key=f"{first.subject}/{first.name}/{first.kind}/({many} more)",
        subject=first.subject,
        name=first.name,
        payer=f"({many} more)",
        kind=first.kind,
        severity="critical" if any(a.severity == "critical" for a in group) else "warning",
        what=f"{named}: the same ({first.kind}) is {over} for {many} more payers",
        unit=first.unit,
        window_end_s=first.window_end_s,
        at_s=now_s,
        recovered=first.recovered,
    )
