"""What is sent to the user's own hook when money is short, and what its answer means. Pure.

A hook is an HTTP call or a command. Its texts are templates with five named fields and nothing
else. Only what surely bought nothing is `failed`; where money may have moved and nobody can tell,
the result is `unknown`. No `why` repeats anything of an answer, an address or a header: each can
hold a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import quote

from budget_proxy.core.jsonpath import Path, find, read_json, said

FIELDS = ("amount", "currency", "upstream", "id", "reason")
KEY_HEADER = "Idempotency-Key"
TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: by it a command says that it bought nothing."""
_FIELD = re.compile(r"\{([A-Za-z_]+)\}")
_UNCLEAR = frozenset({408, 409, 499})
"""Answers of the 400s after which the call may still have been carried out: too slow, already under
way, hung up."""
_ELSEWHERE = frozenset({307, 308})

Words = Mapping[str, str]
"""What takes the place of each of the FIELDS."""


@dataclass(frozen=True, slots=True)
class Ok:
    """What an answer must say to count: one of these texts at a path."""

    path: Path
    among: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HttpHook:
    """A call over HTTP."""

    url: str = field(repr=False)
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: str = field(default="", repr=False)
    ok: Ok | None = None
    ca: str | None = None
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CommandHook:
    """A program with its arguments; no shell reads them."""

    argv: tuple[str, ...] = field(repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """What it gets beside the few variables every program needs; none of the proxy's own."""
    ok: Ok | None = None


Hook = HttpHook | CommandHook


class Request(NamedTuple):
    """A hook's HTTP call, filled in."""

    url: str
    method: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


class Result(NamedTuple):
    """How a try ended. `sent`: the hook says yes. `failed`: surely nothing was bought."""

    state: Literal["sent", "failed", "unknown"]
    why: str


def unknown_fields(template: str) -> list[str]:
    """The names in braces that are none of the FIELDS."""
    return [name for name in _FIELD.findall(template) if name not in FIELDS]


def fill(template: str, words: Words, escape: Callable[[str], str]) -> str:
    """The template with each field's word in it, escaped for where it stands."""
    return _FIELD.sub(lambda found: escape(words[found[1]]), template)


def request_of(hook: HttpHook, words: Words) -> Request:
    """The call of a hook. The attempt's id goes along as `Idempotency-Key`, unless the policy
    gives that header itself."""
    headers = [(name, fill(value, words, _in_header)) for name, value in hook.headers]
    names = {name.lower() for name, _ in headers}
    if KEY_HEADER.lower() not in names:
        headers.append((KEY_HEADER, words["id"]))
    if hook.body and "content-type" not in names:
        headers.append(("Content-Type", "application/json"))
    escape = in_form if is_form(hook.headers) else in_json
    body = fill(hook.body, words, escape).encode() if hook.body else None
    return Request(fill(hook.url, words, in_form), hook.method, tuple(headers), body)


def command_of(hook: CommandHook, words: Words) -> tuple[str, ...]:
    """The arguments of a command, its own name first."""
    return tuple(fill(word, words, _in_argument) for word in hook.argv)


def is_form(headers: tuple[tuple[str, str], ...]) -> bool:
    """Whether a body is fields of a form and not JSON."""
    return any(
        name.lower() == "content-type" and "x-www-form-urlencoded" in value.lower()
        for name, value in headers
    )


def in_json(word: str) -> str:
    """Inside the quotes of a JSON text."""
    return json.dumps(word)[1:-1]


def in_form(word: str) -> str:
    """In a URL or the fields of a form."""
    return quote(word, safe="")


def _in_header(word: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in word)


def _in_argument(word: str) -> str:
    return word.replace("\0", "")


def of_answer(hook: HttpHook, status: int, body: bytes, content_type: str = "") -> Result:
    """What an answer over HTTP means. A page for people (a login, a maintenance notice) says
    nothing, whatever its status of success."""
    if 200 <= status < 300:
        if _is_page(body, content_type):
            return Result("unknown", f"the hook answered {status}, but with a page for people")
        return _said(hook.ok, f"answered {status}", body)
    if status in _ELSEWHERE or (400 <= status < 500 and status not in _UNCLEAR):
        return Result("failed", f"the hook answered {status}")
    return Result("unknown", f"the hook answered {status}")


def of_exit(hook: CommandHook, code: int, output: bytes) -> Result:
    """What the end of a command means; codes below zero are signals."""
    if code == 0:
        return _said(hook.ok, "ended with 0", output)
    if code == TRY_AGAIN:
        return Result("failed", f"the command ended with {code}: nothing was bought")
    if code < 0:
        return Result("unknown", f"the command was ended by signal {-code}")
    return Result("unknown", f"the command ended with {code}")


def _is_page(body: bytes, content_type: str) -> bool:
    start = body.removeprefix(b"\xef\xbb\xbf").lstrip()[:9].lower()
    return start.startswith((b"<!doctype", b"<html")) or (
        "html" in content_type.lower() and start.startswith(b"<")
    )


def _said(ok: Ok | None, how: str, body: bytes) -> Result:
    if ok is None:
        return Result("sent", f"the hook {how}")
    try:
        document = read_json(body, each_key_once=True)
        found = [said(value) for value in find(ok.path, document)]
    except ValueError:
        return Result("unknown", f"the hook {how}, but with no JSON that could be read")
    if any(word in ok.among for word in found):
        return Result("sent", f"the hook {how}")
    return Result("failed", f"the hook {how}, but {ok.path.text} does not say so")
