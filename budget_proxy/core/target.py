"""Request targets: the one form that is both matched and sent, or a refusal.

A proxy that matches one spelling and forwards another can be walked around. So nothing is
normalised here: what is not already canonical is refused, and the rest goes out byte for byte.
(RFC 9112 §3.2, RFC 3986 §6.2.2.)
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

from budget_proxy.core.refusal import Reason, refuse

_ALLOWED = re.compile(r"/[!$%&'()*+,\-./0-9:;=@A-Z_a-z~]*(?:\?[!-\"$-~]*)?\Z")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_CONTROL = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_SEPARATOR = r"%2[Ff]|%5[Cc]"
_ESCAPED_SEPARATOR = re.compile(_SEPARATOR)
# Some servers decode separators first, and some cut a segment at its `;`.
_DOT_SEGMENT = re.compile(rf"(?:/|{_SEPARATOR})(?:\.|%2[Ee]){{1,2}}(?:/|;|%3[Bb]|{_SEPARATOR}|\Z)")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?\Z")


class Target(NamedTuple):
    """An origin-form target, split; `query` is None where there is no `?`."""

    path: str
    query: str | None

    @property
    def raw(self) -> str:
        """The target as it is sent."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def plain(self) -> str:
        """The path as a server reads it, to be matched: decoded, but for separators. `%6F` is an
        `o` to every server, and what goes out has it still."""
        if "%" not in self.path:
            return self.path
        return unquote(_ESCAPED_SEPARATOR.sub(lambda found: f"%25{found[0][1:]}", self.path))

    def fields(self) -> dict[str, str]:
        """The query's fields, decoded; of a repeated one the first."""
        found: dict[str, str] = {}
        for name, value in pairs(self.query):
            found.setdefault(unquote_plus(name), unquote_plus(value))
        return found

    def all(self, name: str) -> list[str]:
        """Every value of a query field, decoded."""
        return [
            unquote_plus(value) for key, value in pairs(self.query) if unquote_plus(key) == name
        ]

    def without(self, names: frozenset[str]) -> Target:
        """The target without some query fields, every other byte as it was."""
        if self.query is None:
            return self
        kept = [
            piece
            for piece in self.query.split("&")
            if unquote_plus(piece.partition("=")[0]) not in names
        ]
        return Target(self.path, "&".join(kept) if kept else None)


def pairs(query: str | None) -> list[tuple[str, str]]:
    """The query's name and value pairs, still encoded."""
    if not query:
        return []
    split = (piece.partition("=") for piece in query.split("&"))
    return [(name, value) for name, _, value in split]


def parse_target(raw: str, *, allow_encoded_slash: bool = True) -> Target:
    """Split and check a raw request target. Raises RefusedError (400)."""
    if not raw.startswith("/"):
        raise refuse(
            Reason.BAD_REQUEST,
            "The request target must be a path such as /openai/v1/models; this is a reverse "
            "proxy, not one to be configured as HTTP_PROXY.",
        )
    if not _ALLOWED.match(raw):
        raise refuse(Reason.BAD_REQUEST, "The request target has a character URLs cannot have.")
    path, mark, query = raw.partition("?")
    if _BAD_PERCENT.search(raw) or _ESCAPED_CONTROL.search(path):
        raise refuse(Reason.BAD_REQUEST, "The request target has a bad percent-escape.")
    if _DOT_SEGMENT.search(path) or "//" in path:
        raise refuse(
            Reason.BAD_REQUEST, "The path has an empty or dot segment; send it without them."
        )
    if not allow_encoded_slash:
        check_separators(path)
    return Target(path, query if mark else None)


def check_separators(path: str) -> None:
    """Refuse an encoded slash or backslash. Raises RefusedError (400)."""
    if _ESCAPED_SEPARATOR.search(path):
        raise refuse(
            Reason.BAD_REQUEST,
            "The path has an encoded separator (%2F or %5C); set allow_encoded_slash on the "
            "upstream if its paths need them.",
        )


def check_host(host: str, served: tuple[str, ...]) -> str:
    """The host name without its port. Raises RefusedError: 400 for what is no host, 421 for one
    that is not in `served` (empty: any)."""
    match = _HOST.match(host)
    if match is None or (match[1] is not None and int(match[1]) > 65535):
        raise refuse(Reason.BAD_REQUEST, "The Host header is not a host name and port.")
    name = host[: -len(match[1]) - 1].lower() if match[1] is not None else host.lower()
    if served and name not in served:
        raise refuse(Reason.MISDIRECTED, "This proxy does not serve that host.")
    return name
