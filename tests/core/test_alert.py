"""What is told, and that it is told once."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from budget_proxy.core.alert import (
    CONDITIONS,
    MAX_ALIKE,
    MAX_PAYER,
    MAX_TOLD,
    MAX_TOLD_ALIKE,
    Alert,
    Condition,
    ConditionKind,
    Facts,
    Gauge,
    Step,
    Subject,
    Threshold,
    Told,
    duration,
    payer_label,
    step,
    threshold_words,
)
from budget_proxy.core.money import NANOS
from budget_proxy.core.notes import MAX_BODY

HALF, EIGHTY, NINETY_FIVE = (Threshold("spent", share * 100) for share in (50, 80, 95))
TEAM = Subject("budget", "team", "payments")
BANK = Subject("balance", "deepseek")
HOUR = 3600.0
NAMES = frozenset({("budget", "team"), ("balance", "deepseek"), ("topup", "deepseek")})


def budget(spent: int, **more: Any) -> Gauge:
    """A budget of 200 USD."""
    given: dict[str, Any] = {"thresholds": (HALF, EIGHTY, NINETY_FIVE), "subject": TEAM}
    given |= {"limit": 200} | more
    limit = given.pop("limit")
    return Gauge(
        unit="USD", limit=limit * NANOS, spent=spent * NANOS, left=(limit - spent) * NANOS, **given
    )


def balance(usable: int, **more: Any) -> Gauge:
    given = {"thresholds": (Threshold("left", 25 * NANOS), Threshold("left", 10 * NANOS))} | more
    return Gauge(BANK, "USD", usable * NANOS, **given)


@dataclass
class Story:
    """Looks one after the other."""

    told: Mapping[str, Told] = field(default_factory=dict)
    now_s: float = 1000.0
    last: Step | None = None

    def look(self, *facts: Gauge | Condition, names: Any = NAMES) -> list[Alert]:
        self.now_s += 5
        self.last = step(
            self.told,
            Facts(
                tuple(fact for fact in facts if isinstance(fact, Gauge)),
                tuple(fact for fact in facts if isinstance(fact, Condition)),
                names,
            ),
            self.now_s,
        )
        self.told = self.last.told
        return list(self.last.alerts)


def told(alerts: Iterable[Alert]) -> list[str]:
    return [f"{'-' if alert.recovered else '+'}{alert.threshold}" for alert in alerts]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([10, 99, 100, 101, 150], [[], [], ["+50%"], [], []]),
        ([100, 160, 190, 200, 250], [["+50%"], ["+80%"], ["+95%"], [], []]),
        ([195], [["+95%"]]),
        ([170, 195], [["+80%"], ["+95%"]]),
        # Over once a tenth more is left than at the threshold: 80 % is left 40, over at 44.
        ([160, 157, 160, 156, 160], [["+80%"], [], [], ["-80%"], ["+80%"]]),
        # 95 % is left 10; a tenth is 1, one per cent of the limit is 2: over at 12.
        ([190, 189, 188, 190], [["+95%"], [], ["-95%"], ["+95%"]]),
        ([195, 0], [["+95%"], ["-95%"]]),
    ],
)
def test_a_threshold_is_told_once_for_each_crossing(
    looks: list[int], expected: list[list[str]]
) -> None:
    story = Story()
    assert [told(story.look(budget(spent))) for spent in looks] == expected


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([30, 25, 24, 24, 9, 9], [[], [], ["+25 USD"], [], ["+10 USD"], []]),
        ([24, 26, 24, 27, 28, 24], [["+25 USD"], [], [], [], ["-25 USD"], ["+25 USD"]]),
        ([-5, 100], [["+10 USD"], ["-10 USD"]]),
    ],
)
def test_a_balance_is_told_below_an_amount(looks: list[int], expected: list[list[str]]) -> None:
    story = Story()
    assert [told(story.look(balance(usable))) for usable in looks] == expected


def test_thresholds_reached_in_one_look_are_one_alert_that_names_them() -> None:
    story = Story()
    (alert,) = story.look(budget(195))
    assert (alert.threshold, alert.also) == ("95%", ("50%", "80%"))
    assert alert.what == "Budget team, payments: 95% of 200 USD spent; 5 USD left (also: 50%, 80%)"
    (over,) = story.look(budget(20))
    assert (over.threshold, over.also, over.recovered) == ("95%", ("50%", "80%"), True)
    assert over.key == alert.key
    assert over.id == f"{alert.id}/over"


def test_every_alert_has_an_id_of_its_own() -> None:
    story = Story()
    alerts = [alert for spent in (195, 185, 150, 0, 195, 0) for alert in story.look(budget(spent))]
    assert told(alerts) == ["+95%", "-95%", "-80%", "-50%", "+95%", "-95%"]
    assert len({alert.id for alert in alerts}) == len(alerts)


def test_figures_are_exact_text() -> None:
    one = Gauge(TEAM, "USD", 39_999_999_999, (EIGHTY,), limit=200 * NANOS, spent=160_000_000_001)
    (alert,) = Story().look(one)
    assert (alert.limit, alert.spent, alert.left) == ("200", "160.000000001", "39.999999999")
    assert (alert.unit, alert.kind, alert.subject) == ("USD", "spent", "budget")
    assert (alert.name, alert.payer) == ("team", "payments")
    assert alert.at_s == 1005


@pytest.mark.parametrize(
    ("spent", "thresholds", "severity"),
    [
        (195, (HALF, EIGHTY, NINETY_FIVE), "critical"),
        (165, (HALF, EIGHTY, NINETY_FIVE), "warning"),
        (165, (EIGHTY,), "warning"),
    ],
)
def test_the_last_of_several_thresholds_is_critical(
    spent: int, thresholds: tuple[Threshold, ...], severity: str
) -> None:
    (alert,) = Story().look(budget(spent, thresholds=thresholds))
    assert alert.severity == severity


def test_a_new_window_starts_afresh_and_says_nothing_of_the_old_one() -> None:
    story = Story()
    day = {"window_start_s": 0, "window_end_s": 2000}
    assert told(story.look(budget(195, **day))) == ["+95%"]
    assert story.look(budget(0, window_start_s=2000, window_end_s=4000)) == []
    assert told(story.look(budget(100, window_start_s=2000, window_end_s=4000))) == ["+50%"]


def test_a_clock_that_is_late_brings_no_old_window_back() -> None:
    story = Story()
    new = budget(160, window_start_s=1000, window_end_s=2000)
    old = budget(195, window_start_s=0, window_end_s=1000)
    assert told(story.look(new)) == ["+80%"]
    assert story.look(old) == []
    assert story.look(new) == []


def test_a_window_that_ended_is_forgotten() -> None:
    story = Story()
    story.look(budget(195, window_start_s=0, window_end_s=2000))
    story.now_s = 2000 + 3600
    story.look()
    assert story.told == {}


def test_a_budget_or_a_threshold_that_left_the_policy_is_forgotten_without_a_word() -> None:
    story = Story()
    story.look(budget(195))
    assert story.look(budget(195, thresholds=(EIGHTY,))) == []
    assert [known.rule for known in story.told.values()] == ["spent 80%"]
    assert story.look(names=frozenset()) == []
    assert story.told == {}


def test_what_is_not_in_a_look_stays_as_it_was() -> None:
    story = Story()
    story.look(budget(195))
    assert story.look() == []
    assert story.look(budget(195)) == []


@pytest.mark.parametrize(
    ("runways_s", "expected"),
    [
        ([7 * HOUR, 5 * HOUR, 5 * HOUR], [[], ["+6 h"], []]),
        # Over when it is a quarter longer than it had to be: 7.5 h.
        ([5 * HOUR, 7 * HOUR, 5 * HOUR, 7.5 * HOUR], [["+6 h"], [], [], ["-6 h"]]),
        ([5 * HOUR, None, 5 * HOUR], [["+6 h"], [], []]),
        ([5 * HOUR, math.inf], [["+6 h"], ["-6 h"]]),
        ([None], [[]]),
        ([math.inf], [[]]),
        ([0.0], [["+6 h"]]),
    ],
)
def test_a_short_runway_is_told_once(
    runways_s: list[float | None], expected: list[list[str]]
) -> None:
    story = Story()
    gauges = [balance(500, gone_before_s=6 * HOUR, runway_s=runway_s) for runway_s in runways_s]
    assert [told(story.look(gauge)) for gauge in gauges] == expected


def test_a_budget_that_lasts_until_its_window_ends_is_not_gone_before() -> None:
    story = Story(now_s=0)
    ends = {"window_end_s": int(4 * HOUR), "gone_before_s": 6 * HOUR}
    assert story.look(budget(10, runway_s=5 * HOUR, **ends)) == []
    (alert,) = story.look(budget(10, runway_s=3 * HOUR, **ends))
    assert alert.what == (
        "Budget team, payments: gone in about 3 h as it is spent now; 190 USD left, until "
        "1970-01-01 04:00 UTC"
    )
    assert (alert.kind, alert.runway_s, alert.severity) == ("gone_before", 10800, "warning")


def test_a_runway_and_an_amount_of_one_look_are_one_alert() -> None:
    (alert,) = Story().look(balance(24, gone_before_s=6 * HOUR, runway_s=HOUR))
    assert (alert.kind, alert.threshold, alert.also) == ("left", "25 USD", ("6 h",))


def test_a_balance_has_no_share() -> None:
    assert Story().look(balance(0, thresholds=(HALF,))) == []


def test_all_of_it_can_be_a_threshold_without_flapping() -> None:
    story = Story()
    whole = (Threshold("spent", 10_000),)
    looks = [199, 200, 199, 198, 200]
    found = [told(story.look(budget(spent, thresholds=whole))) for spent in looks]
    assert found == [[], ["+100%"], [], ["-100%"], ["+100%"]]


def test_an_account_without_a_limit_is_all_spent_and_never_over() -> None:
    story = Story()
    assert told(story.look(budget(0, limit=0))) == ["+95%"]
    assert story.look(budget(0, limit=0)) == []


@pytest.mark.parametrize("seed", range(20))
def test_on_any_walk_each_thing_is_told_and_over_in_turn(seed: int) -> None:
    chance, story = random.Random(seed), Story()
    spent, window_s, standing = 100, 0, set[str]()
    for _ in range(400):
        spent = max(0, min(210, spent + chance.randint(-12, 12)))
        runway_s = chance.choice([None, math.inf, chance.uniform(0, 9 * HOUR)])
        if chance.random() < 0.02:
            spent, window_s, standing = 0, window_s + 1, set()
        gauge = budget(spent, window_start_s=window_s, runway_s=runway_s, gone_before_s=6 * HOUR)
        reached, over = set[str](), set[str]()
        for alert in story.look(gauge):
            (over if alert.recovered else reached).update({alert.threshold, *alert.also})
        assert over <= standing
        assert not reached & standing
        standing = (standing - over) | reached
        assert len(story.told) == len(standing)
        for share in (50, 80, 95):
            if spent >= 2 * share:
                assert f"{share}%" in standing
            if spent <= 2 * share - max(2, 20 - share // 5):
                assert f"{share}%" not in standing


# -- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_condition_is_told_once_it_has_lasted_and_over_once_it_has_not(
    kind: ConditionKind,
) -> None:
    story, rule = Story(), CONDITIONS[kind]
    began_s = 1005.0

    def look(at_s: float, holds: bool, since_s: float) -> list[bool]:
        story.now_s = at_s - 5
        return [alert.recovered for alert in story.look(Condition(BANK, kind, holds, since_s))]

    if rule.holds_s:
        assert look(began_s + rule.holds_s - 1, True, began_s) == []
    assert look(began_s + rule.holds_s, True, began_s) == [False]
    assert look(began_s + rule.holds_s + 100, True, began_s) == []
    ended_s = began_s + 1000
    if rule.over_s:
        assert look(ended_s + rule.over_s - 1, False, ended_s) == []
    assert look(ended_s + rule.over_s, False, ended_s) == [True]
    assert look(ended_s + rule.over_s + 100, False, ended_s) == []


def test_a_condition_says_why_on_one_line_and_not_for_ever() -> None:
    reason = "it answered 401\n<script>" + "x" * 1000
    (alert,) = Story().look(Condition(BANK, "balance_stale", True, 0, reason))
    assert alert.what.startswith(
        "Balance of deepseek: the last good balance is too old: it answered 401 <script>"
    )
    assert len(alert.reason) == 200


def test_two_top_ups_of_one_upstream_are_two_things() -> None:
    story = Story()
    subject = Subject("topup", "deepseek")

    def asked(item: str, holds: bool) -> Condition:
        return Condition(subject, "topup_asked", holds, 0, item=item)

    first, second = story.look(asked("a1", True), asked("a2", True))
    assert first.key != second.key
    assert "(a1)" in first.what
    (over,) = story.look(asked("a1", False), asked("a2", True))
    assert (over.key, over.recovered) == (first.key, True)


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        ("topup_unknown", "the top-up a1 is settled: confirmed", None),
        ("topup_asked", "", "no top-up waits for approval"),
        ("topup_failed", "", "no top-up is failed any more"),
        ("topup_unknown", "", "of every top-up it is known what became of it"),
    ],
)
def test_a_top_up_that_wants_nobody_any_more_is_told_in_words_of_its_own(
    kind: ConditionKind, reason: str, said: str | None
) -> None:
    story, subject = Story(), Subject("topup", "deepseek")
    story.look(Condition(subject, kind, True, 0, "do this"))
    (over,) = story.look(Condition(subject, kind, False, 0, reason))
    assert over.recovered
    assert over.what == f"Top-up of deepseek: {said or reason}"


def test_a_top_up_nobody_speaks_of_any_more_is_forgotten_at_last() -> None:
    story = Story()
    story.look(Condition(Subject("topup", "deepseek"), "topup_failed", True, 0, item="a1"))
    assert story.told
    story.now_s += 91 * 86_400
    story.look()
    assert story.told == {}


def test_a_condition_and_a_threshold_of_one_subject_do_not_touch_each_other() -> None:
    story = Story()
    stale = Condition(BANK, "balance_stale", True, 0)
    assert len(story.look(balance(5), stale)) == 2
    assert story.look(balance(5), stale) == []
    assert told(story.look(balance(500), stale)) == ["-10 USD"]
    assert len(story.told) == 1


# -- bounds ---------------------------------------------------------------------------------------


def payers(count: int, name: str = "team", spent: int = 195) -> list[Gauge]:
    return [
        budget(spent, thresholds=(EIGHTY,), subject=Subject("budget", name, f"user-{number}"))
        for number in range(count)
    ]


def test_many_payers_at_once_are_a_few_alerts_and_how_many_more() -> None:
    story = Story()
    alerts = story.look(*payers(60))
    assert len(alerts) == MAX_ALIKE
    assert alerts[-1].payer == "(56 more)"
    assert alerts[-1].what == "Budget team: the same (spent) is reached for 56 more payers"
    assert len({alert.id for alert in alerts}) == MAX_ALIKE
    assert story.look(*payers(60)) == []
    over = story.look(*payers(60, spent=0))
    assert len(over) == MAX_ALIKE
    assert over[-1].what == "Budget team: the same (spent) is over for 56 more payers"


def test_payers_without_end_are_counted_and_leave_room_for_others() -> None:
    story = Story()
    story.look(*payers(MAX_TOLD_ALIKE + 30), names=NAMES)
    assert story.last is not None
    assert story.last.omitted == 30
    assert len(story.told) == MAX_TOLD_ALIKE
    assert told(story.look(balance(5))) == ["+10 USD"]


def test_no_more_stands_told_than_there_is_room_for() -> None:
    names = [f"b{number}" for number in range(8)]
    gauges = [gauge for name in names for gauge in payers(MAX_TOLD_ALIKE, name)]
    story = Story()
    story.look(*gauges, names=frozenset(("budget", name) for name in names))
    assert len(story.told) == MAX_TOLD
    assert story.last is not None
    assert story.last.omitted == len(gauges) - MAX_TOLD


def test_what_is_told_of_the_worst_names_fits_into_a_note() -> None:
    names = [f"{'b' * 62}{number}" for number in range(5)]
    gauges = [
        budget(
            195,
            thresholds=(Threshold("left", 10**17 - 1),),
            subject=Subject("budget", name, payer_label('"\\' * 60 + str(number))),
            window_start_s=10**9,
            window_end_s=10**10,
        )
        for name in names
        for number in range(MAX_TOLD_ALIKE)
    ]
    story = Story()
    story.look(*gauges, names=frozenset(("budget", name) for name in names))
    assert len(story.told) == MAX_TOLD
    assert len(msgspec.json.encode(tuple(story.told.values()))) < MAX_BODY


@pytest.mark.parametrize(
    ("payer", "label"),
    [
        ("payments", "payments"),
        ("ümläut|gpt-4o", "ümläut|gpt-4o"),
        ("x" * MAX_PAYER, "x" * MAX_PAYER),
        ("x" * 101, "x" * 91 + "~........"),
        ("a\nb", "a.b~........"),
        ("half \ud800", "half .~........"),
    ],
)
def test_a_payers_name_is_printable_and_bounded(payer: str, label: str) -> None:
    found = payer_label(payer)
    assert re.fullmatch(label.replace("|", r"\|"), found)
    assert found.isprintable()
    assert len(found.encode()) <= MAX_PAYER


def test_payers_that_differ_only_far_behind_stay_different() -> None:
    assert payer_label("x" * 127 + "a") != payer_label("x" * 127 + "b")


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (Threshold("spent", 8000), "80%"),
        (Threshold("spent", 1250), "12.5%"),
        (Threshold("spent", 105), "1.05%"),
        (Threshold("left", 25 * NANOS), "25 USD"),
    ],
)
def test_a_threshold_is_written_as_in_the_policy(threshold: Threshold, words: str) -> None:
    assert threshold_words(threshold, "USD") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (200, "3 min 20 s"),
        (6 * HOUR, "6 h"),
        (187_200, "2 d 4 h"),
        (187_261, "2 d 4 h"),
    ],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
