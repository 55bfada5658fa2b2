"""What is wrong with a configuration, one line for each key: the key, what it is not, and what it may be."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_PLAIN = (bool, int, float)


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each key that is wrong. Text from the file is not repeated: it may be a secret in the wrong place."""
    lines = (_line(detail, model) for detail in error.errors(include_url=False))
    return list(dict.fromkeys(lines))


def _line(detail: ErrorDetails, model: type[BaseModel]) -> str:
    places = [place for place in detail["loc"] if place != "[key]"]
    key = ".".join(map(str, places))
    kind = detail["type"]
    if kind == "extra_forbidden":
        table = _table(places[:-1], model)
        return f"{key}: unknown key{_nearest(str(places[-1]), table)}; allowed: {', '.join(table.model_fields)}"
    field = _field(places, model)
    allowed = f"; allowed: {_description(field)}" if field is not None else ""
    return f"{key}: {'missing' if kind == 'missing' else _reason(detail)}{allowed}"


def _reason(detail: ErrorDetails) -> str:
    """Why a value is not taken."""
    value = detail["input"]
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        return "must be a table"
    if "[key]" in detail["loc"]:
        return "not a name; allowed: letters, digits, _ and -"
    if isinstance(value, _PLAIN):
        return f"{str(value).lower()} is not allowed"
    return f"this {_KINDS.get(type(value), 'value')} is not allowed"


_KINDS: dict[type[Any], str] = {str: "text", list: "list", dict: "table"}


def _table(places: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel]:
    """The table at a place that exists."""
    for position, place in enumerate(places):
        field = model.model_fields.get(str(place))
        inner = field.annotation if field is not None else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
        else:
            # A table of tables: the name is next, and all have the same keys.
            _, model = get_args(inner)
            return _table(places[position + 2 :], model)
    return model


def _field(places: Sequence[int | str], model: type[BaseModel]) -> FieldInfo | None:
    """The field that a place means; ``None`` where it is a table."""
    names = [str(place) for place in places if isinstance(place, str)]
    if len(names) < 2 or (len(names) == 2 and names[0] == "restores"):
        return None
    depth = 2 if names[0] == "restores" else 1
    return _table(names[:depth], model).model_fields.get(names[depth])


def _description(field: FieldInfo) -> str:
    """What it allows; of a type that may be left out (``... | None``), what the type allows."""
    inner = (note for kind in get_args(field.annotation) for note in getattr(kind, "__metadata__", ()))
    return field.description or next(note.description or "" for note in inner if isinstance(note, FieldInfo))


def _nearest(name: str, table: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, table.model_fields, 1)
    return f' (did you mean "{near[0]}"?)' if near else ""
