"""The prepaid balance and its charges, as a conversation; no server."""

from __future__ import annotations

import pytest

from budget_proxy.sandbox.bank import Bank, Sale, format_amount, parse_amount


def sale(nanos: int) -> Sale:
    return Sale(path="/", model=None, quantities={"requests": 1}, amount_nanos=nanos)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("5 USD", 5_000_000_000),
        ("5USD", 5_000_000_000),
        (" 0.000000001 usd ", 1),
        ("0.25", 250_000_000),
        ("0", 0),
    ],
)
def test_an_amount_is_read_exactly(text: str, nanos: int) -> None:
    assert parse_amount(text) == nanos


@pytest.mark.parametrize(
    "text",
    ["", "-1 USD", "5 EUR", "1e3", "0.0000000001", "nan", "5 US", "\u0665 USD", "1_0", "1 2"],
)
def test_what_is_not_an_exact_dollar_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount|prices"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(159_600, "0.0001596"), (0, "0"), (1, "0.000000001"), (5 * 10**9, "5"), (-25 * 10**8, "-2.5")],
)
def test_an_amount_is_written_exactly(nanos: int, text: str) -> None:
    assert format_amount(nanos) == text


def test_a_balance_pays_to_its_last_nano_and_no_further() -> None:
    bank = Bank(100)
    assert bank.charge(sale(60), 1.0) is not None
    assert bank.charge(sale(41), 2.0) is None
    assert bank.charge(sale(40), 3.0) is not None
    assert bank.balance_nanos == 0
    assert [line.sale.amount_nanos for line in bank.charges()] == [60, 40]


def test_a_corrected_charge_gives_the_difference_back() -> None:
    bank = Bank(100)
    charge = bank.charge(sale(60), 1.0)
    assert charge is not None
    bank.correct(charge, {"requests": 1}, 10, 2.0)
    assert (bank.balance_nanos, bank.charged_nanos, charge.status) == (90, 10, "delivered")


def test_an_unlimited_bank_stays_unlimited() -> None:
    bank = Bank(None)
    bank.charge(sale(60), 1.0)
    bank.top_up(10, 2.0)
    assert (bank.balance_nanos, bank.charged_nanos) == (None, 60)


def test_the_oldest_charges_are_dropped_counted_and_still_in_the_total() -> None:
    bank = Bank(None, kept=3)
    for _ in range(5):
        bank.charge(sale(7), 1.0)
    assert [line.seq for line in bank.charges()] == [3, 4, 5]
    assert [line.seq for line in bank.charges(after=4)] == [5]
    assert list(bank.charges(after=99)) == []
    assert (bank.dropped, bank.count, bank.charged_nanos) == (2, 5, 35)
