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
# **We have** a network that looks at a noisy text and says, for each position, which clean
# character it would put there ([chapter 6](06_model.ipynb)). **We want** to start from random
# characters and walk back to text. **Why**: this is what everything so far was for. And here the
# method has its one real approximation: we change *all* characters at once, as if each did not know
# what the others are about to do. This chapter measures, exactly, what that costs.

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
# Take a language with two letters and two words, *aa* and *bb*, each half of the time. The noise of
# [chapter 4](04_forward.ipynb) redraws letters at random until nothing of the word is left. Now go
# back in a single step, one letter at a time. What should the first letter be? *a* or *b*, half and
# half: the noise tells nothing. The second? The same. Both answers are perfectly right. But drawn
# independently they give *aa*, *ab*, *ba*, *bb*, a quarter each, and half of what we write is no
# word.
#
# Two steps do better. Stop where half of the letters are redrawn: a letter then is still right with
# probability $\tfrac12+\tfrac12\cdot\tfrac12=\tfrac34$. The first step leads from noise to this
# level, and again there is nothing to go by: *aa*, *ab*, *ba*, *bb*, a quarter each. In the second
# step the letters see each other. If we hold *aa*, two witnesses say that the first letter is *a*:
# the letter itself and its neighbor, each right three times out of four. If we hold *ab*, the two
# contradict each other, and each letter is a coin toss again.

# %%
right = 3 / 4
a_given_aa = right**2 / (right**2 + (1 - right) ** 2)  # two witnesses for, against two that err
no_word = 1 / 2 * 2 * a_given_aa * (1 - a_given_aa) + 1 / 2 * 1 / 2  # from aa or bb, from ab or ba
round(a_given_aa, 2), round(no_word, 2)

# %% [markdown]
# (If we hold *aa*, one letter of the two goes astray with probability $2\cdot0.9\cdot0.1$; if we hold
# *ab*, two tosses differ half of the time.) From 50 % down to 34 % nonsense. More steps, less
# nonsense: in each step the letters decide independently, but in the next one they see what the
# others decided. The questions of this chapter:
#
# 1. Given the network's answer, what exactly is the distribution of one letter one step back?
# 2. What does it cost that the letters decide at the same time, and how fast does that fall with the
#    number of steps?
# 3. Where along the way should the steps be?
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$, $L$ | `vocab_size`, `length` | letters in the alphabet, letters in the text |
# | $N$ | `num_steps` | steps of a run, each with one *function evaluation* of the network (the field counts them: NFE) |
# | $\bar\sigma_t$, $\bar\sigma_s$ | `sigma_bar_t`, `sigma_bar_s` | total noise before and after a step back, $\bar\sigma_s<\bar\sigma_t$ |
# | $\Delta$ | `delta_sigma` | noise that the step removes, $\bar\sigma_t-\bar\sigma_s$ |
# | $x_t$, $x_s$ | `x_t` | the text before and after the step; beside a letter, as in $[y=x_t]$, its letter at the position at hand |
# | $t$, $s$ | – | as an index: the times before and after the step, $s<t$ |
# | $s_y$, $\hat s_y$, $\bar s$ | `score`, `staggered_score` | $p_t(\dots y\dots)/p_t(x_t)$, the ratio of [chapter 5](05_loss.ipynb); the same with the noise of one step undone; the mean of $s_y$ over all $y$ |
# | $q_y$ | `log_q` (its log) | what the network believes of the clean letter, *before* it looks at this position's own $x_t$ |
# | $\alpha_s$ | `torch.exp(-after)` | $e^{-\bar\sigma_s}$, the probability that a letter was not redrawn |
# | $u$, $f$ | `share`, `fraction` | share of the steps taken; fraction of letters redrawn, $1-e^{-\bar\sigma}$ |
# | $T$ | `temperature` | below 1: the probable gets more probable |
# | $c$ | `churn` | a step goes too far, to the fraction $(1-c)f_s$, and fresh noise leads back to $f_s$ |
# | $r$ | `sigma_target` | as an index: where a churned step turns back, $r\le s$ |

# %% [markdown]
# ## A world that we know exactly
#
# To tell the sampler's error from the network's error we need a network without error. So we take a
# language so small that Bayes' rule can be worked out in full: three letters *a*, *b*, *c*, and
# words of two letters. *ab* has probability 0.4, *bc* 0.3, *ca* 0.2, and the six other words share
# the remaining 0.1. The class below works for any such small language. Its `denoise` is the ideal
# network: for each position it goes through all words, weighs each with the chance that its *other*
# letters turned into what we see, and adds up what it has at this position. (`condition_mask` marks
# letters that are known to be clean; we need it at the end.)

# %% tags=["export:tiny_world"]
"""Languages so small that all about them can be computed: the truth to hold a sampler against."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score


class TinyWorld:
    """A language given by the probabilities of all its words, and its ideal denoiser."""

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


# %% tags=["export:tiny_world"]
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
# We also want the truth that each step should be compared with. Let $p_t$ be the distribution of
# noisy words and $K(w'\to w)$ the chance that the noise $\Delta$ turns $w'$ into $w$, a product over
# letters. Bayes' rule for whole words reads
#
# $$ p(x_s = w' \mid x_t = w) = \frac{p_s(w')\,K(w'\to w)}{p_t(w)}. $$
#
# For nine words that is a 9 × 9 table. For texts of 160 out of 106 characters it would have
# $106^{160}$ rows, which is why nobody uses it.


# %% tags=["export:tiny_world"]
from ddlm_core.noise import transition_matrix


def word_kernel(world: TinyWorld, sigma_bar: Tensor) -> Tensor:
    """(W, W): probabilities that one word has turned into another after a total noise."""
    letter = transition_matrix(sigma_bar, world.vocab_size)  # (V, V)
    return letter[world.words[:, None], world.words[None]].prod(-1)


def true_reverse(world: TinyWorld, sigma_bar_t: Tensor, sigma_bar_s: Tensor) -> Tensor:
    """(W, W): p(x_s | x_t) for whole words by Bayes' rule, one row for each x_t."""
    before = world.probs @ word_kernel(world, sigma_bar_s)  # (W,): p_s
    joint = before[:, None] * word_kernel(world, sigma_bar_t - sigma_bar_s)
    return (joint / joint.sum(0)).T


# %% [markdown]
# ## Running the noise backward
#
# The noise is a *continuous-time Markov chain*: a letter may jump at any moment, and the chance
# depends only on where it is now. While a tiny noise $\delta$ is added, a letter is redrawn with
# probability $\delta$. So it jumps to a given other letter $y$ with probability $\delta/V$, and
# $1/V$ is called the *rate* of that jump.
#
# Film the chain and play the film backward. You see letters jump at random again, only now noise
# turns into words. How often does a letter jump to $y$ in the film that runs backward? Use Bayes'
# rule above for two words that differ in one letter: $x_t$, and the same word with $y$ in its place.
# In the real film the letter jumped from $y$, with probability $\delta/V$, and the other letters
# stayed, with a probability that tends to 1. So
#
# $$ p(\text{jump back to } y \mid x_t) = \frac{\delta}{V}\cdot\frac{p_s(\dots y\dots)}{p_t(x_t)}
# \;\longrightarrow\; \frac{\delta}{V}\, s_y \qquad (\delta\to 0), $$
#
# because $p_s$, an instant before, tends to $p_t$.
#
# **The reverse rate is the forward rate times the score**, as chapter 5 found for a single letter.
# And if two words differ in two letters, both must have jumped within the same tiny $\delta$, which
# has probability of order $\delta^2$. In the limit letters jump one at a time, each by its own rate.
# So in the limit it is *exact* to treat positions independently. The rest of the chapter is about
# what happens when we are not in the limit.
#
# An example, at a noise of 0.3, where three letters in four are untouched. The scores below are
# those of the second letter. If we hold *ac*, which is rare, the common word *ab* is one jump away,
# and that jump has a high rate. If we hold *ab*, all rates are low. (A rate is a third of a score
# here. The 1 in each line is the letter itself, and no jump.) So rates tell *where to* jump and also
# *whether*: a letter in a word that fits stays.

# %%
from ddlm_core.loss import denoiser_log_score

world, now = three_letter_world(), torch.full((2,), 0.3, dtype=torch.float64)
x_t = torch.tensor([[0, 2], [0, 1]])  # ac, ab
score = denoiser_log_score(world.denoise(x_t, now), now, x_t).exp()  # (B, L, V)
for word, ratios in zip(("ac", "ab"), score[:, 1].numpy().round(2), strict=True):
    print(f"{word}: second letter to a, b, c: {ratios}")

# %% [markdown]
# A computer takes finite steps. The simplest sampler takes the rates at the start of the step,
# holds them for the whole of a noise $\Delta$, and lets all positions jump. That is Euler's method;
# chemists, who leap over many reactions at once like this, call it *τ-leaping*:
#
# $$ p(x_s = y \mid x_t) \approx \frac{\Delta}{V}\,s_y \quad (y\ne x_t), \qquad\text{and stay with what is left.} $$

# %% tags=["export"]
"""Reverse diffusion: the step of one position, time grids, and the one loop that writes text."""

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
# (Two departures from the code of [the paper](https://arxiv.org/abs/2310.16834). It removes
# $\sigma(t)\,\Delta t$, the rate at the start times the time. But geometric noise changes its rate a lot
# within a step, and we know $\bar\sigma$ in closed form, so our $\Delta$ is the noise that is really
# removed. And where a step is so long that the jumps sum to more than 1, we cut them to sum to 1.)
#
# Is it right? Against the table for whole words, the error of one step must be of order $\Delta^2$:
# half the step, a quarter of the error. (Two letters that jump together have that order, and so has
# the change of a rate, of order $\Delta$, times $\Delta$.) A wrong rate, say $1/(V-1)$ for $1/V$, would leave an error
# of order $\Delta$, and half the step would give half of it.

# %%
now = torch.tensor(0.7, dtype=torch.float64)
log_q = world.denoise(world.words, now)
score = denoiser_log_score(log_q, now, world.words).exp()
for delta in (0.02, 0.01, 0.005):
    euler = product_of_positions(world, euler_probs(score, world.words, delta))
    error = (euler - true_reverse(world, now, now - delta)).abs().max()
    print(f"noise {delta:5} removed: error {error:.2e}")

# %% [markdown]
# ## Longer steps: undo the noise of one position
#
# Euler holds rates constant that are not constant. For a single position we can do without that.
#
# Look at position $i$ alone, and leave all other letters as they are in $x_t$. List the
# probabilities of the $V$ texts that differ there, $v_y = p_t(\dots y\dots)$. If only position $i$
# had been spared the last bit of noise $\Delta$, we would have some other list $\hat v$, and the noise
# turns $\hat v$ into $v$. In matrix form, with the rates $Q$ of [chapter 3](03_noise.ipynb),
# $v = e^{\Delta Q}\hat v$ ($Q$ is symmetric, so rows and columns are the same). Hence
# $\hat v = e^{-\Delta Q}v$. Chapter 3 has this exponential in closed form; it holds for a negative noise
# as well ($I$ is the identity matrix, $J$ the matrix of ones):
#
# $$ e^{-\Delta Q} = e^{\Delta} I + (1-e^{\Delta})\tfrac1V J . $$
#
# Divide both lists by $p_t(x_t)$. Then $v$ becomes the score $s$, and $\hat v$ the *staggered score*:
#
# $$ \hat s_y = e^{\Delta}s_y + (1-e^{\Delta})\,\bar s
#   = s_y + (e^{\Delta}-1)(s_y-\bar s), \qquad \bar s=\tfrac1V\textstyle\sum_z s_z . $$
#
# The noise blurred the ratios, and this sharpens them, away from their mean. (The sum includes
# $s_{x_t}=1$.) One application of Bayes' rule is left: the letter was $y$ with weight $\hat s_y$, and
# then turned into $x_t$ with the probability that `transition` gives,
#
# $$ p(x_s = y\mid x_t) \;=\; \hat s_y \cdot\Big(e^{-\Delta}[y=x_t]+\frac{1-e^{-\Delta}}V\Big). $$
#
# The paper calls this the discrete Tweedie theorem, after its Gaussian relative. The right side
# sums to 1 over $y$ by itself, for the sum is $p_t(x_t)/p_t(x_t)$. So it does for any score that is 1 at
# $x_t$. But with a network's score an entry can be negative: we clamp it to 0, and then normalize.

# %% tags=["export"]
from ddlm_core.forward import transition


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Ratios $e^{-\Delta Q}s$, (B, L, V): the noise $\Delta$ of a step undone at each position.

    ``delta_sigma`` is a scalar or (B,). With a score that is off, an entry can be negative. (SEDD, Lou,
    Meng & Ermon 2024, theorem 4.2: discrete Tweedie.)
    """
    growth = torch.expm1(noise_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


# %% [markdown]
# ### The same step from what the network believes
#
# The factor $e^{\Delta}-1$ should make you uneasy. Undoing noise amplifies whatever is wrong with
# the score, and a long step has a large $\Delta$. Here is the ideal score of our world with an
# error of one percent (*b* too high, *c* too low), and what a step down to $\bar\sigma_s=0.1$ makes of it:

# %%
world = three_letter_world()
x_t = world.words[:1]  # the word aa
for start in (3.0, 5.0):
    now = torch.tensor([start], dtype=torch.float64)
    score = denoiser_log_score(world.denoise(x_t, now), now, x_t).exp()
    for name, factors in (("exact score", [1.0, 1.0, 1.0]), ("1 % off", [1.0, 1.01, 0.99])):
        ratios = score * torch.tensor(factors)
        step = staggered_score(ratios, now - 0.1) * transition(x_t, now - 0.1, 3)
        print(f"from {start}, {name:12} first letter a, b, c: {step[0, 0].numpy().round(3)}")

# %% [markdown]
# From $\bar\sigma_t=3$, one percent of error in the ratios has become six points in the
# probabilities. From 5, the same one percent drives one of them below zero, and code that goes this
# way needs a clamp. That surprised us: the formula is exact, and yet the longer the step the less it can
# be trusted with a trained network.
#
# The network of this book outputs $q$, and from $q$ the step can be had without undoing anything.
# Forward, the story of one position is a chain: clean letter $x_0\to x_s\to x_t$. We know
#
# * what to believe of $x_s$ before looking at $x_t$ here: it is still the clean letter with
#   probability $\alpha_s=e^{-\bar\sigma_s}$, else redrawn. So it is $y$ with probability $\alpha_s
#   q_y+(1-\alpha_s)/V$;
# * how well $x_t$ fits: the last bit of noise turns $y$ into $x_t$ with probability
#   $e^{-\Delta}[y=x_t]+(1-e^{-\Delta})/V$.
#
# Multiply the two and normalize, which is Bayes' rule:
#
# $$ p(x_s=y\mid x_t)\;\propto\;\Big(\alpha_s q_y+\frac{1-\alpha_s}{V}\Big)
#    \Big(e^{-\Delta}[y=x_t]+\frac{1-e^{-\Delta}}{V}\Big). $$
#
# In the code both factors come from the *graph* of [chapter 5](05_loss.ipynb), SEDD's word for the kind of noise:
# `graph.marginal` is the first, `graph.likelihood` the second. With the masks of [appendix A](A_absorbing.ipynb) the
# same product is their step.
#
# Every factor is at least 0, so this is a distribution by construction, whatever the network says.
# It needs no clamp. If $q$ is exact, so is the step, for each position.
#
# By hand, for the *aa* that we started with. Half of the letters are redrawn, so $e^{-\Delta}=\tfrac12$,
# and we go all the way, $\alpha_s=1$. The neighbor says $q=(\tfrac34,\tfrac14)$. The letter's own $a$
# fits with $\tfrac12+\tfrac14$, a $b$ in its place with $\tfrac14$. So the weights are
# $\tfrac9{16}$ and $\tfrac1{16}$, and *a* gets 0.9, as we counted above.


# %% tags=["export"]
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


# %%
log_q = torch.tensor([[[3 / 4, 1 / 4]] * 2]).log()  # (1, 2, V): what each a says of the other
analytic_probs(log_q, torch.tensor([[0, 0]]), torch.tensor(2.0).log(), 0.0)

# %% [markdown]
# The two forms ask the network for different things and must agree on the answer
# (`test_both_forms_of_the_step_agree`). And on our world, the step must give the *marginals* of the true table for whole
# words, exactly: the distribution of one letter, whatever the other turns out to be.


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
# ## Why the step factorizes, and what that costs
#
# The last line of the test is the whole trouble in one assertion. Each letter is exact, the
# word is not: it is a product of marginals where the truth has dependent letters. Nothing that the
# network could learn mends this. It gives one distribution per position, and a table of the joint
# distribution of $L$ positions would have $V^L$ entries. An autoregressive model avoids the problem with
# $L$ function evaluations one after the other, each with all earlier letters in view. We take
# $N$, each for all $L$ letters at once, and $N$ is ours to choose.
#
# **One step** costs the most, and that cost has a closed form. From pure noise, the ideal network
# can only say how often each letter occurs at each place: $p_i(y)$. So one step writes the word $w$
# with probability $\prod_i p_i(w_i)$. How far is that from the truth $p(w)$? In the yardstick of
# chapter 5,
#
# $$ KL\Big(p\,\Big\|\,\prod_i p_i\Big) = \sum_w p(w)\log p(w) - \sum_i\sum_w p(w)\log p_i(w_i)
#    = \sum_i H_i - H, $$
#
# with $H_i=-\sum_y p_i(y)\log p_i(y)$ the entropy of place $i$ and $H$ that of the word. **Deciding
# everything at once costs exactly what the letters know about each other.** For *aa* and *bb* each
# letter has $\log2$, and so has the word: the cost is $\log 2+\log2-\log2=\log 2$, a factor 2 in
# probability, the half that was no word. And in our world:


# %%
def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


letters = torch.stack([world.probs @ one_hot(world.words[:, i], 3).double() for i in (0, 1)])
one_step = product_of_positions(world, letters[None])[0]  # (W,)
kl = (world.probs * (world.probs / one_step).log()).sum()
print(f"KL {kl:.4f} nats; letters {entropy(letters).sum():.4f} - word {entropy(world.probs):.4f}")

# %% [markdown]
# **Many steps** cost less. In a step that removes the noise $\Delta$, a position changes with a
# probability of order $\Delta$. The true joint and the product of marginals agree on the chance that
# a given position changes, alone or together with others. That two change *together* has a chance of
# order $\Delta^2$, in both. So they agree on lone changes as well, up to order $\Delta^2$, and nothing
# else is left to differ. Make the steps $N$ times as many, each $N$ times shorter: the errors add up
# to $N\cdot O(1/N^2)=O(1/N)$. Euler's method commits a second error of
# order $\Delta^2$ per step, the rates that it freezes. So, where every word is possible and all steps shrink
# alike, we expect both to converge like $1/N$, with different constants. We will see.

# %% [markdown]
# ## Where to stop on the way
#
# A run starts at $t=1$ and visits $N$ earlier times, the last one $t=0$. The obvious choice is
# equal steps of $t$. But geometric noise gives equal time to each *factor* of noise. From
# $\bar\sigma=10^{-4}$ to $0.01$ no more than one letter in a hundred is redrawn, and that is $\log
# 100/\log(2\cdot10^5)=38\,\%$ of the way. So besides `"linear"` there are two schedules that look
# at the fraction of redrawn letters, $f=1-e^{-\bar\sigma}$. `"fraction"` takes equal steps of $f$.
# `"cosine"` takes long steps while almost all is noise, and short ones near the clean text:
# $f=1-\sin\tfrac{\pi u}2=1-\cos\tfrac{\pi(1-u)}2$ after a share $u$ of the steps. (The code works with the share that is
# *kept*, $1-f=e^{-\bar\sigma}$, because $1-e^{-60}$ is exactly 1 in floating point.)

# %% tags=["export"]
import math

from ddlm_core.noise import GeometricNoise, NoiseSchedule
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

SCHEDULES = ("linear", "cosine", "fraction")


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: NoiseSchedule | None = None
) -> Tensor:
    r"""The time grid of a run, from 1 (noise) down to 0 (text): float64 (num_steps + 1,).

    Equal steps of t (``"linear"``) or of the corruption probability (``"fraction"``), or ``"cosine"``:
    $1 - \alpha = 1 - \sin(\pi u / 2)$ after a share u of the steps, for the given noise schedule (by
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


# %% [markdown]
# One detail is left: $t=0$ is not quite clean text. A noise of $\bar\sigma(0)=10^{-4}$ remains, one
# letter in ten thousand. The paper ends with an extra denoising step for it. We let the last step
# go all the way to $\bar\sigma=0$ instead, so that $N$ steps are $N$ evaluations of the network (a
# departure; `denoise_last=False` stops at $\bar\sigma(0)$). The last step still *draws* its
# letters, as every step does. Taking the most probable letter looks tempting, but it would no
# longer be a sample of what the model believes: a name that is *Tim* with 60 % would always become
# *Tim*.


# %% tags=["export"]
def noise_levels(
    noise: NoiseSchedule, num_steps: int, schedule: str = "linear", denoise_last: bool = True
) -> Tensor:
    r"""Total noise at the times of ``create_timestep_schedule``: float64 (num_steps + 1,).

    The last level is 0, so that the last step leads to clean text; without ``denoise_last`` it is
    $\bar\sigma(0)$. Errors as there.
    """
    levels = noise.sigma_bar(create_timestep_schedule(num_steps, schedule, noise))
    return torch.cat([levels[:-1], levels.new_zeros(1)]) if denoise_last else levels


# %% [markdown]
# ## Drawing
#
# To draw from $V$ probabilities, lay them end to end from 0 to 1, and see into which letter's stretch a uniform random
# number $u$ falls: *inverse-CDF sampling*. That takes one random number for each position and a cumulative sum. (Many implementations use Gumbel
# noise instead, $V$ random numbers a position. In float32 that noise has a largest value, so a letter of small
# probability wins too rarely, or never, as if the temperature were lower: [Zheng et al.
# 2024](https://arxiv.org/abs/2409.02908). The sum errs too, but by no more than about $10^{-7}$ in the probability of
# any letter.) In the code, the index of the letter is the number of letters whose stretches end at $u$ or before it.


# %% tags=["export"]
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


# %% [markdown]
# Where do the random numbers come from? If one generator served the whole batch, sample 3 would
# depend on how many samples are drawn with it, and splitting a large batch to save memory would
# change every text. So **each sample gets its own generator**, from the seed and the sample's
# number alone (`first` is the number of the first sample, for a batch that continues another one).
# It lives on the CPU, which costs next to nothing and gives the same numbers on every device.
#
# The seed goes through a hash first. Otherwise the second sample of seed 7 would be the first sample of seed 8. After
# the hash we count up, because PyTorch's CPU generator looks at 32 bits of its seed only: a hash for every sample would
# now and then give two samples of a large batch the same generator, and so the same text. Numbers in a row are all
# different.

# %% tags=["export"]
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
# ## One step
#
# Now put the pieces together. A model either has `denoise`, which gives $\log q$, or it is of the paper's kind
# (`parametrization="score"` in chapter 6) and gives log-scores when called. (`has_denoiser` says which.) In the second
# case the step goes through the staggered score, and there is no $q$ that a temperature could sharpen. `graph_of` gives
# the kind of noise that the model was trained for, and the graph says what works with it: `supports_scores` is true where
# the score and the Euler step do, `supports_churn` where fresh noise may be added on the way (below). The analytic step
# works with every graph. The model is told about given letters (`condition_mask`) only if there are any. (Papers on masked
# diffusion mean the opposite by a mask: there it hides a letter, here it marks one that is known.)
#
# **Temperature.** A language model with temperature $T$ draws from $q^{1/T}$, normalized: below 1 the
# probable gets more probable. We apply it to *what the model believes*, to $q$, and not to the
# probabilities of the step. Those also contain the noise that must stay, which is no opinion: a
# letter that is still redrawn at this level has to be any letter with equal chance. Sharpen them and the text arrives at
# a noise level that the network does not expect.
#
# `inference_mode` (no gradients are prepared, which saves time) is on for this function alone. It
# must not be wrapped around the loop below: a Python generator that stops at a `yield` inside such a
# block would leave it switched on in the code of whoever reads the steps.

# %% tags=["export"]
from typing import TypeGuard

from ddlm_core.graph import Denoiser, ScoreModel, graph_of

METHODS = ("analytic", "euler")


def has_denoiser(model: ScoreModel) -> TypeGuard[Denoiser]:
    r"""Whether the model gives $\log q$; if not, all that it has are log-scores."""
    config = getattr(model, "config", None)  # a network may be of the paper's kind
    return hasattr(model, "denoise") and getattr(config, "parametrization", "") != "score"


def _check_step(model: ScoreModel, method: str, temperature: float, churn: float = 0.0) -> None:
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


# %% tags=["export"]
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
    _check_step(model, method, temperature)
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
# ## Too far, and back
#
# A trained network is not the ideal one. A letter that the sampler has put in wrongly is evidence in the next step, for
# itself and for its neighbors, just as a right one is. The ideal network would still remove it. One that is a little
# off may not; and near the clean text a step changes almost no letter, so there are few chances to do it.
#
# So shake the text. Let a step go *too far*, down to a noise $\bar\sigma_r$ below $\bar\sigma_s$, and then add noise
# again, from $\bar\sigma_r$ up to $\bar\sigma_s$. The fresh noise hits letters blindly, right ones and wrong ones. The
# cure comes in the next step: a right letter that was hit is restored from its neighbors, and a wrong one that was hit
# no longer testifies for itself, and is drawn by what all others say *now*. We measure how far by the **churn** $c$: of
# the fraction of redrawn letters $f_s=1-e^{-\bar\sigma_s}$ that should be left after the step, it leaves $(1-c)f_s$ and
# makes up the rest with fresh noise. So $c=0$ is the plain step. With $c=1$ each step draws a complete clean text and
# then spoils it again, a little less than before.
#
# This takes no second function evaluation, and not even a second draw: if a letter is $y$ with probability $p_y$, then after
# more noise $\Delta'=\bar\sigma_s-\bar\sigma_r$ it is $y$ with probability
#
# $$ e^{-\Delta'}\,p_y + \frac{1-e^{-\Delta'}}V . $$
#
# Is that still right? If texts at $t$ have the distribution $p_t$, an exact step down to $\bar\sigma_r$ gives them the
# distribution $p_r$, and noise then gives them $p_s$, whatever $r$ was. Only the path is another one: $x_s$ comes from
# $x_r$ alone and has forgotten $x_t$. But our steps are exact for each position, and not for all of them together, and
# a longer leap has a larger error. We will measure that, too.
#
# (This is our addition to SEDD, but not a new idea. Samplers with continuous noise add some back in each step since
# [Karras et al. 2022](https://arxiv.org/abs/2206.00364), who call it churn. [Wang et al.
# 2025](https://arxiv.org/abs/2503.00307) mask some letters again (*ReMDM*), and so can correct them. A step back and forth at
# *equal* noise is the corrector of [Campbell et al. 2022](https://arxiv.org/abs/2205.14987), which takes a
# function evaluation of its own. For masks and uniform noise alike, [Deschenaux et al.
# 2026](https://arxiv.org/abs/2602.21185) call the family *Ψ-samplers*.)

# %% tags=["export"]
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
    r"""A step down to the corruption probability $(1-c)f_s$, and noise back to $f_s$: (B, L, V).

    ``churn`` c from 0 (``reverse_probs``, exactly) to 1; all else as there. One function evaluation.
    (Not in SEDD: after Karras et al. 2022, and like the Psi-samplers of Deschenaux et al. 2026.)
    """
    _check_step(model, method, temperature, churn)
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


# %% [markdown]
# In a language whose words have one letter, where nothing is drawn together, the distribution at each stop is $p_s$,
# exactly, whatever the churn (`test_churn_keeps_the_law_of_one_letter`). But the *path* differs: given $x_t$, a churned
# step does not have the marginals of the true table, as the plain one has.

# %% [markdown]
# ## The one loop
#
# There is one loop in the whole project. It is a Python generator: it hands out each step as it is
# made. Whoever wants an animation, a progress bar or a stop button reads the steps; whoever wants
# the text reads the last one.
#
# Ask the model what each clean letter might be, given all letters as they are now. Turn that into
# distributions one step back. Draw a letter for each position, except where a letter is given. That is
# all, and nothing is decided for good: a letter that was set early can be changed in any later step,
# if its neighbors come to disagree with it.

# %% tags=["export"]
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
            u = torch.stack([_uniform(g, tokens.shape[1]) for g in generators])  # (B, L)
            drawn = _sample_categorical(probs, u)
            changed = (drawn != tokens) & free  # given tokens stay
            tokens = torch.where(changed, drawn, tokens)
        yield DenoisingStep(index, len(levels) - 1, level, tokens, changed)


# %% [markdown]
# Around it stands the function with the arguments that a user sees. It does little more than to
# check them and to put given letters into the start, where the loop will leave them. It
# is *not* a generator itself, so a wrong argument is reported when you call it, not when you read the first step.

# %% [markdown]
# What is left out is filled in: without a device, that of the model; without generators, PyTorch's
# own; and one generator that is given alone serves all samples in turn.


# %% tags=["export"]
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


# %% tags=["export"]
def _device_of(model: ScoreModel) -> torch.device:
    """Where the parameters of a network are; the CPU for any other function."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


# %% tags=["export"]
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
    _check_step(model, method, temperature, churn)
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


# %% tags=["export"]
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
# Here is the loop at work on the tiny world: four words in eight steps. An upper-case letter was
# changed by the step. Early steps change a lot and mean little, late ones tidy up.

# %%
noise, world = GeometricNoise(), three_letter_world()
generators = sample_generators(2, 4)
run = denoising_steps(world, noise, 4, 2, num_steps=8, schedule="cosine", generator=generators)
for step in run:
    words = [
        "".join("abcABC"[letter + 3 * new] for letter, new in zip(*row, strict=True))
        for row in zip(step.tokens.tolist(), step.changed.tolist(), strict=True)
    ]
    print(f"step {step.index}   noise {step.sigma_bar:7.4f}   {'   '.join(words)}")

# %% [markdown]
# The same seed gives the same text, however the batch is split
# (`test_samples_do_not_depend_on_the_batch_split`).

# %% [markdown]
# ## Does it converge?
#
# On the tiny world we need not sample to know what the sampler writes. Keep the probabilities of
# all nine words as a vector, start with 1/9 each, and multiply by the 9 × 9 table of each step.
# `churned_probs`, the very function in the loop, gives the rows. Then compare the end with the true
# language by the *total variation distance*, half the sum of the absolute differences. It is the
# smallest share of the texts that one would have to rewrite to make the two languages agree.


# %% tags=["export:tiny_world"]
from ddlm_core.sampler import churned_probs


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
# The figure shows the nine words: what the language has, and what sixteen, four and one equal steps of $t$ write. One
# step gives the products of the letter frequencies: *ac* and *bb*, which are hardly ever said, come out far too often,
# and *ab* far too rarely. With sixteen steps the bars are close to the truth.

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
# Now the distance against the number of steps, for both methods on two schedules. Both axes are
# logarithmic, so that an error of $1/N$ is a straight line that falls one decade in one decade; the
# dotted line has this slope. All four curves follow it from about eight steps on. Euler (squares,
# triangles pointing down) lies above the analytic step, and `cosine` (triangles) well below `linear`.

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

# %%
runs = [written(world, noise_levels(noise, n, "fraction")) for n in counts]
distance["analytic", "fraction"] = [total_variation(run, world.probs) for run in runs]
print("steps                " + "".join(f"{n:>8}" for n in counts[2:9]))
for (method, schedule), values in distance.items():
    print(f"{method:9} {schedule:10} " + "".join(f"{value:8.4f}" for value in values[2:9]))

# %% [markdown]
# Read the third line of the table against the first, and the fourth against the second: sixteen steps of `cosine` do
# what thirty-two of `linear` do. `fraction`, the last line, lies between. We did not expect this direction. Masked
# models usually begin with short steps and end with long ones ([MaskGIT](https://arxiv.org/abs/2202.04200), Chang et
# al. 2022, whose cosine is ours mirrored); here it is the other way round.
#
# The test asks for the same of a second language, of two letters and words of three.


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
# The next figure shows why. It gives the price of one step: the total variation between the true table and the product,
# averaged over the noisy words of the language, for a step that lowers the fraction $f$ of redrawn letters by a little
# $\delta f$, divided by $(\delta f)^2$. If errors simply added up and the price were the same everywhere, equal steps
# of $f$ would be best, because squares of numbers with a given sum add up to the least when all are equal. But at the
# clean end the price is three times that in the middle (both are printed), for there the letters have become sure of
# each other: in *ac* either the *a* or the *c* is wrong, exactly one should change, and letters that decide alone may
# change both, or neither. The ticks below show where the three schedules stop in a run of twelve steps.


# %% tags=["hide-input"]
def price(fraction: Tensor, part: float = 0.02) -> float:
    now, after = -torch.log1p(-fraction), -torch.log1p(-fraction * (1 - part))
    log_q = world.denoise(world.words, now)
    product = product_of_positions(world, analytic_probs(log_q, world.words, now, after))
    miss = (product - true_reverse(world, now, after)).abs().sum(-1) / 2  # (W,)
    return float(world.probs @ word_kernel(world, now) @ miss / (part * fraction) ** 2)


fractions = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
figure, (top, bottom) = plt.subplots(
    2, sharex=True, figsize=(7, 4), gridspec_kw={"height_ratios": [3, 1]}
)
top.plot(fractions, [price(fraction) for fraction in fractions])
top.set_ylabel("price of a step / (δf)²")
top.set_ylim(0)
for row, schedule in enumerate(SCHEDULES):
    stops = resample_probability(noise_levels(noise, 12, schedule))
    bottom.plot(stops, torch.full_like(stops, row), "|", markersize=12, color=f"C{row}")
bottom.set_yticks(range(3), SCHEDULES)
bottom.set_ylim(2.6, -0.6)
bottom.set_xlabel("fraction f of redrawn letters (a run goes from right to left)")
plt.show()
print(f"price at f = 0.01: {price(fractions[0]):.1f}, at f = 0.5: {price(fractions[49]):.1f}")

# %% [markdown]
# And errors do *not* simply add up. Take one of twelve steps of `fraction` as the product, and all
# others by the true table. How large is the error right after this step, and how much of it is left at
# the end?

# %%
levels, twelve = noise_levels(noise, 12, "fraction"), range(12)
true = [true_reverse(world, levels[k], levels[k + 1]) for k in twelve]
for k in (0, 3, 6, 8, 9, 10, 11):
    step = reverse_probs(world, world.words, levels[k], levels[k + 1])
    before = world.probs @ word_kernel(world, levels[k])  # (W,): where a run may be
    error = before @ (product_of_positions(world, step) - true[k])
    born = error.abs().sum() / 2
    for table in true[k + 1 :]:
        error = error @ table
    print(f"step {k + 1:2}: {born:.4f} at once, {error.abs().sum() / 2:.4f} at the end")

# %% [markdown]
# Later steps mend most of what early ones did wrong, for they see it. Nothing comes after the last one.
# That is the second reason for short steps near the text.
#
# `linear` spends most of its twelve steps in a crowd at the clean end, one at almost pure noise, and crosses the middle
# in three leaps. Still, do not take this for the last word. Here the network is perfect. A trained one makes mistakes,
# and the many steps of `linear` at almost no noise are further evaluations on a finished text, which may have some value,
# though each changes almost no letter. ([Chapter 9](09_evaluation.ipynb) measures both on a real model. The default of
# our function is `linear`, as in the paper; the pipeline of chapter 10 takes `cosine`.)
#
# And what does churn cost? Each of its steps leaps farther than the schedule says, and letters that leap decide alone.
# The ideal network has nothing to gain from it.

# %%
print("steps        " + "".join(f"{n:>8}" for n in counts[2:9]))
for churn in (0.0, 0.25, 0.5, 1.0):
    runs = (written(world, noise_levels(noise, n, "cosine"), churn=churn) for n in counts[2:9])
    misses = [total_variation(run, world.probs) for run in runs]
    print(f"churn {churn:4}   " + "".join(f"{miss:8.4f}" for miss in misses))

# %% [markdown]
# With four steps, a churn of 1 adds a fifth to the distance. With 256, it makes it twelve times as large: the leap of a
# step is a fixed share of the noise that is left and does not shrink with $N$, so $1/N$ is lost. (The distance still
# falls: with more steps, more of them are near the clean text, where the same share is a short leap, and they mend what
# earlier ones did.) For an ideal network this would be the end of it. For the trained one, [chapter
# 9](09_evaluation.ipynb) counts: from 16 steps on, a churn of 1 leaves less than half of the broken stories that a
# churn of 0 leaves. So `denoising_steps` has 0, and the pipeline of chapter 10, which writes stories, has 1.
#
# Finally: does the loop, with its random draws, really write what this exact computation says? We let it
# write four thousand words in four steps of `fraction` and count them. The chi-squared statistic
# adds up the squared differences from the expected counts, each divided by the expected count. For
# nine words it is about 8 if all is well, and above 31.8 once in ten thousand trials. So that the
# test proves its power, the same counts must be impossible for the true language: four steps are
# too few, and the test must see it.


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
# ## One story, and how sure the model is
#
# Enough of three letters. The package brings a small network, trained on the stories of [chapter 2](02_stories.ipynb).
# How it was trained is the matter of [chapter 8](08_training.ipynb); here we load it, as in chapter 6, and let it
# write. The same seed, so the same noise to start from, in 1, 4 and 64 plain steps of `cosine` (without churn):

# %%
import textwrap
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO

from ddlm_core import stories
from ddlm_core.loss import log_posterior
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.tokenizer import PAD_ID

folder = files("ddlm_core") / "pretrained" / "pocket-stories"
with redirect_stdout(StringIO()):  # it says that the weights come from a folder
    model = DiscreteDiffusionTransformer.from_pretrained(str(folder)).requires_grad_(False)
tokenizer = model.config.tokenizer


def write(num_steps: int, seed: int = 58) -> list[DenoisingStep]:
    how = {"schedule": "cosine", "generator": sample_generators(seed, 1)}
    length = model.config.block_size  # shorter stories are filled up with <PAD>
    return list(denoising_steps(model, model.config.noise, 1, length, num_steps=num_steps, **how))


runs = {num_steps: write(num_steps) for num_steps in (1, 4, 64)}
for num_steps, run in runs.items():
    print(textwrap.fill(f"{num_steps:2} steps: {tokenizer.decode(run[-1].tokens[0])!r}", 90))

# %% [markdown]
# One step gives every place a letter that is likely *there*, and hardly a word. To watch the long run, ask after each
# step how sure the model is. Its belief about the clean character at place $i$, its own $x_t$ counted, is the
# `log_posterior` of chapter 5. The entropy of that belief, in nats,
#
# $$ H_i(x_t) = -\sum_y p(x_0^i=y\mid x_t)\,\log p(x_0^i=y\mid x_t), $$
#
# is 0 where the model is certain, and $\log106=4.66$ where it knows nothing. The sum over all places counts a
# choice once for each letter that depends on it: the four letters of *kite* are one choice. So it is at
# least what is left to decide, and seldom equal to it.


# %%
def belief(step: DenoisingStep) -> Tensor:
    """What the model believes of each clean character: log-probabilities (L, V)."""
    sigma_bar = torch.tensor([step.sigma_bar])
    return log_posterior(model.denoise(step.tokens, sigma_bar), sigma_bar, step.tokens)[0]


def uncertainty(step: DenoisingStep) -> Tensor:
    """Entropy of the belief at each position, in nats: (L,)."""
    log_p = belief(step)
    return -(log_p.exp() * log_p).sum(-1)


run = runs[64]
unsure = torch.stack([uncertainty(step) for step in run[:-1]])  # (N, L), before each step
for k in (0, 8, 16, 24, 32, 48):
    noise_left, total = run[k].sigma_bar, unsure[k].sum()
    print(f"after {k:2} steps, noise {noise_left:7.4f}: {total:5.1f} nats in all places together")
texts = [tokenizer.encode(text) for text in stories.sample(2000, seed=0)]
texts = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD_ID)
frequencies = one_hot(texts, tokenizer.vocab_size).double().mean(0)  # (L, V)
print(f"letters at their frequencies in 2,000 stories: {entropy(frequencies).sum():5.1f} nats")
print(f"a whole story:                                 {stories.entropy():5.1f} nats")

# %% [markdown]
# Letters at their true frequencies add up to 319 nats, and a story has 19, so even a perfect network pays $\sum_i
# H_i-H=300$ nats for a story in one step, as derived above. (A perfect network would begin at these 319, for noise
# tells nothing. Ours begins at 297: here it is a little too sure of itself.) Then the sum falls fast. After 16 of 64
# steps less is open than a story has in all.
#
# Which words does the model decide last? Add up the uncertainty in each word of the finished text, and
# look for the last step before which it was above half a nat.

# %%
import re

settled = []
for word in re.finditer(r"\w+", tokenizer.decode(run[-1].tokens[0])):
    in_word = unsure[:, word.start() : word.end()].sum(1)  # (N,)
    settled.append((int((in_word > 0.5).nonzero().max()), word, in_word))
steps = (0, 8, 16, 24, 32)
print("                   open till   nats before step" + "".join(f"{k + 1:6}" for k in steps))
for last, word, in_word in sorted(settled, key=lambda entry: -entry[0])[:8]:
    place = f"{word.group():10} at {word.start() + 1:3}   step {last + 1:2}"
    print(f"{place:47}" + "".join(f"{in_word[k]:6.1f}" for k in steps))

# %% [markdown]
# A name that stands there a second time stays open longest, and the first word of the story is not settled before step
# 28, long after most of the words behind it. Is the story sound? Almost. By the grammar of chapter 2, three places hold
# one and the same name, that of the hero: the first word, the one who wants to trade, and the one who is happy in the
# end. The hero is Lucy, but it is Luke who is happy. Ask for the most probable letters at these three places:

# %%
for k in (4, 8, 16, 20, 24, 28, 44):
    likely = tokenizer.decode(belief(run[k]).argmax(-1))
    print(f"after {k:2} steps:  {likely[:4]}  {likely[83:87]}  {likely[115:119]}")

# %% [markdown]
# The figure shows the same. Above is the whole text, a row for each of the first 48 steps; bright means unsure. Below
# is the beginning of the text, with the characters that the sampler holds at that step (`�` is `<UNK>`).

# %% tags=["hide-input"]
rows, columns = (0, 4, 8, 16, 24, 32, 48, 63), 46
figure, (top, bottom) = plt.subplots(2, figsize=(8, 5.8), gridspec_kw={"hspace": 0.12})
look = {"cmap": "cividis", "vmin": 0, "vmax": 2.5, "aspect": "auto"}
image = top.imshow(unsure[:48], extent=(0.5, 160.5, 47.5, -0.5), **look)
top.set(xlabel="position in the text", ylabel="steps taken")
bottom.imshow(unsure[list(rows), :columns], extent=(0.5, columns + 0.5, 7.5, -0.5), **look)
bottom.set(xlabel=f"position in the text (the first {columns})", ylabel="steps taken")
bottom.set_yticks(range(len(rows)), rows)
for i, row in enumerate(rows):
    for j, letter in enumerate(map(tokenizer.decode, run[row].tokens[0, :columns, None])):
        color = "black" if unsure[row, j] > 1.3 else "white"
        place = {"ha": "center", "va": "center", "fontsize": 8.5, "parse_math": False}
        bottom.text(j + 1, i, letter if letter.isprintable() else " ", color=color, **place)
for axes in (top, bottom):
    axes.grid(False)
bar = figure.colorbar(image, ax=(top, bottom), label="uncertainty in nats", extend="max")
bar.outline.set_visible(False)
plt.show()

# %% [markdown]
# - **Fixed phrases settle first**, and the padding behind the story.
# - **What belongs together should settle together.** After 16 steps it nearly had: all three places lean to *Luke*. But
#   the second is still half noise, and while that is drawn anew it reads as *Lace*, as *Luck*, as *Lack*, which are no
#   names. *Luke* and *Lucy* are both near. In the end the first place turns to *Lucy*, and the second follows. The
#   third should follow and does not: the network has been sure of it since step 17, and plain steps keep what it is
#   sure of. (A churned step would draw it again.) That is how the flaw was born. [Chapter 9](09_evaluation.ipynb)
#   counts such flaws.
# - **Color and characters tell different things.** After 32 steps nearly every third letter is noise still, and the
#   model is sure of most of the text. It sees through the noise that is left; what the remaining steps decide are the
#   first two words of the list.
# - **Errors are also born where all is bright.** Bright places draw in the same step and cannot hear each other. That
#   is how the run of 4 steps came to write a word that does not exist.

# %% [markdown]
# ## Infilling
#
# A left-to-right model can continue a text. This one can fill holes anywhere: write down the given
# characters, start the rest as noise, and leave the given ones alone in each step. Is that enough?
# It depends on whether **the model knows which characters are given**.
#
# Suppose the first letter is *b*. In our language *c* follows with probability 0.9. A model that
# is told "this letter is clean" believes exactly that, at every noise level. A model that is not
# told reads the *b* as it would read any letter at this noise level: probably random. So it begins
# to write an independent second letter, and learns too late that the *b* was serious.

# %%
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
# Told, even a single step is exact, since there is only one letter to write. Not told, the
# distribution is wrong by 13 % after 1,024 steps, and four times as many change nothing. The reason: leaving the *b* there
# makes the model answer for $p_t$ given a *noisy* letter that happens to be *b*. What we want is
# $p_t$ given that the *clean* letter is *b*. The two agree only at the very end. So, unlike the
# paper's sampler, which puts the given tokens back and no more, ours passes the mask on, and
# [chapter 8](08_training.ipynb) trains the network with spans that it knows are given.
#
# The check holds the exact computation against the true conditional distribution, for one open letter, which must be
# exact in any number of steps.


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
# 1. Many samplers take the most probable letter in the last step. In `_run_reverse`, replace the line
#    that draws by
#
#    ```python
#    last = index == len(levels) - 1
#    drawn = probs.argmax(-1) if last else _sample_categorical(probs, u)
#    ```
#
#    `test_loop_writes_what_the_exact_computation_says` fails: *ab* is written too often, and the
#    words *aa* and *cb* never.
# 2. Do not tell the model: where `denoising_steps` makes `step_probs`, leave out `condition_mask`.
#    `test_given_letters_are_kept_in_every_step` fails. The letters are kept, but the others are
#    written as if they were not.
# 3. Average over $V-1$ letters, as the public code of chapter 5 does: in `euler_probs`, divide by
#    `(score.shape[-1] - 1)`. `test_euler_jumps_at_the_reverse_rates` fails, and so do
#    `test_euler_step_is_a_distribution_however_long`, the Euler half of
#    `test_total_variation_falls_like_one_over_the_steps`, and on this page exercise 2.
#
# After each: `make export && pytest tests/test_sampler.py tests/unit/test_sampler.py`.
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
# **2.** Is the analytic step always better than Euler? Make a world of three words only, *ab* 0.5, *bc* 0.3, *ca* 0.2,
# and compare the two at 32 steps of `linear`. (Expected: analytic 0.0229, Euler 0.0147. Beside the error of the
# product, which both make, Euler makes one in each position. Nothing forbids the two to cancel in part, and here they
# seem to.)

# %% tags=["solution", "hide-input"]
strict_probs = torch.zeros(3, 3, dtype=torch.float64)
strict_probs[0, 1], strict_probs[1, 2], strict_probs[2, 0] = 0.5, 0.3, 0.2
strict_world = TinyWorld(strict_probs)
levels = noise_levels(noise, 32)
found = [
    round(total_variation(written(strict_world, levels, method=method), strict_world.probs), 4)
    for method in METHODS
]
assert found == [0.0229, 0.0147], found
found

# %% [markdown]
# **3.** Make your own schedule: let the fraction of redrawn letters fall as $f=(1-u)^2$, so that
# $\bar\sigma=-\log(1-f)$, from $\bar\sigma(1)$ down to 0, and compare with `cosine` at 24 steps.
# (Expected: 0.0185 against 0.0193, a little better still.)

# %% tags=["solution", "hide-input"]
share = torch.linspace(0, 1, 25, dtype=torch.float64)
levels = (-torch.log1p(-((1 - share) ** 2))).clamp(max=noise.sigma_max)
square = total_variation(written(world, levels), world.probs)
cosine = total_variation(written(world, noise_levels(noise, 24, "cosine")), world.probs)
assert [round(square, 4), round(cosine, 4)] == [0.0185, 0.0193], (square, cosine)
round(square, 4), round(cosine, 4)

# %% [markdown]
# **4.** Temperature $T=\tfrac12$ would ideally square the probability of each word: *ab* $0.16$,
# *bc* $0.09$, *ca* $0.04$, divided by their sum (with the rare words) $0.2917$. But it is applied
# per position. What does the sampler write with 256 steps of `cosine`? Call `reverse_probs`
# yourself with `temperature=0.5`. (Expected: *ab* 0.452 and not 0.549. The rare words are all but
# gone, yet *ab*, *bc* and *ca* stand almost as 4 : 3 : 2, as before. In this world temperature removes what fits badly, and
# hardly touches the choice between things that fit.)

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
# The reverse rate is the forward rate times the score. For one position the reverse step can be had exactly, from the
# score by undoing noise, or, better, from what the denoiser believes. For all positions at once it is a product where
# the truth is not. In one step that costs what the letters know about each other; in $N$ steps, an error of order
# $1/N$. Shorter steps near the clean text halve it. A churned step costs an ideal network accuracy, and helps a trained
# one.
#
# | exported name | meaning |
# |---|---|
# | `create_timestep_schedule`, `SCHEDULES` | times from 1 to 0: `linear`, `cosine`, `fraction` |
# | `noise_levels` | the total noise at these times, the last one 0 |
# | `euler_probs` | jumps at the reverse rates, held constant during the step |
# | `staggered_score` | ratios with the noise of one step undone: the form of the paper |
# | `analytic_probs` | the exact step of one position, from the denoising distribution, with any graph: always a distribution |
# | `sample_generators` | one source of randomness for each sample |
# | `has_denoiser`, `METHODS` | what a model gives; `analytic` and `euler` |
# | `reverse_probs` | one function evaluation, turned into one step |
# | `churned_probs` | the same, a little too far and back by fresh noise |
# | `DenoisingStep` | what a step leaves |
# | `denoising_steps`, `sample_diffusion` | all steps, or only the text |
#
# The exact computations are a module of their own, `ddlm_core.tiny_world`, to hold your own sampler against: `TinyWorld`,
# `three_letter_world`, `two_letter_world`, `word_kernel`, `true_reverse`, `product_of_positions`, `written`,
# `total_variation`.
#
# Next: [chapter 8](08_training.ipynb) trains the network that all of this has been waiting for.
