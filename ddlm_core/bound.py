# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""The bound on negative log-likelihoods, estimated on validation windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddlm_core.forward import perturb_batch
from ddlm_core.graph import ScoreModel, graph_of
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.noise import NoiseSchedule
from ddlm_core.objective import compute_loss, proposal_times
from ddlm_core.reverse import reverse_probs
from ddlm_core.tokenizer import PAD_ID

__all__ = ["Bound", "window_nats", "validation_bound"]


@dataclass(frozen=True)
class Bound:
    r"""An estimated upper bound on $-\log p$; windows are counted with their padding."""

    nats_per_window: float
    bits_per_character: float  # padding is no character


@torch.inference_mode()
def window_nats(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    generator: torch.Generator,
    times: Callable[..., tuple[Tensor, Tensor]] = proposal_times,
) -> Tensor:
    """One-sample estimates of the whole bound for windows int64 (B, L), in nats per window: (B,).

    ``times(B, noise, generator=…)`` gives times and their importance weights, each (B,).
    """
    t, weight = (v.to(x_0.device) for v in times(len(x_0), noise, generator=generator))
    diffusion = weight * compute_loss(model, x_0, noise, t, generator=generator)
    first, vocab_size = noise.sigma_bar(torch.zeros_like(t)), model.config.vocab_size
    graph = graph_of(model)
    x_t = perturb_batch(x_0, first, vocab_size, None, generator, graph.sample_prior)
    x_t, which = x_t.unique(dim=0, return_inverse=True)  # almost all come through unchanged
    probs = reverse_probs(model, x_t, first[: len(x_t)], 0 * first[: len(x_t)])
    last = -probs[which].gather(-1, x_0[..., None]).log().mean((1, 2))
    prior = graph.prior_kl(noise.sigma_max, vocab_size).item()
    return (diffusion + last + prior) * x_0.shape[1]


def validation_bound(
    model: DiscreteDiffusionTransformer, loader: DataLoader, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    assert loader.batch_size  # None would mean windows, not batches
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long().split(loader.batch_size)
    noise = model.config.noise
    nats = [window_nats(model, x_0.to(device), noise, generator) for x_0 in windows]
    per_window = torch.cat(nats).double().mean().item()
    characters = sum((x_0 != PAD_ID).sum().item() for x_0 in windows) / len(torch.cat(windows))
    return Bound(per_window, per_window / max(1, characters) / math.log(2))
