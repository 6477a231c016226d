"""The base of every mapping in the policy: closed, and with messages a person can use.

pydantic finds all the errors of a file in one go; this file turns each into a sentence at the
level where the possible keys are known (`did you mean`).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core import core_schema as core

from budget_proxy.policy.mistakes import listed, quoted, suggest
from budget_proxy.policy.values import kind_of

SAID = "said"
"""A finished message about a value."""
SAID_KEY = "said_key"
"""A finished message about a key: the last step of its place."""

_SHAPES = {
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "list_type": "a list",
    "string_type": "text",
}
_WORD = re.compile(r"'([^']*)'")


class Entry(BaseModel):
    """A mapping with known keys. Empty values are mistakes, never silently the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    nullable: ClassVar[frozenset[str]] = frozenset()
    """Keys for which an explicit `null` means something."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        empty = cls._empty(data)
        rest = {key: data[key] for key in data if key not in empty} if empty else data
        found: list[InitErrorDetails] = []
        entry: Self | None = None
        try:
            entry = handler(rest)
        except ValidationError as error:
            details = error.errors(include_url=False)
            found = [cls._line(line) for line in details if line["loc"] not in empty.values()]
        found += [_said((key,), "is empty; give a value, or leave the key out") for key in empty]
        if found or entry is None:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return entry

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Nothing: some of it is secret."""
        return []

    @classmethod
    def _empty(cls, data: Any) -> dict[str, tuple[str]]:
        if not isinstance(data, dict):
            return {}
        known = cls.known_keys() - cls.nullable
        return {key: (key,) for key, value in data.items() if value is None and key in known}

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """The keys as they are written in the file."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def _line(cls, error: ErrorDetails) -> InitErrorDetails:
        place = error["loc"]
        if error["type"] == "extra_forbidden":
            key = str(place[-1])
            hint = suggest(key, cls.known_keys()) or f"; known here: {listed(cls.known_keys())}"
            if error["input"] is None:
                hint = "; a comma inside {...} or [...] ends a value, unless it is quoted"
            if key == "<<":
                hint = "; merge keys are not read, write the alias as a value"
            return _said(place, f"unknown key {quoted(key)}{hint}", SAID_KEY)
        if error["type"] == "missing":
            return _said(place, f"the key {quoted(str(place[-1]))} is missing", SAID_KEY)
        return _said(place, sentence(error), SAID_KEY if error["type"] == SAID_KEY else SAID)


def sentence(error: ErrorDetails) -> str:
    """pydantic's error about a value as a sentence of ours."""
    kind, value = error["type"], error["input"]
    if kind in (SAID, SAID_KEY):
        return error["msg"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if value is None:
        return "is empty"
    if kind == "literal_error":
        return _not_among(value, _WORD.findall(error["ctx"]["expected"]))
    if kind == "union_tag_invalid":
        forms = " or ".join(re.findall(r"<([^>]*)>", error["ctx"]["expected_tags"]))
        return f"must be {forms}, not {kind_of(value)}"
    if kind in _SHAPES:
        return f"must be {_SHAPES[kind]}, not {kind_of(value)}"
    return error["msg"]


def _not_among(value: object, words: list[str]) -> str:
    choice = f"must be {words[0]}" if len(words) == 1 else f"must be one of {', '.join(words)}"
    if not isinstance(value, str):
        return f"{choice}, not {kind_of(value)}"
    return f"{quoted(value)} {choice}{suggest(value, words)}"


def _said(place: tuple[str | int, ...], message: str, kind: str = SAID) -> InitErrorDetails:
    # As a field: braces in the message itself would be read as a template.
    error = PydanticCustomError(kind, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=place, input=None)


class PolicySchema(GenerateJsonSchema):
    """The JSON Schema of what may be written, where `null` is not another way to leave out."""

    def nullable_schema(self, schema: core.NullableSchema) -> JsonSchemaValue:
        """The schema without null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core.WithDefaultSchema) -> JsonSchemaValue:
        """The schema without a default of null."""
        inner: CoreSchema = schema["schema"]
        if schema.get("default") is None:
            return self.generate_inner(inner)
        return super().default_schema(schema)
