# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
"""Several models that write on one clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddlm_core.animation import Animation, Frame, characters, iter_frames
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.support.drawing import PAD_MARK, Picture
from ddlm_core.support.errors import UserError

__all__ = ["TimedRun", "timed_run", "Comparison", "side_by_side"]


class TimedRun(NamedTuple):
    """A text while it was written, and when."""

    name: str
    frames: list[Frame]  # of the random start and each step
    seconds: list[float]  # since the beginning, of each frame


def timed_run(name: str, pipeline: BlockPipeline, **options: Any) -> TimedRun:
    """Let a model write one text, with the options of ``generate``, and look at the clock after each step."""
    frames, seconds, start = [], [], time.perf_counter()
    steps = pipeline.generate_streaming(**options)
    for frame in iter_frames((step.tokens[0], step.sigma_bar) for step in steps):
        frames.append(frame)
        seconds.append(time.perf_counter() - start)
    return TimedRun(name, frames, seconds)


@dataclass(frozen=True, repr=False)
class Comparison(Animation):
    """Several runs as one animation; see :func:`side_by_side`."""

    panels: Sequence[Picture] = ()

    def __repr__(self) -> str:
        return f"Comparison({len(self.panels)} pictures)"

    def pictures(self) -> list[Picture]:
        """All texts under each other, each with its name, its clock and its steps."""
        return list(self.panels)


def side_by_side(runs: Sequence[TimedRun], pipeline: BlockPipeline, count: int = 96) -> Comparison:
    """Runs of models with one tokenizer, that of ``pipeline``, on one clock: ``count`` pictures.

    Each text stands under its name, the seconds it has taken, and its steps. Of another kind than
    :func:`timed_run` gives, or none, they are a ``UserError``.
    """
    if not runs or count < 2:
        raise UserError("side by side needs a run and two pictures")
    tokenizer, pictures, before = pipeline.tokenizer, [], ""
    for tick in range(count):
        now = max(run.seconds[-1] for run in runs) * tick / (count - 1)
        parts = []
        for run in runs:
            here = max(sum(second <= now for second in run.seconds) - 1, 0)
            spent, last = min(now, run.seconds[-1]), len(run.frames) - 1
            head = f"{run.name}: {spent:5.2f} s, step {here:{len(str(last))}} of {last}"
            marks = characters(run.frames[here].tokens, tokenizer).replace(PAD_MARK, " ")
            parts.append(f"{head}\n{marks}")
        whole = "\n\n".join(parts)
        changed = [i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b]
        pictures.append(Picture(whole, whole, 0.0, tuple(changed)))
        before = whole
    return Comparison(
        runs[0].frames, tokenizer, "Side by side", "ddlm-side-by-side", panels=pictures
    )
