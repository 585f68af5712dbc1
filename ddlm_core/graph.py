# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.
"""Absorbing-state (masked) diffusion: graph."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ddlm_core.forward import noise_column, sample_prior, transition
from ddlm_core.loss import denoiser_log_score, prior_kl, score_entropy_loss
from ddlm_core.noise import GeometricNoise, NoiseSchedule

__all__ = ["ScoreModel", "Denoiser", "Graph", "UniformGraph", "UNIFORM", "graph_of"]


class ScoreModel(Protocol):
    """What gives log-scores: a network, or an exact answer from an enumerated world."""

    config: Any  # config.vocab_size is V; asked for only where no vocab_size is handed over

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) for tokens (B, L) and noise (B,); the mask, bool, is true where given."""


class Denoiser(ScoreModel, Protocol):
    """What also has a distribution over the clean token, from which its scores follow."""

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""$\log q$, (B, L, V), before the evidence of ``x_t`` at its own position."""


class Graph(ABC):
    """A forward process, which SEDD calls the graph: what training, bound and sampler ask of it.

    Shapes: tokens int64 (B, L), ``log_q`` and log-scores (B, L, V), noise a scalar or (B,).
    """

    name: ClassVar[str]  # as in config.json
    supports_churn: ClassVar[bool]  # may fresh noise be added between steps?
    supports_scores: ClassVar[bool]  # do log-scores alone lead back: "score", the Euler step?

    @abstractmethod
    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        """All V states of a position: the vocabulary, and what this process adds to it."""

    @abstractmethod
    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        """The total noise over time, between these limits if it has a choice."""

    @abstractmethod
    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Pure noise, int64 (B, L) on ``device``; what is random is drawn on the generator's."""

    @abstractmethod
    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        r"""$KL(p(x_1 \mid x_0)\,\|\,\text{pure noise})$, nats per position, of the shape of the noise."""

    @abstractmethod
    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        """From the denoising distribution to log-scores (B, L, V), 0 at y = x_t."""

    @abstractmethod
    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        """Score entropy of each position, (B, L), in nats per unit of noise: at least 0."""

    @abstractmethod
    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        """The mean of :meth:`loss` over the own noise of each letter, given the others': (B, L)."""

    @abstractmethod
    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        r"""The mean of $-\log p(x_0 \mid x_t)$ over the own noise of each letter: (B, L), in nats."""

    @abstractmethod
    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        r"""$p(x_s = y)$ at noise ``sigma_bar``, (B, L, V), if $q$ has drawn the clean token."""

    @abstractmethod
    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        r"""$p(x_t \mid x_s = y)$ after more noise, (B, L, V), up to a factor for each position."""


class UniformGraph(Graph):
    """The uniform graph of SEDD: noise puts any token in place of any other, with equal chance."""

    name = "uniform"
    supports_churn = True
    supports_scores = True

    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        return tuple(vocab)

    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        return GeometricNoise(sigma_min, sigma_max)

    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return sample_prior(batch_size, length, vocab_size, generator, device)

    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        return prior_kl(sigma_bar_1, vocab_size)

    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        return denoiser_log_score(log_q, sigma_bar, x_t)

    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        return score_entropy_loss(log_score, sigma_bar, x_t, x_0)

    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        p, ratio = self._ratio(log_q, sigma_bar, x_0)
        return (p * ratio.log()).sum(-1) + (ratio - 1 - ratio.log()).mean(-1)

    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        p, ratio = self._ratio(log_q, sigma_bar, x_0)  # Bayes: p(x_0 | x_t) = q_{x_0} p / r
        return -log_q.gather(-1, x_0[..., None])[..., 0] - (p * ratio.log()).sum(-1)

    def _ratio(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """p, of the noisy letter given the clean one, and p over r, which q expects: (B, L, V) each."""
        wide = torch.float32 if log_q.device.type == "mps" else torch.float64
        noise = noise_column(sigma_bar, log_q)[:, 0, 0].to(wide)  # (B,)
        p = transition(x_0, noise, log_q.shape[-1])
        return p, p / self.marginal(log_q.to(wide), x_0, noise)

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        noise = noise_column(sigma_bar, log_q)  # (B, 1, 1)
        return torch.exp(-noise) * log_q.exp() - torch.expm1(-noise) / log_q.shape[-1]

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return transition(x_t, delta_sigma, vocab_size)  # the kernel is symmetric


UNIFORM = UniformGraph()


def graph_of(model: ScoreModel) -> Graph:
    """The forward process of a model: its ``graph``, and the uniform one if it has none."""
    return getattr(model, "graph", UNIFORM)
