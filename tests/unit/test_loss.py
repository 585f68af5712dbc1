"""The loss beyond chapter 5: limits, dtypes, shapes, devices, estimates, the uniform graph."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch, transition
from ddlm_core.loss import (
    UNIFORM,
    Graph,
    UniformGraph,
    compute_loss,
    denoiser_log_score,
    graph_of,
    kappa,
    log_posterior,
    log_ratio,
    low_discrepancy_times,
    masked_mean,
    prior_kl,
    score_entropy_loss,
)
from ddlm_core.noise import GeometricNoise, transition_matrix
from ddlm_core.support.worlds import World, noise_nodes, small_worlds

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
        lambda noise: UNIFORM.log_score(log_q, noise, x_t),
        lambda noise: UNIFORM.loss(log_q, noise, x_t, x_0),
        lambda noise: UNIFORM.marginal(log_q, x_t, noise),
        lambda noise: UNIFORM.likelihood(x_t, noise, 5).double(),
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


# The estimate


def test_times_are_stratified_and_each_is_uniform():
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([low_discrepancy_times(8, g) for _ in range(2000)])  # (2000, 8)
    assert draws.min() >= 0 and draws.max() < 1
    gaps = draws.sort(dim=-1).values.diff(dim=-1)
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 8), atol=1e-6)
    for column in draws.T:  # ten bins of 200 expected: chi-squared with 9 degrees of freedom
        bins = torch.histc(column, 10, 0, 1)
        assert ((bins - 200) ** 2 / 200).sum() < 33.7  # probability 1e-4


def test_times_land_on_the_device_that_is_asked_for():
    assert low_discrepancy_times(3).device.type == "cpu"
    assert low_discrepancy_times(3, device="meta").device.type == "meta"
    g = torch.Generator().manual_seed(0)
    assert low_discrepancy_times(3, g, "meta").device.type == "meta"
    again = low_discrepancy_times(3, torch.Generator().manual_seed(0), "cpu")
    assert torch.equal(low_discrepancy_times(3, g.manual_seed(0)), again)


def test_masked_mean():
    values = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, math.nan]])
    given = torch.tensor([[False, False, True], [False, True, True]])
    assert masked_mean(values, given).tolist() == [1.5, 1.0]
    assert masked_mean(values[:1]).tolist() == [3.0]
    assert masked_mean(values, torch.ones(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]


def exact_area(world: World, power: int = 1) -> float:
    """Mean of the loss (or of its square) of a text over noises from 0.2 to 5, by quadrature."""
    sigma_bar, weight = noise_nodes(0.2, 5.0)
    loss = world.expected_loss(score_entropy_loss, world.log_score(sigma_bar), sigma_bar, power)
    slope = sigma_bar * math.log(5.0 / 0.2)  # the rate, for one more power
    return (weight * loss * slope ** (power - 1)).sum().item()


def test_estimates_are_unbiased():
    g, noise = torch.Generator().manual_seed(0), GeometricNoise(0.2, 5.0)
    for world in small_worlds()[:2]:
        x_0 = world.draw(4000, g)
        area = (world.information(0.2) - world.information(5.0)) / world.length
        square = exact_area(world, 2) / world.length**2
        assert exact_area(world) / world.length == pytest.approx(area, abs=1e-12)
        for values, exact in (
            (compute_loss(world, x_0, noise, generator=g), area),
            (compute_loss(world, x_0, noise, torch.rand(4000, generator=g)), area),
            (compute_loss(world, x_0, noise, generator=g).square(), square),
        ):
            assert values.shape == (4000,)
            assert abs(values.mean() - exact) < 4 * values.std() / 4000**0.5


def test_area_between_any_two_noises_is_the_information_destroyed():
    for world in small_worlds():
        sigma_bar, weight = noise_nodes(0.1, 2.0)
        loss = world.expected_loss(score_entropy_loss, world.log_score(sigma_bar), sigma_bar)
        lost = world.information(0.1) - world.information(2.0)
        assert abs((weight * loss).sum().item() - lost) < 1e-12


class Recorder:
    """A network that remembers what it was asked and always gives the same answer."""

    config = SimpleNamespace(vocab_size=7)

    def __call__(self, x_t, sigma_bar, *condition_mask):
        self.x_t, self.condition_mask = x_t, condition_mask
        return torch.linspace(-1, 1, 7).log_softmax(-1).expand(*x_t.shape, 7)


def test_given_positions_are_neither_noised_nor_counted():
    x_0 = torch.arange(40).view(4, 10) % 7
    given = torch.zeros(4, 10, dtype=torch.bool)
    given[:3, 2:6], given[3] = True, True  # in the last text everything is given
    model, noise, t = Recorder(), GeometricNoise(), torch.full((4,), 0.9)
    found = compute_loss(model, x_0, noise, t, given, torch.Generator().manual_seed(0))
    assert model.condition_mask == (given,)
    assert (model.x_t[given] == x_0[given]).all() and (model.x_t != x_0).any()
    sigma_bar, sigma = noise(t)
    answer = Recorder()(model.x_t, sigma_bar)
    each = sigma[:, None] * score_entropy_loss(answer, sigma_bar, model.x_t, x_0)
    expected = [row[~keep].mean() for row, keep in zip(each[:3], given[:3], strict=True)]
    assert torch.allclose(found, torch.stack([*expected, torch.tensor(0.0)]))
    by_name = compute_loss(
        model, x_0, noise, t, condition_mask=given, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(by_name, found)
    compute_loss(model, x_0, noise)
    assert model.condition_mask == ()  # none given, none passed on


def test_a_vocabulary_size_can_be_handed_over():
    model = Recorder()
    x_0 = torch.zeros(50, 10, dtype=torch.int64)
    compute_loss(model, x_0, GeometricNoise(), torch.ones(50), vocab_size=3)
    assert model.x_t.max() == 2


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


# The graph


def test_a_graph_must_answer_everything():
    class Half(UniformGraph):
        name = "half"

    assert Half().states("ab") == ("a", "b")
    with pytest.raises(TypeError, match="abstract"):
        Graph()


def test_uniform_graph():
    g = torch.Generator().manual_seed(0)
    assert (UNIFORM.name, UNIFORM.supports_churn, UNIFORM.supports_scores) == (
        "uniform",
        True,
        True,
    )
    assert UNIFORM.states(["a", "b"]) == ("a", "b")
    assert UNIFORM.schedule(0.1, 3.0) == GeometricNoise(0.1, 3.0)
    prior = UNIFORM.sample_prior(2, 500, 3, g)
    assert prior.shape == (2, 500) and prior.unique().tolist() == [0, 1, 2]
    assert torch.equal(prior, UNIFORM.sample_prior(2, 500, 3, g.manual_seed(0)))
    assert UNIFORM.prior_kl(1.0, 3) == prior_kl(1.0, 3) > 0
    assert graph_of(object()) is UNIFORM and graph_of(SimpleNamespace(graph="other")) == "other"


def test_two_factors_of_the_uniform_step_are_the_kernel():
    x_t, delta = torch.tensor([[0, 2]]), torch.tensor([0.7], dtype=torch.float64)
    kernel = transition_matrix(0.7, 3)
    torch.testing.assert_close(UNIFORM.likelihood(x_t, delta, 3), kernel[:, x_t[0]].T[None])
    assert torch.equal(UNIFORM.likelihood(x_t, delta, 3), transition(x_t, delta, 3))
    q = torch.tensor([[[0.5, 0.3, 0.2]] * 2], dtype=torch.float64)
    torch.testing.assert_close(UNIFORM.marginal(q.log(), x_t, delta), q @ kernel)
    assert torch.equal(UNIFORM.marginal(q.log(), x_t, 0.0), q)


def test_all_of_it_runs_on_another_device():
    """On `meta`, where any mixture of devices fails as it does on a GPU."""
    noise, g = GeometricNoise(), torch.Generator().manual_seed(0)
    x_0 = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    log_q = torch.zeros(2, 3, 5, device="meta")
    for generator in (None, g):
        assert UNIFORM.sample_prior(2, 3, 5, generator, "meta").device.type == "meta"
        x_t = perturb_batch(x_0, torch.ones(2, device="meta"), 5, None, generator)
        assert x_t.device.type == "meta"
    for row in (torch.ones(2, device="meta"), 1.0):
        found = [
            UNIFORM.log_score(log_q, row, x_0),
            UNIFORM.loss(log_q, row, x_0, x_0),
            UNIFORM.marginal(log_q, x_0, row),
            UNIFORM.likelihood(x_0, row, 5),
            log_posterior(log_q, row, x_0),
        ]
        assert all(value.device.type == "meta" for value in found)

    class Model(Recorder):
        config = SimpleNamespace(vocab_size=5)

        def __call__(self, x_t, sigma_bar, condition_mask=None):
            assert x_t.device.type == sigma_bar.device.type == "meta"
            return log_q

    given = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    assert compute_loss(Model(), x_0, noise, None, given, g).device.type == "meta"
    assert compute_loss(Model(), x_0, noise).shape == (2,)
