# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Score entropy
#
# **We have** a way to destroy text ([chapter 4](04_forward.ipynb)): after a total noise
# $\bar\sigma$, each character was redrawn with probability $1-e^{-\bar\sigma}$.
#
# **We want** a loss whose minimum is exactly what we need to run the destruction backward, and
# whose value means something.
#
# **Why**: a network only learns what its loss rewards. By the end of this chapter the area under
# our loss curve *is* the entropy of the data. On the way, a simple check finds a slip that
# we met in public code.
#
# The road: what going backward takes (ratios), a loss that asks for just these, a check that it is
# right, and then what its value means. It is the longest chapter of the book, and the one that the
# others stand on.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core lazy_loader
        tqdm pillow ipywidgets matplotlib gradio pytest hypothesis mpmath"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## By hand: what does it take to go backward?
#
# Take a text of one letter, from the alphabet `a b c`. Half of all texts are `a`, three tenths are
# `b`, the rest `c`. Add a total noise of $\bar\sigma = 1$ and look at who is left:

# %%
import math

import torch

from ddlm_core.noise import transition_matrix

p_0 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # a, b, c
kernel = transition_matrix(1.0, 3)  # p(x_t | x_0): row x_0, column x_t
p_t = p_0 @ kernel
p_t

# %% [markdown]
# Now add one more drop of noise, $\Delta = 0.001$, and see a `b`. What was it before the drop?
# Bayes' rule answers: the probability that it was $y$ and became `b`, divided by the probability
# that it is `b`, one way or another.

# %%
drop = 0.001
joint = p_t[:, None] * transition_matrix(drop, 3)  # before (row), after (column)
before = joint[:, 1] / joint[:, 1].sum()  # given that it is b after
before

# %% [markdown]
# Almost surely it was `b` before, too. The two small numbers are the chances of a jump. They shrink
# with the drop, so divide them by $\Delta$: that is a *rate*. One more factor of $V = 3$, the
# number of letters, and something familiar appears.

# %%
3 * before / drop, p_t / p_t[1]

# %% [markdown]
# Apart from the entry of `b` itself, the two rows agree, up to the size of the drop. Why? Write $p_t(x)$
# for the probability of letter $x$ at time $t$, when the noise has come to $\bar\sigma$. A drop of noise $\Delta$ turns a $y$ into one given
# *other* letter $x$ with probability $\Delta/V$: wiped out with probability $\Delta$, and then one letter
# of $V$. (These are the entries $1/V$ of the matrix $Q$ in [chapter 3](03_noise.ipynb).) So Bayes' rule says
#
# $$ p(\text{before}=y \mid \text{after}=x)
#    = \frac{p_t(y)\,\cdot\,\Delta\,/\,V}{p_t(x)} + O(\Delta^2)
#    = \Delta\cdot\frac1V\cdot\frac{p_t(y)}{p_t(x)} + O(\Delta^2). $$
#
# Here $O(\Delta^2)$ collects two jumps within one drop, and the small change of $p_t(x)$ during it: in our
# example, terms of the order of a millionth.
#
# **The rates backward are the rates forward times a ratio of probabilities.** Whoever knows
#
# $$ s(x)_y = \frac{p_t(y)}{p_t(x)} $$
#
# for all $y$ that are one jump from $x$ can undo the noise. This ratio is called the *score* (or
# *concrete score*). And the $1/V$ will stay with us: it is the rate of one jump, and so the weight of
# each ratio in everything below.

# %% [markdown]
# ## Why ratios, and not probabilities
#
# A text of $L$ characters is one of $V^L$. To give each a probability, a network must make $V^L$
# numbers sum to 1. It can produce any positive $f(x)$ easily, but $p(x) = f(x)/\sum_z f(z)$ needs a
# sum that nobody can compute. (A model that writes from left to right avoids the sum, with one distribution per character in
# turn. Ours has no order to write in.) In a ratio it cancels: $p(y)/p(x) = f(y)/f(x)$.
#
# And we need few of them. Each position jumps on its own, so two jumps in one short moment have a
# probability of order $\Delta^2$: we may forget them. The neighbors of a text $x_t$ are the texts that
# differ from it in one position: $L$ positions times $V - 1$ characters. With $f$, each would
# cost a run of the network. Ours answers for all of them in one run, with a table of shape $(L, V)$, where entry $(i, y)$ stands for
#
# $$ s(x_t)^i_y = \frac{p_t(x_t \text{ with character } i \text{ replaced by } y)}{p_t(x_t)}. $$
#
# At $y = x_t^i$ nothing is replaced: the ratio is 1. We store logarithms (`log_score`), because the
# ratios run from a millionth to a million, and because $e^{\dots}$ keeps them positive. (The last two
# rows belong to the next section.)
#
# | symbol | name in code | shape | meaning |
# |---|---|---|---|
# | $V$ | `vocab_size` | int | number of characters |
# | $x_0,\ x_t$ | `x_0`, `x_t` | (B, L) | clean and noised text |
# | $\bar\sigma$ | `sigma_bar` | (B,) | total noise so far |
# | $\sigma$ | `sigma` | (B,) | noise per unit of time $t$ |
# | $\log s_y$ | `log_score` | (B, L, V) | what the network says |
# | $\log a_y$ | `log_ratio` | (B, L, V) | what it is told, given $x_0$ |
# | $\kappa$ | `kappa` | (B,) | $1+\kappa$: odds of the clean character against any other one |

# %% [markdown]
# ## The ratio when we know the clean text
#
# In training we do know $x_0$: we made $x_t$ from it. Given $x_0$ the characters are independent,
# and [chapter 4](04_forward.ipynb) has the probability of each:
# $p(y \mid x_0) = e^{-\bar\sigma}[y = x_0] + (1-e^{-\bar\sigma})/V$, where $[\dots]$ is 1 if true
# and 0 if not. Divide by $(1-e^{-\bar\sigma})/V$, the chance to land on one given *other* letter:
#
# $$ \frac{p(y \mid x_0)}{(1-e^{-\bar\sigma})/V} = 1 + \kappa\,[y = x_0],
#    \qquad \kappa = \frac{V e^{-\bar\sigma}}{1-e^{-\bar\sigma}} = \frac{V}{e^{\bar\sigma}-1}. $$
#
# So the clean letter is $1+\kappa$ times as likely as any *one* other letter, and in this one number is
# all that the noise level does. For `a b c` at $\bar\sigma = 1$, $1+\kappa = 1 + 3/(e-1) = 2.75$. With $V = 106$, $\kappa$ is about a million at $\bar\sigma = 10^{-4}$ (the letter
# has almost surely not moved) and $2\cdot10^{-7}$ at $\bar\sigma = 20$ (nobody can tell).

# %% tags=["export"]
import torch
from torch import Tensor

from ddlm_core.noise import as_float_tensor


def kappa(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""$\kappa = V/(e^{\bar\sigma} - 1)$: the clean token is $1 + \kappa$ times as likely as any other.

    Of the shape and dtype of the noise, which is above 0; a plain number counts as float64.
    """
    return vocab_size / torch.expm1(as_float_tensor(sigma_bar))


# %% [markdown]
# The ratio given $x_0$, position by position, is then
#
# $$ a_y = \frac{p(y \mid x_0)}{p(x_t \mid x_0)} = \frac{1+\kappa\,[y = x_0]}{1+\kappa\,[x_t = x_0]}. $$
#
# It takes only three values: $1$, $1+\kappa$ and $1/(1+\kappa)$. In logarithms that is a single
# product, $\log a_y = \log(1+\kappa)\,\big([y = x_0] - [x_t = x_0]\big)$.

# %% tags=["export"]
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column


def log_ratio(sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor, vocab_size: int) -> Tensor:
    r"""Log of the true ratio $a_y = p(y \mid x_0)/p(x_t \mid x_0)$ for every token y: (B, L, V).

    Exactly 0 at y = x_t. The noise, above 0, is a scalar or (B,) and sets the dtype; the tokens are
    int64 (B, L). (SEDD, Lou, Meng & Ermon 2024: the target of denoising score entropy.)
    """
    log_stay = torch.log1p(kappa(noise_column(sigma_bar, x_t), vocab_size))[..., None]  # (B, 1, 1)
    unmoved = (x_t == x_0).long()[..., None]  # (B, L, 1)
    return log_stay * (one_hot(x_0, vocab_size) - unmoved)


# %% [markdown]
# ## From $a$ to $s$: average over what we cannot see
#
# The network sees $x_t$, not $x_0$. Many clean texts could have become this $x_t$, each with its
# own $a_y$. What is the right answer for all of them together? Their average, weighted by how
# likely each clean text is. In a text of many letters, write $y$ also for the whole text $x_t$ with the
# letter $y$ put in at our position. (Then $a_y$ is still $p(y \mid x_0)/p(x_t \mid x_0)$: both are products
# over positions, and the factors of all other positions cancel.) With Bayes' rule
# $p(x_0 \mid x_t) = p_0(x_0)\,p(x_t \mid x_0)/p_t(x_t)$:
#
# $$ \mathbb E\big[a_y \mid x_t\big]
#  = \sum_{x_0} \frac{p_0(x_0)\,p(x_t \mid x_0)}{p_t(x_t)}\cdot\frac{p(y \mid x_0)}{p(x_t \mid x_0)}
#  = \frac{\sum_{x_0} p_0(x_0)\,p(y \mid x_0)}{p_t(x_t)} = \frac{p_t(y)}{p_t(x_t)} = s_y. $$
#
# The factor $p(x_t \mid x_0)$ cancels, and the score remains. In our alphabet, for `b`:

# %%
posterior = p_0 * kernel[:, 1] / p_t[1]  # p(x_0 | x_t = b)
a = kernel / kernel[:, 1:2]  # row x_0: its ratios a_y
posterior @ a, p_t / p_t[1]

# %% [markdown]
# So we need a loss $\ell(s, a)$ whose average over noisy targets $a$ is smallest when $s$ is the
# *mean* of $a$. The square $(s-a)^2$ is one such loss. It is not the best one, as we shall see.
#
# ## Score entropy
#
# We see a `b`, and this time we know the clean letter: it was `a`. Going backward through one drop,
# the jump to letter $y$ has probability $\Delta\,a_y/V$. (This is the calculation at the top of the
# chapter, with $p(\cdot \mid x_0)$ in place of $p_t$.) A model that does not know $x_0$ says
# $\Delta\,s_y/V$. How wrong is it? The usual yardstick between a true distribution $P$ and a model's
# $P'$ is the KL divergence, $KL(P\,\|\,P') = \sum P\log (P/P')$: the nats wasted by believing $P'$. By
# hand, for a model that says $s = 1$ to everything:

# %%
truth = kernel[0] * transition_matrix(drop, 3)[:, 1]
truth = truth / truth.sum()  # before the drop, given b after it and x_0 = a
model = torch.tensor([drop / 3, 1 - 2 * drop / 3, drop / 3], dtype=torch.float64)
(truth * (truth / model).log()).sum().item() / drop  # nats per unit of noise

# %% [markdown]
# Now in general. There are two kinds of outcomes.
#
# * A jump to $y$ gives $\Delta\frac{a_y}{V}\log\frac{a_y}{s_y}$.
# * "No jump" has what is left. Let $R_a = \frac1V\sum_{y\ne x_t} a_y$ and $R_s = \frac1V\sum_{y\ne x_t} s_y$
#   be the rates of jumping at all. With $\log(1-\Delta R) = -\Delta R + O(\Delta^2)$ it gives
#   $(1-\Delta R_a)\log\frac{1-\Delta R_a}{1-\Delta R_s} = \Delta\,(R_s - R_a) + O(\Delta^2)$.
#
# Divide by $\Delta$ and let the drop vanish. Per unit of noise, the model wastes
#
# $$ \ell = \frac1V\sum_{y\ne x_t}\Big(a_y\log\frac{a_y}{s_y} + s_y - a_y\Big)
#         = \frac1V\sum_{y\ne x_t}\Big(s_y - a_y\log s_y + a_y(\log a_y - 1)\Big). $$
#
# This is the *score entropy* of [Lou, Meng & Ermon (2024)](https://arxiv.org/abs/2310.16834), in
# its denoising form (the target is $a$, which we know, and not the marginal ratio, which we do
# not). The $1/V$ is now explained: **it is the rate of each jump**. (*Departure:* the paper allows
# any weights; public code often averages over $V-1$ terms instead. Only the rates make the loss a
# KL divergence.) The two terms of our example:

# %%
by_hand = 0.0
for y in (0, 2):  # every letter but x_t = b
    a_y, s_y = (kernel[0, y] / kernel[0, 1]).item(), 1.0
    by_hand += (s_y - a_y * math.log(s_y) + a_y * (math.log(a_y) - 1)) / 3
by_hand

# %% [markdown]
# The same, up to the size of the drop. And the minimum is where we want it:
# $\partial\ell/\partial s_y = \frac1V(1 - a_y/s_y)$ is zero at $s_y = a_y$ only. If $a_y$ varies from one
# clean text to another, the average slope $\frac1V(1-\mathbb E[a_y]/s_y)$ is zero at
# $s_y = \mathbb E[a_y]$: the mean, as required.
#
# ## The landscape
#
# Left, one term of the sum, $s - a\log s + a(\log a - 1)$, against $s$, for the true ratios 0.3, 1 and
# 5. Each curve touches zero at its own $a$, marked by a dot, and nowhere else. To the left each rises
# like $-a\log s$ without end: never say "impossible" to something that happens. To the right it
# rises like $s$: inventing a jump costs, but in proportion.
#
# Right, our alphabet, seen from a `b`. The two things that the network must say are the ratios
# $s_a$ and $s_c$. For each clean letter the loss has its own lowest point, at its own $a$ (crosses, named).
# The *average* loss, weighted by how likely each clean letter is, is a valley between them: each line
# joins points of equal height. Its one lowest point, the dot, is the score $p_t(y)/p_t(b)$. The height
# there is not 0: no answer is right for all three.

# %% tags=["hide-input"]
# alt: Left: three valleys, each touching zero at its true ratio 0.3, 1 or 5, steep to the left and
#  gentle to the right. Right: contour lines over the two ratios, three crosses for the clean letters
#  a, b and c, and between them one dot, the lowest point: the score.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
fig, (left, right) = plt.subplots(1, 2)
s = torch.logspace(-12, math.log10(8), 2000)
for a_y, dash in ((0.3, "-"), (1.0, "--"), (5.0, "-.")):
    line = left.plot(s, s - a_y * s.log() + a_y * (math.log(a_y) - 1), dash, label=f"$a$ = {a_y:g}")
    left.plot(a_y, 0, "o", color=line[0].get_color())
left.set(xlabel="predicted ratio $s$", ylabel="loss of one term (nats)", ylim=(-0.3, 6))
left.legend()

s = torch.logspace(-0.9, 0.7, 200, dtype=torch.float64)
s_a, s_c = s[None, :], s[:, None]
height = 0.0
for likely, (a_a, _, a_c) in zip(posterior, a, strict=True):
    terms = [x - r * x.log() + r * (r.log() - 1) for x, r in ((s_a, a_a), (s_c, a_c))]
    height = height + likely * sum(terms) / 3
heights = height.min() + torch.tensor([0.01, 0.04, 0.1, 0.2, 0.4])
right.contour(s, s, height, levels=heights, colors="0.5", linewidths=1.2)
for name, (a_a, _, a_c) in zip("abc", a, strict=True):
    right.plot(a_a, a_c, "x", color="C1")
    right.annotate(f"  {name}", (a_a, a_c), color="C1")
score_a, score_c = (p_t / p_t[1])[[0, 2]]
right.plot(score_a, score_c, "o", color="C0")
right.annotate("  score", (score_a, score_c), color="C0", va="center")
ticks = {"ticks": [0.2, 0.5, 1, 2, 4], "labels": ["0.2", "0.5", "1", "2", "4"]}
right.set(xscale="log", yscale="log", xlabel="$s_a$", ylabel="$s_c$")
right.set_xticks(**ticks), right.set_yticks(**ticks), right.minorticks_off()
plt.show()

# %% [markdown]
# ## One step before coding: no cancellation
#
# Near the truth the three terms nearly cancel. At $\bar\sigma = 10^{-4}$ they can be one to fifteen million, and
# `float32` carries seven digits: the sum would be noise. Put $d_y = \log s_y - \log a_y$, the error of
# the logarithm, so that $s_y = a_y e^{d_y}$ and $\log s_y = \log a_y + d_y$. Then the logarithms of $a$
# cancel on paper, $a_ye^{d_y} - a_y(\log a_y + d_y) + a_y\log a_y - a_y$, and what remains is
#
# $$ \ell = \frac1V\sum_{y\ne x_t} a_y\,\big(e^{d_y} - 1 - d_y\big). $$
#
# Since $e^d \ge 1 + d$, with equality at 0 only, $\ell \ge 0$ is plain to see. (*Departure:* the
# paper's code has the three-term form.) `expm1(d)` is $e^d - 1$ without cancellation. Two remarks
# on the code:
#
# * All $y$ other than $x_0$ and $x_t$ share one $a_y$, so no table of ratios is built. Setting
#   $d = 0$ takes an entry out of the sum, because $e^0 - 1 - 0 = 0$.
# * The one entry $y = x_0$ can have $a_y \approx 10^6$. In `float32` we measured four
#   times the error that the check below allows. So this entry alone, one per
#   position, is computed in `float64`.
#
# We had planned a Taylor series for tiny $d$. Measuring said no: in eighty million random `float32`
# values `expm1(d) - d` was never negative, and its error stayed below 2 % of what the check allows.


# %% tags=["export"]
def score_entropy_loss(
    log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\ell = \tfrac1V \sum_{y \ne x_t} a_y (e^{d_y} - 1 - d_y)$ with $d_y = \log s_y - \log a_y$
    (SEDD, Lou, Meng & Ermon 2024, equation 7, weighted by our rates $1/V$): nats per unit of noise, at
    least in float32. For log-scores (B, L, V), noise above 0, a scalar or (B,), and tokens int64
    (B, L); shapes that do not fit raise a ValueError.
    """
    *shape, vocab_size = log_score.shape
    if not x_t.shape == x_0.shape == torch.Size(shape):
        shapes = [tuple(x.shape) for x in (log_score, x_t, x_0)]
        raise ValueError(f"log_score, x_t and x_0 do not fit together: {shapes}")
    # a_{x_0} can be 10^6, so its few terms are computed in float64 (which Apple's GPUs lack)
    wide = torch.float32 if log_score.device.type == "mps" else torch.float64
    stay = 1 + kappa(noise_column(sigma_bar, x_t).to(wide), vocab_size)  # (B, 1): 1 + κ
    moved = x_t != x_0  # (B, L)

    # every y but x_0 and x_t has the same ratio: 1 where the token moved, 1/(1+κ) where not
    log_a = torch.where(moved, 0.0, -stay.log())  # (B, L)
    dtype = torch.promote_types(log_score.dtype, torch.float32)
    d = log_score - log_a.to(dtype)[..., None]  # (B, L, V)
    d = d.scatter_(-1, torch.stack([x_t, x_0], dim=-1), 0.0)  # d = 0 adds nothing to the sum
    others = log_a.exp() * (torch.expm1(d) - d).sum(-1)

    # y = x_0 has the ratio 1 + κ, if the token moved (if not, x_0 is x_t and not in the sum)
    log_s = log_score.gather(-1, x_0[..., None])[..., 0]  # (B, L)
    d = torch.where(moved, log_s - stay.log(), 0.0)
    clean = stay * (torch.expm1(d) - d)
    return ((others + clean) / vocab_size).to(dtype)


# %% [markdown]
# The number from above, by the function:

# %%
one = torch.ones(1, dtype=torch.float64)
score_entropy_loss(torch.zeros(1, 1, 3).double(), one, torch.tensor([[1]]), torch.tensor([[0]]))

# %% [markdown]
# ## The check: a sum that cannot be wrong
#
# The oracle is the definition, term by term, with the kernel's own probabilities and forty digits
# ([mpmath](https://mpmath.org)). It shares no formula with our code: no $\kappa$, no $d$. The
# scores are the truth plus errors of every size, moved and unmoved characters, noise from $10^{-4}$
# to 20. (`worst_error`, folded below, makes them, and returns the largest error in units of the tolerance.)


# %% tags=["test"]
import mpmath


def oracle(log_score: list[float], sigma_bar: float, x_t: int, x_0: int) -> float:
    """The sum over y of one position, from the definition, with 40 digits."""
    with mpmath.workdps(40):
        vocab_size, decay = len(log_score), mpmath.exp(-mpmath.mpf(sigma_bar))
        p = [(1 - decay) / vocab_size + (decay if y == x_0 else 0) for y in range(vocab_size)]
        total = mpmath.mpf(0)
        for y in (y for y in range(vocab_size) if y != x_t):
            a, log_s = p[y] / p[x_t], mpmath.mpf(log_score[y])
            total += mpmath.exp(log_s) - a * log_s + a * (mpmath.log(a) - 1)
        return float(total / vocab_size)


# %% tags=["test", "hide-input"]
def worst_error(loss, vocab_size: int, dtype: torch.dtype) -> float:
    """Largest error of a loss against the oracle, in units of the tolerance."""
    g = torch.Generator().manual_seed(vocab_size)
    relative, absolute = (1e-9, 1e-9) if dtype == torch.float64 else (1e-4, 1e-7)
    sigma_bar = torch.tensor([1e-4, 1e-2, 0.3, 1.0, 3.0, 20.0], dtype=dtype)
    x_0 = torch.randint(vocab_size, (6, 4), generator=g)
    x_t = x_0.clone()
    x_t[:, :2] = (x_0[:, :2] + torch.randint(1, vocab_size, (6, 2), generator=g)) % vocab_size
    truth = log_ratio(sigma_bar.double(), x_t, x_0, vocab_size)
    worst = 0.0
    for scale in (0.0, 1e-4, 1e-2, 0.3, 6.0):
        wrong = torch.randn(truth.shape, generator=g, dtype=torch.float64)
        log_score = (truth + scale * wrong).to(dtype)
        found = loss(log_score, sigma_bar, x_t, x_0)
        for b, i in [(b, i) for b in range(6) for i in range(4)]:
            numbers = sigma_bar[b].item(), x_t[b, i].item(), x_0[b, i].item()
            exact = oracle(log_score[b, i].tolist(), *numbers)
            error = abs(found[b, i].item() - exact)
            worst = max(worst, error / (relative * exact + absolute))
    return worst


# %% tags=["test"]
def test_loss_equals_the_sum():
    for vocab_size in (2, 3, 27, 106):
        for dtype in (torch.float64, torch.float32):
            assert worst_error(score_entropy_loss, vocab_size, dtype) < 1


test_loss_equals_the_sum()

# %% [markdown]
# More promises are kept in `tests/unit/test_loss.py`. The loss is never negative, whatever the network says
# ([hypothesis](https://hypothesis.works) invents the inputs, and tries to break it). It is 0 with a zero gradient exactly
# at the truth. And a network that says something absurd gets a large loss, or an infinite one, but never `nan`.

# %% [markdown]
# ## A slip that traveled
#
# The loss of the paper, and its authors' code, are right. But the public re-implementations that we read,
# tutorials among them (we leave them unnamed, on purpose), carry the same slip of algebra. They average over $V-1$ letters
# instead of weighting with $1/V$, which by itself only scales the loss.
#
# The slip sits in the moved case ($x_t \ne x_0$), in the middle term $\sum_{y\ne x_t} a_y\log s_y$. There
# $a_{x_0} = 1+\kappa$, and the other $V-2$ ratios are 1. Done right, as an average over $V-1$ letters, it is
#
# $$ \frac{1}{V-1}\Big((1+\kappa)\log s_{x_0} + \sum_{y\,\ne\,x_t,\,x_0}\log s_y\Big). $$
#
# The slip scales the sum by $(V-2)/(V-1)$ *once more*, as if it still had to become an average, and does
# not leave out $x_0$, which has its own part already. In the code, `positive` is the part
# $\sum s_y$ of the loss, `middle` the part $\sum a_y\log s_y$, `constant` the part $\sum a_y(\log a_y - 1)$:


# %% tags=["test"]
def slipped_loss(log_score, sigma_bar, x_t, x_0):
    """Score entropy as several tutorials have it: wrong where x_t differs from x_0."""
    vocab_size = log_score.shape[-1]
    stay = 1 + kappa(sigma_bar, vocab_size)[..., None]  # the ratio at x_0, if it moved
    at_x_t, at_x_0 = (log_score.gather(-1, x[..., None])[..., 0] for x in (x_t, x_0))
    positive = (log_score.exp().sum(-1) - at_x_t.exp()) / (vocab_size - 1)
    middle = (log_score.sum(-1) - at_x_t) / (vocab_size - 1)
    middle_moved = stay * at_x_0 / (vocab_size - 1) + middle * (vocab_size - 2) / (vocab_size - 1)
    constant = (-stay.log() - 1) / stay
    constant_moved = (stay * (stay.log() - 1) - (vocab_size - 2)) / (vocab_size - 1)
    unmoved = positive - middle / stay + constant
    return torch.where(x_t == x_0, unmoved, positive - middle_moved + constant_moved)


# %% [markdown]
# It looks like a loss, and training with it goes down. Collect what stands at $y = x_0$, times $V-1$:
# $s - \big(1+\kappa+\tfrac{V-2}{V-1}\big)\log s$. Its slope $1 - \big(1+\kappa+\tfrac{V-2}{V-1}\big)/s$ is
# zero at $s = 1+\kappa+\tfrac{V-2}{V-1}$, almost 1 too large. That matters little while $\kappa$ is large,
# and more at high noise, where a text gets its first shape. (The surplus is there just when $x_0 = y$. Averaged over what $x_0$
# may have been, it is about $p(x_0 = y\mid x_t)$.)
#
# The figure shows both losses against $s_{x_0}$ at $\bar\sigma = 5$, $V = 106$, all other ratios at the
# truth. The exact loss touches zero at the true ratio, 1.72 (dotted vertical line). The slipped one
# (dashed) is lowest at 2.71, and *negative* at the truth. In the code that we read it is then clamped
# at 0, and learns nothing at all near the truth. A loss that needs a clamp is asking for help.

# %% tags=["hide-input"]
# alt: Two valleys over the predicted ratio. The exact loss touches zero at the true ratio 1.72. The
#  slipped loss, dashed, is below zero there and lowest at 2.71.
vocab_size, noise_level = 106, torch.tensor([5.0], dtype=torch.float64)
x_t, x_0 = torch.tensor([[0]]), torch.tensor([[1]])
truth = log_ratio(noise_level, x_t, x_0, vocab_size)
s = torch.linspace(0.5, 5, 400, dtype=torch.float64)
curve = truth.repeat(400, 1, 1)
curve[:, 0, 1] = s.log()
pairs = x_t.repeat(400, 1), x_0.repeat(400, 1)
for name, loss in (("exact", score_entropy_loss), ("slipped", slipped_loss)):
    values = loss(curve, noise_level[0], *pairs)[:, 0]
    (line,) = plt.plot(s, values, label=name, linestyle="-" if name == "exact" else "--")
    plt.plot(s[values.argmin()], values.min(), "o", color=line.get_color())
plt.axvline(truth[0, 0, 1].exp(), color="0.5", linestyle=":", label="true ratio")
plt.xlabel("predicted ratio $s_{x_0}$")
plt.ylabel("loss (nats per unit of noise)")
plt.legend()
plt.show()

# %% [markdown]
# How would you have found it? Hardly by reading: each line looks reasonable. The brute-force sum finds it at once. The
# test below feeds the slipped loss, with our weight, to the *same* check as ours. Note its first
# assertion: with two letters the factor $V-2$ is 0, there is no third letter to get wrong, and nothing shows. Small
# examples are good; a single small example is a trap.


# %% tags=["test"]
def test_the_slip_is_caught():
    def only_the_slip(log_score, *noise_and_texts):  # with our weight 1/V
        weight = (log_score.shape[-1] - 1) / log_score.shape[-1]
        return weight * slipped_loss(log_score, *noise_and_texts)

    assert worst_error(only_the_slip, 2, torch.float64) < 1  # nothing to see with two letters!
    for vocab_size in (3, 27, 106):
        assert worst_error(only_the_slip, vocab_size, torch.float64) > 1e6


test_the_slip_is_caught()

# %% [markdown]
# How far off is its minimizer when $x_0$ is known? At the ratios from above, the slope of the slipped loss is 0. At
# $\bar\sigma = 1$, 3 and 5, its $s_{x_0}$ is 2, 15 and 58 percent too large, and all other ratios are 1 % too small:

# %%
x_t, x_0 = torch.tensor([[0]]), torch.tensor([[1]])
for level, percent in ((1.0, 2), (3.0, 15), (5.0, 58)):
    sigma_bar = torch.tensor([level], dtype=torch.float64)
    truth = log_ratio(sigma_bar, x_t, x_0, 106)
    s = truth.exp()
    s[..., 1] += 104 / 105
    s[..., 2:] *= 104 / 105
    log_score = s.log().requires_grad_()
    (slope,) = torch.autograd.grad(slipped_loss(log_score, sigma_bar, x_t, x_0).sum(), log_score)
    assert slope.abs().max() < 1e-12 and slipped_loss(truth, sigma_bar, x_t, x_0) < 0
    too_large = (s[0, 0, 1] / truth[0, 0, 1].exp() - 1).item()
    assert round(100 * too_large) == percent
    print(f"noise {level:g}: {too_large:.1%} too large")

# %% [markdown]
# The lesson is not "be careful". It is: **keep a slow version that cannot be wrong next to the fast
# one**, and compare them where it hurts.

# %% [markdown]
# ## A world small enough to enumerate
#
# For the rest of the chapter we need data whose distribution we know completely. Here are texts of
# three letters from `a e n t`: $4^3 = 64$ texts, of which only seven, all words, ever occur.
#
# `World` lists all $N = V^L$ texts and answers by counting. It is in `ddlm_core/support/worlds.py`, for other chapters and tests
# use it too, and it knows no formula of this chapter; its code is folded below. It numbers the texts like a mileage counter
# in base $V$: text number $n$ has the digits `n // place % V`. So replacing letter $i$ by $y$ adds
# $(y - \text{old digit})\cdot\text{place}_i$ to the number, and the table `swapped` holds the number of
# every neighbor of every text. `joint` is $p_0(x_0)\,p(x_t \mid x_0)$ for all pairs; its column sums are
# $p_t$. `log_score` looks up $\log p_t$ at the neighbor, minus $\log p_t$ at the text itself. `log_q` is
# for the next section. (All take a row of noise levels; S is their number.) Called with `(x_t, sigma_bar)`, a `World` can stand in for a network: a model
# that is never wrong.


# %% tags=["hide-output"]
import inspect

from ddlm_core.support.worlds import World, noise_nodes, small_worlds

print(inspect.getsource(World))

# %%
WORDS = {"ant": 5, "ate": 4, "eat": 6, "net": 3, "tan": 1, "tea": 4, "ten": 7}
counts = torch.zeros(64, dtype=torch.float64)
for word, count in WORDS.items():
    counts[sum("aent".index(c) * 4**k for k, c in enumerate(reversed(word)))] = count
words = World(counts / counts.sum(), vocab_size=4, length=3)
entropy = words.entropy()
print(f"entropy {entropy:.4f} nats a text; all 64 texts alike: {math.log(64):.4f}")

# %% [markdown]
# ## From a denoiser to a score, in one line
#
# What should the network output? The paper lets it output $\log s$ itself. *Departure:* our network
# answers an easier question, "which character stood here?", and Bayes' rule turns the answer into a
# score.
#
# Fix a position. Let $q_y$ be the probability that the clean character there is $y$, given all
# *other* characters of $x_t$. By hand: from the other letters we believe $q = (0.7, 0.2, 0.1)$ for
# `a b c`, the noise is 1, so $1+\kappa = 2.75$, and we see a `b`. How likely would an `a` have been in its
# place? A clean `a` shows as `a` 2.75 times as often as a clean `b` or `c` does: in some unit,
# $0.7\cdot 2.75 + 0.2 + 0.1 = 1 + 0.7\,\kappa = 2.22$. For the `b` it is $1 + 0.2\,\kappa = 1.35$. The score
# is $2.22/1.35 = 1.65$.
#
# In general, sum over the clean character $z$. The noise treats each position on its own, and
# $p(y \mid z) = \frac{1-e^{-\bar\sigma}}{V}\,(1+\kappa\,[y = z])$ from above. So
#
# $$ p_t(\dots y \dots) = p_t(\text{others})\,\sum_z q_z\, p(y \mid z)
#    = p_t(\text{others})\;\frac{1-e^{-\bar\sigma}}{V}\;(1 + \kappa q_y), $$
#
# because the $q_z$ sum to 1. The factors in front are the same for all $y$. They cancel in the ratio:
#
# $$ s_y = \frac{1+\kappa q_y}{1+\kappa q_{x_t}}. $$
#
# If $q$ is certain, this is exactly $a_y$. If $q$ is uniform, it is 1 everywhere: a calm start for
# training. No score can be negative, or larger than $1+\kappa$. (That $q$ does not depend on the letter at its own position is
# more than a wish: the network of [chapter 6](06_model.ipynb) is built so that it cannot hear it. The small network that we train
# on this page does hear it, and has to learn not to listen.)


# %% tags=["export"]
def denoiser_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From a distribution over the clean token to log-scores: (B, L, V), exactly 0 at y = x_t.

    $s_y = (1 + \kappa q_y)/(1 + \kappa q_{x_t})$, with $q$ as it is before the evidence of $x_t$ at
    its own position; noise above 0, a scalar or (B,). (SEDD's network gives $\log s$ itself.)
    """
    scale = kappa(noise_column(sigma_bar, log_q), log_q.shape[-1])  # (B, 1, 1)
    log_s = torch.log1p(scale * log_q.exp())
    return log_s - log_s.gather(-1, x_t[..., None])


# %% [markdown]
# The same $q$ gives the distribution over the clean character *after* looking at position $i$ as
# well. The evidence of seeing $x_t$ there is $p(x_t \mid y) \propto 1+\kappa[y = x_t]$, so
#
# $$ p(x_0 = y \mid x_t) \;\propto\; q_y\,(1+\kappa\,[y = x_t]). $$


# %% tags=["export"]
def log_posterior(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q_y\,(1 + \kappa[y = x_t])$, normalized (Bayes' rule).

    $q$ is as it is before the evidence of $x_t$; noise above 0, a scalar or (B,).
    """
    log_stay = torch.log1p(kappa(noise_column(sigma_bar, log_q), log_q.shape[-1]))  # (B, 1, 1)
    evidence = log_stay.expand(*x_t.shape, 1).to(log_q.dtype)
    return log_q.scatter_add(-1, x_t[..., None], evidence).log_softmax(-1)


# %% [markdown]
# On enumerated worlds both can be compared with plain counting: the joint table of $(x_0, x_t)$, summed
# and divided. (`log_q` takes the evidence at position $i$ out again, by dividing through the kernel of
# that one letter.) We take three worlds with random probabilities, and four noise levels. The test of the score stands
# here. Those of the posterior, of certain and of uniform $q$, and of the average of $a_y$ are in `tests/unit/test_loss.py`.


# %% tags=["test"]
from ddlm_core.support.worlds import small_worlds


def test_denoiser_score_is_the_true_score():
    levels = torch.tensor([1e-4, 0.1, 1.0, 5.0], dtype=torch.float64)
    for world in small_worlds():
        truth = zip(levels, world.log_q(levels), world.log_score(levels), strict=True)
        for sigma_bar, log_q, log_s in truth:
            found = denoiser_log_score(log_q, sigma_bar, world.texts)
            assert torch.allclose(found, log_s, rtol=1e-9, atol=1e-9)


test_denoiser_score_is_the_true_score()

# %% [markdown]
# ## Why not simply the square?
#
# $(s-a)^2$ is also smallest at the mean of $a$. It is the loss of [concrete score
# matching](https://arxiv.org/abs/2211.00802) (Meng et al. 2022), the ancestor of score entropy. So
# why not use it? Say a network is wrong by a factor $c$, $s = c\,a$. One term costs
#
# $$ \text{score entropy: } a\,(c - 1 - \log c), \qquad\qquad \text{square: } a^2\,(c-1)^2. $$
#
# Twice too much ($c = 2$) costs $0.31\,a$ and $a^2$. Both depend on $a$, and $a$ runs from a millionth to a
# million. Score entropy grows with $a$ itself: the jump happens at the rate $a/V$, and an error about
# it does harm that often. The square grows with $a^2$, so it cares for the largest ratios only. A ratio of
# 0.001 that should be 0.000001 costs it a millionth, and score entropy a thousandth. But jumps that are
# a thousand times too frequent are how a text gets misprints. (And a square has no wall at $s = 0$: without our $e^{\dots}$ it would
# even allow negative rates.)
#
# Let us train both on the seven words: same small network (it sees the letters and the time, and gives
# twelve numbers, one for each letter at each position), same data, same 800 steps. A third run uses score
# entropy with the denoiser: the network gives $q$, and the score follows. Each run has the learning rate
# that served it best out of 0.001, 0.003, 0.01 and 0.03, by the measure that we end with: nats
# wasted. (For score entropy without the denoiser that is 0.03, the edge of the search: a larger one might serve it better still.) (Gradients
# longer than 1 are cut to 1, which helps the square: without the cut, it does three times worse.)


# %%
from ddlm_core.forward import perturb_batch
from ddlm_core.noise import GeometricNoise


def square_loss(log_score, sigma_bar, x_t, x_0):
    a = log_ratio(sigma_bar, x_t, x_0, log_score.shape[-1]).exp()
    return (log_score.exp() - a).square().sum(-1) / log_score.shape[-1]


def train(loss, learning_rate, denoiser=False, clock=None, steps=800):
    noise, g = GeometricNoise(), torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            *(torch.nn.Linear(16, 64), torch.nn.SiLU()),
            *(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 12)),
        )

    def model(x_t, sigma_bar):
        waves = torch.cos(torch.pi * noise.time(sigma_bar)[:, None] * torch.arange(4))
        out = net(torch.cat([one_hot(x_t, 4).flatten(1), waves], 1).float()).view(-1, 3, 4)
        if denoiser:
            return denoiser_log_score(out.log_softmax(-1), sigma_bar, x_t)
        return out - out.gather(-1, x_t[..., None])  # 0 at x_t

    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(steps):
        x_0 = words.texts[torch.multinomial(words.p_0, 256, replacement=True, generator=g)]
        sigma_bar, weight = (clock or noise)(torch.rand(256, generator=g))
        x_t = perturb_batch(x_0, sigma_bar, 4, generator=g)
        value = (weight[:, None] * loss(model(x_t, sigma_bar), sigma_bar, x_t, x_0)).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


learned = {
    "square": train(square_loss, 0.01),
    "score entropy": train(score_entropy_loss, 0.03),
    "score entropy, denoiser": train(score_entropy_loss, 0.01, denoiser=True),
}

# %% [markdown]
# The figure shows one ratio that the network must learn, from the word `ten` to the non-word `tet`,
# against the noise level. The truth (gray) falls with the noise: in almost clean text, `tet` must be
# almost impossible. The square (dashed) stays stuck near 0.1: to it, the difference between 0.1 and
# 0.0001 is next to nothing. Score entropy (solid) ends twenty times lower. With the denoiser
# (dash-dotted) it stays on the truth longest. There the fall is not learned: it is in $\kappa$,
# which we know. It ends where $\kappa$ is so large that the score is $q_y/q_{x_t}$, and the network still
# gives the final `t` a thousandth of its belief.

# %% tags=["hide-input"]
# alt: The ratio of tet to ten over the noise, both axes logarithmic. The gray truth falls to 0.00005
#  toward low noise. The square, dashed, stays near 0.1; score entropy, solid, ends near 0.005; with
#  the denoiser, dash-dotted, it follows the truth longest.
levels = torch.logspace(-4, math.log10(20), 120, dtype=torch.float64)
ten = torch.tensor(["aent".index(c) for c in "ten"])
with torch.no_grad():
    x_t = ten.repeat(120, 1)
    plt.loglog(levels, words(x_t, levels)[:, 2, 3].exp(), color="0.5", linewidth=4, label="truth")
    for (name, model), style in zip(learned.items(), ("--", "-", "-."), strict=True):
        plt.loglog(levels, model(x_t, levels.float())[:, 2, 3].exp(), style, label=name)
plt.xlabel(r"total noise $\bar\sigma$")
plt.ylabel("ratio $p_t$(tet) / $p_t$(ten)")
plt.legend()
plt.show()

# %% [markdown]
# ## What the loss means: a bound on $-\log p$
#
# We found $\ell$ as the error of one drop of noise. Now add up all drops. Cut the noise into small
# steps, from $\bar\sigma_{\max}$ down to $\bar\sigma_{\min}$ ($\sigma_{\max}$ and $\sigma_{\min}$ in chapter 3), and call the texts on the way
# $x_1$ (the noisiest, at $t = 1$), …, $x_{\min}$ (at $t = 0$; the clean $x_0$ lies before it). The model writes a text like this: draw uniform noise;
# walk back step by step with its own jump rates $s/V$; at the end, replace each character by a draw from
# its posterior. The walk has a *path* of texts, and the chance $p_\theta(x_0)$ to end at $x_0$ ($\theta$:
# what the network has learned) is a sum over all paths. No one can do that sum, but a bound is enough.
#
# **Step 1.** Let $P$ be the true distribution of paths, from the data to noise. Multiply and divide
# by it, and use that the log of a mean is at least the mean of the log (Jensen):
#
# $$ \begin{aligned}
# -\log p_\theta(x_0)
#   &= -\log \sum_{\text{path}} P(\text{path} \mid x_0)\,
#      \frac{p_\theta(\text{path}, x_0)}{P(\text{path} \mid x_0)} \\
#   &\le \mathbb E\left[\log \frac{P(\text{path} \mid x_0)}{p_\theta(\text{path}, x_0)}\right],
# \end{aligned} $$
#
# where $\mathbb E$ is the mean over $P(\text{path} \mid x_0)$: over all the ways to make noise from
# this text.
#
# **Step 2.** Write both paths backward in time, one step after the other. Noise has no memory, so
# whoever knows $x_t$ learns nothing about the cleaner texts from anything noisier. Hence, with $x_s$ the
# text one step less noisy than $x_t$,
#
# $$ \begin{aligned}
# P(\text{path} \mid x_0) &= p(x_1 \mid x_0)\;\prod_{\text{steps}} p(x_s \mid x_t, x_0), \\
# p_\theta(\text{path}, x_0) &= \text{uniform}(x_1)\;\prod_{\text{steps}} p_\theta(x_s \mid x_t)\;\;
#   p_\theta(x_0 \mid x_{\min}).
# \end{aligned} $$
#
# The logarithm of the quotient is a sum, and its mean has three kinds of terms:
#
# $$ \begin{aligned}
#  & KL\big(p(x_1 \mid x_0)\,\|\,\text{uniform}\big) && \text{prior: the first draw} \\
#  +\; & \sum_{\text{steps}} \mathbb E\; KL\big(p(x_s \mid x_t, x_0)\,\|\,p_\theta(x_s \mid x_t)\big)
#    && \text{each step: } \Delta\cdot\sum_i\ell_i \\
#  +\; & \mathbb E\big[-\log p_\theta(x_0 \mid x_{\min})\big] && \text{reconstruction: the last draw}
# \end{aligned} $$
#
# The middle line is what this chapter began with. The true step, *given $x_0$*, jumps at the rates
# $a_y/V$, the model's step at the rates $s_y/V$, and the KL of one such step is $\Delta$ times the score
# entropy. With many positions there are more jumps to add up, hence the sum over $i$.
#
# **Step 3.** Let the steps shrink. The $O(\Delta^2)$ that each of some $1/\Delta$ steps neglects add up to
# $O(\Delta)$ and vanish. The sum becomes an integral over the noise, or, with
# $d\bar\sigma = \sigma(t)\,dt$, over time:
#
# $$ \begin{aligned} -\log p_\theta(x_0) \;\le\;{} &\int_0^1 \sigma(t)\;\mathbb E\sum_i \ell_i\,dt
#    \;+\; L\cdot KL\big(p(x_1 \mid x_0)\,\|\,\text{uniform}\big) \\
#    &+\; \mathbb E\Big[\sum_i -\log p_\theta(x_0^i \mid x_{\min})\Big], \end{aligned} $$
#
# with the KL now that of one character. (*Departure:* the paper lets the noise start at 0. Ours
# starts at $\bar\sigma_{\min}$, so the third term is not in the paper.)
#
# **When is it tight?** Average the right side of step 1 over the data. With
# $P(\text{path} \mid x_0) = P(\text{path}, x_0)/p_0(x_0)$ it becomes
#
# $$ \underbrace{\mathbb E\big[-\log p_0(x_0)\big]}_{\text{entropy of the data}}
#    \;+\; KL\big(P(\text{path}, x_0)\,\|\,p_\theta(\text{path}, x_0)\big). $$
#
# The second term is 0 if the model walks back as the truth does. With the true score it does,
# except for two crumbs. It starts from exactly uniform noise, where the truth is only nearly
# uniform after $\bar\sigma = 20$. And it draws the last characters one by one, though they may
# depend on each other. Both crumbs vanish as the limits go to $\infty$ and to 0. Then what remains
# is the entropy of the data, the least that any model can have. **A perfect network does not have
# zero loss.** It does not know $x_0$, and its loss is exactly the price of not knowing.
#
# ## The random estimate
#
# The integral is an average over a uniform $t$, so we draw one $t$ and one $x_t$ for each text of a
# batch of $B$. Independent times would be wasteful: by chance some batches would see more noise than others, and their losses
# would jump about. Draw
# *one* offset $u$ and take $t_b = (u + b/B) \bmod 1$, a comb (as in [Variational Diffusion
# Models](https://arxiv.org/abs/2107.00630)). Each $t_b$ alone is uniform, so the mean stays right;
# together they cover $[0, 1)$ evenly.


# %% tags=["export"]
def low_discrepancy_times(
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Times, float32 (B,): each uniform in [0, 1), together evenly spread (VDM, Kingma et al. 2021)."""
    where = device if generator is None else generator.device
    offset = torch.rand(1, generator=generator, device=where)
    times = (offset + torch.arange(batch_size, device=where) / batch_size) % 1
    return times if device is None else times.to(device)


# %% [markdown]
# When part of a text is given (infilling), it is neither corrupted nor counted. `condition_mask` is true at
# such characters, and losses are averaged over the others. (*Departure:* the paper sums over
# positions. A mean reads as nats per character, whatever the length.)


# %% tags=["export"]
def masked_mean(values: Tensor, condition_mask: Tensor | None = None) -> Tensor:
    """Mean of each row of ``values``, (B, L), where ``condition_mask``, bool (B, L), is false: (B,).

    A row that is given as a whole has the mean 0.
    """
    if condition_mask is None:
        return values.mean(-1)
    free = ~condition_mask
    return values.masked_fill(condition_mask, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


# %% [markdown]
# Two *protocols* say what a model is to the code of this book. To learn and to measure, it must give log-scores when it is
# called. To write, it can also have a method `denoise`, which gives $\log q$. Any object that does this will do.


# %% tags=["export"]
from typing import Any, Protocol

from ddlm_core.forward import perturb_batch
from ddlm_core.noise import GeometricNoise, NoiseSchedule


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


# %% tags=["export"]
def compute_loss(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    t: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    r"""One-sample estimate of the diffusion part of the bound, in nats per character: (B,).

    $\sigma(t)\,\ell$ at one time and one corruption, averaged over positions (SEDD sums over them);
    unbiased for $\tfrac1L\int_0^1\sigma(t)\,\mathbb E \sum_i \ell_i\,dt$ if t, (B,), is uniform.
    ``condition_mask``, bool (B, L), is true where a token of ``x_0``, int64 (B, L), is given: neither
    corrupted nor counted. The model is handed it only if there is one. Other shapes raise a ValueError.
    """
    vocab_size = vocab_size or model.config.vocab_size
    if t is None:
        t = low_discrepancy_times(len(x_0), generator, x_0.device)
    (sigma_bar, sigma), graph = noise(t), graph_of(model)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, condition_mask, generator, graph.sample_prior)
    given = () if condition_mask is None else (condition_mask,)
    losses = graph.loss(model(x_t, sigma_bar, *given), sigma_bar, x_t, x_0)  # (B, L)
    return sigma * masked_mean(losses, condition_mask)


# %% [markdown]
# Now the two small terms. For the prior, put $\epsilon = e^{-\bar\sigma}$, as in chapter 3. Then $V p$ is
# $1+(V-1)\epsilon$ at $x_0$ and $1-\epsilon$ at each other character, and $KL = \sum_y p_y\log(V p_y)$.


# %% tags=["export"]
def prior_kl(sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
    r"""$KL(p(x_1 \mid x_0) \,\|\, \text{uniform})$ in nats per character, of the shape of ``sigma_bar_1``.

    For the total noise at t = 1, at least 0; the prior term of the bound (SEDD, theorem 3.6).
    """
    kept = torch.exp(-as_float_tensor(sigma_bar_1))
    excess = torch.stack([(vocab_size - 1) * kept, -kept])  # p V - 1: at x_0, at any other token
    terms = torch.special.xlog1py(1 + excess, excess) / vocab_size  # p log(p V)
    return (terms[0] + (vocab_size - 1) * terms[1]).clamp(min=0)


# %% [markdown]
# All of this is about one *forward process*, uniform noise. `compute_loss` asks for its parts by way of an object
# that has them all. SEDD calls it the *graph*, for it says which token may turn into which. A model may bring another:
# [appendix A](A_absorbing.ipynb) builds one, and trains it with the code of this book as it stands. So first
# the questions, as methods without answers:


# %% tags=["export"]
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar


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
    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        r"""$p(x_s = y)$ at noise ``sigma_bar``, (B, L, V), if $q$ has drawn the clean token."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        r"""$p(x_t \mid x_s = y)$ after more noise, (B, L, V), up to a factor for each position."""


# %% [markdown]
# And the answers of uniform noise. Most are the functions of this chapter and the last. The two at the end are for
# the step back of [chapter 7](07_sampler.ipynb), which multiplies them: how likely a character $y$ was at an earlier noise, and
# how likely it then became what we see.


# %% tags=["export"]
from ddlm_core.forward import sample_prior, transition


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

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        noise = noise_column(sigma_bar, log_q)  # (B, 1, 1)
        return torch.exp(-noise) * log_q.exp() - torch.expm1(-noise) / log_q.shape[-1]

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return transition(x_t, delta_sigma, vocab_size)  # the kernel is symmetric


UNIFORM = UniformGraph()


def graph_of(model: ScoreModel) -> Graph:
    """The forward process of a model: its ``graph``, and the uniform one if it has none."""
    return getattr(model, "graph", UNIFORM)


# %% [markdown]
# The reconstruction is the posterior from above, read at the true character. (*Departure:* it needs
# a network with a method `denoise(x_t, sigma_bar)` that gives $\log q$; free scores need not belong to any $q$.) The package needs no
# function for it, because the last step of the sampler of [chapter 7](07_sampler.ipynb) asks the same question.

# %% [markdown]
# Are these estimates right on average? The right averages come from an enumerated world: all pairs
# $(x_0, x_t)$, weighted by their probabilities (`World.expected_loss`). The integral over the noise becomes a weighted sum over
# well-chosen levels (`noise_nodes`: Gauss–Legendre quadrature, in $\log\bar\sigma$; for smooth curves it gains digits with
# every point). The random estimates must meet these within four standard errors, and count free characters only:
# `tests/unit/test_loss.py` sees to it.

# %% tags=["test", "hide-input"]
from ddlm_core.support.worlds import World, noise_nodes


def exact_area(world: World, sigma_min: float, sigma_max: float) -> float:
    """The integral of the expected loss of the true score over the noise, in nats a text."""
    levels, weight = noise_nodes(sigma_min, sigma_max)
    loss = world.expected_loss(score_entropy_loss, world.log_score(levels), levels)
    return (weight * loss).sum().item()


def expected_reconstruction(world: World, sigma_bar: float) -> float:
    """Exact mean of -log p(x_0 | x_t), each letter on its own, in nats a text."""
    noise = torch.tensor([sigma_bar], dtype=torch.float64)
    log_p = log_posterior(world.log_q(noise)[0], noise[0], world.texts)  # (N, L, V)
    letters = one_hot(world.texts, world.vocab_size).bool()
    table = torch.where(letters[:, None], log_p, 0.0).sum((2, 3))  # (x_0, x_t)
    joint = world.joint(noise)[0]
    return -torch.where(joint > 0, joint * table, 0.0).sum().item()


# %% [markdown]
# ## The area under the curve is the entropy
#
# Now the heart of the chapter. Take the seven words, the *true* score, and all $64 \times 64$ pairs
# $(x_0, x_t)$ at each noise level: no sampling anywhere. The figure shows the expected loss, summed
# over the three positions. Its horizontal axis is logarithmic, so the loss is multiplied by
# $\bar\sigma$: then areas are nats, because $\ell\,d\bar\sigma = \bar\sigma\,\ell\;d\log\bar\sigma$. The
# filled area belongs to the true score. The dashed line belongs to a network that knows nothing
# ($s = 1$). Under it lie $\log 64 = 4.16$ nats. (With $s = 1$ the loss depends only on whether a letter has moved, not on
# the text. So it is the same as for uniform texts, whose true score that is, and whose entropy is $\log 64$.) Between the two lies all that there is to learn.

# %% tags=["hide-input"]
# alt: Two hills over the logarithm of the noise. The filled hill of the true score is lower and ends
#  earlier than the dashed hill of a network that knows nothing.
levels, weight = noise_nodes(1e-4, 20.0)
true_loss = words.expected_loss(score_entropy_loss, words.log_score(levels), levels)
blank_loss = words.expected_loss(score_entropy_loss, torch.zeros(100, 64, 3, 4), levels)
plt.fill_between(levels, levels * true_loss, alpha=0.3)
plt.plot(levels, levels * true_loss, label="true score")
plt.plot(levels, levels * blank_loss, "--", label="knows nothing")
plt.xscale("log")
plt.xlabel(r"total noise $\bar\sigma$")
plt.ylabel("nats a text, per e-fold of noise")
plt.legend()
plt.show()

# %%
area = (weight * true_loss).sum().item()
prior, last = 3 * prior_kl(20.0, 4).item(), expected_reconstruction(words, 1e-4)
for name, value in {
    "area under the curve": area,
    "prior": prior,
    "reconstruction": last,
    "sum": area + prior + last,
    "entropy of the data": entropy,
}.items():
    print(f"{name:21} {value:9.6f} nats")

# %% [markdown]
# The sum is the entropy up to 0.00006 nats, and from above, as a bound must be. We had expected far
# less than that, and looked for a bug. There is none: it is the second crumb. Say the last step
# sees `tet`. Was it `ten`, `tea` or `net`? Drawn together, the letters give one of these. Drawn one by
# one, they may give `nen`. With a smaller $\bar\sigma_{\min}$ this cost shrinks in proportion.
#
# There is a version without crumbs. The area *under the true score* between any two noise levels is exactly the
# information about $x_0$ that the noise destroys between them,
#
# $$ \begin{aligned}
# \int_{\bar\sigma_1}^{\bar\sigma_2} \mathbb E\sum_i\ell_i\;d\bar\sigma
#   &= I(x_0; x_{\bar\sigma_1}) - I(x_0; x_{\bar\sigma_2}), \\
# I(x_0; x_t) &= \mathbb E\log\frac{p(x_0, x_t)}{p_0(x_0)\,p_t(x_t)},
# \end{aligned} $$
#
# where $I$ is the mutual information: how many nats $x_t$ tells about $x_0$. (Here, and from here on, $\mathbb E$ averages
# over $x_0$, too.) The reason, for one step
# from $x_s$ to the noisier $x_t$: given $x_s$, the text $x_t$ tells nothing new about $x_0$, so
# $I(x_0; x_s) = I(x_0;\, x_s \text{ and } x_t)$, and this is what $x_t$ tells plus what $x_s$ adds to it,
#
# $$ I(x_0; x_s) - I(x_0; x_t) = \mathbb E\,KL\big(p(x_s \mid x_t, x_0)\,\|\,p(x_s \mid x_t)\big). $$
#
# With the true score, the model's step *is* $p(x_s \mid x_t)$, and the right side is the KL of step 2.
# ([Jeon et al. 2025](https://arxiv.org/abs/2510.24088) study this identity.) It surprised us how well it
# can be checked: a hundred nodes give fifteen digits. The test asks for twelve, and for $10^{-6}$ nats in
# the entropy. (The seven words would fail that. In `small_worlds` every text is possible, a misprint is hardly
# ever certain, and the second crumb is of the order of $\bar\sigma_{\min}^2$.)


# %% tags=["test"]
def test_area_is_the_information_destroyed():
    for world in small_worlds():
        lost = world.information(1e-4) - world.information(20.0)
        assert abs(exact_area(world, 1e-4, 20.0) - lost) < 1e-12


def test_bound_is_the_entropy_of_the_data():
    for world in small_worlds():
        bound = exact_area(world, 1e-4, 20.0) + expected_reconstruction(world, 1e-4)
        bound += world.length * prior_kl(20.0, world.vocab_size).item()
        assert -1e-10 < bound - world.entropy() < 1e-6  # from above: it is a bound


test_area_is_the_information_destroyed()
test_bound_is_the_entropy_of_the_data()

# %% [markdown]
# A loss with a slip fails here as well (put `slipped_loss` into `exact_area` to see it), and this check
# needs no second formula of the loss. And now we can price the square. The area under a network's own curve,
# less the area under the true one, is $KL(P\,\|\,p_\theta)$ for the steps of the path, without its two ends:
# nats per text thrown away.


# %%
@torch.no_grad()
def excess(model):
    scores = torch.stack([model(words.texts, level.expand(64)).double() for level in levels])
    loss = words.expected_loss(score_entropy_loss, scores, levels)
    return (weight * (loss - true_loss)).sum().item()


for name, model in learned.items():
    print(f"{name:23} {excess(model):.3f} nats a text above the truth")

# %% [markdown]
# Same network, same data, same time. The square wastes many times as much, and the denoiser wins
# once more. One seed proves little, so we tried three others: the same order each time.
#
# ## Where to spend the samples
#
# In the last figure the axis, $\log\bar\sigma$, is also the axis of *time*: with geometric noise,
# $\log\bar\sigma$ grows evenly with $t$. So uniform times are uniform along it, and its left third, up to a
# noise of 0.006, gets a third of all samples. What is there to learn?

# %%
noise = GeometricNoise()
third = exact_area(words, 1e-4, noise.sigma_bar(1 / 3).item())
print(f"first third of the time: {third / area:.1%} of the area")

# %% [markdown]
# Almost nothing. In almost clean text hardly a letter is wrong; to train there is to proofread a printed
# book. Geometric noise was first used for images ([Song & Ermon
# 2019](https://arxiv.org/abs/1907.05600)), where each further octave of noise hides a coarser kind of
# detail. A text has no such scales.
#
# But the *area* does not depend on the clock. It is an integral over the noise, and we may walk along the
# noise as we please, if we pay each sample by the ground it covers. Take the fraction of redrawn
# characters as the new variable, $f = 1 - e^{-\bar\sigma}$. Then
# $df = e^{-\bar\sigma}\,d\bar\sigma = (1-f)\,d\bar\sigma$, and if $\ell$, from here on, is the loss of the whole
# text, $\sum_i\ell_i$,
#
# $$ \int \mathbb E\,\ell\; d\bar\sigma = \int \mathbb E\,\ell\;\frac{df}{1-f}. $$
#
# So draw $f$ uniformly between its ends $f_{\min}$ and $f_{\max}$, set $\bar\sigma = -\log(1-f)$, and weigh the
# loss with $(f_{\max}-f_{\min})/(1-f)$ in place of $\sigma(t)$. Now half of the samples have more than
# half of their characters redrawn. (At the noisy end the weight grows like $e^{\bar\sigma}$. That does no harm:
# there the loss of the true score, and of any denoiser, falls like $\kappa^2$, so like $e^{-2\bar\sigma}$. But the code needs doubles, for `float32` cannot
# hold such a $1-f$.) A little more general: with $u$ uniform in $[0, 1]$ and an exponent $p$,
#
# $$ f = f_{\min} + (f_{\max} - f_{\min})\,u^p, \qquad
#    \frac{d\bar\sigma}{du} = \frac{(f_{\max}-f_{\min})\;p\,u^{p-1}}{1-f}. $$
#
# For $p = 1$ that is the line before; a larger $p$ moves samples back toward clean text. By hand, with the ends
# taken as 0 and 1: $u = 0.5$ gives $f = 0.5$ and the weight $1/0.5 = 2$ for $p = 1$; and $f = 0.25$ and the
# weight $2\cdot0.5/0.75 = 1.33$ for $p = 2$. Does the area survive?


# %%
def noise_by_fraction(u: Tensor, power: float, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Noise of the corrupted fraction u^power between two noise levels, and its weight dσ/du."""
    low, high = (-math.expm1(-end) for end in ends)
    f = low + (high - low) * u**power
    return -torch.log1p(-f), (high - low) * power * u ** (power - 1) / (1 - f)


import numpy as np

nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(400))
world = small_worlds()[1]
for power in (1, 2, 3):
    sigma_bar, slope = noise_by_fraction((1 + nodes) / 2, power, (0.01, 5.0))
    loss = world.expected_loss(score_entropy_loss, world.log_score(sigma_bar), sigma_bar)
    found = (weights / 2 * slope * loss).sum().item()
    assert abs(found - exact_area(world, 0.01, 5.0)) < 1e-7
    print(f"f = u^{power}: {found:.6f} nats, over the noise {exact_area(world, 0.01, 5.0):.6f}")

# %% [markdown]
# The mean is the same for every clock. What differs is the *spread* of single samples, and with it how
# many it takes to *measure* the area. (Gradients are another matter; the spread is a first guess, and we try it below.)
# On our words no sampling is needed to know it. A sample is a weight
# $w = d\bar\sigma/du$ times a loss, so its mean square is
# $\int w^2\,\mathbb E[\ell^2]\,du = \int w\,\mathbb E[\ell^2]\,d\bar\sigma$: one more weighted sum. Subtract the
# squared mean and take the root: that is the spread. We can even say what the best clock of all would reach. Since
# $\int d\bar\sigma/w = \int du = 1$, the Cauchy–Schwarz inequality says
#
# $$ \Big(\int \sqrt{\mathbb E[\ell^2]}\;d\bar\sigma\Big)^2
#    = \Big(\int \sqrt{w\,\mathbb E[\ell^2]}\cdot\frac{1}{\sqrt w}\;d\bar\sigma\Big)^2
#    \le \int w\,\mathbb E[\ell^2]\,d\bar\sigma, $$
#
# with equality for $w \propto 1/\sqrt{\mathbb E[\ell^2]}$: that clock is the best.

# %%
square = words.expected_loss(score_entropy_loss, words.log_score(levels), levels, power=2)
low, high = -math.expm1(-1e-4), -math.expm1(-20.0)
share = (-torch.expm1(-levels) - low) / (high - low)  # f, as a share of its range
clocks = {
    "uniform in t": noise.sigma(noise.time(levels)),
    "uniform in f": (high - low) * torch.exp(levels),
    "f = u²": (high - low) * 2 * share.sqrt() * torch.exp(levels),  # u = √share
}
for name, w in clocks.items():
    print(f"{name:13} {((weight * w * square).sum() - area**2).sqrt():.2f} nats")
print(f"{'best possible':13} {((weight * square.sqrt()).sum() ** 2 - area**2).sqrt():.2f} nats")

# %% [markdown]
# To halve a spread is worth four times as many samples. So $f = u^2$ is a real gain over time, and close
# to the best there is. But we had expected $f$ itself to win, and it comes out last. Why? Look at almost clean
# text, where $f$ is small. A sample meets a wrong letter with a probability proportional to $f$; if it
# does, the loss is about $1/f$. (There $\bar\sigma \approx f$, so the ratio is $1+\kappa \approx V/f$, times
# $1/V$. We leave out a factor that measures the doubt which letter it was: the true score is a mean, $a/s$ is
# $1/p(x_0 \mid x_t)$, and without doubt the loss is 0.) So
# $\mathbb E[\ell^2] \approx f\cdot\frac1{f^2} = \frac1f$, and the clean end adds to the mean square
#
# $$ \int_{f_{\min}} w\;\frac{df}{f}, \qquad\text{with } w \approx
#    \begin{cases} f\,\log(\bar\sigma_{\max}/\bar\sigma_{\min}) & \text{uniform in } t, \\
#    1 & \text{uniform in } f, \\ 2\sqrt f & f = u^2. \end{cases} $$
#
# With $w = 1$ this is $-\log f_{\min}$, and grows without end as $f_{\min}$ falls: rare samples, each a
# shock. Time takes too many samples there, $f$ too few. The square root lies between them.
#
# The figure shows the same area, 1.84 nats, under the three clocks. Against time (left) it is a narrow
# hill at 0.73, after nothing for half of the way. Against $f$ it is spread over the whole axis, but starts high
# at the clean end. Against $u$ with $f = u^2$ it rises gently from 0.

# %% tags=["hide-input"]
# alt: Three panels of one area. Against time the curve is flat for half of the axis, then a narrow hill
#  at 0.73. Against the corrupted fraction it is a low plateau; against the square root of the fraction
#  a broad hill that starts at 0.
fig, panels = plt.subplots(1, 3, sharey=True, figsize=(7, 2.8))
for ax, (name, w), at in zip(
    panels, clocks.items(), (noise.time(levels), share, share.sqrt()), strict=True
):
    ax.fill_between(at, w * true_loss, alpha=0.3)
    ax.plot(at, w * true_loss)
    ax.set(title=name, xlabel="time $t$" if name == "uniform in t" else "$u$", ylim=(0, 10.5))
panels[0].set_ylabel("nats a text")
plt.show()

# %% [markdown]
# Does it help to learn? Train the denoiser from above again, with the two new clocks, again with the learning
# rate that served best (0.01 for both). The first line is its run from above.

# %%
by_time = excess(learned["score entropy, denoiser"])
print(f"{'uniform in t':23} {by_time:.3f} nats a text above the truth")
for name, power in (("uniform in f", 1), ("f = u²", 2)):

    def clock(u, power=power):
        return noise_by_fraction(u.double(), power, (1e-4, 20.0))

    model = train(score_entropy_loss, 0.01, denoiser=True, clock=clock)
    print(f"{name:23} {excess(model):.3f} nats a text above the truth")

# %% [markdown]
# The same order as the spreads. (One run each, but three other seeds kept it.) [Chapter 8](08_training.ipynb) trains with these clocks: its
# `proposal_times` gives the times that belong to $f = u^p$, with their weights, and $p$ is a setting.
# Which $p$ serves a large network best is a question for an experiment there. That all of them have the
# same mean is settled here.

# %% [markdown]
# ## Change it safely
#
# 1. In `score_entropy_loss`, weight with $1/(V-1)$: write `/ (vocab_size - 1)` in the last line.
#    Guess which tests fail before you run them. (`test_loss_equals_the_sum`, of course, but also
#    `test_area_is_the_information_destroyed` and `test_bound_is_the_entropy_of_the_data`: the area is then
#    twice the entropy for $V = 2$, the first world. On the page, exercise 1 fails as well.)
# 2. Leave $x_0$ in the sum over the others, the second half of the slip: scatter only
#    `x_t[..., None]`. These three tests fail, and `test_loss_is_zero_at_the_truth_only`.
# 3. Add `-1e-3` to the loss. These four fail, exercise 1 again, and `test_loss_is_never_negative`, which shows
#    the smallest example that it finds.
# 4. In `noise_by_fraction`, forget to pay: drop `/ (1 - f)`. No test fails, because the package does not use
#    this function, but the assertion right below it does. (Its counterpart in chapter 8 has a test.)
#
# After each: `make export && pytest tests/test_loss.py tests/unit/test_loss.py`.

# %% [markdown]
# ## Exercises
#
# **1. The price of knowing nothing.** For the 106 characters of this book, what is the bound of a
# network whose $q$ is uniform, in nats per character? Guess; then add up area, prior and
# reconstruction. (Expected: $\log 106 = 4.6634$.)

# %% tags=["solution", "hide-input"]
levels_1, weight_1 = noise_nodes(1e-4, 20.0)
x_t, x_0 = torch.tensor([[0, 1]]), torch.tensor([[0, 0]])  # one unmoved, one moved position
nothing = torch.zeros(100, 2, 106, dtype=torch.float64)
pair = score_entropy_loss(nothing, levels_1, x_t.repeat(100, 1), x_0.repeat(100, 1))
moved = -torch.expm1(-levels_1) * 105 / 106  # probability that x_t differs from x_0
blank_area = (weight_1 * ((1 - moved) * pair[:, 0] + moved * pair[:, 1])).sum()

q = torch.full((1, 2, 106), -math.log(106.0), dtype=torch.float64)
log_p = log_posterior(q, levels_1.new_tensor(1e-4), x_t)[0, :, 0]  # at x_0 = 0
chance = -math.expm1(-1e-4) * 105 / 106
blank_last = -(1 - chance) * log_p[0] - chance * log_p[1]
total = (blank_area + prior_kl(20.0, 106) + blank_last).item()
assert abs(total - math.log(106)) < 1e-9
round(total, 4)

# %% [markdown]
# **2. The slip in a smaller alphabet.** By how many percent is the slipped $s_{x_0}$ too large, given $x_0$, for
# $V = 27$ and $\bar\sigma = 5$? (Expected: 81.3 %.)

# %% tags=["solution", "hide-input"]
true_ratio = 1 + kappa(torch.tensor(5.0, dtype=torch.float64), 27).item()
percent = 100 * (25 / 26) / true_ratio
assert abs(percent - 81.3) < 0.1
round(percent, 1)

# %% [markdown]
# **3. Backward.** Given all scores $s_y$ of a denoiser at one position, and $\kappa$, recover $q$.
# (Expected: with $C = (V+\kappa)/\sum_y s_y$, $q_y = (C s_y - 1)/\kappa$. Sum
# $1+\kappa q_y = C s_y$ over $y$ to see it.)

# %% tags=["solution", "hide-input"]
level = torch.tensor([0.7], dtype=torch.float64)
q = torch.tensor([[[0.6, 0.3, 0.1]]], dtype=torch.float64)
s = denoiser_log_score(q.log(), level, torch.tensor([[2]])).exp()
k = kappa(level, 3)
recovered = ((3 + k) / s.sum(-1, keepdim=True) * s - 1) / k
assert torch.allclose(recovered, q)
recovered

# %% [markdown]
# **4. What the comb buys.** Take the second of `small_worlds()` with its true score, and batches of
# 64 texts. By what factor does the standard deviation of the mean loss of a batch shrink when the
# times are a comb? (Expected: about 1.3, as if the batch were 1.8 times as large. We had hoped for
# more; the rest of the noise comes from *which* letters are hit.)

# %% tags=["solution", "hide-input"]
g, noise = torch.Generator().manual_seed(0), GeometricNoise()
world = small_worlds()[1]
means = {"comb": [], "independent": []}
for _ in range(300):
    x_0 = world.draw(64, g)
    for name, t in (("comb", None), ("independent", torch.rand(64, generator=g))):
        means[name].append(compute_loss(world, x_0, noise, t, generator=g).mean())
spread = {name: torch.stack(values).std().item() for name, values in means.items()}
factor = spread["independent"] / spread["comb"]
assert 1.1 < factor < 1.6
round(factor, 2)

# %% [markdown]
# ## Summary
#
# * Backward rates are forward rates times ratios of probabilities; the normalizer cancels.
# * Score entropy is the KL divergence between true and modeled jumps, per unit of noise. Its $1/V$
#   is the rate of each jump. It asks for *relative* accuracy, the square for absolute.
# * Its integral, plus two small terms, bounds $-\log p$. With the true score it is the entropy of
#   the data.
# * The area does not depend on the clock, but the spread of the samples does: even times take too many samples in almost
#   clean text, an even fraction $f$ too few, and $f = u^2$ lies between.
# * A denoiser's $q$ becomes a score by $s_y = (1+\kappa q_y)/(1+\kappa q_{x_t})$.
# * Keep a slow check that cannot be wrong.
#
# | exported | what it is |
# |---|---|
# | `kappa(sigma_bar, vocab_size)` | $\kappa = V/(e^{\bar\sigma}-1)$, in which all noise enters |
# | `log_ratio(sigma_bar, x_t, x_0, vocab_size)` | $\log a_y$, the target given the clean text |
# | `score_entropy_loss(log_score, sigma_bar, x_t, x_0)` | $\ell$ per position, nats per unit of noise |
# | `denoiser_log_score(log_q, sigma_bar, x_t)` | from a guess of the clean character to log-scores |
# | `log_posterior(log_q, sigma_bar, x_t)` | the guess once $x_t$ at its own position is counted |
# | `low_discrepancy_times(batch_size)` | a comb of times |
# | `masked_mean(values, condition_mask)` | mean over the positions that are not given |
# | `compute_loss(model, x_0, noise)` | random estimate of the area, nats per character |
# | `prior_kl(sigma_bar_1, vocab_size)` | what is left of the text at $t = 1$ |
# | `ScoreModel`, `Denoiser` | what a model is to the code that trains, measures and samples |
# | `Graph`, `UniformGraph`, `UNIFORM`, `graph_of(model)` | what they ask of a forward process; ours; a model's |
#
# Next: [chapter 6](06_model.ipynb) builds the network that guesses $q$.
