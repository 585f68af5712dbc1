# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.
"""Absorbing-state (masked) diffusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column
from ddlm_core.graph import Graph
from ddlm_core.noise import NoiseSchedule, as_float_tensor, resample_probability

__all__ = [
    "MASK",
    "with_mask",
    "all_masked",
    "LogLinearNoise",
    "mask_posterior",
    "mask_log_score",
    "mask_loss",
    "mask_marginal",
    "mask_likelihood",
    "AbsorbingGraph",
    "ABSORBING",
]

MASK = "░"


def with_mask(vocab: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary with the mask as its last token, once."""
    return (*vocab, MASK) if vocab[-1] != MASK else tuple(vocab)


def all_masked(
    batch_size: int,
    length: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pure noise: nothing but masks, int64 (B, L) on ``device``; a generator has nothing to draw."""
    return torch.full((batch_size, length), vocab_size - 1, device=device)


@dataclass(frozen=True)
class LogLinearNoise:
    r"""The log-linear schedule (SEDD, Lou, Meng & Ermon 2024): at time t, a share t is masked.

    Called with t in [0, 1] (any shape, not checked) it returns total noise $\bar\sigma(t) = -\log(1 - t)$
    and rate $1/(1 - t)$, both infinite at t = 1, of the shape and dtype of t; numbers count as float64.
    """

    sigma_min: ClassVar[float] = 0.0  # at t = 0
    sigma_max: ClassVar[float] = math.inf  # at t = 1

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = -\log(1 - t)$, of the shape of ``t``."""
        return -torch.log1p(-as_float_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = 1/(1 - t)$, of the shape of ``t``."""
        return 1 / (1 - as_float_tensor(t))

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the share of masks."""
        return resample_probability(sigma_bar)


def mask_posterior(log_q: Tensor, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q$ at a mask, itself no letter; elsewhere $x_t$, surely.

    For $\log q$ (B, L, V), whatever it gives to the mask, and tokens int64 (B, L). (MDLM, Sahoo et al.
    2024: zero masking probabilities and carry-over unmasking.)
    """
    last = log_q.shape[-1] - 1  # the id of the mask
    q = log_q.index_fill(-1, torch.tensor(last, device=log_q.device), -torch.inf).log_softmax(-1)
    return torch.where((x_t == last)[..., None], q, one_hot(x_t, last + 1).log())


def mask_log_score(log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
    r"""From $q$ to log-scores (B, L, V): $s_y = q_y/(e^{\bar\sigma} - 1)$ at a mask, 1 at y = x_t.

    At a letter, 0 for every other y: the way back from a letter leads nowhere. Noise at least 0, a scalar
    or (B,).
    """
    masked = (x_t == log_q.shape[-1] - 1)[..., None]  # without noise there is no mask
    log_odds = torch.where(masked, torch.expm1(noise_column(sigma_bar, log_q)).log(), 0.0)
    return (mask_posterior(log_q, x_t) - log_odds).scatter(-1, x_t[..., None], 0.0)


def mask_loss(log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\sum_{y \ne x_0, x_t} s_y + a\,(e^d - 1 - d)$ at a mask, with $a = 1/(e^{\bar\sigma} - 1)$ and
    $d = \log s_{x_0} - \log a$; 0 at a letter. (SEDD, Lou, Meng & Ermon 2024, with the absorbing rates.)
    Log-scores (B, L, V), noise a scalar or (B,), at least 0, tokens int64 (B, L).
    """
    masked = x_t == log_score.shape[-1] - 1  # (B, L)
    a = torch.where(masked, 1 / torch.expm1(noise_column(sigma_bar, log_score))[..., 0], 1.0)
    d = torch.where(masked, log_score.gather(-1, x_0[..., None])[..., 0] - a.log(), 0.0)
    others = log_score.scatter(-1, torch.stack([x_t, x_0], dim=-1), -torch.inf).exp().sum(-1)
    return torch.where(masked, others, 0.0) + a * (torch.expm1(d) - d)


def mask_marginal(log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
    r"""$p(x_s = y)$ at noise ``sigma_bar``, (B, L, V), if the clean token is drawn from the posterior."""
    noise, vocab_size = noise_column(sigma_bar, log_q), log_q.shape[-1]
    letters = torch.exp(-noise) * mask_posterior(log_q, x_t).exp()  # nothing on the mask
    is_mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
    return letters + resample_probability(noise) * is_mask


def mask_likelihood(x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
    r"""$p(x_t \mid x_s = y)$ after more noise, (B, L, V), up to a factor for each position."""
    lost = resample_probability(noise_column(delta_sigma, x_t))[..., None]  # (B, 1, 1)
    is_mask = torch.arange(vocab_size, device=x_t.device) == vocab_size - 1  # (V,)
    at_mask = torch.where(is_mask, 1.0, lost)  # a mask stays; a letter may have been lost
    at_letter = one_hot(x_t, vocab_size).to(lost.dtype)  # only this letter can have become it
    return torch.where((x_t == vocab_size - 1)[..., None], at_mask, at_letter)


class AbsorbingGraph(Graph):
    """The absorbing graph (D3PM, Austin et al. 2021; SEDD): noise turns a token into the mask, for good.

    The mask is the last state. Shapes as in :class:`~ddlm_core.graph.Graph`.
    """

    name = "absorbing"
    supports_churn = False  # it draws fresh letters; fresh masks are another method (ReMDM)
    supports_scores = False

    def states(self, vocab: Sequence[str]) -> tuple[str, ...]:
        return with_mask(vocab)

    def schedule(self, sigma_min: float, sigma_max: float) -> NoiseSchedule:
        return LogLinearNoise()  # it must end at infinity, whatever the limits

    def sample_prior(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return all_masked(batch_size, length, vocab_size, generator, device)

    def prior_kl(self, sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
        noise = as_float_tensor(sigma_bar_1)  # any letter that is left costs -log 0
        return torch.zeros_like(noise).masked_fill(noise < math.inf, math.inf)

    def log_score(self, log_q: Tensor, sigma_bar: Tensor | float, x_t: Tensor) -> Tensor:
        return mask_log_score(log_q, sigma_bar, x_t)

    def loss(
        self, log_score: Tensor, sigma_bar: Tensor | float, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        return mask_loss(log_score, sigma_bar, x_t, x_0)

    def expected_loss(self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor) -> Tensor:
        return torch.exp(-noise_column(sigma_bar, x_0)) * self._surprise(log_q, x_0)

    def expected_reconstruction(
        self, log_q: Tensor, sigma_bar: Tensor | float, x_0: Tensor
    ) -> Tensor:
        return resample_probability(noise_column(sigma_bar, x_0)) * self._surprise(log_q, x_0)

    def _surprise(self, log_q: Tensor, x_0: Tensor) -> Tensor:
        """Of the clean letter at a mask, in nats: (B, L)."""
        log_p = mask_posterior(log_q, torch.full_like(x_0, log_q.shape[-1] - 1))
        return -log_p.gather(-1, x_0[..., None])[..., 0]

    def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor | float) -> Tensor:
        return mask_marginal(log_q, x_t, sigma_bar)

    def likelihood(self, x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
        return mask_likelihood(x_t, delta_sigma, vocab_size)


ABSORBING = AbsorbingGraph()
