# Generated from notebooks/05_loss.py by tools/export.py: edit that, then run `make export`.

import mpmath
import torch
from torch.nn.functional import one_hot

from ddlm_core.loss import (
    denoiser_log_score,
    kappa,
    log_posterior,
    log_ratio,
    prior_kl,
    score_entropy_loss,
)
from ddlm_core.support.worlds import World, noise_nodes, small_worlds


def brute_force(log_score: list[float], sigma_bar: float, x_t: int, x_0: int) -> float:
    """The sum over y of one position, from the definition, with 40 digits."""
    with mpmath.workdps(40):
        vocab_size, decay = len(log_score), mpmath.exp(-mpmath.mpf(sigma_bar))
        p = [(1 - decay) / vocab_size + (decay if y == x_0 else 0) for y in range(vocab_size)]
        total = mpmath.mpf(0)
        for y in (y for y in range(vocab_size) if y != x_t):
            a, log_s = p[y] / p[x_t], mpmath.mpf(log_score[y])
            total += mpmath.exp(log_s) - a * log_s + a * (mpmath.log(a) - 1)
        return float(total / vocab_size)


def worst_error(loss, vocab_size: int, dtype: torch.dtype) -> float:
    """Largest error of a loss against brute force, in units of the tolerance."""
    g = torch.Generator().manual_seed(vocab_size)
    relative, absolute = (1e-9, 1e-9) if dtype == torch.float64 else (1e-4, 1e-7)
    sigma_bar = torch.tensor([1e-4, 1e-2, 0.3, 1.0, 3.0, 20.0], dtype=dtype)
    x_0 = torch.randint(vocab_size, (6, 4), generator=g)
    x_t = x_0.clone()
    x_t[:, :2] = (x_0[:, :2] + torch.randint(1, vocab_size, (6, 2), generator=g)) % vocab_size
    truth = log_ratio(sigma_bar.double(), x_t, x_0, vocab_size)
    worst = 0.0
    for scale in (0.0, 1e-4, 1e-2, 0.3, 6.0):
        wrong = torch.randn(truth.shape, generator=g, dtype=torch.float64)
        log_score = (truth + scale * wrong).to(dtype)
        found = loss(log_score, sigma_bar, x_t, x_0)
        for b, i in [(b, i) for b in range(6) for i in range(4)]:
            numbers = sigma_bar[b].item(), x_t[b, i].item(), x_0[b, i].item()
            exact = brute_force(log_score[b, i].tolist(), *numbers)
            error = abs(found[b, i].item() - exact)
            worst = max(worst, error / (relative * exact + absolute))
    return worst


def test_loss_equals_the_sum():
    for vocab_size in (2, 3, 27, 106):
        for dtype in (torch.float64, torch.float32):
            assert worst_error(score_entropy_loss, vocab_size, dtype) < 1


def buggy_loss(log_score, sigma_bar, x_t, x_0):
    """Score entropy with a common bug: wrong where x_t differs from x_0."""
    vocab_size = log_score.shape[-1]
    stay = 1 + kappa(sigma_bar, vocab_size)[..., None]  # the ratio at x_0, if it moved
    at_x_t, at_x_0 = (log_score.gather(-1, x[..., None])[..., 0] for x in (x_t, x_0))
    positive = (log_score.exp().sum(-1) - at_x_t.exp()) / (vocab_size - 1)
    middle = (log_score.sum(-1) - at_x_t) / (vocab_size - 1)
    middle_moved = stay * at_x_0 / (vocab_size - 1) + middle * (vocab_size - 2) / (vocab_size - 1)
    constant = (-stay.log() - 1) / stay
    constant_moved = (stay * (stay.log() - 1) - (vocab_size - 2)) / (vocab_size - 1)
    unmoved = positive - middle / stay + constant
    return torch.where(x_t == x_0, unmoved, positive - middle_moved + constant_moved)


def test_the_bug_is_caught():
    def only_the_bug(log_score, *noise_and_texts):  # with our weight 1/V
        weight = (log_score.shape[-1] - 1) / log_score.shape[-1]
        return weight * buggy_loss(log_score, *noise_and_texts)

    assert worst_error(only_the_bug, 2, torch.float64) < 1  # nothing to see with two letters!
    for vocab_size in (3, 27, 106):
        assert worst_error(only_the_bug, vocab_size, torch.float64) > 1e6


def test_denoiser_score_is_the_true_score():
    levels = torch.tensor([1e-4, 0.1, 1.0, 5.0], dtype=torch.float64)
    for world in small_worlds():
        truth = zip(levels, world.log_q(levels), world.log_score(levels), strict=True)
        for sigma_bar, log_q, log_s in truth:
            found = denoiser_log_score(log_q, sigma_bar, world.texts)
            assert torch.allclose(found, log_s, rtol=1e-9, atol=1e-9)


def exact_area(world: World, sigma_min: float, sigma_max: float) -> float:
    """The integral of the expected loss of the true score over the noise, in nats per text."""
    levels, weight = noise_nodes(sigma_min, sigma_max)
    loss = world.expected_loss(score_entropy_loss, world.log_score(levels), levels)
    return (weight * loss).sum().item()


def expected_reconstruction(world: World, sigma_bar: float) -> float:
    """Exact mean of -log p(x_0 | x_t), each letter on its own, in nats per text."""
    noise = torch.tensor([sigma_bar], dtype=torch.float64)
    log_p = log_posterior(world.log_q(noise)[0], noise[0], world.texts)  # (N, L, V)
    letters = one_hot(world.texts, world.vocab_size).bool()
    table = torch.where(letters[:, None], log_p, 0.0).sum((2, 3))  # (x_0, x_t)
    joint = world.joint(noise)[0]
    return -torch.where(joint > 0, joint * table, 0.0).sum().item()


def test_area_is_the_information_destroyed():
    for world in small_worlds():
        lost = world.information(1e-4) - world.information(20.0)
        assert abs(exact_area(world, 1e-4, 20.0) - lost) < 1e-12


def test_bound_is_the_entropy_of_the_data():
    for world in small_worlds():
        bound = exact_area(world, 1e-4, 20.0) + expected_reconstruction(world, 1e-4)
        bound += world.length * prior_kl(20.0, world.vocab_size).item()
        assert -1e-10 < bound - world.entropy() < 1e-6  # from above: it is a bound
