"""Tariff: the routes of one API, in the order they are tried, and what all of them share: the shape
of its errors, and where its key is sent.

Forbidden here: what a route reads or costs (`route`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from budget_proxy.core.document import Document
from budget_proxy.core.route import Route

CredentialPlace = Literal["bearer", "header", "query", "basic"]


@dataclass(frozen=True, slots=True)
class Tariff:
    """All the routes of one API, in the order they are tried."""

    name: str
    routes: tuple[Route, ...]
    dialect: str = "problem"
    credential: CredentialPlace = "bearer"
    credential_name: str = ""
    """The header or query field, for those two places."""

    def route(
        self, method: str, path: str, document: Document
    ) -> tuple[Route, dict[str, str]] | None:
        """The first route that covers a request, with its path captures."""
        for route in self.routes:
            captures = route.captures(method, path)
            if captures is not None and all(test.holds(document) for test in route.tests):
                return route, captures
        return None
