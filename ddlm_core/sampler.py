# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Reverse diffusion: time grids, and the one loop that writes text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ddlm_core.graph import ScoreModel, graph_of
from ddlm_core.noise import GeometricNoise, NoiseSchedule
from ddlm_core.reverse import check_step, churned_probs
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

__all__ = [
    "SCHEDULES",
    "create_timestep_schedule",
    "noise_levels",
    "sample_generators",
    "DenoisingStep",
    "denoising_steps",
    "sample_diffusion",
]

SCHEDULES = ("linear", "cosine", "fraction")


def create_timestep_schedule(
    num_steps: int, schedule: str = "linear", noise: NoiseSchedule | None = None
) -> Tensor:
    r"""The time grid of a run, from 1 (noise) down to 0 (text): float64 (num_steps + 1,).

    Equal steps of t (``"linear"``) or of the resample probability f (``"fraction"``), or ``"cosine"``:
    $f = 1 - \sin(\pi u / 2)$ after a share u of the steps, for the given noise schedule (by
    default ``GeometricNoise()``). A number of steps below 1 or an unknown name is a ``UserError``.
    """
    check_range(1, math.inf, num_steps=num_steps)
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
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
    noise: NoiseSchedule, num_steps: int, schedule: str = "linear", denoise_last: bool = True
) -> Tensor:
    r"""Total noise at the times of ``create_timestep_schedule``: float64 (num_steps + 1,).

    The last level is 0, so that the last step leads to clean text; without ``denoise_last`` it is
    $\bar\sigma(0)$. Errors as there.
    """
    levels = noise.sigma_bar(create_timestep_schedule(num_steps, schedule, noise))
    return torch.cat([levels[:-1], levels.new_zeros(1)]) if denoise_last else levels


def _sample_categorical(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds a uniform number: (…, V), (…) to (…)."""
    cdf = probs.cumsum(-1)
    total = cdf[..., -1:]  # rows need not be normalized
    u = uniform.to(probs.dtype).to(probs.device)[..., None] * total
    u = u.minimum(torch.nextafter(total, torch.zeros_like(total)))  # rounding can reach the total
    return (cdf <= u).sum(-1)


def _uniform(generator: torch.Generator | None, length: int) -> Tensor:
    """Random numbers in [0, 1), float64 (L,), on the device of the generator."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(length, dtype=torch.float64, generator=generator, device=device)


def sample_generators(seed: int, batch_size: int, first: int = 0) -> list[torch.Generator]:
    """CPU generators, one for each text: that of text i depends on ``seed`` and ``first + i`` alone.

    Hand them to ``denoising_steps`` as ``generator``. Negative numbers raise a ``UserError``.
    """
    check_range(0, math.inf, seed=seed, batch_size=batch_size, first=first)
    base = int(np.random.SeedSequence(seed).generate_state(1)[0]) + first
    return [torch.Generator().manual_seed((base + i) % 2**32) for i in range(batch_size)]


@dataclass(frozen=True)
class DenoisingStep:
    """What the sampler holds after a step."""

    index: int  # 0 for the random start, num_steps for the finished text
    num_steps: int  # steps of the run, each with one function evaluation
    sigma_bar: float  # total noise after this step
    tokens: Tensor  # int64 (B, L)
    changed: Tensor  # bool (B, L): true where this step changed a token


def _run_reverse(
    step_probs: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokens: Tensor,
    levels: Tensor,
    generators: Sequence[torch.Generator | None],
    condition_mask: Tensor | None = None,
) -> Iterator[DenoisingStep]:
    """The start (B, L), then what each step leaves, through noise ``levels`` (num_steps + 1,)."""
    sigmas = levels.float().to(tokens.device)  # a network computes in float32
    free = torch.ones_like(tokens, dtype=torch.bool) if condition_mask is None else ~condition_mask
    changed = torch.zeros_like(free)
    for index, level in enumerate(levels.tolist()):
        if index > 0:
            probs = step_probs(tokens, sigmas[index - 1], sigmas[index])
            uniform = torch.stack([_uniform(g, tokens.shape[1]) for g in generators])  # (B, L)
            drawn = _sample_categorical(probs, uniform)
            changed = (drawn != tokens) & free  # given tokens stay
            tokens = torch.where(changed, drawn, tokens)
        yield DenoisingStep(index, len(levels) - 1, level, tokens, changed)


def _with_condition(
    tokens: Tensor, template: Tensor | None, condition_mask: Tensor | None, vocab_size: int
) -> tuple[Tensor, Tensor | None]:
    """The start (B, L) with the given tokens in their places, and the mask, bool (B, L)."""
    if template is None and condition_mask is None:
        return tokens, None
    if not isinstance(template, Tensor) or not isinstance(condition_mask, Tensor):
        raise UserError("template and condition_mask go together: both must be tensors")
    shapes = (tuple(tokens.shape[1:]), tuple(tokens.shape))
    for name, value, dtype in (
        ("template", template, torch.int64),
        ("condition_mask", condition_mask, torch.bool),
    ):
        if value.dtype != dtype or value.shape not in shapes:
            need = f"{dtype} of shape {shapes[0]} or {shapes[1]}"
            raise UserError(f"{name} must be {need}, got {value.dtype} {tuple(value.shape)}")
    template, mask = (
        given.expand_as(tokens).to(tokens.device) for given in (template, condition_mask)
    )
    if ((template < 0) | (template >= vocab_size))[mask].any():
        raise UserError(f"the template has tokens outside 0 to {vocab_size - 1}")
    return torch.where(mask, template, tokens), mask


def _device_of(model: ScoreModel) -> torch.device:
    """Where the parameters of a network are; the CPU for any other function."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def denoising_steps(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    num_steps: int = 128,
    schedule: str = "linear",
    method: str = "analytic",
    temperature: float = 1.0,
    churn: float = 0.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and each of ``num_steps`` steps.

    Each step takes one function evaluation of ``model``, which has ``denoise``, or gives log-scores
    (B, L, V) when called. ``template``, int64, (L,) or (B, L), stays where ``condition_mask``, bool, is
    true. ``generator``: one for all texts, or one for each. The time grid is that of
    ``create_timestep_schedule``, the steps are those of ``churned_probs``; without ``denoise_last`` the run stops
    at the least noise of the schedule. ``vocab_size`` and ``device`` are by default those of the model.
    What cannot work raises a ``UserError`` at the call. (SEDD, Lou, Meng & Ermon 2024; churn is ours.)
    """
    check_range(1, math.inf, batch_size=batch_size, seq_len=seq_len)
    check_step(model, method, temperature, churn)
    generators: Sequence[torch.Generator | None]
    generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
    if len(generators) != batch_size:
        raise UserError(f"got {len(generators)} generators for a batch of {batch_size}")
    vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
    levels = noise_levels(noise, num_steps, schedule, denoise_last)
    prior = graph_of(model).sample_prior
    start = torch.cat([prior(1, seq_len, vocab_size, g) for g in generators])
    start = start.to(_device_of(model) if device is None else device)
    start, condition_mask = _with_condition(start, template, condition_mask, vocab_size)
    step_probs = partial(
        churned_probs,
        model,
        churn=churn,
        method=method,
        temperature=temperature,
        condition_mask=condition_mask,
    )
    return _run_reverse(step_probs, start, levels, generators, condition_mask)


def sample_diffusion(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    num_steps: int = 128,
    schedule: str = "linear",
    method: str = "analytic",
    temperature: float = 1.0,
    churn: float = 0.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    denoise_last: bool = True,
) -> Tensor:
    """The finished texts, int64 (B, L): the last of ``denoising_steps``, whose arguments and errors these are."""
    steps = denoising_steps(
        model,
        noise,
        batch_size,
        seq_len,
        vocab_size=vocab_size,
        num_steps=num_steps,
        schedule=schedule,
        method=method,
        temperature=temperature,
        churn=churn,
        template=template,
        condition_mask=condition_mask,
        generator=generator,
        device=device,
        denoise_last=denoise_last,
    )
    for step in steps:
        pass
    return step.tokens
