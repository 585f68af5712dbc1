# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.

import numpy as np
import torch

from ddlm_core.absorbing import ABSORBING, LogLinearNoise, mask_log_score, mask_loss
from ddlm_core.reverse import analytic_probs, reverse_probs
from ddlm_core.sampler import noise_levels
from ddlm_core.support.worlds import three_letter_words


def test_score_is_the_ratio_of_the_marginals():
    world = three_letter_words()
    levels = torch.tensor([0.02, 0.7, 3.5], dtype=torch.float64)
    masked = (world.texts == 3)[..., None]  # letters have no way back
    for sigma_bar, true in zip(levels, world.log_score(levels), strict=True):
        found = mask_log_score(world.denoise(world.texts, sigma_bar), sigma_bar, world.texts)
        torch.testing.assert_close(found[masked.expand_as(found)], true[masked.expand_as(true)])


def test_loss_of_a_denoiser_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    log_q = torch.randn(3, 5, 107, generator=g).log_softmax(-1)
    x_0, sigma_bar = torch.randint(106, (3, 5), generator=g), torch.tensor([0.01, 0.7, 5.0])
    x_t = x_0.masked_fill(torch.rand(3, 5, generator=g) < 0.6, 106)
    found = mask_loss(mask_log_score(log_q, sigma_bar, x_t), sigma_bar, x_t, x_0)
    log_p = log_q[..., :106].log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
    torch.testing.assert_close(found, (x_t == 106) * -log_p / torch.expm1(sigma_bar)[:, None])


def test_each_mask_opens_with_the_share_that_opens():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]] * 2], dtype=torch.float64), torch.tensor([[3, 1]])
    for now, one_back in ((0.6, 0.45), (1.0, 0.9), (1.0, 0.0), (1e-9, 0.0)):  # mask ratios
        levels = LogLinearNoise().sigma_bar(torch.tensor([now, one_back], dtype=torch.float64))
        step = analytic_probs(q.log(), x_t, *levels, ABSORBING)[0]
        unmasked = (now - one_back) / now
        expected = unmasked * q[0, 0] + (1 - unmasked) * torch.tensor([0, 0, 0, 1])
        torch.testing.assert_close(step[0], expected)
        assert step[1].tolist() == [0, 1, 0, 0]


def exact_area() -> tuple[float, float]:
    """The integral over t of σ(t) times the expected loss, and the entropy: nats per word."""
    world = three_letter_words()
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(8))
    sigma_bar, sigma = LogLinearNoise()((nodes + 1) / 2)
    scores = [mask_log_score(world.denoise(world.texts, s), s, world.texts) for s in sigma_bar]
    loss = world.expected_loss(mask_loss, torch.stack(scores), sigma_bar)
    return (weights / 2 * sigma * loss).sum().item(), world.entropy()


def test_area_is_the_entropy():
    area, entropy = exact_area()
    assert abs(area - entropy) < 1e-12


def distance_of(num_steps: int, schedule: str = "fraction") -> float:
    """Total variation distance of what a run writes to the language, without sampling."""
    world = three_letter_words(ABSORBING)
    start = (world.texts == 3).all(-1).double()  # nothing but masks
    levels = noise_levels(LogLinearNoise(), num_steps, schedule)
    probs = world.written(lambda *step: reverse_probs(world, *step), levels, start)
    return (probs - world.p_0).abs().sum().item() / 2


def test_distance_is_that_of_one_step_over_their_number():
    assert distance_of(1) > 0.5
    for num_steps in (2, 3, 16, 128):
        assert abs(distance_of(num_steps) - distance_of(1) / num_steps) < 1e-12
