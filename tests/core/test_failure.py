"""Which answers are failures of the upstream, and that no kind is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import budget_proxy
from budget_proxy.core.failure import KINDS, UNSENT, UNUSABLE, failure_of
from budget_proxy.core.house import Upstream
from budget_proxy.core.tariff import Tariff


def upstream(credential: str | None) -> Upstream:
    return Upstream("x", "https://x", Tariff("x", ()), "/x", credential=credential)


@pytest.mark.parametrize(
    ("status", "ours", "theirs"),
    [
        (200, "", ""),
        (302, "", ""),
        (400, "", ""),
        (401, "status_401", ""),
        (402, "status_402", ""),
        (403, "status_403", ""),
        (404, "", ""),
        (408, "", ""),
        (422, "", ""),
        (429, "status_429", "status_429"),
        (500, "status_5xx", "status_5xx"),
        (529, "status_5xx", "status_5xx"),
        (599, "status_5xx", "status_5xx"),
        (600, "", ""),
    ],
)
def test_which_answers_are_failures(status: int, ours: str, theirs: str) -> None:
    """`theirs`: where the caller's own credential goes through."""
    assert failure_of(upstream("sk-ours"), status) == ours
    assert failure_of(upstream(""), status) == ours, "an API without a credential"
    assert failure_of(upstream(None), status) == theirs


def test_every_kind_that_is_raised_is_listed() -> None:
    source = Path(budget_proxy.__file__).with_name("upstream.py").read_text()
    unsent = set(re.findall(r'NotSentError\(\s*"(\w+)"', source))
    unsent |= set(re.findall(r'return "(\w+)"\n', source.partition("def _kind")[2][:400]))
    unusable = set(re.findall(r'(?:NoAnswerError|AnswerCutError)\(\s*"(\w+)"', source))
    assert (unsent, unusable) == (set(UNSENT), set(UNUSABLE))
    assert len(set(KINDS)) == len(KINDS)
