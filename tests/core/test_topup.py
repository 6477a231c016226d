"""When money is bought and when not, and what may become of an attempt."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import msgspec
import pytest

from budget_proxy.core.hook import HttpHook, Result
from budget_proxy.core.money import NANOS
from budget_proxy.core.topup import (
    KEPT,
    NEXT,
    TRIES,
    Attempt,
    NotNowError,
    Plan,
    Standing,
    State,
    approved,
    begun,
    decided,
    ended,
    given_up,
    has_landed,
    kept,
    looked_at,
    may_attempt,
    new_attempt,
    on_its_way,
    refused,
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOW_S = at("2026-11-17T12:00")
PLAN = Plan(
    "acme",
    "USD",
    50 * NANOS,
    HttpHook("https://billing.example.com/topups"),
    most_per_month=200 * NANOS,
    below=20 * NANOS,
    gone_before_s=3600.0,
    most_per_day=3,
    cool_down_s=1800.0,
)
LOW = 10 * NANOS


def attempt(state: State, ago_s: float = 7200.0, **more: Any) -> Attempt:
    tried = {"tries": 1, "ran_at_s": NOW_S - ago_s} if state not in ("asked", "approved") else {}
    known: dict[str, Any] = {"id": f"{state}-{ago_s:g}", "reason": "below 20 USD", **tried, **more}
    return Attempt(at_s=NOW_S - ago_s, amount=50 * NANOS, unit="USD", state=state, **known)


DAYS_S = 86400.0

DECISIONS: dict[str, tuple[Plan, list[Attempt], int | None, float | None, str, str]] = {
    "low": (PLAN, [], LOW, None, "run", "below 20 USD"),
    "exactly at it": (PLAN, [], 20 * NANOS, None, "nothing", "there is enough"),
    "soon gone": (PLAN, [], 500 * NANOS, 600.4, "run", "gone in 600 s"),
    "gone later": (PLAN, [], 500 * NANOS, 3600.0, "nothing", "there is enough"),
    "nobody knows": (PLAN, [], None, None, "nothing", "there is enough"),
    "no threshold of amount": (
        replace(PLAN, below=None),
        [],
        0,
        None,
        "nothing",
        "there is enough",
    ),
    "ask": (replace(PLAN, mode="ask"), [], LOW, None, "ask", "below 20 USD"),
    "asked": (PLAN, [attempt("asked")], LOW, None, "nothing", "one waits for approval"),
    "approved": (PLAN, [attempt("approved")], 500 * NANOS, None, "run", "below 20 USD"),
    "running": (PLAN, [attempt("running")], LOW, None, "nothing", "one is running"),
    "sent": (PLAN, [attempt("sent")], LOW, None, "nothing", "one waits for confirmation"),
    "unknown": (PLAN, [attempt("unknown")], LOW, None, "nothing", "one is unknown"),
    "unknown for months": (
        *(PLAN, [attempt("unknown", 100 * DAYS_S)]),
        *(LOW, None, "nothing", "one is unknown"),
    ),
    "unknown beside an approved one": (
        *(PLAN, [attempt("approved"), attempt("unknown")]),
        *(LOW, None, "nothing", "one is unknown"),
    ),
    "confirmed": (PLAN, [attempt("confirmed")], LOW, None, "run", "below 20 USD"),
    "cool down": (PLAN, [attempt("confirmed", 1799)], LOW, None, "nothing", "cool down"),
    "cooled down": (PLAN, [attempt("confirmed", 1800)], LOW, None, "run", "below 20 USD"),
    "refused, cool down": (
        *(PLAN, [attempt("refused_by_person", 60)]),
        *(LOW, None, "nothing", "cool down"),
    ),
    "of tomorrow": (PLAN, [attempt("confirmed", -DAYS_S)], LOW, None, "nothing", "cool down"),
    "three today": (
        *(PLAN, [attempt("confirmed", hours * 3600.0) for hours in (1, 2, 11)]),
        *(LOW, None, "nothing", "day's count"),
    ),
    "the third was yesterday": (
        *(PLAN, [attempt("confirmed", hours * 3600.0) for hours in (1, 2, 13)]),
        *(LOW, None, "run", "below 20 USD"),
    ),
    "the third was today in Berlin": (
        *(replace(PLAN, zone="Europe/Berlin", most_per_day=3),),
        *([attempt("confirmed", hours * 3600.0) for hours in (1, 2, 12.5)],),
        *(LOW, None, "nothing", "day's count"),
    ),
    "wishes that were refused count in the day": (
        *(PLAN, [attempt("refused_by_person", hours * 3600.0) for hours in (1, 2, 3)]),
        *(LOW, None, "nothing", "day's count"),
    ),
    "this month's money is used": (
        *(PLAN, [attempt("confirmed", days * DAYS_S) for days in (1, 2, 3, 4)]),
        *(LOW, None, "nothing", "month's amount"),
    ),
    "some of it was last month's": (
        *(PLAN, [attempt("confirmed", days * DAYS_S) for days in (1, 2, 3, 17)]),
        *(LOW, None, "run", "below 20 USD"),
    ),
    "what failed is no money": (
        *(PLAN, [attempt("failed", days * DAYS_S, tries=3) for days in (1, 2, 3, 4)]),
        *(LOW, None, "run", "below 20 USD"),
    ),
    "what a person says did not come is no money": (
        *(PLAN, [attempt("decided", days * DAYS_S, landed=False) for days in (1, 2, 3, 4)]),
        *(LOW, None, "run", "below 20 USD"),
    ),
    "what a person says came is": (
        *(PLAN, [attempt("decided", days * DAYS_S, landed=True) for days in (1, 2, 3, 4)]),
        *(LOW, None, "nothing", "month's amount"),
    ),
    "failed just now": (
        *(PLAN, [attempt("failed", 29)]),
        *(LOW, None, "nothing", "a pause before the next try"),
    ),
    "failed a while ago": (PLAN, [attempt("failed", 30)], LOW, None, "run", "below 20 USD"),
    "failed twice": (
        *(PLAN, [attempt("failed", 59, tries=2)]),
        *(LOW, None, "nothing", "a pause before the next try"),
    ),
    "failed as often as is tried": (
        *(PLAN, [attempt("failed", 600, tries=TRIES)]),
        *(LOW, None, "nothing", "cool down"),
    ),
    "failed, and enough since": (
        *(PLAN, [attempt("failed", 60)]),
        *(500 * NANOS, None, "nothing", "there is enough"),
    ),
    "failed, and the month is used": (
        *(PLAN, [*(attempt("confirmed", n * DAYS_S) for n in (1, 2, 3, 4)), attempt("failed", 60)]),
        *(LOW, None, "nothing", "month's amount"),
    ),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_what_is_done_and_why(case: str) -> None:
    plan, attempts, usable, runway_s, do, why = DECISIONS[case]
    decision = may_attempt(plan, attempts, usable, runway_s, NOW_S)
    assert (decision.do, decision.why) == (do, why)


def test_a_failed_attempt_is_tried_again_under_its_own_id() -> None:
    failed = attempt("failed", 60)
    assert may_attempt(PLAN, [failed], LOW, None, NOW_S).again == failed
    again = begun(PLAN, failed, Standing("acme", LOW), NOW_S)
    assert (again.id, again.state, again.tries) == (failed.id, "running", 2)


def test_a_failed_attempt_for_another_amount_is_not_tried_again() -> None:
    other = replace(PLAN, amount=30 * NANOS, cool_down_s=0.0)
    decision = may_attempt(other, [attempt("failed", 60)], LOW, None, NOW_S)
    assert (decision.do, decision.again) == ("run", None)


def test_whatever_happened_no_second_attempt_begins_while_money_may_be_on_its_way() -> None:
    for first, second in product(NEXT, NEXT):
        attempts = [attempt(first, 9 * DAYS_S), attempt(second, 8 * DAYS_S)]
        decision = may_attempt(PLAN, attempts, 0, 0.0, NOW_S)
        if {first, second} & {"running", "sent", "unknown"}:
            assert decision.do == "nothing", (first, second)


# -- the states of one attempt ---------------------------------------------------------------------

RESULTS: list[tuple[State, Result, State]] = [
    ("running", Result("sent", ""), "sent"),
    ("running", Result("failed", ""), "failed"),
    ("running", Result("unknown", ""), "unknown"),
    ("unknown", Result("sent", ""), "sent"),  # given up, and then the end was learned after all
    ("unknown", Result("failed", ""), "failed"),
    ("unknown", Result("unknown", ""), "unknown"),
    ("confirmed", Result("failed", ""), "confirmed"),
    ("decided", Result("sent", ""), "decided"),
    ("approved", Result("failed", ""), "approved"),
]


@pytest.mark.parametrize(("state", "result", "after"), RESULTS)
def test_the_end_of_a_try(state: State, result: Result, after: State) -> None:
    assert ended(attempt(state), result).state == after


PEOPLE: dict[str, dict[str, State]] = {
    "approve": {"asked": "approved"},
    "refuse": {
        "asked": "refused_by_person",
        "approved": "refused_by_person",
        "failed": "refused_by_person",
    },
    "landed": {"unknown": "decided", "sent": "decided"},
    "not landed": {"unknown": "decided", "sent": "decided"},
}


@pytest.mark.parametrize("state", NEXT)
@pytest.mark.parametrize("word", PEOPLE)
def test_what_a_person_may_say_to_each_state(word: str, state: State) -> None:
    def say() -> Attempt:
        if word == "approve":
            return approved(attempt(state), "ada")
        if word == "refuse":
            return refused(attempt(state), "ada", "not now")
        return decided(attempt(state), "ada", landed=word == "landed")

    if state not in PEOPLE[word]:
        with pytest.raises(NotNowError, match=f"is {state}: there is nothing to"):
            say()
        return
    said = say()
    assert (said.state, said.decided_by) == (PEOPLE[word][state], "ada")
    assert has_landed(said) == (word == "landed")


def test_each_state_leads_to_an_end() -> None:
    ends = {state for state, following in NEXT.items() if not following}
    assert ends == {"confirmed", "refused_by_person", "decided"}
    for state in NEXT:
        seen, todo = set(), [state]
        while todo:
            now = todo.pop()
            seen.add(now)
            todo += NEXT[now] - seen
        assert seen & ends, state


# -- what a reading shows --------------------------------------------------------------------------

BEFORE = Standing("acme", LOW, None, 30 * NANOS, NOW_S - 10, 1000 * NANOS, 1002 * NANOS)


def running() -> Attempt:
    return begun(PLAN, new_attempt(PLAN, "k1", "below 20 USD", NOW_S), BEFORE, NOW_S)


def reading(dollars: int, spent: int, *, after_s: float = 60.0, lagging: int = 0) -> Standing:
    """`spent`: of ours since the level was taken; `lagging`: of that, not in the figure yet."""
    total = (1002 + spent) * NANOS
    return Standing(
        *("acme", LOW, None, dollars * NANOS, NOW_S + after_s, total - lagging * NANOS, total)
    )


SIGHTS = {
    "all of it": (reading(80, 0), "confirmed"),
    "half of it, as others spend too": (reading(55, 0), "confirmed"),
    "a little less than half": (reading(54, 0), "sent"),
    "our own spending is expected": (reading(40, 20), "confirmed"),
    "a fall less than our spending is no top-up": (reading(25, 20), "sent"),
    "what lags does not pass for money": (reading(40, 40, lagging=40), "sent"),
    "a reading from before the call": (reading(80, 0, after_s=0.0), "sent"),
    "no reading": (Standing("acme", None), "sent"),
}


@pytest.mark.parametrize("case", SIGHTS)
def test_a_reading_confirms_by_its_rise_over_what_was_expected(case: str) -> None:
    standing, state = SIGHTS[case]
    sent = ended(running(), Result("sent", "the hook answered 200"))
    found = looked_at(PLAN, sent, standing, NOW_S + 61, runs_here=False)
    assert found.state == state
    unknown = ended(running(), Result("unknown", "timed out"))
    found = looked_at(PLAN, unknown, standing, NOW_S + 61, runs_here=False)
    assert found.state == ("confirmed" if state == "confirmed" else "unknown")


def test_what_no_reading_shows_in_time_needs_a_person() -> None:
    sent = ended(running(), Result("sent", "the hook answered 200"))
    early = looked_at(PLAN, sent, reading(30, 0), NOW_S + 899, runs_here=False)
    assert early == sent
    late = looked_at(PLAN, sent, reading(30, 0), NOW_S + 900, runs_here=False)
    assert (late.state, late.needs_person) == ("unknown", True)
    assert late.why == ("the hook answered 200; no reading has shown it: a person has to decide")
    assert looked_at(PLAN, late, reading(30, 0), NOW_S + 5000, runs_here=False) == late
    shown = looked_at(PLAN, late, reading(80, 0), NOW_S + 5000, runs_here=False)
    assert (shown.state, shown.needs_person) == ("confirmed", False)
    assert not decided(late, "ada", landed=False).needs_person


def test_a_try_that_nobody_ended_is_given_up_when_it_is_overdue() -> None:
    here = looked_at(PLAN, running(), BEFORE, NOW_S + 5000, runs_here=True)
    assert here.state == "running"
    assert looked_at(PLAN, running(), BEFORE, NOW_S + 89, runs_here=False).state == "running"
    overdue = looked_at(PLAN, running(), BEFORE, NOW_S + 90, runs_here=False)
    assert overdue == given_up(running())
    assert overdue.state == "unknown"


def test_what_is_on_its_way_is_what_was_not_seen() -> None:
    assert on_its_way([attempt(state) for state in NEXT]) == 3 * 50 * NANOS


# -- what is kept ----------------------------------------------------------------------------------


def test_old_attempts_go_and_open_ones_stay() -> None:
    old = 50 * DAYS_S
    attempts = [attempt("unknown", old), attempt("confirmed", old), attempt("confirmed", 10)]
    assert [it.id for it in kept(attempts, NOW_S)] == [f"unknown-{old:g}", "confirmed-10"]


def test_however_many_there_were_a_note_holds_them() -> None:
    long = "x" * 300
    attempts = [
        attempt("confirmed", 5000.0 - number, id=f"{number:036}", why=long, reason=long)
        for number in range(5000)
    ]
    attempts[0] = attempt("unknown", 5000.0, id="open", why=long)
    found = kept(attempts, NOW_S)
    assert len(found) <= KEPT + 1
    assert found[0].id == "open"
    assert found[0].why == long
    assert len(msgspec.json.encode(found)) < 256 * 1024
