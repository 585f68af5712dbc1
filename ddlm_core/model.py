# Generated from notebooks/06_model.py by tools/export.py: edit that, then run `make export`.
"""The denoising transformer."""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ddlm_core.loss import Graph
from ddlm_core.noise import GeometricNoise
from ddlm_core.support.checks import check_config, check_input
from ddlm_core.tokenizer import VOCAB, CharacterLevelTokenizer

__all__ = ['GRAPHS', 'DiscreteDiffusionConfig', 'sinusoidal_features', 'NoiseEmbedding', 'Modulation', 'modulate', 'rope_angles', 'rotate', 'Attention', 'nearby', 'Block', 'neighbors', 'listen', 'DiscreteDiffusionTransformer']  # fmt: skip

GRAPHS = {"uniform": "ddlm_core.loss:UNIFORM", "absorbing": "ddlm_core.absorbing:ABSORBING"}


@dataclass
class DiscreteDiffusionConfig:
    """What a checkpoint says of itself; a ``ValueError`` of one line if a value makes no sense."""

    block_size: int = 256  # longest text, in tokens
    n_layer: int = 6  # blocks in all: two readers and a judge
    n_head: int = 4
    n_embd: int = 128
    cond_dim: int = 64  # width of the noise-level embedding
    dropout: float = 0.0
    bias: bool = False  # in the linear maps of the blocks
    near: int = 3  # places that a reader glances back at
    parametrization: str = "denoiser"  # or "score": the network outputs log-scores itself
    graph: str = "uniform"  # or "absorbing": appendix A
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    vocab: tuple[str, ...] = VOCAB
    padded: bool = False  # whether every text was filled with <PAD> up to block_size
    step: int = 0  # training steps behind the weights
    ema: bool = False  # whether the weights are a moving average

    def __post_init__(self) -> None:
        check_config(self, GRAPHS)
        self.kind: Graph = resolve_name(GRAPHS[self.graph])  # its module is imported when asked for
        self.vocab = self.kind.states(self.vocab)  # a tuple; JSON knows lists only
        _ = self.noise, self.tokenizer  # they check their own limits

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @property
    def noise(self) -> GeometricNoise:
        return self.kind.noise(self.sigma_min, self.sigma_max)

    @property
    def tokenizer(self) -> CharacterLevelTokenizer:
        return CharacterLevelTokenizer(self.vocab)


def sinusoidal_features(sigma_bar: Tensor, size: int) -> Tensor:
    r"""Sines and cosines of $\log\bar\sigma$ (B,), slow to fast: (B, size) at least in float32."""
    wide = torch.promote_types(sigma_bar.dtype, torch.float32)
    speeds = torch.logspace(-1.5, 1.0, size // 2, dtype=wide, device=sigma_bar.device)
    phase = sigma_bar.to(wide).clamp(1e-12, 1e12).log()[:, None] * speeds  # (B, size / 2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class NoiseEmbedding(nn.Module):
    """From the noise level to the vector that steers every block, (B,) → (B, cond_dim)."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        c = cond_dim
        self.mlp = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU())

    def forward(self, sigma_bar: Tensor) -> Tensor:
        weight = self.mlp[0].weight  # (cond_dim, cond_dim)
        return self.mlp(sinusoidal_features(sigma_bar, len(weight)).to(weight.dtype))


class Modulation(nn.Module):
    """adaLN-zero (DiT, Peebles & Xie 2023): shifts, scales, gates from the noise; 0 at first."""

    def __init__(self, cond_dim: int, n_embd: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(cond_dim, count * n_embd)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        return self.linear(cond)[:, None].chunk(self.count, dim=-1)  # each (B, 1, n_embd)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then ``shift`` and ``scale``: (B, L, n_embd)."""
    return nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def rope_angles(length: int, head_size: int, device: torch.device | None = None) -> Tensor:
    """Angles of the rotary positions (RoFormer, Su et al. 2021), shape (length, head_size / 2)."""
    speeds = 10_000.0 ** -(torch.arange(0, head_size, 2, device=device) / head_size)
    return torch.outer(torch.arange(length, device=device).float(), speeds)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of features of x (B, heads, L, head_size) by its angle (L, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Each position of x (B, L, n_embd) listens where ``sees`` lets it among ``heard`` (B, M, n_embd)."""

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__()
        self.heads = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key_value = nn.Linear(config.n_embd, 2 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.query_norm = nn.RMSNorm(config.n_embd // config.n_head)
        self.key_norm = nn.RMSNorm(config.n_embd // config.n_head)

    def forward(self, x: Tensor, heard: Tensor, angles: Tensor, sees: Tensor) -> Tensor:
        exact = self.query_norm.weight.dtype  # norms and angles in full precision
        q = self.query(x).to(exact).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, L, s)
        k, v = self.key_value(heard).to(exact).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, h, M, s)
        q = rotate(self.query_norm(q), angles)
        k = rotate(self.key_norm(k), angles.repeat(k.shape[2] // len(angles), 1))
        with torch.autocast("cpu", enabled=False):  # its bfloat16 backward is 3 times slower
            y = nn.functional.scaled_dot_product_attention(q, k, v, sees)
        return self.out(y.transpose(1, 2).flatten(2))


def nearby(x: Tensor, weights: Tensor | None) -> Tensor:
    """Each place of x (B, L, n_embd) plus the few before it, each times its weights (few, n_embd)."""
    total = x
    for back, weight in enumerate(weights if weights is not None else (), 1):
        total = total + weight * nn.functional.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
    return total


class Block(nn.Module):
    """One layer: listen, then think; each step is gated by the noise level, shut at first."""

    def __init__(self, config: DiscreteDiffusionConfig, reads: bool = False) -> None:
        super().__init__()
        self.modulation = Modulation(config.cond_dim, config.n_embd, 6)
        self.attention = Attention(config)
        d, bias = config.n_embd, config.bias
        self.feed_forward = nn.Sequential(
            nn.Linear(d, 4 * d, bias), nn.GELU(), nn.Linear(4 * d, d, bias)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.near = (None, None)  # weights of the glances before listening and before thinking
        if reads and config.near:
            self.near = nn.ParameterList(torch.zeros(config.near, d) for _ in range(2))

    def forward(
        self, x: Tensor, heard: Tensor | None, cond: Tensor, angles: Tensor, sees: Tensor
    ) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(cond)
        asks = nearby(modulate(x, shift_a, scale_a), self.near[0])
        heard = asks if heard is None else modulate(heard, shift_a, scale_a)
        seen = self.attention(asks, heard, angles, sees)
        x = x + gate_a * self.dropout(seen)
        thinks = nearby(modulate(x, shift_f, scale_f), self.near[1])
        return x + gate_f * self.dropout(self.feed_forward(thinks))


def neighbors(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors on the left and on the right of each place, and the place's own: (B, L, n_embd)."""
    padded = nn.functional.pad(x, (0, 0, 1, 1))  # (B, L + 2, n_embd)
    return padded[:, :-2] + places, padded[:, 2:] + places


def listen(
    blocks: nn.ModuleList, left: Tensor, right: Tensor, cond: Tensor, angles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What judge, left and right reader know of each position, never from itself: (B, L, n_embd).

    The hollow transformer of Sun et al. 2023 (arXiv:2211.16750), without weights shared by the readers.
    """
    readers, length = (len(blocks) - 1) // 2, left.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=left.device).tril()
    for block in blocks[:readers]:
        left = block(left, None, cond, angles, before)
    right = right.flip(1)  # it reads backwards
    for block in blocks[readers : 2 * readers]:
        right = block(right, None, cond, angles, before)
    right = right.flip(1)
    heard, sees = torch.cat([left, right], 1), torch.cat([before, before.T], 1)  # 2 L places
    judge = left + right
    for block in blocks[2 * readers :]:
        judge = block(judge, heard, cond, angles, sees)
    return judge, left, right


class DiscreteDiffusionTransformer(nn.Module, PyTorchModelHubMixin):
    """The network; ``save_pretrained`` and ``from_pretrained`` write and read a folder."""

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__()
        self.config, self.graph = config, config.kind
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.places = nn.Parameter(torch.zeros(config.block_size, config.n_embd))  # of the window
        self.given = nn.Parameter(torch.zeros(config.n_embd))  # added where a token is given
        self.noise_embedding = NoiseEmbedding(config.cond_dim)
        reading = (config.n_layer - 1) // 2 * 2  # so many of the blocks
        self.blocks = nn.ModuleList(Block(config, i < reading) for i in range(config.n_layer))
        self.modulation = Modulation(config.cond_dim, config.n_embd, 2)
        self.head = nn.Linear(config.n_embd, config.vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.3)  # not 1, for the blocks add to it
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(
        self, input_ids: Tensor, sigma_bar: Tensor, mask: Tensor | None = None, graded: bool = False
    ) -> Tensor:
        """What the judge says, not yet q or a score: (B, L, V). ``graded``: and each reader, (3, B, L, V)."""
        check_input(input_ids, sigma_bar, mask, self.config.block_size)
        x = self.embedding(input_ids)  # (B, L, n_embd)
        if mask is not None:
            x = x + mask[..., None] * self.given
        cond = self.noise_embedding(sigma_bar)
        angles = rope_angles(x.shape[1], self.config.n_embd // self.config.n_head, x.device)
        known = listen(self.blocks, *neighbors(x, self.places[: x.shape[1]]), cond, angles)
        x = torch.stack(known) if graded else known[0]
        logits = self.head(modulate(x, *self.modulation(cond)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, mask: Tensor | None = None, graded: bool = False
    ) -> Tensor:
        r"""$\log q$ of each clean token, before its own $x_t$ counts: shape of ``logits``, at least float32."""
        if self.config.parametrization != "denoiser":
            raise TypeError("a network with parametrization='score' has no denoiser")
        return self.logits(x_t, sigma_bar, mask, graded).log_softmax(-1)

    def forward(self, input_ids: Tensor, sigma_bar: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-scores (B, L, V), 0 at the current token; ``mask`` (B, L) is true at given tokens."""
        if self.config.parametrization == "score":
            log_score = self.logits(input_ids, sigma_bar, mask)
            return log_score - log_score.gather(-1, input_ids[..., None])
        log_q = self.denoise(input_ids, sigma_bar, mask)
        return self.graph.log_score(log_q, sigma_bar, input_ids)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> Self:
        return super()._from_pretrained(strict=strict, **options)  # the mixin's default is lenient
