"""`topup:` of a balance: when money is bought, how, and within which bounds.

URL, headers, body, arguments and variables of a hook can hold secrets: no message quotes them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field

from budget_proxy.core.hook import (
    FIELDS,
    CommandHook,
    Hook,
    HttpHook,
    Ok,
    fill,
    in_form,
    is_form,
    request_of,
    unknown_fields,
)
from budget_proxy.core.jsonpath import PathError, path_of
from budget_proxy.core.topup import MAX_PER_DAY, Plan
from budget_proxy.policy.authorities import ca_file
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.mistakes import listed, quoted, suggest
from budget_proxy.policy.network import proxy_url, webhook_url
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.sources import header_name, one_of
from budget_proxy.policy.values import (
    Amount,
    Money,
    Positive,
    Reserve,
    Seconds,
    SecondsOrNone,
    Secret,
    SecretList,
    Share,
    Text,
    Texts,
    Zone,
    texts,
)

BODY = json.dumps({name: f"{{{name}}}" for name in FIELDS})
"""What is sent where the policy says nothing else."""
_FORMS = {"url": "url", "command": "command"}
_OF_URL = ("method", "headers", "body", "ca", "proxy")
_EXAMPLE = dict(zip(FIELDS, ("50", "USD", "acme", "0193", "below 20 USD"), strict=True))
_VALUE = re.compile(r"[ -~]+\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
_MAX_TIMEOUT_S = 600.0


class OkEntry(Entry):
    """What an answer must say to count as a yes."""

    path: Text = Field(description="Where it says so: status, or data.state.")
    among: Texts = Field(alias="is", description="The text there, or a list of them.")


class TopUpEntry(Entry):
    """Money that is bought when it is short: by a call (`url`), or by a `command`."""

    amount: Money = Field(description="How much is bought at a time, as in 50 USD.")
    below: Money | None = Field(None, description="When less than this is usable.")
    gone_before: Seconds | None = Field(None, description="When it will be used up sooner.")
    mode: Literal["auto", "ask"] | None = Field(
        None, description="auto (default); or ask: a person says yes to each."
    )
    url: Secret | None = Field(None, description="What is called.")
    method: Literal["POST", "PUT", "GET"] | None = Field(
        None, description="How it is called. Default: POST."
    )
    headers: dict[str, Secret] | None = Field(
        None, description="By name. `Idempotency-Key: {id}` goes along by itself."
    )
    body: Secret | None = Field(
        None, description="JSON, or a form. Default: JSON with all the fields."
    )
    ca: Text | None = Field(None, description="File of the certificate authorities to trust.")
    proxy: Secret | None = Field(None, description="http://host:port of a forward proxy.")
    command: SecretList | None = Field(
        None, description="A program and its arguments; no shell reads them."
    )
    env: dict[str, Secret] | None = Field(None, description="Variables of the command.")
    ok: OkEntry | None = Field(None, description="What the answer must say besides.")
    most_per_month: Money = Field(description="What may be bought in a month, at most.")
    most_per_day: Positive | None = Field(
        None, description="How many attempts a day may have. Default 1."
    )
    cool_down: SecondsOrNone | None = Field(
        None, description="From one attempt to the next. Default 3600s."
    )
    timeout: Seconds | None = Field(None, description="Of the call or command. Default 30s.")
    confirm: Seconds | None = Field(
        None, description="How long until a reading must show it. Default 900s."
    )
    confirm_share: Reserve | None = Field(
        None,
        description="How much of the amount the balance must rise by, as a share: 50% (default).",
    )
    timezone: Zone | None = Field(
        None, description="Whose calendar cuts days and months. Default UTC."
    )


def build_topup(spot: Spot, entry: TopUpEntry, upstream: str, unit: str) -> Plan:
    """The plan of one upstream whose balance is in this unit. Mistakes are said at the spot."""
    given: dict[str, Any] = {
        "mode": entry.mode,
        "most_per_day": _per_day(spot, entry),
        "cool_down_s": entry.cool_down,
        "timeout_s": _timeout(spot, entry),
        "confirm_s": entry.confirm,
        "confirm_percent": _share(spot, entry),
        "zone": entry.timezone,
    }
    return Plan(
        upstream=upstream,
        unit=unit,
        amount=_steps(spot.at("amount"), entry.amount, unit),
        hook=_hook(spot, entry),
        most_per_month=_most(spot, entry, unit),
        below=None if entry.below is None else _steps(spot.at("below"), entry.below, unit),
        gone_before_s=_trigger(spot, entry),
        **{name: value for name, value in given.items() if value is not None},
    )


def _steps(spot: Spot, amount: Amount, unit: str) -> int:
    if amount.unit != unit:
        spot.wrong(f"is in {amount.unit}, but this balance is in {unit}")
    return amount.steps


def _most(spot: Spot, entry: TopUpEntry, unit: str) -> int:
    steps = _steps(spot.at("most_per_month"), entry.most_per_month, unit)
    if steps < entry.amount.steps and entry.most_per_month.unit == entry.amount.unit:
        spot.at("most_per_month").wrong(f"is less than one `amount`, {entry.amount}")
    return steps


def _trigger(spot: Spot, entry: TopUpEntry) -> float | None:
    if entry.below is None and entry.gone_before is None:
        spot.wrong("must have `below` or `gone_before`; when is money bought?")
    return entry.gone_before


def _per_day(spot: Spot, entry: TopUpEntry) -> int | None:
    if entry.most_per_day is not None and entry.most_per_day > MAX_PER_DAY:
        spot.at("most_per_day").wrong(f"is more than {MAX_PER_DAY}; buy more at a time")
    return entry.most_per_day


def _timeout(spot: Spot, entry: TopUpEntry) -> float | None:
    if entry.timeout is not None and entry.timeout > _MAX_TIMEOUT_S:
        spot.at("timeout").wrong(f"is longer than {_MAX_TIMEOUT_S:g}s")
    return entry.timeout


def _share(spot: Spot, entry: TopUpEntry) -> int | None:
    if isinstance(entry.confirm_share, Amount):
        spot.at("confirm_share").wrong("must be a share, as in 50%")
        return None
    return entry.confirm_share.percent if isinstance(entry.confirm_share, Share) else None


# -- the hook --------------------------------------------------------------------------------------


def _hook(spot: Spot, entry: TopUpEntry) -> Hook:
    form = one_of(spot, entry, _FORMS)
    if form == "command":
        return _command(spot, entry)
    if form == "url" and entry.env is not None:
        spot.wrong_key("env", "`env` belongs to a command")
    return _http(spot, entry)


def _command(spot: Spot, entry: TopUpEntry) -> CommandHook:
    for key in _OF_URL:
        if getattr(entry, key) is not None:
            spot.wrong_key(key, f"`{key}` belongs to a `url`")
    words = entry.command or []
    for place, word in enumerate(words):
        _check_fields(spot.at("command", place), word)
    for name in entry.env or {}:
        if not _VARIABLE.match(name):
            spot.at("env", name).wrong(f"{quoted(name)} is not the name of a variable")
    return CommandHook(tuple(words), tuple((entry.env or {}).items()), _ok(spot.at("ok"), entry.ok))


def _http(spot: Spot, entry: TopUpEntry) -> HttpHook:
    url, headers = entry.url or "", entry.headers or {}
    if entry.url is not None and _check_fields(spot.at("url"), url):
        webhook_url(spot.at("url"), fill(url, _EXAMPLE, in_form))
    method = entry.method or "POST"
    hook = HttpHook(
        url,
        method,
        tuple(headers.items()),
        "" if method == "GET" else entry.body or BODY,
        _ok(spot.at("ok"), entry.ok),
        ca_file(spot.at("ca"), entry.ca),
        None if entry.proxy is None else proxy_url(spot.at("proxy"), entry.proxy),
    )
    _check_headers(spot.at("headers"), headers)
    if method == "GET" and entry.body is not None:
        spot.wrong_key("body", "a GET has no body")
    elif entry.body is not None and _check_fields(spot.at("body"), entry.body):
        _check_body(spot.at("body"), hook)
    return hook


def _check_headers(spot: Spot, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        where = spot.at(name)
        if header_name(where, name) in _OURS:
            where.wrong(f"{quoted(name)} is not for a policy to set")
        if not _VALUE.match(value):
            where.wrong("has characters that no header can carry (a newline?)")
        _check_fields(where, value)


def _check_body(spot: Spot, hook: HttpHook) -> None:
    """What is sent as JSON must be JSON, once it is filled in."""
    if is_form(hook.headers):
        return
    if any(
        name.lower() == "content-type" and "json" not in value.lower()
        for name, value in hook.headers
    ):
        spot.wrong("a body is JSON, or a form (Content-Type: application/x-www-form-urlencoded)")
        return
    try:
        json.loads(request_of(hook, _EXAMPLE).body or b"")
    except ValueError:
        spot.wrong('is no JSON once it is filled in; texts are quoted, as in "{id}"')


def _check_fields(spot: Spot, template: str) -> bool:
    """Whether a template has only fields that there are; said where not."""
    wrong = unknown_fields(template)
    for name in wrong:
        hint = suggest(name, FIELDS) or f"; there are {listed(FIELDS)}"
        spot.wrong(f"there is no field {quoted(name)}{hint}")
    return not wrong


def _ok(spot: Spot, entry: OkEntry | None) -> Ok | None:
    if entry is None:
        return None
    among: tuple[Any, ...] = texts(entry.among)
    try:
        return Ok(path_of(entry.path), among)
    except PathError as error:
        spot.at("path").wrong(f"{quoted(entry.path)} {error}")
        return None
