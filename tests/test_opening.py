"""New, renamed and re-cut budgets in a window that is already running: what they begin with.

Real proxies on one ledger: `restart` is a new one, `reload` a new policy for the one that runs. A
call is a geocode, 0.005 USD, or one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from callers import calling
from harness import AUTH, house_of, running_sandbox
from processes import GEO, Gate, run, serving, status_of
from processes import POLICY as SERVED

from budget_proxy.app import App
from budget_proxy.core.book import Entry, EntryLeg, Hold, Leg
from budget_proxy.core.house import House
from budget_proxy.core.window import Span
from budget_proxy.ledgers import BudgetRow
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.policy import PolicyError

CALL = 5_000_000
HEAD = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  geo:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
  maps:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
  euros:
    url: ${SANDBOX}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 EUR}}]
services:
  tests: {key: test-key-0000, labels: {team: red}}
  batch: {key: batch-key-0000, labels: {team: blue}}
  old: {key: old-key-0000-0}
"""
BATCH = {"authorization": "Bearer batch-key-0000"}
OLD = {"authorization": "Bearer old-key-0000-0"}


class Town:
    """A ledger, the sandbox, and whatever proxy runs on them at the moment."""

    def __init__(self, folder: Path, sandbox: str, session: aiohttp.ClientSession) -> None:
        self._folder = folder
        self._sandbox = sandbox
        self._session = session
        self._head = HEAD
        self._policy = ""
        self.app: App | None = None

    def _load(self) -> House:
        return house_of(self._head + self._policy, self._folder, SANDBOX=self._sandbox)

    async def restart(self, budgets: str) -> None:
        """Stop the proxy that runs, if one does, and start one with these budgets."""
        await self.stop()
        self._policy = f"budgets: {{{budgets}}}\n"
        self.app = App(self._load)
        await self.app.start()

    async def reload(self, budgets: str) -> None:
        """Give the proxy that runs these budgets."""
        self._policy = f"budgets: {{{budgets}}}\n"
        assert self.app is not None
        assert await self.app.reload() == []

    async def turn(self, how: str, budgets: str) -> None:
        """One or the other."""
        await (self.restart if how == "restart" else self.reload)(budgets)

    async def stop(self) -> None:
        """Stop the proxy that runs."""
        app, self.app = self.app, None
        if app is not None:
            await app.stop(5.0)

    def without(self, service: str) -> None:
        """From now on policies have no such service."""
        kept = [line for line in self._head.splitlines() if not line.startswith(f"  {service}: ")]
        self._head = "\n".join(kept) + "\n"

    async def call(
        self, count: int = 1, upstream: str = "geo", key: dict[str, str] = AUTH, user: str = ""
    ) -> list[int]:
        """So many calls, one after the other; their statuses."""
        assert self.app is not None
        host, port = self.app.address
        headers = key | ({"x-user": user} if user else {})
        statuses = []
        for _ in range(count):
            where = f"http://{host}:{port}/{upstream}/v1/geocode?q=Oslo"
            async with self._session.get(where, headers=headers) as answer:
                await answer.read()
                statuses.append(answer.status)
        return statuses

    async def spent(self) -> dict[tuple[str, str], int]:
        """What each account of the policy in force has spent, but for empty ones."""
        assert self.app is not None
        await self.app._commit.settled()
        views = await self.app.accounts()
        return {
            (view.budget, view.payer): view.spent
            for view in views
            if view.spent and not view.retired
        }

    async def openings(self) -> list[Entry]:
        """What openings booked so far."""
        assert self.app is not None
        entries = await self.app._open_ledger.entries(0)
        return [entry for entry in entries if entry.kind == "adjusted"]


@contextlib.asynccontextmanager
async def town(folder: Path, sandbox: str | None = None) -> AsyncIterator[Town]:
    async with contextlib.AsyncExitStack() as stack:
        if sandbox is None:
            sandbox = await stack.enter_async_context(running_sandbox())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        place = Town(folder, sandbox, session)
        try:
            yield place
        finally:
            await place.stop()


A_YEAR = "a: {limit: 1 USD, per: year}"
BY_USER = "{limit: 1 USD, per: year, for_each: {header: X-User}, max_payers: 9, missing: skip"
BEGINNINGS: dict[str, tuple[str, str, dict[tuple[str, str], int]]] = {
    "nothing changes": (A_YEAR, A_YEAR, {("a", "(all)"): 5}),
    "a higher limit": (A_YEAR, "a: {limit: 2 USD, per: year}", {("a", "(all)"): 5}),
    "a new one": (
        A_YEAR,
        A_YEAR + ", b: {limit: 1 USD, per: total}",
        {("a", "(all)"): 5, ("b", "(all)"): 5},
    ),
    "a new one for some": (
        A_YEAR,
        "b: {limit: 1 USD, per: total, when: {upstream: maps}}",
        {("b", "(all)"): 2},
    ),
    "another span": (A_YEAR, "a: {limit: 1 USD, per: total}", {("a", "(all)"): 5}),
    "another time zone": (
        A_YEAR,
        "a: {limit: 1 USD, per: year, timezone: America/New_York}",
        {("a", "(all)"): 5},
    ),
    "now for each team": (
        A_YEAR,
        "a: {limit: 1 USD, per: year, for_each: team, missing: skip}",
        {("a", "red"): 3, ("a", "blue"): 1},
    ),
    "no longer for each": (
        "a: {limit: 1 USD, per: year, for_each: team, missing: skip}",
        A_YEAR,
        {("a", "(all)"): 5},
    ),
    "another unit": (
        "a: {limit: 1 USD, per: year}",
        "b: {limit: 100 requests, per: year}",
        {("b", "(all)"): 5},
    ),
    "renamed": (A_YEAR, "b: {limit: 1 USD, per: year, was: a}", {("b", "(all)"): 5}),
    "renamed and cut anew": (
        A_YEAR,
        "b: {limit: 1 USD, per: total, was: a}",
        {("b", "(all)"): 5},
    ),
    "zero on purpose": (A_YEAR, "b: {limit: 1 USD, per: year, opening: zero}", {}),
    "named by callers": (
        A_YEAR,
        f"b: {BY_USER}}}",
        {},
    ),
    "named by callers, renamed": (
        f"a: {BY_USER}}}",
        f"b: {BY_USER}, was: a}}",
        {("b", "ada"): 1},
    ),
    "per request": (A_YEAR, "b: {limit: 1 USD, per: request}", {}),
    "only the first budget ever": ("", A_YEAR, {("a", "(all)"): 5}),
}
"""The budgets before, those after, and how many calls each account begins with."""


async def five_calls(place: Town) -> None:
    """Two by red (one for Ada), one by blue, one by a service without a team, and one by red that
    is the second on maps."""
    assert await place.call(1) == [200]
    assert await place.call(1, user="ada") == [200]
    assert await place.call(1, key=BATCH) == [200]
    assert await place.call(1, key=OLD, upstream="maps") == [200]
    assert await place.call(1, upstream="maps") == [200]


def in_calls(spent: dict[tuple[str, str], int], unit: int) -> dict[tuple[str, str], int]:
    assert all(amount % unit == 0 for amount in spent.values()), spent
    return {account: amount // unit for account, amount in spent.items()}


@pytest.mark.parametrize("how", ["restart", "reload"])
@pytest.mark.parametrize("case", BEGINNINGS)
def test_a_budget_begins_with_what_its_window_has_seen(tmp_path: Path, case: str, how: str) -> None:
    before, after, expected = BEGINNINGS[case]
    unit = 1 if "requests" in after else CALL

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(before)
            await five_calls(place)
            await place.turn(how, after)
            assert in_calls(await place.spent(), unit) == expected
            booked = await place.openings()
            # And again, and with a restart in between: nothing is booked twice.
            await place.turn(how, after)
            await place.restart(after)
            assert in_calls(await place.spent(), unit) == expected
            assert await place.openings() == booked
            assert await place.app._open_ledger.check() == []  # type: ignore[union-attr]

    asyncio.run(story())


CYCLES: dict[str, tuple[str, str]] = {
    "span": ("a: {limit: 1 USD, per: year}", "a: {limit: 1 USD, per: total}"),
    "payers": (
        "a: {limit: 1 USD, per: year}",
        "a: {limit: 1 USD, per: year, for_each: service}",
    ),
    "gone": ("a: {limit: 1 USD, per: year}", ""),
    "gone, another there": ("a: {limit: 1 USD, per: year}", "b: {limit: 1 USD, per: year}"),
    "renamed, rolled back": (
        "a: {limit: 1 USD, per: year}",
        "b: {limit: 1 USD, per: year, was: a}",
    ),
    "renamed there and back": (
        "a: {limit: 1 USD, per: year}",
        "b: {limit: 1 USD, per: year, was: a}",
    ),
}


@pytest.mark.parametrize("how", ["restart", "reload"])
@pytest.mark.parametrize("case", CYCLES)
def test_a_shape_that_comes_back_has_all_that_was_spent_and_nothing_twice(
    tmp_path: Path, case: str, how: str
) -> None:
    """A, B, A, B, A: whatever was in force, each call counts once in what is."""
    first, second = CYCLES[case]
    again = first
    if case == "renamed there and back":
        again = "a: {limit: 1 USD, per: year, was: b}"

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(first)
            made = 0
            for budgets in (first, second, again, second, again):
                await place.turn(how, budgets)
                if budgets:
                    assert sum((await place.spent()).values()) == made * CALL, (budgets, made)
                made += 1
                assert await place.call(1) == [200]
                if budgets:
                    assert sum((await place.spent()).values()) == made * CALL, (budgets, made)
            await place.restart(again)
            assert sum((await place.spent()).values()) == made * CALL

    asyncio.run(story())


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_a_budget_that_changes_its_unit_counts_in_the_new_one(tmp_path: Path, how: str) -> None:
    """There and back, and through other shapes in between."""
    shapes = (
        ("a: {limit: 90 requests, per: year}", 1),
        (A_YEAR, CALL),
        ("a: {limit: 90 requests, per: total}", 1),
        (A_YEAR, CALL),
        ("a: {limit: 90 requests, per: year}", 1),
        ("a: {limit: 1 USD, per: total}", CALL),
        (A_YEAR, CALL),
    )

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(3) == [200] * 3
            made = 3
            for budgets, each in shapes:
                await place.turn(how, budgets)
                assert await place.spent() == {("a", "(all)"): made * each}, budgets
                assert await place.call() == [200]
                made += 1
                assert await place.spent() == {("a", "(all)"): made * each}, budgets
            assert place.app is not None
            assert await place.app._open_ledger.check() == []

    asyncio.run(story())


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_a_budget_that_changes_its_currency_counts_what_was_priced_in_it(
    tmp_path: Path, how: str
) -> None:
    """Nothing is converted: calls in dollars are no part of a budget in euros."""

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(3) == [200] * 3
            assert await place.call(2, upstream="euros") == [200] * 2
            await place.turn(how, "a: {limit: 1 EUR, per: year}")
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 2}
            assert await place.call() == [200]
            assert await place.call(upstream="euros") == [200]
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 3}
            await place.turn(how, A_YEAR)
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 4}

    asyncio.run(story())


def test_calls_under_way_at_a_change_of_unit_settle_in_their_own(tmp_path: Path) -> None:
    """There, with calls under way in both units, and back: each is counted once in each."""
    requests = "a: {limit: 90 requests, per: year}"

    async def story() -> None:
        async with Gate.standing() as gate, town(tmp_path, gate.url) as place:

            async def held() -> dict[str, int]:
                assert place.app is not None
                rows = await place.app._open_ledger.accounts()
                assert await place.app._open_ledger.check() == []
                return {row.unit: row.held for row in rows}

            await place.restart(A_YEAR)
            first = [asyncio.create_task(place.call()) for _ in range(3)]
            await gate.holds(3)
            await place.reload(requests)
            assert await held() == {"USD": 3 * CALL, "requests": 0}
            assert await place.spent() == {("a", "(all)"): 3}
            second = [asyncio.create_task(place.call()) for _ in range(2)]
            await gate.holds(5)
            assert await held() == {"USD": 3 * CALL, "requests": 2}
            await place.reload(A_YEAR)
            # The first three are held in it already, the two others counted at what they hold.
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 2}
            assert await held() == {"USD": 3 * CALL, "requests": 2}
            gate.opened.set()
            assert await asyncio.gather(*first, *second) == [[200]] * 5
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 5}
            assert await held() == {"USD": 0, "requests": 0}
            await place.restart(requests)
            assert await place.spent() == {("a", "(all)"): 5}

    asyncio.run(story())


def test_a_call_of_a_proxy_that_died_is_presumed_in_its_own_unit(tmp_path: Path) -> None:
    """And counted once in the other, by the policy that the next one starts with."""
    requests = "a: {limit: 90 requests, per: year}"

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(2) == [200] * 2
            await place.stop()
            ledger = SqliteLedger.open(tmp_path / "ledger.db")
            legs = (Leg("a", "(all)", "USD", Span("year"), 10**9, CALL),)
            about = b'{"service":"tests","upstream":"geo","estimate":{"USD":5000000,"requests":1}}'
            await ledger.commit([Hold("left", "died", legs, 60.0, about)])
            await ledger.close()
            for _ in range(2):
                await place.restart(requests)
                assert await place.spent() == {("a", "(all)"): 3}
            await place.restart(A_YEAR)
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 3}

    asyncio.run(story())


def test_a_spent_budget_that_changes_its_unit_stays_spent(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart("a: {limit: 3 requests, per: year}")
            assert await place.call(4) == [200, 200, 200, 402]
            await place.reload("a: {limit: 0.015 USD, per: year}")
            assert await place.call() == [402]
            await place.reload("a: {limit: 0.02 USD, per: year}")
            assert await place.call(2) == [200, 402]

    asyncio.run(story())


def test_a_spent_budget_that_is_cut_anew_stays_spent(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart("a: {limit: 0.01 USD, per: year}")
            assert await place.call(3) == [200, 200, 402]
            await place.reload("a: {limit: 0.01 USD, per: total}")
            assert await place.call(1) == [402]
            await place.restart("b: {limit: 0.015 USD, per: year, was: a}")
            assert await place.call(2) == [200, 402]

    asyncio.run(story())


@pytest.mark.parametrize("after", ["a: {limit: 1 USD, per: total}", "b: {limit: 1 USD, was: a}"])
def test_calls_under_way_at_a_reload_are_counted_at_what_they_hold(
    tmp_path: Path, after: str
) -> None:
    """They settle in the account they were held in; the new one must know of them all the same."""
    before = "a: {limit: 1 USD, per: total}" if "was" in after else A_YEAR

    async def story() -> None:
        async with Gate.standing() as gate, town(tmp_path, gate.url) as place:
            await place.restart(before)
            calls = [asyncio.create_task(place.call()) for _ in range(3)]
            await gate.holds(3)
            await place.reload(after)
            assert in_calls(await place.spent(), CALL) == {(after[0], "(all)"): 3}
            gate.opened.set()
            assert await asyncio.gather(*calls) == [[200]] * 3
            assert await place.call() == [200]
            assert in_calls(await place.spent(), CALL) == {(after[0], "(all)"): 4}

    asyncio.run(story())


SPANS = tuple(f"1000 USD, per: {per}" for per in ("total", "quarter", "month", "year"))
UNITS = ("99999 requests, per: year", "9 EUR, per: year", "999 requests, per: total", SPANS[-1])


@pytest.mark.parametrize("cuts", [SPANS, UNITS], ids=["spans", "units"])
def test_a_reload_under_load_loses_no_call(tmp_path: Path, cuts: tuple[str, ...]) -> None:
    """Cut anew again and again while calls run: in the end each is counted once, whatever policy
    was in force when it was priced."""

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(f"a: {{limit: {cuts[-1]}}}")
            made: list[int] = []

            async def call() -> None:
                made.extend(await place.call())

            async with calling(call, 8):
                for cut in cuts * 3:
                    await place.reload(f"a: {{limit: {cut}}}")
            assert set(made) == {200}
            # What was under way at a change is counted at its hold, which here is its cost.
            assert await place.spent() == {("a", "(all)"): len(made) * CALL}

    asyncio.run(story())


def test_calls_of_those_who_would_have_no_payer_are_left_out(tmp_path: Path) -> None:
    """A service that has left the policy, and had not the label that the budget insists on."""

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            await five_calls(place)
            place.without("old")
            await place.restart("a: {limit: 1 USD, per: year, for_each: team}")
            assert in_calls(await place.spent(), CALL) == {("a", "red"): 3, ("a", "blue"): 1}

    asyncio.run(story())


def test_the_payers_of_a_renamed_budget_are_known_to_its_bound(tmp_path: Path) -> None:
    def budget(name: str, more: str = "") -> str:
        each = "for_each: {header: X-User}, max_payers: 2"
        return f"{name}: {{limit: 1 USD, per: year, {each}{more}}}"

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(budget("a"))
            for user in ("ada", "bob"):
                assert await place.call(user=user) == [200]
            assert await place.call(user="eve") == [403]
            await place.reload(budget("b", ", was: a"))
            assert await place.call(user="eve") == [403]
            assert await place.call(user="ada") == [200]

    asyncio.run(story())


def test_a_crash_in_the_middle_of_an_opening_books_nothing_twice(tmp_path: Path) -> None:
    """The shapes are noted last. So before them anything may have been booked already."""

    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(3) == [200] * 3
            await place.restart("a: {limit: 1 USD, per: total}")
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 3}
            assert place.app is not None
            known = [BudgetRow("a", "as it was before the crash")]
            await place.app._open_ledger.remember_budgets(known)
            await place.restart("a: {limit: 1 USD, per: total}")
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 3}

    asyncio.run(story())


def test_a_persons_correction_of_the_new_account_stands(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(4) == [200] * 4
            await place.reload("a: {limit: 1 USD, per: total}")
            assert place.app is not None
            await place.app.adjust("a", "(all)", "-0.015 USD", "a test", "a test")
            assert await place.call() == [200]
            for budgets in (A_YEAR, "a: {limit: 1 USD, per: total}"):
                await place.reload(budgets)
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 2}

    asyncio.run(story())


SAID = [
    ("a: {limit: 90 requests, per: year}", "'a' begins in a running window: 2 requests counted"),
    ("b: {limit: 1 USD, per: total}", "'b' begins in a running window: 0.01 USD counted from the"),
    ("b: {limit: 1 USD, per: year, was: a}", "0.01 USD carried over from 'a'"),
    ("b: {limit: 1 USD, per: total, was: a}", "0.01 USD counted from the ledger"),
    ("b: {limit: 1 USD, opening: zero}", "'b' starts at zero, as its opening says"),
    (
        "b: {limit: 1 USD, for_each: {header: X-User}, max_payers: 9}",
        "'b' starts at zero: its payers are named by callers",
    ),
]


@pytest.mark.parametrize(("after", "says"), SAID, ids=[says for _, says in SAID])
def test_the_operator_is_told_by_the_log_and_by_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, after: str, says: str
) -> None:
    async def story() -> str:
        async with town(tmp_path) as place:
            with caplog.at_level(logging.WARNING):
                await place.restart(A_YEAR)
                assert "'a'" not in caplog.text, "a new ledger has nothing to tell"
                assert await place.call(2) == [200, 200]
                await place.restart(A_YEAR)
                assert "'a'" not in caplog.text, "nor has one that goes on"
            await place.stop()
            policy = HEAD.replace("${SANDBOX}", "http://127.0.0.1:9")
            ledger = f"ledger: sqlite:///{tmp_path / 'ledger.db'}\n"
            (tmp_path / "next.yaml").write_text(f"{ledger}{policy}budgets: {{{after}}}\n")
            checked = await asyncio.to_thread(run, "check", "next.yaml", "--json", cwd=tmp_path)
            assert checked.returncode == 0, checked.stderr
            with caplog.at_level(logging.WARNING):
                await place.restart(after)
        return "\n".join(json.loads(checked.stdout)["warnings"])

    warned = asyncio.run(story())
    assert says in warned
    assert says in caplog.text


def test_history_and_rename_through_real_processes(tmp_path: Path) -> None:
    """The same once more with a process, SIGHUP and restarts, and `status` to read it."""

    def policy(budgets: str) -> str:
        return f"{SERVED}budgets: {{{budgets}}}\n"

    def spent() -> dict[str, str]:
        found = run("status", "--ledger", "ledger.db", "--json", cwd=tmp_path)
        return {row["budget"]: row["spent"] for row in json.loads(found.stdout)["accounts"]}

    async def story() -> None:
        async with running_sandbox() as sandbox, aiohttp.ClientSession() as session:
            a = policy("a: {limit: 0.02 USD, per: total}")
            async with serving(tmp_path, a, SANDBOX=sandbox) as process:
                assert await status_of(session, process.url + GEO) == 200
                b = policy("b: {limit: 0.02 USD, per: total, was: a}")
                (tmp_path / "policy.yaml").write_text(b)
                process.send(signal.SIGHUP)
                async with asyncio.timeout(60):
                    while "0.005 USD carried over from 'a'" not in process.err:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                assert await status_of(session, process.url + GEO) == 200
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
            async with serving(tmp_path, a, SANDBOX=sandbox) as process:
                assert "'a' begins in a running window: 0.005 USD counted" in process.err
                calls = [await status_of(session, process.url + GEO) for _ in range(3)]
                assert calls == [200, 200, 402]
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
        assert spent() == {"a": "0.02", "b": "0.01"}

    asyncio.run(story())


def test_an_unreadable_policy_leaves_the_ledger_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call() == [200]
            with pytest.raises(PolicyError):
                await place.restart("a: {limit: 1, per: total}")
            await place.restart(A_YEAR)
            assert in_calls(await place.spent(), CALL) == {("a", "(all)"): 1}

    asyncio.run(story())


def test_an_opening_is_an_entry_that_says_who_and_why(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as place:
            await place.restart(A_YEAR)
            assert await place.call(2) == [200, 200]
            await place.restart("b: {limit: 1 USD, was: a}")
            (entry,) = await place.openings()
            assert entry.legs == (EntryLeg("b", "(all)", "total", "USD", 0, 2 * CALL),)
            about: dict[str, Any] = json.loads(entry.about)
            assert about == {"who": "budget-proxy", "why": "opening: counted from the ledger"}

    asyncio.run(story())
