# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.

import math
from typing import Any

import torch
from torch import Tensor

from ddlm_core.graph import Denoiser
from ddlm_core.modern_samplers import Annealed, TopP, accepting_probs, entropy_bound_steps
from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import churned_probs
from ddlm_core.sampler import noise_levels, sample_generators
from ddlm_core.tiny_world import (
    TinyWorld,
    product_of_positions,
    three_letter_world,
    total_variation,
    true_reverse,
    two_letter_world,
)


def test_total_correlation_is_within_the_bound():
    world = two_letter_world()
    for sigma_bar in torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64):
        clean = true_reverse(world, sigma_bar, torch.zeros_like(sigma_bar))  # (W, W): p(x_0 | x_t)
        for bound in (0.0, 0.2, 0.5, 1.0):
            probs, accepted = accepting_probs(world, world.words, sigma_bar, bound=bound)
            entropies = torch.special.entr(probs).sum(-1)  # (W, L)
            for p, mask, entropy in zip(clean, accepted, entropies, strict=True):
                number = world.words[:, mask] @ 2 ** torch.arange(int(mask.sum()))
                together = torch.zeros(8, dtype=torch.float64).index_add_(0, number, p)
                sum_of_entropies = entropy[mask].sum()
                total_correlation = sum_of_entropies - torch.special.entr(together).sum()
                assert mask.any() and total_correlation <= bound + 1e-9
                assert mask.all() or sum_of_entropies > bound  # one more would be too many


def written_by_steps(world: TinyWorld, model: Denoiser, num_steps: int, **options: Any) -> Tensor:
    """(W,): exact probabilities of the words that a run of cosine steps writes."""
    levels = noise_levels(GeometricNoise(), num_steps, "cosine")
    probs = torch.full_like(world.probs, 1 / len(world.probs))
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(model, world.words, now, after, **options)
        probs = probs @ product_of_positions(world, step)
    return probs


def written_by_bound(world: TinyWorld, bound: float, max_steps: int) -> tuple[Tensor, float]:
    """(W,): the same for entropy-bound acceptance; and the mean number of evaluations."""
    length, most = world.length, GeometricNoise().sigma_max
    held = torch.zeros(length + 1, len(world.words), dtype=torch.float64)
    held[length], evaluations = 1 / len(world.words), 0.0  # held[k]: k letters not accepted
    for step in range(1, max_steps + 1):
        enough = bound if step < max_steps else math.inf
        after = torch.zeros_like(held)
        after[0] = held[0]
        evaluations += held[1:].sum().item()
        for k in range(1, length + 1):
            sigma_bar = most if k == length else -math.log1p(-k / length)
            probs, accepted = accepting_probs(world, world.words, sigma_bar, bound=enough)
            moves = held[k, :, None] * product_of_positions(world, probs)  # (W, W)
            after.index_add_(0, (~accepted).sum(-1), moves)
        held = after
    return held[0], evaluations


def test_run_writes_what_the_exact_computation_says():
    world, number = three_letter_world(), 4000
    for bound, max_steps in ((0.4, 128), (0.7, 2)):
        options = {"bound": bound, "max_steps": max_steps}
        generators = sample_generators(5, number)
        *_, last = entropy_bound_steps(
            *(world, GeometricNoise(), number, world.length), generator=generators, **options
        )
        exact, evaluations = written_by_bound(world, **options)
        counts = (last.tokens @ torch.tensor([3, 1])).bincount(minlength=9)
        chi_squared = ((counts - number * exact) ** 2 / (number * exact)).sum()
        assert chi_squared < 31.8  # 8 degrees of freedom: above it once in ten thousand trials
        assert abs(last.evaluations.double().mean() - evaluations) < 0.05 * evaluations
        assert total_variation(exact, world.probs) > 0.1  # not the language


def test_more_steps_help_some_samplers():
    world = three_letter_world()

    def miss(denoiser, num_steps, **options):
        return total_variation(written_by_steps(world, denoiser, num_steps, **options), world.probs)

    assert miss(world, 256) < miss(world, 16) / 12  # 1/N
    assert miss(world, 256, churn=1.0) < miss(world, 16, churn=1.0) / 2.5  # 1/sqrt(N)
    for denoiser in (TopP(world, 0.95), Annealed(world, 1.0, 0.5)):
        assert miss(denoiser, 256) > 0.03
