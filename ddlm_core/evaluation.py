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
    "sweep",
    "estimate_bound",
    "bits_per_character",
    "wilson",
    "first_flaw",
    "word_entropy",
]

_Z = 1.96  # a bell curve has 95 % of its area within so many standard deviations


def _student(freedom: int) -> float:
    """The same of Student's t, to 0.002: a table, and beyond it the expansion in 1/freedom."""
    if freedom < 6:
        return (12.706, 4.303, 3.182, 2.776, 2.571)[freedom - 1]
    return _Z + 2.372 / freedom + 2.823 / freedom**2 + 2.56 / freedom**3


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
    r"""The mean of ``values`` and its 95 % interval.

    Args:
        values: measurements of any shape, in any unit; of shape (n,), independent and at least two
            if ``error`` is not given.
        error: the standard error of the mean, in the same unit, if it is known; by default
            $s/\sqrt n$, with the factor of Student's t for n values in place of 1.96.
    """
    mean, factor = values.mean().item(), _Z
    if error is None:
        error, factor = values.std().item() / len(values) ** 0.5, _student(len(values) - 1)
    return Estimate(mean, mean - factor * error, mean + factor * error)


def spread_times(
    count: int, noise: NoiseSchedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Stratified times, a quarter uniform in t, the rest in f + f², with importance weights dt/dU.

    Args:
        count: number of times.
        noise: the schedule; f is its corruption probability.
        generator: draws the one offset of all times; its device is that of the results.

    Returns:
        times in [0, 1] and weights, float32 (count,) each: the mean of weight times value is an
        unbiased estimate of the integral of the value over t.
    """
    u = low_discrepancy_times(count, generator).double()
    t = torch.linspace(0, 1, 1025, dtype=torch.float64, device=u.device)
    f = resample_probability(noise.sigma_bar(t))
    g = f + f**2
    share = t / 4 + 3 / 4 * (g - g[0]) / (g[-1] - g[0])  # U(t)
    k = torch.searchsorted(share, u, right=True)  # the first entry above u
    weight = (t[k] - t[k - 1]) / (share[k] - share[k - 1])
    return (t[k - 1] + weight * (u - share[k - 1])).float(), weight.float()


def sweep(model: ScoreModel, x_0: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """One unbiased estimate of the bound on windows: the mean over noise levels of :func:`spread_times`.

    Args:
        model: as in :func:`estimate_bound`.
        x_0: windows, int64 (N, L), on the model's device.
        levels: noise levels for each window.
        generator: a CPU generator.

    Returns:
        nats per window, a float64 scalar on the CPU, without gradient.
    """
    rows = x_0[torch.randperm(len(x_0), generator=generator)].repeat(levels, 1)
    return (
        window_nats(model, rows, model.config.noise, generator, spread_times).cpu().double().mean()
    )


def estimate_bound(
    model: ScoreModel, tokens: Tensor, repeats: int = 8, seed: int = 0, *, of: str = "text"
) -> Estimate:
    r"""The bound on $-\log p$ (negative ELBO) in nats per window, padding included.

    The 95 % interval of a text covers the noise drawn here; that of a source also which windows
    were drawn from it. Neither covers the distance to $-\log p$, nor another training run.

    Args:
        model: in ``eval()`` mode, with its noise in ``model.config``.
        tokens: windows, integers (N, L), on its device; for a source a random sample of 64 or more.
        repeats: noise levels for each window, for a text at least 2 and above 16 rounded up to a
            multiple of 16; for a few windows, 256 / N or more.
        seed: of all noise; the same seed gives the same estimate.
        of: "text", these windows, or "source", what they were drawn from.

    Raises:
        UserError: if there is no token, too few windows or repeats, or no such ``of``.
    """
    enough = {"text": repeats > 1, "source": repeats > 0 and len(tokens) > 1}
    if tokens.ndim != 2 or not tokens.numel() or not enough.get(of, False):
        got = f"{tuple(tokens.shape)}, {repeats} repeats, of={of!r}"
        raise UserError(
            f"need tokens (N, L) of a text, 2 repeats, or of a source, N > 1; got {got}"
        )
    if of == "text":
        parts = [tokens.long()] * min(repeats, 16)
        repeats = math.ceil(repeats / len(parts))
    else:
        parts = list(tokens.long().tensor_split(min(len(tokens), 16)))
    generator = torch.Generator().manual_seed(seed)
    return mean_of(torch.stack([sweep(model, part, repeats, generator) for part in parts]))


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
