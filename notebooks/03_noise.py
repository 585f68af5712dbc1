# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Geometric noise
#
# *About 35 minutes. You need: matrix products, derivatives, and [chapter 1](01_tokenizer.ipynb). You will have: the
# probability of every outcome of the noise, in closed form, at any noise level.*
#
# **We have** texts as rows of tokens, each one of $V$.
# **We want** a way to corrupt them, little by little, from clean text to pure chance, such that for any moment we
# can write down the probability of every outcome.
# **Why**: a diffusion model learns to undo corruption. To train it we need text that is corrupted to any degree, in
# one step ([chapter 4](04_forward.ipynb)). To run the corruption backward ([chapter 7](07_sampler.ipynb)), we need
# the exact probabilities.
#
# Every character is corrupted on its own, whatever its neighbors are. So this chapter is about one character.

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
# ## By hand: three letters and a short step
#
# The alphabet is `a`, `b`, `c`, so $V = 3$. Chop time into short steps of length $dt$. In each step, a letter is
# *resampled* with probability $dt$: thrown away, and replaced by one of the three, each with the same probability.
# Otherwise nothing happens. A resampled `a` may become an `a` again. So after one step of length $dt = 0.1$, an `a`
#
# * is a `b` with probability $0.1 \cdot \tfrac13 = 0.0333$, and the same for `c`;
# * is an `a` with probability $0.9 + 0.1 \cdot \tfrac13 = 0.9333$.
#
# Here is the same for every letter: one row for the letter before the step, one column for the letter after it.

# %%
import torch

dt = 0.1
stay = torch.eye(3, dtype=torch.float64)  # nothing happens
resample = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # any letter, evenly
step = (1 - dt) * stay + dt * resample
step

# %% [markdown]
# Two steps are the product of two such matrices: to get from `a` to `c`, go from `a` to any letter, then from there
# to `c`, and add up the ways. Ten steps are the tenth power, and its first row says what has become of an `a`:

# %%
torch.linalg.matrix_power(step, 10)[0]

# %% [markdown]
# ## The rate matrix
#
# Group the terms of the step by $dt$. $I$ is the identity matrix ("stay"), $J$ the matrix of ones, and
# $U = \tfrac1V J$ is "resample":
#
# $$ \text{step} \;=\; (1 - dt)\,I + dt\,U \;=\; I + dt\,\underbrace{(U - I)}_{Q}. $$
#
# $Q$ is the *rate matrix*, or *generator*. In a very short time $dt$, an `a` turns into a `b` with probability
# $Q_{ab}\,dt$, and $Q_{ab} = 1/V$ for every two different letters. A rate is a probability per unit of time. It may
# exceed 1; only rate times $dt$ is a probability. On the diagonal is what is lost by leaving, $-(1 - 1/V)$.
# Every row sums to 0, because what leaves one letter arrives at another.
#
# Let $dt$ go to 0. Then change can come at any moment, and what comes next depends only on the letter that is there
# now. Such a process is a *continuous-time Markov chain*; each resampling is a *jump*, even if it draws the
# old letter.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens |
# | $Q$ | `rate_matrix` | rates, shape $(V, V)$; rows: before, columns: after |
# | $\bar\sigma$ | `sigma_bar` | *total noise*: jumps per character, on average |
# | $\alpha = e^{-\bar\sigma}$ | – | *survival probability*: no jump so far |
# | $1 - \alpha$ | `resample_probability` | *corruption probability*: at least one jump |

# %% tags=["export"]
import torch
from torch import Tensor


def rate_matrix(vocab_size: int) -> Tensor:
    r"""Rates $Q = \tfrac1V J - I$ at one jump per unit of time: (V, V), float64.

    A V below 1 raises a ValueError. (SEDD's uniform graph, up to their factor V.)
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    ones = torch.ones(vocab_size, vocab_size, dtype=torch.float64)
    return ones / vocab_size - torch.eye(vocab_size)


# %%
rate_matrix(3)

# %% [markdown]
# [SEDD](https://arxiv.org/abs/2310.16834) (score entropy discrete diffusion), the paper behind this book, writes
# $J - VI$ without our $1/V$: the same process with time running $V$ times as fast. (Its code divides by $V$, as we do,
# and calls the choice of $Q$ the *graph*.) Ours makes one unit of noise mean one jump per character, whether of 3
# letters or of 106. (SEDD also writes columns where we write rows; $Q$ is symmetric, so it makes no difference.)
#
# ## Many short steps: the closed form
#
# What do two steps do, one of length $h$, then one of length $k$? To resample twice is to resample once:
# $U^2 = U$. (Each entry of $J^2$ adds up $V$ ones, so $J^2 = VJ$.) It follows that
#
# $$ Q^2 = (U - I)^2 = U^2 - 2U + I = U - 2U + I = -Q, $$
#
# and with it
#
# $$ (I + hQ)(I + kQ) = I + (h + k)\,Q + hk\,Q^2 = I + \big(1 - (1-h)(1-k)\big)\,Q. $$
#
# So two steps act like one step of length $1 - (1-h)(1-k)$: the probability that at least one of them resamples.
# Then $n$ equal steps of $\bar\sigma/n$ give
#
# $$ \Big(I + \tfrac{\bar\sigma}{n}\,Q\Big)^n = I + \Big(1 - \big(1 - \tfrac{\bar\sigma}{n}\big)^n\Big)\,Q
#    \;\longrightarrow\; I + (1 - e^{-\bar\sigma})\,Q \qquad (n \to \infty). $$
#
# By hand: a letter survives ten steps of 0.1 with probability $0.9^{10} = 0.3487$. So the `a` is still there with
# probability $0.3487 + 0.6513 \cdot \tfrac13 = 0.5658$, as the tenth power said. With ever more and shorter steps, it
# survives with probability $e^{-1} = 0.3679$, and is there with probability
# $0.3679 + 0.6321 \cdot \tfrac13 = 0.5786$.
#
# The limit is the *matrix exponential* $e^{\bar\sigma Q}$. (Its series agrees: $Q^2 = -Q$ makes $Q^n = (-1)^{n-1} Q$
# for $n \ge 1$, so $\sum_n \bar\sigma^n Q^n / n!$ is $I + (1 - e^{-\bar\sigma})\,Q$.) Put in $Q = U - I$:
#
# $$ \boxed{\; e^{\bar\sigma Q} = e^{-\bar\sigma}\, I + (1 - e^{-\bar\sigma})\,\tfrac1V J \;} $$
#
# Read it aloud. With probability $\alpha = e^{-\bar\sigma}$ the character was never resampled, and is still there.
# With probability $1 - \alpha$ it was resampled at least once, and is now any token, all equally likely. How often it
# was resampled leaves no trace. These sentences are the whole *forward process* of this book, and the matrix is its
# *kernel*. The number of jumps has the *Poisson distribution* with mean $\bar\sigma$: at $\bar\sigma = 1$ there is
# one on average, but 37 % of the characters get none, and some get several.


# %% tags=["export"]
def as_float_tensor(value: Tensor | float) -> Tensor:
    """Floating tensors unchanged; integer tensors and plain numbers as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def resample_probability(sigma_bar: Tensor | float) -> Tensor:
    r"""Probability $1 - e^{-\bar\sigma}$ that a character was resampled, of any shape."""
    return -torch.expm1(-as_float_tensor(sigma_bar))


def transition_matrix(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""The kernel $e^{\bar\sigma Q}$: (V, V), rows are distributions, dtype of ``sigma_bar``.

    A noise that is negative, NaN or not one number, or V below 1, raises a ValueError.
    """
    sigma_bar = as_float_tensor(sigma_bar)
    if sigma_bar.ndim != 0 or not sigma_bar >= 0:
        raise ValueError(f"sigma_bar must be one number, at least 0, got {sigma_bar}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    stay = torch.eye(vocab_size, dtype=sigma_bar.dtype, device=sigma_bar.device)
    return torch.exp(-sigma_bar) * stay + resample_probability(sigma_bar) / vocab_size


# %% [markdown]
# (`expm1(x)` is $e^x - 1$ without the loss of digits near 0; [noise and precision](deeper/noise_precision.ipynb)
# shows where it matters.) The kernel's first row, for our three letters and one unit of noise, beside
# `torch.linalg.matrix_exp`, which finds the limit for any matrix and knows nothing of our formula:

# %%
transition_matrix(1.0, 3)[0], torch.linalg.matrix_exp(1.0 * rate_matrix(3))[0]

# %% [markdown]
# The test compares them for five alphabets and eight noise levels, from none to almost pure chance.


# %% tags=["test"]
def test_closed_form_equals_matrix_exp():
    for vocab_size in (1, 2, 3, 27, 106):
        for sigma_bar in (0.0, 1e-4, 1e-2, 0.5, 1.0, 3.0, 10.0, 20.0):
            kernel = transition_matrix(sigma_bar, vocab_size)
            limit = torch.linalg.matrix_exp(sigma_bar * rate_matrix(vocab_size))
            assert (kernel - limit).abs().max() < 1e-12
            assert (kernel >= 0).all() and (kernel.sum(1) - 1).abs().max() < 1e-14


test_closed_form_equals_matrix_exp()

# %% [markdown]
# The figure shows what becomes of an `a` of our three letters. The solid line is the probability of an `a`, the
# dashed line that of a `b`. Both tend to $\tfrac13$ (dotted), the *stationary distribution*: after a noise of 5,
# almost nothing tells which letter it was.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
levels = torch.linspace(0, 6, 121, dtype=torch.float64)
rows = torch.stack([transition_matrix(level, 3)[0] for level in levels])  # (121, 3), from an `a`
limits = torch.stack([torch.linalg.matrix_exp(s * rate_matrix(3))[0] for s in levels[::10]])
fig, ax = plt.subplots()
for letter, (name, dash) in enumerate((("a", "-"), ("b", "--"))):
    ax.plot(levels, rows[:, letter], dash, color=f"C{letter}", label=f"{name}: closed form")
    ax.plot(levels[::10], limits[:, letter], "o", color=f"C{letter}", label=f"{name}: matrix_exp")
ax.axhline(1 / 3, color="0.46", linestyle=":", linewidth=1.2)
ax.set(xlabel="total noise (jumps per character)", ylabel="probability", ylim=(0, 1.03))
ax.legend()
plt.show()

# %% [markdown]
# ## Noise adds up
#
# Add noise $u$, then noise $v$. Both kernels have the form $I + hQ$, so the rule for two steps holds for them, with
# $1 - h = e^{-u}$ and $1 - k = e^{-v}$:
#
# $$ e^{uQ}\,e^{vQ} = I + \big(1 - e^{-u}e^{-v}\big)\,Q = e^{(u+v)Q}. $$
#
# That is why noise needs no history: from a text at noise $u$ to one at noise $u + v$, only $v$ counts. (A test in
# `tests/unit` multiplies the matrices.)
#
# ## Why uniform noise, and not masks
#
# A mask is the other choice: a jump turns the character into an extra token `<MASK>`, which then stays. This
# *absorbing* or *masked* diffusion ([MDLM](https://arxiv.org/abs/2406.07524), [LLaDA](https://arxiv.org/abs/2502.09992);
# [appendix A](A_absorbing.ipynb)) is what most large diffusion language models use. It tends to reach better
# likelihoods: a masked text *shows* where it is corrupted. But a mask, once filled in, is not changed any more. So a
# mistake stays, unless one adds a rule for correcting it.
#
# Under uniform noise the model must find out which characters are wrong. In return it may change any of them at any
# step, and correct its own mistakes. That is why we use it, and why it came back:
# [UDLM](https://arxiv.org/abs/2412.10193), [Duo](https://arxiv.org/abs/2506.10892), and, with 26 billion parameters,
# Google's [DiffusionGemma](https://ai.google.dev/gemma/docs/diffusiongemma/explained) all start from random tokens.
#
# ## The schedule: how fast should the noise come?
#
# So far the rate was one jump per unit of time. Let it be $\sigma(t)$ at time $t$; the process is then
# *time-inhomogeneous*. In a short time $dt$ an amount $\sigma(t)\,dt$ of noise is added, so by time $t$ the total is
# $\bar\sigma(t)$, with $d\bar\sigma/dt = \sigma$. Let $p(t)$ be the row of probabilities of the $V$ tokens. A short
# step multiplies it by $I + \sigma(t)\,dt\,Q$. Subtract $p(t)$ and divide by $dt$:
#
# $$ \frac{dp}{dt} = \sigma(t)\; p\, Q, \qquad\text{solved by}\qquad
#    p(t) = p_{\text{clean}}\; e^{\bar\sigma(t)\,Q}, $$
#
# with $p_{\text{clean}}$ the row before any noise. This is the *Kolmogorov forward equation*, or master equation. To
# check the solution, write the exponential as $I + (1 - e^{-\bar\sigma})\,Q$. Its derivative is
# $\sigma e^{-\bar\sigma} Q$; the exponential times $\sigma Q$ is $\sigma\,\big(Q + (1 - e^{-\bar\sigma})\,Q^2\big)$,
# the same. So time enters through $\bar\sigma(t)$ alone. A *noise schedule* says how much noise has been added by
# time $t$.
#
# Ours is *geometric*: in equal times, the total noise grows by equal factors, from $\sigma_{\min}$ at $t = 0$ to
# $\sigma_{\max}$ at $t = 1$. By hand, with $\sigma_{\min} = 0.01$ and $\sigma_{\max} = 1$: a factor of 100 in all, so
# a factor of 10 in each half, and the noise halfway is $0.1$. In general, $\log\bar\sigma$ is a straight line in $t$:
#
# $$ \bar\sigma(t) = \sigma_{\min}^{\,1-t}\;\sigma_{\max}^{\,t}, \qquad
#    \sigma(t) = \frac{d\bar\sigma}{dt} = \bar\sigma(t)\,\log\frac{\sigma_{\max}}{\sigma_{\min}}, \qquad
#    t = \frac{\log\bar\sigma - \log\sigma_{\min}}{\log\sigma_{\max} - \log\sigma_{\min}}. $$
#
# The rate comes from the chain rule; the last formula is the line, solved for $t$. **Why geometric?** A text needs
# all orders of magnitude. At 0.01 jumps per character, a story of 160 characters has one or two misprints to find; at
# 1, hardly a word is left; and a geometric schedule gives each factor of 10 the same time. SEDD uses it for uniform
# noise, from $\sigma_{\min} = 10^{-4}$ to $\sigma_{\max} = 20$; so do we. Its other schedule, *log-linear*, lets
# $1-\alpha_t$ (with $\alpha_t = e^{-\bar\sigma(t)}$) grow linearly and is used with masks. In chapter 5 the choice
# will cancel out of the loss: an integral $\int \sigma(t)\,f(\bar\sigma(t))\,dt$ is $\int f\,d\bar\sigma$, whatever
# the schedule between the same ends. It decides only where training and sampling spend their time. The collapsed cell
# below, `NoiseSchedule`, lists all that later code asks of a schedule.

# %% tags=["export", "hide-input"]
from typing import Protocol


class NoiseSchedule(Protocol):
    r"""What a noise schedule offers; t and $\bar\sigma$ may have any shape, and results have theirs."""

    @property
    def sigma_min(self) -> float: ...  # total noise at t = 0

    @property
    def sigma_max(self) -> float: ...  # total noise at t = 1; may be infinite

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]: ...  # both of the next two

    def sigma_bar(self, t: Tensor | float) -> Tensor: ...  # total noise at time t

    def sigma(self, t: Tensor | float) -> Tensor: ...  # its derivative, the noise rate

    def time(self, sigma_bar: Tensor | float) -> Tensor: ...  # the inverse of sigma_bar


# %% tags=["export"]
import math
from dataclasses import dataclass

from ddlm_core.support.errors import UserError


@dataclass(frozen=True)
class GeometricNoise:
    r"""The geometric schedule of SEDD (Lou, Meng & Ermon 2024): equal factors in equal times.

    Called with t in [0, 1] (any shape, not checked) it returns total noise $\bar\sigma(t)$ and rate
    $\sigma(t)$, of the shape and dtype of t. Plain numbers count as float64; bfloat16 is too coarse.
    Limits that are not 0 < sigma_min < sigma_max < inf raise a UserError.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"noise limits must satisfy 0 < sigma_min < sigma_max < inf: {self}")

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    @property
    def log_growth(self) -> float:
        r"""$\log(\sigma_{\max}/\sigma_{\min})$: the slope of $\log\bar\sigma(t)$."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = \sigma_{\min}^{1-t}\,\sigma_{\max}^{t}$, of the shape of ``t``."""
        t = as_float_tensor(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = d\bar\sigma/dt$, of the shape of ``t``."""
        return self.sigma_bar(t) * self.log_growth

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the inverse."""
        return (torch.log(as_float_tensor(sigma_bar)) - math.log(self.sigma_min)) / self.log_growth


# %% [markdown]
# At five times, for a story of 160 characters: the noise, and how many characters have been resampled.

# %%
noise = GeometricNoise()
print("   t   sigma_bar      sigma   resampled of 160")
for t in torch.linspace(0, 1, 5, dtype=torch.float64):
    sigma_bar, sigma = noise(t)
    resampled = 160 * resample_probability(sigma_bar)
    print(f"{t:.2f}  {sigma_bar:10.5f} {sigma:10.4f}   {resampled:16.2f}")

# %% [markdown]
# At $t = 0$ the noise is $\sigma_{\min}$, not 0, because growth by factors cannot start at 0. One character in ten
# thousand has already been resampled. So clean text $x_0$ is not $x_t$ at $t = 0$; the last little step back to it
# gets a term of its own in [chapter 5](05_loss.ipynb). At $t = 1$ a character survives with probability
# $e^{-20} = 2\cdot10^{-9}$, and nothing is left: the KL divergence of the kernel's rows from uniform is
# [$2\cdot10^{-16}$ nats per character](deeper/noise_precision.ipynb).
#
# Is the rate really the derivative of the total? PyTorch can differentiate, so let it judge. And does the kernel,
# with this schedule, solve the equation?


# %% tags=["test"]
def test_rate_is_the_derivative_of_the_total():
    for noise in (GeometricNoise(), GeometricNoise(0.01, 3.0), GeometricNoise(2, 5)):
        t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
        sigma_bar, sigma = noise(t)
        (slope,) = torch.autograd.grad(sigma_bar.sum(), t)
        assert torch.allclose(sigma, slope, rtol=1e-12, atol=0)


def test_kernel_solves_the_equation_of_the_process():
    noise = GeometricNoise()
    clean = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)

    def p(t):
        return clean @ transition_matrix(noise.sigma_bar(t), 3)

    for t in torch.tensor([0.0, 0.3, 0.7, 0.8, 1.0], dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(p, t)
        flow = noise.sigma(t) * p(t) @ rate_matrix(3)
        assert torch.allclose(slope, flow, rtol=1e-10, atol=1e-12)


test_rate_is_the_derivative_of_the_total()
test_kernel_solves_the_equation_of_the_process()

# %% [markdown]
# ## The picture: most of the change comes late
#
# In the upper panel, the total noise $\bar\sigma(t)$ (solid) and the rate $\sigma(t)$ (dashed), on a logarithmic
# axis: two parallel straight lines, a factor of 12.2 apart. In the lower panel, the corruption probability
# $1-\alpha_t$: a steep S, near 0 until about $t = 0.4$, half at $t = 0.72$, near 100 % from $t = 0.9$ on. Two parts
# are shaded. On the left, less than 1 % of the characters are resampled: fewer than two in a story of 160. On the
# right, more than 99 % are.

# %%
almost_clean = noise.time(-math.log(0.99)).item()  # 1 % resampled
almost_gone = noise.time(-math.log(0.01)).item()  # 99 % resampled
print(f"almost clean until t = {almost_clean:.3f}, almost gone from t = {almost_gone:.3f} on")

# %% tags=["hide-input"]
t = torch.linspace(0, 1, 401, dtype=torch.float64)
fig, (upper, lower) = plt.subplots(2, sharex=True, figsize=(7, 5))
upper.semilogy(t, noise.sigma_bar(t), label="total noise σ̄(t)")
upper.semilogy(t, noise.sigma(t), "--", label="rate σ(t), per unit of time")
upper.set(ylabel="jumps per character", yticks=[1e-4, 1e-2, 1, 100])
upper.legend()
lower.plot(t, 100 * resample_probability(noise.sigma_bar(t)), color="C2")
lower.set(xlabel="time t", ylabel="characters resampled (%)", xlim=(0, 1), ylim=(0, 103))
for ax in (upper, lower):
    for start, end in ((0, almost_clean), (almost_gone, 1)):
        ax.axvspan(start, end, color="C4", alpha=0.1, linewidth=0)
lower.text(almost_clean / 2, 50, f"almost clean:\n{almost_clean:.0%} of the time", ha="center")
gone, middle = f"almost gone:\n{1 - almost_gone:.0%} of the time", (1 + almost_gone) / 2
lower.annotate(gone, (middle, 40), (0.995, 12), ha="right", arrowprops={"arrowstyle": "->"})
plt.show()

# %% [markdown]
# More than a third of all times show a text with almost nothing to correct. For small noise $1 - e^{-\bar\sigma}$ is about
# $\bar\sigma$ itself, so "1 % resampled" is $\bar\sigma = 10^{-2}$, a factor of 100 from the start, of 200,000 in all:
#
# $$ \frac{\log(10^{-2}/10^{-4})}{\log(20/10^{-4})} = \frac{4.605}{12.206} \approx 0.377, $$
#
# or 0.378 without the approximation. Is that a waste? Of the 20 jumps per character in all, only 0.01 fall in this
# third, so a trainer that draws its times evenly learns little there. One cure is another schedule (exercise 3), at a
# price. The other draws more noise levels where the loss is large and gives each less weight in return: *importance
# sampling*, as in [chapter 8](08_training.ipynb).
#
# In the rendered book, put noise on a sentence of your own. At which level can you no longer read your name?

# %% tags=["hide-input"]
from ddlm_core import Live

Live("corrupt", text="Lily lost her hat.", sigma=0.3)

# %% [markdown]
# ## Change it safely
#
# Try a *linear* schedule: in `sigma_bar`, return `self.sigma_min * (1 - t) + self.sigma_max * t`. Then
# `test_rate_is_the_derivative_of_the_total` fails, because `sigma` still has the old slope; so does
# `test_kernel_solves_the_equation_of_the_process`. Make `sigma` return
# `torch.full_like(as_float_tensor(t), self.sigma_max - self.sigma_min)`, and both pass. Two unit tests still fail,
# `test_time_is_the_inverse_and_the_ends_are_met` and `test_a_geometric_schedule_has_all_that_a_schedule_has`, because
# they expect the geometric line and its inverse. The command:
# `make export && pytest tests/test_noise.py tests/unit/test_noise.py`.
#
# **Exercise 1.** At what time are half of the characters resampled? (Expected: $t = 0.7245$.)

# %% tags=["solution", "hide-input"]
half = noise.time(math.log(2))  # 1 - exp(-sigma_bar) = 1/2
assert abs(half.item() - 0.7245) < 1e-4
half

# %% [markdown]
# **Exercise 2.** *Resampled* is not *different*: one jump in $V$ draws the old character. At $\bar\sigma = 1$, how many of
# 160 characters differ from the clean ones, on average, for $V = 106$, and for $V = 2$? (Expected: 100.2 and 50.6.)

# %% tags=["solution", "hide-input"]
different = [160 * (1 - transition_matrix(1.0, V)[0, 0].item()) for V in (106, 2)]
assert abs(different[0] - 100.2) < 0.05 and abs(different[1] - 50.6) < 0.05
[round(count, 1) for count in different]

# %% [markdown]
# **Exercise 3.** Which $\sigma_{\min}$ makes the almost clean part only a tenth of the time, with the same
# $\sigma_{\max}$? And what does it cost at $t = 0$? (Expected: 0.00432; now 0.43 % of the characters, instead of
# 0.01 %, are already resampled at $t = 0$, where the model, running backward, stops.)

# %% tags=["solution", "hide-input"]
# Solve log(s) = 0.9 log(sigma_min) + 0.1 log(20) for sigma_min, with s the noise that resamples 1 %.
sigma_min = math.exp((math.log(-math.log(0.99)) - 0.1 * math.log(20)) / 0.9)
later = GeometricNoise(sigma_min, 20.0)
assert abs(later.time(-math.log(0.99)).item() - 0.1) < 1e-12
assert abs(sigma_min - 0.00432) < 1e-5
round(sigma_min, 5), round(100 * resample_probability(sigma_min).item(), 2)

# %% [markdown]
# **Exercise 4.** Some papers never draw the old token: every *other* one gets the rate $1/(V-1)$, and the diagonal is
# $-1$. Show that this is the same process, run faster. Which $\bar\sigma$ of theirs gives our kernel at
# $\bar\sigma = 1$, for $V = 3$? (Expected: $2/3$.)

# %% tags=["solution", "hide-input"]
others = (torch.ones(3, 3, dtype=torch.float64) - torch.eye(3)) / 2 - torch.eye(3)
assert torch.allclose(others, rate_matrix(3) * 3 / 2)  # Q times V / (V - 1)
assert torch.allclose(torch.linalg.matrix_exp(2 / 3 * others), transition_matrix(1.0, 3))
torch.linalg.matrix_exp(2 / 3 * others)[0]

# %% [markdown]
# ## Summary
#
# A character survives with probability $\alpha_t = e^{-\bar\sigma_t}$; otherwise it is anything. Noise adds up, and a
# schedule says how much has been added by time $t$.
#
# | name | meaning |
# |---|---|
# | `rate_matrix(vocab_size)` | $Q = \tfrac1V J - I$ |
# | `transition_matrix(sigma_bar, vocab_size)` | $e^{\bar\sigma Q}$, in closed form |
# | `resample_probability(sigma_bar)` | corruption probability $1 - e^{-\bar\sigma}$, with all its digits |
# | `GeometricNoise(sigma_min, sigma_max)` | the schedule: `noise(t)` is $(\bar\sigma(t), \sigma(t))$ |
# | `.sigma_bar(t)`, `.sigma(t)`, `.time(sigma_bar)`, `.log_growth` | total, rate, inverse, slope of $\log\bar\sigma$ |
# | `NoiseSchedule` | what any schedule offers, as a protocol |
# | `as_float_tensor(value)` | numbers and tensors alike, as floating tensors |
#
# ## Where this stands in the field
#
# Uniform noise on tokens is *multinomial diffusion* ([Hoogeboom et al. 2021](https://arxiv.org/abs/2102.05379)), now
# called *uniform-state diffusion*. [D3PM](https://arxiv.org/abs/2107.03006) generalized it to other transition
# matrices, masks among them, in discrete time, and [Campbell et al. 2022](https://arxiv.org/abs/2205.14987) to
# continuous time. Our kernel is what MDLM and UDLM write as $\mathrm{Cat}(\alpha_t x_0 + (1-\alpha_t)\,\pi)$, with
# $\pi$ the mask or uniform. [GIDD](https://arxiv.org/abs/2503.04482) mixes both noises, so that the model learns to
# correct itself.
#
# Next: [corrupting text](04_forward.ipynb).
