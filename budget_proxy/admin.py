"""The admin application: metrics, health, accounts, and the few things that change state.

It stands on a port of its own, never on the proxy's. Rules:

- reading needs no token on a loopback address, and the `admin_token` elsewhere; changing state
  needs it always, and without a configured token it cannot be done at all;
- /metrics, /livez and /readyz are for machines that have no token;
- Host must be an IP address, `localhost` or a listed name, so that a page in somebody's browser
  cannot reach this port under a name of its own (DNS rebinding);
- every error is problem+json (RFC 9457), and no input is answered with a 500.

Forbidden here: credentials in any answer, blocking the loop, and knowing how the proxy works:
what is needed of it is the `Control` below.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler

from budget_proxy.accounts_view import AccountsView, AccountView, touched_by
from budget_proxy.balances_view import accounts_json, balance_json, by_balance, stop_json
from budget_proxy.burn import LineRunway
from budget_proxy.by_hand import (
    AskedAdjustment,
    AskedBalance,
    AskedPause,
    AskedResume,
    AskedWord,
    check_line,
    check_name,
    end_of,
    entered,
)
from budget_proxy.core.house import House
from budget_proxy.core.stops import Scope, Stop
from budget_proxy.core.topup import NoSuchTopUpError, TopUpAnswer
from budget_proxy.correction import Corrected
from budget_proxy.ledgers import LedgerDownError
from budget_proxy.policy_view import policy_json
from budget_proxy.watch import BalanceView

log = logging.getLogger(__name__)

State = Literal["starting", "serving", "draining"]
MAX_BODY = 64 * 1024
SCRAPE_DEADLINE_S = 10.0
BODY_DEADLINE_S = 10.0

_INDEX = """\
budget-proxy, admin port

GET  /metrics        for Prometheus
GET  /livez          200 while the process turns
GET  /readyz         200 while serving, 503 while starting or draining
GET  /api/accounts   open accounts; ?budget= ?payer= ?service=
GET  /api/balances   prepaid balances, and how long they last
GET  /api/stops      what is paused, and which providers are out of money
GET  /api/policy     the policy in force, without credentials
GET  /api/topups     attempts to top up a balance
POST /api/topups/{id}/{verb}    approve | refuse {"reason"} | decide {"landed": true}
POST /api/adjust     {"budget", "payer", "amount": "-1.50 USD", "reason"}
POST /api/pause      {"scope": "upstream | budget | service", "name", "reason", "for": "2h"}
POST /api/resume     {"scope", "name"}
POST /api/balances/{upstream}    {"balance": "100 USD", "reason"}, or {"add": "50 USD", "reason"}
POST /api/reload     read the policy file again
"""

_T = TypeVar("_T")


class Keeper(Protocol):
    """What it asks of the standing duties. Each of these may raise LedgerDownError."""

    async def balances(self) -> list[BalanceView]:
        """Every balance that the policy names."""

    def runways(self) -> Sequence[LineRunway]:
        """How long the money of each account lasts, as far as can be told."""

    @property
    def stops(self) -> Sequence[Stop]:
        """Everything that is stopped now."""

    async def pause(
        self, scope: Scope, name: str, *, why: str, who: str, until_s: float | None
    ) -> Stop:
        """Stop something that the policy has."""

    async def resume(self, scope: Scope, name: str, *, who: str) -> bool:
        """End a stop; False: there was none."""

    async def set_balance(
        self, upstream: str, amount: int, *, add: bool, who: str, why: str
    ) -> None:
        """What a balance is, or what came on top."""


class Control(Protocol):
    """What the admin application asks of the proxy."""

    @property
    def state(self) -> State:
        """Where the proxy is in its life."""

    @property
    def house(self) -> House:
        """The policy in force."""

    @property
    def keeping(self) -> Keeper:
        """The standing duties."""

    async def accounts(self) -> AccountsView:
        """Every open account."""

    async def adjust(
        self, budget: str, payer: str, amount_text: str, reason: str, who: str
    ) -> Corrected:
        """Add an amount to what an account has spent; ValueError says what cannot be done."""

    async def topups(self) -> list[dict[str, Any]]:
        """Every attempt to top up a balance, oldest first."""

    async def answer_topup(
        self, attempt_id: str, answer: TopUpAnswer, why: str, who: str
    ) -> dict[str, Any]:
        """What a person says to one. LookupError: there is none; ValueError: not in its state."""

    async def reload(self) -> list[str]:
        """Read the policy again; the mistakes that kept the old one in force, or none."""

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """A scrape and its content type. Blocks."""


class _ProblemError(Exception):
    """An answer that is an error, raised where it is known."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def build_admin(
    control: Control, *, address: str | None = None, hosts: Iterable[str] = ()
) -> web.Application:
    """Build the application. `address`: what the port is bound to; by default the policy's.

    `hosts`: names under which the port may be reached, besides addresses and `localhost`.
    """
    rooms = _Rooms(control, _is_loopback(control.house.admin[0] if address is None else address))
    application = web.Application(
        client_max_size=MAX_BODY,
        middlewares=[_problems, _host_guard(hosts)],
    )
    application.on_response_prepare.append(_secure)
    application.add_routes(
        [
            web.get("/", rooms.index),
            web.get("/metrics", rooms.metrics),
            web.get("/livez", rooms.livez),
            web.get("/readyz", rooms.readyz),
            web.get("/api/accounts", rooms.reads(rooms.accounts)),
            web.get("/api/policy", rooms.reads(rooms.policy)),
            web.get("/api/topups", rooms.reads(rooms.topups)),
            web.post("/api/topups/{id}/{verb}", rooms.changes(rooms.answer_topup)),
            web.get("/api/balances", rooms.reads(rooms.balances)),
            web.get("/api/stops", rooms.reads(rooms.stops)),
            web.post("/api/adjust", rooms.changes(rooms.adjust)),
            web.post("/api/pause", rooms.changes(rooms.pause)),
            web.post("/api/resume", rooms.changes(rooms.resume)),
            web.post("/api/balances/{upstream}", rooms.changes(rooms.set_balance)),
            web.post("/api/reload", rooms.changes(rooms.reload)),
        ]
    )
    return application


class _Protocol(RequestHandler):
    """A connection whose parse errors are neither logged nor answered with the caller's bytes: a
    header line that cannot be read may be the one with the token."""

    def log_exception(self, *_args: Any, **_more: Any) -> None:
        """What a handler raises is logged where it is caught."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the caller's bytes
    ) -> web.StreamResponse:
        """Answer what the parser refused."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun") from exc
        answer = _problem(status, "This is not an HTTP/1.1 request that can be read")
        answer.force_close()
        return answer


class _Server(web.Server):
    """The factory of those connections."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler, request_factory=server.request_factory, **self._kwargs
        )


def admin_runner(application: web.Application) -> web.AppRunner:
    """A runner with the settings this application is tested with."""
    return _Runner(application, access_log=None, handle_signals=False, keepalive_timeout=75.0)


class _Rooms:
    """The handlers, each a few lines around one question to the proxy."""

    def __init__(self, control: Control, open_to_readers: bool) -> None:
        self._control = control
        self._open_to_readers = open_to_readers
        self._scrapes = _OneAtATime(control.metrics)

    def reads(self, handler: Handler) -> Handler:
        """Let a handler through that changes nothing."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._open_to_readers:
                self._check_token(request)
            return await handler(request)

        return guarded

    def changes(self, handler: Handler) -> Handler:
        """Let a handler through that changes state."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._check_token(request)
            return await handler(request)

        return guarded

    def _check_token(self, request: web.Request) -> None:
        expected = self._control.house.admin_token
        if expected is None:
            raise _ProblemError(403, "This needs a token, and the policy sets no admin_token:")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(digest, expected) or scheme.lower() != "bearer":
            detail = "This needs the admin token, as Authorization: Bearer <token>"
            raise _ProblemError(401, detail, {"WWW-Authenticate": 'Bearer realm="budget-proxy"'})

    async def index(self, _request: web.Request) -> web.Response:
        return web.Response(text=_INDEX)

    async def livez(self, _request: web.Request) -> web.Response:
        return _json({"state": self._control.state})

    async def readyz(self, _request: web.Request) -> web.Response:
        state = self._control.state
        return _json({"state": state}, status=200 if state == "serving" else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        try:
            body, content_type = await self._scrapes.run(accept)
        except TimeoutError as error:
            detail = f"The metrics were not ready within {SCRAPE_DEADLINE_S:.0f} s"
            raise _ProblemError(503, detail) from error
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def accounts(self, request: web.Request) -> web.Response:
        accounts = await _of_ledger(self._control.accounts())
        # In a thread: a budget per end user makes tens of thousands of them.
        return await asyncio.to_thread(
            _accounts,
            accounts,
            self._control.keeping.runways(),
            self._control.house,
            dict(request.query),
        )

    async def balances(self, _request: web.Request) -> web.Response:
        return _json({"balances": await self._balances()})

    async def _balances(self) -> list[dict[str, Any]]:
        keeping = self._control.keeping
        views = await _of_ledger(keeping.balances())
        lasts = by_balance(self._control.house.budgets, keeping.runways())
        now_s = time.time()
        return [balance_json(view, lasts.get(view.upstream), now_s) for view in views]

    async def stops(self, _request: web.Request) -> web.Response:
        return _json({"stops": [stop_json(stop) for stop in self._control.keeping.stops]})

    async def pause(self, request: web.Request) -> web.Response:
        asked = _read(await _body(request), AskedPause, "a pause")
        with _refused():
            check_name(self._control.house, asked.scope, asked.name)
            check_line("reason", asked.reason)
            until_s = end_of(asked, time.time())
        pausing = self._control.keeping.pause(
            asked.scope, asked.name, why=asked.reason, who=_who(request, asked.by), until_s=until_s
        )
        return _json(stop_json(await _of_ledger(_acceptable(pausing))))

    async def resume(self, request: web.Request) -> web.Response:
        asked = _read(await _body(request), AskedResume, "a resume")
        keeping = self._control.keeping
        there = any((stop.scope, stop.name) == (asked.scope, asked.name) for stop in keeping.stops)
        if not there:  # what the policy no longer has can be stopped still
            with _refused():
                check_name(self._control.house, asked.scope, asked.name)
        resuming = keeping.resume(asked.scope, asked.name, who=_who(request, asked.by))
        return _json({"resumed": await _of_ledger(resuming)})

    async def set_balance(self, request: web.Request) -> web.Response:
        upstream = request.match_info["upstream"]
        asked = _read(await _body(request), AskedBalance, "a balance")
        with _refused():
            check_line("reason", asked.reason)
            amount, add = entered(self._control.house, upstream, asked)
        who = _who(request, asked.by)
        setting = self._control.keeping.set_balance(
            upstream, amount, add=add, who=who, why=asked.reason
        )
        await _of_ledger(_acceptable(setting))
        found = [view for view in await self._balances() if view["upstream"] == upstream]
        return _json(found[0] if found else {})

    async def policy(self, _request: web.Request) -> web.Response:
        return _json(policy_json(self._control.house))

    async def adjust(self, request: web.Request) -> web.Response:
        asked = _read(await _body(request), AskedAdjustment, "an adjustment")
        who = _who(request, "")
        adjusting = self._control.adjust(asked.budget, asked.payer, asked.amount, asked.reason, who)
        corrected = await _of_ledger(_acceptable(adjusting))
        return _json(corrected.as_json())

    async def topups(self, _request: web.Request) -> web.Response:
        return _json({"topups": await _of_ledger(self._control.topups())})

    async def answer_topup(self, request: web.Request) -> web.Response:
        body = await _body(request)
        asked = _read(body or b"{}", AskedWord, "a word on a top-up")
        remote = f"admin API from {request.remote or 'unknown'}"
        who = f"{asked.by}, {remote}" if asked.by else remote
        answering = self._control.answer_topup(
            request.match_info["id"],
            _answer(request.match_info["verb"], asked),
            asked.reason,
            who,
        )
        return _json(await _of_ledger(_acceptable(answering)))

    async def reload(self, request: web.Request) -> web.Response:
        await _body(request)
        mistakes = await self._control.reload()
        if mistakes:
            detail = "The policy has mistakes; the old one stays in force"
            return _problem(422, detail, mistakes=mistakes)
        return _json({"ok": True})


class _OneAtATime:
    """Runs one scrape at a time in a thread, and gives up waiting after the deadline.

    A thread cannot be stopped: the next scrape begins when the last one has really ended, so a
    stuck ledger costs one thread, however often Prometheus asks.
    """

    def __init__(self, render: Callable[[str], tuple[bytes, str]]) -> None:
        self._render = render
        self._busy = asyncio.Lock()

    async def run(self, accept: str) -> tuple[bytes, str]:
        async with asyncio.timeout(SCRAPE_DEADLINE_S):
            await self._busy.acquire()
            running = asyncio.ensure_future(asyncio.to_thread(self._render, accept))
            running.add_done_callback(self._ended)
            return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[tuple[bytes, str]]) -> None:
        self._busy.release()
        if not running.cancelled():
            running.exception()  # taken note of even if nobody waits any longer


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into problem+json."""
    try:
        return await handler(request)
    except _ProblemError as problem:
        return _problem(problem.status, problem.detail, headers=problem.headers)
    except web.HTTPException as error:
        allow = error.headers.get("Allow")
        return _problem(error.status, error.reason, headers={"Allow": allow} if allow else None)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _problem(500, "Something is broken in here; the log says what")


def _host_guard(hosts: Iterable[str]) -> Middleware:
    names = {host.lower().rstrip(".") for host in hosts} | {"localhost"}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall("Host", ())
        host = _host_name(given[0]) if len(given) == 1 else ""
        if host not in names and _ip_address(host) is None:
            raise _ProblemError(
                421, "The admin port answers to an IP address, localhost, or a host it is told of"
            )
        return await handler(request)

    return guard


def _host_name(authority: str) -> str:
    """The host of `host:port`, lower case, without brackets; empty if it is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return ""
    if "@" in authority or parts.path or parts.query or parts.fragment:
        return ""
    return (parts.hostname or "").rstrip(".")


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(address: str) -> bool:
    ip = _ip_address(address.strip("[]"))
    return address.lower() == "localhost" or (ip is not None and ip.is_loopback)


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "budget-proxy"


async def _body(request: web.Request) -> bytes:
    """The whole body, bounded in size (by the application) and in time."""
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            return await request.read()
    except TimeoutError as error:
        raise _ProblemError(408, "The body came too slowly") from error
    except web.RequestPayloadError as error:
        raise _ProblemError(400, "The body cannot be read") from error


def _read(body: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _ProblemError(400, f"The body is not {what}: {error}") from error


def _answer(verb: str, asked: AskedWord) -> TopUpAnswer:
    """The answer to an attempt to top up that a request gives."""
    if verb == "decide":
        if asked.landed is None:
            raise _ProblemError(400, 'Say whether the money came, as in {"landed": true}')
        return "landed" if asked.landed else "not_landed"
    if verb == "approve":
        return "approve"
    if verb == "refuse":
        return "refuse"
    raise _ProblemError(404, "A top-up can be approved, refused and decided")


def _who(request: web.Request, by: str) -> str:
    """Who asks for a change, for the audit trail: what they say of themselves is no proof."""
    remote = f"admin API from {request.remote or 'unknown'}"
    return f"{by}, {remote}" if by and by.isprintable() else remote


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """A ValueError says why what was asked for cannot be."""
    try:
        yield
    except NoSuchTopUpError as error:
        raise _ProblemError(404, str(error)) from error
    except ValueError as error:
        raise _ProblemError(400, str(error)) from error


async def _acceptable(answer: Awaitable[_T]) -> _T:
    """The answer to what a caller asked for."""
    with _refused():
        return await answer


async def _of_ledger(answer: Awaitable[_T]) -> _T:
    """What the ledger says; a ledger that cannot say is not the caller's mistake, nor a bug."""
    try:
        return await answer
    except _ProblemError:
        raise
    except LedgerDownError as error:  # it says all there is to know
        log.error("the ledger did not answer: %s", error)
        raise _ProblemError(503, "The ledger does not answer; the proxy's log says why") from error
    except Exception as error:
        log.exception("the ledger did not answer")
        raise _ProblemError(503, "The ledger does not answer") from error


def _filtered(
    accounts: AccountsView, house: House, query: Mapping[str, str]
) -> Iterable[AccountView]:
    if "service" in query:
        service = house.services.get(query["service"])
        accounts = touched_by(accounts, house, service) if service is not None else []
    return [
        account
        for account in accounts
        if query.get("budget", account.budget) == account.budget
        and query.get("payer", account.payer) == account.payer
    ]


def _accounts(
    accounts: AccountsView,
    runways: Sequence[LineRunway],
    house: House,
    query: Mapping[str, str],
) -> web.Response:
    kept = _filtered(accounts, house, query)
    shown = accounts_json((account.as_json() for account in kept), runways)
    return _json({"accounts": shown})


def _json(document: Any, status: int = 200) -> web.Response:
    body = msgspec.json.encode(document) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json")


def _problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> web.Response:
    title = HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return web.Response(
        body=msgspec.json.encode(document) + b"\n",
        status=status,
        headers=headers,
        content_type="application/problem+json",
    )
