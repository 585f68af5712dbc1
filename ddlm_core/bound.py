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
from ddlm_core.objective import in_context, proposal_times
from ddlm_core.reverse import has_denoiser, reverse_probs
from ddlm_core.tokenizer import PAD_ID

__all__ = ["Bound", "window_nats", "validation_bound"]


@dataclass(frozen=True)
class Bound:
    r"""An estimated upper bound on $-\log p$; windows are counted with their padding."""

    nats_per_window: float
    bits_per_character: float  # padding is no character


def _diffusion(
    model: ScoreModel, x_0: Tensor, sigma_bar: Tensor, generator: torch.Generator
) -> Tensor:
    """Score entropy of windows (B, L) at noise (B,), mean over positions: (B,).

    If the network gives log q, each letter's own noise is averaged over, and the others' drawn.
    """
    graph, vocab_size = graph_of(model), model.config.vocab_size
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, None, generator, graph.sample_prior)
    model = in_context(model, x_0)
    if has_denoiser(model):
        return graph.expected_loss(model.denoise(x_t, sigma_bar), sigma_bar, x_0).mean(-1)
    return graph.loss(model(x_t, sigma_bar), sigma_bar, x_t, x_0).mean(-1)


def _reconstruction(
    model: ScoreModel, x_0: Tensor, sigma_bar: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of -log p(x_0 | x_t) per position at the noise (1,) of t = 0, over an eighth of the windows.

    They are drawn at random, so the mean is unbiased: the term is small and varies little.
    """
    graph, vocab_size = graph_of(model), model.config.vocab_size
    few = x_0[torch.randperm(len(x_0), generator=generator)[: math.ceil(len(x_0) / 8)]]
    x_t = perturb_batch(few, sigma_bar[0], vocab_size, None, generator, graph.sample_prior)
    pairs, which = torch.stack([x_t, few], 1).unique(dim=0, return_inverse=True)  # mostly copies
    (x_t, clean), noise = pairs.unbind(1), sigma_bar.expand(len(pairs))
    model = in_context(model, clean)
    if has_denoiser(model):
        return graph.expected_reconstruction(
            model.denoise(x_t, noise)[which], sigma_bar[0], few
        ).mean()
    probs = reverse_probs(model, x_t, noise, 0 * noise)
    return -probs[which].gather(-1, few[..., None]).log().mean()


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
    first, nats = noise.sigma_bar(torch.zeros_like(t[:1])), []
    for x, (sigma_bar, sigma), w in zip(x_0.split(64), map(noise, t.split(64)), weight.split(64)):
        diffusion = w * sigma * _diffusion(model, x, sigma_bar, generator)
        nats.append(diffusion + _reconstruction(model, x, first, generator))
    prior = graph_of(model).prior_kl(noise.sigma_max, model.config.vocab_size).item()
    return (torch.cat(nats) + prior) * x_0.shape[1]


def validation_bound(
    model: DiscreteDiffusionTransformer, loader: DataLoader, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    assert loader.batch_size  # None would mean windows, not batches
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long()
    nats = window_nats(model, windows.to(device), model.config.noise, generator)
    per_window = nats.cpu().double().mean().item()
    characters = (windows != PAD_ID).sum().item() / len(windows)
    return Bound(per_window, per_window / max(1, characters) / math.log(2))
