"""Errors that say what was wrong and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten


@contextmanager
def error_context(what: str, hint: str) -> Iterator[None]:
    """Turn every error of a block into a ``ValueError`` of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({shorten(str(error), 200)}): {hint}") from error
