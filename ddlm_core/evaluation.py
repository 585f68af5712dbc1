# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""How good is it, really?"""

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.loss import ScoreModel, denoiser_log_score, kappa, low_discrepancy_times
from ddlm_core.noise import GeometricNoise, NoiseSchedule, resample_probability
from ddlm_core.stories import STORIES, Grammar, Word, log_prob, options, parts_of, skeletons
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer
from ddlm_core.training import window_nats

__all__ = [
    "Estimate",
    "mean_of",
    "UnigramModel",
    "spread_times",
    "bound_draws",
    "estimate_bound",
    "bits_per_character",
    "wilson",
    "first_flaw",
    "BayesDenoiser",
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


class UnigramModel:
    """A network that believes in independent letters of fixed probabilities, whatever it sees.

    Its bound is an equality: it is the cross-entropy of the letters, which can be counted.

    Args:
        *probs: the probability of each token of the vocabulary, each above 0, together 1.
        noise: its noise schedule, for what reads ``config.noise``; by default the standard one.
    """

    def __init__(self, *probs: float, noise: NoiseSchedule | None = None) -> None:
        self.log_q = torch.tensor(probs, dtype=torch.float64).log()
        self.config = SimpleNamespace(vocab_size=len(probs), noise=noise or GeometricNoise())

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the clean token, (B, L, V), the same everywhere, for tokens (B, L)."""
        return self.log_q.expand(*x_t.shape, -1)

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) of tokens (B, L) at noise (B,)."""
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar.double(), x_t)

    def nats(self, tokens: Tensor) -> Tensor:
        """Exact negative log-likelihood of each window (N, L) in nats: (N,)."""
        return -self.log_q[tokens].sum(-1)


def spread_times(
    count: int, noise: NoiseSchedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A comb of times, half uniform in t, half in the corrupted fraction, and their weights dt/dU.

    Args:
        count: number of times.
        noise: the schedule whose corrupted fraction is meant.
        generator: draws the one offset of the comb; its device is that of the results.

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


def _fill(skeleton: str, words: dict[str, Word]) -> str:
    """The text of a skeleton with these words in its fields."""
    cut = (part.strip("{}").partition(".") for part in parts_of(skeleton))
    return "".join(words[v][form] if v in words else v + dot + form for v, dot, form in cut)


def _templates(grammar: Grammar) -> Iterator[tuple[str, float, dict[str, list[Word]]]]:
    """Skeletons, split until all words of a variable have equally many letters in all forms."""
    for skeleton, p, _ in skeletons(grammar):
        kinds = []  # for each variable: its words, sorted by how long their forms are
        variables = sorted(set(re.findall(r"\{(\w+)", skeleton)))
        for variable in variables:
            groups: dict[tuple, list[Word]] = {}
            for word in grammar.variables[variable]:
                groups.setdefault(tuple(map(len, word.values())), []).append(word)
            kinds.append(groups.values())
        for chosen in itertools.product(*kinds):
            words = dict(zip(variables, chosen))
            share = math.prod(len(ws) / len(grammar.variables[v]) for v, ws in words.items())
            yield skeleton, p * share, words


class BayesDenoiser:
    """The Bayes-optimal denoiser of a story grammar, to be used like a trained network.

    It answers by Bayes' rule over all stories, so no network can be better; its bound is the
    entropy of the stories.

    Args:
        grammar: no text of it can be told in two ways.
        tokenizer: of the characters.
        length: tokens of a window, L; every story fits.
    """

    def __init__(self, grammar: Grammar, tokenizer: CharacterLevelTokenizer, length: int) -> None:
        self.size, slots = tokenizer.vocab_size, {}
        self.config = SimpleNamespace(vocab_size=self.size, noise=GeometricNoise())
        log_p, fixed, uses = [], [], []
        for skeleton, p, words in _templates(grammar):
            first = {variable: choice[0] for variable, choice in words.items()}
            base, used = tokenizer.pad(_fill(skeleton, first), length), []
            for v, choice in words.items():
                told = [tokenizer.pad(_fill(skeleton, first | {v: w}), length) for w in choice]
                told = torch.stack(told)  # (n, L): the text with each word of this variable
                places = (told != told[0]).any(0).nonzero()[:, 0]
                slot = tuple(places.tolist()), tuple(map(tuple, told[:, places].tolist()))
                used.append(slots.setdefault(slot, len(slots)))  # templates share most slots
                base = base.index_fill(0, places, -1)
            log_p.append(math.log(p))
            fixed.append(base)
            uses.append(one_hot(torch.tensor(used), 1000).sum(0))
        self.log_p = torch.tensor(log_p, dtype=torch.float64)  # (T,)
        self.fixed = one_hot(torch.stack(fixed) + 1, self.size + 1)[..., 1:].flatten(1).float()
        self.uses = torch.stack(uses)[:, : len(slots)].double()  # (T, slots)
        self.slots = [tuple(torch.tensor(part, dtype=torch.long) for part in s) for s in slots]

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log of its distribution over the clean token, (B, L, V), for tokens (B, L), noise (B,).

        Raises:
            UserError: if there is a ``condition_mask``, for no token can be given.
        """
        if condition_mask is not None:
            raise UserError("the Bayes denoiser takes all tokens for noisy: no condition_mask")
        factor = 1 + kappa(sigma_bar.double(), self.size)[:, None]  # (B, 1)
        same = one_hot(x_t, self.size).flatten(1).float() @ self.fixed.T  # (B, T): m_fixed
        log_weights = [
            factor.log() * (x_t[:, None, places] == told).sum(-1) for places, told in self.slots
        ]  # (B, n) for each slot
        sums = [w.logsumexp(1) - math.log(w.shape[1]) for w in log_weights]
        weight = self.log_p + factor.log() * same + torch.stack(sums, 1) @ self.uses.T
        weight = weight.softmax(1)  # (B, T): p(template | x_t)
        p = (weight.float() @ self.fixed).view(*x_t.shape, self.size)  # (B, L, V)
        in_slot = (weight @ self.uses).T  # (slots, B)
        for (places, told), w, share in zip(self.slots, log_weights, in_slot):
            words = (share[:, None] * w.softmax(1)).float()  # (B, n)
            letters = one_hot(told, self.size).float()  # (n, places, V)
            p[:, places] += torch.einsum("bn,npv->bpv", words, letters)
        heard = torch.where(one_hot(x_t, self.size) > 0, factor[..., None], 1.0)  # (B, L, V)
        q = p / heard.float()
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) of tokens (B, L) at noise (B,); errors as in ``denoise``."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return denoiser_log_score(log_q, sigma_bar, x_t)


def word_entropy(texts: list[str]) -> float:
    """Entropy of the words that occur in ``texts``, in nats per word: low if they repeat.

    Raises:
        UserError: if there is no word.
    """
    if not (words := " ".join(texts).split()):
        raise UserError("these texts hold no word")
    counts = torch.tensor(list(Counter(words).values())).double()
    return torch.distributions.Categorical(counts).entropy().item()
