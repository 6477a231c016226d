"""TLS on the proxy's own port, and upstreams that are reached through a forward proxy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from raw_upstream import (
    FLAT,
    OURS,
    Caller,
    Peer,
    RawUpstream,
    Script,
    answering,
    ask,
    fronting,
    http,
    policy,
    request,
    spent,
)

OK = http("200 OK", b"ok")
CERTIFICATE = Path(__file__).with_name("untrusted.pem")
TLS = f"tls: {{cert: {CERTIFICATE}, key: {CERTIFICATE}}}\n"


def serving_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


# -- the listener ----------------------------------------------------------------------------------


def test_services_can_be_served_over_tls(tmp_path: Path) -> None:
    trusting = ssl.create_default_context(cafile=CERTIFICATE)

    async def story() -> None:
        async with fronting(tmp_path, answering(OK), TLS + policy()) as (rig, upstream):
            reader, writer = await asyncio.open_connection(
                rig.host, rig.port, ssl=trusting, server_hostname="localhost"
            )
            caller = Caller(reader, writer)
            for body in (b"over TLS", b"x" * 1_000_000):
                await caller.send(request("/flat/x", body))
                assert (await caller.answer()).body == b"ok"
            caller.close()
            assert [len(got.body) for got in upstream.requests] == [8, 1_000_000]
            assert await spent(rig) == 2 * FLAT

    asyncio.run(story())


def test_where_tls_is_served_plain_http_is_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with fronting(tmp_path, answering(OK), TLS + policy()) as (rig, upstream):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await ask(rig, request("/flat/x"))
            untrusting = ssl.create_default_context()
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection(
                    rig.host, rig.port, ssl=untrusting, server_hostname="localhost"
                )
            assert upstream.connections == 0

    asyncio.run(story())


# -- forward proxies -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def forward_proxy(script: Script) -> AsyncIterator[RawUpstream]:
    proxy = RawUpstream(script)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def tunnel(peer: Peer) -> None:
    """Do what CONNECT asks for."""
    received = await peer.head()
    host, _, port = received.target.decode().partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pipe(peer.reader, writer))
            both.create_task(_pipe(reader, peer.writer))
    finally:
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def test_an_upstream_can_be_reached_through_a_forward_proxy(tmp_path: Path) -> None:
    """Its name need not even be known here."""

    async def story() -> None:
        async with forward_proxy(answering(OK)) as proxy:
            through = proxy.url.replace("http://", "http://me:hunter22@")
            text = policy("proxy: ${PROXY}")
            front = fronting(
                tmp_path, answering(OK), text, url="http://upstream.invalid", PROXY=through
            )
            async with front as (rig, upstream):
                call = request("/flat/x?a=1", b"body", "Proxy-Authorization: Basic dGhlaXJz")
                assert (await ask(rig, call)).body == b"ok"
                assert upstream.connections == 0, "not reached by itself"
                (got,) = proxy.requests
                assert got.line == b"POST http://upstream.invalid/x?a=1 HTTP/1.1"
                assert got.body == b"body"
                assert got.values(b"authorization") == [b"Bearer " + OURS.encode()]
                ours = b"Basic " + base64.b64encode(b"me:hunter22")
                assert got.values(b"proxy-authorization") == [ours]
                assert await spent(rig) == FLAT

    asyncio.run(story())


def test_through_a_forward_proxy_tls_goes_to_the_upstream_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with forward_proxy(tunnel) as proxy:
            text = policy(f"ca: {CERTIFICATE}\nproxy: ${{PROXY}}")
            front = fronting(
                tmp_path,
                answering(OK),
                text,
                ssl=serving_tls(),
                url="https://localhost:{port}",
                PROXY=proxy.url,
            )
            async with front as (rig, upstream):
                assert (await ask(rig, request("/flat/x", b"secret"))).body == b"ok"
                (seen,) = proxy.requests
                assert seen.line == b"CONNECT localhost:%d HTTP/1.1" % upstream.port
                assert OURS.encode() not in seen.head, "that is for the upstream alone"
                assert upstream.requests[0].body == b"secret"
                assert await spent(rig) == FLAT

    asyncio.run(story())


def test_a_forward_proxy_that_refuses_costs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        refusing = answering(http("407 Proxy Authentication Required"))
        async with forward_proxy(refusing) as proxy:
            front = fronting(
                tmp_path,
                answering(OK),
                policy("proxy: ${PROXY}"),
                url="https://localhost:{port}",
                PROXY=proxy.url,
            )
            async with front as (rig, upstream):
                assert (await ask(rig, request("/flat/x", b"body"))).status == 502
                assert (rig.calls[0].rule, rig.calls[0].reason) == (
                    "not_sent",
                    "upstream_unreachable",
                )
                assert upstream.connections == 0
                assert await spent(rig) == 0

    asyncio.run(story())
