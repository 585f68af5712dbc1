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
# *About 55 minutes. You need: chapters 3 to 5, and an idea of how attention works. You will have: the network of this
# book, with a check for every part.*
#
# **We have** a loss that compares scores ([chapter 5](05_loss.ipynb)).
# **We want** the network that gives them, small enough to read in one sitting.
# **Why**: everything so far was exact; this is the one part that has to *learn*. A transformer with a bug still trains, only
# a little worse, and nobody notices. So every piece has a check that would notice: those of the whole are on this
# page, those of layers in `tests/unit/test_model.py`.
#
# It is a GPT except for four things: it looks both ways, never sees a position's own letter when it
# answers for that position, is told how noisy the text is, and before training favors no letter.

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
# ## By hand: what a denoiser must know
#
# Take seven words, and how often each occurs. We see `tet`, after a total noise $\bar\sigma$. What was the last letter?
# Go through all words. By [chapter 4](04_forward.ipynb), a letter survives with probability $e^{-\bar\sigma}$; otherwise it
# is resampled, here as any of four letters. Multiply, add up, divide. `leave_one_out` skips the letter at its own position;
# two sections on, we will see why.

# %%
import math

WORDS = {"ant": 5, "ate": 4, "eat": 6, "net": 3, "tan": 1, "tea": 4, "ten": 7}
LETTERS = "aent"


def likelihood(word: str, seen: str, sigma_bar: float, skip: int = -1) -> float:
    """Probability that the noise turns a word into what is seen, one position skipped."""
    keep, redraw = math.exp(-sigma_bar), -math.expm1(-sigma_bar) / 4  # into one letter of four
    return math.prod(redraw + keep * (word[i] == seen[i]) for i in range(3) if i != skip)


def leave_one_out(seen: str, place: int, sigma_bar: float) -> dict[str, float]:
    """q: probability of each clean letter at one position, from all other positions."""
    total = dict.fromkeys(LETTERS, 0.0)
    for word, count in WORDS.items():
        total[word[place]] += count * likelihood(word, seen, sigma_bar, skip=place)
    return {letter: weight / sum(total.values()) for letter, weight in total.items()}


def show(title: str, numbers: dict[str, float]) -> None:
    print(f"{title:32}", "  ".join(f"{letter} {number:.3f}" for letter, number in numbers.items()))


for sigma_bar in (0.01, 0.5, 1.0, 20.0):
    show(f"tet, last letter, noise {sigma_bar}", leave_one_out("tet", 2, sigma_bar))
show("een, first letter, noise 0.1", leave_one_out("een", 0, 0.1))

# %% [markdown]
# With little noise the `te` can be trusted: `tea` or `ten`, 4 to 7. With more noise it may itself be
# wrong. At $\bar\sigma = 20$ nothing is left but how words end in general.
# **The network must know the noise level**: the same text calls for different answers.
#
# For the first letter of `een`, all the help is on the right, where a GPT does not look, because what
# comes later is the answer. This network must be *bidirectional*.
#
# ## From a denoiser to a score, in one line
#
# The loss and the sampler ask for the *score* $s_y$: how many times as probable would the noisy text be with the letter $y$
# at this position? [SEDD](https://arxiv.org/abs/2310.16834) lets the network output $\log s$ itself. Ours predicts which
# clean letter stood here, a *parametrization* called *$x_0$-prediction*. It is enough, because the score follows from it.
#
# Fix the other letters, and let $q_z$ be the probability that the clean letter here was $z$, given those others. By chapter 5,
# $z$ is then seen as $y$ with probability $\frac{1-e^{-\bar\sigma}}{V}\,(1+\kappa[y=z])$, where
# $\kappa = V/(e^{\bar\sigma}-1)$ and $[y=z]$ is 1 for the same letter, else 0. Letters get their noise
# independently, so once $z$ is known, the others say nothing more about $y$. Add up over $z$; the $q_z$ sum to 1, and
# common factors cancel in the ratio:
#
# $$ p_t(\dots y \dots) \;\propto\; \sum_z q_z\,(1+\kappa[y=z]) = 1+\kappa q_y,
#    \qquad\text{so}\qquad s_y = \frac{1+\kappa q_y}{1+\kappa q_{x_t}}. $$
#
# A score can be a millionth or a million, and networks are bad at such ranges. Distributions are what they are good at, and
# $\kappa$ we know exactly. Check that line at $\bar\sigma = 1$ by counting how probable four noisy words are:


# %% tags=["hide-input"]
def probability(seen: str, sigma_bar: float) -> float:
    """p_t, by going through the seven words, which occur 30 times in all."""
    return sum(count * likelihood(word, seen, sigma_bar) for word, count in WORDS.items()) / 30


kappa, q = 4 / math.expm1(1.0), leave_one_out("tet", 2, 1.0)
counted = {y: probability("te" + y, 1.0) / probability("tet", 1.0) for y in LETTERS}
show("score by counting", counted)
show("score from q", {y: (1 + kappa * q[y]) / (1 + kappa * q["t"]) for y in LETTERS})

# %% [markdown]
# ## Why its own letter stays out
#
# $q$ is a *leave-one-out* (or *cavity*) distribution: it counts everything but the position's own noised letter. That letter
# is evidence too, but of known strength: by Bayes' rule, $p(x_0 = y \mid x_t) \propto q_y\,(1 + \kappa[y = x_t])$.
# The line above brings it in, as its denominator; a network that had counted it already would count it twice. The mean
# score entropy at the last letter of `tet`, with $q$ and with $p(x_0 \mid x_t)$ in its place:

# %% tags=["hide-input"]
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
# Counting twice costs. Most networks in the field see the whole noised text, and must learn to leave their own letter out.
# Hiding it is harder than it looks: in the first layer a neighbor learns of our letter, and in the second we learn of it
# from the neighbor. The *hollow transformer* below does hide it. And because there is nothing to copy, [chapter
# 8](08_training.ipynb) can train it with plain cross-entropy on the clean letter, at every position.
#
# Below, B is the number of texts and L the number of tokens per text; $d$ is `n_embd`, the features per position, which
# attention cuts into $h$ heads (`n_head`); and $c$ (`cond`) is the noise level as features.
#
# Sizes, alphabet and noise are kept in one frozen dataclass, `DiscreteDiffusionConfig`, saved beside the weights.
# Its `graph` is the kind of noise: uniform up to chapter 10, absorbing in [appendix A](A_absorbing.ipynb).
# A [deeper page](deeper/network_engineering.ipynb) shows how networks are saved, and why some lines choose a precision.

# %% tags=["export:config", "hide-input"]
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
# ## The noise level as features
#
# The noise $\bar\sigma$ runs from $10^{-4}$ to 20, and a network should see
# a step from 0.001 to 0.002 as clearly as one from 1 to 2. So take the logarithm, multiply it by *frequencies* $\omega_k$, and
# read off $\sin(\omega_k\log\bar\sigma)$ and $\cos(\omega_k\log\bar\sigma)$: *sinusoidal features*, also known as timestep embedding.
# The lowest frequency, 0.03, makes less than a tenth of a turn over the whole range, and tells roughly where we are.
# The highest, 10, makes a full turn each time the noise grows by a factor of $e^{2\pi/10} = 1.87$. Two small
# layers then make the vector $c$, which all blocks share.

# %% tags=["export", "hide-input"]
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


# %% tags=["export", "hide-input"]
class NoiseEmbedding(nn.Module):
    """Two small layers that make the noise level a vector, which steers every block."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        c = cond_dim
        self.mlp = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU())

    def forward(self, sigma_bar: Tensor) -> Tensor:
        r"""Total noise $\bar\sigma$ (B,) → features $c$ (B, cond_dim)."""
        weight = next(self.mlp.parameters())  # (cond_dim, cond_dim)
        return self.mlp(sinusoidal_features(sigma_bar, len(weight)).to(weight.dtype))


# %% [markdown]
# ## adaLN-zero: let the noise level steer, and start at nothing
#
# A block of a transformer never replaces the features $x$ of a position; it adds to them. What flows upward through all
# additions is the *residual stream*. Before each addition, *layer norm* subtracts the mean of the features and divides by their standard
# deviation: `(1, 3)` and `(100, 300)` both become `(-1, 1)`. *Adaptive* layer norm (adaLN) then shifts and scales the result by
# amounts that depend on the noise. With $c$ from above and a linear layer $W$,
#
# $$ (\beta, \gamma, g) = W(c), \qquad
#    x \;\leftarrow\; x + g \odot f\big((1+\gamma)\odot \mathrm{norm}(x) + \beta\big). $$
#
# $f$ is the attention or the feed-forward map of a block, $\odot$ multiplies feature by feature. Shift
# and scale say what to look for at this noise level, the *gate* $g$ how much of it to add.
# "Zero" means that the weights and biases of $W$ are *zero-initialized*. So $\beta = \gamma = g = 0$ at any noise, and
# before training **every block does nothing**
# ([DiT](https://arxiv.org/abs/2212.09748), Peebles & Xie 2023).
#
# Why start at nothing? The output layer, the *head*, is zero as well, so *the start is known*: $q$ is uniform, and
# the loss is that of the uniform baseline, $\log 106 = 4.66$ nats per character.
# And *it can still learn*. Take one weight, $x + g\,w\,x$, and let $\delta$ be the derivative of the loss with respect to this output:
#
# $$ \frac{\partial\,\text{loss}}{\partial g} = \delta\,w\,x, \qquad \frac{\partial\,\text{loss}}{\partial w} = \delta\,g\,x. $$
#
# At $g = 0$ and $w \neq 0$ the gate has a nonzero gradient. After one step $g \neq 0$, and $w$ has one, too.
# But at $g = 0$ *and* $w = 0$ both stay 0 forever. **Of two factors, set one to zero and never both.**


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
# ## Rotary positions (RoPE)
#
# Attention compares what one position looks for, its *query*, with what another has to offer, its *key*, by an inner product.
# That alone does not tell which letter is where: `tea` and `eat` would be the same bag of letters.
# *Rotary position embedding* ([Su et al. 2021](https://arxiv.org/abs/2104.09864)) takes two features at a time, as an arrow in the
# plane, and rotates the arrow of position $i$ by the angle $i\,\omega$:
#
# $$ R_i \binom{a}{b} = \binom{a\cos i\omega - b\sin i\omega}{b\cos i\omega + a\sin i\omega}. $$
#
# An inner product of arrows depends on their lengths and on the angle between them. Rotating the query by
# $i\omega$ and the key by $j\omega$ changes that angle by $(j - i)\,\omega$: only the *distance* counts, with its sign.
# Here, with $\omega = 0.5$, are a query at position 2 and a key at 5; both five positions further; and the other way
# around:


# %% tags=["hide-input"]
def rotated(arrow: tuple[float, float], position: int, frequency: float = 0.5) -> torch.Tensor:
    cos, sin = math.cos(position * frequency), math.sin(position * frequency)
    return torch.tensor([arrow[0] * cos - arrow[1] * sin, arrow[1] * cos + arrow[0] * sin])


query, key = (1.0, 0.0), (0.6, 0.8)
for i, j in ((2, 5), (7, 10), (5, 2)):
    print(f"query at {i}, key at {j:2}: {rotated(query, i) @ rotated(key, j):.4f}")

# %% [markdown]
# Each pair of features has its own frequency. In a head of 32 features the highest, 1,
# comes full circle after 6.3 positions and tells neighbors apart; the lowest, $1.8 \cdot 10^{-4}$, needs about 35,000 and
# hardly sees distance.


# %% tags=["export"]
def rope_angles(length: int, head_size: int, device: torch.device | None = None) -> Tensor:
    """Position times frequency, in radians, float32 (length, head_size / 2) (RoFormer, Su et al. 2021, §3.2.2)."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    return torch.outer(torch.arange(length, device=device).float(), frequencies)


def apply_rope(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate each pair of features of x (B, heads, L, head_size) by its angle (L, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


# %% [markdown]
# A distance helps only if there is something to recognize at its other end. In heavy noise there is nothing, but our
# stories all start at position 1. So each position also gets a learned vector, `position_embedding` (*learned absolute
# positions*), zero at first.
#
# ## Attention and QK-norm
#
# Position $i$ makes a query $u_i$; every position $j$ of the *context* makes a key $k_j$ and a value $v_j$, all by
# linear maps. The result is a weighted mean of values,
#
# $$ \sum_{j\,\in\,S_i} w_{ij}\, v_j, \qquad w_{ij} \;\propto\; \exp\frac{u_i\cdot k_j}{\sqrt{d/h}}, $$
#
# with weights that sum to 1 over $S_i$, the positions where `attn_mask` is true: in a GPT all $j \le i$. The context is the
# text `x` itself or, in the merge blocks below, two tables of $L$ positions laid end to end. `<PAD>` is not masked: the end of a story
# must be predicted, too.
#
# Nothing yet stops queries and keys from growing until one weight is almost 1, and learning stalls.
# *QK-norm* ([Henry et al. 2020](https://arxiv.org/abs/2010.04245)) divides each
# by its root mean square before the rotation, and multiplies by one learned number per feature, 1 at first. Then it has length
# $\sqrt{d/h}$, and by Cauchy–Schwarz the exponent is at most $\sqrt{d/h}$: 5.7 for 32 features.


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

    def keys_values(self, context: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``context`` (B, M, n_embd) at ``angles`` (M, head_size / 2): each (B, heads, M, head_size)."""
        exact = self.key_norm.weight.dtype  # norms and rotations in full precision
        k, v = self.key_value(context).to(exact).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return apply_rope(self.key_norm(k.transpose(1, 2)), angles), v.transpose(1, 2)

    def attend(self, x: Tensor, k: Tensor, v: Tensor, angles: Tensor, attn_mask: Tensor) -> Tensor:
        """Queries from x (B, L, n_embd) to keys and values, (B, heads, M, head_size) → as x."""
        u = self.query(x).to(self.query_norm.weight.dtype).unflatten(-1, (self.heads, -1))
        u = apply_rope(self.query_norm(u.transpose(1, 2)), angles)  # (B, heads, L, head_size)
        with torch.autocast("cpu", enabled=False):  # its bfloat16 backward is 3 times slower
            y = nn.functional.scaled_dot_product_attention(u, k, v, attn_mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor, angles: Tensor, attn_mask: Tensor) -> Tensor:
        """From x (B, L, n_embd) to M states, tables of L, where ``attn_mask``, bool (L, M), is true → as x."""
        k, v = self.keys_values(context, angles.repeat(context.shape[1] // len(angles), 1))
        return self.attend(x, k, v, angles, attn_mask)


# %% [markdown]
# ## One block
#
# A block adds to the residual stream twice: the result of attention, then that of a *feed-forward* map (MLP) at each
# position, which expands to four times as many features, through GELU, a smooth $\max(x, 0)$, and down again.
# `Modulation` gives shift, scale and gate for each of the two. Merge blocks also normalize, scale and shift their context.
#
# **A short convolution.** Letters make words with their neighbors, and attention is a roundabout way to a neighbor. So in
# `causal` blocks (next section), each of the two maps gets the position itself plus a weighted sum of the three before it, with one
# learned weight for each feature and each step back: a *depthwise causal convolution*, depthwise because features do not
# mix, causal because it looks only backward. With one feature, the text `1, 2, 4, 8`, and weights 10 for one back
# and 100 for two back, the last position becomes $8 + 10\cdot 4 + 100\cdot 2 = 248$. Its weights and the gate both start at
# zero; that is safe, because the position itself passes through and gives the gate a gradient. On TinyStories, in one run of
# each, the convolution was worth [0.05 to 0.06 bits per character](../benchmarks/README.md).

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
# ## A hollow transformer
#
# How do we put blocks together so that no position learns of its own letter? A *hollow transformer*
# ([Sun et al. 2023](https://arxiv.org/abs/2211.16750)) has two readers and a judge: a *left-to-right stack* of blocks, which at position
# $i$ knows the letters before it, a *right-to-left stack*, which knows those after it, and *merge blocks*, which attend to
# both. Three things keep a stack blind:
#
# * *Shift.* At position $i$ the left-to-right stack starts from the embedding of letter $i-1$, the right-to-left stack from
#   that of $i+1$, and zeros beyond the ends.
# * *Mask.* The left-to-right stack attends to its own positions $j \le i$, which know no letter after
#   $i - 1$, the right-to-left stack to $j \ge i$.
# * *Convolution.* It looks only at positions that the stack has already passed.
#
# For the word `tea`, this is what each stack knows:
#
# | position | 1, predicts `t` | 2, predicts `e` | 3, predicts `a` |
# |---|---|---|---|
# | left-to-right | – | `t` | `te` |
# | right-to-left | `ea` | `a` | – |
#
# Each column holds all letters but one. The merge blocks start
# from the sum of both stacks at position $i$, and attend to the left-to-right stack at $j \le i$ and to the right-to-left
# stack at $j \ge i$. They must not attend to merge states: the one at position 1 knows `ea`, and through
# it position 2 would learn of its own `e`. For the same reason they have no convolution.
#
# Of 6 blocks, 2 go to each stack and 2 to the merge, at about the cost of 6 plain blocks. The price is depth: a letter passes through at
# most 4 of the 6, and the two sides meet only in the merge; [benchmarks](../benchmarks/README.md) compare it with a plain
# bidirectional network.


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
# ## The picture
#
# On the left is the whole network, on the right one block. The thick blue line is the residual stream; an orange $c$
# marks where the noise level enters. The dashed boxes exist in causal blocks only. "Given" and "condition" come next.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
TEXT, NOISE, WIDE = "C0", "C1", 2.4
fig, (whole, one) = plt.subplots(1, 2, figsize=(8.2, 7.4), width_ratios=(1.25, 1))
for ax in (whole, one):
    ax.axis("off")
    ax.set_ylim(-0.7, 12.6)
whole.set_xlim(-3.7, 3.7)
one.set_xlim(-1.6, 4.1)


def arrow(ax, start: tuple, end: tuple, color: str = TEXT, width: float = 1.2) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)


def box(ax, x: float, y: float, text: str, width: float, noise: bool = False, dash: bool = False):
    """A box around (x, y); with ``noise``, the noise level enters from the right."""
    height = 0.62 + 0.42 * text.count("\n")
    corner, line = (x - width / 2, y - height / 2), "--" if dash else "-"
    look = {"facecolor": "none", "edgecolor": TEXT, "linewidth": 1.3, "linestyle": line}
    ax.add_patch(plt.Rectangle(corner, width, height, **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=8.5)
    if noise:
        arrow(ax, (x + width / 2 + 0.42, y), (x + width / 2, y), NOISE)
        ax.text(x + width / 2 + 0.5, y, "$c$", color=NOISE, va="center", fontsize=10)


def write(ax, x: float, y: float, text: str, **how) -> None:
    ax.text(x, y, text, **({"ha": "center", "va": "center", "fontsize": 9.5} | how))


write(whole, 0, -0.45, "$x_t$, and which tokens are given")
arrow(whole, (0, -0.2), (0, 0.39))
box(whole, 0, 0.7, "embedding, + condition", 3.4)
for x, letter in ((-1.6, "$i-1$"), (1.6, "$i+1$")):
    arrow(whole, (x / 2, 1.01), (x, 1.74))
    box(whole, x, 2.05, f"shift: letter {letter}", 2.3)
    arrow(whole, (x, 2.36), (x, 2.84))
    box(whole, x, 3.15, "+ position", 2.3)
    arrow(whole, (x, 3.46), (x, 4.28), width=WIDE)
for x, name, mask in (
    (-1.6, "left-to-right", r"$j \leq i$"),
    (1.6, "right-to-left", r"$j \geq i$"),
):
    box(whole, x, 5.0, f"{name} stack\n2 causal blocks\nmask {mask}", 2.3, noise=True)
    arrow(whole, (x, 5.73), (x / 2, 6.68), width=WIDE)
box(
    whole,
    0,
    7.4,
    "2 merge blocks: from the sum,\nattend to both stacks,\nleft $j \\leq i$, right $j \\geq i$",
    3.4,
    noise=True,
)
arrow(whole, (0, 8.13), (0, 8.69), width=WIDE)
box(whole, 0, 9.0, "norm, scale, shift", 3.4, noise=True)
arrow(whole, (0, 9.31), (0, 9.79))
box(whole, 0, 10.1, "head, log-softmax", 3.4)
arrow(whole, (0, 10.41), (0, 11.19))
write(whole, 0.15, 10.8, r"$\log\,q$", ha="left")
box(whole, 0, 11.5, r"Bayes' rule, with $\kappa$", 3.4)
arrow(whole, (0, 11.81), (0, 12.2))
write(whole, 0, 12.4, r"$\log\,s$")
arrow(whole, (2.12, 11.5), (1.7, 11.5), NOISE)
write(whole, 2.2, 11.5, r"$\bar\sigma$", ha="left", color=NOISE)
write(whole, -3.0, 8.25, r"$\bar\sigma$", color=NOISE)
arrow(whole, (-3.0, 8.5), (-3.0, 8.98), NOISE)
write(whole, -3.0, 9.75, "sinusoidal\nfeatures,\ntwo layers", color=NOISE, fontsize=8.5)
arrow(whole, (-3.0, 10.5), (-3.0, 10.98), NOISE)
write(whole, -3.0, 11.25, "$c$", color=NOISE)

write(one, 0, -0.45, "residual stream")
arrow(one, (0, -0.2), (0, 12.3), width=WIDE)
for bottom, inner in ((0.7, "attention"), (6.6, "feed-forward")):
    names = ["norm", "scale, shift", "convolution", inner, "gate"]
    ys = [bottom + 1.12 * level for level in range(5)]
    arrow(one, (0, ys[0]), (0.85, ys[0]))
    for name, y in zip(names, ys):
        box(one, 2, y, name, 2.3, name in ("scale, shift", "gate"), name == "convolution")
        if y > bottom:
            arrow(one, (2, y - 0.81), (2, y - 0.31))
        if name == "attention":
            arrow(one, (3.57, y), (3.15, y))
            write(one, 3.62, y, "context,\nmask", ha="left", fontsize=7.5)
    arrow(one, (0.85, ys[-1]), (0.2, ys[-1]))
    write(one, 0, ys[-1], "⊕", fontsize=15, color=TEXT)
plt.show()

# %% [markdown]
# ## The whole network
#
# One piece is left. When a user gives part of a text and wants the rest (*infilling*, chapter 7), the given
# characters are certain, whatever the noise. `condition_mask`, true where a token is given, adds one learned vector,
# `condition_embedding`, to their embeddings. It hides nothing, unlike a mask in masked diffusion.
#
# Follow the shapes with the default sizes. The embedding turns 16 texts of 256 tokens into a table (16, 256, 128), and
# all blocks keep that shape. Attention cuts the 128 features into 4 heads of 32 and compares 256 × 256 pairs of positions, in merge
# blocks 256 × 512. The noise (16,) becomes $c$, (16, 64), and in each block six parts (16, 1, 128). The head makes (16, 256, 106): for each
# position, a number per token. Of the 1.57 million weights, each block has [0.25 million](deeper/network_engineering.ipynb).
#
# `denoise` reads the numbers of the head as $\log q$, and `forward`
# goes on to $\log s$, by the one line from above (`log_score` of the graph). `stack_logits` and `denoise_stacks` also answer for the two
# stacks, for an auxiliary loss in chapter 8. With `parametrization="score"` the numbers are log-scores, as in SEDD.

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
        return any(m.gradient_checkpointing for m in self.modules() if isinstance(m, Block))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                module.gradient_checkpointing = value

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
# ## It starts at nothing, and learns from the top
#
# Here is a fresh network of the default size, and what it says about a text:

# %% tags=["hide-input"]
torch.manual_seed(0)
config = DiscreteDiffusionConfig()
network = DiscreteDiffusionTransformer(config)
x_t = config.tokenizer.encode("Once upon a tome")[None]
with torch.no_grad():
    log_q = network.denoise(x_t, torch.tensor([0.1]))
print(f"log q from {log_q.min():.4f} to {log_q.max():.4f}; log(1/106) = {-math.log(106):.4f}")

# %% [markdown]
# Exactly uniform. But a zero head would say so even with random gates. So the check, on a small network,
# looks at the modulations themselves.

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
# Head and gates both zero: is that not forbidden? No: the head multiplies the residual stream, which
# reaches it past the gates. Here are the sizes of the gradients before each of four steps on one text:

# %% tags=["hide-input"]
from ddlm_core.forward import perturb_batch

x_0 = config.tokenizer.encode("The cat sat on the mat. " * 4).repeat(16, 1)


def mean_loss(network: DiscreteDiffusionTransformer, generator: torch.Generator) -> torch.Tensor:
    """Score entropy times its rate, at noise levels spread over the whole range."""
    t = (torch.rand(1, generator=generator) + torch.arange(16) / 16) % 1
    sigma_bar, sigma = config.noise(t)
    x_t = perturb_batch(x_0, sigma_bar, config.vocab_size, generator=generator)
    losses = score_entropy_loss(network(x_t, sigma_bar), sigma_bar, x_t, x_0)
    return (sigma * losses.mean(-1)).mean()


parts = {
    "head": network.head.weight,
    "embedding": network.embedding.weight,
    "gates": network.blocks[0].modulation.linear.weight,
    "shifts, scales": network.blocks[0].modulation.linear.weight,
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
# First the head alone learns. At step 1 the embedding and the gates have a gradient,
# through the head. From step 2 on, with gates that are no longer zero, all parts learn.
#
# ## Every position depends on every other, and never on itself
#
# Give all weights random values (`small_network`), and ask PyTorch for the
# derivative of the output at position $i$, a fixed mixture of its logits, with respect to the embedding at position $j$. It must
# be nonzero for every pair but $i = j$, where it must be exactly zero, as between two texts of a batch. The figure shows
# one text of twelve letters: only the diagonal is empty.

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
# $\log q$ and $\log s$ also fit together, whatever the weights. Take chapter 5's true ratio if the clean letter were $z$,
# $a_y(z) = (1+\kappa[y=z])\,/\,(1+\kappa[x_t=z])$. Its mean over $p(x_0 = z \mid x_t) \propto q_z\,(1+\kappa[x_t=z])$
# is $s_y$: the denominator cancels.

# %% tags=["test", "hide-input"]
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
# In the rendered book you can ask a trained network: what does it believe at each place of this noisy story?

# %% tags=["hide-input"]
from ddlm_core import Live

Live(
    "denoise",
    model="tinystories-cpu",
    text="Lily lost her bat. She was veXy sad.",
    sigma=0.2,
    place=15,
)

# %% [markdown]
# ## Change it safely
#
# 1. Let the merge blocks attend to each other: in the last loop of `hollow_attention`, write `merge` for `context` and
#    `causal | causal.T` for `attn_mask`. Each position's own noised letter leaks in.
#    `test_every_position_depends_on_every_other_and_nothing_else` fails.
# 2. Overwrite the zeros: at the end of the network's `__init__`, loop over `self.modules()` and call
#    `nn.init.normal_(m.weight, std=0.02)` for each `nn.Linear` `m`. `test_fresh_network_is_the_uniform_baseline` fails, even
#    if you spare `self.head`.
#
# After each: `make export && pytest tests/`.
#
# ## Exercises
#
# **1. A bag of letters.** Take away the position embedding, the rotations and the convolutions (`conv_size=0`), and swap the first
# two letters of seven. Does the output for the last one change, in a network of one block, which merges, and in one
# of six? (Expected: not with one, to which all but the neighbors are a bag; but with six, where who may attend to whom tells the order.)

# %% tags=["solution", "hide-input"]
x_t, sigma_bar = noised_batch(1, 7)
swapped = x_t[:, [1, 0, 2, 3, 4, 5, 6]]


def answer(bag: DiscreteDiffusionTransformer, x_t: Tensor) -> Tensor:
    left, right = neighbors(bag.embedding(x_t), 0 * bag.position_embedding[:7])
    cond = bag.noise_embedding(sigma_bar)
    merge, _, _ = hollow_attention(bag.blocks, left, right, cond, 0 * rope_angles(7, 8))
    return bag.head(modulate(merge, *bag.modulation(cond)))[0, -1]


bags = [small_network(n_layer=n_layer, conv_size=0) for n_layer in (1, 6)]
same = [torch.allclose(answer(bag, x_t), answer(bag, swapped)) for bag in bags]
assert (x_t != swapped).any() and same == [True, False]
same

# %% [markdown]
# **2. Close the circle.** Train a small network on the seven words with cross-entropy on the clean letters, and compare it with the
# first output. (Expected: within 0.05 of the exact $q$.)

# %% tags=["solution", "hide-input"]
from ddlm_core.testing import small_config

words = list(WORDS)
counts = torch.tensor([float(WORDS[word]) for word in words])
clean = torch.tensor([[LETTERS.index(letter) for letter in word] for word in words])
tiny_config = small_config(block_size=3, vocab=("<UNK>", "<PAD>", *LETTERS))
torch.manual_seed(0)
tiny = DiscreteDiffusionTransformer(tiny_config)
optimizer, g = torch.optim.Adam(tiny.parameters()), torch.Generator().manual_seed(0)
for step in range(1000):
    optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 1000)
    x_0 = clean[torch.multinomial(counts, 256, replacement=True, generator=g)]
    level = 10 ** (3.5 * torch.rand(256, generator=g) - 2.2)  # 0.006 to 20
    x_t = perturb_batch(x_0, level, 4, generator=g)  # tokens 0 to 3 stand for a, e, n, t
    loss = -tiny.denoise(x_t, level).gather(-1, x_0[..., None]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
gap = 0.0
for sigma_bar in (0.01, 0.5, 1.0, 20.0):
    tet = torch.tensor([[3, 1, 3]])
    with torch.no_grad():
        learned = tiny.denoise(tet, torch.tensor([sigma_bar])).exp()[0, 2].tolist()
    exact = leave_one_out("tet", 2, sigma_bar)
    gap = max(gap, *(abs(p - exact[y]) for p, y in zip(learned, LETTERS)))
    show(f"learned, noise {sigma_bar}", dict(zip(LETTERS, learned)))
assert gap < 0.05
round(gap, 3)

# %% [markdown]
# ## Summary
#
# The network predicts the clean letter at each position from all other positions and the noise level; Bayes' rule adds the
# position's own letter, and turns $q$ into the score. Blocks only add, and zero-initialized gates decide how much.
#
# | exported | what it is |
# |---|---|
# | `DiscreteDiffusionConfig`, `GRAPHS` | what a checkpoint says about itself |
# | `sinusoidal_features(sigma_bar, size)`, `NoiseEmbedding` | from $\bar\sigma$ to $c$ |
# | `Modulation`, `modulate(x, shift, scale)` | adaLN-zero |
# | `rope_angles(length, head_size)`, `apply_rope(x, angles)` | positions as rotations |
# | `Attention`, `causal_conv(x, weights)`, `Block` | one layer and its parts |
# | `neighbors(x, position_embedding)`, `hollow_attention(blocks, …)` | two causal stacks and a merge |
# | `DiscreteDiffusionTransformer(config)` | `model(x_t, sigma_bar, condition_mask)` is $\log s$, `.denoise(…)` is $\log q$ |
#
# ## Where this stands in the field
#
# The blocks are those of the *diffusion transformer* (DiT), with RoPE, as in
# SEDD and the masked model [MDLM](https://arxiv.org/abs/2406.07524). Those are plain bidirectional encoders: a
# position sees itself. With masks that leaks nothing, and the network need not be told the noise level either ([Ou et al.
# 2024](https://arxiv.org/abs/2406.03736)); [LLaDA](https://arxiv.org/abs/2502.09992) is not. With uniform noise,
# [Gourevitch et al. 2026](https://arxiv.org/abs/2605.22765) show that the usual objective is optimized by the leave-one-out
# distribution and not by the denoising posterior. Hollow transformers return in [Zhao et al.
# 2024](https://arxiv.org/abs/2407.21243), to correct samples of masked models.
#
# Next: [chapter 7](07_sampler.ipynb) walks from noise to text with it.
