# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Block diffusion: one network from autoregressive (blocks of one token) to SEDD (one block)."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.graph import Graph
from ddlm_core.model import Block, DiscreteDiffusionTransformer, modulate, neighbors, rope_angles
from ddlm_core.support.checks import check_input
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits

__all__ = [
    "BlockDiffusionConfig",
    "block_masks",
    "Kept",
    "conv_after",
    "look_back",
    "block_layer",
    "Past",
    "BlockDiffusionTransformer",
    "BlockView",
    "make_config",
    "make_network",
]


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


class Past(NamedTuple):
    """What the network keeps of a clean text: as many places as it has letters, and one more."""

    left: Tensor  # (B, M, n_embd): the letter before each place
    layers: list[Kept]  # of each left-to-right block, then of each merge block

    def joined(self, more: list[Kept]) -> list[Kept]:
        """Its layers with what is kept of the places behind them."""
        return [old.joined(new) for old, new in zip(self.layers, more, strict=True)]


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


def make_config(**fields: Any) -> DiscreteDiffusionConfig:
    """A configuration with these fields: one of blocks if ``block_length`` is among them."""
    kind = BlockDiffusionConfig if "block_length" in fields else DiscreteDiffusionConfig
    return kind(**fields)


def make_network(config: DiscreteDiffusionConfig) -> DiscreteDiffusionTransformer:
    """A new network of the kind that a configuration describes."""
    if isinstance(config, BlockDiffusionConfig):
        return BlockDiffusionTransformer(config)
    return DiscreteDiffusionTransformer(config)
