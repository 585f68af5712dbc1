"""What a run writes, and how it goes on from there: checkpoints, weights, the next batches."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddlm_core.support.files import LATEST, PREVIOUS, atomic_write, read_checkpoint


def _state(trainer: Any) -> dict[str, Any]:
    """Everything that changes during a run, but for the number of the step."""
    parts = {"model": trainer.model, "average": trainer.average, "scaler": trainer.scaler}
    return parts | trainer.optimizers


def save_checkpoint(path: Path, trainer: Any) -> None:
    """Write everything that resuming needs; what was there is kept as ``checkpoint_previous``."""
    content = {name: part.state_dict() for name, part in _state(trainer).items()}
    content |= {"step": trainer.step, "best": trainer.best, "config": asdict(trainer.config)}
    atomic_write(path, lambda part: torch.save(content, part), path.with_name(PREVIOUS))


def load_checkpoint(path: Path, trainer: Any) -> None:
    """Put a checkpoint into a trainer; a ``ValueError`` says why if it cannot be."""
    with trainer.accelerator.main_process_first():  # it may put an older one in its place
        content = read_checkpoint(path)
    try:
        for name, part in _state(trainer).items():
            part.load_state_dict(content[name])
        trainer.step, trainer.best = content["step"], content["best"]
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} belongs to another network or optimizer: {error}") from error


def save_weights(folder: Path, trainer: Any) -> None:
    """Write the averaged weights as a folder that ``from_pretrained`` loads."""
    config = asdict(replace(trainer.average.config, step=trainer.step, ema=True))
    atomic_write(folder, lambda part: trainer.average.save_pretrained(part, config=config))


def measure_and_save(trainer: Any, stopped: bool) -> Any:
    """Do what is due after a step; the validation bound, if it was measured."""
    config, at_end, bound = trainer.config, trainer.step == trainer.total, None
    epoch = len(trainer.train_loader) // trainer.parts
    save_interval = min(config.save_every_steps, config.save_every * epoch)
    if trainer.val_loader and (at_end or trainer.step % config.eval_every_steps == 0):
        bound = trainer.evaluate()
        if bound.nats_per_window < trainer.best:
            trainer.best = bound.nats_per_window
            save_weights(trainer.folder / "best_model_hf", trainer)
    if at_end:
        save_weights(trainer.folder / "final_model_hf", trainer)
    if stopped or at_end or trainer.step % save_interval == 0:
        save_checkpoint(trainer.folder / LATEST, trainer)
    return bound


def batches_from(loader: DataLoader, parts: int, step: int) -> Iterator[Tensor]:
    """The windows of each step from ``step`` on, uint8 (B, L): ``parts`` batches of an epoch, joined."""
    epoch, skip = divmod(step, len(loader) // parts)
    while True:
        if ours := hasattr(loader.sampler, "skip"):  # a WindowSampler of chapter 8
            loader.sampler.epoch, loader.sampler.skip = epoch, skip * parts * loader.batch_size
        batches = islice(loader, 0 if ours else skip * parts, len(loader) // parts * parts)
        while taken := list(islice(batches, parts)):
            yield torch.cat(taken)
        epoch, skip = epoch + 1, 0
