"""Forward calls to upstreams and bring their answers back. One of the two rooms that know the HTTP
library.

Here are its traps closed: nothing is ever sent twice, redirects and cookies are not followed, no
proxy is taken from the environment, targets go out as they came, header names cannot fold into
each other, every wait has a deadline, and "was it sent?" has an answer.
Forbidden here: knowing what a budget is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from multidict import CIMultiDict
from yarl import URL

from budget_proxy.call import (
    CHUNK,
    AnswerCutError,
    BodyTimeoutError,
    CallerGoneError,
    Head,
    Headers,
    NoAnswerError,
    NotSentError,
)
from budget_proxy.core.house import Timeouts, Upstream

MAX_HEADER = 32 * 1024
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
Body = bytes | AsyncIterator[bytes] | None


class _LostError(Exception):
    """A connection broke after the request may have left (see `_never_twice`)."""


async def _never_twice(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keep the library from sending a request again when a reused connection turns out dead: it
    does so for GET, PUT and DELETE, and each attempt may be billed."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        raise _LostError(str(error)) from error


class UpstreamAnswer:
    """An `Answer` on an aiohttp response."""

    def __init__(self, response: ClientResponse, timeouts: Timeouts, ends_s: float) -> None:
        self._response = response
        self._timeouts = timeouts
        self._ends_s = ends_s
        self._loop = asyncio.get_running_loop()
        self.head = Head(response.status, response.reason or "", list(response.raw_headers))

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        content = self._response.content
        try:
            data = content.read_nowait(CHUNK)
            if data or content.at_eof():
                return data
            until_s = min(self._loop.time() + self._timeouts.idle_s, self._ends_s)
            async with asyncio.timeout_at(until_s):
                return await content.read(CHUNK)
        except TimeoutError:
            raise AnswerCutError("timeout", "the upstream stopped sending") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise AnswerCutError("cut", "the upstream cut its answer short") from error

    def close(self) -> None:
        """See `Answer.close`."""
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()


class Outgoing:
    """The connections to one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        timeouts = upstream.timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=upstream.max_connections,
                keepalive_timeout=upstream.keepalive_s,
                ssl=_tls(upstream),
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            skip_auto_headers=_SKIPPED,
            read_bufsize=CHUNK,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            middlewares=(_never_twice,),
        )

    @property
    def upstream(self) -> Upstream:
        """Whose connections these are."""
        return self._upstream

    async def send(self, method: str, url: str, headers: Headers, body: Body) -> UpstreamAnswer:
        """Send one request, once. Raises NotSentError, NoAnswerError, CallerGoneError and
        BodyTimeoutError (from a body that is streamed through)."""
        loop = asyncio.get_running_loop()
        timeouts = self._upstream.timeouts
        tracker = aiohttp.UploadTracker()
        began_s = loop.time()
        try:
            async with asyncio.timeout(min(timeouts.first_byte_s, timeouts.total_s)):
                response = await self._session.request(
                    method,
                    URL(url, encoded=True),
                    headers=_names_lowered(headers),
                    data=body,
                    allow_redirects=False,
                    proxy=self._upstream.proxy,
                    upload_tracker=tracker,
                )
        except (CallerGoneError, BodyTimeoutError):
            raise
        except aiohttp.ClientConnectorError as error:
            raise NotSentError(_kind(error), f"cannot connect: {_brief(error)}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise NotSentError("connect_timeout", "cannot connect in time") from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            if tracker.attempts == 0:
                raise NotSentError("pool_timeout", "no connection became free") from error
            raise NoAnswerError("timeout", "the upstream did not answer in time") from error
        except (aiohttp.ClientHttpProxyError, aiohttp.InvalidURL) as error:
            raise NotSentError("proxy", f"cannot connect: {_brief(error)}") from error
        except aiohttp.ClientResponseError as error:
            raise NoAnswerError("garbage", "the upstream's answer is not HTTP") from error
        except (_LostError, aiohttp.ClientError, ConnectionError, ValueError) as error:
            _raise_callers_own(error)
            raise NoAnswerError("lost", "the upstream closed the connection") from error
        if response.status == 101:
            response.close()
            raise NoAnswerError("garbage", "the upstream switched protocols unasked")
        return UpstreamAnswer(response, timeouts, began_s + timeouts.total_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def _raise_callers_own(error: BaseException) -> None:
    """A streamed body that broke on the caller's side comes wrapped in the library's error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CallerGoneError | BodyTimeoutError):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _names_lowered(headers: Headers) -> CIMultiDict[str]:
    # The library folds names that differ in case and loses values; in one case all arrive.
    multi: CIMultiDict[str] = CIMultiDict()
    for name, value in headers:
        multi.add(name.decode("latin-1").lower(), value.decode("utf-8"))
    return multi


def _kind(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    return "connect"


def _brief(error: Exception) -> str:
    """What went wrong without the URL, which can carry a credential."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause or error).__name__


def _tls(upstream: Upstream) -> Any:
    if upstream.ca is None:
        return True
    return ssl.create_default_context(cafile=upstream.ca)


class Switchboard:
    """The connections to all upstreams of the policy in force."""

    def __init__(self) -> None:
        self._outgoing: dict[str, Outgoing] = {}
        self._retired: list[Outgoing] = []

    async def connect(self, upstreams: Mapping[str, Upstream]) -> None:
        """Serve these upstreams; unchanged ones keep their connections, calls under way theirs."""
        for name, old in list(self._outgoing.items()):
            if upstreams.get(name) != old.upstream:
                self._retired.append(self._outgoing.pop(name))
        for name, upstream in upstreams.items():
            if name not in self._outgoing:
                self._outgoing[name] = Outgoing(upstream)

    def to(self, upstream: Upstream) -> Outgoing:
        """The connections of an upstream; of a retired one until it is closed."""
        found = self._outgoing.get(upstream.name)
        if found is not None and found.upstream is upstream:
            return found
        for old in self._retired:
            if old.upstream is upstream:
                return old
        assert found is not None, "a call's upstream is connected or retired"
        return found

    async def close_retired(self) -> None:
        """Close what no policy names any more; call it when their calls have ended."""
        retired, self._retired = self._retired, []
        for outgoing in retired:
            await outgoing.close()

    async def close(self) -> None:
        """Close everything."""
        await self.close_retired()
        for outgoing in self._outgoing.values():
            await outgoing.close()
        self._outgoing.clear()
