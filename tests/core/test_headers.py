"""The written list of headers, as a pure function. What arrives is in system/test_transparency."""

from __future__ import annotations

import pytest

from budget_proxy.core import headers as rules
from budget_proxy.core.headers import CREDENTIALS, HOP_BY_HOP
from budget_proxy.core.refusal import Reason, RefusedError

Headers = list[tuple[bytes, bytes]]
VIA = (b"Via", b"1.1 budget-proxy")


def to_upstream(headers: Headers, **more: object) -> Headers:
    settings = {"keep": frozenset(), "credential": None, "codings": None} | more
    return rules.to_upstream(headers, **settings)  # type: ignore[arg-type]


DROPPED = HOP_BY_HOP | CREDENTIALS | {b"host", b"expect", b"content-length"}


@pytest.mark.parametrize("name", sorted(DROPPED))
@pytest.mark.parametrize("spell", [bytes.lower, bytes.title, bytes.upper])
def test_what_is_for_this_hop_is_dropped_in_every_spelling(name: bytes, spell: object) -> None:
    spelled = spell(name)  # type: ignore[operator]
    value = b"X-Other" if name == b"connection" else b"x"
    underscored = spelled.replace(b"-", b"_")
    sent = [(b"A", b"1"), (spelled, value), (underscored, value), (b"B", b"2")]
    assert to_upstream(sent) == [(b"A", b"1"), (b"B", b"2"), VIA]


def test_the_list_of_what_is_dropped_is_this_long() -> None:
    """Whoever lengthens it changes what upstreams see, and says so in the README."""
    assert sorted(DROPPED) == [
        b"api-key",
        b"authorization",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
        b"x-budget-key",
        b"x-goog-api-key",
    ]


def test_everything_else_passes_in_order_with_duplicates_and_spelling() -> None:
    sent = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X_A", b""), (b"Cookie", b"c"), (b"X-A", b"1")]
    assert to_upstream(sent) == [*sent, VIA]


def test_what_connection_names_is_dropped() -> None:
    sent = [
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"connection", b" x-more ,"),
        (b"X-MORE", b"2"),
        (b"X-Kept", b"3"),
    ]
    assert to_upstream(sent) == [(b"X-Kept", b"3"), VIA]
    assert rules.to_caller(sent) == [(b"X-Kept", b"3")]


@pytest.mark.parametrize(
    "name", [*sorted(CREDENTIALS), b"host", b"content-length", b"content-encoding", b"expect"]
)
def test_connection_must_not_name_what_decides_how_a_request_is_read_or_paid(name: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        rules.named_by_connection([(b"Connection", b"close, " + name.title())])
    assert refused.value.refusal.reason is Reason.BAD_REQUEST


def test_our_credential_is_the_only_one_of_its_name() -> None:
    ours = (b"x-own", b"ours")
    sent = [(b"X-Own", b"theirs"), (b"x_own", b"theirs"), (b"X-Other", b"1")]
    assert to_upstream(sent, credential=ours) == [(b"X-Other", b"1"), VIA, ours]


def test_a_kept_credential_is_kept_only_as_it_is_spelled() -> None:
    keep = frozenset({b"x-api-key", b"authorization"})
    sent = [
        (b"X-Api-Key", b"1"),
        (b"X_Api_Key", b"2"),
        (b"Api-Key", b"3"),
        (b"Authorization", b"4"),
    ]
    assert to_upstream(sent, keep=keep) == [(b"X-Api-Key", b"1"), (b"Authorization", b"4"), VIA]


def test_codings_replace_what_the_caller_accepts() -> None:
    sent = [(b"Accept-Encoding", b"br"), (b"A", b"1"), (b"accept-encoding", b"zstd")]
    assert to_upstream(sent) == [*sent, VIA]
    narrowed = (b"Accept-Encoding", b"gzip, identity")
    assert to_upstream(sent, codings=[b"gzip", b"identity"]) == [(b"A", b"1"), narrowed, VIA]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"X Y", b"1")],
        [(b"", b"1")],
        [(b"X:", b"1")],
        [(b"X\xe9", b"1")],
        [(b"X(", b"1")],
        [(b"X", b"\xff")],
        [(b"X", b"ok"), (b"Y", b"caf\xe9")],
        [(b"X", b"\xed\xa0\x80")],
    ],
)
def test_what_cannot_be_passed_on_is_refused(headers: Headers) -> None:
    with pytest.raises(RefusedError):
        rules.check(headers)


def test_what_can_be_passed_on_is_not() -> None:
    rules.check([(b"X", "é".encode()), (b"!#$%&'*+-.^_`|~0aZ", b""), (b"Y", b"a\tb \x7f")])


def test_of_a_repeated_header_the_first_counts() -> None:
    found = rules.by_name([(b"X-A", b"1"), (b"x-a", b"2"), (b"B", "é".encode())])
    assert dict(found) == {"x-a": "1", "b": "é"}
    assert found.get("none") is None
