"""Our own calls to the outside, against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from webhook_server import Hooks, running_hooks

from budget_proxy.control_client import Answer, ControlError, fetch


def asked(at: Callable[[Hooks], str], *answers: web.Response | asyncio.Event) -> Answer:
    """What one call to there brings back."""

    async def story() -> Answer:
        async with running_hooks() as hooks:
            hooks.answers = list(answers)
            return await fetch(
                at(hooks),
                method="POST",
                headers=[("X-Key", "hunter22")],
                body=b"{}",
                timeout_s=0.3,
                max_bytes=100,
            )

    return asyncio.run(story())


def test_status_headers_and_body_come_back() -> None:
    made = web.Response(status=402, headers={"X-Why": "empty"}, body=b"no money")
    answer = asked(lambda hooks: hooks.url, made)
    assert (answer.status, answer.headers["x-why"], answer.body) == (402, "empty", b"no money")


def test_a_redirect_is_an_answer() -> None:
    made = web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
    assert asked(lambda hooks: hooks.url, made).status == 307


@pytest.mark.parametrize(
    ("at", "answer", "says", "sent"),
    [
        ("{}/hunter22", asyncio.Event(), "no whole answer within 0.3 s", True),
        ("{}/hunter22", web.Response(body=b"x" * 101), "more than 100 bytes", True),
        ("http://127.0.0.1:1/hunter22", None, "cannot connect: Connection refused$", False),
        ("http://hunter22.invalid/", None, "cannot connect: ", False),
        ("hunter22", None, "cannot be reached", False),
    ],
    ids=["silence", "without end", "refused", "no such name", "no URL"],
)
def test_no_usable_answer_is_said_without_a_secret(
    at: str, answer: web.Response | asyncio.Event | None, says: str, sent: bool
) -> None:
    answers = [] if answer is None else [answer]
    with pytest.raises(ControlError, match=says) as caught:
        asked(lambda hooks: at.format(hooks.url), *answers)
    assert caught.value.surely_not_sent is not sent
    assert "hunter22" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__cause__ is None
