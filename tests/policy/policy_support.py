"""What the policy tests share: an environment, a file reader, a small catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_proxy.core.house import House
from budget_proxy.core.rate import ModelOverride
from budget_proxy.policy import Checked, check

HERE = Path(__file__).parent
TARIFFS = HERE / "tariffs"
POLICIES = HERE.parent.parent / "policies"
SECRETS = {
    "KEY": "s3cr3t-key-0123456789",
    "OTHER": "an0ther-key-987654321",
    "SHORT": "short",
    "SPACED": "two words of a key",
    "NEWLINE": "line\none",
}
GEO = (
    'upstreams: {geo: {url: "https://geo.example.com", tariff: '
    "[{name: geocode, match: {path: /geocode}, price: {requests: 0.005 USD}}]}}\n"
)
APP = 'services: {app: {key: "${KEY}", labels: {team: payments}}}\n'
DAY = "budgets: {day: {limit: 5 USD, per: day}}\n"


def read_file(path: str) -> str:
    """A file system with one secret, one binary file and one folder."""
    if path == "/run/secrets/key":
        return "fr0m-a-file-0123456789\n"
    if path == "/binary":
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    if path == "/":
        raise IsADirectoryError(21, "Is a directory")
    raise FileNotFoundError(2, "No such file or directory")


class Prices:
    """Model prices that remember what they were asked for."""

    def __init__(
        self, source: str, own: Mapping[str, ModelOverride], max_outputs: Mapping[str, int]
    ) -> None:
        if source != "test/llm":
            raise LookupError(f"no such source: {source}")
        self.own = own
        self.max_outputs = max_outputs

    def rates(self, model: str, tier: str, now_s: float) -> None:
        """None is known."""

    def max_output(self, model: str) -> None:
        """None is known."""


def checked(tmp_path: Path, text: str | bytes, **given: Any) -> Checked:
    """Check a policy given as text."""
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    defaults: dict[str, Any] = {
        "environment": SECRETS,
        "read_file": read_file,
        "catalogue": TARIFFS,
        "prices": Prices,
    }
    return check(path, **{**defaults, **given})


def loaded(tmp_path: Path, text: str, **given: Any) -> House:
    """Load a policy given as text."""
    return checked(tmp_path, text, **given).house
