# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""One step of reverse diffusion: how probable each token is at each position after the step."""

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ddlm_core.forward import noise_column, transition
from ddlm_core.graph import UNIFORM, Denoiser, Graph, ScoreModel, graph_of
from ddlm_core.noise import resample_probability
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

__all__ = [
    "euler_probs",
    "analytic_probs",
    "staggered_score",
    "METHODS",
    "has_denoiser",
    "check_step",
    "reverse_probs",
    "churned_probs",
]


def euler_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Euler step ($\tau$-leaping): probabilities (B, L, V) of the tokens before a noise $\Delta$.

    From ratios (B, L, V), not their logs, tokens int64 (B, L), and the noise to remove, a scalar or
    (B,). Other shapes of the noise raise a ``ValueError``. (SEDD, Lou, Meng & Ermon 2024, section 4; unlike
    theirs, jumps that sum to more than 1 are cut to sum to 1.)
    """
    jump = noise_column(delta_sigma, score) * score / score.shape[-1]
    jump = jump.scatter(-1, x_t[..., None], 0.0)
    jump = jump / jump.sum(-1, keepdim=True).clamp(min=1)  # departure: jumps sum to at most 1
    return jump.scatter(-1, x_t[..., None], (1 - jump.sum(-1, keepdim=True)).clamp(min=0))


def analytic_probs(
    log_q: Tensor,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    graph: Graph = UNIFORM,
) -> Tensor:
    r"""Reverse step from $\bar\sigma_t$ to $\bar\sigma_s$: $p(x_s = y \mid x_t)$, (B, L, V), by Bayes' rule.

    Exact at each position if the denoising distribution ``log_q``, (B, L, V), is. The tokens are
    int64 (B, L), each noise is a scalar or (B,); other shapes raise a ``ValueError``. (The exact posterior
    of D3PM, Austin et al. 2021, averaged over $x_0$; equal to Tweedie's step of SEDD.)
    """
    after = noise_column(sigma_bar_s, log_q)[:, 0, 0]  # (B,)
    delta_sigma = noise_column(sigma_bar_t, log_q)[:, 0, 0] - after
    prior = graph.marginal(log_q, x_t, after)  # p(x_s = y), before x_t counts here
    weight = prior * graph.likelihood(x_t, delta_sigma, log_q.shape[-1])  # times p(x_t | x_s = y)
    return weight / weight.sum(-1, keepdim=True)


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Ratios $e^{-\Delta Q}s$, (B, L, V): the noise $\Delta$ of a step undone at each position.

    ``delta_sigma`` is a scalar or (B,). With a score that is off, an entry can be negative. (SEDD, Lou,
    Meng & Ermon 2024, theorem 4.2: discrete Tweedie.)
    """
    growth = torch.expm1(noise_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


METHODS = ("analytic", "euler")


def has_denoiser(model: ScoreModel) -> TypeGuard[Denoiser]:
    r"""Whether the model gives $\log q$; if not, all that it has are log-scores."""
    config = getattr(model, "config", None)  # a network may be of the paper's kind
    return hasattr(model, "denoise") and getattr(config, "parametrization", "") != "score"


def check_step(model: ScoreModel, method: str, temperature: float, churn: float = 0.0) -> None:
    """Raise a ``UserError`` if the model cannot take such steps."""
    graph = graph_of(model)
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "euler" and not graph.supports_scores:
        raise UserError(f"the method euler does not work with the {graph.name} graph: use analytic")
    if not graph.supports_scores and not has_denoiser(model):
        raise UserError(f"the {graph.name} graph needs a model with a denoiser, not scores alone")
    if temperature != 1 and not (0 < temperature < math.inf and has_denoiser(model)):
        limits = "1, or above 0 and finite if the model has a denoiser"
        raise UserError(f"temperature must be {limits}, got {temperature}")
    check_range(0.0, 1.0, churn=churn)
    if churn and not graph.supports_churn:
        raise UserError(f"churn must be 0 with the {graph.name} graph, got {churn}")


@torch.inference_mode()
def reverse_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    *,
    method: str = "analytic",
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> Tensor:
    r"""A step from $\bar\sigma_t$ to $\bar\sigma_s$, with one function evaluation: $p(x_s = y \mid x_t)$, (B, L, V).

    Tokens int64 (B, L); each noise a scalar or (B,). ``method`` is ``"analytic"`` or ``"euler"``;
    ``temperature`` T draws clean tokens from $q^{1/T}$, normalized, which needs a denoiser. The model is
    handed ``condition_mask``, bool (B, L), true at given tokens, if there is one. What does not fit
    raises a ``UserError``.
    """
    check_step(model, method, temperature)
    sigma_bar_t = noise_column(sigma_bar_t, x_t)[:, 0]  # (B,)
    sigma_bar_s = noise_column(sigma_bar_s, x_t)[:, 0]
    condition = () if condition_mask is None else (condition_mask,)
    graph = graph_of(model)
    if has_denoiser(model):
        log_q = model.denoise(x_t, sigma_bar_t, *condition)
        if temperature != 1:  # the largest becomes 0 first, and stays 0 however small T is
            log_q = ((log_q - log_q.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
        if method == "analytic":
            return analytic_probs(log_q, x_t, sigma_bar_t, sigma_bar_s, graph)
        score = graph.log_score(log_q, sigma_bar_t, x_t).exp()
    else:
        score = model(x_t, sigma_bar_t, *condition).exp()
    delta_sigma = sigma_bar_t - sigma_bar_s
    if method == "euler":
        return euler_probs(score, x_t, delta_sigma)
    weight = staggered_score(score, delta_sigma) * transition(x_t, delta_sigma, score.shape[-1])
    weight = weight.clamp(min=0)  # departure: the paper leaves in what is negative
    return weight / weight.sum(-1, keepdim=True)


def churned_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    sigma_bar_s: Tensor | float,
    *,
    churn: float = 0.0,
    method: str = "analytic",
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> Tensor:
    r"""A step down to the fraction $(1 - \text{churn}) f_s$, and noise back to $f_s$: (B, L, V).

    ``churn`` from 0 (``reverse_probs``, exactly) to 1; all else as there. One function evaluation.
    (Not in SEDD: after Karras et al. 2022, and like the Psi-samplers of Deschenaux et al. 2026.)
    """
    check_step(model, method, temperature, churn)
    options: dict[str, Any] = {"method": method, "temperature": temperature}
    options["condition_mask"] = condition_mask
    if churn == 0:
        return reverse_probs(model, x_t, sigma_bar_t, sigma_bar_s, **options)
    sigma_bar_s = noise_column(sigma_bar_s, x_t)[:, 0]  # (B,)
    sigma_target = -torch.log1p((churn - 1) * resample_probability(sigma_bar_s))  # (B,)
    probs = reverse_probs(model, x_t, sigma_bar_t, sigma_target, **options)
    delta_sigma = noise_column((sigma_bar_s - sigma_target).clamp(min=0), probs)
    uniform = torch.full_like(probs, 1 / probs.shape[-1])
    return torch.lerp(probs, uniform, resample_probability(delta_sigma))
