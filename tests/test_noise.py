# Generated from notebooks/03_noise.py by tools/export.py: edit that, then run `make export`.

import torch

from ddlm_core.noise import GeometricNoise, rate_matrix, transition_matrix


def test_closed_form_equals_matrix_exp():
    for vocab_size in (1, 2, 3, 27, 106):
        for sigma_bar in (0.0, 1e-4, 1e-2, 0.5, 1.0, 3.0, 10.0, 20.0):
            kernel = transition_matrix(sigma_bar, vocab_size)
            limit = torch.linalg.matrix_exp(sigma_bar * rate_matrix(vocab_size))
            assert (kernel - limit).abs().max() < 1e-12
            assert (kernel >= 0).all() and (kernel.sum(1) - 1).abs().max() < 1e-14


def test_rate_is_the_derivative_of_the_total():
    for noise in (GeometricNoise(), GeometricNoise(0.01, 3.0), GeometricNoise(2, 5)):
        t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
        sigma_bar, sigma = noise(t)
        (slope,) = torch.autograd.grad(sigma_bar.sum(), t)
        assert torch.allclose(sigma, slope, rtol=1e-12, atol=0)


def test_kernel_solves_the_equation_of_the_process():
    noise = GeometricNoise()
    clean = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)

    def p(t):
        return clean @ transition_matrix(noise.sigma_bar(t), 3)

    for t in torch.tensor([0.0, 0.3, 0.7, 0.8, 1.0], dtype=torch.float64):
        slope = torch.autograd.functional.jacobian(p, t)
        flow = noise.sigma(t) * p(t) @ rate_matrix(3)
        assert torch.allclose(slope, flow, rtol=1e-10, atol=1e-12)
