# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.
"""How good is it, really?"""

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.tokenizer import PAD_ID
from ddlm_core.training import low_discrepancy_times, window_nats

__all__ = ['Estimate', 'mean_of', 'spread_times', 'bound_draws', 'estimate_bound', 'bits_per_character', 'wilson', 'word_entropy']  # fmt: skip

_Z = 1.96  # a bell curve has 95 % of its area within so many standard deviations


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval, plain floats."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit; ``factor`` is above 0."""
        return Estimate(*(factor * value for value in self))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def mean_of(values: Tensor, error: float | None = None) -> Estimate:
    """Mean and 1.96 standard errors to both sides; if not given, those of independent values (n,)."""
    mean = values.mean().item()
    error = values.std().item() / len(values) ** 0.5 if error is None else error
    return Estimate(mean, mean - _Z * error, mean + _Z * error)


def spread_times(
    count: int, noise: GeometricNoise, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A comb of times, half uniform in t, half in the corrupted fraction, and their weights dt/dU."""
    u = low_discrepancy_times(count, generator).double()
    t = torch.linspace(0, 1, 1025, dtype=torch.float64)
    fraction = resample_probability(noise.sigma_bar(t))
    share = (t + (fraction - fraction[0]) / (fraction[-1] - fraction[0])) / 2  # U(t)
    k = torch.searchsorted(share, u, right=True).clamp(1, 1024)
    weight = (t[k] - t[k - 1]) / (share[k] - share[k - 1])
    return (t[k - 1] + weight * (u - share[k - 1])).float(), weight.float()


@torch.inference_mode()
def bound_draws(model: nn.Module, x_0: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Estimates of the bound from one noise level each, nats per window (N, L): (repeats, N)."""
    nats = window_nats(model, x_0.repeat(repeats, 1), model.config.noise, generator, spread_times)
    return nats.view(repeats, len(x_0)).double().cpu()


def estimate_bound(model: nn.Module, tokens: Tensor, repeats: int = 8, seed: int = 0) -> Estimate:
    r"""The bound on $-\log p$ in nats per window, padding included, over all noise levels.

    The 95 % interval covers the noise drawn here and, if the windows are dozens and a random
    sample of a source, their choice; not the distance to $-\log p$, nor another training run.

    Args:
        model: in ``eval()`` mode, with its noise in ``model.config``.
        tokens: windows, integers (N, L), on its device.
        repeats: noise levels for each window, at least 2; for a few windows, 256 / N or more.
    """
    if tokens.ndim != 2 or not tokens.numel() or repeats < 2:
        raise ValueError(f"need tokens (N, L) and 2 repeats, got {tuple(tokens.shape)}, {repeats}")
    generator = torch.Generator().manual_seed(seed)
    parts = tokens.long().split(max(1, 64 // repeats))
    nats = torch.cat([bound_draws(model, part, repeats, generator) for part in parts], dim=1)
    of_noise = nats.diff(dim=0).square().mean() / 2 / nats.numel()
    of_windows = nats.mean(0).var() / len(tokens) if len(tokens) > 1 else of_noise
    return mean_of(nats, max(of_noise, of_windows).item() ** 0.5)


def bits_per_character(nats: Estimate, tokens: Tensor) -> Estimate:
    """Nats per window (N, L) as bits for each character of ``tokens``; ``<PAD>`` is no character."""
    return nats.scaled(len(tokens) / (tokens != PAD_ID).sum().clamp(min=1).item() / math.log(2))


def wilson(hits: int, n: int) -> Estimate:
    """A share of n independent trials and its 95 % interval (Wilson 1927)."""
    center, spread = (hits + _Z**2 / 2) / (n + _Z**2), _Z / (n + _Z**2)
    half = spread * math.sqrt(hits * (n - hits) / n + _Z**2 / 4)
    return Estimate(hits / n, max(0.0, center - half), min(1.0, center + half))


def word_entropy(texts: list[str]) -> float:
    """Entropy of the words that occur in ``texts``, in nats a word: low if they are always the same."""
    counts = torch.tensor(list(Counter(" ".join(texts).split()).values())).double()
    return torch.distributions.Categorical(counts).entropy().item()
