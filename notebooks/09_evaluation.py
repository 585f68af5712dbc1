# ---
# jupyter:
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
#
# In between we build a network that cannot be better, and ask it whose fault the flaws are.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio"""
    subprocess.run([*pip, *needs.split()], check=True)

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
# Knowing nothing costs 1 bit, knowing the truth 0.811, being too sure of oneself 0.944. For the first, the **gap**
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
# contains $\mu$ in 95 of 100 cases. Four times the work buys half the width. (We do not know $s$ either, and put the
# measured one in its place. With dozens of values that is harmless; with few, the interval is too narrow.)
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $v$, $n$ | `values`, `len(values)` | independent measurements, their number |
# | $\bar v$, $s$ | `values.mean()`, `values.std()` | their mean and standard deviation |
# | $s/\sqrt n$ | `error` | standard error |
# | $N$, $L$ | rows and columns of `tokens` | windows, and tokens in each |
# | $R$ | `repeats` | noise levels tried on each window |

# %% tags=["export"]
"""How good a model is, in numbers that come with a 95 % confidence interval."""

from typing import NamedTuple

from torch import Tensor

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


# %% [markdown]
# ## The bound, give or take
#
# A left-to-right model tells the probability of a text. Ours does not: it gives an upper *bound* on $-\log p$, an
# average over all ways to make noise from the text ([chapter 5](05_loss.ipynb)). We draw some of these ways, and
# average. So we have the error of a mean, and have to know how single estimates scatter.
#
# ### A network that needs no training
#
# Try it where the answer is known. Here is a network for languages of independent letters. What does a good network
# say about a position, if its neighbors tell nothing about it? Always the same: that it is *a* with probability $q$,
# at every noise level and whatever it sees. (The letter at the position itself is not its business: the ratio adds it
# afterwards.) So this network needs no training.
#
# What is its bound? As a model of texts it is as simple as it looks: a text has the product of the probabilities of its
# letters. And for once the bound is *equal* to $-\log$ of the probability. By chapter 5 it is, if all ratios that the
# network gives, at all places and levels, are those of *one* distribution of texts (which need not be that of the
# language). The answers of a trained network need not be. Those of this one are: they belong to independent letters. So
# each bound can be checked by counting letters.


# %% tags=["export:reference"]
"""Reference networks that need no training: what they score is known, or cannot be beaten."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise, NoiseSchedule


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
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar, x_t)

    def nats(self, tokens: Tensor) -> Tensor:
        """Exact negative log-likelihood of each window (N, L) in nats: (N,)."""
        return -self.log_q[tokens].sum(-1)


# %% tags=["test"]
def draw(windows: int, length: int, g: torch.Generator) -> Tensor:
    """Windows (N, L) of the two-letter language: 1 is *b*, with probability 1/4."""
    return (torch.rand(windows, length, generator=g) < 1 / 4).long()


# %% [markdown]
# ### A lottery at the clean end
#
# [Chapter 8](08_training.ipynb) draws noise levels uniformly in the corrupted fraction $f=1-e^{-\bar\sigma}$, and so
# did the first version of this chapter. It was wrong by surprisingly much: of intervals that should hit 95 times in a
# hundred, 72 did (one window, 64 levels; exercise 4). Here is why. At a small $f$ nearly every window of $L$ letters
# comes out untouched, and its loss is modest. With a probability of about $Lf$ a letter has moved, and *then* the loss
# is large: so little noise is left that the true ratio of the clean letter to the one that stands there,
# $1+\kappa=1+V(1-f)/f$, is about $V/f$ for $V$ letters, and a network that cannot be sure of that letter misses it by a
# good part. With the weight $1/V$ of score entropy, that is a loss of order $1/f$ (and a logarithm, which we leave
# out).
#
# Probability $Lf$ times a loss of order $1/f$: at each level the mean is harmless. The mean *square*,
# $Lf\cdot\tfrac1{f^2}$, grows like $1/f$. Over all levels it is finite, $\int L/f\,df = L\log(1/f_0)$ from the least
# fraction $f_0 \approx 10^{-4}$ up to 1. But each power of ten has at least an equal part in it, and the lowest gets one level
# in a thousand. That is a lottery with rare, large prizes. Whoever has not seen a prize yet thinks that both the mean and its
# error are small.
#
# Uniform times $t$ do not have this problem. Their density over $f$ is itself proportional to $1/f$ at the clean
# end (from $dt\propto d\bar\sigma/\bar\sigma$), each estimate is divided by that density, and so it stays bounded.
# But in exchange they leave few samples for the noisier levels, where a trained network pays most. So use both:
# **half of the levels uniform in $f$, half uniform in $t$**. The density of the mixture is never less than half of
# either, so no estimate is more than twice what the better of the two would give.
#
# As in chapter 5 we want a *comb*: numbers $u$ in equal distances, with one random offset for all. For the
# mixture that needs its cumulative share $U(t) = \tfrac12\big(t + \frac{f(t)-f(0)}{f(1)-f(0)}\big)$ and
# the $t$ at which $U(t)=u$. There is no formula for that, but a table will do: $U$ at 1025 times, straight lines
# between them. The density of $t$ is then constant between two entries, and the weight is *exactly* its inverse,
# $\Delta t/\Delta U$. So the table makes no error at all in the mean.


# %% tags=["export"]
import torch
from torch import Tensor

from ddlm_core.graph import ScoreModel
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.objective import low_discrepancy_times
from ddlm_core.training import window_nats


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


# %% [markdown]
# Now the bound itself, with its three terms: the diffusion part at one noise level, the reconstruction at $t=0$, the
# prior at $t=1$. `window_nats` of chapter 8 estimates it, from whatever levels it is given. Each window gets $R$ of
# ours. All windows of a call share one comb, and its teeth are dealt out in turn: with $N$ windows, each gets every $N$-th
# tooth. Nothing is clamped or left out.


# %% tags=["export"]
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


# %% [markdown]
# The picture shows the lottery. Each dot is one estimate, from a window of twenty letters at one noise level. On the
# left the levels are uniform in $f$. The row at some 9 nats holds the windows that came out untouched. Above it are the
# prizes, and the lower the noise, the rarer and the larger they get. On the right is the mixture: it has a ceiling. (In
# both, what is below 0.3 nats is drawn at 0.3.)

# %% tags=["hide-input"]
from ddlm_core.objective import compute_loss, proposal_times

g, model, noise = torch.Generator().manual_seed(0), UnigramModel(0.6, 0.4), GeometricNoise()
text = draw(3000, 20, g)
figure, axes = plt.subplots(1, 2, sharex=True, sharey=True)
for axis, propose, title in (
    (axes[0], lambda: proposal_times(3000, noise, generator=g), "uniform in f"),
    (axes[1], lambda: spread_times(3000, noise, g), "half in f, half in t"),
):
    t, weight = propose()
    nats = 20 * weight * compute_loss(model, text, noise, t, generator=g)
    axis.plot(resample_probability(noise.sigma_bar(t)), nats.clamp(min=0.3), ".", markersize=2)
    axis.set(xscale="log", yscale="log", xlabel="corrupted fraction f", title=title)
axes[0].set_ylabel("one estimate (nats)")
plt.show()

# %% [markdown]
# ### Two questions, two errors
#
# Call the results $v_{rn}$, for the $r$-th level of window $n$. (Every $N$-th tooth of a comb
# is a comb, too.) The estimate is the mean of all $RN$ of them. Its error depends on what you ask.
#
# **"What is the bound of this text?"** Then the windows are given, and only the noise is chance. The numbers
# $v_{rn}$ and $v_{r+1,n}$ belong to the same window, and their noise levels are neighbors on its comb. So they
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

from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID


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


# %%
g = torch.Generator().manual_seed(0)
text = draw(400, 10, g)
for q in (0.5, 0.75, 0.9):
    model = UnigramModel(q, 1 - q)
    bound = estimate_bound(model, text).scaled(1 / 10 / math.log(2))
    exact = model.nats(text).mean().item() / 10 / math.log(2)
    print(f"q = {q:.2f}: bound {bound:.3f} bits per character; counted: {exact:.3f}")

# %% [markdown]
# These are the scores from the start of the chapter, up to the error, although noise, ratios and score entropy lie
# between.
#
# Do 95 of 100 intervals hit? Repeat it two hundred times. First with two windows: is the bound of *these two* hit?
# Then with sixty new ones each time, from a language that makes it hard. A window is all *a* or all *b*, so windows
# differ as much as they can. (The network takes no notice. A letter still is *a* in three of four cases, and the
# cross-entropy is the old one.) Is *that* hit? Both answers are printed below.


# %% tags=["test"]
from functools import cache


@cache
def coverage(q: float, windows: int, repeats: int, fixed: bool, runs: int = 200) -> float:
    """How often the interval holds the bound of the text (fixed), or that of the hard language."""
    g, model, covered = torch.Generator().manual_seed(1), UnigramModel(q, 1 - q), 0
    language = -20 * (0.75 * math.log(q) + 0.25 * math.log(1 - q))
    text = draw(windows, 20, g)
    for run in range(runs):
        text = text if fixed else draw(windows, 1, g).repeat(1, 20)
        truth = model.nats(text).mean().item() if fixed else language
        found = estimate_bound(model, text, repeats, seed=run)
        covered += found.low <= truth <= found.high
    return covered / runs


def test_interval_covers_the_bound_of_a_text():
    assert 0.9 <= coverage(0.6, windows=2, repeats=64, fixed=True) < 0.995


def test_interval_covers_the_bound_of_a_language():
    assert 0.9 <= coverage(0.9, windows=60, repeats=8, fixed=False) < 0.995


test_interval_covers_the_bound_of_a_text()
test_interval_covers_the_bound_of_a_language()

# %%
print(f"these two windows: {coverage(0.6, windows=2, repeats=64, fixed=True):.1%} of 200 hit")
print(f"the language:      {coverage(0.9, windows=60, repeats=8, fixed=False):.1%} of 200 hit")


# %% [markdown]
# ## The bundled model
#
# Now the model that ships with this book, on fresh stories that it has never seen. Their exact surprise is known
# ([chapter 2](02_stories.ipynb)), so we can put it beside the bound.

# %%
import json
import os
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file

from ddlm_core import stories
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the chapter runs
folder = Path(str(files("ddlm_core"))) / "pretrained/pocket-stories"
config = DiscreteDiffusionConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
network = DiscreteDiffusionTransformer(config).eval()
network.load_state_dict(load_file(folder / "model.safetensors"))
tokenizer, noise, length = config.tokenizer, config.noise, config.block_size

fresh = stories.sample(4 if smoke else 64, seed=10**6)
windows = torch.stack([tokenizer.pad(story, length) for story in fresh])
bound = estimate_bound(network, windows, repeats=8)
exact = -torch.tensor([stories.log_prob(story) for story in fresh], dtype=torch.float64)

print(f"bound          {bound:.2f} nats a story")
print(f"these stories  {exact.mean():.3f} nats, exactly (single ones differ by {exact.std():.1f})")
print(f"all stories    {stories.entropy():.3f} nats, exactly: the entropy")
print(f"bound          {bits_per_character(bound, windows):.3f} bits per character")

# %% [markdown]
# (That these stories meet the entropy so closely is luck: the error of such a mean is $s/\sqrt{64}$, some 0.3 nats.
# Padding costs nats as well: "the story is over" is something to know. It is in the sum, but it is not counted
# as characters, since no one reads it.)
#
# The **gap** is what a better model could still gain. Chapter 2 showed what it promises: at least a fraction
# $e^{-\text{gap}}$ of what the model writes is flawless. If the gap is more than 3 nats, that promise is under 5 %,
# and the truth may be far better, because a bound on nats is a strict judge: a single letter that the model holds
# for impossible costs as much as a hundred small doubts.


# %%
def promise(bound: Estimate) -> str:
    gap = Estimate(*(nats - stories.entropy() for nats in bound))
    share, low, high = (math.exp(-nats) for nats in (gap.mean, gap.high, gap.low))
    return f"gap {gap:.2f} nats: at least {share:.2%} flawless ({low:.2%} to {high:.2%})"


print(promise(bound))

# %% [markdown]
# ## Where do the nats come from?
#
# The bound is an integral over noise levels, so it has a profile. Draw it over the corrupted fraction $f$. From
# $f = 1-e^{-\bar\sigma}$ follows $d\bar\sigma = df/(1-f)$, and with $\sigma\,dt = d\bar\sigma$ the integral of
# chapter 5 (with $\ell_i$ the loss at position $i$, and $\sigma$ the rate of the noise) becomes
#
# $$ \int_0^1 \sigma(t)\;\mathbb E\sum_i \ell_i\,dt \;=\; \int_{f(0)}^{f(1)} \frac{\mathbb E\sum_i\ell_i}{1-f}\,df . $$
#
# So a bar over a range of $f$ with this height has an *area* in nats, and all bars together are the bound (up to
# the two small terms). The right half of the figure shows the other thing one should know of each level: how much
# single estimates scatter there.

# %%
bins, per_bin = (4, 2) if smoke else (16, 32)
g = torch.Generator().manual_seed(0)
means, spreads = [], []
for k in range(bins):
    f = (k + torch.rand(per_bin, generator=g, dtype=torch.float64)) / bins
    t = noise.time(-torch.log1p(-f)).clamp(0, 1).float()
    with torch.inference_mode():
        loss = length * compute_loss(network, windows[:per_bin], noise, t, generator=g)
    nats = loss / noise.sigma(t) / (1 - f)
    means.append(nats.mean().item())
    spreads.append(nats.std().item())

# %% tags=["hide-input"]
edges = [(k + 0.5) / bins for k in range(bins)]
figure, axes = plt.subplots(1, 2)
axes[0].bar(edges, means, 0.9 / bins)
axes[0].set(xlabel="corrupted fraction f", ylabel="nats per unit of f", title="area = bound")
axes[1].bar(edges, spreads, 0.9 / bins, color="C1")
axes[1].set(xlabel="corrupted fraction f", ylabel="standard deviation (nats)", title="scatter")
plt.show()

# %%
total = sum(means)
for low, high, what in (
    (0, 0.5, "up to half"),
    (0.5, 0.75, "to three quarters"),
    (0.75, 1, "more"),
):
    part = sum(mean for edge, mean in zip(edges, means) if low < edge < high)
    print(f"{what:18} of the characters corrupted: {part / total:5.1%} of the bound")
error = sum(spread**2 / per_bin for spread in spreads) ** 0.5 / bins
bars = mean_of(torch.tensor(means), error)
print(f"all bars together {bars:.2f} nats ({per_bin} stories), the bound above {bound:.2f}")

# %% [markdown]
# (The interval of the bars is too narrow: their levels are uniform in $f$, so they may have missed a prize, and the same
# stories in each bar count as different ones.)
#
# Nearly everything is paid where most of the text is noise: there the model has to *decide* what the story is
# about, and the price of that is the entropy. Once half of the letters can be read, the rest is spelling
# and agreement, and costs a good model little. That is also why few samples would do at the clean end, were it not for
# the lottery.
#
# ## Samples: a share, give or take
#
# Of $n$ samples, $h$ are flawless. The share $\hat p = h/n$ is a mean again, of ones and zeros, and such a number has
# variance $p(1-p)$. But $\hat p \pm 1.96\sqrt{\hat p(1-\hat p)/n}$ has a hole: if all of 16 samples are flawless, it
# says "100 %, give or take nothing". The fault is to put $\hat p$, which we only measured, in place of $p$, which
# decides how much we scatter. [Wilson](https://doi.org/10.1080/01621459.1927.10502953) (1927) asks it the other way
# round: *for which $p$ would our $\hat p$ be no more than $z = 1.96$ standard errors away?* The ends are where
#
# $$ (\hat p - p)^2 = z^2\,\frac{p(1-p)}{n}
#    \quad\Longleftrightarrow\quad
#    p^2\Big(1+\frac{z^2}n\Big) - p\Big(2\hat p+\frac{z^2}n\Big) + \hat p^2 = 0, $$
#
# a quadratic equation. With $h = n\hat p$ its solutions are
#
# $$ p = \frac{h + \tfrac12 z^2}{n+z^2} \;\pm\; \frac{z}{n+z^2}\sqrt{\frac{h\,(n-h)}{n} + \frac{z^2}4}. $$


# %% tags=["export"]
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


# %% tags=["test"]
def test_wilson_covers_as_often_as_it_says():
    n, hit = 40, []
    for p in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        chances = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
        intervals = [wilson(h, n) for h in range(n + 1)]
        hit.append(sum(c for c, i in zip(chances, intervals) if i.low <= p <= i.high))
    assert min(hit) > 0.92 and 0.94 < sum(hit) / len(hit) < 0.97


test_wilson_covers_as_often_as_it_says()

# %% [markdown]
# Let the model write a few. (The `churn` of [chapter 7](07_sampler.ipynb) is 1, as in the pipeline of chapter 10. How much that
# is worth, we will see below.)

# %%
import textwrap

from ddlm_core.sampler import sample_diffusion, sample_generators

count, num_steps = (2, 4) if smoke else (8, 128)
tokens = sample_diffusion(
    *(network, noise, count, length),
    num_steps=num_steps,
    schedule="cosine",
    churn=1.0,
    generator=sample_generators(9, count),
)
written = tokenizer.decode_batch(tokens)
flawless = [stories.is_flawless(row, tokenizer) for row in tokens.tolist()]
print(
    f"flawless: {sum(flawless)} of {len(written)}, a share of {wilson(sum(flawless), len(written)):.2f}"
)
for ok, text in list(zip(flawless, written))[:3]:
    print(textwrap.fill(f"{'flawless:' if ok else 'broken:  '} {text}", 100))

# %% [markdown]
# Eight samples do not say much, and the interval admits it. For the rest of the chapter we need many more, which take
# longer than you want to wait. `python benchmarks/sampling.py --compile` made them and stored what it counted. (It
# draws in bfloat16, which is faster than the float32 of the pipeline. Three of its rows were made in float32, too, and
# the intervals tell no difference: 0.891, 0.922 and 0.962 for what is below 0.868, 0.930 and 0.956.)

# %%
import hashlib

results = files("ddlm_core") / "results"  # the numbers came with the package
stored = json.loads((results / "sampling.json").read_text(encoding="utf-8"))


def find(**wanted: str | float) -> list[dict]:
    """The rows of the table that have these values."""
    return [row for row in stored["samplers"] if wanted.items() <= row.items()]


weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
best = find(schedule="cosine", temperature=1.0, churn=1.0, num_steps=64)[0]
print("made with the weights above" if weights[:12] == stored["weights"] else "OTHER WEIGHTS!")
many = Estimate(**stored["bound"])
print(
    f"bound on {stored['windows']} stories: {many:.2f} nats; on the first {len(fresh)}: {bound:.2f}"
)
print(promise(many))
print(f"{best['samples']} samples with {best['num_steps']} steps:")
print(f"  flawless: {wilson(best['flawless'], best['samples']):.3f}")
print(f"  distinct: {best['distinct']}")
chance = stored["chance"]
print(f"  of these, word for word from the training data: {stored['repeats']}")
print(f"  by chance alone, {chance:.2f} were to be expected")

# %% [markdown]
# (More stories, a narrower interval: the first estimate of the gap was only a rough one.)
#
# The last two lines are about **copies**. A model that has learned its training data by heart writes flawless stories,
# too. So count the samples that are training stories, word for word. But a copy alone proves nothing: a perfect model
# draws from the same distribution, so it repeats a training story now and then by chance.
# How often? A sample is the story $x$ with probability $p(x)$, so among $n$ samples we expect
#
# $$ n \sum_{x\,\in\,\text{training stories}} p(x) $$
#
# of them, and `log_prob` knows every term. (Chapter 2, exercise 3.) If clearly more are found, the model has learned by
# heart; such counts scatter by about the root of what is expected. Here it is no more than chance.
#
# ## What breaks first?
#
# A broken sample is more interesting than a flawless one. *What* is wrong with it? Read it with the grammar in hand:
# follow every plot, every choice, every word, as long as the text goes along. Each such reading gives up somewhere.
# Take the one that explains most of the text; where it gives up is the first flaw. (A reading may also take in one
# wrong word, if it is of the right kind; then the flaw is before that word.) Its kind depends on what the grammar
# wanted there:
#
# * a word that was fixed earlier (a name, a pronoun, an animal), and the text has *another* word that could stand
#   here in another story: an **agreement** is broken. It is called by the field of the grammar that wanted it, such as
#   `hero`, or `hero.he` for the hero's "he" or "she";
# * the text just ends, or goes on after the ending: **end**;
# * anything else, be it a misspelled word or one that the grammar never has here: **spelling**.


# %% tags=["export"]
import os
from collections.abc import Iterator

from ddlm_core.stories import STORIES, log_prob, options, parts_of


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


# %% [markdown]
# Some broken samples, with a mark before the first character that does not fit:

# %%
broken = stored["broken"]
for text in broken[:4]:
    place, kind = first_flaw(text) or (len(text), "padding")
    print(textwrap.fill(f"[{kind}] {text[:place]}▶{text[place:]}", 100))

# %% tags=["hide-input"]
from collections import Counter

NAMES = {"hero": "name", "pal": "name", "thing": "thing", "animal": "animal"}


def group(kind: str) -> str:
    if kind in ("hero.he", "hero.He", "hero.his"):
        return "pronoun"
    return NAMES.get(kind, kind.partition(".")[0])


kinds = Counter(group((first_flaw(text) or (0, "padding"))[1]) for text in broken)
names, heights = zip(*kinds.most_common()[::-1])
plt.barh(names, heights)
plt.xlabel(f"of {len(broken)} broken samples")
plt.gca().xaxis.get_major_locator().set_params(integer=True)
plt.show()
agreements = kinds.total() - sum(kinds[kind] for kind in ("spelling", "end", "padding"))
print(
    f"of {len(broken)} broken samples, {kinds['spelling']} break a word and {agreements} an agreement"
)

# %% [markdown]
# Mind what this counts: the *first* flaw, and a wrong letter in the third word hides a wrong name in the twentieth.
# Still, it tells what to work on. Spelling is local: a letter that a longer look (more denoising steps, or more
# training) would have put right. Agreement is not. A `name`, a `thing`, a `pronoun` or an `animal` has to fit another
# word, sometimes close by, often half a story away. Nearly nine in ten of these flaws are agreements. (The samples are
# those of 64 steps with churn. With 256 we could not find clearly fewer, as we will see: more steps are not what they
# lack.)
#
# But a kind of flaw is only the first question. *Which* names, which things, which pronouns?

# %%
import re

heroes, where = {word[""] for word in STORIES.variables["hero"]}, {}
for text in broken:
    who = " and ".join(sorted(heroes & {*re.findall(r"\w+", text)}))
    kind = group((first_flaw(text) or (0, "padding"))[1])
    where.setdefault(kind, []).append("a plant" if kind == "thing" and " planted " in text else who)
for kind in ("name", "thing", "pronoun"):
    found = Counter(where.get(kind, []))
    print(f"{kind:8}", ", ".join(f"{who}: {n}" for who, n in found.most_common(4)))

# %% [markdown]
# That is a surprise. Nearly all wrong names are *Cora* for *Nora*, or the other way round: they differ in one letter,
# and as long as that letter is noise, nothing else tells them apart. All wrong things stand in one of the seven plots,
# the one in which what grows is given away at the end. And most wrong pronouns belong to *Ruby* or *Toby*, a girl and a
# boy whose names are half alike. So it is not that this model knows little about agreement. It has a few blind spots.


# %% [markdown]
# ## A perfect network
#
# Whose fault is a flaw: the sampler's, which draws all letters at once, or the network's? We can find out, since on
# this world we can have a network that knows everything. It needs no training, only Bayes' rule. Which story is
# behind a noisy text $x_t$? In [chapter 5](05_loss.ipynb), the clean letter was $1+\kappa$ times as likely at its
# place as any other. Positions are redrawn independently, so these factors multiply. A story that agrees with the noisy
# text at $m$ places gets $m$ of them:
#
# $$ p(x_0\mid x_t)\;\propto\;p(x_0)\,(1+\kappa)^{m(x_0,\,x_t)}. $$
#
# Try it by hand. Only *ab* and *ba* can be told, equally likely, and the noise has $1+\kappa=4$. If the noisy text is
# *aa*, each agrees with it at one place: no verdict. If it is *ab*, the first agrees at two places and the second at
# none: 16 to 1.
#
# So it is a sum over all stories, almost two billion. But they come in few shapes. Choose the plot, each of its
# alternatives, and for each variable how long its words are in all their forms. (In our grammar this matters where a
# *she* or a *he* is spoken of, and little else: most words of a variable are equally long.) Then every place in the
# text belongs either to a fixed letter or to one variable: a *template*, one of 1,068. Within a template the variables
# are independent, so the sum of products is a product of sums:
#
# $$ p(\text{template}\mid x_t)\;\propto\;p(\text{template})\,(1+\kappa)^{m_\text{fixed}}
#    \prod_{\text{variables }v}\ \frac1{n_v}\sum_{\text{words}}(1+\kappa)^{m_\text{word}}, $$
#
# with $n_v$ the number of words of variable $v$. (A word that a story names twice is compared at both places. That is
# the whole secret of agreement.) From the templates' probabilities and the words' follow those of the letters at each
# place. (In the code, a *slot* is a set of places with the words that may fill them; many templates share one.)
# Finally, our $q$ must not have heard the letter at its own place: divide its factor $1+\kappa$ out again, where it
# agreed.


# %% tags=["export:reference"]
import itertools
import re

from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import kappa, score_entropy_loss
from ddlm_core.stories import Grammar, Word, skeletons
from ddlm_core.tokenizer import CharacterLevelTokenizer


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
        self.size = tokenizer.vocab_size
        slots: dict[tuple, int] = {}
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


# %% [markdown]
# (On a grammar with few stories, `tests/unit/test_evaluation.py` lists them all, and adds them up as Bayes' rule says.) On
# the real one, a single number judges everything that this book has built, the noise, the ratios, the loss and the
# bound. All answers of the perfect network belong to one distribution, that of the stories. So its bound is an
# equality: on average it must be the entropy, and on some stories, their mean surprise.


# %% tags=["test"]
def test_bound_of_the_perfect_network_is_the_entropy():
    tokenizer = CharacterLevelTokenizer()
    perfect = BayesDenoiser(stories.STORIES, tokenizer, stories.MAX_LENGTH)
    texts = stories.sample(64, seed=5)
    windows = torch.stack([tokenizer.pad(text, stories.MAX_LENGTH) for text in texts])
    exact = -sum(map(stories.log_prob, texts)) / 64
    found = estimate_bound(perfect, windows, repeats=32)
    assert found.low < exact < found.high < 1.1 * exact


test_bound_of_the_perfect_network_is_the_entropy()

# %%
perfect = BayesDenoiser(stories.STORIES, tokenizer, length)
best_bound = estimate_bound(perfect, windows, repeats=8 if smoke else 64)
print(f"{len(perfect.log_p)} templates, {stories.count():,} stories")
print(f"bound of the perfect network: {best_bound:.2f} nats a story")
print(f"exactly, of these stories:    {exact.mean():.2f}")

# %% [markdown]
# Now ask both networks about the same noisy texts. The difference is the gap, level by level: what the trained one does
# not know yet, of all that there is to know. (Both pay for the same noise, so some of the chance is gone from the
# difference. Its interval is too narrow for the two reasons given at the profile. The rows add up to a larger gap than
# the one above: 32 stories here, 512 there.)

# %%
gaps = []
with torch.inference_mode():
    for k in range(bins):
        f = (k + torch.rand(per_bin, generator=g, dtype=torch.float64)) / bins
        sigma_bar = noise.sigma_bar(noise.time(-torch.log1p(-f)).clamp(0, 1)).float()
        x_0 = windows[:per_bin]
        x_t = perturb_batch(x_0, sigma_bar, config.vocab_size, None, g)
        paid = [
            score_entropy_loss(net(x_t, sigma_bar), sigma_bar, x_t, x_0).sum(1) / (1 - f)
            for net in (network, perfect)
        ]
        apart = (paid[0] - paid[1]).var().item() / per_bin
        gaps.append((paid[0].mean().item(), paid[1].mean().item(), apart))
for low, high in ((0, 0.5), (0.5, 0.75), (0.75, 0.875), (0.875, 1.0)):
    inside = [k for k in range(bins) if low <= (k + 0.5) / bins < high]
    ours, must, apart = (sum(gaps[k][i] for k in inside) / bins for i in (0, 1, 2))
    gap = mean_of(torch.tensor(ours - must), math.sqrt(apart / bins))
    print(f"f from {low:.3f} to {high:.3f}: {ours:5.2f} nats, {must:4.2f} must be; gap {gap:.2f}")

# %% tags=["hide-input"]
# alt: Nats paid at each noise level, by the bundled model and by the perfect network. The curves are
#   close together up to half of the characters, then part; most of the gap is above three quarters.
mine, theirs, _ = zip(*gaps)
plt.plot(edges, mine, "o-", label="bundled model")
plt.plot(edges, theirs, "s--", label="perfect network")
plt.fill_between(edges, theirs, mine, alpha=0.2, label="gap")
plt.xlabel("corrupted fraction f")
plt.ylabel("nats per unit of f")
plt.legend()
plt.show()

# %% [markdown]
# And whose fault are the flaws? Let the perfect network write, in very few steps:

# %%
from typing import Any

count = 4 if smoke else 128


def share_of(model: Any, num_steps: int, samples: int = count) -> Estimate:
    """The share of flawless samples that a network writes on the cosine grid."""
    generator = sample_generators(0, samples)
    run = {"num_steps": 2 if smoke else num_steps, "schedule": "cosine", "generator": generator}
    tokens = sample_diffusion(model, noise, samples, length, **run)
    return wilson(sum(stories.is_flawless(row, tokenizer) for row in tokens.tolist()), samples)


for num_steps in (2, 3, 4, 6, 8, 16):
    print(f"perfect network, {num_steps:2} steps: flawless {share_of(perfect, num_steps):.2f}")

# %% [markdown]
# (Without churn, as all of this section, so that nothing but the network differs.) With eight steps it is at 0.98;
# ours, without churn, is at 0.65 with 64, as the next section shows. On these stories, drawing all letters at once
# costs next to no flaws, once there are eight looks at the text. So it is our network that makes the flaws. (The
# sampler can give it more chances to mend them, as we will see.)
#
# At which noise does it make them? Let the two take turns in a run of 24 steps, one above a corrupted fraction $f$, the
# other below. First ours alone:


# %%
class Relay:
    """One network while more than a fraction of the text is noise, another from there on."""

    def __init__(self, above: Any, below: Any, fraction: float) -> None:
        self.config, self.networks, self.fraction = config, (below, above), fraction

    def denoise(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        noisy = resample_probability(sigma_bar[0].double()).item() > self.fraction
        return self.networks[noisy].denoise(x_t, sigma_bar)


print(f"trained network alone: flawless {share_of(network, 24, 4 if smoke else 64):.2f}")
for fraction in (0.3, 0.5, 0.7, 0.9):
    last, first = (
        share_of(Relay(*pair, fraction), 24, 4 if smoke else 64)
        for pair in ((perfect, network), (network, perfect))
    )
    print(f"f = {fraction}: trained network only below f: {last:.2f}; only above f: {first:.2f}")

# %% [markdown]
# The second share is the surprise. Let the trained network do everything down to $f = 0.3$, and the perfect one mends
# all of it, in each of these 64 samples. So hardly anything that it does in the noise is beyond repair, for one who
# knows how. The first share says at which levels ours makes the flaws that it does not mend itself. Taking over at 0.9,
# it cannot be told from alone; taking over at 0.3, it spoils few stories. So the larger part of the gap, above three
# quarters, makes the smaller part of the flaws. Most of them come from between 0.3 and 0.7. Presumably that is where a
# name that stands twice has to become one name.
#
# (A warning to ourselves: fewer nats, if they are saved in the noise, need not mean better stories.)
#
# ## Faster, and not dull
#
# How many steps does a sample need? And which sampler? A table of flawless shares would answer that, if it could not be
# cheated. Chapter 10 offers a cheat, the temperature: below 1, the model prefers what it is sure of. It makes fewer
# slips, and its stories should resemble each other more. So beside each share we need a number that notices dullness.
# Take all words of all samples, with shares $\pi_w$, and compute the entropy of *that* list:
#
# $$ H_\text{words} = -\sum_w \pi_w\log \pi_w . $$
#
# It falls when some names or things come too often, and it rises when words are misspelled, since each wrong spelling
# is a new word. What is right, and how much does it scatter? Fresh stories, equally many, tell: take twenty lots of
# them, and 1.96 standard deviations to both sides. (It is no perfect judge: dullness pulls it down and misspelling
# pushes it up, so a run that is dull and broken may land in the middle.)
#
# The names in the table are those of [chapter 7](07_sampler.ipynb): the step (`analytic`, `euler`), the grid of noise
# levels (`linear`, `cosine`, `fraction`), and the churn. The share comes with its interval.


# %% tags=["export"]
from collections import Counter


def word_entropy(texts: list[str]) -> float:
    """Entropy of the words that occur in ``texts``, in nats per word: low if they repeat.

    Raises:
        UserError: if there is no word.
    """
    if not (words := " ".join(texts).split()):
        raise UserError("these texts hold no word")
    counts = torch.tensor(list(Counter(words).values())).double()
    return torch.distributions.Categorical(counts).entropy().item()


# %%
def fresh_entropy(samples: int, lots: int = 20) -> Estimate:
    """Entropy of words in lots of fresh stories: their mean, and where 95 % of the lots lie."""
    found = [word_entropy(stories.sample(samples, seed=10**6 + lot)) for lot in range(lots)]
    return mean_of(torch.tensor(found), torch.tensor(found).std().item())


usual = {row["samples"]: fresh_entropy(row["samples"]) for row in stored["samplers"]}
print(
    f"{'sampler':20}{'churn':>5}{'T':>5}{'steps':>6}  {'flawless':24}{'distinct':>10}  entropy of words"
)
for row in stored["samplers"]:
    name = f"{row['method']}, {row['schedule']}"
    how = f"{row['churn']:5}{row['temperature']:5}{row['num_steps']:6}"
    share = wilson(row["flawless"], row["samples"])
    distinct = f"{row['distinct']}/{row['samples']}"
    words = row["word_entropy"]
    band = usual[row["samples"]]
    verdict = "above" if words > band.high else "below" if words < band.low else ""
    print(f"{name:20}{how}  {share:.3f} {distinct:>10}  {words:.3f} {verdict}".rstrip())
for samples, band in usual.items():
    print(f"{f'fresh stories, {samples} of them':38}{'1':35}  {band:.3f}")

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2)
kinds = dict.fromkeys((r["schedule"], r["temperature"], r["churn"]) for r in stored["samplers"])
curves = [(kind, find(**dict(zip(("schedule", "temperature", "churn"), kind)))) for kind in kinds]
curves = [(kind, rows) for kind, rows in curves if len(rows) > 2]
for ((schedule, temperature, churn), rows), style in zip(curves, ("o-", "s--", "^:", "D-.")):
    rows = [row for row in rows if row["method"] == "analytic"]
    steps = [row["num_steps"] for row in rows]
    shares = [wilson(row["flawless"], row["samples"]) for row in rows]
    label = f"{schedule}, churn {churn:g}, T = {temperature:g}"
    (line,) = axes[0].plot(steps, [share.mean for share in shares], style, label=label)
    axes[0].vlines(steps, *zip(*[share[1:] for share in shares]), color=line.get_color(), alpha=0.4)
    axes[1].plot(steps, [row["word_entropy"] for row in rows], style, label=label)
for samples, alpha in zip(sorted(usual), (0.15, 0.35)):
    label = f"{samples} fresh stories"
    axes[1].axhspan(*usual[samples][1:], color="0.5", alpha=alpha, lw=0, label=label)
ticks = sorted({row["num_steps"] for row in stored["samplers"]})
for axis, title in zip(axes, ("share of flawless samples", "entropy of words (nats)")):
    axis.set(xscale="log", xlabel="steps", title=title)
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# Read both halves together. A curve that is high on the left *and* in its gray band on the right is good: the dark band
# for points with 1000 samples, the light one, which reaches lower because fewer stories miss more of the rare words,
# for those with 250 (temperature 0.5, and 256 steps with churn). One that is high on the left and below the band on the
# right is dull. One above it probably writes words that do not exist.
#
# And the answers? Two shares differ clearly if their intervals have no number in common. (If they have, that does not
# prove them equal.) By this,
#
# - **Of all that costs nothing, churn helps most.** At 8, 16, 24 and 64 steps the share with churn is clearly higher.
#   At 64 it is 0.930 instead of 0.654, so of the broken stories four fifths are gone, for no more questions to the
#   network.
# - **16 steps of `cosine` with churn do more than 256 of `linear` without.** We had hoped that 24 steps where they
#   matter would do what 256 of `linear` do. Without churn they do not, and even 64 (0.654) do not quite. With churn, 16
#   of `cosine` are ahead (0.792 against 0.710).
# - **Grids matter less, but they matter.** With 24 steps `cosine` is clearly ahead of `linear`, with churn and without.
#   `fraction` cannot be told from it, with churn or without; nor can Euler from the analytic step (both without churn),
#   nor a churn of 0.5 from one of 1.
# - **Temperature** 0.5 helps without churn. At 8 steps it cannot be told from churn, at 24 and 64 it does less. With
#   churn, 0.8 writes 0.907 in 24 steps and 0.956 in 64, where temperature 1 writes 0.868 and 0.930. The intervals still
#   touch. But that test is a strict one. The standard error of a *difference* is the root of the sum of both squared
#   errors, and the differences, 0.039 ± 0.028 and 0.026 ± 0.020 (1.96 standard errors), are above 0. So 0.8 helps a
#   little. Between 0.5 and the others, with churn and 24 steps, no difference can be made out. (The cheat that we
#   waited for was not caught: no row is below its band.)
# - **More steps** help up to 64 with churn, and 256 (of 250 samples) cannot be told from these. Without churn, 64
#   cannot be told from 24.
#
# And the entropy of words (the last column of the table; the right half of the figure shows the longer curves)? With
# churn, all rows from 16 steps on lie in their band, also those of 256 steps and of temperature 0.8: no sign of
# dullness. The rows outside are all above, where words are broken: 8 steps, and without churn all runs of `cosine` with
# 1000 samples, and `linear` with 24 steps. This was not always so. With the network that this book had before, and its
# 0.900 flawless in 64 churned steps, churn had a price here: 64 steps lay below the band, 256 farther. Each churned
# step redraws more of the text from what the network believes, and what it likes a little too much, it gets a little
# more often each time. (That was our reading. We measured the words alone.) The network of today shows nothing of it.
# Yours may, so look. And to *judge* a model's distribution, take churn 0 and many steps. (The promise $e^{-\text{gap}}$
# above is about such a walk. The copies above were counted with churn.)
#
# (We do not fully know why it works so well. The relay says that flaws arise in the middle, and that a network that
# knew better could mend them all, later. Churn makes occasions for mending, even for a network that does not know
# better at the first look.)
#
# ## A fair opponent
#
# How much of all this is diffusion, and how much is any network of 1.6 million parameters? The usual language model
# writes from left to right: it predicts each character from those before it, and multiplies the probabilities
# (*autoregressive*):
#
# $$ p(x) = \prod_i p(x_i \mid x_1, \dots, x_{i-1}), \qquad -\log p(x) = -\sum_i \log p(x_i \mid x_{<i}). $$
#
# We can give it the very same network, with the blocks arranged in another way. In [chapter 6](06_model.ipynb), two of
# them read from the left, two from the right, and two judge what both have found. Here all six read from the left, so
# that whatever is said about a character rests on those before it alone. (Four of them glance back, as there.) The
# noise level is a constant. Then `benchmarks/autoregressive.py` trains it with the same data in the same order, the
# same optimizers, batches and number of steps. Both cost one forward and one backward pass for each step, so the
# compute is the same, too. These are the numbers that it stored:

# %%
match = json.loads((results / "autoregressive.json").read_text(encoding="utf-8"))
opponents = ("left to right", "diffusion")
lines = {
    "parameters": lambda row: f"{row['parameters']:,}",
    "training steps × stories": lambda row: f"{row['steps']:,} × {row['batch']}",
    "nats a story": lambda row: f"{Estimate(*row['nats']):.1f}",
    "flawless": lambda row: f"{wilson(row['flawless'], row['samples']):.2f}",
    "distinct": lambda row: f"{row['distinct']} of {row['samples']}",
    "entropy of words": lambda row: f"{row['word_entropy']:.2f}",
    "passes of the network a sample": lambda row: f"{row['passes']}",
}
print(f"{'':32}{opponents[0]:26}{opponents[1]}")
for name, cell in lines.items():
    print(f"{name:32}" + "".join(f"{cell(match[opponent]):26}" for opponent in opponents).rstrip())
usual = fresh_entropy(match["stories"]["samples"])
print(f"entropy {match['entropy']:.1f} nats a story; fresh stories: words {usual:.2f}")
plain = find(schedule="cosine", temperature=1.0, churn=0.0, num_steps=64)[0]
shares = [wilson(row["flawless"], row["samples"]) for row in (plain, best)]
print(f"bundled model: {config.step:,} steps of training, {many:.1f} nats")
print(f"  flawless {shares[0]:.2f} without churn, {shares[1]:.2f} with")

# %% [markdown]
# Three things to mind when you read it.
#
# - **The nats are not the same thing.** On the left it is $-\log p$ itself; on the right an upper bound on it, with the
#   error of the noise on top. The samples are judged alike. (Those of diffusion in the table were made without churn. A
#   word entropy above that of fresh stories, as left to right has it, probably means misspelled words.)
# - **Look at the number of steps.** The table gives both few, too few for the diffusion model. The bundled one (the
#   last lines) took many times as many. Now compare its flawless share, without churn, with that of the left-to-right
#   model in the table: with the worse bound it has the better share. Presumably because its gap lies where most is
#   noise, as we saw, and the walk back has time to mend what it does there. (And a bound may be loose.)
# - **Passes are not seconds.** Left to right, a pass needs to compute only the one new character, if the program keeps
#   what it knows of the others (a cache, which our script leaves out). A diffusion step always computes the whole text,
#   but their number is ours to choose.
#
# Why is left to right so far ahead at equal training? Presumably because it answers one kind of question, "what comes
# next?", always with clean text to the left. Ours has to answer for every noise level, and for every way to damage a
# text. What that buys, the table does not show: it can fill a hole from both sides ([chapter 10](10_pipeline.ipynb)),
# mend what it wrote, and trade steps for quality.
#
# ## In the literature
#
# The usual test for models of characters is `text8`: 100 million characters from English Wikipedia, only 26 letters
# and the space. In bits per character, lower is better. "≤" marks upper bounds, as ours is.
#
# | model | kind | text8 | source |
# |---|---|---|---|
# | Transformer, 12 layers | left to right | 1.23 | D3PM, table 1 |
# | Multinomial Diffusion (Hoogeboom et al. 2021) | uniform noise | ≤ 1.72 | D3PM, table 1 |
# | D3PM uniform, 1000 steps (Austin et al. 2021) | uniform noise | ≤ 1.61 | D3PM, table 1 |
# | SEDD Uniform (Lou et al. 2024) | uniform noise | ≤ 1.47 | SEDD, table 2 |
# | D3PM absorbing, 1000 steps | masks | ≤ 1.45 | D3PM, table 1 |
# | SEDD Absorb | masks | ≤ 1.39 | SEDD, table 2 |
# | MD4 (Shi et al. 2024) | masks | ≤ 1.37 | MD4, section 7.1 |
# | GenMD4 (Shi et al. 2024) | masks, a schedule for each letter | ≤ 1.34 | MD4, section 7.1 |
#
# Sources: [D3PM](https://arxiv.org/abs/2107.03006), [SEDD](https://arxiv.org/abs/2310.16834) (third version),
# [MD4](https://arxiv.org/abs/2406.04329) (fourth version). They have twelve layers or more and are far larger
# than ours. Compare them with each other, not with the numbers above: our stories have another entropy, and bits per
# character mean something only *on the same text*. Two things show in this table as well: left to right is ahead, and
# masks do better than uniform noise.
#
# ## Change it safely
#
# In `estimate_bound`, believe in the noise alone: replace `max(of_noise, of_windows)` by `of_noise`. The interval
# becomes narrower, and who would not like that. `test_interval_covers_the_bound_of_a_language` fails: too many of the
# intervals miss. The other one passes, since for a fixed text the noise *is* all there is.
#
# Then, in `spread_times`, return `torch.ones_like(weight)` in place of the weights, as if all levels were equally
# likely. Numbers still come out, and look fine. Both tests of the intervals fail, and with them
# `test_bound_of_the_perfect_network_is_the_entropy`, and in `tests/unit/test_evaluation.py`
# `test_times_follow_the_mixture_and_weights_keep_the_integral`. The command: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** All of your $n$ samples are flawless. How large must $n$ be until you may say "at least 95 %", with Wilson's
# interval? (Expected: 73. The lower end is $n/(n+z^2)$.)

# %% tags=["solution", "hide-input"]
n = 1
while wilson(n, n).low < 0.95:
    n += 1
assert n == 73
n

# %% [markdown]
# **2.** A mean of two halves: in the first, single estimates have a standard deviation of 1, in the second of 9. You
# have a hundred draws. What is the standard error of the mean if each half gets fifty? And what is the least
# possible, with which numbers? (Expected: 0.640; 0.5, with 10 and 90: draws in proportion to the deviation. This is
# why one looks at the right half of the profile above.)


# %% tags=["solution", "hide-input"]
def error(first: int) -> float:
    return math.sqrt(1**2 / first + 9**2 / (100 - first)) / 2


least = min(range(1, 100), key=error)
assert abs(error(50) - 0.640) < 1e-3 and least == 10 and abs(error(10) - 0.5) < 1e-9
error(50), least, error(least)

# %% [markdown]
# **3.** Be a cheat. Write a "sampler" of 64 texts that scores 100 % flawless, and let the other numbers catch you. Use
# also a number that knows nothing about words: the size of all texts together after `zlib.compress`, in bits for
# each character, beside that of 64 fresh stories. (Expected: 1 distinct text; the word entropy is low; a tenth of
# the bits of fresh stories, or less.)

# %% tags=["solution", "hide-input"]
import zlib


def compressed_bits(texts: list[str]) -> float:
    joined = "\n".join(texts).encode()
    return 8 * len(zlib.compress(joined, 9)) / len(joined)


cheat, honest = stories.sample(1, seed=0) * 64, stories.sample(64, seed=2)
assert all(log_prob(text) > -math.inf for text in cheat) and len(set(cheat)) == 1
assert word_entropy(cheat) < word_entropy(honest) - 0.5
assert compressed_bits(cheat) < compressed_bits(honest) / 10
for texts in (cheat, honest):
    print(
        f"{len(set(texts)):3} distinct, words {word_entropy(texts):.2f} nats, {compressed_bits(texts):.2f} bits"
    )

# %% [markdown]
# **4.** Play the lottery. Let `bound_draws` take the noise levels of training, `proposal_times`, and measure
# `coverage` for one window with 64 levels. (Expected: about 0.7 instead of 0.95.)

# %% tags=["solution", "hide-input"]
kept, spread_times = spread_times, proposal_times
hits = coverage(0.6, windows=1, repeats=64, fixed=True)
spread_times = kept
assert 0.6 < hits < 0.85
hits

# %% [markdown]
# ## Summary
#
# A number is worth as much as its interval, and an interval as much as the trial that shows how often it hits. The
# bound of a text is a mean over noise, and its levels must be spread so that no rare event decides it. On a world of
# known entropy, the gap says how much is left to learn. Shares of samples need Wilson's interval, and a second number
# that notices when samples are dull.
#
# | exported name | meaning |
# |---|---|
# | `Estimate(mean, low, high)` | a number and its 95 % interval; `.scaled(factor)`, and f-strings print it |
# | `mean_of(values)` | the mean of independent values |
# | `estimate_bound(model, tokens, repeats)` | the bound in nats per window |
# | `bits_per_character(estimate, tokens)` | the same in bits per character of these windows |
# | `bound_draws`, `spread_times` | single estimates of the bound; the noise levels that they use |
# | `wilson(hits, n)` | a share |
# | `word_entropy(texts)` | how varied the words are |
# | `first_flaw(text)` | what breaks first in a broken story |
# | `UnigramModel`, `BayesDenoiser` | (module `reference`) networks that need no training: one knows how often each letter comes, one knows all |
#
# Next: [TinyStories on a GPU](10_pipeline.ipynb).
