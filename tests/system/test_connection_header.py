"""A header that `Connection` names is for this hop: the upstream does not see it, so it decides
neither what a call costs, nor who pays, nor which route it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from raw_upstream import FLAT, answering, ask, fronting, http, policy, request, spent

OK = http("200 OK", b"{}")
TARIFF = """
    tariff:
      - name: sized
        match: {path: /sized}
        quantities: {pages: {before: {header: X-Pages, default: 100}}}
        price: {pages: 0.01 USD}
      - name: cheap
        match: {path: /which, where: [{header: X-Mode, among: [cheap]}]}
        price: {requests: 0.001 USD}
      - {name: dear, match: {path: /which}, price: {requests: 1 USD}}
      - {name: rest, match: {path: /**}, price: {requests: 0.005 USD}}
"""
PAGE = 10_000_000
USER = "for_each: {header: X-User}, max_payers: 9"


def text(budgets: str) -> str:
    flat = "\n    tariff: [{match: {path: /**}, price: {requests: 0.005 USD}}]\n"
    assert flat in policy()
    return policy(rest=f"budgets: {{{budgets}}}\n").replace(flat, TARIFF)


@pytest.mark.parametrize(
    ("headers", "route", "cost"),
    [
        (["X-Pages: 2"], "sized", 2 * PAGE),
        (["X-Pages: 2", "Connection: close"], "sized", 2 * PAGE),
        (["X-Pages: 2", "Connection: X-Pages"], "sized", 100 * PAGE),
        (["X-Pages: 2", "Connection: close, x-pages"], "sized", 100 * PAGE),
        (["Connection: X-PAGES", "X-Pages: 2", "x-pages: 3"], "sized", 100 * PAGE),
        (["X-Mode: cheap"], "cheap", 10**6),
        (["X-Mode: cheap", "Connection: X-Mode"], "dear", 10**9),
        (["X-Mode: cheap", "Connection: keep-alive", "Connection: x-mode"], "dear", 10**9),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else None,
)
def test_a_figure_that_the_upstream_does_not_see_does_not_count(
    tmp_path: Path, headers: list[str], route: str, cost: int
) -> None:
    target = "/flat/sized" if route == "sized" else "/flat/which"

    async def story() -> None:
        budgets = text("company: {limit: 1000 USD}")
        async with fronting(tmp_path, answering(OK), budgets) as (rig, upstream):
            assert (await ask(rig, request(target, None, *headers))).status == 200
            assert rig.calls[0].route == route
            assert await spent(rig) == cost
            seen = {name.lower() for name, _ in upstream.requests[0].headers}
            hidden = cost in (100 * PAGE, 10**9)
            assert bool(seen & {b"x-pages", b"x-mode"}) is not hidden

    asyncio.run(story())


@pytest.mark.parametrize(
    ("missing", "headers", "status", "payer"),
    [
        ("refuse", ["X-User: ada"], 200, "ada"),
        ("refuse", ["X-User: ada", "Connection: X-User"], 403, None),
        ("share", ["X-User: ada", "Connection: close, x-user"], 200, "(shared)"),
        ("skip", ["X-User: ada", "Connection: x-user"], 200, None),
    ],
)
def test_a_payer_that_the_upstream_does_not_see_does_not_pay(
    tmp_path: Path, missing: str, headers: list[str], status: int, payer: str | None
) -> None:
    async def story() -> None:
        budgets = text(f"user: {{limit: 9 USD, missing: {missing}, {USER}}}")
        async with fronting(tmp_path, answering(OK), budgets) as (rig, _):
            assert (await ask(rig, request("/flat/x", None, *headers))).status == status
            for name in ("ada", "(shared)"):
                account = await rig.account("user", name)
                assert (account.spent if account else None) == (FLAT if name == payer else None)

    asyncio.run(story())
