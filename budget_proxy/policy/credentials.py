"""Credentials as the policy writes them: a text, or a place with what goes there.

No message here quotes one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from budget_proxy.policy.entry import Entry
from budget_proxy.policy.sheet import Spot
from budget_proxy.policy.sources import header_name, one_of
from budget_proxy.policy.values import BY_SHAPE, MAPPING, TEXT, Secret, Text

_CREDENTIAL = re.compile(r"[ -~]+\Z")
_PLACES = {"bearer": "bearer", "basic": "basic", "header": "header", "query": "query"}


class CredentialEntry(Entry):
    """A credential and where it goes: one of bearer, basic, header, query."""

    bearer: Secret | None = Field(None, description="Authorization: Bearer ...")
    basic: Secret | None = Field(None, description="user:password, for Authorization: Basic.")
    header: Text | None = Field(None, description="Name of a header; with `value`.")
    query: Text | None = Field(None, description="Name of a query field; with `value`.")
    value: Secret | None = Field(None, description="What goes into that header or field.")


CredentialForm = Annotated[
    Annotated[Secret, TEXT] | Annotated[CredentialEntry, MAPPING],
    BY_SHAPE,
]


class Placed(NamedTuple):
    """A credential in its place; `name` of the header or query field."""

    place: Literal["bearer", "basic", "header", "query"]
    name: str
    value: str


def placed(spot: Spot, form: CredentialEntry) -> Placed:
    """The place that a mapping says, and what goes there."""
    place = one_of(spot, form, _PLACES)
    if place in ("header", "query") and form.value is None:
        spot.wrong(f"`{place}` needs `value`, what goes there")
    elif place in ("bearer", "basic") and form.value is not None:
        spot.wrong_key("value", f"`{place}` holds the value itself")
    key = place if place in ("bearer", "basic") else "value"
    if place == "header":
        name = header_name(spot.at("header"), form.header or "")
        return Placed("header", name, checked(spot.at(key), form.value or ""))
    if place == "query":
        return Placed("query", form.query or "", checked(spot.at(key), form.value or ""))
    if place == "basic":
        say_no_pair(spot.at("basic"), form.basic or "")
        return Placed("basic", "", checked(spot.at(key), form.basic or ""))
    return Placed("bearer", "", checked(spot.at(key), form.bearer or ""))


def say_no_pair(spot: Spot, text: str) -> None:
    """Say where the credential of `basic` is no user and password."""
    if ":" not in text:
        spot.wrong("must be user:password")


def checked(spot: Spot, credential: str) -> str:
    """A credential that a header can carry; said where it cannot, or stands there as it is."""
    if credential and (not _CREDENTIAL.match(credential) or credential != credential.strip()):
        spot.wrong("has characters that no header can carry (a newline, a space at an end?)")
    if spot.is_literal:
        spot.note("a credential stands in this file as it is; ${NAME} or ${file:...} keeps it out")
    return credential
