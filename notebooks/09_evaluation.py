# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How good is it, really?
#
# **We have** a trained network ([chapter 8](08_training.ipynb)), a sampler ([chapter 7](07_sampler.ipynb)), and
# a world whose entropy we know ([chapter 2](02_stories.ipynb)). **We want** numbers that say how good the model
# is, each with an honest "give or take". **Why**: a model that writes one nice story proves nothing. A number
# without an interval may be luck. And almost every single number can be cheated: a sampler that always writes
# the same perfect story has no flaws at all.
#
# So this chapter looks from four sides:
#
# 1. **the bound**: how many bits does the model need for a character, and how far is that from the least possible?
# 2. **samples**: how many are flawless, how many are copies, and what breaks first in the others?
# 3. **steps**: what does a faster sampler cost, and does it only look good because it is dull?
# 4. **the competition**: a left-to-right model with the same network, data and optimizer.

# %% [markdown]
# ## By hand: a language of two letters
#
# Take a language with two letters. Each letter is *a* with probability $\tfrac34$ and *b* with probability
# $\tfrac14$, whatever came before. A **bit** is the surprise of a fair coin: a letter of probability $p$ has a
# surprise of $-\log_2 p$ bits. So *a* has $0.415$ bits, *b* has $2$, and on average a letter has
#
# $$ H = \tfrac34\cdot 0.415 + \tfrac14\cdot 2 = 0.811 \text{ bits.} $$
#
# This is the entropy of the language, and no model can do better. What does a model score that believes
# something else, say that *a* has probability $q$? Its surprise is $-\log_2 q$ at an *a* and $-\log_2(1-q)$ at
# a *b*. The letters still come as the *language* says, so its average is
# $-\tfrac34\log_2 q - \tfrac14\log_2(1-q)$, called the **cross-entropy**, in **bits per character**:

# %%
import math

for q in (0.5, 0.75, 0.9):
    score = -3 / 4 * math.log2(q) - 1 / 4 * math.log2(1 - q)
    print(f"believes a has probability {q:.2f}: {score:.3f} bits per character")

# %% [markdown]
# Knowing nothing costs 1 bit, knowing the truth 0.811, being too sure of oneself 1.  The **gap**
# $1 - 0.811 = 0.189$ is the part of the score that learning could remove. The rest is in the nature of the
# language. For English nobody knows which part is which. For our two letters, and for the stories of chapter 2,
# we do.
#
# (Inside the code we count in nats, as before. One nat is $1/\log 2 = 1.4427$ bits.)
#
# ### The error of a mean
#
# The average above was exact because we knew the probabilities. Usually we only have a sample. Take $n$ letters,
# write down the surprise $v_i$ of each, and take the mean $\bar v = \tfrac1n\sum_i v_i$. How far may it be from
# the true mean $\mu$? Let each $v_i$ scatter around $\mu$ with variance $s^2$, independently of the others.
# Variances of independent numbers add, and a factor $\tfrac1n$ enters squared:
#
# $$ \operatorname{Var}(\bar v) = \frac1{n^2}\,(s^2+\dots+s^2) = \frac{s^2}{n}. $$
#
# Its root, $s/\sqrt n$, is the **standard error**. For large $n$ the mean is distributed almost as a bell curve,
# which has 95 % of its area within 1.96 standard deviations. So the interval
#
# $$ \bar v \pm 1.96\,\frac{s}{\sqrt n} $$
#
# contains $\mu$ in 95 of 100 cases. Four times the work buys half the width.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $v$, $n$ | `values`, `len(values)` | independent measurements, their number |
# | $\bar v$, $s$ | `values.mean()`, `values.std()` | their mean and standard deviation |
# | $s/\sqrt n$ | `error` | standard error |
# | $N$, $L$ | rows and columns of `tokens` | windows, and tokens in each |
# | $R$ | `repeats` | noise levels tried on each window |

# %% tags=["export"]
from typing import NamedTuple

from torch import Tensor

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


# %% [markdown]
# The picture: forty people measure the language, each with a hundred letters of their own. Most of the intervals
# reach the truth (the line). The few that do not are drawn dashed. Nobody can tell from the inside whether theirs
# is one of those.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

plt.style.use("ddlm_core.book")

g = torch.Generator().manual_seed(5)
entropy_bits = -3 / 4 * math.log2(3 / 4) - 1 / 4 * math.log2(1 / 4)
for person in range(40):
    is_b = torch.rand(100, generator=g) < 1 / 4
    found = mean_of(torch.where(is_b, 2.0, -math.log2(3 / 4)))
    hit = found.low <= entropy_bits <= found.high
    color, style = ("C0", "-") if hit else ("C1", "--")
    plt.plot([person] * 2, [found.low, found.high], style, color=color)
    plt.plot(person, found.mean, "o", color=color)
plt.axhline(entropy_bits, color="0.5", linewidth=1)
plt.xlabel("person")
plt.ylabel("bits per character")
plt.show()


# %% tags=["test"]
import pytest


def test_mean_and_interval():
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    error = (14 / 3) ** 0.5 / 2  # squares of the distances from 3 add up to 14
    assert found == pytest.approx((3, 3 - 1.96 * error, 3 + 1.96 * error))
    assert all(type(value) is float for value in found)
    assert found.scaled(2) == pytest.approx(tuple(2 * value for value in found))
    assert f"{Estimate(1.0, 0.5, 1.5):.2f}" == "1.00 (0.50 to 1.50)"


test_mean_and_interval()

# %% [markdown]
# ## The bound, give or take
#
# A left-to-right model tells the probability of a text. Ours does not: it gives an upper *bound* on $-\log p$, an
# average over all ways to make noise from the text ([chapter 5](05_loss.ipynb)). We draw some of these ways, and
# average. So we have the error of a mean, and have to know how single estimates scatter.
#
# ### A network that needs no training
#
# Try it where the answer is known. Here is a network for the language of two letters. Whatever it sees, it
# believes that each letter is *a* with probability $q$. As a model of texts it is as simple as it looks: a text has
# the product of the probabilities of its letters. And its bound is more than a bound. The condition for equality
# in chapter 5 was that the noise is undone as in the language that *the network believes in*. One position after
# the other is all there is to independent letters, so that is the case, and the bound must be $-\log$ of the
# product: a count of letters.


# %% tags=["test"]
from types import SimpleNamespace

import torch
from torch import Tensor

from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise


class Letters:
    """A network that believes in independent letters, whatever it sees."""

    def __init__(self, *probs: float) -> None:
        self.log_q = torch.tensor(probs, dtype=torch.float64).log()
        self.config = SimpleNamespace(vocab_size=len(probs), noise=GeometricNoise())

    def denoise(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.log_q.expand(*x_t.shape, -1)

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar.double(), x_t)

    def nats(self, tokens: Tensor) -> Tensor:
        """Exact -log q of each window (N, L): (N,)."""
        return -self.log_q[tokens].sum(-1)


def draw(windows: int, length: int, g: torch.Generator) -> Tensor:
    """Windows of the two-letter language."""
    return (torch.rand(windows, length, generator=g) < 1 / 4).long()


# %% [markdown]
# ### A lottery at the clean end
#
# [Chapter 8](08_training.ipynb) draws noise levels uniformly in the corrupted fraction $f=1-e^{-\bar\sigma}$, and
# so did the first version of this chapter. It was wrong by surprisingly much: of intervals that should hit 95 times
# in a hundred, 72 did. Here is why. At a small $f$, a window of $L$ letters comes out untouched, and costs
# nothing, except with probability about $Lf$. But *then* the cost is high. A letter has moved, so little noise is
# left to undo, and the true ratio $1+\kappa$ at the clean letter is about $V/f$. So the loss there is of order
# $1/f$, if the network cannot be sure what the letter was.
#
# Probability $Lf$ times a prize of order $1/f$: the mean is harmless. The mean *square*, $Lf\cdot\tfrac1{f^2}$, grows
# like $1/f$. That is a lottery with rare, large prizes. Whoever has not seen a prize yet thinks that both the mean
# and its error are small.
#
# Uniform times $t$ do not have this problem. They go to small fractions so often ($dt\propto d\bar\sigma/\bar\sigma$)
# that an estimate is divided by a density of about $1/f$, and stays bounded. But in exchange they leave few samples
# for the middle, where a trained network pays most. So use both: **half of the levels uniform in $f$, half
# uniform in $t$**. The density of the mixture is never less than half of either, so no estimate is more than
# twice what the better of the two would give.
#
# One comb for the mixture needs its cumulative share $U(t) = \tfrac12\big(t + \frac{f(t)-f(0)}{f(1)-f(0)}\big)$ and
# the $t$ at which $U(t)=u$. There is no formula for that, but a table will do: $U$ at 1025 times, straight lines
# between them. The density of $t$ is then constant between two entries, and the weight is *exactly* its inverse,
# $\Delta t/\Delta U$. So the table makes no error at all in the mean.


# %% tags=["export"]
import torch
from torch import Tensor, nn

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import compute_loss, low_discrepancy_times, prior_kl
from ddlm_core.noise import GeometricNoise, corrupted_fraction
from ddlm_core.sampler import reverse_probs


def spread_times(
    count: int, noise: GeometricNoise, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A comb of times, half uniform in t, half in the corrupted fraction, and their weights dt/dU."""
    u = low_discrepancy_times(count, generator).double()
    t = torch.linspace(0, 1, 1025, dtype=torch.float64)
    fraction = corrupted_fraction(noise.sigma_bar(t))
    share = (t + (fraction - fraction[0]) / (fraction[-1] - fraction[0])) / 2  # U(t)
    k = torch.searchsorted(share, u, right=True).clamp(1, 1024)
    weight = (t[k] - t[k - 1]) / (share[k] - share[k - 1])
    return (t[k - 1] + weight * (u - share[k - 1])).float(), weight.float()


# %% [markdown]
# Now the bound itself, with its three terms: the diffusion part at one noise level, the reconstruction at $t=0$, the
# prior at $t=1$. Each window gets $R$ levels, one comb for all. (Almost all windows come through the tiny noise at
# $t = 0$ unchanged. `unique` asks the network only once for equal ones.) Nothing is clamped or left out.


# %% tags=["export"]
@torch.inference_mode()
def bound_draws(model: nn.Module, x_0: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Estimates of the bound from one noise level each, nats per window (N, L): (repeats, N)."""
    noise, vocab_size = model.config.noise, model.config.vocab_size
    rows = x_0.repeat(repeats, 1)
    t, weight = (v.to(x_0.device) for v in spread_times(len(rows), noise, generator))
    diffusion = weight * compute_loss(model, rows, noise, t, generator=generator)
    first = noise.sigma_bar(torch.zeros_like(t))
    x_t = perturb_batch(rows, first, vocab_size, generator=generator)
    x_t, which = x_t.unique(dim=0, return_inverse=True)
    probs = reverse_probs(model, x_t, first[: len(x_t)], 0 * first[: len(x_t)])
    last = -probs[which].gather(-1, rows[..., None]).log().mean((1, 2))
    nats = (diffusion + last + prior_kl(noise.sigma_max, vocab_size).item()) * rows.shape[1]
    return nats.view(repeats, len(x_0)).double().cpu()


# %% [markdown]
# The picture shows the lottery. Each dot is one estimate, from a window of twenty letters at one noise level. On the
# left the levels are uniform in $f$: the lower the noise, the rarer and the larger the prizes, and there is no end
# to that. On the right is the mixture. (The dots at the bottom are windows that came out untouched.)

# %% tags=["hide-input"]
from ddlm_core.training import proposal_times

g, model, noise = torch.Generator().manual_seed(0), Letters(0.6, 0.4), GeometricNoise()
text = draw(3000, 20, g)
figure, axes = plt.subplots(1, 2, sharey=True)
for axis, propose, title in (
    (axes[0], lambda: proposal_times(3000, noise, 1.0, generator=g), "uniform in f"),
    (axes[1], lambda: spread_times(3000, noise, g), "half in f, half in t"),
):
    t, weight = propose()
    nats = 20 * weight * compute_loss(model, text, noise, t, generator=g)
    axis.plot(corrupted_fraction(noise.sigma_bar(t)), nats.clamp(min=0.3), ".", markersize=2)
    axis.set(xscale="log", yscale="log", xlabel="corrupted fraction f", title=title)
axes[0].set_ylabel("one estimate (nats)")
plt.show()

# %% [markdown]
# ### Two questions, two errors
#
# Call the results $v_{rn}$, for the $r$-th level of window $n$. The estimate is the mean of all $RN$ of them. Its
# error depends on what you ask.
#
# **"What is the bound of this text?"** Then the windows are given, and only the noise is chance. The numbers
# $v_{rn}$ and $v_{r+1,n}$ belong to the same window, and their noise levels are neighbors on the comb. So they
# differ almost by chance alone. A difference of two independent numbers has twice the variance of one. So, with a bar
# for the mean over all neighbors,
#
# $$ s_\text{noise}^2 \approx \tfrac12\,\overline{(v_{r+1,n}-v_{rn})^2}, \qquad
#    \text{error}^2 = \frac{s_\text{noise}^2}{RN}. $$
#
# (Where neighboring levels have different means, the difference is larger than chance, and so is the interval.
# That is the side to err on.)
#
# **"What is the bound of texts like these?"** Then the windows are a sample, too. Take the mean
# $\bar v_n=\tfrac1R\sum_r v_{rn}$ of each window. These $N$ numbers hold both kinds of chance:
#
# $$ \text{error}^2 = \frac{\operatorname{Var}_n(\bar v_n)}{N}. $$
#
# We take the larger of the two. With many windows that is nearly always the second, and then the interval is good
# for both questions. A single window has no second error, and the interval answers the first question only.


# %% tags=["export"]
import math

from ddlm_core.tokenizer import PAD_ID


def estimate_bound(model: nn.Module, tokens: Tensor, repeats: int = 8, seed: int = 0) -> Estimate:
    r"""The bound on $-\log p$ in nats per window, padding included, over all noise levels.

    The 95 % interval covers the noise drawn here. If there are dozens of windows, a random sample
    of a source, it also covers which ones they are, and so holds for the source. It does not
    cover how far the bound is above $-\log p$, nor what another training run would give.

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


def bits_per_character(nats_per_window: Estimate, tokens: Tensor) -> Estimate:
    """The same in bits for each character of these windows (N, L); ``<PAD>`` is no character."""
    characters = (tokens != PAD_ID).sum().clamp(min=1).item()
    return nats_per_window.scaled(len(tokens) / characters / math.log(2))


# %%
g = torch.Generator().manual_seed(0)
text = draw(400, 10, g)
for q in (0.5, 0.75, 0.9):
    model = Letters(q, 1 - q)
    bound = estimate_bound(model, text).scaled(1 / 10 / math.log(2))
    exact = model.nats(text).mean().item() / 10 / math.log(2)
    print(f"q = {q:.2f}: bound {bound:.3f} bits per character; counted: {exact:.3f}")

# %% [markdown]
# These are the scores from the first page, up to the error, although noise, ratios and score entropy lie between.
# Do 95 of 100 intervals hit? Repeat it two hundred times: with two windows (is the bound of *these two* hit?), and
# with forty new ones each time (is the cross-entropy of the *language* hit?).


# %% tags=["test"]
import pytest


def share_of_hits(windows: int, repeats: int, fixed: bool, runs: int = 200) -> float:
    """How often the interval holds the bound of the text (fixed), or that of the language."""
    g, model, hits = torch.Generator().manual_seed(1), Letters(0.6, 0.4), 0
    language = -20 * (0.75 * math.log(0.6) + 0.25 * math.log(0.4))
    text = draw(windows, 20, g)
    for run in range(runs):
        text = text if fixed else draw(windows, 20, g)
        truth = model.nats(text).mean().item() if fixed else language
        found = estimate_bound(model, text, repeats, seed=run)
        hits += found.low <= truth <= found.high
    return hits / runs


def test_interval_hits_the_bound_of_a_text():
    assert 0.9 <= share_of_hits(windows=2, repeats=64, fixed=True) < 0.995


def test_interval_hits_the_bound_of_a_language():
    assert 0.9 <= share_of_hits(windows=60, repeats=4, fixed=False) < 0.995


test_interval_hits_the_bound_of_a_text()
test_interval_hits_the_bound_of_a_language()


# %% tags=["test"]
def test_levels_are_spread_and_weights_keep_the_integral():
    noise, g = GeometricNoise(), torch.Generator().manual_seed(0)
    t, weight = spread_times(4096, noise, g)
    assert t.min() >= 0 and t.max() <= 1 and weight.max() < 2.001
    assert weight.mean().item() == pytest.approx(1, abs=1e-3)  # the integral of 1 over [0, 1]
    f = corrupted_fraction(noise.sigma_bar(t))
    in_the_middle = ((f > 0.3) & (f < 0.7)).double().mean().item()
    assert in_the_middle > 0.2  # 0.4 of the half that is uniform in f
    assert (t < 0.2).double().mean().item() > 0.1  # 0.2 of the half that is uniform in t


def test_bound_counts_windows_and_characters():
    model, text = Letters(0.1, 0.2, 0.3, 0.4), torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    found, exact = estimate_bound(model, text[:1], 4000), model.nats(text)[0].item()
    assert found.low < exact < found.high < 1.1 * exact
    found = estimate_bound(model, text)
    bits = bits_per_character(found, text)  # four characters: <PAD> is token 1
    assert bits.mean == pytest.approx(found.mean * 2 / 4 / math.log(2))
    assert estimate_bound(model, text.to(torch.uint8), seed=3) == estimate_bound(model, text, 8, 3)
    assert estimate_bound(model, text, seed=4) != estimate_bound(model, text, seed=3)
    for bad, repeats in ((text[0], 8), (text[:0], 8), (text, 1)):
        with pytest.raises(ValueError, match="need tokens"):
            estimate_bound(model, bad, repeats)


test_levels_are_spread_and_weights_keep_the_integral()
test_bound_counts_windows_and_characters()


# %% tags=["export"]
def wilson(hits: int, n: int) -> Estimate:
    """A share of n independent trials and its 95 % interval (Wilson 1927)."""
    center, spread = (hits + _Z**2 / 2) / (n + _Z**2), _Z / (n + _Z**2)
    half = spread * math.sqrt(hits * (n - hits) / n + _Z**2 / 4)
    return Estimate(hits / n, max(0.0, center - half), min(1.0, center + half))


# %% tags=["export"]
from collections import Counter


def word_entropy(texts: list[str]) -> float:
    """Entropy of the words that occur in ``texts``, in nats a word: low if they are always the same."""
    counts = torch.tensor(list(Counter(" ".join(texts).split()).values())).double()
    return torch.distributions.Categorical(counts).entropy().item()
