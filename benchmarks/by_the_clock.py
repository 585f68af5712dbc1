"""Training for so many seconds of a core, with a learning curve, and resumable at any moment.

The clock is that of the processor (`time.process_time`, on one thread), so other programs do not
count, and it runs in training steps only: measuring, saving and compiling cost nothing. Before the
run a pilot times a few steps: so many as fit are the length of the learning-rate schedule. A module
of `autoregressive.py`.

The points of the curve lie on one long run. A run that was to end there would have lowered its
learning rate by then, and would be better.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from left_to_right import LeftToRightLoss

from ddlm_core.apps.train import network_settings, text_settings
from ddlm_core.data import batches_from, setup_dataloaders
from ddlm_core.evaluation import Estimate
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.objective import draw_step
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.checkpoints import LATEST, PREVIOUS, find_checkpoint, save_checkpoint
from ddlm_core.support.files import atomic_write
from ddlm_core.support.runs import BEST, FINAL
from ddlm_core.training import Trainer, accumulate_gradients

Measure = Callable[[DiscreteDiffusionTransformer, bool], Estimate]  # of the weights; at the end?
SAVE_EVERY = 60.0  # seconds of training between two checkpoints


def say(*words: Any) -> None:
    """A line of progress, at once."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def make_trainer(config: TrainingConfig, causal: bool) -> Trainer:
    """A new network of ``config.seed`` with its data: left to right, or diffusion."""
    network = DiscreteDiffusionConfig(**network_settings(config))
    data = setup_dataloaders(tokenizer=network.tokenizer, **text_settings(config))
    torch.manual_seed(config.seed)
    model = DiscreteDiffusionTransformer(network)
    loss_fn = LeftToRightLoss(model) if causal else None
    return Trainer(model, data.train, data.val, config, loss_fn=loss_fn)


def warm(trainer: Trainer) -> None:
    """Compile: a forward and a backward pass that move no weight."""
    x_0 = next(batches_from(trainer.train_loader, trainer.micro_batches, 0))
    drawn = draw_step(x_0, trainer.config, trainer.model, 0)
    how = (trainer.micro_batches, trainer.accelerator, trainer.state.scaler, trainer.precision)
    accumulate_gradients(trainer.loss_fn, drawn, *how)
    for parameter in trainer.model.parameters():
        parameter.grad = None


def seconds_per_step(config: TrainingConfig, causal: bool, steps: int) -> float:
    """Seconds of a core, by a pilot whose weights are thrown away."""
    trainer = make_trainer(replace(config, max_steps=None), causal)
    warm(trainer)
    batches = batches_from(trainer.train_loader, trainer.micro_batches, 0)
    trainer.train_step(next(batches))  # the optimizers make their buffers
    start = time.process_time()
    for _ in range(steps):
        trainer.train_step(next(batches))
    return (time.process_time() - start) / steps


def planned(folder: Path, plan: dict[str, Any], pilot: Callable[[], float]) -> dict[str, Any]:
    """The plan of a run with its number of steps: that of its folder, or a new one, written there."""
    path = folder / "plan.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if not plan.items() <= found.items():
            raise SystemExit(f"{folder} holds another run, {found}: name another --folder")
        return found
    each = pilot()
    steps = plan.get("steps") or max(4, round(plan["seconds"] / each))
    found = plan | {"steps": steps, "seconds_per_step": round(each, 5)}
    write_json(path, found)
    return found


def write_json(path: Path, content: Any) -> None:
    """Whole, or not at all; lists of numbers in a line."""
    text = re.sub(r'\[\n\s+([^][{}"]+?)\n\s+\]', one_line, json.dumps(content, indent=1)) + "\n"
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def points_of(total: int, count: int) -> list[int]:
    """Steps after which to measure: ``count``, evenly spaced in the logarithm from 1 % to the end."""
    shares = [10 ** (-2 * i / (count - 1)) for i in range(count)] if count > 1 else [1.0]
    return sorted({max(1, round(total * share)) for share in shares})


def train_by_clock(
    trainer: Trainer, points: list[int], measure: Measure, tell: Callable[[dict], None]
) -> dict[str, Any]:
    """Train to the end from where the folder of the run is; the seconds, and the curve.

    After each of ``points`` the averaged weights are measured, and ``tell`` is told how far the run
    is. The best and the last weights lie in the folder afterwards.
    """
    files, state = trainer.files, trainer.state
    clock: dict[str, Any] = {"seconds": 0.0, "curve": []}  # (seconds, steps, value)
    latest = files.folder / LATEST
    if latest.exists() or (files.folder / PREVIOUS).exists():
        trainer.resume(latest)
        clock = find_checkpoint(latest)[0]["clock"]
        say(f"goes on after step {state.step:,}, {clock['seconds']:.0f} s")
    tell(clock)
    if state.step < trainer.total_steps:
        warm(trainer)
    saved, batches = clock["seconds"], None
    while state.step < trainer.total_steps:
        start = time.process_time()
        if batches is None:
            batches = batches_from(trainer.train_loader, trainer.micro_batches, state.step)
        loss, _ = trainer.train_step(next(batches))
        clock["seconds"] += time.process_time() - start
        at_point = state.step in points or state.step == trainer.total_steps
        if at_point:
            _measure(trainer, clock, measure, loss)
        if at_point or clock["seconds"] - saved > SAVE_EVERY:
            saved = clock["seconds"]
            save_checkpoint(latest, state.state_dict() | {"run": files.run, "clock": clock})
            tell(clock)
    return clock


def _measure(trainer: Trainer, clock: dict[str, Any], measure: Measure, loss: float) -> None:
    """Add a point to the curve, and keep the weights if they are the best or the last."""
    state, at_end = trainer.state, trainer.step == trainer.total_steps
    value = measure(trainer.average, at_end).mean
    clock["curve"].append([round(clock["seconds"], 1), state.step, round(value, 4)])
    if value < state.best:
        state.best = value
        trainer.files.save_weights(BEST, state)
    if at_end:
        trainer.files.save_weights(FINAL, state)
    rate = f"{state.step:,} of {trainer.total_steps:,} steps, {clock['seconds']:.0f} s"
    say(f"{rate}: loss {loss:.3f}, measured {value:.3f}")
