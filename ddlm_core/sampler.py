# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.

"""Sampling."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlm_core.forward import sample_prior, transition
from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise

__all__ = [
    "euler_probs",
    "staggered_score",
    "score_probs",
    "analytic_probs",
    "SCHEDULES",
    "times_at",
    "create_timestep_schedule",
    "noise_levels",
    "apply_temperature",
    "sample_categorical",
    "sample_generators",
    "draw_uniforms",
    "has_denoiser",
    "reverse_probs",
    "DenoisingStep",
    "run_reverse",
    "template_keeper",
    "SAMPLING_METHODS",
    "check_sampling",
    "one_generator_each",
    "random_start",
    "defaults_of",
    "denoising_steps",
    "sample_diffusion",
]


def _column(noise: Tensor | float, like: Tensor) -> Tensor:
    """Noise, a scalar or ``(B,)``, as ``(B, 1, 1)`` in the dtype and on the device of ``like``."""
    noise = torch.as_tensor(noise, dtype=like.dtype, device=like.device)
    return noise.expand(len(like))[:, None, None]


def euler_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Distribution of each token after one Euler step of the reverse rates ($\tau$-leaping).

    A jump to $y\ne x_t$ has probability $\Delta\,s_y/V$
    (SEDD, Lou, Meng & Ermon 2024, section 4).

    Args:
        score: ratios $p_t(\dots y\dots)/p_t(x_t)$, shape (B, L, V).
        x_t: current tokens, int64 of shape (B, L).
        delta_sigma: noise removed by the step, a scalar or one per sample, shape (B,).

    Returns:
        Probabilities of shape (B, L, V); the last axis sums to 1.
    """
    here = x_t[..., None]  # (B, L, 1)
    # Departure from the paper's code, which takes σ(t)·Δt: ours is the noise that is really removed.
    jump = _column(delta_sigma, score) * score / score.shape[-1]
    jump = jump.scatter(-1, here, 0.0)
    # Departure: a step so long that the jumps sum to more than 1 is cut to sum to 1.
    jump = jump / jump.sum(-1, keepdim=True).clamp(min=1)
    stay = (1 - jump.sum(-1, keepdim=True)).clamp(min=0)
    return jump.scatter(-1, here, stay)


def staggered_score(score: Tensor, delta_sigma: Tensor | float) -> Tensor:
    r"""Score with the noise of one step undone at each position: $e^{-\Delta Q}s$.

    SEDD (Lou, Meng & Ermon 2024), discrete Tweedie theorem, for the uniform graph.

    Args:
        score: ratios of shape (B, L, V), with 1 at the current token.
        delta_sigma: noise removed by the step, a scalar or one per sample, shape (B,).

    Returns:
        Ratios of shape (B, L, V); where the score is not exact, some can be negative.
    """
    growth = torch.expm1(_column(delta_sigma, score))  # e^Δ - 1
    return score + growth * (score - score.mean(-1, keepdim=True))


def score_probs(score: Tensor, x_t: Tensor, delta_sigma: Tensor | float) -> Tensor:
    """Distribution of each token one reverse step earlier, from ratios alone.

    The step of the paper (SEDD, Lou, Meng & Ermon 2024, section 4), for a model that has no
    ``denoise``.

    Args:
        score: ratios of shape (B, L, V), with 1 at the current token.
        x_t: current tokens, int64 of shape (B, L).
        delta_sigma: noise removed by the step, a scalar or one per sample, shape (B,).

    Returns:
        Probabilities of shape (B, L, V); the last axis sums to 1.
    """
    delta = _column(delta_sigma, score)[:, 0, 0]  # (B,)
    weight = staggered_score(score, delta) * transition(x_t, delta, score.shape[-1])
    weight = weight.clamp(min=0)  # what an inexact score makes negative; the paper leaves it in
    return weight / weight.sum(-1, keepdim=True)


def analytic_probs(
    log_q: Tensor, x_t: Tensor, sigma_bar_t: Tensor | float, sigma_bar_s: Tensor | float
) -> Tensor:
    r"""Distribution of each token one reverse step earlier, from the denoiser's belief.

    $p(x_s=y\mid x_t)\propto\big(\alpha_s q_y+\tfrac{1-\alpha_s}{V}\big)
    \big(e^{-\Delta}[y=x_t]+\tfrac{1-e^{-\Delta}}{V}\big)$ with $\alpha_s=e^{-\bar\sigma_s}$ and
    $\Delta=\bar\sigma_t-\bar\sigma_s$. Exact for each position when $q$ is exact.
    (Departure from SEDD, Lou, Meng & Ermon 2024, which computes it from the score.)

    Args:
        log_q: log-probabilities of the clean token, shape (B, L, V).
        x_t: current tokens, int64 of shape (B, L).
        sigma_bar_t: total noise now, a scalar or one per sample, shape (B,).
        sigma_bar_s: total noise after the step, less than ``sigma_bar_t``, of either shape.

    Returns:
        Probabilities of shape (B, L, V); the last axis sums to 1.
    """
    vocab_size = log_q.shape[-1]
    after = _column(sigma_bar_s, log_q)
    delta = _column(sigma_bar_t, log_q) - after
    belief = torch.exp(-after) * log_q.exp() - torch.expm1(-after) / vocab_size  # p(x_s = y)
    weight = belief * transition(x_t, delta[:, 0, 0], vocab_size)  # times p(x_t | x_s = y)
    return weight / weight.sum(-1, keepdim=True)


SCHEDULES = ("linear", "cosine", "fraction")


def times_at(progress: Tensor, noise: GeometricNoise) -> Tensor:
    """The times at which a share of the way is done, measured in letters that are kept.

    Args:
        progress: rising from 0 (all noise) to 1 (text), float64, shape (num_steps + 1,).
        noise: the forward noise.

    Returns:
        Times falling from exactly 1 to exactly 0, of the shape of ``progress``.
    """
    first, last = torch.exp(-noise.sigma_bar(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    times = noise.time(-torch.log(torch.lerp(first, last, progress)))
    times[0], times[-1] = 1.0, 0.0
    return times


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: GeometricNoise | None = None
) -> Tensor:
    r"""Times at which the sampler stops, from 1 (noise) down to 0 (text).

    Args:
        num_steps: number of steps, at least 1.
        schedule: ``"linear"``: equal steps of $t$; ``"fraction"``: equal steps of the fraction
            of redrawn tokens $f = 1-e^{-\bar\sigma}$; ``"cosine"``: $f = 1 - \sin(\pi u/2)$ after
            a share $u$ of the steps, so that steps are short near the clean text.
        noise: the forward noise, which turns fractions into times; by default
            ``GeometricNoise()``.

    Returns:
        Times, float64 of shape (num_steps + 1,), falling from 1 to 0.

    Raises:
        ValueError: if ``num_steps`` is less than 1 or there is no such schedule.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    share = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return 1 - share
    progress = torch.sin(share * math.pi / 2) if schedule == "cosine" else share
    return times_at(progress, noise or GeometricNoise())


def noise_levels(
    noise: GeometricNoise, num_steps: int, schedule: str = "linear", denoise_last: bool = True
) -> Tensor:
    r"""Total noise before the first step and after each step.

    Args:
        noise: the forward noise.
        num_steps: number of steps, at least 1.
        schedule: a name that :func:`create_timestep_schedule` knows.
        denoise_last: end at $\bar\sigma = 0$ and not at the small $\bar\sigma(0)$.

    Returns:
        Total noise, float64 of shape (num_steps + 1,), falling.
    """
    levels = noise.sigma_bar(create_timestep_schedule(num_steps, schedule, noise))
    if denoise_last:
        levels[-1] = 0.0
    return levels


def apply_temperature(log_q: Tensor, temperature: float) -> Tensor:
    r"""Sharpen (below 1) or flatten (above 1) a distribution: $q^{1/T}$, normalized.

    Args:
        log_q: log-probabilities, any shape; the last axis is normalized.
        temperature: $T$, above 0; with 1, ``log_q`` itself is returned.

    Returns:
        Log-probabilities of the same shape.
    """
    if temperature == 1:
        return log_q
    below_best = log_q - log_q.amax(-1, keepdim=True)  # so that the best stays 0 for T → 0
    return torch.log_softmax(below_best / temperature, dim=-1)


def sample_categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one index from each row of probabilities, given one uniform number for each.

    The first index whose cumulative probability exceeds the number, so never one of probability 0.

    Args:
        probs: at least 0, shape (…, V); rows need not be normalized.
        uniform: numbers in [0, 1), shape (…).

    Returns:
        Indices, int64 of shape (…).
    """
    ruler = probs.cumsum(-1)  # (…, V)
    end = ruler[..., -1]
    dart = uniform.to(probs.dtype).to(probs.device) * end
    below_end = torch.nextafter(end, torch.zeros_like(end))
    dart = torch.minimum(dart, below_end)  # rounding can put the dart on the end of the ruler
    return (ruler <= dart[..., None]).sum(-1)


def sample_generators(seed: int, batch_size: int, first: int = 0) -> list[torch.Generator]:
    """One generator for each sample, so that a sample does not depend on its batch.

    Args:
        seed: at least 0.
        batch_size: number of samples.
        first: number of the first sample, for a batch that continues another one.

    Returns:
        CPU generators; the one of sample i depends on ``seed`` and ``first + i`` alone.
    """
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    numbers = range(base + first, base + first + batch_size)
    return [torch.Generator().manual_seed(number % 2**32) for number in numbers]


def draw_uniforms(generators: Sequence[torch.Generator | None], length: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 on the CPU, shape (B, length): one row per generator."""
    rows = [
        torch.rand(length, generator=g, dtype=torch.float64, device=g.device if g else "cpu").cpu()
        for g in generators
    ]
    return torch.stack(rows)


def has_denoiser(model: Any) -> bool:
    """True if a model can say what it believes, false if it only has scores."""
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
    """Ask the model once; turn its answer into the distributions of one reverse step.

    Args:
        model: has ``denoise(x_t, sigma_bar)``, log-probabilities (B, L, V) of the clean token; or
            is called as ``model(x_t, sigma_bar)`` and gives log-scores (B, L, V).
        x_t: current tokens, int64 of shape (B, L).
        sigma_bar_t: total noise now, shape (B,).
        sigma_bar_s: total noise after the step, shape (B,).
        method: ``"analytic"`` or ``"euler"``.
        temperature: 1 samples what the model believes, less makes it surer of itself.
        mask: true where a token is given, shape (B, L); the model gets it as third argument.

    Returns:
        Probabilities of shape (B, L, V), to be drawn independently for each position.
    """
    given = () if mask is None else (mask,)
    delta_sigma = sigma_bar_t - sigma_bar_s
    if has_denoiser(model):
        log_q = apply_temperature(model.denoise(x_t, sigma_bar_t, *given), temperature)
        if method == "analytic":
            return analytic_probs(log_q, x_t, sigma_bar_t, sigma_bar_s)
        score = denoiser_log_score(log_q, sigma_bar_t, x_t).exp()
    else:
        score = model(x_t, sigma_bar_t, *given).exp()
    step = euler_probs if method == "euler" else score_probs
    return step(score, x_t, delta_sigma)


@dataclass(frozen=True)
class DenoisingStep:
    r"""What the sampler holds after one step.

    Args:
        index: 0 for the random start, ``num_steps`` for the finished text.
        num_steps: number of steps of the run, each with one evaluation of the network.
        sigma_bar: total noise after this step.
        tokens: tokens after this step, int64 of shape (B, L).
        changed: true where this step changed a token, bool of shape (B, L).
    """

    index: int
    num_steps: int
    sigma_bar: float
    tokens: Tensor
    changed: Tensor


def run_reverse(
    probs_of_step: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokens: Tensor,
    levels: Tensor,
    generators: Sequence[torch.Generator | None],
    keep: Callable[[Tensor], Tensor],
) -> Iterator[DenoisingStep]:
    """Go from each noise level to the next, drawing all positions of a step at once.

    Args:
        probs_of_step: maps tokens (B, L), the noise (B,) now and the noise (B,) after the step to
            probabilities (B, L, V).
        tokens: the start, int64 of shape (B, L).
        levels: total noise before the first step and after each, shape (num_steps + 1,).
        generators: one for each sample.
        keep: maps drawn tokens (B, L) to tokens in which the given ones are put back.

    Yields:
        The start, then what each step leaves.
    """
    batch_size, length = tokens.shape
    rows = levels.float().to(tokens.device)[:, None].expand(-1, batch_size)  # (num_steps + 1, B)
    previous = tokens
    for index, level in enumerate(levels.tolist()):
        if index > 0:
            probs = probs_of_step(previous, rows[index - 1], rows[index])
            tokens = keep(sample_categorical(probs, draw_uniforms(generators, length)))
        yield DenoisingStep(index, len(levels) - 1, level, tokens, tokens != previous)
        previous = tokens


def template_keeper(
    template: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, int],
    vocab_size: int,
    device: torch.device | str,
) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """A function that puts the given tokens back, and the mask (B, L) of where they are.

    Raises:
        ValueError: if template and mask do not fit each other, the shape or the vocabulary.
    """
    if template is None and mask is None:
        return lambda tokens: tokens, None
    if template is None or mask is None:
        raise ValueError("template and mask go together: give both or neither")
    for name, given in (("template", template), ("mask", mask)):
        if tuple(given.shape) not in (shape, shape[1:]):
            got = tuple(given.shape)
            raise ValueError(f"{name} must be of shape {shape[1:]} or {shape}, got {got}")
    if template.is_floating_point() or mask.dtype != torch.bool:
        raise ValueError(f"need int64 and bool, got {template.dtype} and {mask.dtype}")
    template, mask = template.long().expand(shape).to(device), mask.expand(shape).to(device)
    if ((template < 0) | (template >= vocab_size))[mask].any():
        raise ValueError(f"the template has tokens outside 0 to {vocab_size - 1}")
    return lambda tokens: torch.where(mask, template, tokens), mask


SAMPLING_METHODS = ("analytic", "euler")


def check_sampling(model: Any, method: str, temperature: float, shape: tuple[int, int]) -> None:
    """Raise a ``ValueError`` of one line if there can be no run with these arguments."""
    if min(shape) < 1:
        raise ValueError(f"batch_size and seq_len must be at least 1, got {shape}")
    if method not in SAMPLING_METHODS:
        raise ValueError(f"method must be one of {', '.join(SAMPLING_METHODS)}, got {method!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if temperature != 1 and not has_denoiser(model):
        raise ValueError("a temperature other than 1 needs a model that has a denoiser")


def one_generator_each(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int
) -> list[torch.Generator | None]:
    """The generators of all samples: as given, or the one given for each of them in turn."""
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for a batch of {batch_size}")
    return list(generator)


def random_start(
    generators: Sequence[torch.Generator | None], length: int, vocab_size: int
) -> Tensor:
    """Pure noise, int64 of shape (B, length): one row from each generator."""
    return torch.cat([sample_prior(1, length, vocab_size, g, "cpu") for g in generators])


def defaults_of(
    model: Any, vocab_size: int | None, device: torch.device | str | None
) -> tuple[int, torch.device | str]:
    """Vocabulary size and device as given, else as the model's config and parameters say."""
    if device is None:
        parameters = model.parameters() if hasattr(model, "parameters") else ()
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    return model.config.vocab_size if vocab_size is None else vocab_size, device


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
    r"""Write text out of noise and hand out every step of it.

    Args:
        model: a denoiser or a score, see :func:`reverse_probs`; put it in ``eval()`` mode.
        noise: the noise that the model was trained with.
        batch_size: number of texts B.
        seq_len: tokens in each text L.
        vocab_size: number of tokens V; by default ``model.config.vocab_size``.
        num_steps: number of steps, each with one evaluation of the network.
        schedule: a name that :func:`create_timestep_schedule` knows.
        method: ``"analytic"`` or ``"euler"``.
        temperature: 1 samples what the model believes, less makes it surer of itself.
        template: given tokens, int64 of shape (L,) or (B, L).
        mask: true where the template is kept, bool of shape (L,) or (B, L).
        generator: one for all samples in turn, or one for each (:func:`sample_generators`).
        device: where to work; by default where the model's parameters live.
        denoise_last: the last step ends at $\bar\sigma=0$ and not at $\bar\sigma(0)$.

    Returns:
        An iterator over num_steps + 1 steps; the first is the random start.

    Raises:
        ValueError: for arguments that cannot work, at the call.
    """
    shape = (batch_size, seq_len)
    check_sampling(model, method, temperature, shape)
    vocab_size, device = defaults_of(model, vocab_size, device)
    levels = noise_levels(noise, num_steps, schedule, denoise_last)
    generators = one_generator_each(generator, batch_size)
    keep, mask = template_keeper(template, mask, shape, vocab_size, device)
    ask = partial(reverse_probs, model, method=method, temperature=temperature, mask=mask)
    start = random_start(generators, seq_len, vocab_size).to(device)
    return run_reverse(ask, keep(start), levels, generators, keep)


def sample_diffusion(
    model: Any, noise: GeometricNoise, batch_size: int, seq_len: int, **options: Any
) -> Tensor:
    """Write text out of noise.

    Args:
        model: a denoiser or a score, see :func:`reverse_probs`; put it in ``eval()`` mode.
        noise: the noise that the model was trained with.
        batch_size: number of texts B.
        seq_len: tokens in each text L.
        options: the further arguments of :func:`denoising_steps`.

    Returns:
        Tokens, int64 of shape (B, L).
    """
    for step in denoising_steps(model, noise, batch_size, seq_len, **options):
        pass
    return step.tokens
