# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training: optimizers."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ddlm_core.settings import TrainingConfig
from ddlm_core.support.hardware import adamw

__all__ = ["build_optimizers", "learning_rate_factor", "default_lr_schedule", "update_average"]


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if inside and config.optimizer == "muon" else rest).append(p)
    kind, decay = adamw(config.use_8bit_optimizer), config.weight_decay
    found: dict[str, torch.optim.Optimizer] = {}
    found["adamw"] = kind(rest, config.learning_rate, config.betas, weight_decay=decay)
    if matrices:
        found["muon"] = torch.optim.Muon(matrices, config.matrix_learning_rate, decay)
    return found


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Share of the peak learning rate in a step: a linear rise, a plateau, a linear fall to 0."""
    fall = min(1.0, (total_steps - step) / max(1.0, decay_fraction * total_steps))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * max(0.0, fall)


def default_lr_schedule(config: TrainingConfig) -> Callable[[int, int], float]:
    """:func:`learning_rate_factor` as a function of the step and the number of steps."""
    warmup, decay = config.warmup_steps, config.decay_fraction
    return partial(learning_rate_factor, warmup_steps=warmup, decay_fraction=decay)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the weights; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)
