"""The `alerts:` section, and the keys by which budgets and balances say what is to be told.

The URL of a webhook is a secret, and so are its headers: no message quotes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from budget_proxy.core.alert import WHOLE, Threshold
from budget_proxy.core.money import show
from budget_proxy.core.webhook import EXAMPLE, Format, Template, Webhook, body_of, read_template
from budget_proxy.policy.authorities import ca_file
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.mistakes import quoted
from budget_proxy.policy.network import proxy_url, webhook_url
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.values import (
    BY_SHAPE,
    LIST,
    TEXT,
    Amount,
    Secret,
    Text,
    read_amount,
    read_filled,
)

MAX_THRESHOLDS = 10
MAX_WEBHOOKS = 8
MAX_TEMPLATE = 4000
"""Characters."""
_PERCENT = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,2}))?\s*%\Z")
_MOST = 10 * WHOLE
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_VALUE = re.compile(r"[ -~]+\Z")
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})


class Portion(NamedTuple):
    """A part of a limit, in hundredths of a per cent."""

    hundredths: int


def read_threshold(value: object) -> Portion | Amount:
    """`80%`, `12.5%`, `20 USD`."""
    text = read_filled(value).strip()
    match = _PERCENT.match(text)
    if match is None:
        if "%" in text:
            raise ValueError(f"{quoted(text)} is not a share; write one as in 80%")
        return read_amount(text)
    share = Portion(int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0")))
    if not 0 < share.hundredths <= _MOST:
        raise ValueError(f"{quoted(text)} must be more than 0% and at most {_MOST // 100}%")
    return share


def _bounded(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("is an empty list")
    if len(values) > MAX_THRESHOLDS:
        raise ValueError(f"has more than {MAX_THRESHOLDS} thresholds")
    return values


AlertAt = Annotated[
    Portion | Amount,
    PlainValidator(read_threshold),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"\$\{|^[0-9][0-9_]*(\.[0-9]+)? ?(%|[A-Za-z][A-Za-z_]*)$",
            "examples": ["80%", "20 USD"],
        }
    ),
]
AlertForm = Annotated[
    Annotated[AlertAt, TEXT] | Annotated[list[AlertAt], AfterValidator(_bounded), LIST],
    BY_SHAPE,
]
"""One threshold, or a list of them."""


AlertGiven = Portion | Amount | list[Portion | Amount]
"""What that is once it is read."""
Shares = Literal["none", "up to it", "beyond"]


class WebhookEntry(Entry):
    """Where alerts are sent."""

    url: Secret = Field(description="Its URL, a secret: ${NAME} or ${file:...}.")
    format: Format | None = Field(
        None,
        description="slack (default): {text: ...}, which many others read too; or json: every "
        "field of the alert.",
    )
    template: Text | None = Field(
        None,
        description="Words of your own, with fields as in `{what} ({severity})`. With json: the "
        "whole JSON document, its braces written twice.",
    )
    headers: dict[str, Secret] | None = Field(None, description="Further headers, by name.")
    ca: Text | None = Field(None, description="File of the certificate authorities to trust.")
    proxy: Secret | None = Field(None, description="http://host:port of a forward proxy.")


class AlertsEntry(Entry):
    """What becomes of alerts."""

    webhooks: dict[str, WebhookEntry] = Field(description="Each gets every alert, by name.")


def given_thresholds(
    spot: Spot,
    form: AlertGiven | None,
    unit: str,
    *,
    limit: int | None,
    shares: Shares = "up to it",
) -> tuple[Threshold, ...]:
    """The thresholds as they are written, for amounts of a unit; mistakes are said at the spot.

    `limit`: in steps, where it stands in the policy; `shares`: whether there can be any of it, and
    whether more than all of it can be spent.
    """
    thresholds: list[Threshold] = []
    for place, one in _each(spot, form):
        if isinstance(one, Portion):
            threshold = Threshold("spent", one.hundredths)
            if shares == "none":
                place.wrong("a balance has no limit to be a share of; write one as in 25 USD")
            elif one.hundredths > WHOLE and shares != "beyond":
                place.wrong("is never reached: calls that do not fit are not let through")
        else:
            threshold = Threshold("left", one.steps)
            if one.unit != unit:
                share = "" if shares == "none" else "a share, as in 80%, or "
                place.wrong(f"must be {share}in {unit}, not {one.unit}")
            elif limit is not None and one.steps >= limit:
                place.wrong(f"less than that is always left: the limit is {show(limit, unit)}")
        if threshold in thresholds:
            place.wrong("stands here twice")
        thresholds.append(threshold)
    return tuple(thresholds)


def _each(spot: Spot, form: AlertGiven | None) -> Iterator[tuple[Spot, Portion | Amount]]:
    # Portion and Amount are tuples, but no lists.
    if isinstance(form, list):
        yield from ((spot.at(index), one) for index, one in enumerate(form))
    elif form is not None:
        yield spot, form


def build_webhooks(spot: Spot, entry: AlertsEntry | None) -> dict[str, Webhook]:
    """Every webhook; what is wrong with them is said at their places."""
    if entry is None:
        return {}
    if not entry.webhooks:
        spot.wrong("is empty; no alert would be sent")
    if len(entry.webhooks) > MAX_WEBHOOKS:
        spot.wrong(f"has more than {MAX_WEBHOOKS}")
    return {name: _build_webhook(spot.at(name), name, one) for name, one in entry.webhooks.items()}


def _build_webhook(spot: Spot, name: str, entry: WebhookEntry) -> Webhook:
    if not _NAME.match(name):
        spot.wrong(f"{quoted(name)} is not a name: lower-case letters, digits, - and _, at most 64")
    url = spot.at("url")
    if url.is_literal:
        url.note("the URL of a webhook stands in this file as it is; ${NAME} keeps it out")
    webhook = Webhook(
        name=name,
        url=webhook_url(url, entry.url),
        format=entry.format or "slack",
        template=_template(spot.at("template"), entry.template),
        headers=_headers(spot.at("headers"), entry.headers or {}),
        ca=ca_file(spot.at("ca"), entry.ca),
        proxy=None if entry.proxy is None else proxy_url(spot.at("proxy"), entry.proxy),
    )
    if webhook.format == "json" and webhook.template is not None:
        _check_json(spot.at("template"), webhook)
    return webhook


def _template(spot: Spot, text: str | None) -> Template | None:
    if text is None:
        return None
    if len(text) > MAX_TEMPLATE:
        spot.wrong(f"has more than {MAX_TEMPLATE} characters")
        return None
    try:
        return read_template(text)
    except ValueError as error:
        spot.wrong(str(error))
        return None


def _check_json(spot: Spot, webhook: Webhook) -> None:
    try:
        json.loads(body_of(webhook, EXAMPLE))
    except ValueError:
        spot.wrong(
            "makes no JSON; with `format: json` it is a whole document, with fields inside "
            """quotes, as in '{{"text": "{what}"}}'"""
        )


def _headers(spot: Spot, headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER.match(name) or name.lower() in _OURS:
            spot.wrong_key(name, f"{quoted(name)} is no name of a header that can be set here")
        if not _VALUE.match(value) or value != value.strip():
            spot.at(name).wrong("has characters that no header can carry")
    return headers
