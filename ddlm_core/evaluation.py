# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.
"""How good a model is, in numbers that come with a 95 % confidence interval."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddlm_core.bound import window_nats
from ddlm_core.graph import ScoreModel
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.objective import low_discrepancy_times
from ddlm_core.stories import STORIES, log_prob, options, parts_of
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID

__all__ = [
    "Estimate",
    "mean_of",
    "spread_times",
    "bound_draws",
    "estimate_bound",
    "bits_per_character",
    "wilson",
    "first_flaw",
    "word_entropy",
]

_Z = 1.96  # a bell curve has 95 % of its area within so many standard deviations


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % confidence interval, plain floats of one unit."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit: all three times ``factor``, which is above 0."""
        return Estimate(*(factor * value for value in self))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def mean_of(values: Tensor, error: float | None = None) -> Estimate:
    r"""The mean of ``values`` and 1.96 standard errors to both sides.

    Args:
        values: measurements of any shape, in any unit; of shape (n,), independent and at least two
            if ``error`` is not given.
        error: the standard error of the mean, in the same unit; by default $s/\sqrt n$.
    """
    mean = values.mean().item()
    error = values.std().item() / len(values) ** 0.5 if error is None else error
    return Estimate(mean, mean - _Z * error, mean + _Z * error)


def spread_times(
    count: int, noise: NoiseSchedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Stratified times, half uniform in t, half in the corruption probability, with weights dt/dU.

    Args:
        count: number of times.
        noise: the schedule whose corruption probability is meant.
        generator: draws the one offset of all times; its device is that of the results.

    Returns:
        times in [0, 1] and weights, float32 (count,) each: the mean of weight times value is an
        unbiased estimate of the integral of the value over t.
    """
    u = low_discrepancy_times(count, generator).double()
    t = torch.linspace(0, 1, 1025, dtype=torch.float64, device=u.device)
    fraction = resample_probability(noise.sigma_bar(t))
    share = (t + (fraction - fraction[0]) / (fraction[-1] - fraction[0])) / 2  # U(t)
    k = torch.searchsorted(share, u, right=True)  # the first entry above u
    weight = (t[k] - t[k - 1]) / (share[k] - share[k - 1])
    return (t[k - 1] + weight * (u - share[k - 1])).float(), weight.float()


@torch.inference_mode()
def bound_draws(model: ScoreModel, x_0: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Single estimates of the bound, each from one noise level of :func:`spread_times`.

    Args:
        model: as in :func:`estimate_bound`.
        x_0: windows, int64 (N, L), on the model's device.
        repeats: estimates for each window.
        generator: a CPU generator.

    Returns:
        nats per window, float64 (repeats, N) on the CPU, without gradient.
    """
    nats = window_nats(model, x_0.repeat(repeats, 1), model.config.noise, generator, spread_times)
    return nats.view(repeats, len(x_0)).double().cpu()


def estimate_bound(model: ScoreModel, tokens: Tensor, repeats: int = 8, seed: int = 0) -> Estimate:
    r"""The bound on $-\log p$ (negative ELBO) in nats per window, padding included.

    The 95 % interval covers the noise drawn here and, if the windows are dozens and a random
    sample of a source, their choice; not the distance to $-\log p$, nor another training run.

    Args:
        model: in ``eval()`` mode, with its noise in ``model.config``.
        tokens: windows, integers (N, L), on its device.
        repeats: noise levels for each window, at least 2; for a few windows, 256 / N or more.
        seed: of all noise; the same seed gives the same estimate.

    Raises:
        UserError: if there is no token, or fewer than 2 repeats.
    """
    if tokens.ndim != 2 or not tokens.numel() or repeats < 2:
        raise UserError(f"need tokens (N, L) and 2 repeats, got {tuple(tokens.shape)}, {repeats}")
    generator = torch.Generator().manual_seed(seed)
    parts = tokens.long().split(max(1, 64 // repeats))
    nats = torch.cat([bound_draws(model, part, repeats, generator) for part in parts], dim=1)
    of_noise = nats.diff(dim=0).square().mean() / 2 / nats.numel()
    of_windows = nats.mean(0).var() / len(tokens) if len(tokens) > 1 else of_noise
    return mean_of(nats, max(of_noise, of_windows).item() ** 0.5)


def bits_per_character(nats: Estimate, tokens: Tensor) -> Estimate:
    """Nats per window as bits per character of these windows.

    Args:
        nats: an estimate in nats per window, such as :func:`estimate_bound` gives.
        tokens: the windows (N, L) that it is about; ``<PAD>`` does not count as a character.
    """
    return nats.scaled(len(tokens) / (tokens != PAD_ID).sum().clamp(min=1).item() / math.log(2))


def wilson(hits: int, n: int) -> Estimate:
    """A share of n independent trials and its 95 % interval (Wilson 1927, J. Am. Stat. Assoc. 22).

    Raises:
        UserError: unless ``hits`` is from 0 to ``n``, and ``n`` at least 1.
    """
    if not 0 <= hits <= n or n == 0:
        raise UserError(f"a share needs n > 0 trials and 0 to n hits, got {hits} of {n}")
    center, spread = (hits + _Z**2 / 2) / (n + _Z**2), _Z / (n + _Z**2)
    half = spread * math.sqrt(hits * (n - hits) / n + _Z**2 / 4)
    return Estimate(hits / n, max(0.0, center - half), min(1.0, center + half))


def _flaws(parts: tuple, text: str, at: int, bound: dict) -> Iterator[tuple[int, int, str]]:
    """Where each reading of ``text`` from ``at`` on gives up: (explained up to, flaw at, kind)."""
    if not parts:
        yield at, at, "end"
        return
    variable, _, form = parts[0].strip("{}").partition(".")
    for new, wanted, drawn in options(parts[0], STORIES, bound):
        place = at + len(os.path.commonprefix([text[at:], wanted]))
        if place == at + len(wanted):
            yield from _flaws(new + parts[1:], text, place, bound | drawn)
            continue
        yield place, place, "end" if place == len(text) else "spelling"
        if variable in bound:
            others = [word[form] for word in STORIES.variables[variable]]
            ends = [at + len(other) for other in others if text.startswith(other, at)]
            yield from ((end, place, parts[0].strip("{}")) for end in ends)


def first_flaw(text: str) -> tuple[int, str] | None:
    """What breaks first in a decoded text, by the reading of the grammar that explains most of it.

    Returns:
        the index of the first character that does not fit, and the kind of the flaw: the slot of
        the grammar whose agreement is broken (``hero``, ``hero.he``, …), ``end`` or ``spelling``.
        None for a story.
    """
    if log_prob(text) > -math.inf:
        return None
    plots = [parts_of(plot) for plot in STORIES.plots]
    return max(flaw for parts in plots for flaw in _flaws(parts, text, 0, {}))[1:]


def word_entropy(texts: list[str]) -> float:
    """Entropy of the words that occur in ``texts``, in nats per word: low if they repeat.

    Raises:
        UserError: if there is no word.
    """
    if not (words := " ".join(texts).split()):
        raise UserError("these texts hold no word")
    counts = torch.tensor(list(Counter(words).values())).double()
    return torch.distributions.Categorical(counts).entropy().item()
