"""What the fields of a dataclass may hold: the limit stands in the type, beside the field.

``size: Annotated[int, Limits(1)] = 8`` is a whole number of at least 1, ``size: Count = 8`` says the
same, and ``kind: Literal["a", "b"] = "a"`` is one of two words. :func:`check_fields` looks.
"""

from dataclasses import dataclass, fields
from math import inf
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ddlm_core.support.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Limits of a number: ``least`` and ``most`` are allowed themselves, ``above``, ``below`` not."""

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
        return ", " + " and ".join(found) if found else ""


Count = Annotated[int, Limits(1)]
Natural = Annotated[int, Limits(0)]
Positive = Annotated[float, Limits(above=0)]
Share = Annotated[float, Limits(0, 1)]
Beta = Annotated[float, Limits(0, below=1)]  # of a moving average that has to move


def is_whole(value: Any) -> bool:
    """The one rule for integers: all integral numbers, NumPy's too, but not True and False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """The same for numbers: all real and finite ones."""
    return isinstance(value, Real) and not isinstance(value, bool) and -inf < value < inf


def check_fields(config: Any) -> None:
    """Hold a dataclass to the annotations of its fields; numbers become plain ``int`` and ``float``.

    Types other than bool, int, float, str, Literal, dict, and tuples and ``| None`` of these, are left alone.

    Raises:
        UserError: one line that names the field, what it must be, and what it is.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            raise UserError(f"{field.name} must be {_words(hint)}, got {value!r}")
        object.__setattr__(config, field.name, _plain(value, hint))  # also in a frozen dataclass


def _fits(value: Any, hint: Any, limits: Limits = Limits()) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, *arguments)
    if origin in (Union, UnionType):
        return any(_fits(value, kind, limits) for kind in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple and ... not in arguments:
        same_length = isinstance(value, tuple) and len(value) == len(arguments)
        return same_length and all(map(_fits, value, arguments))
    if hint in (int, float):
        right = is_whole if hint is int else is_real
        return right(value) and value in limits
    if hint in (bool, str, NoneType) or origin is dict:
        return isinstance(value, origin or hint)
    return True


def _plain(value: Any, hint: Any) -> Any:
    """NumPy's and other numbers as Python's own."""
    if get_origin(hint) is tuple and ... not in get_args(hint):
        return tuple(map(_plain, value, get_args(hint)))
    if is_whole(value):
        return float(value) if "float" in _kinds(hint) else int(value)
    return float(value) if is_real(value) else value


def _kinds(hint: Any) -> set[str]:
    """Names of the plain types in a hint."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    return {getattr(hint, "__name__", "")}


def _words(hint: Any, limits: Limits = Limits()) -> str:
    """A type as a message says it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(*arguments)
    if origin in (Union, UnionType):
        return " or ".join(_words(kind, limits) for kind in arguments if kind is not NoneType)
    if origin is Literal:
        return " or ".join(arguments)
    if origin is tuple:
        return f"{len(arguments)} values, each {_words(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a mapping") + str(limits)
