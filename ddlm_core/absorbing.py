# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.
"""Absorbing states."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.loss import Graph
from ddlm_core.noise import as_float_tensor, resample_probability

__all__ = ['MASK', 'with_mask', 'all_masked', 'LogLinearNoise', 'mask_posterior', 'mask_log_score', 'mask_loss', 'open_masks', 'ABSORBING']  # fmt: skip

MASK = "░"


def with_mask(vocab: Sequence[str]) -> tuple[str, ...]:
    """The vocabulary with the mask as its last token."""
    return (*vocab, MASK) if vocab[-1] != MASK else tuple(vocab)


def all_masked(batch_size: int, length: int, vocab_size: int, *_: Any) -> Tensor:
    """Pure noise: nothing but masks, int64 (B, L); a generator and a device play no part."""
    return torch.full((batch_size, length), vocab_size - 1)


class LogLinearNoise:
    r"""Total noise $\bar\sigma(t) = -\log(1 - t)$ and rate $1/(1 - t)$: at time t, a share t is masked."""

    sigma_min, sigma_max = 0.0, math.inf  # at t = 0 and at t = 1

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return self.sigma_bar(t), self.sigma(t)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        return -torch.log1p(-as_float_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return 1 / (1 - as_float_tensor(t))

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        return resample_probability(sigma_bar)


def mask_posterior(log_q: Tensor, sigma_bar: Any, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q$ at a mask, itself no letter; elsewhere $x_t$, surely."""
    mask = log_q.shape[-1] - 1
    q = log_q.index_fill(-1, torch.tensor(mask, device=log_q.device), -torch.inf).log_softmax(-1)
    return torch.where((x_t == mask)[..., None], q, one_hot(x_t, mask + 1).log())


def mask_log_score(log_q: Tensor, sigma_bar: Tensor, x_t: Tensor) -> Tensor:
    r"""From a belief to log-scores (B, L, V): $s_y = q_y/(e^{\bar\sigma} - 1)$ at a mask, 1 at y = x_t.

    At a letter, 0 for every other y: the way back from a letter leads nowhere.
    """
    log_s = mask_posterior(log_q, sigma_bar, x_t) - torch.expm1(sigma_bar).log()[..., None, None]
    return log_s.scatter(-1, x_t[..., None], 0.0)


def mask_loss(log_score: Tensor, sigma_bar: Tensor, x_t: Tensor, x_0: Tensor) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\sum_{y \ne x_0, x_t} s_y + a\,(e^d - 1 - d)$ at a mask, with $a = 1/(e^{\bar\sigma} - 1)$ and
    $d = \log s_{x_0} - \log a$; 0 at a letter. Arguments as in ``score_entropy_loss``.
    """
    masked = x_t == log_score.shape[-1] - 1  # (B, L)
    a = torch.where(masked, 1 / torch.expm1(sigma_bar)[..., None], 1.0)
    d = torch.where(masked, log_score.gather(-1, x_0[..., None])[..., 0] - a.log(), 0.0)
    others = log_score.scatter(-1, torch.stack([x_t, x_0], dim=-1), -torch.inf).exp().sum(-1)
    return torch.where(masked, others, 0.0) + a * (torch.expm1(d) - d)


def open_masks(
    log_q: Tensor, x_t: Tensor, sigma_bar_t: Tensor | float, sigma_bar_s: Tensor | float
) -> Tensor:
    r"""Reverse step: each mask opens with chance $(f_t - f_s)/f_t$, to a draw from $q$: (B, L, V)."""
    f_t = resample_probability(sigma_bar_t).to(log_q)[..., None, None]  # (B, 1, 1)
    f_s = resample_probability(sigma_bar_s).to(log_q)[..., None, None]
    stays = torch.where(x_t[..., None] == log_q.shape[-1] - 1, f_s / f_t, 1.0)  # (B, L, 1)
    q = mask_posterior(log_q, sigma_bar_t, x_t).exp()
    return (1 - stays) * q + stays * one_hot(x_t, log_q.shape[-1])


ABSORBING = Graph(
    noise=lambda sigma_min, sigma_max: LogLinearNoise(),
    states=with_mask,
    sample_prior=all_masked,
    log_score=mask_log_score,
    loss=mask_loss,
    reverse=open_masks,
)
