# Generated from notebooks/05_loss.py by tools/export.py: edit that, then run `make export`.

import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import (
    compute_loss,
    denoiser_log_score,
    kappa,
    log_posterior,
    log_ratio,
    low_discrepancy_times,
    masked_mean,
    prior_kl,
    score_entropy_loss,
)
from ddlm_core.noise import GeometricNoise, transition_matrix


def test_log_ratio_is_the_quotient_of_the_kernel():
    x_t, x_0 = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 2]])
    for vocab_size in (3, 106):
        for sigma_bar in (1e-4, 0.3, 5.0, 20.0):
            kernel = transition_matrix(sigma_bar, vocab_size)
            expected = (kernel[x_0] / kernel[x_0, x_t][..., None]).log()
            noise = torch.tensor([sigma_bar], dtype=torch.float64)
            log_a = log_ratio(noise, x_t, x_0, vocab_size)
            assert torch.allclose(log_a, expected, rtol=1e-9, atol=1e-12)
            assert (log_a.gather(-1, x_t[..., None]) == 0).all()


def oracle(log_score: list[float], sigma_bar: float, x_t: int, x_0: int) -> float:
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
    """Largest error of a loss against the oracle, in units of the tolerance."""
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
            exact = oracle(log_score[b, i].tolist(), *numbers)
            error = abs(found[b, i].item() - exact)
            worst = max(worst, error / (relative * exact + absolute))
    return worst


@pytest.mark.parametrize("vocab_size", [2, 3, 27, 106])
def test_loss_equals_the_sum(vocab_size):
    assert worst_error(score_entropy_loss, vocab_size, torch.float64) < 1
    assert worst_error(score_entropy_loss, vocab_size, torch.float32) < 1


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    scores=st.lists(st.floats(-80, 80, width=32), min_size=2, max_size=6),
    log_sigma=st.floats(-9.2, 3.0),
    x_t=st.integers(0, 1),
    near=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_loss_is_never_negative(scores, log_sigma, x_t, near, dtype):
    sigma_bar = torch.tensor([log_sigma], dtype=dtype).exp()
    x_t, x_0 = torch.tensor([[x_t]]), torch.tensor([[0]])
    truth = log_ratio(sigma_bar, x_t, x_0, len(scores))
    log_score = truth + near**8 * torch.tensor([[scores]], dtype=dtype)  # often very near
    assert score_entropy_loss(log_score, sigma_bar, x_t, x_0).item() >= 0


def test_loss_is_zero_at_the_truth_only():
    x_t, x_0 = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])  # unmoved, moved
    for sigma_bar in torch.tensor([[1e-4], [1.0], [20.0]], dtype=torch.float64):
        truth = log_ratio(sigma_bar, x_t, x_0, 5).requires_grad_()
        loss = score_entropy_loss(truth, sigma_bar, x_t, x_0)
        (gradient,) = torch.autograd.grad(loss.sum(), truth)
        assert loss.abs().max() < 1e-20 and gradient.abs().max() < 1e-9
        for y in range(5):
            off = truth.detach().clone()
            off[..., y] += 0.1
            at_x_t = x_t == y  # the value there is ignored
            assert ((score_entropy_loss(off, sigma_bar, x_t, x_0) > 1e-12) == ~at_x_t).all()


def test_loss_survives_extreme_scores():
    x_t, x_0 = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])
    for sigma_bar in torch.tensor([[1e-4], [1.0], [20.0]]):
        for size in (70.0, 1e4):
            for sign in (1, -1):
                log_score = torch.full((1, 2, 5), sign * size, requires_grad=True)
                loss = score_entropy_loss(log_score, sigma_bar, x_t, x_0)
                (gradient,) = torch.autograd.grad(loss.sum(), log_score)
                assert not loss.isnan().any() and not gradient.isnan().any()
                if size < 80 or sign < 0:  # e^80 still fits into float32
                    assert loss.isfinite().all() and gradient.isfinite().all()


def test_loss_of_half_precision_scores_is_float32():
    x_t, x_0 = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])
    log_score = torch.full((1, 2, 5), 0.5, dtype=torch.bfloat16)
    sigma_bar = torch.ones(1)
    loss = score_entropy_loss(log_score, sigma_bar, x_t, x_0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, score_entropy_loss(log_score.float(), sigma_bar, x_t, x_0))


def test_loss_rejects_shapes_that_do_not_fit():
    tokens, log_score = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5)
    for sigma_bar in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="fit together"):
            score_entropy_loss(log_score, sigma_bar, tokens, tokens)
    with pytest.raises(ValueError, match="fit together"):
        score_entropy_loss(log_score, torch.ones(2), tokens, tokens[:, :2])


def slipped_loss(log_score, sigma_bar, x_t, x_0):
    """Score entropy as several tutorials have it: wrong where x_t differs from x_0."""
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


def test_the_slip_is_caught():
    def only_the_slip(log_score, sigma_bar, x_t, x_0):  # with our weight 1/V
        vocab_size = log_score.shape[-1]
        return slipped_loss(log_score, sigma_bar, x_t, x_0) * (vocab_size - 1) / vocab_size

    assert worst_error(only_the_slip, 2, torch.float64) < 1  # nothing to see with two letters!
    for vocab_size in (3, 27, 106):
        assert worst_error(only_the_slip, vocab_size, torch.float64) > 1e6
    x_t, x_0 = torch.tensor([[0]]), torch.tensor([[1]])
    for sigma_bar, excess in ((1.0, 0.02), (3.0, 0.15), (5.0, 0.58)):
        noise = torch.tensor([sigma_bar], dtype=torch.float64)
        truth = log_ratio(noise, x_t, x_0, 106)
        assert slipped_loss(truth, noise, x_t, x_0).item() < 0
        # the minimizer, by Newton's method in log s
        log_score = truth.clone().requires_grad_()
        for _ in range(50):
            loss = slipped_loss(log_score, noise, x_t, x_0).sum()
            (slope,) = torch.autograd.grad(loss, log_score)
            curvature = log_score.exp() / 105
            log_score = (log_score - slope / curvature).detach().requires_grad_()
        found = (log_score - truth)[0, 0, 1].expm1().item()
        assert abs(found - excess) < 0.005
        assert abs((log_score - truth)[0, 0, 2].expm1().item() + 1 / 105) < 1e-6  # others: 1 % low


class World:
    """All N = V^L texts with their probabilities, and the true answers of a network."""

    def __init__(self, p_0: Tensor, vocab_size: int, length: int) -> None:
        self.p_0, self.vocab_size, self.length = p_0, vocab_size, length
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.place = vocab_size ** torch.arange(length - 1, -1, -1)
        number = torch.arange(vocab_size**length)
        self.texts = number[:, None] // self.place % vocab_size  # (N, L)
        change = (torch.arange(vocab_size) - self.texts[..., None]) * self.place[:, None]
        self.swapped = number[:, None, None] + change  # (N, L, V): the text with letter i := y

    def letter_kernel(self, sigma_bar: Tensor) -> Tensor:
        """p(letter i of x_t | letter i of x_0) for noise (S,): shape (S, x_0, x_t, L)."""
        decay = torch.exp(-sigma_bar.double())[:, None, None, None]
        same = self.texts[:, None] == self.texts
        return decay * same + (1 - decay) / self.vocab_size

    def joint(self, sigma_bar: Tensor) -> Tensor:
        """p(x_0, x_t): shape (S, N, N)."""
        return self.p_0[:, None] * self.letter_kernel(sigma_bar).prod(-1)

    def log_score(self, sigma_bar: Tensor) -> Tensor:
        """The true log-score of every text: shape (S, N, L, V)."""
        log_p = self.joint(sigma_bar).sum(1).log()
        return log_p[:, self.swapped] - log_p[:, :, None, None]

    def log_q(self, sigma_bar: Tensor) -> Tensor:
        """log p(letter i of x_0 | all other letters of x_t): shape (S, N, L, V)."""
        others = self.joint(sigma_bar)[..., None] / self.letter_kernel(sigma_bar)
        letters = one_hot(self.texts, self.vocab_size).double()
        q = torch.einsum("sabi,aiy->sbiy", others, letters)
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.log_score(sigma_bar)[range(len(x_t)), (x_t * self.place).sum(-1)]

    def denoise(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.log_q(sigma_bar)[range(len(x_t)), (x_t * self.place).sum(-1)]


def small_worlds() -> list[World]:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (3, 2), (5, 1)]  # (V, L)
    tables = [torch.randn(v**n, generator=g, dtype=torch.float64).softmax(0) for v, n in shapes]
    return [World(p, v, n) for p, (v, n) in zip(tables, shapes, strict=True)]


NOISES = torch.tensor([1e-4, 0.1, 1.0, 5.0], dtype=torch.float64)


def test_average_ratio_is_the_marginal_ratio():
    for world in small_worlds():
        joint, n = world.joint(NOISES), len(world.texts)
        x_0, x_t = world.texts.repeat_interleave(n, 0), world.texts.repeat(n, 1)
        for p, sigma_bar, log_s in zip(joint, NOISES, world.log_score(NOISES), strict=True):
            a = log_ratio(sigma_bar, x_t, x_0, world.vocab_size).exp()
            mean = torch.einsum("ab,abiy->biy", p / p.sum(0), a.view(n, n, *a.shape[1:]))
            assert torch.allclose(mean, log_s.exp(), rtol=1e-9, atol=0)


def test_denoiser_score_is_the_true_score():
    for world in small_worlds():
        for sigma_bar, log_q, log_s in zip(
            NOISES, world.log_q(NOISES), world.log_score(NOISES), strict=True
        ):
            found = denoiser_log_score(log_q, sigma_bar, world.texts)
            assert torch.allclose(found, log_s, rtol=1e-9, atol=1e-9)
            assert (found.gather(-1, world.texts[..., None]) == 0).all()


def test_denoiser_score_of_certain_and_of_uniform_q():
    x_t, x_0 = torch.tensor([[0, 1, 2]] * 4), torch.tensor([[0, 2, 2]] * 4)
    certain = one_hot(x_0, 6).double().log()
    log_a = log_ratio(NOISES, x_t, x_0, 6)
    assert torch.allclose(denoiser_log_score(certain, NOISES, x_t), log_a, rtol=1e-12, atol=0)
    uniform = torch.full((4, 3, 6), -math.log(6.0))
    assert (denoiser_log_score(uniform, NOISES.float(), x_t) == 0).all()


def test_denoiser_score_in_float32():
    g = torch.Generator().manual_seed(0)
    x_t = torch.randint(106, (1, 100), generator=g)
    for sigma_bar in torch.tensor([[1e-4], [1.0], [5.0], [20.0]]):
        for scale in (0.1, 3.0, 30.0):
            log_q = (scale * torch.randn(1, 100, 106, generator=g)).log_softmax(-1)
            exact = denoiser_log_score(log_q.double(), sigma_bar.double(), x_t)
            error = denoiser_log_score(log_q, sigma_bar, x_t) - exact
            assert error.abs().max() < 3e-6 * min(1, exact.abs().max())


def test_log_posterior_is_bayes_rule():
    for world in small_worlds():
        letters = one_hot(world.texts, world.vocab_size).double()
        for p, sigma_bar, log_q in zip(
            world.joint(NOISES), NOISES, world.log_q(NOISES), strict=True
        ):
            counted = torch.einsum("ab,aiy->biy", p / p.sum(0), letters)
            found = log_posterior(log_q, sigma_bar, world.texts).exp()
            assert torch.allclose(found, counted, rtol=1e-9, atol=1e-12)


def reconstruction_nats(model, x_0, sigma_bar_0, mask=None, generator=None) -> Tensor:
    """One-sample estimate of -log p(x_0 | x_t) at the noise of t = 0, nats per character: (B,)."""
    sigma_bar = torch.as_tensor(sigma_bar_0).expand(len(x_0))
    x_t = perturb_batch(x_0, sigma_bar, model.config.vocab_size, mask, generator)
    log_q = model.denoise(x_t, sigma_bar) if mask is None else model.denoise(x_t, sigma_bar, mask)
    right = log_posterior(log_q, sigma_bar, x_t).gather(-1, x_0[..., None])[..., 0]  # (B, L)
    return masked_mean(-right, mask)


def noise_nodes(sigma_min: float, sigma_max: float, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes in log noise, and their weights for an integral over the noise."""
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(count))
    half = math.log(sigma_max / sigma_min) / 2
    sigma_bar = sigma_min * torch.exp(half * (1 + nodes))
    return sigma_bar, half * weights * sigma_bar


def expected_loss(world: World, log_score: Tensor, sigma_bar: Tensor, power: int = 1) -> Tensor:
    """Exact mean of the loss of a text (or its square: power 2) over x_0 and x_t, for noise (S,)."""
    n = len(world.texts)
    x_0, x_t = world.texts.repeat_interleave(n, 0), world.texts.repeat(n, 1)  # all pairs
    losses = [
        score_entropy_loss(scores.repeat(n, 1, 1), noise, x_t, x_0).sum(-1).view(n, n)
        for scores, noise in zip(log_score, sigma_bar, strict=True)
    ]
    return (world.joint(sigma_bar) * torch.stack(losses) ** power).sum((1, 2))


def exact_area(world: World, sigma_min: float, sigma_max: float, count: int = 100) -> float:
    """The integral of the expected loss of the true score over the noise, in nats a text."""
    sigma_bar, weight = noise_nodes(sigma_min, sigma_max, count)
    return (weight * expected_loss(world, world.log_score(sigma_bar), sigma_bar)).sum().item()


def expected_reconstruction(world: World, sigma_bar: float) -> float:
    """Exact mean of -log p(x_0 | x_t), each letter on its own, in nats a text."""
    noise = torch.tensor([sigma_bar], dtype=torch.float64)
    log_p = log_posterior(world.log_q(noise)[0], noise[0], world.texts)  # (N, L, V)
    letters = one_hot(world.texts, world.vocab_size).bool()
    table = torch.where(letters[:, None], log_p, 0.0).sum((2, 3))  # (x_0, x_t)
    joint = world.joint(noise)[0]
    return -torch.where(joint > 0, joint * table, 0.0).sum().item()


def test_times_are_a_comb_and_each_is_uniform():
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([low_discrepancy_times(8, g) for _ in range(2000)])  # (2000, 8)
    assert draws.min() >= 0 and draws.max() < 1
    gaps = draws.sort(dim=-1).values.diff(dim=-1)
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 8), atol=1e-6)
    for column in draws.T:  # ten bins of 200 expected: chi-squared with 9 degrees of freedom
        bins = torch.histc(column, 10, 0, 1)
        assert ((bins - 200) ** 2 / 200).sum() < 33.7  # probability 1e-4


def draw_texts(world: World, count: int, generator: torch.Generator) -> Tensor:
    return world.texts[torch.multinomial(world.p_0, count, True, generator=generator)]


def test_estimates_are_unbiased():
    g, noise = torch.Generator().manual_seed(0), GeometricNoise(0.2, 5.0)
    for world in small_worlds()[:2]:
        x_0 = draw_texts(world, 4000, g)
        area = exact_area(world, 0.2, 5.0) / world.length
        last = expected_reconstruction(world, 0.3) / world.length
        sigma_bar, weight = noise_nodes(0.2, 5.0, 100)
        square = expected_loss(world, world.log_score(sigma_bar), sigma_bar, power=2)
        square = (weight * sigma_bar * noise.log_growth * square).sum() / world.length**2
        for values, exact in (
            (compute_loss(world, x_0, noise, generator=g), area),
            (compute_loss(world, x_0, noise, torch.rand(4000, generator=g)), area),
            (reconstruction_nats(world, x_0, 0.3, generator=g), last),
            (compute_loss(world, x_0, noise, generator=g).square(), square),
        ):
            assert values.shape == (4000,)
            assert abs(values.mean() - exact) < 4 * values.std() / 4000**0.5


class Recorder:
    """A network that remembers what it was asked and always gives the same answer."""

    config = SimpleNamespace(vocab_size=7)

    def __call__(self, x_t, sigma_bar, *mask):
        self.x_t, self.mask = x_t, mask
        return torch.linspace(-1, 1, 7).log_softmax(-1).expand(*x_t.shape, 7)

    denoise = __call__


def test_kept_positions_are_neither_noised_nor_counted():
    x_0 = torch.arange(40).view(4, 10) % 7
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:3, 2:6], mask[3] = True, True  # in the last text everything is kept
    model, noise, t = Recorder(), GeometricNoise(), torch.full((4,), 0.9)
    sigma_bar, sigma = noise(t)

    def check(found, each):
        assert model.mask == (mask,)
        assert (model.x_t[mask] == x_0[mask]).all() and (model.x_t != x_0).any()
        expected = [row[~keep].mean() for row, keep in zip(each[:3], mask[:3], strict=True)]
        assert torch.allclose(found, torch.stack([*expected, torch.tensor(0.0)]))

    g = torch.Generator().manual_seed(0)
    found = compute_loss(model, x_0, noise, t, mask, g)
    log_q = Recorder()(model.x_t, sigma_bar)
    check(found, sigma[:, None] * score_entropy_loss(log_q, sigma_bar, model.x_t, x_0))
    found = reconstruction_nats(model, x_0, sigma_bar, mask, g)
    log_p = log_posterior(log_q, sigma_bar, model.x_t)
    check(found, -log_p.gather(-1, x_0[..., None])[..., 0])
    compute_loss(model, x_0, noise)
    assert model.mask == ()  # none given, none passed on


def test_prior_kl():
    for vocab_size in (2, 3, 106):
        for sigma_bar in (0.01, 1.0, 5.0, 20.0):
            p = transition_matrix(sigma_bar, vocab_size)[0]
            expected = (p * (p * vocab_size).log()).sum()
            assert torch.allclose(prior_kl(sigma_bar, vocab_size), expected, rtol=1e-6, atol=1e-14)
        assert prior_kl(0.0, vocab_size).item() == pytest.approx(math.log(vocab_size))
        assert prior_kl(math.inf, vocab_size) == 0
    assert prior_kl(torch.tensor([1.0, 2.0]), 3).shape == (2,)


def information(world: World, sigma_bar: float) -> float:
    """Mutual information between x_0 and x_t, in nats."""
    joint = world.joint(torch.tensor([sigma_bar], dtype=torch.float64))[0]
    apart = joint.sum(1, keepdim=True) * joint.sum(0)
    return torch.where(joint > 0, joint * (joint / apart).log(), 0.0).sum().item()


def test_area_is_the_information_destroyed():
    for world in small_worlds():
        for low, high in ((1e-4, 20.0), (0.1, 2.0)):
            lost = information(world, low) - information(world, high)
            assert abs(exact_area(world, low, high) - lost) < 1e-12


def test_bound_is_the_entropy_of_the_data():
    for world in small_worlds():
        entropy = -(world.p_0 * world.p_0.log()).sum().item()
        bound = exact_area(world, 1e-4, 20.0) + expected_reconstruction(world, 1e-4)
        bound += world.length * prior_kl(20.0, world.vocab_size).item()
        assert -1e-10 < bound - entropy < 1e-6  # from above: it is a bound


def noise_by_fraction(u: Tensor, power: float, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Noise of the corrupted fraction u^power between two noise levels, and its weight dσ/du."""
    low, high = (-math.expm1(-end) for end in ends)
    f = low + (high - low) * u**power
    return -torch.log1p(-f), (high - low) * power * u ** (power - 1) / (1 - f)


def test_area_does_not_depend_on_the_clock():
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(400))
    for world in small_worlds():
        for power in (1, 2, 3):
            sigma_bar, slope = noise_by_fraction((1 + nodes) / 2, power, (0.01, 5.0))
            loss = expected_loss(world, world.log_score(sigma_bar), sigma_bar)
            found = (weights / 2 * slope * loss).sum().item()
            assert abs(found - exact_area(world, 0.01, 5.0)) < 1e-7
