"""One try to deliver an alert, at a real server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web
from webhook_server import Hooks, running_hooks

from budget_proxy.control_client import Answer
from budget_proxy.core.alert import Alert
from budget_proxy.core.outbox import Sent
from budget_proxy.core.webhook import Webhook
from budget_proxy.webhooks import MAX_AFTER_S, MAX_ANSWER, meaning, retry_after_s, send

ALERT = Alert(
    id="a@1",
    key="a",
    subject="budget",
    name="team",
    kind="spent",
    severity="warning",
    what="Budget team: 80%",
    at_s=1,
)


def tried(*answers: web.Response | asyncio.Event, timeout_s: float = 10.0) -> tuple[Sent, Hooks]:
    """One try at a server that answers so."""

    async def story() -> tuple[Sent, Hooks]:
        async with running_hooks() as hooks:
            hooks.answers = list(answers)
            headers = {"authorization": "Bearer hunter22"}
            webhook = Webhook("ops", f"{hooks.url}/T0/hunter22?k=hunter22", headers=headers)
            sent = await send(webhook, ALERT, timeout_s=timeout_s)
            for answer in answers:
                if isinstance(answer, asyncio.Event):
                    answer.set()
            return sent, hooks

    return asyncio.run(story())


def test_an_alert_is_posted_as_json_with_the_headers_of_the_policy() -> None:
    sent, hooks = tried()
    assert sent == Sent("delivered")
    ((path, headers, document),) = hooks.got
    assert path == "/T0/hunter22"
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer hunter22"
    assert document == {"text": "[warning] Budget team: 80%"}


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, Sent("delivered")),
        (204, {}, Sent("delivered")),
        (429, {"retry-after": "30"}, Sent("later", "it answered 429", 30)),
        (429, {}, Sent("later", "it answered 429")),
        (408, {}, Sent("later", "it answered 408")),
        (500, {}, Sent("later", "it answered 500")),
        (503, {"retry-after": "2"}, Sent("later", "it answered 503", 2)),
        (301, {"location": "/elsewhere"}, Sent("never", "it answered 301")),
        (400, {}, Sent("never", "it answered 400")),
        (404, {}, Sent("never", "it answered 404")),
        (410, {}, Sent("never", "it answered 410")),
    ],
)
def test_what_an_answer_means(status: int, headers: dict[str, str], expected: Sent) -> None:
    sent, hooks = tried(web.Response(status=status, headers=headers))
    assert sent == expected
    assert len(hooks.got) == 1, "a redirect is not followed"


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    sent, _ = tried(asyncio.Event(), timeout_s=0.2)
    assert sent == Sent("later", "no whole answer within 0.2 s")


def test_an_answer_without_end_is_not_read() -> None:
    sent, _ = tried(web.Response(body=b"x" * (MAX_ANSWER + 1)))
    assert sent == Sent("later", f"the answer has more than {MAX_ANSWER} bytes")


def test_nobody_there_is_tried_again_and_the_url_is_not_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    webhook = Webhook("ops", f"http://127.0.0.1:{port}/hunter22")
    sent = asyncio.run(send(webhook, ALERT))
    assert sent.result == "later"
    assert "hunter22" not in sent.why
    assert str(port) not in sent.why


def test_something_that_is_no_http_is_tried_again() -> None:
    async def story() -> Sent:
        async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 smtp.example.com\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await send(Webhook("ops", f"http://127.0.0.1:{port}/"), ALERT)

    assert asyncio.run(story()).result == "later"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("30", 30),
        (" 30 ", 30),
        ("-5", 0),
        ("soon", 0),
        ("1.5", 0),
        ("9" * 50, MAX_AFTER_S),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", MAX_AFTER_S),
        ("Thu, 99 Foo 1970 00:00:00 GMT", 0),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert retry_after_s(text, 1000.0) == seconds


def test_a_retry_after_of_a_success_is_nothing() -> None:
    assert meaning(Answer(200, {"retry-after": "30"}, b""), 0.0) == Sent("delivered")
