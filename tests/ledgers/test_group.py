"""Group commit, in front of a ledger that does as the test says: answers, fails, or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import structs
from scripted_ledger import SOON_S, ScriptedLedger, soon, until

from budget_proxy.core.book import (
    AlreadyEnded,
    Ended,
    Held,
    Hold,
    Leg,
    NoSuchHold,
    Operation,
    Outcome,
    Presume,
    Release,
    Settle,
    Short,
)
from budget_proxy.core.window import Span
from budget_proxy.ledgers import LedgerDownError, UnkeepableError, group
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.patience import Patience
from budget_proxy.ledgers.pending import MAX_BATCH
from budget_proxy.ledgers.sqlite import SqliteLedger

TOTAL = Span("total")


def hold(name: str, amount: int = 1) -> Hold:
    return Hold(name, "me", (Leg("A", "(all)", "USD", TOTAL, 100, amount),), 60.0)


def settle(name: str, amount: int = 1) -> Settle:
    return Settle(name, {"USD": amount}, "actual")


def release(name: str) -> Release:
    return Release(name, "not_sent")


@contextlib.contextmanager
def down() -> Any:
    with pytest.raises(LedgerDownError) as caught:
        yield caught


Story = Callable[[GroupCommit, ScriptedLedger], Awaitable[None]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a story in front of a ledger with a script; after it nothing may be under way."""
    monkeypatch.setattr(group, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(group, "RETRY_MOST_S", 0.02)
    monkeypatch.setattr(group, "STALLED_TURN_S", 0.01)

    def run(
        story: Story, *script: str, deadline_s: float = SOON_S, hold_s: float = SOON_S
    ) -> list[str]:
        changes: list[str] = []

        async def whole() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: changes.append(f"!! {context}"))
            ledger = ScriptedLedger(*script)
            commit = GroupCommit(
                ledger,
                deadline_s=deadline_s,
                patience=Patience(hold_s, hold_s),
                on_change=lambda up, why: changes.append("up" if up else f"down: {why}"),
            )
            await soon(story(commit, ledger))
            await soon(commit.settled())
            assert ledger.script == [], "the whole script was played"
            assert repr(commit).endswith("(up: 0 committing, 0 waiting)")
            assert len(asyncio.all_tasks()) == 1
            assert await ledger.check() == []

        asyncio.run(whole())
        return changes

    return run


# -- batches -------------------------------------------------------------------------------------


def test_what_comes_while_a_commit_runs_goes_into_the_next_one_in_order(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        first = commit.commit(hold("1"))
        await until(lambda: ledger.batches)
        rest = [commit.commit(hold("2")), commit.land(settle("1")), commit.commit(hold("3", 500))]
        ledger.go_on()
        assert isinstance(await first, Held)
        outcomes = [await one for one in rest]
        assert [type(outcome) for outcome in outcomes] == [Held, Ended, Short]
        assert ledger.batches == ["H1", "H2 S1 H3"]
        assert ledger.figures == [(1, 1)]

    assert told(story, "hangs") == []


def test_what_comes_while_a_commit_waits_for_its_turn_still_goes_into_it(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        first = commit.commit(hold("1"))
        await until(lambda: ledger.batches)
        rest = [commit.commit(hold("2")), commit.land(settle("1")), commit.commit(hold("3", 500))]
        ledger.go_on()
        outcomes = [await one for one in (first, *rest)]
        assert [type(outcome) for outcome in outcomes] == [Held, Held, Ended, Short]
        assert ledger.batches == ["H1 H2 S1 H3"]
        assert ledger.figures == [(1, 1)]

    assert told(story, "waits") == []


def test_what_joined_a_batch_that_fails_fails_with_it_and_lands_in_order(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        landed = [commit.land(release("9"))]
        await until(lambda: len(ledger.batches) == 2)
        held = commit.commit(hold("2"))
        landed.append(commit.land(settle("1", 5)))
        ledger.go_on()
        with down():
            await held
        assert [type(await one) for one in landed] == [NoSuchHold, Ended]
        assert ledger.batches[1:] == ["R9 H2 S1", "R9 S1 R2"]
        assert ledger.figures == [(5, 0)]

    told(story, "ok", "waits", "lands")


def test_a_batch_that_others_join_has_the_same_bound(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answers = [commit.land(release("0"))]
        await until(lambda: ledger.batches)
        answers += [commit.land(release(f"{number}")) for number in range(1, MAX_BATCH + 5)]
        ledger.go_on()
        assert [type(await one) for one in answers] == [NoSuchHold] * len(answers)
        assert [len(batch.split()) for batch in ledger.batches] == [MAX_BATCH, 5]
        assert " ".join(ledger.batches).split() == [f"R{n}" for n in range(len(answers))]

    told(story, "waits")


def test_a_batch_has_a_bound(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answers = [commit.land(release(f"{number}")) for number in range(2 * MAX_BATCH + 5)]
        assert [type(await one) for one in answers] == [NoSuchHold] * len(answers)
        sizes = [len(batch.split()) for batch in ledger.batches]
        assert sizes == [MAX_BATCH, MAX_BATCH, 5]
        assert " ".join(ledger.batches).split() == [f"R{n}" for n in range(len(answers))]

    assert told(story) == []


def test_settled_waits_for_all_of_it(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.settled()  # nothing is under way
        await commit.commit(hold("1"))
        commit.land(settle("1"))
        await until(lambda: len(ledger.batches) == 2)
        commit.land(release("9"))
        waits = asyncio.create_task(commit.settled())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waits.done()
        ledger.go_on()
        await waits
        assert ledger.batches == ["H1", "S1", "R9"]

    assert told(story, "ok", "hangs") == []


# -- what may linger -----------------------------------------------------------------------------


def test_what_may_linger_shares_a_commit(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answers = [commit.land(release(name), may_linger=True) for name in "123"]
        assert [type(await one) for one in answers] == [NoSuchHold] * 3
        assert ledger.batches == ["R1 R2 R3"]

    assert told(story) == []


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "LINGER_S", 3600.0)


@pytest.mark.usefixtures("endless")
def test_whatever_cannot_linger_takes_it_along_before_itself(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        assert isinstance(await commit.commit(hold("1", 100)), Held)
        ended = commit.land(settle("1", 40), may_linger=True)
        assert isinstance(await commit.commit(hold("2", 60)), Held)
        assert isinstance(await ended, Ended)
        commit.land(settle("2", 60), may_linger=True)
        await commit.land(release("9"))
        assert ledger.batches == ["H1", "S1 H2", "S2 R9"]

    assert told(story) == []


@pytest.mark.usefixtures("endless")
def test_what_lingers_at_the_end_of_a_commit_begins_no_other(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        held = [commit.commit(hold("1"))]
        await until(lambda: ledger.batches)
        ended = commit.land(settle("0"), may_linger=True)
        ledger.go_on()
        await held[0]
        held = [commit.commit(hold("2")), commit.commit(hold("3"))]
        await until(lambda: len(ledger.batches) == 2)
        commit.land(settle("1"), may_linger=True)
        held.append(commit.commit(hold("4")))
        ledger.go_on()
        await held[-1]
        assert ended.done()
        assert ledger.batches == ["H1", "S0 H2 H3", "S1 H4"]

    assert told(story, "hangs", "ok", "hangs") == []


@pytest.mark.usefixtures("endless")
def test_what_lingers_is_no_reason_to_wait_for_the_end(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        commit.land(settle("1", 7), may_linger=True)
        await commit.settled()
        assert ledger.batches == ["H1", "S1"]
        assert ledger.figures == [(7, 0)]

    assert told(story) == []


@pytest.mark.usefixtures("endless")
def test_what_lingers_and_fails_is_tried_again_soon(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        ended = commit.land(settle("1", 7), may_linger=True)
        with down():
            await commit.commit(hold("2"))
        assert isinstance(await ended, Ended)
        assert ledger.batches == ["H1", "S1 H2", "S1 R2"]

    assert told(story, "ok", "fails") == ["down: no disk", "up"]


@pytest.mark.usefixtures("endless")
def test_no_hold_is_refused_at_a_glance_for_what_only_lingers(tmp_path: Path) -> None:
    async def story() -> None:
        ledger = SqliteLedger.open(tmp_path / "ledger.db")
        commit = GroupCommit(ledger, deadline_s=SOON_S)
        try:
            assert isinstance(await soon(commit.commit(hold("1", 100))), Held)
            assert isinstance(await soon(commit.commit(hold("2"))), Short)
            fresh = hold("3", 60)
            assert isinstance(commit.hold(structs.replace(fresh, fresh=True)), Short)
            commit.land(settle("1", 40), may_linger=True)
            answer = commit.hold(structs.replace(fresh, fresh=True))
            assert isinstance(answer, asyncio.Future)
            assert isinstance(await soon(answer), Held)
        finally:
            await commit.settled()
            await ledger.close()

    asyncio.run(story())


# -- failures ------------------------------------------------------------------------------------


def test_a_hold_that_fails_is_refused_at_once_and_given_back(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        with down() as caught:
            await commit.commit(hold("1"))
        assert str(caught.value) == "no disk"
        ups = [commit.up]
        await commit.settled()
        assert [*ups, commit.up] == [False, True]
        assert ledger.batches == ["H1", "R1"]

    assert told(story, "fails") == ["down: no disk", "up"]


def test_a_hold_that_landed_all_the_same_is_given_back(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        with down():
            await commit.commit(hold("1", 100))
        assert ledger.figures == [(0, 100)]
        await commit.settled()
        assert ledger.figures == [(0, 0)]
        assert isinstance(await commit.commit(hold("2", 100)), Held)

    told(story, "lands")


def test_an_error_that_nobody_thought_of_is_a_failure_like_any_other(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        with down():
            await commit.commit(hold("1"))

    assert told(story, "breaks") == ["down: what is this?", "up"]


def test_what_must_land_is_tried_until_it_is_in_the_ledger_and_before_anything_later(
    told: Any,
) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        assert isinstance(await commit.commit(hold("1")), Held)
        landed = commit.land(settle("1", 5))
        await until(lambda: len(ledger.batches) == 3)
        later = commit.land(release("9"))
        assert await soon(landed) == Ended("settled", ((await soon(landed)).overruns))
        await later
        assert ledger.batches[:3] == ["H1", "S1", "S1"]
        assert " ".join(ledger.batches).split()[-2:] == ["S1", "R9"]
        assert ledger.figures == [(5, 0)]

    assert told(story, "ok", "fails", "fails", "fails") == ["down: no disk", "up"]


def test_of_a_batch_that_failed_what_must_land_comes_first_and_in_order(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        for name in "123":
            await commit.commit(hold(name))
        first = commit.commit(hold("4"))
        await until(lambda: len(ledger.batches) == 4)
        answers = [commit.land(settle("1")), commit.commit(hold("5")), commit.land(release("2"))]
        presumed = commit.commit(Presume("3", "deadline"))
        ledger.go_on()
        assert isinstance(await first, Held)
        for answer in (answers[1], presumed):
            with down():
                await answer
        assert [type(await answers[0]), type(await answers[2])] == [Ended, Ended]
        assert ledger.batches[4:] == ["S1 H5 R2 P3", "S1 R2 R5"]
        assert ledger.figures == [(1, 2)]

    told(story, "ok", "ok", "ok", "hangs", "ok", "fails")


def test_a_settlement_whose_first_attempt_landed_has_landed(told: Any) -> None:
    """Its repetition finds the hold ended, and that is no broken promise."""

    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        assert await commit.land(settle("1", 1)) == Ended("settled")
        assert await commit.land(settle("1", 1)) == AlreadyEnded("settled")
        assert ledger.figures == [(1, 0)]

    told(story, "ok", "lands")


def test_newcomers_are_refused_while_the_next_try_is_some_time_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group, "RETRY_FIRST_S", 3600.0)

    async def story() -> None:
        ledger = ScriptedLedger("ok", "fails")
        commit = GroupCommit(ledger)
        await commit.commit(hold("1"))
        landed = commit.land(settle("1"))
        await until(lambda: not commit.up)
        for name in "23":
            with down():
                await soon(commit.commit(hold(name)))
        assert ledger.batches == ["H1", "S1"], "the disk is left in peace"
        assert not landed.done()

    asyncio.run(story())


def test_holds_alone_wait_for_nothing_once_the_ledger_is_back(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        for name in "123":
            with down():
                await commit.commit(hold(name))
        await until(lambda: commit.up)
        assert isinstance(await commit.commit(hold("4")), Held)
        assert ledger.figures == [(0, 1)]

    assert told(story, "fails", "fails", "fails") == ["down: no disk", "up"]


def test_a_change_is_told_once(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        for name in "1234":
            with contextlib.suppress(LedgerDownError):
                await commit.commit(hold(name))
            await commit.settled()

    changes = told(story, "ok", "fails", "fails", "ok", "lands", "ok", "ok")
    assert changes == ["down: no disk", "up", "down: no answer from the disk", "up"]


# -- a store that hangs --------------------------------------------------------------------------


def test_nobody_is_kept_waiting_by_a_store_that_hangs(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        first = commit.commit(hold("1", 60))
        await until(lambda: ledger.batches)
        second = commit.commit(hold("2"))
        for answer in (first, second):
            with down() as caught:
                await soon(answer)
            assert "did not answer within 0.02 s" in str(caught.value)
        for name in "345":
            with down():
                await soon(commit.commit(hold(name)))
        landed = commit.land(release("7"))
        assert not commit.up
        ledger.go_on()
        await soon(landed)
        assert ledger.batches[0] == "H1"
        assert " ".join(ledger.batches[1:]).split() == ["R7", "R1"], "and the hold went back"
        assert ledger.figures == [(0, 0)]

    changes = told(story, "hangs", deadline_s=0.02)
    assert changes == ["down: the ledger did not answer within 0.02 s", "up"]


def test_a_store_that_hangs_and_then_fails(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        landed = commit.land(settle("1"))
        refused = commit.commit(hold("2"))
        with down():
            await soon(refused)
        assert not landed.done(), "that one must land, however long it takes"
        ledger.go_on()
        assert isinstance(await landed, Ended)
        await commit.settled()
        assert ledger.batches == ["H1", "S1 H2", "S1 R2"]
        assert ledger.figures == [(1, 0)]

    changes = told(story, "ok", "hangs", "fails", deadline_s=0.02)
    assert changes == ["down: the ledger did not answer within 0.02 s", "up"]


def test_a_store_that_hangs_and_then_lands_and_fails(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        with down():
            await soon(commit.commit(hold("1", 100)))
        ledger.go_on()
        await until(lambda: ledger.figures == [(0, 0)])

    told(story, "hangs", "lands", deadline_s=0.02)


def test_a_commit_that_is_over_raises_no_alarm(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        with down():
            await commit.commit(hold("2"))
        await commit.settled()
        await asyncio.sleep(0.1)  # several deadlines: nothing happens any more
        assert commit.up

    assert told(story, "ok", "fails", deadline_s=0.02) == ["down: no disk", "up"]


def test_calls_are_told_sooner_than_others_and_at_once_while_the_store_hangs(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        first, other = commit.hold(hold("1", 60)), commit.commit(Presume("9", "deadline"))
        assert isinstance(first, asyncio.Future)
        with down() as caught:
            await soon(first)
        assert str(caught.value) == "the ledger did not answer within 0.02 s"
        assert not commit.up
        for name in "345":
            answer = commit.hold(hold(name))
            assert isinstance(answer, asyncio.Future)
            assert answer.done(), "there is nothing to wait for"
            with down():
                await answer
        assert not other.done(), "what is no call has more time"
        ledger.go_on()
        assert isinstance(await soon(other), NoSuchHold)
        await until(lambda: ledger.figures == [(0, 0)])
        answer = commit.hold(hold("6"))
        assert isinstance(answer, asyncio.Future)
        assert isinstance(await soon(answer), Held)
        assert ledger.batches == ["H1 P9", "R1", "H6"] or ledger.batches == [
            *("H1", "P9 R1", "H6"),
        ]

    changes = told(story, "hangs", hold_s=0.02)
    assert changes == ["down: the ledger did not answer within 0.02 s", "up"]


def test_an_answer_that_came_while_we_had_no_time_is_read(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answer = commit.hold(hold("1"))
        for _ in range(1000):  # turn by turn, so that no alarm rings meanwhile
            if not ledger.batches:
                await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(ledger.go_on)
        time.sleep(0.3)  # noqa: ASYNC251 - the alarm is late
        assert isinstance(answer, asyncio.Future)
        assert isinstance(await soon(answer), Held)

    assert told(story, "hangs", hold_s=0.029) == []


def test_a_hold_that_must_land_is_tried_again_and_never_given_back(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        held = commit.land(hold("1", 60))
        ended = commit.land(settle("1", 7))
        assert isinstance(await soon(held), Ended), "its repetition found both done"
        assert await soon(ended) == Ended("settled")
        assert ledger.figures == [(7, 0)]
        assert set(" ".join(ledger.batches).split()) == {"H1", "S1"}
        commit.land(hold("2", 5)).cancel()
        await commit.settled()
        assert ledger.figures == [(7, 5)]

    assert told(story, "fails", "lands", "fails") == ["down: no disk", "up"]


# -- what can never be kept ----------------------------------------------------------------------


def test_who_cannot_be_kept_is_looked_for_by_halves_and_order_is_kept(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        ledger.refuses = {"4", "7"}
        names = [commit.commit(hold(name)) for name in "2345"]
        names += [commit.land(settle("1")), commit.commit(hold("6")), commit.commit(hold("7"))]
        answers = await asyncio.gather(*names, return_exceptions=True)
        assert [type(answer) for answer in answers] == [
            *(Held, Held, UnkeepableError, Held, Ended, Held, UnkeepableError),
        ]
        assert ledger.batches[1:] == [
            *("H2 H3 H4 H5 S1 H6 H7", "H2 H3 H4", "H2", "H3 H4", "H3", "H4"),
            *("H5 S1 H6 H7", "H5 S1", "H6 H7", "H6", "H7"),
        ]
        assert ledger.figures == [(1, 4)], "and nothing was given back that was never kept"

    assert told(story) == []


def test_while_it_is_looked_for_nobody_joins(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        ledger.refuses = {"2"}
        answers = [commit.commit(hold(name)) for name in "12"]
        await until(lambda: len(ledger.batches) == 2)
        answers += [commit.commit(hold(name)) for name in "34"]
        ledger.go_on()
        got = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(one) for one in got] == [Held, UnkeepableError, Held, Held]
        assert ledger.batches == ["H1 H2", "H1", "H2", "H3 H4"]

    assert told(story, "ok", "waits") == []


def test_what_must_land_and_cannot_is_set_aside_once_its_remark_landed(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        for name in "12":
            await commit.commit(hold(name, 9))
        ledger.refuses = {"1"}
        ended = [commit.land(settle("1", 5)), commit.land(release("2"))]
        with pytest.raises(UnkeepableError):
            await ended[0]
        assert isinstance(await ended[1], Ended)
        assert ledger.batches[2:] == [
            *("S1 R2", "S1", "R1/set_aside", "R1/set_aside R2", "R1/set_aside R2"),
        ]
        assert ledger.figures == [(0, 9)], "its hold stays"
        assert ledger.kept_entries["1/set_aside"].rule == "set_aside"

    assert told(story, *["ok"] * 4, "lands", "fails") == ["down: no answer from the disk", "up"]


def test_while_the_guilty_are_looked_for_nobody_waits_longer_than_the_deadline(told: Any) -> None:
    """Fifty need a hundred commits, each soon done."""

    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        bad = [str(number) for number in range(50)]
        ledger.refuses, ledger.takes_s = set(bad), 0.005
        first = commit.commit(hold("first"))
        await until(lambda: ledger.batches)
        guilty = [commit.commit(hold(name)) for name in bad]
        innocent = commit.commit(hold("innocent"))
        end = commit.land(settle("first"))
        assert isinstance(await first, Held)
        with pytest.raises(LedgerDownError, match="did not answer within"):
            await soon(innocent)
        assert isinstance(await soon(end), Ended)
        await soon(commit.settled())
        assert ledger.figures == [(1, 0)], "a hold that nobody waited for is given back"
        assert all(isinstance(one.exception(), LedgerDownError) for one in guilty)

    told(story, deadline_s=0.05)


def test_where_its_remark_is_refused_too_it_is_the_store_and_nothing_is_set_aside(
    told: Any,
) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1", 9))
        ledger.refuses = {"1", "1/set_aside"}
        ended = commit.land(settle("1", 5))
        await until(lambda: not commit.up)
        assert not ended.done()
        ledger.refuses = set()
        assert isinstance(await ended, Ended)
        assert ledger.figures == [(5, 0)]
        assert list(ledger.kept_entries) == ["1"]

    assert told(story) == ["down: no such name", "up"]


def test_a_disk_that_fails_meanwhile_begins_it_anew_and_loses_nothing(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        for name in "123":
            await commit.commit(hold(name))
        ledger.refuses = {"9"}
        ended = [commit.land(settle(name)) for name in "12"]
        held = commit.commit(hold("9"))
        ended.append(commit.land(settle("3")))
        with down():
            await held
        assert [type(await one) for one in ended] == [Ended] * 3
        assert ledger.batches[3:] == ["S1 S2 H9 S3", "S1 S2", "S1 S2 S3"]
        assert ledger.figures == [(3, 0)]

    assert told(story, *["ok"] * 4, "fails") == ["down: no disk", "up"]


def test_it_is_looked_for_no_longer_than_a_commit_may_take(told: Any) -> None:
    """Who cannot wait is told so; the rest goes on, in the same parts."""

    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        ledger.refuses = {"3"}
        answers = [commit.land(settle("1")), commit.commit(hold("2")), commit.commit(hold("3"))]
        last = commit.land(release("4"))
        for answer in answers[1:]:
            with down():
                await answer
        ledger.go_on()
        assert isinstance(await answers[0], Ended)
        assert isinstance(await last, NoSuchHold)
        await commit.settled()
        assert ledger.batches[1:] == ["S1 H2 H3 R4", "S1 H2", "R4", "R2"]
        assert ledger.figures == [(1, 0)]

    told(story, "ok", "ok", "hangs", deadline_s=0.05)


# -- callers who go away -------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["waiting in line", "being committed"])
def test_the_hold_of_a_caller_that_was_cancelled_is_given_back(told: Any, when: str) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        blocking = commit.land(release("0"))
        await until(lambda: ledger.batches)
        caller = asyncio.ensure_future(_ask(commit, hold("1", 100)))
        await asyncio.sleep(0)
        if when == "being committed":
            ledger.go_on()
            await blocking
            await until(lambda: len(ledger.batches) == 2)
        caller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await caller
        ledger.go_on()
        await until(lambda: ledger.figures == [(0, 0)])
        assert ledger.batches == ["R0", "H1", "R1"]
        assert ledger.kept_entries["1"].rule == "nobody_waited"

    script = ["hangs", "ok", "hangs"] if when == "being committed" else ["hangs"]
    told(story, *script)


async def _ask(commit: GroupCommit, operation: Operation) -> Outcome:
    return await commit.commit(operation)


def test_the_failure_of_a_hold_whose_caller_was_cancelled_is_nobodys(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answer = commit.commit(hold("1"))
        answer.cancel()
        del answer
        await commit.settled()
        assert ledger.batches == ["H1", "R1"]

    assert told(story, "lands") == ["down: no answer from the disk", "up"]


def test_a_landing_that_nobody_waits_for_lands(told: Any) -> None:
    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        await commit.commit(hold("1"))
        commit.land(settle("1")).cancel()
        await commit.settled()
        assert ledger.figures == [(1, 0)]

    told(story, "ok", "fails")


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_the_ledger_is_what_its_callers_know(told: Any, seed: int) -> None:
    random = Random(seed)
    words = random.choices(("ok", "fails", "lands", "breaks"), (5, 1, 1, 0.3), k=60)
    spent: list[str] = []

    async def caller(commit: GroupCommit, name: str, answer: asyncio.Future[Outcome]) -> None:
        try:
            outcome = await answer
        except (LedgerDownError, asyncio.CancelledError):
            return
        assert isinstance(outcome, Held | Short)
        if isinstance(outcome, Short):
            return
        if random.random() < 0.5:
            commit.land(settle(name))
            spent.append(name)
        else:
            commit.land(release(name))

    async def story(commit: GroupCommit, ledger: ScriptedLedger) -> None:
        answers: list[asyncio.Future[Outcome]] = []
        async with asyncio.TaskGroup() as callers:
            while ledger.script or len(answers) < 100:
                name = f"{len(answers)}"
                answers.append(commit.commit(hold(name)))
                callers.create_task(caller(commit, name, answers[-1]))
                await asyncio.sleep(random.choice((0, 0, 0.001)))
                if random.random() < 0.15:
                    random.choice(answers[-10:]).cancel()
        await commit.settled()
        assert ledger.figures == [(len(spent), 0)], "every hold was ended"

    changes = told(story, *words)
    assert not [change for change in changes if change.startswith("!!")]
    assert "down: no disk" in changes
