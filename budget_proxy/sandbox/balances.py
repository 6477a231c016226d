"""What the providers' balance endpoints say: one balance, in the form of each of them.

One table, `BALANCES`. A figure is rounded down to what the provider shows, strings where it writes
strings. Forbidden here: sending, waiting, and where the figure comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from budget_proxy.sandbox.bank import NANOS, format_amount
from budget_proxy.sandbox.call import Object

CENT = NANOS // 100
CHARACTER_NANOS = 100_000
"""0.0001 US dollar for one of ElevenLabs' credits."""
SEARCH_NANOS = NANOS // 100
"""0.01 US dollar for one of SerpAPI's searches."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left and what was used, in nanos; the currency; and the names in the path.

    `is_open`: calls are let through, whatever the figure says.
    """

    nanos: int
    used_nanos: int
    currency: str
    names: Mapping[str, str]
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class BalanceEndpoint:
    """One provider's endpoint. `unlimited` is its answer where there is no prepaid balance."""

    name: str
    path: str
    show: Callable[[Standing], Object]
    unlimited: Object | None = None


def _deepseek(it: Standing) -> Object:
    def infos(currency: str, nanos: int) -> Object:
        total = _two_places(nanos)
        return {
            "currency": currency,
            "total_balance": total,
            "granted_balance": "0.00",
            "topped_up_balance": total,
        }

    # Two currencies, as an account may have, and the empty one first: who takes the first is wrong.
    both = [infos("CNY", 0), infos(it.currency, it.nanos)]
    return {"is_available": it.is_open, "balance_infos": both}


def _openrouter_credits(it: Standing) -> Object:
    total = it.nanos + it.used_nanos
    return {"data": {"total_credits": _number(total), "total_usage": _number(it.used_nanos)}}


def _openrouter_key(it: Standing) -> Object:
    limit, left, used = map(_number, (it.nanos + it.used_nanos, it.nanos, it.used_nanos))
    effective = {
        "scope": "key",
        "limit_usd": limit,
        "spend_usd": used,
        "remaining_usd": left,
        "reset_interval": None,
        "resets_at": None,
    }
    return _key(limit, left, used, effective)


def _key(limit: object, left: object, used: object, effective: object) -> Object:
    return {
        "data": {
            "label": "sandbox",
            "limit": limit,
            "limit_remaining": left,
            "limit_reset": None,
            "usage": used,
            "usage_daily": used,
            "usage_weekly": used,
            "usage_monthly": used,
            "byok_usage": 0,
            "is_free_tier": False,
            "budgets": [],
            "effective_budget": effective,
        }
    }


def _moonshot(it: Standing) -> Object:
    # No currency: the host tells it.
    left = _number(it.nanos // 10_000 * 10_000)
    return {
        "code": 0,
        "data": {"available_balance": left, "voucher_balance": 0, "cash_balance": left},
        "scode": "0x0",
        "status": True,
    }


def _siliconflow(it: Standing) -> Object:
    left = _two_places(it.nanos)
    return {
        "code": 20000,
        "message": "OK",
        "status": True,
        "data": {
            "id": "sandbox",
            "status": "normal",
            "balance": "0.00",
            "chargeBalance": left,
            "totalBalance": left,
        },
    }


def _xai(it: Standing) -> Object:
    # A ledger seen from the seller: what the buyer has is negative, in text, in cents.
    owed = {"val": str(-(it.nanos // CENT))}
    return {"total": owed, "changes": [{"changeOrigin": "PURCHASE", "amount": owed}]}


def _deepinfra(it: Standing) -> Object:
    return {
        "stripe_balance": _number(-it.nanos),
        "suspended": not it.is_open,
        "suspend_reason": None if it.is_open else "balance",
    }


def _novita(it: Standing) -> Object:
    left = str(it.nanos // (NANOS // 10_000))
    return {
        "availableBalance": left,
        "cashBalance": left,
        "creditLimit": "0",
        "pendingCharges": "0",
        "outstandingInvoices": "0",
    }


def _venice(it: Standing) -> Object:
    return {
        "canConsume": it.is_open,
        "consumptionCurrency": it.currency,
        "balances": {"diem": 0, it.currency.lower(): _number(it.nanos)},
    }


def _twilio(it: Standing) -> Object:
    return {
        "account_sid": it.names["sid"],
        "balance": _two_places(it.nanos),
        "currency": it.currency,
    }


def _elevenlabs(it: Standing) -> Object:
    used = it.used_nanos // CHARACTER_NANOS
    return {
        "tier": "creator",
        "character_count": used,
        "character_limit": used + it.nanos // CHARACTER_NANOS,
        "max_credit_limit_extension": 0,
        "next_character_count_reset_unix": None,
        "current_overage": None,
        "status": "active",
    }


def _serpapi(it: Standing) -> Object:
    left = it.nanos // SEARCH_NANOS
    return {
        "account_status": "Active",
        "plan_searches_left": left,
        "extra_credits": 0,
        "total_searches_left": left,
        "this_month_usage": it.used_nanos // SEARCH_NANOS,
        "this_hour_searches": 0,
        "account_rate_limit_per_hour": 1000,
    }


def _stability(it: Standing) -> Object:
    return {"credits": _number(it.nanos * 100)}


def _deepgram(it: Standing) -> Object:
    # Two purchases: the balance is their sum.
    half = it.nanos // 2
    return {
        "balances": [
            {
                "balance_id": f"balance-{place}",
                "amount": _number(nanos),
                "units": it.currency,
                "purchase_order_id": f"order-{place}",
            }
            for place, nanos in enumerate((half, it.nanos - half), 1)
        ]
    }


BALANCES: tuple[BalanceEndpoint, ...] = (
    BalanceEndpoint("deepseek", "/user/balance", _deepseek),
    BalanceEndpoint("openrouter_credits", "/api/v1/credits", _openrouter_credits),
    BalanceEndpoint(
        "openrouter_key", "/api/v1/key", _openrouter_key, unlimited=_key(None, None, 0, None)
    ),
    BalanceEndpoint("moonshot", "/v1/users/me/balance", _moonshot),
    BalanceEndpoint("siliconflow", "/v1/user/info", _siliconflow),
    BalanceEndpoint("xai", "/v1/billing/teams/{team}/prepaid/balance", _xai),
    BalanceEndpoint("deepinfra", "/payment/checklist", _deepinfra),
    BalanceEndpoint("novita", "/openapi/v1/billing/balance/detail", _novita),
    BalanceEndpoint("venice", "/api/v1/billing/balance", _venice),
    BalanceEndpoint("twilio", "/2010-04-01/Accounts/{sid}/Balance.json", _twilio),
    BalanceEndpoint("elevenlabs", "/v1/user/subscription", _elevenlabs),
    BalanceEndpoint("serpapi", "/account.json", _serpapi),
    BalanceEndpoint("stability", "/v1/user/balance", _stability),
    BalanceEndpoint("deepgram", "/v1/projects/{project}/balances", _deepgram),
)


def _two_places(nanos: int) -> str:
    whole = abs(nanos // CENT)
    return f"{'-' if nanos < 0 else ''}{whole // 100}.{whole % 100:02d}"


def _number(nanos: int) -> float:
    """A JSON number that reads as exactly this decimal."""
    return float(format_amount(nanos))
