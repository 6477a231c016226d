"""Every documented way to be told that the money is gone, and everything that only looks like it.

The bodies are those of the providers' documentation, SDKs and users' reports; where a shape is said
to have several codes, each is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from budget_proxy.core.verdict import (
    MAX_BODY,
    MAX_SAID,
    HeaderTest,
    Rule,
    Rules,
    Verdict,
    fit_to_show,
    judge,
)
from budget_proxy.policy.providers import packaged

NOTHING = None
RETRY = {"retry-after": "7"}
RATE = {"x-ratelimit-remaining-requests": "0"}


def openai(code: str | None, kind: str = "insufficient_quota", said: str = "You exceeded") -> Any:
    return {"error": {"message": said, "type": kind, "param": None, "code": code}}


def anthropic(kind: str, said: str, code: str | None = None) -> Any:
    details = {} if code is None else {"details": {"error_code": code}}
    return {"type": "error", "error": {"type": kind, "message": said, **details}, "request_id": "r"}


def openrouter(status: int, said: str, **metadata: Any) -> Any:
    return {"error": {"code": status, "message": said, "metadata": metadata}}


def google(status: int, said: str, word: str, **more: Any) -> Any:
    return {"error": {"code": status, "message": said, "status": word, **more}}


QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, read the docs"
)
PLAIN_RATE = (
    "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 3, Used "
    "3. You can increase your rate limit by adding a payment method to your account at "
    "https://platform.openai.com/account/billing."
)
XAI = (
    "Your team 7c0ffee0-0000-4000-8000-000000000000 has either used all available credits or "
    "reached its monthly spending limit. To continue making API requests, please purchase more"
)
LABS = "This request exceeds your quota of 10000. You have {} credits remaining, while 1727 credits"

CARD = {
    "error": {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": "insufficient_funds",
        "message": "Your card has insufficient funds.",
    }
}

TABLE: list[tuple[str, int, Any, Mapping[str, str], str | None]] = [
    # -- OpenAI: the code tells
    ("openai", 429, openai("credit_balance_exhausted"), {}, "account_empty"),
    ("openai", 429, openai("insufficient_quota", said=QUOTA), RATE, "account_empty"),
    ("openai", 429, openai("a_new_code"), {}, "account_empty"),
    ("openai", 429, openai("organization_spend_limit_exceeded"), {}, "key_cap"),
    ("openai", 429, openai("project_spend_limit_exceeded"), {}, "key_cap"),
    ("openai", 429, openai("organization_usage_limit_exceeded"), {}, "key_cap"),
    ("openai", 400, openai("billing_hard_limit_reached", "invalid_request_error"), {}, "key_cap"),
    ("openai", 429, openai("rate_limit_exceeded", "requests", PLAIN_RATE), RETRY, "transient"),
    ("openai", 429, openai("rate_limit_exceeded", "tokens", QUOTA), {}, "transient"),
    ("openai", 429, openai("slow_down", "rate_limit_error"), {}, "transient"),
    ("openai", 429, openai(None, "requests", QUOTA), {}, "transient"),
    (
        "openai",
        400,
        openai(None, "invalid_request_error", "insufficient balance: not JSON"),
        {},
        NOTHING,
    ),
    ("openai", 402, openai("a_new_code", "a_new_type"), RETRY, "transient"),
    ("openai", 402, openai("a_new_code", "a_new_type"), {}, "account_empty"),
    ("openai", 401, openai("invalid_api_key", "invalid_request_error", "billing"), {}, NOTHING),
    ("openai", 403, openai("unsupported_country", "request_forbidden"), {}, NOTHING),
    ("openai", 429, "quota", {}, NOTHING),
    ("openai", 500, openai("insufficient_quota"), {}, NOTHING),
    ("openai", 200, openai("insufficient_quota"), {}, NOTHING),
    # -- Anthropic: in a 400 only the message tells
    (
        *("anthropic", 400),
        anthropic(
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
            "Billing to upgrade or purchase credits.",
        ),
        *({}, "account_empty"),
    ),
    (
        *("anthropic", 400),
        anthropic("invalid_request_error", "You have reached your specified API usage limits. You"),
        *({}, "key_cap"),
    ),
    (
        *("anthropic", 400),
        anthropic(
            "invalid_request_error",
            "You have reached your specified workspace API usage limits. You will regain access "
            "on 2026-12-01 at 00:00 UTC.",
        ),
        *({}, "key_cap"),
    ),
    ("anthropic", 402, anthropic("billing_error", "Payment needed"), {}, "account_empty"),
    ("anthropic", 402, anthropic("a_new_type", "Payment needed"), RETRY, "transient"),
    ("anthropic", 402, anthropic("a_new_type", "Payment needed"), {}, "account_empty"),
    (
        *("anthropic", 402),
        anthropic("billing_error", "no", "linked_organization_billing_unavailable"),
        *({}, "account_empty"),
    ),
    (
        *("anthropic", 402),
        anthropic("billing_error", "no", "linked_organization_spend_limit_reached"),
        *({}, "key_cap"),
    ),
    (
        "anthropic",
        429,
        anthropic("rate_limit_error", "x", "enforced_spend_limit_reached"),
        {},
        "key_cap",
    ),
    (
        "anthropic",
        429,
        anthropic("rate_limit_error", "x", "contract_spend_limit_reached"),
        {},
        "key_cap",
    ),
    (
        "anthropic",
        429,
        anthropic("rate_limit_error", "x", "ramp_limit_exceeded"),
        RETRY,
        "transient",
    ),
    (
        "anthropic",
        429,
        anthropic("rate_limit_error", "This would exceed the limit"),
        RETRY,
        "transient",
    ),
    (
        *("anthropic", 400),
        anthropic(
            "invalid_request_error",
            "messages.0.content: 'Your credit balance is too low' is not a valid block",
        ),
        *({}, NOTHING),
    ),
    ("anthropic", 529, anthropic("overloaded_error", "Overloaded"), {}, NOTHING),
    # -- Gemini: its rate text speaks of billing too
    (
        *("gemini", 402),
        google(402, "Your prepayment credits are depleted. Please", "RESOURCE_EXHAUSTED"),
        *({}, "account_empty"),
    ),
    (
        *("gemini", 429),
        google(429, "Your prepayment credits are depleted.", "RESOURCE_EXHAUSTED"),
        *({}, "account_empty"),
    ),
    ("gemini", 402, google(402, "busy", "RESOURCE_EXHAUSTED"), RETRY, "transient"),
    ("gemini", 429, google(429, QUOTA, "RESOURCE_EXHAUSTED"), {}, "transient"),
    (
        *("gemini", 429),
        google(429, "Quota", "RESOURCE_EXHAUSTED", details=[{"retryDelay": "30s"}]),
        *({}, "transient"),
    ),
    ("gemini", 429, [google(429, QUOTA, "RESOURCE_EXHAUSTED")], {}, "transient"),
    ("gemini", 403, google(403, "billing", "PERMISSION_DENIED"), {}, NOTHING),
    # -- DeepSeek
    (
        *("deepseek", 402),
        {
            "error": {
                "message": "Insufficient Balance",
                "type": "unknown_error",
                "code": "invalid_request_error",
            }
        },
        *({}, "account_empty"),
    ),
    ("deepseek", 429, {"error": {"message": "Rate limit reached"}}, RETRY, "transient"),
    # -- OpenRouter: 402 has three meanings
    (
        *("openrouter", 402),
        openrouter(402, "Insufficient credits. Add more", limit_source="openrouter_credits"),
        *({}, "account_empty"),
    ),
    ("openrouter", 402, openrouter(402, "Insufficient credits."), {}, "account_empty"),
    (
        *("openrouter", 402),
        openrouter(402, "Key limit", limit_source="openrouter_key_limit"),
        *({}, "key_cap"),
    ),
    (
        *("openrouter", 402),
        openrouter(402, "in flight", limit_source="openrouter_in_flight_budget"),
        *(RETRY, "transient"),
    ),
    (
        *("openrouter", 402),
        openrouter(402, "x", error_type="in_flight_budget_exhausted"),
        *({}, "transient"),
    ),
    (
        *("openrouter", 402),
        openrouter(
            402, "Too large", reason="weight_exceeds_budget", limit_source="openrouter_credits"
        ),
        *({}, "too_big"),
    ),
    (
        *("openrouter", 402),
        openrouter(402, "This request requires more credits, or fewer max_tokens. You requested"),
        *({}, "too_big"),
    ),
    *(
        (
            *("openrouter", 403),
            openrouter(
                403, "Budget limit exceeded", limit_source=source, resets_at="2026-12-01T00:00:00Z"
            ),
            *({}, "key_cap"),
        )
        for source in (
            "openrouter_guardrail_budget",
            "openrouter_workspace_budget",
            "openrouter_key_limit",
        )
    ),
    ("openrouter", 403, openrouter(403, "Key limit exceeded (total limit)"), {}, "key_cap"),
    ("openrouter", 403, openrouter(403, "flagged", reasons=["violence"]), {}, NOTHING),
    ("openrouter", 429, openrouter(429, "Rate limit exceeded"), RATE, "transient"),
    # -- Moonshot: one status
    *(
        (
            *("moonshot", status),
            {
                "error": {
                    "message": "Your account org-1 is suspended due to insufficient balance",
                    "type": "exceeded_current_quota_error",
                }
            },
            *({}, "account_empty"),
        )
        for status in (403, 429)
    ),
    (
        *("moonshot", 429),
        {"error": {"message": "max RPM: 3, try again", "type": "rate_limit_reached_error"}},
        *({}, "transient"),
    ),
    # -- SiliconFlow: no error object, perhaps any status
    *(
        (
            *("siliconflow", status),
            {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None},
            *({}, "account_empty"),
        )
        for status in (200, 403)
    ),
    ("siliconflow", 200, {"code": 20000, "data": {}}, {}, NOTHING),
    (
        "siliconflow",
        200,
        {"choices": [{"message": {"content": "insufficient balance"}}]},
        {},
        NOTHING,
    ),
    # -- xAI: `error` is a text
    *(
        (
            *("xai", status),
            {"code": "The caller does not have permission to execute the operation", "error": XAI},
            *({}, "account_empty"),
        )
        for status in (403, 429)
    ),
    (
        "xai",
        403,
        {"code": "The caller does not have permission", "error": "Forbidden"},
        {},
        NOTHING,
    ),
    ("xai", 429, {"code": "x", "error": "Too many requests"}, RETRY, "transient"),
    # -- z.ai
    (
        "zai",
        429,
        {"error": {"code": "1113", "message": "Insufficient balance"}},
        {},
        "account_empty",
    ),
    ("zai", 400, {"error": {"code": 1113, "message": "-"}}, {}, "account_empty"),
    ("zai", 429, {"error": {"code": "1302", "message": "High concurrency"}}, {}, "transient"),
    # -- Groq
    ("groq", 400, openai("blocked_api_access", "invalid_request_error"), {}, "key_cap"),
    ("groq", 429, openai("spend_limit_reached", "x"), {}, "key_cap"),
    ("groq", 400, openai("json_validate_failed", "invalid_request_error"), {}, NOTHING),
    (
        "groq",
        429,
        openai("rate_limit_exceeded", "tokens", "Need more? Upgrade billing"),
        {},
        "transient",
    ),
    # -- 402 and its neighbours
    ("mistral", 402, {"message": "Payment required"}, {}, "account_empty"),
    ("mistral", 402, {"message": "Payment required"}, RETRY, "transient"),
    ("mistral", 429, {"message": "Requests rate limit exceeded"}, RATE, "transient"),
    ("cohere", 402, {"message": "You have reached the billing limit for this key"}, {}, "key_cap"),
    ("cohere", 402, {"message": "payment required"}, {}, "account_empty"),
    ("together", 402, "", {}, "account_empty"),
    ("fireworks", 412, {"error": {"message": "Account is suspended"}}, {}, "account_empty"),
    ("fireworks", 412, {"error": {"message": "reached the spending limit"}}, {}, "key_cap"),
    ("fireworks", 412, {"error": {"message": "precondition failed: deployment"}}, {}, NOTHING),
    ("fireworks", 412, {"error": {"message": "no model 'credits suspended'"}}, {}, NOTHING),
    ("fireworks", 412, {"error": {"message": "no model 'spending limit'"}}, {}, NOTHING),
    ("generic", 402, {"error": {"message": QUOTA}}, {}, "account_empty"),  # W&B, CoreWeave
    ("novita", 400, {"code": 400, "reason": "BILLING_BALANCE_NOT_ENOUGH"}, {}, "account_empty"),
    ("novita", 400, {"code": 400, "reason": "INVALID_REQUEST_BODY"}, {}, NOTHING),
    ("novita", 400, {"code": 400, "message": "no BILLING_BALANCE_NOT_ENOUGH"}, {}, NOTHING),
    # -- Bedrock: nothing is paid ahead
    *(
        ("bedrock", status, {"message": "x"}, {"x-amzn-errortype": kind}, means)
        for status, kind, means in [
            (429, "ThrottlingException:http://x", "transient"),
            (400, "ServiceQuotaExceededException", "transient"),
            (403, "AccessDeniedException", NOTHING),
            (400, "ValidationException", NOTHING),
        ]
    ),
    # -- not of language models
    (
        *("stability", 402),
        {"errors": ["You lack sufficient credits to make"], "id": "1", "name": "payment_required"},
        *({}, "account_empty"),
    ),
    (
        *("elevenlabs", 401),
        {"detail": {"status": "quota_exceeded", "message": LABS.format(5)}},
        *({}, "too_big"),
    ),
    (
        *("elevenlabs", 401),
        {"detail": {"status": "quota_exceeded", "message": LABS.format(0)}},
        *({}, "account_empty"),
    ),
    ("elevenlabs", 401, {"detail": {"status": "invalid_api_key", "message": "x"}}, {}, NOTHING),
    ("deepgram", 402, {"err_code": "ASR_PAYMENT_REQUIRED", "err_msg": "x"}, {}, "account_empty"),
    ("twilio", 401, {"code": 10001, "message": "Account is not active"}, {}, "account_empty"),
    ("twilio", 403, {"code": 20005, "message": "Account not active"}, {}, "account_empty"),
    ("twilio", 401, {"code": 20003, "message": "Authenticate"}, {}, NOTHING),
    ("twilio", 429, {"code": 20429, "message": "Too Many Requests"}, {}, NOTHING),
    ("google-maps", 200, {"status": "OVER_DAILY_LIMIT", "error_message": "x"}, {}, "key_cap"),
    ("google-maps", 200, {"status": "OVER_QUERY_LIMIT"}, {}, "transient"),
    (
        *("google-maps", 200),
        {
            "status": "REQUEST_DENIED",
            "error_message": "You must enable Billing on the Google Cloud",
        },
        *({}, "account_empty"),
    ),
    (
        "google-maps",
        200,
        {"status": "REQUEST_DENIED", "error_message": "The key is invalid"},
        {},
        NOTHING,
    ),
    ("google-maps", 200, {"status": "OK", "results": ["OVER_DAILY_LIMIT"]}, {}, NOTHING),
    (
        *("google-maps", 403),
        google(403, "billing", "PERMISSION_DENIED", details=[{"reason": "BILLING_DISABLED"}]),
        *({}, "account_empty"),
    ),
    ("google-maps", 403, google(403, "no", "PERMISSION_DENIED"), {}, NOTHING),
    ("google-maps", 429, google(429, "Quota exceeded", "RESOURCE_EXHAUSTED"), {}, "transient"),
    ("serpapi", 429, {"error": "Your account has run out of searches."}, {}, "account_empty"),
    ("serpapi", 429, {"error": "You are exceeding 200 searches per hour"}, {}, "transient"),
    ("serpapi", 401, {"error": "Invalid API key."}, {}, NOTHING),
    ("serpapi", 400, {"error": "Unsupported `run out of searches` location"}, {}, NOTHING),
    # -- whose 402 is about a customer's card
    ("stripe", 402, CARD, {}, "other"),
    ("stripe", 402, {"error": {"type": "invalid_request_error"}}, {}, "other"),
    ("stripe", 429, {"error": {"code": "rate_limit"}}, {}, "transient"),
    ("stripe", 400, {"error": {"code": "balance_insufficient"}}, {}, NOTHING),
    ("generic", 402, CARD, {}, "other"),
    ("generic", 402, {"error": {"type": "card", "code": "x"}}, {}, "account_empty"),
    # -- anybody
    ("generic", 402, {"detail": "Insufficient credit"}, {}, "account_empty"),  # Replicate
    ("generic", 402, "not JSON", {}, "account_empty"),
    ("generic", 402, "", RETRY, "transient"),
    ("generic", 403, {"error": {"code": "insufficient_quota"}}, {}, "account_empty"),
    ("generic", 400, {"error": "insufficient_funds"}, {}, "account_empty"),
    ("generic", 429, {"message": "You are out of credits"}, {}, "account_empty"),
    ("generic", 429, {"message": "Insufficient balance"}, RETRY, "account_empty"),
    ("generic", 403, {"message": "Monthly spend limit reached"}, {}, "key_cap"),
    ("generic", 403, {"message": "You have reached your monthly usage limit"}, {}, "key_cap"),
    ("generic", 429, {"message": "You have reached your usage limit"}, RETRY, "transient"),
    (
        "generic",
        429,
        {"error": {"code": "slow_down", "message": "credit balance"}},
        {},
        "transient",
    ),
    ("generic", 429, {"error": {"message": QUOTA}}, RATE, "transient"),
    ("generic", 429, {"error": {"message": QUOTA}}, {}, NOTHING),
    (
        "generic",
        429,
        google(429, "x", "y", details=[{"@type": "google.rpc.RetryInfo"}]),
        {},
        "transient",
    ),
    ("generic", 429, "", {}, NOTHING),
    ("generic", 429, "", RETRY, "transient"),
    ("generic", 429, "", {"retry-after-ms": "20"}, "transient"),
    ("generic", 403, {"title": "Payment Required"}, {}, "account_empty"),
    ("generic", 400, {"message": "invalid billing address"}, {}, NOTHING),
    ("generic", 400, {"errors": [{"message": "max_tokens above the usage"}]}, {}, NOTHING),
    ("generic", 401, {"error": "bad key"}, {}, NOTHING),
    ("generic", 403, "", {}, NOTHING),
    ("generic", 422, {"detail": [{"input": "insufficient balance"}]}, {}, NOTHING),
    # -- anybody's 400s repeat what was sent
    *(
        ("generic", status, {"error": {"message": f"no model '{said}'"}}, {}, NOTHING)
        for status in (400, 401, 404, 409, 412, 413, 415, 422)
        for said in ("insufficient balance", "spend limit reached", "payment required")
    ),
    ("generic", 503, {"message": "insufficient balance"}, RETRY, NOTHING),
    ("generic", 200, {"message": "insufficient balance"}, {}, NOTHING),
]


def verdict(
    provider: str, status: int, body: Any, headers: Mapping[str, str] = {}
) -> Verdict | None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return judge(packaged().named(provider).rules, status, headers, data)


def test_no_shipped_file_has_a_mistake() -> None:
    assert packaged().mistakes == []


@pytest.mark.parametrize(("provider", "status", "body", "headers", "means"), TABLE)
def test_an_answer_means_what_its_provider_says(
    provider: str, status: int, body: Any, headers: Mapping[str, str], means: str | None
) -> None:
    found = verdict(provider, status, body, headers)
    assert (found and found.means) == means


def test_every_provider_with_errors_of_its_own_is_in_the_table() -> None:
    generic = set(packaged().named("generic").rules.rules)
    own = {
        name
        for name in packaged().names()
        if set(packaged().named(name).rules.rules) - generic and name != "openrouter-key"
    }
    assert own | {"generic"} <= {provider for provider, *_ in TABLE}


def test_every_rule_decides_a_row_of_the_table() -> None:
    """A rule that never decides is not tested, or stands behind one that is too broad."""
    unused = {
        (name, index)
        for name in packaged().names()
        if name != "openrouter-key"
        for index, rule in enumerate(packaged().named(name).rules.rules)
        if name == "generic" or rule not in packaged().named("generic").rules.rules
    }
    for provider, status, body, headers, means in TABLE:
        if means is None:
            continue
        rules = packaged().named(provider).rules
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        first = next(
            index
            for index in range(len(rules.rules))
            if judge(Rules("one", rules.rules[: index + 1]), status, headers, data)
        )
        unused.discard((provider, first))
    assert unused == set()


@pytest.mark.parametrize("provider", packaged().names())
def test_answers_of_success_are_looked_at_only_where_they_can_be_refusals(provider: str) -> None:
    rules = packaged().named(provider).rules
    assert rules.reads(200) is (provider in ("google-maps", "siliconflow"))
    assert rules.reads(429)
    assert not rules.reads(500)


def test_without_rules_nothing_is_read() -> None:
    assert not Rules().reads(402)
    assert judge(Rules(), 402, {}, b"") is None


def test_what_has_to_stop_follows_from_what_it_means() -> None:
    scopes = {
        found.means: found.scope
        for provider, status, body, headers, _ in TABLE
        if (found := verdict(provider, status, body, headers))
    }
    assert scopes == {
        "account_empty": "credential",
        "key_cap": "credential",
        "too_big": "request",
        "transient": "none",
        "other": "none",
    }


@pytest.mark.parametrize(
    ("resets_at", "until"),
    [
        ("2026-12-01T00:00:00Z", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12-01T01:30:00.123+01:00", datetime(2026, 12, 1, 0, 30, tzinfo=UTC)),
        (1796083200, datetime(2026, 12, 1, tzinfo=UTC)),
        (1796083200000, datetime(2026, 12, 1, tzinfo=UTC)),
        (1796083200.5, datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-13-01T00:00:00Z", None),
        ("soon", None),
        (None, None),
        (True, None),
        (-5, None),
        (10**30, None),
        (-(10**30), None),
        ([], None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_when_calls_pass_again_is_read_if_it_is_a_time(
    resets_at: Any, until: datetime | None
) -> None:
    body = openrouter(403, "Budget limit exceeded", resets_at=resets_at)
    found = verdict("openrouter", 403, body)
    assert found is not None
    assert found.until_s == (until and until.timestamp())


@pytest.mark.parametrize("number", ["1e999999999999999", "-1e999999999999999", "1e-999999999999"])
def test_a_time_with_any_exponent_is_no_time_at_all(number: str) -> None:
    """Written out in full it would fill the memory."""
    body = json.dumps(openrouter(403, "Budget limit exceeded", resets_at=0))
    found = verdict("openrouter", 403, body.replace('"resets_at": 0', f'"resets_at": {number}'))
    assert found is not None
    assert found.until_s is None


def test_a_date_in_a_sentence_is_read_too() -> None:
    said = (
        "You have reached your specified API usage limits. You will regain access on 2026-12-01 at "
        "00:00 UTC."
    )
    found = verdict("anthropic", 400, anthropic("invalid_request_error", said))
    assert found is not None
    assert found.until_s == datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert found.said == said


def test_what_is_said_is_that_of_the_provider() -> None:
    found = verdict("deepseek", 402, {"error": {"message": "Insufficient Balance", "code": 1}})
    assert found == Verdict("account_empty", "Insufficient Balance", None, "credential")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (429, {"message": "no credits for 'my own words'"}, None),
        (429, {"message": "'my own words': out of credits, my own words"}, "out of credits"),
        (403, {"error": {"message": "Spend limit reached: my own words"}}, "Spend limit reached"),
        (403, {"error": {"code": "insufficient_quota", "message": "my own words"}}, None),
        (402, {"message": "my own words"}, "status 402"),
        (402, "my own words", "status 402"),
    ],
)
def test_of_an_answer_of_anybody_only_the_words_that_fit_are_said(
    status: int, body: Any, said: str | None
) -> None:
    """The rest may be what a caller sent, and is told to the others."""
    for provider in ("generic", "mistral", "novita"):
        found = verdict(provider, status, body)
        assert said is None or (found is not None and found.said == said)
        assert found is None or "my own words" not in found.said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Insufficient Balance", "Insufficient Balance"),
        ("key sk-abcdef is empty", "key *** is empty"),
        ("Bearer abcdefgh", "***"),
        ("your team 7c0ffee0-0000-4000-8000-00", "your team ***"),
        ("write to jane@example.com", "write to ***"),
        ("organization_spend_limit_exceeded", "organization_spend_limit_exceeded"),
        ("a\x00b\x1b[31m\nc", "a b [31m c"),
        ("our-own-secret-word", "***"),
        ("", ""),
    ],
)
def test_what_is_said_is_fit_for_a_log(text: str, shown: str) -> None:
    assert fit_to_show(text, ["our-own-secret-word"]) == shown


def test_what_is_said_is_short() -> None:
    found = verdict("stability", 402, {"message": "word " * 10_000, "name": "payment_required"})
    assert found is not None
    assert len(found.said) == MAX_SAID


def test_only_the_beginning_of_a_body_is_looked_at() -> None:
    rules = Rules("x", (Rule("transient", frozenset({400}), pattern=re.compile("busy")),))
    assert judge(rules, 400, {}, b" " * MAX_BODY + b"busy") is None
    assert judge(rules, 400, {}, b" " * 100 + b"busy") is not None


def test_a_header_is_tested_by_name_and_value() -> None:
    rule = Rule("transient", frozenset({400}), (HeaderTest("x-*", value="thrott*"),))
    rules = Rules("x", (rule,))
    assert judge(rules, 400, {"x-amz": "Throttling"}, b"") is not None
    assert judge(rules, 400, {"x-amz": "Other"}, b"") is None
    assert judge(rules, 400, {}, b"") is None
