"""Windows end to end, under a clock that the test moves: whatever a zone's clocks do, each window
has its limit, what was spent in it is found again, and a call is booked in the window it began in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from harness import AUTH, Rig, running

from budget_proxy.core.events import HoldPresumed, InvariantBroken

GEO = "/geo/v1/geocode?q=here"
CALL = 5_000_000
LIMIT = 2


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = epoch("2026-01-01T00:00")

    def __call__(self) -> float:
        return self.now_s


def epoch(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def budgets(per: str, zone: str) -> str:
    return f"budgets: {{b: {{limit: 0.010 USD, per: {per}, timezone: {zone}}}}}\n"


async def call(rig: Rig) -> str:
    """One call: `ok`, or the code of the refusal."""
    async with rig.session.get(rig.url + GEO, headers=AUTH) as got:
        body = await got.json(content_type=None)
        if got.status == 200:
            return "ok"
        retry_after = got.headers.get("retry-after")
        assert (got.status, retry_after is None) in ((402, True), (429, False)), body
        assert retry_after is None or 1 <= int(retry_after) <= 60
        return str(body["code"])


async def spent(rig: Rig) -> int:
    """Calls booked in the window that runs now."""
    account = await rig.account("b")
    assert account is None or account.held == 0
    return 0 if account is None else account.spent // CALL


# Where each window begins and ends, in UTC, worked out by hand from the zones' rules.
WINDOWS = [
    # The clocks go forward: a day of 23 hours. They go back: one of 25.
    ("day", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00"),
    ("day", "Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00"),
    ("day", "America/New_York", "2026-03-08T05:00", "2026-03-09T04:00"),
    ("day", "America/New_York", "2026-11-01T04:00", "2026-11-02T05:00"),
    # By half an hour only.
    ("day", "Australia/Lord_Howe", "2026-04-04T13:00", "2026-04-05T13:30"),
    ("day", "Australia/Lord_Howe", "2026-10-03T13:30", "2026-10-04T13:00"),
    # Both hours called 02:00, and the half hour that comes twice.
    ("hour", "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T01:00"),
    ("hour", "Europe/Berlin", "2026-10-25T01:00", "2026-10-25T02:00"),
    ("hour", "America/New_York", "2026-11-01T06:00", "2026-11-01T07:00"),
    ("hour", "Australia/Lord_Howe", "2026-04-04T15:00", "2026-04-04T15:30"),
    # 29 February, and the 31st.
    ("day", "Europe/Berlin", "2028-02-28T23:00", "2028-02-29T23:00"),
    ("month", "America/New_York", "2028-02-01T05:00", "2028-03-01T05:00"),
    ("day", "Australia/Lord_Howe", "2026-12-30T13:00", "2026-12-31T13:00"),
    ("month", "Europe/Berlin", "2026-02-28T23:00", "2026-03-31T22:00"),
    ("year", "Australia/Lord_Howe", "2025-12-31T13:00", "2026-12-31T13:00"),
]


@pytest.mark.parametrize(("per", "zone", "start", "end"), WINDOWS)
def test_a_window_has_its_limit_and_its_neighbours_have_theirs(
    per: str, zone: str, start: str, end: str, tmp_path: Path
) -> None:
    async def story() -> None:
        clock = Clock()
        start_s, end_s = epoch(start), epoch(end)
        clock.now_s = start_s - 0.5
        async with running(tmp_path, budgets(per, zone), clock=clock) as rig:
            assert [await call(rig), await spent(rig)] == ["ok", 1]

            clock.now_s = start_s
            assert await spent(rig) == 0
            assert await call(rig) == "ok"
            clock.now_s = (start_s + end_s) / 2
            assert await call(rig) == "ok"
            assert await call(rig) == "spent"
            clock.now_s = end_s - 0.5
            assert [await call(rig), await spent(rig)] == ["window_turns", 2]

            clock.now_s = end_s
            assert [await spent(rig), await call(rig), await spent(rig)] == [0, "ok", 1]

            clock.now_s = start_s + 1  # set back: the window is as it was left
            assert [await call(rig), await spent(rig)] == ["spent", 2]
            clock.now_s = start_s - 1
            assert [await call(rig), await call(rig)] == ["ok", "window_turns"]
            clock.now_s = end_s + 1
            assert [await call(rig), await call(rig), await spent(rig)] == ["ok", "spent", 2]
            assert await rig.charged_nanos() == 6 * CALL

    asyncio.run(story())


@pytest.mark.parametrize(
    ("zone", "first", "days"),
    [
        ("Europe/Berlin", "2026-03-27", 4),
        ("America/New_York", "2026-10-31", 3),
        ("Australia/Lord_Howe", "2026-04-04", 3),
        ("Europe/Berlin", "2028-02-28", 3),
        ("America/New_York", "2026-01-30", 3),
    ],
)
def test_a_clock_that_is_stepped_both_ways_never_opens_a_window_twice(
    zone: str, first: str, days: int, tmp_path: Path
) -> None:
    """Every date has its own limit, in whatever order its hours come along."""

    async def story() -> None:
        clock, known = Clock(), dict.fromkeys(dates(first, days), 0)
        hours = list(hours_of(zone, first, days)) * 2
        Random(zone + first).shuffle(hours)
        async with running(tmp_path, budgets("day", zone), clock=clock) as rig:
            for now_s in hours:
                clock.now_s = now_s
                date = datetime.fromtimestamp(now_s, ZoneInfo(zone)).date().isoformat()
                answer = await call(rig)
                assert (answer == "ok") == (known[date] < LIMIT), (date, answer)
                known[date] += answer == "ok"
                assert await spent(rig) == known[date]
            assert set(known.values()) == {LIMIT}
            assert await rig.charged_nanos() == days * LIMIT * CALL
            assert await rig.app._open_ledger.check() == []

    asyncio.run(story())


def dates(first: str, days: int) -> list[str]:
    day = datetime.fromisoformat(first).date()
    return [(day + timedelta(days=number)).isoformat() for number in range(days)]


def hours_of(zone: str, first: str, days: int) -> Iterator[float]:
    """Every few hours of these dates, and the last moment before each midnight."""
    last = dates(first, days + 1)[-1]
    now_s, end_s = epoch(f"{first}T00:00", zone), epoch(f"{last}T00:00", zone)
    while now_s < end_s:
        yield now_s
        now_s += 7 * 1800
    for date in dates(first, days + 1)[1:]:
        yield epoch(f"{date}T00:00", zone) - 0.25


@pytest.mark.parametrize(
    ("per", "zone", "end"),
    [
        ("day", "Europe/Berlin", "2026-03-29T22:00"),
        ("hour", "America/New_York", "2026-11-01T06:00"),
        ("month", "Australia/Lord_Howe", "2026-03-31T13:00"),
        ("minute", "UTC", "2028-02-29T23:59"),
    ],
)
def test_a_call_that_ends_after_its_window_is_booked_in_its_window(
    per: str, zone: str, end: str, tmp_path: Path
) -> None:
    async def story() -> None:
        clock = Clock()
        end_s = epoch(end)
        clock.now_s = end_s - 1
        async with running(tmp_path, budgets(per, zone), clock=clock, latency_s=0.5) as rig:
            late = [asyncio.create_task(call(rig)) for _ in range(LIMIT)]
            while len(await rig.app._open_ledger.holds()) < LIMIT:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert await call(rig) in ("held", "window_turns")
            clock.now_s = end_s + 1
            assert [await call(rig), await spent(rig)] == ["ok", 1]
            assert [await one for one in late] == ["ok"] * LIMIT
            assert await spent(rig) == 1
            clock.now_s = end_s - 1
            assert await spent(rig) == LIMIT
            assert {entry.kind for entry in await rig.entries()} == {"settled"}
            assert not [e for e in rig.events if isinstance(e, InvariantBroken | HoldPresumed)]

    asyncio.run(story())


def test_what_was_spent_is_found_again_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        clock = Clock()
        start_s = epoch("2026-10-24T22:00")
        for offset_s, answers in (
            (0, ["ok"]),
            (25 * 3600 - 1, ["ok", "window_turns"]),
            (25 * 3600, ["ok"]),
            (24 * 3600, ["spent"]),
        ):
            clock.now_s = start_s + offset_s
            async with running(tmp_path, budgets("day", "Europe/Berlin"), clock=clock) as rig:
                assert [await call(rig) for _ in answers] == answers

    asyncio.run(story())


def test_the_months_of_a_year_are_twelve_windows(tmp_path: Path) -> None:
    """Also seen from the 29th, the 30th and the 31st."""

    async def story() -> None:
        clock, zone = Clock(), ZoneInfo("America/New_York")
        async with running(tmp_path, budgets("month", "America/New_York"), clock=clock) as rig:
            day, known = datetime(2028, 1, 1, 12, tzinfo=zone), dict.fromkeys(range(1, 13), 0)
            while day.year == 2028:
                if day.day in (1, 28, 29, 30, 31):
                    clock.now_s = day.timestamp()
                    known[day.month] += await call(rig) == "ok"
                    assert await spent(rig) == known[day.month]
                day = (day + timedelta(days=1)).replace(tzinfo=zone)
            assert set(known.values()) == {LIMIT}
            entries = {datetime.fromtimestamp(e.at_s, UTC).month for e in await rig.entries()}
            assert len(entries) == 12

    asyncio.run(story())
