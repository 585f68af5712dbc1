"""What a training run shows and leaves: a progress bar, a log, TensorBoard, a picture of the curve.

Each is a small piece of its own; :class:`Report` puts them together. :class:`StopSignals` hears the
signals that ask a run to stop.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ddlm_core.support.files import atomic_write

LOG, CURVE = "train_log.jsonl", "curve.png"
SECONDS_BETWEEN_LINES = 30  # in a log file


@dataclass(frozen=True)
class StepResult:
    """What a step has brought: what callbacks and the report get."""

    step: int  # steps that are done
    loss: float  # nats per token
    characters: int  # that are no padding
    bound: Any = None  # the validation bound, a dataclass, if it was measured


class StopSignals:
    """A context in which SIGINT and SIGTERM only raise a flag; the old handlers come back after it.

    The fourth signal stops at once (a launcher may well send two for one Ctrl-C).
    """

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        """Whether a signal asked to stop."""
        return bool(self.heard)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)
        if len(self.heard) > 3:
            raise KeyboardInterrupt

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


class JsonLog:
    """A file of one JSON object per line; ``lines`` holds them all."""

    def __init__(self, path: Path, step: int) -> None:
        """Lines after ``step`` belong to steps that are done again: they go."""
        self.path = path
        self.lines = [line for line in read_log(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        atomic_write(path, lambda part: part.write_text(text))

    def write(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def tensorboard(folder: Path, step: int) -> Any:
    """A ``SummaryWriter`` that goes on after ``step``, or None if TensorBoard is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def save_curve(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and bound against the steps."""
    from matplotlib.figure import Figure

    measured = [line for line in lines if "bits_per_character" in line]
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    steps = [line["step"] for line in lines]
    above.plot(steps, [line["loss"] for line in lines], color="#0072B2", linewidth=0.8)
    above.set_ylabel("training loss (nats per token)")
    steps = [line["step"] for line in measured]
    below.plot(steps, [line["bits_per_character"] for line in measured], "o-", color="#D55E00")
    below.set_ylabel("validation bound (bits per character)")
    below.set_xlabel("step")
    atomic_write(path, lambda part: figure.savefig(part, format="png"))


def has_bar() -> bool:
    """Whether somebody watches who can see a bar move: in a terminal, or in a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or hasattr(shell, "kernel")


class ExpectedTime:
    """A callback that says once, after a few steps, how long the run is going to take."""

    def __init__(self, first: int, total: int, every: int, measuring: float) -> None:
        """From step ``first`` to ``total``, with a measurement of so many seconds ``every`` so often."""
        self.first, self.total = first + 1, total  # the first step is slower: it prepares much
        self.more = measuring * (total // every - first // every)
        self.start: float | None = None

    def __call__(self, done: StepResult) -> None:
        """Count a step; speak if it is due."""
        from tqdm import tqdm

        if done.step == self.first:
            self.start = time.perf_counter()
        if self.start is None:
            return
        steps, seconds = done.step - self.first, time.perf_counter() - self.start
        if steps >= 3 and (seconds >= 3 or steps >= 50):
            left = seconds / steps * (self.total - done.step) + self.more
            tqdm.write(f"expected: {minutes(left)} to step {self.total:,}")
            self.start = None  # said


def minutes(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 2 * 3600:
        return f"about {max(2, round(seconds / 60))} minutes"
    return f"about {seconds / 3600:.1f} hours"


class Report:
    """A context that shows and logs the steps of a run: bar, log, TensorBoard, and at its end the curve.

    Where no bar can move, in a log file, it writes a line from time to time instead.
    """

    def __init__(self, folder: Path, step: int, total: int, every: int, show: bool) -> None:
        """The run goes on after ``step`` of ``total`` steps, and logs ``every`` so many."""
        self.folder, self.step, self.total = folder, step, total
        self.every, self.show = every, show and has_bar()
        self.lines = show and not self.show
        self.characters, self.bits = 0, ""

    def __enter__(self) -> Self:
        from tqdm.auto import tqdm

        with ExitStack() as stack:  # what was opened is closed if the next one fails
            self.log = JsonLog(self.folder / LOG, self.step)
            self.board = tensorboard(self.folder, self.step)
            if self.board:
                stack.callback(self.board.close)
            bar = tqdm(total=self.total, initial=self.step, unit="step", disable=not self.show)
            self.bar = stack.enter_context(bar)
            self.stack = stack.pop_all()
        before = self.log.lines[-1]["seconds"] if self.log.lines else 0.0
        self.last = time.perf_counter()
        self.start = self.last - before
        self.told = self.last
        return self

    def __call__(self, done: StepResult) -> None:
        """Count a step; show and log it if it is due."""
        self.characters += done.characters
        self.bar.update()
        measured = vars(done.bound) if done.bound is not None else {}
        if measured:
            self.bits = f"{measured['bits_per_character']:.3f} bits/char, "
        if not measured and done.step < self.total and done.step % self.every:
            return
        now = time.perf_counter()
        speed = round(self.characters / (now - self.last))
        self.characters, self.last = 0, now
        words = f"loss {done.loss:.3f}, {self.bits}{speed:,} char/s"
        self.bar.set_postfix_str(words)
        if self.lines and (measured or now - self.told >= SECONDS_BETWEEN_LINES):
            self.told = now
            print(f"step {done.step:,} of {self.total:,}: {words}", file=sys.stderr, flush=True)
        line = {"step": done.step, "loss": done.loss, "seconds": round(now - self.start, 3)}
        line |= {"characters_per_second": speed} | measured
        self.log.write(line)
        for name in line.keys() - {"step", "seconds"} if self.board else ():
            self.board.add_scalar(name, line[name], done.step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()
        if self.log.lines:
            save_curve(self.log.lines, self.folder / CURVE)
