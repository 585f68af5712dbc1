"""Errors that say what was wrong and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten


class UserError(ValueError):
    """Raised on purpose, for a person to read: one line that says what was wrong and what to do."""


@contextmanager
def error_context(what: str, hint: str, *expected: type[Exception]) -> Iterator[None]:
    """Turn what can go wrong outside of our code into a :class:`UserError` of one line.

    That is a ``UserError``, an ``OSError`` (files, the network), and the ``expected`` kinds, such as what
    a parser of files raises. The error itself stays the cause. All others are bugs, and pass.

    Args:
        what: what could not be done.
        hint: what to do about it.
        *expected: more kinds of errors that the block may raise.
    """
    kinds: tuple[type[Exception], ...] = (UserError, OSError, *expected)
    try:
        yield
    except kinds as error:
        reason = shorten(str(error), 200) or type(error).__name__
        raise UserError(f"{what} ({reason}): {hint}") from error
