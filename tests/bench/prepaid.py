"""The figures of a prepaid account, each against the sandbox with a real proxy in front.

    python tests/bench/prepaid.py [NAME ...] [--rounds N] [--json]

- `batch`: a batch job that would empty the account beside a checkout service, with and without the
  proxy;
- `drain`: somebody else spends ten times as much from the same account, all the time or at once:
  when calls stop, and how many the provider has to refuse;
- `topup`: money comes, and a call waits for it: from the look that sees it to the call at the
  provider;
- `runway`: how wrong it is at 6 hours, beside the rate of the last hour;
- `refusals`: how many of the sandbox's refusals, and of what only looks like one, are told apart.

Progress goes to stderr. Amounts are in the price of one call, so that the hour of the day, which
changes it, changes nothing here. Balances are asked for each second (`EVERY_S`), in tens of seconds
for real: DeepSeek's own preset asks no more often. Nothing is asserted; aims stand beside figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runway
from polling import eventually
from processes import DEADLINE_S, started, until
from spending import SHAPES, fourth_week
from test_sandbox_providers import STOPS, provider_of

from budget_proxy.core.verdict import judge
from budget_proxy.policy.providers import packaged
from budget_proxy.sandbox.emptiness import REFUSALS

EVERY_S = 1.0
LAG_S = 1.0
"""How late the sandbox shows its balance, and what the policy says of that."""
LATENCY_S = 0.3
CALL = {
    "model": "deepseek-v4-pro",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "Name three rivers."}],
}
OUTPUT_TOKENS = 800
NANOS = 10**9
POLICY = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
ledger: sqlite:///ledger.db
upstreams:
  deepseek:
    url: {sandbox}
    provider: deepseek
    tariff: deepseek
    credential: provider-key
    balance:
      url: /user/balance
      path: "balance_infos[currency=USD].total_balance"
      gate: is_available
      every: {every}s
      lag: {lag}s
services:
  checkout: {{key: checkout-key-0000, priority: high}}
  batch: {{key: batch-key-0000, priority: low}}
budgets:
  account:
    limit: balance(deepseek)
    when: {{upstream: deepseek}}
{more}"""
Figures = dict[str, Any]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def usd(nanos: float) -> str:
    """An amount as policies have it."""
    return f"{nanos / NANOS:.9f}"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Ended:
    """One call, from the caller's side. `ours`: the proxy answered by itself."""

    began_s: float
    ended_s: float
    status: int
    ours: str

    @property
    def refused_by_provider(self) -> bool:
        """What must not be heard."""
        return self.status != 200 and not self.ours


@dataclass
class Stand:
    """A sandbox, and perhaps a proxy in front of it."""

    sandbox: str
    url: str
    session: aiohttp.ClientSession
    calls: dict[str, list[Ended]] = field(default_factory=dict)
    under_way: int = 0

    async def ask(self, path: str, body: object = None) -> Any:
        """One of the sandbox's own endpoints."""
        method = "GET" if body is None else "POST"
        url = f"{self.sandbox}/_sandbox/{path}"
        async with self.session.request(method, url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def left(self) -> int:
        """The balance as it is, in nanos."""
        found: int = (await self.ask("balance"))["balance_nanos"]
        return found

    async def arrivals(self, path: str) -> list[float]:
        """When requests came to the sandbox."""
        seen = (await self.ask("requests"))["requests"]
        return [one["at_s"] for one in seen if one["path"].endswith(path)]

    async def call(self, service: str) -> Ended:
        """One chat."""
        headers = {"authorization": f"Bearer {service}-key-0000", "x-service": service}
        began_s, status, ours = time.time(), 0, ""
        self.under_way += 1
        try:
            async with self.session.post(
                f"{self.url}/chat/completions", json=CALL, headers=headers
            ) as answer:
                await answer.read()
                status, ours = answer.status, answer.headers.get("x-budget-proxy-reason", "")
        finally:
            self.under_way -= 1
        ended = Ended(began_s, time.time(), status, ours)
        self.calls.setdefault(service, []).append(ended)
        return ended

    async def steadily(self, service: str, per_s: float) -> None:
        """Calls at a rate, whatever becomes of them."""
        async with asyncio.TaskGroup() as group:
            due_s = time.time()
            while True:
                group.create_task(self.call(service))
                due_s += 1 / per_s
                await asyncio.sleep(max(0.0, due_s - time.time()))

    async def greedily(self, service: str, at_once: int) -> None:
        """As many as go, so many at once; a refusal is thought over for a moment."""

        async def one() -> None:
            while True:
                ended = await self.call(service)
                if ended.status != 200:
                    await asyncio.sleep(LATENCY_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one())

    async def until(self, found: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Wait for something at the sandbox."""
        await eventually(found, within_s=timeout_s)


@contextlib.asynccontextmanager
async def standing(
    balance: float,
    *,
    keep: float = 0,
    reserve: float = 0,
    waits: bool = False,
    proxy: bool = True,
    workers: int = 2,
) -> AsyncIterator[Stand]:
    """A stand with this balance (nanos), whose proxy has read it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sandbox = f"127.0.0.1:{free_port()}"
        knobs: Mapping[str, object] = {
            "--listen": sandbox,
            "--balance": usd(balance) + "USD",
            "--output-tokens": OUTPUT_TOKENS,
            "--latency-s": LATENCY_S,
            "--balance-lag-s": LAG_S,
            "--empty-as": "deepseek",
        }
        words = [str(word) for knob in knobs.items() for word in knob]
        upstream = stack.enter_context(started("sandbox", *words, cwd=folder))
        await until(lambda: "listens" in upstream.out or not upstream.running, "no sandbox")
        assert upstream.running, upstream.err
        url = f"http://{sandbox}"
        if proxy:
            lines = [f"keep: {usd(keep)} USD"] * bool(keep)
            lines += [f"reserve: {usd(reserve)} USD"] * bool(reserve)
            lines += ["on_shortfall: wait", "max_wait: 120s"] * waits
            more = "".join(f"    {line}\n" for line in lines)
            policy = POLICY.format(sandbox=url, every=EVERY_S, lag=LAG_S, more=more)
            (folder / "policy.yaml").write_text(policy)
            ours = stack.enter_context(
                started("serve", "policy.yaml", "--workers", str(workers), cwd=folder)
            )
            await ours.is_ready()
            url = f"{ours.url}/deepseek"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(DEADLINE_S)
        ) as session:
            stand = Stand(f"http://{sandbox}", url, session)
            if proxy:
                await stand.until(lambda: _looked(stand, 2), DEADLINE_S)
            yield stand


async def _looked(stand: Stand, times: int) -> bool:
    return len(await stand.arrivals("/user/balance")) >= times


@contextlib.asynccontextmanager
async def meanwhile(*work: Any) -> AsyncIterator[None]:
    """Work that goes on inside the block; what it began is ended there."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def price() -> int:
    """What one call costs now, in nanos: the sandbox is asked."""
    async with standing(100 * NANOS, proxy=False) as stand:
        before = await stand.left()
        await stand.call("checkout")
        return before - await stand.left()


# -- a batch job beside a checkout -----------------------------------------------------------------

KEPT, RESERVED, ALL = 40, 120, 400
"""In calls."""
CHECKOUT_PER_S, BATCH_AT_ONCE = 8.0, 8
LONGEST_S = 90.0


async def batch(each: int, rounds: int) -> Figures:
    """With the proxy until checkout is refused, or for long enough; the same time without it."""
    found: list[Figures] = []
    for index in range(rounds):
        say(f"batch {index + 1} of {rounds}, with the proxy")
        async with standing(ALL * each, keep=KEPT * each, reserve=RESERVED * each) as stand:
            took_s = await _beside(stand, ended=lambda e: bool(e.ours))
            ours = await _beside_figures(stand, each)
        say(f"batch {index + 1} of {rounds}, without, for {took_s:.0f} s")
        async with standing(ALL * each, proxy=False) as stand:
            await _beside(stand, at_most_s=took_s)
            bare = await _beside_figures(stand, each)
        found.append({"with": ours, "without": bare, "seconds": took_s})
    return {"rounds": found}


async def _beside(
    stand: Stand,
    *,
    ended: Callable[[Ended], bool] = lambda _ended: False,
    at_most_s: float = LONGEST_S,
) -> float:
    began_s = time.time()
    checkout = stand.steadily("checkout", CHECKOUT_PER_S)
    async with meanwhile(checkout, stand.greedily("batch", BATCH_AT_ONCE)):
        while time.time() - began_s < at_most_s:
            await asyncio.sleep(0.1)
            if any(ended(one) for one in list(stand.calls.get("checkout", []))):
                break
        took_s = time.time() - began_s
        if at_most_s == LONGEST_S:
            await asyncio.sleep(2 * EVERY_S + LAG_S)  # what the lag hid comes back
    return took_s


async def _beside_figures(stand: Stand, each: int) -> Figures:
    charges = (await stand.ask("charges"))["charges"]
    checkout, work = stand.calls["checkout"], stand.calls["batch"]
    first = min((one.ended_s for one in checkout if one.status != 200), default=None)
    spent = sum(c["amount_nanos"] for c in charges if first is None or c["at_s"] <= first)
    before = [one for one in checkout if first is None or one.began_s < first - LATENCY_S]
    return {
        "provider refused": sum(one.refused_by_provider for one in checkout + work),
        "checkout calls": len(checkout),
        "checkout served": sum(one.status == 200 for one in checkout),
        "checkout until refused": [sum(one.status == 200 for one in before), len(before)],
        "left at its first refusal": None if first is None else ALL - spent / each,
        "left at the end": await stand.left() / each,
        "batch served": sum(one.status == 200 for one in work),
        "batch refused here": sum(bool(one.ours) for one in work),
    }


def batch_lines(figures: Figures) -> list[str]:
    """For people."""
    lines = [
        f"a batch job beside a checkout ({ALL} calls' worth, {RESERVED} reserved, {KEPT} kept)",
        f"  {'':34}{'with the proxy':>16}{'without':>12}   aim",
    ]
    aims = {"provider refused": "0", "left at its first refusal": f"{KEPT} and a little"}
    for name in figures["rounds"][0]["with"]:
        cells = [
            " ".join(_shown(one[side][name]) for one in figures["rounds"])
            for side in ("with", "without")
        ]
        lines.append(f"  {name:34}{cells[0]:>16}{cells[1]:>12}   {aims.get(name, '')}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]}/{value[1]}"
    return "-" if value is None else f"{value:.0f}"


# -- somebody else drains it -----------------------------------------------------------------------

OWN_PER_S, TIMES = 8.0, 10
DRAINED = 500
"""In calls: how much there is when it begins."""


async def drain(each: int, rounds: int) -> Figures:
    """All the time, and all at once."""
    found: Figures = {}
    for how in ("all the time", "at once"):
        found[how] = []
        for index in range(rounds):
            say(f"drain {how}, {index + 1} of {rounds}")
            async with standing(DRAINED * each) as stand:
                found[how].append(await _drained(stand, each, how))
    return found


async def _drained(stand: Stand, each: int, how: str) -> Figures:
    async with meanwhile(stand.steadily("batch", OWN_PER_S)):
        await asyncio.sleep(3 * EVERY_S)
        if how == "all the time":
            rate = usd(TIMES * OWN_PER_S * each) + " USD"
            await stand.ask("settings", {"drain_per_s": rate})
        else:
            await stand.ask("spend", {"amount": usd(2 * DRAINED * each) + " USD"})

        async def empty() -> bool:
            return await stand.left() < each

        await stand.until(empty, DEADLINE_S)
        empty_s, under_way = time.time(), stand.under_way
        await asyncio.sleep(4 * EVERY_S)
    calls = stand.calls["batch"]
    refused = [one for one in calls if one.refused_by_provider]
    last_s = max(await stand.arrivals("/chat/completions"))
    return {
        "last call after empty, s": last_s - empty_s,
        "refused by the provider": len(refused),
        "under way when it was empty": under_way,
        "refused here": sum(bool(one.ours) for one in calls),
        "why": sorted({one.ours for one in calls if one.ours}),
    }


def drain_lines(figures: Figures) -> list[str]:
    """For people."""
    lines = [
        f"somebody else drains the account ({TIMES} x own burn; looks {EVERY_S:g} s apart)",
        f"  {'':14}{'last call after empty, s':>26}{'provider refused':>20}{'under way then':>18}",
    ]
    for how, rounds in figures.items():
        late = [one["last call after empty, s"] for one in rounds]
        refused = [one["refused by the provider"] for one in rounds]
        under_way = [one["under way when it was empty"] for one in rounds]
        lines.append(
            f"  {how:14}{_spread(late):>26}{_numbers(refused):>20}{_numbers(under_way):>18}"
        )
    lines.append(f"  {'aim':14}{f'<= {EVERY_S:g}':>26}{'<= under way + 1':>20}")
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (worst {max(values):.2f})"


def _numbers(values: list[int]) -> str:
    return " ".join(map(str, values))


# -- a top-up --------------------------------------------------------------------------------------


async def topup(each: int, rounds: int) -> Figures:
    """From the look that sees it to the first call at the provider, in ms."""
    found: Figures = {}
    for workers in (1, 2):
        for how in ("below keep", "refused by the provider"):
            say(f"topup, {workers} workers, {how}")
            key = f"{workers} workers, {how}"
            async with standing(100 * each, keep=50 * each, waits=True, workers=workers) as stand:
                found[key] = [await _lands(stand, each, how) for _ in range(2 * rounds + 1)]
    return found


async def _lands(stand: Stand, each: int, how: str) -> float:
    before = await stand.left()
    if how == "below keep":
        await stand.ask("spend", {"amount": usd(before - 20 * each) + " USD"})
        await _pass_looks(stand, 3)
    else:
        await stand.ask("spend", {"amount": usd(before) + " USD"})
        await asyncio.gather(stand.call("checkout"), return_exceptions=True)
        await _pass_looks(stand, 3)
    calls = len(await stand.arrivals("/chat/completions"))
    waiting = [asyncio.ensure_future(stand.call("checkout")) for _ in range(1)]
    await asyncio.sleep(0.3)
    assert len(await stand.arrivals("/chat/completions")) == calls, "somebody did not wait"
    await stand.ask("topup", {"amount": usd(200 * each) + " USD"})
    landed_s = time.time()
    await asyncio.gather(*waiting)
    first_s = sorted(await stand.arrivals("/chat/completions"))[calls]
    # What a look shows is as late as the sandbox's balance.
    looks = await stand.arrivals("/user/balance")
    seen_s = min(at_s for at_s in looks if at_s >= landed_s + LAG_S)
    return (first_s - seen_s) * 1000


async def _pass_looks(stand: Stand, times: int) -> None:
    begun = len(await stand.arrivals("/user/balance"))
    await stand.until(lambda: _looked(stand, begun + times), DEADLINE_S)


def topup_lines(figures: Figures) -> list[str]:
    """For people."""
    lines = [f"a top-up lands{'':30}{'median':>10}{'worst':>10}   aim: 200 ms from the look"]
    for name, found in figures.items():
        lines.append(f"  {name:42}{statistics.median(found):>8.0f}ms{max(found):>8.0f}ms")
    return lines


# -- forecasts and verdicts ------------------------------------------------------------------------


async def forecast(_each: int, _rounds: int) -> Figures:
    """Errors of runways of 6 hours in the fourth week."""
    found: Figures = {}
    for shape in SHAPES:
        if shape.name in ("calm", "noisy"):
            say(f"runway, {shape.name}")
            guesses = [g for seed in runway.SEEDS for g in fourth_week(shape, seed, 6)]
            for name, errors in (
                ("profile", [guess.error for guess in guesses]),
                ("naive last hour", [guess.naive_error for guess in guesses]),
            ):
                found[f"{shape.name}, {name}"] = {
                    "median": runway.quantile(errors, 0.5),
                    "p90": runway.quantile(errors, 0.9),
                    "within 20 %": runway.share(errors, 0.2),
                }
    return found


def forecast_lines(figures: Figures) -> list[str]:
    """For people."""
    lines = [f"runway of 6 h, its error{'':12}{'median':>10}{'p90':>10}{'<= 20 %':>10}   aim: 20 %"]
    for name, one in figures.items():
        cells = "".join(f"{value:>10.1%}" for value in one.values())
        lines.append(f"  {name:34}{cells}")
    return lines


async def refusals(_each: int, _rounds: int) -> Figures:
    """Every row of the sandbox's table."""
    right: dict[str, bool] = {}
    for row in REFUSALS.values():
        rules = packaged().named(provider_of(row)).rules
        verdict = judge(rules, row.status, row.headers, json.dumps(row.body_for(7)).encode())
        means = None if verdict is None else verdict.means
        stops = row.meaning in STOPS
        right[row.name] = means == row.meaning if stops else means not in STOPS
    real = [right[row.name] for row in REFUSALS.values() if row.meaning in STOPS]
    alike = [right[row.name] for row in REFUSALS.values() if row.meaning not in STOPS]
    return {
        "out of money, by kind": [sum(real), len(real)],
        "look-alikes": [sum(alike), len(alike)],
        "wrong": [name for name, fine in right.items() if not fine],
    }


def refusals_lines(figures: Figures) -> list[str]:
    """For people."""
    lines = ["refusals of the sandbox that are told apart"]
    lines += [
        f"  {name:34}{figures[name][0]} of {figures[name][1]}"
        for name in ("out of money, by kind", "look-alikes")
    ]
    return [*lines, *(f"  wrong: {name}" for name in figures["wrong"])]


PARTS: Mapping[str, tuple[Callable[[int, int], Awaitable[Figures]], Callable[..., list[str]]]] = {
    "batch": (batch, batch_lines),
    "drain": (drain, drain_lines),
    "topup": (topup, topup_lines),
    "runway": (forecast, forecast_lines),
    "refusals": (refusals, refusals_lines),
}


async def measured(names: list[str], rounds: int) -> Figures:
    """The figures of these parts, one after the other."""
    each = await price() if {"batch", "drain", "topup"} & set(names) else 0
    return {name: await PARTS[name][0](each, rounds) for name in names}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The figures of a prepaid account.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of each that is noisy")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    names = given.names or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    figures = asyncio.run(measured(names, given.rounds))
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    for name in names:
        print("\n".join(PARTS[name][1](figures[name])), end="\n\n")


if __name__ == "__main__":
    main()
