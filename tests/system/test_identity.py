"""Who pays, and whose key goes upstream: every place of a key, and no key anywhere else."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from raw_upstream import (
    OURS,
    Peer,
    answering,
    ask,
    chunked,
    fronting,
    http,
    policy,
    request,
    then_close,
)

OK = http("200 OK", b"ok")
KEY, OTHER = "test-key-0000", "some-other-key"


def basic(text: str) -> str:
    return f"Authorization: Basic {base64.b64encode(text.encode()).decode()}"


def call(*headers: str, target: str = "/flat/x") -> bytes:
    return request(target, None, *headers, key=None)


PLACES = {
    "bearer": call(f"Authorization: Bearer {KEY}"),
    "bearer, lower case": call(f"authorization: bearer {KEY}"),
    "bearer, spaces": call(f"Authorization:   Bearer   {KEY}  "),
    "no scheme": call(f"Authorization: {KEY}"),
    "another scheme": call(f"Authorization: Token {KEY}"),
    "basic, password": call(basic(f"anybody:{KEY}")),
    "basic, user": call(basic(f"{KEY}:")),
    "x-api-key": call(f"x-api-key: {KEY}"),
    "api-key": call(f"Api-Key: {KEY}"),
    "x-goog-api-key": call(f"X-GOOG-API-KEY: {KEY}"),
    "x-budget-key": call(f"X-Budget-Key: {KEY}"),
    "query": call(target=f"/flat/x?key={KEY}"),
    "query, encoded": call(target="/flat/x?%6Bey=test%2Dkey-0000"),
    "everywhere": call(
        f"Authorization: Bearer {KEY}", f"X-Api-Key: {KEY}", f"Api-Key: {KEY}",
        f"X-Goog-Api-Key: {KEY}", f"X-Budget-Key: {KEY}", target=f"/flat/x?key={KEY}",
    ),
    "twice in one place": call(f"X-Api-Key: {KEY}", f"x-api-key: {KEY}"),
    "beside an empty one": call("X-Api-Key:", f"Api-Key: {KEY}", target="/flat/x?key="),
}  # fmt: skip
REFUSED = {
    "none": call(),
    "empty": call("Authorization: Bearer", "X-Api-Key: "),
    "unknown": call(f"Authorization: Bearer {OTHER}"),
    "longer": call(f"Authorization: Bearer {KEY}0"),
    "shorter": call(f"Authorization: Bearer {KEY[:-1]}"),
    "in capitals": call(f"Authorization: Bearer {KEY.upper()}"),
    "its hash": call(f"Authorization: Bearer sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"),
    "not ASCII": call("X-Api-Key: schlüssel"),
    "bad base64": call("Authorization: Basic !!!"),
    "basic, not UTF-8": call("Authorization: Basic " + base64.b64encode(b"\xff:\xfe").decode()),
    "in a place of no key": call(f"X-Key: {KEY}", f"Cookie: key={KEY}", target="/flat/x?k=1"),
    "x_api_key": call(f"X_Api_Key: {KEY}"),
    "proxy": call(f"Proxy-Authorization: Bearer {KEY}"),
    "two": call(f"Authorization: Bearer {KEY}", f"X-Api-Key: {OTHER}"),
    "two, known last": call(f"Authorization: Bearer {OTHER}", f"X-Api-Key: {KEY}"),
    "two in one place": call(f"X-Api-Key: {KEY}", f"X-Api-Key: {OTHER}"),
    "two, budget key": call(f"Authorization: Bearer {OTHER}", f"X-Budget-Key: {KEY}"),
    "two budget keys": call(f"X-Budget-Key: {KEY}", f"X-Budget-Key: {OTHER}"),
    "two, query": call(f"Authorization: Bearer {KEY}", target=f"/flat/x?key={OTHER}"),
    "two, both known": call(f"Authorization: Bearer {KEY}", "X-Api-Key: second-key-0000"),
}
SECOND = "  second: {key: second-key-0000}\n"


def test_a_key_is_found_wherever_sdks_put_one_and_goes_no_further(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, upstream):
            got = {name: (await ask(rig, data)).status for name, data in PLACES.items()}
            assert got == dict.fromkeys(PLACES, 200)
            assert {ended.service for ended in rig.calls} == {"tests"}
            for name, seen in zip(PLACES, upstream.requests, strict=True):
                assert KEY.encode() not in seen.head, name
                assert b"key=" not in seen.target, name
                assert seen.values(b"authorization") == [b"Bearer " + OURS.encode()], name

    asyncio.run(story())


def test_without_one_known_key_nothing_passes(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy().replace("services:\n", "services:\n" + SECOND)
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            for name, data in REFUSED.items():
                answer = await ask(rig, data)
                assert answer.status == 401, name
                assert answer.values(b"www-authenticate") == [b"Bearer"], name
                for secret in (KEY, OTHER, "second-key", "xfe"):
                    assert secret.encode() not in answer.head + answer.body, name
            assert upstream.connections == 0
            assert rig.calls[0].outcome == "rejected"

    asyncio.run(story())


def test_two_different_keys_in_the_query_are_two_keys(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _):
            target = f"/flat/x?key={KEY}&a=b&key={OTHER}"
            assert (await ask(rig, call(target=target))).status == 401

    asyncio.run(story())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/llm/v1/models", ["error", "code", "invalid_api_key"]),
        ("/claude/v1/models", ["error", "type", "authentication_error"]),
        ("/flat/x", ["status", 401]),
    ],
)
def test_an_unknown_key_is_told_as_the_provider_would(
    tmp_path: Path, target: str, says: list[object]
) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK)) as (rig, _):
            answer = await ask(rig, request(target, key=OTHER))
            said = json.loads(answer.body)
            for step in says[:-1]:
                said = said[step]
            assert (answer.status, said) == (401, says[-1])

    asyncio.run(story())


# -- our credential --------------------------------------------------------------------------------


def _with(credential: str) -> str:
    return policy().replace("credential: ${OURS}", f"credential: {credential}")


MINE = f"Authorization: Bearer {KEY}"


@pytest.mark.parametrize(
    ("credential", "sent", "target", "headers"),
    [
        ("{bearer: ours-abc}", [MINE], "/x?a=1", [("Authorization", "Bearer ours-abc")]),
        ("{basic: 'me:ours'}", [MINE], "/x?a=1", [("Authorization", "Basic bWU6b3Vycw==")]),
        ("{header: X-Own, value: ours-abc}", [MINE], "/x?a=1", [("x-own", "ours-abc")]),
        (
            "{header: X-Own, value: ours-abc}",
            [MINE, "X-Own: theirs", "x_own: theirs"],
            "/x?a=1",
            [("x-own", "ours-abc")],
        ),
        ("{header: Api-Key, value: ours}", [f"api-key: {KEY}"], "/x?a=1", [("api-key", "ours")]),
        ("{query: key, value: ours/+&a}", [MINE], "/x?a=1&key=ours%2F%2B%26a", []),
        ("{query: token, value: ours}", [MINE], "/x?a=1&token=ours", []),
    ],
    ids=["bearer", "basic", "header", "header, taken", "api-key", "query key", "query token"],
)  # fmt: skip
def test_our_credential_goes_where_the_provider_wants_it(
    tmp_path: Path,
    credential: str,
    sent: list[str],
    target: str,
    headers: list[tuple[str, str]],
) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK), _with(credential)) as (rig, upstream):
            for query in ("a=1", f"a=1&key={KEY}", f"key={KEY}&a=1"):
                assert (await ask(rig, call(*sent, target=f"/flat/x?{query}"))).status == 200
            for seen in upstream.requests:
                assert seen.target.decode() == target
                assert KEY.encode() not in seen.head
                found = [(name.decode(), value.decode()) for name, value in seen.headers]
                assert found[1:] == [("Via", "1.1 budget-proxy"), *headers]

    asyncio.run(story())


def test_a_query_credential_replaces_the_callers(tmp_path: Path) -> None:
    async def story() -> None:
        text = _with("{query: token, value: ours}")
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            for query in ("?token=theirs", "?a&token=theirs&b=&token=x", "?t%6Fken=theirs", ""):
                assert (await ask(rig, call(MINE, target="/flat/x" + query))).status == 200
            assert [seen.target for seen in upstream.requests] == [
                b"/x?token=ours",
                b"/x?a&b=&token=ours",
                b"/x?token=ours",
                b"/x?token=ours",
            ]

    asyncio.run(story())


def test_where_no_credential_is_wanted_the_callers_key_stays_here_too(tmp_path: Path) -> None:
    async def story() -> None:
        text = policy()
        start = text.index("  flat:")
        text = text[:start] + text[start:].replace("    credential: ${OURS}\n", "", 1)
        async with fronting(tmp_path, answering(OK), text) as (rig, upstream):
            assert (await ask(rig, call(MINE, target=f"/flat/x?key={KEY}&b"))).status == 200
            assert upstream.requests[0].target == b"/x?b"
            assert [name for name, _ in upstream.requests[0].headers] == [b"Host", b"Via"]

    asyncio.run(story())


SECRET = "sk/ours+0123:&~z"
ENCODED = "sk%2Fours%2B0123%3A%26~z"
ECHOES = {
    "a redirect": f"Location: https://api.example.com/y?a=1&token={ENCODED}&b=2",
    "in lower case": f"Location: /y?token={ENCODED.lower()}",
    "as it is": f"Content-Location: /y?token={SECRET}",
    "half of it": "Link: </y?token=sk/ours%2b0123:%26%7ez>; rel=next",
    "every character": "Refresh: 5; url=/y?token=" + "".join(f"%{b:02x}" for b in SECRET.encode()),
    "a URL in a URL": f"Location: /login?next=%2Fy%3Ftoken%3D{ENCODED.replace('%', '%25')}",
    "twice more": f"Location: /login?next={ENCODED.replace('%', '%2525')}",
    "another header": f"X-Original-Uri: /y?token={ENCODED}",
    "the header itself": f"X-Got-Authorization: Bearer {SECRET}",
    "as it is sent, encoded": "X-Got-Authorization: Basic "
    + base64.b64encode(SECRET.encode()).decode(),
    "a cookie": f"Set-Cookie: last={ENCODED}; Path=/",
}


def _decoded(answer: bytes) -> bytes:
    for _ in range(5):
        answer = unquote_to_bytes(answer)
    return answer


@pytest.mark.parametrize(
    ("place", "line"),
    [
        pytest.param(place, line, id=f"{place}, {name}")
        for place in ("bearer", "basic", "query")
        for name, line in ECHOES.items()
        if name != "as it is sent, encoded" or place == "basic"
    ],
)
def test_a_credential_that_the_upstream_repeats_in_a_header_stays_here(
    tmp_path: Path, place: str, line: str
) -> None:
    value = "{query: token, value: '${OURS}'}" if place == "query" else f"{{{place}: '${{OURS}}'}}"
    kept = 'X-Kept: 100%25 "sk/ours" %zz'

    async def story() -> None:
        answer = answering(http("302 Found", b"", line, kept))
        async with fronting(tmp_path, answer, _with(value), OURS=SECRET) as (rig, upstream):
            got = await ask(rig, call(MINE))
            assert got.status == 302
            sent = _decoded(upstream.requests[0].head)
            encoded = base64.b64encode(SECRET.encode())
            assert SECRET.encode() in sent or encoded in sent
            assert SECRET.encode() not in _decoded(got.head)
            assert encoded not in got.head
            name, _, before = line.partition(": ")
            (after,) = got.values(name.lower().encode())
            assert 0 < len(after) < len(before.encode()), "the rest of the header is there"
            assert got.values(b"x-kept") == [kept.partition(": ")[2].encode()], "as it came"

    asyncio.run(story())


def test_only_the_credential_of_that_upstream_is_cut_out(tmp_path: Path) -> None:
    """Another's was never sent there, and what only looks like a short one is a word."""
    lines = ["Location: https://api.example.com/ours/k7/k7x", "X-Echo: k7", "X-Other: sk-of-geo-1"]

    async def story() -> None:
        text = policy().replace("credential: ${OURS}", "credential: k7")
        text = text.replace("credential: k7", "credential: sk-of-geo-1", 1)
        async with fronting(tmp_path, answering(http("302 Found", b"", *lines)), text) as (rig, _):
            got = await ask(rig, call(MINE))
            assert got.values(b"location") == [b"https://api.example.com/ours//k7x"]
            assert got.values(b"x-echo") == [b""]
            assert got.values(b"x-other") == [b"sk-of-geo-1"]
            other = await ask(rig, request("/meter/v1/pages", b'{"pages": 1}'))
            assert other.values(b"x-echo") == [b"k7"]
            assert other.values(b"x-other") == [b""]

    asyncio.run(story())


def test_what_the_caller_brought_may_come_back_to_it(tmp_path: Path) -> None:
    async def story() -> None:
        answer = answering(http("302 Found", b"", f"Location: /y?key={THEIRS}"))
        async with fronting(tmp_path, answer, HASHED) as (rig, _):
            got = await ask(rig, call(target=f"/flat/x?key={THEIRS}"))
            assert got.values(b"location") == [f"/y?key={THEIRS}".encode()]

    asyncio.run(story())


# -- the caller's own credential -------------------------------------------------------------------


THEIRS = "sk-provider-key-of-the-caller"
PASSING = policy().replace("credential: ${OURS}", "credential: pass")
DIGEST = hashlib.sha256(THEIRS.encode()).hexdigest()
HASHED = PASSING.replace("key: test-key-0000", f'keys: ["sha256:{DIGEST}"]')


@pytest.mark.parametrize(
    ("headers", "query", "kept"),
    [
        ([f"Authorization: Bearer {THEIRS}"], "", {"Authorization": f"Bearer {THEIRS}"}),
        ([f"X-Api-Key: {THEIRS}"], "", {"X-Api-Key": THEIRS}),
        (
            [f"Api-Key: {THEIRS}", f"X-Api-Key: {THEIRS}"],
            "",
            {"Api-Key": THEIRS, "X-Api-Key": THEIRS},
        ),
        ([], f"?a&key={THEIRS}&b", {}),
    ],
    ids=["bearer", "header", "two places", "query"],
)  # fmt: skip
def test_the_callers_own_provider_key_can_be_who_it_is(
    tmp_path: Path, headers: list[str], query: str, kept: dict[str, str]
) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK), HASHED) as (rig, upstream):
            assert (await ask(rig, call(*headers, target="/flat/x" + query))).status == 200
            seen = upstream.requests[0]
            assert seen.target.decode() == "/x" + query
            found = {name.decode(): value.decode() for name, value in seen.headers[1:]}
            assert found == {"Via": "1.1 budget-proxy"} | kept

    asyncio.run(story())


def test_a_budget_key_tells_who_pays_beside_any_provider_key(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK), PASSING) as (rig, upstream):
            budget = f"X-Budget-Key: {KEY}"
            rows = {
                "beside it": (call(budget, f"Authorization: Bearer {THEIRS}"), 200),
                "beside two": (call(budget, f"Authorization: {THEIRS}", "X-Api-Key: x"), 200),
                "alone": (call(budget), 200),
                "twice": (call(budget, budget), 200),
                "two": (call(budget, f"X-Budget-Key: {OTHER}", f"Api-Key: {THEIRS}"), 401),
                "two, known last": (call(f"X-Budget-Key: {OTHER}", budget), 401),
                "unknown": (call(f"X-Budget-Key: {OTHER}", f"Authorization: Bearer {KEY}"), 401),
                "none": (call(f"Authorization: Bearer {THEIRS}"), 401),
                "as a provider key": (call(f"Authorization: Bearer {KEY}"), 200),
                "two provider keys": (call(f"Authorization: {KEY}", f"Api-Key: {THEIRS}"), 401),
            }
            got = {name: (await ask(rig, data)).status for name, (data, _) in rows.items()}
            assert got == {name: status for name, (_, status) in rows.items()}
            first = upstream.requests[0]
            assert first.values(b"authorization") == [b"Bearer " + THEIRS.encode()]
            for seen in upstream.requests:
                assert seen.values(b"x-budget-key") == []

    asyncio.run(story())


# -- canaries --------------------------------------------------------------------------------------


CANARY = "canary-of-the-caller-0123456789"
OURS_CANARY = "canary-of-ours-9876543210"
IN_BODY = "canary-in-the-body"
IN_ANSWER = "canary-in-the-answer"
CANARIES = [CANARY, OURS_CANARY, IN_BODY, IN_ANSWER, "canary"]


class Lines(io.BytesIO):
    """A stream for the call log that survives its close."""

    def close(self) -> None:
        pass


def _secrets_of(text: str) -> list[str]:
    encoded = [base64.b64encode(secret.encode()).decode().rstrip("=") for secret in CANARIES]
    hashed = [hashlib.sha256(secret.encode()).hexdigest() for secret in CANARIES]
    return [found for found in CANARIES + encoded + hashed if found in text]


CALLS = [
    request("/flat/x", key=CANARY),
    request(f"/flat/x?key={CANARY}&q=canary-in-the-query", key=CANARY),
    request("/flat/x", None, f"X-Api-Key: {CANARY}", basic(f"a:{CANARY}"), key=None),
    request("/meter/v1/pages", json.dumps({"pages": 1, "x": IN_BODY}).encode(), key=CANARY),
    request("/meter/v1/pages", json.dumps({"pages": IN_BODY}).encode(), key=CANARY),
    request("/meter/v1/pages", b'{"pages": 1, "canary', key=CANARY),
    request("/meter/v1/pages", gzip.compress(b"canary"), "Content-Encoding: gzip", key=CANARY),
    request("/meter/v1/none", None, "X-Custom: canary", key=CANARY),
    request("/flat/x", key="canary-unknown"),
    request("/flat/x", None, f"X-Api-Key: {CANARY}", key="canary-unknown"),
    request("/flat/x?key=canary%zz", key=CANARY),
    request("/flat/x", None, "X-Canary: canary\x00", key=CANARY),
    request("/flat/x", None, "Expect: canary", key=CANARY),
    request("/flat/x", None, "Cookie: canary", "Proxy-Authorization: Basic canary", key=CANARY),
    request("/flat/x", None, f"Connection: X-Api-Key, {CANARY}", key=CANARY),
    f"GET /flat/x HTTP/1.1\r\nHost: canary@a\r\nX-Api-Key: {CANARY}\r\n\r\n".encode(),
    b"GET /flat/x canary\r\nHost: a\r\nX-Api-Key: canary\r\n\r\n",
]


async def hang_up(peer: Peer) -> None:
    await peer.reader.read(1)


ANSWERS = {
    "fine": answering(http("200 OK", IN_ANSWER.encode(), f"X-Token: {IN_ANSWER}")),
    "refused": answering(http("401 No", f"bad key {OURS_CANARY}".encode())),
    "cut": then_close(chunked(IN_ANSWER.encode(), end=False)),
    "garbage": then_close(f"{IN_ANSWER} {OURS_CANARY}\r\n\r\n".encode()),
    "closed": then_close(),
    "unreachable": hang_up,
    "not TLS": hang_up,
}


@pytest.mark.parametrize("credential", ["bearer", "query"])
@pytest.mark.parametrize("way", list(ANSWERS))
def test_no_secret_is_left_anywhere(
    tmp_path: Path, way: str, credential: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the call log, our errors, the metrics, the admin API, the log, or the ledger's file."""
    placed = f"{{{credential}: " + (
        "token, value: ${OURS}}" if credential == "query" else "${OURS}}"
    )
    url = {"unreachable": "http://127.0.0.1:1", "not TLS": "https://localhost:{port}"}.get(way, "")
    lines = Lines()
    seen: list[str] = []

    async def story() -> None:
        text = _with(placed).replace("test-key-0000", CANARY)
        server = fronting(tmp_path, ANSWERS[way], text, log=lines, url=url, OURS=OURS_CANARY)
        async with server as (rig, upstream):
            for data in CALLS:
                answer = await ask(rig, data)
                if answer.values(b"x-budget-proxy-reason") or answer.status == 400:
                    seen.append((answer.head + answer.body).decode("latin-1"))
            if upstream.requests:
                assert OURS_CANARY.encode() in upstream.requests[0].head
            for path in ("/metrics", "/api/accounts", "/readyz"):
                async with rig.session.get(rig.admin_url + path) as got:
                    assert got.status == 200
                    seen.append(await got.text())
            assert rig.calls

    caplog.set_level("DEBUG", "budget_proxy")
    asyncio.run(story())
    log = lines.getvalue().decode()
    assert log.count("\n") >= len(CALLS) - 2
    ledger = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
    assert b"pages" in ledger
    places = {
        "log": log,
        "ledger": ledger.decode("latin-1"),
        "answers": "\n".join(seen),
        "events": caplog.text,
    }
    assert [(place, _secrets_of(text)) for place, text in places.items() if _secrets_of(text)] == []


def test_a_password_in_an_absolute_target_is_not_logged(tmp_path: Path) -> None:
    async def story() -> None:
        lines = Lines()
        async with fronting(tmp_path, answering(OK), log=lines) as (rig, _):
            target = "http://user:canary@evil.example/x"
            assert (await ask(rig, request(target))).status == 400
        assert b"canary" not in lines.getvalue()

    asyncio.run(story())
