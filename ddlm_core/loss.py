# Generated from notebooks/05_loss.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Score entropy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column, perturb_batch, sample_prior, transition
from ddlm_core.noise import GeometricNoise, NoiseSchedule, as_float_tensor

__all__ = [
    "kappa",
    "log_ratio",
    "score_entropy_loss",
    "denoiser_log_score",
    "log_posterior",
    "low_discrepancy_times",
    "masked_mean",
    "ScoreModel",
    "Denoiser",
    "compute_loss",
    "prior_kl",
    "Graph",
    "UniformGraph",
    "UNIFORM",
    "graph_of",
]


def kappa(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""$\kappa = V/(e^{\bar\sigma} - 1)$: the clean token is $1 + \kappa$ times as likely as any other.

    Of the shape and dtype of the noise, which is above 0; a plain number counts as float64.
    """
    return vocab_size / torch.expm1(as_float_tensor(sigma_bar))


def log_ratio(sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor, vocab_size: int) -> Tensor:
    r"""Log of the true ratio $a_y = p(y \mid x_0)/p(x_t \mid x_0)$ for every token y: (B, L, V).

    Exactly 0 at y = x_t. The noise, above 0, is a scalar or (B,) and sets the dtype; the tokens are
    int64 (B, L). (SEDD, Lou, Meng & Ermon 2024: the target of denoising score entropy.)
    """
    log_stay = torch.log1p(kappa(noise_column(sigma_bar, x_t), vocab_size))[..., None]  # (B, 1, 1)
    unmoved = (x_t == x_0).long()[..., None]  # (B, L, 1)
    return log_stay * (one_hot(x_0, vocab_size) - unmoved)


def score_entropy_loss(
    log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\ell = \tfrac1V \sum_{y \ne x_t} a_y (e^{d_y} - 1 - d_y)$ with $d_y = \log s_y - \log a_y$
    (SEDD, Lou, Meng & Ermon 2024, equation 7, weighted by our rates $1/V$): nats per unit of noise, at
    least in float32. For log-scores (B, L, V), noise above 0, a scalar or (B,), and tokens int64
    (B, L); shapes that do not fit raise a ValueError.
    """
    *shape, vocab_size = log_score.shape
    if not x_t.shape == x_0.shape == torch.Size(shape):
        shapes = [tuple(x.shape) for x in (log_score, x_t, x_0)]
        raise ValueError(f"log_score, x_t and x_0 do not fit together: {shapes}")
    # a_{x_0} can be 10^6, so its few terms are computed in float64 (which Apple's GPUs lack)
    wide = torch.float32 if log_score.device.type == "mps" else torch.float64
    stay = 1 + kappa(noise_column(sigma_bar, x_t).to(wide), vocab_size)  # (B, 1): 1 + κ
    moved = x_t != x_0  # (B, L)

    # every y but x_0 and x_t has the same ratio: 1 where the token moved, 1/(1+κ) where not
    log_a = torch.where(moved, 0.0, -stay.log())  # (B, L)
    dtype = torch.promote_types(log_score.dtype, torch.float32)
    d = log_score - log_a.to(dtype)[..., None]  # (B, L, V)
    d = d.scatter_(-1, torch.stack([x_t, x_0], dim=-1), 0.0)  # d = 0 adds nothing to the sum
    others = log_a.exp() * (torch.expm1(d) - d).sum(-1)

    # y = x_0 has the ratio 1 + κ, if the token moved (if not, x_0 is x_t and not in the sum)
    log_s = log_score.gather(-1, x_0[..., None])[..., 0]  # (B, L)
    d = torch.where(moved, log_s - stay.log(), 0.0)
    clean = stay * (torch.expm1(d) - d)
    return ((others + clean) / vocab_size).to(dtype)


def denoiser_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From a distribution over the clean token to log-scores: (B, L, V), exactly 0 at y = x_t.

    $s_y = (1 + \kappa q_y)/(1 + \kappa q_{x_t})$, with $q$ as it is before the evidence of $x_t$ at
    its own position; noise above 0, a scalar or (B,). (SEDD's network gives $\log s$ itself.)
    """
    scale = kappa(noise_column(sigma_bar, log_q), log_q.shape[-1])  # (B, 1, 1)
    log_s = torch.log1p(scale * log_q.exp())
    return log_s - log_s.gather(-1, x_t[..., None])


def log_posterior(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q_y\,(1 + \kappa[y = x_t])$, normalized (Bayes' rule).

    $q$ is as it is before the evidence of $x_t$; noise above 0, a scalar or (B,).
    """
    log_stay = torch.log1p(kappa(noise_column(sigma_bar, log_q), log_q.shape[-1]))  # (B, 1, 1)
    evidence = log_stay.expand(*x_t.shape, 1).to(log_q.dtype)
    return log_q.scatter_add(-1, x_t[..., None], evidence).log_softmax(-1)


def low_discrepancy_times(
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Times, float32 (B,): each uniform in [0, 1), together evenly spread (VDM, Kingma et al. 2021)."""
    where = device if generator is None else generator.device
    offset = torch.rand(1, generator=generator, device=where)
    times = (offset + torch.arange(batch_size, device=where) / batch_size) % 1
    return times if device is None else times.to(device)


def masked_mean(values: Tensor, condition_mask: Tensor | None = None) -> Tensor:
    """Mean of each row of ``values``, (B, L), where ``condition_mask``, bool (B, L), is false: (B,).

    A row that is given as a whole has the mean 0.
    """
    if condition_mask is None:
        return values.mean(-1)
    free = ~condition_mask
    return values.masked_fill(condition_mask, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


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


def compute_loss(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    t: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    r"""One-sample estimate of the diffusion part of the bound, in nats per character: (B,).

    $\sigma(t)\,\ell$ at one time and one corruption, averaged over positions (SEDD sums over them);
    unbiased for $\tfrac1L\int_0^1\sigma(t)\,\mathbb E \sum_i \ell_i\,dt$ if t, (B,), is uniform.
    ``condition_mask``, bool (B, L), is true where a token of ``x_0``, int64 (B, L), is given: neither
    corrupted nor counted. The model is handed it only if there is one. Other shapes raise a ValueError.
    """
    vocab_size = vocab_size or model.config.vocab_size
    if t is None:
        t = low_discrepancy_times(len(x_0), generator, x_0.device)
    (sigma_bar, sigma), graph = noise(t), graph_of(model)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, condition_mask, generator, graph.sample_prior)
    given = () if condition_mask is None else (condition_mask,)
    losses = graph.loss(model(x_t, sigma_bar, *given), sigma_bar, x_t, x_0)  # (B, L)
    return sigma * masked_mean(losses, condition_mask)


def prior_kl(sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
    r"""$KL(p(x_1 \mid x_0) \,\|\, \text{uniform})$ in nats per character, of the shape of ``sigma_bar_1``.

    For the total noise at t = 1, at least 0; the prior term of the bound (SEDD, theorem 3.6).
    """
    kept = torch.exp(-as_float_tensor(sigma_bar_1))
    excess = torch.stack([(vocab_size - 1) * kept, -kept])  # p V - 1: at x_0, at any other token
    terms = torch.special.xlog1py(1 + excess, excess) / vocab_size  # p log(p V)
    return (terms[0] + (vocab_size - 1) * terms[1]).clamp(min=0)


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

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        noise = noise_column(sigma_bar, log_q)  # (B, 1, 1)
        return torch.exp(-noise) * log_q.exp() - torch.expm1(-noise) / log_q.shape[-1]

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return transition(x_t, delta_sigma, vocab_size)  # the kernel is symmetric


UNIFORM = UniformGraph()


def graph_of(model: ScoreModel) -> Graph:
    """The forward process of a model: its ``graph``, and the uniform one if it has none."""
    return getattr(model, "graph", UNIFORM)
