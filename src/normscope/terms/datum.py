"""What every value that Normscope returns can do: read well, become JSON, show itself in a notebook."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from enum import Enum
from typing import Any


class Datum:
    """Mixed into a frozen dataclass: a `repr` without the fields left at their default, `to_dict`, `_repr_html_`."""

    __slots__ = ()

    def __repr__(self) -> str:
        said = (f"{name}={_written(value)}" for name, value in _told(self))
        return f"{type(self).__name__}({', '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values: nested data become dictionaries, tuples and sets become lists."""
        return {field.name: plain(getattr(self, field.name)) for field in _shown(self)}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(_short(value))}</td></tr>"
            for name, value in _told(self)
        )
        return f"<table><caption>{html.escape(type(self).__name__)}</caption>{rows}</table>"


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; non-finite floats, for which JSON has no word, become "nan", "inf" or "-inf"."""
    if isinstance(value, Datum):
        return value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if value - value == 0 else str(float(value))
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    return str(value)


def _shown(datum: Any) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(datum) if field.repr)


def _told(datum: Any) -> list[tuple[str, Any]]:
    told = []
    for field in _shown(datum):
        value = getattr(datum, field.name)
        if field.default is not dataclasses.MISSING and value is field.default:
            continue
        if isinstance(value, str | int | float | tuple) and value == field.default:
            continue
        told.append((field.name, value))
    return told


def _written(value: Any) -> str:
    """`repr`, with the members of a set in order: the same words in every process."""
    return "{" + ", ".join(sorted(map(repr, value))) + "}" if isinstance(value, frozenset) and value else repr(value)


def _short(value: Any, limit: int = 300) -> str:
    text = value if isinstance(value, str) else _written(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
