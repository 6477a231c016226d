"""The text of a refusal: readable by someone who has never heard of the proxy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from refusal_samples import BALANCE, HELD, NOW_S, RESETS_AT_S, SPENT, TOO_LARGE, USD, refusal

from budget_proxy.core.refusal import Barred, Reason, Refusal, Shortfall
from budget_proxy.dialects.wording import MAX_DETAIL, message, printable

BEFORE = " Refused by budget-proxy before any upstream call; nothing was charged."


def said(
    reason: Reason,
    *shortfalls: Shortfall,
    retry_after_s: int | None = None,
    detail: str = "",
    waited_s: float = 0.0,
) -> str:
    """The text without its usual last sentence."""
    full = Refusal(reason, detail, shortfalls, retry_after_s=retry_after_s, waited_s=waited_s)
    text = message(full, NOW_S)
    assert text.endswith(BEFORE)
    return text.removesuffix(BEFORE)


def test_spent() -> None:
    assert said(Reason.SPENT, SPENT) == (
        "Budget 'each-team' of payments is spent: 200 USD of 200 USD used in this day, this call "
        "could cost up to 0.0123 USD. It resets at 2026-11-23T00:00:00Z (in 11 h)."
    )


def test_little_is_left_but_not_enough_and_some_of_it_is_held() -> None:
    short = replace(SPENT, spent=199_990_000_000, held=2 * USD)
    assert said(Reason.SPENT, short).startswith(
        "Budget 'each-team' of payments has too little left: 199.99 USD of 200 USD used in this "
        "day, 2 USD held by calls in flight, this call could cost up to 0.0123 USD."
    )


def test_a_total_never_resets() -> None:
    text = said(Reason.SPENT, replace(SPENT, window="total", resets_at_s=None))
    assert "200 USD of 200 USD used in total, this" in text
    assert text.endswith("It never resets: it has to be raised.")


def test_another_unit_is_used_and_not_paid() -> None:
    rate = replace(
        SPENT,
        budget="rate",
        payer="checkout",
        unit="requests",
        limit=600,
        spent=600,
        amount=1,
        window="minute 2026-11-22T23:59Z",
    )
    assert said(Reason.WINDOW_TURNS, rate, retry_after_s=12) == (
        "Budget 'rate' of checkout is spent: 600 requests of 600 requests used in this minute, "
        "this call could use up to 1 requests. It resets at 2026-11-23T00:00:00Z (in 11 h). "
        "Retrying in 12 s can work."
    )


def test_held() -> None:
    assert said(Reason.HELD, HELD, retry_after_s=3) == (
        "Budget 'company' is held by calls in flight: 150 USD used and 49.99 USD held of 200 USD "
        "in this month, this call could cost up to 0.0123 USD. What those calls do not use is "
        "given back. Retrying in 3 s can work."
    )


def test_too_large() -> None:
    assert said(Reason.TOO_LARGE, TOO_LARGE) == (
        "This call alone is above budget 'single': it could cost up to 3 USD, the limit is 2 USD "
        "per request. Ask for less (a lower max_tokens, a shorter input) or raise the budget."
    )
    assert "is 2 USD in total." in said(Reason.TOO_LARGE, replace(TOO_LARGE, window="total"))


def test_a_balance_that_is_too_low() -> None:
    assert said(Reason.BALANCE, BALANCE) == (
        "The prepaid balance behind budget 'account' is too low: 25 USD left to spend, 20 USD of "
        "it held by calls in flight, 3 USD kept for services of priority high, this call could "
        "cost up to 6 USD. The account at the provider has to be topped up."
    )


def test_a_balance_of_which_nothing_may_be_taken_is_not_told_as_empty_alone() -> None:
    assert said(Reason.BALANCE, replace(BALANCE, limit=0)) == (
        "The prepaid balance behind budget 'account' is empty, or it cannot be read now: no call "
        "passes until it is read again (budget-proxy status says which). This call could cost up "
        "to 6 USD. Where it is empty, the account at the provider has to be topped up."
    )


def test_a_share_kept_for_others() -> None:
    short = replace(SPENT, spent=180 * USD, reserve=20 * USD)
    assert "180 USD of 200 USD used in this day, 20 USD kept for services of priority high," in (
        said(Reason.SPENT, short)
    )


def test_waited_and_line_full() -> None:
    waited = said(Reason.WAITED, HELD, retry_after_s=2, waited_s=20.00068)
    assert waited.endswith("It waited 20 s, as long as allowed. Retrying in 2 s can work.")
    full = said(Reason.LINE_FULL, HELD, retry_after_s=2)
    assert full.endswith(
        "The line of requests waiting for budget is full. Retrying in 2 s can work."
    )


def test_several_shortfalls_the_first_in_full_the_others_named() -> None:
    text = said(Reason.TOO_LARGE, TOO_LARGE, SPENT, HELD)
    assert text.endswith(
        "Also too small for this call: 'each-team' of payments (spent), 'company' (held)."
    )


LOST = Refusal(Reason.LEDGER_DOWN, "The ledger cannot be written.", retry_after_s=5)
USED_UP = Barred("used_up", "cap", "a\u2028da", "USD", 20_000_000, 15_000_000, 10_000_000)


@pytest.mark.parametrize(
    ("barred", "words"),
    [
        (
            USED_UP,
            (
                "What budget 'cap' of 'a\\u2028da' lets pass without it (on_ledger_loss) is used "
                "up: 0.015 USD of 0.02 USD, this call could cost up to 0.01 USD."
            ),
        ),
        (
            Barred("used_up", "rate", "(all)", "requests", 3, 3, 1),
            (
                "What budget 'rate' lets pass without it (on_ledger_loss) is used up: 3 requests "
                "of 3 requests, this call could use up to 1 requests."
            ),
        ),
        (
            Barred("refuses", "day", "ada", "USD"),
            "Budget 'day' lets no call pass without it (on_ledger_loss).",
        ),
        (
            Barred("too_large", "single", "(all)", "USD", 2 * USD, 0, 3 * USD),
            (
                "This call alone is above budget 'single': it could cost up to 3 USD, the limit is "
                "2 USD."
            ),
        ),
        (
            Barred("unnamed"),
            "No budget of this call says that it may pass without it (on_ledger_loss).",
        ),
        (Barred("unwritten"), "What may pass without it cannot be written down either."),
    ],
)
def test_without_the_ledger_it_says_which_budget_decided(barred: Barred, words: str) -> None:
    text = message(replace(LOST, barred=barred))
    assert text.startswith("Retrying in 5 s can work. The ledger cannot be written. " + words)


def test_the_shared_payer_is_explained() -> None:
    text = said(Reason.SPENT, replace(SPENT, payer="(shared)"))
    assert text.startswith(
        "Budget 'each-team' (shared by callers without an account of their own) is spent"
    )


def test_a_payer_that_is_not_plain_is_quoted() -> None:
    text = said(Reason.SPENT, replace(SPENT, payer="me is spent:\r\n ask \x1b[1mme"))
    assert r"of 'me is spent:\r\n ask \x1b[1mme' is spent: 200 USD" in text
    assert "of Zürich-東京 is" in said(Reason.SPENT, replace(SPENT, payer="Zürich-東京"))


def test_the_detail_alone_or_after_the_figures() -> None:
    assert said(Reason.UNPRICED, detail="no price for 'gpt-9'") == "no price for 'gpt-9'."
    assert said(Reason.UNPRICED) == "No price is known for this call."
    text = said(Reason.SPENT, SPENT, detail=" A top-up is on its way! ")
    assert text.endswith("(in 11 h). A top-up is on its way!")
    assert len(said(Reason.BAD_REQUEST, detail="x" * 10_000)) == MAX_DETAIL + 1


@pytest.mark.parametrize(
    ("left_s", "words"),
    [
        (0, "Z."),
        (-5, "Z."),
        (0.2, "Z (in 1 s)."),
        (119, "Z (in 119 s)."),
        (120, "Z (in 2 min)."),
        (120.5, "Z (in 3 min)."),
        (7199, "Z (in 120 min)."),
        (7200, "Z (in 2 h)."),
        (172_799, "Z (in 48 h)."),
        (172_800, "Z (in 2 days)."),
        (172_801, "Z (in 3 days)."),
    ],
)
def test_how_long_it_is_until_the_window_turns(left_s: float, words: str) -> None:
    text = message(refusal(Reason.SPENT), RESETS_AT_S - left_s)
    assert text.removesuffix(BEFORE).endswith(f"It resets at 2026-11-23T00:00:00{words}")


@pytest.mark.parametrize("reason", Reason)
def test_it_never_claims_what_is_not_known(reason: Reason) -> None:
    claims = "nothing was charged" in message(refusal(reason), NOW_S)
    not_known = {
        Reason.BODY_TIMEOUT,
        Reason.BODY_TOO_LARGE,
        Reason.UPSTREAM_BROKEN,
        Reason.UPSTREAM_TIMEOUT,
    }
    assert claims == (reason not in not_known)


def test_printable() -> None:
    assert printable("plain Ünïcødé") == "plain Ünïcødé"
    assert printable("a\r\nb\udc80\u2028c") == "a  b  c"
