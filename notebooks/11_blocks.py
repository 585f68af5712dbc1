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
# **How probable is a length?** Let $g$ be what is given, in the places where a length $n$ puts it, and $y$ what fills the blanks. Then
#
# $$p(n \mid g) \propto p(g_n) = \sum_y p(g_n, y), \qquad p(g_n) = \frac{p(g_n, y)}{p(y \mid g_n)} \text{ for any } y.$$
#
# So to fill each length and compare how probable the *texts* are, $p(g_n, y)$, is wrong: it favors lengths with few words, which share their probability among few. The right-hand equation
# mends it (the candidate's formula: [Besag 1989](https://doi.org/10.1093/biomet/76.1.183)); the model bounds numerator and denominator, the latter with noise in the blanks alone. But to fill and bound every length
# is slow. A model that can be *given* letters offers a shortcut: the chain rule over the given letters alone,
#
# $$\log p(g_n) = \sum_i \log q(g_{n,i} \mid \text{the given letters before it},\ \text{pure noise in all other places}).$$
#
# The blanks stay pure noise, and nothing is filled or summed. With the Bayes-optimal denoiser it is exact. With a trained one it is what the network believes when it is told letter after letter. Each letter
# takes an evaluation; those before the first blank of unknown length lie in the same places for all lengths, so they cancel.
#
# Two tricks make it cheap. The same given letter sees the same noise in all lengths, so that some of the chance cancels. And the sums only fall: we go on with the most probable length, and give up those
# that have fallen behind a finished one by a factor of a million.

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


def common_start(masks: Sequence[Tensor]) -> int:
    """The first place at which masks differ, or where the shortest one ends."""
    shortest = min(map(len, masks))
    differ = torch.stack([mask[:shortest] != masks[0][:shortest] for mask in masks]).any(0)
    return int(differ.nonzero()[0]) if differ.any() else shortest


# %% [markdown]
# A network of blocks reads the clean text before a block, blanks included. For it, they must be filled first, and the sum over the given letters of each block, given that past, is the log of
# $p(g_n, y)/r(y)$, where $r(y)$ is how probable its sampler fills them so: an estimate of $p(g_n)$ by importance sampling with one fill. The given letters of all blocks are told at once.

# %% tags=["export:unknown_lengths"]
from collections.abc import Iterator

from ddlm_core.graph import Denoiser, graph_of
from ddlm_core.noise import GeometricNoise, NoiseSchedule
from ddlm_core.objective import in_context
from ddlm_core.tokenizer import PAD_ID

ROWS = 8  # evaluations at once


def told_at(tokens: Tensor, given: Tensor, block_length: int) -> Tensor:
    """The step, int64 (L,), at which each place is told: its place in its block.

    But what follows two ``<PAD>`` that end a text is certain, and told together with the second one.
    """
    place = torch.arange(len(tokens), device=tokens.device)
    ended = int(((tokens == PAD_ID) & given).flip(0).cumprod(0).sum())
    step = place.clamp(max=len(tokens) - ended + 1) - place // block_length * block_length
    return step.clamp(min=0)


@torch.inference_mode()
def told_letters(
    model: Denoiser,
    noise: NoiseSchedule,
    tokens: Tensor,
    given: Tensor,
    start: int,
    pure: Tensor,
) -> Iterator[tuple[float, int]]:
    """The log-probability of the given letters from ``start`` on, told one by one, in parts.

    Each part comes with its number of evaluations.

    ``tokens``, int64, and ``given``, bool, are (L,); row i of ``pure``, (L, L), is the noise around letter i.
    """
    step = told_at(tokens, given, getattr(model.config, "block_length", len(tokens)))
    asked = given & (torch.arange(len(tokens), device=tokens.device) >= start)
    level = noise.sigma_bar(torch.ones(1, device=tokens.device))
    for steps in step[asked].unique().split(ROWS):
        now = asked & (step == steps[:, None])  # (n, L): asked for
        told = given & (step < steps[:, None])
        x_t = torch.where(told, tokens, pure[now.int().argmax(1)])
        clean = tokens.expand_as(x_t)
        log_q = cast("Denoiser", in_context(model, clean)).denoise(
            x_t, level.expand(len(x_t)), told
        )
        yield log_q.gather(-1, clean[..., None])[..., 0][now].double().sum().item(), len(x_t)


# %% tags=["export:unknown_lengths", "hide-input"]
BEHIND, NEAR = 14.0, 7.0  # nats: factors of a million and a thousand


def race(runs: Sequence[Iterator[tuple[float, int]]], behind: float) -> tuple[list[float], int]:
    """Sums of the first entries of ``runs``, which only fall, and the total of the second ones.

    The run with the largest sum goes on; one that is ``behind`` a finished one stops where it is.
    """
    sums, finished, total = [0.0] * len(runs), set[int](), 0
    while True:
        least = max((sums[n] for n in finished), default=-math.inf) - behind
        going = [n for n in range(len(runs)) if n not in finished and sums[n] >= least]
        if not going:
            return sums, total
        first = max(going, key=lambda n: sums[n])
        if (part := next(runs[first], None)) is None:
            finished.add(first)
        else:
            sums[first], total = sums[first] + part[0], total + part[1]


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


# %% [markdown]
# With a trained network, letters told in pure noise tell at once which lengths are possible. But between two that are, the network at pure noise is coarse: it does not see that after *Lily* comes *She*. So those
# within a factor of a thousand of the best are filled, and compared by the candidate's formula with bounds: $-\log p(g_n) \approx$ the bound on the whole text minus the bound on what fills its blanks.
# Both are only bounds, and the difference of two is neither an upper nor a lower one.

# %% tags=["export:unknown_lengths", "hide-input"]
from ddlm_core.evaluation import spread_times
from ddlm_core.forward import perturb_batch


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


# %% tags=["export:unknown_lengths"]
from typing import Any, NamedTuple

from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.reverse import has_denoiser
from ddlm_core.sampler import sample_diffusion
from ddlm_core.support.checks import check_range
from ddlm_core.support.seeds import derive_seed


class LengthChoice(NamedTuple):
    """One of N templates, chosen in proportion to the probability of what they give."""

    log_weights: Tensor  # float64 (N,), nats, up to a constant; of one given up, an upper limit
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
            as ``encode_template`` makes them; L may differ. They are compared as whole texts.
        temperature: T chooses in proportion to the power 1/T of the probabilities, 0 the best.
        seed: of all that is random; the same seed gives the same choice.
        levels: noise levels of each bound; with 0 what is told in pure noise decides alone.
        **options: of the sampler that fills blanks (default: churned cosine steps, 24, or 16 a block).

    Raises:
        UserError: the model has no denoiser, there is no template, or an argument is out of range.
    """
    check_range(0.0, 1000.0, temperature=temperature)
    check_range(0, 100_000, levels=levels)
    check_range(1, 1000, templates=len(templates))
    if not has_denoiser(model):
        raise UserError("lengths are compared by a denoiser: this model has scores alone")
    weights, evaluations = _told_weights(model, noise, templates, seed, options)
    near = (weights >= weights.max() - NEAR).nonzero()[:, 0].tolist()
    if levels and evaluations and len(near) > 1:
        columns, bounds = aligned_columns([given for _, given in templates]), []
        for n in near:
            tokens, given = templates[n]
            x_0 = filled(model, noise, tokens, given, derive_seed(seed, "fill"), **options)
            how = (columns[n], levels, derive_seed(seed, "bound"))
            whole = free_nats(model, noise, x_0, torch.zeros_like(given), *how)
            bounds.append(free_nats(model, noise, x_0, given, *how) - whole)
        found = torch.tensor(bounds, dtype=torch.float64)
        weights = weights - weights[near].logsumexp(0) + found.logsumexp(0)
        weights[near] = found
        evaluations += 2 * (levels + 1) * len(near)
    best = torch.nn.functional.one_hot(weights.argmax(), len(weights)).double()
    probs = (weights.clamp(min=-1e30) / temperature).softmax(0) if temperature else best
    draw = torch.Generator().manual_seed(derive_seed(seed, "length"))
    return LengthChoice(weights, probs, int(probs.multinomial(1, generator=draw)), evaluations)


def _told_weights(
    model: Denoiser,
    noise: NoiseSchedule,
    templates: Sequence[tuple[Tensor, Tensor]],
    seed: int,
    options: dict[str, Any],
) -> tuple[Tensor, int]:
    """Log-probabilities of what is given, (N,), told in pure noise, and the evaluations."""
    masks = [given for _, given in templates]
    start, columns = common_start(masks), aligned_columns(masks)
    texts = [tokens for tokens, _ in templates]
    if isinstance(model, BlockDiffusionTransformer) and len(templates) > 1:
        start = min(start, int(masks[0].int().argmin()))  # what is filled differs from there
        fill = derive_seed(seed, "fill")
        texts = [filled(model, noise, x, given, fill, **options) for x, given in templates]
    width, generator = 1 + max(int(c.max()) for c in columns), torch.Generator()
    generator.manual_seed(derive_seed(seed, "lengths"))
    pure = graph_of(model).sample_prior(width, width, model.config.vocab_size, generator)
    pure = pure.to(texts[0].device)
    runs = [
        told_letters(model, noise, x, given, start, pure[column][:, column])
        for x, given, column in zip(texts, masks, columns, strict=True)
    ]
    sums, evaluations = race(runs, BEHIND)
    return torch.tensor(sums, dtype=torch.float64), evaluations


# %% tags=["test:unknown_lengths"]
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
    choices = [
        choose_length(world, GeometricNoise(), templates, seed=s, levels=0) for s in range(300)
    ]
    torch.testing.assert_close(choices[0].probabilities, exact / exact.sum(), rtol=1e-5, atol=0)
    often = sum(choice.chosen for choice in choices) / len(choices)
    assert abs(often - exact[1] / exact.sum()) < 0.1  # 3.5 standard deviations
    texts = (fits * world.probs**2).sum(1) / exact  # how probable a text is, if a length is filled
    assert (texts / texts.sum() - exact / exact.sum()).abs().max() > 0.1  # not the same


test_lengths_come_as_often_as_the_language_has_them()

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
