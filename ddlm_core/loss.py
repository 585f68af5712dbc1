# Generated from notebooks/05_loss.py by tools/export.py: edit that, then run `make export`.
"""Score entropy."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import noise_column
from ddlm_core.noise import as_float_tensor

__all__ = [
    "kappa",
    "log_ratio",
    "score_entropy_loss",
    "denoiser_log_score",
    "log_posterior",
    "prior_kl",
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


def prior_kl(sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
    r"""$KL(p(x_1 \mid x_0) \,\|\, \text{uniform})$ in nats per character, of the shape of ``sigma_bar_1``.

    For the total noise at t = 1, at least 0; the prior term of the bound (SEDD, theorem 3.6).
    """
    kept = torch.exp(-as_float_tensor(sigma_bar_1))
    excess = torch.stack([(vocab_size - 1) * kept, -kept])  # p V - 1: at x_0, at any other token
    terms = torch.special.xlog1py(1 + excess, excess) / vocab_size  # p log(p V)
    return (terms[0] + (vocab_size - 1) * terms[1]).clamp(min=0)
