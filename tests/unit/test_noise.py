"""Geometric noise: limits, shapes, dtypes, lost digits, and what is refused."""

import math
from typing import get_type_hints

import pytest
import torch

from ddlm_core.noise import (
    GeometricNoise,
    NoiseSchedule,
    as_float_tensor,
    rate_matrix,
    resample_probability,
    transition_matrix,
)
from ddlm_core.support.errors import UserError


def test_rate_matrix_is_what_short_steps_leave():
    for vocab_size in (1, 2, 3, 106):
        Q = rate_matrix(vocab_size)
        assert Q.dtype == torch.float64 and Q.shape == (vocab_size, vocab_size)
        assert Q.sum(1).abs().max() < 1e-14
        others = (1 - torch.eye(vocab_size).double()) / vocab_size
        assert torch.allclose(Q - Q.diagonal().diag(), others, atol=1e-15)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        rate_matrix(0)


def test_many_short_steps_tend_to_the_closed_form():
    Q, stay = rate_matrix(3), torch.eye(3, dtype=torch.float64)
    errors = []
    for steps in (10, 100, 1000):
        chopped = torch.linalg.matrix_power(stay + 2.5 / steps * Q, steps)
        errors.append((chopped - transition_matrix(2.5, 3)).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 1e-3


def test_small_noise_keeps_its_digits():
    for sigma_bar in (1e-4, 1e-6):
        exact = sigma_bar - sigma_bar**2 / 2 + sigma_bar**3 / 6
        single = resample_probability(torch.tensor(sigma_bar))
        kernel = transition_matrix(torch.tensor(sigma_bar), 106)
        assert single.dtype == kernel.dtype == torch.float32
        assert abs(single.double() / exact - 1) < 1e-6
        assert abs(kernel[0, 1].double() * 106 / exact - 1) < 1e-6


def test_transition_matrix_refuses_what_is_no_noise():
    for sigma_bar in (-0.1, float("nan"), torch.tensor([1.0])):
        with pytest.raises(ValueError, match="one number, at least 0"):
            transition_matrix(sigma_bar, 3)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got -2"):
        transition_matrix(1.0, -2)
    forever = transition_matrix(float("inf"), 4)
    assert torch.equal(forever, torch.full((4, 4), 0.25, dtype=torch.float64))
    assert resample_probability(torch.tensor([0, 1])).dtype == torch.float64


def test_time_is_the_inverse_and_the_ends_are_met():
    noise = GeometricNoise()
    for dtype, digits in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        t = torch.linspace(0, 1, 1001, dtype=dtype)
        assert (noise.time(noise.sigma_bar(t)) - t).abs().max() < digits
        line = (1 - t.double()) * math.log(1e-4) + t.double() * math.log(20)
        assert torch.allclose(noise.sigma_bar(t).double(), line.exp(), rtol=digits, atol=0)
        ends = torch.tensor([1e-4, 20], dtype=dtype)
        assert torch.equal(noise.sigma_bar(t)[[0, -1]], ends)


def test_any_shape_and_dtype():
    noise = GeometricNoise()
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (5,), (2, 3), (4, 1, 2), (0,)):
            t = torch.full(shape, 0.25, dtype=dtype)
            for value in (*noise(t), noise.time(t), resample_probability(t)):
                assert value.shape == shape and value.dtype == dtype
    for number in (1, 1.0, torch.tensor(1)):
        assert noise.sigma_bar(number).item() == pytest.approx(20, rel=1e-14)
        assert noise.sigma_bar(number).dtype == torch.float64


def test_limits_that_make_no_schedule_are_refused():
    nan, inf = float("nan"), float("inf")
    for limits in ((0, 1), (-1, 1), (1, 1), (2, 1), (nan, 1), (0.1, nan), (0.1, inf), (inf, inf)):
        with pytest.raises(UserError, match="0 < sigma_min < sigma_max < inf: .*sigma_min="):
            GeometricNoise(*limits)
    assert GeometricNoise(0.1, 5) == GeometricNoise(sigma_min=0.1, sigma_max=5)


def test_numbers_become_floating_tensors():
    for value, dtype in (
        (1, torch.float64),
        (0.5, torch.float64),
        (True, torch.float64),
        (torch.tensor([1, 2]), torch.float64),
        (torch.tensor(1.0), torch.float32),
        (torch.tensor(1.0).bfloat16(), torch.bfloat16),
    ):
        assert as_float_tensor(value).dtype == dtype
    tensor = torch.ones(2)
    assert as_float_tensor(tensor) is tensor


def test_a_geometric_schedule_has_all_that_a_schedule_has():
    names = [name for name in vars(NoiseSchedule) if name[0] != "_"]
    assert sorted(names) == ["sigma", "sigma_bar", "sigma_max", "sigma_min", "time"]
    noise = GeometricNoise(0.5, 2.0)
    assert (noise.sigma_min, noise.sigma_max) == (0.5, 2.0)
    for name in ("sigma", "sigma_bar", "time"):
        ours = get_type_hints(getattr(GeometricNoise, name))
        assert ours == get_type_hints(getattr(NoiseSchedule, name))
    total, rate = noise(0.5)
    assert total.item() == pytest.approx(1.0, rel=1e-14)
    assert rate.item() == pytest.approx(math.log(4), rel=1e-14) == noise.log_growth


def test_the_kernel_has_the_dtype_of_its_noise():
    for noise, dtype in (
        (0.5, torch.float64),
        (1, torch.float64),
        (torch.tensor(0.5), torch.float32),
    ):
        assert transition_matrix(noise, 3).dtype == dtype
    assert torch.equal(transition_matrix(0.0, 3), torch.eye(3, dtype=torch.float64))


def test_the_time_of_a_plain_number():
    noise = GeometricNoise()
    for number in (20, 20.0, torch.tensor(20)):
        assert noise.time(number).dtype == torch.float64
        assert noise.time(number).item() == pytest.approx(1, rel=1e-14)


def test_noise_adds_up():
    for vocab_size in (2, 3, 106):
        for u, v in ((1e-4, 1e-4), (1e-4, 20.0), (0.3, 0.5), (2.0, 7.0)):
            both = transition_matrix(u, vocab_size) @ transition_matrix(v, vocab_size)
            assert (both - transition_matrix(u + v, vocab_size)).abs().max() < 1e-13
