# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
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
# degree, in one step ([chapter 4](04_forward.ipynb)). To score it, and to run the damage backwards
# ([chapter 7](07_sampler.ipynb)), we need the exact probabilities.
#
# Every character is ruined on its own, regardless of its neighbors. So this chapter is about one
# character.

# %% [markdown]
# ## By hand: three letters and a short step
#
# The alphabet is `a`, `b`, `c`, so $V = 3$. Chop time into short steps of length $dt$. In each step, a
# letter is *redrawn* with probability $dt$: thrown away, and replaced by one of the three, each with
# the same chance. With probability $1 - dt$ nothing happens.
#
# A redrawn `a` may become an `a` again. So after one step, starting from `a`:
#
# * it is `b` with probability $dt \cdot \tfrac13$, and the same for `c`;
# * it is `a` with probability $(1 - dt) + dt \cdot \tfrac13$.
#
# Here are the probabilities for $dt = 0.1$, one row per letter before the step, one column per letter
# after it:

# %%
import torch

V, dt = 3, 0.1
stay = torch.eye(V, dtype=torch.float64)  # nothing happens
redraw = torch.full((V, V), 1 / V, dtype=torch.float64)  # any letter, evenly
step = (1 - dt) * stay + dt * redraw
step

# %% [markdown]
# Two steps are the product of two such matrices: to get from `a` to `c`, go from `a` to any letter, then
# from there to `c`, and add up the ways. Ten steps are the tenth power. The first row says what became
# of an `a`:

# %%
torch.linalg.matrix_power(step, 10)[0]

# %% [markdown]
# ## The rate matrix
#
# Sort the step by what depends on $dt$. With $I$ the identity and $J$ the matrix of ones:
#
# $$ (1 - dt)\,I + dt\,\tfrac1V J \;=\; I + dt\,\underbrace{\big(\tfrac1V J - I\big)}_{Q}. $$
#
# All that the process *is* sits in $Q$, the **rate matrix** (also called *generator*). Off the diagonal,
# $Q_{ab}$ is the probability per unit of time that an `a` turns into a `b`: $1/V$ for every pair. On the
# diagonal stands what is lost by leaving, $-(1 - 1/V)$. Every row sums to 0, because what leaves one
# letter arrives at another.
#
# As $dt$ goes to 0, change can happen at any moment, and the chances of the next one depend only on the
# letter that is there now, not on how it came to be there. Such a process is a **continuous-time Markov
# chain**. That is all there is to the name.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens |
# | $Q$ | `rate_matrix` | rates, shape $(V, V)$ |
# | $\bar\sigma$ | `sigma_bar` | total noise: redraws per character, on average |
# | $\sigma$ | `sigma` | noise rate: redraws per character and unit of time |
# | $t$ | `t` | time, from 0 to 1 |

# %% tags=["export"]
import torch
from torch import Tensor


def rate_matrix(vocab_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Rates $Q = \tfrac1V J - I$, shape (V, V), at one redraw per unit of time; V at least 1."""
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    ones = torch.ones(vocab_size, vocab_size, dtype=dtype)
    return ones / vocab_size - torch.eye(vocab_size, dtype=dtype)


# %%
rate_matrix(3)

# %% [markdown]
# **Where we depart from the paper.** [SEDD](https://arxiv.org/abs/2310.16834) writes the uniform matrix
# as $J - VI$, without our $1/V$; its authors' code divides by $V$, as we do. It is the same process by a
# different clock. With the $1/V$, one unit of noise means one redraw per character, for every $V$, so a
# noise level says the same for 3 letters and for 106. It also fixes a weight in the loss of
# [chapter 5](05_loss.ipynb): $1/V$, and not $1/(V-1)$. Those who write $1/(V-1)$ leave out the draw of
# the same letter; exercise 3 is about them.
#
# Now let the steps get shorter. A total noise of $\bar\sigma$, in $n$ equal steps, tends to
#
# $$ \Big(I + \tfrac{\bar\sigma}{n}\,Q\Big)^n \;\longrightarrow\;
#    e^{\bar\sigma Q} = I + \bar\sigma Q + \tfrac{\bar\sigma^2}{2}Q^2 + \tfrac{\bar\sigma^3}{6}Q^3 + \dots $$
#
# just as $(1 + x/n)^n$ tends to $e^x$ for a number; the series is what $e$ to a matrix means. PyTorch has
# it as `torch.linalg.matrix_exp`. Ten steps of 0.1 gave 0.5658 above; the limit is 0.5786:

# %%
torch.linalg.matrix_exp(1.0 * rate_matrix(3))[0]


# %% tags=["test"]
import pytest


def test_rate_matrix_is_what_short_steps_leave():
    for vocab_size in (1, 2, 3, 106):
        Q = rate_matrix(vocab_size)
        assert Q.dtype == torch.float64 and torch.equal(Q, Q.T)
        assert Q.sum(1).abs().max() < 1e-14
        stay = torch.eye(vocab_size, dtype=torch.float64)
        assert torch.allclose(Q[stay == 0], torch.tensor(1 / vocab_size).double())
    assert rate_matrix(2, torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        rate_matrix(0)


def test_many_short_steps_tend_to_the_exponential():
    Q, stay = rate_matrix(3), torch.eye(3, dtype=torch.float64)
    errors = []
    for steps in (10, 100, 1000):
        chopped = torch.linalg.matrix_power(stay + 2.5 / steps * Q, steps)
        errors.append((chopped - torch.linalg.matrix_exp(2.5 * Q)).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 1e-3


test_rate_matrix_is_what_short_steps_leave()
test_many_short_steps_tend_to_the_exponential()

# %% [markdown]
# ## The closed form
#
# The exponential of a matrix is a lot of work. For this $Q$ there is none. Write $P = \tfrac1V J$, the
# matrix "redraw". Each entry of $J^2$ adds up $V$ ones, so $J^2 = VJ$, and therefore $P^2 = P$: to redraw
# twice is to redraw once. So all powers of $P$ are $P$, and its exponential is quickly summed:
#
# $$ e^{\bar\sigma P} = I + \sum_{k\ge1} \frac{\bar\sigma^k}{k!}\,P = I + (e^{\bar\sigma} - 1)\,P. $$
#
# Now $Q = P - I$, and the identity commutes with everything, so the exponential splits:
#
# $$ \boxed{\; e^{\bar\sigma Q} = e^{-\bar\sigma}\, e^{\bar\sigma P}
#    = e^{-\bar\sigma}\, I + (1 - e^{-\bar\sigma})\,\tfrac1V J \;} $$
#
# Read it aloud. With probability $e^{-\bar\sigma}$ the character was never redrawn, and stands. With
# probability $1 - e^{-\bar\sigma}$ it was redrawn at least once, and is now anything, evenly. How often it
# was redrawn leaves no trace. That one sentence is the whole forward process of this book.


# %% tags=["export"]
def as_float_tensor(value: Tensor | float) -> Tensor:
    """Floating tensors unchanged; integer tensors and plain numbers as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def corrupted_fraction(sigma_bar: Tensor | float) -> Tensor:
    r"""Expected fraction of redrawn characters, $1 - e^{-\bar\sigma}$, of any shape."""
    return -torch.expm1(-as_float_tensor(sigma_bar))


# %% [markdown]
# `expm1(x)` is $e^x - 1$ without the loss of digits near 0. It matters: for $\bar\sigma = 10^{-4}$ in single
# precision, `1 - exp(-sigma_bar)` is off by two parts in ten thousand, `-expm1(-sigma_bar)` by one in
# a hundred million.


# %% tags=["export"]
def transition_matrix(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""Probabilities $e^{\bar\sigma Q}$ that one token has turned into another: (V, V), rows sum to 1.

    Args:
        sigma_bar: total noise, at least 0 (or infinite), a number or 0-dim tensor; sets the dtype.
        vocab_size: number of tokens V, at least 1.

    Raises:
        ValueError: if ``sigma_bar`` is negative, NaN or not one number, or V less than 1.
    """
    sigma_bar = as_float_tensor(sigma_bar)
    if sigma_bar.ndim != 0 or not sigma_bar >= 0:
        raise ValueError(f"sigma_bar must be one number, at least 0, got {sigma_bar}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    stay = torch.eye(vocab_size, dtype=sigma_bar.dtype, device=sigma_bar.device)
    return torch.exp(-sigma_bar) * stay + corrupted_fraction(sigma_bar) / vocab_size


# %%
transition_matrix(1.0, 3)[0]

# %% [markdown]
# The same as `matrix_exp` said. For one noise and one alphabet; now for all sizes that this book uses and
# all noise levels, from almost nothing to almost chaos:


# %% tags=["test"]
def test_closed_form_equals_matrix_exp():
    for vocab_size in (1, 2, 3, 27, 106):
        for sigma_bar in (0.0, 1e-4, 1e-2, 0.5, 1.0, 3.0, 10.0, 20.0):
            kernel = transition_matrix(sigma_bar, vocab_size)
            limit = torch.linalg.matrix_exp(sigma_bar * rate_matrix(vocab_size))
            assert (kernel - limit).abs().max() < 1e-12
            assert (kernel >= 0).all() and (kernel.sum(1) - 1).abs().max() < 1e-14


def test_small_noise_keeps_its_digits():
    for sigma_bar in (1e-4, 1e-6):
        exact = torch.expm1(torch.tensor(-sigma_bar, dtype=torch.float64)).neg()
        single = corrupted_fraction(torch.tensor(sigma_bar))
        assert single.dtype == torch.float32
        assert abs(single.double() / exact - 1) < 1e-6
        kernel = transition_matrix(torch.tensor(sigma_bar), 106)
        assert kernel.dtype == torch.float32
        assert abs(kernel[0, 1].double() * 106 / exact - 1) < 1e-6


def test_transition_matrix_refuses_what_is_no_noise():
    for sigma_bar in (-0.1, float("nan"), torch.tensor([1.0])):
        with pytest.raises(ValueError, match="one number, at least 0"):
            transition_matrix(sigma_bar, 3)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got -2"):
        transition_matrix(1.0, -2)
    forever = transition_matrix(float("inf"), 4)
    assert torch.equal(forever, torch.full((4, 4), 0.25, dtype=torch.float64))
    assert corrupted_fraction(torch.tensor([0, 1])).dtype == torch.float64


test_closed_form_equals_matrix_exp()
test_small_noise_keeps_its_digits()
test_transition_matrix_refuses_what_is_no_noise()

# %% [markdown]
# ## Noise adds up
#
# Add noise $a$, then noise $b$. With $P^2 = P$ the product has four terms:
#
# $$ e^{aQ}e^{bQ} = e^{-a-b}\,I + \big(e^{-a}(1-e^{-b}) + (1-e^{-a})e^{-b} + (1-e^{-a})(1-e^{-b})\big)P. $$
#
# The bracket is $1 - e^{-a-b}$: multiply it out, or say "not spared both times". So the result is
# $e^{(a+b)Q}$. Two damages are one damage of the summed noise. That is why noise needs no history: from a
# text at noise $\bar\sigma_s$ to one at noise $\bar\sigma_t$, only the difference counts.


# %% tags=["test"]
def test_noise_adds_up():
    for vocab_size in (2, 3, 106):
        for a, b in ((1e-4, 1e-4), (1e-4, 20.0), (0.3, 0.5), (2.0, 7.0)):
            both = transition_matrix(a, vocab_size) @ transition_matrix(b, vocab_size)
            assert (both - transition_matrix(a + b, vocab_size)).abs().max() < 1e-13


test_noise_adds_up()

# %% [markdown]
# ## A clock: how fast should the noise come?
#
# Up to here noise had no speed. Let $\sigma(t) > 0$ be the rate of redraws at time $t$, and $p(t)$ the
# column of probabilities of the $V$ tokens. In a short time $dt$ the noise $\sigma(t)\,dt$ is added, so
#
# $$ \frac{dp}{dt} = \sigma(t)\, Q\, p. $$
#
# (Rows or columns? $Q$ is symmetric, so it does not matter here.) Let $\bar\sigma(t)$ be a total whose
# derivative is the rate, $d\bar\sigma/dt = \sigma$. Then
#
# $$ p(t) = e^{\bar\sigma(t)\,Q}\,p_{\text{clean}} $$
#
# solves the equation: by the chain rule its derivative is $\sigma(t)\,Q\,e^{\bar\sigma(t)Q}p_{\text{clean}}$.
# Time enters through $\bar\sigma(t)$ alone. A *noise schedule* is nothing but a clock that says how much
# noise has come by time $t$.
#
# Ours is **geometric**: in equal times, the total noise grows by equal factors, from $\sigma_{min}$ at
# $t = 0$ to $\sigma_{max}$ at $t = 1$. "Equal factors" means that $\log\bar\sigma$ is a straight line,
# $(1-t)\log\sigma_{min} + t\log\sigma_{max}$, so
#
# $$ \bar\sigma(t) = \sigma_{min}^{\,1-t}\;\sigma_{max}^{\,t}, \qquad
#    \sigma(t) = \frac{d\bar\sigma}{dt} = \bar\sigma(t)\,\log\frac{\sigma_{max}}{\sigma_{min}}, \qquad
#    t = \frac{\log\bar\sigma - \log\sigma_{min}}{\log\sigma_{max} - \log\sigma_{min}}. $$
#
# The middle one follows from $\bar\sigma = e^{\text{straight line}}$: the derivative is $\bar\sigma$ times the
# slope of the line. The last one is the line, solved for $t$. The defaults are those of the
# authors' configuration, $\sigma_{min} = 10^{-4}$ and $\sigma_{max} = 20$.
#
# Three choices in the code. First, we compute the two powers as they stand: both ends are then
# exact, and in single precision the error in between was less than half of that of
# `exp` of the straight line, 0.4 against 0.9 parts in a million. Second, times are not checked. To look at a
# number that lives on a GPU, the processor must wait for it, on every training step; a time outside
# $[0, 1]$ gives what the formula gives. Third, times keep their precision, so give them in single or double:
# a time in bfloat16 has so few digits that the noise is off by up to three percent.

# %% tags=["export"]
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GeometricNoise:
    r"""The geometric schedule of SEDD (Lou, Meng & Ermon 2024): equal factors in equal times.

    Called with times t in [0, 1], of any shape and not checked, it returns the total noise
    $\bar\sigma(t)$ (redraws per character) and the rate $\sigma(t)$ (redraws per unit of time), both
    of the shape and dtype of t. A plain number counts as float64; bfloat16 is too coarse.

    Args:
        sigma_min: total noise at t = 0, above 0.
        sigma_max: total noise at t = 1, above ``sigma_min`` and finite; else a ValueError.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "noise limits must satisfy 0 < sigma_min < sigma_max < inf, "
                f"got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    @property
    def log_growth(self) -> float:
        r"""$\log(\sigma_{max}/\sigma_{min})$: the slope of $\log\bar\sigma(t)$."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = \sigma_{min}^{1-t}\,\sigma_{max}^{t}$, of the shape of ``t``."""
        t = as_float_tensor(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = d\bar\sigma/dt$, of the shape of ``t``."""
        return self.sigma_bar(t) * self.log_growth

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the inverse."""
        return (torch.log(as_float_tensor(sigma_bar)) - math.log(self.sigma_min)) / self.log_growth


# %% [markdown]
# At five times, for a story of 160 characters: the noise, and how many characters were redrawn.

# %%
noise = GeometricNoise()
print("   t   sigma_bar      sigma   redrawn of 160")
for t in torch.linspace(0, 1, 5, dtype=torch.float64):
    sigma_bar, sigma = noise(t)
    redrawn = 160 * corrupted_fraction(sigma_bar)
    print(f"{t:.2f}  {sigma_bar:10.5f} {sigma:10.4f}   {redrawn:14.2f}")

# %% [markdown]
# Half-way through, only seven characters in 160 have been redrawn. That surprised us when we first printed
# this table; we come back to it.
#
# Note the first line: at $t = 0$ the noise is $\sigma_{min}$, not 0. One character in ten thousand has
# already been redrawn. The clean text $p_{\text{clean}}$ lies just *before* $t = 0$, and the last little
# step back to it gets a term of its own in [chapter 5](05_loss.ipynb).
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
        return transition_matrix(noise.sigma_bar(t), 3) @ clean

    for t in torch.tensor([0.0, 0.3, 0.7, 0.8, 1.0], dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(p, t)
        flow = noise.sigma(t) * rate_matrix(3) @ p(t)
        assert torch.allclose(slope, flow, rtol=1e-10, atol=1e-12)


def test_time_is_the_inverse_and_the_ends_are_met():
    for dtype, digits in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        noise = GeometricNoise()
        t = torch.linspace(0, 1, 1001, dtype=dtype)
        assert (noise.time(noise.sigma_bar(t)) - t).abs().max() < digits
        line = (1 - t.double()) * math.log(1e-4) + t.double() * math.log(20)
        assert torch.allclose(noise.sigma_bar(t).double(), line.exp(), rtol=digits, atol=0)
        ends = torch.tensor([1e-4, 20], dtype=dtype)
        assert torch.allclose(
            noise.sigma_bar(t)[[0, -1]], ends, rtol=torch.finfo(dtype).eps, atol=0
        )


def test_any_shape_and_dtype():
    noise = GeometricNoise()
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (5,), (2, 3), (4, 1, 2), (0,)):
            t = torch.full(shape, 0.25, dtype=dtype)
            for value in (*noise(t), noise.time(t), corrupted_fraction(t)):
                assert value.shape == shape and value.dtype == dtype
    for number in (1, 1.0, torch.tensor(1)):
        assert noise.sigma_bar(number).item() == pytest.approx(20, rel=1e-14)
        assert noise.sigma_bar(number).dtype == torch.float64


def test_limits_that_make_no_schedule_are_refused():
    nan, inf = float("nan"), float("inf")
    for limits in ((0, 1), (-1, 1), (1, 1), (2, 1), (nan, 1), (0.1, nan), (0.1, inf), (inf, inf)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max < inf, got sigma_min="):
            GeometricNoise(*limits)
    assert GeometricNoise(0.1, 5) == GeometricNoise(sigma_min=0.1, sigma_max=5)


test_rate_is_the_derivative_of_the_total()
test_kernel_solves_the_equation_of_the_process()
test_time_is_the_inverse_and_the_ends_are_met()
test_any_shape_and_dtype()
test_limits_that_make_no_schedule_are_refused()

# %% [markdown]
# ## Is anything left at the end?
#
# At $t = 1$ we want pure chance, because that is what a sampler starts from. Put $\epsilon = e^{-\bar\sigma}$, the
# probability that a character was spared. Its distribution gives $(1 + (V-1)\epsilon)/V$ to the clean token
# and $(1-\epsilon)/V$ to each other one. How far is that from uniform? The Kullback–Leibler divergence
# adds up $p \log(p / \tfrac1V)$:
#
# $$ KL = \tfrac1V\Big[(1 + (V-1)\epsilon)\log(1 + (V-1)\epsilon) + (V-1)(1-\epsilon)\log(1-\epsilon)\Big]
#    \approx \tfrac{V-1}{2}\,\epsilon^2, $$
#
# the last step for small $\epsilon$, with $(1+x)\log(1+x) \approx x + x^2/2$: the terms in $\epsilon$ cancel, those in
# $\epsilon^2$ add up to $\tfrac1{2V}\big((V-1)^2 + (V-1)\big)$.

# %%
epsilon = torch.exp(-noise.sigma_bar(1.0))
clean, other = 105 * epsilon, -epsilon  # how much each token has more than 1/V, times V
kl = ((1 + clean) * torch.log1p(clean) + 105 * (1 + other) * torch.log1p(other)) / 106
print(f"KL to uniform at t = 1: {kl:.1e} nats per character")
print(f"the approximation says: {105 / 2 * epsilon**2:.1e}")

# %% [markdown]
# $2\cdot10^{-16}$ nats per character: a text that begins as uniform noise cannot be told from one that was
# noised for the whole time. (It looks like the rounding unit of double precision, by coincidence: `log1p`
# keeps the digits, and the approximation agrees.)

# %% [markdown]
# ## The picture
#
# Back to the surprise. The figure shows the fraction of redrawn characters against time. It is a steep
# S: flat at 0 until about $t = 0.4$, half at $t = 0.72$, flat at 1 from $t = 0.9$ on. Two parts are shaded.
# On the left, less than 1 % of the characters are redrawn, less than two in a story of 160: the text is
# almost clean. On the right, more than 99 % are: almost nothing is left.

# %%
almost_clean = noise.time(-math.log(0.99)).item()  # 1 % redrawn
almost_gone = noise.time(-math.log(0.01)).item()  # 99 % redrawn
print(f"almost clean until t = {almost_clean:.3f}, almost gone from t = {almost_gone:.3f} on")

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
t = torch.linspace(0, 1, 401, dtype=torch.float64)
fig, ax = plt.subplots()
ax.plot(t, 100 * corrupted_fraction(noise.sigma_bar(t)))
ax.axvspan(0, almost_clean, color="C1", alpha=0.12, linewidth=0)
ax.axvspan(almost_gone, 1, color="C2", alpha=0.12, linewidth=0)
ax.text(almost_clean / 2, 50, f"almost clean:\n{almost_clean:.0%} of the time", ha="center")
ax.text(
    almost_gone - 0.01,
    20,
    f"almost gone:\n{1 - almost_gone:.0%} of the time",
    ha="right",
    va="center",
)
ax.set(xlabel="time t", ylabel="characters redrawn (%)", xlim=(0, 1), ylim=(0, 103))
plt.show()

# %% [markdown]
# More than a third of all times show a text with nothing to repair. We can see why without the figure.
# For small noise the redrawn fraction is about $\bar\sigma$ itself, and the clock walks evenly in
# $\log\bar\sigma$. From $10^{-4}$ to $10^{-2}$ it walks a factor of 100, on its way through a factor of 200,000:
#
# $$ \frac{\log(10^{-2}/10^{-4})}{\log(20/10^{-4})} = \frac{4.605}{12.206} = 0.377. $$
#
# Is that a waste? The schedule decides what is *counted*: chapter 5 shows that the loss, added up over all
# times, bounds the information in the text. It is weighted with the rate $\sigma(t)$, which is tiny on the
# left, so the left third adds little. But a trainer that draws its times evenly spends a third of its work on it.
# The cure is to leave the integral as it is and to draw noise levels where the loss is. That is for
# [chapter 8](08_training.ipynb).

# %% [markdown]
# ## Change it safely
#
# Try a *linear* clock: in `sigma_bar`, return `self.sigma_min * (1 - t) + self.sigma_max * t`. Then
# `test_rate_is_the_derivative_of_the_total` fails, because `sigma` still has the old slope; so does
# `test_kernel_solves_the_equation_of_the_process`. Change `sigma` to the new one,
# `torch.full_like(as_float_tensor(t), self.sigma_max - self.sigma_min)`: both pass, and
# `test_time_is_the_inverse_and_the_ends_are_met` remains, asking for the inverse and for the geometric
# line. The command: `make export && pytest tests/test_noise.py`.
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
# **Exercise 3.** Some leave out the draw of the same token: every *other* one gets the rate $1/(V-1)$, and
# the diagonal is $-1$. Show that this is the same process by a faster clock. Which $\bar\sigma$ of theirs
# gives our kernel at $\bar\sigma = 1$, for $V = 3$? (Expected: $2/3$.)

# %% tags=["solution", "hide-input"]
others = (torch.ones(3, 3, dtype=torch.float64) - torch.eye(3)) / 2 - torch.eye(3)
assert torch.allclose(others, rate_matrix(3) * 3 / 2)  # Q times V / (V - 1)
assert torch.allclose(torch.linalg.matrix_exp(2 / 3 * others), transition_matrix(1.0, 3))
torch.linalg.matrix_exp(2 / 3 * others)[0]

# %% [markdown]
# **Exercise 4.** Which $\sigma_{min}$ makes the almost clean part only a tenth of the time, with the same
# $\sigma_{max}$? And what does it cost at $t = 0$? (Expected: 0.00432; now 0.43 % of the characters, and not
# 0.01 %, are already wrong where the model stops.)

# %% tags=["solution", "hide-input"]
# Solve log(s) = 0.9 log(sigma_min) + 0.1 log(20) for sigma_min, with s the noise that redraws 1 %.
sigma_min = math.exp((math.log(-math.log(0.99)) - 0.1 * math.log(20)) / 0.9)
later = GeometricNoise(sigma_min, 20.0)
assert abs(later.time(-math.log(0.99)).item() - 0.1) < 1e-12
assert abs(sigma_min - 0.00432) < 1e-5
round(sigma_min, 5), round(100 * corrupted_fraction(sigma_min).item(), 2)

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
# | `corrupted_fraction(sigma_bar)` | $1 - e^{-\bar\sigma}$, with all its digits |
# | `GeometricNoise(sigma_min, sigma_max)` | the clock: `noise(t)` is $(\bar\sigma(t), \sigma(t))$ |
# | `.sigma_bar(t)`, `.sigma(t)`, `.time(sigma_bar)`, `.log_growth` | total, rate, inverse, slope of $\log\bar\sigma$ |
# | `as_float_tensor(value)` | numbers and tensors alike, as floating tensors |
#
# Next: [corrupting text](04_forward.ipynb).
