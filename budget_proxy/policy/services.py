"""The `services:` section, built. Keys become digests at once and are shown nowhere."""

from __future__ import annotations

import hashlib
import re

from budget_proxy.core.budget import FACT_KEYS
from budget_proxy.core.house import Service
from budget_proxy.policy.mistakes import quoted
from budget_proxy.policy.model import ServiceEntry
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.upstreams import check_name

MIN_KEY = 8
MAX_LABEL = 128
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
_RESERVED = frozenset({*FACT_KEYS, "not", "header", "json"})
_KEY = re.compile(r"[!-~]+\Z")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})\Z")


def build_service(spot: Spot, name: str, entry: ServiceEntry, owners: dict[bytes, str]) -> Service:
    """One service. `owners` knows whose each key is, and learns those of this one."""
    check_name(spot, name)
    return Service(
        name=name,
        keys=_keys(spot, name, entry, owners),
        labels=_labels(spot.at("labels"), entry.labels or {}),
        priority=entry.priority or "normal",
        weight=entry.weight or 1,
    )


def _keys(
    spot: Spot, name: str, entry: ServiceEntry, owners: dict[bytes, str]
) -> tuple[bytes, ...]:
    given = [(spot.at("keys", index), key) for index, key in enumerate(entry.keys or ())]
    if entry.key is not None:
        given.append((spot.at("key"), entry.key))
    if not given:
        spot.wrong("has no key; write `key: ${NAME}`")
    digests: list[bytes] = []
    for where, key in given:
        digest = _digest(where, key)
        if digest is None:
            continue
        owner = owners.setdefault(digest, name)
        if owner != name:
            both = f"services {quoted(owner)} and {quoted(name)}"
            where.wrong(f"{both} have the same key; nobody could tell who pays")
        elif digest in digests:
            where.wrong("this key stands here twice")
        digests.append(digest)
    return tuple(digests)


def _digest(spot: Spot, key: str) -> bytes | None:
    if key.startswith("sha256:"):
        match = _HASH.match(key)
        if match is None:
            spot.wrong("sha256: needs 64 hexadecimal digits after it")
            return None
        return bytes.fromhex(match[1])
    if not _KEY.match(key):
        spot.wrong("a key must be printable ASCII without spaces")
    elif len(key) < MIN_KEY:
        spot.wrong(f"a key must have at least {MIN_KEY} characters")
    elif spot.is_literal:
        spot.note("a key stands in this file as it is; ${NAME} or its sha256: keeps it out")
    return hashlib.sha256(key.encode()).digest()


def _labels(spot: Spot, labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if name in _RESERVED:
            spot.wrong_key(name, f"{quoted(name)} cannot be a label, it has a meaning of its own")
        elif not _LABEL.match(name):
            form = "lower-case letters, digits, - and _, a letter first"
            spot.wrong_key(name, f"{quoted(name)} is not the name of a label: {form}")
        if len(value) > MAX_LABEL:
            spot.at(name).wrong(f"is longer than {MAX_LABEL} characters")
        elif not value.isprintable():
            spot.at(name).wrong("has characters that cannot be printed")
    return labels
