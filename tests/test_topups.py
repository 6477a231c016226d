"""Buying money over a real hook: once, whatever the hook, the ledger or another keeper do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from memory_ledger import MemoryLedger

from budget_proxy.control_client import fetch
from budget_proxy.core.book import Entry
from budget_proxy.core.events import Event, TopUpMoved
from budget_proxy.core.hook import CommandHook, HttpHook, Ok
from budget_proxy.core.jsonpath import path_of
from budget_proxy.core.money import NANOS
from budget_proxy.core.notes import Change
from budget_proxy.core.topup import Attempt, NoSuchTopUpError, NotNowError, Plan, Standing
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.records import readable
from budget_proxy.topups import TopUps

NOW_S = 1_800_000_000.0
PAID = Ok(path_of("status"), ("succeeded",))


def on_a_loop(story: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(story)
    def test(*args: Any, **named: Any) -> None:
        async def run() -> None:
            await story(*args, **named)

        asyncio.run(run())

    return test


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Hook:
    """A server of the user's: what it heard, and one answer for each call in turn."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.hangs = asyncio.Event()
        self.url = ""

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.heard]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.heard.append((request.headers["Idempotency-Key"], await request.json()))
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "hangs":
            self.hangs.set()
            await asyncio.sleep(3600)
        if answer == "drops":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, int):
            return web.json_response({"status": "succeeded"}, status=answer)
        if isinstance(answer, str):
            return web.Response(text=answer, content_type="text/html")
        return web.json_response(answer)


@contextlib.asynccontextmanager
async def serving(hook: Hook) -> AsyncIterator[Hook]:
    application = web.Application()
    application.router.add_post("/topups", hook.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/topups"
    try:
        yield hook
    finally:
        await runner.cleanup()


def plan_for(url: str, **more: Any) -> Plan:
    hook = HttpHook(
        url,
        headers=(("Authorization", "Bearer sk-secret"),),
        body='{"amount": "{amount}", "currency": "{currency}", "why": "{reason}"}',
        ok=PAID,
    )
    known: dict[str, Any] = {
        "hook": hook,
        "below": 20 * NANOS,
        "most_per_day": 5,
        "most_per_month": 500 * NANOS,
        "timeout_s": 20.0,
    }
    return Plan("acme", "USD", 50 * NANOS, **{**known, **more})


class Keeper:
    """One machine's top-ups, over a ledger that others may share."""

    _names = count()

    def __init__(self, ledger: Any, clock: Clock, plan: Plan, fetch: Any = fetch) -> None:
        self.clock = clock
        self.ledger = ledger
        self.events: list[Event] = []
        name, numbers = next(self._names), count()
        self.commit = GroupCommit(ledger)
        self.topups = TopUps(
            ledger,
            self.commit,
            fetch,
            clock=clock,
            new_id=lambda: f"{name}-{next(numbers):04}",
            emit=self.events.append,
        )
        self.topups.put([plan])

    async def look(self, dollars: int | None = 10, **more: Any) -> str:
        """One look at so many usable dollars, and what it begins ended; why nothing was."""
        usable = None if dollars is None else dollars * NANOS
        standing = Standing("acme", usable, None, usable, self.clock(), **more)
        decision = await self.topups.look(standing)
        await self.topups.settled()
        return decision.why if decision.do == "nothing" else decision.do

    async def attempts(self) -> list[Attempt]:
        return [attempt for _, attempt in await self.topups.all()]

    async def states(self) -> list[str]:
        return [attempt.state for attempt in await self.attempts()]

    async def entries(self) -> list[dict[str, Any]]:
        await self.commit.settled()
        found: list[Entry] = await self.ledger.entries(0)
        return [readable(entry) for entry in found if entry.rule == "topup"]


@contextlib.asynccontextmanager
async def bought_from(*answers: Any, **more: Any) -> AsyncIterator[tuple[Hook, Keeper]]:
    clock = Clock()
    async with serving(Hook(*answers)) as hook:
        keeper = Keeper(MemoryLedger(clock), clock, plan_for(hook.url, **more))
        yield hook, keeper
        await keeper.topups.close()


@on_a_loop
async def test_money_is_bought_once_and_confirmed_by_a_reading() -> None:
    async with bought_from() as (hook, keeper):
        assert await keeper.look() == "run"
        assert await keeper.states() == ["sent"]
        keeper.clock.now_s += 60
        assert await keeper.look() == "one waits for confirmation"
        assert keeper.topups.on_its_way("acme") == 50 * NANOS
        keeper.clock.now_s += 60
        assert await keeper.look(60) == "there is enough"
        assert await keeper.states() == ["confirmed"]
        assert keeper.topups.on_its_way("acme") == 0
        ((key, body),) = hook.heard
        assert body == {"amount": "50", "currency": "USD", "why": "below 20 USD"}
        assert key == (await keeper.attempts())[0].id
        assert [entry["what"]["state"] for entry in await keeper.entries()] == [
            *("running", "sent", "confirmed")
        ]
        moved = [event for event in keeper.events if isinstance(event, TopUpMoved)]
        assert [(it.state, it.landed) for it in moved] == [
            ("running", False),
            ("sent", False),
            ("confirmed", True),
        ]


UNKNOWN: list[Any] = ["hangs", "drops", 500, 502, 408, 409]


@pytest.mark.parametrize("answer", UNKNOWN)
@on_a_loop
async def test_where_nobody_knows_nothing_is_sent_again(answer: Any) -> None:
    async with bought_from(answer, timeout_s=0.2, cool_down_s=0.0) as (hook, keeper):
        assert await keeper.look() == "run"
        for _ in range(5):
            keeper.clock.now_s += 86_400
            assert await keeper.look() == "one is unknown"
        assert len(hook.heard) == 1
        (attempt,) = await keeper.attempts()
        assert (attempt.state, attempt.needs_person) == ("unknown", True)


@pytest.mark.parametrize("answer", UNKNOWN)
@on_a_loop
async def test_money_that_came_all_the_same_is_confirmed(answer: Any) -> None:
    async with bought_from(answer, timeout_s=0.2) as (hook, keeper):
        await keeper.look()
        keeper.clock.now_s += 60
        assert await keeper.look(60) == "there is enough"
        assert await keeper.states() == ["confirmed"]
        assert len(hook.heard) == 1


@pytest.mark.parametrize("landed", [True, False])
@on_a_loop
async def test_a_person_decides_what_no_reading_shows(landed: bool) -> None:
    async with bought_from("drops", most_per_month=90 * NANOS) as (hook, keeper):
        await keeper.look()
        (attempt,) = await keeper.attempts()
        await keeper.topups.decide(attempt.id, "ada", landed=landed)
        keeper.clock.now_s += 3600
        # Money that came counts in the month, money that did not does not.
        assert await keeper.look() == ("month's amount" if landed else "run")
        assert len(set(hook.keys)) == len(hook.keys) == (1 if landed else 2)
        decided = [it for it in await keeper.entries() if it["what"]["state"] == "decided"]
        assert [entry["who"] for entry in decided] == ["ada"]


FAILED: list[Any] = [400, 402, 429, {"status": "declined"}, {"error": "no"}]


@pytest.mark.parametrize("answer", FAILED)
@on_a_loop
async def test_what_surely_failed_is_tried_again_with_the_same_key(answer: Any) -> None:
    async with bought_from(answer, answer, 200) as (hook, keeper):
        assert await keeper.look() == "run"
        assert await keeper.look() == "a pause before the next try"
        keeper.clock.now_s += 30
        assert await keeper.look() == "run"
        keeper.clock.now_s += 60
        assert await keeper.look() == "run"
        assert await keeper.states() == ["sent"]
        assert len(hook.keys) == 3
        assert len(set(hook.keys)) == 1


@on_a_loop
async def test_what_fails_each_time_is_given_up_within_its_bounds() -> None:
    async with bought_from(*[402] * 99, most_per_day=2, cool_down_s=1800.0) as (hook, keeper):
        start_s = keeper.clock.now_s
        while keeper.clock.now_s < start_s + 6 * 3600:  # the same day
            await keeper.look()
            keeper.clock.now_s += 30
        assert await keeper.states() == ["failed", "failed"]
        assert len(hook.heard) == 6
        assert len(set(hook.keys)) == 2


@on_a_loop
async def test_a_page_for_people_is_not_taken_for_a_yes() -> None:
    async with bought_from("<!-- down --><p>Back soon") as (hook, keeper):
        plain = HttpHook(hook.url, body='{"id": "{id}"}')
        keeper.topups.put([plan_for(hook.url, hook=plain)])
        await keeper.look()
        assert await keeper.states() == ["unknown"]


@on_a_loop
async def test_a_hook_that_is_not_there_is_tried_again() -> None:
    async with bought_from() as (hook, keeper):
        keeper.topups.put([plan_for("http://127.0.0.1:9/topups")])
        await keeper.look()
        (attempt,) = await keeper.attempts()
        assert attempt.state == "failed"
        assert attempt.why == "the hook: cannot connect: Connection refused"
        keeper.topups.put([plan_for(hook.url)])
        keeper.clock.now_s += 30
        assert await keeper.look() == "run"
        assert hook.keys == [attempt.id]


@on_a_loop
async def test_no_secret_is_logged_or_kept(caplog: pytest.LogCaptureFixture) -> None:
    for answer in ("drops", 500, 402, {"status": "sk-secret"}):
        async with bought_from(answer) as (hook, keeper):
            await keeper.look()
            await keeper.entries()
            kept = repr((keeper.ledger.kept_notes, keeper.ledger.kept_entries, keeper.events))
            assert "topup" in kept
            assert "sk-secret" not in kept + caplog.text
            assert hook.url not in kept + caplog.text


# -- asking people ---------------------------------------------------------------------------------


@on_a_loop
async def test_ask_waits_for_a_person() -> None:
    async with bought_from(mode="ask") as (hook, keeper):
        assert await keeper.look() == "ask"
        assert await keeper.look() == "one waits for approval"
        assert hook.heard == []
        (attempt,) = await keeper.attempts()
        await keeper.topups.approve(attempt.id, "ada")
        await keeper.topups.settled()
        assert hook.keys == [attempt.id]
        assert await keeper.states() == ["sent"]
        approvals = [it for it in await keeper.entries() if it["what"]["state"] == "approved"]
        assert [entry["who"] for entry in approvals] == ["ada"]
        with pytest.raises(NotNowError, match="is sent: there is nothing to approve"):
            await keeper.topups.approve(attempt.id, "bob")


@on_a_loop
async def test_a_no_of_a_person_holds_for_the_cool_down() -> None:
    async with bought_from(mode="ask", cool_down_s=600.0) as (hook, keeper):
        await keeper.look()
        (attempt,) = await keeper.attempts()
        await keeper.topups.refuse(attempt.id, "ada", "not this month")
        assert await keeper.look() == "cool down"
        keeper.clock.now_s += 600
        assert await keeper.look() == "ask"
        assert hook.heard == []
        assert (await keeper.attempts())[0].why == "not this month"


@on_a_loop
async def test_an_approval_that_no_machine_heard_runs_at_the_next_look() -> None:
    async with bought_from(mode="ask") as (hook, keeper):
        await keeper.look()
        (attempt,) = await keeper.attempts()
        other = Keeper(keeper.ledger, keeper.clock, plan_for(hook.url, mode="ask"))
        await other.topups.approve(attempt.id, "ada")  # it has read no balance
        assert hook.heard == []
        assert await keeper.look(500) == "run"
        assert hook.keys == [attempt.id]


@on_a_loop
async def test_an_id_that_nobody_gave_is_no_attempt() -> None:
    async with bought_from() as (_, keeper):
        with pytest.raises(NoSuchTopUpError, match="there is no top-up 'k9'"):
            await keeper.topups.decide("k9", "ada", landed=True)


# -- crashes, other machines, a ledger that is down ------------------------------------------------


@on_a_loop
async def test_what_ran_at_a_crash_is_unknown_and_not_sent_again() -> None:
    async with bought_from("hangs", timeout_s=60.0) as (hook, keeper):
        await keeper.topups.look(Standing("acme", 10 * NANOS, None, 10 * NANOS, NOW_S))
        await hook.hangs.wait()
        await keeper.topups.close()
        assert await keeper.states() == ["running"]
        after = Keeper(keeper.ledger, keeper.clock, plan_for(hook.url))
        await after.topups.recover(sole=True)
        assert await after.states() == ["unknown"]
        keeper.clock.now_s += 60
        assert await after.look() == "one is unknown"
        assert len(hook.heard) == 1
        keeper.clock.now_s += 60
        assert await after.look(60) == "there is enough"
        assert await after.states() == ["confirmed"]


@on_a_loop
async def test_another_machine_gives_up_only_what_is_overdue() -> None:
    async with bought_from("hangs", timeout_s=60.0) as (hook, keeper):
        standing = Standing("acme", 10 * NANOS, None, 10 * NANOS, NOW_S)
        await keeper.topups.look(standing)
        await hook.hangs.wait()
        other = Keeper(keeper.ledger, keeper.clock, plan_for(hook.url, timeout_s=60.0))
        await other.topups.recover(sole=False)
        assert await other.look() == "one is running"
        keeper.clock.now_s += 121
        await other.topups.recover(sole=False)
        assert await other.look() == "one is unknown"
        assert len(hook.heard) == 1


class Slow(MemoryLedger):
    """Lets others in between a look at the notes and their change."""

    async def notes(self, kind: str) -> Any:
        found = await super().notes(kind)
        await asyncio.sleep(0)
        return found


@on_a_loop
async def test_of_many_machines_that_look_at_once_one_buys() -> None:
    clock = Clock()
    async with serving(Hook()) as hook:
        ledger = Slow(clock)
        keepers = [Keeper(ledger, clock, plan_for(hook.url)) for _ in range(8)]
        said = await asyncio.gather(*(keeper.look() for keeper in keepers))
        assert said.count("run") == 1
        assert said.count("another machine was faster") == 7
        assert len(hook.heard) == 1


@on_a_loop
async def test_two_proxies_on_one_file_buy_once(tmp_path: Path) -> None:
    clock = Clock()
    async with serving(Hook()) as hook:
        ledgers = [
            SqliteLedger.open(tmp_path / "ledger.db", clock=clock, sole=False) for _ in range(2)
        ]
        keepers = [Keeper(ledger, clock, plan_for(hook.url)) for ledger in ledgers]
        said = await asyncio.gather(*(keeper.look() for keeper in keepers for _ in range(4)))
        assert said.count("run") == 1
        assert len(hook.heard) == 1
        assert await keepers[0].states() == await keepers[1].states() == ["sent"]
        assert len(await keepers[1].entries()) == 2
        for keeper in keepers:
            await keeper.commit.settled()
            await keeper.ledger.close()


class Moody(MemoryLedger):
    """Down when told, before or after it has kept what it was given."""

    down = ""

    async def notes(self, kind: str) -> Any:
        if self.down:
            raise LedgerDownError("disk")
        return await super().notes(kind)

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        if self.down == "before":
            raise LedgerDownError("disk")
        done = await super().write_notes(changes)
        if self.down:
            raise LedgerDownError("disk")
        return done


@on_a_loop
async def test_without_a_ledger_nothing_is_bought() -> None:
    clock = Clock()
    async with serving(Hook()) as hook:
        ledger = Moody(clock)
        keeper = Keeper(ledger, clock, plan_for(hook.url))
        ledger.down = "before"
        assert await keeper.look() == "the ledger is down"
        ledger.down = ""
        assert await keeper.look() == "run"
        assert len(hook.heard) == 1


class DownAtTheWrite(Moody):
    """Each of these writes raises; whether it was kept all the same is the second word."""

    fail: tuple[bool, ...] = ()

    async def write_notes(self, changes: Sequence[Change]) -> bool:
        kept, *rest = self.fail or (None,)
        self.fail = tuple(rest)
        if kept is None:
            return await super().write_notes(changes)
        if kept:
            await super().write_notes(changes)
        raise LedgerDownError("disk")


@pytest.mark.parametrize("kept", [True, False])
@on_a_loop
async def test_what_was_not_begun_for_a_ledger_is_tried_again(kept: bool) -> None:
    clock = Clock()
    async with serving(Hook()) as hook:
        ledger = DownAtTheWrite(clock)
        keeper = Keeper(ledger, clock, plan_for(hook.url))
        ledger.fail = (kept,)
        assert await keeper.look() == "the ledger is down"
        assert hook.heard == []
        clock.now_s += 30
        await keeper.look()
        clock.now_s += 30
        await keeper.look()
        assert len(hook.heard) == 1
        assert await keeper.states() == ["sent"]


@pytest.mark.parametrize("kept", [True, False])
@on_a_loop
async def test_an_end_that_could_not_be_written_is_written_later(kept: bool) -> None:
    clock = Clock()
    async with serving(Hook("hangs")) as hook:
        ledger = DownAtTheWrite(clock)
        keeper = Keeper(ledger, clock, plan_for(hook.url, timeout_s=0.2))
        await keeper.topups.look(Standing("acme", 10 * NANOS, None, 10 * NANOS, NOW_S))
        ledger.fail = (kept,)
        await keeper.topups.settled()
        assert await keeper.states() == ["unknown" if kept else "running"]
        clock.now_s += 30
        assert await keeper.look() == "one is unknown"
        assert len(hook.heard) == 1


# -- commands --------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys, time
with open(sys.argv[2], "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ), os.getpid()]) + chr(10))
{}
"""


def command(tmp_path: Path, does: str, **more: Any) -> CommandHook:
    script = tmp_path / "topup.py"
    script.write_text(SCRIPT.format(does))
    words = (sys.executable, str(script), "{id}", str(tmp_path / "heard"), "{amount} {currency}")
    return CommandHook(words, **more)


def heard_in(tmp_path: Path) -> list[Any]:
    file = tmp_path / "heard"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


COMMANDS = {
    "yes": ("sys.exit(0)", "sent"),
    "says nothing was bought": ("sys.exit(75)", "failed"),
    "breaks": ("sys.exit(1)", "unknown"),
    "is killed": ("os.kill(os.getpid(), 9)", "unknown"),
    "hangs": ("time.sleep(3600)", "unknown"),
    "talks without end": ("print('x' * 10_000_000)", "sent"),
}


@pytest.mark.parametrize("case", COMMANDS)
@on_a_loop
async def test_a_command_is_a_hook(case: str, tmp_path: Path) -> None:
    does, state = COMMANDS[case]
    timeout_s = 1.5 if case == "hangs" else 30.0
    async with bought_from(hook=command(tmp_path, does), timeout_s=timeout_s) as (_, keeper):
        await keeper.look()
        (attempt,) = await keeper.attempts()
        assert attempt.state == state
        ((words, _, _),) = heard_in(tmp_path)
        assert (words[0], words[2]) == (attempt.id, "50 USD")


@on_a_loop
async def test_a_command_may_say_more_than_its_exit_code(tmp_path: Path) -> None:
    hook = command(tmp_path, "print(json.dumps({'status': 'declined'}))", ok=PAID)
    async with bought_from(hook=hook, timeout_s=30.0) as (_, keeper):
        await keeper.look()
        assert await keeper.states() == ["failed"]


@on_a_loop
async def test_a_command_sees_nothing_of_the_proxys_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", "sk-secret")
    hook = command(tmp_path, "", env=(("BILLING_KEY", "sk-billing"),))
    async with bought_from(hook=hook, timeout_s=30.0) as (_, keeper):
        await keeper.look()
    ((_, environment, _),) = heard_in(tmp_path)
    assert environment["BILLING_KEY"] == "sk-billing"
    assert "sk-secret" not in environment.values()


@on_a_loop
async def test_a_command_that_is_not_there_bought_nothing() -> None:
    async with bought_from(hook=CommandHook(("/nowhere/topup",))) as (_, keeper):
        await keeper.look()
        (attempt,) = await keeper.attempts()
        assert attempt.state == "failed"
        assert attempt.why == "the command cannot be started: No such file or directory"


def is_there(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("hangs", [True, False])
@on_a_loop
async def test_a_command_ends_with_all_that_it_started(hangs: bool, tmp_path: Path) -> None:
    child = tmp_path / "child"
    does = (
        "import subprocess\n"
        "started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        f"open({str(child)!r}, 'w').write(str(started.pid))\n"
        f"time.sleep({3600 if hangs else 0})\n"
    )
    hook = command(tmp_path, does)
    async with bought_from(hook=hook, timeout_s=3.0 if hangs else 30.0) as (_, keeper):
        await keeper.look()
        assert await keeper.states() == ["unknown" if hangs else "sent"]
    await until(lambda: not is_there(int(child.read_text())))


@on_a_loop
async def test_a_command_that_runs_when_the_proxy_stops_is_ended(tmp_path: Path) -> None:
    hook = command(tmp_path, "time.sleep(3600)")
    async with bought_from(hook=hook, timeout_s=60.0) as (_, keeper):
        await keeper.topups.look(Standing("acme", 10 * NANOS, None, 10 * NANOS, NOW_S))
        await until(lambda: bool(heard_in(tmp_path)))
        await keeper.topups.close()
        ((_, _, process_id),) = heard_in(tmp_path)
        assert not is_there(process_id)
        assert await keeper.states() == ["running"]


@on_a_loop
async def test_an_upstream_without_a_plan_is_left_alone() -> None:
    async with bought_from() as (hook, keeper):
        keeper.topups.put([replace(plan_for(hook.url), upstream="other")])
        assert await keeper.look(0) == "no top-up is planned"
        assert hook.heard == []
