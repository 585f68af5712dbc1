"""How every command reports bad input: one line on stderr, exit code 2, no traceback."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line as well, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try {self.prog} --help)\n")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn errors that the user can mend into one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output has had enough: `… | head -1`
        drop_output()
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{command}: {reason}", file=sys.stderr)
        drop_output()
        raise SystemExit(2) from None


def drop_output() -> None:
    """Forget output that cannot be written, so that Python does not try again when it exits."""
    try:
        if sys.stdout is not None:  # it is None if the command was started without
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
