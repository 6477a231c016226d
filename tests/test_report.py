"""Tables: what a person sees of accounts and budgets. Pure, so rows in and text out."""

from __future__ import annotations

from typing import Any

import pytest

from budget_proxy.policy import EffectiveBudget
from budget_proxy.report import BAR_WIDTH, accounts_table, bar, budgets_table, table, topups_table


def account(spent: str = "0", held: str = "0", limit: str = "1", **more: Any) -> dict[str, Any]:
    """One, as `GET /api/accounts` gives it."""
    return {
        "budget": "company",
        "payer": "(all)",
        "unit": "USD",
        "spent": spent,
        "held": held,
        "limit": limit,
        "window_end": None,
        **more,
    }


@pytest.mark.parametrize(
    ("spent", "held", "limit", "expected"),
    [
        ("0", "0", "1", "...................."),
        ("0.5", "0", "1", "##########.........."),
        ("0.5", "0.25", "1", "##########+++++....."),
        ("0", "1", "1", "++++++++++++++++++++"),
        ("1", "0", "1", "####################"),
        ("0.999999999", "0", "1", "###################."),
        ("7", "0", "1", "####################"),
        ("0.9", "0.9", "1", "##################++"),
        ("0", "0", "0", "####################"),
        ("5", "5", "0", "####################"),
        ("0.000000001", "0", "100000000", "...................."),
        ("33333333.333333333", "0.000000001", "100000000", "######.............."),
    ],
)
def test_a_bar_shows_what_is_spent_held_and_free(
    spent: str, held: str, limit: str, expected: str
) -> None:
    drawn = bar(account(spent, held, limit))
    assert drawn == expected
    assert len(drawn) == BAR_WIDTH


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "LONG"), [("one", "b"), ("c", "")]) == "A    LONG\none  b\nc"


def test_accounts_stand_under_their_heads() -> None:
    rows = [
        account("0.3", "0.1"),
        account("2", "0", "3", budget="old", retired=True, window_end="2026-12-01T00:00Z"),
    ]
    assert accounts_table(rows, colours=False).splitlines() == [
        "BUDGET         PAYER  SPENT  HELD  LIMIT  UNIT                        RESETS",
        "company        (all)  0.3    0.1   1      USD   ######++............  never",
        "old (retired)  (all)  2      0     3      USD   #############.......  2026-12-01T00:00Z",
    ]
    assert accounts_table([], colours=False) == "no open accounts"


@pytest.mark.parametrize(
    ("spent", "held", "colour"),
    [
        ("0.79", "0", ""),
        ("0.8", "0", "\x1b[33m"),
        ("0.5", "0.3", "\x1b[33m"),
        ("1", "0", "\x1b[31m"),
        ("0.5", "0.5", "\x1b[31m"),
        ("2", "0", "\x1b[31m"),
    ],
)
def test_what_is_nearly_full_is_yellow_and_what_is_full_is_red(
    spent: str, held: str, colour: str
) -> None:
    plain = accounts_table([account(spent, held)], colours=False).splitlines()
    coloured = accounts_table([account(spent, held)], colours=True).splitlines()
    assert coloured[0] == plain[0]
    assert coloured[1] == (f"{colour}{plain[1]}\x1b[0m" if colour else plain[1])


def test_a_service_without_a_budget_is_said() -> None:
    assert budgets_table({}) == "no budget binds any service"
    assert budgets_table({"a": []}) == "no budget binds any service"


def test_budgets_are_listed_for_each_service() -> None:
    values: dict[str, Any] = dict.fromkeys(EffectiveBudget._fields, "x")
    first = next(iter(EffectiveBudget._fields))
    rows = [
        EffectiveBudget(**values | {first: "all", EffectiveBudget._fields[-1]: ()}),
        EffectiveBudget(**values | {first: "some", EffectiveBudget._fields[-1]: ("a", "b")}),
        EffectiveBudget(**values | {first: "none", EffectiveBudget._fields[-1]: None}),
    ]
    lines = budgets_table({"checkout": rows}).splitlines()
    head = lines[0].split()
    assert head[:2] == ["SERVICE", first.upper()]
    assert [line.split()[1] for line in lines[1:]] == ["all", "some", "none"]
    assert lines[1].endswith("everything")
    assert lines[2].endswith("a; b")
    assert lines[3].endswith("-")


def test_only_what_waits_has_a_longest_wait() -> None:
    values: dict[str, Any] = dict.fromkeys(EffectiveBudget._fields, "x")
    rows = [EffectiveBudget(**values | {"max_wait_s": seconds}) for seconds in (0.0, 20.0, 0.5)]
    column = ["service", *EffectiveBudget._fields].index("max_wait_s")
    cells = [line.split()[column] for line in budgets_table({"checkout": rows}).splitlines()[1:]]
    assert cells == ["-", "20", "0.5"]


@pytest.mark.parametrize(
    ("state", "needs_person", "marked"),
    [
        ("asked", True, True),
        ("unknown", False, True),
        ("unknown", True, True),
        ("failed", False, False),
        ("confirmed", False, False),
    ],
)
def test_a_top_up_that_waits_for_a_person_is_marked(
    state: str, needs_person: bool, marked: bool
) -> None:
    row = {
        "id": "t1",
        "upstream": "geo",
        "amount": "5",
        "unit": "USD",
        "state": state,
        "needs_person": needs_person,
        "at_s": 0.0,
        "why": "",
        "reason": "below 20 USD",
    }
    assert ("!" in topups_table([row])) is marked
