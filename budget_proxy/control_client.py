"""Calls of our own to other servers: balances, top-ups, alerts. One at a time, small and bounded.

What callers send does not pass here (`upstream`). Redirects are never followed, so that no
credential goes where nobody sent it; a redirect is an answer like others. No cookies are kept and
no proxy is taken from the environment. Time and bytes have a bound each. No message of an error
repeats the URL, a header or anything of the answer: each can hold a secret.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import zlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

import aiohttp
from yarl import URL

from budget_proxy import __version__

Failure = Literal["refused", "timeout", "too_large", "broken"]


class Answer(NamedTuple):
    """What came back, whatever its status. Header names are in small letters; of several with one
    name the last counts."""

    status: int
    headers: dict[str, str]
    body: bytes


class ControlError(Exception):
    """There is no answer. `surely_not_sent`: the other side has seen nothing of the request."""

    def __init__(self, kind: Failure, message: str, *, surely_not_sent: bool = False) -> None:
        self.kind = kind
        self.surely_not_sent = surely_not_sent
        super().__init__(message)


async def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    timeout_s: float = 10.0,
    max_bytes: int = 256 * 1024,
    ca: str | None = None,
    proxy: str | None = None,
) -> Answer:
    """Ask once and read the answer to its end.

    `ca` is a file of certificate authorities, `proxy` the URL of a forward proxy, as an upstream
    has them. Raises ControlError where no whole answer came in time.
    """
    try:
        async with asyncio.timeout(timeout_s), _session(ca) as session:
            return await _ask(session, url, method, headers, body, max_bytes, proxy)
    except TimeoutError:
        raise ControlError("timeout", f"no whole answer within {timeout_s:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise ControlError(
            "refused", f"cannot connect: {_brief(error)}", surely_not_sent=True
        ) from None
    except (aiohttp.ClientHttpProxyError, aiohttp.InvalidURL):
        raise ControlError("refused", "cannot be reached", surely_not_sent=True) from None
    except (aiohttp.ClientError, OSError, zlib.error, ValueError) as error:
        raise ControlError("broken", f"the answer broke off: {type(error).__name__}") from None


def _session(ca: str | None) -> aiohttp.ClientSession:
    try:
        tls = ssl.create_default_context(cafile=ca) if ca is not None else True
    except OSError as error:  # an SSLError is one
        raise ControlError(
            "refused", f"the file `ca` cannot be used: {_brief(error)}", surely_not_sent=True
        ) from None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=1, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),  # the whole has one already
        headers={"User-Agent": f"budget-proxy/{__version__}", "Accept-Encoding": "identity"},
    )


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    method: str,
    headers: Iterable[tuple[str, str]],
    body: bytes | None,
    max_bytes: int,
    proxy: str | None,
) -> Answer:
    async with session.request(
        method,
        URL(url, encoded=True),
        headers=list(headers),
        data=body,
        proxy=proxy,
        allow_redirects=False,
    ) as answer:
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, found, _decoded(found, bytes(data), max_bytes))


def _decoded(headers: dict[str, str], data: bytes, max_bytes: int) -> bytes:
    """The body as it was before a Content-Encoding, which nobody asked for."""
    if headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return data
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    found = inflate.decompress(data, max_bytes + 1)
    if len(found) > max_bytes:
        raise _too_large(max_bytes)
    return found


def _too_large(max_bytes: int) -> ControlError:
    return ControlError("too_large", f"the answer has more than {max_bytes} bytes")


def _brief(error: Exception) -> str:
    """What went wrong, without host and port: they may come from a secret URL."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
        # Not its own text: asyncio writes the address into that. Names fail by other numbers.
        return os.strerror(cause.errno) if cause.errno > 0 else "no address for that name"
    return type(cause).__name__
