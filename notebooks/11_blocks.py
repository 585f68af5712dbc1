# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From SEDD to today: block diffusion
#
# *About 50 minutes. You need: chapters [6](06_model.ipynb) to [10](10_pipeline.ipynb). You will have: one network between the two
# extremes, autoregressive and SEDD; texts of any length; the samplers of 2026 measured where the truth is known.*
#
# **We have** a model that writes a whole window at once. Three walls stand around it. Its bound on the stories of chapter 2 is 25.3
# nats where 18.95 is possible. It cannot write more than its window. And a left-to-right model of the same size learns far faster
# ([chapter 9](09_evaluation.ipynb)).
#
# **We want** all three walls gone, and we keep what we have: noise, loss, sampler, and the network, without a new parameter.
#
# **Why**: this is the road that the field took. [SSD-LM](https://arxiv.org/abs/2210.17432) wrote in blocks already in 2022,
# [BD3-LM](https://arxiv.org/abs/2503.09573) made it a likelihood model in 2025, and in 2026 uniform noise in blocks became a mainstream large
# language model: [DiffusionGemma](https://ai.google.dev/gemma/docs/diffusiongemma/explained), at the end of this chapter.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio pytest"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## By hand: a language of two words
#
# Let a language have the words `ab` and `ba`, each with probability ½. Its entropy is $\log 2 = 0.69$ nats.
#
# **As SEDD does it**, both letters are noisy, and each is guessed from the other. Without noise the other letter tells all; under full noise it
# tells nothing. In between, the network must know *how far* to trust it: a different answer at every noise level, for every noisy neighbor.
#
# **Letter by letter**, the first one is guessed from nothing: ½ and ½, and so it costs $\log 2$. The second one is guessed from
# the *clean* first one, and costs nothing. Two questions in all, whatever the noise. The sum is $\log 2$ again.
#
# Both are exact, as we shall see. But the second is much easier to learn. Its price is one evaluation for each letter. In between there is a knob.
#
# ## The formula
#
# *Block diffusion* cuts a window into blocks $x_1, \dots, x_B$ of *block length* $K$. The chain rule
#
# $$ -\log p(x) = -\sum_b \log p(x_b \mid x_{<b}) $$
#
# holds for every $K$, and each term is bounded as in [chapter 5](05_loss.ipynb): noise falls on block $b$ alone, and the network is given the
# clean text before it. With the true denoiser the bound of every block length is the entropy. That can be computed, for
# the world of [chapter 7](07_sampler.ipynb) with the letters *a* and *b* and words of three. A denoiser that knows the past exactly:

# %%
import torch
from torch.nn.functional import one_hot

from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.forward import transition
from ddlm_core.tiny_world import TinyWorld, two_letter_world, word_kernel


def true_log_q(world, x_0, x_t, sigma_bar, block_length):
    """The exact log q of each letter, given the clean letters of earlier blocks and the noisy ones of its own."""
    noisy, q = transition(x_t, sigma_bar, world.vocab_size), []
    clean = one_hot(x_0, world.vocab_size).double()
    for i in range(world.length):
        start = i // block_length * block_length
        weight = world.probs.clone().expand(len(x_t), -1)
        for j in range(min(start + block_length, world.length)):
            if j != i:  # later blocks are not seen, nor is the letter itself
                weight = weight * (clean if j < start else noisy)[:, j, world.words[:, j]]
        q.append(weight @ one_hot(world.words[:, i], world.vocab_size).double())
    q = torch.stack(q, 1)
    return (q / q.sum(-1, keepdim=True)).log()


# %% [markdown]
# The area under its expected loss, over all noise levels from almost 0 to 30, where nothing is left of the text:


# %%
uniform = DiscreteDiffusionConfig().process  # its expected_loss averages over a letter's own noise


def area(world, block_length):
    """The integral of the expected score entropy over the noise, in nats, by quadrature."""
    n, log_noise = len(world.words), torch.linspace(-16, 3.4, 2000).double()
    x_0, x_t = world.words.repeat_interleave(n, 0), world.words.repeat(n, 1)  # all pairs
    values = []
    for sigma_bar in log_noise.exp():
        log_q = true_log_q(world, x_0, x_t, sigma_bar, block_length)
        nats = uniform.expected_loss(log_q, sigma_bar.expand(len(x_t)), x_0).sum(-1)  # (n * n,)
        joint = world.probs[:, None] * word_kernel(world, sigma_bar)  # of clean and noisy words
        values.append((joint.flatten() * nats).sum() * sigma_bar)
    return torch.trapezoid(torch.stack(values), log_noise).item()


world = two_letter_world()
entropy = -(world.probs * world.probs.log()).sum().item()
print(f"entropy: {entropy:.5f}")
for block_length in (1, 2, 3):
    print(f"blocks of {block_length}: {area(world, block_length):.5f}")

# %% [markdown]
# ## One network, one knob
#
# The hollow network of chapter 6 needs no new parameters. It has to read the clean text, too. (A *block* is a piece of text here; what chapter 6 calls blocks of the network, we call layers.)
#
# * The **left-to-right stack** runs over two rows: the clean text and the noisy one. In the clean row a place has read the letters before it, and nothing else. A noisy place
#   sees clean places up to the first one of its block, which has read only what stands before the block (in the first block there are none), and the noisy places before it in its block.
# * The **right-to-left stack** stays within the block.
# * The **merge layers** see all three: the clean row, the noisy one, and what came from the right.
#
# So $q_i$ depends on the clean past, on the noisy rest of its own block, and never on its own letter.
# If the block is the window, there is no past: *this is the network of chapter 6*. If the block is one letter, there is nothing noisy left to see: *this is an
# autoregressive model*, and the noise level, which says nothing then, is replaced by 0.
#
# Because no clean state depends on noisy ones, nor on the noise level (the clean row is told noise 0), it can be computed once and kept: the *KV
# cache* of autoregressive models, which are given their own past in the same way.

# %% tags=["export", "hide-input"]
"""Block diffusion: one network from autoregressive (blocks of one token) to SEDD (one block)."""

from dataclasses import dataclass
from typing import Annotated

from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits


@dataclass(frozen=True)
class BlockDiffusionConfig(DiscreteDiffusionConfig):
    """A configuration of chapter 6 that also says how many tokens are denoised in parallel."""

    block_length: Annotated[int, Limits(1)] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length > self.block_size:
            raise UserError(
                f"block_length must be at most block_size = {self.block_size}, got {self.block_length}"
            )
        if self.parametrization != "denoiser":
            raise UserError("blocks need the parametrization denoiser")


# %% tags=["export"]
import torch
from torch import Tensor


def block_masks(places: Tensor, read: int, block_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which states a noisy place may attend to, bool: (n, read) clean, (n, n) left, (n, n) right.

    ``places``, int64 (n,), are consecutive; there are ``read`` clean states, of which a place sees those before its block
    and that of the block's first place, which has read what comes before it. Left: noisy places of the same block
    up to its own; right: those from its own on.
    """
    start = (places // block_length * block_length)[:, None]
    clean = (torch.arange(read, device=places.device) <= start) & (start > 0)
    same, before = start == start.T, places[None] <= places[:, None]
    return clean, same & before, same & before.T


# %% [markdown]
# For a window of 8 and blocks of 4, black where a noisy place (row) may look. It may look at its own place, whose state has not read its own letter. The line is where block 2 begins.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

masks = block_masks(torch.arange(8), read=5, block_length=4)
figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), width_ratios=(5, 8, 8), layout="constrained")
for axis, mask, name in zip(
    axes, masks, ("clean states", "noisy, from the left", "noisy, from the right")
):
    axis.imshow(mask, cmap="Greys", vmin=0, vmax=1.3)
    axis.set_title(name, fontsize=10)
    axis.set_xticks(range(mask.shape[1]), range(1, mask.shape[1] + 1))
    axis.set_yticks(range(8), range(1, 9))
    axis.hlines(3.5, -0.5, mask.shape[1] - 0.5, colors="#d55e00", lw=1)
axes[0].set_ylabel("place")
plt.show()

# %% [markdown]
# The last clean state that block 2 sees is that of its own first place, 5: it has read letters 1 to 4.
#
# The rest is plumbing, folded: a layer of chapter 6 that takes keys and values from the past as well, and whose short convolution
# goes on in the clean text where a block begins; and the network. Its `read` keeps what a clean text leaves behind, or goes on from an earlier past; `given(x_0)` is the network on all
# blocks of a clean window at once, for training and for the bound; `after(tokens)` is the network on the block that follows a text, for writing. Both have the
# interface of a denoiser.

# %% tags=["export", "hide-input"]
from typing import Any, NamedTuple

from ddlm_core.model import Block


class Kept(NamedTuple):
    """What a block of the network keeps of places it has read: M of them."""

    inputs: tuple[Tensor, ...]  # of its convolutions, each (B, M, n_embd); none in a merge block
    keys: Tensor  # (B, heads, M, head_size)
    values: Tensor  # (B, heads, M, head_size)

    def joined(self, more: "Kept") -> "Kept":
        """With what is kept of the places behind them."""
        inputs = (torch.cat(pair, 1) for pair in zip(self.inputs, more.inputs, strict=True))
        pairs = (self.keys, more.keys), (self.values, more.values)
        return Kept(tuple(inputs), *(torch.cat(pair, 2) for pair in pairs))


def conv_after(x: Tensor, weights: Tensor, room: Tensor, clean: Tensor | None) -> Tensor:
    """``causal_conv`` of chapter 6 at consecutive places, which goes on in the clean text before a block.

    Position i of x (B, n, n_embd) has ``room[i]``, int64, positions before it in its block; what lies further
    back is ``clean`` (B, n, conv_size, n_embd), one to conv_size back, or zeros.
    """
    total = x
    for k, weight in enumerate(weights):
        shifted = nn.functional.pad(x, (0, 0, k + 1, 0))[:, : x.shape[1]]
        before = torch.zeros_like(shifted) if clean is None else clean[:, :, k]
        total = total + weight * torch.where((room > k)[:, None], shifted, before)
    return total


def look_back(clean: Tensor, places: Tensor, size: int) -> Tensor:
    """From clean (B, M, n_embd) what lies 1 to ``size`` back of the places (n,): (B, n, size, n_embd)."""
    back = places[:, None] - torch.arange(1, size + 1, device=places.device)  # (n, size)
    return clean[:, back.clamp(0, clean.shape[1] - 1)] * (back >= 0)[..., None]


# %% tags=["export", "hide-input"]
from torch import nn
from torch.utils.checkpoint import checkpoint


def block_layer(block: Block, *inputs: Any) -> tuple[Tensor, Kept]:
    """``_block_layer``, whose inner values are computed again in the backward pass if the block says so."""
    if block.gradient_checkpointing:
        return checkpoint(_block_layer, block, *inputs, use_reentrant=False)
    return _block_layer(block, *inputs)


def _block_layer(
    block: Block,
    x: Tensor,
    context: Tensor | None,
    cond: Tensor,
    angles: Tensor,
    attn_mask: Tensor,
    room: Tensor,
    places: Tensor,
    past: Kept | None = None,
) -> tuple[Tensor, Kept]:
    """``Block.layer`` of chapter 6 with a past: the new states (B, n, n_embd), and what is kept of them."""
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = block.modulation(cond)

    def mixed(y: Tensor, which: int) -> Tensor:
        if not block.conv:
            return y
        weights = block.conv[which]
        clean = look_back(past.inputs[which], places, len(weights)) if past else None
        return conv_after(y, weights, room, clean)

    first = modulate(x, shift_a, scale_a)
    y = mixed(first, 0)
    source = y if context is None else modulate(context, shift_a, scale_a)
    tables = source.shape[1] // len(angles)
    kept_k, kept_v = k, v = block.attention.keys_values(source, angles.repeat(tables, 1))
    if past:
        k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
    x = x + gate_a * block.dropout(block.attention.attend(y, k, v, angles, attn_mask))
    second = modulate(x, shift_f, scale_f)
    x = x + gate_f * block.dropout(block.feed_forward(mixed(second, 1)))
    return x, Kept((first, second) if block.conv else (), kept_k, kept_v)


# %% tags=["export", "hide-input"]
class Past(NamedTuple):
    """What the network keeps of a clean text: as many places as it has letters, and one more."""

    left: Tensor  # (B, M, n_embd): the letter before each place
    layers: list[Kept]  # of each left-to-right block, then of each merge block

    def joined(self, more: list[Kept]) -> list[Kept]:
        """Its layers with what is kept of the places behind them."""
        return [old.joined(new) for old, new in zip(self.layers, more, strict=True)]


# %% tags=["export", "hide-input"]
from typing import cast

from ddlm_core.graph import Graph
from ddlm_core.model import DiscreteDiffusionTransformer, modulate, neighbors, rope_angles
from ddlm_core.support.checks import check_input


class BlockDiffusionTransformer(DiscreteDiffusionTransformer):
    """The network of chapter 6, with the same weights, whose noisy blocks read the clean text before them."""

    config: BlockDiffusionConfig

    def _angles(self, places: Tensor) -> Tensor:
        config, length = self.config, int(self.config.block_size)
        return rope_angles(length, config.n_embd // config.n_head, places.device)[places]

    def read(self, tokens: Tensor, count: int, past: Past | None = None) -> Past:
        """The past of places 0 to ``count`` - 1 of a clean text, int64 (B, S): S letters fill S + 1 places.

        ``past``, that of the text's beginning, is not read again.
        """
        known = past.left.shape[1] if past else 0
        places = torch.arange(known, count, device=tokens.device)
        left = nn.functional.pad(self.embedding(tokens), (0, 0, 1, 0))[:, :count]
        cond = self.noise_embedding(left.new_zeros(len(tokens)))
        causal = torch.arange(count, device=tokens.device) <= places[:, None]
        x = left[:, known:] + self.position_embedding[known:count]
        angles, layers, old = self._angles(places), [], iter(past.layers if past else ())
        where = (cond, angles, causal, places - known, places)
        for block in self._stack(0):
            x, kept = block_layer(block, x, None, *where, next(old, None))
            layers.append(kept)
        for block in self._stack(2):
            shift, scale, *_ = block.modulation(cond)
            layers.append(Kept((), *block.attention.keys_values(modulate(x, shift, scale), angles)))
        return Past(left, past.joined(layers) if past else layers)

    def _stack(self, which: int) -> list[Block]:
        """The blocks of the left-to-right (0), right-to-left (1) or merge (2) stack."""
        depth = (len(self.blocks) - 1) // 2
        cuts = (0, depth, 2 * depth, len(self.blocks))
        return cast("list[Block]", list(self.blocks[cuts[which] : cuts[which + 1]]))

    def given(self, x_0: Tensor) -> "BlockView":
        """The network on all blocks of windows at once, each with its past: for training and for the bound."""
        places = torch.arange(x_0.shape[1], device=x_0.device)
        last = (x_0.shape[1] - 1) // self.config.block_length * self.config.block_length
        return BlockView(self, self.read(x_0[:, :last], last + 1), places)

    def after(self, tokens: Tensor, past: Past | None = None) -> "BlockView":
        """The network on the block that follows a clean text, int64 (B, S): whole blocks, or none.

        ``past``, that of an earlier block of the same text, is not read again.
        """
        start = tokens.shape[1]
        end = min(start + self.config.block_length, self.config.block_size)
        places = torch.arange(start, end, device=tokens.device)
        return BlockView(self, self.read(tokens, start + 1, past), places)

    def _stacks(
        self,
        x_t: Tensor,
        sigma_bar: Tensor,
        condition_mask: Tensor | None,
        past: Past | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """States of the three stacks, each (B, n, n_embd), and the noise features (B, cond_dim)."""
        check_input(x_t, sigma_bar, condition_mask, self.config.block_size)
        length = self.config.block_length
        if past is None or places is None:
            if x_t.shape[1] > length:
                raise UserError("a block reads the text before it: use given(x_0) or after(tokens)")
            view = self.after(x_t[:, :0])
            past, places = view.past, view.places
        places = places[: x_t.shape[1]]
        if length == 1:  # no noisy letter is seen, so its noise says nothing
            sigma_bar = torch.zeros_like(sigma_bar)
        x = self.embedding(x_t)
        if condition_mask is not None:
            x = x + condition_mask[..., None] * self.condition_embedding
        cond, angles = self.noise_embedding(sigma_bar), self._angles(places)
        room = places % length
        clean, before, behind = block_masks(places, past.left.shape[1], length)
        position = self.position_embedding[places]
        left, right = neighbors(x, position)
        first, last = (room == 0)[:, None], (room == length - 1)[:, None]
        index = places.clamp(max=past.left.shape[1] - 1)
        left = torch.where(first, past.left[:, index] + position, left)
        right = torch.where(last, position, right).flip(1)

        kept = iter(past.layers)
        mask = torch.cat([clean, before], 1)
        for block in self._stack(0):
            left, _ = block_layer(block, left, None, cond, angles, mask, room, places, next(kept))
        mask, behind_room = behind.flip(0, 1), (length - 1 - room).flip(0)
        for block in self._stack(1):
            right, _ = block_layer(block, right, None, cond, angles, mask, behind_room, places)
        right = right.flip(1)
        context, merge = torch.cat([left, right], 1), left + right
        where = (cond, angles, torch.cat([clean, before, behind], 1), room, places)
        for block in self._stack(2):
            merge, _ = block_layer(block, merge, context, *where, next(kept))
        return merge, left, right, cond


# %% tags=["export", "hide-input"]
@dataclass(frozen=True)
class BlockView:
    """A block network that has read: a denoiser for the places that follow, as chapters 7 and 8 want one."""

    network: BlockDiffusionTransformer
    past: Past
    places: Tensor  # int64 (n,)

    @property
    def config(self) -> BlockDiffusionConfig:
        """That of the network."""
        return self.network.config

    @property
    def graph(self) -> Graph:
        """The forward process."""
        return self.network.graph

    def _log_q(self, x_t: Tensor, sigma_bar: Tensor, mask: Tensor | None, stacks: int) -> Tensor:
        *states, cond = self.network._stacks(x_t, sigma_bar, mask, self.past, self.places)
        return self.network._read_out(torch.stack(states[:stacks]), cond).log_softmax(-1)

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$ of each clean token given the clean past and its block but itself: (B, n, V)."""
        return self._log_q(x_t, sigma_bar, condition_mask, 1)[0]

    def denoise_stacks(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$ of the merge, left-to-right and right-to-left stacks: (3, B, n, V)."""
        return self._log_q(x_t, sigma_bar, condition_mask, 3)

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, n, V), 0 at the current token."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return self.graph.log_score(log_q, sigma_bar, x_t)


# %% tags=["export", "hide-input"]
def make_config(**fields: Any) -> DiscreteDiffusionConfig:
    """A configuration with these fields: one of blocks if ``block_length`` is among them."""
    kind = BlockDiffusionConfig if "block_length" in fields else DiscreteDiffusionConfig
    return kind(**fields)


def make_network(config: DiscreteDiffusionConfig) -> DiscreteDiffusionTransformer:
    """A new network of the kind that a configuration describes."""
    if isinstance(config, BlockDiffusionConfig):
        return BlockDiffusionTransformer(config)
    return DiscreteDiffusionTransformer(config)


# %% [markdown]
# Three checks, on a small network with random weights. At one end it must be the network of chapter 6. At the other its bound must be the cross-entropy
# of the chain rule. In between, derivatives say what each $q_i$ depends on, and all else must be exactly 0.

# %% tags=["test"]
import pytest
import torch

from ddlm_core.blocks import make_config, make_network
from ddlm_core.bound import window_nats
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

SMALL = {"block_size": 6, "n_layer": 6, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def random_network(**fields):
    """A network for windows of six letters (``block_size``)."""
    torch.manual_seed(0)
    network = make_network(make_config(**SMALL, **fields)).double().eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network


def test_one_block_is_the_network_of_chapter_6():
    sedd, blocks = random_network(), random_network(block_length=6)
    x_t, sigma_bar = torch.randint(106, (3, 6)), torch.tensor([0.01, 0.5, 3.0]).double()
    difference = sedd.denoise(x_t, sigma_bar) - blocks.given(x_t).denoise(x_t, sigma_bar)
    assert difference.abs().max() < 1e-12


def test_blocks_of_one_are_an_autoregressive_model():
    network = random_network(block_length=1)
    x_0 = torch.randint(106, (1, 6))
    log_q = network.given(x_0).denoise(x_0, torch.ones(1).double())
    exact = -log_q.gather(-1, x_0[..., None]).sum()
    t = torch.linspace(0, 1, 400)  # in place of random noise levels: the trapezoidal rule

    def times(count, noise, generator):
        weight = torch.ones(count)
        weight[[0, -1]] = 0.5
        return t[:count], weight * count / (count - 1)

    nats = window_nats(network, x_0.expand(400, -1), network.config.noise, torch.Generator(), times)
    assert abs(nats.mean() - exact) < 0.005 * exact


@pytest.mark.parametrize("block_length", [1, 2, 4, 6])
def test_each_place_sees_its_block_and_the_past(block_length):
    network = random_network(block_length=block_length)
    x_0, x_t = torch.randint(106, (2, 1, 6))
    clean = network.embedding(x_0).detach().requires_grad_()
    noisy = network.embedding(x_t).detach().requires_grad_()
    # the network embeds the clean row, then the noisy one: it gets our tensors, to differentiate by
    rows = iter([clean[:, : (5 // block_length) * block_length], noisy])
    network.embedding.forward = lambda _: next(rows)
    log_q = network.given(x_0).denoise(x_t, torch.tensor([0.5]).double())
    for i in range(6):
        grads = torch.autograd.grad(
            log_q[0, i, 7], [clean, noisy], retain_graph=True, allow_unused=True
        )
        past, block = [g[0].any(-1).tolist() if g is not None else [False] * 6 for g in grads]
        assert past == [j // block_length < i // block_length for j in range(6)]
        assert block == [j // block_length == i // block_length and j != i for j in range(6)]


test_one_block_is_the_network_of_chapter_6()
test_blocks_of_one_are_an_autoregressive_model()
for length in (1, 2, 4, 6):
    test_each_place_sees_its_block_and_the_past(length)

# %% [markdown]
# ## Training in one pass
#
# Training needs no new code either. `training_loss` and `window_nats` of chapter 8 hand the clean windows to a network that wants them, so all blocks of a
# window are trained at once, at one noise level: the bound is a sum over blocks, and the mean of a sum does not care whether its terms share a level. A step
# costs 1.3 times that of chapter 6. The commands of two bundled models, `pocket-blocks` and `pocket-autoregressive`, and one for any text, by which `tinystories-blocks` learned TinyStories:
#
# ```bash
# ddlm-train --config-name pocket-blocks                       # stories of chapter 2, blocks of 20
# ddlm-train --config-name pocket-blocks model.block_length=1  # letter by letter
# ddlm-train --config-name cpu-blocks dataset_name=my.txt      # your own text, blocks of 16
# ```
#
# What does the knob do? First at equal cost: eight block lengths, each trained for two minutes of one core, on the stories and on TinyStories (`benchmarks/blocks.py --train`).
# Each dot is one of three runs, with seeds 0, 1 and 2; the line is their mean:

# %% tags=["hide-input"]
import json
from importlib.resources import files

import ddlm_core
from ddlm_core import stories

found = json.loads(files(ddlm_core).joinpath("results/block_writing.json").read_text("utf-8"))
units = {"pocket-stories": "nats_per_window", "TinyStories": "bits_per_character"}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.0), layout="constrained")
for axis, (data, unit) in zip(axes, units.items(), strict=True):
    runs: dict[int, list[float]] = {}
    for row in found["bounds"]:
        if row["data"] == data:
            runs.setdefault(row["block_length"], []).append(row[unit])
    lengths = sorted(runs)
    for length in lengths:
        axis.plot([length] * len(runs[length]), runs[length], "o", ms=4, color="#0072b2")
    axis.plot(lengths, [sum(runs[n]) / len(runs[n]) for n in lengths], color="#0072b2", lw=1)
    axis.set_xscale("log")
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    label = unit.replace("_", " ").replace("window", "story")
    title = "stories of chapter 2" if data == "pocket-stories" else data
    axis.set(xlabel="block length, characters", ylabel=label, title=title)
axes[0].axhline(stories.entropy(), color="grey", ls="--", label="entropy: the least possible")
axes[0].set_yscale("log")
axes[0].set_yticks([20, 30, 40, 50, 70], [20, 30, 40, 50, 70])
axes[0].minorticks_off()
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# Then at equal steps, for longer: the bound while the bundled models learned, and while one with blocks of 4 did, which is not bundled. One run each, all with 1.6 million weights; a
# step with blocks costs 1.3 times one of SEDD:

# %% tags=["hide-input"]

folder = files(ddlm_core).joinpath("pretrained")
shown = {  # axis: unit, and the models with their block lengths
    "nats_per_window": {"pocket-stories": 160, "pocket-blocks": 20, "pocket-autoregressive": 1},
    "bits_per_character": {"tinystories-cpu": 160, "tinystories-blocks": 16},
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axis, (unit, models) in zip(axes, shown.items(), strict=True):
    for (name, length), color in zip(models.items(), ("#0072b2", "#d55e00", "#009e73")):
        log = folder.joinpath(name, "train_log.jsonl").read_text("utf-8").splitlines()
        rows = [row for row in map(json.loads, log) if unit in row]
        steps, values = [row["step"] for row in rows], [row[unit] for row in rows]
        axis.plot(steps, values, "o-", ms=3, color=color, label=f"{name}, {length}")
    if unit == "bits_per_character":  # a run that is not bundled
        steps, values = zip(*found["longer"]["curve"], strict=True)
        axis.plot(steps, values, "o-", ms=3, color="#009e73", label="4, stopped at 4,000 steps")
    axis.set(xlabel="steps of 16 windows", ylabel=unit.replace("_", " ").replace("window", "story"))
axes[0].axhline(stories.entropy(), color="grey", ls="--", label="entropy: the least possible")
axes[0].set_ylim(18, 40)
for axis in axes:
    axis.legend(fontsize=8, loc="upper right", title="model, block length", title_fontsize=8)
plt.show()

# %% [markdown]
# **On the stories: the shorter the block, the faster it learns.** Two minutes bring them to 24 nats letter by letter, to 40 in blocks of 20, and to 65 in one window. After 1,000 steps blocks of 20 have a bound that a whole
# window does not reach in 7,500: 23.8 nats against 24.4. (These are of the 512 stories of the logs. On 2,048 others the bundled models are at 20.2, 7 % above the entropy, and at 25.3, 33 % above it.) Letter by letter is faster still, and ends at 19.1.
#
# **On real text** that holds for short blocks only: letter by letter two minutes lead to 1.64 bits per character, in blocks of 5 to 2.13. From 10 on (2.29) no length is clearly
# better than the window (2.32), and 20 and 40 are worse (2.38). For long blocks it takes time: after 7,000 steps blocks of 16 are at 1.65 and SEDD at 1.78. Blocks of 4 are at 1.41 after 4,000,
# below the 1.51 of the [6-gram](deeper/opponents.ipynb), which no diffusion model of this book had reached.
#
# Why? Presumably because most of what a letter depends on stands before it. A block sees that clean; a window sees it through noise, and has to learn an answer
# for every noise level.
#
# ### A model inside the model
#
# The left-to-right stack can be asked alone: the auxiliary loss of [chapter 8](08_training.ipynb) did so in training. Where there is
# no noise it has read the true beginning of the text, in a block model clean up to the block and noiseless in it. So it *is* an autoregressive model. How good is it? Here are its
# nats per story, less those of the grammar itself, with two standard errors:

# %%
from ddlm_core.block_pipeline import BlockPipeline

told = stories.sample(256, seed=5)
least = -torch.tensor([stories.log_prob(story) for story in told])  # nats, of each story
for name in ("pocket-stories", "pocket-blocks", "pocket-autoregressive"):
    model = BlockPipeline.from_pretrained(name, device="cpu").model
    x_0 = torch.stack([model.config.tokenizer.pad(story, 160) for story in told]).long()
    sigma_bar = model.config.noise.sigma_bar(torch.zeros(256))  # the least that was trained
    with torch.inference_mode():
        network = model if name == "pocket-stories" else model.given(x_0)
        _, log_q, _ = network.denoise_stacks(x_0, sigma_bar)  # merge, left to right, right to left
    more = -log_q.gather(-1, x_0[..., None]).sum((1, 2)) - least
    print(f"{name:22} {more.mean():.2f} ± {2 * more.std() / 16:.2f}")

# %% [markdown]
# Weights that write 20 letters in parallel hold an autoregressive model that is 0.2 nats from perfect, and its likelihood is exact, not a
# bound: that surprised us. One that learned nothing else is still closer. (Its log says 19.13, for stories that cost the grammar itself 19.08.) The window model, too, knows more from left to right, 24.0 nats in all, than its bound says.

# %% [markdown]
# ## Writing, block after block
#
# Each block is one run of the sampler of chapter 7, after the clean text before it. `model.after(text)` reads that text once, and is then an ordinary
# denoiser of one block, so nothing in the sampler changes. An evaluation of a block of 16 costs far less than one of a window.
#
# **Any length.** What has been read grows until, with the next block, it fills the window that the network was trained on. Then the older half is
# forgotten, and reading starts again. The model never meets a position that it was not trained on. What the forgetting costs, we have not measured.
#
# **What is given to the right** of a block helps within the block alone. A template that must fit a distant ending is a case for SEDD, which sees the whole
# window.

# %% tags=["export:block_sampler", "hide-input"]
"""Block after block: texts of any length."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddlm_core.blocks import BlockDiffusionTransformer, BlockView
from ddlm_core.sampler import DenoisingStep, denoising_steps
from ddlm_core.sampling_options import cut_at_end
from ddlm_core.support.checks import check_range
from ddlm_core.tokenizer import PAD_ID

Step = TypeVar("Step", bound=DenoisingStep)


def context_start(written: int, block_length: int, block_size: int) -> int:
    """The first token that the block after ``written`` tokens, all whole blocks, is given.

    What has been read grows until it fills the window with that block; then half of it is forgotten.
    """
    most = max(block_size // block_length - 1, 0)  # whole blocks that may be read
    forget = max(1, (most + 1) // 2)  # at once
    return -(-max(0, written // block_length - most) // forget) * forget * block_length


def numbered(steps: Iterator[Step], expected: int) -> Iterator[Step]:
    """The same steps, counted; ``expected``, the number of the last one, is mended where a run ends early."""
    before, index = None, -1
    for index, step in enumerate(steps):
        if before is not None:
            yield replace(before, index=index - 1, num_steps=max(expected, index))
        before = step
    if before is not None:
        yield replace(before, index=index, num_steps=index)


# %% tags=["export:block_sampler", "hide-input"]
@dataclass(frozen=True)
class BlockWriter:
    """How one block after the other is written: a network, a sampler and its options."""

    model: BlockDiffusionTransformer
    write: Callable[..., Iterator[DenoisingStep]]  # such as denoising_steps
    options: dict[str, Any]
    template: Tensor | None = None  # int64 (L,), as in denoising_steps
    condition_mask: Tensor | None = None  # bool (L,)

    def view(self, tokens: Tensor, start: int, before: BlockView | None = None) -> BlockView:
        """The network after what it is given of ``tokens`` (B, L) before ``start``; ``before``: one block earlier."""
        length, size = self.model.config.block_length, self.model.config.block_size
        first = context_start(start, length, size)
        goes_on = before and first == context_start(start - length, length, size)
        return self.model.after(tokens[:, first:start], before.past if before and goes_on else None)

    def begin(self, view: BlockView, tokens: Tensor, start: int) -> Iterator[DenoisingStep]:
        """The run for the block from ``start`` on of ``tokens`` (B, L), by the network that has read."""
        config, end = self.model.config, start + self.model.config.block_length
        given: dict[str, Tensor] = {}
        if self.template is not None and self.condition_mask is not None:
            given["template"] = self.template[start:end]
            given["condition_mask"] = self.condition_mask[start:end]
        size = len(tokens[0, start:end])
        return self.write(view, config.noise, len(tokens), size, **given, **self.options)

    def is_over(self, tokens: Tensor, start: int) -> bool:
        """Whether all texts have ended before ``start``, and no character is given from there on."""
        template, mask = self.template, self.condition_mask
        rest = () if template is None or mask is None else template[start:][mask[start:]].tolist()
        return {*rest} <= {PAD_ID} and bool((cut_at_end(tokens[:, :start])[:, -1] == PAD_ID).all())

    def run(self, tokens: Tensor, stop_at_end: bool) -> Iterator[DenoisingStep]:
        """All steps of all blocks of ``tokens`` (B, L); what cannot work is told at the call."""
        view = self.view(tokens, 0)
        return self._run(tokens, view, self.begin(view, tokens, 0), stop_at_end)

    def _run(
        self, tokens: Tensor, view: BlockView, steps: Iterator[DenoisingStep], stop_at_end: bool
    ) -> Iterator[DenoisingStep]:
        length = self.model.config.block_length
        for start in range(0, tokens.shape[1], length):
            if start and stop_at_end and self.is_over(tokens, start):
                return
            if start:
                view = self.view(tokens, start, view)
                steps = self.begin(view, tokens, start)
            for step in steps:
                changed = torch.zeros_like(tokens, dtype=torch.bool)
                changed[:, start : start + length] = step.changed
                tokens = tokens.clone()
                tokens[:, start : start + length] = step.tokens
                yield replace(step, tokens=tokens, changed=changed)


# %% tags=["export:block_sampler", "hide-input"]
def denoising_blocks(
    model: BlockDiffusionTransformer,
    batch_size: int,
    seq_len: int,
    *,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    stop_at_end: bool = False,
    write: Callable[..., Iterator[DenoisingStep]] = denoising_steps,
    **options: Any,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and all steps of each block.

    Each block is a run of ``write`` with these ``options`` after the text before it; tokens of later blocks are
    ``<PAD>``. With ``stop_at_end`` no block begins once all texts have ended. ``template`` and
    ``condition_mask``, (L,), as in ``denoising_steps``: what is given is known in its block and later.
    What cannot work raises a ``UserError`` at the call.
    """
    check_range(1, math.inf, batch_size=batch_size, seq_len=seq_len)
    device = next(model.parameters()).device
    tokens = torch.full((batch_size, seq_len), PAD_ID, device=device)
    writer = BlockWriter(model, write, options | {"device": device}, template, condition_mask)
    run = writer.run(tokens, stop_at_end)
    blocks = math.ceil(seq_len / model.config.block_length)
    return numbered(run, blocks * (options.get("num_steps", 128) + 1) - 1)


# %% [markdown]
# Folded above: which part of the text is read, how steps are numbered, and the loop over blocks, in which what has been read grows by a block at a time.
# Is it right? A network that reads everything anew at every evaluation must write the same text (the loop is in the last lines of the test):

# %% tags=["test:block_sampler"]
import torch

from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockView, make_config, make_network
from ddlm_core.sampler import denoising_steps, sample_generators


def test_with_and_without_the_kept_past_the_same_text():
    torch.manual_seed(0)
    sizes = {"block_size": 12, "n_layer": 6, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    network = make_network(make_config(**sizes, block_length=4)).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    how = {"num_steps": 6, "schedule": "cosine", "churn": 1.0}
    *_, last = denoising_blocks(network, 2, 12, generator=sample_generators(0, 2), **how)

    class Forgetful(BlockView):
        def denoise(self, x_t, sigma_bar, condition_mask=None):
            start = int(self.places[0])
            window = torch.zeros(2, 12, dtype=torch.int64)
            window[:, :start], window[:, start : start + 4] = text[:, :start], x_t
            return network.given(window).denoise(window, sigma_bar)[:, start : start + 4]

    text = torch.zeros(2, 0, dtype=torch.int64)
    generators = sample_generators(0, 2)
    for _ in range(3):
        view = network.after(text)
        view = Forgetful(network, view.past, view.places)
        *_, step = denoising_steps(view, network.config.noise, 2, 4, generator=generators, **how)
        text = torch.cat([text, step.tokens], 1)
    assert torch.equal(last.tokens, text)


test_with_and_without_the_kept_past_the_same_text()

# %% [markdown]
# What does it cost, and what does it write? 400 stories for each row (`benchmarks/blocks.py --write`), at temperature 1, with cosine steps and churn 1, 50 at a time. The unit of time is one evaluation
# of a window by `pocket-stories`; one of a block of 20 takes 0.13 of it, the reading of the past included. No block is written after the end of its story. *Seconds alone*
# are those of one story by itself. *Openings* is the total variation between the first two words and the grammar's; *words* is the entropy of all words. 400 true stories
# have openings of 0.206, with a standard deviation of 0.013, and words of 5.2 nats. Times vary by some 5 %.

# %% tags=["hide-input"]
from IPython.display import Markdown

from ddlm_core.evaluation import wilson

lines = [
    "| model | steps | evaluations | time, in windows | seconds alone | flawless | openings | words, nats |",
    "|---|---|---|---|---|---|---|---|",
]
for row in found["writing"]:
    share = wilson(row["flawless"], row["samples"])
    cost = f"{row['evaluations']:.0f} | {row['windows']:.1f} | {row.get('seconds_alone', 0):.2f}"
    quality = f"{share:.3f} | {row['openings_distance']:.2f} | {row['word_entropy']:.2f}"
    lines.append(f"| {row['model']} | {row['num_steps']} | {cost} | {quality} |")
Markdown("\n".join(lines))

# %% [markdown]
# The same against evaluations of the network for each character. Letter by letter is 1; to the left of it an evaluation is for many letters. The gray band is what as many true
# stories have, two standard deviations to each side:

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.0), layout="constrained")
colors = {
    "pocket-autoregressive": "#009e73",
    "pocket-blocks": "#d55e00",
    "pocket-stories": "#0072b2",
}
for name, color in colors.items():
    rows = [row for row in found["writing"] if row["model"] == name]
    cost = [row["evaluations"] / row["characters"] for row in rows]
    for axis, key in zip(axes, ("flawless", "openings_distance"), strict=True):
        values = [row[key] / (row["samples"] if key == "flawless" else 1) for row in rows]
        axis.plot(cost, values, "o-", ms=4, color=color, label=name)
true = found["stories"]
low, high = (true["openings_distance"] + k * true["openings_deviation"] for k in (-2, 2))
axes[1].axhspan(low, high, color="grey", alpha=0.3, label="as many true stories")
for axis, words in zip(
    axes, ("share of flawless stories", "openings: total variation"), strict=True
):
    axis.set_xscale("log")
    axis.set(xlabel="evaluations per character", ylabel=words)
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# Steps buy quality. With 12 steps for each block, 95 of 100 stories are flawless, and with 24, 98; SEDD gets 92 with 64. From 12 steps on the openings of blocks are as far from the grammar as
# true stories are, but for one row (24 steps); those of SEDD are all a little farther. With fewer than 4 steps too much of a block is drawn at once, and nothing fits: the factorization error of chapter 7, now inside each block.
#
# By *evaluations*, the window is the better choice as long as there are few: 24 of them, 0.18 for each character, leave 90 of 100 stories flawless, and 29 of blocks only 39. By *time* it is the other way, since an evaluation
# of a block costs an eighth: 12 steps a block take less than half as long as those 24.
#
# **And letter by letter?** At the quality of 12 steps a block it takes 137 evaluations in a row instead of 88, and *half the time* when 50 stories are written at once:
# each letter is computed once, and those of a block twelve times. For one story alone it is the slower one, 0.80 seconds against 0.39. So to write in parallel pays where a machine has
# arithmetic to spare, such as a GPU that writes for one reader. Which block length, then? A short one for the likelihood, a long one for few evaluations.

# %% [markdown]
# ## Samplers of today
#
# Chapter 7 has one sampler with a few knobs. Newer papers have many, and most of them fit into its loop. First the
# ones that change what the network *says*: they take a denoiser and are a denoiser. *Top-p*
# ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)) keeps the most probable letters, as few as
# together have a probability of $p$, and *annealing* lets the temperature fall with the noise.

# %% tags=["export:modern_samplers", "hide-input"]
"""Samplers of today: a denoiser made surer, and steps that accept what is sure."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddlm_core.graph import Denoiser, graph_of
from ddlm_core.reverse import has_denoiser
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError


class Reshaped(nn.Module):
    r"""A denoiser whose $\log q$ is that of another one, reshaped: the parent of those below.

    It has the parameters, ``config`` and ``graph`` of ``model``. One that gives scores alone is refused with a ``UserError``.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        if not has_denoiser(model):
            raise UserError(
                f"{type(self).__name__} needs a model with a denoiser, not scores alone"
            )
        self.model, self.config, self.graph = model, model.config, graph_of(model)

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        r"""The new $\log q$, normalized: (B, L, V) at noise (B,) to (B, L, V)."""
        raise NotImplementedError

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""The reshaped $\log q$ (B, L, V) for tokens (B, L) and noise (B,)."""
        condition = () if condition_mask is None else (condition_mask,)
        return self.reshape(self.model.denoise(x_t, sigma_bar, *condition), sigma_bar)

    def forward(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The log-scores (B, L, V) that follow from it, 0 at the current token."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return self.graph.log_score(log_q, sigma_bar, x_t)


# %% tags=["export:modern_samplers", "hide-input"]
class TopP(Reshaped):
    """Only the nucleus of q: its most probable letters, as few as have p together (Holtzman et al. 2020)."""

    def __init__(self, model: Denoiser, p: float) -> None:
        super().__init__(model)
        check_range(0.0, 1.0, p=p)
        self.p = p

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        sorted_q, order = log_q.exp().sort(-1, descending=True)
        more = sorted_q.cumsum(-1)[..., :-1] < self.p  # the letters so far are not enough
        kept = nn.functional.pad(more, (1, 0), value=True)
        kept = torch.zeros_like(kept).scatter(-1, order, kept)
        return log_q.masked_fill(~kept, -math.inf).log_softmax(-1)


class Annealed(Reshaped):
    r"""Temperature ``first`` in pure noise, ``last`` without noise, linear in $f = 1 - e^{-\bar\sigma}$ between."""

    def __init__(self, model: Denoiser, first: float, last: float) -> None:
        super().__init__(model)
        if not (0 < first < math.inf and 0 < last < math.inf):
            raise UserError(f"temperatures must be above 0 and finite, got {first} and {last}")
        self.first, self.last = first, last

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        fraction = resample_probability(sigma_bar).to(log_q.dtype)
        temperature = torch.lerp(
            fraction.new_tensor(self.last), fraction.new_tensor(self.first), fraction
        )
        largest = log_q.amax(-1, keepdim=True)  # becomes 0 first, and stays 0 however small T is
        return ((log_q - largest) / temperature[:, None, None]).log_softmax(-1)


# %% [markdown]
# ### Accept what is sure
#
# The other kind changes the *step*. Chapter 7 fixes the noise levels beforehand, so an easy text takes as many evaluations as a difficult
# one. *Entropy-bound acceptance* ([Ben-Hamu et al. 2025](https://arxiv.org/abs/2505.24857), for masks;
# [DiffusionGemma](https://huggingface.co/docs/diffusers/en/api/schedulers/entropy_bound), for uniform noise) asks the network how
# far it can go. One evaluation gives the distribution of each clean letter, $p_i=p(x_0^i\mid x_t)$: the analytic step all the way
# to no noise. Drawing the letters of a set $A$ independently costs their total correlation (chapter 7), which is
#
# $$ \sum_{i\in A} H(p_i) - H(x_0^A\mid x_t) \;\le\; \sum_{i\in A} H(p_i)-\max_{i\in A}H(p_i), $$
#
# because letters together are at least as uncertain as any one of them. The right-hand side needs only what the network has said. So
# sort the positions by entropy and *accept* as many as keep it within a bound, and at least one. All others become random letters, and
# the share of them is the fraction $f$, from which the noise level of the next evaluation follows, $\bar\sigma=-\log(1-f)$. An accepted letter is not fixed: at the next evaluation any letter may be noise,
# and may be drawn again. It ends when all are accepted at once, or at a limit of evaluations, where all are.

# %% tags=["export:modern_samplers"]
from ddlm_core.graph import ScoreModel
from ddlm_core.noise import resample_probability
from ddlm_core.reverse import reverse_probs


def accepting_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    *,
    bound: float = 0.3,
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A step that accepts what is sure: probabilities (B, L, V), and which positions it accepts, bool (B, L).

    Accepted ones are drawn from $p(x_0 \mid x_t)$, the others uniformly: the largest set of positions of
    least entropy whose entropies, without the largest, sum to at most ``bound`` nats. At least one of those that are
    not given is accepted, and so are all given ones. Arguments and errors are those of ``reverse_probs``.
    (Ben-Hamu et al. 2025; DiffusionGemma.)
    """
    probs = reverse_probs(
        *(model, x_t, sigma_bar_t, 0.0), temperature=temperature, condition_mask=condition_mask
    )
    entropy = torch.special.entr(probs).sum(-1)  # nats, (B, L)
    if condition_mask is not None:
        entropy = entropy.masked_fill(condition_mask, 0.0)
    least, order = entropy.sort(dim=-1, stable=True)
    all_but_largest = nn.functional.pad(least.cumsum(-1)[:, :-1], (1, 0))
    accepted = torch.zeros_like(order, dtype=torch.bool)
    accepted = accepted.scatter(-1, order, all_but_largest <= bound)
    return torch.where(accepted[..., None], probs, 1 / probs.shape[-1]), accepted


# %% [markdown]
# The inequality, on words of three letters whose distribution given a noisy word is known exactly:

# %% tags=["test:modern_samplers"]
from ddlm_core.tiny_world import true_reverse, two_letter_world


def test_total_correlation_is_within_the_bound():
    world = two_letter_world()
    for sigma_bar in torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64):
        clean = true_reverse(world, sigma_bar, torch.zeros_like(sigma_bar))  # (W, W): p(x_0 | x_t)
        for bound in (0.0, 0.2, 0.5, 1.0):
            probs, accepted = accepting_probs(world, world.words, sigma_bar, bound=bound)
            entropies = torch.special.entr(probs).sum(-1)  # (W, L)
            for p, mask, entropy in zip(clean, accepted, entropies, strict=True):
                number = world.words[:, mask] @ 2 ** torch.arange(int(mask.sum()))
                together = torch.zeros(8, dtype=torch.float64).index_add_(0, number, p)
                sum_of_entropies = entropy[mask].sum()
                total_correlation = sum_of_entropies - torch.special.entr(together).sum()
                assert mask.any() and total_correlation <= bound + 1e-9
                assert mask.all() or sum_of_entropies > bound  # one more would be too many


test_total_correlation_is_within_the_bound()

# %% tags=["export:modern_samplers", "hide-input"]
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ddlm_core.noise import NoiseSchedule
from ddlm_core.sampler import DenoisingStep, _sample_categorical, _uniform


@dataclass(frozen=True)
class AcceptingStep(DenoisingStep):
    """A step of a run whose length is known only at its end: until then ``num_steps`` is the most it may take."""

    # sigma_bar: of the noisiest text, 0 when all are finished
    accepted: Tensor  # bool (B, L): true where a token is given or was accepted
    evaluations: Tensor  # int64 (B,): function evaluations that each text has needed so far


def _run_accepting(
    step_probs: Callable[..., tuple[Tensor, Tensor]],
    tokens: Tensor,
    free: Tensor,
    noise: NoiseSchedule,
    generators: Sequence[torch.Generator | None],
    bound: float,
    max_steps: int,
) -> Iterator[AcceptingStep]:
    """The start (B, L), then what each step leaves, until no position that is ``free`` is left open."""
    lowest, highest = noise.sigma_bar(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    changed, accepted, live = torch.zeros_like(free), ~free, free.any(-1)  # (B, L), (B, L), (B,)
    sigma_bar = torch.full(live.shape, highest, device=free.device)
    index, evaluations = 0, torch.zeros_like(live, dtype=torch.int64)
    while True:
        ends = max_steps if live.any() else index
        level = torch.where(live, sigma_bar, 0.0).max().item()
        yield AcceptingStep(index, ends, level, tokens, changed, accepted, evaluations)
        if index == ends:
            return
        index += 1
        enough = bound if index < max_steps else math.inf  # the last step accepts all
        probs, sure = step_probs(tokens, sigma_bar, bound=enough)
        uniform = torch.zeros(tokens.shape, dtype=torch.float64)
        for row in live.nonzero()[:, 0].tolist():  # a finished text draws no more
            uniform[row] = _uniform(generators[row], tokens.shape[1])
        drawn = _sample_categorical(probs, uniform)
        changed = (drawn != tokens) & free & live[:, None]
        tokens = torch.where(changed, drawn, tokens)
        accepted = torch.where(live[:, None], sure, accepted)
        evaluations = evaluations + live
        fraction = (~accepted).sum(-1) / free.sum(-1).clamp(min=1)
        live = fraction > 0
        sigma_bar = (-torch.log1p(-fraction)).clamp(lowest, highest)


# %% tags=["export:modern_samplers", "hide-input"]
from functools import partial

from ddlm_core.sampler import denoising_steps


def entropy_bound_steps(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    bound: float = 0.3,
    max_steps: int = 128,
    temperature: float = 1.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[AcceptingStep]:
    """Write B texts of L tokens with as many function evaluations as each needs, at most ``max_steps``.

    Yields the random start and each step of ``accepting_probs``. The noise of a text is what would resample the
    share of its letters that was not accepted; it is finished when all are, and waits for the others. All else as
    ``denoising_steps``, which draws the same start. A negative bound, a ``max_steps`` below 1, and a graph
    that takes no fresh noise raise a ``UserError``, too. (Ben-Hamu et al. 2025; DiffusionGemma, which also stops when the
    most probable letters stay the same.)
    """
    check_range(0.0, math.inf, bound=bound)
    check_range(1, math.inf, max_steps=max_steps)
    graph = graph_of(model)
    if not graph.supports_churn:
        raise UserError(f"entropy-bound acceptance does not work with the {graph.name} graph")
    options: dict[str, Any] = {"vocab_size": vocab_size, "temperature": temperature}
    options |= {"template": template, "condition_mask": condition_mask}
    options |= {"generator": generator, "device": device, "num_steps": 1}
    start = next(denoising_steps(model, noise, batch_size, seq_len, **options)).tokens  # checked
    free = torch.ones_like(start, dtype=torch.bool)
    if condition_mask is not None:
        condition_mask = condition_mask.expand_as(start).to(start.device)
        free = ~condition_mask
    step_probs = partial(
        accepting_probs, model, temperature=temperature, condition_mask=condition_mask
    )
    generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
    return _run_accepting(step_probs, start, free, noise, generators, bound, max_steps)


# %% [markdown]
# ### Which of them keep the distribution?
#
# In a world that can be enumerated this has an exact answer, the total variation between what a sampler writes and the
# language. Take the letters *a*, *b*, *c* and words of two: *ab* 0.4, *bc* 0.3, *ca* 0.2, and 0.1 for the six others together. *Churn* is in the table under another name: to go down too far and back up by fresh noise is a *predictor–corrector* step,
# as in the Ψ-samplers ([Deschenaux et al. 2026](https://arxiv.org/abs/2602.21185)) for uniform noise and
# [ReMDM](https://arxiv.org/abs/2503.00307) for masks.

# %% tags=["test:modern_samplers", "hide-input"]
from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import churned_probs
from ddlm_core.sampler import noise_levels, sample_generators
from ddlm_core.tiny_world import (
    TinyWorld,
    product_of_positions,
    three_letter_world,
    total_variation,
)


def written_by_steps(world: TinyWorld, model: Denoiser, num_steps: int, **options: Any) -> Tensor:
    """(W,): exact probabilities of the words that a run of cosine steps writes."""
    levels = noise_levels(GeometricNoise(), num_steps, "cosine")
    probs = torch.full_like(world.probs, 1 / len(world.probs))
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(model, world.words, now, after, **options)
        probs = probs @ product_of_positions(world, step)
    return probs


def written_by_bound(world: TinyWorld, bound: float, max_steps: int) -> tuple[Tensor, float]:
    """(W,): the same for entropy-bound acceptance; and the mean number of evaluations."""
    length, most = world.length, GeometricNoise().sigma_max
    held = torch.zeros(length + 1, len(world.words), dtype=torch.float64)
    held[length], evaluations = 1 / len(world.words), 0.0  # held[k]: k letters not accepted
    for step in range(1, max_steps + 1):
        enough = bound if step < max_steps else math.inf
        after = torch.zeros_like(held)
        after[0] = held[0]
        evaluations += held[1:].sum().item()
        for k in range(1, length + 1):
            sigma_bar = most if k == length else -math.log1p(-k / length)
            probs, accepted = accepting_probs(world, world.words, sigma_bar, bound=enough)
            moves = held[k, :, None] * product_of_positions(world, probs)  # (W, W)
            after.index_add_(0, (~accepted).sum(-1), moves)
        held = after
    return held[0], evaluations


def test_run_writes_what_the_exact_computation_says():
    world, number = three_letter_world(), 4000
    for bound, max_steps in ((0.4, 128), (0.7, 2)):
        options = {"bound": bound, "max_steps": max_steps}
        generators = sample_generators(5, number)
        *_, last = entropy_bound_steps(
            *(world, GeometricNoise(), number, world.length), generator=generators, **options
        )
        exact, evaluations = written_by_bound(world, **options)
        counts = (last.tokens @ torch.tensor([3, 1])).bincount(minlength=9)
        chi_squared = ((counts - number * exact) ** 2 / (number * exact)).sum()
        assert chi_squared < 31.8  # 8 degrees of freedom: above it once in ten thousand trials
        assert abs(last.evaluations.double().mean() - evaluations) < 0.05 * evaluations
        assert total_variation(exact, world.probs) > 0.1  # not the language


def test_more_steps_help_some_samplers():
    world = three_letter_world()

    def miss(denoiser, num_steps, **options):
        return total_variation(written_by_steps(world, denoiser, num_steps, **options), world.probs)

    assert miss(world, 256) < miss(world, 16) / 12  # 1/N
    assert miss(world, 256, churn=1.0) < miss(world, 16, churn=1.0) / 2.5  # 1/sqrt(N)
    for denoiser in (TopP(world, 0.95), Annealed(world, 1.0, 0.5)):
        assert miss(denoiser, 256) > 0.03


test_run_writes_what_the_exact_computation_says()
test_more_steps_help_some_samplers()

# %% tags=["hide-input"]
strict = torch.zeros(3, 3, dtype=torch.float64)
strict[0, 1], strict[1, 2], strict[2, 0] = 0.5, 0.3, 0.2  # ab, bc, ca, and no other word
generous_world, strict_world = three_letter_world(), TinyWorld(strict)
CHURN = "predictor–corrector (churn 1)"
rows: list[tuple[str, TinyWorld, Any, dict[str, float]]] = [
    ("steps of chapter 7", generous_world, generous_world, {}),
    ("steps of chapter 7, strict world", strict_world, strict_world, {}),
    (CHURN, generous_world, generous_world, {"churn": 1.0}),
    (CHURN + ", strict world", strict_world, strict_world, {"churn": 1.0}),
    ("temperature 0.8", generous_world, generous_world, {"temperature": 0.8}),
    ("temperature from 1 to 0.5", generous_world, Annealed(generous_world, 1.0, 0.5), {}),
    ("top-p 0.95", generous_world, TopP(generous_world, 0.95), {}),
]
print(f"{'total variation':46}" + "".join(f"{n:5} steps" for n in (16, 128, 1024)))
for name, world, denoiser, options in rows:
    runs = (written_by_steps(world, denoiser, n, **options) for n in (16, 128, 1024))
    print(f"{name:46}" + "".join(f"{total_variation(run, world.probs):11.4f}" for run in runs))

# %% tags=["hide-input"]
print("entropy bound   evaluations   total variation      ab     bc     ca   others")
for bound in (0.3, 0.4, 0.5, 0.7, 1.0):
    probs, evaluations = written_by_bound(generous_world, bound, 128)
    common = probs[[1, 5, 6]].tolist()
    words = "".join(f"{value:7.3f}" for value in (*common, 1 - sum(common)))
    distance = total_variation(probs, generous_world.probs)
    print(f"{bound:13}{evaluations:14.1f}{distance:18.4f} {words}")

# %% [markdown]
# **The steps of chapter 7** converge, like $1/N$. **Churn** converges more slowly, like $1/\sqrt N$, as long as words can turn into each other one
# letter at a time. In a *strict* world, which has *ab*, *bc* and *ca* and nothing in between (0.5, 0.3, 0.2), it tends to something else. With churn a step goes all the way to a guess of the clean text and back up,
# and the letters of the guess are drawn independently. To get from *ab* to *bc* both must change at once, however small the noise is, and the favorite gains. **Temperature and
# top-p** change $q$, so no number of steps helps.
#
# **Entropy-bound acceptance** has no limit to converge to. With a bound of 1 it accepts everything too early, in two evaluations. With 0.4 it writes *ab* in 82 % of all
# cases, where 40 % is right. The bound holds: what the accepted letters share is at most 0.4 nats. The bias is in *what is
# accepted*. Once one letter of two is accepted, $f$ is ½. There the entropy of each letter is 0.37 nats if the noisy word is *ab*, 0.48 if *bc*, 0.65 if *ca*, and more for all others. So a bound of 0.4 accepts both letters
# of *ab* and of nothing else. Each of them is right with probability 0.907, and $0.907^2=0.82$. With 0.3 never more than one letter is accepted, and it goes on until its 128 steps are used up.
#
# In stories, with 160 letters of which most are sure, the same happens where the text is free to choose. `pocket-stories`, which writes a whole window at once,
# writes 200 stories with each sampler. How far are their first two words from those of the grammar, whose
# probabilities we know?

# %% tags=["hide-input"]
import json
from importlib.resources import files

from ddlm_core.evaluation import wilson

RESULTS = files("ddlm_core") / "results"
table = json.loads((RESULTS / "modern_samplers.json").read_text(encoding="utf-8"))
print(f"{'':40}evaluations   flawless (95 %)          openings   words, nats")
for row in table["samplers"]:
    share = f"{wilson(row['flawless'], row['samples']):.3f}"
    figures = f"{row['evaluations']:11.1f}   {share:23}{row['openings_distance']:10.3f}"
    print(f"{row['name']:40}{figures}{row['word_entropy']:14.3f}")
true = table["stories"]
spread = f"{true['openings_distance']:.3f} ± {true['openings_deviation']:.3f}"
print(f"{'true stories':40}{'':14}{'1':23}{spread:>18}{true['word_entropy']:6.3f}")

# %% [markdown]
# The column *openings* is the total variation. It would be about 0.29 for 200 true stories, too, because 200 are few (± is a standard deviation over 100 seeds), so
# what matters is how far a row lies above that. Steps, with or without churn, are within two standard deviations. Entropy-bound acceptance with a bound of 0.1 writes as many flawless stories
# in 33 evaluations as churned steps do in 64, but with a distance of 0.50, more than eleven standard deviations off: it begins its stories in the same few ways. A larger bound saves
# evaluations and costs flawless stories; the distance shrinks, and stays too large. Top-p does not make the stories of churned steps any better here; a temperature of 0.8 does (0.91 flawless in 24 evaluations), and its openings
# are two standard deviations off; top-p 0.9 is four off. The entropy of the words tells the same: it falls to 5.0 with acceptance. To count duplicates would have shown nothing, since every row has 200 different stories. (The rows
# of churned steps are other stories than those of the table before, computed in 16 bits; the intervals overlap.)
#
# DiffusionGemma's own settings are a bound of 0.1 and a temperature that falls from 0.8 to 0.4, on at most 48 evaluations, and it also stops when its most
# probable letters stay the same. The row *entropy bound 0.1, T from 0.8 to 0.4* is close to it: 15 evaluations, 0.83 flawless, openings 0.41. If one good answer is wanted, to prefer the favorite may do no
# harm. If the *distribution* matters (text to train on, a probability to estimate, many different stories), look at diversity before you believe a share of flawless texts.
#
# **In blocks** the same sampler fails in another way. The same 200 stories by `pocket-blocks`, with at most 48 evaluations for each block:

# %%
for row in table["in blocks"]:
    print(
        f"{row['name']:18} {row['evaluations']:6.1f} evaluations  {row['flawless'] / 200:.3f} flawless"
    )
writer = BlockPipeline.from_pretrained("pocket-blocks", device="cpu")
print(writer.generate(sampler="entropy_bound", entropy_bound=0.1, num_steps=48, seed=0)[0])

# %% [markdown]
# Look at where it is wrong: only in the first 20 letters. Without a past nothing in a block is sure, so one letter of 20 is accepted, and $f$ stays at 0.95. At so much noise the network
# takes the accepted letter for noise, too, and what it has won is lost again, 47 times. Then all letters are accepted at once. Later blocks have a past, and come out well.
# A model with a prompt before it and 256 tokens in a block, such as DiffusionGemma, need not meet this. Ours does.
#
# **Not built: self-conditioning** ([Chen et al. 2022](https://arxiv.org/abs/2208.04202)) hands the network what it said in the step before. But what it said of letter $j$
# then depended on the noisy letter $i$, which is mostly the same one still. So $q_i$ would know its own letter by way of $j$, and Bayes' rule would count it twice.

# %% [markdown]
# ## Blanks of unknown length
#
# What if the best word is longer than its blank? `_{2-9}` is a blank of 2 to 9 characters. It stands for several plain templates, one for each length.

# %% tags=["export:unknown_lengths", "hide-input"]
"""Blanks of unknown length: which of several templates fits what is given best."""

import itertools
import math
import re

from ddlm_core.support.errors import UserError

MOST_LENGTHS = 64  # templates that one with ranges may stand for


def _range_of(inside: str) -> tuple[int, int]:
    """The ends of a range such as ``2-9``."""
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", inside.replace(" ", ""))
    low, high = [int(min(float(end), 9999)) for end in ends.groups()] if ends else (0, 0)
    if not 1 <= low <= high:
        hint = "write _{2-9} for 2 to 9 characters, or _{9} for nine"
        raise UserError(f"_{{{inside:.20}}} is no range of lengths: {hint}")
    return low, high


def expand_lengths(template: str) -> list[str]:
    r"""The plain templates that one with ranges stands for: ``_{2-3}`` for ``_{2}`` and ``_{3}``.

    The lengths of the first range change slowest. ``\_`` is an underscore; without a range the template
    stands for itself alone.

    Raises:
        UserError: a range is empty, reversed or begins at 0, or there are more than 64 templates.
    """
    parts = re.split(r"(?<!\\)_\{((?:[0-9 -]*-[0-9 -]*)?)\}", template)
    ranges = [_range_of(inside) for inside in parts[1::2]]
    if (count := math.prod(high - low + 1 for low, high in ranges)) > MOST_LENGTHS:
        hint = f"at most {MOST_LENGTHS} can be compared: narrow a range, or fix one, such as _{{5}}"
        raise UserError(f"the ranges of the template allow {count} lengths: {hint}")
    chosen = itertools.product(*(range(low, high + 1) for low, high in ranges))
    blanks = ([f"_{{{length}}}" for length in lengths] for lengths in chosen)
    return ["".join(itertools.chain(*zip(parts[::2], [*some, ""], strict=True))) for some in blanks]


# %% [markdown]
# **How probable is a length?** Let $g_n$ be what is given, in the places where a length $n$ puts it, and $y$ what fills the blanks. Then
#
# $$p(n \mid g) \propto p(g_n) = \sum_y p(g_n, y), \qquad p(g_n) = \frac{p(g_n, y)}{p(y \mid g_n)} \text{ for any } y.$$
#
# So it is wrong to fill each length and compare how probable the *texts* are, $p(g_n, y)$: that favors lengths for which few fillings exist, because each of these has
# a large share. The right-hand equation mends it (the candidate's formula, [Besag 1989](https://doi.org/10.1093/biomet/76.1.183)). The
# sampler fills each length once; the model bounds both numbers, the second one with noise in the blanks alone; and the bound on $-\log p(y\mid g_n)$ less that on $-\log p(g_n,y)$ is the logarithm of the length's weight. No training is needed. Two
# cautions: a difference of two bounds is neither an upper nor a lower one, and a block model does not see what is given to the right of its block. The same letters see the same noise in all
# lengths, so that much of the chance cancels.

# %% tags=["export:unknown_lengths", "hide-input"]
from collections.abc import Sequence

import torch
from torch import Tensor


def aligned_columns(masks: Sequence[Tensor]) -> list[Tensor]:
    """Columns of a common table, int64 (L_n,), for each place of templates with masks bool (L_n,).

    The i-th given place has the same column in all of them, and so has the j-th blank behind it.
    """
    keys = []
    for given in masks:
        place = torch.arange(len(given), device=given.device)
        last = torch.where(given, place, -1).cummax(0).values  # the given place before a blank
        keys.append(torch.stack([given.cumsum(0), place - last], 1))
    columns = torch.cat(keys).unique(dim=0, return_inverse=True)[1]
    return list(columns.split([len(given) for given in masks]))


# %% tags=["export:unknown_lengths", "hide-input"]
from typing import Any, cast

from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.graph import Denoiser, graph_of
from ddlm_core.noise import NoiseSchedule
from ddlm_core.sampler import sample_diffusion


def filled(
    model: Denoiser,
    noise: NoiseSchedule,
    tokens: Tensor,
    given: Tensor,
    seed: int,
    **options: Any,
) -> Tensor:
    """A template (L,) with its blanks filled by the sampler of the model: int64 (L,)."""
    if given.all():
        return tokens
    blocks, end = isinstance(model, BlockDiffusionTransformer), len(tokens)
    uniform = graph_of(model).supports_churn
    how: dict[str, Any] = {
        "num_steps": 16 if blocks else 24,
        "schedule": "cosine",
        "churn": float(uniform),
    }
    how |= {"generator": torch.Generator().manual_seed(seed)} | options
    if isinstance(model, BlockDiffusionTransformer):
        end = int((~given).nonzero().max()) + 1  # the blocks after the last blank are given
        part: dict[str, Any] = {"template": tokens[:end], "condition_mask": given[:end]}
        *_, step = denoising_blocks(model, 1, end, **part, **how)
        return torch.cat([step.tokens[0], tokens[end:]])
    part = {"template": tokens, "condition_mask": given, "device": tokens.device}
    return sample_diffusion(model, noise, 1, end, **part, **how)[0]


# %% tags=["export:unknown_lengths", "hide-input"]
from ddlm_core.evaluation import spread_times
from ddlm_core.forward import perturb_batch
from ddlm_core.objective import in_context
from ddlm_core.support.seeds import derive_seed


@torch.inference_mode()
def free_nats(
    model: Denoiser,
    noise: NoiseSchedule,
    x_0: Tensor,
    given: Tensor,
    column: Tensor,
    levels: int,
    seed: int,
) -> float:
    r"""The bound on $-\log p$ of what is not given in x_0, int64 (L,), if the rest is: nats.

    Places with the same ``column``, int64 (L,), see the same noise at the same ``seed``.
    """
    generator, graph = torch.Generator().manual_seed(seed), graph_of(model)
    t, weight = spread_times(levels, noise, generator)
    sigma_bar, sigma = noise(torch.cat([t, torch.zeros(1)]))  # the last one: reconstruction
    noisy = []
    for letter, c in zip(x_0.cpu(), column.tolist(), strict=True):
        generator.manual_seed(derive_seed(seed, "column", c))
        one = letter.expand(levels + 1, 1)
        draw = perturb_batch(
            one, sigma_bar, model.config.vocab_size, None, generator, graph.sample_prior
        )
        noisy.append(draw)
    x_t = torch.where(given, x_0, torch.cat(noisy, 1).to(x_0.device))
    clean, mask = x_0.expand_as(x_t), given.expand_as(x_t)
    parts = zip(*(v.split(32) for v in (x_t, clean, mask, sigma_bar.to(x_0.device))), strict=True)
    read = [cast("Denoiser", in_context(model, x)).denoise(y, s, m) for y, x, m, s in parts]
    log_q, sigma_bar = torch.cat(read), sigma_bar.to(x_0.device)
    loss = graph.expected_loss(log_q[:-1], sigma_bar[:-1], clean[:-1])[:, ~given].sum(1).cpu()
    last = graph.expected_reconstruction(log_q[-1:], sigma_bar[-1:], clean[-1:])[:, ~given].sum()
    return ((weight * sigma[:-1]).double() * loss).mean().item() + last.item()


# %% tags=["export:unknown_lengths", "hide-input"]
from typing import NamedTuple

from ddlm_core.reverse import has_denoiser
from ddlm_core.support.checks import check_range


class LengthChoice(NamedTuple):
    """One of N templates, chosen in proportion to the probability of what they give."""

    log_weights: Tensor  # float64 (N,), nats
    probabilities: Tensor  # float64 (N,)
    chosen: int  # index of a template
    evaluations: int  # of the network on one text, those that fill blanks not included


def choose_length(
    model: Denoiser,
    noise: NoiseSchedule,
    templates: Sequence[tuple[Tensor, Tensor]],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    levels: int = 64,
    **options: Any,
) -> LengthChoice:
    """Choose between templates that give the same letters, with blanks of different lengths between them.

    Args:
        model: a network with a denoiser, or an exact one.
        noise: its schedule.
        templates: of each its tokens, int64 (L,), and its mask, bool (L,), true where a token is given,
            as ``encode_template`` makes them; L may differ.
        temperature: T chooses in proportion to the power 1/T of the probabilities, 0 the best.
        seed: of all that is random; the same seed gives the same choice.
        levels: noise levels of each bound.
        **options: of the sampler that fills blanks (default: churned cosine steps, 24, or 16 a block).

    Raises:
        UserError: the model has no denoiser, there is no template, or an argument is out of range.
    """
    check_range(0.0, 1000.0, temperature=temperature)
    check_range(1, 100_000, levels=levels)
    check_range(1, 1000, templates=len(templates))
    if not has_denoiser(model):
        raise UserError("lengths are compared by a denoiser: this model has scores alone")
    found: list[float] = []
    columns = aligned_columns([given for _, given in templates])
    for (tokens, given), column in zip(templates, columns, strict=True):
        if len(templates) > 1:
            x_0 = filled(model, noise, tokens, given, derive_seed(seed, "fill"), **options)
            how = (column, levels, derive_seed(seed, "bound"))
            whole = free_nats(model, noise, x_0, torch.zeros_like(given), *how)
            found.append(free_nats(model, noise, x_0, given, *how) - whole)
    weights = torch.tensor(found or [0.0], dtype=torch.float64)
    best = torch.nn.functional.one_hot(weights.argmax(), len(weights)).double()
    probs = (weights.clamp(min=-1e30) / temperature).softmax(0) if temperature else best
    draw = torch.Generator().manual_seed(derive_seed(seed, "length"))
    chosen = int(probs.multinomial(1, generator=draw))
    return LengthChoice(weights, probs, chosen, 2 * (levels + 1) * len(found))


# %% [markdown]
# In a language that can be enumerated, with its true denoiser, the choice follows the language, and the wrong comparison would not:

# %% tags=["test:unknown_lengths"]
from ddlm_core.noise import GeometricNoise
from ddlm_core.tiny_world import TinyWorld


def test_lengths_come_as_often_as_the_language_has_them():
    probs = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(4)).double() ** 2
    world = TinyWorld(probs / probs.sum())  # letters 0 and 2, 1 is <PAD>
    templates = [  # 0, a blank of one or two letters, 2, and the end
        (torch.tensor([0, 1, 2, 1]), torch.tensor([True, False, True, True])),
        (torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, False, True])),
    ]
    fits = torch.stack([(world.words == t)[:, m].all(1) for t, m in templates])  # (2, W)
    exact = (fits * world.probs).sum(1)  # of what is given, whatever fills the blank
    choice = choose_length(world, GeometricNoise(), templates, levels=4000)
    torch.testing.assert_close(choice.probabilities, exact / exact.sum(), atol=0.03, rtol=0)
    texts = (fits * world.probs**2).sum(1) / exact  # how probable a text is, if a length is filled
    assert (texts / texts.sum() - exact / exact.sum()).abs().max() > 0.1  # not the same


test_lengths_come_as_often_as_the_language_has_them()

# %% [markdown]
# And with a trained network? The grammar of the stories knows the right distribution of lengths (`benchmarks/lengths.py`, means of three seeds). *R___* gives one letter of
# the name, *____* none; `4+2` is a name of four letters and a pronoun of two. The last five are blanks in *At noon, ____ lost h__ blue ball on the hill. _{1-4} ran and ran*. Each length takes
# two bounds of 64 noise levels and a reconstruction; the filling is not counted:

# %% tags=["hide-input"]
found = json.loads(files(ddlm_core).joinpath("results/length_choices.json").read_text("utf-8"))
lines = [
    "| blank | lengths | grammar | pocket-stories | evaluations for the bounds |",
    "|---|---|---|---|---|",
]
for row in found["pocket-stories"]["rows"]:
    sizes = ", ".join("+".join(some) for some in row["lengths"])
    right, ours = (", ".join(f"{p:.2f}" for p in row[key]) for key in ("exact", "model"))
    lines.append(f"| {row['name']} | {sizes} | {right} | {ours} | {row['evaluations']:.0f} |")
Markdown("\n".join(lines))

# %% [markdown]
# Where the text leaves one length only, the network knows it: the name that comes back later must have four letters, the place eleven. After *Lily* comes *She*, with
# 0.93. Where the grammar leaves a choice, the network leans to *He* in three rows, by 1.7 to 2.0 nats, and not in the last. We do not know why; a bound six nats above the entropy has room for that. So trust it where
# one length fits, and not for odds of two to one.
#
# ## One object for all of it
#
# `BlockPipeline` (folded) is the pipeline of chapter 10 for networks of either kind, with what this chapter adds as options. A text
# that is four windows long, by a model that never saw more than one:

# %% tags=["export:block_pipeline", "hide-input"]
"""A pipeline for networks of either kind."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddlm_core.animation import Animation
from ddlm_core.block_sampler import denoising_blocks, numbered
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.modern_samplers import Annealed, TopP, entropy_bound_steps
from ddlm_core.pipeline import (
    PretrainedModel,
    TextStep,
    ended_texts,
    join_steps,
    load_model,
    watched,
)
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.sampling_options import SamplingOptions, encode_template, template_characters
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.models import model_folder
from ddlm_core.support.seeds import derive_seed
from ddlm_core.tokenizer import PAD_ID
from ddlm_core.unknown_lengths import choose_length, expand_lengths

SAMPLERS = ("grid", "entropy_bound")
WRITING: dict[str, Any] = {"sampler": "grid", "entropy_bound": 0.3, "top_p": 1.0, "annealing": 1.0}
# what this chapter adds to SamplingOptions, with its defaults


def load_network(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder, of either kind; errors as :func:`load_model`."""
    try:
        blocks = "block_length" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        blocks = False  # load_model says what is wrong
    if blocks:
        return load_model(folder, BlockDiffusionTransformer, BlockDiffusionConfig)
    return load_model(folder)


# %% tags=["export:block_pipeline", "hide-input"]
def default_steps(config: DiscreteDiffusionConfig) -> int:
    """Steps of a run: 128 for a whole window, 16 for a block, 1 for a block of one token."""
    if isinstance(config, BlockDiffusionConfig):
        return 16 if config.block_length > 1 else 1
    return 128


def with_room(config: DiscreteDiffusionConfig, options: SamplingOptions) -> DiscreteDiffusionConfig:
    """The configuration with room for the text that is asked for, if the network goes on block after block."""
    if not isinstance(config, BlockDiffusionConfig) or config.padded:
        return config
    needed = len(template_characters(options.template)) if options.template else 1
    return replace(config, block_size=max(config.block_size, needed, options.seq_len or 1))


def merged(runs: list[Iterator[DenoisingStep]]) -> Iterator[tuple[DenoisingStep, ...]]:
    """The same step of several runs, until the last one has ended; one that has keeps its last step.

    Shorter texts are filled up with ``<PAD>``.
    """
    kept: list[DenoisingStep | None] = [None] * len(runs)
    while any(new := [next(run, None) for run in runs]):
        kept = [step or last for step, last in zip(new, kept, strict=True)]
        steps = [step for step in kept if step]
        longest = max(step.tokens.shape[1] for step in steps)
        yield tuple(filled_up(step, longest) for step in steps)


def filled_up(step: DenoisingStep, length: int) -> DenoisingStep:
    """The same step of texts that have ``<PAD>`` behind them, up to ``length`` tokens."""
    if missing := length - step.tokens.shape[1]:
        tokens = torch.nn.functional.pad(step.tokens, (0, missing), value=PAD_ID)
        changed = torch.nn.functional.pad(step.changed, (0, missing), value=False)
        return replace(step, tokens=tokens, changed=changed)
    return step


# %% tags=["export:block_pipeline", "hide-input"]
@dataclass(frozen=True)
class Writer:
    """A network with a sampler and its options: what writes texts that belong together."""

    model: DiscreteDiffusionTransformer
    sampler: str
    entropy_bound: float
    top_p: float
    annealing: float

    def __post_init__(self) -> None:
        check_choice(SAMPLERS, sampler=self.sampler)
        check_range(0.0, 1000.0, entropy_bound=self.entropy_bound)
        check_range(0.0, 1.0, top_p=self.top_p)
        check_range(0.001, 1000.0, annealing=self.annealing)

    def steps(self, model: Any, *where: Any, **options: Any) -> Iterator[DenoisingStep]:
        """The run of a window or of a block: as ``denoising_steps``, whose arguments these are."""
        model = Annealed(model, 1.0, self.annealing) if self.annealing != 1 else model
        model = TopP(model, self.top_p) if self.top_p < 1 else model
        if self.sampler == "grid":
            return denoising_steps(model, *where, **options)
        how = {name: v for name, v in options.items() if name not in ("schedule", "churn")}
        how |= {"bound": self.entropy_bound, "max_steps": how.pop("num_steps")}
        return entropy_bound_steps(model, *where, **how)

    def run(
        self, generators: list[torch.Generator], how: SamplingOptions
    ) -> Iterator[DenoisingStep]:
        """All steps of as many texts as there are generators; what cannot work is told at the call."""
        config, rows = self.model.config, len(generators)
        arguments = how.arguments(with_room(config, how)) | {"generator": generators}
        if isinstance(self.model, BlockDiffusionTransformer):
            stop = how.stop_at_end or config.padded  # what follows an end is padding
            return denoising_blocks(
                self.model, rows, write=self.steps, stop_at_end=stop, **arguments
            )
        return self.steps(self.model, config.noise, rows, **arguments)

    def lengths(
        self, how: SamplingOptions, templates: list[str], seed: int
    ) -> Callable[[int], SamplingOptions]:
        """The options for each text by its number: one of the templates that a ``_{2-9}`` stands for."""
        options = [replace(how, template=template) for template in templates]
        pairs = [
            encode_template(str(each.template), each.seq_len, with_room(self.model.config, each))
            for each in options
        ]
        found: list[Tensor] = []  # computed when it is first asked for

        def chosen(number: int) -> SamplingOptions:
            if not found:
                choice = choose_length(self.model, self.model.config.noise, pairs, seed=seed)
                found.append(choice.probabilities)
            draw = torch.Generator().manual_seed(derive_seed(seed, "length", number))
            return options[int(found[0].multinomial(1, generator=draw))]

        return chosen


# %% tags=["export:block_pipeline", "hide-input"]
class BlockPipeline(PretrainedModel):
    """``DiffusionPipeline`` for networks of either kind, with the samplers of chapter 11.

    What is new: ``sampler="entropy_bound"`` with its ``entropy_bound`` (nats), ``top_p``, and ``annealing``, the
    share of the temperature that is left at the end; ``_{2-9}`` in a template, a blank of 2 to 9 characters. Of a block model ``num_steps`` are those of a block (for
    ``entropy_bound``: the most), and unless its texts are padded ``seq_len`` is free.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """As ``DiffusionPipeline.from_pretrained``, block models included."""
        return cls(load_network(model_folder(source, revision)), device)

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        sampler: str = "grid",
        entropy_bound: float = 0.3,
        top_p: float = 1.0,
        annealing: float = 1.0,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        **options: Any,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each step; all else as :meth:`generate`."""
        check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
        seed = secrets.randbits(32) if seed is None else seed
        check_range(0, 2**63, seed=seed, first=first)
        how = SamplingOptions(**{"num_steps": default_steps(self.config)} | options)
        writer = Writer(self.model, sampler, entropy_bound, top_p, annealing)
        generators = sample_generators(seed, num_samples, first)
        templates = expand_lengths(how.template) if how.template is not None else []
        if len(templates) == 1:
            how = replace(how, template=templates[0])  # a range of one length is none
        if len(templates) > 1:
            choose = writer.lengths(how, templates, seed)
            parts = self._unknown(writer, generators, choose, first)
        else:
            rows = 1 if self.device.type == "cpu" else batch_size
            batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
            parts = merged([writer.run(batch, how) for batch in batches])
        joined = (join_steps(part, self.tokenizer) for part in parts)
        steps = numbered(joined, self._expected(vars(how)))
        return ended_texts(steps, self.tokenizer) if how.stop_at_end else steps

    @staticmethod
    def _unknown(
        writer: Writer,
        generators: list[torch.Generator],
        choose: Callable[[int], SamplingOptions],
        first: int,
    ) -> Iterator[tuple[DenoisingStep, ...]]:
        """The steps of texts with blanks of unknown length: one after the other, for each has its own length."""
        yield from merged([writer.run([g], choose(first + i)) for i, g in enumerate(generators)])

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The options are those of ``DiffusionPipeline.generate``, and those of the class.

        Raises:
            UserError: what was asked for cannot work; one line says why, before any work is done.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, live in a terminal or a notebook; ``str()`` of what it returns is the text."""
        return watched(self.generate_streaming(**options), self._expected(options), self.tokenizer)

    def _expected(self, options: dict[str, Any]) -> int:
        """The number of the last step, if no text ends early."""
        steps = options.get("num_steps") or default_steps(self.config)
        length, template = options.get("seq_len"), options.get("template")
        if template and not length and not self.config.padded:  # it is the whole text
            length = len(template_characters(expand_lengths(template)[-1]))
        length = length or self.config.block_size
        block = getattr(self.config, "block_length", length)
        return -(-length // block) * (steps + 1) - 1

    __call__ = generate


# %%
import os

from ddlm_core.block_pipeline import BlockPipeline

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the chapter runs
writer = BlockPipeline.from_pretrained("tinystories-blocks")
text = writer.generate(seq_len=64 if smoke else 640, seed=1)[0]
print(text)

# %% [markdown]
# It has words, and hardly a sentence: that is what 1.65 bits per character look like.
#
# On the command line: `ddlm-generate --model tinystories-blocks --seq-len 1500 --visualize`, and one block after the other resolves. Here the button runs the model in your
# browser.

# %% tags=["hide-input"]
from ddlm_core import Live
from ddlm_core.animation import Animation, make_frames

steps = [*writer.generate_streaming(num_steps=2 if smoke else 16, seed=0)]
frames = make_frames([step.tokens[0] for step in steps], [step.sigma_bar for step in steps])
Live("sample", stored=Animation(frames, writer.tokenizer), model="tinystories-blocks", steps=16)

# %% [markdown]
# ## Side by side
#
# Three models write a story of chapter 2 on one clock, in the seconds that it took here: letter by letter, in blocks of 20, and a whole window at once. They have the same
# number of weights. The command is `ddlm-generate --compare pocket-autoregressive pocket-blocks pocket-stories`.


# %% tags=["export:comparison", "hide-input"]
"""Several models that write on one clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddlm_core.animation import Animation, Frame, characters, iter_frames
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.support.drawing import PAD_MARK, Picture
from ddlm_core.support.errors import UserError


class TimedRun(NamedTuple):
    """A text while it was written, and when."""

    name: str
    frames: list[Frame]  # of the random start and each step
    seconds: list[float]  # since the beginning, of each frame


def timed_run(name: str, pipeline: BlockPipeline, **options: Any) -> TimedRun:
    """Let a model write one text, with the options of ``generate``, and look at the clock after each step."""
    frames, seconds, start = [], [], time.perf_counter()
    steps = pipeline.generate_streaming(**options)
    for frame in iter_frames((step.tokens[0], step.sigma_bar) for step in steps):
        frames.append(frame)
        seconds.append(time.perf_counter() - start)
    return TimedRun(name, frames, seconds)


# %% tags=["export:comparison", "hide-input"]
@dataclass(frozen=True, repr=False)
class Comparison(Animation):
    """Several runs as one animation; see :func:`side_by_side`."""

    panels: Sequence[Picture] = ()

    def __repr__(self) -> str:
        return f"Comparison({len(self.panels)} pictures)"

    def pictures(self) -> list[Picture]:
        """All texts under each other, each with its name, its clock and its steps."""
        return list(self.panels)


def side_by_side(runs: Sequence[TimedRun], pipeline: BlockPipeline, count: int = 96) -> Comparison:
    """Runs of models with one tokenizer, that of ``pipeline``, on one clock: ``count`` pictures.

    Each text stands under its name, the seconds it has taken, and its steps. Of another kind than
    :func:`timed_run` gives, or none, they are a ``UserError``.
    """
    if not runs or count < 2:
        raise UserError("side by side needs a run and two pictures")
    tokenizer, pictures, before = pipeline.tokenizer, [], ""
    for tick in range(count):
        now = max(run.seconds[-1] for run in runs) * tick / (count - 1)
        parts = []
        for run in runs:
            here = max(sum(second <= now for second in run.seconds) - 1, 0)
            spent, last = min(now, run.seconds[-1]), len(run.frames) - 1
            head = f"{run.name}: {spent:5.2f} s, step {here:{len(str(last))}} of {last}"
            marks = characters(run.frames[here].tokens, tokenizer).replace(PAD_MARK, " ")
            parts.append(f"{head}\n{marks}")
        whole = "\n\n".join(parts)
        changed = [i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b]
        pictures.append(Picture(whole, whole, 0.0, tuple(changed)))
        before = whole
    return Comparison(
        runs[0].frames, tokenizer, "Side by side", "ddlm-side-by-side", panels=pictures
    )


# %%
names = ("pocket-autoregressive", "pocket-blocks", "pocket-stories")
models = {name: BlockPipeline.from_pretrained(name, device="cpu") for name in names}
steps = {"pocket-autoregressive": 1, "pocket-blocks": 16, "pocket-stories": 64}
runs = [
    timed_run(name, model, num_steps=2 if smoke else steps[name], seed=1)
    for name, model in models.items()
]
side_by_side(runs, models["pocket-blocks"])

# %% [markdown]
# ## Where DiffusionGemma differs
#
# DiffusionGemma is what this chapter builds, some 16,000 times as large. From its public documentation
# ([Google](https://ai.google.dev/gemma/docs/diffusiongemma/explained), [Transformers](https://huggingface.co/docs/transformers/model_doc/diffusion_gemma),
# [KerasHub](https://keras.io/keras_hub/api/models/diffusion_gemma/diffusion_gemma_block_diffusion_lm/),
# [SGLang](https://docs.sglang.io/cookbook/autoregressive/Google/DiffusionGemma.md)):
#
# | | DiffusionGemma 26B-A4B | `tinystories-blocks` |
# |---|---|---|
# | noise | uniform | uniform |
# | token | a subword | a character |
# | block ("canvas") | 256 tokens | 16 tokens |
# | clean past | read by a causal encoder into a KV cache | read by the left-to-right stack, kept |
# | the block itself | bidirectional attention, a place sees its own token | hollow: a place does not see its own letter |
# | weights | 26 billion, 4 billion of them at work for a token (mixture of experts) | 1.6 million |
# | made from | an autoregressive model, Gemma 4 | nothing: trained from random weights |
# | steps for a block | at most 48, fewer once it is stable and sure | 16, or as many as `entropy_bound` takes |
# | sampler | entropy-bound acceptance, the rest drawn anew | a time grid with churn, or the same |
# | temperature | falls from 0.8 to 0.4 during a block | 1 |
# | self-conditioning | yes: the last guess goes in with the noisy block | no |
# | likelihood | not what it is made for | bounded, in nats, with an interval |
#
# ## Change it safely
#
# Let a noisy place see one clean place more: in `block_masks`, replace `<= start` by `<= start + 1`. When a text is written nothing
# changes, because that clean place does not exist yet. In training it does, and it has read the first letter of the block:
# `test_each_place_sees_its_block_and_the_past` fails, and `test_with_and_without_the_kept_past_the_same_text`, too. The command: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** How many evaluations does a text of 1,000 characters take, in blocks of 16 with 16 steps each, letter by letter, and by SEDD in
# seven separate windows of 160 with 64 steps each? (Expected: 1,008, 1,000 and 448. But where
# many texts are written at once an evaluation of one letter is the cheapest, and that of a window the dearest.)

# %% tags=["solution", "hide-input"]
import math

counts = [math.ceil(1000 / length) * steps for length, steps in ((16, 16), (1, 1), (160, 64))]
assert counts == [1008, 1000, 448]
counts

# %% [markdown]
# **2.** In the world of three-letter words at the beginning, how much of the entropy is in the first block of one, of two, of three letters? (Expected: it grows, and
# the rest is what later blocks cost given the past: the chain rule.)

# %% tags=["solution", "hide-input"]
table = two_letter_world().probs.reshape(2, 2, 2)
parts = [table.sum((1, 2)), table.sum(2).flatten(), table.flatten()]
nats = [-(p * p.log()).sum().item() for p in parts]
assert sorted(nats) == nats and abs(nats[-1] - 1.82174) < 1e-5
[round(value, 3) for value in nats]

# %% [markdown]
# ## Summary
#
# The chain rule over blocks, and the bound of chapter 5 for each: one network between autoregressive and SEDD, with one knob. Of the three walls one is gone: a text has any length. Two are lower: the bound is 20.2 nats
# in place of 25.3, and letter by letter still learns faster.
# More steps bring the distribution, churn where words can turn into each other one letter at a time; temperature, top-p and acceptance change it, acceptance most of all.
#
# | exported name | meaning |
# |---|---|
# | `BlockDiffusionConfig`, `BlockDiffusionTransformer` | a configuration with a `block_length`; the network of chapter 6 that reads clean text, too |
# | `block_masks`, `BlockView` | what a place sees; that network after reading: a denoiser for what follows |
# | `make_config`, `make_network` | of either kind, by whether there is a `block_length` |
# | `denoising_blocks`, `BlockWriter`, `context_start` | block after block |
# | `TopP`, `Annealed`, `accepting_probs`, `entropy_bound_steps` | samplers of today |
# | `expand_lengths`, `choose_length` | blanks of unknown length |
# | `BlockPipeline`, `load_network`, `default_steps` | one object for networks of either kind |
# | `side_by_side`, `timed_run`, `Comparison` | several models on one clock |
#
# ## Where this stands in the field
#
# Diffusion in blocks was [SSD-LM](https://arxiv.org/abs/2210.17432)'s, its likelihood and one-pass training are
# [BD3-LM](https://arxiv.org/abs/2503.09573)'s, with masks and a network that sees both rows at once; hollow and with uniform noise it is ours. Large models that write so:
# [DiffusionGemma](https://huggingface.co/docs/transformers/model_doc/diffusion_gemma), and with masks
# [Fast-dLLM v2](https://arxiv.org/abs/2509.26328) and [SDAR](https://arxiv.org/abs/2510.06303), which are made from autoregressive models, too.
#
# Next: [appendix A](A_absorbing.ipynb) turns the noise into masks, [appendix B](B_using.ipynb) is about using it all.
