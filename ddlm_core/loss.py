# Generated from notebooks/05_loss.py by tools/export.py: edit that, then run `make export`.
"""Score entropy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch, sample_prior
from ddlm_core.noise import GeometricNoise, as_float_tensor

__all__ = ['kappa', 'log_ratio', 'score_entropy_loss', 'denoiser_log_score', 'log_posterior', 'low_discrepancy_times', 'masked_mean', 'compute_loss', 'prior_kl', 'Graph', 'UNIFORM', 'graph_of']  # fmt: skip


def kappa(sigma_bar: Tensor, vocab_size: int) -> Tensor:
    r"""$\kappa = V/(e^{\bar\sigma} - 1)$: the clean token is $1 + \kappa$ times as likely as any other."""
    return vocab_size / torch.expm1(sigma_bar)


def log_ratio(sigma_bar: Tensor, x_t: Tensor, x_0: Tensor, vocab_size: int) -> Tensor:
    r"""Log of the true ratio $a_y = p(y \mid x_0)/p(x_t \mid x_0)$ for every token y: (B, L, V).

    Exactly 0 at y = x_t. The noise is a scalar tensor or (B,), the tokens are int64 (B, L).
    """
    log_stay = torch.log1p(kappa(sigma_bar, vocab_size))[..., None, None]  # (B, 1, 1)
    unmoved = (x_t == x_0).long()[..., None]  # (B, L, 1)
    return log_stay * (one_hot(x_0, vocab_size) - unmoved)


def score_entropy_loss(log_score: Tensor, sigma_bar: Tensor, x_t: Tensor, x_0: Tensor) -> Tensor:
    r"""Denoising score entropy of each position: (B, L), at least 0, not yet times $\sigma(t)$.

    $\ell = \tfrac1V \sum_{y \ne x_t} a_y (e^{d_y} - 1 - d_y)$ with $d_y = \log s_y - \log a_y$
    (SEDD, Lou, Meng & Ermon 2024, weighted by our rates $1/V$), for log-scores (B, L, V), noise above
    0, a scalar tensor or (B,), and tokens int64 (B, L); shapes that do not fit raise a ValueError.
    """
    shapes = [tuple(x.shape) for x in (log_score, sigma_bar, x_t, x_0)]
    batch, length, vocab_size = shapes[0]
    if shapes[1] not in ((), (batch,)) or not shapes[2] == shapes[3] == (batch, length):
        raise ValueError(f"log_score, sigma_bar, x_t and x_0 do not fit together: {shapes}")
    # a_{x_0} can be 10^6, so its few terms are computed in float64 (which Apple's GPUs lack)
    wide = torch.float32 if log_score.device.type == "mps" else torch.float64
    stay = 1 + kappa(sigma_bar.to(wide), vocab_size)[..., None]  # (B, 1): 1 + κ
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


def denoiser_log_score(log_q: Tensor, sigma_bar: Tensor, x_t: Tensor) -> Tensor:
    r"""From a distribution over the clean token to log-scores: (B, L, V), exactly 0 at y = x_t.

    $s_y = (1 + \kappa q_y)/(1 + \kappa q_{x_t})$, with $q$ as it is before the evidence of $x_t$ at
    its own position; noise above 0, a scalar tensor or (B,). (SEDD's network gives $\log s$ itself.)
    """
    scale = kappa(sigma_bar, log_q.shape[-1])[..., None, None]  # (B, 1, 1)
    log_s = torch.log1p(scale * log_q.exp())
    return log_s - log_s.gather(-1, x_t[..., None])


def log_posterior(log_q: Tensor, sigma_bar: Tensor, x_t: Tensor) -> Tensor:
    r"""$\log p(x_0 = y \mid x_t)$, (B, L, V): $q_y\,(1 + \kappa[y = x_t])$, normalized (Bayes' rule)."""
    log_stay = torch.log1p(kappa(sigma_bar, log_q.shape[-1]))[..., None, None]  # (B, 1, 1)
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


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of each row (B, L) over the positions that ``mask`` does not keep: (B,); 0 if it keeps all."""
    if mask is None:
        return values.mean(-1)
    return values.masked_fill(mask, 0.0).sum(-1) / (~mask).sum(-1).clamp(min=1)


def compute_loss(
    model: Callable[..., Tensor],
    x_0: Tensor,
    noise: GeometricNoise,
    t: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    r"""One-sample estimate of the diffusion part of the bound, in nats per character: (B,).

    $\sigma(t)\,\ell$ at one time and one corruption, averaged over positions (SEDD sums over them);
    unbiased for $\tfrac1L\int_0^1\sigma(t)\,\mathbb E \sum_i \ell_i\,dt$ if t, (B,), is uniform.
    ``model`` maps tokens (B, L) and noise (B,) to log-scores; it is handed ``mask``, bool (B, L), if
    there is one: true where a token of ``x_0`` is kept, neither corrupted nor counted.
    """
    vocab_size = vocab_size or model.config.vocab_size
    if t is None:
        t = low_discrepancy_times(len(x_0), generator, x_0.device)
    (sigma_bar, sigma), graph = noise(t), graph_of(model)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, mask, generator, graph.sample_prior)
    log_score = model(x_t, sigma_bar) if mask is None else model(x_t, sigma_bar, mask)
    return sigma * masked_mean(graph.loss(log_score, sigma_bar, x_t, x_0), mask)


def prior_kl(sigma_bar_1: Tensor | float, vocab_size: int) -> Tensor:
    r"""$KL(p(x_1 \mid x_0) \,\|\, \text{uniform})$ in nats per character, of the shape of ``sigma_bar_1``."""
    kept = torch.exp(-as_float_tensor(sigma_bar_1))
    excess = torch.stack([(vocab_size - 1) * kept, -kept])  # p V - 1: at x_0, at any other token
    terms = torch.special.xlog1py(1 + excess, excess) / vocab_size  # p log(p V)
    return (terms[0] + (vocab_size - 1) * terms[1]).clamp(min=0)


@dataclass(frozen=True)
class Graph:
    """What training, bound and sampler ask of a noise: by default the functions of the uniform one."""

    noise: Callable = GeometricNoise  # limits of the total noise to a schedule
    states: Callable = tuple  # the vocabulary to all states of a position
    sample_prior: Callable = sample_prior  # where noise puts a token
    log_score: Callable = denoiser_log_score
    loss: Callable = score_entropy_loss
    reverse: Callable | None = None  # a step back; if none, `analytic_probs` of chapter 7


UNIFORM = Graph()


def graph_of(model: Any) -> Graph:
    """``model.graph``, and the uniform graph if it has none."""
    return getattr(model, "graph", UNIFORM)
