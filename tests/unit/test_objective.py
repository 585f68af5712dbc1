"""Chapter 8, module objective: noise levels, draws, the loss."""

import pytest
import torch

from ddlm_core.loss import compute_loss
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.objective import (
    TrainingLoss,
    draw_condition,
    draw_noise,
    draw_step,
    proposal_times,
    training_loss,
)
from ddlm_core.settings import TrainingConfig
from ddlm_core.testing import same_bits, tiny_network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("power", [None, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("limits", [(1e-4, 20.0), (0.5, 3.0)])
def test_every_proposal_has_the_same_integral(power, eps, limits):
    r"""$\int_{eps}^1 \sigma e^{-\bar\sigma} dt$ is known in closed form."""
    noise = GeometricNoise(*limits)
    t, weight = proposal_times(100_000, noise, power, eps, generator())
    assert t.dtype == weight.dtype == torch.float32
    assert eps - 1e-6 <= t.min() and t.max() <= 1 + 1e-6
    ends = noise.sigma_bar(torch.tensor([eps, 1.0]).double())
    for rate in (1.0, 3.0):
        values = noise.sigma(t) * torch.exp(-rate * noise.sigma_bar(t))
        truth = (torch.exp(-rate * ends[0]) - torch.exp(-rate * ends[1])) / rate
        assert (weight * values).double().mean().item() == pytest.approx(truth.item(), rel=5e-3)


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_corruption_probability_is_a_power_of_u(eps):
    noise, power = GeometricNoise(0.5, 3.0), 2.0
    t, weight = proposal_times(1000, noise, power, eps, generator())
    low, high = resample_probability(noise.sigma_bar(torch.tensor([eps, 1.0]).double()))
    fraction = resample_probability(noise.sigma_bar(t.double()))
    u = ((fraction - low) / (high - low)).clamp(min=0).sqrt().sort().values
    assert (u[1:] - u[:-1] - 1e-3).abs().max() < 1e-4  # evenly spread
    # the weight is dt/du, here by differences of the inverse function
    order = t.argsort()
    t, weight = t[order].double(), weight[order].double()
    slope = (t[2:] - t[:-2]) / 2e-3
    assert (slope / weight[1:-1] - 1)[20:].abs().max() < 2e-3


def test_uniform_times_weigh_what_is_left():
    t, weight = proposal_times(1000, GeometricNoise(), None, 0.25, generator())
    assert (weight == 0.75).all() and t.mean().item() == pytest.approx(0.625, abs=1e-3)
    assert (t.sort().values.diff() - 0.75e-3).abs().max() < 1e-6


def test_the_cleanest_time_is_finite():
    """u = 0 has no slope for a power below 1."""
    zero = torch.Generator().manual_seed(0)
    t, weight = proposal_times(10_000, GeometricNoise(), 0.5, generator=zero)
    assert t.isfinite().all() and weight.isfinite().all()


def test_condition_spans_by_hand():
    """The same draws, span by span: cuts at 2, 5, 7, 7 make `GG···GGGGG`, or its opposite."""
    mask = draw_condition((500, 10), 0.5, generator(3))
    g = generator(3)
    cuts = torch.randint(11, (500, 1, 4), generator=g)[:, 0].tolist()
    first = torch.randint(2, (500, 1), generator=g)[:, 0].tolist()
    chosen = (torch.rand(500, 1, generator=g) < 0.5)[:, 0].tolist()
    for row, borders, hidden_first, taken in zip(mask.tolist(), cuts, first, chosen):
        expected, given = [], not hidden_first
        for place in range(10):
            given ^= borders.count(place) % 2 == 1
            expected.append(given and taken)
        assert row == expected
    assert 0.4 < sum(chosen) / 500 < 0.6


def test_condition_shares():
    given = draw_condition((4000, 50), 0.25, generator())
    touched = given.any(-1).double().mean().item()
    assert 0.2 < touched < 0.27  # a chosen row may happen to have no given span
    assert 0.4 < given[given.any(-1)].double().mean().item() < 0.6
    assert not draw_condition((100, 50), 0.0, generator()).any()
    assert draw_condition((100, 50), 1.0, generator()).any(-1).double().mean() > 0.9


def test_the_noise_is_that_of_the_network():
    """The settings' limits are those of networks that ddlm-train makes: not asked here."""
    model = tiny_network(sigma_max=2.0)
    drawn = draw_noise(torch.full((64, 160), 7), TrainingConfig(), model, generator())
    assert 1.9 < drawn.sigma_bar.max() <= 2.0 + 1e-5
    t, weight = proposal_times(64, model.config.noise, 1.0, 0.0, generator())
    sigma_bar, sigma = model.config.noise(t)
    assert torch.equal(drawn.sigma_bar, sigma_bar) and torch.equal(drawn.weight, weight * sigma)
    eps = draw_noise(torch.full((64, 160), 7), TrainingConfig(sampling_eps=0.5), model, generator())
    assert eps.sigma_bar.min() >= model.config.noise.sigma_bar(0.5) - 1e-6


def test_a_step_has_draws_of_its_own_and_all_processes_share_them():
    model, x_0 = tiny_network(), torch.full((4, 160), 7, dtype=torch.uint8)
    first = draw_step(x_0, TrainingConfig(), model, 5)
    dropout = torch.rand(3)
    other = draw_step(x_0, TrainingConfig(), model, 5, process=1)
    assert same_bits(tuple(first), tuple(other)) and not torch.equal(dropout, torch.rand(3))
    for changes in ({"step": 6}, {"config": TrainingConfig(seed=1)}):
        again = draw_step(
            **{"x_0": x_0, "config": TrainingConfig(), "model": model, "step": 5} | changes
        )
        assert not torch.equal(first.x_t, again.x_t)
    draw_step(x_0, TrainingConfig(), model, 5)
    assert torch.equal(dropout, torch.rand(3))


@pytest.mark.parametrize(
    ("objective", "weight"),
    [("cross_entropy", 0.0), ("cross_entropy", 0.3), ("score_entropy", 0.0)],
)
def test_micro_batches_of_a_step_add_up(objective, weight):
    model, config = tiny_network(n_layer=3), TrainingConfig(condition_share=0.5)
    x_0 = torch.randint(2, 106, (8, 160), generator=generator(1))
    drawn = draw_noise(x_0, config, model, generator(2))
    whole = training_loss(model, drawn, objective, weight)
    parts = [training_loss(model, [v[k::4] for v in drawn], objective, weight) for k in range(4)]
    torch.testing.assert_close(sum(parts) / 4, whole)
    assert torch.equal(TrainingLoss(model, objective, weight)(*drawn), whole)
    if objective == "score_entropy":
        g = generator(2)  # the same draws, through compute_loss
        t, dt = proposal_times(8, model.config.noise, generator=g)
        mask = draw_condition((8, 160), 0.5, g)
        loss = compute_loss(model, x_0, model.config.noise, t, mask, g)
        torch.testing.assert_close((dt * loss).mean(), whole)
        return
    expected = 0.0
    stacks = model.denoise_stacks(drawn.x_t, drawn.sigma_bar, drawn.condition_mask)
    for share, log_q in zip((1.0, weight, weight), stacks):
        for b, free in enumerate(~drawn.condition_mask):
            surprise = -log_q[b, torch.arange(160), x_0[b]]
            expected += share * (surprise * free).sum() / free.sum() / 8
    torch.testing.assert_close(expected, whole)


def test_stacks_are_trained_on_what_they_have_read():
    model = tiny_network(n_layer=3)
    x_t = torch.randint(2, 106, (1, 12), generator=generator(1))
    moved = x_t.clone()
    moved[0, 5] = 50
    answers = [model.denoise_stacks(x, torch.ones(1))[:, 0] for x in (x_t, moved)]
    changed = (answers[0] != answers[1]).any(-1)  # (3, 12): by letter 5, and where
    places = torch.arange(12)
    assert torch.equal(changed, torch.stack([places != 5, places > 5, places < 5]))
    assert torch.equal(model.denoise(x_t, torch.ones(1)), answers[0][None, 0])


def test_a_network_of_scores_is_trained_on_score_entropy():
    model = tiny_network(parametrization="score")
    drawn = draw_noise(torch.full((2, 160), 7), TrainingConfig(), model, generator(2))
    expected = training_loss(model, drawn, "score_entropy")
    assert torch.equal(TrainingLoss(model, "cross_entropy", 0.3)(*drawn), expected)
