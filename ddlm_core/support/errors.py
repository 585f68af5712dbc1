"""Errors that say what was wrong and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten


class UserError(ValueError):
    """Raised on purpose, for a person to read: one line that says what was wrong and what to do."""


@contextmanager
def error_context(what: str, hint: str) -> Iterator[None]:
    """Turn every error of a block into a :class:`UserError` of one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} ({shorten(str(error), 200)}): {hint}") from error
