"""A webhook, and the body that an alert has there. Pure: nothing is sent here.

The URL of a webhook is a secret: whoever has it can write into the channel. It stands in no
message, and a webhook is spoken of by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from budget_proxy.core.alert import Alert, duration

Format = Literal["slack", "json"]
FIELDS = (
    *("id", "key", "state", "severity", "subject", "name", "payer", "kind", "what", "threshold"),
    *("also", "unit", "limit", "spent", "left", "runway", "reason", "window_end", "at"),
)
"""What a template can name."""
_BRACES = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]*)\}|[{}]")
_NAME = re.compile(r"[a-z_]{1,40}")

Template = tuple[tuple[str, str], ...]
"""Pairs of text and the field after it; the last field is empty."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts go, and in which form."""

    name: str
    url: str = field(repr=False)
    format: Format = "slack"
    template: Template | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca: str | None = None
    proxy: str | None = field(default=None, repr=False)


def read_template(text: str) -> Template:
    """`{what} ({severity})` in parts; `{{` and `}}` are plain braces. Names of FIELDS only: no
    attribute, index, conversion or format. Raises ValueError, which says what is wrong."""
    parts: list[tuple[str, str]] = []
    plain, end = "", 0
    for found in _BRACES.finditer(text):
        plain += text[end : found.start()]
        end = found.end()
        name = found["field"]
        if name is not None and name in FIELDS:
            parts.append((plain, name))
            plain = ""
        elif found[0] in ("{{", "}}"):
            plain += found[0][0]
        elif name is not None and _NAME.fullmatch(name):
            raise ValueError(f"there is no {{{name}}}; there are {', '.join(sorted(FIELDS))}")
        elif name is not None:
            raise ValueError("a field is a name alone, as in {what}, without any form or part")
        else:
            raise ValueError(f"a {found[0]} stands alone; a plain one is written twice")
    return (*parts, (plain + text[end:], ""))


def fill(template: Template, fields: Mapping[str, str], written: Callable[[str], str]) -> str:
    """The text of a template; `written` says how a value is written in it."""
    return "".join(text + (written(fields[name]) if name else "") for text, name in template)


def fields_of(alert: Alert) -> dict[str, str]:
    """Every field of FIELDS as text; empty where there is none."""
    runway_s = alert.runway_s
    return {
        "id": alert.id,
        "key": alert.key,
        "state": "recovered" if alert.recovered else "raised",
        "severity": alert.severity,
        "subject": alert.subject,
        "name": alert.name,
        "payer": alert.payer,
        "kind": alert.kind,
        "what": alert.what,
        "threshold": alert.threshold,
        "also": ", ".join(alert.also),
        "unit": alert.unit,
        "limit": alert.limit,
        "spent": alert.spent,
        "left": alert.left,
        "runway": "" if runway_s is None else duration(runway_s),
        "reason": alert.reason,
        "window_end": "" if alert.window_end_s is None else _rfc3339(alert.window_end_s),
        "at": _rfc3339(alert.at_s),
    }


def body_of(webhook: Webhook, alert: Alert) -> bytes:
    """What is sent: JSON, always."""
    fields = fields_of(alert)
    if webhook.format == "slack":
        return json.dumps({"text": _slack_text(webhook.template, fields)}).encode()
    if webhook.template is not None:
        return fill(webhook.template, fields, _in_json).encode()
    return json.dumps(_document(alert, fields)).encode()


def _slack_text(template: Template | None, fields: Mapping[str, str]) -> str:
    if template is not None:
        return fill(template, fields, _in_slack)
    head = "recovered" if fields["state"] == "recovered" else fields["severity"]
    return f"[{head}] {_in_slack(fields['what'])}"


def _in_slack(value: str) -> str:
    """As Slack wants it: a payer that callers name cannot call the whole channel."""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _in_json(value: str) -> str:
    """Inside the quotes of a JSON string."""
    return json.dumps(value)[1:-1]


def _document(alert: Alert, fields: Mapping[str, str]) -> dict[str, Any]:
    return {
        **fields,
        "also": list(alert.also),
        "window_end": fields["window_end"] or None,
        "runway_s": alert.runway_s,
        "recovered": alert.recovered,
    }


def _rfc3339(instant_s: float) -> str:
    return f"{datetime.fromtimestamp(instant_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


EXAMPLE = Alert(
    id='budget/day/spent 80%/"a" \\ payer@0',
    key='budget/day/spent 80%/"a" \\ payer',
    subject="budget",
    name="day",
    kind="spent",
    severity="warning",
    what='Budget day, "a" \\ payer: 80% of 200 USD spent',
    at_s=0,
)
"""An alert with what is awkward to write, to try a template on."""
