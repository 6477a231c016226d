"""The file of certificate authorities that a `ca:` names. It is looked for, and never read here."""

from __future__ import annotations

from pathlib import Path

from budget_proxy.policy.mistakes import quoted
from budget_proxy.policy.sheet import Spot


def ca_file(spot: Spot, name: str | None) -> str | None:
    """The name as it is. Where no such file is to be seen, `check` warns of it: the policy may be
    checked on another machine than it is served on."""
    if name is not None and not _is_file(name):
        spot.note(f"there is no file {quoted(name)} here; without it no connection can be made")
    return name


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a folder that may not be entered
        return False
