"""What a training run shows and leaves: a progress bar, a log, TensorBoard, a picture of the curve.

It also hears the signals that ask the run to stop.
"""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

LOG, CURVE = "train_log.jsonl", "curve.png"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def save_curve(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and bound against the steps."""
    from matplotlib.figure import Figure

    measured = [line for line in lines if "bits_per_character" in line]
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    steps = [line["step"] for line in lines]
    above.plot(steps, [line["loss"] for line in lines], color="#0072B2", linewidth=0.8)
    above.set_ylabel("training loss (nats a token)")
    steps = [line["step"] for line in measured]
    below.plot(steps, [line["bits_per_character"] for line in measured], "o-", color="#D55E00")
    below.set_ylabel("validation bound (bits a character)")
    below.set_xlabel("step")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    part.replace(path)


class Progress:
    """The user's side of a run, as a context; only the first process shows and writes anything."""

    def __init__(self, trainer: Any) -> None:
        self.config, self.trainer, self.folder = trainer.config, trainer, trainer.folder
        self.total, self.main = trainer.total, trainer.accelerator.is_main_process
        self.signals: list[int] = []
        self.handlers: dict[int, Any] = {}
        self.characters, self.bits = 0, ""

    @property
    def stop(self) -> bool:
        """Whether a signal asked to stop after this step."""
        return bool(self.signals)

    def __enter__(self) -> "Progress":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._hear)
        if self.main:
            self._open()
        return self

    def _hear(self, number: int, frame: Any) -> None:
        """The fourth signal stops at once (a launcher may well send two for one Ctrl-C)."""
        self.signals.append(number)
        if len(self.signals) > 3:
            raise KeyboardInterrupt

    def _open(self) -> None:
        from tqdm.auto import tqdm

        self.folder.mkdir(parents=True, exist_ok=True)
        step = self.trainer.step  # lines after it belong to steps that are done again
        self.lines = [line for line in read_log(self.folder / LOG) if line["step"] <= step]
        part = self.folder / (LOG + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        part.replace(self.folder / LOG)
        self.board = self._tensorboard(step)
        before = self.lines[-1]["seconds"] if self.lines else 0.0
        self.start = time.perf_counter() - before
        self.last = time.perf_counter()
        quiet = not self.config.progress
        self.bar = tqdm(total=self.total, initial=step, unit="step", disable=quiet)

    def _tensorboard(self, step: int) -> Any:
        try:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)

    def note(self, loss: float, characters: int, bound: Any = None) -> None:
        """Show and log a step on so many characters, with the bound if it was measured."""
        self.characters += characters
        self.bar.update()
        if bound is not None:
            self.bits = f"{bound.bits_per_character:.3f} bits/char, "
        step = self.trainer.step
        if bound is None and step < self.total and step % self.config.log_every_steps:
            return
        now = time.perf_counter()
        line = {"step": step, "loss": loss, "seconds": round(now - self.start, 3)}
        line["characters_per_second"] = round(self.characters / (now - self.last))
        self.characters, self.last = 0, now
        line |= asdict(bound) if bound is not None else {}
        speed = f"{line['characters_per_second']:,} char/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}, {self.bits}{speed}")
        self.lines.append(line)
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name in line.keys() - {"step", "seconds"} if self.board else ():
            self.board.add_scalar(name, line[name], step)

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.main:
            self.bar.close()
            if self.board:
                self.board.close()
            if self.lines:
                save_curve(self.lines, self.folder / CURVE)
