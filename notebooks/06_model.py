# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The denoising transformer
#
# **We have** a loss that wants one thing from a network ([chapter 5](05_loss.ipynb)): at each
# position of a noised text, a guess $q$ of the clean character. A formula turns the guess into the
# score.
# **We want** the network that makes the guess, small enough to read in one sitting.
# **Why**: everything before this chapter was exact. This is the one part that has to *learn*, and the
# part where a quiet mistake costs most: a transformer with a bug still trains, only a little worse,
# and nobody notices. So each piece gets a check that would notice.
#
# The pieces are those of a GPT, and that a whole model can fit on a page we learned from Andrej
# Karpathy's [nanoGPT](https://github.com/karpathy/nanoGPT). Four things differ in kind (and a few in detail): it looks both
# ways, no position ever hears the letter that stands there, it is told how noisy the text is, and it starts out knowing
# nothing, exactly.

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
# ## By hand: what does a good guess need?
#
# Take the seven words of chapter 5, with how often each occurs. We see `tet`, after a total noise
# $\bar\sigma$. What was the last letter? Go through all words. Each of their letters either meets the
# one we see, or must have been redrawn into it; [chapter 4](04_forward.ipynb) has the chances. Multiply,
# add up, divide.
#
# One thing is odd, and on purpose: `guess` skips the letter at its own place. The $q$ of chapter 5 is
# the guess *before* that letter counts as evidence.

# %%
import math

WORDS = {"ant": 5, "ate": 4, "eat": 6, "net": 3, "tan": 1, "tea": 4, "ten": 7}
LETTERS = "aent"


def chance(word: str, seen: str, sigma_bar: float, skip: int = -1) -> float:
    """Probability that the noise turns a word into what is seen, one place skipped."""
    redrawn = -math.expm1(-sigma_bar) / 4  # into one given letter of four
    places = [i for i in range(3) if i != skip]
    return math.prod(redrawn + math.exp(-sigma_bar) * (word[i] == seen[i]) for i in places)


def guess(seen: str, place: int, sigma_bar: float) -> dict[str, float]:
    """q: probability of each clean letter at one place, from all other places."""
    total = dict.fromkeys(LETTERS, 0.0)
    for word, count in WORDS.items():
        total[word[place]] += count * chance(word, seen, sigma_bar, skip=place)
    return {letter: weight / sum(total.values()) for letter, weight in total.items()}


def show(title: str, numbers: dict[str, float]) -> None:
    print(f"{title:32}", "  ".join(f"{letter} {number:.3f}" for letter, number in numbers.items()))


for sigma_bar in (0.01, 0.5, 1.0, 20.0):
    show(f"tet, last letter, noise {sigma_bar}", guess("tet", 2, sigma_bar))

# %% [markdown]
# With little noise the `te` can be trusted: `tea` or `ten`, 4 to 7. With more noise the `te` may itself be
# wrong, and other words come back. At $\bar\sigma = 20$ nothing is left but how words end in general. So
# **the network must know the noise level**: the same text asks for different answers.
#
# Now the first letter of `een`. All the help is on the *right*:

# %%
show("een, first letter, noise 0.1", guess("een", 0, 0.1))

# %% [markdown]
# A GPT reads from left to right. Each position may look only at what comes before, because what comes
# after is the answer. Here nothing is certain: every position may be wrong, and any other may hold the
# evidence, on either side. The name for a network that looks to both sides is *bidirectional*.
#
# ## From a guess to a score, in one line
#
# The loss of chapter 5 and the sampler of chapter 7 do not ask for a guess. They ask for the *score*
# $s_y$: how many times as probable would the noisy text be with the letter $y$ at this place? Why
# may the network answer another question? Because the guess contains the answer. Fix the other letters.
# If the clean letter here was $z$, chapter 4 gives the probability that it is now seen as $y$,
#
# $$ e^{-\bar\sigma}[y=z] + \frac{1-e^{-\bar\sigma}}{V} = \frac{1-e^{-\bar\sigma}}{V}\,\big(1+\kappa[y=z]\big),
#    \qquad \kappa = \frac{V}{e^{\bar\sigma}-1}, $$
#
# where $[y=z]$ is 1 if the letters are equal and 0 if not. We do not know $z$, but $q_z$ is its probability,
# given the others. (Letters get their noise independently. So once $z$ is known, the others tell nothing more of
# $y$.) Add up over $z$, and leave out what is the same for all $y$: the factor in front, and the probability of the
# other letters. The $q_z$ sum to 1, so
#
# $$ p_t(\dots y \dots) \;\propto\; \sum_z q_z\,(1+\kappa[y=z]) = 1+\kappa q_y,
#    \qquad\text{and}\qquad s_y = \frac{1+\kappa q_y}{1+\kappa q_{x_t}}. $$
#
# A score can be a millionth or a million, and networks hit such numbers badly. A distribution over $V$ letters
# is what networks are good at, and $\kappa$ we know exactly. By hand, with $\bar\sigma = 1$: count how
# probable `tea`, `tee`, `ten` and `tet` are as noisy words, or use the line.


# %%
def seen_at_all(seen: str, sigma_bar: float) -> float:
    """p_t, by going through the seven words, which occur 30 times in all."""
    return sum(count * chance(word, seen, sigma_bar) for word, count in WORDS.items()) / 30


kappa, q = 4 / math.expm1(1.0), guess("tet", 2, 1.0)
counted = {y: seen_at_all("te" + y, 1.0) / seen_at_all("tet", 1.0) for y in LETTERS}
show("score by counting", counted)
show("score from the guess", {y: (1 + kappa * q[y]) / (1 + kappa * q["t"]) for y in LETTERS})

# %% [markdown]
# ### Why leave out its own letter
#
# A position's own letter is strong evidence, but of a boring kind. Its strength is known exactly: by Bayes' rule it
# multiplies $q_y$ with $1 + \kappa[y = x_t]$. The line above expects $q$ without it, and brings in $x_t$ itself, as its
# denominator. A network that counted it as well would count it twice. What would the loss say? Here is the mean loss at
# the last letter of `tet`, over all letters that it may come from, for both answers:

# %%
import torch

from ddlm_core.loss import denoiser_log_score, score_entropy_loss

left_out = torch.tensor([q[y] for y in LETTERS], dtype=torch.float64)
counted_in = left_out * (1 + kappa * torch.tensor([y == "t" for y in LETTERS]))
truth = counted_in / counted_in.sum()  # p(x_0 | x_t), what the last letter really was
x_t, x_0 = torch.full((4, 1), 3), torch.arange(4)[:, None]  # we see t; each possible clean letter
level = torch.ones(4, dtype=torch.float64)
for name, answer in (("left out", left_out), ("counted twice", truth)):
    log_score = denoiser_log_score(answer.log().expand(4, 1, 4), level, x_t)
    loss = truth @ score_entropy_loss(log_score, level, x_t, x_0)[:, 0]
    print(f"own letter {name:14} {loss:.4f} nats per unit of noise")

# %% [markdown]
# Counting twice costs. One may show the network the whole text all the same, its own position included, and let the
# loss teach it not to look. So did the first draft of this chapter ([SEDD](https://arxiv.org/abs/2310.16834) shows it, too, but asks for
# scores, which need it).
# Hiding the letter looks hard: each layer mixes all positions, so after two layers a position hears about
# its own letter from its neighbors. But there is a way (a *hollow transformer*, below), and it is worth it twice. The
# guess is then what it claims to be, whatever the weights. And a network that has nothing to copy can be asked for the clean
# letter itself, at every position: [chapter 8](08_training.ipynb) makes a loss of that. On real stories (the preset
# `cpu` with `model.conv_size=0`, the same steps of the same learning rate), the two changes together stood at 2.14 bits a
# character after 1,000 steps and at 2.00 after 2,000; the first draft, trained on score entropy, at 2.75 and 2.37.
#
# And whatever the network says, right or wrong, its guess and its score fit together. Call the guess once the own
# letter counts the *posterior*. The score is then a mean over it, of the ratios $a_y(z)$ that would be true if the
# clean letter were $z$:
#
# $$ \sum_z \underbrace{\frac{q_z\,(1+\kappa[z=x_t])}{1+\kappa q_{x_t}}}_{\text{posterior of } z}\;
#    \underbrace{\frac{1+\kappa[y=z]}{1+\kappa[x_t=z]}}_{a_y(z)}
#    \;=\; \frac{\sum_z q_z\,(1+\kappa[y=z])}{1+\kappa q_{x_t}} \;=\; \frac{1+\kappa q_y}{1+\kappa q_{x_t}} = s_y. $$
#
# A test below holds the network to this identity.
#
# | symbol | name in code | shape | meaning |
# |---|---|---|---|
# | $x_t$ | `input_ids`, `x_t` | (B, L) | noised tokens, a batch of B texts |
# | $\bar\sigma$, $\kappa$ | `sigma_bar`, `kappa` | (B,) | total noise; the weight of the evidence at that noise |
# | $V$, $L$ | `vocab_size`, `block_size` | int | number of tokens, longest text |
# | $d$ | `n_embd` | int | features per position |
# | $n$, $h$ | `n_layer`, `n_head` | int | blocks in all, attention heads in each |
# | $c$ | `cond` | (B, `cond_dim`) | the noise level, as features |
# | $\log q$ | `log_q` | (B, L, V) | guess of the clean token, own position left out |
# | $\log s$ | `log_score` | (B, L, V) | log-scores |

# %% [markdown]
# ## The picture
#
# On the left is the whole network, from bottom to top. Tokens become vectors of $d$ features
# (*embedding*), and each position in the window adds a vector of its own. A *left-to-right stack* of blocks reads them, and a
# *right-to-left stack*, each without the letter that is asked for; the rest, the *merge blocks*, put the two together. After a last
# norm a linear map (*head*) gives $V$ numbers for each position. Their log-softmax is $\log q$, and Bayes' rule, with
# $\kappa$, makes it the score. The noise level
# enters at the side: as sines and cosines, through two small layers, into every block, and once more as it is, in $\kappa$.
#
# On the right is one block. The thick line is the text on its way up, and the block only ever *adds* to
# it, twice. The first branch is attention along the text, the second a feed-forward map at each position. The noise
# level sets a shift and a scale at the start of each branch and a *gate* at its end. All six are zero
# before training. The sections below build it piece by piece.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
fig, ax = plt.subplots(figsize=(7.6, 6.2))
ax.set(xlim=(-1.1, 11.6), ylim=(-0.5, 10.2))
ax.axis("off")
TEXT, NOISE = "C0", "C1"


def box(x: float, y: float, text: str, color: str, width: float = 2.3) -> None:
    corner, look = (x - width / 2, y - 0.32), {"edgecolor": color, "linewidth": 1.3}
    ax.add_patch(plt.Rectangle(corner, width, 0.64, facecolor="none", **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(start: tuple, end: tuple, color: str, width: float = 1.2) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)


steps = [
    "embedding, position",
    "merge blocks",
    "norm, scale, shift",
    "head",
    "log-softmax",
    "Bayes: κ",
]
heights = [1.0, 4.1, 5.4, 6.5, 7.6, 9.0]
for text, y, below in zip(steps, heights, [0.05, None, *heights[1:]]):
    if below is not None:
        arrow((1.2, below + 0.32 * (y > 1)), (1.2, y - 0.32), TEXT, 2.4)
    box(1.2, y, text, TEXT)
for x, text in ((0.05, "left-to-right"), (2.35, "right-to-left")):
    box(x, 2.5, text, TEXT, 2.05)
    arrow((1.2 + 0.45 * (x > 1) - 0.45 * (x < 1), 1.32), (x, 2.18), TEXT, 2.4)
    arrow((x, 2.82), (1.2 + 0.45 * (x > 1) - 0.45 * (x < 1), 3.78), TEXT, 2.4)
for x, y, text in ((1.2, -0.2, "$x_t$"), (4.3, -0.2, r"$\bar\sigma$"), (1.4, 8.25, r"$\log\,q$")):
    ax.text(x, y, text, ha="left" if y > 0 else "center", va="center")
arrow((1.2, 9.32), (1.2, 9.75), TEXT, 2.4)
ax.text(1.2, 9.95, r"$\log\,s$", ha="center", va="center")
arrow((4.3, 0.05), (4.3, 0.68), NOISE)
box(4.3, 1.0, "sines, cosines,\ntwo layers", NOISE, 1.9)
ax.plot([4.3, 4.3], [1.32, 5.4], color=NOISE, lw=1.2)
ax.plot([4.3, 5.25, 5.25], [0.35, 0.35, 9.0], color=NOISE, lw=1.2)
arrow((4.3, 2.5), (3.4, 2.5), NOISE)
ax.plot([3.75, 3.75, -1.05, -1.05], [2.5, 3.3, 3.3, 2.5], color=NOISE, lw=1.2)
arrow((-1.05, 2.5), (-0.98, 2.5), NOISE)
for y in (4.1, 5.4):
    arrow((4.3, y), (2.35, y), NOISE)
arrow((5.25, 9.0), (2.35, 9.0), NOISE)
ax.text(4.4, 3.5, "$c$", va="center")

ax.plot([5.5, 5.5], [0, 10], color="0.5", lw=0.6, ls=":")
ax.text(6.2, -0.2, "text", ha="center", va="center")
ax.text(10.9, -0.2, "$c$", ha="center", va="center")
arrow((6.2, 0.05), (6.2, 10.0), TEXT, 2.4)
ax.plot([10.9, 10.9], [0.05, 9.1], color=NOISE, lw=1.2)
first = ["norm", "scale, shift", "attention", "gate"]
second = ["norm", "scale, shift", "feed-forward", "gate"]
for bottom, branch in ((1.0, first), (5.6, second)):
    ys = [bottom + 1.1 * i for i in range(4)]
    arrow((6.2, ys[0]), (7.3, ys[0]), TEXT)
    for text, y in zip(branch, ys):
        set_by_noise = text in ("scale, shift", "gate")
        box(8.45, y, text, NOISE if set_by_noise else TEXT)
        if y > bottom:
            arrow((8.45, y - 0.78), (8.45, y - 0.32), TEXT)
        if set_by_noise:
            arrow((10.9, y), (9.6, y), NOISE)
            ax.text(10.25, y + 0.2, "0 at first", ha="center", va="center", fontsize=7.5)
    arrow((7.3, ys[-1]), (6.4, ys[-1]), TEXT)
    ax.text(6.2, ys[-1], "⊕", ha="center", va="center", fontsize=15, color=TEXT)
plt.show()

# %% [markdown]
# ## A checkpoint describes itself
#
# Before the network, its description. Whoever finds the weights in a year needs the alphabet, the noise
# limits and the sizes, or the weights are worthless. So all of it sits in one dataclass of plain values, and
# is saved beside the weights; it is frozen, so it cannot drift from the network made with it. The *graph* stands for the kind of noise: what it does to a token, the states that it
# knows, the line from $\log q$ to $\log s$. Ours is `uniform`; appendix A brings another. (The last three fields are filled in by the training of chapter 8.)

# %% tags=["export:config"]
"""What a checkpoint says of itself: sizes, alphabet, forward process, limits of the noise."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from ddlm_core.absorbing import ABSORBING
from ddlm_core.graph import UNIFORM, Graph
from ddlm_core.noise import NoiseSchedule
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields
from ddlm_core.tokenizer import VOCAB, CharacterLevelTokenizer

GRAPHS: dict[str, Graph] = {graph.name: graph for graph in (UNIFORM, ABSORBING)}


@dataclass(frozen=True)
class DiscreteDiffusionConfig:
    """What a checkpoint says of itself: everything but the weights, as plain values.

    Raises ``UserError`` (a ``ValueError``) in one line if no network can be built like this.
    """

    block_size: Annotated[int, Limits(1)] = 256  # longest text, in tokens
    n_layer: Annotated[int, Limits(1)] = 6  # blocks of all three stacks together
    n_head: Annotated[int, Limits(1)] = 4
    n_embd: Annotated[int, Limits(1)] = 128
    cond_dim: Annotated[int, Limits(1)] = 64  # width of the noise-level embedding
    dropout: Annotated[float, Limits(0, below=1)] = 0.0
    bias: bool = False  # in the linear maps of the blocks
    conv_size: Annotated[int, Limits(0)] = 3  # positions that a causal convolution looks back
    parametrization: Literal["denoiser", "score"] = (
        "denoiser"  # what the logits are: log q or log s
    )
    graph: str = "uniform"  # the forward process, a name in GRAPHS
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    vocab: tuple[str, ...] = VOCAB
    padded: bool = False  # whether every text was filled with <PAD> up to block_size
    step: Annotated[int, Limits(0)] = 0  # training steps behind the weights
    ema: bool = False  # whether the weights are a moving average

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_embd % (unit := 2 * self.n_head):
            raise UserError(f"n_embd must be a multiple of 2 n_head = {unit}, got {self.n_embd}")
        if self.cond_dim % 2:
            raise UserError(f"cond_dim must be even, got {self.cond_dim}")
        if self.graph not in GRAPHS:
            raise UserError(f"graph must be {' or '.join(GRAPHS)}, got {self.graph!r}")
        if self.parametrization == "score" and not self.process.supports_scores:
            raise UserError(f"the {self.graph} graph needs the parametrization denoiser")
        object.__setattr__(self, "vocab", self.process.states(self.vocab))  # the only way, frozen
        _ = self.noise, self.tokenizer  # they check their own limits

    @cached_property
    def process(self) -> Graph:
        """The forward process that ``graph`` names."""
        return GRAPHS[self.graph]

    @property
    def vocab_size(self) -> int:
        """Number of tokens, V."""
        return len(self.vocab)

    @cached_property
    def noise(self) -> NoiseSchedule:
        """The noise schedule, between ``sigma_min`` and ``sigma_max``."""
        return self.process.schedule(self.sigma_min, self.sigma_max)

    @cached_property
    def tokenizer(self) -> CharacterLevelTokenizer:
        """From text to tokens and back."""
        return CharacterLevelTokenizer(self.vocab)


# %% [markdown]
# *Departure:* [SEDD](https://arxiv.org/abs/2310.16834)'s published configuration has a dropout of 0.1. Ours
# is 0: the noise itself makes every text new each time it is seen. (That is an argument; we have not compared.)
#
# Numbers that cannot work should fail here, in one line, and not as a shape error five calls deep (`check_fields`, in
# `ddlm_core/support/fields.py`, holds each value to what stands beside its field). The
# vocabulary and the noise limits check themselves (chapters 1 and 3).

# %% [markdown]
# ## The noise level as features
#
# The noise $\bar\sigma$ runs from $10^{-4}$ to 20. A network handles numbers of size 1 well, and should see
# a step from 0.001 to 0.002 as clearly as one from 1 to 2. So take the logarithm first. Then make
# angles of $\log\bar\sigma$, at *frequencies* $\omega_k$ from low to high, and read off sine and cosine (*sinusoidal
# features*),
#
# $$ \phi(\bar\sigma) = \big(\sin(\omega_k\log\bar\sigma),\; \cos(\omega_k\log\bar\sigma)\big)_k . $$
#
# The lowest frequency ($\omega = 0.03$) makes less than a tenth of a turn over the whole range, so it tells
# where we are, roughly, without ambiguity. The highest ($\omega = 10$) makes a full turn each time the noise
# grows by a factor of $e^{2\pi/10} = 1.87$, and tells small differences. All features stay in $[-1, 1]$.


# %% tags=["export"]
"""The network: a hollow transformer that is told the noise level and answers with log-scores."""

import torch
from torch import Tensor, nn


def sinusoidal_features(sigma_bar: Tensor, size: int) -> Tensor:
    r"""Sines and cosines of $\log\bar\sigma$, low frequencies first: (B,) → (B, size).

    At least in float32. ``size`` is even. Zero and infinite noise are allowed.
    """
    wide = torch.promote_types(sigma_bar.dtype, torch.float32)
    frequencies = torch.logspace(-1.5, 1.0, size // 2, dtype=wide, device=sigma_bar.device)
    phase = sigma_bar.to(wide).clamp(1e-12, 1e12).log()[:, None] * frequencies  # (B, size / 2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


# %% [markdown]
# How far do the features move when the noise doubles? At the frequency $\omega$ the squared distance is
# $(\sin\alpha - \sin\beta)^2 + (\cos\alpha - \cos\beta)^2 = 2 - 2\cos(\alpha - \beta)$, and the angle between
# them is $\omega\log 2$, *wherever we start*. So the distance is the same at every noise level. The figure
# shows it as the flat line.
#
# *Departure:* the SEDD authors' code takes sines and cosines of $\bar\sigma$ itself, with frequencies from 1 down
# to $10^{-4}$. That is the rising line: below $\bar\sigma = 0.01$ all levels look alike. It may matter little
# there, because nearly clean texts ask for nearly the same $q$. It would matter most for a network that
# outputs scores, which grow like $1/\bar\sigma$. We have not trained with theirs; we wanted a network that
# can tell every level from every other.

# %% tags=["hide-input"]
levels = torch.logspace(-4, math.log10(20), 200, dtype=torch.float64)


def features_of_noise_itself(sigma_bar: torch.Tensor, size: int) -> torch.Tensor:
    frequencies = 10_000.0 ** -(torch.arange(size // 2) / (size // 2))
    phase = sigma_bar[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


for name, features, style in (
    (r"features of $\log\,\bar\sigma$", sinusoidal_features, "-"),
    (r"features of $\bar\sigma$", features_of_noise_itself, "--"),
):
    moved = features(2 * levels, 64) - features(levels, 64)
    plt.loglog(levels, moved.norm(dim=-1), style, label=name)
plt.xlabel(r"total noise $\bar\sigma$")
plt.ylabel("distance, noise against twice the noise")
plt.legend()
plt.show()


# %% [markdown]
# Two small layers make of these features the vector $c$ that all blocks share. SiLU is $x/(1+e^{-x})$, a
# smooth relative of $\max(x, 0)$.


# %% tags=["export"]
class NoiseEmbedding(nn.Module):
    """Two small layers that make the noise level a vector, which steers every block."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        c = cond_dim
        self.mlp = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU())

    def forward(self, sigma_bar: Tensor) -> Tensor:
        r"""Total noise $\bar\sigma$ (B,) → features $c$ (B, cond_dim)."""
        weight = self.mlp[0].weight  # (cond_dim, cond_dim)
        return self.mlp(sinusoidal_features(sigma_bar, len(weight)).to(weight.dtype))


# %% [markdown]
# ## adaLN-zero: steer, and start at nothing
#
# *Layer norm* takes the features $x$ of one position, subtracts their mean and divides by their standard
# deviation. `(1, 3)` becomes `(-1, 1)`, and so does `(100, 300)`: what follows sees the pattern and not the
# size. The usual layer norm then multiplies and shifts with learned numbers, the same for every input. The
# *adaptive* one (adaLN) lets the noise level choose them. With $c$ from above and a linear map $W$,
#
# $$ (\beta, \gamma, g) = W c + b, \qquad
#    x \;\leftarrow\; x + g \odot f\big((1+\gamma)\odot \mathrm{norm}(x) + \beta\big). $$
#
# $f$ is the attention or the feed-forward map of a block, $\odot$ multiplies feature by feature. The shift
# $\beta$ and the scale $\gamma$ say what to look for at this noise, the gate $g$ how much of the finding to
# believe. "Zero" means that $W$ and $b$ are 0 before training. So $\beta = \gamma = g = 0$ for any noise, and
# **every block does nothing**: at the head arrives the sum of what the two causal stacks start from (below). The idea is from
# [DiT](https://arxiv.org/abs/2212.09748) (Peebles & Xie 2023), and SEDD has it too.
#
# Why start at nothing?
#
# * *The start is known.* Nothing goes through random blocks, so nothing is mangled by them, however many there
#   are. With a head of zeros as well, all logits are 0, $q$ is uniform and every score is 1: the best answer of
#   someone who has not read anything. Chapter 5 computed its price, $\log 106 = 4.66$ nats a character.
#   It is the same for every seed.
# * *It can still learn.* A gate at zero is not a dead end. Look at one weight, $y = x + g\,w\,x$, with a loss
#   $\ell(y)$:
#
# $$ \frac{\partial \ell}{\partial g} = \ell'(y)\,w\,x, \qquad \frac{\partial \ell}{\partial w} = \ell'(y)\,g\,x. $$
#
# At $g = 0$ and $w \neq 0$ the gate feels a pull, and $w$ does not. One step later $g \neq 0$, and $w$ feels
# it, too. But at $g = 0$ *and* $w = 0$ both derivatives are 0, for ever. **Of two factors, set one to zero and
# never both.** (Exercise 2 does it wrong.)


# %% tags=["export"]
class Modulation(nn.Module):
    """adaLN-zero (DiT, Peebles & Xie 2023, §3.2): shifts, scales, gates, zero-initialized."""

    def __init__(self, cond_dim: int, n_embd: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(cond_dim, count * n_embd)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Noise features (B, cond_dim) → ``count`` tensors (B, 1, n_embd)."""
        return self.linear(cond)[:, None].chunk(self.count, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then scaled by 1 + ``scale`` and shifted: (B, L, n_embd)."""
    return nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


# %% [markdown]
# (*Departure:* SEDD's layer norms keep a learned scale as well. With $1 + \gamma$ behind it, it adds nothing.)


# %% [markdown]
# ## Where am I? Rotary positions
#
# Attention compares positions by an inner product $q\cdot k$: how well does what I am looking for (the *query*
# $q$) fit what you have (the *key* $k$)? (In this section and the next, $q$ is a query, and $m$, $n$ are positions.) That alone does not know who stands where: `tea` and `eat` would be
# the same bag of letters. How far apart they stand, and on which side, must enter the product.
#
# [Rotary position embedding](https://arxiv.org/abs/2104.09864) (RoPE, Su et al. 2021) does it with a *rotation*. Take two features and
# see them as an arrow in the plane. At position $m$, rotate the arrow by the angle $m\omega$:
#
# $$ R_m \binom{a}{b} = \binom{a\cos m\omega - b\sin m\omega}{b\cos m\omega + a\sin m\omega}. $$
#
# The product of two arrows is their lengths times the cosine of the angle between them. Rotate the query by
# $m\omega$ and the key by $n\omega$: the angle changes by $(n - m)\,\omega$, and the lengths do not change. So
#
# $$ (R_m q)\cdot(R_n k) = q \cdot (R_{n-m}\,k): $$
#
# only the *distance* counts, with its sign. By hand, with $\omega = 0.5$, a query at position 2 and a key at 5,
# then both five places further, then the other way around:


# %%
def rotated(arrow: tuple[float, float], position: int, frequency: float = 0.5) -> torch.Tensor:
    cos, sin = math.cos(position * frequency), math.sin(position * frequency)
    return torch.tensor([arrow[0] * cos - arrow[1] * sin, arrow[1] * cos + arrow[0] * sin])


query, key = (1.0, 0.0), (0.6, 0.8)
for m, n in ((2, 5), (7, 10), (5, 2)):
    print(f"query at {m}, key at {n:2}: {rotated(query, m) @ rotated(key, n):.4f}")

# %% [markdown]
# A head has more than two features, so each pair gets a frequency of its own, this time from high to low:
# $\omega_j = 10000^{-2j/s}$, with $s$ the size of a head. High frequencies tell exactly which neighbor is which,
# low ones reach far. Feature $j$ is paired with feature $j + s/2$; any pairing would do. There is nothing to
# learn here. (We compute the angles on every call, always in
# single precision. A stored table would follow the network into bfloat16, which has 8 digits of binary
# precision: above position 256 it cannot even count.)


# %% tags=["export"]
def rope_angles(length: int, head_size: int, device: torch.device | None = None) -> Tensor:
    """Angles of the rotary position embedding: (length, head_size / 2), in radians, float32.

    Position times frequency, with the frequencies of RoFormer (Su et al. 2021, §3.2.2).
    """
    frequencies = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    return torch.outer(torch.arange(length, device=device).float(), frequencies)


def apply_rope(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate each pair of features of x (B, heads, L, head_size) by its angle (L, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


# %% [markdown]
# Angles only tell how far apart two positions are. When nearly all characters are noise, where in the window a position lies
# can only be counted from the ends, and our stories all start at its first character. So each position
# of the window also gets a vector of its own, `position_embedding` (*learned absolute positions*), which is added to what both
# causal stacks start from there. It is zero at first. (*Departure:* SEDD has rotary positions alone.)

# %% [markdown]
# ## Attention: who attends to whom
#
# Position $i$ makes a query $q_i$; every position $j$ of the *context* makes a key $k_j$ and a value $v_j$, all by
# linear maps. Then
#
# $$ y_i = \sum_{j\,\in\,S_i} w_{ij}\, v_j, \qquad
#    w_{ij} = \frac{e^{u_{ij}}}{\sum_{j'\in S_i} e^{u_{ij'}}}, \qquad u_{ij} = \frac{q_i\cdot k_j}{\sqrt s}. $$
#
# $S_i$ are the positions that position $i$ may attend to. In a GPT these are the $j \le i$; which they are here, a section
# below says. So the function takes four things: `x`, which makes the queries; `context`, which makes keys and values; `angles`,
# the rotations; and `attn_mask`, true where $j$ is in $S_i$. The context is `x` itself, or (for the merge blocks, below) two tables of
# $L$ positions, one behind the other; then the angles begin anew with the second. `<PAD>` is not masked: to this model it is a
# character like any other, and where a story ends is something to be guessed. The $h$ heads do this side by side, with
# $s = d/h$ features each.
#
# **Normed queries and keys.** Nothing above stops $q$ and $k$ from growing. When they do, one $w_{ij}$ is
# almost 1, the rest almost 0, the derivative of the softmax is almost 0, and learning stalls. So before the rotation we divide each query
# and key by its root mean square, $q / \sqrt{\tfrac1s \sum_r q_r^2}$ (*RMS norm*), times a learned number for
# each feature, 1 at first. A normed vector has the length $\sqrt s$, so by Cauchy–Schwarz
# $|u_{ij}| \le \sqrt s\sqrt s/\sqrt s = \sqrt s$: 5.7 for heads of 32, as long as the learned numbers are 1.
# The optimizer of [chapter 8](08_training.ipynb) takes large steps, and we want them to be safe. (*Departure:*
# SEDD does not have this. The idea is from [Henry et al. 2020](https://arxiv.org/abs/2010.04245).)
#
# Two things below are about mixed precision, where PyTorch runs the linear maps in bfloat16 and leaves the rest
# to us. `.to(…)` keeps norms and rotations exact. On a CPU, `autocast` is off for the attention: exact as well, and faster.


# %% tags=["export"]
class Attention(nn.Module):
    """Multi-head attention with rotary positions and RMS-normed queries and keys (Henry et al. 2020)."""

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__()
        self.heads = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key_value = nn.Linear(config.n_embd, 2 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.query_norm = nn.RMSNorm(config.n_embd // config.n_head)
        self.key_norm = nn.RMSNorm(config.n_embd // config.n_head)

    def forward(self, x: Tensor, context: Tensor, angles: Tensor, attn_mask: Tensor) -> Tensor:
        """Queries from x (B, L, n_embd), keys and values from ``context`` (B, M, n_embd) → as x.

        ``attn_mask``, bool (L, M), is true where a query may attend. The M keys are one or more
        tables of L positions, and ``angles`` (L, head_size / 2) holds for each of them.
        """
        exact = self.query_norm.weight.dtype  # norms and rotations in full precision
        q = self.query(x).to(exact).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, L, s)
        k, v = self.key_value(context).to(exact).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, h, M, s)
        q = apply_rope(self.query_norm(q), angles)
        k = apply_rope(self.key_norm(k), angles.repeat(k.shape[2] // len(angles), 1))
        with torch.autocast("cpu", enabled=False):  # its bfloat16 backward is 3 times slower
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out(y.transpose(1, 2).flatten(2))


# %% [markdown]
# ## One block
#
# After attention comes a *feed-forward* map at each position: up to four times as many features, a bend
# (GELU, another smooth $\max(x, 0)$), and down again. Now the right half of the picture, line by line (what is not in
# the picture, the convolution, comes after). `self.modulation` gives six parts: shift, scale and gate for attention,
# then the same for the feed-forward map. A block attends to its own text, or to `context`, if there is one, normed,
# shifted and scaled in the same way.
#
# **A short convolution.** Letters make words with their neighbors, and attention is a roundabout way to a neighbor: it must
# find the position by its rotation, and then carry the letter over. So in a `causal` block (a section below says which are),
# what goes into each of the two branches, already normed, shifted and scaled, is not the position alone: the three positions
# before it, in the order of reading, are added, each with a weight of its own for each feature (`causal_conv`, a *depthwise causal convolution*). The thick
# line itself is left as it is. By hand, with one feature, the text `1, 2, 4, 8`, and two weights only, 10 for one back
# and 100 for two back: the last position becomes $8 + 10\cdot 4 + 100\cdot 2 = 248$. The weights are zero at first. (That is
# safe behind a gate of zero: the position itself still passes, so the gate opens first.) They are few, $6d$ in a block of
# some $12d^2$, and they pay: on TinyStories (the preset `cpu`) the bound was 2.08 bits a character after 1,000 steps and
# 1.95 after 2,000 with them, and 2.14 and 2.00 without.
#
# (*Departure:* SEDD does not have this. It is causal because it looks back only, and depthwise because features do not mix;
# PyTorch has it as `nn.Conv1d` with `groups=d`, and a test compares the two. [Primer](https://arxiv.org/abs/2109.08668) (So et al. 2021) has one behind queries, keys and values;
# [Allen-Zhu 2025](https://arxiv.org/abs/2512.17351) puts it at four points, two of them ours, and calls it a *canon
# layer*.)


# %% tags=["export"]
from torch.utils.checkpoint import checkpoint


def causal_conv(x: Tensor, weights: Tensor) -> Tensor:
    """Depthwise causal convolution, added to its input x (B, L, n_embd): the same shape.

    ``weights`` (conv_size, n_embd): the k-th row, from 0, is for what lies k + 1 positions back.
    """
    total = x
    for back, weight in enumerate(weights, 1):
        total = total + weight * nn.functional.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
    return total


class Block(nn.Module):
    """Attention, then feed-forward, each gated (adaLN-zero); if ``causal``, after a convolution."""

    def __init__(self, config: DiscreteDiffusionConfig, causal: bool = False) -> None:
        super().__init__()
        d, bias = config.n_embd, config.bias
        self.gradient_checkpointing = False
        self.modulation = Modulation(config.cond_dim, d, 6)
        self.attention = Attention(config)
        up, down = nn.Linear(d, 4 * d, bias), nn.Linear(4 * d, d, bias)
        self.feed_forward = nn.Sequential(up, nn.GELU(), down)
        self.dropout = nn.Dropout(config.dropout)
        size = config.conv_size if causal else 0
        self.conv = nn.ParameterList(torch.zeros(size, d) for _ in range(2 if size else 0))

    def forward(
        self, x: Tensor, context: Tensor | None, cond: Tensor, angles: Tensor, attn_mask: Tensor
    ) -> Tensor:
        """From x (B, L, n_embd) to the same shape; it attends to ``context`` (B, M, n_embd), or to itself.

        ``cond`` (B, cond_dim) is the noise level; ``angles`` and ``attn_mask`` as in ``Attention``.
        With ``gradient_checkpointing`` the inner values are computed again in the backward pass.
        """
        inputs = (x, context, cond, angles, attn_mask)
        if self.gradient_checkpointing:
            return checkpoint(self.layer, *inputs, use_reentrant=False)
        return self.layer(*inputs)

    def layer(
        self, x: Tensor, context: Tensor | None, cond: Tensor, angles: Tensor, attn_mask: Tensor
    ) -> Tensor:
        """What ``forward`` computes."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(cond)
        y = modulate(x, shift_a, scale_a)
        y = causal_conv(y, self.conv[0]) if self.conv else y
        context = y if context is None else modulate(context, shift_a, scale_a)
        x = x + gate_a * self.dropout(self.attention(y, context, angles, attn_mask))
        y = modulate(x, shift_f, scale_f)
        y = causal_conv(y, self.conv[1]) if self.conv else y
        return x + gate_f * self.dropout(self.feed_forward(y))


# %% [markdown]
# With both gates at zero, the block is the identity, to the last bit.

# %% [markdown]
# ## A hollow transformer
#
# Now the blocks are put together so that no position hears its own letter. Think of two readers and a judge. One reader
# goes from left to right, as a GPT does, the other from right to left. At position $i$ the first has read the letters before
# $i$, the second those after $i$; neither has read letter $i$. The judge asks both. The name for this is *hollow
# transformer* ([Sun et al. 2023](https://arxiv.org/abs/2211.16750)): two *causal stacks* of blocks, left-to-right and
# right-to-left, and *merge blocks*. In code there are three parts to the causal stacks:
#
# * *Shift.* At position $i$ the left-to-right stack gets the vector of letter $i-1$, the right-to-left stack that of letter
#   $i+1$ (at the ends: nothing).
# * *Mask.* At position $i$ the left-to-right stack may attend to its own positions $j \le i$, which know no letter after
#   $i - 1$. The right-to-left stack may attend to $j \ge i$.
# * *Convolution.* It looks only at positions that the stack has passed, and these know no more than shift and mask let
#   them.
#
# The right-to-left stack gets the text backwards. So in its order, too, "before" means "already read", and one mask and one
# `causal_conv` serve both. (Its angles then count from the other end. That does not matter, since only distances count.)
#
# By hand, for the word `tea`: which letters does each stack know at each position?
#
# | position | 1, asks for `t` | 2, asks for `e` | 3, asks for `a` |
# |---|---|---|---|
# | left-to-right | – | `t` | `te` |
# | right-to-left | `ea` | `a` | – |
#
# The columns together are all the letters but one, each time another one. In the end the merge blocks put them together.
# They start from the sum of both stacks at a position, and may attend to the left-to-right stack at $j \le i$ and to the
# right-to-left stack at $j \ge i$. They may not attend to themselves: the merge state at position 1 knows `ea`, and by way of
# it position 2 would hear its own `e`. So however many merge blocks there are, all of them attend to the two stacks, which never
# attend to them. For the same reason they have no convolution: position 2 would get its own `e` from position 1.
#
# Of the $n$ blocks, $\lfloor (n-1)/2 \rfloor$ go to each causal stack and the rest to the merge: 2, 2 and 2 of 6. Each block
# still works once on each position, so this costs about what a plain stack of $n$ blocks costs (a merge block some third more
# at our size, for its context has $2L$ positions). The price is elsewhere: the two stacks know nothing of each other before
# the merge.


# %% tags=["export"]
def neighbors(x: Tensor, position_embedding: Tensor) -> tuple[Tensor, Tensor]:
    """What the two causal stacks start from: x (B, L, n_embd) → left, right neighbor (B, L, n_embd).

    Zeros beyond the ends; both plus ``position_embedding`` (L, n_embd) of the position itself.
    """
    padded = nn.functional.pad(x, (0, 0, 1, 1))  # (B, L + 2, n_embd)
    return padded[:, :-2] + position_embedding, padded[:, 2:] + position_embedding


def hollow_attention(
    blocks: nn.ModuleList, left: Tensor, right: Tensor, cond: Tensor, angles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States of the merge, left-to-right and right-to-left stacks, blind to their own letter.

    ``left``, ``right`` and the results: (B, L, n_embd). The hollow transformer of Sun et al. 2023
    (arXiv:2211.16750), here without weights shared by the two causal stacks.
    """
    depth, length = (len(blocks) - 1) // 2, left.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=left.device).tril()
    for block in blocks[:depth]:
        left = block(left, None, cond, angles, causal)
    right = right.flip(1)  # so that one causal mask serves both
    for block in blocks[depth : 2 * depth]:
        right = block(right, None, cond, angles, causal)
    right = right.flip(1)
    context = torch.cat([left, right], 1)  # (B, 2 L, n_embd)
    attn_mask = torch.cat([causal, causal.T], 1)  # (L, 2 L)
    merge = left + right
    for block in blocks[2 * depth :]:
        merge = block(merge, context, cond, angles, attn_mask)
    return merge, left, right


# %% [markdown]
# ## The network
#
# One piece is left. When a user gives part of a text and wants the rest (*infilling*, chapter 7), the given
# characters are certain, whatever the noise. The network should know which ones. So `condition_mask`, true where a token
# is given, adds one learned vector, `condition_embedding`, to the vectors of those tokens (so all hear it but the position itself). (This
# mask hides nothing.) The vector is zero at first, and a network that is never
# told stays the same network. (*Departure:* SEDD fills in with the plain network, which cannot tell a
# given character from a lucky one.)
#
# Bad inputs should fail in one line, too (`check_input`, in the same file). We look at shapes and types only. To look at the numbers, the
# processor would have to wait for the GPU at each call.

# %% [markdown]
# And here is the whole network. `logits` is the left half of the picture up to the head. (`stack_logits` sends
# the two causal stacks through the same norm and head as well. [Chapter 8](08_training.ipynb) uses that for an auxiliary loss.)
# `denoise` and `denoise_stacks` read the numbers as $\log q$. `forward` goes on to the score, by the one line from above.
#
# Follow one batch through it, with the default sizes. 16 texts of 256 tokens are a table (16, 256) of whole
# numbers. The embedding makes it (16, 256, 128). `neighbors` makes two such tables, one for each causal stack, and all blocks keep that
# shape. Inside a block, attention cuts
# the 128 features into 4 heads of 32, compares all 256 × 256 pairs of positions in each (a merge block: 256 × 512, both
# stacks), and puts the heads side by side again. The noise, one number for each text, is (16,); it becomes $c$, (16, 64), and in each block
# (16, 1, 768), six parts of 128. The 1 in the middle says that all positions of a text get the same shift, scale
# and gate. The head makes (16, 256, 106): for each position of each text, a number for each token.
#
# With `parametrization="score"` the network answers as that of the paper does: the numbers are log-scores, and the number at
# the current token is subtracted, because a ratio of a thing to itself is 1. (The network does not see which token that is,
# and need not.) (*Departure:* the authors' code
# overwrites that one entry with 0. Subtracting also gives 0 there, and makes the answer the same when all
# numbers are raised by a constant, as a ratio should be.)
#
# Whatever precision the network runs in, the last steps run in single precision or better. $\kappa$ is a million
# at low noise, and $\log(1+\kappa q)$ of a $q$ in bfloat16 would be useless.

# %% tags=["export"]
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin

from ddlm_core.support.checks import check_input


class DiscreteDiffusionTransformer(nn.Module, PyTorchModelHubMixin):
    """The network: noised tokens and the total noise to log-scores.

    ``save_pretrained`` and ``from_pretrained`` write and read a folder. All methods take tokens,
    int64 (B, L), the noise of each text (B,), and perhaps ``condition_mask``, bool (B, L), true at
    given tokens; they raise a ``UserError`` (a ``ValueError``) for other shapes or types.
    """

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__()
        self.config, self.graph = config, config.process
        d, causal_blocks = config.n_embd, (config.n_layer - 1) // 2 * 2
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Parameter(torch.zeros(config.block_size, d))
        self.condition_embedding = nn.Parameter(torch.zeros(d))  # added where a token is given
        self.noise_embedding = NoiseEmbedding(config.cond_dim)
        self.blocks = nn.ModuleList(Block(config, i < causal_blocks) for i in range(config.n_layer))
        self.modulation = Modulation(config.cond_dim, d, 2)
        self.head = nn.Linear(d, config.vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.3)  # not 1, for the blocks add to it
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks compute their inner values again in the backward pass; False at first."""
        return self.blocks[0].gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        for block in self.blocks:
            block.gradient_checkpointing = value

    def _stacks(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        """States of the three stacks, each (B, L, n_embd), and the noise features (B, cond_dim)."""
        check_input(x_t, sigma_bar, condition_mask, self.config.block_size)
        x, length = self.embedding(x_t), x_t.shape[1]  # (B, L, n_embd)
        if condition_mask is not None:
            x = x + condition_mask[..., None] * self.condition_embedding
        cond = self.noise_embedding(sigma_bar)
        angles = rope_angles(length, self.config.n_embd // self.config.n_head, x.device)
        left, right = neighbors(x, self.position_embedding[:length])
        return *hollow_attention(self.blocks, left, right, cond, angles), cond

    def _read_out(self, x: Tensor, cond: Tensor) -> Tensor:
        """Last norm and head: (..., L, n_embd) → (..., L, V), at least in float32."""
        logits = self.head(modulate(x, *self.modulation(cond)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def logits(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Output of the head on the merge stack, not yet log q or log s: (B, L, V)."""
        merge, _, _, cond = self._stacks(x_t, sigma_bar, condition_mask)
        return self._read_out(merge, cond)

    def stack_logits(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The same head on all stacks: merge, left-to-right, right-to-left: (3, B, L, V)."""
        *states, cond = self._stacks(x_t, sigma_bar, condition_mask)
        return self._read_out(torch.stack(states), cond)

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$ of each clean token given all letters but its own: (B, L, V), at least float32."""
        return self._log_q(self.logits(x_t, sigma_bar, condition_mask))

    def denoise_stacks(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$ of the merge, left-to-right and right-to-left stacks: (3, B, L, V)."""
        return self._log_q(self.stack_logits(x_t, sigma_bar, condition_mask))

    def forward(
        self, input_ids: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V), 0 at the current token."""
        if self.config.parametrization == "score":
            log_score = self.logits(input_ids, sigma_bar, condition_mask)
            return log_score - log_score.gather(-1, input_ids[..., None])
        log_q = self.denoise(input_ids, sigma_bar, condition_mask)
        return self.graph.log_score(log_q, sigma_bar, input_ids)

    def _log_q(self, logits: Tensor) -> Tensor:
        if self.config.parametrization != "denoiser":
            raise TypeError("a network with parametrization='score' has no denoiser")
        return logits.log_softmax(-1)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> Self:
        return super()._from_pretrained(strict=strict, **options)  # the mixin's default is lenient


# %% [markdown]
# (`_from_pretrained` is for the section on saving, below.) A fresh network of the default size, and what it
# has to say about a text:

# %%
config = DiscreteDiffusionConfig()
torch.manual_seed(0)
network = DiscreteDiffusionTransformer(config)
x_t = config.tokenizer.encode("Once upon a tome")[None]
sigma_bar = torch.tensor([0.1])
with torch.no_grad():
    log_q, log_score = network.denoise(x_t, sigma_bar), network(x_t, sigma_bar)
print(f"log q from {log_q.min():.4f} to {log_q.max():.4f}, and log(1/106) = {-math.log(106):.4f}")
print(f"log s from {log_score.min()} to {log_score.max()}")

# %% [markdown]
# Exactly nothing. But beware of what this shows: the head is zero, so it would read 0 even with random gates
# behind it. One zero hides the other. So we look at the modulations themselves. It is not an idle worry. A common
# habit is to walk over all layers at the end of the construction and give each linear map fresh random
# numbers, and that overwrites the zeros that a layer had set for itself.


# %% [markdown]
# The checks of this chapter use a small network: six letters and two special tokens, four blocks, sixteen features, in
# double precision. `fresh_network` is one as it is made; in `small_network` every weight is random, the zeros too.


# %% tags=["test"]
import math

import torch

from ddlm_core.model import Modulation
from ddlm_core.testing import fresh_network, noised_batch, small_network


def test_fresh_network_is_the_uniform_baseline():
    x_t, sigma_bar = noised_batch()  # three texts of seven tokens
    for parametrization in ("denoiser", "score"):
        assert (fresh_network(parametrization=parametrization)(x_t, sigma_bar) == 0).all()
    network = fresh_network()
    log_q = network.denoise(x_t, sigma_bar)
    assert torch.allclose(log_q, torch.full((3, 7, 8), -math.log(8)).double())
    cond = network.noise_embedding(sigma_bar)
    for modulation in (m for m in network.modules() if isinstance(m, Modulation)):
        assert all((part == 0).all() for part in modulation(cond))


test_fresh_network_is_the_uniform_baseline()

# %% [markdown]
# ## It wakes up from the top
#
# Head and gates are both zero, one behind the other. Is that not the double zero that we warned of? No: the head
# multiplies the two neighbors, which reach it past the gates, so the head moves first. Then a gate, beside a branch full
# of random numbers, feels a pull. They wake up one after the other. Here are four steps of plain gradient descent
# on one text, and the size of the gradient in each part before each step:

# %%
from ddlm_core.forward import perturb_batch

x_0 = config.tokenizer.encode("The cat sat on the mat. " * 4).repeat(16, 1)


def mean_loss(network, generator):
    t = (torch.rand(1, generator=generator) + torch.arange(16) / 16) % 1
    sigma_bar, sigma = config.noise(t)
    x_t = perturb_batch(x_0, sigma_bar, config.vocab_size, generator=generator)
    losses = score_entropy_loss(network(x_t, sigma_bar), sigma_bar, x_t, x_0)
    return (sigma * losses.mean(-1)).mean()


parts = {
    "head": network.head.weight,
    "gates": network.blocks[0].modulation.linear.weight,
    "shifts, scales": network.blocks[0].modulation.linear.weight,
    "embedding": network.embedding.weight,
    "attention": network.blocks[0].attention.query.weight,
    "noise embedding": network.noise_embedding.mlp[0].weight,
}
optimizer, g = torch.optim.SGD(network.parameters(), lr=0.1), torch.Generator().manual_seed(0)
print("gradient of         " + "".join(f"   step {step}" for step in range(4)))
rows = {name: [] for name in parts}
for step in range(4):
    optimizer.zero_grad()
    mean_loss(network, g).backward()
    for name, parameter in parts.items():
        size = parameter.grad
        if name in ("gates", "shifts, scales"):  # of six parts, the third and the last are gates
            size = size.view(6, 128, -1)[[2, 5] if name == "gates" else [0, 1, 3, 4]]
        rows[name].append(size.norm().item())
    optimizer.step()
for name, norms in rows.items():
    print(f"{name:21}" + "".join(f"{norm:9.1e}" if norm else f"{'0':>9}" for norm in norms))

# %% [markdown]
# First the head alone learns. (It can learn which letters are frequent, and which neighbors they have.) Then it passes a pull down, through blocks
# that do nothing yet, and the gates and the embedding learn (from the two neighbors, which reach the merge as they are).
# Only then, with the gates ajar, do the shifts and scales before them and the attention; and the noise embedding, once
# any modulation is not zero. Three steps, and the whole network is awake.


# %% [markdown]
# ## Every position depends on every other, and never on itself
#
# The claim can be tested. Wake all weights up with random numbers, and ask PyTorch for the
# derivative of the logits at position $i$ (of one fixed mixture of them, so that one derivative is enough) with
# respect to the embedding at position $j$. Within a text it must
# not be zero for any pair, except $i = j$, where it must be exactly zero; and exactly zero between two texts of a batch. (A
# reshape that mixes the batch with
# the positions keeps all shapes right, and fails here.) The figure shows the size of these derivatives for
# one text of twelve letters: a row for each position that answers, a column for
# each that it depends on. Only the diagonal is empty.


# %% tags=["test"]
from torch import Tensor

from ddlm_core.model import DiscreteDiffusionTransformer


def influence(network: DiscreteDiffusionTransformer, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
    """Size of the derivatives of the logits by the embedded tokens: (B, L, B, L)."""
    embedded = []
    hook = network.embedding.register_forward_hook(lambda *call: embedded.append(call[-1]))
    logits = network.logits(x_t, sigma_bar)
    hook.remove()
    answers = logits @ torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)  # (B, L)
    rows = [torch.autograd.grad(a, embedded[0], retain_graph=True)[0] for a in answers.flatten()]
    return torch.stack(rows).norm(dim=-1).view(*x_t.shape, *x_t.shape)


def test_every_position_depends_on_every_other_and_nothing_else():
    x_t, sigma_bar = noised_batch(3, 12)
    others = ~torch.eye(12, dtype=torch.bool)
    for n_layer in (1, 2, 3, 4, 6):
        size = influence(small_network(n_layer=n_layer), x_t, sigma_bar)
        for a in range(3):
            for b in range(3):
                assert torch.equal(size[a, :, b] > 0, others if a == b else others & False)


test_every_position_depends_on_every_other_and_nothing_else()

# %% tags=["hide-input"]
x_t, sigma_bar = noised_batch(1, 12)
size = influence(small_network(), x_t, sigma_bar)[0, :, 0]
fig, ax = plt.subplots(figsize=(4.6, 3.8))
image = ax.imshow(size.log10(), extent=(0.5, 12.5, 12.5, 0.5))
ax.grid(False)
ax.set(xlabel="position that it depends on", ylabel="position that answers")
ax.set(xticks=range(1, 13), yticks=range(1, 13))
bar = fig.colorbar(image, label="size of the derivative (powers of ten)")
bar.outline.set_visible(False)
plt.show()

# %% [markdown]
# ## The score is a mean of true ratios, whatever the weights
#
# The identity from the beginning holds for any network: the score is the mean of the true ratios over the posterior.


# %% tags=["test"]
from ddlm_core.loss import log_posterior, log_ratio


def test_score_is_the_mean_ratio_whatever_the_network_says():
    x_t, sigma_bar = noised_batch()
    for seed in range(3):
        network = small_network(seed)
        posterior = log_posterior(network.denoise(x_t, sigma_bar), sigma_bar, x_t).exp()
        mean = torch.zeros(3, 7, 8, dtype=torch.float64)
        for z in range(8):
            ratio = log_ratio(sigma_bar, x_t, torch.full_like(x_t, z), 8).exp()
            mean += posterior[..., z, None] * ratio
        assert torch.allclose(mean, network(x_t, sigma_bar).exp(), rtol=1e-9)


test_score_is_the_mean_ratio_whatever_the_network_says()

# %% [markdown]
# The tests that no reader needs are in `tests/unit/test_model.py`: attention, rotation, convolution and gates by hand;
# log-scores of 0 at the current token; precision; gradients; files; and inputs that are refused.

# %% [markdown]
# ## How many numbers is that?
#
# A linear map from $a$ to $b$ features has $ab$ weights and $b$ biases. Go through the picture, with
# $V$ tokens, windows of $L$ tokens, $d$ features, convolutions over the 3 positions before, $n$ blocks of $h$ heads, $d_c$ features of the noise
# vector, and no biases in attention and feed-forward:
#
# $$ \begin{aligned} &\underbrace{(V + L + 1)\,d}_{\text{embedding, positions, condition}} + \underbrace{2d_c(d_c+1)}_{\text{noise}}
#    + n\big[\underbrace{6d(d_c+1)}_{\text{modulation}} + \underbrace{4d^2 + 2d/h}_{\text{attention}}
#    + \underbrace{8d^2}_{\text{feed-forward}}\big] \\
#    &+ \underbrace{12\,d\,\lfloor (n-1)/2\rfloor}_{\text{convolutions}} + \underbrace{2d(d_c+1)}_{\text{last modulation}}
#    + \underbrace{V(d+1)}_{\text{head}} \end{aligned} $$
#
# (The $2d/h$ are the norms of query and key, one number for each feature of a head.) Rule of thumb: $12\,n\,d^2$, for large $d$. A formula that agrees with the network says that nothing was forgotten, and
# nothing is there twice.


# %%
def expected_parameters(config: DiscreteDiffusionConfig) -> int:
    """The formula above, without biases in the blocks, for any length of the convolution."""
    V, d, d_c = config.vocab_size, config.n_embd, config.cond_dim
    block = 6 * d * (d_c + 1) + 4 * d * d + 2 * d // config.n_head + 8 * d * d
    ends = (V + config.block_size + 1) * d + 2 * (d_c + d) * (d_c + 1) + V * (d + 1)
    convolutions = (config.n_layer - 1) // 2 * 4 * config.conv_size * d
    return ends + config.n_layer * block + convolutions


counted = sum(parameter.numel() for parameter in network.parameters())
assert counted == expected_parameters(config)
print(f"{counted:,} numbers; rule of thumb {12 * 6 * 128**2:,}")

# %% [markdown]
# ## Save and load
#
# `PyTorchModelHubMixin` of [huggingface_hub](https://huggingface.co/docs/huggingface_hub/package_reference/mixins)
# is a class to inherit from that gives the network `save_pretrained`, `from_pretrained` and `push_to_hub`. A folder holds `config.json` and
# `model.safetensors`, a format that holds numbers only and cannot run code. All of `config.json` but the alphabet:

# %%
import json
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    network.save_pretrained(folder)
    saved = json.loads((Path(folder) / "config.json").read_text())
    files = sorted(path.name for path in Path(folder).iterdir())
alphabet = saved.pop("vocab")
print(files, f"{len(alphabet)} tokens", json.dumps(saved), sep="\n")

# %% [markdown]
# (The README is a model card that the mixin writes.) What is saved is the config that the network was
# made with, and it is frozen. To note the step, hand over a new one:
# `save_pretrained(folder, config=replace(model.config, step=step))`.
#
# One default of the mixin we turn around. Its `from_pretrained` accepts a file in which weights are missing, and leaves
# those as they were made. Elsewhere that shows quickly. Here a missing piece, the last modulation say, is one with
# shut gates: it does nothing, the rest works, and the text gets a little worse. That is the kind of mistake that nobody
# finds, so `_from_pretrained` in the network above asks for `strict=True`: all weights, or an error.


# %% [markdown]
# ## Change it safely
#
# 1. Let the merge blocks attend to themselves: in `hollow_attention`, in the last loop, write `merge` in place of `context` and
#    `causal | causal.T` in place of `attn_mask`. It would train, and faster at first sight, for it hears the answer.
#    `test_every_position_depends_on_every_other_and_nothing_else` fails.
# 2. Fall into the trap: at the end of the network's `__init__`, loop over `self.modules()` and call
#    `nn.init.normal_(m.weight, std=0.02)` for each `nn.Linear`. `test_fresh_network_is_the_uniform_baseline` fails. Now leave out
#    `self.head`. The scores are 0 again, and it still fails, because it looks behind the head.
# 3. Forget the norm of the keys: in the line that rotates them, write `k` for `self.key_norm(k)`. On this page nothing
#    fails, and it would train. `test_attention_is_the_formula` and `test_large_queries_and_keys_change_nothing` fail, and
#    `test_gradients_arrive_from_the_top` (a norm that is not used gets no gradient).
# 4. Give the merge blocks a convolution, too: in the network's `__init__`, write `True` for `i < causal_blocks`.
#    `test_every_position_depends_on_every_other_and_nothing_else` fails, for the merge state next door knows the letter that
#    is asked for.
#
# After each: `make export && pytest tests/`.
#
# What is safe: `n_layer`, `n_head`, `n_embd`, `cond_dim`. They are in the config, and the checkpoint knows
# them.

# %% [markdown]
# ## Exercises
#
# **1. The size of the paper.** SEDD's small model has 12 blocks of 12 heads and 768 features; its noise vector has
# 128, its window 1024 tokens. What would ours have at that size, with our 106 tokens? Which share is modulation? (Expected: 93.3
# million, of which 7.9 %.)

# %% tags=["solution", "hide-input"]
sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "cond_dim": 128, "block_size": 1024}
sedd_small = DiscreteDiffusionConfig(**sizes)
modulation = (12 * 6 + 2) * 768 * 129
total = expected_parameters(sedd_small)
assert round(total / 1e6, 1) == 93.3 and round(100 * modulation / total, 1) == 7.9
total, round(100 * modulation / total, 1)

# %% [markdown]
# **2. Two zeros in a row.** Set `attention.out.weight` of every block to zero as well, train 20 steps as above,
# and look at its largest entry. (Expected: 0, still, and for ever. The attention gates sleep as well.)

# %% tags=["solution", "hide-input"]
torch.manual_seed(0)
sleeper = DiscreteDiffusionTransformer(config)
for block in sleeper.blocks:
    nn.init.zeros_(block.attention.out.weight)
optimizer, g = torch.optim.SGD(sleeper.parameters(), lr=0.1), torch.Generator().manual_seed(0)
for _ in range(20):
    optimizer.zero_grad()
    mean_loss(sleeper, g).backward()
    optimizer.step()
block = sleeper.blocks[0]
gate_of_attention = block.modulation.linear.weight[2 * 128 : 3 * 128]
gate_of_thought = block.modulation.linear.weight[5 * 128 :]
largest = [w.abs().max().item() for w in (block.attention.out.weight, gate_of_attention)]
assert largest == [0, 0] and gate_of_thought.abs().max() > 0
largest

# %% [markdown]
# **3. How far do the frequencies reach?** In a head of 32 features, after how many positions has the pair of the highest
# frequency come round, and that of the lowest? (Expected: 6.3 and about 35,000. In a text of 256 the low ones hardly rotate: they
# compare features, not positions.)

# %% tags=["solution", "hide-input"]
frequencies = rope_angles(2, 32)[1]
rounds = 2 * math.pi / frequencies
assert abs(rounds[0] - 6.283) < 1e-3 and 35_000 < rounds[-1] < 36_000
round(rounds[0].item(), 1), round(rounds[-1].item())

# %% [markdown]
# **4. A bag of letters.** Take away the position embedding and the rotations. Does the network still know the order of the letters? Swap
# the first two letters of a text, and look at the answer for the last one: in a network of one block (a merge block alone), and in one of
# six. (Expected: one block knows its two neighbors, and all else is a bag of letters to it: the same answer. Six do not: who may attend to whom already
# tells the order, also to a GPT without positions.)

# %% tags=["solution", "hide-input"]
x_t, sigma_bar = noised_batch(1, 7)
swapped = x_t[:, [1, 0, 2, 3, 4, 5, 6]]


def answer(bag: DiscreteDiffusionTransformer, x_t: Tensor) -> Tensor:
    x, cond = (
        neighbors(bag.embedding(x_t), 0 * bag.position_embedding[:7]),
        bag.noise_embedding(sigma_bar),
    )
    merge, _, _ = hollow_attention(bag.blocks, *x, cond, 0 * rope_angles(7, 8))
    return bag.head(modulate(merge, *bag.modulation(cond)))[0, -1]


bags = [small_network(n_layer=n_layer) for n_layer in (1, 6)]
same = [torch.allclose(answer(bag, x_t), answer(bag, swapped)) for bag in bags]
assert same == [True, False]
same

# %% [markdown]
# ## Summary
#
# - The network guesses the clean letter at each position from all other positions, left and right, and from the noise
#   level. A hollow transformer sees to it that no position hears its own letter, which is left to Bayes' rule.
# * Blocks only add, and gates that are zero at first decide how much. So the start is known exactly: scores of 1,
#   $\log V$ nats a character. Of two factors, set one to zero and never both.
# * A transformer with a mistake still trains. So each piece is compared with its formula, and the network with
#   what must hold for any weights.
#
# | exported | what it is |
# |---|---|
# | `DiscreteDiffusionConfig`, `GRAPHS` | sizes, alphabet, noise limits, training step: a checkpoint's description |
# | `sinusoidal_features(sigma_bar, size)`, `NoiseEmbedding` | from $\bar\sigma$ to the vector $c$ |
# | `Modulation`, `modulate(x, shift, scale)` | adaLN-zero |
# | `rope_angles(length, head_size)`, `apply_rope(x, angles)` | positions as rotations |
# | `Attention`, `causal_conv(x, weights)`, `Block` | one layer, its two branches, and a short convolution before each |
# | `neighbors(x, position_embedding)`, `hollow_attention(blocks, ...)` | two causal stacks and a merge: all letters but its own |
# | `DiscreteDiffusionTransformer(config)` | `model(x_t, sigma_bar, condition_mask)` is $\log s$, `.denoise(...)` is $\log q$, `.logits(...)` comes before both; `.denoise_stacks(...)` and `.stack_logits(...)` answer for all three stacks |
#
# Next: [chapter 7](07_sampler.ipynb) walks from noise to text with it.
