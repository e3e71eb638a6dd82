"""Strict, frozen pydantic models whose every validation failure is one sentence of our own.

Each field's `description` says what is allowed ("a number from 0 to 1"); the message is built from it, so the range a
user reads and the range that is checked stand in one place.
"""

import difflib
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from playground.errors import ConfigError, PlaygroundError

MAX_VALUE_CHARS = 80


def shorten(value: object, limit: int = MAX_VALUE_CHARS) -> str:
    """`repr(value)`, cut to `limit` characters, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Validated(BaseModel):
    """Base of the user-facing parameter classes; raises `error_class` instead of pydantic's multi-line error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False, protected_namespaces=()
    )
    error_class: ClassVar[type[PlaygroundError]] = ConfigError

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self.error_class(self._sentence(error)) from None

    @classmethod
    def _sentence(cls, error: ValidationError) -> str:
        first = error.errors(include_url=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(where, cls.model_fields, n=1)
            return f"{cls.__name__} has no field {where!r}: " + (
                f"did you mean {close[0]!r}?" if close else f"its fields are {', '.join(cls.model_fields)}."
            )
        if first["type"] == "value_error":  # our own validators already speak in sentences
            return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        field = cls.model_fields.get(where)
        allowed = field.description if field is not None and field.description else first["msg"]
        given = error.errors(include_url=False)[0].get("input")
        return f"{where}={shorten(given)} is not allowed: give {allowed}."

    def replace(self, **changes: Any) -> Any:
        """A copy with `changes` applied and everything validated again."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**values, **changes})
