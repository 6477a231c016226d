"""No content of a file gives anything but a house or a PolicyError, and none shows a secret."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_support import HERE, POLICIES, TARIFFS, Prices, read_file

from budget_proxy.policy import PolicyError, check, effective

SECRET = "s3cr3t-Value'0123456789\"\\x"
WORDS = [
    "limit", "5 USD", "${SECRET}", "${file:/run/secrets/key}", "&a", "*a", "{", "}", "[", "]", ":",
    "- ", "\n", "\n  ", "\t", "'", '"', "|", ">", "!!int", "<<", "null", "~", "?", "#", "%", "@",
    "${", "$${", "1e999", "\x00", "\ufeff", "\ue07b", "\U0001f4b8", "when", "not", "for_each",
    "json", "header", "0", "-1", "true", ",", "\r", "\u2028", "---", "...",
]  # fmt: skip
VALUES = [
    "{}", "[]", "null", "''", "-1", "99999999999999999999", "${SECRET}", "[a, {b: c}]",
    "{a: {b: [c]}}", "5 USD", "600 requests", "20s", "true", "'${SECRET} USD'",
    "'https://${SECRET}'", "'sha256:${SECRET}'", "{json: '${SECRET}'}", "*", "'*'",
]  # fmt: skip
SOURCES = [
    path.read_text()
    for path in [HERE / "issue.yaml", TARIFFS / "llm.yaml", *sorted(POLICIES.glob("*.yaml"))]
]
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


class Everything(dict[str, str]):
    """An environment in which every variable is the secret."""

    def __missing__(self, key: str) -> str:
        return SECRET

    def get(self, key: str, default: object = None) -> str:
        return SECRET


def try_to_load(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_bytes(data)
        try:
            result = check(
                path,
                environment=Everything(),
                read_file=read_file,
                prices=Prices,
                catalogue=TARIFFS,
            )
        except PolicyError as error:
            said = str(error)
        else:
            said = repr(result) + repr(effective(result.house))
        assert said
        assert SECRET not in said
        assert repr(SECRET)[1:-1] not in said


@RELAXED
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    try_to_load(data)


@RELAXED
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=40).map("".join))
def test_random_yaml(text: str) -> None:
    try_to_load(text.encode("utf-8", "surrogatepass"))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(SOURCES))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.sampled_from(["", *WORDS])) + text[end:]
    return text


@RELAXED
@given(mutated())
def test_mutated_policies(text: str) -> None:
    try_to_load(text.encode("utf-8", "surrogatepass"))


@st.composite
def rewritten(draw: st.DrawFn) -> str:
    """A policy with one value replaced, on a line of its own: mistakes below the syntax."""
    lines = draw(st.sampled_from(SOURCES)).splitlines()
    spots = [number for number, line in enumerate(lines) if ": " in line]
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.sampled_from(spots))
        key, _, _ = lines[number].partition(": ")
        value = draw(st.sampled_from(VALUES))
        lines[number] = f"{key}: {value}"
    return "\n".join(lines)


@RELAXED
@given(rewritten())
def test_rewritten_policies(text: str) -> None:
    try_to_load(text.encode())
