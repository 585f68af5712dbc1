# Generated from notebooks/06_model.py by tools/export.py: edit that, then run `make export`.
"""The network: a hollow transformer that is told the noise level and answers with log-scores."""

from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.support.checks import check_input

__all__ = [
    "sinusoidal_features",
    "NoiseEmbedding",
    "Modulation",
    "modulate",
    "rope_angles",
    "apply_rope",
    "Attention",
    "causal_conv",
    "Block",
    "neighbors",
    "hollow_attention",
    "DiscreteDiffusionTransformer",
]


def sinusoidal_features(sigma_bar: Tensor, size: int) -> Tensor:
    r"""Sines and cosines of $\log\bar\sigma$, low frequencies first: (B,) → (B, size).

    At least in float32. ``size`` is even. Zero and infinite noise are allowed.
    """
    wide = torch.promote_types(sigma_bar.dtype, torch.float32)
    frequencies = torch.logspace(-1.5, 1.0, size // 2, dtype=wide, device=sigma_bar.device)
    phase = sigma_bar.to(wide).clamp(1e-12, 1e12).log()[:, None] * frequencies  # (B, size / 2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


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
        """Queries from x (B, L, n_embd), keys and values from ``context`` (B, M, n_embd) → as x.

        ``attn_mask``, bool (L, M), is true where a query may attend; M is one or more tables of L.
        """
        k, v = self.keys_values(context, angles.repeat(context.shape[1] // len(angles), 1))
        return self.attend(x, k, v, angles, attn_mask)


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
