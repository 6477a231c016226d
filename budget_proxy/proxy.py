"""The path of one request, arrival to settlement:

    check ─ identify ─ match ─ estimate ─ hold ──► forward ─ meter ─ settle ─► events

Decisions are pure and elsewhere (`core`); this file carries them out, in that order, and little
else. Its one promise: a call that may have reached the upstream is settled, whatever happens.
Forbidden here: an HTTP library's types, SQL, arithmetic on money.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from msgspec import structs

from budget_proxy import arrival, credential
from budget_proxy.admission import Admission, Request
from budget_proxy.arrival import Arrival, Arrivals
from budget_proxy.call import (
    AnswerCutError,
    BodyBrokenError,
    BodyTimeoutError,
    BodyTooLargeError,
    Call,
    CallerGoneError,
    NoAnswerError,
    NotSentError,
)
from budget_proxy.core import headers as header_rules
from budget_proxy.core.binding import Binding, Roster
from budget_proxy.core.book import (
    AlreadyEnded,
    Hold,
    NoSuchHold,
    Outcome,
    Release,
    Settle,
)
from budget_proxy.core.budget import Facts
from budget_proxy.core.document import Document
from budget_proxy.core.estimate import estimate, model_of
from budget_proxy.core.events import (
    Event,
    InvariantBroken,
    UpstreamFailed,
)
from budget_proxy.core.events import Outcome as CallOutcome
from budget_proxy.core.failure import failure_of
from budget_proxy.core.house import House, Upstream
from budget_proxy.core.learned import Learned
from budget_proxy.core.meter import Figures, Meter, meter_for
from budget_proxy.core.refusal import MONEY_REASONS, Reason, Refusal, RefusedError, refuse
from budget_proxy.core.route import Route
from budget_proxy.core.settlement import Course, settle
from budget_proxy.dialects import render
from budget_proxy.fail_open import FailOpen
from budget_proxy.hearing import Hearing, hearing_of
from budget_proxy.ledgers import Clock
from budget_proxy.ledgers.group import GroupCommit
from budget_proxy.records import about_call, result_of
from budget_proxy.stops import StopBoard
from budget_proxy.trail import Order, Trail, ended
from budget_proxy.upstream import Body, Switchboard, UpstreamAnswer

logger = logging.getLogger(__name__)
HOLD_GRACE_S = 60.0
"""How long after a call must be over its hold may still stand before it is presumed spent."""


_UNANSWERED = Course(sent=True)


def _let_go(leash: asyncio.Timeout, upstream: Upstream) -> None:
    """The caller is gone: how long its call may still run to learn what it cost."""
    stays_s = upstream.drain_s if upstream.on_disconnect == "drain" else 0.0
    leash.reschedule(asyncio.get_running_loop().time() + stays_s)


class Proxy:
    """Serves calls under the policy in force."""

    def __init__(
        self,
        house: House,
        *,
        binding: Binding,
        switchboard: Switchboard,
        admission: Admission,
        ledger: GroupCommit,
        fail_open: FailOpen,
        learned: Learned,
        admits: Roster,
        owner: str,
        clock: Clock,
        new_id: Callable[[], str],
        emit: Callable[[Event], None],
        stops: StopBoard | None = None,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stopwatch`: seconds from anywhere. Not the loop's, which may count in milliseconds: a
        stage takes less."""
        self._stopwatch = stopwatch
        self._stops = stops or StopBoard()
        self._house = house
        self._arrivals = Arrivals(house)
        self._binding = binding
        self._switchboard = switchboard
        self._admission = admission
        self._ledger = ledger
        self._fail_open = fail_open
        self._learned = learned
        self._admits = admits
        self._owner = owner
        self._clock = clock
        self._new_id = new_id
        self._emit = emit
        self._buffered = 0
        self._heard_badly = False
        self.draining = False

    def reload(self, house: House, binding: Binding, admits: Roster) -> None:
        """Serve new calls under another policy; those under way keep theirs."""
        self._house, self._binding, self._admits = house, binding, admits
        self._arrivals = Arrivals(house)

    async def serve(self, call: Call) -> None:
        """Answer one call, and settle it."""
        path = call.target.partition("?")[0] if call.target.startswith("/") else "(not a path)"
        trail = Trail(self._new_id(), self._stopwatch(), call.method, path)
        try:
            try:
                await self._serve(call, trail)
            except RefusedError as refused:
                trail.upstream = refused.upstream
                trail.dialect = refused.dialect or trail.dialect
                await self._refuse(call, refused.refusal, trail)
        except CallerGoneError:
            trail.outcome = "hung_up"
        except asyncio.CancelledError:
            trail.outcome = "aborted"
            raise
        except Exception as error:
            await self._broken(call, error, trail)
        finally:
            self._finish(call, trail, self._stopwatch())

    async def _serve(self, call: Call, trail: Trail) -> None:
        house = self._house
        order = await self._order(call, house, trail)
        try:
            await self._hold(call, order, trail)
            await self._forward(call, order, trail)
        finally:
            self._buffered -= len(order.body or b"")

    # -- before the hold -------------------------------------------------------------------------

    async def _order(self, call: Call, house: House, trail: Trail) -> Order:
        """Read the request as far as its price needs. Raises RefusedError, CallerGoneError."""
        arrived = trail.arrived = self._arrivals.of(call)
        trail.dialect = arrived.upstream.dialect
        route, document, body = await self._match(call, house, arrived)
        trail.route = route.name
        trail.bytes_in = len(body or b"")
        try:
            return self._priced(arrived, route, document, body)
        except BaseException:
            self._buffered -= len(body or b"")
            raise

    async def _match(
        self, call: Call, house: House, arrived: Arrival
    ) -> tuple[Route, Document, bytes | None]:
        """The route that covers the request, and its body if that decides anything."""
        document = Document(query=arrived.query, headers=arrived.headers)
        body = None
        if arrived.reads_body:
            body = await self._read_body(call, house)
        try:
            if body:
                document = arrival.decoded(document, body, arrived.reading, house.limits.max_body)
            for route, captures in arrived.routes:
                if not route.tests or all(test.holds(document) for test in route.tests):
                    if captures:
                        document = structs.replace(document, captures=captures)
                    return route, document, body
            unmatched = arrival.unmatched(arrived.upstream, call.method, arrived.target)
        except BaseException:
            self._buffered -= len(body or b"")
            raise
        return unmatched, document, body

    async def _read_body(self, call: Call, house: House) -> bytes:
        """The body, within the bound of one and of all. Raises RefusedError."""
        limit = house.limits.max_body
        declared = call.declared
        if declared is not None and declared > limit:
            raise arrival.too_large(limit)
        reserved = limit if declared is None else declared
        if not call.has_body:
            return b""
        if self._buffered + reserved > house.limits.max_buffered:
            raise refuse(Reason.BUSY, "Too many request bodies are in memory; try again shortly.")
        self._buffered += reserved
        body = b""
        try:
            body = await call.read(limit)
        except BodyTooLargeError:
            raise arrival.too_large(limit) from None
        except BodyTimeoutError:
            raise arrival.too_slow() from None
        except BodyBrokenError:
            raise arrival.not_framed() from None
        finally:
            self._buffered += len(body) - reserved
        return body

    def _priced(
        self, arrived: Arrival, route: Route, document: Document, body: bytes | None
    ) -> Order:
        upstream, service = arrived.upstream, arrived.service
        editable = None if arrived.compressed else body
        now_s = self._clock()
        asked = arrived.reading.narrow(route, document.names)
        priced = estimate(asked, upstream, document, editable or None, now_s)
        priced = self._learned.raised(upstream.name, route.name, priced, now_s)
        model = priced.model or (model_of(route, document) if route.model and body else "")
        facts = Facts(upstream.name, service.name, route.name, model, service.labels)
        urgent = service.priority == "high"
        legs = self._binding.legs(facts, document, priced.amounts, self._admits, urgent=urgent)
        forwarded = body if priced.body is None else priced.body
        self._buffered += len(forwarded or b"") - len(body or b"")
        return Order(arrived, upstream, service, route, priced, legs, forwarded)

    # -- the hold --------------------------------------------------------------------------------

    async def _hold(self, call: Call, order: Order, trail: Trail) -> None:
        """Set the ceiling aside. Raises RefusedError, CallerGoneError."""
        trail.order = order
        priced_s = self._stopwatch()
        trail.stages["price"] = priced_s - trail.began_s
        hold = Hold(
            id=trail.call_id,
            owner=self._owner,
            legs=order.legs,
            lifetime_s=order.upstream.timeouts.total_s + order.upstream.drain_s + HOLD_GRACE_S,
            about=about_call(order.upstream, order.service, order.route, order.estimate),
            fresh=True,
            rank=order.service.rank,
            patience_s=order.arrived.patience_s,
        )
        answer, waited_s = await self._admission.admit(
            Request(
                hold,
                order.service,
                order.arrived.patience_s,
                len(order.body or b""),
                call.gone,
                order.upstream.name,
                order.estimate.amounts.get(order.upstream.currency, 0),
            )
        )
        # By two clocks, of which one may be set meanwhile.
        trail.stages["hold"] = max(0.0, self._stopwatch() - priced_s - waited_s)
        if waited_s:
            trail.stages["wait"] = waited_s
        if isinstance(answer, Refusal):
            if call.gone:
                raise CallerGoneError
            raise RefusedError(answer)
        trail.held, trail.hold_id, trail.reported = True, answer.id, answer.reported
        if call.gone:
            self._settle(order, trail, Course(sent=False))
            raise CallerGoneError

    # -- after the hold: every way out settles ---------------------------------------------------

    async def _forward(self, call: Call, order: Order, trail: Trail) -> None:
        """Send the call, pass the answer on, settle. Raises RefusedError, CallerGoneError."""
        upstream = order.upstream
        course = _UNANSWERED
        try:
            async with asyncio.timeout(None) as leash:
                call.gone.then(partial(_let_go, leash, upstream))
                began_s = self._stopwatch()
                answer = await self._send(call, order)
                trail.stages["first_byte"] = self._stopwatch() - began_s
                course = Course(sent=True, status=answer.head.status)
                try:
                    await self._relay(call, order, answer, trail)
                finally:
                    answer.close()
        except BodyTimeoutError:
            raise arrival.too_slow() from None
        except BodyBrokenError:
            raise arrival.not_framed() from None
        except NotSentError as error:
            course = Course(sent=False)
            self._failed(trail, error.kind)
            raise refuse(
                Reason.UPSTREAM_UNREACHABLE,
                f"Upstream {upstream.name!r} could not be reached ({error}).",
            ) from error
        except NoAnswerError as error:
            self._failed(trail, error.kind)
            timed_out = error.kind == "timeout"
            raise refuse(
                Reason.UPSTREAM_TIMEOUT if timed_out else Reason.UPSTREAM_BROKEN,
                f"Upstream {upstream.name!r} gave no usable answer ({error}). "
                "The call may have been billed, so its hold is charged.",
            ) from error
        except TimeoutError:
            course = Course(sent=True, status=course.status, cut_by_us=True)
            raise CallerGoneError from None
        finally:
            call.gone.then(None)
            if trail.settlement is None:
                self._settle(order, trail, course)

    async def _send(self, call: Call, order: Order) -> UpstreamAnswer:
        upstream, arrived = order.upstream, order.arrived
        headers = arrived.forwarded(
            call.headers, metered=order.route.metered, streamed=order.estimate.streamed
        )
        outgoing = self._switchboard.to(upstream)
        declared = call.declared
        body: Body = order.body or None
        if body is not None:
            declared = len(order.body or b"")
        elif order.body is None and call.has_body:
            body = call.chunks()
        elif declared is not None:
            declared = 0
        return await outgoing.send(call.method, arrived.sent.raw, headers, body, declared)

    async def _relay(self, call: Call, order: Order, answer: UpstreamAnswer, trail: Trail) -> None:
        """Pass the answer on as it comes; settle in the turn of the loop in which its last byte
        goes out, so that whoever reads it to the end finds the money settled."""
        head = answer.head
        by_name = header_rules.by_name(head.headers)
        meter = meter_for(order.route, drops_usage=order.estimate.drops_usage, headers=by_name)
        hearing = hearing_of(order.upstream, head.status, by_name)
        relay = _Relay(self, call, order, answer, meter, trail, hearing)
        headers = credential.without_ours(order.upstream, header_rules.to_caller(head.headers))
        if meter.edits:
            headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        trail.status = head.status
        if failure := failure_of(order.upstream, head.status):
            trail.outcome, trail.failure = "upstream_error", failure
        if self.draining:
            call.close_after()
        await relay.start(head.reason, headers)
        try:
            await relay.run(arrival.answer_length(call.method, head.status, by_name))
        except AnswerCutError as error:
            self._failed(trail, error.kind)
            trail.outcome = "aborted"
            self._settle(order, trail, relay.course(whole=False))
            call.abort()
        except TimeoutError:
            self._settle(order, trail, relay.course(whole=False, cut_by_us=True))
            raise
        except BaseException:
            if trail.settlement is None:
                self._settle(order, trail, relay.course(whole=False, cut_by_us=True))
            raise

    def _settle(self, order: Order, trail: Trail, course: Course) -> None:
        """Write how the call ended. It is in the ledger's queue, in order, when this returns."""
        assert trail.settlement is None, "a call is settled once"
        route, upstream, now_s = order.route, order.upstream, self._clock()
        settlement = settle(route, upstream, order.estimate, course, now_s)
        result = result_of(settlement, course.status)
        operation: Settle | Release
        if settlement.amounts is None:
            operation = Release(trail.hold_id, settlement.rule, result)
        else:
            operation = Settle(trail.hold_id, settlement.amounts, settlement.rule, result)
        ledger = self._ledger if trail.hold_id == trail.call_id else self._fail_open
        # Who waits in line waits for just this.
        landing = ledger.land(operation, may_linger=not self._admission.waiting)
        landing.add_done_callback(self._landed)
        trail.settlement = settlement
        learned = self._learned.observe(
            upstream.name, route.name, order.estimate, settlement, now_s
        )
        for moved in learned:
            self._emit(moved)

    def _heard(self, order: Order, hearing: Hearing) -> None:
        """An answer that may say that the money is out: then no other call follows it. Whatever
        goes wrong here, the answer is passed on and settled."""
        try:
            nanos = order.estimate.amounts.get(order.upstream.currency, 0)
            stop = hearing.stop(nanos, self._clock())
            if stop is not None:
                self._stops.stop(stop)
        except Exception as error:
            if not self._heard_badly:
                self._heard_badly = True
                kind = type(error).__name__
                logger.error("what an upstream's answer says of the money was not heard: %s", kind)

    def _landed(self, done: asyncio.Future[Outcome]) -> None:
        if done.cancelled():
            return
        outcome = None if done.exception() else done.result()  # set aside, as was told
        if isinstance(outcome, AlreadyEnded | NoSuchHold):
            self._emit(InvariantBroken(f"a hold was not there to be settled: {outcome}"))
        if self._admission.waiting:
            self._admission.changed()

    def _failed(self, trail: Trail, kind: str) -> None:
        trail.outcome, trail.failure = "upstream_error", kind
        assert trail.arrived is not None, "only a call that arrived is sent"
        self._emit(UpstreamFailed(trail.arrived.upstream.name, kind))

    # -- answers of ours -------------------------------------------------------------------------

    async def _refuse(self, call: Call, refusal: Refusal, trail: Trail) -> None:
        """Answer in the dialect of the upstream's SDKs."""
        trail.refusal = refusal
        trail.outcome = _outcome_of(refusal)
        if trail.started:
            call.abort()
            return
        if refusal.reason in _CLOSING or self.draining:
            call.close_after()
        answer = render(
            trail.dialect,
            refusal,
            request_id=trail.call_id,
            now_s=self._clock(),
            method=call.method,
        )
        trail.status = answer.status
        if refusal.shortfalls or refusal.barred:
            trail.told = answer.text
        trail.bytes_out = len(answer.body)
        trail.started = True
        await call.start(answer.status, "", list(answer.headers))
        if answer.body and call.method != "HEAD":
            call.write(answer.body)
            await call.drained()
        await call.end()

    async def _broken(self, call: Call, error: Exception, trail: Trail) -> None:
        """A mistake of ours: say so to the operator, and close without a half answer."""
        logger.error("call %s failed in the proxy", trail.call_id, exc_info=error)
        self._emit(InvariantBroken(f"{type(error).__name__} while serving a call"))
        trail.outcome, trail.failure = "aborted", "internal"
        call.abort()

    def _finish(self, call: Call, trail: Trail, now_s: float) -> None:
        total_s = now_s - trail.began_s
        trail.stages["total"] = total_s
        if trail.held:
            self._admission.took(total_s - trail.stages.get("wait", 0.0))
        self._stops.ended(trail.call_id, served=trail.outcome == "served" and trail.status < 400)
        if call.gone and trail.outcome == "served":
            trail.outcome = "hung_up"
        self._emit(ended(trail, self._clock()))


class _Relay:
    """Passes one answer on: to the caller while it is there, to the meter to the end."""

    def __init__(
        self,
        proxy: Proxy,
        call: Call,
        order: Order,
        answer: UpstreamAnswer,
        meter: Meter,
        trail: Trail,
        hearing: Hearing | None,
    ) -> None:
        self._hearing = hearing
        self._proxy = proxy
        self._call = call
        self._order = order
        self._answer = answer
        self._meter = meter
        self._trail = trail
        self._caller_there = True

    def course(self, *, whole: bool, cut_by_us: bool = False) -> Course:
        """How the call went so far."""
        figures: Figures = self._meter.figures
        return Course(True, self._answer.head.status, whole, cut_by_us, figures)

    async def start(self, reason: str, headers: header_rules.HeaderList) -> None:
        """Begin the answer to the caller."""
        self._trail.started = True
        await self._pass(self._call.start(self._answer.head.status, reason, headers))

    async def run(self, length: int | None) -> None:
        """Pass every piece on. Raises AnswerCutError."""
        left = length
        while left != 0:
            chunk = await self._answer.chunk()
            if not chunk:
                break
            if left is not None:
                left = max(0, left - len(chunk))
            passed = self._meter.feed(chunk)
            if self._hearing is not None:
                self._hearing.feed(chunk)
            await self._out(passed, last=left == 0)
        if self._trail.settlement is None:
            await self._out(b"", last=True)
        await self._pass(self._call.end())
        if not self._caller_there:
            raise CallerGoneError

    async def _out(self, piece: bytes, *, last: bool) -> None:
        """Pass a piece on. After the last one the figures are read, and settled before anything
        else can happen."""
        if last:
            piece += self._meter.close()
        if piece:
            self._trail.bytes_out += len(piece)
            self._write(piece)
        if last:
            self._settle()
        if piece:
            await self._pass(self._call.drained())

    def _settle(self) -> None:
        if self._hearing is not None:
            self._proxy._heard(self._order, self._hearing)  # noqa: SLF001
        self._proxy._settle(self._order, self._trail, self.course(whole=True))  # noqa: SLF001

    def _write(self, piece: bytes) -> None:
        """Write to the caller; once it has left, the answer is only read to the end."""
        if self._caller_there:
            try:
                self._call.write(piece)
            except CallerGoneError:
                self._left()

    async def _pass(self, step: Coroutine[Any, Any, None]) -> None:
        """Do a step towards the caller, as `_write`."""
        if not self._caller_there:
            step.close()
            return
        try:
            await step
        except CallerGoneError:
            self._left()

    def _left(self) -> None:
        self._caller_there = False
        self._call.gone.happen()


_CLOSING = frozenset(
    {
        Reason.BODY_TOO_LARGE,
        Reason.BODY_TIMEOUT,
        Reason.METHOD,
        Reason.VERSION,
        Reason.NOT_IMPLEMENTED,
        Reason.EXPECTATION,
    }
)
_UPSTREAM_REASONS = frozenset(
    {Reason.UPSTREAM_BROKEN, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_UNREACHABLE}
)
_MONEY = MONEY_REASONS | {Reason.UNPRICED, Reason.NO_BOUND, Reason.LEDGER_DOWN}


def _outcome_of(refusal: Refusal) -> CallOutcome:
    if refusal.reason in _UPSTREAM_REASONS:
        return "upstream_error"
    return "refused" if refusal.reason in _MONEY else "rejected"
