"""What the fields of a configuration may hold: the limit stands in the type, beside the field.

``batch_size: Count = 64`` is a whole number from 1; ``Literal["muon", "adamw"]`` is a choice of
these. :func:`check_fields` compares every value with the type of its field.
"""

import types
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ddlm_core.support.errors import UserError


@dataclass(frozen=True)
class Range:
    """Both ends are allowed."""

    low: float
    high: float


Count = Annotated[int, Range(1, 10**12)]
Natural = Annotated[int, Range(0, 10**12)]  # 0 is allowed
Positive = Annotated[float, Range(1e-9, 1e12)]
Share = Annotated[float, Range(0.0, 1.0)]
Beta = Annotated[float, Range(0.0, 0.999999)]  # of a moving average that has to move


def check_fields(config: Any) -> None:
    """Compare the fields of a dataclass with their types.

    An integer field takes every integral number but a bool, a float field every real one.

    Raises:
        UserError: one line that names the field, what it may hold and what it got.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            raise UserError(f"{field.name} must be {_words(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in arguments)
    if origin is Annotated:
        kind, limits = arguments
        return _fits(value, kind) and limits.low <= value <= limits.high
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        same_length = isinstance(value, tuple) and len(value) == len(arguments)
        return same_length and all(map(_fits, value, arguments))
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    """The type of a field as a message says it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Annotated:
        kind, limits = arguments
        return f"{_words(kind)} from {limits.low:g} to {limits.high:g}"
    if origin is Literal:
        return " or ".join(arguments)
    if origin is tuple:
        return f"{len(arguments)} numbers, each {_words(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "null" if hint is type(None) else "a mapping")
