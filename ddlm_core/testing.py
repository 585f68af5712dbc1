"""What tests and chapters share: small networks and texts, a tiny trainer, a comparison of bits."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddlm_core.data import POCKET, setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.settings import TrainingConfig
from ddlm_core.training import Trainer

SIZES = {"block_size": 160, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def tiny_network(**changes: Any) -> DiscreteDiffusionTransformer:
    """A network of a few thousand weights, no longer at its start."""
    torch.manual_seed(0)
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**SIZES | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def tiny_trainer(folder: Path, dropout: float = 0.1, **changes: Any) -> Trainer:
    """A few thousand weights at their start, 24 stories to train on, 2 to validate with, 8 steps.

    Changes are fields of ``TrainingConfig``, and ``loss_fn``, ``lr_schedule``, ``callbacks``.
    """
    torch.manual_seed(0)
    seams = {k: changes.pop(k) for k in ("loss_fn", "lr_schedule", "callbacks") if k in changes}
    settings: dict[str, Any] = {
        "dataset_name": POCKET,
        "train_samples": 20,
        "val_samples": 4,
        "batch_size": 4,
    }
    settings |= {"context_length": 160, "num_epochs": 9, "max_steps": 8, "eval_windows": 4}
    settings |= {"eval_every_steps": 4, "save_every_steps": 3, "log_every_steps": 1}
    settings |= {"mixed_precision": "no", "progress": False, "checkpoint_dir": str(folder)}
    config = TrainingConfig(**settings | changes)
    data = setup_dataloaders(
        config.dataset_name,
        train_samples=config.train_samples,
        val_samples=config.val_samples,
        context_length=config.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    sizes = SIZES | {"dropout": dropout} | config.model
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**sizes))
    return Trainer(model, data.train, data.val, config, **seams)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested structures hold the same bits."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


SMALL = {"block_size": 12, "n_layer": 4, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def small_config(**changes: Any) -> DiscreteDiffusionConfig:
    """Six letters and two special tokens, four blocks, sixteen features; ``changes`` are fields."""
    return DiscreteDiffusionConfig(**SMALL | {"vocab": ("<UNK>", "<PAD>", *"abcdef")} | changes)


def randomize(module: nn.Module, seed: int = 0, size: float = 0.3) -> nn.Module:
    """Give every weight a random value, zero-initialized ones too; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return module


def fresh_network(**changes: Any) -> DiscreteDiffusionTransformer:
    """A small network as it is made, in double precision."""
    return DiscreteDiffusionTransformer(small_config(**changes)).double().eval()


def small_network(seed: int = 0, **changes: Any) -> DiscreteDiffusionTransformer:
    """A small network of random weights, in double precision."""
    network = fresh_network(**changes)
    randomize(network, seed)
    return network


def noised_batch(batch_size: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Random tokens of 8, (B, L), and a total noise for each text from 0.01 to 10, (B,)."""
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randint(8, (batch_size, length), generator=generator)
    return x_t, torch.logspace(-2, 1, batch_size, dtype=torch.float64)
