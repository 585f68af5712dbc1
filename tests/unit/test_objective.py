"""Chapter 8, module objective: noise levels, draws, the loss."""

import math
from types import SimpleNamespace

import pytest
import torch

from ddlm_core.loss import score_entropy_loss
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.objective import (
    TrainingLoss,
    compute_loss,
    draw_condition,
    draw_noise,
    draw_step,
    low_discrepancy_times,
    masked_mean,
    proposal_times,
    training_loss,
)
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.worlds import World, noise_nodes, small_worlds
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


# the estimate of chapter 5's integral


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


def test_the_estimate_runs_on_another_device():
    """On `meta`, where any mixture of devices fails as it does on a GPU."""
    noise, x_0 = GeometricNoise(), torch.zeros(2, 3, dtype=torch.int64, device="meta")

    class Model(Recorder):
        config = SimpleNamespace(vocab_size=5)

        def __call__(self, x_t, sigma_bar, condition_mask=None):
            assert x_t.device.type == sigma_bar.device.type == "meta"
            return torch.zeros(2, 3, 5, device="meta")

    given = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    assert compute_loss(Model(), x_0, noise, None, given, generator()).device.type == "meta"
    assert compute_loss(Model(), x_0, noise).shape == (2,)
