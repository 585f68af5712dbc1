# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.
"""Sampling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score, graph_of
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.support.checks import check_sampling, has_denoiser, with_given

__all__ = ['euler_probs', 'staggered_score', 'analytic_probs', 'SCHEDULES', 'create_timestep_schedule', 'noise_levels', 'sample_generators', 'reverse_probs', 'churned_probs', 'DenoisingStep', 'denoising_steps', 'sample_diffusion']  # fmt: skip


def _column(noise: Tensor | float, like: Tensor) -> Tensor:
    """Noise, a scalar or (B,), as (1, 1) or (B, 1, 1) like ``like``, (B, L, V)."""
    return torch.as_tensor(noise, dtype=like.dtype, device=like.device)[..., None, None]


def euler_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Euler step ($\tau$-leaping): ratios (B, L, V), tokens (B, L) to probabilities (B, L, V)."""
    jump = (_column(delta_sigma, score) * score / score.shape[-1]).scatter(-1, x_t[..., None], 0.0)
    jump = jump / jump.sum(-1, keepdim=True).clamp(min=1)  # departure: jumps sum to at most 1
    return jump.scatter(-1, x_t[..., None], (1 - jump.sum(-1, keepdim=True)).clamp(min=0))


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Ratios $e^{-\Delta Q}s$ (B, L, V): the noise of a step undone at each position (SEDD, Tweedie)."""
    growth = torch.expm1(_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


def analytic_probs(
    log_q: Tensor, x_t: Tensor, sigma_bar_t: Tensor | float, sigma_bar_s: Tensor | float
) -> Tensor:
    """Reverse step between two noises, (B,) or scalars, exact at each position if q is: (B, L, V)."""
    vocab_size, after = log_q.shape[-1], _column(sigma_bar_s, log_q)
    delta = _column(sigma_bar_t, log_q) - after
    belief = torch.exp(-after) * log_q.exp() - torch.expm1(-after) / vocab_size  # p(x_s = y)
    weight = belief * transition(x_t, delta[..., 0, 0], vocab_size)  # times p(x_t | x_s = y)
    return weight / weight.sum(-1, keepdim=True)


SCHEDULES = ("linear", "cosine", "fraction")


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: GeometricNoise | None = None
) -> Tensor:
    r"""Times at which a run stops, from 1 (noise) down to 0 (text): float64 (num_steps + 1,).

    Equal steps of t (``linear``) or of the share of redrawn letters (``fraction``), or ``cosine``.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    share = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return 1 - share
    kept = torch.sin(share * torch.pi / 2) if schedule == "cosine" else share
    noise = noise or GeometricNoise()
    first, last = torch.exp(-noise.sigma_bar(1 - share[[0, -1]]))
    times = noise.time(-torch.log(torch.lerp(first, last, kept)))
    times[0], times[-1] = 1.0, 0.0
    return times


def noise_levels(
    noise: GeometricNoise, num_steps: int, schedule: str = "linear", denoise_last: bool = True
) -> Tensor:
    r"""Total noise at these times, (num_steps + 1,); the last is 0, or $\bar\sigma(0)$ if told so."""
    levels = noise.sigma_bar(create_timestep_schedule(num_steps, schedule, noise))
    return torch.cat([levels[:-1], levels.new_zeros(1)]) if denoise_last else levels


def _sample_categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds a uniform number: (…, V), (…) to (…)."""
    ruler = probs.cumsum(-1)  # rows need not be normalized
    end = ruler[..., -1:]
    dart = uniform.to(probs.dtype).to(probs.device)[..., None] * end
    dart = dart.minimum(torch.nextafter(end, torch.zeros_like(end)))  # rounding can reach the end
    return (ruler <= dart).sum(-1)


def sample_generators(seed: int, batch_size: int, first: int = 0) -> list[torch.Generator]:
    """CPU generators; the one of sample i depends on ``seed`` (at least 0) and first + i alone."""
    base = int(np.random.SeedSequence(seed).generate_state(1)[0]) + first
    return [torch.Generator().manual_seed((base + i) % 2**32) for i in range(batch_size)]


@torch.inference_mode()
def reverse_probs(
    model: Any,
    x_t: Tensor,
    sigma_bar_t: Tensor,
    sigma_bar_s: Tensor,
    method: str = "analytic",
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Ask the model once: tokens (B, L), noise now and then (B,) to step probabilities (B, L, V)."""
    given = () if mask is None else (mask,)
    if has_denoiser(model):
        log_q = model.denoise(x_t, sigma_bar_t, *given)
        if temperature != 1:  # the largest becomes 0 first, and stays 0 however small T is
            log_q = ((log_q - log_q.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
        if method == "analytic":
            return (graph_of(model).reverse or analytic_probs)(log_q, x_t, sigma_bar_t, sigma_bar_s)
        score = denoiser_log_score(log_q, sigma_bar_t, x_t).exp()
    else:
        score = model(x_t, sigma_bar_t, *given).exp()
    delta = sigma_bar_t - sigma_bar_s
    if method == "euler":
        return euler_probs(score, x_t, delta)
    weight = (staggered_score(score, delta) * transition(x_t, delta, score.shape[-1])).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True)  # departure: the paper leaves in what is negative


def churned_probs(
    model: Any, x_t: Tensor, sigma_bar_t: Tensor, sigma_bar_s: Tensor, churn: float, *how: Any
) -> Tensor:
    r"""A step to $(1-c)f_s$, noise back to $f_s$: (B, L, V). (Not in SEDD; after Karras et al. 2022.)"""
    if churn == 0:
        return reverse_probs(model, x_t, sigma_bar_t, sigma_bar_s, *how)
    aim = -torch.log1p((churn - 1) * resample_probability(sigma_bar_s))  # (B,)
    probs = reverse_probs(model, x_t, sigma_bar_t, aim, *how)
    redrawn = resample_probability(_column((sigma_bar_s - aim).clamp(min=0), probs))
    return torch.lerp(probs, torch.full_like(probs, 1 / probs.shape[-1]), redrawn)


@dataclass(frozen=True)
class DenoisingStep:
    """What the sampler holds after a step."""

    index: int  # 0 for the random start, num_steps for the finished text
    num_steps: int  # steps of the run, each with one evaluation of the network
    sigma_bar: float  # total noise after this step
    tokens: Tensor  # int64 (B, L)
    changed: Tensor  # bool (B, L): true where this step changed a token


def _run_reverse(
    model: Any, tokens: Tensor, levels: Tensor, each: Sequence, mask: Tensor | None, *how: Any
) -> Iterator[DenoisingStep]:
    """The start (B, L), then what each step leaves, through noise ``levels`` (num_steps + 1,)."""
    rows = levels.float().to(tokens.device)[:, None].expand(-1, len(tokens))  # (num_steps + 1, B)
    changed = torch.zeros_like(tokens, dtype=torch.bool)
    draw = partial(torch.rand, tokens.shape[1], dtype=torch.float64)
    for index, level in enumerate(levels.tolist()):
        if index > 0:
            probs = churned_probs(model, tokens, rows[index - 1], rows[index], *how, mask)
            darts = [draw(generator=g, device=getattr(g, "device", "cpu")) for g in each]
            drawn = _sample_categorical(probs, torch.stack(darts))
            changed = (drawn != tokens) & (True if mask is None else ~mask)  # given tokens stay
            tokens = torch.where(changed, drawn, tokens)
        yield DenoisingStep(index, len(levels) - 1, level, tokens, changed)


def denoising_steps(
    model: Any,
    noise: GeometricNoise,
    batch_size: int,
    seq_len: int,
    vocab_size: int | None = None,
    num_steps: int = 64,
    schedule: str = "linear",
    method: str = "analytic",
    temperature: float = 1.0,
    churn: float = 0.0,
    template: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and each of ``num_steps`` steps.

    ``model`` has ``denoise``, or gives log-scores (B, L, V) when called. ``template``, int64, (L,) or
    (B, L), stays where ``mask``, bool, is true. ``generator``: one for all texts, or one for each.
    ``churn``, 0 to 1: how far a step goes too far, for fresh noise to lead back.
    """
    each = generator if isinstance(generator, Sequence) else [generator] * batch_size
    check_sampling(model, method, temperature, churn, each, (batch_size, seq_len))
    vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
    device = device or next((p.device for p in getattr(model, "parameters", tuple)()), "cpu")
    levels = noise_levels(noise, num_steps, schedule, denoise_last)
    start = torch.cat([graph_of(model).sample_prior(1, seq_len, vocab_size, g) for g in each])
    start, mask = with_given(template, mask, start.to(device), vocab_size)
    return _run_reverse(model, start, levels, each, mask, churn, method, temperature)


def sample_diffusion(
    model: Any, noise: GeometricNoise, batch_size: int, seq_len: int, **options: Any
) -> Tensor:
    """The finished texts, int64 (B, L); arguments and errors as in ``denoising_steps``."""
    for step in denoising_steps(model, noise, batch_size, seq_len, **options):
        pass
    return step.tokens
