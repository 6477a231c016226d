"""Every reason in every dialect: status, headers, body, and nothing that a caller can inject."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from refusal_samples import HELD, NOW_S, REQUEST_ID, SPENT, TOO_LARGE, refusal

from budget_proxy.core.refusal import MONEY_REASONS, REASONS, Barred, Reason, Refusal
from budget_proxy.dialects import DIALECTS, Rendered, render, stream_error

EVERY = [(name, reason) for name in DIALECTS for reason in Reason]
TOKEN = re.compile(rb"[a-z0-9-]+\Z")
VALUE = re.compile(rb"(?:[!-~](?:[ -~]*[!-~])?)?\Z")
PROXY_STATUS = re.compile(rb'budget-proxy; error=[a-z_]+; details="(?:[ !#-\[\]-~]|\\["\\])*"\Z')
OPENAI_TYPES = {
    "insufficient_quota",
    "invalid_request_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
}
ANTHROPIC_TYPES = {
    "api_error",
    "authentication_error",
    "billing_error",
    "invalid_request_error",
    "not_found_error",
    "overloaded_error",
    "permission_error",
    "rate_limit_error",
    "request_too_large",
    "timeout_error",
}


def rendered(name: str, refusal_: Refusal, **changes: str) -> Rendered:
    given = {"request_id": REQUEST_ID} | changes
    return render(name, refusal_, now_s=NOW_S, **given)


def body_of(answer: Rendered) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body.decode("ascii"))
    return body


def check_bytes(answer: Rendered) -> None:
    """What holds whatever the names are."""
    headers = dict(answer.headers)
    assert len(headers) == len(answer.headers)
    for name, value in answer.headers:
        assert TOKEN.match(name), name
        assert VALUE.match(value), value
    assert PROXY_STATUS.match(headers[b"proxy-status"])
    assert int(headers[b"content-length"]) == len(answer.body)
    assert answer.body.isascii()
    assert not re.search(rb"[\x00-\x1f\x7f]", answer.body)
    message = json.loads(answer.body)["detail"]
    assert message.isprintable()


@pytest.mark.parametrize(("name", "reason"), EVERY)
def test_each_reason_in_each_dialect(name: str, reason: Reason) -> None:
    answer = rendered(name, refusal(reason))
    headers, body, rule = dict(answer.headers), body_of(answer), REASONS[reason]
    check_bytes(answer)

    assert answer.status == rule.status == body["status"]
    should_retry = {True: b"true", False: b"false", None: None}[rule.should_retry]
    assert headers.get(b"x-should-retry") == should_retry
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-budget-proxy-reason"] == reason.value.encode()
    assert headers[b"x-request-id"] == REQUEST_ID.encode()
    assert (b"www-authenticate" in headers) == (rule.status == 401)

    assert body["title"] == rule.title
    assert body["code"] == reason.value
    assert body["instance"] == f"urn:uuid:{REQUEST_ID}"
    assert "budget-proxy" in body["detail"]
    if reason in MONEY_REASONS:
        assert body["violated-policies"] == [body["budgets"][0]["budget"]]
    else:
        assert "budgets" not in body
        assert f"the figure {reason.value}." in body["detail"]


@pytest.mark.parametrize(("name", "reason"), EVERY)
def test_the_error_object_of_each_dialect(name: str, reason: Reason) -> None:
    body = body_of(rendered(name, refusal(reason)))
    if name == "problem":
        assert body["type"] == f"urn:budget-proxy:problem:{reason.value}"
        assert body["message"] == body["detail"]
        assert "error" not in body
        return
    error = body["error"]
    assert error["message"] == body["detail"]
    if name == "openai":
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] in OPENAI_TYPES
        unauthorized = reason is Reason.UNAUTHORIZED
        assert error["code"] == ("invalid_api_key" if unauthorized else reason.value)
        assert error["param"] == ("model" if reason is Reason.UNPRICED else None)
    else:
        # The whole body is printed by the SDK, so what a person needs stands first.
        assert list(body)[:3] == ["type", "error", "request_id"]
        assert body["type"] == "error"
        assert body["request_id"] == REQUEST_ID
        assert error["type"] in ANTHROPIC_TYPES
        assert error["details"] == {"error_code": reason.value}


@pytest.mark.parametrize(
    ("reason", "openai", "anthropic"),
    [
        (Reason.SPENT, "insufficient_quota", "billing_error"),
        (Reason.TOO_LARGE, "insufficient_quota", "billing_error"),
        (Reason.UNPRICED, "invalid_request_error", "billing_error"),
        (Reason.HELD, "rate_limit_error", "rate_limit_error"),
        (Reason.WINDOW_TURNS, "rate_limit_error", "rate_limit_error"),
        (Reason.UNAUTHORIZED, "invalid_request_error", "authentication_error"),
        (Reason.NO_TARIFF, "permission_error", "permission_error"),
        (Reason.NO_UPSTREAM, "invalid_request_error", "not_found_error"),
        (Reason.BODY_TOO_LARGE, "invalid_request_error", "request_too_large"),
        (Reason.LEDGER_DOWN, "server_error", "api_error"),
        (Reason.BUSY, "server_error", "overloaded_error"),
        (Reason.UPSTREAM_TIMEOUT, "server_error", "timeout_error"),
        (Reason.VERSION, "server_error", "invalid_request_error"),
    ],
)
def test_the_type_a_program_branches_on(reason: Reason, openai: str, anthropic: str) -> None:
    assert body_of(rendered("openai", refusal(reason)))["error"]["type"] == openai
    assert body_of(rendered("anthropic", refusal(reason)))["error"]["type"] == anthropic


def test_figures_are_exact_decimal_strings() -> None:
    body = body_of(rendered("problem", Refusal(Reason.SPENT, "", (SPENT, HELD, TOO_LARGE))))
    assert body["violated-policies"] == ["each-team", "company", "single"]
    assert body["budgets"][1] == {
        "budget": "company",
        "payer": "(all)",
        "unit": "USD",
        "limit": "200",
        "spent": "150",
        "held": "49.99",
        "estimate": "0.0123",
        "short_by": "0.0023",
        "kind": "held",
        "window": "month 2026-11-01T00:00Z",
        "resets_at": "2026-11-23T00:00:00Z",
        "enforced": True,
    }
    assert body["budgets"][2]["resets_at"] is None


@pytest.mark.parametrize(
    ("barred", "told"),
    [
        (
            Barred("used_up", "cap", "ada", "USD", 20_000_000, 15_000_000, 10_000_000),
            {"kind": "used_up", "unit": "USD", "allowed": "0.02", "used": "0.015"}
            | {"estimate": "0.01"},
        ),
        (Barred("refuses", "cap", "ada", "USD"), {"kind": "refuses"}),
        (Barred("unnamed"), None),
    ],
)
def test_without_the_ledger_the_budget_that_decided_is_named(
    barred: Barred, told: dict[str, Any] | None
) -> None:
    refused = Refusal(Reason.LEDGER_DOWN, "no ledger", retry_after_s=5, barred=barred)
    for name in DIALECTS:
        answer = rendered(name, refused)
        body = body_of(answer)
        assert "budgets" not in body, "its figures are not known"
        named = barred.budget
        assert body.get("violated-policies", []) == ([named] if named else [])
        expected = told and {"budget": "cap", "payer": "ada"} | told
        assert body.get("on_ledger_loss") == expected
        assert (named.encode() in dict(answer.headers)[b"proxy-status"]) or not named


def test_a_budget_in_report_mode_is_listed_but_not_violated() -> None:
    shadow = replace(SPENT, budget="pilot", enforced=False)
    body = body_of(rendered("problem", Refusal(Reason.HELD, "", (shadow, HELD, HELD))))
    assert body["violated-policies"] == ["company"]
    assert [entry["enforced"] for entry in body["budgets"]] == [False, True, True]
    assert "pilot" not in body["detail"]


@pytest.mark.parametrize(
    ("reason", "seconds", "header"),
    [
        (Reason.HELD, 1, b"1"),
        (Reason.HELD, 60, b"60"),
        (Reason.HELD, 61, None),
        (Reason.HELD, 10**9, None),
        (Reason.HELD, 0, b"0"),
        (Reason.HELD, -3, b"0"),
        (Reason.HELD, None, None),
        (Reason.LEDGER_DOWN, 5, b"5"),
        (Reason.SPENT, 5, None),
    ],
)
def test_retry_after_is_short_and_only_where_a_retry_can_work(
    reason: Reason, seconds: int | None, header: bytes | None
) -> None:
    answer = rendered("openai", Refusal(reason, "x", retry_after_s=seconds))
    assert dict(answer.headers).get(b"retry-after") == header
    assert body_of(answer).get("retry_after_s") == seconds


@pytest.mark.parametrize("name", DIALECTS)
def test_head_has_the_headers_of_get_and_no_body(name: str) -> None:
    get, head = (rendered(name, refusal(Reason.SPENT), method=method) for method in ("GET", "HEAD"))
    assert head.headers == get.headers
    assert head.status == get.status
    assert head.body == b""
    assert get.body != b""


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (Reason.SPENT, b"http_request_denied"),
        (Reason.BAD_REQUEST, b"http_request_error"),
        (Reason.LEDGER_DOWN, b"proxy_internal_error"),
        (Reason.UPSTREAM_UNREACHABLE, b"destination_unavailable"),
        (Reason.UPSTREAM_BROKEN, b"http_response_incomplete"),
        (Reason.UPSTREAM_TIMEOUT, b"http_response_timeout"),
    ],
)
def test_proxy_status_says_whose_error_it_is(reason: Reason, error: bytes) -> None:
    value = dict(rendered("problem", refusal(reason)).headers)[b"proxy-status"]
    assert value.startswith(b"budget-proxy; error=" + error + b"; ")


def test_anthropic_finds_the_request_id_under_its_own_name() -> None:
    headers = dict(rendered("anthropic", refusal(Reason.SPENT)).headers)
    assert headers[b"request-id"] == headers[b"x-request-id"] == REQUEST_ID.encode()
    assert b"request-id" not in dict(rendered("openai", refusal(Reason.SPENT)).headers)


NASTY = [
    'x"; evil="1',
    "a\r\nset-cookie: stolen=1\r\n\r\n<script>",
    "back\\slash\\",
    "data: {}\n\ndata: [DONE]\n\n",
    "Ünïcødé 東京 🦊",
    "\u2028\u2029\x85\x00\x1b[31m",
    "\x7f a delete, and \\\x7f",
    "\x7fé",
    "\udc80 a lone surrogate",
    "p" * 128,
    '"' * 128,
    "é" * 128,
    "",
    " ",
]


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_a_caller_names_gets_out_of_its_place(name: str, nasty: str) -> None:
    short = replace(SPENT, payer=nasty, budget=nasty or "b")
    bad = Refusal(Reason.SPENT, nasty, (short, replace(short, kind="held")), param=nasty)
    answer = rendered(name, bad, request_id=nasty)
    check_bytes(answer)
    assert body_of(answer)["budgets"][0]["payer"] == nasty.encode("utf-8", "replace").decode()
    check_event(stream_error(name, bad, nasty))


@given(text=st.text(max_size=128), name=st.sampled_from(sorted(DIALECTS)))
@example(text="\x7f", name="problem")
def test_any_text_at_all(text: str, name: str) -> None:
    short = replace(HELD, payer=text)
    bad = Refusal(Reason.HELD, text, (short,), param=text)
    answer = rendered(name, bad)
    check_bytes(answer)
    assert body_of(answer)["budgets"][0]["payer"] == text
    check_event(stream_error(name, bad, text))


def check_event(event: bytes) -> dict[str, Any]:
    """One event, of one data line, in ASCII."""
    assert event.isascii()
    assert event.endswith(b"\n\n")
    lines = event[:-2].split(b"\n")
    assert lines[:-1] in ([], [b"event: error"])
    assert not re.search(rb"[\x00-\x1f]", lines[-1])
    prefix, data = lines[-1][:6], lines[-1][6:]
    assert prefix == b"data: "
    told: dict[str, Any] = json.loads(data)
    return told


@pytest.mark.parametrize(("name", "reason"), EVERY)
def test_the_event_that_ends_a_stream(name: str, reason: Reason) -> None:
    event = stream_error(name, refusal(reason), REQUEST_ID)
    body = check_event(event)
    text = body["detail"] if name == "problem" else body["error"]["message"]
    assert "ended this stream early" in text
    assert "nothing was charged" not in text
    assert event.startswith(b"data: " if name == "openai" else b"event: error\ndata: ")
    if name == "anthropic":
        assert list(body) == ["type", "error", "request_id"]
