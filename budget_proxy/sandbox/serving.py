"""One request, from arrival to charge: take it in, let its provider plan, charge, wait, answer.

The charge is booked when the call is accepted, before anything is waited for, as prepaid providers
do it: a caller that leaves has spent its money. Every refusal is worded here, once. Forbidden here:
any provider's shapes, and how an answer travels (`answering.py`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from budget_proxy.sandbox.answering import answer, json_answer, pause
from budget_proxy.sandbox.bank import Sale
from budget_proxy.sandbox.call import MAX_BODY_BYTES, Ask, Dialect, Plan, Refusal
from budget_proxy.sandbox.emptiness import REFUSALS
from budget_proxy.sandbox.settings import SettingError, for_request
from budget_proxy.sandbox.state import Sandbox

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

    from budget_proxy.sandbox.answering import Correction
    from budget_proxy.sandbox.settings import Settings

SANDBOX = web.AppKey("sandbox", Sandbox)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DialectOf = Callable[[web.Request], Dialect]

_BODY_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request's number, the moment it arrived (seconds since 1970), and its body as received."""

    number: int
    at_s: float
    body: bytes


ARRIVAL = web.RequestKey("arrival", Arrival)


def observer(dialect_of: DialectOf, control_prefix: str) -> Middleware:
    """The middleware that counts and remembers what arrives, and words every refusal.

    Requests below `control_prefix` are the tester's own, and are neither counted nor remembered.
    """

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(control_prefix):
            return await handler(request)
        sandbox = request.app[SANDBOX]
        number = sandbox.arrive()
        try:
            await _take_in(request, sandbox, number)
            return await handler(request)
        except Refusal as refusal:
            return _refused(refusal, dialect_of(request), number)
        except web.HTTPException as error:
            other = Refusal(error.status, f"{error.reason}: {request.method} {request.path}")
            return _refused(other, dialect_of(request), number)
        finally:
            sandbox.leave()

    return observe


def priced(dialect: Dialect, make_plan: Callable[[Ask], Plan]) -> Handler:
    """The handler of a priced endpoint: what `make_plan` decides, carried out."""

    async def handle(request: web.Request) -> web.StreamResponse:
        sandbox = request.app[SANDBOX]
        settings = settings_for(request, sandbox)
        check_key(request, settings.require_key, dialect)
        plan = make_plan(_ask(request, sandbox, settings))
        fate = sandbox.next_call(settings)
        if fate == "refused":
            assert settings.refuse_as is not None
            await pause(settings.latency_s)
            return _out_of_the_table(request, settings.refuse_as, dialect)
        correct = None
        if fate == "served" or settings.fail_billed:
            correct = _charge(request, sandbox, settings, plan)
            if correct is None:
                return _out_of_the_table(request, settings.empty_as or dialect.empty_as, dialect)
        if fate == "failed":
            assert settings.fail is not None
            await pause(settings.latency_s)
            raise dialect.failure(settings.fail)
        headers = dialect.headers(request[ARRIVAL].number)
        return await answer(request, settings, plan, headers, correct)

    return handle


def check_key(request: web.Request, key: str | None, dialect: Dialect) -> None:
    """Refuse a request that does not carry the key, if one is required."""
    if key is not None and key not in _keys_given(request):
        raise dialect.bad_key()


def _keys_given(request: web.Request) -> Iterator[str]:
    """What stands in any of the places where providers look for a key."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token"):
        yield token.strip()
    elif scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            yield base64.b64decode(token, validate=True).decode().partition(":")[2]
    for name in ("x-api-key", "xi-api-key"):
        yield request.headers.get(name, "")
    for name in ("key", "api_key"):
        yield request.query.get(name, "")


def _out_of_the_table(request: web.Request, name: str, dialect: Dialect) -> web.Response:
    row = REFUSALS[name]
    number = request[ARRIVAL].number
    headers = {**dialect.headers(number), **row.headers}
    return json_answer(row.body_for(number), headers, status=row.status)


def _refused(refusal: Refusal, dialect: Dialect, number: int) -> web.Response:
    return json_answer(
        dialect.error(refusal, number), dialect.headers(number), status=refusal.status
    )


async def _take_in(request: web.Request, sandbox: Sandbox, number: int) -> None:
    at_s = sandbox.clock()
    body: bytes | None = None
    try:
        if not request.body_exists:
            body = b""
        elif request.content.is_eof():  # all of it is here: no need for a timer
            body = await request.read()
        else:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await request.read()
    except TimeoutError:
        raise Refusal(408, "The body did not arrive in time.") from None
    except web.RequestPayloadError:
        raise Refusal(400, "The body is not what its headers announced.") from None
    finally:
        sandbox.remember(
            number=number,
            at_s=at_s,
            method=request.method,
            raw_path=request.raw_path,
            raw_headers=request.raw_headers,
            body=body,
        )
    request[ARRIVAL] = Arrival(number, at_s, body)


def settings_for(request: web.Request, sandbox: Sandbox) -> Settings:
    """The settings that hold for this request; a header that is wrong is a 400."""
    try:
        return for_request(sandbox.settings, request.headers.items())
    except SettingError as error:
        raise Refusal(400, str(error)) from None


def _ask(request: web.Request, sandbox: Sandbox, settings: Settings) -> Ask:
    arrival = request[ARRIVAL]
    return Ask(
        body=_decoded(arrival.body, request.headers.get("Content-Encoding", "")),
        query=request.query if request.query_string else {},
        settings=settings,
        prices=sandbox.prices,
        number=arrival.number,
        at_s=arrival.at_s,
    )


def _decoded(body: bytes, coding: str) -> bytes:
    if coding.lower() in ("", "identity"):
        return body
    if coding.lower() not in ("gzip", "x-gzip"):
        raise Refusal(415, f"Unsupported Content-Encoding: {coding}.")
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise Refusal(400, "The request body is not valid gzip.") from None
    if len(plain) > MAX_BODY_BYTES:
        raise Refusal(413, "The request body is too large once it is decompressed.")
    if not inflater.eof or inflater.unused_data:
        raise Refusal(400, "The request body is not one whole gzip member.")
    return plain


def _charge(
    request: web.Request, sandbox: Sandbox, settings: Settings, plan: Plan
) -> Correction | None:
    """Charge the call; answers how to correct the charge, or None where the balance is too low."""
    sale = Sale(
        path=request.path,
        model=plan.model,
        quantities=plan.bill.quantities,
        amount_nanos=plan.bill.amount_nanos,
        service=request.headers.get(settings.service_header),
        request_id=request.headers.get("x-request-id"),
    )
    bank = sandbox.bank
    charge = bank.charge(sale, request[ARRIVAL].at_s)
    if charge is None:
        return None

    def correct(delivered_tokens: int) -> None:
        assert plan.delivered is not None
        bill = plan.delivered(delivered_tokens)
        bank.correct(charge, bill.quantities, bill.amount_nanos, sandbox.clock())

    return correct
