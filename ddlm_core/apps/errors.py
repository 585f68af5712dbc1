"""How every command reports bad input: one line on stderr, exit code 2, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn errors that the user can mend into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{command}: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
