# Generated from notebooks/06_model.py by tools/export.py: edit that, then run `make export`.

import math

import torch
from torch import Tensor

from ddlm_core.loss import log_posterior, log_ratio
from ddlm_core.model import DiscreteDiffusionTransformer, Modulation
from ddlm_core.testing import fresh_network, noised_batch, small_network


def test_fresh_network_is_the_uniform_baseline():
    x_t, sigma_bar = noised_batch()  # three texts of seven tokens
    for parametrization in ("denoiser", "score"):
        assert (fresh_network(parametrization=parametrization)(x_t, sigma_bar) == 0).all()
    network = fresh_network()
    log_q = network.denoise(x_t, sigma_bar)
    assert torch.allclose(log_q, torch.full((3, 7, 8), -math.log(8)).double())
    cond = network.noise_embedding(sigma_bar)
    for modulation in (m for m in network.modules() if isinstance(m, Modulation)):
        assert all((part == 0).all() for part in modulation(cond))


def influence(network: DiscreteDiffusionTransformer, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
    """Size of the derivatives of the logits by the embedded tokens: (B, L, B, L)."""
    embedded = []
    hook = network.embedding.register_forward_hook(lambda *call: embedded.append(call[-1]))
    logits = network.logits(x_t, sigma_bar)
    hook.remove()
    answers = logits @ torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)  # (B, L)
    rows = [torch.autograd.grad(a, embedded[0], retain_graph=True)[0] for a in answers.flatten()]
    return torch.stack(rows).norm(dim=-1).view(*x_t.shape, *x_t.shape)


def test_every_position_depends_on_every_other_and_nothing_else():
    x_t, sigma_bar = noised_batch(3, 12)
    others = ~torch.eye(12, dtype=torch.bool)
    for n_layer in (1, 2, 3, 4, 6):
        size = influence(small_network(n_layer=n_layer), x_t, sigma_bar)
        for a in range(3):
            for b in range(3):
                assert torch.equal(size[a, :, b] > 0, others if a == b else others & False)


def test_score_is_the_mean_ratio_whatever_the_network_says():
    x_t, sigma_bar = noised_batch()
    for seed in range(3):
        network = small_network(seed)
        posterior = log_posterior(network.denoise(x_t, sigma_bar), sigma_bar, x_t).exp()
        mean = torch.zeros(3, 7, 8, dtype=torch.float64)
        for z in range(8):
            ratio = log_ratio(sigma_bar, x_t, torch.full_like(x_t, z), 8).exp()
            mean += posterior[..., z, None] * ratio
        assert torch.allclose(mean, network(x_t, sigma_bar).exp(), rtol=1e-9)
