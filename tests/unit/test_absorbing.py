"""The absorbing graph beyond appendix A: limits, devices, all chapters' code with masks."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.absorbing import (
    ABSORBING,
    MASK,
    LogLinearNoise,
    all_masked,
    mask_log_score,
    mask_loss,
    mask_posterior,
    with_mask,
)
from ddlm_core.animation import encode_pictures
from ddlm_core.bound import validation_bound, window_nats
from ddlm_core.data import evaluation_loader
from ddlm_core.evaluation import estimate_bound, spread_times
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import UNIFORM
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import resample_probability
from ddlm_core.objective import compute_loss, draw_noise, proposal_times, training_loss
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.reverse import analytic_probs, reverse_probs
from ddlm_core.sampler import SCHEDULES, denoising_steps, noise_levels, sample_generators
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.worlds import MaskedWorld, three_letter_words
from ddlm_core.training import Trainer

INF = math.inf


def absorbing_rates(vocab_size: int) -> Tensor:
    """The rate from each state (row) to each other one: letters to the mask, at rate 1."""
    rates = -torch.eye(vocab_size, dtype=torch.float64)
    rates[:, -1] += 1
    return rates  # the row of the mask is 0


# Noise


def test_noise_puts_masks():
    g, x_0 = torch.Generator().manual_seed(0), torch.arange(3).repeat(2, 15_000)
    x_t = perturb_batch(x_0, torch.tensor([0.5, 2.0]), 4, None, g, ABSORBING.sample_prior)
    assert ((x_t == x_0) | (x_t == 3)).all()
    for row, sigma_bar in zip(x_t, (0.5, 2.0), strict=True):
        for letter in range(3):  # a standard deviation of at most 0.004
            share = (row[letter::3] == 3).double().mean().item()
            assert share == pytest.approx(-math.expm1(-sigma_bar), abs=0.02)
    keep = torch.rand(x_0.shape, generator=g) < 0.5
    x_t = perturb_batch(x_0, torch.tensor(3.0), 4, keep, g, ABSORBING.sample_prior)
    assert torch.equal(x_t[keep], x_0[keep]) and (x_t[~keep] == 3).double().mean() > 0.9


def test_prior_and_states():
    for prior in (all_masked(2, 5, 4), ABSORBING.sample_prior(2, 5, 4)):
        assert prior.tolist() == [[3] * 5] * 2 and prior.dtype == torch.int64
    assert with_mask(["a", "b"]) == with_mask(("a", "b", MASK)) == ("a", "b", MASK)
    assert ABSORBING.states("ab") == ("a", "b", MASK) == ABSORBING.states(["a", "b", MASK])


def test_the_graph_says_what_it_is():
    flags = ABSORBING.name, ABSORBING.supports_churn, ABSORBING.supports_scores
    assert flags == ("absorbing", False, False)
    assert ABSORBING.schedule(1e-4, 20.0) == LogLinearNoise() == ABSORBING.schedule(0.1, 3.0)


def test_prior_kl_is_0_only_for_endless_noise():
    assert ABSORBING.prior_kl(LogLinearNoise().sigma_max, 107) == 0
    assert ABSORBING.prior_kl(20.0, 107) == ABSORBING.prior_kl(1e3, 107) == INF
    found = ABSORBING.prior_kl(torch.tensor([1.0, INF]), 4)
    assert found.tolist() == [INF, 0.0] and found.dtype == torch.float32


def test_log_linear_noise():
    noise, t = LogLinearNoise(), torch.linspace(0, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(1 - torch.exp(-noise.sigma_bar(t)), t)
    torch.testing.assert_close(noise.time(noise.sigma_bar(t)), t)
    slope = (noise.sigma_bar(t[1:-1] + 1e-6) - noise.sigma_bar(t[1:-1] - 1e-6)) / 2e-6
    torch.testing.assert_close(noise.sigma(t[1:-1]), slope, rtol=1e-6, atol=0)
    assert noise.sigma_bar(0.0) == noise.sigma_min == 0
    assert noise.sigma_bar(1.0) == noise.sigma_max == INF
    for value in noise(0.75):
        assert value.dtype == torch.float64 and value.shape == ()
    assert noise(0.75)[1] == 4 and noise.time(0) == 0 and hash(noise) == hash(LogLinearNoise())
    total, rate = noise(t)
    assert torch.equal(total, noise.sigma_bar(t)) and torch.equal(rate, noise.sigma(t))


def test_schedules_take_endless_noise():
    noise, share = LogLinearNoise(), torch.linspace(1, 0, 9, dtype=torch.float64)
    for schedule in SCHEDULES:
        levels = noise_levels(noise, 8, schedule)
        assert levels[0] == INF and levels[-1] == 0 and (levels.diff() < 0).all()
        if schedule != "cosine":
            torch.testing.assert_close(resample_probability(levels), share)
    g = torch.Generator().manual_seed(0)
    times, weight = proposal_times(999, noise, generator=g)
    assert times.max() < 1 and times.dtype == torch.float32
    torch.testing.assert_close(weight, torch.ones(999))  # the share of masks *is* the time
    torch.testing.assert_close(times.sort()[0], torch.arange(999) / 999, rtol=0, atol=2e-3)
    times, weight = spread_times(999, noise, g)
    assert times.max() < 1 and times.dtype == torch.float32
    torch.testing.assert_close(weight, 8 / (5 + 6 * times), rtol=0, atol=5e-3)
    evenly = (5 * times + 3 * times**2).sort()[0] / 8
    torch.testing.assert_close(evenly, torch.arange(999) / 999, rtol=0, atol=2e-3)


# Score and loss


def test_the_world_has_the_kernel_of_the_rates():
    world = MaskedWorld(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))  # one letter
    for sigma_bar in (0.01, 1.0, 6.0):
        exact = torch.linalg.matrix_exp(sigma_bar * absorbing_rates(4))
        found = world.letter_kernel(torch.tensor([sigma_bar], dtype=torch.float64))[0, ..., 0]
        torch.testing.assert_close(found, exact)


def test_letters_have_no_way_back():
    log_q, x_t = torch.zeros(1, 2, 4).log_softmax(-1), torch.tensor([[3, 1]])
    score = ABSORBING.log_score(log_q, torch.tensor([0.7]), x_t).exp()
    assert score[0, 1].tolist() == [0, 1, 0, 0] and score[0, 0, 3] == 1
    torch.testing.assert_close(score[0, 0, :3], torch.full((3,), 1 / 3 / math.expm1(0.7)))
    clean = ABSORBING.log_score(log_q[:, 1:], 0.0, x_t[:, 1:]).exp()  # no noise, so no mask
    assert clean.tolist() == [[[0, 1, 0, 0]]]


def test_posterior_never_believes_in_the_mask():
    log_q, x_t = torch.tensor([[[0.2, 0.2, 0.1, 0.5]] * 2]).log(), torch.tensor([[3, 1]])
    p = mask_posterior(log_q, x_t).exp()
    torch.testing.assert_close(p, torch.tensor([[[0.4, 0.4, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0]]]))


def general_loss(log_score: Tensor, sigma_bar: Tensor, x_t: int, x_0: int) -> float:
    """The sum over all jumps, from the rate matrix alone."""
    vocab_size = len(log_score)
    rates = absorbing_rates(vocab_size)
    chances = torch.linalg.matrix_exp(sigma_bar * rates)[x_0]
    total = 0.0
    for y in range(vocab_size):
        if y != x_t and rates[y, x_t] > 0:
            a, log_s = (chances[y] / chances[x_t]).item(), log_score[y].item()
            total += math.exp(log_s) - a * log_s + (a * (math.log(a) - 1) if a > 0 else 0.0)
    return total


@pytest.mark.parametrize("sigma_bar", [1e-3, 0.7, 12.0])
def test_the_own_noise_of_a_letter_is_averaged_over_exactly(sigma_bar):
    """A position is a mask or its letter; what the network gives to the mask does not count."""
    log_q, noise = torch.tensor([[[0.2, 0.2, 0.1, 0.5]]]).double().log(), torch.tensor([sigma_bar])
    x_0, lost = torch.tensor([[2]]), -math.expm1(-sigma_bar)
    x_t = torch.tensor([[3]])
    loss = ABSORBING.loss(ABSORBING.log_score(log_q, noise, x_t), noise, x_t, x_0)
    found = ABSORBING.expected_loss(log_q, noise, x_0)
    torch.testing.assert_close(found, lost * loss, check_dtype=False)
    found = ABSORBING.expected_reconstruction(log_q, noise, x_0)
    assert found.item() == pytest.approx(-lost * math.log(0.2), rel=1e-5)


def test_loss_is_the_sum_over_all_jumps():
    g = torch.Generator().manual_seed(0)
    for sigma_bar in torch.tensor([0.001, 0.3, 2.0, 12.0], dtype=torch.float64):
        for x_0, x_t in ((0, 3), (1, 3), (2, 3), (0, 0), (2, 2)):
            log_score = torch.randn(1, 1, 4, generator=g, dtype=torch.float64)
            pair = torch.tensor([[x_t]]), torch.tensor([[x_0]])
            exact = general_loss(log_score[0, 0], sigma_bar, x_t, x_0)
            for noise in (sigma_bar, sigma_bar[None], sigma_bar.item()):
                found = ABSORBING.loss(log_score, noise, *pair).item()
                close = 1e-5 if isinstance(noise, float) else 1e-9  # float32 is the default
                assert found >= 0 and found == pytest.approx(exact, rel=close, abs=1e-12)


def test_loss_is_0_at_the_truth():
    x_0, x_t = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 1, 3]])
    certain = one_hot(x_0, 4).double().log()
    for sigma_bar in torch.tensor([1e-3, 0.7, 5.0], dtype=torch.float64):
        truth = mask_loss(mask_log_score(certain, sigma_bar, x_t), sigma_bar, x_t, x_0)
        assert truth.abs().max() < 1e-12


def test_loss_at_the_clean_end():
    x_0, sigma_bar = torch.tensor([[0, 1]]), torch.zeros(1)
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    log_score = mask_log_score(logits.log_softmax(-1), sigma_bar, x_0)
    mask_loss(log_score, sigma_bar, x_0, x_0).sum().backward()
    assert torch.equal(mask_loss(log_score, sigma_bar, x_0, x_0), torch.zeros(1, 2))
    assert torch.equal(logits.grad, torch.zeros(1, 2, 4))


# The step back


def test_step_is_bayes_rule():
    for earlier, later in ((0.0, 0.7), (0.2, 0.21), (1.5, 9.0)):
        first, second = (
            torch.linalg.matrix_exp(s * absorbing_rates(4)) for s in (earlier, later - earlier)
        )
        for x_0, x_t in ((0, 0), (0, 3), (2, 3)):
            joint = first[x_0] * second[:, x_t]  # over x_s
            log_q = one_hot(torch.tensor([[x_0]]), 4).double().log()
            step = analytic_probs(log_q, torch.tensor([[x_t]]), later, earlier, ABSORBING)
            torch.testing.assert_close(step[0, 0], joint / joint.sum())


def test_factors_of_the_step():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]] * 2], dtype=torch.float64), torch.tensor([[3, 1]])
    delta, kept = torch.tensor([0.7], dtype=torch.float64), math.exp(-0.7)
    marginal = ABSORBING.marginal(q.log(), x_t, delta)
    kernel = torch.linalg.matrix_exp(0.7 * absorbing_rates(4))
    torch.testing.assert_close(marginal[0, 0], q[0, 0] @ kernel)
    torch.testing.assert_close(marginal[0, 1], kernel[1])
    likelihood = ABSORBING.likelihood(x_t, delta, 4)
    torch.testing.assert_close(likelihood[0, 0], kernel[:, 3])
    assert likelihood[0, 1].tolist() == [0, 1, 0, 0]  # kernel[:, 1] / kept
    torch.testing.assert_close(kernel[:, 1] / kept, likelihood[0, 1])
    assert ABSORBING.likelihood(x_t, delta.float(), 4).dtype == torch.float32


def test_step_is_a_distribution_at_the_extremes():
    log_q = torch.tensor([[[0.0, -INF, -INF, -INF], [-60.0, -50.0, 0.0, 9.0]]])
    for x_t in (torch.tensor([[3, 3]]), torch.tensor([[1, 3]])):
        for now, after in ((INF, 16.0), (INF, 0.0), (1e-6, 1e-7), (1e-30, 0.0)):
            step = analytic_probs(log_q, x_t, now, after, ABSORBING)
            assert (step >= 0).all()
            torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))
            if after == 0:
                assert (step[..., 3] == 0).all()  # at the end no mask is left
    letters = torch.tensor([[1, 2]])
    step = analytic_probs(log_q, letters, 0.0, 0.0, ABSORBING)
    assert torch.equal(step, one_hot(letters, 4).float())


# The code of chapters 5 to 9 with masks


def test_estimates_of_chapters_5_and_9_are_unbiased():
    world, g = three_letter_words(ABSORBING), torch.Generator().manual_seed(0)
    world.config.noise = LogLinearNoise()
    x_0 = world.draw(20_000, g)
    for nats in (
        2 * compute_loss(world, x_0, LogLinearNoise(), generator=g),
        window_nats(world, x_0, LogLinearNoise(), g),
    ):
        error = nats.std().item() / 20_000**0.5
        assert nats.mean().item() == pytest.approx(world.entropy(), abs=4 * error)
        assert error < 0.03


def test_loop_writes_what_the_exact_computation_says():
    world, number = three_letter_words(ABSORBING), 4000
    how = {"num_steps": 3, "schedule": "fraction", "generator": sample_generators(1, number)}
    (*steps, last) = denoising_steps(world, LogLinearNoise(), number, 2, **how)
    counts = world.number(last.tokens).bincount(minlength=16)
    levels = noise_levels(LogLinearNoise(), 3, "fraction")
    start = (world.texts == 3).all(-1).double()
    exact = world.written(lambda *step: reverse_probs(world, *step), levels, start)
    words = world.p_0 > 0
    assert exact[~words].abs().max() == 0 and counts[~words].sum() == 0  # no mask is left
    for probs, low, high in ((exact, 0, 31.8), (world.p_0, 500, INF)):
        # chi-squared, 8 degrees of freedom: above 31.8 once in ten thousand trials
        distance = (counts - number * probs) ** 2 / (number * probs)
        assert low < distance[words].sum().item() < high
    assert (steps[0].tokens == 3).all() and steps[0].sigma_bar == INF
    for before, after in zip(steps, [*steps[1:], last], strict=True):
        opened = before.tokens < 3
        assert torch.equal(before.tokens[opened], after.tokens[opened])


@pytest.mark.parametrize("num_steps", [1, 7])
def test_given_letters_condition_the_rest(num_steps: int):
    world = three_letter_words(ABSORBING)
    start = (world.texts == torch.tensor([1, 3])).all(-1).double()  # b and a mask
    levels = noise_levels(LogLinearNoise(), num_steps)
    found = world.written(lambda *step: reverse_probs(world, *step), levels, start)
    true = world.p_0 * (world.texts[:, 0] == 1)
    torch.testing.assert_close(found, true / true.sum())


def test_all_of_it_runs_on_another_device():
    """On `meta`, where any mixture of devices fails as it does on a GPU."""
    g = torch.Generator().manual_seed(0)
    x_0 = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    log_q = torch.zeros(2, 3, 5, device="meta")
    for generator in (None, g):
        assert ABSORBING.sample_prior(2, 3, 5, generator, "meta").device.type == "meta"
        x_t = perturb_batch(x_0, 1.0, 5, None, generator, ABSORBING.sample_prior)
        assert x_t.device.type == "meta"
    for row in (torch.ones(2, device="meta"), 1.0):
        found = [
            mask_posterior(log_q, x_0),
            ABSORBING.log_score(log_q, row, x_0),
            ABSORBING.loss(log_q, row, x_0, x_0),
            ABSORBING.marginal(log_q, x_0, row),
            ABSORBING.likelihood(x_0, row, 5),
            analytic_probs(log_q, x_0, row, 0.5, ABSORBING),
        ]
        assert all(value.device.type == "meta" for value in found)

    class Model:
        graph, config = ABSORBING, SimpleNamespace(vocab_size=5)

        def __call__(self, x_t, sigma_bar, condition_mask=None):
            assert x_t.device.type == sigma_bar.device.type == "meta"
            return ABSORBING.log_score(log_q, sigma_bar, x_t)

    given = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    for generator in (None, g):
        for mask in (None, given):
            loss = compute_loss(Model(), x_0, LogLinearNoise(), None, mask, generator)
            assert loss.shape == (2,) and loss.device.type == "meta"


# A network


def small_model() -> DiscreteDiffusionTransformer:
    sizes = {"block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    torch.manual_seed(0)
    return DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**sizes, graph="absorbing")).eval()


def test_an_untrained_network_pays_log_106():
    tokens = torch.randint(2, 106, (32, 24), generator=torch.Generator().manual_seed(0))
    found = estimate_bound(small_model(), tokens, 64)
    assert found.mean == pytest.approx(24 * math.log(106), rel=1e-3)
    assert found.low < 24 * math.log(106) < found.high < found.low + 1


def test_a_training_step_has_finite_gradients():
    model, g = small_model(), torch.Generator().manual_seed(0)
    x_0 = torch.randint(2, 106, (32, 24), generator=g)
    drawn = draw_noise(x_0, TrainingConfig(condition_share=0.5), model, g)
    _, x_t, given, sigma_bar, weight = drawn
    assert torch.equal(x_t[given], x_0[given]) and ((x_t == x_0) | (x_t == 106)).all()
    assert (x_t[~given] == 106).any()
    torch.testing.assert_close(weight, torch.exp(sigma_bar))  # the rate, 1 / (1 - t)
    for objective in ("cross_entropy", "score_entropy"):
        model.zero_grad()
        training_loss(model, drawn, objective).backward()
        gradient = model.head.weight.grad
        assert gradient.isfinite().all() and gradient[:106].any()
    assert gradient[106].abs().max() < 1e-8  # of the score, the mask's own output is idle


def test_the_trainer_measures_with_the_noise_of_the_graph():
    model, g = small_model(), torch.Generator().manual_seed(0)
    loader = evaluation_loader(torch.randint(2, 106, (480,), generator=g).numpy(), 24, 10)
    config = TrainingConfig(eval_windows=20, context_length=24)
    trainer = Trainer(model=model, train_loader=loader, val_loader=loader, config=config)
    assert trainer.evaluate() == validation_bound(model, loader, 20)
    assert model.config.noise == LogLinearNoise()


def test_a_checkpoint_remembers_its_graph(tmp_path):
    pipeline = DiffusionPipeline(small_model(), "cpu")
    how = {"num_steps": 5, "seed": 1, "template": "to ____ or _{4}"}
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, device="cpu")
    assert again.config.vocab == pipeline.config.vocab and again.config.vocab_size == 107
    (text,) = again.generate(**how)
    assert [text] == pipeline.generate(**how) and MASK not in text
    assert text[:3] == "to " and text[7:11] == " or "


def test_a_player_shows_endless_noise():
    pipeline = DiffusionPipeline(small_model(), "cpu")
    pictures = pipeline.generate_with_visualization(num_steps=2, seed=0).pictures()

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(encode_pictures(pictures), parse_constant=refuse)
    assert data["steps"][0][0] == "∞" and set(data["first"]) == {MASK}


def test_what_cannot_work_says_so():
    with pytest.raises(ValueError, match="the absorbing graph needs the parametrization denoiser"):
        DiscreteDiffusionConfig(graph="absorbing", parametrization="score")
    with pytest.raises(ValueError, match="euler"):
        denoising_steps(small_model(), LogLinearNoise(), 1, 24, method="euler")
    with pytest.raises(ValueError, match="churn"):
        denoising_steps(small_model(), LogLinearNoise(), 1, 24, churn=1.0)
    assert UNIFORM.supports_churn and UNIFORM.supports_scores
