"""Dataclasses of settings: the limits of a value stand beside its field.

``size: Annotated[int, Limits(1)] = 8`` is a whole number of at least 1, and
``kind: Literal["a", "b"] = "a"`` one of two words; :func:`check_fields` holds an object to it.
"""

from dataclasses import dataclass, fields
from math import inf
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ddlm_core.support.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a finite number may be: ``least`` and ``most`` included, ``above`` and ``below`` not."""

    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if -inf < self.least and self.most < inf:
            return f" from {self.least} to {self.most}"
        words = {"at least": self.least, "at most": self.most}
        words |= {"above": self.above, "below": self.below}
        found = [f"{word} {limit}" for word, limit in words.items() if abs(limit) < inf]
        return f", {' and '.join(found)}" if found else ""


def is_whole(value: Any) -> bool:
    """The one rule for integers: integral numbers of any kind, NumPy's too, but not True and False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """The same for real numbers."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_fields(config: Any) -> None:
    """Hold a dataclass to the annotations of its fields; numbers become plain ``int`` and ``float``.

    Whole numbers of any kind (NumPy's, too) pass as ``int``, and True is no number. Other types
    than bool, int, float, str and Literal, each perhaps with ``| None``, are left alone.
    Raises ``UserError`` with one line that names the field, what it must be, and what it is.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = checked(field.name, getattr(config, field.name), hints[field.name])
        object.__setattr__(config, field.name, value)  # also where the dataclass is frozen


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as the annotation wants it, or a ``UserError`` of one line."""
    limits = Limits()
    if get_origin(hint) is Annotated:
        hint, limits = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in (choices := get_args(hint)):
            raise UserError(f"{name} must be {' or '.join(map(str, choices))}, got {value!r}")
        return value
    kinds = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and NoneType in kinds:
        return None
    if int in kinds:
        right, what = is_whole(value) and value in limits, "a whole number"
        value = int(value) if right else value
    elif float in kinds:
        right, what = is_real(value) and value in limits, "a number"
        value = float(value) if right else value
    elif bool in kinds:
        right, what = isinstance(value, bool), "true or false"
    elif str in kinds:
        right, what = isinstance(value, str), "a text"
    else:
        return value
    if not right:
        raise UserError(f"{name} must be {what}{limits}, got {value!r}")
    return value
