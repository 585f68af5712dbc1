"""How every command reports bad input: one line on stderr, exit code 2, no traceback."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ddlm_core.support.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line as well, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (try {self.prog} --help)\n")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn what a person can correct into one line and exit code 2.

    That is a ``UserError``, and an ``OSError``: files, ports, the network. Every other error is a bug
    of ours, and ends with its traceback and exit code 1. ``DDLM_DEBUG=1`` in the environment shows the
    traceback of all.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read our output has had enough: `… | head -1`
        drop_output()
    except (UserError, OSError) as error:
        if os.environ.get("DDLM_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{command}: {reason}", file=sys.stderr)
        drop_output()
        raise SystemExit(2) from error


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment that hold inside only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def drop_output() -> None:
    """Forget output that cannot be written, so that Python does not try again when it exits."""
    try:
        if sys.stdout is not None:  # it is None if the command was started without
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
