"""A policy without its secrets, for those who only want to know its budgets and its ledger.

Credentials, keys, tokens and where calls go: `${...}` is not looked up in these places, so that a
ledger can be corrected from a shell that has none of them. Everywhere else a variable without a
value is a mistake as ever. What this makes is not fit to serve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from budget_proxy.policy.nodes import Entry, Items, Node, Scalar, Table

ANY = "*"
UNSET_HOST = "unset.invalid"
UNSET_URL = f"http://{UNSET_HOST}"
_PLACES: dict[tuple[str, ...], str] = {
    ("admin_token",): "unset-admin-token-{}",
    ("alerts", "webhooks", ANY, "headers", ANY): "unset",
    ("alerts", "webhooks", ANY, "proxy"): UNSET_URL,
    ("alerts", "webhooks", ANY, "url"): UNSET_URL,
    ("services", ANY, "key"): "unset-key-{}",
    ("services", ANY, "keys", ANY): "unset-key-{}",
    ("upstreams", ANY, "credential"): "unset",
    ("upstreams", ANY, "credential", "bearer"): "unset",
    ("upstreams", ANY, "credential", "basic"): "unset:unset",
    ("upstreams", ANY, "credential", "value"): "unset",
    ("upstreams", ANY, "balance", "credential"): "unset",
    ("upstreams", ANY, "balance", "credential", "bearer"): "unset",
    ("upstreams", ANY, "balance", "credential", "basic"): "unset:unset",
    ("upstreams", ANY, "balance", "credential", "value"): "unset",
    ("upstreams", ANY, "balance", "url"): UNSET_URL,
    ("upstreams", ANY, "balance", "topup", "command", ANY): "unset",
    ("upstreams", ANY, "balance", "topup", "env", ANY): "unset",
    ("upstreams", ANY, "balance", "topup", "headers", ANY): "unset",
    ("upstreams", ANY, "balance", "topup", "proxy"): UNSET_URL,
    ("upstreams", ANY, "balance", "topup", "url"): UNSET_URL,
    ("upstreams", ANY, "proxy"): UNSET_URL,
    ("upstreams", ANY, "url"): UNSET_URL,
}
"""Ways to a value, and what stands in for it: of the form that is expected there, and with a number
where no two may be the same."""


def without_secrets(tree: Node) -> Node:
    """The tree, with stand-ins for the variables in those places."""
    numbers = count()
    for way, form in _PLACES.items():
        tree = _at(tree, way, lambda form=form: form.format(next(numbers)))  # type: ignore[misc]
    return tree


def _at(node: Node, way: tuple[str, ...], stand_in: Callable[[], str]) -> Node:
    if not way:
        if isinstance(node, Scalar) and "${" in node.text:
            return replace(node, text=stand_in())
        return node
    step, rest = way[0], way[1:]
    if isinstance(node, Items) and step == ANY:
        return replace(node, items=tuple(_at(item, rest, stand_in) for item in node.items))
    if not isinstance(node, Table):
        return node
    entries = {
        key: Entry(entry.mark, _at(entry.value, rest, stand_in)) if step in (ANY, key) else entry
        for key, entry in node.entries.items()
    }
    return replace(node, entries=entries)
