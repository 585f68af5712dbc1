"""What tests and chapters share: a small network whose every weight is random, and texts for it."""

from typing import Any

import torch
from torch import Tensor, nn

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

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
