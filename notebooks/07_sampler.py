# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling
#
# *About 50 minutes. You need: the noise of [chapter 4](04_forward.ipynb), the score of [chapter 5](05_loss.ipynb), the denoiser of [chapter 6](06_model.ipynb). You will have: the one loop that writes text, an exact account of its error, and infilling.*
#
# **We have** a network that looks at a noisy text and gives, for each position, a distribution over the clean character.
# **We want** to start from random characters and walk back to text.
# **Why**: this is what everything so far was for. And here the method has its one real approximation: in each step all characters
# are drawn *independently*, as if none knew what the others are about to become. This chapter measures, exactly, what that costs.

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
# ## By hand
#
# Take a language with two letters and two words, *aa* and *bb*, each half of the time. The noise of chapter 4 resamples
# letters until nothing of the word is left. Now go back in a single step. What should the first letter be? *a* or *b*,
# fifty-fifty: the noise tells us nothing. The second? The same. Both answers are perfectly right. But drawn independently
# they give *aa*, *ab*, *ba*, *bb*, a quarter each, and half of what we write is not a word.
#
# Two steps do better. Stop where half of the letters are resampled: a letter is then still right with probability
# $\tfrac12+\tfrac12\cdot\tfrac12=\tfrac34$. The first step leads from noise to this level, and again there is nothing
# to go by: *aa*, *ab*, *ba*, *bb*, a quarter each. In the second step the letters see each other. If we hold *aa*, two
# witnesses say that the first letter is *a*: the letter itself and its neighbor, each right three times out of four. If
# we hold *ab*, the two contradict each other, and each letter is a coin toss again.

# %%
right = 3 / 4
a_given_aa = right**2 / (right**2 + (1 - right) ** 2)  # two witnesses for, against two that err
no_word = 1 / 2 * 2 * a_given_aa * (1 - a_given_aa) + 1 / 2 * 1 / 2  # from aa or bb, from ab or ba
round(a_given_aa, 2), round(no_word, 2)

# %% [markdown]
# From 50 % down to 34 % nonsense. In each step the letters are drawn independently, but in the next one they see what the
# others have become. The questions of this chapter:
#
# 1. Given the network's answer, what exactly is the distribution of one letter one step back?
# 2. What does it cost to draw the letters independently, and how fast does that cost fall with the number of steps?
# 3. Where along the way should the steps be?
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$, $L$ | `vocab_size`, `length` | letters in the alphabet, letters in the text |
# | $N$ | `num_steps` | steps of a run; each takes one *function evaluation* of the network (the field counts *NFE*) |
# | $\bar\sigma_t$, $\bar\sigma_s$ | `sigma_bar_t`, `sigma_bar_s` | total noise at the start and at the end of a step back, $\bar\sigma_s<\bar\sigma_t$ |
# | $\Delta$ | `delta_sigma` | noise that the step removes, $\bar\sigma_t-\bar\sigma_s$ |
# | $x_t$, $x_s$ | `x_t` | the text at the start and at the end of the step; in $[y=x_t]$ (1 if equal, otherwise 0) its letter at the position at hand |
# | $\mathrm{score}_y$ | `score` | $p_t(\dots y\dots)/p_t(x_t)$, the ratio of chapter 5, written out because $s$ is a time here |
# | $q_y$ | `log_q` (its log) | the denoising distribution: what the network says of the clean letter *before* it counts this position's own $x_t$ |
# | $f$ | `fraction` | probability that a letter is resampled, $1-e^{-\bar\sigma}$ |
# | $T$ | `temperature` | below 1, what is probable gets more probable |
#
# ## A world that we know exactly
#
# To tell the sampler's error from the network's error we need a network without error. So we take a language so small
# that Bayes' rule can be worked out in full: three letters *a*, *b*, *c*, and words of two letters. *ab* has probability
# 0.4, *bc* 0.3, *ca* 0.2, and the six other words share the remaining 0.1. `TinyWorld` (open the cell to see it) is such
# a language, and its method `denoise` is the *Bayes-optimal denoiser*: for each position it goes through all words,
# weighs each with the chance that its *other* letters turned into what we see, and adds up what the word has at this position.

# %% tags=["export:tiny_world", "hide-input"]
"""Languages so small that all about them can be computed: the truth to hold a sampler against."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score


class TinyWorld:
    """A language given by the probabilities of all its words, and its Bayes-optimal denoiser."""

    def __init__(self, probs: Tensor) -> None:  # (V, V, …): one axis for each letter of a word
        self.vocab_size, self.length = probs.shape[0], probs.ndim
        self.config = SimpleNamespace(vocab_size=self.vocab_size)
        letters = torch.arange(self.vocab_size)
        words = torch.cartesian_prod(*[letters] * self.length)
        self.words = words.view(-1, self.length)  # (W, L), W = V**L
        self.probs = probs.flatten()  # (W,), in the order of `words`

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""The exact $\log q$, float64 (B, L, V)."""
        seen = transition(x_t, sigma_bar.double(), self.vocab_size)  # (B, L, V): p(x_t | letter)
        if condition_mask is not None:
            certain = one_hot(x_t, self.vocab_size).double()
            seen = torch.where(condition_mask[..., None], certain, seen)
        q = []
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            weight = self.probs * seen[:, others, self.words[:, others]].prod(-1)  # (B, W)
            q.append(weight @ one_hot(self.words[:, i], self.vocab_size).double())  # (B, V)
        q = torch.stack(q, 1)
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The exact log-scores, float64 (B, L, V)."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return denoiser_log_score(log_q, sigma_bar, x_t)


# %% tags=["export:tiny_world", "hide-input"]
def three_letter_world() -> TinyWorld:
    """Three letters; words of two."""
    probs = torch.full((3, 3), 0.1 / 6, dtype=torch.float64)
    probs[0, 1], probs[1, 2], probs[2, 0] = 0.4, 0.3, 0.2  # ab, bc, ca
    return TinyWorld(probs)


def two_letter_world() -> TinyWorld:
    """Two letters; words of three."""
    probs = torch.tensor([0.30, 0.05, 0.10, 0.05, 0.05, 0.15, 0.05, 0.25], dtype=torch.float64)
    return TinyWorld(probs.reshape(2, 2, 2))


def product_of_positions(world: TinyWorld, probs: Tensor) -> Tensor:
    """(B, L, V) to (B, W): the probability of each word if its letters are drawn independently."""
    return probs[:, range(world.length), world.words].prod(-1)


# %% [markdown]
# We also want the truth for whole words. Let $p_t$ be the distribution of noisy words and $K(w'\to w)$ the chance that
# the noise $\Delta$ turns $w'$ into $w$, a product over letters. Bayes' rule reads
#
# $$ p(x_s = w' \mid x_t = w) = \frac{p_s(w')\,K(w'\to w)}{p_t(w)}. $$
#
# For nine words that is a 9 × 9 table, `true_reverse`. For texts of 160 out of 106 characters it would have $106^{160}$ rows, which is
# why nobody uses it.

# %% tags=["export:tiny_world", "hide-input"]
from ddlm_core.noise import transition_matrix


def word_kernel(world: TinyWorld, sigma_bar: Tensor) -> Tensor:
    """(W, W): probabilities that one word has turned into another after a total noise."""
    letter = transition_matrix(sigma_bar, world.vocab_size)  # (V, V)
    return letter[world.words[:, None], world.words[None]].prod(-1)


def true_reverse(world: TinyWorld, sigma_bar_t: Tensor, sigma_bar_s: Tensor) -> Tensor:
    """(W, W): p(x_s | x_t) for whole words by Bayes' rule, one row for each x_t."""
    p_s = world.probs @ word_kernel(world, sigma_bar_s)  # (W,)
    joint = p_s[:, None] * word_kernel(world, sigma_bar_t - sigma_bar_s)
    return (joint / joint.sum(0)).T


# %% [markdown]
# ## Running the noise backward
#
# The noise is a *continuous-time Markov chain*: a letter may jump at any moment, and the chance depends only on where it is
# now. While a tiny noise $\delta$ is added, a letter is resampled with probability $\delta$. So it jumps to a given other
# letter $y$ with probability $\delta/V$, and $1/V$ is called the *rate* of that jump.
#
# Film the chain and play the film backward: this is the *time reversal* of the chain. How often does a letter jump to $y$
# in it? Use Bayes' rule above for two words that differ in one letter: $x_t$, and the same word with $y$ in its place. In
# forward time that letter jumped from $y$ to what $x_t$ has there, with probability $\delta/V$, and the other letters stayed, with a
# probability that tends to 1. So
#
# $$ p(\text{jump back to } y \mid x_t) = \frac{\delta}{V}\cdot\frac{p_s(\dots y\dots)}{p_t(x_t)}
# \;\longrightarrow\; \frac{\delta}{V}\, \mathrm{score}_y \qquad (\delta\to 0), $$
#
# because $p_s$ tends to $p_t$. **The reverse rate is the forward rate times the score.** And if two words differ in two
# letters, both must have jumped within the same tiny $\delta$, which has probability of order $\delta^2$. In the limit
# letters jump at different moments, each at its own rate, so *in the limit it is exact to treat positions independently*. The
# rest of the chapter is about what happens when we are not in the limit.
#
# An example: scores of the second letter at a noise of 0.3.

# %%
from ddlm_core.loss import denoiser_log_score

world, now = three_letter_world(), torch.full((2,), 0.3, dtype=torch.float64)
x_t = torch.tensor([[0, 2], [0, 1]])  # ac, ab
score = denoiser_log_score(world.denoise(x_t, now), now, x_t).exp()  # (B, L, V)
for word, ratios in zip(("ac", "ab"), score[:, 1].numpy().round(2), strict=True):
    print(f"{word}: second letter to a, b, c: {ratios}")

# %% [markdown]
# If we hold *ac*, which is rare, the common word *ab* is one jump away, and that jump has a high rate. If we hold *ab*, all rates
# are low. So rates tell *where to* jump and also *whether*: a letter in a word that fits stays.
#
# A computer takes finite steps. *Euler's method* computes the rates at the start of the step and holds them for the whole
# increment $\Delta$:
#
# $$ p(x_s = y \mid x_t) \approx \frac{\Delta}{V}\,\mathrm{score}_y \quad (y\ne x_t), \qquad\text{and stay with what is left.} $$

# %% tags=["export:reverse"]
"""One step of reverse diffusion: how probable each token is at each position after the step."""

import torch
from torch import Tensor

from ddlm_core.forward import noise_column


def euler_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Euler step ($\tau$-leaping): probabilities (B, L, V) of the tokens before a noise $\Delta$.

    From ratios (B, L, V), not their logs, tokens int64 (B, L), and the noise to remove, a scalar or
    (B,). Other shapes of the noise raise a ``ValueError``. (SEDD, Lou, Meng & Ermon 2024, section 4; unlike
    theirs, jumps that sum to more than 1 are cut to sum to 1.)
    """
    jump = noise_column(delta_sigma, score) * score / score.shape[-1]
    jump = jump.scatter(-1, x_t[..., None], 0.0)
    jump = jump / jump.sum(-1, keepdim=True).clamp(min=1)  # departure: jumps sum to at most 1
    return jump.scatter(-1, x_t[..., None], (1 - jump.sum(-1, keepdim=True)).clamp(min=0))


# %% [markdown]
# Papers also call this *τ-leaping*. Where the jump probabilities sum to more than 1, we scale them down, and then the
# letter must jump. In the first long step of a run that wastes the function evaluation: in pure noise all scores are 1, so
# each letter turns into any other, whatever the rest of the text says.
#
# ## The exact step of one position
#
# Euler holds constant what is not constant. For a single position we can do without that. Forward, one
# position is a chain: clean letter $x_0\to x_s\to x_t$. We know
#
# * what to believe about $x_s$ before $x_t$ counts at this position: it is still the clean letter with probability
#   $\alpha_s=e^{-\bar\sigma_s}$, and otherwise resampled. So it is $y$ with probability $\alpha_s q_y+(1-\alpha_s)/V$;
# * how well $x_t$ fits: the last bit of noise turns $y$ into $x_t$ with probability $e^{-\Delta}[y=x_t]+(1-e^{-\Delta})/V$.
#
# Multiply the two and normalize, which is Bayes' rule:
#
# $$ p(x_s=y\mid x_t)\;\propto\;\Big(\alpha_s q_y+\frac{1-\alpha_s}{V}\Big)
#    \Big(e^{-\Delta}[y=x_t]+\frac{1-e^{-\Delta}}{V}\Big). $$
#
# Every factor is at least 0, so this is a distribution whatever the network says. If $q$ is exact, so is the step, for each
# position: hence the name *analytic* step. In the code both factors come from the `Graph` of chapter 5, and with that of
# [appendix A](A_absorbing.ipynb) the same product is the step of masked diffusion.

# %% tags=["export:reverse"]
from ddlm_core.graph import UNIFORM, Graph


def analytic_probs(
    log_q: Tensor,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    graph: Graph = UNIFORM,
) -> Tensor:
    r"""Reverse step from $\bar\sigma_t$ to $\bar\sigma_s$: $p(x_s = y \mid x_t)$, (B, L, V), by Bayes' rule.

    Exact at each position if the denoising distribution ``log_q``, (B, L, V), is. The tokens are
    int64 (B, L), each noise is a scalar or (B,); other shapes raise a ``ValueError``. (The exact posterior
    of D3PM, Austin et al. 2021, averaged over $x_0$; equal to Tweedie's step of SEDD.)
    """
    after = noise_column(sigma_bar_s, log_q)[:, 0, 0]  # (B,)
    delta_sigma = noise_column(sigma_bar_t, log_q)[:, 0, 0] - after
    prior = graph.marginal(log_q, x_t, after)  # p(x_s = y), before x_t counts here
    weight = prior * graph.likelihood(x_t, delta_sigma, log_q.shape[-1])  # times p(x_t | x_s = y)
    return weight / weight.sum(-1, keepdim=True)


# %% [markdown]
# For the *aa* of the opening: $e^{-\Delta}=\tfrac12$, and we go all the way, $\alpha_s=1$. The neighbor says
# $q=(\tfrac34,\tfrac14)$. The letter's own $a$ fits with probability $\tfrac12+\tfrac14=\tfrac34$, a $b$ in its place with
# $\tfrac14$. The weights are $\tfrac9{16}$ and $\tfrac1{16}$, and *a* gets 0.9, as we counted:

# %%
log_q = torch.tensor([[[3 / 4, 1 / 4]] * 2]).log()  # (1, 2, V): what each a says of the other
analytic_probs(log_q, torch.tensor([[0, 0]]), torch.tensor(2.0).log(), 0.0)

# %% [markdown]
# The paper derives the same step from scores (`staggered_score`), as a *discrete Tweedie theorem*. For exact scores the two agree, but
# that form amplifies errors: [Two forms of one step](deeper/two_forms_of_one_step.ipynb). We use it only for networks that give nothing
# but scores.

# %% tags=["export:reverse", "hide-input"]
from ddlm_core.forward import transition


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Ratios $e^{-\Delta Q}s$, (B, L, V): the noise $\Delta$ of a step undone at each position.

    ``delta_sigma`` is a scalar or (B,). With a score that is off, an entry can be negative. (SEDD, Lou,
    Meng & Ermon 2024, theorem 4.2: discrete Tweedie.)
    """
    growth = torch.expm1(noise_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


# %% [markdown]
# On our world the analytic step must give the *marginals* of the true table exactly: the distribution of one letter, whatever the other
# turns out to be.

# %% tags=["test"]
import torch
from torch.nn.functional import one_hot


def test_analytic_step_is_exact_for_each_position():
    world = three_letter_world()
    now, after = torch.tensor([2.0, 0.6], dtype=torch.float64)
    log_q = world.denoise(world.words, now)
    step = analytic_probs(log_q, world.words, now, after)
    true = true_reverse(world, now, after)  # (W, W)
    for i in range(world.length):
        marginal = true @ one_hot(world.words[:, i], world.vocab_size).double()
        torch.testing.assert_close(step[:, i], marginal)
    assert (product_of_positions(world, step) - true).abs().max() > 0.05  # but not for the word


test_analytic_step_is_exact_for_each_position()

# %% [markdown]
# ## What independence costs
#
# The last line of the test is the whole trouble in one assertion. Each letter is exact, the word is not: the step draws from a product of
# marginals where the truth has dependent letters. The field calls this the *factorization error*, or *parallel-decoding
# error*. Better marginals cannot remove it, because exact ones have it too. An autoregressive model avoids it with $L$
# function evaluations, each with all earlier letters in view. We take $N$, each for all $L$ letters, and $N$ is ours to
# choose.
#
# **One step** costs the most, and that cost has a closed form. From pure noise, the Bayes-optimal denoiser can only say how often
# each letter occurs at each place, $p_i(y)$. So one step writes the word $w$ with probability $\prod_i p_i(w_i)$. Its KL
# divergence from the truth is
#
# $$ KL\Big(p\,\Big\|\,\prod_i p_i\Big) = \sum_w p(w)\log p(w) - \sum_i\sum_w p(w)\log p_i(w_i)
#    = \sum_i H_i - H, $$
#
# with $H_i$ the entropy of place $i$ and $H$ that of the word. This is the *total correlation*: how much the letters know about
# each other. For *aa* and *bb* it is $\log 2+\log2-\log2=\log 2$, a factor 2 in probability, the half
# that was not a word. In our world:


# %%
def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


letters = torch.stack([world.probs @ one_hot(world.words[:, i], 3).double() for i in (0, 1)])
one_step = product_of_positions(world, letters[None])[0]  # (W,)
kl = (world.probs * (world.probs / one_step).log()).sum()
print(f"KL {kl:.4f} nats; letters {entropy(letters).sum():.4f} - word {entropy(world.probs):.4f}")

# %% [markdown]
# And for the stories of [chapter 2](02_stories.ipynb)? Count the letters at each place of 2,000 stories, and compare with the exact entropy:

# %%
from ddlm_core import stories
from ddlm_core.tokenizer import CharacterLevelTokenizer

tokenizer = CharacterLevelTokenizer()
texts = torch.stack([tokenizer.pad(story, 160) for story in stories.sample(2000, seed=0)])
frequencies = one_hot(texts, tokenizer.vocab_size).double().mean(0)  # (L, V)
print(f"letters {entropy(frequencies).sum():.0f} nats - story {stories.entropy():.0f} nats")

# %% [markdown]
# In a single step even the Bayes-optimal denoiser pays 300 nats of total correlation, for a story of 19 nats.
#
# **Many steps** cost less. In a step that removes the noise $\Delta$, a position changes with a probability of order
# $\Delta$. The true joint distribution and the product of its marginals agree on the chance that a given position changes, alone or
# together with others. That two change *together* has a chance of order $\Delta^2$, in both. So they differ by order $\Delta^2$
# only. In a run of $N$ steps, each $\Delta$ is of order $1/N$, and the errors add up to $N\cdot O(1/N^2)=O(1/N)$.
# Euler's frozen rates commit a second error of order $\Delta^2$ per step. We expect both to converge like $1/N$, with different constants.
#
# ## The time grid
#
# A run starts at $t=1$ and visits $N$ earlier times, the last one $t=0$. We call them the *time grid*. The argument is named
# `schedule`; it is not the noise schedule of [chapter 3](03_noise.ipynb), which says how much noise
# there is at each time. Equal steps of $t$ are called `"linear"`. Geometric noise gives equal time to each
# *factor* of noise, so 38 % of the steps, $\log 100/\log(2\cdot10^5)$, lie below $\bar\sigma=0.01$, where at most one letter in a hundred is
# resampled. So there are two other grids. `"fraction"` takes equal steps of
# $f=1-e^{-\bar\sigma}$. `"cosine"` takes long steps while almost all is noise, and short ones near the clean text:
# $f=1-\sin\tfrac{\pi u}2=1-\cos\tfrac{\pi(1-u)}2$ after a share $u$ of the steps.

# %% tags=["export", "hide-input"]
"""Reverse diffusion: time grids, and the one loop that writes text."""

import math

from ddlm_core.noise import GeometricNoise, NoiseSchedule
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

SCHEDULES = ("linear", "cosine", "fraction")


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: NoiseSchedule | None = None
) -> Tensor:
    r"""The time grid of a run, from 1 (noise) down to 0 (text): float64 (num_steps + 1,).

    Equal steps of t (``"linear"``) or of the resample probability f (``"fraction"``), or ``"cosine"``:
    $f = 1 - \sin(\pi u / 2)$ after a share u of the steps, for the given noise schedule (by
    default ``GeometricNoise()``). A number of steps below 1 or an unknown name is a ``UserError``.
    """
    check_range(1, math.inf, num_steps=num_steps)
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    share = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return 1 - share
    kept = torch.sin(share * torch.pi / 2) if schedule == "cosine" else share
    noise = noise or GeometricNoise()
    first, last = torch.exp(-noise.sigma_bar(1 - share[[0, -1]]))
    times = noise.time(-torch.log(torch.lerp(first, last, kept)))
    times[0], times[-1] = 1.0, 0.0
    return times


# %% tags=["export", "hide-input"]
def noise_levels(
    noise: NoiseSchedule, num_steps: int, schedule: str = "linear", denoise_last: bool = True
) -> Tensor:
    r"""Total noise at the times of ``create_timestep_schedule``: float64 (num_steps + 1,).

    The last level is 0, so that the last step leads to clean text; without ``denoise_last`` it is
    $\bar\sigma(0)$. Errors as there.
    """
    levels = noise.sigma_bar(create_timestep_schedule(num_steps, schedule, noise))
    return torch.cat([levels[:-1], levels.new_zeros(1)]) if denoise_last else levels


# %% tags=["hide-input"]
from ddlm_core.noise import resample_probability

for schedule in SCHEDULES:
    fractions = resample_probability(noise_levels(GeometricNoise(), 8, schedule))
    print(f"{schedule:9}" + "".join(f"{fraction:7.3f}" for fraction in fractions))

# %% [markdown]
# These are the fractions $f$ at which a run of eight steps stops. A noise of $\bar\sigma(0)=10^{-4}$ is left at $t=0$; we let
# the last step go all the way to 0, where the paper takes one more step. The last step, too, *draws* its letters. Taking the
# most probable ones is tempting, but on our world a short run would then never write some of the words (*Change it safely*, 1).
#
# ## One step
#
# Now we put the pieces together. `reverse_probs` asks the model once, and turns the answer into the distributions of one step. A
# model either has `denoise`, which gives $\log q$, or gives log-scores when called. For infilling, `condition_mask` is *true* where a letter is
# given.
#
# **Temperature.** A language model with temperature $T$ draws from $q^{1/T}$, normalized. We apply it to $q$, which is what
# the model believes, and not to the probabilities of the step. Those also contain the noise that must stay: if we sharpened that
# too, $x_s$ would hold less noise than the network is told.

# %% tags=["export:reverse", "hide-input"]
from typing import TypeGuard

from ddlm_core.graph import Denoiser, ScoreModel, graph_of

METHODS = ("analytic", "euler")


def has_denoiser(model: ScoreModel) -> TypeGuard[Denoiser]:
    r"""Whether the model gives $\log q$; if not, all that it has are log-scores."""
    config = getattr(model, "config", None)  # a network may be of the paper's kind
    return hasattr(model, "denoise") and getattr(config, "parametrization", "") != "score"


def check_step(model: ScoreModel, method: str, temperature: float, churn: float = 0.0) -> None:
    """Raise a ``UserError`` if the model cannot take such steps."""
    graph = graph_of(model)
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "euler" and not graph.supports_scores:
        raise UserError(f"the method euler does not work with the {graph.name} graph: use analytic")
    if not graph.supports_scores and not has_denoiser(model):
        raise UserError(f"the {graph.name} graph needs a model with a denoiser, not scores alone")
    if temperature != 1 and not (0 < temperature < math.inf and has_denoiser(model)):
        limits = "1, or above 0 and finite if the model has a denoiser"
        raise UserError(f"temperature must be {limits}, got {temperature}")
    check_range(0.0, 1.0, churn=churn)
    if churn and not graph.supports_churn:
        raise UserError(f"churn must be 0 with the {graph.name} graph, got {churn}")


# %% tags=["export:reverse"]
@torch.inference_mode()
def reverse_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    *,
    method: str = "analytic",
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> Tensor:
    r"""A step from $\bar\sigma_t$ to $\bar\sigma_s$, with one function evaluation: $p(x_s = y \mid x_t)$, (B, L, V).

    Tokens int64 (B, L); each noise a scalar or (B,). ``method`` is ``"analytic"`` or ``"euler"``;
    ``temperature`` T draws clean tokens from $q^{1/T}$, normalized, which needs a denoiser. The model is
    handed ``condition_mask``, bool (B, L), true at given tokens, if there is one. What does not fit
    raises a ``UserError``.
    """
    check_step(model, method, temperature)
    sigma_bar_t = noise_column(sigma_bar_t, x_t)[:, 0]  # (B,)
    sigma_bar_s = noise_column(sigma_bar_s, x_t)[:, 0]
    condition = () if condition_mask is None else (condition_mask,)
    graph = graph_of(model)
    if has_denoiser(model):
        log_q = model.denoise(x_t, sigma_bar_t, *condition)
        if temperature != 1:  # the largest becomes 0 first, and stays 0 however small T is
            log_q = ((log_q - log_q.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
        if method == "analytic":
            return analytic_probs(log_q, x_t, sigma_bar_t, sigma_bar_s, graph)
        score = graph.log_score(log_q, sigma_bar_t, x_t).exp()
    else:
        score = model(x_t, sigma_bar_t, *condition).exp()
    delta_sigma = sigma_bar_t - sigma_bar_s
    if method == "euler":
        return euler_probs(score, x_t, delta_sigma)
    weight = staggered_score(score, delta_sigma) * transition(x_t, delta_sigma, score.shape[-1])
    weight = weight.clamp(min=0)  # departure: the paper leaves in what is negative
    return weight / weight.sum(-1, keepdim=True)


# %% [markdown]
# Then a letter is drawn at each position. Lay the $V$ probabilities end to end from 0 to 1, and see which segment a uniform
# random number falls into: *inverse-CDF sampling*. Each text of a batch has a random generator of its own, so the same seed
# gives the same text, however the batch is split. [Random numbers](deeper/random_numbers.ipynb) shows what can go wrong.


# %% tags=["export", "hide-input"]
def _sample_categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds a uniform number: (…, V), (…) to (…)."""
    cdf = probs.cumsum(-1)
    total = cdf[..., -1:]  # rows need not be normalized
    u = uniform.to(probs.dtype).to(probs.device)[..., None] * total
    u = u.minimum(torch.nextafter(total, torch.zeros_like(total)))  # rounding can reach the total
    return (cdf <= u).sum(-1)


def _uniform(generator: torch.Generator | None, length: int) -> Tensor:
    """Random numbers in [0, 1), float64 (L,), on the device of the generator."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(length, dtype=torch.float64, generator=generator, device=device)


# %% tags=["export", "hide-input"]
from collections.abc import Sequence

import numpy as np


def sample_generators(seed: int, batch_size: int, first: int = 0) -> list[torch.Generator]:
    """CPU generators, one for each text: that of text i depends on ``seed`` and ``first + i`` alone.

    Hand them to ``denoising_steps`` as ``generator``. Negative numbers raise a ``UserError``.
    """
    check_range(0, math.inf, seed=seed, batch_size=batch_size, first=first)
    base = int(np.random.SeedSequence(seed).generate_state(1)[0]) + first
    return [torch.Generator().manual_seed((base + i) % 2**32) for i in range(batch_size)]


# %% [markdown]
# ## The one loop
#
# There is one loop in the whole project. Ask the model what each clean letter might be, given all letters as they are now. Turn that
# into distributions one step back. Draw a letter for each position, except where a letter is given. That is all, and
# nothing is decided for good: a letter that was set early can change in any later step, if its neighbors come to
# disagree with it.
#
# The loop is a Python generator. It hands out each step as it is made, as a `DenoisingStep`: the tokens, the noise that is left, and
# which tokens have changed. For an animation we read all steps, for the text only the last.

# %% tags=["export", "hide-input"]
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class DenoisingStep:
    """What the sampler holds after a step."""

    index: int  # 0 for the random start, num_steps for the finished text
    num_steps: int  # steps of the run, each with one function evaluation
    sigma_bar: float  # total noise after this step
    tokens: Tensor  # int64 (B, L)
    changed: Tensor  # bool (B, L): true where this step changed a token


# %% tags=["export"]
def _run_reverse(
    step_probs: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokens: Tensor,
    levels: Tensor,
    generators: Sequence[torch.Generator | None],
    condition_mask: Tensor | None = None,
) -> Iterator[DenoisingStep]:
    """The start (B, L), then what each step leaves, through noise ``levels`` (num_steps + 1,)."""
    sigmas = levels.float().to(tokens.device)  # a network computes in float32
    free = torch.ones_like(tokens, dtype=torch.bool) if condition_mask is None else ~condition_mask
    changed = torch.zeros_like(free)
    for index, level in enumerate(levels.tolist()):
        if index > 0:
            probs = step_probs(tokens, sigmas[index - 1], sigmas[index])
            uniform = torch.stack([_uniform(g, tokens.shape[1]) for g in generators])  # (B, L)
            drawn = _sample_categorical(probs, uniform)
            changed = (drawn != tokens) & free  # given tokens stay
            tokens = torch.where(changed, drawn, tokens)
        yield DenoisingStep(index, len(levels) - 1, level, tokens, changed)


# %% [markdown]
# Here it is at work on the tiny world, with four words in eight steps. Letters that the step has changed are in upper case.
# Early steps change a lot and settle little; late ones tidy up.

# %% tags=["hide-input"]
noise, world = GeometricNoise(), three_letter_world()
generators = sample_generators(2, 4)
start = torch.cat([UNIFORM.sample_prior(1, 2, 3, generator) for generator in generators])
levels = noise_levels(noise, 8, "cosine")
for step in _run_reverse(partial(reverse_probs, world), start, levels, generators):
    words = [
        "".join("abcABC"[letter + 3 * new] for letter, new in zip(*row, strict=True))
        for row in zip(step.tokens.tolist(), step.changed.tolist(), strict=True)
    ]
    print(f"step {step.index}   noise {step.sigma_bar:7.4f}   {'   '.join(words)}")

# %% [markdown]
# ## Does it converge?
#
# On the tiny world we need not sample to know what the loop writes. Keep the probabilities of all nine words as a vector,
# start with 1/9 each, and multiply by the 9 × 9 table of each step:

# %%
probs = torch.full((9,), 1 / 9, dtype=torch.float64)
for level, next_level in zip(levels[:-1], levels[1:], strict=True):
    step = reverse_probs(world, world.words, level, next_level)
    probs = probs @ product_of_positions(world, step)
common = probs[[1, 5, 6]]
print(f"ab, bc, ca: {common.numpy().round(3)}, others: {1 - common.sum():.3f}")

# %% [markdown]
# Eight steps of `cosine` write the three common words too rarely, by six and a half percentage points in all. That number
# is the *total variation distance*, half the sum of the absolute differences: the smallest share of the texts that one
# would have to rewrite to make the two languages agree. `written` is the same computation with all options of this chapter.

# %% tags=["export:tiny_world", "hide-input"]
from ddlm_core.reverse import churned_probs


def written(
    world: TinyWorld,
    levels: Tensor,
    *,
    method: str = "analytic",
    churn: float = 0.0,
    template: Tensor | None = None,  # (L,), given where the mask, (L,), is true
    condition_mask: Tensor | None = None,
    pass_mask: bool = True,  # whether the denoiser sees the mask
) -> Tensor:
    """(W,): exact probabilities of the words that a run through the noise levels writes."""
    words, vocab_size = world.words, world.vocab_size
    given = torch.zeros_like(words, dtype=torch.bool)
    if condition_mask is not None:
        given = condition_mask.expand_as(words)  # (W, L)
    fits = ~(given & (words != (0 if template is None else template))).any(-1)
    probs = fits / fits.sum().double()
    seen = given if pass_mask and given.any() else None
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(
            *(world, words, now, after), churn=churn, method=method, condition_mask=seen
        )
        if template is not None:
            step = torch.where(given[..., None], one_hot(template, vocab_size).double(), step)
        probs = probs @ product_of_positions(world, step)
    return probs


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half of the sum of the absolute differences."""
    return (p - q).abs().sum().item() / 2


# %% [markdown]
# The figure shows the language and what sixteen, four and one equal steps of $t$ write. One step gives the products of the letter
# frequencies: *ac* and *bb* come out far too often, and *ab* far too rarely.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
names = ["".join("abc"[letter] for letter in word) for word in world.words]
runs = {f"{n} steps": written(world, noise_levels(noise, n)) for n in (16, 4)}
runs = {"truth": world.probs, **runs, "1 step": written(world, noise_levels(noise, 1))}
figure, axes = plt.subplots(figsize=(7, 3))
for k, (label, probs) in enumerate(runs.items()):
    axes.bar(torch.arange(9) + 0.2 * (k - 1.5), probs, width=0.2, label=label)
axes.set_xticks(range(9), names)
axes.set_xlabel("word")
axes.set_ylabel("probability")
axes.legend()
plt.show()

# %% [markdown]
# Now the distance against the number of steps. Both axes are logarithmic, so that an error of $1/N$ is a straight line that
# falls one decade per decade; the dotted line has this slope.

# %% tags=["hide-input"]
counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
distance = {}
for schedule in ("linear", "cosine"):
    for method in ("analytic", "euler"):
        runs = [written(world, noise_levels(noise, n, schedule), method=method) for n in counts]
        distance[method, schedule] = [total_variation(run, world.probs) for run in runs]
figure, axes = plt.subplots(figsize=(7, 4))
for (method, schedule), marker in zip(distance, "os^v", strict=True):
    axes.loglog(counts, distance[method, schedule], marker=marker, label=f"{method}, {schedule}")
axes.loglog(counts, [0.15 / n for n in counts], ":", color="gray", label="slope of 1/N")
axes.set_xlabel("number of steps N")
axes.set_ylabel("total variation distance to the language")
axes.legend()
plt.show()

# %% tags=["hide-input"]
runs = [written(world, noise_levels(noise, n, "fraction")) for n in counts]
distance["analytic", "fraction"] = [total_variation(run, world.probs) for run in runs]
print("steps                " + "".join(f"{n:>8}" for n in counts[2:9]))
for (method, schedule), values in distance.items():
    print(f"{method:9} {schedule:10} " + "".join(f"{value:8.4f}" for value in values[2:9]))

# %% [markdown]
# All curves follow $1/N$ from about eight steps on. Sixteen steps of `cosine` do what thirty-two of `linear` do; `fraction` lies between.
# Euler needs some 20 % more steps than the analytic step for the same distance. The test checks a second language, too.

# %% tags=["test"]
from ddlm_core.noise import GeometricNoise


def test_total_variation_falls_like_one_over_the_steps():
    for world in (three_letter_world(), two_letter_world()):
        for method in METHODS:
            distances = []
            for num_steps in (4, 8, 16, 32, 64, 128, 256):
                levels = noise_levels(GeometricNoise(), num_steps)
                run = written(world, levels, method=method)
                distances.append(total_variation(run, world.probs))
            assert sorted(distances, reverse=True) == distances
            assert distances[-1] < 0.006
            assert 1.9 < distances[-2] / distances[-1] < 2.1


test_total_variation_falls_like_one_over_the_steps()

# %% [markdown]
# ### When Euler wins
#
# Our world is generous: each of its nine words is possible. In English nearly all strings are not words. So take a strict world: *ab*
# 0.5, *bc* 0.3, *ca* 0.2, and nothing else. Below are the distance on the `linear` grid, the share of non-words, and
# the error of each word.

# %% tags=["hide-input"]
strict_probs = torch.zeros(3, 3, dtype=torch.float64)
strict_probs[0, 1], strict_probs[1, 2], strict_probs[2, 0] = 0.5, 0.3, 0.2
strict_world = TinyWorld(strict_probs)
runs = {}
for method in METHODS:
    for n in (4, 16, 64, 256, 512):
        runs[method, n] = written(strict_world, noise_levels(noise, n), method=method)

# %% tags=["hide-input"]
print("steps   distance: analytic   euler   ratio   not a word: analytic    euler")
broken = strict_probs.flatten() == 0
for n in (4, 16, 64, 256, 512):
    (one, other) = (runs[method, n] for method in METHODS)
    miss, miss_2 = (total_variation(run, strict_world.probs) for run in (one, other))
    print(
        f"{n:5}   {miss:18.4f} {miss_2:7.4f} {miss / miss_2:7.2f}"
        f"   {one[broken].sum():20.5f} {other[broken].sum():8.5f}"
    )
print("\nerror of a word, times N = 512:   ab      bc      ca")
for name, error in (
    ("analytic", runs["analytic", 512] - strict_world.probs),
    ("euler adds", runs["euler", 512] - runs["analytic", 512]),
):
    print(f"{name:28}" + "".join(f"{512 * error[word]:8.2f}" for word in (1, 5, 6)))

# %% [markdown]
# **The cruder step comes 1.5 to 1.6 times closer** from 16 steps on. The last two lines show why: the errors of independent draws, and what Euler adds to them, have opposite signs.
#
# * *Drawing independently favors the most frequent word.* In one long step from noise, each letter picks its word on its
#   own: *ab* half of the time. Two picks of *ab* write *ab*. Where the picks differ, later steps settle it by the odds of
#   the two words. So *ab* comes out with $0.5^2+2\cdot0.5\cdot0.3\cdot\tfrac58+2\cdot0.5\cdot0.2\cdot\tfrac57=0.58$ in
#   place of 0.5.
# * *Frozen rates favor the rare words.* They are those of the noisier text at the start of the step, where the odds are still closer to even.
#
# [Euler or analytic](deeper/euler_or_analytic.ipynb) takes the errors apart step by step, and shows that Euler's lead is
# a tendency, not a law. Its share of non-words is as large or larger.
#
# **And on stories?** A flawed story is a non-word of its language, so Euler should gain nothing. In 16, 32 and 64 steps of `cosine`
# 56, 68 and 67 % of the bundled network's stories were flawless with the analytic step, and 53, 62 and 70 % with Euler's, with 95 %
# intervals of 5 to 8 points to either side: no difference is seen (`benchmarks/euler.py`).
#
# ### Where the steps should be
#
# The upper part of the next figure shows the *local error*, the error of a single step: the total
# variation between the true table and the product, averaged over the noisy words of the language, for a step that
# lowers $f$ by a little $\delta f$, divided by $(\delta f)^2$. The ticks below show where the three grids stop in a run of twelve steps.


# %% tags=["hide-input"]
def local_error(fraction: Tensor, part: float = 0.02) -> float:
    now, after = -torch.log1p(-fraction), -torch.log1p(-fraction * (1 - part))
    log_q = world.denoise(world.words, now)
    product = product_of_positions(world, analytic_probs(log_q, world.words, now, after))
    miss = (product - true_reverse(world, now, after)).abs().sum(-1) / 2  # (W,)
    return float(world.probs @ word_kernel(world, now) @ miss / (part * fraction) ** 2)


fractions = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
figure, (top, bottom) = plt.subplots(
    2, sharex=True, figsize=(7, 4), gridspec_kw={"height_ratios": [3, 1]}
)
top.plot(fractions, [local_error(fraction) for fraction in fractions])
top.set_ylabel("local error / (δf)²")
top.set_ylim(0)
for row, schedule in enumerate(SCHEDULES):
    stops = resample_probability(noise_levels(noise, 12, schedule))
    bottom.plot(stops, torch.full_like(stops, row), "|", markersize=12, color=f"C{row}")
bottom.set_yticks(range(3), SCHEDULES)
bottom.set_ylim(2.6, -0.6)
bottom.set_xlabel("fraction f of resampled letters (a run goes from right to left)")
plt.show()
ends = [local_error(fractions[k]) for k in (0, 49)]
print(f"local error at f = 0.01: {ends[0]:.1f}, at f = 0.5: {ends[1]:.1f}")

# %% tags=["hide-input"]
levels, twelve = noise_levels(noise, 12, "fraction"), range(12)
true = [true_reverse(world, levels[k], levels[k + 1]) for k in twelve]
for k in (3, 8, 11):
    step = reverse_probs(world, world.words, levels[k], levels[k + 1])
    error = (
        world.probs @ word_kernel(world, levels[k]) @ (product_of_positions(world, step) - true[k])
    )
    initial_error = error.abs().sum() / 2
    for table in true[k + 1 :]:
        error = error @ table
    print(f"step {k + 1:2}: {initial_error:.4f} at once, {error.abs().sum() / 2:.4f} at the end")

# %% [markdown]
# If errors simply added up and the curve were flat, equal steps of $f$ would be best, because squares of numbers with a given sum add up
# to the least when all are equal. There are two reasons for shorter steps near the text. First, the local error there is
# three times that in the middle. Take *ac* at $f=0.01$. It is the word that was meant with probability 0.87; if not, nearly
# always exactly one letter is wrong, and exactly one should change. Letters that are drawn independently may both change.
#
# Second, later steps correct what they see. For the lines under the figure, one of twelve steps of `fraction` was the product and all others were the true
# table. Of the error that step 4 makes, one part in twenty is left at the end. Nothing comes after step 12.
#
# `linear` overdoes it: it spends more than a third of its steps where hardly a letter is wrong, and leaps through the middle, from 0.93 to 0.61 to 0.29. Masked
# models usually begin with short steps ([MaskGIT](https://arxiv.org/abs/2202.04200), whose cosine is ours
# mirrored). The trained network agrees with us: of its stories in 24 steps, 62 % are flawless on `cosine`, 56 % on `fraction` and 50 % on
# `linear` (`ddlm_core/results/sampling.json`). Our default is `linear`, as in the paper; the pipeline of chapter 10 takes `cosine`.
#
# ## Too far, and back
#
# A trained network is not Bayes-optimal. A letter that the sampler has put in wrongly is evidence in the next step, for itself
# and for its neighbors, just as a right one is. And near the clean text a step changes almost no letter, so there are
# few chances to correct it.
#
# So let a step go *too far*, to a noise below $\bar\sigma_s$, and add fresh noise back up to $\bar\sigma_s$. The fresh noise hits
# right letters and wrong ones alike. In the next step a right letter that was hit is restored from its neighbors. A wrong one that was hit no longer
# speaks for itself: it is drawn again, from what all other letters say *now*. How far the step goes is the **churn**,
# from 0 to 1: it goes down to the fraction $(1-\text{churn})\,f_s$. So 0 is the plain step, and with 1 each step draws a
# complete clean text and corrupts it again, a little less than last time.
#
# This takes no second function evaluation. If a letter is $y$ with probability $p_y$, then after more noise $\Delta'$ it is $y$ with probability
# $e^{-\Delta'}p_y+(1-e^{-\Delta'})/V$. Is it still right? An exact step takes $p_t$ to the distribution of the lower level, and noise takes that
# to $p_s$; only the path is different. But our steps are not exact for the whole text, and a longer leap has a larger
# error.
#
# This is a *predictor–corrector* sampler. [Karras et al. 2022](https://arxiv.org/abs/2206.00364) add noise back in samplers of continuous
# diffusion and call it churn; [ReMDM](https://arxiv.org/abs/2503.00307) masks letters again; the
# [Ψ-samplers](https://arxiv.org/abs/2602.21185) of Deschenaux et al. 2026 work for masks and uniform noise alike.

# %% tags=["export:reverse", "hide-input"]
from typing import Any

from ddlm_core.noise import resample_probability


def churned_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    *,
    churn: float = 0.0,
    method: str = "analytic",
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> Tensor:
    r"""A step down to the fraction $(1 - \text{churn}) f_s$, and noise back to $f_s$: (B, L, V).

    ``churn`` from 0 (``reverse_probs``, exactly) to 1; all else as there. One function evaluation.
    (Not in SEDD: after Karras et al. 2022, and like the Psi-samplers of Deschenaux et al. 2026.)
    """
    check_step(model, method, temperature, churn)
    options: dict[str, Any] = {"method": method, "temperature": temperature}
    options["condition_mask"] = condition_mask
    if churn == 0:
        return reverse_probs(model, x_t, sigma_bar_t, sigma_bar_s, **options)
    sigma_bar_s = noise_column(sigma_bar_s, x_t)[:, 0]  # (B,)
    sigma_target = -torch.log1p((churn - 1) * resample_probability(sigma_bar_s))  # (B,)
    probs = reverse_probs(model, x_t, sigma_bar_t, sigma_target, **options)
    delta_sigma = noise_column((sigma_bar_s - sigma_target).clamp(min=0), probs)
    uniform = torch.full_like(probs, 1 / probs.shape[-1])
    return torch.lerp(probs, uniform, resample_probability(delta_sigma))


# %% tags=["hide-input"]
print("steps        " + "".join(f"{n:>8}" for n in counts[2:9]))
for churn in (0.0, 0.25, 0.5, 1.0):
    runs = (written(world, noise_levels(noise, n, "cosine"), churn=churn) for n in counts[2:9])
    misses = [total_variation(run, world.probs) for run in runs]
    print(f"churn {churn:4}   " + "".join(f"{miss:8.4f}" for miss in misses))

# %% [markdown]
# For a Bayes-optimal denoiser churn is nothing but a cost: with 256 steps, a churn of 1 makes the distance twelve times as
# large, because its leap is a fixed share of the noise that is left and does not shrink with $N$. The trained network of
# the next section gains: in 64 steps of `cosine`, 65 % of its stories are flawless with a churn of 0, and 93 % with a churn
# of 1 ([chapter 9](09_evaluation.ipynb)). So the default is 0 in `denoising_steps`, and 1 in the pipeline of chapter 10,
# which writes stories.
#
# `denoising_steps` is the loop with all options: it checks them, draws the start, and puts given letters into it. It writes texts of a fixed length,
# `seq_len`; the padding of [chapter 1](01_tokenizer.ipynb) fills what a shorter text leaves. `sample_diffusion` returns the last text.


# %% tags=["export", "hide-input"]
def _with_condition(
    tokens: Tensor, template: Tensor | None, condition_mask: Tensor | None, vocab_size: int
) -> tuple[Tensor, Tensor | None]:
    """The start (B, L) with the given tokens in their places, and the mask, bool (B, L)."""
    if template is None and condition_mask is None:
        return tokens, None
    if not isinstance(template, Tensor) or not isinstance(condition_mask, Tensor):
        raise UserError("template and condition_mask go together: both must be tensors")
    shapes = (tuple(tokens.shape[1:]), tuple(tokens.shape))
    for name, value, dtype in (
        ("template", template, torch.int64),
        ("condition_mask", condition_mask, torch.bool),
    ):
        if value.dtype != dtype or value.shape not in shapes:
            need = f"{dtype} of shape {shapes[0]} or {shapes[1]}"
            raise UserError(f"{name} must be {need}, got {value.dtype} {tuple(value.shape)}")
    template, mask = (
        given.expand_as(tokens).to(tokens.device) for given in (template, condition_mask)
    )
    if ((template < 0) | (template >= vocab_size))[mask].any():
        raise UserError(f"the template has tokens outside 0 to {vocab_size - 1}")
    return torch.where(mask, template, tokens), mask


# %% tags=["export", "hide-input"]
def _device_of(model: ScoreModel) -> torch.device:
    """Where the parameters of a network are; the CPU for any other function."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


# %% tags=["export", "hide-input"]
def denoising_steps(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    num_steps: int = 128,
    schedule: str = "linear",
    method: str = "analytic",
    temperature: float = 1.0,
    churn: float = 0.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and each of ``num_steps`` steps.

    Each step takes one function evaluation of ``model``, which has ``denoise``, or gives log-scores
    (B, L, V) when called. ``template``, int64, (L,) or (B, L), stays where ``condition_mask``, bool, is
    true. ``generator``: one for all texts, or one for each. The time grid is that of
    ``create_timestep_schedule``, the steps are those of ``churned_probs``; without ``denoise_last`` the run stops
    at the least noise of the schedule. ``vocab_size`` and ``device`` are by default those of the model.
    What cannot work raises a ``UserError`` at the call. (SEDD, Lou, Meng & Ermon 2024; churn is ours.)
    """
    check_range(1, math.inf, batch_size=batch_size, seq_len=seq_len)
    check_step(model, method, temperature, churn)
    generators: Sequence[torch.Generator | None]
    generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
    if len(generators) != batch_size:
        raise UserError(f"got {len(generators)} generators for a batch of {batch_size}")
    vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
    levels = noise_levels(noise, num_steps, schedule, denoise_last)
    prior = graph_of(model).sample_prior
    start = torch.cat([prior(1, seq_len, vocab_size, g) for g in generators])
    start = start.to(_device_of(model) if device is None else device)
    start, condition_mask = _with_condition(start, template, condition_mask, vocab_size)
    step_probs = partial(
        churned_probs,
        model,
        churn=churn,
        method=method,
        temperature=temperature,
        condition_mask=condition_mask,
    )
    return _run_reverse(step_probs, start, levels, generators, condition_mask)


# %% tags=["export", "hide-input"]
def sample_diffusion(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    num_steps: int = 128,
    schedule: str = "linear",
    method: str = "analytic",
    temperature: float = 1.0,
    churn: float = 0.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Tensor:
    """The finished texts, int64 (B, L): the last of ``denoising_steps``, whose arguments and errors these are."""
    steps = denoising_steps(
        model,
        noise,
        batch_size,
        seq_len,
        vocab_size=vocab_size,
        num_steps=num_steps,
        schedule=schedule,
        method=method,
        temperature=temperature,
        churn=churn,
        template=template,
        condition_mask=condition_mask,
        generator=generator,
        device=device,
        denoise_last=denoise_last,
    )
    for step in steps:
        pass
    return step.tokens


# %% [markdown]
# Does the loop, with its random draws, write what the exact computation says? The test counts four thousand words, written
# in four steps. Their chi-squared statistic is about 8 if all is well, and above 31.8 once in ten thousand trials. Against
# the true language, for which four steps are too few, it must exceed 500.


# %% tags=["test"]
def test_loop_writes_what_the_exact_computation_says():
    world, number = three_letter_world(), 4000
    levels = noise_levels(GeometricNoise(), 4, "fraction")
    for options in ({}, {"method": "euler"}, {"churn": 0.6}):
        tokens = sample_diffusion(
            *(world, GeometricNoise(), number, world.length),
            num_steps=4,
            schedule="fraction",
            generator=sample_generators(3, number),
            **options,
        )
        counts = (tokens @ torch.tensor([3, 1])).bincount(minlength=9)
        exact = written(world, levels, **options)
        for probs, low, high in ((exact, 0, 31.8), (world.probs, 500, float("inf"))):
            expected = number * probs
            chi_squared = ((counts - expected) ** 2 / expected).sum()
            assert low < chi_squared < high  # 8 degrees of freedom: 31.8 has p = 1e-4


test_loop_writes_what_the_exact_computation_says()

# %% [markdown]
# ## One story
#
# Enough of three letters. The package comes with a small network, trained on the stories of chapter 2 as [chapter
# 8](08_training.ipynb) will show. We let it write from the same seed, so from the same noise, in 1, 4 and 64 plain steps of
# `cosine`:

# %% tags=["hide-input"]
import textwrap
from contextlib import redirect_stdout
from io import StringIO

from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.support.models import bundled_models

folder = str(bundled_models()["pocket-stories"])
with redirect_stdout(StringIO()):  # it says that the weights come from a folder
    model = DiscreteDiffusionTransformer.from_pretrained(folder).requires_grad_(False)

# %%
for num_steps in (1, 4, 64):
    options = {"num_steps": num_steps, "schedule": "cosine", "generator": sample_generators(58, 1)}
    tokens = sample_diffusion(model, model.config.noise, 1, model.config.block_size, **options)
    print(textwrap.fill(f"{num_steps:2} steps: {tokenizer.decode(tokens[0])!r}", 90))

# %% [markdown]
# One step gives every place a letter that is likely *there*, and hardly a word. In four steps only *gatl* is not
# a word. The story of 64 steps reads well, but is broken: by the grammar the hero who wants to trade must be happy at the
# end, and here Lucy trades and *Luke* is happy. [The birth of a flaw](deeper/birth_of_a_flaw.ipynb) watches how sure the
# network is of each letter, and finds how two of the three mentions of *Luke* turned into *Lucy* and the third did not.
#
# In the rendered book, let it write with the options of this chapter:

# %% tags=["hide-input"]
from ddlm_core import Live
from ddlm_core.animation import Animation, make_frames

options = {"num_steps": 16, "schedule": "cosine", "generator": sample_generators(0, 1)}
steps = [*denoising_steps(model, model.config.noise, 1, model.config.block_size, **options)]
frames = make_frames([step.tokens[0] for step in steps], [step.sigma_bar for step in steps])
Live("sample", stored=Animation(frames, tokenizer), steps=16, grid="cosine", churn=0)

# %% [markdown]
# ## Infilling
#
# An autoregressive model can continue a text. This one can fill holes anywhere: write the given characters (the `template`; others say
# *prompt*) into the starting text, let the rest be noise, and leave the given ones alone in each step. Is that enough? It
# depends on whether **the model knows which characters are given**.
#
# Suppose the first letter is *b*. In our language *c* follows with probability 0.9. A model that is told "this letter is
# clean" believes exactly that, at every noise level. A model that is not told takes the *b* for a noisy letter, at first for a random one. So it begins
# to write a second letter that ignores the *b*, and learns too late that the *b* was certain.

# %% tags=["hide-input"]
template, condition_mask = torch.tensor([1, 0]), torch.tensor([True, False])  # b_
fits = world.words[:, 0] == 1
truth = world.probs * fits / (world.probs * fits).sum()
print("truth                  ", truth[fits].numpy().round(3), "for ba, bb, bc")
given = {"template": template, "condition_mask": condition_mask}
for pass_mask, numbers in ((True, (1, 16)), (False, (1, 16, 1024, 4096))):
    for num_steps in numbers:
        probs = written(world, noise_levels(noise, num_steps), **given, pass_mask=pass_mask)
        text = f"{'told' if pass_mask else 'not told'}, {num_steps} steps"
        print(f"{text:22} ", probs[fits].numpy().round(3))

# %% [markdown]
# A model that is told is exact even in a single step, since there is only one letter to write. For one that is not told, the total variation
# is still 0.13 after 1,024 steps, and four times as many steps change nothing: it answers for a *noisy* letter that happens
# to be *b*, not for a *clean* one, and the two answers agree only at the very end. Putting the given letters back after
# each step, and nothing more, is called the *replacement method*; the paper's sampler does so. Ours passes the mask on,
# which makes the network a *conditional model*, and chapter 8 trains it with spans that it knows are given.


# %% tags=["test"]
def test_given_letters_condition_the_rest():
    world, template = three_letter_world(), torch.tensor([1, 0])
    true = world.probs * (world.words[:, 0] == 1)
    true = true / true.sum()
    given = {"template": template, "condition_mask": torch.tensor([True, False])}
    for num_steps in (1, 7):
        run = written(world, noise_levels(GeometricNoise(), num_steps), **given)
        torch.testing.assert_close(run, true)
    levels = noise_levels(GeometricNoise(), 256)
    assert total_variation(written(world, levels, **given, pass_mask=False), true) > 0.1


test_given_letters_condition_the_rest()

# %% [markdown]
# ## Change it safely
#
# Take the most probable letter in the last step. In `_run_reverse`, replace the line that draws by
#
# ```python
# last = index == len(levels) - 1
# drawn = probs.argmax(-1) if last else _sample_categorical(probs, uniform)
# ```
#
# `test_loop_writes_what_the_exact_computation_says` fails: in four steps of `fraction`, *ab* now has
# 0.39 where drawing gives 0.33, and *aa* and *cb* are never written.
#
# The command: `make export && pytest tests/test_sampler.py tests/unit/test_sampler.py`.
#
# ## Exercises
#
# **1.** How many steps does `linear` need to bring the total variation down to 0.01? How many does
# `cosine` need? (Expected: 93 and 45.)


# %% tags=["solution", "hide-input"]
def miss(num_steps: int, schedule: str) -> float:
    return total_variation(written(world, noise_levels(noise, num_steps, schedule)), world.probs)


needed = {"linear": 32, "cosine": 32}
for schedule in needed:
    while miss(needed[schedule], schedule) > 0.01:
        needed[schedule] += 1
assert needed == {"linear": 93, "cosine": 45}, needed
needed

# %% [markdown]
# **2.** Temperature $T=\tfrac12$ would ideally square the probability of each word: *ab* $0.16$, *bc* $0.09$, *ca*
# $0.04$, divided by their sum (with the rare words) $0.2917$. But it is applied per position. What do 256 steps of `cosine`
# write? Call `reverse_probs` yourself with `temperature=0.5`. (Expected: *ab* 0.452 instead of 0.549. The rare words
# are all but gone, yet *ab*, *bc* and *ca* are almost in the ratio 4 : 3 : 2.)

# %% tags=["solution", "hide-input"]
probs, levels = torch.full((9,), 1 / 9, dtype=torch.float64), noise_levels(noise, 256, "cosine")
for now, after in zip(levels[:-1], levels[1:], strict=True):
    step = reverse_probs(world, world.words, now, after, temperature=0.5)
    probs = probs @ product_of_positions(world, step)
ideal = world.probs**2 / (world.probs**2).sum()
assert round(probs[1].item(), 3) == 0.452 and round(ideal[1].item(), 3) == 0.549
print(f"sampler: ab {probs[1]:.3f}, bc {probs[5]:.3f}, ca {probs[6]:.3f}")
print(f"ideal:   ab {ideal[1]:.3f}, bc {ideal[5]:.3f}, ca {ideal[6]:.3f}")

# %% [markdown]
# ## Summary
#
# The reverse rate is the forward rate times the score. For one position the reverse step is exact. For all positions at once it is a
# product where the truth is not: one step costs the total correlation, $N$ steps an error of order $1/N$, and `cosine` needs half the steps of `linear`.
# Churn costs a Bayes-optimal denoiser accuracy, and helps a trained one.
#
# | exported name | meaning |
# |---|---|
# | `create_timestep_schedule`, `SCHEDULES` | time grids from 1 to 0: `linear`, `cosine`, `fraction` |
# | `noise_levels` | the total noise at these times, the last one 0 |
# | `euler_probs` | jumps at the reverse rates, held constant during the step |
# | `analytic_probs` | the exact step of one position, for any graph |
# | `staggered_score` | scores with the noise of one step undone: the form of the paper |
# | `reverse_probs`, `METHODS`, `has_denoiser` | one function evaluation, turned into one step |
# | `churned_probs` | the same, a little too far and back by fresh noise |
# | `sample_generators` | one source of randomness for each text |
# | `DenoisingStep`, `denoising_steps`, `sample_diffusion` | the result of a step; all steps; only the text |
#
# The exact computations are a module, `ddlm_core.tiny_world`, to check your own sampler against: `TinyWorld`,
# `three_letter_world`, `two_letter_world`, `word_kernel`, `true_reverse`, `product_of_positions`, `written`, `total_variation`.
#
# ## Where this stands in the field
#
# The analytic step is *ancestral sampling* with the posterior of [D3PM](https://arxiv.org/abs/2107.03006); its continuous time is from
# [Campbell et al. 2022](https://arxiv.org/abs/2205.14987) and [SEDD](https://arxiv.org/abs/2310.16834).
# *Uniformization* simulates the jumps without factorization error ([Chen & Ying 2024](https://arxiv.org/abs/2402.08095)); *second-order* steps ([Ren et
# al. 2025](https://arxiv.org/abs/2502.00234)) and optimized time grids ([Jump Your Steps](https://arxiv.org/abs/2410.07761)) make it smaller.
# *Distillation* trains a student to do in one step what its teacher does in many ([SDTT](https://github.com/jdeschena/sdtt),
# [Duo](https://arxiv.org/abs/2506.10892), [Di4C](https://github.com/sony/di4c)). For *guidance* by a condition, see
# [UDLM](https://arxiv.org/abs/2412.10193).
#
# Next: [chapter 8](08_training.ipynb) trains the network.
