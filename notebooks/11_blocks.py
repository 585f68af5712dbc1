# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From SEDD to today: block diffusion

# %% tags=["export"]
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

    ``places``, int64 (n,), are consecutive. Clean states are those of the places before a block
    and of its first place, which has read what comes before it; the others are those of noisy places of the same
    block, up to its own and from its own on.
    """
    start = (places // block_length * block_length)[:, None]
    clean = (torch.arange(read, device=places.device) <= start) & (start > 0)
    same, before = start == start.T, places[None] <= places[:, None]
    return clean, same & before, same & before.T


# %% tags=["export"]
from typing import NamedTuple

from ddlm_core.model import Block


class Kept(NamedTuple):
    """What a block of the network keeps of places it has read: M of them."""

    inputs: tuple[
        Tensor, ...
    ]  # of its two convolutions, (B, M, n_embd) each; none in a merge block
    keys: Tensor  # (B, heads, M, head_size)
    values: Tensor  # (B, heads, M, head_size)


def conv_after(x: Tensor, weights: Tensor, room: Tensor, clean: Tensor | None) -> Tensor:
    """``causal_conv`` of chapter 6 at consecutive places, which goes on in the clean text before a block.

    Position i of x (B, n, n_embd) has ``room[i]``, int64, positions before it in its block; what lies further
    back is ``clean`` (B, n, conv_size, n_embd), one to conv_size back, or zeros.
    """
    total = x
    for k, weight in enumerate(weights):
        shifted = nn.functional.pad(x, (0, 0, k + 1, 0))[:, : x.shape[1]]
        before = (
            torch.zeros((), dtype=x.dtype, device=x.device) if clean is None else clean[:, :, k]
        )
        total = total + weight * torch.where((room > k)[:, None], shifted, before)
    return total


def look_back(clean: Tensor, places: Tensor, size: int) -> Tensor:
    """From clean (B, M, n_embd) what lies 1 to ``size`` back of the places (n,): (B, n, size, n_embd)."""
    back = places[:, None] - torch.arange(1, size + 1, device=places.device)  # (n, size)
    return clean[:, back.clamp(0, clean.shape[1] - 1)] * (back >= 0)[..., None]


# %% tags=["export"]
from torch import nn


def block_layer(
    block: Block,
    x: Tensor,
    context: Tensor | None,
    cond: Tensor,
    angles: Tensor,
    attn_mask: Tensor,
    room: Tensor,
    places: Tensor | None = None,
    past: Kept | None = None,
) -> tuple[Tensor, Kept]:
    """``Block.layer`` of chapter 6 with a past: the new states (B, n, n_embd), and what is kept of them."""
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = block.modulation(cond)

    def mixed(y: Tensor, which: int) -> Tensor:
        if not block.conv:
            return y
        size = len(block.conv[which])
        clean = None if past is None else look_back(past.inputs[which], places, size)
        return conv_after(y, block.conv[which], room, clean)

    first = modulate(x, shift_a, scale_a)
    y = mixed(first, 0)
    source = y if context is None else modulate(context, shift_a, scale_a)
    tables = source.shape[1] // len(angles)
    k, v = block.attention.keys_values(source, angles.repeat(tables, 1))
    kept_k, kept_v = k, v
    if past is not None:
        k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
    x = x + gate_a * block.dropout(block.attention.attend(y, k, v, angles, attn_mask))
    second = modulate(x, shift_f, scale_f)
    x = x + gate_f * block.dropout(block.feed_forward(mixed(second, 1)))
    return x, Kept((first, second) if block.conv else (), kept_k, kept_v)


# %% tags=["export"]
class Past(NamedTuple):
    """What the network keeps of a clean text: as many places as it has letters, and one more."""

    left: Tensor  # (B, M, n_embd): the letter before each place
    layers: list[Kept]  # of each left-to-right block, then of each merge block


# %% tags=["export"]
from typing import cast

from ddlm_core.graph import Graph
from ddlm_core.model import DiscreteDiffusionTransformer, modulate, neighbors, rope_angles
from ddlm_core.support.checks import check_input


class BlockDiffusionTransformer(DiscreteDiffusionTransformer):
    """The network of chapter 6, with the same weights, whose noisy blocks read the clean text before them."""

    config: BlockDiffusionConfig

    @property
    def _depth(self) -> int:
        return (len(self.blocks) - 1) // 2

    def _angles(self, places: Tensor) -> Tensor:
        config, length = self.config, int(self.config.block_size)
        return rope_angles(length, config.n_embd // config.n_head, places.device)[places]

    def read(self, tokens: Tensor, count: int) -> Past:
        """The past of places 0 to ``count`` - 1 of a clean text, int64 (B, S): S letters fill S + 1 places."""
        places = torch.arange(count, device=tokens.device)
        left = nn.functional.pad(self.embedding(tokens), (0, 0, 1, 0))[:, :count]
        cond = self.noise_embedding(left.new_zeros(len(tokens)))
        causal = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        x, angles, layers = left + self.position_embedding[:count], self._angles(places), []
        for block in self._stack(0):
            x, kept = block_layer(block, x, None, cond, angles, causal, places)
            layers.append(kept)
        for block in self._stack(2):
            shift, scale, *_ = block.modulation(cond)
            layers.append(Kept((), *block.attention.keys_values(modulate(x, shift, scale), angles)))
        return Past(left, layers)

    def _stack(self, which: int) -> list[Block]:
        """The blocks of the left-to-right (0), right-to-left (1) or merge (2) stack."""
        cuts = (0, self._depth, 2 * self._depth, len(self.blocks))
        return cast("list[Block]", list(self.blocks[cuts[which] : cuts[which + 1]]))

    def given(self, x_0: Tensor) -> "BlockView":
        """The network on all blocks of windows at once, each with its past: for training and for the bound."""
        places = torch.arange(x_0.shape[1], device=x_0.device)
        last = (x_0.shape[1] - 1) // self.config.block_length * self.config.block_length
        return BlockView(self, self.read(x_0[:, :last], last + 1), places)

    def after(self, tokens: Tensor) -> "BlockView":
        """The network on the block that follows a clean text, int64 (B, S): whole blocks, or none."""
        start = tokens.shape[1]
        end = min(start + self.config.block_length, self.config.block_size)
        places = torch.arange(start, end, device=tokens.device)
        return BlockView(self, self.read(tokens, start + 1), places)

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
            right, _ = block_layer(block, right, None, cond, angles, mask, behind_room)
        right = right.flip(1)
        context, mask = torch.cat([left, right], 1), torch.cat([clean, before, behind], 1)
        merge = left + right
        for block in self._stack(2):
            merge, _ = block_layer(
                block, merge, context, cond, angles, mask, room, None, next(kept)
            )
        return merge, left, right, cond


# %% tags=["export"]
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


# %% tags=["export"]
from typing import Any


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
# ## Writing, block after block

# %% tags=["export:block_sampler"]
"""Block after block: texts of any length."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps
from ddlm_core.sampling_options import cut_at_end
from ddlm_core.support.checks import check_range
from ddlm_core.tokenizer import PAD_ID


def context_start(written: int, block_length: int, block_size: int) -> int:
    """The first token that the block after ``written`` tokens, all whole blocks, is given.

    What has been read grows until it fills the window with that block; then half of it is forgotten.
    """
    most = max(block_size // block_length - 1, 0)  # whole blocks that may be read
    forget = max(1, (most + 1) // 2)  # at once
    return -(-max(0, written // block_length - most) // forget) * forget * block_length


def numbered(steps: Iterator[DenoisingStep], expected: int) -> Iterator[DenoisingStep]:
    """The same steps, counted; ``expected``, the number of the last one, is mended where a run ends early."""
    before, index = None, -1
    for index, step in enumerate(steps):
        if before is not None:
            yield replace(before, index=index - 1, num_steps=max(expected, index))
        before = step
    if before is not None:
        yield replace(before, index=index, num_steps=index)


# %% tags=["export:block_sampler"]
@dataclass(frozen=True)
class BlockWriter:
    """How one block after the other is written: a network, a sampler and its options."""

    model: BlockDiffusionTransformer
    write: Callable[..., Iterator[DenoisingStep]]  # such as denoising_steps
    options: dict[str, Any]
    template: Tensor | None = None  # int64 (L,), as in denoising_steps
    condition_mask: Tensor | None = None  # bool (L,)

    def begin(self, tokens: Tensor, start: int) -> Iterator[DenoisingStep]:
        """The run for the block from ``start`` on, after the text before it in ``tokens`` (B, L)."""
        config, end = self.model.config, start + self.model.config.block_length
        context = tokens[:, context_start(start, config.block_length, config.block_size) : start]
        given: dict[str, Tensor] = {}
        if self.template is not None and self.condition_mask is not None:
            given["template"] = self.template[start:end]
            given["condition_mask"] = self.condition_mask[start:end]
        size, view = len(tokens[0, start:end]), self.model.after(context)
        return self.write(view, config.noise, len(tokens), size, **given, **self.options)

    def run(
        self, tokens: Tensor, steps: Iterator[DenoisingStep], stop_at_end: bool
    ) -> Iterator[DenoisingStep]:
        """All steps of all blocks of ``tokens`` (B, L), from those of the first block on."""
        length = self.model.config.block_length
        for start in range(0, tokens.shape[1], length):
            if start and stop_at_end and (cut_at_end(tokens[:, :start])[:, -1] == PAD_ID).all():
                return
            for step in self.begin(tokens, start) if start else steps:
                changed = torch.zeros_like(tokens, dtype=torch.bool)
                changed[:, start : start + length] = step.changed
                tokens = tokens.clone()
                tokens[:, start : start + length] = step.tokens
                yield replace(step, tokens=tokens, changed=changed)


# %% tags=["export:block_sampler"]
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
    run = writer.run(tokens, writer.begin(tokens, 0), stop_at_end)
    blocks = math.ceil(seq_len / model.config.block_length)
    return numbered(run, blocks * (options.get("num_steps", 128) + 1) - 1)


# %% [markdown]
# ## Samplers of today
#
# Chapter 7 has one sampler with a few knobs. Papers since then have many, and all of them fit into its loop. First the
# ones that change what the network *says*: they take a denoiser and are a denoiser. *Top-p*
# ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)) keeps the most probable letters that
# together have a probability of at least $p$, and *annealing* lets the temperature fall with the noise.

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


# %% tags=["export:modern_samplers"]
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
# sort the positions by entropy and *accept* as many as keep it within a bound. All others become random letters, and
# the share of them is the fraction $f$, from which the noise level of the next evaluation follows. It ends when all are accepted.

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


def test_accepted_letters_are_nearly_independent():
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


test_accepted_letters_are_nearly_independent()

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
# On the tiny world of chapter 7 this has an exact answer, here the total variation between what a sampler writes and the
# language. *Churn* is in the table under its other names: to go down too far and back up by fresh noise is a *predictor–corrector* step,
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
# letter at a time. In a *strict* world, which has *ab*, *bc* and *ca* and nothing in between (0.5, 0.3, 0.2), it tends to something else: a full step from *ab* to
# *bc* changes two letters at once, drawn independently, however small the noise is, and the favorite gains. **Temperature and
# top-p** change $q$, so no number of steps helps.
#
# **Entropy-bound acceptance** has no limit to converge to. With a bound of 1 it accepts all too soon. With 0.4 it writes *ab* in 82 % of all
# cases, where 40 % is right. The bound holds: in each step the accepted letters are nearly independent. The bias is in *what is
# accepted*. Only when it holds *ab* is the network ever this sure; *bc* and *ca* are resampled, until they happen to become *ab*. And with 0.3 it is never sure
# enough, because one word in ten is a rare one, and goes on until its 128 steps are used up.
#
# In real text, with 160 letters of which most are sure, the same happens where the text is free to choose. The network of the
# book writes 200 stories with each sampler. How far are their first two words from those of the grammar, whose
# probabilities we know?

# %% tags=["hide-input"]
import json
from importlib.resources import files

from ddlm_core.evaluation import wilson

RESULTS = files("ddlm_core") / "results"
table = json.loads((RESULTS / "samplers.json").read_text(encoding="utf-8"))
print(f"{'':40}evaluations   flawless (95 %)          openings   words, nats   distinct")
for row in table["samplers"]:
    share = f"{wilson(row['flawless'], row['samples']):.3f}"
    figures = f"{row['evaluations']:11.1f}   {share:23}{row['openings_distance']:10.3f}"
    print(f"{row['name']:40}{figures}{row['word_entropy']:14.3f}{row['distinct']:11}")
true = table["stories"]
spread = f"{true['openings_distance']:.3f} ± {true['openings_deviation']:.3f}"
print(
    f"{'true stories':40}{'':14}{'1':23}{spread:>18}{true['word_entropy']:6.3f}{true['distinct']:11}"
)

# %% [markdown]
# The column *openings* is the total variation. It would be about 0.29 for 200 true stories, too, because 200 are few (mean and standard deviation over 100 seeds), so
# what matters is how far a row lies above that. Steps, with or without churn, are within two standard deviations. Entropy-bound acceptance with a bound of 0.1 writes more flawless stories
# than 24 churned steps do, but with a distance of 0.50, eleven standard deviations off: it begins its stories in the same few ways. A larger bound saves
# evaluations and costs flawless stories; the distance shrinks, and stays too large. Top-p does not make the stories of churned steps any better here.
#
# DiffusionGemma's own settings are a bound of 0.1 and a temperature that falls from 0.8 to 0.4, on at most 48 evaluations, and it also stops when its most
# probable letters stay the same: the row that anneals is close to it. If one good answer is wanted, to prefer the favorite may do no
# harm. If the *distribution* matters (text to train on, a probability to estimate, many different stories), look at diversity before you believe a share of flawless texts.
#
# **Not built: self-conditioning** ([Chen et al. 2022](https://arxiv.org/abs/2208.04202)) and *loopholing*, which hand the
# network what it said in the step before. What it said of the *neighbors* then depended on the letter at this position, so
# $q_i$ would know its own letter by a detour, and Bayes' rule would count that letter twice.

# %% [markdown]
# ## Blanks of unknown length

# %% [markdown]
# ## One object for all of it

# %% tags=["export:block_pipeline"]
"""A pipeline for networks of either kind."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddlm_core.animation import Animation
from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import (
    PretrainedModel,
    TextStep,
    ended_texts,
    join_steps,
    load_model,
    watched,
)
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.sampling_options import SamplingOptions, template_characters
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.models import model_folder

SAMPLERS = ("grid", "entropy_bound")


def load_network(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder, of either kind; errors as :func:`load_model`."""
    try:
        blocks = "block_length" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        blocks = False  # load_model says what is wrong
    if blocks:
        return load_model(folder, BlockDiffusionTransformer, BlockDiffusionConfig)
    return load_model(folder)


def default_steps(config: DiscreteDiffusionConfig) -> int:
    """Steps of a run: 128 for a whole window, 16 for a block, 1 for a block of one token."""
    if isinstance(config, BlockDiffusionConfig):
        return 16 if config.block_length > 1 else 1
    return 128


def with_room(config: DiscreteDiffusionConfig, options: SamplingOptions) -> DiscreteDiffusionConfig:
    """The configuration with room for the text that is asked for, if the network writes in blocks that go on."""
    if not isinstance(config, BlockDiffusionConfig) or config.padded:
        return config
    needed = len(template_characters(options.template)) if options.template else 1
    return replace(config, block_size=max(config.block_size, needed, options.seq_len or 1))


# %% tags=["export:block_pipeline"]
def merged(runs: list[Iterator[DenoisingStep]]) -> Iterator[tuple[DenoisingStep, ...]]:
    """The same step of several runs, until the last one has ended; one that has keeps its last step."""
    kept: list[DenoisingStep | None] = [None] * len(runs)
    while True:
        new = [next(run, None) for run in runs]
        if not any(new):
            return
        kept = [step or last for step, last in zip(new, kept, strict=True)]
        yield tuple(step for step in kept if step)


# %% tags=["export:block_pipeline"]
class BlockPipeline(PretrainedModel):
    """:class:`DiffusionPipeline` for networks of either kind, with the samplers of chapter 11.

    Of a block model ``num_steps`` are those of a block, and unless its texts are padded ``seq_len`` is free.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """As :meth:`PretrainedModel.from_pretrained`, block models included."""
        return cls(load_network(model_folder(source, revision)), device)

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        sampler: str = "grid",
        entropy_bound: float = 0.3,
        top_p: float = 1.0,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        **options: Any,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each step; all else as :meth:`generate`."""
        check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
        check_range(0, 2**63, first=first, **{} if seed is None else {"seed": seed})
        check_choice(SAMPLERS, sampler=sampler)
        how = SamplingOptions(**{"num_steps": default_steps(self.config)} | options)
        seed = secrets.randbits(32) if seed is None else seed
        generators = sample_generators(seed, num_samples, first)
        rows = 1 if self.device.type == "cpu" else batch_size
        batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
        runs = [self._run(batch, how) for batch in batches]
        steps = (join_steps(parts, self.tokenizer) for parts in merged(runs))
        return ended_texts(steps, self.tokenizer) if how.stop_at_end else steps

    def _run(
        self, generators: list[torch.Generator], how: SamplingOptions
    ) -> Iterator[DenoisingStep]:
        arguments = how.arguments(with_room(self.config, how)) | {"generator": generators}
        if isinstance(self.model, BlockDiffusionTransformer):
            return denoising_blocks(
                self.model, len(generators), stop_at_end=how.stop_at_end, **arguments
            )
        return denoising_steps(self.model, self.config.noise, len(generators), **arguments)

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The options are those of :meth:`DiffusionPipeline.generate`.

        Raises:
            UserError: what was asked for cannot work; one line says why, before any work is done.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, live in a terminal or a notebook; ``str()`` of what it returns is the text."""
        steps = self.generate_streaming(**options)
        return watched(steps, 1, self.tokenizer)

    __call__ = generate


# %% [markdown]
# ## Side by side

# %% [markdown]
# ## Where DiffusionGemma differs
