"""The bodies that alerts have at webhooks, and templates for them."""

from __future__ import annotations

import json
import re

import pytest
from msgspec.structs import replace

from budget_proxy.core.alert import Alert
from budget_proxy.core.webhook import (
    EXAMPLE,
    FIELDS,
    Format,
    Webhook,
    body_of,
    fields_of,
    read_template,
)

ALERT = Alert(
    id="budget/team/spent 80%/payments@1000",
    key="budget/team/spent 80%/payments",
    subject="budget",
    name="team",
    payer="payments",
    kind="spent",
    severity="critical",
    what="Budget team, payments: 80% of 200 USD spent; 40 USD left",
    threshold="80%",
    also=("50%",),
    unit="USD",
    limit="200",
    spent="160",
    left="40",
    runway_s=11000,
    window_end_s=86400,
    at_s=1000.9,
)


def sent(alert: Alert = ALERT, form: Format = "slack", template: str | None = None) -> object:
    parts = None if template is None else read_template(template)
    return json.loads(body_of(Webhook("ops", "https://x.invalid", form, parts), alert))


def test_slack_gets_one_line() -> None:
    assert sent() == {"text": f"[critical] {ALERT.what}"}
    assert sent(replace(ALERT, recovered=True)) == {"text": f"[recovered] {ALERT.what}"}


def test_a_payers_name_calls_nobody_in_slack() -> None:
    alert = replace(ALERT, what="Budget user, <!channel> & co", payer="<!channel>")
    assert sent(alert) == {"text": "[critical] Budget user, &lt;!channel&gt; &amp; co"}
    assert sent(alert, "slack", "<!here> {payer}") == {"text": "<!here> &lt;!channel&gt;"}


def test_json_has_every_field() -> None:
    assert sent(form="json") == {
        "id": "budget/team/spent 80%/payments@1000",
        "key": "budget/team/spent 80%/payments",
        "state": "raised",
        "recovered": False,
        "severity": "critical",
        "subject": "budget",
        "name": "team",
        "payer": "payments",
        "kind": "spent",
        "what": "Budget team, payments: 80% of 200 USD spent; 40 USD left",
        "threshold": "80%",
        "also": ["50%"],
        "unit": "USD",
        "limit": "200",
        "spent": "160",
        "left": "40",
        "runway": "3 h 3 min",
        "runway_s": 11000,
        "reason": "",
        "window_end": "1970-01-02T00:00:00Z",
        "at": "1970-01-01T00:16:40Z",
    }


def test_fields_that_are_not_there_are_empty() -> None:
    document = sent(EXAMPLE, "json")
    assert isinstance(document, dict)
    assert document["runway_s"] is document["window_end"] is None
    assert document["also"] == []


def test_a_template_of_json_is_a_document_whatever_the_values_are() -> None:
    template = '{{"summary": "{what}", "dedup_key": "{key}", "details": {{"left": "{left}"}}}}'
    assert sent(EXAMPLE, "json", template) == {
        "summary": EXAMPLE.what,
        "dedup_key": EXAMPLE.key,
        "details": {"left": ""},
    }


def test_every_field_can_stand_in_a_template() -> None:
    assert fields_of(ALERT).keys() == set(FIELDS)
    text = " ".join(f"{{{name}}}" for name in FIELDS)
    assert sent(template=text) == {"text": " ".join(fields_of(ALERT)[name] for name in FIELDS)}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{name}{payer}", "teampayments"),
        ("{{name}} {name}", "{name} team"),
        ("{{{name}}}", "{team}"),
    ],
)
def test_templates_are_filled(template: str, text: str) -> None:
    assert sent(template=template) == {"text": text}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{nme}", "there is no {nme}; there are also, at,"),
        ("{what.__class__}", "a field is a name alone"),
        ("{what[0]}", "a field is a name alone"),
        ("{what!r}", "a field is a name alone"),
        ("{what:>9999999999}", "a field is a name alone"),
        ("{}", "a field is a name alone"),
        ("{0}", "a field is a name alone"),
        ("{what", "a { stands alone"),
        ("what}", "a } stands alone"),
        ("{what {name}", "a { stands alone"),
    ],
)
def test_a_template_names_fields_and_nothing_else(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_template(template)


def test_a_webhook_shows_no_secret() -> None:
    webhook = Webhook(
        "ops",
        "https://hooks.example.com/hunter22",
        headers={"authorization": "hunter22"},
        proxy="http://u:hunter22@p:1",
    )
    assert "hunter22" not in repr(webhook)
