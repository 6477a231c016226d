"""The sandbox's knobs: what they are called, what they may be, and where they can be turned.

One table, `GROUPS`, serves the command line (`--latency-s 0.2`), the control endpoint
(`{"latency_s": 0.2}`) and the headers of a single request (`x-sandbox-latency-s: 0.2`). Forbidden
here: carrying anything out. A setting is a frozen value; who holds it decides what it does.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from budget_proxy.sandbox.bank import CURRENCY, format_amount, parse_amount
from budget_proxy.sandbox.emptiness import EMPTY, REFUSALS
from budget_proxy.sandbox.purse import KEPT_S

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterable, Mapping

HEADER_PREFIX = "x-sandbox-"
MAX_LATENCY_S = KEPT_S
MAX_OUTPUT_TOKENS = 200_000
MAX_HIDDEN_TOKENS = 1_000_000

_METAVARS = {"per_s": "AMOUNT", "_s": "SECONDS", "_as": "NAME", "_every": "N"}
_NOTHING = ("", "none", "null")


class SettingError(ValueError):
    """A knob that does not exist, or a value that it cannot take; the message names both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the sandbox behaves. Durations in seconds, the balance in nanos (10^-9 US dollar)."""

    balance_nanos: int | None = None
    require_key: str | None = None
    service_header: str = "x-service"
    tokens: Literal["words", "bytes"] = "words"
    hidden_tokens: int = 0
    output_tokens: int = 16
    bill_cut: Literal["full", "delivered"] = "full"
    latency_s: float = 0.0
    chunk_delay_s: float = 0.0
    fail: int | None = None
    fail_billed: bool = False
    fail_every: int = 1
    cut_after: int | None = None
    cut_clean: bool = False
    omit_usage: bool = False
    answer_gzip: bool = False
    garbage: Literal["json", "http"] | None = None
    empty_as: str | None = None
    refuse_as: str | None = None
    refuse_every: int = 1
    drain_nanos_per_s: int = 0
    balance_key: str | None = None
    balance_lag_s: float = 0.0
    balance_latency_s: float = 0.0
    balance_fail: int | None = None
    balance_garbage: Literal["html", "json", "shape", "currency", "negative", "jump"] | None = None
    topup_latency_s: float = 0.0
    topup_fail: int | Literal["declined"] | None = None
    topup_fail_after: int | Literal["cut"] | None = None
    topup_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as people write it: its name, how to read a value, and what it is for."""

    name: str
    read: Callable[[object], object]
    explain: str
    per_request: bool = True
    attribute: str = ""

    @property
    def field(self) -> str:
        return self.attribute or self.name


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise SettingError("must be a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise SettingError("must be a number") from None


def _seconds(value: object) -> float:
    seconds = _number(value)
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_LATENCY_S):
        raise SettingError(f"must be a number of seconds from 0 to {MAX_LATENCY_S}")
    return seconds


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        number = _number(value)
        if not (least <= number <= most and number == int(number)):
            raise SettingError(f"must be a whole number from {least} to {most}")
        return int(number)

    return read


def _flag(value: object) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "1", "yes"):
        return True
    if text in ("false", "0", "no"):
        return False
    raise SettingError("must be true or false")


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise SettingError(f"must be one of {', '.join(choices)}")
        return str(value)

    return read


def _row_of(names: Collection[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in names:
            raise SettingError(f"must be a name from the list of refusals: {', '.join(names)}")
        return str(value)

    return read


def _status_or(word: str) -> Callable[[object], int | str]:
    def read(value: object) -> int | str:
        return word if value == word else _whole(400, 599)(value)

    return read


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise SettingError("must be a text")
    return value


def _header_name(value: object) -> str:
    return _text(value).lower()


def _money(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SettingError("must be an amount, such as '5 USD'")
    try:
        return parse_amount(str(value))
    except ValueError as error:
        raise SettingError(str(error)) from None


def _optional(read: Callable[[object], object]) -> Callable[[object], object]:
    def maybe(value: object) -> object:
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None
        return read(value)

    return maybe


GROUPS: Mapping[str, tuple[Knob, ...]] = {
    "the account and its prices": (
        Knob(
            "balance",
            _optional(_money),
            f"the prepaid balance, such as 5{CURRENCY}; none: no limit",
            per_request=False,
            attribute="balance_nanos",
        ),
        Knob(
            "drain_per_s",
            _money,
            f"what somebody else takes from the balance per second, such as 0.01{CURRENCY}",
            per_request=False,
            attribute="drain_nanos_per_s",
        ),
        Knob(
            "require_key",
            _optional(_text),
            "the only key that is let in; none: any, or no key",
            per_request=False,
        ),
        Knob(
            "service_header",
            _header_name,
            "the request header whose value is noted on each charge",
            per_request=False,
        ),
        Knob(
            "tokens",
            _one_of("words", "bytes"),
            "input tokens: 'words' is a quarter of the text's bytes, 'bytes' all bytes of the body",
        ),
        Knob(
            "hidden_tokens",
            _whole(0, MAX_HIDDEN_TOKENS),
            "input tokens billed on top, which no caller can see: a prompt of the provider's own",
        ),
        Knob(
            "output_tokens",
            _whole(0, MAX_OUTPUT_TOKENS),
            "tokens to answer with, unless the request's own limit is lower",
        ),
        Knob(
            "bill_cut",
            _one_of("full", "delivered"),
            "what a stream that was cut short costs",
        ),
    ),
    "how calls are answered": (
        Knob("latency_s", _seconds, "seconds before the answer"),
        Knob("chunk_delay_s", _seconds, "seconds between two events of a stream"),
        Knob("fail", _optional(_whole(400, 599)), "answer with this status instead"),
        Knob("fail_billed", _flag, "charge for a failed call nevertheless"),
        Knob("fail_every", _whole(1, 10**9), "fail only every Nth priced call", per_request=False),
        Knob(
            "cut_after",
            _optional(_whole(0, 10**9)),
            "cut the connection after this many events of a stream; 0: before any answer byte",
        ),
        Knob("cut_clean", _flag, "cut by ending the body properly, as if it were complete"),
        Knob("omit_usage", _flag, "leave the usage out of the answer"),
        Knob("answer_gzip", _flag, "compress JSON answers, whatever the caller accepts"),
        Knob(
            "garbage",
            _optional(_one_of("json", "http")),
            "answer with bytes that are not JSON, or not even HTTP",
        ),
    ),
    "when there is no money": (
        Knob(
            "empty_as",
            _optional(_row_of(EMPTY)),
            "what an empty balance is answered with: a name from the list of refusals, such as "
            "deepseek; none: what the endpoint's own provider says",
        ),
        Knob(
            "refuse_as",
            _optional(_row_of(REFUSALS)),
            "refuse with this answer whatever the balance is: a name from the list of refusals",
        ),
        Knob(
            "refuse_every", _whole(1, 10**9), "refuse only every Nth priced call", per_request=False
        ),
    ),
    "balances and top-ups": (
        Knob(
            "balance_key",
            _optional(_text),
            "the only key for balances and top-ups; none: the same as for everything else",
            per_request=False,
        ),
        Knob("balance_lag_s", _seconds, "show the balance as it was so many seconds ago"),
        Knob("balance_latency_s", _seconds, "seconds before a balance is shown"),
        Knob(
            "balance_fail",
            _optional(_whole(400, 599)),
            "answer with this status instead of a balance",
        ),
        Knob(
            "balance_garbage",
            _optional(_one_of("html", "json", "shape", "currency", "negative", "jump")),
            "show no balance but a web page (html), half of a JSON (json) or another JSON (shape); "
            "or one in another currency, below zero, or a thousand times too high (jump)",
        ),
        Knob("topup_latency_s", _seconds, "seconds before a top-up is answered"),
        Knob(
            "topup_fail",
            _optional(_status_or("declined")),
            "answer top-ups with this status and credit nothing; declined: a 200 that says so",
        ),
        Knob(
            "topup_fail_after",
            _optional(_status_or("cut")),
            "credit a top-up, then answer with this status; cut: close the connection",
        ),
        Knob("topup_delay_s", _seconds, "seconds until a top-up can be seen in the balance"),
    ),
}
"""Every knob, under the headings of `--help`."""
KNOBS = {knob.name: knob for knobs in GROUPS.values() for knob in knobs}


def changed(settings: Settings, values: Mapping[str, object]) -> Settings:
    """The same settings with these knobs turned; values are texts or JSON values."""
    return dataclasses.replace(settings, **_read(values.items()))


def for_request(settings: Settings, headers: Iterable[tuple[str, str]]) -> Settings:
    """The settings for one request: its `x-sandbox-` headers over the common ones."""
    turned = [
        (name[len(HEADER_PREFIX) :].lower().replace("-", "_"), value)
        for name, value in headers
        if name[: len(HEADER_PREFIX)].lower() == HEADER_PREFIX
    ]
    if not turned:
        return settings
    for name, _ in turned:
        if name in KNOBS and not KNOBS[name].per_request:
            raise SettingError(f"{name} cannot be set for a single request")
    return dataclasses.replace(settings, **_read(turned))


def as_json(settings: Settings) -> dict[str, object]:
    """The settings by knob name, in a form that `changed` takes back."""
    view = {name: getattr(settings, knob.field) for name, knob in KNOBS.items()}
    for name in ("balance", "drain_per_s"):
        if view[name] is not None:
            view[name] = f"{format_amount(view[name])} {CURRENCY}"
    return view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--listen` and one flag for each knob; flags that are left out keep their defaults."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:9099",
        help="where to listen; port 0 takes a free one (default: %(default)s)",
    )
    parser.usage = "%(prog)s [OPTIONS]"
    for heading, knobs in GROUPS.items():
        group = parser.add_argument_group(heading)
        for knob in knobs:
            _add_flag(group, knob)


def _add_flag(group: argparse._ArgumentGroup, knob: Knob) -> None:
    flag = f"--{knob.name.replace('_', '-')}"
    if knob.read is _flag:
        group.add_argument(
            flag, dest=knob.name, action="store_const", const=True, help=knob.explain
        )
    else:
        kind = next((word for end, word in _METAVARS.items() if knob.name.endswith(end)), "VALUE")
        group.add_argument(flag, dest=knob.name, metavar=kind, help=knob.explain)


def settings_from_args(namespace: argparse.Namespace) -> Settings:
    """The settings that a parsed command line asks for; SettingError where a value is wrong."""
    given = {name: getattr(namespace, name, None) for name in KNOBS}
    return changed(Settings(), {name: value for name, value in given.items() if value is not None})


def parse_listen(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` (or `[IPV6]:PORT`); a port alone listens on the loopback address."""
    host, _, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise SettingError(f"--listen must be HOST:PORT, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _read(values: Iterable[tuple[str, object]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in values:
        knob = KNOBS.get(name)
        if knob is None:
            raise SettingError(f"there is no setting {name!r}; there are {', '.join(KNOBS)}")
        try:
            read[knob.field] = knob.read(value)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from None
    return read
