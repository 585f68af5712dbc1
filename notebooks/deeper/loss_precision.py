# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The last digits of the loss
#
# *About 15 minutes. You need: [chapter 5](../05_loss.ipynb). You will have: the reasons for each line of
# `score_entropy_loss`, measured, and a bug that is common in public code, taken apart.*
#
# **We have** the score entropy of one position, as a formula and as a function.
# **We want** to know how many digits of the function are right, and what goes wrong without its precautions.
# **Why**: the terms of this loss can be millions and their sum a millionth, and `float32` carries seven
# digits.

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
# ## Three terms, or one?
#
# The definition has three terms, $s_y - a_y\log s_y + a_y(\log a_y - 1)$. With $d_y = \log s_y - \log a_y$
# they are one, $a_y(e^{d_y} - 1 - d_y)$. On paper the two are equal. Take one moved character of the alphabet
# of this book, $V = 106$, and a network that is off by 1 % in every ratio, and compute both in `float32`. The
# truth is the second form in `float64`; chapter 5 compares that with forty digits.

# %%
import torch

from ddlm_core.loss import kappa, log_ratio, score_entropy_loss

x_t, x_0 = torch.tensor([[0]]), torch.tensor([[1]])


def three_terms(log_score, log_a):
    """The definition, term by term, in the dtype of its input."""
    a = log_a.exp()
    terms = log_score.exp() - a * log_score + a * (log_a - 1)
    return terms[..., 1:].sum(-1) / log_score.shape[-1]  # x_t is token 0


print("noise     largest term   truth       three terms   one term")
for level in (1e-4, 1e-2, 1.0, 20.0):
    sigma_bar = torch.tensor([level], dtype=torch.float64)
    log_a = log_ratio(sigma_bar, x_t, x_0, 106)
    log_score = (log_a + 0.01).float()
    log_score[..., 0] = 0
    truth = score_entropy_loss(log_score.double(), sigma_bar, x_t, x_0).item()
    many = three_terms(log_score, log_a.float()).item()
    one = score_entropy_loss(log_score, sigma_bar.float(), x_t, x_0).item()
    largest = (log_a.exp() * (log_a - 1)).abs().max().item()
    print(f"{level:<9g} {largest:<14.3g} {truth:<11.4g} {many:<13.4g} {one:.4g}")
    assert abs(one - truth) < 1e-4 * truth

# %% [markdown]
# At $\bar\sigma=10^{-4}$ the three terms are around ten million each, one unit in the last place of such a
# number is 1, and the sum of the three is off in the third digit. At high noise nothing is large, but the
# loss itself is tiny. The one-term form keeps four digits and more everywhere, and it cannot be negative:
# $e^d \ge 1 + d$.
#
# ## Which entry needs `float64`
#
# One entry per position still troubles `float32`: $y = x_0$ of a moved character, where $a_y = 1+\kappa$ is
# up to a million. The error of $d$ is then the rounding error of two logarithms near 14, some $10^{-6}$. Near
# the truth the term is about $a\,d^2/2$, and its error $a\,d$ times the error of $d$. The function computes
# this entry alone in `float64`. Here are both, in units of the tolerance of chapter 5's check,
# $10^{-4}\ell + 10^{-7}$:


# %%
def all_float32(log_score, sigma_bar, x_t, x_0):
    """The same loss with no float64 inside."""
    log_a = log_ratio(sigma_bar, x_t, x_0, log_score.shape[-1])
    d = log_score - log_a
    terms = log_a.exp() * (torch.expm1(d) - d)
    return terms.scatter(-1, x_t[..., None], 0.0).sum(-1) / log_score.shape[-1]


def worst(loss, level):
    """Largest error over ten thousand scores near the truth, in units of the tolerance."""
    g = torch.Generator().manual_seed(0)
    sigma_bar = torch.full((10_000,), level)
    many_t, many_0 = x_t.expand(10_000, 1), x_0.expand(10_000, 1)
    log_a = log_ratio(sigma_bar.double(), many_t, many_0, 106)
    size = 10 ** (-4 * torch.rand(10_000, 1, 1, generator=g, dtype=torch.float64))
    noise = torch.randn(log_a.shape, generator=g, dtype=torch.float64)
    log_score = (log_a + size * noise).float()
    truth = score_entropy_loss(log_score.double(), sigma_bar.double(), many_t, many_0)
    error = loss(log_score, sigma_bar, many_t, many_0).double() - truth
    return (error.abs() / (1e-4 * truth + 1e-7)).max().item()


for level in (1e-4, 1e-2, 1.0):
    mixed, plain = worst(score_entropy_loss, level), worst(all_float32, level)
    print(f"noise {level:<7g} with one float64 entry {mixed:8.4f}   all float32 {plain:8.2f}")
    assert mixed < 1
assert worst(all_float32, 1e-4) > 1

# %% [markdown]
# With `float64` in that one place the error stays within the tolerance; without it, it does not, and the less
# noise there is the worse it gets. The cost is one number per position, not one per position and character.
# (Apple's GPUs have no `float64`. There the function stays with `float32`.)
#
# ## No series for small $d$
#
# For tiny $d$ even `expm1(d) - d` cancels: both are about $d$, and the difference is $d^2/2$. Does it need
# the series $d^2/2 + d^3/6$? What counts is the sum, so measure the error in units of the tolerance again,
# with $a = 1$ in all places, over three million values of $d$ of every size:

# %%
g = torch.Generator().manual_seed(0)
d = torch.randn(3_000_000, generator=g) * 10 ** (-7 * torch.rand(3_000_000, generator=g))
found, truth = torch.expm1(d) - d, torch.expm1(d.double()) - d.double()
assert (found >= 0).all()
error = (found - truth).abs() / (1e-4 * truth + 1e-7)
print(f"never negative; largest error {error.max().item():.3f} of the tolerance")
assert error.max() < 1

# %% [markdown]
# No: it is never negative, and far inside the tolerance. A branch for small $d$ would be code without a use.
#
# ## A common bug
#
# The loss of the paper, and its authors' code, are right. But an algebra bug is common in re-implementations,
# for example
# [in this training script](https://github.com/rickyars/diffusion-gpt/blob/0a3ebaa63caaaebd32c40f1fc423d269820359b2/scripts/training/train.py).
# They average over $V-1$ characters instead of weighting with $1/V$, which by itself only scales the loss.
#
# The bug sits in the moved case ($x_t \ne x_0$), in the middle term $\sum_{y\ne x_t} a_y\log s_y$. There
# $a_{x_0} = 1+\kappa$, and the other $V-2$ ratios are 1. Done right, as an average over $V-1$ characters, it
# is
#
# $$ \frac{1}{V-1}\Big((1+\kappa)\log s_{x_0} + \sum_{y\,\ne\,x_t,\,x_0}\log s_y\Big). $$
#
# The buggy line scales the sum by $(V-2)/(V-1)$ *once more*, as if it still had to become an average, and
# does not leave out $x_0$, which has its own part already. In the code, `positive` is the part $\sum s_y$ of
# the loss, `middle` the part $\sum a_y\log s_y$, `constant` the part $\sum a_y(\log a_y - 1)$:


# %%
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


# %% [markdown]
# Where is its lowest point? Collect what depends on $s = s_{x_0}$, times $V-1$:
# $s - \big(1+\kappa+\tfrac{V-2}{V-1}\big)\log s$. Its slope $1 - \big(1+\kappa+\tfrac{V-2}{V-1}\big)/s$ is
# zero at $s = 1+\kappa+\tfrac{V-2}{V-1}$, almost 1 too large. For every other $s_y$ the part is
# $s_y - \tfrac{V-2}{V-1}\log s_y$, lowest at $\tfrac{V-2}{V-1}$ instead of 1: with $V = 106$ about 1 % too
# small. The surplus at $x_0$ matters little while $\kappa$ is large, and more at high noise, where a text
# gets its first shape:

# %%
for level, percent in ((1.0, 2), (3.0, 15), (5.0, 58)):
    sigma_bar = torch.tensor([level], dtype=torch.float64)
    truth = log_ratio(sigma_bar, x_t, x_0, 106)
    s = truth.exp()
    s[..., 1] += 104 / 105
    s[..., 2:] *= 104 / 105
    log_score = s.log().requires_grad_()
    (slope,) = torch.autograd.grad(buggy_loss(log_score, sigma_bar, x_t, x_0).sum(), log_score)
    assert slope.abs().max() < 1e-12 and buggy_loss(truth, sigma_bar, x_t, x_0) < 0
    too_large = (s[0, 0, 1] / truth[0, 0, 1].exp() - 1).item()
    assert round(100 * too_large) == percent
    print(f"noise {level:g}: {too_large:.1%} too large")

# %% [markdown]
# That is the surplus if $x_0$ is known. A network has to answer for all $x_0$ that are possible, and the
# surplus is there only when $x_0 = y$, so on average it is about $p(x_0 = y\mid x_t)$.
#
# The figure shows both losses against $s_{x_0}$ at $\bar\sigma = 5$, $V = 106$, all other ratios at the
# truth. The exact loss touches zero at the true ratio, 1.72 (dotted vertical line). The buggy one
# (dashed) is lowest at 2.71, and *negative* at the truth.

# %% tags=["hide-input"]
# alt: Two valleys over the predicted ratio. The exact loss touches zero at the true ratio 1.72. The
#  buggy loss, dashed, is below zero there and lowest at 2.71.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
level = torch.tensor([5.0], dtype=torch.float64)
truth = log_ratio(level, x_t, x_0, 106)
s = torch.linspace(0.5, 5, 400, dtype=torch.float64)
curve = truth.repeat(400, 1, 1)
curve[:, 0, 1] = s.log()
pairs = x_t.repeat(400, 1), x_0.repeat(400, 1)
for name, loss in (("exact", score_entropy_loss), ("buggy", buggy_loss)):
    values = loss(curve, level[0], *pairs)[:, 0]
    (line,) = plt.plot(s, values, label=name, linestyle="-" if name == "exact" else "--")
    plt.plot(s[values.argmin()], values.min(), "o", color=line.get_color())
plt.axvline(truth[0, 0, 1].exp(), color="0.5", linestyle=":", label="true ratio")
plt.xlabel("predicted ratio $s_{x_0}$")
plt.ylabel("loss (nats per unit of noise)")
plt.legend()
plt.show()

# %% [markdown]
# How would one find it? Hardly by reading: each line looks reasonable, and the loss goes down in training. A
# loss that is a KL divergence and comes out negative is a sign. The brute-force sum of
# [chapter 5](../05_loss.ipynb) is proof.
