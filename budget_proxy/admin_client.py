"""What the command line asks of a running proxy's admin port.

Asked directly: no proxy of the environment stands between us and an admin port. Everything here
raises CannotError where it cannot be had, with a message that says what to change.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from budget_proxy.upkeep import ANSWER_S, CannotError

MAX_PROBLEM = 4096
"""Bytes of an error's body that are read."""
MAX_ANSWER = 256 * 1024 * 1024
OTHER_ADMIN = "; name another with --admin"
_MISTAKES = (400, 422)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(
    admin: str,
    token: str | None,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    hint: str = OTHER_ADMIN,
) -> dict[str, Any]:
    """What it answers; with a body, to a POST. `hint`: what to do where nobody answers. Raises
    CannotError."""
    if not admin.startswith(("http://", "https://")):
        raise CannotError(f"{admin!r} is not the URL of an admin port, as in http://HOST:9090", 2)
    try:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(admin.rstrip("/") + path, data)  # noqa: S310
        if token:
            request.add_header("authorization", f"Bearer {token}")
        with _direct.open(request, timeout=ANSWER_S) as answer:
            document = json.loads(answer.read(MAX_ANSWER))
        if not isinstance(document, dict):
            raise TypeError("it does not answer as a budget-proxy does")
    except urllib.error.HTTPError as error:
        raise _refused(admin, error) from error
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise CannotError(f"no budget-proxy answers at {admin} ({_why(error)}){hint}", 1) from error
    return document


def rows(
    admin: str, token: str | None, path: str, key: str, *, hint: str = OTHER_ADMIN
) -> list[dict[str, Any]]:
    """The list that it answers under a key. Raises CannotError."""
    found = ask(admin, token, path, hint=hint).get(key)
    if not isinstance(found, list):
        raise CannotError(
            f"no budget-proxy answers at {admin} (there are no {key} in what it says){hint}", 1
        )
    return found


def accounts_from(admin: str, token: str | None) -> list[dict[str, Any]]:
    """The open accounts of a running proxy. Raises CannotError."""
    hint = f"{OTHER_ADMIN}, or a ledger file with --ledger"
    return rows(admin, token, "/api/accounts", "accounts", hint=hint)


def balances_from(admin: str, token: str | None) -> list[dict[str, Any]]:
    """Its balances. Raises CannotError."""
    return rows(admin, token, "/api/balances", "balances")


def stops_from(admin: str, token: str | None) -> list[dict[str, Any]]:
    """What is stopped. Raises CannotError."""
    return rows(admin, token, "/api/stops", "stops")


def set_balance(
    admin: str, token: str | None, upstream: str, word: Mapping[str, Any]
) -> dict[str, Any]:
    """Say what a balance is; it after that. Raises CannotError."""
    return ask(admin, token, f"/api/balances/{quote(upstream, safe='')}", word)


def topups_from(admin: str, token: str | None) -> list[dict[str, Any]]:
    """Its attempts to top up. Raises CannotError."""
    return rows(admin, token, "/api/topups", "topups")


def answer_topup(
    admin: str, token: str | None, topup_id: str, verb: str, word: Mapping[str, Any]
) -> dict[str, Any]:
    """Say something to an attempt to top up; it after that. Raises CannotError."""
    return ask(admin, token, f"/api/topups/{quote(topup_id, safe='')}/{verb}", word)


def _refused(admin: str, error: urllib.error.HTTPError) -> CannotError:
    if error.code in (401, 403):
        said = " (set BUDGET_PROXY_TOKEN to the admin_token)"
        return CannotError(f"{admin} answered {error.code}{said}", 1)
    detail = _detail(error)
    if error.code in _MISTAKES and detail:
        return CannotError(detail, 2)
    return CannotError(f"{admin} answered {error.code}{detail and f': {detail}'}", 1)


def _detail(error: urllib.error.HTTPError) -> str:
    """What a proxy says of its refusal; nothing where something else answered."""
    try:
        detail = json.loads(error.read(MAX_PROBLEM))["detail"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return _line(detail)


def _why(error: Exception) -> str:
    """What went wrong, without the wrappings; it may quote what answered."""
    cause = getattr(error, "reason", error)
    return _line(getattr(cause, "strerror", None) or cause)


def _line(said: object) -> str:
    return " ".join(str(said).split())
