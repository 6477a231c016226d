"""The line of alerts for each webhook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import pytest

from budget_proxy.core.alert import MAX_REASON, Alert
from budget_proxy.core.notes import MAX_BODY
from budget_proxy.core.outbox import (
    BACKOFF_S,
    CLAIM_S,
    DEADLINE_S,
    MAX_TRIES,
    MAX_WAITING,
    Outbox,
    Sent,
    claim,
    next_due_s,
    put,
    settled,
)

LATER = Sent("later", "it answered 500")
OPS = {"ops": None}.keys()


def alert(name: str) -> Alert:
    return Alert(
        id=name,
        key=name,
        subject="budget",
        name="team",
        kind="spent",
        severity="warning",
        what="it is",
        at_s=0,
    )


def names(outbox: Outbox) -> list[str]:
    return [f"{parcel.webhook} {parcel.alert.id}" for parcel in outbox]


def filled(*alerts: str, webhooks: tuple[str, ...] = ("ops",)) -> Outbox:
    return put((), [alert(name) for name in alerts], webhooks, 0.0)[0]


def test_each_alert_waits_once_for_each_webhook() -> None:
    assert names(filled("a", "b", webhooks=("ops", "chat"))) == [
        *("ops a", "ops b", "chat a", "chat b")
    ]


def test_the_oldest_makes_room_and_is_counted() -> None:
    full = filled(*(f"a{number}" for number in range(MAX_WAITING)))
    outbox, lost = put(full, [alert("new"), alert("newer")], ("ops", "chat"), 5.0)
    assert dict(lost) == {"ops": 2}
    ops = [name for name in names(outbox) if name.startswith("ops")]
    assert (len(ops), ops[0], ops[-1]) == (MAX_WAITING, "ops a2", "ops newer")
    assert names(outbox)[-2:] == ["chat new", "chat newer"]


def test_the_oldest_of_each_webhook_is_claimed_and_nobody_else_gets_it() -> None:
    outbox, claimed, lost = claim(filled("a", "b", webhooks=("ops", "chat")), ("ops", "chat"), 1.0)
    assert names(tuple(claimed)) == ["ops a", "chat a"]
    assert not lost
    _, again, _ = claim(outbox, ("ops", "chat"), 1.0)
    assert names(tuple(again)) == ["ops b", "chat b"]


def test_a_claim_that_nobody_ended_ends_by_itself() -> None:
    outbox, _, _ = claim(filled("a"), OPS, 0.0)
    assert claim(outbox, OPS, CLAIM_S - 1)[1] == []
    (again,) = claim(outbox, OPS, CLAIM_S)[1]
    assert (again.alert.id, again.tries) == ("a", 2)


@pytest.mark.parametrize("result", ["delivered", "never"])
def test_what_is_delivered_or_hopeless_is_gone(result: Literal["delivered", "never"]) -> None:
    outbox, (mine,), _ = claim(filled("a", "b"), OPS, 0.0)
    left, lost = settled(outbox, mine, Sent(result), 1.0)
    assert names(left) == ["ops b"]
    assert lost == ({} if result == "delivered" else {"ops": 1})


def test_an_alert_is_tried_a_bounded_number_of_times_within_its_deadline() -> None:
    outbox, now_s, tried_s = filled("a"), 0.0, []
    lost: Mapping[str, int] = {}
    while outbox:
        due_s = next_due_s(outbox)
        assert due_s is not None
        now_s = due_s
        outbox, claimed, _ = claim(outbox, OPS, now_s)
        tried_s.append(now_s)
        outbox, lost = settled(outbox, claimed[0], LATER, now_s)
    assert len(tried_s) == MAX_TRIES == len(BACKOFF_S) + 1
    assert tried_s[-1] == sum(BACKOFF_S) < DEADLINE_S
    assert lost == {"ops": 1}
    assert next_due_s(outbox) is None


def test_nothing_is_tried_before_its_retry_after() -> None:
    outbox, (mine,), _ = claim(filled("a"), OPS, 0.0)
    outbox, lost = settled(outbox, mine, Sent("later", "429", 200.0), 1.0)
    assert (next_due_s(outbox), lost) == (201.0, {})


def test_a_retry_after_beyond_the_deadline_is_given_up_at_once() -> None:
    outbox, (mine,), _ = claim(filled("a"), OPS, 0.0)
    assert settled(outbox, mine, Sent("later", "429", DEADLINE_S), 1.0) == ((), {"ops": 1})


@pytest.mark.parametrize("webhooks", [(), ("chat",)])
def test_what_waits_for_a_webhook_that_is_no_more_is_lost(webhooks: tuple[str, ...]) -> None:
    outbox, claimed, lost = claim(filled("a"), webhooks, 0.0)
    assert (outbox, claimed, dict(lost)) == ((), [], {"ops": 1})


def test_what_died_in_its_last_try_or_is_too_old_is_lost() -> None:
    outbox = filled("a")
    for _ in range(MAX_TRIES):
        outbox, claimed, _ = claim(outbox, OPS, next_due_s(outbox) or 0.0)
        assert claimed
    assert claim(outbox, OPS, next_due_s(outbox) or 0.0)[2] == {"ops": 1}
    assert claim(filled("a"), OPS, DEADLINE_S + 1)[2] == {"ops": 1}


def test_one_who_took_too_long_does_not_undo_what_another_does() -> None:
    outbox, (slow,), _ = claim(filled("a"), OPS, 0.0)
    outbox, (quick,), _ = claim(outbox, OPS, CLAIM_S)
    assert settled(outbox, slow, LATER, CLAIM_S + 1) == (outbox, {})
    assert settled(outbox, slow, Sent("delivered"), CLAIM_S + 1) == ((), {})
    assert settled((), quick, LATER, CLAIM_S + 2) == ((), {})


def test_a_full_line_of_the_longest_alerts_fits_into_a_note() -> None:
    wide = "\U0001f4b8"
    longest = Alert(
        id="x" * 300,
        key="x" * 280,
        subject="balance",
        name="n" * 64,
        payer="p" * 100,
        kind="balance_stale",
        severity="critical",
        what=wide * (MAX_REASON + 100),
        reason=wide * MAX_REASON,
        at_s=1e9,
    )
    outbox, _ = put((), [longest] * MAX_WAITING, ["w" * 64], 1e9)
    assert len(msgspec.json.encode(outbox)) < MAX_BODY
