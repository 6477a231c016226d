"""Request targets and hosts, as pure functions. Through the proxy: system/test_http_forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget_proxy.core.refusal import Reason, RefusedError
from budget_proxy.core.target import Target, check_host, parse_target

FINE = [
    "/",
    "/v1/models",
    "/v1/models/",
    "/a;b=c,d:e@f!$&'()*+~_-.",
    "/%41%7e%E4%b8%ad%20",
    "/...",
    "/.a/..b/c./d..",
    "/.%41/%2e%2ex",
    "/x?",
    "/x?a=/../b//c",
    '/x?q={}|^"<>`[]\\%00',
    "/a%2Fb",
    "/a%5cb%2f",
]
WRONG = [
    "",
    "*",
    "a",
    "?a",
    "http://a/b",
    "//",
    "//a",
    "/a//b",
    "/a//",
    "/.",
    "/..",
    "/a/./b",
    "/a/../b",
    "/a/..",
    "/%2e",
    "/%2E%2e/a",
    "/.%2e/a",
    "/..;/a",
    "/.;a",
    "/%2e%2e%3b/a",
    "/..%2fa",
    "/a%2f..",
    "/a%5C%2e%2fb",
    "/a\\b",
    "/a b",
    "/a\tb",
    "/a\n",
    "/a\x00",
    "/%00",
    "/%1f",
    "/%7F",
    "/%",
    "/%4",
    "/%zz",
    "/x?%",
    "/x?%zz",
    "/a#b",
    "/x?a#b",
    "/é",
    "/x?é",
    "/a|b",
    "/a{b}",
    '/a"b',
    "/a[b]",
    "/a^b`c",
]


@pytest.mark.parametrize("raw", FINE)
def test_a_plain_target_is_sent_as_it_came(raw: str) -> None:
    assert parse_target(raw).raw == raw


@pytest.mark.parametrize("raw", WRONG)
def test_a_target_with_two_readings_is_refused(raw: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_target(raw)
    assert refused.value.refusal.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/v1/chat", "/v1/chat"),
        ("/v1/%63hat", "/v1/chat"),
        ("/%76%31/ch%61t", "/v1/chat"),
        ("/v1/%43hat", "/v1/Chat"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb%5cc%5C", "/a%2fb%5cc%5C"),
        ("/a%252Fb", "/a%2Fb"),
        ("/%E4%B8%AD%ff", "/中\ufffd"),
        ("/a%3Fb%23", "/a?b#"),
    ],
)
def test_letters_are_the_same_letters_escaped_and_separators_are_not(path: str, plain: str) -> None:
    target = parse_target(path)
    assert (target.plain, target.raw) == (plain, path)


@pytest.mark.parametrize("raw", ["/a%2fb", "/a%2Fb", "/a%5cb", "/%5C"])
def test_encoded_separators_pass_only_where_they_are_allowed(raw: str) -> None:
    assert parse_target(raw).raw == raw
    with pytest.raises(RefusedError):
        parse_target(raw, allow_encoded_slash=False)
    assert parse_target("/a?b=%2f%5c", allow_encoded_slash=False).query == "b=%2f%5c"


@given(st.text(alphabet="/.%2eEfF5cC;a\\?#", max_size=12))
def test_what_passes_has_no_dot_segment_however_often_it_is_decoded(text: str) -> None:
    try:
        path = parse_target("/" + text).path
    except RefusedError:
        return
    for escape, char in (("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("%3b", ";")):
        path = (
            path.replace(escape, char)
            .replace(escape.upper(), char)
            .replace(escape[:2] + escape[2].upper(), char)
        )
    segments = [segment.partition(";")[0] for segment in path.split("/")]
    assert not {".", ".."} & set(segments)


@pytest.mark.parametrize(
    ("query", "names", "left"),
    [
        (None, {"key"}, None),
        ("", {"key"}, ""),
        ("key=1", {"key"}, None),
        ("key", {"key"}, None),
        ("a=1&key=2&b=3", {"key"}, "a=1&b=3"),
        ("a=%20&&b=+&key=x&key=y&c", {"key"}, "a=%20&&b=+&c"),
        ("k%65y=1&a", {"key"}, "a"),
        ("Key=1&keys=2&key%20=3", {"key"}, "Key=1&keys=2&key%20=3"),
        ("a=key=1", {"key"}, "a=key=1"),
        ("a&b&c", {"a", "c"}, "b"),
    ],
)
def test_a_field_is_taken_out_and_every_other_byte_stays(
    query: str | None, names: set[str], left: str | None
) -> None:
    assert Target("/x", query).without(frozenset(names)) == Target("/x", left)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        (None, {}),
        ("", {}),
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a=1&a=2", {"a": "1"}),
        ("a", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("%61=%20+%C3%A9", {"a": "  é"}),
    ],
)
def test_the_fields_of_a_query(query: str | None, fields: dict[str, str]) -> None:
    found = Target("/", query).fields()
    assert {name: found[name] for name in fields} == fields
    assert set(found) <= {*fields, ""}


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a", "a"),
        ("A.Example", "a.example"),
        ("a:80", "a"),
        ("a:65535", "a"),
        ("a:0", "a"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[::1]:8080", "[::1]"),
        ("a_b-c.d", "a_b-c.d"),
    ],
)
def test_a_host_is_a_name_and_perhaps_a_port(host: str, name: str) -> None:
    assert check_host(host, ()) == name
    assert check_host(host, (name,)) == name
    with pytest.raises(RefusedError) as refused:
        check_host(host, ("other",))
    assert refused.value.refusal.reason is Reason.MISDIRECTED


@pytest.mark.parametrize(
    "host",
    ["", "a/b", "u:p@a", "a b", "a:", "a:b", "a:65536", "a:999999", "a:-1", "a,b", "a?b", "a#b",
     "[::1", "::1", "a\n", "é", "a" * 256, "a%2eb", "[a]b", "a:80:80"],
)  # fmt: skip
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(RefusedError) as refused:
        check_host(host, ())
    assert refused.value.refusal.reason is Reason.BAD_REQUEST
