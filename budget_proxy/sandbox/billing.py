"""The providers' billing side: balance endpoints, and a top-up endpoint with idempotency keys.

Free. A top-up is credited when it is accepted, before anything is waited for: a caller that leaves
has paid. Forbidden here: the shapes of balances (`balances.py`), and which top-up is a repetition
(`topups.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import web

from budget_proxy.sandbox.answering import cut, half_json, json_answer, pause
from budget_proxy.sandbox.balances import BALANCES, Standing
from budget_proxy.sandbox.bank import CURRENCY, NANOS, format_amount
from budget_proxy.sandbox.call import Dialect, Object, Refusal, read_object
from budget_proxy.sandbox.serving import ARRIVAL, SANDBOX, check_key, settings_for
from budget_proxy.sandbox.topups import MAX_KEY_LENGTH, Attempt, Outcome, digest, read_amount

if TYPE_CHECKING:
    from budget_proxy.sandbox.balances import BalanceEndpoint
    from budget_proxy.sandbox.serving import Handler
    from budget_proxy.sandbox.settings import Settings
    from budget_proxy.sandbox.state import Sandbox

TOPUPS_PATH = "/billing/topups"

_JUMP = 1_000
_OTHER_CURRENCY = "EUR"
_PAGE = "<!doctype html><title>Maintenance</title><h1>We will be back soon</h1>\n"


def add_billing_routes(app: web.Application, dialect: Dialect) -> None:
    """Put the endpoints into the application; `dialect` words their errors."""
    for endpoint in BALANCES:
        app.router.add_get(endpoint.path, _balance(endpoint, dialect))
    app.router.add_post(TOPUPS_PATH, _top_up(dialect))


def _balance(endpoint: BalanceEndpoint, dialect: Dialect) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        sandbox = request.app[SANDBOX]
        settings = settings_for(request, sandbox)
        check_key(request, settings.balance_key or settings.require_key, dialect)
        # The figure is that of the moment of the question, however late the answer is.
        nanos = _late(sandbox, settings)
        used_nanos = sandbox.bank.charged_nanos + sandbox.bank.purse.drained_nanos
        await pause(settings.balance_latency_s)
        if settings.balance_fail is not None:
            raise dialect.failure(settings.balance_fail)
        if settings.balance_garbage in ("html", "json", "shape"):
            return _garbage(settings.balance_garbage)
        if nanos is None:
            if endpoint.unlimited is None:
                raise Refusal(404, "This sandbox has no prepaid balance: start it with --balance.")
            return json_answer(endpoint.unlimited)
        shown = Standing(nanos, used_nanos, CURRENCY, request.match_info, is_open=nanos > 0)
        shown = _garbled(shown, settings.balance_garbage)
        return json_answer(endpoint.show(shown), zipped=settings.answer_gzip)

    return handle


def _late(sandbox: Sandbox, settings: Settings) -> int | None:
    purse = sandbox.present_bank().purse
    lag_s = settings.balance_lag_s
    return purse.as_of(sandbox.clock() - lag_s) if lag_s else purse.nanos


def _garbled(it: Standing, how: str | None) -> Standing:
    """A figure that is wrong, and nothing else."""
    if how == "currency":
        return replace(it, currency=_OTHER_CURRENCY)
    if how == "negative":
        return replace(it, nanos=-abs(it.nanos) or -NANOS)
    return replace(it, nanos=it.nanos * _JUMP) if how == "jump" else it


def _garbage(kind: str) -> web.Response:
    if kind == "html":
        return web.Response(text=_PAGE, content_type="text/html")
    return half_json() if kind == "json" else json_answer({"ok": True, "data": []})


def _top_up(dialect: Dialect) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        sandbox = request.app[SANDBOX]
        settings = settings_for(request, sandbox)
        check_key(request, settings.balance_key or settings.require_key, dialect)
        desk = _Desk(request, sandbox, settings, dialect)
        try:
            asked = read_object(request[ARRIVAL].body, "The body must be a JSON object.")
            nanos = read_amount(asked)
            if desk.key is not None and len(desk.key) > MAX_KEY_LENGTH:
                raise Refusal(400, f"An Idempotency-Key has at most {MAX_KEY_LENGTH} characters.")
        except Refusal:
            desk.record(None, "invalid")
            raise
        return await desk.serve(asked, nanos)

    return handle


class _Desk:
    """One request for a top-up, from its key to its answer."""

    def __init__(
        self, request: web.Request, sandbox: Sandbox, settings: Settings, dialect: Dialect
    ) -> None:
        self.key = request.headers.get("Idempotency-Key") or None
        self._request = request
        self._sandbox = sandbox
        self._topups = sandbox.topups
        self._settings = settings
        self._dialect = dialect

    async def serve(self, asked: Object, nanos: int) -> web.StreamResponse:
        before = self._topups.known(self.key)
        if before is not None:
            if before.digest != digest(asked):
                self.record(nanos, "key_reused")
                raise Refusal(422, "This Idempotency-Key was used for another top-up.")
            if not before.answered:
                self.record(nanos, "in_progress")
                raise Refusal(409, "The top-up with this Idempotency-Key is still in progress.")
            self.record(nanos, "replayed")
            return json_answer(before.answer, {"idempotent-replayed": "true"})
        if self._settings.topup_fail is not None:
            self.record(nanos, "failed")
            await pause(self._settings.topup_latency_s)
            return self._failed(nanos)
        return await self._credited(asked, nanos)

    def record(self, nanos: int | None, outcome: Outcome) -> None:
        arrival = self._request[ARRIVAL]
        self._topups.record(Attempt(arrival.number, arrival.at_s, self.key, nanos, outcome))

    async def _credited(self, asked: Object, nanos: int) -> web.StreamResponse:
        now_s = self._sandbox.clock()
        delay_s = self._settings.topup_delay_s
        self._sandbox.bank.top_up(nanos, now_s, visible_at_s=now_s + delay_s)
        self.record(nanos, "credited")
        answer = self._answer(nanos, "pending" if delay_s else "succeeded")
        booked = self._topups.book(self.key, asked, answer)
        try:
            await pause(self._settings.topup_latency_s)
        finally:
            booked.answered = True  # also where the caller has left
        after = self._settings.topup_fail_after
        if after == "cut":
            return await cut(self._request)
        if after is not None:
            raise self._dialect.failure(int(after))
        return json_answer(answer)

    def _failed(self, nanos: int) -> web.Response:
        if self._settings.topup_fail == "declined":
            error = {"code": "card_declined", "message": "The card was declined."}
            return json_answer({**self._answer(nanos, "failed"), "error": error})
        assert isinstance(self._settings.topup_fail, int)
        raise self._dialect.failure(self._settings.topup_fail)

    def _answer(self, nanos: int, status: str) -> Object:
        arrival = self._request[ARRIVAL]
        return {
            "id": f"topup_{arrival.number:016x}",
            "object": "topup",
            "amount": format_amount(nanos),
            "currency": CURRENCY,
            "status": status,
            "created": int(arrival.at_s),
        }
