# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Corrupting text
#
# *About 30 minutes. You need: [chapter 3](03_noise.ipynb), and tensors in PyTorch. You will have: corrupted text at any
# noise level in one step, a test that the frequencies are right, and a player in which you watch a text dissolve.*
#
# **We have** text as tokens and, for one character, the kernel: the probability of every outcome under a given
# amount of noise.
# **We want** two functions for whole batches of text: one that gives all probabilities, and one that draws.
# **Why**: a denoiser learns from pairs of a clean and a corrupted text, millions of them. So a pair must cost one
# step, at any noise level, without simulating the jumps on the way.

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
# ## By hand: a text of two letters
#
# The alphabet is `a`, `b`, `c`, and the noise is $\bar\sigma = 0.5$. By chapter 3 a letter survives with probability
# $e^{-0.5} = 0.6065$; otherwise it is any letter, all equally likely. So an `a` stays an `a` with probability
# $0.6065 + 0.3935/3 = 0.7377$, and becomes a `b` with probability $0.3935/3 = 0.1312$.
#
# Each character of a text is corrupted *independently* of the others. So the probabilities multiply: the text `ab`
# stays `ab` with probability $0.7377^2 = 0.5442$, and becomes `ac` with probability $0.7377 \cdot 0.1312 = 0.0968$.
#
# ## The formula
#
# Now any $V$ and $\bar\sigma$. Write $x_0$ for the clean character, $x_t$ for the corrupted one and $y$ for the token
# that we ask about:
#
# $$ p(x_t = y \mid x_0) = \underbrace{e^{-\bar\sigma}\,[y = x_0]}_{\text{survived}}
#    + \underbrace{(1 - e^{-\bar\sigma})\cdot\frac{1}{V}}_{\text{resampled}} $$
#
# The bracket $[y = x_0]$ (*Iverson bracket*) is 1 if the two are the same token, and 0 if not. This is row $x_0$ of
# the kernel $e^{\bar\sigma Q}$. Summed over all $y \ne x_0$ it says that a character differs with probability
# $(1 - e^{-\bar\sigma})(1 - 1/V)$, at most $1 - 1/V$. The probability of a whole corrupted text is a product, one
# factor for each position.
#
# | symbol | name in code | shape | meaning |
# |---|---|---|---|
# | $x_0$, $x_t$ | `x_0`, `x_t` | (B, L) | clean and corrupted tokens: B texts of length L |
# | $\bar\sigma$ | `sigma_bar` | (B,) or scalar | total noise since the clean text |
# | $\Delta$ | `delta_sigma` | (B,) or scalar | *noise increment* between two moments |
#
# The noise may be one number for the whole batch, or one for each text. A small collapsed helper, `noise_column`,
# makes both into a column, beside tokens or a table (B, L, V). It refuses other shapes, because a noise per position
# would broadcast along the wrong axis. (If B = L, no check can tell a noise level per position from one per text.)

# %% tags=["export", "hide-input"]
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
# ## All probabilities at once
#
# `transition` gives the formula for every character of a batch. It fills a table with $(1 - e^{-\Delta})/V$, and adds
# $e^{-\Delta}$ at the token that is there now. (`scatter_add_` adds a number at one chosen place of each row.)
#
# Why $\Delta$, and not $\bar\sigma$? Because noise adds up, and needs no history: the same probabilities lead from the
# clean text to a corrupted one, and from a corrupted one to a worse one. The argument is called `x_t`, whatever noise
# that text already carries; $y$ is what is there *after* the increment. [Chapter 7](07_sampler.ipynb) turns the
# function around with Bayes' rule, to walk back through time.


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
# Take five tokens, the token `2`, and a noise of 0.5. The probability of the token itself is
# $0.6065 + 0.3935/5 = 0.6852$:

# %%
transition(torch.tensor([[2]]), 0.5, vocab_size=5)

# %% [markdown]
# Chapter 3 has the matrix, and we have its rows. They must agree, even when each text of the batch has its own noise.

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
# ## Drawing a corrupted text
#
# What a resampled character becomes is a uniform draw. A text made of such draws alone is pure noise, where
# generation will start. So this distribution has a name of its own, the *prior* (SEDD: the *limit distribution*).


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
# Now the function that training calls at every step. For each character draw a number $u$, uniform in $[0, 1)$.
# It is below $1 - e^{-\bar\sigma}$ with exactly that probability, so let that decide whether the character is
# resampled. Draw a full set of replacements, and take one or the other. Two random numbers per character are enough;
# the (B, L, V) table is never built.
#
# There are three options. The `mask` marks characters that are *kept*, for instance words that a user gave and the
# model has to write around. (Papers on masked diffusion mean the opposite: their mask hides. So later chapters call
# ours the `condition_mask`.) Randomness comes from a `generator`, so the same seed gives the same corruption. And
# `prior` draws the replacements, so that another forward process can use the function, too.

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
    r"""Draw $x_t$ given $x_0$, int64 (B, L): each token is resampled with probability $1 - e^{-\bar\sigma}$.

    A resampled token is uniform over all V tokens, so it may come out as it was. The noise is a scalar
    or (B,); ``mask``, bool (B, L), is true where a token is kept; else a ValueError. The draws happen
    on the device of ``generator``, the new tokens come from ``prior``. (The uniform graph of SEDD, Lou, Meng & Ermon 2024.)
    """
    _check_tokens(x_0)
    chance = resample_probability(noise_column(sigma_bar, x_0))  # (B, 1)
    where = x_0.device if generator is None else generator.device
    u = torch.rand(x_0.shape, generator=generator, device=where).to(x_0.device)
    resampled = u < chance  # (B, L)
    if mask is not None:
        if mask.shape != x_0.shape or mask.dtype != torch.bool:
            got = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"mask must be bool of shape {tuple(x_0.shape)}, got {got}")
        resampled = resampled & ~mask
    return torch.where(resampled, prior(*x_0.shape, vocab_size, generator, x_0.device), x_0)


# %% [markdown]
# A story of chapter 2 at three noise levels, from the same seed. Under each line stands the same corruption with a
# mask, `_`, as the replacement: *absorbing* noise, as in [appendix A](A_absorbing.ipynb). Masks show where the text
# is corrupted; uniform noise does not, because a resampled character is a token like any other. All 106 tokens take
# part: `�` is `<UNK>`, `⇥` and `↵` are tab and newline, and `<PAD>` shows as nothing.

# %%
from ddlm_core import stories
from ddlm_core.tokenizer import CharacterLevelTokenizer

tokenizer = CharacterLevelTokenizer()
(text,) = stories.sample(1, seed=5)
x_0 = tokenizer.encode(text)[None]  # (1, L)


def masks(batch_size: int, length: int, *_) -> Tensor:
    return tokenizer.encode("_" * length).repeat(batch_size, 1)


for sigma_bar in (0.05, 0.5, 5.0):
    for prior in (sample_prior, masks):
        generator = torch.Generator().manual_seed(1)
        x_t = perturb_batch(x_0, sigma_bar, len(tokenizer), generator=generator, prior=prior)
        print(tokenizer.decode(x_t[0]).translate({9: "⇥", 10: "↵"}))

# %% [markdown]
# At 0.05 you see a few misprints, at 0.5 you can still guess many words, at 5 hardly a letter is left.
#
# This is how training will use it, in chapters 5 and 8: stories, padded; a time for each, and its noise; one call. The
# network is told $\bar\sigma$, but not how long a story is. `<PAD>` is corrupted like any other token, so the end of a
# story must be found, too.

# %%
from ddlm_core.noise import GeometricNoise

clean = torch.stack([tokenizer.pad(story, 160) for story in stories.sample(64, seed=0)])
t = torch.rand(64, generator=generator)
noisy = perturb_batch(clean, GeometricNoise().sigma_bar(t), len(tokenizer), generator=generator)
clean.shape, noisy.shape

# %% [markdown]
# ## Do the frequencies meet the formula?
#
# Draw many times, count, compare. The figure shows what 20,000 copies of token 2, one of five, turn into at three
# noise levels. Bars are measured, the short horizontal lines are the formula.

# %% tags=["hide-input"]
# alt: Three bar charts of the tokens 0 to 4 after noise 0.2, 0.8 and 3. The bar of token 2 falls from
#  0.85 to 0.24 while the other four rise evenly; a short line, the formula, ends each bar.
import matplotlib.pyplot as plt

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
# Counts never match exactly, so how far off is too far? The standard answer is Pearson's *goodness-of-fit test*. For
# each of the $V$ outcomes take the count $O_y$ that came and the count $E_y$ that the formula expects, and add up
#
# $$ X^2 = \sum_{y} \frac{(O_y - E_y)^2}{E_y}. $$
#
# By hand: a fair coin, 100 throws, 60 heads. $X^2 = 10^2/50 + 10^2/50 = 4$. If the formula is right and the counts
# are large, $X^2$ has the *chi-squared distribution* with $V - 1$ degrees of freedom. The probability of a value at
# least as large as the one that came is called the *p-value*; for the coin it is 0.0455. PyTorch has it as a
# regularized incomplete gamma function; [where the p-value comes from](deeper/chi_squared.ipynb) derives it from
# waiting times, and checks that p-values of right code are uniform.
#
# We call the code wrong if a p-value is below one in a million: right code will not fail by accident. Wrong code
# will: 20,000 draws are enough to notice an error of three percentage points. If a token of probability $p$ gains
# 0.03, that adds some $20000\cdot 0.03^2/p$ to $X^2$: 36 for $p = \tfrac12$, and more for a rarer one. Another token
# loses the same 0.03, and the two probabilities sum to at most 1, so together they add at least 72. With five outcomes
# the limit is 33.4. The first test takes every token as a start, at five noise levels in one batch, and then our real
# vocabulary. The second takes *pairs* of neighbors, 25 outcomes, because characters must be corrupted independently.


# %% tags=["test"]
def p_value(observed: Tensor, expected: Tensor) -> float:
    """Probability of an X² at least as large if ``expected`` is right (chi-squared test)."""
    half = ((observed - expected) ** 2 / expected).sum().double() / 2
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), half).item()


def test_frequencies_meet_the_kernel():
    levels = torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for V, N, starts in ((5, 20_000, range(5)), (106, 200_000, [0, 1, 70])):
        for start in starts:
            x_0 = torch.full((len(levels), N), start)
            x_t = perturb_batch(x_0, levels, V, generator=generator)
            for row, level in zip(x_t, levels, strict=True):
                expected = N * transition_matrix(level, V)[start]
                assert p_value(row.bincount(minlength=V), expected) > 1e-6


def test_neighbors_are_independent():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(6)
    x_t = perturb_batch(torch.tensor([[0, 3]]).repeat(N, 1), 0.7, V, generator=generator)
    row = transition_matrix(0.7, V)
    pairs = (x_t[:, 0] * V + x_t[:, 1]).bincount(minlength=V * V)
    assert p_value(pairs, N * torch.outer(row[0], row[3]).flatten()) > 1e-6


test_frequencies_meet_the_kernel()
test_neighbors_are_independent()

# %% [markdown]
# ## One waiting time for each character
#
# Now to watch a text dissolve, at many noise levels in a row. Look again at Carl's story: what is corrupted at one
# noise level is corrupted in the same way at the next. All lines came from the same seed, so from the same numbers
# $u$. A character is resampled when
#
# $$ u < 1 - e^{-\bar\sigma} \quad\Longleftrightarrow\quad \bar\sigma > -\log(1 - u) =: E. $$
#
# So each character has a *waiting time* $E$: when the noise reaches it, the character jumps, once, and then rests.
# For $u = 0.1$, $0.5$ and $0.9$ that is at noise 0.11, 0.69 and 2.30. $E$ has the *exponential distribution*,
# $P(E > \bar\sigma) = e^{-\bar\sigma}$: exactly the survival probability.


# %%
def dissolve(x_0: Tensor, sigma_bars: Tensor, vocab_size: int, seed: int) -> list[Tensor]:
    """One text (L,) at rising noise levels, with the same waiting times and replacements."""
    seeded = (torch.Generator().manual_seed(seed) for _ in sigma_bars)  # each starts afresh
    pairs = zip(sigma_bars, seeded, strict=True)
    return [perturb_batch(x_0[None], noise, vocab_size, generator=g)[0] for noise, g in pairs]


# %% [markdown]
# At any *fixed* noise each state is a plain draw of `perturb_batch`: the *marginal* distributions are right. What the
# shared seed changes is only how different noise levels are *coupled* (*common random numbers*). In the real process a
# character goes on jumping; here it comes to rest, which is kinder to the eye. Training needs the marginals only.
# Both can be checked:

# %%
levels = torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
states = dissolve(torch.full((20_000,), 2), levels, vocab_size=5, seed=8)
for state, level in zip(states, levels, strict=True):  # the marginals
    assert p_value(state.bincount(minlength=5), 20_000 * transition_matrix(level, 5)[2]) > 1e-6
for earlier, later in zip(states, states[1:], strict=False):  # what has changed, rests
    assert torch.equal(earlier[earlier != 2], later[earlier != 2])

# %% [markdown]
# ## Watch it dissolve
#
# To show a run we need the tokens at each moment, the noise, and which positions have just changed: a `Frame`. The
# sampler of chapter 7 will make such frames, too, and drawing them takes nothing more. The collapsed cells after
# `Frame` turn frames into an `Animation`; you can skip them.

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


# %% tags=["export:animation", "hide-input"]
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


# %% tags=["export:animation", "hide-input"]
from ddlm_core.support.drawing import PAD_MARK, Picture, harmless
from ddlm_core.support.text import with_ends
from ddlm_core.tokenizer import CharacterLevelTokenizer


def characters(tokens: Iterable[int], tokenizer: CharacterLevelTokenizer) -> str:
    """One mark a token: ``PAD_MARK`` for ``<PAD>``, ``�`` for what a terminal would obey."""
    shown = [mark if mark and harmless(mark) else "�" for mark in tokenizer.shown]
    shown[tokenizer.pad_token_id] = PAD_MARK
    return "".join([shown[token] for token in tokens])


def draw(frame: Frame, tokenizer: CharacterLevelTokenizer) -> Picture:
    """A frame as plain data: marks to watch, and the text as it is read (see ``with_ends``)."""
    marks = characters(frame.tokens, tokenizer)
    text = with_ends("" if mark == PAD_MARK else mark for mark in marks)
    return Picture(marks, text, frame.sigma_bar, frame.changed)


# %% tags=["export:animation", "hide-input"]
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


# %% tags=["export:animation", "hide-input"]
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

        pictures = self.pictures()
        steps, text = encode_pictures(pictures), pictures[-1].text
        return render_player(steps, text, title=self.title, player_id=self.player_id, fps=self.fps)

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


# %% tags=["test:animation", "hide-input"]
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
# In a notebook, an `Animation` shows a player: one piece of HTML that carries its frames, its style and its script,
# and asks no server for anything. It also plays in a terminal and saves a page or a GIF. A test decodes the player in
# Python and finds every frame again; the renderers are in [`ddlm_core/support`](../ddlm_core/support/player.py), and
# know nothing of diffusion.
#
# Here is Carl's story on its way from clean to pure noise, at 49 equally spaced *times* of the geometric schedule. Drag
# the slider, or focus it and use the arrow keys. (If you see only noise and no slider, scripts are off, and what you
# see is the end.)

# %%
sigma_bars = GeometricNoise().sigma_bar(torch.linspace(0, 1, 49))
states = dissolve(x_0[0], sigma_bars, len(tokenizer), seed=1)
Animation(make_frames(states, sigma_bars), tokenizer, title="A story dissolves")

# %% [markdown]
# For the first third of the time almost *nothing happens*: at $t = 1/3$ the noise is only 0.006, less than one
# resampled character in this text. Most of the damage is done between $t = 0.55$, with 8 % of the characters
# resampled, and $t = 0.9$, where hardly any have survived: the steep part of the S in chapter 3. Look also at how
# long the text can be read. With a third of its characters resampled you can still guess many words. What you do then
# is what the denoiser has to learn.
#
# In the rendered book, try it on a sentence of your own, at several levels with the same random numbers:

# %% tags=["hide-input"]
from ddlm_core import Live

Live("corrupt", text="Lily lost her hat.", sigma=0.5)

# %% [markdown]
# ## Change it safely
#
# A tempting "improvement": a resampled character should become a *different* one. In `perturb_batch`, replace the last
# line by
#
# ```python
#     other = (x_0 + torch.randint(1, vocab_size, x_0.shape, generator=generator)) % vocab_size
#     return torch.where(resampled, other, x_0)
# ```
#
# and run `make export && pytest tests/test_forward.py tests/unit/test_forward.py`. The statistical tests fail,
# `test_frequencies_meet_the_kernel`, `test_neighbors_are_independent` and `test_two_perturbations_are_one`, and rightly
# so. (Three more notice that `prior`, device and order of the draws are no longer honored.) At infinite noise every
# character could be anything *but* what it was: noise that still knows the text. Generation must start from noise that
# knows nothing. Undo the change, export again, and all is well.
#
# **Exercise 1.** At what total noise do half of the characters *differ* from the clean text, for $V = 106$?
# (Expected: 0.7027.)

# %% tags=["solution", "hide-input"]
import math

half_noise = -math.log(1 - 0.5 / (1 - 1 / 106))
assert abs(half_noise - 0.7027) < 1e-4
round(half_noise, 4)

# %% [markdown]
# **Exercise 2.** Keep every vowel and every space of Carl's story, and apply infinite noise to the rest. How many
# characters does the mask keep? (Expected: 76, the first number below.)

# %% tags=["solution", "hide-input"]
keep = torch.tensor([[character in "aeiouAEIOU " for character in text]])
x_t = perturb_batch(x_0, math.inf, len(tokenizer), keep, torch.Generator().manual_seed(2))
assert torch.equal(x_t[keep], x_0[keep]) and keep.sum() == 76
print(int(keep.sum()), tokenizer.decode(x_t[0]))

# %% [markdown]
# **Exercise 3.** Repair the "improvement" of the section above without giving it up: with what probability must a
# character move to a *different* one, so that the formula holds again? Check it with `p_value` at $\bar\sigma = 0.5$ and
# $V = 5$. (Expected probability: 0.3148.)

# %% tags=["solution", "hide-input"]
move = resample_probability(0.5).item() * (1 - 1 / 5)
generator = torch.Generator().manual_seed(9)
moved = torch.rand(100_000, generator=generator) < move
step = torch.randint(1, 5, (100_000,), generator=generator)
counts = torch.where(moved, (2 + step) % 5, 2).bincount(minlength=5)
assert abs(move - 0.3148) < 1e-4
assert p_value(counts, 100_000 * transition_matrix(0.5, 5)[2]) > 1e-6
round(move, 4)

# %% [markdown]
# **Exercise 4.** At what noise does the *last* of 100 characters jump, on average? (Hint: it is the largest of 100
# waiting times. While $k$ characters are left, none jumps within $\bar\sigma$ with probability $e^{-k\bar\sigma}$, so the
# next jump comes after $1/k$ on average.) Check it on 20,000 texts. (Expected: 5.187.)

# %% tags=["solution", "hide-input"]
expected = sum(1 / k for k in range(1, 101))
waits = torch.empty(20_000, 100).exponential_(generator=torch.Generator().manual_seed(10))
assert abs(expected - 5.187) < 1e-3
spread = sum(1 / k**2 for k in range(1, 101)) ** 0.5  # of the largest: independent waits
assert abs(waits.amax(1).mean().item() - expected) < 4 * spread / math.sqrt(20_000)
round(expected, 3)

# %% [markdown]
# ## Summary
#
# A character survives with probability $e^{-\bar\sigma}$; otherwise it is drawn uniformly from all $V$ tokens. Only
# "ever resampled or not" matters, so any noise level is one step away, and counting confirms it.
#
# | module | name | meaning |
# |---|---|---|
# | `forward` | `noise_column` | noise, a scalar or (B,), as a column beside tokens or a table |
# | `forward` | `transition` | the probability of every token after more noise, (B, L, V) |
# | `forward` | `perturb_batch` | draws a corrupted batch, keeping what the mask keeps |
# | `forward` | `sample_prior` | pure noise: where generation starts |
# | `animation` | `Frame`, `iter_frames`, `make_frames` | frames of a run: as it goes, or afterward |
# | `animation` | `characters`, `draw`, `encode_pictures` | a frame as plain data, and frames as JSON for the player |
# | `animation` | `Animation` | the player, `play_in_terminal`, `save("run.gif")`, `save("run.html")` |
#
# ## Where this stands in the field
#
# `perturb_batch` is the *forward sample* of diffusion models: `q_sample` in many code bases, `sample_transition` in
# SEDD's, where the prior is `sample_limit`. That any noise level is one draw away makes diffusion models trainable;
# in [D3PM](https://arxiv.org/abs/2107.03006), where time is discrete, that draw takes the product of the transition
# matrices so far. With masks as the prior, the same function corrupts text for
# [MDLM](https://arxiv.org/abs/2406.07524) and [LLaDA](https://arxiv.org/abs/2502.09992). The coupling by waiting
# times is the discrete relative of following one image through growing Gaussian noise.
#
# Next: [chapter 5](05_loss.ipynb) asks what a network should learn from such pairs.
