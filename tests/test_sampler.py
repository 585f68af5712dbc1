# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.

import torch
from torch.nn.functional import one_hot

from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import METHODS, analytic_probs
from ddlm_core.sampler import noise_levels, sample_diffusion, sample_generators
from ddlm_core.tiny_world import (
    product_of_positions,
    three_letter_world,
    total_variation,
    true_reverse,
    two_letter_world,
    written,
)


def test_analytic_step_is_exact_for_each_position():
    world = three_letter_world()
    now, after = torch.tensor([2.0, 0.6], dtype=torch.float64)
    log_q = world.denoise(world.words, now)
    step = analytic_probs(log_q, world.words, now, after)
    true = true_reverse(world, now, after)  # (W, W)
    for i in range(world.length):
        marginal = true @ one_hot(world.words[:, i], world.vocab_size).double()
        torch.testing.assert_close(step[:, i], marginal)
    assert (product_of_positions(world, step) - true).abs().max() > 0.05  # but not for the word


def test_total_variation_falls_like_one_over_the_steps():
    for world in (three_letter_world(), two_letter_world()):
        for method in METHODS:
            distances = []
            for num_steps in (4, 8, 16, 32, 64, 128, 256):
                levels = noise_levels(GeometricNoise(), num_steps)
                run = written(world, levels, method=method)
                distances.append(total_variation(run, world.probs))
            assert sorted(distances, reverse=True) == distances
            assert distances[-1] < 0.006
            assert 1.9 < distances[-2] / distances[-1] < 2.1


def test_loop_writes_what_the_exact_computation_says():
    world, number = three_letter_world(), 4000
    levels = noise_levels(GeometricNoise(), 4, "fraction")
    for options in ({}, {"method": "euler"}, {"churn": 0.6}):
        tokens = sample_diffusion(
            *(world, GeometricNoise(), number, world.length),
            num_steps=4,
            schedule="fraction",
            generator=sample_generators(3, number),
            **options,
        )
        counts = (tokens @ torch.tensor([3, 1])).bincount(minlength=9)
        exact = written(world, levels, **options)
        for probs, low, high in ((exact, 0, 31.8), (world.probs, 500, float("inf"))):
            expected = number * probs
            chi_squared = ((counts - expected) ** 2 / expected).sum()
            assert low < chi_squared < high  # 8 degrees of freedom: 31.8 has p = 1e-4


def test_given_letters_condition_the_rest():
    world, template = three_letter_world(), torch.tensor([1, 0])
    true = world.probs * (world.words[:, 0] == 1)
    true = true / true.sum()
    given = {"template": template, "condition_mask": torch.tensor([True, False])}
    for num_steps in (1, 7):
        run = written(world, noise_levels(GeometricNoise(), num_steps), **given)
        torch.testing.assert_close(run, true)
    levels = noise_levels(GeometricNoise(), 256)
    assert total_variation(written(world, levels, **given, pass_mask=False), true) > 0.1
