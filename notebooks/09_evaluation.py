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
# *About 50 minutes. You need: the entropy of [chapter 2](02_stories.ipynb), the bound of [chapter 5](05_loss.ipynb), the
# sampler of [chapter 7](07_sampler.ipynb). You will have: confidence intervals that were put to the test, and an ideal
# network to compare with.*
#
# **We have** a trained network, a sampler, and a world whose entropy we know.
# **We want** numbers that say how good it is, each with an honest interval.
# **Why**: one nice story proves nothing, and almost any single number can be cheated: a sampler that always writes
# the same correct story has no flaws at all.

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
# In our language each letter is *a* with probability $\tfrac34$ and *b* with probability $\tfrac14$, whatever came
# before. Its entropy is $-\tfrac34\log_2\tfrac34-\tfrac14\log_2\tfrac14 = 0.811$ bits per letter. If a model believes
# that *a* has another probability, $q$, the letters still come as the *language* says, and its *cross-entropy* is
# $-\tfrac34\log_2 q - \tfrac14\log_2(1-q)$, in *bits per character*:

# %%
import math

for q in (0.5, 0.75, 0.9):
    score = -3 / 4 * math.log2(q) - 1 / 4 * math.log2(1 - q)
    print(f"believes a has probability {q:.2f}: {score:.3f} bits per character")

# %% [markdown]
# The uniform baseline pays 1 bit, the truth 0.811, an overconfident model 0.944. What a model pays above the entropy
# is its KL divergence from the language, here called the *gap*: 0.189 bits for the first. Learning can remove the gap
# and nothing else. For English nobody knows how large it is; for our stories we do.
#
# ### The error of a mean
#
# That average was exact, because we knew the probabilities. Usually we have a sample: $n$ letters with surprisals
# $v_1,\dots,v_n$ and their mean $\bar v$. How far may it be from the true mean? Variances of independent
# numbers add, and a factor $\tfrac1n$ enters squared. If single values have the standard deviation $s$, then
#
# $$ \operatorname{Var}(\bar v) = \frac1{n^2}\,(s^2+\dots+s^2) = \frac{s^2}{n}. $$
#
# The root, $s/\sqrt n$, is the *standard error*. For large $n$ the mean is almost normally distributed, so
# $\bar v \pm 1.96\,s/\sqrt n$ contains the true mean in 95 of 100 cases. This is a *confidence interval*, and the fraction
# of cases in which such an interval contains the truth is its *coverage*. Four times the work buys half the width. With few
# values the measured $s$ is itself a guess, and 1.96 is too small a factor. If they are normal, *Student's t* has the right one: 2.36
# for eight values, 2.13 for sixteen.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $N$, $L$ | rows and columns of `tokens` | windows, and tokens in each |
# | $R$ | `levels` | noise levels for each window in a sweep |
# | $f$ | `fraction` | probability that a letter is resampled, $1-e^{-\bar\sigma}$; $f_0$: at $t=0$ |
#
# `Estimate`, folded, holds a mean and the ends of its interval.

# %% tags=["export", "hide-input"]
"""How good a model is, in numbers that come with a 95 % confidence interval."""

from typing import NamedTuple

from torch import Tensor

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


# %% tags=["export"]
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


# %% [markdown]
# Forty people measure the language, each with a hundred letters of their own. Most intervals contain the truth,
# the horizontal line; those that do not are dashed. Nobody can tell from the inside whether theirs is one of those.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

plt.style.use("ddlm_core.book")

g = torch.Generator().manual_seed(5)
entropy_bits = -3 / 4 * math.log2(3 / 4) - 1 / 4 * math.log2(1 / 4)
for person in range(40):
    is_b = torch.rand(100, generator=g) < 1 / 4
    found = mean_of(torch.where(is_b, 2.0, -math.log2(3 / 4)))
    covers = found.low <= entropy_bits <= found.high
    color, style = ("C0", "-") if covers else ("C1", "--")
    plt.plot([person] * 2, [found.low, found.high], style, color=color)
    plt.plot(person, found.mean, "o", color=color)
plt.axhline(entropy_bits, color="0.5", linewidth=1)
plt.xlabel("person")
plt.ylabel("bits per character")
plt.show()

# %% [markdown]
# ## The bound is an estimate, too
#
# Our model has only the bound on $-\log p$, the *negative ELBO*: an average over all ways to corrupt the text. We draw some of
# these ways and take the mean, so we have to know how much single draws vary.
#
# Try it where the answer is known. In a language of independent letters the other letters tell nothing about this one. So
# `UnigramModel`, folded, gives the same answer at every position and noise level, without training: *a* with probability $q$.
# To a text it gives the product of the probabilities of its letters. Its bound is *equal* to $-\log$ of that product, because
# all its ratios belong to one distribution of texts ([chapter 5](05_loss.ipynb)), and so it can be checked by counting.


# %% tags=["export:reference", "hide-input"]
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
# ### A heavy-tailed estimator at the clean end
#
# Which noise levels should we draw? [Chapter 8](08_training.ipynb) trains on levels uniform in $f$. For measuring, that goes wrong.
# At a small $f$ nearly every window of $L$ letters comes through unchanged, and its loss is modest. With a
# probability of about $Lf$ one letter is different, and *then* the loss is large: the true ratio of
# the clean letter to the one that stands there is $1+\kappa$, about $V/f$, and a network that is
# not sure of that letter answers with a ratio of order 1. With the weight
# $1/V$ of the score entropy, this costs about $1/f$ times a logarithm, which we leave out.
#
# So the mean is harmless, $Lf\cdot\tfrac1f = L$ at each level. But the mean *square* is $Lf\cdot\tfrac1{f^2} = L/f$, which diverges
# towards $f=0$. Such an estimator is *heavy-tailed*: whoever has not met one of the rare draws reports an error that is too small.
#
# **What can be averaged need not be drawn.** Our network is hollow: its $q$ at a position does not depend on the noisy letter there. So we
# draw the *other* letters, and take the mean over this one. Let $p$ be the probabilities of the noisy letter, $r$ those that the network
# expects, and $\rho=p/r$. Then the derivative in chapter 8 is, with its sums carried out,
#
# $$ \mathbb E\,\ell = \sum_x p(x)\log\rho(x) + \frac1V\sum_x\big(\rho(x)-1-\log\rho(x)\big). $$
#
# `window_nats` of chapter 8 uses this form where it can. A tail is left if the network holds a clean letter for impossible: then
# $\tfrac{\rho}V\approx\tfrac1{Vq+f}$. Times uniform in $t$ tame it. At the clean end their density over $f$ is proportional to $1/f$, and each draw
# is divided by it (*importance sampling*). But they leave few levels
# for noisier texts, where a trained network pays most. So use both: **a quarter of the levels uniform in $t$, the others uniform in $f+f^2$**, with a density
# over $f$ that rises like $1+2f$. That of this *mixture proposal* is at least three quarters of it, so no draw counts more than $\tfrac43$ of what it would there.
# [Where to spend the samples](deeper/noise_levels.ipynb) compares proposals exactly, on a small world.
#
# As in training, the levels are *stratified samples*: numbers $u$ at equal distances, with one random offset. We need the
# time $t$ with $U(t)=u$, where
#
# $$ U(t) = \tfrac14\,t + \tfrac34\,\frac{g(t)-g(0)}{g(1)-g(0)}, \qquad g=f+f^2. $$
#
# There is no formula for it, but a table of $U$ at 1025 times will do, with straight lines between. Between two
# entries the density of $t$ is constant, and the weight $\Delta t/\Delta U$ is *exactly* its inverse: the table does not bias the mean.


# %% tags=["export"]
import torch
from torch import Tensor

from ddlm_core.bound import window_nats
from ddlm_core.graph import ScoreModel
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.objective import low_discrepancy_times


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


# %% [markdown]
# `sweep`, folded, is one complete measurement: $R$ levels for each window, and the mean. The windows share one stratified set of $RN$ levels,
# of which each gets every $N$-th, from a start drawn by lot. So the levels are spread evenly across the windows and within each.


# %% tags=["export", "hide-input"]
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


# %% [markdown]
# In the picture each dot is one draw from a window of twenty letters. On the left, levels are uniform in $f$ and all letters are
# drawn. The row near 9 nats holds the windows that came through unchanged. Above it are the draws with a changed
# letter: the lower the noise, the rarer and the larger. On the right each letter is averaged over. This network looks at no other letter,
# and so nothing is left to chance but the window and the level.

# %% tags=["hide-input"]
from ddlm_core.objective import compute_loss, proposal_times

g, model, noise = torch.Generator().manual_seed(0), UnigramModel(0.6, 0.4), GeometricNoise()
text = draw(3000, 20, g)
t, weight = proposal_times(3000, noise, generator=g)
drawn = 20 * weight * compute_loss(model, text, noise, t, generator=g)
times = spread_times(3000, noise, g)
averaged = window_nats(model, text, noise, g, lambda *_, **__: times)  # at these times
figure, axes = plt.subplots(1, 2, sharex=True, sharey=True)
for axis, at, nats, title in (
    (axes[0], t, drawn, "uniform in f, letters drawn"),
    (axes[1], times[0], averaged, "mixture, letters averaged"),
):
    axis.plot(resample_probability(noise.sigma_bar(at)), nats.clamp(min=0.3), ".", markersize=2)
    axis.set(xscale="log", yscale="log", xlabel="corruption probability f", title=title)
axes[0].set_ylabel("one draw (nats)")
plt.show()

# %% [markdown]
# ### Two questions, two intervals
#
# The draws of a sweep share one stratified set of levels. They are not independent, and $s/\sqrt n$ over them would be too large. But
# sweeps are independent of each other. So **repeat the whole measurement, and see how far the results are apart**:
# the mean of $K$ sweeps has the error $s/\sqrt K$, whatever goes on inside one. What to repeat depends on what you ask.
#
# **"What is the bound of this text?"** The windows are given, and only the noise is random. Every sweep reads all windows.
#
# **"What is the bound of texts like these?"** Then the windows are a sample, too. Every sweep reads *other* windows: they are dealt out to
# at most sixteen sweeps. A single window cannot answer this.


# %% tags=["export"]
import math

from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID


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


# %% tags=["export", "hide-input"]
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
    bound = estimate_bound(model, text, of="source").scaled(1 / 10 / math.log(2))
    exact = model.nats(text).mean().item() / 10 / math.log(2)
    print(f"q = {q:.2f}: bound {bound:.3f} bits per character; counted: {exact:.3f}")

# %% [markdown]
# These are the scores from the start, up to the error.
#
# ### Measuring the coverage
#
# Do 95 of 100 intervals contain the truth? Take the world of nine words from [chapter 7](07_sampler.ipynb) and its Bayes-optimal
# denoiser. As all its answers belong to one distribution, its bound is an equality, too. Measure 400 times: the same 32 words, then 64 new ones each time.


# %% tags=["test"]
from ddlm_core.tiny_world import three_letter_world


def coverage(windows: int, of: str, runs: int = 400) -> float:
    """How often the interval holds the surprisal of some words, or the entropy of their language."""
    world, g, covered = three_letter_world(), torch.Generator().manual_seed(1), 0
    world.config.noise, surprisal = GeometricNoise(), -world.probs.log()
    words = torch.multinomial(world.probs, windows, replacement=True, generator=g)
    for run in range(runs):
        truth = surprisal[words].mean() if of == "text" else world.probs @ surprisal
        found = estimate_bound(world, world.words[words], seed=run, of=of)
        covered += (found.low <= truth <= found.high).item()
        if of == "source":
            words = torch.multinomial(world.probs, windows, replacement=True, generator=g)
    return covered / runs


def test_interval_covers_the_bound_of_a_text():
    assert 0.93 <= coverage(32, "text") <= 0.97


def test_interval_covers_the_bound_of_a_source():
    assert 0.93 <= coverage(64, "source") <= 0.97


test_interval_covers_the_bound_of_a_text()
test_interval_covers_the_bound_of_a_source()

# %%
print(f"these 32 words: {coverage(32, 'text'):.1%} of 400 cover")
print(f"their language: {coverage(64, 'source'):.1%} of 400 cover")

# %% [markdown]
# The standard error of such a count is 1.1 points: both agree with 95 %.
#
# ## The bundled model
#
# The bundled model has never seen these 64 stories.

# %% tags=["hide-input"]
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

# %%
fresh = stories.sample(4 if smoke else 64, seed=10**6)
windows = torch.stack([tokenizer.pad(story, length) for story in fresh])
bound = estimate_bound(network, windows)
exact = -torch.tensor([stories.log_prob(story) for story in fresh], dtype=torch.float64)

# %% tags=["hide-input"]
print(f"bound, these stories    {bound:.2f} nats per story; exactly {exact.mean():.3f}")
print(f"                        {bits_per_character(bound, windows):.3f} bits per character")
source = estimate_bound(network, windows, of="source")
print(f"bound, stories like it  {source:.2f} nats per story; entropy {stories.entropy():.3f}")

# %% [markdown]
# Padding costs nats, but does not count as characters here; [chapter 2](02_stories.ipynb) divides by all 160 tokens. The second interval
# also covers which stories were drawn.
#
# From here on, the gap is the bound minus the entropy. It is the KL divergence plus the looseness of the bound, and a better network could gain
# all of it. Chapter 2 showed what a divergence promises: of samples drawn exactly from the model,
# at least a fraction $e^{-\text{gap}}$ is flawless. More stories give a narrower interval; `benchmarks/sampling.py` took 512 and stored the result.

# %% tags=["hide-input"]
import hashlib

results = files("ddlm_core") / "results"
stored = json.loads((results / "sampling.json").read_text(encoding="utf-8"))
weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
print("made with these weights" if weights[:12] == stored["weights"] else "OTHER WEIGHTS!")

many = Estimate(**stored["bound"])
gap = Estimate(*(nats - stories.entropy() for nats in many))
print(f"bound on {stored['windows']} stories: {many:.2f} nats, gap {gap:.2f}")
print(
    f"flawless: at least {math.exp(-gap.mean):.2%} ({math.exp(-gap.high):.2%} to {math.exp(-gap.low):.2%})"
)

# %% [markdown]
# With a gap of 6.5 nats the promise is only 0.15 %. The truth may be far better, because nats are strict: a single
# letter that the model holds for impossible costs as much as a hundred small doubts.
#
# In the rendered book, `tinystories-cpu` measures a sentence of your own:

# %% tags=["hide-input"]
from ddlm_core import Live

Live("bound", text="It was sunny. Lily lost the ball.")

# %% [markdown]
# ## A network that cannot be improved
#
# On this world we can have the *Bayes-optimal denoiser*. Which story is behind
# a noisy text $x_t$? By [chapter 5](05_loss.ipynb), the clean letter is $1+\kappa$ times as likely at its place as any other, independently of other places.
# So a story $x_0$ that agrees with $x_t$ at $m$ places gets $m$ such factors:
#
# $$ p(x_0\mid x_t)\;\propto\;p(x_0)\,(1+\kappa)^{m(x_0,\,x_t)}. $$
#
# By hand: only *ab* and *ba* can be told, equally likely, and $1+\kappa=4$. If the noisy text is *aa*, each story agrees with
# it at one place, and the odds stay even. If it is *ab*, the first agrees at two places and the second at none: 16 to 1.
#
# `BayesDenoiser`, folded, does this sum over all two billion stories, grouped by where their letters and words stand.
# Then it leaves each letter out of its own evidence, as our network does. [Two billion stories in one sum](deeper/bayes_denoiser.ipynb) explains how.


# %% tags=["export:reference", "hide-input"]
import itertools
import math
import re
from collections.abc import Iterator

from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import kappa, score_entropy_loss
from ddlm_core.stories import Grammar, Word, parts_of, skeletons
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
# This network's answers belong to one distribution, that of the stories, so its bound
# is an equality: on some stories it must be their mean surprisal.


# %% tags=["test"]
def test_bound_of_the_perfect_network_is_the_entropy():
    tokenizer = CharacterLevelTokenizer()
    perfect = BayesDenoiser(stories.STORIES, tokenizer, stories.MAX_LENGTH)
    texts = stories.sample(64, seed=5)
    windows = torch.stack([tokenizer.pad(text, stories.MAX_LENGTH) for text in texts])
    exact = -sum(map(stories.log_prob, texts)) / 64
    found = estimate_bound(perfect, windows, repeats=16)
    assert found.low < exact < found.high < 1.1 * exact


test_bound_of_the_perfect_network_is_the_entropy()

# %%
perfect = BayesDenoiser(stories.STORIES, tokenizer, length)
best_bound = estimate_bound(perfect, windows, repeats=8 if smoke else 32)
print(f"bound of the Bayes-optimal denoiser: {best_bound:.2f} nats per story")
print(f"exactly, of these stories:           {exact.mean():.2f}")

# %% [markdown]
# ## Where do the nats come from?
#
# The bound is an integral over noise levels, so it has a profile. With $d\bar\sigma = df/(1-f)$ and $\sigma\,dt = d\bar\sigma$, its diffusion
# term is an area over $f$ ($\ell_i$ is the loss at position $i$):
#
# $$ \int_0^1 \sigma(t)\;\mathbb E\sum_i \ell_i\,dt \;=\; \int_{f(0)}^{f(1)} \frac{\mathbb E\sum_i\ell_i}{1-f}\,df . $$
#
# Ask both networks about the same noisy texts. The area between the two curves is the gap.

# %% tags=["hide-input"]
bins, per_bin = (4, 2) if smoke else (16, 32)
g, paid = torch.Generator().manual_seed(0), []
with torch.inference_mode():
    for k in range(bins):
        f = (k + torch.rand(per_bin, generator=g, dtype=torch.float64)) / bins
        sigma_bar = noise.sigma_bar(noise.time(-torch.log1p(-f)).clamp(0, 1)).float()
        x_0 = windows[:per_bin]
        x_t = perturb_batch(x_0, sigma_bar, config.vocab_size, None, g)
        losses = [
            score_entropy_loss(net(x_t, sigma_bar), sigma_bar, x_t, x_0)
            for net in (network, perfect)
        ]
        paid.append(torch.stack(losses).sum(2) / (1 - f))
paid = torch.stack(paid)  # (bins, 2, stories): nats per unit of f

# %% tags=["hide-input"]
# alt: Nats paid at each noise level, by the bundled model and by the Bayes-optimal denoiser. The curves
#   are close together up to half of the letters, then part; most of the gap is above three quarters.
edges, (mine, ideal) = [(k + 0.5) / bins for k in range(bins)], paid.mean(2).T
plt.plot(edges, mine, "o-", label="bundled model")
plt.plot(edges, ideal, "s--", label="Bayes-optimal denoiser")
plt.fill_between(edges, ideal, mine, alpha=0.2, label="gap")
plt.xlabel("corruption probability f")
plt.ylabel("nats per unit of f")
plt.legend()
plt.show()
for low, high in ((0, 0.5), (0.5, 0.75), (0.75, 1.0), (0, 1.0)):
    inside = [low <= edge < high for edge in edges]
    ours, least = paid[inside].mean(2).sum(0) / bins
    error = ((paid[:, 0] - paid[:, 1])[inside].var(1).sum() / per_bin).sqrt().item() / bins
    gap = mean_of(ours - least, error)
    print(f"f from {low:.2f} to {high:.2f}: {ours:5.2f} nats, at least {least:5.2f}; gap {gap:.2f}")

# %% [markdown]
# More than two thirds of the bound are paid where more than three quarters of the letters are resampled. There a model has to *decide* what the
# story is about, and even the ideal one pays for that: it is the entropy. Once half of the letters can be read, the rest is spelling and
# agreement, and costs little. Two thirds of the gap are in the noise, too. That the ideal network pays 19.8 here, above the
# entropy of 19.0, is chance, with 32 texts per bin.
#
# ## Samples: a share and its interval
#
# Of $n$ samples, $h$ are flawless. The measured *validity rate* $\hat\pi = h/n$ is a mean of ones and zeros. If $\pi$ is the true rate, each of
# them has the variance $\pi(1-\pi)$. But $\hat\pi \pm 1.96\sqrt{\hat\pi(1-\hat\pi)/n}$ has a hole: if all of 16 samples are flawless, it
# says 100 % ± 0. The mistake is to put the measured $\hat\pi$ in place of $\pi$.
# [Wilson](https://doi.org/10.1080/01621459.1927.10502953) (1927) asks the other way round: *for which $\pi$ would our
# $\hat\pi$ be at most $z = 1.96$ standard errors away?* That is a quadratic equation, and its solutions are the ends of the *Wilson interval*:
#
# $$ \pi = \frac{h + \tfrac12 z^2}{n+z^2} \;\pm\; \frac{z}{n+z^2}\sqrt{\frac{h\,(n-h)}{n} + \frac{z^2}4}. $$


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


# %% [markdown]
# The check adds up the probabilities of all $h$ whose interval contains $\pi$, for seven values of $\pi$.


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
# Let the model write 200 samples: 24 steps, with a `churn` of 1 ([chapter 7](07_sampler.ipynb)).

# %% tags=["hide-input"]
import textwrap

from ddlm_core.sampler import sample_diffusion, sample_generators


def write(
    model: ScoreModel, count: int, num_steps: int, churn: float = 1.0, seed: int = 0
) -> Tensor:
    """Windows (count, L), on the cosine grid."""
    generator = sample_generators(seed, count)
    options = {"num_steps": 2 if smoke else num_steps, "schedule": "cosine", "churn": churn}
    return sample_diffusion(model, noise, count, length, generator=generator, **options)


def flawless_share(tokens: Tensor) -> Estimate:
    return wilson(sum(stories.is_flawless(row, tokenizer) for row in tokens.tolist()), len(tokens))


# %%
tokens = write(network, 4 if smoke else 200, 24, seed=3)
written = tokenizer.decode_batch(tokens)
print(f"{len(written)} samples, flawless: {flawless_share(tokens):.3f}")
print(f"the first 16 of them:  {flawless_share(tokens[:16]):.2f}")
for text in written[:2]:
    print(textwrap.fill(text, 100))

# %% [markdown]
# A model that has memorized its training data writes flawless stories, too. So count the samples that are training stories.
# A copy alone proves nothing, for a perfect model repeats one now and then: among $n$ samples we expect
# $n\sum p(x)$ of them, over all training stories $x$. Clearly more would be *memorization*. The stored table has 1000 samples:


# %% tags=["hide-input"]
def find(**wanted: str | float) -> list[dict]:
    """The rows of the stored table that have these values."""
    return [row for row in stored["samplers"] if wanted.items() <= row.items()]


best = find(schedule="cosine", temperature=1.0, churn=1.0, num_steps=64)[0]
print(
    f"{best['samples']} samples with 64 steps: flawless {wilson(best['flawless'], best['samples']):.3f}"
)
print(
    f"  distinct: {best['distinct']}; training stories: {stored['repeats']}, by chance {stored['chance']:.2f}"
)

# %% [markdown]
# Three copies, where chance would give six: no sign of memorization. And 93 % are flawless, where the gap promised only 0.15 %.
#
# ## What breaks, and whose fault is it?
#
# `first_flaw`, folded, reads a broken sample by the grammar and tells where it first breaks: at a misspelled word,
# at the end, or at a word that breaks an *agreement*, such as a name or a pronoun that does not fit an earlier one.


# %% tags=["export", "hide-input"]
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


# %%
kinds = [(first_flaw(text) or (0, "padding"))[1] for text in stored["broken"]]
words = sum(kind in ("spelling", "end", "padding") for kind in kinds)
print(f"of {len(kinds)} broken samples, {words} break a word and {len(kinds) - words} an agreement")

# %% [markdown]
# A text that breaks at its end or in the padding counts with the broken words. Spelling is local; agreement often spans half a story.
# [Which flaws?](deeper/which_flaws.ipynb) finds a few blind spots, such as *Cora* and *Nora*.
#
# Is it the sampler's fault, which draws all letters at once, or the network's? Let the Bayes-optimal denoiser write, without churn:

# %%
for num_steps in (2, 3, 4, 6, 8, 16):
    share = flawless_share(write(perfect, 4 if smoke else 128, num_steps, churn=0.0))
    print(f"Bayes-optimal denoiser, {num_steps:2} steps: flawless {share:.2f}")

# %% [markdown]
# In few steps that ruins even the ideal network's stories. From eight steps on it costs next to nothing: 0.98 are flawless.
# Ours, without churn, is at 0.65 with 64 steps. There it is our network that makes the flaws.
#
# At which noise? [A relay, and its control](deeper/relay.ipynb) lets the two networks take turns, and shows how easily that misleads.
#
# ## Faster, and still diverse
#
# How many steps does a sample need, and which sampler? Flawless shares alone could be cheated. A temperature below 1
# prefers what the model is sure of: fewer flaws, but perhaps always the same names (*mode collapse*). So each share needs
# a measure of *diversity* beside it. Take all words of all samples, with shares $\pi_w$, and compute their *unigram entropy*
#
# $$ H_\text{words} = -\sum_w \pi_w\log \pi_w . $$
#
# It falls if some words come too often, and rises if words are misspelled, since each wrong spelling is a new word.
# So compare with twenty sets of fresh stories, each as large: they show the right value, and how far chance moves it.


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


# %% [markdown]
# A run that repeats itself *and* misspells could still land between. So take a second measure for our 200 samples: the *total variation*
# between their openings, the first two words, and the true distribution of openings. It is 0 for equal distributions and 1 for disjoint ones.
# Fresh stories are above 0, because 200 cannot match 150 shares exactly.

# %% tags=["hide-input"]
from collections.abc import Iterable


def opening(text: str) -> str:
    return " ".join(text.split()[:2])


def total_variation(texts: Iterable[str]) -> float:
    """Between the openings of ``texts`` and those of the grammar."""
    found = Counter(map(opening, texts))
    return sum(abs(found[o] / found.total() - true_share[o]) for o in found | true_share) / 2


true_share: Counter = Counter()
for skeleton, p, _ in stories.skeletons():
    heroes = stories.HEROES if skeleton.startswith("{hero}") else stories.HEROES[:1]
    for hero in heroes:
        true_share[opening(skeleton.replace("{hero}", hero[""]))] += p / len(heroes)
assert abs(true_share.total() - 1) < 1e-9

lots = [stories.sample(len(written), seed=10**6 + lot) for lot in range(20)]
for name, measure in (("word entropy", word_entropy), ("total variation", total_variation)):
    values = torch.tensor([measure(lot) for lot in lots])
    band = mean_of(values, values.std().item())
    print(f"{name:16} samples {measure(written):.3f}, sets of fresh stories {band:.3f}")
print(f"{len(true_share)} openings; distinct samples: {len(set(written))} of {len(written)}")

# %% [markdown]
# By both measures, the samples cannot be told from stories.
#
# Now the stored table, with temperature $T$. Each step is one *function evaluation* (NFE) per sample. The band of word
# entropy is 1.96 standard deviations of such sets to both sides; openings are those of the first 200 samples.


# %% tags=["hide-input"]
def fresh_entropy(samples: int, lots: int = 20) -> Estimate:
    """Entropy of words in lots of fresh stories: their mean, and where 95 % of the lots lie."""
    found = [word_entropy(stories.sample(samples, seed=10**6 + lot)) for lot in range(lots)]
    return mean_of(torch.tensor(found), torch.tensor(found).std().item())


usual = {row["samples"]: fresh_entropy(row["samples"]) for row in stored["samplers"]}
print(
    f"{'sampler':20}{'churn':>5}{'T':>5}{'steps':>6}{'samples':>9}  {'flawless':24}openings  word entropy"
)
for row in stored["samplers"]:
    name = f"{row['method']}, {row['schedule']}"
    how = f"{row['churn']:5}{row['temperature']:5}{row['num_steps']:6}{row['samples']:9}"
    share = wilson(row["flawless"], row["samples"])
    words, band = row["word_entropy"], usual[row["samples"]]
    verdict = "above" if words > band.high else "below" if words < band.low else ""
    varied = f"{row['openings_distance']:.2f}      {words:.3f} {verdict}"
    print(f"{name:20}{how}  {share:.3f}  {varied}".rstrip())
of_200 = torch.tensor([total_variation(stories.sample(200, seed=10**7 + k)) for k in range(20)])
for samples, band in usual.items():
    apart = f"{of_200.mean():.2f}"
    print(f"{'fresh stories':36}{samples:9}  {'1':22}  {apart}      {band:.3f}")
assert all(row["distinct"] == row["samples"] for row in stored["samplers"])  # no text comes twice

# %% tags=["hide-input"]
# alt: Two panels against the number of steps. On the left, shares of flawless samples: on the cosine grid they
#   rise from 0.48 to 0.93 with churn, from 0.35 to 0.65 without. On the right, word entropy: with churn in the
#   band of fresh stories from 16 steps on; without churn above it, but for the linear grid with 256 steps.
figure, axes = plt.subplots(1, 2)
large = [row for row in stored["samplers"] if row["samples"] == max(usual)]
curves: dict[str, list[dict]] = {}
for row in large:
    label = f"{row['schedule']}, churn {row['churn']:g}, T = {row['temperature']:g}"
    curves.setdefault(label, []).append(row)
for (label, rows), style in zip(curves.items(), ("o-", "s--", "^:", "D-."), strict=True):
    steps = [row["num_steps"] for row in rows]
    shares = [wilson(row["flawless"], row["samples"]) for row in rows]
    (line,) = axes[0].plot(steps, [share.mean for share in shares], style, label=label)
    axes[0].vlines(steps, *zip(*[share[1:] for share in shares]), color=line.get_color(), alpha=0.4)
    axes[1].plot(steps, [row["word_entropy"] for row in rows], style, label=label)
axes[1].axhspan(*usual[max(usual)][1:], color="0.5", alpha=0.3, lw=0, label="fresh stories")
ticks = sorted({row["num_steps"] for row in large})
for axis, title in zip(axes, ("share of flawless samples", "word entropy (nats)")):
    axis.set(xscale="log", xlabel="steps", title=title)
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# A curve that is high on the left *and* within its gray band on the right is good. One that is high
# and below the band lacks diversity; one above it has too many different words, as misspelling produces them. (Runs of 1000 samples.)
#
# Overlapping intervals of two rows do not prove them equal. Test the *difference*: its standard error is the root of the sum of both squared
# errors. And twelve independent tests at the 5 % level would call at least one difference "clear" by chance in 46 of 100 cases. So we test each at
# $0.05/12$ (the *Bonferroni correction*, which needs no independence): it must be at least 2.87 standard errors.

# %% tags=["hide-input"]
base = {
    "method": "analytic",
    "schedule": "cosine",
    "temperature": 1.0,
    "churn": 1.0,
    "num_steps": 24,
}
plain, coarse, fine = {"churn": 0.0}, {"num_steps": 8}, {"num_steps": 64}
questions = {
    "churn 1 or 0, 8 steps": (coarse, coarse | plain),
    "churn 1 or 0, 24 steps": ({}, plain),
    "churn 1 or 0, 64 steps": (fine, fine | plain),
    "churn 1 or 0.5": ({}, {"churn": 0.5}),
    "cosine or linear": ({}, {"schedule": "linear"}),
    "cosine or fraction": ({}, {"schedule": "fraction"}),
    "analytic or Euler, no churn": (plain, plain | {"method": "euler"}),
    "T 0.5 or 1, no churn, 64": (fine | plain | {"temperature": 0.5}, fine | plain),
    "T 0.8 or 1": ({"temperature": 0.8}, {}),
    "T 0.8 or 1, 64 steps": (fine | {"temperature": 0.8}, fine),
    "64 steps or 24": (fine, {}),
    "256 steps or 64": ({"num_steps": 256}, fine),
}
for question, pair in questions.items():
    rows = [find(**base | option)[0] for option in pair]
    n, share = zip(*[(row["samples"], row["flawless"] / row["samples"]) for row in rows])
    error = math.sqrt(sum(p * (1 - p) / size for p, size in zip(share, n)))
    apart = share[0] - share[1]
    print(
        f"{question:28} {apart:+.3f} ± {1.96 * error:.3f}  {'clear' if abs(apart) > 2.87 * error else ''}".rstrip()
    )

# %% [markdown]
# - **Churn helps clearly, and costs no evaluation.** At 64 steps 0.930 instead of 0.654 are flawless: four fifths of the
#   broken stories are gone.
# - **More steps** help up to 64. From 64 to 256 no difference can be made out, nor can it between `cosine` and `fraction`, Euler and
#   the analytic step, or churn 1 and 0.5. `linear` is clearly behind.
# - **Temperature** 0.5 helps clearly without churn. With churn, 0.8 looks better twice, but not clearly so.
# - **Diversity**: no row lies below its band. With churn, all from 16 steps on are within; the rows above theirs have no churn or only eight steps.
#   Openings are farthest off at temperature 0.5 in 8 steps, 0.39; fresh stories have 0.29.
#
# What can be seen at all? With 1000 samples each and shares near 0.9, the standard error of a difference is
# $\sqrt{2\cdot0.9\cdot0.1/1000} = 0.013$. To be called clear four times out of five (a *power* of 0.8), a true difference must be
# $2.87+0.84=3.71$ of these, or 0.050.
#
# ## A fair opponent
#
# How does diffusion compare with the usual, *autoregressive* (AR) models? They predict each
# character from those before it, and $-\log p(x) = -\sum_i \log p(x_i \mid x_{<i})$, exactly.
# We let all six blocks of the same network read from the left, and train it on the same data, with the same optimizers, for as many seconds on one
# core as the bundled models' steps take (`benchmarks/autoregressive.py`). These are the curves, one run each. The open marks are the ends of shorter runs, three
# seeds of each kind.

# %% tags=["hide-input"]
# alt: Three panels. Training on stories: the autoregressive curve falls to the entropy of 19 nats within minutes, that of
#   diffusion from 38 to 24 in 25 minutes. On TinyStories: from 2.5 to 1.15 bits and up again to 1.29; diffusion from 2.1 to 1.78. The open marks
#   at 200 seconds lie close to the curves. Writing: 0.98 flawless in 0.03 to 0.3 seconds; diffusion 0.82 to 0.91 in 0.16 to 0.8.
runs = json.loads((results / "autoregressive.json").read_text(encoding="utf-8"))["runs"]
kinds = {"left-to-right": ("autoregressive", "C2", "o"), "diffusion": ("diffusion", "C0", "s")}
units = {"pocket-stories": "nats per story", "TinyStories": "bits per character"}
long_runs = [run for run in runs if run["seconds"] > 1000]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
for run in runs:
    _, color, mark = kinds[run["kind"]]
    axis, curve = axes[list(units).index(run["data"])], run["curve"]
    if run not in long_runs:
        axis.plot(curve[-1][0], curve[-1][2], mark, color=color, mfc="none")
        continue
    axis.plot(*list(zip(*curve))[::2], mark + "-", color=color, ms=3)
    for row in [*run.get("fewer_steps", []), run] if "flawless" in run else []:
        share, seconds = row["flawless"] / row["samples"], row["seconds_a_text_in_batches"]
        axes[2].plot([seconds, row["seconds_a_text"]], [share, share], color=color)
        axes[2].plot(seconds, share, mark, color=color)
for axis, (data, unit) in zip(axes, units.items()):
    axis.set(xscale="log", xlabel="seconds of training", ylabel=unit, title=data)
axes[0].axhline(stories.entropy(), color="0.5", ls="--", label="entropy")
axes[0].set_ylim(17, 43)
axes[2].set(xscale="log", xlabel="seconds per story", ylabel="flawless", title="writing stories")
for axis, ticks in zip(axes, ([30, 100, 300, 1000], [30, 100, 300, 1000], [0.03, 0.1, 0.3, 1])):
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
for name, color, mark in kinds.values():
    axes[1].plot([], [], mark + "-", color=color, label=name)
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# The curves of diffusion are from its logs, on other stories, and so a nat off the table. In the third panel marks are for 50 stories at once, and lines lead to a
# single one; diffusion takes 16, 24 and 64 steps. In the table flawless shares are of all seeds together, times the least.

# %% tags=["hide-input"]
for data, unit in units.items():
    for kind, (name, *_) in kinds.items():
        for short in (True, False):
            found = [run for run in runs if (run["data"], run["kind"]) == (data, kind)]
            found = [run for run in found if (run not in long_runs) == short]
            values = ", ".join(f"{run.get('nats', run.get('bits'))[0]:.2f}" for run in found)
            print(f"{data}, {name}, {found[0]['seconds']:,.0f} s: {values} {unit}")
            for rows in zip(*([*run.get("fewer_steps", []), run] for run in found)):
                alone, many = (
                    min(row[f"seconds_a_text{how}"] for row in rows) for how in ("", "_in_batches")
                )
                said = f"{rows[0]['passes']:3} NFE: {alone:.2f} s alone, {many:.3f} in batches"
                if "flawless" in rows[0]:
                    count, hits = (sum(row[key] for row in rows) for key in ("samples", "flawless"))
                    apart, words = (
                        sum(row[key] for row in rows) / len(rows)
                        for key in ("openings_distance", "word_entropy")
                    )
                    said += f"; flawless {wilson(hits, count):.2f}, openings {apart:.2f}, words {words:.2f}"
                print(f"   {said}")

# %% [markdown]
# **From left to right the same network is far ahead.** It ends at 19.0 nats, which is the entropy as far as 512 stories can tell, and diffusion's bound at 25.4. Of its 200
# stories, 196 are flawless, as varied as true ones. After 200 seconds it is at 19.2 with each seed, and diffusion at 40: seeds differ by less than 0.4. AR answers one
# sort of question, with clean text to the left; diffusion answers one for every way to corrupt a text.
#
# On TinyStories AR reaches 1.15 bits, diffusion 1.78. Then AR surprised us: it got *worse*, 1.29 in the end. It
# had read its 1.3 million characters 17 times, and learned them by heart (*overfitting*): its last batch cost 0.73. Diffusion sees each text through ever new noise, and still improves.
# Where text is scarce, masked diffusion has been found to [overtake autoregression](https://arxiv.org/abs/2507.15857) after many more passes.
#
# Nor is AR slow. It keeps what attention computed for earlier characters (a *KV cache*), and computes only the new one. So its 160 evaluations
# take about as long as 24 of diffusion, 0.3 seconds; 16 are faster, and less often flawless. In batches of 50, a story takes AR 0.03 seconds and diffusion 0.23.
#
# What diffusion buys is not in the figure: it fills holes from both sides ([chapter 10](10_pipeline.ipynb)) and corrects what it wrote.
# What helps it learn: [chapter 11](11_blocks.ipynb). An opponent that only counts: [a deeper page](deeper/opponents.ipynb).
#
# ## Change it safely
#
# In `estimate_bound`, let all sweeps of a source read the same windows: `parts = [tokens.long()] * 16`. The interval becomes narrower, and
# `test_interval_covers_the_bound_of_a_source` fails. The other one passes, since for a fixed text the noise *is* all there is.
# The command: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** Cheat. Write a "sampler" of 64 texts that scores 100 % flawless, and let the measures of diversity catch you. Add
# the size of all texts after `zlib.compress`, in bits per character. (Expected: 1 distinct text, low word entropy, and at most a tenth of the bits of 64 fresh stories.)

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
# **2.** Take 1.96 in place of Student's factor, and measure the coverage for the 32 words again. (Expected: 0.92.)

# %% tags=["solution", "hide-input"]
kept, _student = _student, lambda freedom: _Z
narrow = coverage(32, "text")
_student = kept
assert 0.87 < narrow < 0.93
narrow

# %% [markdown]
# ## Summary
#
# A number is worth as much as its interval, and an interval as much as the trial that measured its coverage. Differences need a test of their
# own, and quality needs diversity beside it.
#
# | exported name | meaning |
# |---|---|
# | `Estimate(mean, low, high)` | a number and its 95 % interval; `.scaled(factor)`, and f-strings print it |
# | `mean_of(values)`, `wilson(hits, n)` | the mean of independent values; a share |
# | `estimate_bound(model, tokens, repeats, of=…)` | the bound in nats per window: of a text, or of a source |
# | `bits_per_character(estimate, tokens)` | the same in bits per character of these windows |
# | `sweep`, `spread_times` | one measurement of the bound; the noise levels that it uses |
# | `word_entropy(texts)`, `first_flaw(text)` | how varied the words are; what breaks first in a text |
# | `UnigramModel`, `BayesDenoiser` | (module `reference`) networks with a known bound, without training |
#
# ## Where this stands in the field
#
# The usual test for models of characters is `text8`, English Wikipedia in 26 letters and the space. In bits per character, lower is better, and "≤" marks bounds:
#
# | model | noise | text8 | source |
# |---|---|---|---|
# | Transformer, 12 layers | none (AR) | 1.23 | D3PM, table 1 |
# | D3PM, 1000 steps | uniform / masks | ≤ 1.61 / ≤ 1.45 | [D3PM](https://arxiv.org/abs/2107.03006), table 1 |
# | SEDD | uniform / masks | ≤ 1.47 / ≤ 1.39 | [SEDD v3](https://arxiv.org/abs/2310.16834), table 2 |
# | MD4 / GenMD4 | masks | ≤ 1.37 / ≤ 1.34 | [MD4 v4](https://arxiv.org/abs/2406.04329), section 7.1 |
#
# Compare them with each other, not with our numbers: that takes the same text. [MDLM](https://arxiv.org/abs/2406.07524)
# has a simple bound for masks, [UDLM](https://arxiv.org/abs/2412.10193) a tighter one for uniform noise; [Duo](https://arxiv.org/abs/2506.10892) narrows the
# distance between the two, and [GIDD](https://arxiv.org/abs/2503.04482) mixes both noises.
#
# On real text nobody can count flaws. The common substitute is *generative perplexity*, the perplexity of the samples under a large AR model. It rewards repetition and
# misleads [without a measure of diversity](https://arxiv.org/abs/2409.02908), and even [with entropy as a guard](https://arxiv.org/abs/2606.08417);
# [generative frontiers](https://arxiv.org/abs/2604.02718) show both, and [MAUVE](https://arxiv.org/abs/2102.01454) compares the distributions of samples and true texts in the
# embeddings of a large model. Our world needs none of these, because its judge is exact.
#
# Next: [TinyStories on a GPU](10_pipeline.ipynb).
