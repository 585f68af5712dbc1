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
# *About 55 minutes. You need: [chapter 4](04_forward.ipynb), Bayes' rule, and the KL divergence by name. You
# will have: the loss of this book, checked against its definition, and its value explained: the area under it
# is the entropy of the data.*
#
# **We have** a way to corrupt text: after a total noise $\bar\sigma$, each character was resampled with probability
# $1-e^{-\bar\sigma}$.
#
# **We want** a loss whose minimum is exactly what we need to run the corruption backward, and whose value means something.
#
# **Why**: a network only learns what its loss rewards.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio mpmath"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## By hand: what does it take to go backward?
#
# Take a text of one letter, from the alphabet `k m o`. Half of all texts are `k`, three tenths are
# `m`, the rest `o`. Add a total noise of $\bar\sigma = 1$. How often does each letter occur now?

# %%
import math

import torch

from ddlm_core.noise import transition_matrix

p_data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # k, m, o
kernel = transition_matrix(1.0, 3)  # p(x_t | x_0): row x_0, column x_t
p_t = p_data @ kernel
p_t

# %% [markdown]
# Now add a small noise increment, $\Delta = 0.001$, and see an `m`. What was it before the increment?
# Bayes' rule answers: the probability that it was $y$ and became `m`, divided by the probability
# that it is `m`, one way or another.

# %%
delta = 0.001
joint = p_t[:, None] * transition_matrix(delta, 3)  # before (row), after (column)
before = joint[:, 1] / joint[:, 1].sum()  # given that it is m after
before

# %% [markdown]
# Almost surely it was `m`. The two small numbers are the chances of a jump. They shrink
# with the increment, so divide them by $\Delta$: that is a *rate*. One more factor of $V = 3$, the
# number of letters, and something familiar appears.

# %%
3 * before / delta, p_t / p_t[1]

# %% [markdown]
# Apart from the entry of `m` itself, the two rows agree, up to the size of the increment. Why? Write $p_t(x)$
# for the probability of letter $x$ at time $t$, when the total noise is $\bar\sigma$. An increment $\Delta$
# turns a $y$ into one given *other* letter $x$ with probability $\Delta/V$: it is resampled with probability
# $\Delta$, and the new letter is $x$ in one case out of $V$. These are the entries $1/V$ of the matrix $Q$ in
# [chapter 3](03_noise.ipynb). So Bayes' rule says
#
# $$ p(\text{before}=y \mid \text{after}=x)
#    = \frac{p_t(y)\,\cdot\,\Delta\,/\,V}{p_t(x)} + O(\Delta^2)
#    = \Delta\cdot\frac1V\cdot\frac{p_t(y)}{p_t(x)} + O(\Delta^2). $$
#
# Here $O(\Delta^2)$ collects two jumps within one increment, and the small change of $p_t(x)$ during it.
#
# **The rates backward are the rates forward times a ratio of probabilities.** This is the *time reversal* of
# a continuous-time Markov chain ([Campbell et al. 2022](https://arxiv.org/abs/2205.14987)). Anyone who knows
#
# $$ s(x)_y = \frac{p_t(y)}{p_t(x)} $$
#
# for all $y$ that are one jump from $x$ can undo the noise. This ratio is called the *concrete score*
# ([Meng et al. 2022](https://arxiv.org/abs/2211.00802)), or *score* for short. And the $1/V$ will stay with
# us: it is the rate of one jump, and so the weight of each ratio in everything below.

# %% [markdown]
# ## Why ratios, and not probabilities
#
# A text of $L$ characters is one of $V^L$. To give each a probability, a network must make $V^L$ numbers sum
# to 1. It can easily produce any positive $g(x)$, but $p(x) = g(x)/\sum_z g(z)$ needs a sum that nobody can
# compute. In a ratio the sum cancels: $p(y)/p(x) = g(y)/g(x)$.
#
# And we need few ratios. Each position jumps on its own, so two jumps in one short moment have a
# probability of order $\Delta^2$, and we may forget them. The neighbors of a text $x_t$ are the texts that
# differ from it in one position: $L$ positions times $V - 1$ characters. Our network answers for all of them
# in one run, with a table of shape $(L, V)$, where entry $(i, y)$ stands for
#
# $$ s(x_t)^i_y = \frac{p_t(x_t \text{ with character } i \text{ replaced by } y)}{p_t(x_t)}. $$
#
# At $y = x_t^i$ nothing is replaced: the ratio is 1. We store logarithms (`log_score`), because the
# ratios run from a millionth to a million, and because $e^{\dots}$ keeps them positive.
#
# | symbol | name in code | shape | meaning |
# |---|---|---|---|
# | $x_0$, $x_t$ | `x_0`, `x_t` | (B, L) | clean and noised text; at $t=0$ there is a little noise, $\bar\sigma_{\min}$ |
# | $\bar\sigma$ | `sigma_bar` | (B,) | total noise so far |
# | $\sigma$ | `sigma` | (B,) | noise per unit of time $t$ |
# | $\log s_y$ | `log_score` | (B, L, V) | what the network says |
# | $\log a_y$ | `log_ratio` | (B, L, V) | the ratio given $x_0$, its target in training |
# | $\kappa$ | `kappa` | (B,) | the clean character is $1+\kappa$ times as likely as any one other |

# %% [markdown]
# ## The ratio when we know the clean text
#
# In training we do know $x_0$: we made $x_t$ from it. Given $x_0$ the characters are independent,
# and [chapter 4](04_forward.ipynb) has the probability of each:
# $p(y \mid x_0) = e^{-\bar\sigma}[y = x_0] + (1-e^{-\bar\sigma})/V$, where $[\dots]$ is 1 if true
# and 0 if not. Divide by $(1-e^{-\bar\sigma})/V$, the chance of landing on one given *other* letter:
#
# $$ \frac{p(y \mid x_0)}{(1-e^{-\bar\sigma})/V} = 1 + \kappa\,[y = x_0],
#    \qquad \kappa = \frac{V e^{-\bar\sigma}}{1-e^{-\bar\sigma}} = \frac{V}{e^{\bar\sigma}-1}. $$
#
# The noise level enters only through this one number. For `k m o` at $\bar\sigma = 1$,
# $1+\kappa = 1 + 3/(e-1) = 2.746$. With $V = 106$, $\kappa$ is about a million at $\bar\sigma = 10^{-4}$ (the
# letter has almost surely not moved) and $2\cdot10^{-7}$ at $\bar\sigma = 20$ (nobody can tell).

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
# likely each clean text is, given $x_t$. In a longer text, let $y$ also stand for $x_t$ with $y$ at our
# position: all other factors cancel in $p(y\mid x_0)/p(x_t\mid x_0)$.
# With Bayes' rule $p(x_0 \mid x_t) = p_{\text{data}}(x_0)\,p(x_t \mid x_0)/p_t(x_t)$:
#
# $$ \mathbb E\big[a_y \mid x_t\big]
#  = \sum_{x_0} \frac{p_{\text{data}}(x_0)\,p(x_t \mid x_0)}{p_t(x_t)}\cdot\frac{p(y \mid x_0)}{p(x_t \mid x_0)}
#  = \frac{p_t(y)}{p_t(x_t)} = s_y. $$
#
# The factor $p(x_t \mid x_0)$ cancels, and the score remains. In our alphabet, for `m`:

# %%
posterior = p_data * kernel[:, 1] / p_t[1]  # p(x_0 | x_t = m)
ratios = kernel / kernel[:, 1:2]  # row x_0: its a_y
posterior @ ratios, p_t / p_t[1]

# %% [markdown]
# So we need a loss $\ell(s, a)$ whose average over noisy targets $a$ is smallest when $s$ is the
# *mean* of $a$. The square $(s-a)^2$ is one such loss, but not the best.
#
# ## Score entropy
#
# We see an `m`, and this time we know the clean letter: it was `k`. Going backward through one increment, the
# jump to letter $y$ has probability $\Delta\,a_y/V$: the calculation at the top of the chapter, with
# $p(\cdot \mid x_0)$ in place of $p_t$. A model that does not know $x_0$ says $\Delta\,s_y/V$. How wrong is
# it? The usual yardstick for a model's distribution $P'$ against the true $P$ is the KL divergence,
# $KL(P\,\|\,P') = \sum P\log (P/P')$: the excess loss, in nats, of believing $P'$. By hand, for a model that
# says $s = 1$ to everything:

# %%
truth = kernel[0] * transition_matrix(delta, 3)[:, 1]
truth = truth / truth.sum()  # before the increment, given m after it and x_0 = k
model = torch.tensor([delta / 3, 1 - 2 * delta / 3, delta / 3], dtype=torch.float64)
(truth * (truth / model).log()).sum().item() / delta  # nats per unit of noise

# %% [markdown]
# Now in general. There are two kinds of outcomes.
#
# * A jump to $y$ gives $\Delta\frac{a_y}{V}\log\frac{a_y}{s_y}$.
# * "No jump" has the remaining probability. Let $R_a = \frac1V\sum_{y\ne x_t} a_y$ and
#   $R_s = \frac1V\sum_{y\ne x_t} s_y$ be the rates of jumping at all. With
#   $\log(1-\Delta R) = -\Delta R + O(\Delta^2)$ it gives
#   $(1-\Delta R_a)\log\frac{1-\Delta R_a}{1-\Delta R_s} = \Delta\,(R_s - R_a) + O(\Delta^2)$.
#
# Divide by $\Delta$ and let the increment vanish. Per unit of noise, the excess loss is
#
# $$ \ell = \frac1V\sum_{y\ne x_t}\Big(a_y\log\frac{a_y}{s_y} + s_y - a_y\Big)
#         = \frac1V\sum_{y\ne x_t}\Big(s_y - a_y\log s_y + a_y(\log a_y - 1)\Big). $$
#
# This is the *score entropy* of [SEDD](https://arxiv.org/abs/2310.16834) (Lou, Meng & Ermon 2024), in its
# *denoising* form: the target is $a$, which we know, and not the marginal ratio, which we do not. Each term
# is a *generalized KL divergence*: a KL between positive numbers that need not sum to 1. The $1/V$ is now
# explained: **it is the rate of each jump**. The paper allows any weights; only the rates make the loss a KL
# divergence. The two terms of our example:

# %% tags=["hide-input"]
by_hand = 0.0
for y in (0, 2):  # every letter but x_t = m
    a_y, s_y = (kernel[0, y] / kernel[0, 1]).item(), 1.0
    by_hand += (s_y - a_y * math.log(s_y) + a_y * (math.log(a_y) - 1)) / 3
by_hand

# %% [markdown]
# The same, up to the size of the increment. And the minimum is where we want it: the slope
# $\partial\ell/\partial s_y = \frac1V(1 - a_y/s_y)$ is zero at $s_y = a_y$ only, and the second derivative
# $\frac1V a_y/s_y^2$ is positive everywhere. If $a_y$ varies from one clean text to another, the average
# slope $\frac1V(1-\mathbb E[a_y]/s_y)$ is zero at $s_y = \mathbb E[a_y]$: the mean, as required.
#
# On the left of the figure is one term of the sum, plotted against $s$, for the true ratios 0.3, 1 and 5.
# Each curve touches zero at its own $a$, marked by a dot. To the left it rises like $-a\log s$ without end:
# never say "impossible" to something that happens. To the right it rises like $s$. On the right is our
# alphabet, seen from an `m`. The network must give two ratios, $s_k$ and $s_o$. For each clean letter the
# loss has its own lowest point, a cross. The *average* loss, weighted by how likely each clean letter is
# given the `m`, is a valley between them, drawn with contour lines. Its one lowest point, the dot, is the
# score. The height there is not 0: no answer is right for all three.

# %% tags=["hide-input"]
# alt: Left: three valleys, each touching zero at its true ratio 0.3, 1 or 5, steep to the left and
#  gentle to the right. Right: contour lines over the two ratios, three crosses for the clean letters
#  k, m and o, and between them one dot, the lowest point: the score.
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
s_k, s_o = s[None, :], s[:, None]
height = 0.0
for likely, (a_k, _, a_o) in zip(posterior, ratios, strict=True):
    terms = [x - r * x.log() + r * (r.log() - 1) for x, r in ((s_k, a_k), (s_o, a_o))]
    height = height + likely * sum(terms) / 3
heights = height.min() + torch.tensor([0.01, 0.04, 0.1, 0.2, 0.4])
right.contour(s, s, height, levels=heights, colors="0.5", linewidths=1.2)
for name, (a_k, _, a_o) in zip("kmo", ratios, strict=True):
    right.plot(a_k, a_o, "x", color="C1")
    right.annotate(f"  {name}", (a_k, a_o), color="C1")
score_k, score_o = (p_t / p_t[1])[[0, 2]]
right.plot(score_k, score_o, "o", color="C0")
right.annotate("  score", (score_k, score_o), color="C0", va="center")
ticks = {"ticks": [0.2, 0.5, 1, 2, 4], "labels": ["0.2", "0.5", "1", "2", "4"]}
right.set(xscale="log", yscale="log", xlabel="$s_k$", ylabel="$s_o$")
right.set_xticks(**ticks), right.set_yticks(**ticks), right.minorticks_off()
plt.show()

# %% [markdown]
# ## The code: no cancellation
#
# Near the truth the three terms nearly cancel. At $\bar\sigma = 10^{-4}$ they can be between one and fifteen
# million, and `float32` carries seven digits: the sum would be rounding error. Let
# $d_y = \log s_y - \log a_y$ be the error of the logarithm. With $s_y = a_y e^{d_y}$ the logarithms of $a$
# cancel on paper, and what remains is
#
# $$ \ell = \frac1V\sum_{y\ne x_t} a_y\,\big(e^{d_y} - 1 - d_y\big). $$
#
# Since $e^d \ge 1 + d$, with equality at 0 only, $\ell \ge 0$ is plain to see. In the code, `expm1(d)` is
# $e^d - 1$ without cancellation, and setting $d = 0$ takes an entry out of the sum. All $y$ other than $x_0$
# and $x_t$ share one $a_y$, so no table of ratios is built. [The last digits of the
# loss](deeper/loss_precision.ipynb) measures how exact this is, and why one entry needs `float64`.


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
# The same example, by the function:

# %%
one = torch.ones(1, dtype=torch.float64)
score_entropy_loss(torch.zeros(1, 1, 3).double(), one, torch.tensor([[1]]), torch.tensor([[0]]))

# %% [markdown]
# ## The check: brute force
#
# The *reference implementation* is the definition, term by term, with the kernel's own probabilities and
# forty digits ([mpmath](https://mpmath.org)). It shares no formula with our code: no $\kappa$, no $d$.
# `worst_error`, folded below, makes scores that are the truth plus errors of every size, for moved and
# unmoved characters and noise from $10^{-4}$ to 20. It returns the largest error in units of the tolerance.


# %% tags=["test"]
import mpmath


def brute_force(log_score: list[float], sigma_bar: float, x_t: int, x_0: int) -> float:
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
    """Largest error of a loss against brute force, in units of the tolerance."""
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
            exact = brute_force(log_score[b, i].tolist(), *numbers)
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
# `tests/unit/test_loss.py` checks that the loss is never negative and never `nan`, and that its gradient is
# zero exactly at the truth.
#
# Such a check earns its place. Several public re-implementations share one bug, for example
# [this training script](https://github.com/rickyars/diffusion-gpt/blob/0a3ebaa63caaaebd32c40f1fc423d269820359b2/scripts/training/train.py);
# the code of the paper's authors is right. Where $x_t \ne x_0$, the sum $\sum a_y \log s_y$ is
# $(1+\kappa)\log s_{x_0}$ plus the other $V-2$ logarithms. The buggy line counts $\log s_{x_0}$ once more,
# among the others, and multiplies these by $(V-2)/(V-1)$. It looks like a loss, and in training it goes down.
# But it is *negative* at the truth, and lowest elsewhere: with $V=106$, $s_{x_0}$ comes out 2, 15 and 58 % too
# large at $\bar\sigma = 1$, 3 and 5 ([why, with a picture](deeper/loss_precision.ipynb)). The brute-force sum
# finds it at once; the folded test shows that an example with only two letters would not.


# %% tags=["test", "hide-input"]
def buggy_loss(log_score, sigma_bar, x_t, x_0):
    """Score entropy with a common bug: wrong where x_t differs from x_0."""
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


# %% tags=["test", "hide-input"]
def test_the_bug_is_caught():
    def only_the_bug(log_score, *noise_and_texts):  # with our weight 1/V
        weight = (log_score.shape[-1] - 1) / log_score.shape[-1]
        return weight * buggy_loss(log_score, *noise_and_texts)

    assert worst_error(only_the_bug, 2, torch.float64) < 1  # nothing to see with two letters!
    for vocab_size in (3, 27, 106):
        assert worst_error(only_the_bug, vocab_size, torch.float64) > 1e6


test_the_bug_is_caught()

# %% [markdown]
# **Keep a slow version that cannot be wrong next to the fast one**, and compare them on the hardest cases.

# %% [markdown]
# ## A world small enough to enumerate
#
# For the rest of the chapter we need data whose distribution we know completely. Here are texts of
# three letters from `a e n t`: $4^3 = 64$ texts, of which only seven, all words, ever occur.
#
# `World`, from `ddlm_core/support/worlds.py`, lists all $N = V^L$ texts and answers by counting; it knows no
# formula of this chapter. `joint` is $p_{\text{data}}(x_0)\,p(x_t \mid x_0)$ for all pairs, with column sums
# $p_t$, and `log_score` is the score looked up in these. Called with `(x_t, sigma_bar)`, a `World` stands in
# for a network: a Bayes-optimal one.

# %% tags=["hide-input"]
from ddlm_core.support.worlds import World, noise_nodes, small_worlds

WORDS = {"ant": 5, "ate": 4, "eat": 6, "net": 3, "tan": 1, "tea": 4, "ten": 7}
counts = torch.zeros(64, dtype=torch.float64)
for word, count in WORDS.items():
    counts[sum("aent".index(c) * 4**k for k, c in enumerate(reversed(word)))] = count
words = World(counts / counts.sum(), vocab_size=4, length=3)
entropy = words.entropy()
print(f"entropy {entropy:.4f} nats per text; if all 64 were equally likely: {math.log(64):.4f}")

# %% [markdown]
# ## What the network will say
#
# SEDD's network outputs $\log s$ itself. Ours answers an easier question, "which character stood here?". Fix
# a position, and let $q_y$ be the probability that its clean character is $y$, given all *other* characters
# of $x_t$: the *leave-one-out* or *cavity* distribution. The letter at the position itself is left out,
# because what it adds is known exactly. Bayes' rule gives
#
# $$ s_y = \frac{1+\kappa q_y}{1+\kappa q_{x_t}}, \qquad p(x_0 = y \mid x_t) \;\propto\; q_y\,(1+\kappa\,[y = x_t]). $$
#
# [Chapter 6](06_model.ipynb) derives the first, where the network appears. If $q$ is certain, $s_y$ is
# exactly $a_y$; if $q$ is uniform, it is 1 everywhere. The second is Bayes' rule again, with the evidence
# $p(x_t\mid y) \propto 1+\kappa[y = x_t]$ put back in.


# %% tags=["export"]
def denoiser_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From a distribution over the clean token to log-scores: (B, L, V), exactly 0 at y = x_t.

    $s_y = (1 + \kappa q_y)/(1 + \kappa q_{x_t})$, with $q$ as it is before the evidence of $x_t$ at
    its own position; noise above 0, a scalar or (B,). (SEDD's network gives $\log s$ itself.)
    """
    scale = kappa(noise_column(sigma_bar, log_q), log_q.shape[-1])  # (B, 1, 1)
    log_s = torch.log1p(scale * log_q.exp())
    return log_s - log_s.gather(-1, x_t[..., None])


# %% tags=["export"]
def log_posterior(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q_y\,(1 + \kappa[y = x_t])$, normalized (Bayes' rule).

    $q$ is as it is before the evidence of $x_t$; noise above 0, a scalar or (B,).
    """
    log_stay = torch.log1p(kappa(noise_column(sigma_bar, log_q), log_q.shape[-1]))  # (B, 1, 1)
    evidence = log_stay.expand(*x_t.shape, 1).to(log_q.dtype)
    return log_q.scatter_add(-1, x_t[..., None], evidence).log_softmax(-1)


# %% [markdown]
# On enumerated worlds, here three with random probabilities, both can be compared with plain counting: the
# joint table of $(x_0, x_t)$, summed and divided. The test of the posterior is in `tests/unit/test_loss.py`.


# %% tags=["test"]
def test_denoiser_score_is_the_true_score():
    levels = torch.tensor([1e-4, 0.1, 1.0, 5.0], dtype=torch.float64)
    for world in small_worlds():
        truth = zip(levels, world.log_q(levels), world.log_score(levels), strict=True)
        for sigma_bar, log_q, log_s in truth:
            found = denoiser_log_score(log_q, sigma_bar, world.texts)
            assert torch.allclose(found, log_s, rtol=1e-9, atol=1e-9)


test_denoiser_score_is_the_true_score()

# %% [markdown]
# **Why not plain cross-entropy?** If the network gives $q$, one may use the loss $-\log q_{x_0}$. For a
# network that does not see the letter at the position itself, both losses have the same minimum, the true $q$.
# They differ in what a value means. Score entropy at one noise level is the KL divergence of one step backward,
# and these add up to a likelihood, as we shall see. Cross-entropy at one level of uniform noise is not a
# term of such a sum. But the two meet. Hold the other letters fixed and integrate the score entropy of one letter over
# *its own* noise, from 0 to $\infty$: the result is exactly $-\log q_{x_0}$. This is the bound of the section
# after next, for a text of one letter, and [chapter 8](08_training.ipynb) trains with it. With masks the two
# meet at every single level ([appendix A](A_absorbing.ipynb)).

# %% [markdown]
# ## Why not simply the square?
#
# $(s-a)^2$, the loss of concrete score matching, is also smallest at the mean of $a$. Say a network is wrong by
# a factor $c$, $s = c\,a$. Then one term of score entropy costs $a\,(c - 1 - \log c)$, and the square costs
# $a^2\,(c-1)^2$. Here $a$ runs from a millionth to a million. Score entropy grows with $a$ itself: the jump
# happens at the rate $a/V$, so a wrong ratio does its harm that often. The square grows with $a^2$, so it
# attends to only the largest ratios. A ratio of 0.001 that should be 0.000001 costs it a millionth, and score
# entropy a thousandth. But jumps that are a thousand times too frequent are how a text gets misprints.
#
# Let us train the same small network on the seven words, for 800 steps, three times. The code is folded. The
# network sees the letters and the time, and gives twelve numbers, one for each letter at each position. The
# first run uses the square, the second score entropy; both output $\log s$. In the third the network gives
# $q$, and the score follows; since this network also sees the letter at the position itself, it has to learn
# not to use it. Times $t$ are drawn uniformly, and all three losses are weighted by $\sigma(t)$, so that every
# unit of noise counts the same ($d\bar\sigma = \sigma\,dt$). Each run uses whichever learning rate of 0.001,
# 0.003, 0.01 and 0.03 served it best.


# %% tags=["hide-input"]
from ddlm_core.forward import perturb_batch
from ddlm_core.noise import GeometricNoise


def square_loss(log_score, sigma_bar, x_t, x_0):
    a = log_ratio(sigma_bar, x_t, x_0, log_score.shape[-1]).exp()
    return (log_score.exp() - a).square().sum(-1) / log_score.shape[-1]


def train(loss, learning_rate, denoiser=False, steps=800):
    schedule, g = GeometricNoise(), torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            *(torch.nn.Linear(16, 64), torch.nn.SiLU()),
            *(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 12)),
        )

    def model(x_t, sigma_bar):
        waves = torch.cos(torch.pi * schedule.time(sigma_bar)[:, None] * torch.arange(4))
        out = net(torch.cat([one_hot(x_t, 4).flatten(1), waves], 1).float()).view(-1, 3, 4)
        if denoiser:
            return denoiser_log_score(out.log_softmax(-1), sigma_bar, x_t)
        return out - out.gather(-1, x_t[..., None])  # 0 at x_t

    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(steps):
        x_0 = words.texts[torch.multinomial(words.p_0, 256, replacement=True, generator=g)]
        sigma_bar, sigma = schedule(torch.rand(256, generator=g))
        x_t = perturb_batch(x_0, sigma_bar, 4, generator=g)
        value = (sigma[:, None] * loss(model(x_t, sigma_bar), sigma_bar, x_t, x_0)).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return model


learned = {
    "square": train(square_loss, 0.01),
    "score entropy": train(score_entropy_loss, 0.03),
    "score entropy, denoiser": train(score_entropy_loss, 0.01, denoiser=True),
}

# %% [markdown]
# The figure shows one ratio that the network must learn, from the word `ten` to the non-word `tet`. The truth
# (gray) falls with the noise: in almost clean text, `tet` must be almost impossible. The square (dashed) stays
# stuck near 0.1: to it, the difference between 0.1 and 0.0001 is next to nothing. Score entropy (solid) ends
# twenty times lower. The denoiser (dash-dotted) stays on the truth longest: its fall is not learned but comes
# from $\kappa$, which we know. It leaves the truth where $\kappa$ is so large that the score is
# $q_y/q_{x_t}$, and the network still gives a final `t` a probability of a thousandth.

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
# We found $\ell$ as the error of one noise increment. Now add up all increments. Cut the noise into small
# steps, from $\bar\sigma_{\max}$ at $t=1$ down to $\bar\sigma_{\min}$ at $t=0$, and call the texts at the two
# ends $x_1$ and $x_{\min}$. The model writes a text like this: draw uniform noise; walk back step by step
# with its own jump rates $s/V$; at the end, replace each character by a draw from its posterior. The texts on
# the way are a *trajectory*, and the chance $p_\theta(x_0)$ of ending at $x_0$ ($\theta$: what the network
# has learned) is a sum over all trajectories. No one can do that sum, but a bound is enough.
#
# **Step 1.** Let $P$ be the true distribution of trajectories, from the data to noise. Multiply and divide
# by it, and use the fact that the log of a mean is at least the mean of the log (Jensen):
#
# $$ -\log p_\theta(x_0)
#   = -\log \sum_{\text{traj.}} P(\text{traj.} \mid x_0)\,
#      \frac{p_\theta(\text{traj.}, x_0)}{P(\text{traj.} \mid x_0)}
#   \;\le\; \mathbb E\left[\log \frac{P(\text{traj.} \mid x_0)}{p_\theta(\text{traj.}, x_0)}\right], $$
#
# where $\mathbb E$ is the mean over $P(\text{traj.} \mid x_0)$: over all the ways to make noise from this
# text. The right side is the *negative ELBO* (evidence lower bound), or NELBO. From now on we call it *the
# bound*.
#
# **Step 2.** Write both trajectories backward in time, one step after the other. Noise has no memory, so once
# $x_t$ is known, anything noisier says nothing more about the cleaner texts. Hence, with $x_{t'}$ the text
# one step less noisy than $x_t$,
#
# $$ \begin{aligned}
# P(\text{traj.} \mid x_0) &= p(x_1 \mid x_0)\;\prod_{\text{steps}} p(x_{t'} \mid x_t, x_0), \\
# p_\theta(\text{traj.}, x_0) &= \text{uniform}(x_1)\;\prod_{\text{steps}} p_\theta(x_{t'} \mid x_t)\;\;
#   p_\theta(x_0 \mid x_{\min}).
# \end{aligned} $$
#
# The logarithm of the quotient is a sum, and its mean has three kinds of terms: the first draw, each step,
# and the last draw. The steps are what this chapter began with. The true step, *given $x_0$*, jumps at the
# rates $a_y/V$, the model's step at the rates $s_y/V$, and the KL of one such step is $\Delta$ times the
# score entropy. With many positions there are more jumps to add up, hence a sum over $i$.
#
# **Step 3.** Let the steps shrink. The $O(\Delta^2)$ that each of some $1/\Delta$ steps neglects add up to
# $O(\Delta)$ and vanish. The sum becomes an integral over the noise, or, with
# $d\bar\sigma = \sigma(t)\,dt$, over time:
#
# $$ -\log p_\theta(x_0) \;\le\; \underbrace{\int_0^1 \sigma(t)\;\mathbb E\sum_i \ell_i\,dt}_{\text{diffusion}}
#    \;+\; \underbrace{L\cdot KL\big(p(x_1 \mid x_0)\,\|\,\text{uniform}\big)}_{\text{prior}}
#    \;+\; \underbrace{\mathbb E\Big[\sum_i -\log p_\theta(x_0^i \mid x_{\min})\Big]}_{\text{reconstruction}}, $$
#
# with the KL now that of one character. In the paper the noise starts at 0 and there is no third term; ours
# starts at $\bar\sigma_{\min}$. The prior term has a closed form. With $\epsilon = e^{-\bar\sigma}$, $V p$ is
# $1+(V-1)\epsilon$ at $x_0$ and $1-\epsilon$ at each other character, and $KL = \sum_y p_y\log(V p_y)$:


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
# **When is it tight?** Average the bound over the data. With
# $P(\text{traj.} \mid x_0) = P(\text{traj.}, x_0)/p_{\text{data}}(x_0)$ it becomes
#
# $$ \underbrace{\mathbb E\big[-\log p_{\text{data}}(x_0)\big]}_{\text{entropy of the data}}
#    \;+\; KL\big(P(\text{traj.}, x_0)\,\|\,p_\theta(\text{traj.}, x_0)\big). $$
#
# The second term is 0 if the model walks back as the truth does. With the true score it does, except at the
# two ends. It starts from exactly uniform noise, while the truth at $\bar\sigma = 20$ is only nearly uniform.
# And it draws the last characters *independently of each other*, though they may depend on each other. Both
# errors vanish as the limits go to $\infty$ and to 0. What remains is the entropy of the data, the lowest
# value that any model can reach. **A Bayes-optimal network does not have zero loss.** It does not know $x_0$,
# and its loss is exactly the price of not knowing.

# %% [markdown]
# ## The area under the curve is the entropy
#
# Take the seven words, the *true* score, and all $64 \times 64$ pairs $(x_0, x_t)$ at each noise level: no
# sampling anywhere. `exact_area`, folded below, integrates the expected loss over the noise by quadrature, and
# `expected_reconstruction` averages the last term.

# %% tags=["test", "hide-input"]
from ddlm_core.support.worlds import World, noise_nodes


def exact_area(world: World, sigma_min: float, sigma_max: float) -> float:
    """The integral of the expected loss of the true score over the noise, in nats per text."""
    levels, weight = noise_nodes(sigma_min, sigma_max)
    loss = world.expected_loss(score_entropy_loss, world.log_score(levels), levels)
    return (weight * loss).sum().item()


def expected_reconstruction(world: World, sigma_bar: float) -> float:
    """Exact mean of -log p(x_0 | x_t), each letter on its own, in nats per text."""
    noise = torch.tensor([sigma_bar], dtype=torch.float64)
    log_p = log_posterior(world.log_q(noise)[0], noise[0], world.texts)  # (N, L, V)
    letters = one_hot(world.texts, world.vocab_size).bool()
    table = torch.where(letters[:, None], log_p, 0.0).sum((2, 3))  # (x_0, x_t)
    joint = world.joint(noise)[0]
    return -torch.where(joint > 0, joint * table, 0.0).sum().item()


# %% [markdown]
# The figure shows the expected loss, summed over the three positions. Its horizontal axis is logarithmic, so
# the loss is multiplied by $\bar\sigma$: then areas are nats, because
# $\ell\,d\bar\sigma = \bar\sigma\,\ell\;d\log\bar\sigma$. An *e-fold* is a factor of $e$, a step of 1 in
# $\log\bar\sigma$. The filled area belongs to the true score. The dashed line belongs to the *uniform baseline*, a network
# that says $s = 1$ to everything and so believes that all texts are equally likely. Its bound is
# $\log 64 = 4.16$ nats. Between the two lies all that there is to learn.

# %% tags=["hide-input"]
# alt: Two hills over the logarithm of the noise. The filled hill of the true score is lower and starts
#  at more noise than the dashed hill of the uniform baseline; both end together.
levels, weight = noise_nodes(1e-4, 20.0)
true_loss = words.expected_loss(score_entropy_loss, words.log_score(levels), levels)
baseline = words.expected_loss(score_entropy_loss, torch.zeros(100, 64, 3, 4), levels)
plt.fill_between(levels, levels * true_loss, alpha=0.3)
plt.plot(levels, levels * true_loss, label="true score")
plt.plot(levels, levels * baseline, "--", label="uniform baseline")
plt.xscale("log")
plt.xlabel(r"total noise $\bar\sigma$")
plt.ylabel("nats per text and e-fold of noise")
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
# The sum is the entropy to within 0.00006 nats, and from above, as a bound must be. The difference is the
# last draw. Say it sees `tet`. Was it `ten`, `tea` or `net`? Drawn independently, the letters may give `nen`.
# With a smaller $\bar\sigma_{\min}$ such a misprint is rarer, and this cost shrinks in proportion.
#
# One version has no errors at the ends. The area *under the true score* between any two noise levels is
# exactly the information about $x_0$ that the noise destroys between them,
#
# $$ \int_{\bar\sigma_1}^{\bar\sigma_2} \mathbb E\sum_i\ell_i\;d\bar\sigma
#   = I(x_0; x_{\bar\sigma_1}) - I(x_0; x_{\bar\sigma_2}),
# \qquad I(x_0; x_t) = \mathbb E\log\frac{p(x_0, x_t)}{p_{\text{data}}(x_0)\,p_t(x_t)}, $$
#
# where $I$ is the *mutual information*: how many nats of information $x_t$ gives about $x_0$. From here on,
# $\mathbb E$ averages over $x_0$, too. To see why, take one step from $x_{t'}$ to the noisier $x_t$. Given
# $x_{t'}$, the text $x_t$ tells nothing new about $x_0$. So the loss of information
# $I(x_0; x_{t'}) - I(x_0; x_t)$ is what $x_{t'}$ adds to $x_t$, which is
# $\mathbb E\,KL\big(p(x_{t'} \mid x_t, x_0)\,\|\,p(x_{t'} \mid x_t)\big)$. This is the KL of one step, as in
# step 2, because the true score gives the rates of $p(x_{t'} \mid x_t)$. [Jeon et al.
# (2025)](https://arxiv.org/abs/2510.24088) study this identity; for Gaussian noise it is known as I-MMSE.
# Both are tested on worlds in which every text is possible, the identity to $10^{-12}$ nats and the whole
# bound to $10^{-6}$.


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
# A wrong loss fails here as well, with no second formula to compare with. Now we can measure what the square
# costs. The area under a network's own curve, less the area under the true one, is
# $KL(P\,\|\,p_\theta)$ for the steps of the trajectory: its *excess loss*.


# %% tags=["hide-input"]
@torch.no_grad()
def excess(model):
    scores = torch.stack([model(words.texts, level.expand(64)).double() for level in levels])
    loss = words.expected_loss(score_entropy_loss, scores, levels)
    return (weight * (loss - true_loss)).sum().item()


for name, model in learned.items():
    print(f"{name:23} {excess(model):.3f} nats per text above the truth")

# %% [markdown]
# With the same network, data and number of steps, the square loses more than eight times as much as score
# entropy, and the denoiser loses least.
#
# In training we cannot enumerate, so the integral is estimated at random noise levels. Which levels to draw,
# and how to weight them (*importance sampling*), is a question for [chapter 8](08_training.ipynb) and for
# [where to spend the samples](deeper/noise_levels.ipynb).

# %% [markdown]
# ## Change it safely
#
# In `score_entropy_loss`, weight with $1/(V-1)$: write `/ (vocab_size - 1)` in the last line.
# Guess which tests fail before you run them. The answer: `test_loss_equals_the_sum`, of course, but also
# `test_area_is_the_information_destroyed` and `test_bound_is_the_entropy_of_the_data`. The area is then
# twice the entropy for $V = 2$, the first world.
#
# The command: `make export && pytest tests/test_loss.py tests/unit/test_loss.py`.

# %% [markdown]
# ## Exercises
#
# **1. The price of the uniform baseline.** For the 106 characters of this book, what is the bound of a
# network whose $q$ is uniform, in nats per character? Guess; then add up diffusion, prior and
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
# **2. Backward.** Given all scores $s_y$ of a denoiser at one position, and $\kappa$, recover $q$.
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
# ## Summary
#
# * Backward rates are forward rates times ratios of probabilities; the normalizer cancels.
# * Score entropy is the KL divergence between true and modeled jumps, per unit of noise. Its $1/V$ is the
#   rate of each jump.
# * Its integral, plus a prior and a reconstruction term, is the negative ELBO. With the true score it is the
#   entropy of the data.
# * A denoiser's $q$ becomes a score by $s_y = (1+\kappa q_y)/(1+\kappa q_{x_t})$.
#
# | exported | what it is |
# |---|---|
# | `kappa(sigma_bar, vocab_size)` | $\kappa = V/(e^{\bar\sigma}-1)$, through which all noise enters |
# | `log_ratio(sigma_bar, x_t, x_0, vocab_size)` | $\log a_y$, the target given the clean text |
# | `score_entropy_loss(log_score, sigma_bar, x_t, x_0)` | $\ell$ per position, nats per unit of noise |
# | `denoiser_log_score(log_q, sigma_bar, x_t)` | from the denoising distribution to log-scores |
# | `log_posterior(log_q, sigma_bar, x_t)` | the denoising distribution once $x_t$ at its own position is counted |
# | `prior_kl(sigma_bar_1, vocab_size)` | what is left of the text at $t = 1$ |
#
# ## Where this stands in the field
#
# Score entropy comes from [SEDD](https://arxiv.org/abs/2310.16834), which replaced the square of
# [concrete score matching](https://arxiv.org/abs/2211.00802). Much of the later work models $q$, as we do. For
# masks the bound becomes a weighted cross-entropy ([MDLM](https://arxiv.org/abs/2406.07524),
# [MD4](https://arxiv.org/abs/2406.04329)), and [LLaDA](https://arxiv.org/abs/2502.09992) trains 8 billion
# parameters with it. For uniform noise, [UDLM](https://arxiv.org/abs/2412.10193) derives a bound in terms of
# the denoiser, and [Duo](https://arxiv.org/abs/2506.10892) connects it with Gaussian diffusion;
# [GIDD](https://arxiv.org/abs/2503.04482) mixes both noises. A 2025 study of
# [scaling](https://arxiv.org/abs/2512.10858) finds that uniform noise needs more parameters and less data than
# masks do.
#
# Next: [chapter 6](06_model.ipynb) builds the network that predicts $q$.
