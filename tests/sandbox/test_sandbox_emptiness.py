"""How it is said that the money is gone: each row of the table, as it arrives."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import pytest
from sandbox_server import CHAT, Served, claude, hello, sandbox

from budget_proxy.sandbox import SettingError, Settings
from budget_proxy.sandbox.emptiness import EMPTY, REFUSALS, Row
from budget_proxy.sandbox.settings import changed

NAMED = ("request_id", "id")
"""Fields in which some providers name the request."""


async def in_sandbox(scenario: Any, settings: Settings | None = None) -> None:
    async with sandbox(settings) as served:
        await scenario(served)


def without_names(body: Any) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in NAMED}


async def arrives_as(served: Served, row: Row, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with served.session.post(served.url + CHAT, json=hello(), headers=named) as answer:
        assert answer.status == row.status, row.name
        assert answer.headers["Content-Type"] == "application/json"
        body = await answer.json()
        assert without_names(body) == without_names(row.body), row.name
        assert body.keys() == row.body.keys()
        assert all(body[name].startswith("req_0") for name in NAMED if name in body)
        for name, value in row.headers.items():
            assert answer.headers[name] == value, row.name


def test_every_row_is_sent_on_demand_however_full_the_account_is_and_costs_nothing() -> None:
    async def scenario(served: Served) -> None:
        for row in REFUSALS.values():
            await arrives_as(served, row, x_sandbox_refuse_as=row.name)
        assert await served.charges() == []
        assert await served.balance() == "5"
        assert (await served.post(CHAT, hello()))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=5 * 10**9)))


def test_an_empty_balance_is_answered_with_the_row_that_was_named() -> None:
    async def scenario(served: Served) -> None:
        for name in EMPTY:
            await arrives_as(served, REFUSALS[name], x_sandbox_empty_as=name)
        assert await served.charges() == []
        await served.post("/_sandbox/topup", {"amount": "1 USD"})
        assert (await served.post(CHAT, hello(), x_sandbox_empty_as="deepseek"))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=10_349)))


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [(CHAT, hello(), "openai"), ("/v1/messages", claude(), "anthropic")],
)
def test_unless_told_otherwise_each_endpoint_says_it_as_its_provider(
    path: str, body: object, name: str
) -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post(path, body)
        row = REFUSALS[name]
        assert (status, without_names(answer)) == (row.status, without_names(row.body))

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=0)))


def test_a_balance_too_low_for_this_request_still_carries_a_smaller_one() -> None:
    async def scenario(served: Served) -> None:
        status, answer = await served.post(CHAT, hello(max_tokens=16))
        assert status == 402
        assert answer["error"]["metadata"]["reason"] == "weight_exceeds_budget"
        assert (await served.post(CHAT, hello(max_tokens=1)))[0] == 200

    asyncio.run(in_sandbox(scenario, Settings(balance_nanos=2_000, empty_as="openrouter_too_big")))


def test_only_every_nth_priced_call_is_refused() -> None:
    async def scenario(served: Served) -> None:
        statuses = [(await served.post(CHAT, hello()))[0] for _ in range(6)]
        assert statuses == [200, 200, 402, 200, 200, 402]
        assert len(await served.charges()) == 4

    asyncio.run(in_sandbox(scenario, Settings(refuse_as="deepseek", refuse_every=3)))


def test_a_streamed_call_is_refused_whole() -> None:
    async def scenario(served: Served) -> None:
        status, text, headers = await served.text(CHAT, hello(stream=True))
        assert (status, headers["Content-Type"]) == (402, "application/json")
        assert "Insufficient Balance" in text

    asyncio.run(in_sandbox(scenario, Settings(refuse_as="deepseek")))


def test_the_list_of_refusals_can_be_read_from_a_running_sandbox() -> None:
    async def scenario(served: Served) -> None:
        _, answer = await served.get("/_sandbox/refusals")
        listed = {row["name"]: row for row in answer["refusals"]}
        assert listed.keys() == REFUSALS.keys()
        assert listed["openrouter_in_flight"] == {
            "name": "openrouter_in_flight",
            "meaning": "transient",
            "status": 402,
            "headers": {"retry-after": "2"},
            "body": REFUSALS["openrouter_in_flight"].body,
        }

    asyncio.run(in_sandbox(scenario))


@pytest.mark.parametrize("name", ["openai_rate", "stripe_card", "nonsense", 7])
def test_a_look_alike_is_no_way_to_say_that_the_balance_is_empty(name: object) -> None:
    with pytest.raises(SettingError, match="empty_as: must be a name"):
        changed(Settings(), {"empty_as": name})


def test_the_table_has_every_meaning_and_no_status_tells_one_from_another() -> None:
    meanings = collections.defaultdict(set)
    for row in REFUSALS.values():
        meanings[row.status].add(row.meaning)
    assert set.union(*meanings.values()) == {
        *("account_empty", "key_cap", "too_big", "transient", "other")
    }
    for status in (200, 400, 401, 402, 403, 429):
        assert len(meanings[status]) > 1, status


def test_a_deepseek_like_account_is_played_from_full_to_empty_and_back() -> None:
    key: dict[str, Any] = {"Authorization": "Bearer sk-1"}
    ask = {**hello(), "model": "deepseek-chat"}

    async def total(served: Served) -> str:
        _, shown = await served.get("/user/balance", **key)
        (info,) = (info for info in shown["balance_infos"] if info["currency"] == "USD")
        assert shown["is_available"] == (info["total_balance"] != "0.00")
        return str(info["total_balance"])

    async def scenario(served: Served) -> None:
        status, answer = await served.post("/chat/completions", ask, **key)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 1_000)
        assert answer["usage"]["prompt_cache_miss_tokens"] == 5
        assert (await served.post("/chat/completions", ask))[0] == 401
        (charge,) = await served.charges()
        assert (charge["model"], charge["path"]) == ("deepseek-chat", "/chat/completions")
        assert charge["amount_nanos"] > 0
        assert await total(served) == "0.99"
        await served.post("/_sandbox/spend", {"amount": f"{await served.balance()} USD"})
        assert await total(served) == "0.00"
        status, answer = await served.post("/chat/completions", ask, **key)
        assert (status, answer["error"]["message"]) == (402, "Insufficient Balance")
        order = {"amount": "2.00", "currency": "USD"}
        assert (await served.post("/billing/topups", order, **key))[0] == 200
        assert await total(served) == "2.00"
        assert (await served.post("/chat/completions", ask, **key))[0] == 200

    settings = Settings(
        balance_nanos=10**9, require_key="sk-1", empty_as="deepseek", output_tokens=1_000
    )
    asyncio.run(in_sandbox(scenario, settings))


@pytest.mark.parametrize("path", ["/chat/completions", CHAT, f"/api{CHAT}", f"/openai{CHAT}"])
def test_the_chat_is_where_each_provider_of_its_form_has_it(path: str) -> None:
    async def scenario(served: Served) -> None:
        assert (await served.post(path, hello()))[0] == 200
        assert [line["amount_nanos"] for line in await served.charges()] == [10_350]

    asyncio.run(in_sandbox(scenario))
