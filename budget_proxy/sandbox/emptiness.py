"""How providers say that the money is gone, and what only looks like it.

One table, `REFUSALS`; the knobs `empty_as` and `refuse_as` name its rows, and tests walk it.
Statuses, types and codes are the providers'; so are the texts where they are known word for word.
Forbidden here: deciding when one of them is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from budget_proxy.sandbox.call import Object

Meaning = Literal["account_empty", "key_cap", "too_big", "transient", "other"]
"""account_empty: only money helps. key_cap: a cap of the key, project or organization; the account
may have plenty. too_big: smaller requests may pass. transient: the same request may pass soon.
other: nothing to do with our money."""

_REQUEST_ID = "{request_id}"


@dataclass(frozen=True, slots=True)
class Row:
    """One refusal as it is sent; `meaning` is what a reader should make of it."""

    name: str
    meaning: Meaning
    status: int
    body: Object
    headers: Mapping[str, str] = field(default_factory=dict)

    def body_for(self, number: int) -> Object:
        """The body for one request, whose number stands where the provider names the request."""
        return {
            key: f"req_{number:016x}" if value == _REQUEST_ID else value
            for key, value in self.body.items()
        }


def _openai(message: str, kind: str, code: str | None) -> Object:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _anthropic(kind: str, message: str, code: str | None = None) -> Object:
    error: Object = {"type": kind, "message": message}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": _REQUEST_ID}


def _google(code: int, status: str, message: str, *details: Object) -> Object:
    error: Object = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return {"error": error}


def _openrouter(code: int, message: str, **metadata: object) -> Object:
    return {"error": {"code": code, "message": message, "metadata": metadata}}


_QUOTA = "You exceeded your current quota, please check your plan and billing details."
_SPENT = "insufficient_quota"
_OPENAI = (
    Row("openai", "account_empty", 429, _openai(_QUOTA, _SPENT, "credit_balance_exhausted")),
    Row("openai_older", "account_empty", 429, _openai(_QUOTA, _SPENT, "insufficient_quota")),
    Row(
        "openai_organization_limit",
        "key_cap",
        429,
        _openai(_QUOTA, _SPENT, "organization_spend_limit_exceeded"),
    ),
    Row(
        "openai_project_limit",
        "key_cap",
        429,
        _openai(_QUOTA, _SPENT, "project_spend_limit_exceeded"),
    ),
    Row(
        "openai_usage_limit",
        "key_cap",
        429,
        _openai(_QUOTA, _SPENT, "organization_usage_limit_exceeded"),
    ),
    Row(
        "openai_hard_limit",
        "key_cap",
        400,
        _openai(
            "Billing hard limit has been reached",
            "invalid_request_error",
            "billing_hard_limit_reached",
        ),
    ),
    Row(
        "openai_rate",
        "transient",
        429,
        _openai(
            "Rate limit reached for gpt-4o-mini in organization org-sandbox on tokens per min "
            "(TPM): Limit 200000, Used 199000, Requested 2000. Please try again in 300ms. Please "
            "check your plan and billing details.",
            "tokens",
            "rate_limit_exceeded",
        ),
        {
            "retry-after": "1",
            "retry-after-ms": "300",
            "x-ratelimit-limit-tokens": "200000",
            "x-ratelimit-remaining-tokens": "1000",
            "x-ratelimit-reset-tokens": "300ms",
        },
    ),
    Row(
        "openai_slow_down",
        "transient",
        429,
        _openai("Please slow down.", "rate_limit_error", "slow_down"),
        {"retry-after": "2"},
    ),
)

_ANTHROPIC_EMPTY = (
    "Your credit balance is too low to access the Anthropic API. "
    "Please go to Plans & Billing to upgrade or purchase credits."
)
_ANTHROPIC = (
    Row(
        "anthropic",
        "account_empty",
        400,
        _anthropic("invalid_request_error", _ANTHROPIC_EMPTY),
    ),
    Row(
        "anthropic_limit",
        "key_cap",
        400,
        _anthropic(
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on "
            "2027-01-01 at 00:00 UTC.",
        ),
    ),
    Row(
        "anthropic_workspace_limit",
        "key_cap",
        400,
        _anthropic(
            "invalid_request_error",
            "You have reached your specified workspace API usage limits. You will regain access "
            "on 2027-01-01 at 00:00 UTC.",
        ),
    ),
    Row(
        "anthropic_billing",
        "account_empty",
        402,
        _anthropic("billing_error", "There is a problem with your billing."),
    ),
    Row(
        "anthropic_linked_limit",
        "key_cap",
        402,
        _anthropic(
            "billing_error",
            "The linked organization has reached its spend limit.",
            "linked_organization_spend_limit_reached",
        ),
    ),
    Row(
        "anthropic_enforced_limit",
        "key_cap",
        429,
        _anthropic(
            "rate_limit_error",
            "Your organization has reached its enforced spend limit.",
            "enforced_spend_limit_reached",
        ),
    ),
    Row(
        "anthropic_contract_limit",
        "key_cap",
        429,
        _anthropic(
            "rate_limit_error",
            "Your organization has reached its contract's spend limit.",
            "contract_spend_limit_reached",
        ),
    ),
    Row(
        "anthropic_rate",
        "transient",
        429,
        _anthropic(
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 50 requests per minute.",
        ),
        {"retry-after": "12", "anthropic-ratelimit-requests-remaining": "0"},
    ),
    Row(
        "anthropic_ramp",
        "transient",
        429,
        _anthropic(
            "rate_limit_error",
            "Your usage is growing too fast. Please ramp up more slowly.",
            "ramp_limit_exceeded",
        ),
        {"retry-after": "30"},
    ),
    Row(
        "anthropic_overloaded",
        "transient",
        529,
        _anthropic("overloaded_error", "Overloaded"),
    ),
)

_GOOGLE = (
    Row(
        "gemini",
        "account_empty",
        402,
        _google(
            402,
            "RESOURCE_EXHAUSTED",
            "Your prepayment credits are depleted. Please go to AI Studio at "
            "https://ai.studio/projects to manage your project and billing.",
        ),
    ),
    Row(
        "gemini_rate",
        "transient",
        429,
        _google(
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota, please check your plan and billing details.",
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "30s"},
        ),
    ),
    Row(
        "google_maps",
        "key_cap",
        200,
        {
            "status": "OVER_DAILY_LIMIT",
            "error_message": "You have exceeded your daily request quota for this API, or billing "
            "has not been enabled on this project.",
            "results": [],
        },
    ),
    Row(
        "google_maps_rate",
        "transient",
        200,
        {
            "status": "OVER_QUERY_LIMIT",
            "error_message": "You have exceeded your rate-limit for this API.",
            "results": [],
        },
    ),
    Row(
        "google_maps_denied",
        "other",
        200,
        {
            "status": "REQUEST_DENIED",
            "error_message": "The provided API key is invalid.",
            "results": [],
        },
    ),
    Row(
        "google_places",
        "account_empty",
        403,
        _google(
            403,
            "PERMISSION_DENIED",
            "This API method requires billing to be enabled.",
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "BILLING_DISABLED",
                "domain": "googleapis.com",
            },
        ),
    ),
    Row(
        "google_places_rate",
        "transient",
        429,
        _google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests'."),
    ),
)

_OPENROUTER = (
    Row(
        "openrouter",
        "account_empty",
        402,
        _openrouter(
            402,
            "Insufficient credits. Add more using https://openrouter.ai/settings/credits",
            limit_source="openrouter_credits",
        ),
    ),
    Row(
        "openrouter_key_limit",
        "key_cap",
        402,
        _openrouter(
            402,
            "Insufficient credits. This key has reached its limit.",
            limit_source="openrouter_key_limit",
        ),
    ),
    Row(
        "openrouter_too_big",
        "too_big",
        402,
        _openrouter(
            402,
            "This request requires more credits, or fewer max_tokens.",
            limit_source="openrouter_credits",
            reason="weight_exceeds_budget",
        ),
    ),
    Row(
        "openrouter_in_flight",
        "transient",
        402,
        _openrouter(
            402,
            "Other requests in flight use up the credits.",
            limit_source="openrouter_in_flight_budget",
            reason="in_flight_budget_exhausted",
        ),
        {"retry-after": "2"},
    ),
    *(
        Row(
            f"openrouter_{name}_budget",
            "key_cap",
            403,
            _openrouter(
                403,
                "Budget limit exceeded",
                limit_source=source,
                scope=name,
                limit_usd=10,
                spend_usd=10.01,
                resets_at="2027-01-01T00:00:00Z",
            ),
        )
        for name, source in (
            ("guardrail", "openrouter_guardrail_budget"),
            ("workspace", "openrouter_workspace_budget"),
            ("key", "openrouter_key_limit"),
        )
    ),
    Row(
        "openrouter_rate",
        "transient",
        429,
        _openrouter(429, "Rate limit exceeded"),
        {"retry-after": "5", "x-ratelimit-remaining": "0"},
    ),
)

_MOONSHOT_EMPTY = {
    "error": {
        "message": "Your account org-sandbox is suspended due to insufficient balance, please "
        "recharge your account or check your plan and billing details",
        "type": "exceeded_current_quota_error",
    }
}
_XAI_DENIED = "The caller does not have permission to execute the specified operation"
_XAI_EMPTY = {
    "code": _XAI_DENIED,
    "error": "Your team sandbox has either used all available credits or reached its monthly "
    "spending limit. To continue making API requests, please purchase more credits or raise your "
    "spending limit.",
}
_CHINESE_AND_XAI = (
    Row(
        "deepseek",
        "account_empty",
        402,
        _openai("Insufficient Balance", "unknown_error", "invalid_request_error"),
    ),
    Row("moonshot", "account_empty", 429, _MOONSHOT_EMPTY),
    Row("moonshot_forbidden", "account_empty", 403, _MOONSHOT_EMPTY),
    Row(
        "moonshot_rate",
        "transient",
        429,
        {
            "error": {
                "message": "Your account org-sandbox request reached max organization RPM: 3, "
                "please try again after 1 seconds",
                "type": "rate_limit_reached_error",
            }
        },
    ),
    Row(
        "siliconflow",
        "account_empty",
        403,
        {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None},
    ),
    Row("xai", "account_empty", 403, _XAI_EMPTY),
    Row("xai_rate_status", "account_empty", 429, _XAI_EMPTY),
    Row(
        "xai_denied",
        "other",
        403,
        {"code": _XAI_DENIED, "error": "Your API key is not allowed to use this model."},
    ),
    Row(
        "zai",
        "account_empty",
        429,
        {
            "error": {
                "code": "1113",
                "message": "Insufficient balance or no resource package. Please recharge.",
            }
        },
    ),
    Row(
        "zai_rate",
        "transient",
        429,
        {"error": {"code": "1302", "message": "Rate limit reached for requests"}},
    ),
)

_BEDROCK: tuple[tuple[str, Meaning, int, str, str], ...] = (
    ("rate", "transient", 429, "ThrottlingException", "Too many requests, please wait."),
    ("quota", "transient", 400, "ServiceQuotaExceededException", "A service quota is exceeded."),
    ("denied", "other", 403, "AccessDeniedException", "You don't have access to the model."),
)
_LANGUAGE_MODELS = (
    Row(
        "groq",
        "key_cap",
        400,
        _openai(
            "Your organization has reached its spend limit.",
            "invalid_request_error",
            "blocked_api_access",
        ),
    ),
    Row(
        "groq_rate",
        "transient",
        429,
        _openai(
            "Rate limit reached for model `llama-3.3-70b` on tokens per minute (TPM): Limit 6000. "
            "Please try again in 5s. Need more tokens? Upgrade to Dev Tier today at "
            "https://console.groq.com/settings/billing",
            "tokens",
            "rate_limit_exceeded",
        ),
        {"retry-after": "5"},
    ),
    Row("mistral", "account_empty", 402, {"detail": "Payment required"}),
    Row(
        "cohere",
        "key_cap",
        402,
        {"message": "Please add or update your payment method: billing limit reached."},
    ),
    Row(
        "together",
        "account_empty",
        402,
        _openai("Credit limit exceeded, please add credits.", "credit_limit", None),
    ),
    Row(
        "fireworks",
        "key_cap",
        412,
        _openai(
            "Account sandbox is suspended, possibly due to reaching the monthly spending limit.",
            "error",
            "PRECONDITION_FAILED",
        ),
    ),
    Row(
        "wandb",
        "account_empty",
        402,
        _openai("You exceeded your current quota, please add credits.", _SPENT, None),
    ),
    Row(
        "novita",
        "account_empty",
        400,
        {
            "code": 400,
            "reason": "BILLING_BALANCE_NOT_ENOUGH",
            "message": "billing balance not enough",
        },
    ),
    *(
        Row(
            f"bedrock_{name}",
            meaning,
            status,
            {"message": message},
            {"x-amzn-errortype": kind},
        )
        for name, meaning, status, kind, message in _BEDROCK
    ),
)

_OTHERS = (
    Row(
        "geocoder",
        "account_empty",
        402,
        {
            "status": "PAYMENT_REQUIRED",
            "error_message": "The prepaid balance is too low for this look-up.",
            "results": [],
        },
    ),
    Row(
        "stability",
        "account_empty",
        402,
        {
            "errors": ["You lack sufficient credits to make this request."],
            "id": _REQUEST_ID,
            "name": "payment_required",
        },
    ),
    Row(
        "elevenlabs",
        "too_big",
        401,
        {
            "detail": {
                "status": "quota_exceeded",
                "message": "This request exceeds your quota of 10000. You have 5 credits "
                "remaining, while 1727 credits are required for this request.",
            }
        },
    ),
    Row(
        "elevenlabs_key",
        "other",
        401,
        {"detail": {"status": "invalid_api_key", "message": "Invalid API key"}},
    ),
    Row(
        "deepgram",
        "account_empty",
        402,
        {
            "err_code": "ASR_PAYMENT_REQUIRED",
            "err_msg": "Project does not have enough credits for an ASR request and does not have "
            "an overage agreement.",
            "request_id": _REQUEST_ID,
        },
    ),
    *(
        Row(
            name,
            "account_empty",
            status,
            {
                "code": code,
                "message": "Account not active",
                "more_info": f"https://www.twilio.com/docs/errors/{code}",
                "status": status,
            },
        )
        for name, status, code in (("twilio", 401, 10001), ("twilio_forbidden", 403, 20005))
    ),
    Row(
        "twilio_rate",
        "transient",
        429,
        {
            "code": 20429,
            "message": "Too Many Requests",
            "more_info": "https://www.twilio.com/docs/errors/20429",
            "status": 429,
        },
    ),
    Row("serpapi", "account_empty", 429, {"error": "Your account has run out of searches."}),
    Row(
        "serpapi_hourly",
        "transient",
        429,
        {
            "error": "You are exceeding your hourly throughput limit of searches. Please space "
            "out your searches, or upgrade your plan."
        },
    ),
    Row(
        "replicate",
        "account_empty",
        402,
        {
            "title": "Insufficient credit",
            "detail": "You have insufficient credit to run this model. Go to "
            "https://replicate.com/account/billing to purchase credit.",
            "status": 402,
        },
    ),
    # The card of a customer of ours, not our account.
    Row(
        "stripe_card",
        "other",
        402,
        {
            "error": {
                "type": "card_error",
                "code": "card_declined",
                "decline_code": "insufficient_funds",
                "message": "Your card has insufficient funds.",
            }
        },
    ),
    Row("plain_402", "account_empty", 402, {"message": "Payment Required"}),
    Row("plain_402_retry", "transient", 402, {"message": "Try later"}, {"retry-after": "5"}),
    Row("plain_403", "other", 403, {"message": "Forbidden"}),
    Row("plain_429", "transient", 429, {"message": "Too Many Requests"}),
)

REFUSALS: Mapping[str, Row] = {
    row.name: row
    for row in (
        *_OPENAI,
        *_ANTHROPIC,
        *_GOOGLE,
        *_OPENROUTER,
        *_CHINESE_AND_XAI,
        *_LANGUAGE_MODELS,
        *_OTHERS,
    )
}
"""Every refusal, by name."""
EMPTY = tuple(
    name
    for name, row in REFUSALS.items()
    if row.meaning not in ("transient", "other") or name == "openrouter_in_flight"
)
"""What an empty balance can be answered with: the rows that speak of money, in whatever words."""
