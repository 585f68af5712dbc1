# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.

"""Sampling."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlm_core.forward import sample_prior, transition
from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise

__all__ = ['euler_probs', 'staggered_score', 'analytic_probs', 'SCHEDULES', 'create_timestep_schedule', 'noise_levels', 'sample_generators', 'reverse_probs', 'DenoisingStep', 'denoising_steps', 'sample_diffusion']  # fmt: skip


def _column(noise: Tensor | float, like: Tensor) -> Tensor:
    """Noise, a scalar or (B,), as (B, 1, 1) in the dtype and on the device of ``like`` (B, L, V)."""
    noise = torch.as_tensor(noise, dtype=like.dtype, device=like.device)
    return noise.expand(len(like))[:, None, None]


def euler_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Euler step ($\tau$-leaping): ratios (B, L, V), tokens (B, L) to probabilities (B, L, V)."""
    # Departure from the paper's code, which takes σ(t)·Δt: ours is the noise that is really removed.
    jump = (_column(delta_sigma, score) * score / score.shape[-1]).scatter(-1, x_t[..., None], 0.0)
    # Departure: a step so long that the jumps sum to more than 1 is cut to sum to 1.
    jump = jump / jump.sum(-1, keepdim=True).clamp(min=1)
    return jump.scatter(-1, x_t[..., None], (1 - jump.sum(-1, keepdim=True)).clamp(min=0))


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Score $e^{-\Delta Q}s$ with the noise of a step undone at each position: (B, L, V).

    SEDD (Lou, Meng & Ermon 2024), discrete Tweedie theorem, for the uniform graph.

    Args:
        score: ratios (B, L, V), 1 at the current token; if not exact, results can be negative.
        delta_sigma: noise removed by the step, a scalar or (B,).
    """
    growth = torch.expm1(_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


def _score_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    """Reverse step of the paper: ratios (B, L, V), tokens (B, L) to probabilities (B, L, V)."""
    delta = _column(delta_sigma, score)[:, 0, 0]  # (B,)
    weight = staggered_score(score, delta) * transition(x_t, delta, score.shape[-1])
    weight = weight.clamp(min=0)  # what an inexact score makes negative; the paper leaves it in
    return weight / weight.sum(-1, keepdim=True)


def analytic_probs(
    log_q: Tensor, x_t: Tensor, sigma_bar_t: Tensor | float, sigma_bar_s: Tensor | float
) -> Tensor:
    r"""Probabilities (B, L, V) of each token one reverse step earlier, exact when $q$ is.

    (Departure from SEDD, Lou, Meng & Ermon 2024, which computes the step from the score.)

    Args:
        log_q: log-probabilities (B, L, V) of the clean token; ``x_t``: tokens, int64 (B, L).
        sigma_bar_t: total noise before the step, ``sigma_bar_s`` after it; scalars or (B,).
    """
    vocab_size, after = log_q.shape[-1], _column(sigma_bar_s, log_q)
    delta = _column(sigma_bar_t, log_q) - after
    belief = torch.exp(-after) * log_q.exp() - torch.expm1(-after) / vocab_size  # p(x_s = y)
    weight = belief * transition(x_t, delta[:, 0, 0], vocab_size)  # times p(x_t | x_s = y)
    return weight / weight.sum(-1, keepdim=True)


SCHEDULES = ("linear", "cosine", "fraction")


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: GeometricNoise | None = None
) -> Tensor:
    r"""Times at which a run stops, from 1 (noise) down to 0 (text): float64 (num_steps + 1,).

    Args:
        num_steps: number of steps, at least 1; else a ValueError.
        schedule: equal steps of $t$ (``linear``) or of the redrawn fraction $f = 1-e^{-\bar\sigma}$
            (``fraction``), or $f = 1-\sin(\pi u/2)$ at a share $u$ of the steps (``cosine``).
        noise: turns fractions into times; by default ``GeometricNoise()``.
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
    if denoise_last:
        levels[-1] = 0.0
    return levels


def _apply_temperature(log_q: Tensor, temperature: float) -> Tensor:
    r"""$q^{1/T}$, normalized, from and to log-probabilities (…, V)."""
    if temperature == 1:
        return log_q
    return torch.log_softmax((log_q - log_q.amax(-1, keepdim=True)) / temperature, dim=-1)


def _sample_categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds a uniform number: (…, V), (…) to (…)."""
    ruler = probs.cumsum(-1)  # rows need not be normalized
    end = ruler[..., -1:]
    dart = uniform.to(probs.dtype).to(probs.device)[..., None] * end
    dart = dart.minimum(torch.nextafter(end, torch.zeros_like(end)))  # rounding can reach the end
    return (ruler <= dart).sum(-1)


def sample_generators(seed: int, batch_size: int, first: int = 0) -> list[torch.Generator]:
    """CPU generators; the one of sample i depends on ``seed`` (at least 0) and first + i alone."""
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    numbers = range(base + first, base + first + batch_size)
    return [torch.Generator().manual_seed(number % 2**32) for number in numbers]


def _draw_uniforms(generators: Sequence[torch.Generator | None], length: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (B, length) on the CPU: one row from each generator."""
    each = [generator or torch.default_generator for generator in generators]
    rows = [torch.rand(length, generator=g, dtype=torch.float64, device=g.device) for g in each]
    return torch.stack([row.cpu() for row in rows])


def _has_denoiser(model: Any) -> bool:
    """Whether a model can say what it believes, log q (B, L, V); if not, it only has scores."""
    kind = getattr(getattr(model, "config", None), "parametrization", "denoiser")
    return hasattr(model, "denoise") and kind == "denoiser"


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
    if _has_denoiser(model):
        log_q = _apply_temperature(model.denoise(x_t, sigma_bar_t, *given), temperature)
        if method == "analytic":
            return analytic_probs(log_q, x_t, sigma_bar_t, sigma_bar_s)
        score = denoiser_log_score(log_q, sigma_bar_t, x_t).exp()
    else:
        score = model(x_t, sigma_bar_t, *given).exp()
    step = euler_probs if method == "euler" else _score_probs
    return step(score, x_t, sigma_bar_t - sigma_bar_s)


@dataclass(frozen=True)
class DenoisingStep:
    """What the sampler holds after a step."""

    index: int  # 0 for the random start, num_steps for the finished text
    num_steps: int  # steps of the run, each with one evaluation of the network
    sigma_bar: float  # total noise after this step
    tokens: Tensor  # int64 (B, L)
    changed: Tensor  # bool (B, L): true where this step changed a token


def _run_reverse(
    model: Any, tokens: Tensor, levels: Tensor, generators: Sequence, keep: Callable, *how: Any
) -> Iterator[DenoisingStep]:
    """The start (B, L), then what each step leaves, through noise ``levels`` (num_steps + 1,)."""
    rows = levels.float().to(tokens.device)[:, None].expand(-1, len(tokens))  # (num_steps + 1, B)
    previous = tokens
    for index, level in enumerate(levels.tolist()):
        if index > 0:
            probs = reverse_probs(model, previous, rows[index - 1], rows[index], *how)
            tokens = keep(_sample_categorical(probs, _draw_uniforms(generators, probs.shape[1])))
        yield DenoisingStep(index, len(levels) - 1, level, tokens, tokens != previous)
        previous = tokens


def _keeper(template: Tensor | None, mask: Tensor | None, start: Tensor, vocab_size: int) -> tuple:
    """What puts the given tokens back into tokens (B, L), and the mask (B, L) of where they are."""
    if template is None and mask is None:
        return lambda tokens: tokens, None
    if template is None or mask is None:
        raise ValueError("template and mask go together: give both or neither")
    shape = tuple(start.shape)
    for name, got in (("template", template.shape), ("mask", mask.shape)):
        if got not in (shape, shape[1:]):
            raise ValueError(f"{name} must be of shape {shape[1:]} or {shape}, got {tuple(got)}")
    if template.is_floating_point() or mask.dtype != torch.bool:
        raise ValueError(f"need int64 and bool, got {template.dtype} and {mask.dtype}")
    template, mask = (given.expand(shape).to(start.device) for given in (template, mask))
    if ((template < 0) | (template >= vocab_size))[mask].any():
        raise ValueError(f"the template has tokens outside 0 to {vocab_size - 1}")
    return lambda tokens: torch.where(mask, template, tokens), mask


def _check(model: Any, method: str, temperature: float, each: Sequence, shape: tuple) -> None:
    """Raise a ``ValueError`` of one line if no tokens (B, L) can be sampled like this."""
    if min(shape) < 1:
        raise ValueError(f"batch_size and seq_len must be at least 1, got {shape}")
    if method not in ("analytic", "euler"):
        raise ValueError(f"method must be one of analytic, euler, got {method!r}")
    if not 0 < temperature < torch.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if temperature != 1 and not _has_denoiser(model):
        raise ValueError("a temperature other than 1 needs a model that has a denoiser")
    if len(each) != shape[0]:
        raise ValueError(f"got {len(each)} generators for a batch of {shape[0]}")


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
    template: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and each of ``num_steps`` steps.

    Args:
        model: has ``denoise``, or is called for log-scores (B, L, V); put it in ``eval()`` mode.
        noise: what it was trained with. ``vocab_size`` and ``device`` are the model's by default.
        schedule: see ``create_timestep_schedule``. ``method``: ``analytic`` or ``euler``.
        temperature: 1 samples what the model believes, less makes it surer of itself.
        template: given tokens, int64 (L,) or (B, L); ``mask``, bool, is true where they stay.
        generator: one for all samples in turn, or one for each (``sample_generators``).
        denoise_last: end without noise, not at that of time 0.

    Arguments that cannot work raise a ValueError of one line, at the call.
    """
    each = generator if isinstance(generator, Sequence) else [generator] * batch_size
    _check(model, method, temperature, each, (batch_size, seq_len))
    vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
    if device is None:
        device = next((p.device for p in getattr(model, "parameters", tuple)()), "cpu")
    levels = noise_levels(noise, num_steps, schedule, denoise_last)
    start = torch.cat([sample_prior(1, seq_len, vocab_size, g, "cpu") for g in each]).to(device)
    keep, mask = _keeper(template, mask, start, vocab_size)
    return _run_reverse(model, keep(start), levels, each, keep, method, temperature, mask)


def sample_diffusion(
    model: Any, noise: GeometricNoise, batch_size: int, seq_len: int, **options: Any
) -> Tensor:
    """The finished texts, int64 (B, L); arguments and errors as in ``denoising_steps``."""
    for step in denoising_steps(model, noise, batch_size, seq_len, **options):
        pass
    return step.tokens
