"""What the code asks of a noise, beyond appendix A: the uniform graph, its devices and dtypes."""

from types import SimpleNamespace

import pytest
import torch

from ddlm_core.forward import perturb_batch, transition
from ddlm_core.graph import UNIFORM, Graph, UniformGraph, graph_of
from ddlm_core.loss import denoiser_log_score, log_posterior, prior_kl, score_entropy_loss
from ddlm_core.noise import GeometricNoise, transition_matrix


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


def test_the_factors_are_those_of_the_forward_module():
    x_t, delta = torch.tensor([[0, 2]]), torch.tensor([0.7], dtype=torch.float64)
    kernel = transition_matrix(0.7, 3)
    torch.testing.assert_close(UNIFORM.likelihood(x_t, delta, 3), kernel[:, x_t[0]].T[None])
    assert torch.equal(UNIFORM.likelihood(x_t, delta, 3), transition(x_t, delta, 3))
    q = torch.tensor([[[0.5, 0.3, 0.2]] * 2], dtype=torch.float64)
    torch.testing.assert_close(UNIFORM.marginal(q.log(), x_t, delta), q @ kernel)
    assert torch.equal(UNIFORM.marginal(q.log(), x_t, 0.0), q)


def test_score_and_loss_are_those_of_the_loss_module():
    g = torch.Generator().manual_seed(0)
    x_t, x_0 = (torch.randint(5, (2, 3), generator=g) for _ in range(2))
    log_q = torch.randn(2, 3, 5, generator=g, dtype=torch.float64).log_softmax(-1)
    score = UNIFORM.log_score(log_q, 0.7, x_t)
    assert torch.equal(score, denoiser_log_score(log_q, 0.7, x_t))
    assert torch.equal(UNIFORM.loss(score, 0.7, x_t, x_0), score_entropy_loss(score, 0.7, x_t, x_0))


def test_every_method_takes_a_number_and_a_row_of_noise():
    g = torch.Generator().manual_seed(0)
    x_t, x_0 = (torch.randint(5, (2, 3), generator=g) for _ in range(2))
    log_q = torch.randn(2, 3, 5, generator=g, dtype=torch.float64).log_softmax(-1)
    row = torch.full((2,), 0.7, dtype=torch.float64)
    for ask in (
        lambda noise: UNIFORM.log_score(log_q, noise, x_t),
        lambda noise: UNIFORM.loss(log_q, noise, x_t, x_0),
        lambda noise: UNIFORM.marginal(log_q, x_t, noise),
        lambda noise: UNIFORM.likelihood(x_t, noise, 5).double(),
    ):
        torch.testing.assert_close(ask(0.7).to(ask(row)), ask(row), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ask(row[0]), ask(row), rtol=1e-12, atol=1e-12)


def test_all_of_it_runs_on_another_device():
    """On `meta`, where any mixture of devices fails as it does on a GPU."""
    x_0 = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    log_q = torch.zeros(2, 3, 5, device="meta")
    for generator in (None, torch.Generator()):
        assert UNIFORM.sample_prior(2, 3, 5, generator, "meta").device.type == "meta"
        x_t = perturb_batch(x_0, torch.ones(2, device="meta"), 5, None, generator)
        assert x_t.device.type == "meta"
    for row in (torch.ones(2, device="meta"), 1.0):
        found = [
            UNIFORM.log_score(log_q, row, x_0),
            UNIFORM.loss(log_q, row, x_0, x_0),
            UNIFORM.marginal(log_q, x_0, row),
            UNIFORM.likelihood(x_0, row, 5),
        ]
        assert all(value.device.type == "meta" for value in found)


@pytest.mark.parametrize("sigma_bar", [1e-4, 0.3, 2.0, 12.0])
def test_the_own_noise_of_a_letter_is_averaged_over_exactly(sigma_bar):
    """Against the sum over every letter that may stand there, and Bayes' rule for the clean one."""
    g, noise = torch.Generator().manual_seed(0), torch.tensor([sigma_bar], dtype=torch.float64)
    log_q = 3 * torch.randn(1, 4, 5, generator=g, dtype=torch.float64)
    log_q, x_0 = log_q.log_softmax(-1), torch.tensor([[0, 2, 4, 2]])
    loss, surprise, p = 0.0, 0.0, transition(x_0, noise, 5)
    for letter in range(5):
        x_t = torch.full_like(x_0, letter)
        loss = loss + p[..., letter] * UNIFORM.loss(
            UNIFORM.log_score(log_q, noise, x_t), noise, x_t, x_0
        )
        clean = log_posterior(log_q, noise, x_t).gather(-1, x_0[..., None])[..., 0]
        surprise = surprise - p[..., letter] * clean
    found = UNIFORM.expected_loss(log_q, noise, x_0)
    torch.testing.assert_close(found, loss, rtol=1e-7, atol=1e-13)
    found = UNIFORM.expected_reconstruction(log_q, noise, x_0)
    torch.testing.assert_close(found, surprise, rtol=1e-7, atol=1e-13)


def test_a_sure_network_has_no_expected_loss():
    log_q = torch.tensor([[[0.0, -torch.inf, -torch.inf]]])
    for sigma_bar in (1e-4, 1.0, 20.0):
        for expected in (UNIFORM.expected_loss, UNIFORM.expected_reconstruction):
            found = expected(log_q, sigma_bar, torch.tensor([[0]]))
            assert found.dtype == torch.float64 and abs(found.item()) < 1e-12
            assert expected(log_q, sigma_bar, torch.tensor([[1]])).item() > 0
