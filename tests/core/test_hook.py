"""What is sent to a hook, and what its answer means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from budget_proxy.core.hook import (
    CommandHook,
    HttpHook,
    Ok,
    command_of,
    of_answer,
    of_exit,
    request_of,
    unknown_fields,
)
from budget_proxy.core.jsonpath import path_of

WORDS = {
    "amount": "50.5",
    "currency": "USD",
    "upstream": "acme",
    "id": "k-1",
    "reason": 'below "20" USD\n& gone',
}
URL = "https://billing.example.com/topups"
PAID = Ok(path_of("status"), ("succeeded", "pending"))


def test_a_body_is_escaped_as_json() -> None:
    hook = HttpHook(URL, body='{"amount": {amount}, "why": "{reason}", "of": {"id": "{id}"}}')
    request = request_of(hook, WORDS)
    assert request.body is not None
    assert json.loads(request.body) == {
        "amount": 50.5,
        "why": WORDS["reason"],
        "of": {"id": "k-1"},
    }
    assert dict(request.headers) == {
        "Idempotency-Key": "k-1",
        "Content-Type": "application/json",
    }


def test_a_body_of_a_form_is_escaped_as_one() -> None:
    form = (("content-type", "application/x-www-form-urlencoded"),)
    request = request_of(HttpHook(URL, headers=form, body="a={amount}&why={reason}"), WORDS)
    assert request.body == b"a=50.5&why=below%20%2220%22%20USD%0A%26%20gone"
    assert [name for name, _ in request.headers] == ["content-type", "Idempotency-Key"]


def test_the_url_and_headers_are_templates_too() -> None:
    hook = HttpHook(f"{URL}/{{reason}}", headers=(("X-Why", "{reason}!"),))
    request = request_of(hook, WORDS)
    assert request.url == f"{URL}/below%20%2220%22%20USD%0A%26%20gone"
    assert request.headers[0] == ("X-Why", 'below "20" USD?& gone!')
    assert request.body is None


def test_the_key_may_be_put_elsewhere() -> None:
    hook = HttpHook(URL, headers=(("idempotency-key", "topup-{id}"),))
    assert request_of(hook, WORDS).headers == (("idempotency-key", "topup-k-1"),)


def test_only_named_fields_are_filled() -> None:
    assert unknown_fields("{amount} {ammount} {} {1} { id } {Id}") == ["ammount", "Id"]


def test_arguments_are_filled_one_by_one() -> None:
    hook = CommandHook(("topup", "--why={reason}", "{amount} {currency}"))
    assert command_of(hook, WORDS) == ("topup", f"--why={WORDS['reason']}", "50.5 USD")


ANSWERS: list[tuple[int, Any, Ok | None, str]] = [
    (200, "anything", None, "sent"),
    (202, "", None, "sent"),
    (200, {"status": "succeeded"}, PAID, "sent"),
    (200, {"status": "pending"}, PAID, "sent"),
    (200, {"status": "failed", "error": {"code": "declined"}}, PAID, "failed"),
    (200, {"error": "declined"}, PAID, "failed"),
    (200, {"status": None}, PAID, "failed"),
    (200, [], PAID, "failed"),
    (200, '{"status": "failed", "status": "succeeded"}', PAID, "unknown"),
    (200, '{"status": 1e99999999999999999999}', PAID, "unknown"),
    (200, "<html>", PAID, "unknown"),
    (200, "", PAID, "unknown"),
    (400, "", None, "failed"),
    (401, "", None, "failed"),
    (402, "", None, "failed"),
    (404, "", None, "failed"),
    (408, "", None, "unknown"),
    (409, "", None, "unknown"),
    (422, "", None, "failed"),
    (429, "", None, "failed"),
    (499, "", None, "unknown"),
    (301, "", None, "unknown"),
    (303, "", None, "unknown"),
    (307, "", None, "failed"),
    (308, "", None, "failed"),
    (500, "", None, "unknown"),
    (502, "", None, "unknown"),
    (503, "", None, "unknown"),
    (504, "", None, "unknown"),
    (500, {"status": "succeeded"}, PAID, "unknown"),
]


@pytest.mark.parametrize(("status", "body", "ok", "state"), ANSWERS)
def test_what_an_answer_means(status: int, body: Any, ok: Ok | None, state: str) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    assert of_answer(HttpHook(URL, ok=ok), status, data).state == state


HTML, XML = "text/html; charset=utf-8", "application/xml"
PAGES = [
    ("<!DOCTYPE html><title>Log in</title>", "", "unknown"),
    (" \n<HTML><p>Back soon", "text/plain", "unknown"),
    ("\ufeff<html>", HTML, "unknown"),
    ("<!-- down --><p>Back soon", "Text/HTML", "unknown"),
    ("<receipt/>", XML, "sent"),
    ("done", HTML, "sent"),
    ("", HTML, "sent"),
]


@pytest.mark.parametrize(("body", "content_type", "state"), PAGES)
def test_a_page_for_people_is_no_yes(body: str, content_type: str, state: str) -> None:
    assert of_answer(HttpHook(URL), 200, body.encode(), content_type).state == state
    assert of_answer(HttpHook(URL), 403, body.encode(), content_type).state == "failed"


ENDS: list[tuple[int, bytes, Ok | None, str]] = [
    (0, b"", None, "sent"),
    (0, b'{"status": "succeeded"}', PAID, "sent"),
    (0, b'{"status": "declined"}', PAID, "failed"),
    (0, b"done", PAID, "unknown"),
    (75, b"", None, "failed"),
    (1, b"", None, "unknown"),
    (127, b"", None, "unknown"),
    (-9, b"", None, "unknown"),
]


@pytest.mark.parametrize(("code", "output", "ok", "state"), ENDS)
def test_what_the_end_of_a_command_means(
    code: int, output: bytes, ok: Ok | None, state: str
) -> None:
    assert of_exit(CommandHook(("x",), ok=ok), code, output).state == state


def test_nothing_of_an_answer_is_repeated() -> None:
    hook = HttpHook(URL, ok=PAID)
    for status in (200, 402, 500):
        said = of_answer(hook, status, b'{"status": "sk-secret", "error": "sk-secret"}')
        assert "sk-secret" not in said.why


def test_no_secret_is_in_a_hooks_repr() -> None:
    hook = HttpHook(f"{URL}?k=sk-secret", headers=(("a", "sk-secret"),), body="sk-secret")
    command = CommandHook(("x", "sk-secret"), env=(("KEY", "sk-secret"),))
    assert "sk-secret" not in repr((hook, command))
