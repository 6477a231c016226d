"""Top-ups: once for each idempotency key, and every outcome that a caller has to live with."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from sandbox_server import Clock, Served, sandbox

from budget_proxy.sandbox import Settings
from budget_proxy.sandbox.topups import Attempt, TopUps

PATH = "/billing/topups"
ORDER = {"amount": "25.00", "currency": "USD"}


async def in_sandbox(scenario: Any, clock: Clock | None = None, **knobs: Any) -> None:
    async with sandbox(Settings(balance_nanos=10**9, **knobs), clock=clock or Clock()) as served:
        await scenario(served)


async def outcomes(served: Served) -> list[tuple[str | None, str]]:
    _, listed = await served.get("/_sandbox/topups")
    return [(attempt["key"], attempt["outcome"]) for attempt in listed["topups"]]


async def answered_late(served: Served, key: str) -> asyncio.Task[tuple[int, Any]]:
    """A top-up that is booked and whose answer takes longer than any test."""
    before = await outcomes(served)
    task = asyncio.create_task(order(served, key, x_sandbox_topup_latency_s="60"))
    async with asyncio.timeout(5):
        while await outcomes(served) == before:
            assert not task.done()
    return task


async def order(served: Served, key: str, body: object = None, **headers: Any) -> tuple[int, Any]:
    return await served.post(PATH, body or ORDER, Idempotency_Key=key, **headers)


def test_the_same_key_gets_the_same_answer_and_one_credit() -> None:
    async def scenario(served: Served) -> None:
        first = await order(served, "a")
        assert first[0] == 200
        assert first[1] == {
            "id": first[1]["id"],
            "object": "topup",
            "amount": "25",
            "currency": "USD",
            "status": "succeeded",
            "created": 1_790_000_000,
        }
        assert await order(served, "a", {"currency": "USD", "amount": "25.00"}) == first
        assert await served.balance() == "26"
        second = await order(served, "b")
        assert second[1]["id"] != first[1]["id"]
        assert await served.balance() == "51"
        assert await outcomes(served) == [("a", "credited"), ("a", "replayed"), ("b", "credited")]
        _, account = await served.get("/_sandbox/balance")
        assert (account["credited"], account["charged"], account["drained"]) == ("50", "0", "0")

    asyncio.run(in_sandbox(scenario))


def test_without_a_key_every_request_is_a_top_up() -> None:
    async def scenario(served: Served) -> None:
        for _ in range(2):
            assert (await served.post(PATH, ORDER))[0] == 200
        assert await served.balance() == "51"
        assert await outcomes(served) == [(None, "credited"), (None, "credited")]

    asyncio.run(in_sandbox(scenario))


def test_the_same_key_with_another_body_is_refused() -> None:
    async def scenario(served: Served) -> None:
        await order(served, "a")
        status, answer = await order(served, "a", {**ORDER, "amount": "26.00"})
        assert status == 422
        assert "another top-up" in answer["error"]["message"]
        assert await served.balance() == "26"
        assert (await outcomes(served))[-1] == ("a", "key_reused")

    asyncio.run(in_sandbox(scenario))


def test_a_key_is_in_progress_until_the_first_request_has_its_answer() -> None:
    async def scenario(served: Served) -> None:
        first = await answered_late(served, "a")
        assert (await order(served, "a"))[0] == 409
        assert (await order(served, "b"))[0] == 200
        first.cancel()
        await served.until("open", 0)
        assert (await order(served, "a"))[0] == 200
        assert await served.balance() == "51"
        assert await outcomes(served) == [
            *(("a", "credited"), ("a", "in_progress")),
            *(("b", "credited"), ("a", "replayed")),
        ]

    asyncio.run(in_sandbox(scenario))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount": "25.00"},
        {"amount": "25.00", "currency": "EUR"},
        {"amount": True, "currency": "USD"},
        {"amount": ["25"], "currency": "USD"},
        {"amount": "0", "currency": "USD"},
        {"amount": -5, "currency": "USD"},
        {"amount": "1e3", "currency": "USD"},
        [],
    ],
)
def test_what_is_no_top_up_is_a_400_and_uses_no_key(body: Any) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.post(PATH, body, Idempotency_Key="a"))[0] == 400
        assert await served.balance() == "1"
        assert (await order(served, "a"))[0] == 200
        assert await outcomes(served) == [("a", "invalid"), ("a", "credited")]

    asyncio.run(in_sandbox(scenario))


def test_numbers_are_amounts_too_and_a_key_has_an_end() -> None:
    async def scenario(served: Served) -> None:
        assert (await order(served, "k" * 255, {"amount": 2.5, "currency": "USD"}))[0] == 200
        assert (await order(served, "k" * 256))[0] == 400
        assert await served.balance() == "3.5"

    asyncio.run(in_sandbox(scenario))


def test_a_top_up_that_fails_credits_nothing_and_leaves_its_key_free() -> None:
    async def scenario(served: Served) -> None:
        assert (await order(served, "a", x_sandbox_topup_fail="503"))[0] == 503
        status, answer = await order(served, "a", x_sandbox_topup_fail="declined")
        assert (status, answer["status"]) == (200, "failed")
        assert answer["error"]["code"] == "card_declined"
        assert await served.balance() == "1"
        assert (await order(served, "a"))[0] == 200
        assert await served.balance() == "26"
        assert [what for _, what in await outcomes(served)] == ["failed", "failed", "credited"]

    asyncio.run(in_sandbox(scenario))


def test_a_top_up_of_unknown_outcome_was_credited_and_its_key_tells_so() -> None:
    async def scenario(served: Served) -> None:
        assert (await order(served, "a"))[0] == 500
        assert await served.balance() == "26"
        status, answer = await order(served, "a")
        assert (status, answer["status"]) == (200, "succeeded")
        assert await served.balance() == "26"

    asyncio.run(in_sandbox(scenario, topup_fail_after=500))


def test_a_top_up_can_be_credited_and_its_answer_cut_off() -> None:
    async def scenario(served: Served) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await order(served, "a")
        assert await served.balance() == "26"
        assert await outcomes(served) == [("a", "credited")]

    asyncio.run(in_sandbox(scenario, topup_fail_after="cut"))


def test_a_top_up_counts_before_its_answer_and_though_the_caller_leaves() -> None:
    async def scenario(served: Served) -> None:
        first = await answered_late(served, "a")
        assert await served.balance() == "26"
        first.cancel()
        await served.until("open", 0)
        assert await served.balance() == "26"

    asyncio.run(in_sandbox(scenario))


def test_a_credit_can_be_seen_later_everywhere() -> None:
    clock = Clock()

    async def scenario(served: Served) -> None:
        status, answer = await order(served, "a")
        assert (status, answer["status"]) == (200, "pending")
        clock.now_s += 89
        assert await served.balance() == "1"
        clock.now_s += 1
        assert await served.balance() == "26"
        assert await order(served, "a") == (200, answer)
        clock.now_s += 10
        _, shown = await served.get("/user/balance", x_sandbox_balance_lag_s="11")
        assert shown["balance_infos"][1]["total_balance"] == "1.00"
        _, shown = await served.get("/user/balance", x_sandbox_balance_lag_s="9")
        assert shown["balance_infos"][1]["total_balance"] == "26.00"

    asyncio.run(in_sandbox(scenario, clock, topup_delay_s=90))


def test_a_top_up_needs_the_key_of_the_billing_side() -> None:
    async def scenario(served: Served) -> None:
        assert (await order(served, "a", Authorization="Bearer buy"))[0] == 401
        assert (await order(served, "a", Authorization="Bearer see"))[0] == 200
        assert await served.balance() == "26"

    asyncio.run(in_sandbox(scenario, require_key="buy", balance_key="see"))


def test_a_reset_forgets_attempts_and_keys() -> None:
    async def scenario(served: Served) -> None:
        await order(served, "a")
        await served.post("/_sandbox/reset")
        assert await outcomes(served) == []
        await order(served, "a")
        assert await outcomes(served) == [("a", "credited")]
        assert await served.balance() == "26"

    asyncio.run(in_sandbox(scenario))


def test_attempts_and_keys_are_bounded() -> None:
    topups = TopUps(kept=2, kept_keys=2)
    for number, key in enumerate("abc"):
        topups.record(Attempt(number, 0.0, key, 1, "credited"))
        topups.book(key, {"amount": key}, {})
    assert [attempt.key for attempt in topups.attempts] == ["b", "c"]
    assert topups.dropped == 1
    assert topups.known("a") is None
    assert topups.known("b") is not None
    assert topups.known(None) is None
