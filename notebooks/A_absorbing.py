# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Absorbing states
#
# **We have** a model that starts from random characters and mends all of them, again and again. **We
# want** another kind of noise: characters disappear under a mask, `░`, and the model uncovers them.
# **Why**: many diffusion language models work this way. [D3PM](https://arxiv.org/abs/2107.03006) and
# [SEDD](https://arxiv.org/abs/2310.16834) try it beside the uniform noise, and
# [MDLM](https://arxiv.org/abs/2406.07524) uses nothing else. The formulas become so short that one can see
# through them. And it is a test of this book: the code that trains, measures and samples must not have
# to change. Only what it asks of the noise is new, and that is a few small things.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core lazy_loader
        tqdm pillow ipywidgets matplotlib gradio pytest"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## By hand
#
# A text of one letter, from the alphabet `a b c`. Half of all texts are `a`, three tenths are `b`, the
# rest `c`. Now each letter is masked with probability $f = 0.6$. What do we see? An `a` with
# probability $0.4\cdot0.5=0.2$, a `b` with $0.12$, a `c` with $0.08$, and a mask with $0.6$.
#
# Going back is easy. A letter was never touched: it *is* the clean letter. A mask says nothing about
# what it covers, so under it is an `a` with probability 0.5, as in all texts. Suppose that at the step
# before, the share of masks was $0.45$. Then of the masks that we see, $0.45/0.6=\tfrac34$ were there
# already. One mask in four opens in this step, and shows an `a` half of the time.

# %%
p_0, now, before = {"a": 0.5, "b": 0.3, "c": 0.2}, 0.6, 0.45
step = {letter: round((now - before) / now * p, 3) for letter, p in p_0.items()}
step | {"░": before / now}

# %% [markdown]
# Compare chapters 5 to 7. A redrawn letter looks like a clean one, so the model had to weigh how far
# to trust each letter that it saw. Here it need not: letters are true, masks are blank. In texts of
# more than one letter, the work that remains is to guess the masked letters from the open ones.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of states of a position: the tokens *and* the mask, which is the last one |
# | $\bar\sigma$, $\sigma$ | `sigma_bar`, `sigma` | total noise and its rate, as before |
# | $f$ | `f_t`, `f_s` | share of masks, $1-e^{-\bar\sigma}$ |
# | $q_y$ | `log_q` (its log) | what the model believes of the clean token at a position |
# | $s_y$, $a_y$ | `log_score`, `a` | the ratio of probabilities, estimated and true, as before |

# %% [markdown]
# ## One state more
#
# The mask needs a token of its own. Could we not spare it, and use `<UNK>`, which our stories never contain?
# Other texts do contain it. Were it the mask, a written `<UNK>` could not be told from a place not yet
# written: the model could never write an unknown character, and the bound would be wrong for every text that
# has one. So we add a token, the 107th. It comes last, so the other ids stay what they are. The
# vocabulary in a checkpoint's `config.json` then shows it, and everything that prints tokens prints
# it without being told.
#
# Noise now has a direction: a letter turns into the mask at rate 1, and the mask stays. Such a state
# is called *absorbing*. Whatever the letter, it stays itself with probability $e^{-\bar\sigma}$, and else
# is masked. That is `perturb_batch` of [chapter 4](04_forward.ipynb), with another answer to one question: where does
# noise put a token? There it was a random one, a draw from `sample_prior`. Here it is the mask. The
# prior also says what pure noise looks like, and where sampling starts: nothing but masks.

# %% tags=["export"]
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = "░"


def with_mask(vocab: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary with the mask as its last token, once."""
    return (*vocab, MASK) if vocab[-1] != MASK else tuple(vocab)


def all_masked(
    batch_size: int,
    length: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pure noise: nothing but masks, int64 (B, L) on ``device``; a generator has nothing to draw."""
    return torch.full((batch_size, length), vocab_size - 1, device=device)


# %% [markdown]
# Is the chance right? The rates as a matrix say it, without a formula of ours: PyTorch's matrix exponential. Row
# $x_0$, column $x_t$, for $\bar\sigma = 1$; the mask comes last.

# %%
import math

rates = torch.diag(torch.tensor([-1.0, -1.0, -1.0, 0.0], dtype=torch.float64))
rates[:3, 3] = 1  # each letter to the mask
kernel = torch.linalg.matrix_exp(rates)
assert torch.allclose(kernel[:3, 3], torch.tensor(1 - math.exp(-1.0), dtype=torch.float64))
kernel

# %% [markdown]
# ## Noise without end
#
# The geometric schedule stops at $\bar\sigma=20$, with one letter in $e^{20}$, half a billion, still
# there. For uniform noise that was a crumb. Here it would be a hole. Sampling starts from a text of
# masks only, with certainty. If the noise leaves a letter with some probability, however small, then
# $KL(p(x_1\mid x_0)\,\|\,\text{all masks})$ contains the logarithm of that probability over *zero*: the
# bound would be infinite. The noise must end in nothing but masks, so $\bar\sigma(1)=\infty$.
#
# Infinity is no trouble if we think of the share of masks, $f=1-e^{-\bar\sigma}$, which grows to 1 and stops there. The
# simplest choice is $f = t$: at time $t$, a share $t$ of the text is masked. Solve for $\bar\sigma$ and differentiate:
#
# $$ \bar\sigma(t) = -\log(1-t), \qquad \sigma(t) = \frac{d\bar\sigma}{dt} = \frac1{1-t}. $$
#
# SEDD calls this schedule *log-linear*. (*Departure:* its code has $-\log(1-(1-\epsilon)\,t)$ with a small
# $\epsilon$, and so ends just short of infinity. We need no $\epsilon$.) It also begins at $\bar\sigma(0)=0$, with a clean text. So two of the three
# terms of the bound of [chapter 5](05_loss.ipynb) are exactly 0: the prior, and the reconstruction.

# %% tags=["export"]
import math
from dataclasses import dataclass
from typing import ClassVar

from ddlm_core.noise import as_float_tensor, resample_probability


@dataclass(frozen=True)
class LogLinearNoise:
    r"""The log-linear schedule (SEDD, Lou, Meng & Ermon 2024): at time t, a share t is masked.

    Called with t in [0, 1] (any shape, not checked) it returns total noise $\bar\sigma(t) = -\log(1 - t)$
    and rate $1/(1 - t)$, both infinite at t = 1, of the shape and dtype of t; numbers count as float64.
    """

    sigma_min: ClassVar[float] = 0.0  # at t = 0
    sigma_max: ClassVar[float] = math.inf  # at t = 1

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = -\log(1 - t)$, of the shape of ``t``."""
        return -torch.log1p(-as_float_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = 1/(1 - t)$, of the shape of ``t``."""
        return 1 / (1 - as_float_tensor(t))

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the share of masks."""
        return resample_probability(sigma_bar)


# %% [markdown]
# The methods are those of every `NoiseSchedule`, so the functions of chapters 7 to 9 that choose times can use
# it as it is. (`tests/unit/test_absorbing.py` tries them all: a schedule for sampling must begin at infinity and end at 0, and the times
# of training must stay below 1, where the rate is infinite. They do, because they come from random numbers below 1.)

# %% [markdown]
# ## A world that we know exactly
#
# As in [chapter 7](07_sampler.ipynb): three letters, words of two letters, *ab* 0.4, *bc* 0.3, *ca* 0.2, and the six
# other words share 0.1. With the mask there are four states and $4^2=16$ noisy texts. For each
# place, the ideal network goes through the words that fit the open letters at the *other* places, and adds up what
# they have here. (So the belief at an open letter does not know that letter: see place 1 of `a░` below.)
#
# Look at `denoise`, printed below: it does not use `sigma_bar`. What lies under a mask depends on the letters that are
# open, and *not on how much noise there is*. In symbols: a text $x_t$ with the open letters $x_o$ has the
# probability $p_0(x_o)\,(1-f)^{\text{open}} f^{\text{masked}}$, and Bayes' rule divides the factors of $f$
# away. At a masked place $i$,
#
# $$ p(x_0^i = y \mid x_t) = \frac{p_0(x_0^i=y,\; x_o)}{p_0(x_o)}. $$
#
# So a network for this noise need not be told the time, as [RADD](https://arxiv.org/abs/2406.03736) points out. (Ours is
# told, because it is the network of chapter 6. Anyone could count the masks.)

# %%
import inspect

from ddlm_core.support.worlds import MaskedWorld, three_letter_words

print(inspect.getsource(MaskedWorld.denoise))

# %%
world = three_letter_words()
for text in ("░░", "a░", "░c"):
    x_t = torch.tensor([["abc░".index(letter) for letter in text]])
    q = world.denoise(x_t, torch.tensor([1.0])).exp()[0]
    print(text, *(f"place {i + 1}: {row.numpy().round(2)}" for i, row in enumerate(q)), sep="   ")

# %% [markdown]
# ## From belief to score
#
# In this book $q$ is the belief about the clean token *before* the evidence of $x_t$ at that same place.
# What does that evidence say here? At a mask: nothing, except that a clean token is never the
# mask. At a letter: everything. So the posterior is
#
# $$ p(x_0 = y\mid x_t) = \begin{cases} q_y & \text{at a mask, with } q_{\text{mask}}=0, \\
#    [y = x_t] & \text{at a letter.}\end{cases} $$
#
# The score is the ratio $p_t(\dots y\dots)/p_t(x_t)$. At a mask, what is the probability of the same text
# with the letter $y$ in this place? That letter must be the clean one, and it must have survived, while the
# mask, whatever it covers, must have been hit:
#
# $$ s_y = \frac{(1-f)\,q_y}{f} = \frac{q_y}{e^{\bar\sigma}-1}. $$
#
# A letter has no way back, for nothing turns into a letter. So its ratios, though they are not 0, are never
# used. The code puts 0 there, and 1 at $y=x_t$, as always. The network of chapter 6 has an output for each of the $V$ states, so
# its $q$ may put something on the mask. The first function takes that away, by construction.

# %% tags=["export"]
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column


def mask_posterior(log_q: Tensor, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q$ at a mask, itself no letter; elsewhere $x_t$, surely.

    For $\log q$ (B, L, V), whatever it gives to the mask, and tokens int64 (B, L). (MDLM, Sahoo et al.
    2024: zero masking probabilities and carry-over unmasking.)
    """
    mask = log_q.shape[-1] - 1
    q = log_q.index_fill(-1, torch.tensor(mask, device=log_q.device), -torch.inf).log_softmax(-1)
    return torch.where((x_t == mask)[..., None], q, one_hot(x_t, mask + 1).log())


# %% tags=["export"]
def mask_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From a belief to log-scores (B, L, V): $s_y = q_y/(e^{\bar\sigma} - 1)$ at a mask, 1 at y = x_t.

    At a letter, 0 for every other y: the way back from a letter leads nowhere. Noise: a scalar or (B,).
    """
    log_odds = torch.expm1(noise_column(sigma_bar, log_q)).log()  # (B, 1, 1)
    return (mask_posterior(log_q, x_t) - log_odds).scatter(-1, x_t[..., None], 0.0)


# %% [markdown]
# Against an enumeration: list $p_t$ of all 16 texts, and divide.


# %% tags=["test"]
from ddlm_core.support.worlds import three_letter_words


def test_score_is_the_ratio_of_the_marginals():
    world = three_letter_words()
    levels = torch.tensor([0.02, 0.7, 3.5], dtype=torch.float64)
    masked = (world.texts == 3)[..., None]  # letters have no way back
    for sigma_bar, true in zip(levels, world.log_score(levels), strict=True):
        found = mask_log_score(world.denoise(world.texts, sigma_bar), sigma_bar, world.texts)
        torch.testing.assert_close(found[masked.expand_as(found)], true[masked.expand_as(true)])


test_score_is_the_ratio_of_the_marginals()

# %% [markdown]
# ## The loss
#
# Score entropy of chapter 5 is a sum over the jumps back, each weighted with the rate of the jump *forward*,
# $Q(y\to x_t)$. In general,
#
# $$ \ell = \sum_{y\ne x_t} Q(y\to x_t)\,\big(s_y - a_y\log s_y + a_y(\log a_y-1)\big). $$
#
# With the uniform graph every rate is $1/V$. Here $Q(y\to x_t)$ is 1 if $x_t$ is the mask, and 0 if it is a
# letter: letters cost nothing. At a mask, the true ratio is $a_y = a\,[y=x_0]$ with
# $a=1/(e^{\bar\sigma}-1)$, so all other $y$ leave just $s_y$:
#
# $$ \ell = \sum_{y\ne x_0,\,x_t} s_y + a\,(e^{d}-1-d), \qquad d = \log s_{x_0}-\log a. $$
#
# No term is negative. That holds for any scores. Now put in $s_y = a\,q_y$, with $q$ a distribution over
# letters. Then $\sum_{y\ne x_0,\,x_t}s_y = a\,(1-q_{x_0})$, $e^d = q_{x_0}$, and everything cancels but the
# logarithm:
#
# $$ \ell = a\,(1-q_{x_0}) + a\,(q_{x_0} - 1 - \log q_{x_0}) = \frac{-\log q_{x_0}}{e^{\bar\sigma}-1}. $$
#
# **Score entropy has become cross-entropy**: guess the masked letter, and pay the surprise. Along the
# log-linear schedule, the weight in the bound is $\sigma(t)/(e^{\bar\sigma}-1) = \frac1{1-t}\cdot\frac{1-t}{t}=\frac1t$,
# and so
#
# $$ -\log p(x_0)\;\le\;\int_0^1 \frac1t\;\mathbb E\!\!\sum_{i\text{ masked}}\!\!-\log q_{x_0^i}\;dt . $$
#
# This is the objective of [MDLM](https://arxiv.org/abs/2406.07524) and of
# [MD4](https://arxiv.org/abs/2406.04329). If every letter is masked the weight is 1; if one letter in a hundred is,
# it is 100: all shares of masks count alike.


# %% tags=["export"]
def mask_loss(log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\sum_{y \ne x_0, x_t} s_y + a\,(e^d - 1 - d)$ at a mask, with $a = 1/(e^{\bar\sigma} - 1)$ and
    $d = \log s_{x_0} - \log a$; 0 at a letter. (SEDD, Lou, Meng & Ermon 2024, with the absorbing rates.)
    Log-scores (B, L, V), noise a scalar or (B,), at least 0, tokens int64 (B, L).
    """
    masked = x_t == log_score.shape[-1] - 1  # (B, L)
    a = torch.where(masked, 1 / torch.expm1(noise_column(sigma_bar, log_score))[..., 0], 1.0)
    d = torch.where(masked, log_score.gather(-1, x_0[..., None])[..., 0] - a.log(), 0.0)
    others = log_score.scatter(-1, torch.stack([x_t, x_0], dim=-1), -torch.inf).exp().sum(-1)
    return torch.where(masked, others, 0.0) + a * (torch.expm1(d) - d)


# %% [markdown]
# We could have written cross-entropy, and saved a few lines. But then a check of the derivation would be a
# comparison of the formula with itself. As it is, we can see the cross-entropy come out. (A second test takes the general
# sum, with the rates as a matrix and the ratios from its exponential. A third looks at the clean end: at $t=0$ the factor $a$ is
# infinite, no position is masked, and neither the loss nor its gradient may turn into NaN. Both are in `tests/unit`.)


# %% tags=["test"]
def test_loss_of_a_denoiser_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    log_q = torch.randn(3, 5, 107, generator=g).log_softmax(-1)
    x_0, sigma_bar = torch.randint(106, (3, 5), generator=g), torch.tensor([0.01, 0.7, 5.0])
    x_t = x_0.masked_fill(torch.rand(3, 5, generator=g) < 0.6, 106)
    found = mask_loss(mask_log_score(log_q, sigma_bar, x_t), sigma_bar, x_t, x_0)
    log_p = log_q[..., :106].log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
    torch.testing.assert_close(found, (x_t == 106) * -log_p / torch.expm1(sigma_bar)[:, None])


test_loss_of_a_denoiser_is_cross_entropy()

# %% [markdown]
# ## The step back
#
# By hand we had it: from a share $f_t$ of masks to a smaller share $f_s$, each mask opens with probability
# $(f_t-f_s)/f_t$, to a draw from $q$; the others stay; and so does every letter.
#
# $$ \begin{aligned} p(x_s=y\mid x_t=\text{mask}) &= \frac{f_t-f_s}{f_t}\,q_y \quad (y \text{ a letter}), \\
#    p(x_s=\text{mask}\mid x_t=\text{mask}) &= \frac{f_s}{f_t}. \end{aligned} $$
#
# Must the sampler know this formula? No: its step is Bayes' rule for any graph, a product of two factors over the earlier
# state $y$, divided by its sum. The graph gives the factors. With $\Delta = \bar\sigma_t - \bar\sigma_s$, at a mask:
#
# | | $y$ a letter | $y$ the mask |
# |---|---|---|
# | `marginal`: the state was $y$ | $e^{-\bar\sigma_s}\,q_y$ | $f_s$ |
# | `likelihood`: $y$ became a mask | $1-e^{-\Delta}$ | 1 |
# | the product | $(f_t-f_s)\,q_y$ | $f_s$ |
#
# The product uses $e^{-\bar\sigma_s}(1-e^{-\Delta}) = e^{-\bar\sigma_s}-e^{-\bar\sigma_t} = f_t-f_s$, and its sum over $y$ is
# $f_t$. That is the formula above. At a letter, only the same letter can have become it. The chance that it survived, $e^{-\Delta}$, is
# a factor that all $y$ share, so `likelihood` puts 1 in its place. Otherwise a given letter would get $0/0$
# in the first step, where $\Delta=\infty$.
#
# ## The graph: all of it as one object
#
# These are the things that change. [Chapter 5](05_loss.ipynb) lists them as the methods of `Graph`:
#
# | what it is asked for | uniform | absorbing |
# |---|---|---|
# | `schedule` of the noise | `GeometricNoise` (chapter 3) | `LogLinearNoise` |
# | `states` of a position | the tokens | the tokens and the mask |
# | `sample_prior`: where noise puts a token | any token | the mask |
# | `prior_kl`: what the text at $t=1$ still tells | almost nothing | nothing, if the noise ends at infinity |
# | `log_score`: belief to score | `denoiser_log_score` (5) | `mask_log_score` |
# | `loss` | `score_entropy_loss` (5) | `mask_loss` |
# | `marginal`, `likelihood`: the step back | the kernel is symmetric | the table above |
#
# Two flags say what this noise cannot do. To add fresh noise between steps (churn) would put masks into a finished text, where
# no later step is sure to open them. And log-scores alone do not lead back: the Euler step and the staggered score
# of chapter 7 use the rates of the uniform graph.

# %% tags=["export"]
from ddlm_core.loss import Graph
from ddlm_core.noise import NoiseSchedule


class AbsorbingGraph(Graph):
    """The absorbing graph (D3PM, Austin et al. 2021; SEDD): noise turns a token into the mask, for good.

    The mask is the last state. Shapes as in :class:`~ddlm_core.loss.Graph`.
    """

    name = "absorbing"
    supports_churn = False  # fresh masks in a finished text are another method (ReMDM)
    supports_scores = False

    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        return with_mask(vocab)

    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        return LogLinearNoise()  # it must end at infinity, whatever the limits

    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return all_masked(batch_size, length, vocab_size, generator, device)

    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        noise = as_float_tensor(sigma_bar_1)  # any letter that is left costs -log 0
        return torch.zeros_like(noise).masked_fill(noise < math.inf, math.inf)

    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        return mask_log_score(log_q, sigma_bar, x_t)

    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        return mask_loss(log_score, sigma_bar, x_t, x_0)

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        noise, vocab_size = noise_column(sigma_bar, log_q), log_q.shape[-1]
        letters = torch.exp(-noise) * mask_posterior(log_q, x_t).exp()  # nothing on the mask
        mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
        return letters + resample_probability(noise) * mask

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        lost = resample_probability(noise_column(delta_sigma, x_t))[..., None]  # (B, 1, 1)
        mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
        at_mask = torch.where(mask, 1.0, lost)  # a mask stays; a letter may have been lost
        at_letter = one_hot(x_t, vocab_size).to(lost.dtype)  # only this letter can have become it
        return torch.where((x_t == vocab_size - 1)[..., None], at_mask, at_letter)


ABSORBING = AbsorbingGraph()

# %% [markdown]
# Does the general step, with these two factors, open a mask with probability $(f_t-f_s)/f_t$ and never touch a letter, given ones
# included? Also from infinite noise:

# %% tags=["test"]
from ddlm_core.sampler import analytic_probs


def test_each_mask_opens_with_the_share_that_opens():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]] * 2], dtype=torch.float64), torch.tensor([[3, 1]])
    for now, before in ((0.6, 0.45), (1.0, 0.9), (1.0, 0.0), (1e-9, 0.0)):  # shares of masks
        levels = LogLinearNoise().sigma_bar(torch.tensor([now, before], dtype=torch.float64))
        step = analytic_probs(q.log(), x_t, *levels, ABSORBING)[0]
        opens = (now - before) / now
        expected = opens * q[0, 0] + (1 - opens) * torch.tensor([0, 0, 0, 1])
        torch.testing.assert_close(step[0], expected)
        assert step[1].tolist() == [0, 1, 0, 0]


test_each_mask_opens_with_the_share_that_opens()

# %% [markdown]
# A configuration names its graph, and a model has it. (To add yours, add it to the table `GRAPHS` of chapter 6.)

# %%
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

config = DiscreteDiffusionConfig(graph="absorbing")
print(config.vocab_size, "states, the last one", config.vocab[-1])
print("total noise at t = 1:", config.noise.sigma_bar(1.0).item())

# %% [markdown]
# ## The area under the loss is the entropy
#
# The identity of chapter 5 must hold here as well: with the true score, the mean of the bound over the data is
# the entropy of the data. Here one can see why. Uncover a text letter by letter, in some order. The surprise at each
# letter, given those before it, adds up to $-\log p(x_0)$: that is the chain rule, whatever the order.
# And the integral is an average over all orders. In it, each letter is masked at a time of its own,
# uniform in $[0,1]$. Walk back from $t = 1$. When letter $i$ opens, at time $t$, each of the
# others is open if *its* time is later. So the integral of $-\log q_{x_0^i}$ over the times of $i$ averages
# over the places of $i$ in a random order.
#
# (Then where is $\tfrac1t$? The sum under the integral counts letter $i$ whenever it is *masked*, which has
# probability $t$. Divided by $t$, it counts as if it opened just now.)
#
# For our world: nine words, 16 texts, and an integrand that is a polynomial in $t$. Eight nodes of Gauss and
# Legendre integrate it exactly. Nothing is sampled.

# %% tags=["test"]
import numpy as np


def exact_area() -> tuple[float, float]:
    """The integral over t of σ(t) times the expected loss, and the entropy: nats per word."""
    world = three_letter_words()
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(8))
    sigma_bar, sigma = LogLinearNoise()((nodes + 1) / 2)
    scores = [mask_log_score(world.denoise(world.texts, s), s, world.texts) for s in sigma_bar]
    loss = world.expected_loss(mask_loss, torch.stack(scores), sigma_bar)
    return (weights / 2 * sigma * loss).sum().item(), world.entropy()


def test_area_is_the_entropy():
    area, entropy = exact_area()
    assert abs(area - entropy) < 1e-12


test_area_is_the_entropy()

# %%
print("area    {:.12f} nats\nentropy {:.12f} nats".format(*exact_area()))

# %% [markdown]
# To the last digit, and without the crumbs of chapter 5: there is no noise at $t = 0$ and no text at $t = 1$.
#
# ## Sampling
#
# The loop of chapter 7 runs as it is. Look at the ideal network of our world, in four steps of equal share:

# %%
from ddlm_core.sampler import denoising_steps, sample_generators

world = three_letter_words(ABSORBING)
run = denoising_steps(
    world,
    LogLinearNoise(),
    6,
    2,
    num_steps=4,
    schedule="fraction",
    generator=sample_generators(19, 6),
)
for step in run:
    words = ["".join("abc░"[letter] for letter in word) for word in step.tokens.tolist()]
    print(
        f"step {step.index}   share masked {-math.expm1(-step.sigma_bar):4.2f}   {'   '.join(words)}"
    )

# %% [markdown]
# A letter that has opened never changes again. That is the price of this noise: what is written too early
# cannot be mended. Uniform noise revises.
#
# How far is the result from the true language? Steps have the same flaw as in chapter 7: letters that open in
# the same step do not know of each other. In a word of two letters, this is the only way to go wrong. Each letter
# opens in one of the $N$ steps, all with the same chance (if steps are equal in $f$) and whatever the other letter does. So both
# open together with probability $1/N$. Then they are drawn independently, as the two of *aa* above;
# otherwise the word is a draw from the true language:
#
# $$ p_N = \Big(1-\frac1N\Big)\,p + \frac1N\,p_1p_2 , $$
#
# with $p$ the true language and $p_1p_2$ the product of its letter frequencies. The total variation distance must
# be that of a single step, divided by $N$. Exactly, not about. We follow the probabilities of
# all 16 texts, as in chapter 7.

# %% tags=["test"]
from ddlm_core.sampler import noise_levels, reverse_probs


def distance_of(num_steps: int, schedule: str = "fraction") -> float:
    """Total variation distance of what a run writes to the language, without sampling."""
    world = three_letter_words(ABSORBING)
    start = (world.texts == 3).all(-1).double()  # nothing but masks
    levels = noise_levels(LogLinearNoise(), num_steps, schedule)
    probs = world.written(lambda *step: reverse_probs(world, *step), levels, start)
    return (probs - world.p_0).abs().sum().item() / 2


def test_distance_is_that_of_one_step_over_their_number():
    assert distance_of(1) > 0.5
    for num_steps in (2, 3, 16, 128):
        assert abs(distance_of(num_steps) - distance_of(1) / num_steps) < 1e-12


test_distance_is_that_of_one_step_over_their_number()

# %%
for n in (1, 2, 4, 16, 64):
    print(f"{n:3} steps: distance {distance_of(n):.6f}")

# %% [markdown]
# **Infilling comes for free.** In chapter 7 a model had to be told which letters are given; one that read a
# given *b* as a noisy *b* was wrong by 13 % even after 1,024 steps. Here an open letter is true
# anyway. A given letter is nothing special: the ideal network takes it into account without being told. If one letter is left to
# write, no two can open together, and the result is exact in any number of steps. Here the first letter is given, a *b*:

# %%
start = (world.texts == torch.tensor([1, 3])).all(-1).double()  # b░
found = world.written(
    lambda *step: reverse_probs(world, *step), noise_levels(LogLinearNoise(), 7), start
)
true = world.p_0 * (world.texts[:, 0] == 1)
assert torch.allclose(found, true / true.sum())
print("ba, bb, bc:", found[4:7].numpy().round(4))

# %% [markdown]
# ## The same training
#
# Now a network. These are the lines of [chapter 8](08_training.ipynb), with one word more: the name of the graph. Two
# small networks, the same seed, the same stories, a short run.

# %%
import os
from tempfile import TemporaryDirectory

from ddlm_core.data import setup_dataloaders
from ddlm_core.training import Trainer, TrainingConfig

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the chapter runs
steps = 4 if smoke else 150
train, val, _, tokenizer = setup_dataloaders(
    "pocket-stories",
    train_samples=16 * steps + 100,
    val_samples=16,
    context_length=160,
    batch_size=16,
)


def practice(graph: str) -> Trainer:
    torch.manual_seed(0)
    network = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 160, "padded": True}
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**network, graph=graph))
    with TemporaryDirectory() as folder:
        how = {"max_steps": steps, "checkpoint_dir": folder, "progress": False, "ema_decay": 0.95}
        trainer = Trainer(model, train, val, TrainingConfig(**how))
        before, after = trainer.evaluate(), trainer.train()
    print(
        f"{graph:9} before {before.nats_per_window:6.1f}, after {after.nats_per_window:6.1f} nats"
    )
    return trainer


trained = {graph: practice(graph).average for graph in ("uniform", "absorbing")}

# %% [markdown]
# Before training, both know nothing and pay $\log 106$ for each of 160 characters, 746 nats. How far the
# printed numbers are from that shows what chance does to an estimate from 16 windows. Don't compare the two graphs by
# them. So short a training makes no stories, but it shows how a run looks: press play. Masks open, and
# what is open stays.

# %%
from ddlm_core import DiffusionPipeline

pipeline = DiffusionPipeline(trained["absorbing"], device="cpu")
pipeline.generate_with_visualization(num_steps=8 if smoke else 32, schedule="fraction", seed=0)

# %% [markdown]
# ## An honest comparison
#
# Is one noise better than the other? `python benchmarks/absorbing.py` trains the network of the bundled model twice,
# with 1.56 million parameters, on the same stories in the same order, from the same seed, with the same optimizers and
# the same number of steps. Only the graph differs. (Then also 107 tokens differ from 106, which adds 257 parameters.)
# It was run once.
#
# Both are trained on the guess of [chapter 8](08_training.ipynb), of the judge and of both readers: cross-entropy at
# every position that is not given, open or masked. But the bound counts only the masks. May we train on open letters,
# too? Chapter 8 holds the other letters still and lets one letter go through all its noise $\tau$. Its guess $q$ stays
# the same, for the network does not hear the letter at its own place. With masks, the integral is a single line. The
# letter is masked with probability $1-e^{-\tau}$, and then costs $-\log q_{x_0}/(e^\tau-1)$. That is
# $e^{-\tau}\,(-\log q_{x_0})$ on average, and
#
# $$ \int_0^\infty e^{-\tau}\,(-\log q_{x_0})\,d\tau = -\log q_{x_0}. $$
#
# So the guess serves this noise, too, and to guess an open letter teaches as much as to guess a masked
# one. (In a text at time $t$ each letter is masked with probability $t$, whatever the others are. Counted only then, with
# the weight $1/t$ of the bound, it would come to the same on average.)

# %%
import json
from importlib.resources import files

results = files("ddlm_core") / "results"  # the numbers came with the package
match = json.loads((results / "absorbing.json").read_text(encoding="utf-8"))
print(
    f"{match['steps']:,} steps of {match['batch']} stories; exact entropy {match['entropy']} nats"
)
for graph, found in match["graphs"].items():
    mean, low, high = found["nats"]
    print(
        f"{graph:9} bound {mean:5.1f} nats a story ({low:.1f} to {high:.1f}), {found['train_seconds']} s"
    )
    for run in found["samples"]:
        how = f"{run['num_steps']:3} steps, {run['schedule']}"
        print(f"{'':9}   {how:20} {run['flawless']} of {run['samples']} samples flawless")

# %% [markdown]
# The figure shows the bound on the way: for the uniform graph (circles) and the absorbing one (squares), above the
# entropy (dashed). (On the way it is measured with fewer windows and no interval, so its last point need not be the
# number above.)

# %% tags=["hide-input"]
# alt: Two falling curves of the validation bound over 1,000 training steps, steep at first, then flat. The squares of the
#  absorbing graph are always below the circles of the uniform one; both end above the dashed line.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
for (graph, found), marker in zip(match["graphs"].items(), "os", strict=True):
    plt.plot(*zip(*found["curve"], strict=True), marker=marker, label=graph)
plt.axhline(match["entropy"], linestyle="--", color="gray", label="entropy of the stories")
plt.xlabel("training steps")
plt.ylabel("validation bound (nats a story)")
plt.ylim(0, 260)
plt.legend()
plt.show()

# %% [markdown]
# At this budget the masks are ahead: the two intervals of the bound have no number in common. That fits what we saw by hand. An
# open letter can be trusted, so there is less to find out. In the samples it does not show: neither model wrote a single
# flawless story, with so few steps behind it. So this is a comparison of how fast two networks *begin* to learn, of one size, on
# one world, from one seed, and no more. (What uniform noise can do and masks cannot is to mend: a letter that was opened wrongly
# stays.)

# %% [markdown]
# ## Change it safely
#
# 1. Forget that the mask is no letter: in `mask_posterior`, drop the `index_fill`, so that `q` is `log_q.log_softmax(-1)`.
#    `test_posterior_never_believes_in_the_mask` fails. So does `test_step_is_a_distribution_at_the_extremes`, which
#    asks that no mask be left at the end, and the cross-entropy is no longer what comes out.
# 2. Open with the wrong chance: in `likelihood`, let `at_mask` be 1 for every state.
#    `test_each_mask_opens_with_the_share_that_opens` fails. (From pure noise, where $\Delta=\infty$, the two are the same, so a single look at
#    the first step would not tell.)
# 3. Stop the noise early, as with an $\epsilon$: `-torch.log1p(-0.999 * as_float_tensor(t))` in `LogLinearNoise`.
#    `test_log_linear_noise` fails: the share of masks is no longer $t$. (Nor is the noise infinite at $t = 1$ any more. The
#    test's last line would say so, if it came to that.)
#
# After each: `make export && pytest tests/test_absorbing.py tests/unit/test_absorbing.py`.
#
# ## Exercises
#
# **1.** Which schedule is best in our world of two-letter words? Both letters open in the same step with probability
# $\sum_k (\Delta f_k)^2$, where $\Delta f_k$ is the share that opens in step $k$. Compare `cosine` with `fraction` at 8
# steps: by this formula, and by `distance_of`. (Expected: 0.1537 against 0.1250, times the distance of one step, 0.5467. A
# sum of squares is least when all are equal. Chapter 7 had it the other way round, for there early mistakes can be
# mended.)

# %% tags=["solution", "hide-input"]
from ddlm_core.noise import resample_probability

one = distance_of(1)
found = {}
for schedule in ("cosine", "fraction"):
    levels = noise_levels(LogLinearNoise(), 8, schedule)
    together = resample_probability(levels).diff().square().sum().item()
    distance = distance_of(8, schedule)
    assert abs(distance - together * one) < 1e-12
    found[schedule] = round(together, 4), round(distance, 4)
print(f"one step: {one:.4f}")
found

# %% [markdown]
# **2.** How many of $N$ steps are wasted? A step in which no mask opens asks the network in vain. For a text of
# $L = 160$ and $N = 128$ equal steps, each letter picks one of the steps at random. What share of the steps is
# empty, on average? And with $N = 1024$? (Expected: 28.5 % and 85.5 %. An empty step changes nothing, and as the true $q$
# does not depend on the time, the answer could serve for the next step as well.)

# %% tags=["solution", "hide-input"]
empty = {N: (1 - 1 / N) ** 160 for N in (128, 1024)}
assert [round(share, 3) for share in empty.values()] == [0.285, 0.855]
empty

# %% [markdown]
# **3.** The true $q$ does not depend on the noise. Is that so with the uniform graph? Take the text *ab* with the uniform graph and
# `░b` with ours, and ask for the first letter's $q_a$ at $\bar\sigma=0.1$ and at $\bar\sigma=2$. For the uniform graph the belief is a
# sum over words, each weighed with the chance that its second letter is now seen as *b*. (Expected: there $q_a$ falls from
# 0.8864 to 0.5161; here it is 0.9231 at both.)

# %% tags=["solution", "hide-input"]
from ddlm_core.noise import transition_matrix

pairs, beliefs = world.p_0.reshape(4, 4)[:3, :3], []
for sigma_bar in (0.1, 2.0):
    uniform = pairs @ transition_matrix(sigma_bar, 3)[:, 1]  # over the second letter, seen as b
    masked = world.denoise(torch.tensor([[3, 1]]), torch.tensor([sigma_bar]))[0, 0].exp()
    beliefs.append([round((uniform / uniform.sum())[0].item(), 4), round(masked[0].item(), 4)])
assert beliefs == [[0.8864, 0.9231], [0.5161, 0.9231]]
beliefs

# %% [markdown]
# ## Summary
#
# With a mask, noise hides letters and does not falsify them. The kernel, the score and the step back are
# one line each; score entropy becomes cross-entropy with the weight $1/t$; the noise must be endless, and a share of masks
# that grows in proportion to time is the natural clock. The area under the loss is the entropy of the data, exactly. What
# is written stays, for good or ill. And the code of chapters 5 to 10 did not have to know.
#
# | exported name | meaning |
# |---|---|
# | `MASK`, `with_mask(vocab)` | the 107th token |
# | `all_masked(batch_size, length, vocab_size)` | pure noise |
# | `LogLinearNoise` | the schedule: at time $t$, a share $t$ is masked |
# | `mask_posterior(log_q, x_t)` | belief and evidence: $q$ at masks, certainty at letters |
# | `mask_log_score(log_q, sigma_bar, x_t)` | $s_y = q_y/(e^{\bar\sigma}-1)$ |
# | `mask_loss(log_score, sigma_bar, x_t, x_0)` | score entropy, which is cross-entropy here |
# | `AbsorbingGraph`, `ABSORBING` | all of it, for `DiscreteDiffusionConfig(graph="absorbing")` |
#
# To train one: `ddlm-train --config-name pocket +model.graph=absorbing`.
