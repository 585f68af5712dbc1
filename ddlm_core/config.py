# Generated from notebooks/06_model.py by tools/export.py: edit that, then run `make export`.
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

__all__ = ["GRAPHS", "DiscreteDiffusionConfig"]

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
