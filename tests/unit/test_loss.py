"""The loss beyond chapter 5: limits, dtypes, shapes, devices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from ddlm_core.loss import (
    denoiser_log_score,
    kappa,
    log_posterior,
    log_ratio,
    prior_kl,
    score_entropy_loss,
)
from ddlm_core.noise import transition_matrix
from ddlm_core.support.worlds import noise_nodes, small_worlds

NOISES = torch.tensor([1e-4, 0.1, 1.0, 5.0], dtype=torch.float64)
X_T, X_0 = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])  # unmoved, moved


# The true ratio


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


def test_average_ratio_is_the_marginal_ratio():
    for world in small_worlds():
        joint, n = world.joint(NOISES), len(world.texts)
        x_0, x_t = world.texts.repeat_interleave(n, 0), world.texts.repeat(n, 1)
        for p, sigma_bar, log_s in zip(joint, NOISES, world.log_score(NOISES), strict=True):
            a = log_ratio(sigma_bar, x_t, x_0, world.vocab_size).exp()
            mean = torch.einsum("ab,abiy->biy", p / p.sum(0), a.view(n, n, *a.shape[1:]))
            assert torch.allclose(mean, log_s.exp(), rtol=1e-9, atol=0)


# One convention for noise: a number, a scalar tensor or (B,)


def test_every_function_takes_a_number_and_a_row_of_noise():
    g = torch.Generator().manual_seed(0)
    x_t, x_0 = (torch.randint(5, (2, 3), generator=g) for _ in range(2))
    log_q = torch.randn(2, 3, 5, generator=g, dtype=torch.float64).log_softmax(-1)
    row = torch.full((2,), 0.7, dtype=torch.float64)
    assert kappa(0.7, 5) == kappa(row, 5)[0] == 5 / math.expm1(0.7)
    for ask in (
        lambda noise: log_ratio(noise, x_t, x_0, 5),
        lambda noise: denoiser_log_score(log_q, noise, x_t),
        lambda noise: log_posterior(log_q, noise, x_t),
        lambda noise: score_entropy_loss(log_q, noise, x_t, x_0),
    ):
        torch.testing.assert_close(ask(0.7).to(ask(row)), ask(row), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ask(row[0]), ask(row), rtol=1e-12, atol=1e-12)


# The loss


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
    for sigma_bar in torch.tensor([[1e-4], [1.0], [20.0]], dtype=torch.float64):
        truth = log_ratio(sigma_bar, X_T, X_0, 5).requires_grad_()
        loss = score_entropy_loss(truth, sigma_bar, X_T, X_0)
        (gradient,) = torch.autograd.grad(loss.sum(), truth)
        assert loss.abs().max() < 1e-20 and gradient.abs().max() < 1e-9
        for y in range(5):
            off = truth.detach().clone()
            off[..., y] += 0.1
            at_x_t = y == X_T  # the value there is ignored
            assert ((score_entropy_loss(off, sigma_bar, X_T, X_0) > 1e-12) == ~at_x_t).all()


def test_loss_survives_extreme_scores():
    for sigma_bar in torch.tensor([[1e-4], [1.0], [20.0]]):
        for size in (70.0, 1e4):
            for sign in (1, -1):
                log_score = torch.full((1, 2, 5), sign * size, requires_grad=True)
                loss = score_entropy_loss(log_score, sigma_bar, X_T, X_0)
                (gradient,) = torch.autograd.grad(loss.sum(), log_score)
                assert not loss.isnan().any() and not gradient.isnan().any()
                if size < 80 or sign < 0:  # e^80 still fits into float32
                    assert loss.isfinite().all() and gradient.isfinite().all()


def test_loss_of_half_precision_scores_is_float32():
    log_score, sigma_bar = torch.full((1, 2, 5), 0.5, dtype=torch.bfloat16), torch.ones(1)
    loss = score_entropy_loss(log_score, sigma_bar, X_T, X_0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, score_entropy_loss(log_score.float(), sigma_bar, X_T, X_0))
    double = score_entropy_loss(log_score.double(), sigma_bar, X_T, X_0)
    assert double.dtype == torch.float64


def test_loss_leaves_the_scores_as_they_are():
    log_score = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0))
    before = log_score.clone()
    score_entropy_loss(log_score, torch.ones(1), X_T, X_0)
    assert torch.equal(log_score, before)


def test_loss_rejects_shapes_that_do_not_fit():
    tokens, log_score = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5)
    for sigma_bar in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="noise must be"):
            score_entropy_loss(log_score, sigma_bar, tokens, tokens)
    for x_t, x_0 in ((tokens, tokens[:, :2]), (tokens[:, :2], tokens), (tokens[:1], tokens[:1])):
        with pytest.raises(ValueError, match=r"fit together: \[\(2, 3, 5\), \("):
            score_entropy_loss(log_score, torch.ones(2), x_t, x_0)


# The denoiser


def test_denoiser_score_is_0_where_nothing_is_replaced():
    for world in small_worlds():
        for sigma_bar, log_q in zip(NOISES, world.log_q(NOISES), strict=True):
            found = denoiser_log_score(log_q, sigma_bar, world.texts)
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


# The area


def test_area_between_any_two_noises_is_the_information_destroyed():
    for world in small_worlds():
        sigma_bar, weight = noise_nodes(0.1, 2.0)
        loss = world.expected_loss(score_entropy_loss, world.log_score(sigma_bar), sigma_bar)
        lost = world.information(0.1) - world.information(2.0)
        assert abs((weight * loss).sum().item() - lost) < 1e-12


def test_prior_kl():
    for vocab_size in (2, 3, 106):
        for sigma_bar in (0.01, 1.0, 5.0, 20.0):
            p = transition_matrix(sigma_bar, vocab_size)[0]
            expected = (p * (p * vocab_size).log()).sum()
            assert torch.allclose(prior_kl(sigma_bar, vocab_size), expected, rtol=1e-6, atol=1e-14)
        assert prior_kl(0.0, vocab_size).item() == pytest.approx(math.log(vocab_size))
        assert prior_kl(math.inf, vocab_size) == 0
    assert prior_kl(torch.tensor([1.0, 2.0]), 3).shape == (2,)
    assert prior_kl(torch.linspace(0, 40, 4000), 106).min() >= 0  # float32 does not round below 0


def test_loss_runs_on_another_device():
    """On `meta`, where any mixture of devices fails as it does on a GPU."""
    x_0, log_q = (torch.zeros(shape, device="meta") for shape in ((2, 3), (2, 3, 5)))
    for row in (torch.ones(2, device="meta"), 1.0):
        assert score_entropy_loss(log_q, row, x_0.long(), x_0.long()).device.type == "meta"
        assert log_posterior(log_q, row, x_0.long()).device.type == "meta"
        assert denoiser_log_score(log_q, row, x_0.long()).device.type == "meta"
