# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Absorbing-state (masked) diffusion
#
# *About 45 minutes. You need: chapters [5](05_loss.ipynb) to [8](08_training.ipynb). You will have: the
# second kind of noise, its whole theory on one page, and a masked model trained and sampled with the code of
# this book.*
#
# **We have** a model that starts from random characters and corrects all of them, again and again.
#
# **We want** another kind of noise: characters disappear under a mask, `░`, and the model uncovers them.
#
# **Why**: many diffusion language models work this way. [D3PM](https://arxiv.org/abs/2107.03006) and
# [SEDD](https://arxiv.org/abs/2310.16834) try it alongside uniform noise;
# [MDLM](https://arxiv.org/abs/2406.07524), [LLaDA](https://arxiv.org/abs/2502.09992) and
# [Dream](https://arxiv.org/abs/2508.15487) use nothing else. The formulas become so short that you can take
# them in at a glance.

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
# A text of one letter, from the alphabet `k m o`. Half of all texts are `k`, three tenths are `m`, the
# rest `o`. Now each letter is masked with probability $f = 0.6$, the *mask ratio*. What do we see? A `k` with
# probability $0.4\cdot0.5=0.2$, an `m` with $0.12$, an `o` with $0.08$, and a mask with $0.6$.
#
# Going back is easy. A letter that we see was never touched: it *is* the clean letter. A mask says nothing
# about what it covers, so under it is a `k` with probability 0.5, as in all texts. Suppose that one step
# back, the mask ratio was $f' = 0.45$. Then of the masks that we see, $0.45/0.6=\tfrac34$ were there
# already. One mask in four is *unmasked* by this step, and shows a `k` half of the time.

# %%
p_data, now, one_back = {"k": 0.5, "m": 0.3, "o": 0.2}, 0.6, 0.45
step = {letter: round((now - one_back) / now * p, 3) for letter, p in p_data.items()}
step | {"░": one_back / now}

# %% [markdown]
# Compare chapters 5 to 7. A resampled letter looks like a clean one, so the model had to weigh how far
# to trust each letter that it saw. Here it need not: letters are true, masks are blank. In longer texts,
# all that remains is to predict the masked letters from the visible ones.
#
# Three things could be called a mask. The *mask token* is `░`. The *mask ratio* $f$ is the share of positions
# that show it. And the `condition_mask` of the code marks *given* letters, which are never masked: the
# opposite.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of states of a position: 106 tokens *and* the mask, so 107; the mask is the last |
# | $\bar\sigma$, $\sigma$ | `sigma_bar`, `sigma` | total noise and its rate, as before |
# | $f$, $f'$ | | mask ratio, $1-e^{-\bar\sigma}$, now (at time $t$) and one step back (at $t'$, in the code `s`) |
# | $q_y$ | `log_q` (its log) | the denoising distribution of a position |
# | $s_y$, $a_y$ | `log_score`, `a` | the ratio of probabilities at $y$ and at $x_t$: estimated, and true once $x_0$ is known |

# %% [markdown]
# ## One state more
#
# The mask needs a token of its own. Why not use `<UNK>`, which our stories never contain?
# Other texts do contain it, and then a written `<UNK>` could not be told from a place not yet
# written. So we add a token, the 107th, at the end: the other ids stay what they are.
#
# Noise now has a direction. A letter turns into the mask at rate 1, and the mask stays. Such a state is
# called *absorbing*. Whatever the letter, it survives with probability $e^{-\bar\sigma}$, and otherwise is
# masked. That is `perturb_batch` of [chapter 4](04_forward.ipynb) with another `sample_prior`: what does
# noise turn a token into? There it was a random one; here it is the mask. Pure noise, where sampling starts,
# is nothing but masks.

# %% tags=["export", "hide-input"]
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
# ## Noise without end
#
# The geometric schedule stops at $\bar\sigma=20$, with one letter in $e^{20}$, half a billion, still there.
# For uniform noise that did not matter. Here it would. Sampling starts from masks only, with certainty. If
# the noise leaves a letter with some probability, however small, then
# $KL(p(x_1\mid x_0)\,\|\,\text{all masks})$ contains the logarithm of that probability over *zero*: the bound
# would be infinite. So the noise must end in nothing but masks, $\bar\sigma(1)=\infty$.
#
# Infinity is no trouble if we think of the mask ratio $f=1-e^{-\bar\sigma}$, which grows to 1 and stops
# there. The simplest choice is $f = t$. Solve for $\bar\sigma$ and differentiate:
#
# $$ \bar\sigma(t) = -\log(1-t), \qquad \sigma(t) = \frac{d\bar\sigma}{dt} = \frac1{1-t}. $$
#
# SEDD calls this schedule *log-linear*; its code stops just short of infinity, with
# $-\log(1-(1-\epsilon)\,t)$. Ours also begins at $\bar\sigma(0)=0$, with a clean text. So two of the three
# terms of the bound of [chapter 5](05_loss.ipynb) are exactly 0, the prior and the reconstruction.
# `LogLinearNoise` has the methods of every `NoiseSchedule`. Its rate is infinite at $t=1$, but random times
# never get there: in `float32` they are multiples of $2^{-24}$ below 1.

# %% tags=["export", "hide-input"]
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
# ## A world that we know exactly
#
# As in [chapter 7](07_sampler.ipynb): words of two letters from `a b c`, *ab* 0.4, *bc* 0.3, *ca* 0.2, and
# the six other words share 0.1. With the mask there are four states and $4^2=16$ noisy texts. For each
# position, the Bayes-optimal network goes through the words that fit the visible letters at the *other*
# positions, and adds up what they have here. So its $q$ at a visible letter does not know that letter: below,
# position 1 of `a░` has the same $q$ as position 1 of `░░`.
#
# It does not use the noise level. What lies under a mask depends on the letters that are visible, and *not on
# how much noise there is*. In symbols: a text $x_t$ of $L$ letters, of which $v$ are visible, $x_v$, has the
# probability $p_{\text{data}}(x_v)\,(1-f)^{v} f^{L-v}$, and Bayes' rule divides the factors of $f$ away. At a
# masked position $i$,
#
# $$ p(x_0^i = y \mid x_t) = \frac{p_{\text{data}}(x_0^i=y,\; x_v)}{p_{\text{data}}(x_v)}. $$
#
# So a network for this noise need not be told the time, as [RADD](https://arxiv.org/abs/2406.03736) points
# out. Ours is told, because it is the network of chapter 6.

# %%
from ddlm_core.support.worlds import three_letter_words

world = three_letter_words()  # the fourth state of a position is the mask
for text in ("░░", "a░", "░c"):
    x_t = torch.tensor([["abc░".index(letter) for letter in text]])
    q = world.denoise(x_t, torch.tensor([1.0])).exp()[0]
    print(
        text, *(f"position {i + 1}: {row.numpy().round(2)}" for i, row in enumerate(q)), sep="   "
    )

# %% [markdown]
# ## From $q$ to the score
#
# In this book $q$ is the distribution of the clean token *before* the evidence of $x_t$ at that same
# position. What does that evidence say here? At a mask: nothing, except that a clean token is never the mask.
# At a letter: everything. So the posterior is
#
# $$ p(x_0 = y\mid x_t) = \begin{cases} q_y & \text{at a mask, with } q_{\text{mask}}=0, \\
#    [y = x_t] & \text{at a letter.}\end{cases} $$
#
# MDLM calls these two lines *SUBS*: zero masking probability, and carry-over of what is unmasked. The network
# of chapter 6 has an output for each of the $V$ states, so its $q$ may put something on the mask; the
# function takes that away.
#
# The score is the ratio $p_t(\dots y\dots)/p_t(x_t)$. At a mask, what is the probability of the same text
# with the letter $y$ in this place? That letter must be the clean one, and it must have survived, while the
# mask, whatever it covers, must have been hit:
#
# $$ s_y = \frac{(1-f)\,q_y}{f} = \frac{q_y}{e^{\bar\sigma}-1}. $$
#
# At a letter there is no way back, because nothing turns into a letter. The ratios there are not 0, but no
# jump uses them; the code puts 0, and 1 at $y=x_t$, as always.

# %% tags=["export"]
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column


def mask_posterior(log_q: Tensor, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q$ at a mask, itself no letter; elsewhere $x_t$, surely.

    For $\log q$ (B, L, V), whatever it gives to the mask, and tokens int64 (B, L). (MDLM, Sahoo et al.
    2024: zero masking probabilities and carry-over unmasking.)
    """
    last = log_q.shape[-1] - 1  # the id of the mask
    q = log_q.index_fill(-1, torch.tensor(last, device=log_q.device), -torch.inf).log_softmax(-1)
    return torch.where((x_t == last)[..., None], q, one_hot(x_t, last + 1).log())


# %% tags=["export"]
def mask_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From $q$ to log-scores (B, L, V): $s_y = q_y/(e^{\bar\sigma} - 1)$ at a mask, 1 at y = x_t.

    At a letter, 0 for every other y: the way back from a letter leads nowhere. Noise at least 0, a scalar
    or (B,).
    """
    masked = (x_t == log_q.shape[-1] - 1)[..., None]  # without noise there is no mask
    log_odds = torch.where(masked, torch.expm1(noise_column(sigma_bar, log_q)).log(), 0.0)
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
# Score entropy is a sum over the jumps back, each weighted with the rate of the jump *forward*,
# $Q(y\to x_t)$. In general,
#
# $$ \ell = \sum_{y\ne x_t} Q(y\to x_t)\,\big(s_y - a_y\log s_y + a_y(\log a_y-1)\big). $$
#
# With uniform noise every rate is $1/V$. Here $Q(y\to x_t)$ is 1 if $x_t$ is the mask, and 0 if it is a
# letter: letters cost nothing. As in chapter 5, training knows $x_0$, so $a_y$ is the ratio *given* $x_0$. At
# a mask it is $a_{x_0}=(1-f)/f=1/(e^{\bar\sigma}-1)$ for the clean letter and 0 for all others, where only
# $s_y$ remains:
#
# $$ \ell = \sum_{y\ne x_0,\,x_t} s_y + a_{x_0}\,(e^{d}-1-d), \qquad d = \log s_{x_0}-\log a_{x_0}. $$
#
# That holds for any scores, and no term is negative. Now put in $s_y = a_{x_0}\,q_y$, with $q$ a distribution
# over letters. Then $\sum_{y\ne x_0,\,x_t}s_y = a_{x_0}\,(1-q_{x_0})$, $e^d = q_{x_0}$, and everything
# cancels but the logarithm:
#
# $$ \ell = a_{x_0}\,(1-q_{x_0}) + a_{x_0}\,(q_{x_0} - 1 - \log q_{x_0}) = \frac{-\log q_{x_0}}{e^{\bar\sigma}-1}. $$
#
# **Score entropy has become cross-entropy.** Along the log-linear schedule, the weight in the bound is
# $\sigma(t)/(e^{\bar\sigma}-1) = \frac1{1-t}\cdot\frac{1-t}{t}=\frac1t$, and so
#
# $$ -\log p(x_0)\;\le\;\int_0^1 \frac1t\;\mathbb E\!\!\sum_{i\text{ masked}}\!\!-\log q_{x_0^i}\;dt . $$
#
# This is the objective of [MDLM](https://arxiv.org/abs/2406.07524) and
# [MD4](https://arxiv.org/abs/2406.04329), and of LLaDA after them. A mask ratio $t$ shows $t$ masks per
# position, each with the weight $1/t$: all mask ratios count alike.


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
# The code has the general form, so that we can see the cross-entropy come out.


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
# By hand we had it: from a mask ratio $f$ to a smaller one, $f'$, each mask is unmasked with probability
# $(f-f')/f$, to a draw from $q$; the others stay; and so does every letter. Must the sampler know this
# formula? No. Its step is Bayes' rule for any noise: two factors over the state $y$ one step back, divided by
# their sum,
#
# $$ p(x_{t'}=y\mid x_t) \;\propto\; \underbrace{p(x_{t'}=y)}_{\texttt{marginal}}\;\cdot\;\underbrace{p(x_t\mid x_{t'}=y)}_{\texttt{likelihood}}, $$
#
# both given the other letters of $x_t$, and the first with $q$ drawing the clean token. That line of
# [chapter 7](07_sampler.ipynb) serves both noises, and each brings its factors. With
# $\Delta = \bar\sigma_t - \bar\sigma_{t'}$, at a mask:
#
# | | $y$ a letter | $y$ the mask |
# |---|---|---|
# | `marginal`: the state was $y$ | $e^{-\bar\sigma_{t'}}\,q_y$ | $f'$ |
# | `likelihood`: $y$ became a mask | $1-e^{-\Delta}$ | 1 |
# | the product | $(f-f')\,q_y$ | $f'$ |
#
# The product uses $e^{-\bar\sigma_{t'}}(1-e^{-\Delta}) = e^{-\bar\sigma_{t'}}-e^{-\bar\sigma_t} = f-f'$, and
# its sum over $y$ is $f$. Divide, and there is the formula from above. At a letter, only the same letter can
# have become it. It survived with probability $e^{-\Delta}$, a factor that cancels, so the code puts 1 in its
# place: in the first step, where $\Delta=\infty$, a given letter would otherwise get $0/0$.


# %% tags=["export"]
def mask_marginal(log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
    r"""$p(x_s = y)$ at noise ``sigma_bar``, (B, L, V), if the clean token is drawn from the posterior."""
    noise, vocab_size = noise_column(sigma_bar, log_q), log_q.shape[-1]
    letters = torch.exp(-noise) * mask_posterior(log_q, x_t).exp()  # nothing on the mask
    is_mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
    return letters + resample_probability(noise) * is_mask


def mask_likelihood(x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
    r"""$p(x_t \mid x_s = y)$ after more noise, (B, L, V), up to a factor for each position."""
    lost = resample_probability(noise_column(delta_sigma, x_t))[..., None]  # (B, 1, 1)
    is_mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
    at_mask = torch.where(is_mask, 1.0, lost)  # a mask stays; a letter may have been lost
    at_letter = one_hot(x_t, vocab_size).to(lost.dtype)  # only this letter can have become it
    return torch.where((x_t == vocab_size - 1)[..., None], at_mask, at_letter)


# %% [markdown]
# ## One interface for both noises
#
# Everything that training, bound and sampler ask of a noise process is in one abstract class. SEDD calls
# it the *graph*, because it says which token may turn into which, and so do we: `Graph`, in the module
# `graph`, with `UNIFORM` as the first of its kind. The code of that module is folded: most methods pass on to
# a function that you know. Beside it are two *protocols*, which say what a model is to the code of this book.
# To learn and to measure, it must give log-scores when it is called (`ScoreModel`). To write, it must also
# have a method `denoise`, which gives $\log q$ (`Denoiser`).
#
# | what is asked | uniform | absorbing |
# |---|---|---|
# | `schedule` of the noise | `GeometricNoise` | `LogLinearNoise` |
# | `states` of a position | the tokens | the tokens and the mask |
# | `sample_prior`: what noise turns a token into | any token | the mask |
# | `prior_kl`: what the text at $t=1$ still tells | almost nothing | nothing, if the noise is infinite there |
# | `log_score`: from $q$ to the score | `denoiser_log_score` | `mask_log_score` |
# | `loss` | `score_entropy_loss` | `mask_loss` |
# | `marginal`, `likelihood`: the step back | the kernel, which is symmetric | `mask_marginal`, `mask_likelihood` |

# %% tags=["export:graph", "hide-input"]
from typing import Any, Protocol

import torch
from torch import Tensor


class ScoreModel(Protocol):
    """What gives log-scores: a network, or an exact answer from an enumerated world."""

    config: Any  # config.vocab_size is V; asked for only where no vocab_size is handed over

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) for tokens (B, L) and noise (B,); the mask, bool, is true where given."""


class Denoiser(ScoreModel, Protocol):
    """What also has a distribution over the clean token, from which its scores follow."""

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$, (B, L, V), before the evidence of ``x_t`` at its own position."""


# %% tags=["export:graph", "hide-input"]
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ddlm_core.noise import NoiseSchedule


class Graph(ABC):
    """A forward process, which SEDD calls the graph: what training, bound and sampler ask of it.

    Shapes: tokens int64 (B, L), ``log_q`` and log-scores (B, L, V), noise a scalar or (B,).
    """

    name: ClassVar[str]  # as in config.json
    supports_churn: ClassVar[bool]  # may fresh noise be added between steps?
    supports_scores: ClassVar[bool]  # do log-scores alone lead back: "score", the Euler step?

    @abstractmethod
    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        """All V states of a position: the vocabulary, and what this process adds to it."""

    @abstractmethod
    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        """The total noise over time, between these limits if it has a choice."""

    @abstractmethod
    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Pure noise, int64 (B, L) on ``device``; what is random is drawn on the generator's."""

    @abstractmethod
    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        r"""$KL(p(x_1 \mid x_0)\,\|\,\text{pure noise})$, nats per position, of the shape of the noise."""

    @abstractmethod
    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        """From the denoising distribution to log-scores (B, L, V), 0 at y = x_t."""

    @abstractmethod
    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        """Score entropy of each position, (B, L), in nats per unit of noise: at least 0."""

    @abstractmethod
    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        """The mean of :meth:`loss` over the own noise of each letter, given the others': (B, L)."""

    @abstractmethod
    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        r"""The mean of $-\log p(x_0 \mid x_t)$ over the own noise of each letter: (B, L), in nats."""

    @abstractmethod
    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        r"""$p(x_s = y)$ at noise ``sigma_bar``, (B, L, V), if $q$ has drawn the clean token."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        r"""$p(x_t \mid x_s = y)$ after more noise, (B, L, V), up to a factor for each position."""


# %% tags=["export:graph", "hide-input"]
from ddlm_core.forward import noise_column, sample_prior, transition
from ddlm_core.loss import denoiser_log_score, prior_kl, score_entropy_loss
from ddlm_core.noise import GeometricNoise


class UniformGraph(Graph):
    """The uniform graph of SEDD: noise puts any token in place of any other, with equal chance."""

    name = "uniform"
    supports_churn = True
    supports_scores = True

    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        return tuple(vocab)

    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        return GeometricNoise(sigma_min, sigma_max)

    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return sample_prior(batch_size, length, vocab_size, generator, device)

    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        return prior_kl(sigma_bar_1, vocab_size)

    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        return denoiser_log_score(log_q, sigma_bar, x_t)

    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        return score_entropy_loss(log_score, sigma_bar, x_t, x_0)

    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        p, ratio = self._ratio(log_q, sigma_bar, x_0)
        return (p * ratio.log()).sum(-1) + (ratio - 1 - ratio.log()).mean(-1)

    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        p, ratio = self._ratio(log_q, sigma_bar, x_0)  # Bayes: p(x_0 | x_t) = q_{x_0} p / r
        return -log_q.gather(-1, x_0[..., None])[..., 0] - (p * ratio.log()).sum(-1)

    def _ratio(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """p, of the noisy letter given the clean one, and p over r, which q expects: (B, L, V) each."""
        wide = torch.float32 if log_q.device.type == "mps" else torch.float64
        noise = noise_column(sigma_bar, log_q)[:, 0, 0].to(wide)  # (B,)
        p = transition(x_0, noise, log_q.shape[-1])
        return p, p / self.marginal(log_q.to(wide), x_0, noise)

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        noise = noise_column(sigma_bar, log_q)  # (B, 1, 1)
        return torch.exp(-noise) * log_q.exp() - torch.expm1(-noise) / log_q.shape[-1]

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return transition(x_t, delta_sigma, vocab_size)  # the kernel is symmetric


UNIFORM = UniformGraph()


def graph_of(model: ScoreModel) -> Graph:
    """The forward process of a model: its ``graph``, and the uniform one if it has none."""
    return getattr(model, "graph", UNIFORM)


# %% tags=["test:graph", "hide-input"]
from ddlm_core.noise import transition_matrix


def test_two_factors_of_the_uniform_step_are_the_kernel():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64), torch.tensor([[1]])
    earlier, later, step = (transition_matrix(noise, 3) for noise in (0.7, 1.2, 0.5))
    was, became = UNIFORM.marginal(q.log(), x_t, 0.7), UNIFORM.likelihood(x_t, 0.5, 3)
    torch.testing.assert_close(was, q @ earlier)
    torch.testing.assert_close(became[0, 0].double(), step[:, 1], rtol=1e-6, atol=0)
    torch.testing.assert_close((was * became).sum(-1)[0], (q @ later)[0, :, 1], rtol=1e-6, atol=0)


test_two_factors_of_the_uniform_step_are_the_kernel()

# %% [markdown]
# And the new one. Two flags say which parts of chapter 7 are written for uniform noise only. *Churn* adds
# random letters back between steps; its counterpart here would mask letters again, which this book does not
# build ([ReMDM](https://arxiv.org/abs/2503.00307) does). And the steps that need nothing but log-scores, Euler's and the staggered score,
# contain the uniform rates.

# %% tags=["export", "hide-input"]
from ddlm_core.graph import Graph
from ddlm_core.noise import NoiseSchedule


class AbsorbingGraph(Graph):
    """The absorbing graph (D3PM, Austin et al. 2021; SEDD): noise turns a token into the mask, for good.

    The mask is the last state. Shapes as in :class:`~ddlm_core.graph.Graph`.
    """

    name = "absorbing"
    supports_churn = False  # it draws fresh letters; fresh masks are another method (ReMDM)
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

    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        return torch.exp(-noise_column(sigma_bar, x_0)) * self._surprise(log_q, x_0)

    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        return resample_probability(noise_column(sigma_bar, x_0)) * self._surprise(log_q, x_0)

    def _surprise(self, log_q: Tensor, x_0: Tensor) -> Tensor:
        """Of the clean letter at a mask, in nats: (B, L)."""
        log_p = mask_posterior(log_q, torch.full_like(x_0, log_q.shape[-1] - 1))
        return -log_p.gather(-1, x_0[..., None])[..., 0]

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        return mask_marginal(log_q, x_t, sigma_bar)

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return mask_likelihood(x_t, delta_sigma, vocab_size)


ABSORBING = AbsorbingGraph()

# %% [markdown]
# With these two factors, the general step unmasks with probability $(f-f')/f$ and never touches a letter, from
# infinite noise, too:

# %% tags=["test"]
from ddlm_core.reverse import analytic_probs


def test_each_mask_opens_with_the_share_that_opens():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]] * 2], dtype=torch.float64), torch.tensor([[3, 1]])
    for now, one_back in ((0.6, 0.45), (1.0, 0.9), (1.0, 0.0), (1e-9, 0.0)):  # mask ratios
        levels = LogLinearNoise().sigma_bar(torch.tensor([now, one_back], dtype=torch.float64))
        step = analytic_probs(q.log(), x_t, *levels, ABSORBING)[0]
        unmasked = (now - one_back) / now
        expected = unmasked * q[0, 0] + (1 - unmasked) * torch.tensor([0, 0, 0, 1])
        torch.testing.assert_close(step[0], expected)
        assert step[1].tolist() == [0, 1, 0, 0]


test_each_mask_opens_with_the_share_that_opens()

# %% [markdown]
# ## The area under the loss is the entropy
#
# The identity of chapter 5 holds here as well: with the true $q$, the mean of the bound over the data is
# the entropy of the data. And here one can see why. Give each letter of a word a random time, uniform in $[0,1]$,
# at which it is masked. Going back from $t=1$, the letter with the *largest* time is unmasked first. For the
# times 0.3, 0.8 and 0.5:
#
# ```
# time t       1.0        0.8         0.5         0.3
# text         ░░░   →    ░a░    →    ░at    →    tat
# cost                 −log q_a    −log q_t    −log q_t
# ```
#
# Each letter is predicted from those unmasked before it, and the negative log-likelihoods add up to
# $-\log p(x_0)$: the chain rule, whatever the order. The integral averages over all times, and so over all
# orders. A masked diffusion model is an *any-order autoregressive model*
# ([Hoogeboom et al. 2021](https://arxiv.org/abs/2110.02037)).
#
# Where does $\tfrac1t$ come from? Between $t$ and $t-dt$ a letter is unmasked with probability $dt$, and only then does it cost
# something. The sum under the integral counts it whenever it is still *masked* at $t$, which has probability
# $t$. Either way each other letter is visible with probability $1-t$, so the two differ only by the factor
# $t$, and dividing by it sets that right.
#
# For our world: nine words, 16 texts, and an integrand that is a polynomial in $t$. Eight nodes of
# Gauss–Legendre quadrature integrate it exactly. Nothing is sampled.

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
# They agree to the last digit. The small terms that chapter 5 had at the ends are gone: there is no noise at
# $t = 0$ and no text at $t = 1$.
#
# ## Sampling
#
# The loop of chapter 7 runs as it is. Here is the Bayes-optimal network of our world, in four steps with
# equal shares:

# %%
from ddlm_core.sampler import denoising_steps, sample_generators

# the graph tells the sampler which noise this is
world, four = three_letter_words(ABSORBING), {"num_steps": 4, "schedule": "fraction"}
generators = sample_generators(19, 6)
for step in denoising_steps(world, LogLinearNoise(), 6, 2, generator=generators, **four):
    shown = "   ".join("".join("abc░"[letter] for letter in row) for row in step.tokens.tolist())
    print(f"mask ratio {-math.expm1(-step.sigma_bar):4.2f}   {shown}")

# %% [markdown]
# A letter that is unmasked never changes again. That is a property of this *sampler*, the usual one for
# masked models, and not a law of the noise: ReMDM masks some letters again on the way, and so corrects
# itself. With uniform noise every step may revise.
#
# How far is the result from the true language? Letters unmasked in the same step are drawn independently,
# which is the *factorization error* of chapter 7. Look at the fourth word: both of its letters come in one
# step, and *aa* is a rare word. With two letters this is the only way to go wrong. If steps are equal in
# $f$, each letter is unmasked in any of the $N$ steps with the same probability, whatever the other letter does. So
# both share a step with probability $1/N$, and otherwise the word is a draw from the true language:
#
# $$ p_N = \Big(1-\frac1N\Big)\,p_{\text{data}} + \frac1N\,p_1p_2 , $$
#
# with $p_1p_2$ the product of the letter frequencies. So the total variation distance is exactly that of a
# single step, divided by $N$. We follow the probabilities of all 16 texts, as in chapter 7.

# %% tags=["test"]
from ddlm_core.reverse import reverse_probs
from ddlm_core.sampler import noise_levels


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
# given *b* as a noisy *b* was off by a total variation distance of 0.13 even after 1,024 steps. Here a visible
# letter is true anyway, and a given one is nothing special. If one letter is left to write, no two can share a
# step, and the result is exact in any number of steps. Here the first letter is given, a *b*:

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
# Now a network, by the lines of [chapter 8](08_training.ipynb), folded here, with one more word:
# `graph="absorbing"` in the configuration. It is small, and the run is short. An untrained network considers
# all 106 tokens equally likely, so a window of 160 costs $160\log 106 = 746$ nats, at any mask ratio. After
# training, what is printed is a rough estimate from 16 windows, each at one mask ratio.

# %% tags=["hide-input"]
import os
from tempfile import TemporaryDirectory

from ddlm_core.data import setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.settings import TrainingConfig
from ddlm_core.training import Trainer

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the chapter runs
steps = 4 if smoke else 150
sizes = {"context_length": 160, "batch_size": 16}
train, val, _, tokenizer = setup_dataloaders(
    "pocket-stories", train_samples=16 * steps + 100, val_samples=16, **sizes
)
torch.manual_seed(0)
network = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 160, "padded": True}
model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**network, graph="absorbing"))
with TemporaryDirectory() as folder:
    how = {"max_steps": steps, "checkpoint_dir": folder, "progress": False, "ema_decay": 0.95}
    trainer = Trainer(model, train, val, TrainingConfig(**how))
    before, after = trainer.evaluate(), trainer.train()
print(
    f"bound before {before.nats_per_window:.1f}, after {after.nats_per_window:.1f} nats per story"
)

# %% [markdown]
# Training this short yields no stories, but it shows what a run looks like. Masks disappear, and what is
# visible stays.

# %%
from ddlm_core import DiffusionPipeline

pipeline = DiffusionPipeline(trainer.average, device="cpu")
pipeline.generate_with_visualization(num_steps=8 if smoke else 32, schedule="fraction", seed=0)

# %% [markdown]
# What did the trainer minimize? Not `mask_loss`, but the plain cross-entropy of chapter 8: $-\log q$ of the clean
# letter at every position that is not given, masked or visible, without a weight. With uniform noise this was
# only related to the bound. **With masks, it *is* the bound**, on average. The network does not see the letter at its own
# position, so its $q$ there is the same whether that letter is masked or not. Counting a letter always, with
# weight 1, or only when it is masked, with probability $t$ and weight $\tfrac1t$, comes to the same thing,
# since the trainer draws $t$ uniformly. The first has less variance: a visible letter teaches as much as a
# masked one.
#
# ## Two noises compared
#
# Is one noise better than the other? `python benchmarks/absorbing.py` trains the network of the bundled model,
# with 1.56 million parameters, under both noises: on the same stories in the same order, from the same seed, with the
# same optimizers and 1,000 steps instead of 7,500. Only the graph differs; 107 tokens instead of 106 add 257
# parameters. Three seeds each; the brackets hold 95 % intervals of one run, and samples are without churn.

# %% tags=["hide-input"]
import json
from importlib.resources import files

from ddlm_core.evaluation import Estimate

results = files("ddlm_core") / "results"  # the numbers came with the package
match = json.loads((results / "absorbing.json").read_text(encoding="utf-8"))
print(
    f"{match['steps']:,} steps of {match['batch']} stories; entropy {match['entropy']} nats per story"
)
graphs: dict[str, list[dict]] = {}
for run in match["runs"]:
    graphs.setdefault(run["graph"], []).append(run)
for graph, found in graphs.items():
    for run in found:
        print(f"{graph:9}, seed {run['seed']}: bound {Estimate(*run['nats']):.1f} nats per story")
    for rows in zip(*(run["samples"] for run in found)):
        count, hits = (sum(row[key] for row in rows) for key in ("samples", "flawless"))
        how = f"{rows[0]['num_steps']} steps, {rows[0]['schedule']}"
        apart, words = (
            ", ".join(f"{row[key]:.2f}" for row in rows)
            for key in ("openings_distance", "word_entropy")
        )
        print(f"   {how}: flawless {hits} of {count}; openings {apart}; words {words}")

# %% [markdown]
# The figure shows the validation bound along the way, from fewer windows, for the uniform graph (circles) and
# the absorbing one (squares), above the entropy (dashed).

# %% tags=["hide-input"]
# alt: Falling curves of the validation bound over 1,000 training steps, three of each graph, steep at first, then flat. The squares of the
#  absorbing graph are always below the circles of the uniform one; both end above the dashed line.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
for (graph, found), look in zip(graphs.items(), ("C0o-", "C1s-"), strict=True):
    for number, run in enumerate(found):
        label = graph if number == 0 else None
        plt.plot(*zip(*run["curve"], strict=True), look, lw=1, ms=4, label=label)
plt.axhline(match["entropy"], linestyle="--", color="gray", label="entropy of the stories")
plt.xlabel("training steps")
plt.ylabel("validation bound (nats per story)")
plt.ylim(0, 190)
plt.legend()
plt.show()

# %% [markdown]
# At this budget masks are ahead, by more than 6 nats out of 40 with every seed: far more than the seeds differ. That fits what we saw by hand: a visible letter can be
# trusted, so there is less to find out. In the samples it does not show: 1 of 768 is flawless. The openings, measured as in chapter 9, of 64 true stories are at
# 0.50, give or take 0.06, and masks end farther away. Their words have more entropy, too, some 6.0 nats against 5.3, where true stories have 5.1: more are misspelled, and
# what a mask became is never corrected. So this compares how fast two networks *begin* to learn, of
# one size, on one world, and no more.

# %% [markdown]
# ## Change it safely
#
# 1. Forget that the mask is not a letter: in `mask_posterior`, drop the `index_fill`, so that `q` is
#    `log_q.log_softmax(-1)`. The unit test `test_posterior_never_believes_in_the_mask` fails. So does
#    `test_step_is_a_distribution_at_the_extremes`, which asks that no mask be left at the end, and
#    `test_loss_of_a_denoiser_is_cross_entropy`.
# 2. Unmask with the wrong probability: in `mask_likelihood`, let `at_mask` be 1 for every state.
#    `test_each_mask_opens_with_the_share_that_opens` fails. From pure noise, where $\Delta=\infty$, the two
#    are the same, so a single look at the first step would not tell.
# 3. Stop the noise early, as with an $\epsilon$: `-torch.log1p(-0.999 * as_float_tensor(t))` in
#    `LogLinearNoise`. `test_log_linear_noise` fails: the mask ratio is no longer $t$.
#
# After each:
# `make export && pytest tests/test_absorbing.py tests/test_graph.py tests/unit/test_absorbing.py`.
#
# ## Exercises
#
# **1.** Which time grid is best in our world of two-letter words? Both letters are unmasked in the same step
# with probability $\sum_k (\Delta f_k)^2$, where $\Delta f_k$ is the share unmasked in step $k$. Compare
# `cosine` with `fraction` at 8 steps: by this formula, and by `distance_of`. (Expected: 0.1537 against
# 0.1250, times the distance of one step, 0.5467. A sum of squares is least when all are equal. In chapter 7
# it was the other way around, because there early mistakes can be corrected. The pipeline's default is
# `cosine` for both noises; for a masked model you can ask for `schedule="fraction"`.)

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
# **2.** How many of $N$ steps are wasted? In a step that unmasks nothing, the function evaluation is in vain.
# For a text of $L = 160$ and $N = 128$ equal steps, each letter picks one of the steps at random. What share
# of the steps is empty, on average? And with $N = 1024$? (Expected: 28.5 % and 85.5 %. An empty step changes
# nothing, and the true $q$ does not depend on the time. So one may draw directly *when* the next letter is
# unmasked, and evaluate only then, at most $L$ times: the
# [first-hitting sampler](https://arxiv.org/abs/2409.02908).)

# %% tags=["solution", "hide-input"]
empty = {N: (1 - 1 / N) ** 160 for N in (128, 1024)}
assert [round(share, 3) for share in empty.values()] == [0.285, 0.855]
empty

# %% [markdown]
# **3.** The true $q$ does not depend on the noise. Is that so with uniform noise? Take the text *ab* with
# uniform noise and `░b` with masks, and ask for the first letter's $q_a$ at $\bar\sigma=0.1$ and at
# $\bar\sigma=2$. For uniform noise $q$ is a sum over words, each weighted with the probability that its
# second letter is now seen as *b*. (Expected: there $q_a$ falls from 0.8864 to 0.5161; with masks it is
# 0.9231 at both.)

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
# With a mask, noise hides letters instead of falsifying them. The kernel, the score and the step back are one
# line each; score entropy becomes cross-entropy with the weight $1/t$; the total noise must grow to infinity, and
# the simplest schedule has the mask ratio $f = t$. The area under the loss is the entropy of
# the data, exactly. The loss, the trainer, the measurements and the loop of the sampler query the noise
# through one interface; only churn, the Euler step and networks that output scores are for uniform noise
# alone.
#
# | exported name | meaning |
# |---|---|
# | `MASK`, `with_mask(vocab)` | the 107th token |
# | `all_masked(batch_size, length, vocab_size)` | pure noise |
# | `LogLinearNoise` | the schedule: at time $t$, a share $t$ is masked |
# | `mask_posterior(log_q, x_t)` | $q$ at masks, certainty at letters |
# | `mask_log_score(log_q, sigma_bar, x_t)` | $s_y = q_y/(e^{\bar\sigma}-1)$ |
# | `mask_loss(log_score, sigma_bar, x_t, x_0)` | score entropy, which is cross-entropy here |
# | `mask_marginal(…)`, `mask_likelihood(…)` | the two factors of the step back |
# | `Graph`, `UniformGraph`, `UNIFORM`, `graph_of(model)` | what the code asks of a noise; the uniform one; a model's |
# | `ScoreModel`, `Denoiser` | what a model is to the code that trains, measures and samples |
# | `AbsorbingGraph`, `ABSORBING` | all of it, for `DiscreteDiffusionConfig(graph="absorbing")` |
#
# To train one: `ddlm-train --config-name pocket +model.graph=absorbing`.
#
# ## Where this stands in the field
#
# Masked (absorbing-state) diffusion came with [D3PM](https://arxiv.org/abs/2107.03006);
# [MDLM](https://arxiv.org/abs/2406.07524) and [MD4](https://arxiv.org/abs/2406.04329) gave it the simple
# bound of this page. [LLaDA](https://arxiv.org/abs/2502.09992) trains 8 billion parameters with it from
# scratch, and [Dream](https://arxiv.org/abs/2508.15487) starts from an autoregressive model. Practical
# samplers do not unmask at random: [MaskGIT](https://arxiv.org/abs/2202.04200), for images, keeps the
# predictions of which the model is most confident, and
# [entropy-bounded unmasking](https://arxiv.org/abs/2505.24857) chooses how many.
# [Block diffusion](https://arxiv.org/abs/2503.09573) writes block by block, which allows texts of any
# length and a key–value cache. [GIDD](https://arxiv.org/abs/2503.04482) mixes masks with uniform noise so
# that the model learns to correct, and [UDLM](https://arxiv.org/abs/2412.10193) and
# [Duo](https://arxiv.org/abs/2506.10892) return to uniform noise, the noise of this book.
