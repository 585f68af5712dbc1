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
# **We have** texts as rows of tokens, each one of $V$ ([chapter 1](01_tokenizer.ipynb)).
# **We want** a way to ruin them, little by little, from clean text to pure chance, such that for any
# moment we can write down the probability of every outcome.
# **Why**: a diffusion model learns to undo damage. To train it we need text that is damaged to any
# degree, in one step ([chapter 4](04_forward.ipynb)). To judge it, and to run the damage backwards
# ([chapter 7](07_sampler.ipynb)), we need the exact probabilities.
#
# Every character is ruined on its own, whatever its neighbors are. So this chapter is about one
# character.

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
# The alphabet is `a`, `b`, `c`, so $V = 3$. Chop time into short steps of length $dt$. In each step, a
# letter is *redrawn* with probability $dt$: thrown away, and replaced by one of the three, each with
# the same chance. With probability $1 - dt$ nothing happens.
#
# A redrawn `a` may become an `a` again. So after one step of length $dt = 0.1$, an `a`
#
# * is a `b` with probability $0.1 \cdot \tfrac13 = 0.0333$, and the same for `c`;
# * is an `a` with probability $0.9 + 0.1 \cdot \tfrac13 = 0.9333$.
#
# Here is the same for every letter: one row for the letter before the step, one column for the letter after it.

# %%
import torch

dt = 0.1
stay = torch.eye(3, dtype=torch.float64)  # nothing happens
redraw = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # any letter, evenly
step = (1 - dt) * stay + dt * redraw
step

# %% [markdown]
# Two steps are the product of two such matrices: to get from `a` to `c`, go from `a` to any letter, then
# from there to `c`, and add up the ways. That is how matrices multiply. Ten steps are the tenth power, and
# its first row says what has become of an `a`:

# %%
torch.linalg.matrix_power(step, 10)[0]

# %% [markdown]
# ## The rate matrix
#
# Sort the step by what depends on $dt$. $I$ is the identity matrix ("stay"), $J$ the matrix of ones, and
# $P = \tfrac1V J$ is "redraw":
#
# $$ \text{step} \;=\; (1 - dt)\,I + dt\,P \;=\; I + dt\,\underbrace{(P - I)}_{Q}. $$
#
# $Q$ is the **rate matrix** (also called *generator*). A rate is a probability per unit of time: in a very
# short time $dt$, an `a` turns into a `b` with probability $Q_{ab}\,dt$, and $Q_{ab} = 1/V$ for every two
# different letters. On the diagonal stands what is lost by leaving, $-(1 - 1/V)$. Every row sums to 0, because
# what leaves one letter arrives at another.
#
# Let $dt$ go to 0. Then change can come at any moment, and what comes next depends only on the letter
# that is there now, not on how it came to be there. Such a process is called a **continuous-time Markov
# chain**. That is all there is to the name, and $Q$ says all there is to know about ours, while its speed is one redraw in
# a unit of time.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens |
# | $Q$ | `rate_matrix` | rates, shape $(V, V)$; rows: before, columns: after |
# | $\bar\sigma$ | `sigma_bar` | total noise: redraws per character, on average |
# | $\sigma$ | `sigma` | noise rate: redraws per character and unit of the time $t$ |
# | $t$ | `t` | time by the clock further down, from 0 to 1 |

# %% tags=["export"]
import torch
from torch import Tensor


def rate_matrix(vocab_size: int) -> Tensor:
    r"""Rates $Q = \tfrac1V J - I$ at one redraw per unit of time: (V, V), float64.

    A V below 1 raises a ValueError. (SEDD's uniform graph, up to their factor V.)
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    ones = torch.ones(vocab_size, vocab_size, dtype=torch.float64)
    return ones / vocab_size - torch.eye(vocab_size)


# %%
rate_matrix(3)

# %% [markdown]
# **Where the $1/V$ comes from.** A redraw picks each of the $V$ letters, the old one among them, with chance
# $1/V$. So one unit of noise means one redraw per character, on average, for 3 letters as for 106.
# The paper behind this book, [SEDD](https://arxiv.org/abs/2310.16834) (score entropy discrete diffusion), writes
# $J - VI$, without the $1/V$: the same process by a
# clock that runs $V$ times as fast. (Its authors' code divides by $V$, as we do.) Others leave out the
# draw of the old letter and write $1/(V-1)$, another clock: exercise 3. The choice returns as a weight
# in the loss of [chapter 5](05_loss.ipynb), which must use the same $Q$.

# %% [markdown]
# ## Many short steps: the closed form
#
# What do two steps do, one of length $x$, then one of length $y$? To redraw twice is to redraw once:
# $P^2 = P$. (Each entry of $J^2$ adds up $V$ ones, so $J^2 = VJ$.) It follows that
#
# $$ Q^2 = (P - I)^2 = P^2 - 2P + I = P - 2P + I = -Q, $$
#
# and with it
#
# $$ \begin{aligned} (I + xQ)(I + yQ) &= I + (x + y)\,Q + xy\,Q^2 = I + (x + y - xy)\,Q \\
#    &= I + \big(1 - (1-x)(1-y)\big)\,Q. \end{aligned} $$
#
# In words: $1 - x$ is the chance that the first step spares the letter, $(1-x)(1-y)$ that both do. The rest
# is the chance of being redrawn at all, and it takes the place of $x$. At one redraw per unit of time, time and
# noise are the same number; call the total $\bar\sigma$. So $n$ equal steps of $\bar\sigma/n$ give
#
# $$ \Big(I + \tfrac{\bar\sigma}{n}\,Q\Big)^n = I + \Big(1 - \big(1 - \tfrac{\bar\sigma}{n}\big)^n\Big)\,Q
#    \;\longrightarrow\; I + (1 - e^{-\bar\sigma})\,Q \qquad (n \to \infty), $$
#
# because $(1 - x/n)^n$ tends to $e^{-x}$. By hand: ten steps of 0.1 spare a letter with probability
# $0.9^{10} = 0.3487$. So an `a` stands with $0.3487 + 0.6513 \cdot \tfrac13 = 0.5658$, as the tenth power said. With
# ever more and shorter steps, a letter is spared with probability $e^{-1} = 0.3679$, and the `a` stands with
# $0.3679 + 0.6321 \cdot \tfrac13 = 0.5786$.
#
# For numbers, $(1 + x/n)^n$ tends to $e^x$. So the limit of the matrices $(I + \tfrac{\bar\sigma}{n} Q)^n$ is written
# $e^{\bar\sigma Q}$ and called a *matrix exponential*. Put in $Q = P - I$ and collect what belongs to $I$:
#
# $$ \boxed{\; e^{\bar\sigma Q} = e^{-\bar\sigma}\, I + (1 - e^{-\bar\sigma})\,\tfrac1V J \;} $$
#
# Read it aloud. With probability $e^{-\bar\sigma}$ the character was never redrawn, and stands. With
# probability $1 - e^{-\bar\sigma}$ it was redrawn at least once, and is now anything, evenly. How often it
# was redrawn leaves no trace. These sentences are the whole *forward process* (the damage) of this book. The matrix is
# called its *kernel*. At $\bar\sigma = 1$ there is one redraw per character on average, but 37 % get none, and
# some get several.


# %% tags=["export"]
def as_float_tensor(value: Tensor | float) -> Tensor:
    """Floating tensors unchanged; integer tensors and plain numbers as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def resample_probability(sigma_bar: Tensor | float) -> Tensor:
    r"""Expected fraction of redrawn characters, $1 - e^{-\bar\sigma}$, of any shape."""
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
# (`expm1(x)` is $e^x - 1$ without the loss of digits near 0. It matters: here are the relative errors in single
# precision.)

# %%
little = torch.tensor(1e-4)
exact = -torch.expm1(-little.double())
for name, value in (("1 - exp", 1 - torch.exp(-little)), ("-expm1", -torch.expm1(-little))):
    print(f"{name:8} is off by {abs(value / exact - 1):.0e}")

# %% [markdown]
# And the kernel's first row, for our three letters and one unit of noise:

# %%
transition_matrix(1.0, 3)[0]

# %% [markdown]
# `torch.linalg.matrix_exp` finds the limit for any matrix, by numerical work, and knows nothing of our formula:

# %%
torch.linalg.matrix_exp(1.0 * rate_matrix(3))[0]

# %% [markdown]
# The same, for one noise and one alphabet. The test compares them for five sizes and eight
# noise levels, from none to almost chaos.


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
# The figure shows what becomes of an `a` of our three letters. The solid line, falling from 1, is the
# probability of an `a`; the dashed line, rising from 0, that of a `b`. Both are drawn from the closed form, and the
# dots of `matrix_exp` lie on them. Both tend to $\tfrac13$ (dotted): after a noise of 5, hardly
# anything tells which letter it was.

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
ax.set(xlabel="total noise (redraws per character)", ylabel="probability", ylim=(0, 1.03))
ax.legend()
plt.show()

# %% [markdown]
# ## Noise adds up
#
# Add noise $u$, then noise $v$. Both kernels have the form $I + xQ$, so the rule for two steps holds for them,
# with $1 - x = e^{-u}$ and $1 - y = e^{-v}$:
#
# $$ e^{uQ}\,e^{vQ} = I + \big(1 - e^{-u}e^{-v}\big)\,Q = e^{(u+v)Q}. $$
#
# Two damages are one damage of the summed noise. That is why noise needs no history. From a text at noise
# $u$ to one at noise $u + v$, only $v$ counts.


# %% tags=["test"]
def test_noise_adds_up():
    for vocab_size in (2, 3, 106):
        for u, v in ((1e-4, 1e-4), (1e-4, 20.0), (0.3, 0.5), (2.0, 7.0)):
            both = transition_matrix(u, vocab_size) @ transition_matrix(v, vocab_size)
            assert (both - transition_matrix(u + v, vocab_size)).abs().max() < 1e-13


test_noise_adds_up()

# %% [markdown]
# ## A clock: how fast should the noise come?
#
# Up to here the speed was one redraw per unit of time, so time and noise were the same number. Let $\sigma(t) > 0$ be the rate of redraws at time $t$. In a short time $dt$
# the noise $\sigma(t)\,dt$ comes, so by time $t$ its total is $\bar\sigma(t)$, with $d\bar\sigma/dt = \sigma$.
# (A little noise, $\bar\sigma(0)$, may have come before $t = 0$.)
#
# Let $p(t)$ be the row of probabilities of the $V$ tokens at time $t$. A short step multiplies it by
# $I + \sigma(t)\,dt\,Q$. Subtract $p(t)$ and divide by $dt$:
#
# $$ \frac{dp}{dt} = \sigma(t)\; p\, Q, \qquad\text{solved by}\qquad
#    p(t) = p_{\text{clean}}\; e^{\bar\sigma(t)\,Q}. $$
#
# Here $p_{\text{clean}}$ is the row before any noise has come, at $\bar\sigma = 0$. (So it is not $p(0)$ if
# $\bar\sigma(0) > 0$.) To see that it is solved, take the exponential as $I + (1 - e^{-\bar\sigma})\,Q$. Its derivative is
# $\sigma e^{-\bar\sigma} Q$. The exponential times $\sigma Q$ is $\sigma\,\big(Q + (1 - e^{-\bar\sigma})\,Q^2\big)$, which is the same,
# because $Q^2 = -Q$. So time enters through $\bar\sigma(t)$ alone. A *noise schedule* is nothing but a
# clock that says how much noise has come by time $t$.
#
# Ours is **geometric**: in equal times, the total noise grows by equal factors, from $\sigma_{\min}$ at
# $t = 0$ to $\sigma_{\max}$ at $t = 1$. By hand, with $\sigma_{\min} = 0.01$ and $\sigma_{\max} = 1$: a factor of 100 in all,
# so a factor of 10 in each half, and the noise half-way is $0.1$. In general, "equal factors" means that
# $\log\bar\sigma$ is a straight line in $t$, with slope $\log\sigma_{\max} - \log\sigma_{\min}$:
#
# $$ \log\bar\sigma(t) = (1-t)\log\sigma_{\min} + t\log\sigma_{\max}, \qquad\text{so}\qquad
#    \bar\sigma(t) = \sigma_{\min}^{\,1-t}\;\sigma_{\max}^{\,t}. $$
#
# The rate follows by the chain rule: the derivative of $e^{\text{line}}$ is $e^{\text{line}}$ times the slope. And the
# line, solved for $t$, says at what time a given noise is reached:
#
# $$ \sigma(t) = \frac{d\bar\sigma}{dt} = \bar\sigma(t)\,\log\frac{\sigma_{\max}}{\sigma_{\min}}, \qquad
#    t = \frac{\log\bar\sigma - \log\sigma_{\min}}{\log\sigma_{\max} - \log\sigma_{\min}}. $$
#
# The defaults are those of the SEDD authors' configuration, $\sigma_{\min} = 10^{-4}$ and $\sigma_{\max} = 20$.
# All later code asks a schedule for no more than the *protocol* `NoiseSchedule` lists, so another clock, like the one of
# [appendix A](A_absorbing.ipynb), can take its place.

# %% tags=["export"]
import math
from dataclasses import dataclass
from typing import Protocol

from ddlm_core.support.errors import UserError


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
# Three choices in this code. The two powers stand as in the formula, so both ends are exact; `exp` of the
# line would miss them by a rounding. Times are not checked: to look at a number on a GPU, the processor
# must wait for it, in every training step. (`transition_matrix` checks its noise, but no training step calls it.)
# And times keep their precision: give them in single or double. In bfloat16 a time is rounded by up to
# $2^{-9}$, and that alone changes the noise (the slope of $\log\bar\sigma$ is $\log(20/10^{-4}) = 12.2$) by up to a factor of $e^{12.2/512}$, more than two percent.
#
# At five times, for a story of 160 characters: the noise, and how many characters were redrawn.

# %%
noise = GeometricNoise()
print("   t   sigma_bar      sigma   redrawn of 160")
for t in torch.linspace(0, 1, 5, dtype=torch.float64):
    sigma_bar, sigma = noise(t)
    redrawn = 160 * resample_probability(sigma_bar)
    print(f"{t:.2f}  {sigma_bar:10.5f} {sigma:10.4f}   {redrawn:14.2f}")

# %% [markdown]
# Half-way through, only seven characters in 160 have been redrawn. That surprised us when we first printed
# this table; we come back to it.
#
# Note the first line: at $t = 0$ the noise is $\sigma_{\min}$, not 0. One character in ten thousand has
# already been redrawn. The clean text lies just *before* $t = 0$, and the last little step back to it gets
# a term of its own in [chapter 5](05_loss.ipynb).
#
# Is the rate really the derivative of the total? PyTorch can differentiate, so let it judge. And does
# the kernel, run by this clock, solve the equation?


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
# ## Is anything left at the end?
#
# At $t = 1$ we want pure chance, because from that a new text will start. Put $\epsilon = e^{-\bar\sigma}$, the
# probability that a character was spared. The kernel gives $\epsilon + (1-\epsilon)/V = (1 + (V-1)\epsilon)/V$ to the clean token,
# and $(1-\epsilon)/V$ to each of the $V - 1$ other ones. How far is that from $\tfrac1V$ everywhere? The usual measure
# is the *Kullback–Leibler divergence*, the sum of $p \log(p / \tfrac1V)$, which is 0 only if the two are equal:
#
# $$ KL = \tfrac1V\Big[(1 + (V-1)\epsilon)\log(1 + (V-1)\epsilon) + (V-1)(1-\epsilon)\log(1-\epsilon)\Big]
#    \approx \tfrac{V-1}{2}\,\epsilon^2. $$
#
# The last step is for small $\epsilon$, with $(1+x)\log(1+x) \approx x + x^2/2$: the terms in $\epsilon$ cancel, those in
# $\epsilon^2$ add up to $\tfrac1{2V}\big((V-1)^2 + (V-1)\big) = \tfrac{V-1}{2}$.

# %%
epsilon = torch.exp(-noise.sigma_bar(1.0))
clean, other = 105 * epsilon, -epsilon  # how much each token has more than 1/V, times V
kl = ((1 + clean) * torch.log1p(clean) + 105 * (1 + other) * torch.log1p(other)) / 106
print(f"KL to uniform at t = 1: {kl:.1e}, by the approximation {105 / 2 * epsilon**2:.1e}")

# %% [markdown]
# Nothing is left. The divergence is the evidence, in nats, that one character gives on average against uniform
# noise. Given the clean text every character is ruined on its own, so it adds up: $10^{15}$ characters give 0.2 nats, which moves the odds by a factor of 1.25. (The number looks like the rounding unit of double precision, by coincidence:
# `log1p` keeps the digits, and the approximation agrees.)

# %% [markdown]
# ## The picture: a clock that dawdles
#
# Back to the surprise. In the upper panel, the total noise $\bar\sigma(t)$ (solid) and the rate $\sigma(t)$ (dashed),
# on a logarithmic axis, where equal distances are equal factors: two parallel straight lines, 12.2 times apart. In
# the lower panel, on the same times, the fraction of redrawn
# characters: a steep S, flat at 0 until about $t = 0.4$, half at $t = 0.72$, flat at 100 % from $t = 0.9$ on.
# Two parts are shaded. On the left, less than 1 % of the characters are redrawn, less than two in a
# story of 160: the text is almost clean. On the right, more than 99 % are: almost nothing is left.

# %%
almost_clean = noise.time(-math.log(0.99)).item()  # 1 % redrawn
almost_gone = noise.time(-math.log(0.01)).item()  # 99 % redrawn
print(f"almost clean until t = {almost_clean:.3f}, almost gone from t = {almost_gone:.3f} on")

# %% tags=["hide-input"]
t = torch.linspace(0, 1, 401, dtype=torch.float64)
fig, (upper, lower) = plt.subplots(2, sharex=True, figsize=(7, 5))
upper.semilogy(t, noise.sigma_bar(t), label="total noise σ̄(t)")
upper.semilogy(t, noise.sigma(t), "--", label="rate σ(t), per unit of time")
upper.set(ylabel="redraws per character", yticks=[1e-4, 1e-2, 1, 100])
upper.legend()
lower.plot(t, 100 * resample_probability(noise.sigma_bar(t)), color="C2")
lower.set(xlabel="time t", ylabel="characters redrawn (%)", xlim=(0, 1), ylim=(0, 103))
for ax in (upper, lower):
    for start, end in ((0, almost_clean), (almost_gone, 1)):
        ax.axvspan(start, end, color="C4", alpha=0.1, linewidth=0)
lower.text(almost_clean / 2, 50, f"almost clean:\n{almost_clean:.0%} of the time", ha="center")
gone = f"almost gone:\n{1 - almost_gone:.0%} of the time"
lower.text(almost_gone - 0.01, 20, gone, ha="right", va="center")
plt.show()

# %% [markdown]
# More than a third of all times show a text with almost nothing to repair. Why? For small noise the redrawn
# fraction $1 - e^{-\bar\sigma}$ is about $\bar\sigma$ itself, so "1 % redrawn" is $\bar\sigma = 10^{-2}$. The clock walks
# evenly on the logarithmic axis, and gives a factor of 10 the same time wherever it is. From $10^{-4}$ to
# $10^{-2}$ it walks a factor of 100, on its way through a factor of 200,000:
#
# $$ \frac{\log(10^{-2}/10^{-4})}{\log(20/10^{-4})} = \frac{4.605}{12.206} \approx 0.377, $$
#
# or 0.378 without the approximation.
#
# Is that a waste? Chapter 5 shows that the loss, weighted with the rate $\sigma(t)$ and added up over all times,
# bounds the surprise of the text ([chapter 2](02_stories.ipynb)). The left third adds little to that sum; chapter 5 measures how little. (A hint: of the 20
# redraws per character that come in all, only $\int_0^{0.377} \sigma\,dt = \bar\sigma(0.377) - \bar\sigma(0) \approx 0.01$ come there. Only a hint,
# for what a redraw adds to the loss differs with the noise.) But a trainer that
# draws its times evenly spends a third of its work on it. There are two cures. One is another clock
# (exercise 4), at a price. The other leaves the clock alone, draws more noise levels where the loss is, and
# gives each less weight in return; [chapter 8](08_training.ipynb) does that.

# %% [markdown]
# ## Change it safely
#
# Try a *linear* clock: in `sigma_bar`, return `self.sigma_min * (1 - t) + self.sigma_max * t`. Then
# `test_rate_is_the_derivative_of_the_total` fails, because `sigma` still has the old slope; so does
# `test_kernel_solves_the_equation_of_the_process`. Change `sigma` to the new one,
# `torch.full_like(as_float_tensor(t), self.sigma_max - self.sigma_min)`, and both pass. A third test failed
# with them, `test_time_is_the_inverse_and_the_ends_are_met`. It asks for the inverse: in `time`, return
# `(as_float_tensor(sigma_bar) - self.sigma_min) / (self.sigma_max - self.sigma_min)`. And it asks for the geometric
# line: make `line` there the straight one, and drop its `.exp()`. (On the page, exercises 1 and 4
# count on the geometric clock and fail, too.) The command: `make export && pytest tests/test_noise.py tests/unit/test_noise.py`.
#
# **Exercise 1.** At what time is half of the characters redrawn? (Expected: $t = 0.7245$.)

# %% tags=["solution", "hide-input"]
half = noise.time(math.log(2))  # 1 - exp(-sigma_bar) = 1/2
assert abs(half.item() - 0.7245) < 1e-4
half

# %% [markdown]
# **Exercise 2.** *Redrawn* is not *different*: one redraw in $V$ gives the same character. At $\bar\sigma = 1$,
# how many of 160 characters differ from the clean ones, on average, for $V = 106$, and for $V = 2$?
# (Expected: 100.2 and 50.6.)

# %% tags=["solution", "hide-input"]
different = [160 * (1 - transition_matrix(1.0, V)[0, 0].item()) for V in (106, 2)]
assert abs(different[0] - 100.2) < 0.05 and abs(different[1] - 50.6) < 0.05
[round(count, 1) for count in different]

# %% [markdown]
# **Exercise 3.** Some leave out the draw of the same token: every *other* one gets the rate $1/(V-1)$, and the diagonal
# is $-1$. Show that this is the same process by a faster clock. Which $\bar\sigma$ of theirs gives our kernel at
# $\bar\sigma = 1$, for $V = 3$? (Expected: $2/3$; the check below asserts it.)

# %% tags=["solution", "hide-input"]
others = (torch.ones(3, 3, dtype=torch.float64) - torch.eye(3)) / 2 - torch.eye(3)
assert torch.allclose(others, rate_matrix(3) * 3 / 2)  # Q times V / (V - 1)
assert torch.allclose(torch.linalg.matrix_exp(2 / 3 * others), transition_matrix(1.0, 3))
torch.linalg.matrix_exp(2 / 3 * others)[0]

# %% [markdown]
# **Exercise 4.** Which $\sigma_{\min}$ makes the almost clean part only a tenth of the time, with the same
# $\sigma_{\max}$? And what does it cost at $t = 0$? (Expected: 0.00432; now 0.43 % of the characters, and not
# 0.01 %, are already redrawn at $t = 0$, where the model, running backwards, stops.)

# %% tags=["solution", "hide-input"]
# Solve log(s) = 0.9 log(sigma_min) + 0.1 log(20) for sigma_min, with s the noise that redraws 1 %.
sigma_min = math.exp((math.log(-math.log(0.99)) - 0.1 * math.log(20)) / 0.9)
later = GeometricNoise(sigma_min, 20.0)
assert abs(later.time(-math.log(0.99)).item() - 0.1) < 1e-12
assert abs(sigma_min - 0.00432) < 1e-5
round(sigma_min, 5), round(100 * resample_probability(sigma_min).item(), 2)

# %% [markdown]
# ## Summary
#
# A character is spared with probability $e^{-\bar\sigma}$, else it is anything. Noise adds up, and a schedule
# says how much has come by time $t$.
#
# | name | meaning |
# |---|---|
# | `rate_matrix(vocab_size)` | $Q = \tfrac1V J - I$ |
# | `transition_matrix(sigma_bar, vocab_size)` | $e^{\bar\sigma Q}$, in closed form |
# | `resample_probability(sigma_bar)` | $1 - e^{-\bar\sigma}$, with all its digits |
# | `GeometricNoise(sigma_min, sigma_max)` | the clock: `noise(t)` is $(\bar\sigma(t), \sigma(t))$ |
# | `.sigma_bar(t)`, `.sigma(t)`, `.time(sigma_bar)`, `.log_growth` | total, rate, inverse, slope of $\log\bar\sigma$ |
# | `NoiseSchedule` | what any clock offers: the four names above without `log_growth`, and both limits |
# | `as_float_tensor(value)` | numbers and tensors alike, as floating tensors |
#
# Next: [corrupting text](04_forward.ipynb).
