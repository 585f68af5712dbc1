# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Reverse diffusion: the step of one position, time grids, and the one loop that writes text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ddlm_core.forward import noise_column, transition
from ddlm_core.graph import UNIFORM, Denoiser, Graph, ScoreModel, graph_of
from ddlm_core.noise import GeometricNoise, NoiseSchedule, resample_probability
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

__all__ = [
    "euler_probs",
    "analytic_probs",
    "staggered_score",
    "SCHEDULES",
    "create_timestep_schedule",
    "noise_levels",
    "METHODS",
    "has_denoiser",
    "reverse_probs",
    "sample_generators",
    "DenoisingStep",
    "churned_probs",
    "denoising_steps",
    "sample_diffusion",
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


METHODS = ("analytic", "euler")


def has_denoiser(model: ScoreModel) -> TypeGuard[Denoiser]:
    r"""Whether the model gives $\log q$; if not, all that it has are log-scores."""
    config = getattr(model, "config", None)  # a network may be of the paper's kind
    return hasattr(model, "denoise") and getattr(config, "parametrization", "") != "score"


def _check_step(model: ScoreModel, method: str, temperature: float, churn: float = 0.0) -> None:
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
    _check_step(model, method, temperature)
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
    _check_step(model, method, temperature, churn)
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
    _check_step(model, method, temperature, churn)
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
