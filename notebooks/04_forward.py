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
# # Corrupting text
#
# **We have** text as tokens ([chapter 1](01_tokenizer.ipynb)) and, for one character, the chance to turn
# into any other under a given amount of noise ([chapter 3](03_noise.ipynb)).
# **We want** two functions for whole batches of text: one that gives all the odds, and one that rolls
# the dice. **Why**: a denoiser learns from pairs of a clean and a corrupted text, millions of them. So
# a pair must cost one step, at any noise level, without walking there.
#
# The second half of the chapter builds a little player, so that you can drag a text into noise and
# back. Later chapters show the denoiser at work with it.

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
# ## By hand: three letters
#
# Take an alphabet of three letters, `a`, `b` and `c`, and a text that is only `a`. Noise comes in
# small doses. A dose of size $d$ does one thing: with probability $d$ it wipes the letter out and
# writes a new one, drawn uniformly from all three. The new letter may well be `a` again.
#
# Give $n$ doses with a total of $\bar\sigma = 0.5$. The letter is never wiped out with probability
# $(1 - 0.5/n)^n$:

# %%
[round((1 - 0.5 / n) ** n, 4) for n in (1, 10, 1000)]

# %% [markdown]
# The limit is $e^{-0.5} = 0.6065$. And if the letter *was* wiped out, once or seven times? Then only
# the last time counts, and what it wrote was uniform. So the letter is untouched with probability
# $0.6065$. In the remaining $0.3935$ it is any of the three, equally often, and one of those is `a`:

# %%
import math

kept = math.exp(-0.5)
{letter: round(kept * (letter == "a") + (1 - kept) / 3, 4) for letter in "abc"}

# %% [markdown]
# That is the whole forward process, in two sentences. *Never wiped out: unchanged. Wiped out: uniform.*
#
# ## The formula
#
# Now $V$ tokens in place of three letters, and any total noise $\bar\sigma$ in place of 0.5. Write $x_0$
# for the clean character, $x_t$ for the corrupted one and $y$ for the token that we ask about. The same
# two sentences give
#
# $$ p(x_t = y \mid x_0) = \underbrace{e^{-\bar\sigma}\,[y = x_0]}_{\text{never wiped out}}
#    + \underbrace{(1 - e^{-\bar\sigma})\cdot\frac{1}{V}}_{\text{wiped out, then uniform}} $$
#
# where the bracket $[y = x_0]$ is 1 if the two are the same token, and 0 if not. Over all $y$ this sums
# to $e^{-\bar\sigma} + (1 - e^{-\bar\sigma}) = 1$, as it must. It is row $x_0$ of the kernel
# $e^{\bar\sigma Q}$ of chapter 3, reached there from the rates and here from the dice. (The paper,
# [SEDD](https://arxiv.org/abs/2310.16834), calls this choice of noise the *uniform graph*.)
#
# Each character of a text gets its own dice. So the probability of a whole corrupted text is a product,
# one factor for each position.
#
# | symbol | name in code | shape | meaning |
# |---|---|---|---|
# | $V$ | `vocab_size` | int | number of tokens |
# | $x_0$, $x_t$ | `x_0`, `x_t` | (B, L) | clean and corrupted tokens: B texts of length L |
# | $y$ | last axis | V | the token that we ask about |
# | $\bar\sigma$ | `sigma_bar` | (B,) or scalar | total noise since the clean text |
# | $\Delta$ | `delta_sigma` | (B,) or scalar | noise between two moments |
#
# The noise may be one number for the whole batch, or one for each text. A small helper makes both
# into a column, and refuses what is neither. (A noise of shape (L,) would otherwise spread along the
# wrong axis without a word.) It looks at shapes and types only: to look at *values*, the processor
# would have to wait for a GPU. Later chapters use it, too, also beside tables (B, L, V).

# %% tags=["export"]
import torch
from torch import Tensor

from ddlm_core.noise import resample_probability


def noise_column(noise: Tensor | float, like: Tensor) -> Tensor:
    """The noise of a batch, a scalar or (B,), as a column (B, 1, …) beside ``like``, (B, …).

    It is on the device of ``like``. Beside a floating table it has its dtype, but at least float32.
    Beside tokens it keeps its own; plain numbers and integers get PyTorch's default one. Other shapes
    raise a ValueError; values are not checked.
    """
    floating = like.is_floating_point()
    dtype = torch.promote_types(like.dtype, torch.float32) if floating else None
    noise = torch.as_tensor(noise, dtype=dtype, device=like.device)
    if noise.shape not in ((), like.shape[:1]):
        raise ValueError(
            f"noise must be a scalar or ({len(like)},), got shape {tuple(noise.shape)}"
        )
    if not noise.is_floating_point():
        noise = noise.to(torch.get_default_dtype())
    return noise.expand(len(like)).reshape(-1, *[1] * (like.dim() - 1))


def _check_tokens(x: Tensor) -> None:
    """Raise a ValueError if a text is not int64 of shape (B, L)."""
    if x.dim() != 2 or x.dtype != torch.int64:
        raise ValueError(f"tokens must be int64 of shape (B, L), got {x.dtype} {tuple(x.shape)}")


# %% [markdown]
# ## All the odds at once
#
# `transition` gives the formula for every character of a batch. It fills a table with the share that
# everybody gets, $(1 - e^{-\Delta})/V$, and adds $e^{-\Delta}$ at the token that stands there now.
# (`scatter_add_` adds a number at one chosen place of each row; `resample_probability`, from chapter 3,
# is $1 - e^{-\Delta}$ with all its digits.)
#
# Why $\Delta$, and not $\bar\sigma$? The dice do not remember. Whatever happened before, the noise
# $\Delta$ that comes between two moments wipes a character out with probability $1 - e^{-\Delta}$. So the
# same odds lead from the clean text to a corrupted one, and from a corrupted one to a worse one. In the code below
# `x_t` is the text before this extra noise, clean or not, and $y$ is what stands there after it.
# [Chapter 7](07_sampler.ipynb) turns it around, with Bayes' rule, to walk back through time.


# %% tags=["export"]
def transition(x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
    r"""Kernel rows $p(y \mid x_t) = e^{-\Delta}[y = x_t] + (1 - e^{-\Delta})/V$: (B, L, V).

    The tokens are int64 (B, L), the noise $\Delta \ge 0$ yet to come is a scalar or (B,) and sets the
    dtype; other shapes raise a ValueError, values are not checked. (SEDD's uniform graph.)
    """
    _check_tokens(x_t)
    delta = noise_column(delta_sigma, x_t)[..., None]  # (B, 1, 1)
    leak = resample_probability(delta) / vocab_size
    rows = leak.expand(*x_t.shape, vocab_size).clone()  # (B, L, V)
    stay = torch.exp(-delta).expand(*x_t.shape, 1)
    return rows.scatter_add_(-1, x_t[:, :, None], stay)


# %% [markdown]
# Five tokens, the token `2`, a noise of 0.5. The odds of the token itself are $0.6065 + 0.3935/5$:

# %%
transition(torch.tensor([[2]]), 0.5, vocab_size=5)

# %% [markdown]
# Chapter 3 has the matrix (`transition_matrix`), and we have its rows. They must agree up to rounding, also when each text
# of the batch has its own noise.
#
# Noise adds up here, too: $\Delta_1$ and then $\Delta_2$ is the same as $\Delta_1 + \Delta_2$ at once. A
# letter that came through both was spared twice, with
# probability $e^{-\Delta_1} e^{-\Delta_2} = e^{-(\Delta_1 + \Delta_2)}$; every other letter is uniform.
# That is why training may jump to any noise level, and need not walk.


# %% tags=["test"]
from ddlm_core.noise import transition_matrix


def test_transition_gives_the_rows_of_the_matrix():
    x_t = torch.tensor([[0, 1, 2], [4, 4, 3]])
    delta = torch.tensor([0.3, 5.0], dtype=torch.float64)
    rows = transition(x_t, delta, vocab_size=5)  # (2, 3, 5)
    assert rows.shape == (2, 3, 5) and rows.dtype == torch.float64
    for b in range(2):
        matrix = transition_matrix(delta[b], vocab_size=5)
        torch.testing.assert_close(rows[b], matrix[x_t[b]], rtol=0, atol=1e-15)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(transition(x_t, 0.3, 5)[0].double(), rows[0], rtol=0, atol=1e-7)


test_transition_gives_the_rows_of_the_matrix()

# %% [markdown]
# ## Rolling the dice
#
# Follow the two sentences again. What a wiped-out character becomes is a uniform draw. A text of
# nothing else is pure noise, the place where generation will start. So this draw has a name of its own:
# the **prior**.


# %% tags=["export"]
def sample_prior(
    batch_size: int,
    length: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pure noise: tokens drawn uniformly from all V, int64 (B, L).

    They are drawn on the device of the generator and then move to ``device``, if that is given.
    """
    where = device if generator is None else generator.device
    draw = torch.randint(vocab_size, (batch_size, length), generator=generator, device=where)
    return draw if device is None else draw.to(device)


# %% [markdown]
# And then the function that training calls at every step. For each character draw a number $u$, uniform
# in $[0, 1)$. It is below $1 - e^{-\bar\sigma}$ with just that probability, so let that decide whether
# the character is redrawn. Draw a full set of replacements, and take one or the other. We never build
# the (B, L, V) table here: two random numbers a character are enough.
#
# The `mask` marks characters that must stay, for instance the words that a user gave and the model
# has to write around. (Papers on masked diffusion mean the opposite: their mask hides. So the rest of this book calls
# ours the `condition_mask`.) Randomness comes from a `generator` that the caller hands in, so the same seed
# gives the same corruption.


# %% tags=["export"]
from collections.abc import Callable


def perturb_batch(
    x_0: Tensor,
    sigma_bar: Tensor | float,
    vocab_size: int,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Callable[..., Tensor] = sample_prior,
) -> Tensor:
    r"""Draw $x_t$ given $x_0$, int64 (B, L): each token is redrawn with chance $1 - e^{-\bar\sigma}$.

    A redrawn token is uniform over all V tokens, so it may come out as it was. The noise is a scalar
    or (B,); ``mask``, bool (B, L), is true where a token is kept; else a ValueError. The draws happen
    on the device of ``generator``, the new tokens come from ``prior``. (The uniform graph of SEDD, Lou, Meng & Ermon 2024.)
    """
    _check_tokens(x_0)
    chance = resample_probability(noise_column(sigma_bar, x_0))  # (B, 1)
    where = x_0.device if generator is None else generator.device
    u = torch.rand(x_0.shape, generator=generator, device=where).to(x_0.device)
    redraw = u < chance  # (B, L)
    if mask is not None:
        if mask.shape != x_0.shape or mask.dtype != torch.bool:
            got = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"mask must be bool of shape {tuple(x_0.shape)}, got {got}")
        redraw = redraw & ~mask
    return torch.where(redraw, prior(*x_0.shape, vocab_size, generator, x_0.device), x_0)


# %% [markdown]
# A text at three noise levels, from the same seed. At 0.05 you see a few misprints, at 0.5 you can
# still guess many words, at 5 hardly a letter is left. All 106 tokens take part: `�` is `<UNK>`, `⇥` and `↵`
# are tab and newline, and `<PAD>` shows as nothing, so a line can be shorter than its text.

# %%
from ddlm_core.tokenizer import CharacterLevelTokenizer

tokenizer = CharacterLevelTokenizer()
text = (
    "Mia found a tiny drum in the attic. She tapped it once. "
    "Far away, behind the old clock, something tapped back."
)
x_0 = tokenizer.encode(text)[None]  # (1, L)
for sigma_bar in (0.05, 0.5, 5.0):
    x_t = perturb_batch(x_0, sigma_bar, len(tokenizer), generator=torch.Generator().manual_seed(1))
    print(sigma_bar, tokenizer.decode(x_t[0]).translate({9: "⇥", 10: "↵"}), sep="\t")

# %% [markdown]
# ## Do the dice keep to the formula?
#
# Draw many times, count, compare. First look. The figure shows what 20,000 copies of token 2, of five,
# turn into at three noise levels. Bars are the measured shares, the short horizontal lines are the
# formula. At 0.2 six in seven are still 2, at 3 the five are almost level, and each line sits on its bar.

# %% tags=["hide-input"]
# alt: Three bar charts of the tokens 0 to 4 after noise 0.2, 0.8 and 3. The bar of token 2 falls from
#  0.85 to 0.24 while the other four rise evenly; a short line, the formula, ends each bar.
import matplotlib.pyplot as plt

from ddlm_core.noise import transition_matrix

plt.style.use("ddlm_core.book")
fig, panels = plt.subplots(1, 3, sharey=True, figsize=(7, 2.8))
generator = torch.Generator().manual_seed(0)
for ax, level in zip(panels, (0.2, 0.8, 3.0), strict=True):
    counts = perturb_batch(torch.full((1, 20_000), 2), level, 5, generator=generator)[0].bincount()
    ax.bar(range(5), counts / 20_000, color="C0", alpha=0.6, label="measured")
    formula = transition_matrix(level, 5)[2]
    ax.hlines(formula, torch.arange(5) - 0.45, torch.arange(5) + 0.45, color="C1", label="formula")
    ax.set(title=f"noise {level:g}", xlabel="token", xticks=range(5))
panels[0].set_ylabel("share")
panels[2].legend()
plt.show()

# %% [markdown]
# Eyes forgive a lot. Counts never match exactly, so how far off is too far? Karl Pearson's answer of
# 1900 still serves. For each of the $V$ outcomes take the count $O_y$ that came and the count $E_y$ that
# the formula expects, and add up
#
# $$ X^2 = \sum_{y} \frac{(O_y - E_y)^2}{E_y}. $$
#
# By hand: a fair coin, 100 throws, 60 heads. $X^2 = 10^2/50 + 10^2/50 = 4$. Pearson showed that, for many
# draws, $X^2$ behaves like a sum of $k = V - 1$ squared standard normal numbers (one fewer than
# outcomes: the counts add up to what was drawn, so the last one is not free). We take this from him, and
# need only the chance that such a sum exceeds $c$.
#
# Take the squares in pairs. Two normal numbers are a point in the plane, with density proportional to
# $e^{-r^2/2}$ at distance $r$ from the center, on a ring whose area grows like $r\,dr$. So half of the
# squared distance, $r^2/2$, exceeds $c/2$ with probability
# $\int_{\sqrt c}^\infty e^{-r^2/2}\, r\,dr = e^{-c/2}$. That is how long one waits for a clock that rings at
# random, once a unit on average. (Chapter 3: with probability $e^{-c/2}$ nothing comes during an amount $c/2$.) For even $k$, $X^2/2$ is the sum of $k/2$ such waits: the moment of
# ring number $k/2$. It lies beyond $c/2$ exactly if fewer than $k/2$ rings came before $c/2$. The number
# of rings in a given time has the Poisson distribution ($j$ rings with probability
# $e^{-c/2}(c/2)^j/j!$; this, too, we take from the textbooks), so
#
# $$ P(X^2 > c) = e^{-c/2} \sum_{j=0}^{k/2-1} \frac{(c/2)^j}{j!}. $$
#
# We call this chance the *tail*. No table, no library; we only have to keep the number of outcomes odd.


# %% tags=["test"]
import math


def chi_squared_tail(observed: Tensor, expected: Tensor) -> float:
    """Chance of an X² at least as large if ``expected`` is right, for an odd number of outcomes."""
    half = ((observed - expected) ** 2 / expected).sum().item() / 2
    terms = (half**j / math.factorial(j) for j in range((len(observed) - 1) // 2))
    return math.exp(-half) * sum(terms)


# %% [markdown]
# PyTorch knows the same chance by another name (the regularized incomplete gamma function):

# %%
half = torch.tensor(16.7)  # X² = 33.4, five outcomes
off = 40.865633 * torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])  # 2 · 40.87² / 100 = 33.4
ours = chi_squared_tail(100 + off, torch.full((5,), 100.0))
assert abs(ours / torch.special.gammaincc(torch.tensor(2.0), half) - 1) < 1e-4
ours

# %% [markdown]
# If all is right (our dice, and Pearson's theorem), the tail is below 0.5 in half of all experiments,
# below 0.1 in a tenth, below 0.01 in a hundredth. (The tail falls as $X^2$ grows. So it is below 0.1 exactly when $X^2$
# exceeds the value that it exceeds with chance 0.1.) Two thousand experiments of a thousand draws each (chance alone
# moves the three shares by about 0.011, 0.007 and 0.002):

# %%
generator, expected = torch.Generator().manual_seed(3), 1000 * transition_matrix(0.8, 5)[2]
draws = perturb_batch(torch.full((2000, 1000), 2), 0.8, 5, generator=generator)  # (2000, 1000)
tails = torch.tensor([chi_squared_tail(row.bincount(minlength=5), expected) for row in draws])
{share: round((tails < share).double().mean().item(), 4) for share in (0.5, 0.1, 0.01)}

# %% [markdown]
# So we trust the yardstick, and let it judge. (We tried it down to 0.01. Farther out it is rough, which is enough for us.) The dice are wrong if the tail is below one in a million
# (for five outcomes, $X^2 > 33.4$): so small that good dice do not fail by accident, while 20,000 draws
# still betray dice that are off by three percentage points (at a chance of $\tfrac12$ that adds some $20000\cdot 2\cdot 0.03^2/0.5 = 72$ to
# $X^2$). First test: every start, for no token may be treated differently,
# at five noise levels that share one batch, each text with its own
# noise. Second: *pairs* of neighbors, 25
# outcomes, because characters must be redrawn independently of each other.


# %% tags=["test"]
def test_frequencies_meet_the_kernel():
    V, N, levels = 5, 20_000, torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for start in range(V):
        x_0 = torch.full((len(levels), N), start)
        x_t = perturb_batch(x_0, levels, V, generator=generator)
        for row, level in zip(x_t, levels, strict=True):
            expected = N * transition_matrix(level, V)[start]
            assert chi_squared_tail(row.bincount(minlength=V), expected) > 1e-6


def test_neighbors_are_independent():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(6)
    x_t = perturb_batch(torch.tensor([[0, 3]]).repeat(N, 1), 0.7, V, generator=generator)
    row = transition_matrix(0.7, V)
    pairs = (x_t[:, 0] * V + x_t[:, 1]).bincount(minlength=V * V)
    assert chi_squared_tail(pairs, N * torch.outer(row[0], row[3]).flatten()) > 1e-6


test_frequencies_meet_the_kernel()
test_neighbors_are_independent()

# %% [markdown]
# ## Redrawn is not the same as different
#
# One redraw in $V$ brings the old character back. So the fraction of characters that *differ* from the
# clean text is a little smaller than the fraction redrawn. With three letters at $\bar\sigma = 0.5$: of
# the 0.3935 that were wiped out, a third are `a` again, and 0.2623 differ. In general it is
#
# $$ (1 - e^{-\bar\sigma})\,\Big(1 - \frac1V\Big). $$
#
# The figure shows this curve for our 106 tokens, against total noise on a logarithmic axis. It is flat
# near zero up to a noise of 0.01, climbs between 0.1 and 3, and is flat again at 0.99. The dots are
# measured, each on 20,000 characters from `perturb_batch`; they lie on the curve.

# %% tags=["hide-input"]
# alt: An S-shaped curve over total noise from 0.0001 to 20: hardly any character differs up to 0.01, half of
#  them at 0.7, 98 in 100 from 5 on. Dots, measured, lie on it.
levels = torch.logspace(-4, math.log10(20), 200, dtype=torch.float64)
dots = levels[::14]
clean = torch.zeros(len(dots), 20_000, dtype=torch.int64)
noisy = perturb_batch(clean, dots, 106, generator=torch.Generator().manual_seed(7))
plt.plot(levels, resample_probability(levels) * (1 - 1 / 106), label="formula")
plt.plot(dots, (noisy != clean).double().mean(1), "o", label="measured")
plt.xscale("log")
plt.xlabel("total noise σ̄")
plt.ylabel("fraction of characters that differ")
plt.legend()
plt.show()

# %% [markdown]
# ## One clock for each character
#
# Now to watch a text dissolve, at many noise levels in a row. Look again at the three lines of Mia's
# story above: what is broken in one line is broken in the same way in the next. That is no accident.
# All three came from the same seed, so from the same random numbers $u$. A character is redrawn when
#
# $$ u < 1 - e^{-\bar\sigma} \quad\Longleftrightarrow\quad \bar\sigma > -\log(1 - u) =: E. $$
#
# So each character has a clock, the random one from above, stopped after its first ring: it rings when the noise
# reaches its $E$, and then shows its replacement for good. Clocks of $u = 0.1$, $0.5$ and $0.9$ ring at noise 0.11, 0.69 and 2.30. And the
# chance that a clock has not rung yet is $P(E > \bar\sigma) = P(u > 1 - e^{-\bar\sigma}) = e^{-\bar\sigma}$:
# just the chance to be untouched.


# %%
def dissolve(x_0: Tensor, sigma_bars: Tensor, vocab_size: int, seed: int) -> list[Tensor]:
    """One text (L,) at rising noise levels, with the same clocks and replacements in all."""
    seeded = (torch.Generator().manual_seed(seed) for _ in sigma_bars)  # each starts afresh
    pairs = zip(sigma_bars, seeded, strict=True)
    return [perturb_batch(x_0[None], noise, vocab_size, generator=g)[0] for noise, g in pairs]


# %% [markdown]
# At any *fixed* noise each state is a plain draw of `perturb_batch`. The same yardstick says so, on
# 20,000 characters: no tail is suspiciously small. And once it has changed, a character stays as it is.
# So the text dissolves and does not flicker:

# %%
levels = torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
states = dissolve(torch.full((20_000,), 2), levels, vocab_size=5, seed=8)
for state, level in zip(states, levels, strict=True):
    tail = chi_squared_tail(state.bincount(minlength=5), 20_000 * transition_matrix(level, 5)[2])
    assert tail > 1e-6
    print(f"noise {level:5.2f}   tail {tail:.2f}")
for earlier, later in zip(states, states[1:], strict=False):
    assert torch.equal(earlier[earlier != 2], later[earlier != 2])

# %% [markdown]
# What the shared seed changes is only how *different* noise levels hang together. In the real process the
# clocks go on ringing, and a dissolved text goes on boiling; here it comes to rest. For training only the
# distribution at one time counts, and for the eye this is kinder.
#
# ## Frames
#
# To show a run we need the tokens at each moment, the noise, and which positions have just changed.
# Nothing else: no tensors, no pictures. Whatever makes the states, this dissolving text or the sampler of
# chapter 7, and whatever shows them, a web page or a terminal, they meet in this small record.

# %% tags=["export:animation"]
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """One moment of a text that changes: its tokens, the total noise, and what has just changed."""

    tokens: tuple[int, ...]
    sigma_bar: float
    changed: tuple[int, ...]  # positions whose token differs from the frame before, ascending


# %% [markdown]
# Two functions make frames. `iter_frames` works while a run is still going on: it hands out each
# frame as soon as its state arrives, and holds only the one before. `make_frames` is for a finished run.


# %% tags=["export:animation"]
def iter_frames(states: Iterable[tuple[Tensor, float]]) -> Iterator[Frame]:
    """Frames of a run that is still going on: each one as soon as its state arrives.

    A state is (tokens, total noise), all tokens integers of one shape (L,): else a ``ValueError``.
    """
    before = None
    for state, sigma_bar in states:
        if state.ndim != 1 or (before is not None and len(state) != len(before)):
            raise ValueError(f"every state needs one shape (L,), got {tuple(state.shape)}")
        tokens = tuple(state.tolist())
        pairs = zip(before or tokens, tokens, strict=True)
        yield Frame(tokens, float(sigma_bar), tuple(i for i, (a, b) in enumerate(pairs) if a != b))
        before = tokens


def make_frames(tokens: Sequence[Tensor], sigma_bars: Sequence[float]) -> list[Frame]:
    """Frames of a finished run: its states, each (L,), and as many noise levels, else a ``ValueError``."""
    if len(tokens) != len(sigma_bars):
        raise ValueError(f"{len(tokens)} states need as many noise levels, got {len(sigma_bars)}")
    return list(iter_frames(zip(tokens, sigma_bars, strict=True)))


# %% [markdown]
# ## Something to look at
#
# A picture of a text needs one mark for each token, `<PAD>` included, or the text would shrink and
# jump. So padding becomes a faint dot while we watch, and nothing in the text we end with. And a
# vocabulary can come from somebody else's checkpoint: control characters, which a terminal would
# *obey*, become `�`. What comes out, a `Picture`, is plain data: whoever draws it knows nothing of tokens.

# %% tags=["export:animation"]
from ddlm_core.support.drawing import PAD_MARK, Picture
from ddlm_core.tokenizer import CharacterLevelTokenizer


def characters(tokens: Iterable[int], tokenizer: CharacterLevelTokenizer) -> str:
    """One character a token: ``<PAD>`` becomes a dot, what a terminal would obey becomes ``�``."""
    special = {tokenizer.unk_token_id: "�", tokenizer.pad_token_id: PAD_MARK}
    marks = [special.get(token) or tokenizer.vocab[token] for token in tokens]
    return "".join(mark if mark.isprintable() or mark in "\n\t" else "�" for mark in marks)


def draw(frame: Frame, tokenizer: CharacterLevelTokenizer) -> Picture:
    """A frame as plain data: marks to watch, and the text as it is read, without ``<PAD>``."""
    text = characters((t for t in frame.tokens if t != tokenizer.pad_token_id), tokenizer)
    return Picture(characters(frame.tokens, tokenizer), text, frame.sigma_bar, frame.changed)


# %% [markdown]
# ## The player
#
# An animation in a stored notebook must work where there is no Python at all: in the rendered book, or
# in a file sent to a friend. So the player is a single piece of HTML that carries its frames, its looks
# and its script, and asks no server for anything.
#
# Frames travel as differences. From `the cat` to `the hat` character 4 changes, counted from 0, so the
# step is written `[noise, [4], "h"]`. With several changes we write the *gaps* between their positions: small
# numbers, few digits. (We compare the texts and do not rely on `changed`, so that frames may be left
# out.)

# %% tags=["export:animation"]
import json


def encode_pictures(pictures: Sequence[Picture]) -> str:
    """Pictures (one at least) as JSON: the first text, then differences only.

    A step is ``[noise, gaps, characters]``: the changed positions, each as its distance from the
    one before, and what stands there now.
    """
    first = before = pictures[0].marks
    steps = []
    for text, _, sigma_bar, _ in pictures:
        moved = [i for i in range(len(text)) if text[i] != before[i]]
        gaps = [here - last for here, last in zip(moved, [0, *moved], strict=False)]
        noise = float(f"{sigma_bar:.3g}") if sigma_bar < float("inf") else "∞"
        steps.append([noise, gaps, "".join(text[i] for i in moved)])
        before = text
    cleanest = min(range(len(pictures)), key=lambda k: pictures[k].sigma_bar)
    data = {"pad": PAD_MARK, "first": first, "steps": steps, "cleanest": cleanest}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


# %% [markdown]
# The looks and the script are two small files of the package,
# [`player.css`](../ddlm_core/support/player.css) and [`player.js`](../ddlm_core/support/player.js): a
# hundred lines that decode the steps, lay out a grid of characters, and connect a button and a slider.
# Three of their habits are worth stealing. Lines break where the *cleanest* frame has its spaces, in
# every frame, so noise full of accidental spaces cannot make lines jump. What changed is orange, *and*
# bold, *and* underlined: color is never the only sign. And without scripts the final text simply
# stands there. (GitHub, and a notebook that you have not trusted yet, take scripts away, and may show what stands in a
# `<script>` as text. So steps, looks and script travel in attributes, escaped, which nobody shows.)

# %% [markdown]
# ## One object for all of it
#
# `Animation` is a thin shell: frames, the tokenizer that reads them, and a method for each view. A
# notebook that finds `_repr_html_` shows the player. `play_in_terminal` redraws the text in place;
# `save` writes a page or a GIF. All of these renderers live beside the player's files, in
# [`ddlm_core/support`](../ddlm_core/support/player.py), and are imported only when they are called: they have nothing
# to teach about diffusion.

# %% tags=["export:animation"]
from pathlib import Path
from typing import TextIO

from ddlm_core.support.errors import UserError


@dataclass(frozen=True, repr=False)
class Animation:
    """A run to look at: in a notebook, in a terminal, as a web page or as a GIF.

    ``str()`` of it is the final text, without padding.
    """

    frames: Sequence[Frame]  # at least one, else a ValueError
    tokenizer: CharacterLevelTokenizer
    title: str = ""  # shown above the text
    player_id: str = "ddlm-player"  # of the HTML element: fixed, so stored outputs stay the same
    fps: float = 12.0  # frames per second

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("an animation needs at least one frame")

    def __repr__(self) -> str:
        return f"Animation({len(self.frames)} frames of {len(self.frames[0].tokens)} characters)"

    def __str__(self) -> str:
        return self.pictures()[-1].text

    def pictures(self) -> list[Picture]:
        """The frames as every renderer draws them."""
        return [draw(frame, self.tokenizer) for frame in self.frames]

    def _repr_html_(self) -> str:
        from ddlm_core.support.player import render_player

        pictures, how = self.pictures(), {"player_id": self.player_id, "fps": self.fps}
        return render_player(encode_pictures(pictures), pictures[-1].text, title=self.title, **how)

    def to_html(self) -> str:
        """A whole page that holds the player."""
        from ddlm_core.support.player import render_page

        return render_page(self._repr_html_(), self.title)

    def play_in_terminal(self, stream: TextIO | None = None, fps: float | None = None) -> None:
        """Play in place on a terminal (by default, standard output); elsewhere print the final text."""
        from ddlm_core.support.terminal import render_terminal

        render_terminal(self.pictures(), stream, self.fps if fps is None else fps)

    def save(self, path: str | Path) -> Path:
        """Write a page or a picture, and return its path, which ends in .html or .gif: else a UserError."""
        path = Path(path)
        if path.suffix == ".html":
            path.write_text(self.to_html(), encoding="utf-8")
        elif path.suffix == ".gif":
            from ddlm_core.support.gif import save_gif

            save_gif(self.pictures(), path, self.fps)
        else:
            raise UserError(f"an animation is saved as .html or .gif, got {path.name!r}")
        return path


# %% [markdown]
# How do you test a player without a browser? By undoing the differences in ten lines of Python: every
# frame must come back, also when frames were left out. (`tests/unit/test_animation.py` and
# `tests/integration` hold the rest: it asks for nothing from elsewhere, a text full of `<b>` stays text, 64 frames of
# 256 characters take less than 25 kB, and so on.)


# %% tags=["test:animation"]
import html
import json
import re
from itertools import accumulate

import torch


def decode_player(player: str) -> list[str]:
    """The frames inside a player, decoded without its script."""
    data = json.loads(html.unescape(re.search('data-steps="(.*?)"', player)[1]))
    text, texts = list(data["first"]), []
    for _, gaps, marks in data["steps"]:
        for position, mark in zip(accumulate(gaps), marks, strict=True):
            text[position] = mark
        texts.append("".join(text))
    return texts


def test_player_carries_every_frame():
    tokenizer, generator = CharacterLevelTokenizer(), torch.Generator().manual_seed(0)
    states = torch.randint(0, len(tokenizer), (5, 300), generator=generator)  # all tokens occur
    frames = make_frames(states, [1.0] * 5)
    for chosen in (frames, frames[::2], frames[:1]):
        expected = [characters(frame.tokens, tokenizer) for frame in chosen]
        assert decode_player(Animation(chosen, tokenizer)._repr_html_()) == expected


test_player_carries_every_frame()

# %% [markdown]
# ## Watch it dissolve
#
# Here is Mia's story on its way from clean to pure noise, at 49 equally spaced *times* of the geometric
# schedule of chapter 3. Drag the slider, or focus it and use the arrow keys. The caption counts what
# each step changed. (If you only see noise and no slider: scripts are off, and you see the end.)

# %%
from ddlm_core.noise import GeometricNoise

sigma_bars = GeometricNoise().sigma_bar(torch.linspace(0, 1, 49))
states = dissolve(x_0[0], sigma_bars, len(tokenizer), seed=1)
Animation(make_frames(states, sigma_bars), tokenizer, title="A story dissolves")

# %% [markdown]
# For the first third of the time almost *nothing happens*. At $t = 1/3$ the noise is only 0.006, on average less than
# one redrawn character in this text; most of the damage is done between $t = 0.55$ and $t = 0.9$.
# Chapter 3 told us so in numbers, and here is what it looks like. [Chapter 5](05_loss.ipynb) asks what it
# means for training, and what to do about it.
#
# Look also at how long the text can be read. With a third of its characters redrawn you can still guess
# many words. What you do then is what the denoiser has to learn.

# %% [markdown]
# ## Change it safely
#
# A tempting "improvement": a redrawn character should become a *different* one. In `perturb_batch`, replace
# the last line by
#
# ```python
#     other = (x_0 + torch.randint(1, vocab_size, x_0.shape, generator=generator)) % vocab_size
#     return torch.where(redraw, other, x_0)
# ```
#
# and run
#
# ```
# make export && pytest tests/test_forward.py tests/unit/test_forward.py
# ```
#
# `test_frequencies_meet_the_kernel`, `test_two_perturbations_are_one` and
# `test_neighbors_are_independent` fail, and rightly so. (On the page, so does the yardstick under `dissolve`.) At infinite noise every character would be
# redrawn, so each could be anything *but* what it was: noise that still knows the text. Generation must
# start from noise that knows nothing. Undo the change, export again, and all is well.
#
# Something harmless: change the color of changed characters in `ddlm_core/support/player.css`. No test
# fails; `python tools/notebooks.py --force 04_forward` then redraws the player above.

# %% [markdown]
# ## Exercises
#
# **1.** At which total noise do half of the characters *differ* from the clean text, for $V = 106$?
# (Expected: 0.7027.)

# %% tags=["solution", "hide-input"]
half_noise = -math.log(1 - 0.5 / (1 - 1 / 106))
assert abs(half_noise - 0.7027) < 1e-4
round(half_noise, 4)

# %% [markdown]
# **2.** Keep every vowel and every space of Mia's story, and apply infinite noise to the rest. How many characters are
# kept by the mask? (Expected: 51, the first number below.)

# %% tags=["solution", "hide-input"]
keep = torch.tensor([[character in "aeiouAEIOU " for character in text]])
x_t = perturb_batch(x_0, math.inf, len(tokenizer), keep, torch.Generator().manual_seed(2))
assert torch.equal(x_t[keep], x_0[keep]) and keep.sum() == 51
print(int(keep.sum()), tokenizer.decode(x_t[0]))

# %% [markdown]
# **3.** Repair the "improvement" of the section above without giving it up: with which probability
# must a character move to a *different* one, so that the formula holds again? Check it with
# `chi_squared_tail` at $\bar\sigma = 0.5$ and $V = 5$. (Expected probability: 0.3148.)

# %% tags=["solution", "hide-input"]
move = resample_probability(0.5).item() * (1 - 1 / 5)
generator = torch.Generator().manual_seed(9)
moved = torch.rand(100_000, generator=generator) < move
step = torch.randint(1, 5, (100_000,), generator=generator)
counts = torch.where(moved, (2 + step) % 5, 2).bincount(minlength=5)
assert abs(move - 0.3148) < 1e-4
assert chi_squared_tail(counts, 100_000 * transition_matrix(0.5, 5)[2]) > 1e-6
round(move, 4)

# %% [markdown]
# **4.** At which noise does the *last* of 100 characters go, on average? (Hint: it is the largest of 100
# clocks. With $k$ clocks left, none rings within $\bar\sigma$ with probability
# $e^{-k\bar\sigma}$, so the next one rings after a wait of mean $1/k$.) Check it on 20,000 texts. (Expected: 5.187. And at
# $\sigma_{\max} = 20$ the chance that any of the 100 is left is $100\,e^{-20} = 2\cdot10^{-7}$.)

# %% tags=["solution", "hide-input"]
expected = sum(1 / k for k in range(1, 101))
clocks = torch.empty(20_000, 100).exponential_(generator=torch.Generator().manual_seed(10))
assert abs(expected - 5.187) < 1e-3
spread = sum(1 / k**2 for k in range(1, 101)) ** 0.5  # of the largest: independent waits
assert abs(clocks.amax(1).mean().item() - expected) < 4 * spread / math.sqrt(20_000)
round(expected, 3)

# %% [markdown]
# ## Summary
#
# A dose of noise wipes out a character and writes a uniform one. Only "ever wiped out or not" matters,
# so any noise level is one step away: $e^{-\bar\sigma}$ to be untouched, the rest shared among all $V$.
# Counting confirms it, with a yardstick for how far off is too far.
#
# | module | name | meaning |
# |---|---|---|
# | `forward` | `noise_column` | noise, a scalar or (B,), as a column beside tokens or a table |
# | `forward` | `transition` | the odds of every token after more noise, (B, L, V) |
# | `forward` | `perturb_batch` | draws a corrupted batch, keeping what the mask keeps |
# | `forward` | `sample_prior` | pure noise: where generation starts |
# | `animation` | `Frame` | tokens, noise, and what has just changed |
# | `animation` | `iter_frames`, `make_frames` | frames of a run: as it goes, or afterwards |
# | `animation` | `characters`, `draw` | a frame as plain data: as it is watched, and as it is read |
# | `animation` | `Animation` | the player, `play_in_terminal`, `save("run.gif")`, `save("run.html")` |
# | `animation` | `encode_pictures` | the pictures as JSON, for the player |
# | `animation` | `PAD_MARK`, `ARROWS` | what stands for `<PAD>`, newline and tab |
#
# Next: [chapter 5](05_loss.ipynb) asks what a network should learn from such pairs.
