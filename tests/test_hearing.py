"""What an upstream's refusal says about the money, as it comes over the wire."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace

import pytest

from budget_proxy.core.headers import Index
from budget_proxy.core.house import Upstream
from budget_proxy.core.tariff import Tariff
from budget_proxy.core.verdict import MAX_BODY
from budget_proxy.hearing import hearing_of
from budget_proxy.policy.providers import packaged

BODY = json.dumps({"error": {"message": "Insufficient Balance sk-credential-canary"}}).encode()
UPSTREAM = Upstream(
    "a",
    "https://a.example",
    Tariff("t", ()),
    "/a",
    credential="sk-credential-canary",
    rules=packaged().named("deepseek").rules,
)


def index(**headers: str) -> Index:
    return Index({name.replace("_", "-").encode(): v.encode() for name, v in headers.items()})


CODED: dict[str, bytes] = {
    "": BODY,
    "gzip": gzip.compress(BODY, mtime=0),
    "x-gzip": gzip.compress(BODY, mtime=0),
    "deflate": zlib.compress(BODY),
}


@pytest.mark.parametrize("coding", CODED)
def test_a_provider_without_money_is_heard_however_it_is_coded(coding: str) -> None:
    hearing = hearing_of(UPSTREAM, 402, index(content_encoding=coding))
    assert hearing is not None
    for byte in CODED[coding]:
        hearing.feed(bytes([byte]))
    stop = hearing.stop(5, 10.0)
    assert stop is not None
    assert (stop.kind, stop.scope, stop.name, stop.since_s) == (
        *("account_empty", "upstream", "a", 10.0),
    )
    assert "canary" not in stop.why


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"<html>", gzip.compress(BODY, mtime=0)[:12]], ids=repr
)
def test_what_cannot_be_read_stops_nothing(body: bytes) -> None:
    hearing = hearing_of(UPSTREAM, 401, index(content_encoding="gzip"))
    if hearing is not None:
        hearing.feed(body)
        assert hearing.stop(5, 10.0) is None


def test_an_answer_that_says_nothing_of_money_is_not_kept() -> None:
    assert hearing_of(UPSTREAM, 200, index()) is None


def test_with_the_callers_own_key_nothing_stops_others() -> None:
    assert hearing_of(replace(UPSTREAM, credential=None), 402, index()) is None


def test_no_more_is_kept_than_is_read() -> None:
    hearing = hearing_of(UPSTREAM, 402, index())
    assert hearing is not None
    for _ in range(100):
        hearing.feed(b"x" * MAX_BODY)
    assert len(hearing._body) == MAX_BODY
