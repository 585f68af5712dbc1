"""The sampler: steps, grids, random numbers, conditions, and what is refused."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import transition
from ddlm_core.graph import UniformGraph
from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise, rate_matrix, resample_probability, transition_matrix
from ddlm_core.reverse import (
    METHODS,
    analytic_probs,
    churned_probs,
    euler_probs,
    has_denoiser,
    reverse_probs,
    staggered_score,
)
from ddlm_core.sampler import (
    SCHEDULES,
    _sample_categorical,
    create_timestep_schedule,
    denoising_steps,
    noise_levels,
    sample_diffusion,
    sample_generators,
)
from ddlm_core.support.errors import UserError
from ddlm_core.tiny_world import (
    TinyWorld,
    product_of_positions,
    three_letter_world,
    total_variation,
    true_reverse,
    two_letter_world,
    word_kernel,
    written,
)


class ScoresOnly:
    """A model of the paper's kind, which says the same to everything."""

    config = SimpleNamespace(parametrization="score", vocab_size=3)
    denoise = None  # must not be asked

    def __init__(self, score: Tensor) -> None:
        self.score = score

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.score.log()


class OneWayGraph(UniformGraph):
    """A graph with which neither churn nor scores work."""

    name, supports_churn, supports_scores = "one-way", False, False


def run_world(batch_size: int, first: int = 0, world: TinyWorld | None = None, **options):
    options = {"num_steps": 6, "generator": sample_generators(3, batch_size, first), **options}
    world = three_letter_world() if world is None else world
    return denoising_steps(world, GeometricNoise(), batch_size, 2, **options)


# The step of one position


def test_euler_jumps_at_the_reverse_rates():
    world, now = three_letter_world(), torch.tensor(0.7, dtype=torch.float64)
    log_q = world.denoise(world.words, now)
    score = denoiser_log_score(log_q, now, world.words).exp()
    errors = []
    for delta in (0.02, 0.01, 0.005):
        euler = product_of_positions(world, euler_probs(score, world.words, delta))
        errors.append((euler - true_reverse(world, now, now - delta)).abs().max().item())
    assert errors[0] < 1e-3
    assert 3.8 < errors[0] / errors[1] < 4.2
    assert 3.8 < errors[1] / errors[2] < 4.2


def test_euler_step_is_a_distribution_however_long():
    score = torch.tensor([[[1.0, 40.0, 3.0]], [[0.1, 1.0, 0.1]]])
    x_t = torch.tensor([[0], [1]])
    probs = euler_probs(score, x_t, torch.tensor([1.0, 0.5]))
    assert torch.equal(probs[0, 0], torch.tensor([0.0, 40 / 43, 3 / 43]))  # 43/3 > 1: cut to 1
    torch.testing.assert_close(probs[1, 0], torch.tensor([0.1 / 6, 1 - 0.1 / 3, 0.1 / 6]))
    score = torch.rand(1, 1000, 106, generator=torch.Generator().manual_seed(0))
    probs = euler_probs(score, torch.zeros(1, 1000, dtype=torch.int64), 1000.0)
    assert (probs >= 0).all()  # where jumps, rounded, sum to more than 1 as well


@pytest.mark.parametrize("vocab_size", [2, 3, 27])
def test_staggered_score_undoes_the_noise(vocab_size: int):
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(2, 4, vocab_size, generator=generator, dtype=torch.float64)
    delta = torch.tensor([0.3, 2.0], dtype=torch.float64)
    undo = torch.linalg.matrix_exp(-delta[:, None, None] * rate_matrix(vocab_size))  # (B, V, V)
    torch.testing.assert_close(staggered_score(score, delta), score @ undo)
    torch.testing.assert_close(staggered_score(score, 0.3)[0], (score @ undo)[0])


@pytest.mark.parametrize("vocab_size", [2, 3, 27])
def test_analytic_step_is_bayes_rule(vocab_size: int):
    later = torch.tensor(1.3, dtype=torch.float64)
    for earlier in (0.0, 1e-4, 0.4, 1.2):
        first = transition_matrix(torch.tensor(earlier, dtype=torch.float64), vocab_size)
        second = transition_matrix(later - earlier, vocab_size)
        for x_0, x_t in ((0, 0), (1, 0), (1, 1)):
            joint = first[x_0] * second[:, x_t]  # over x_s
            log_q = one_hot(torch.tensor([[x_0]]), vocab_size).double().log()
            step = analytic_probs(log_q, torch.tensor([[x_t]]), later, earlier)
            torch.testing.assert_close(step[0, 0], joint / joint.sum())


@pytest.mark.parametrize("vocab_size", [2, 3, 106])
def test_both_forms_of_the_step_agree(vocab_size: int):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(3, 5, vocab_size, generator=generator, dtype=torch.float64)
    log_q = logits.log_softmax(-1)
    x_t = torch.randint(vocab_size, (3, 5), generator=generator)
    now = torch.tensor([0.01, 0.8, 5.0], dtype=torch.float64)
    after = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    score = denoiser_log_score(log_q, now, x_t).exp()
    analytic = analytic_probs(log_q, x_t, now, after)
    raw = staggered_score(score, now - after) * transition(x_t, now - after, vocab_size)
    torch.testing.assert_close(raw, analytic, rtol=1e-9, atol=1e-12)  # sums to 1 all by itself


def test_step_is_a_distribution_at_the_extremes():
    log_q = torch.tensor([[[0.0, -torch.inf, -torch.inf], [-60.0, -50.0, 0.0]]])  # float32
    x_t = torch.tensor([[1, 1]])
    for now, after in ((20.0, 16.5), (20.0, 0.0), (1.2e-4, 1e-4), (1e-4, 0.0), (torch.inf, 3.0)):
        step = analytic_probs(log_q, x_t, now, after)
        assert step.dtype == torch.float32
        assert (step >= 0).all()
        torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))


def test_analytic_step_asks_the_graph():
    class Swapped(UniformGraph):
        """What it is asked, in its answer."""

        def marginal(self, log_q: Tensor, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
            return log_q.exp() + sigma_bar

        def likelihood(self, x_t: Tensor, delta_sigma: Tensor, vocab_size: int) -> Tensor:
            return delta_sigma * torch.arange(1, vocab_size + 1) + x_t[..., None]

    log_q = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    weight = (log_q.exp() + 0.25) * (1.5 * torch.tensor([1.0, 2.0, 3.0]) + 2)
    step = analytic_probs(log_q, torch.tensor([[2]]), 1.75, 0.25, Swapped())
    torch.testing.assert_close(step, weight / weight.sum())
    world = three_letter_world()
    world.graph = Swapped()
    x_t = world.words[:1]
    log_q = world.denoise(x_t, torch.tensor([1.75]))
    expected = analytic_probs(log_q, x_t, 1.75, 0.25, world.graph)
    torch.testing.assert_close(reverse_probs(world, x_t, 1.75, 0.25), expected)


@pytest.mark.parametrize("noise", [torch.tensor([0.5, 1.0]), torch.ones(3, 1)])
def test_noise_of_another_shape_is_refused(noise: Tensor):
    score, x_t = torch.ones(3, 4, 5), torch.zeros(3, 4, dtype=torch.int64)
    world = TinyWorld(torch.ones(5, 5, 5, 5, dtype=torch.float64) / 5**4)
    for call in (
        lambda: euler_probs(score, x_t, noise),
        lambda: staggered_score(score, noise),
        lambda: analytic_probs(-score, x_t, noise, 0.0),
        lambda: analytic_probs(-score, x_t, 2.0, noise),
        lambda: reverse_probs(world, x_t, noise, 0.0),
        lambda: reverse_probs(world, x_t, 2.0, noise),
        lambda: churned_probs(world, x_t, 2.0, noise, churn=0.5),
    ):
        with pytest.raises(ValueError, match=r"noise must be a scalar or .*3"):
            call()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_a_scalar_noise_is_the_same_for_every_text(method: str, churn: float):
    world, rows = three_letter_world(), torch.ones(9, dtype=torch.float64)
    options = {"method": method, "churn": churn}
    many = churned_probs(world, world.words, 2.0 * rows, rows, **options)
    scalar = churned_probs(world, world.words, 2.0 * rows[0], rows[0], **options)
    assert torch.equal(scalar, many)
    for now, after in ((2.0, 1.0), (2, 1)):  # plain numbers are in float32
        plain = churned_probs(world, world.words, now, after, **options)
        torch.testing.assert_close(plain, many, rtol=1e-6, atol=1e-6)


# Time grids


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 64, 1000])
def test_schedule_falls_from_one_to_zero(schedule: str, num_steps: int):
    times = create_timestep_schedule(num_steps, schedule)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    steep = GeometricNoise(1e-6, 60.0)  # 1 - exp(-60) is 1 in float64
    assert (create_timestep_schedule(num_steps, schedule, steep).diff() < 0).all()
    levels = noise_levels(steep, num_steps, schedule)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    assert noise_levels(steep, num_steps, schedule, denoise_last=False)[-1] == pytest.approx(1e-6)


def test_schedules_are_what_they_say():
    noise = GeometricNoise(1e-9, 30.0)  # so that the ends do not blur the comparison
    share = torch.linspace(0, 1, 9, dtype=torch.float64)
    for schedule, expected in (
        ("fraction", 1 - share),
        ("cosine", 1 - (share * torch.pi / 2).sin()),
    ):
        times = create_timestep_schedule(8, schedule, noise)
        fraction = resample_probability(noise.sigma_bar(times))
        torch.testing.assert_close(fraction, expected, rtol=0, atol=1e-8)
    assert torch.equal(create_timestep_schedule(8, "linear", noise), 1 - share)
    assert torch.equal(create_timestep_schedule(8), 1 - share)
    assert torch.equal(
        create_timestep_schedule(8, "cosine"),
        create_timestep_schedule(8, "cosine", GeometricNoise()),
    )


def test_schedule_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match="linear, cosine, fraction, got 'quadratic'"):
        create_timestep_schedule(8, "quadratic")
    for num_steps in (0, 2.5, "8"):
        with pytest.raises(ValueError, match="num_steps must be a whole number from 1"):
            create_timestep_schedule(num_steps)


# Random numbers


def test_inverse_cdf_gives_letters_as_often_as_their_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 1e-12], dtype=torch.float64)
    expected = torch.tensor([0, 0, 2, 2, 3, 3])
    assert torch.equal(_sample_categorical(probs.expand(6, 5), u), expected)
    assert torch.equal(_sample_categorical(7 * probs.float().expand(6, 5), u), expected)
    almost = torch.tensor([0.5 - 1e-9], dtype=torch.float64)  # 0.5 in the precision of the sum
    assert _sample_categorical(torch.tensor([[0.5, 0.5]]), almost).item() == 1
    assert _sample_categorical(torch.tensor([[0.5, 0.5]]).double(), almost).item() == 0
    evenly = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = _sample_categorical(probs.expand(1000, 5), evenly).bincount(minlength=5)
    assert counts.tolist() == [500, 0, 250, 250, 0]


def test_generators_depend_on_seed_and_number_alone():
    def numbers(*arguments: int) -> list[float]:
        return [torch.rand(1, generator=g).item() for g in sample_generators(*arguments)]

    assert numbers(7, 5) == numbers(7, 2) + numbers(7, 3, 2)
    assert numbers(7, 3, 0) == numbers(7, 3)
    assert len({*numbers(7, 300), *numbers(8, 300)}) == 600
    far = sample_generators(7, 2, 2**40)  # numbers wrap around at 32 bits
    assert [g.initial_seed() for g in far] == [g.initial_seed() for g in sample_generators(7, 2)]
    for arguments in ((-1, 1), (0, -1), (0, 1, -1), (0.5, 1)):
        with pytest.raises(ValueError, match="must be a whole number from 0"):
            sample_generators(*arguments)


# One function evaluation


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_the_step_of_its_method(method: str):
    world, x_t = three_letter_world(), three_letter_world().words
    now, after = torch.full((9,), 2.0).double(), torch.full((9,), 0.5).double()
    log_q = world.denoise(x_t, now)
    score = denoiser_log_score(log_q, now, x_t).exp()
    expected = {
        "analytic": analytic_probs(log_q, x_t, now, after),
        "euler": euler_probs(score, x_t, 1.5),
    }[method]
    for model in (world, ScoresOnly(score), ScoresOnly(score).__call__):  # any function will do
        step = reverse_probs(model, x_t, now, after, method=method)
        torch.testing.assert_close(step, expected)
    assert torch.equal(reverse_probs(world, x_t, now, after), reverse_probs(world, x_t, 2.0, 0.5))


def test_who_has_a_denoiser():
    assert has_denoiser(three_letter_world())
    assert has_denoiser(SimpleNamespace(denoise=1, config=SimpleNamespace()))
    assert not has_denoiser(ScoresOnly(torch.ones(1, 1, 3)))
    assert not has_denoiser(lambda x_t, sigma_bar: x_t)


def test_step_from_an_impossible_score_is_a_distribution():
    score, noise = torch.tensor([[[2.0, 1.0, 0.0], [0.5, 1.0, 0.5]]]), torch.tensor([2.0])
    assert (staggered_score(score, noise) < 0).any()
    step = reverse_probs(ScoresOnly(score), torch.tensor([[1, 1]]), noise, 0 * noise)
    assert (step >= 0).all()
    torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))


def test_temperature_sharpens_what_the_model_believes():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]], dtype=torch.float64), torch.tensor([[3]])
    noise = torch.tensor([torch.inf])
    for temperature, expected in (
        (1.0, [0.5, 0.3, 0.2, 0.0]),
        (0.5, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38, 0.0]),
        (2.0, [0.4154459, 0.3218030, 0.2627511, 0.0]),  # square roots, normalized
        (1e-40, [1.0, 0.0, 0.0, 0.0]),
        (1e9, [1 / 3, 1 / 3, 1 / 3, 0.0]),
    ):
        for dtype in (torch.float32, torch.float64):
            log_q = q.to(dtype).log()
            model = SimpleNamespace(denoise=lambda x_t, sigma_bar, log_q=log_q: log_q)
            step = reverse_probs(model, x_t, noise, torch.zeros(1), temperature=temperature)
            torch.testing.assert_close(step, torch.tensor([[expected]], dtype=dtype))


def test_no_gradients_are_prepared():
    world = three_letter_world()
    assert reverse_probs(world, world.words, 2.0, 0.5).is_inference()
    assert not torch.is_inference_mode_enabled()


# Churn


@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_churn_keeps_the_law_of_one_letter(churn: float):
    world = TinyWorld(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    levels = torch.tensor([2.0, 0.6, 0.1, 0.0], dtype=torch.float64)
    probs = world.probs @ word_kernel(world, levels[0])
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(world, world.words, now, after, churn=churn)
        probs = probs @ step[:, 0]
        torch.testing.assert_close(probs, world.probs @ word_kernel(world, after))


def test_churn_goes_too_far_and_comes_back():
    world, sigmas = two_letter_world(), torch.ones(8, dtype=torch.float64)
    left = -torch.log1p(-0.25 * resample_probability(0.8 * sigmas))  # a quarter of what is to stay
    far = reverse_probs(world, world.words, 2.0 * sigmas, left, temperature=0.7)
    back = far @ transition_matrix(0.8 - left[0], 2)
    options = {"churn": 0.75, "temperature": 0.7}
    step = churned_probs(world, world.words, 2.0 * sigmas, 0.8 * sigmas, **options)
    torch.testing.assert_close(step, back)
    clean = reverse_probs(world, world.words, 2.0, 0.0)  # all the way, and all noise anew
    again = clean @ transition_matrix(0.8 * sigmas[0], 2)
    whole = churned_probs(world, world.words, 2.0 * sigmas, 0.8 * sigmas, churn=1.0)
    torch.testing.assert_close(whole, again)
    for churn in (0.0, 0.5, 1.0):
        last = churned_probs(world, world.words, 2.0 * sigmas, 0.0 * sigmas, churn=churn)
        torch.testing.assert_close(last, reverse_probs(world, world.words, 2.0, 0.0))
    assert torch.equal(
        churned_probs(world, world.words, 2.0, 0.8), reverse_probs(world, world.words, 2.0, 0.8)
    )


def test_churn_hands_everything_on():
    world, mask = two_letter_world(), torch.tensor([[True, False, False]] * 8)
    options = {"method": "euler", "temperature": 0.5, "condition_mask": mask}
    step = churned_probs(world, world.words, 2.0, 0.0, churn=1.0, **options)
    torch.testing.assert_close(step, reverse_probs(world, world.words, 2.0, 0.0, **options))
    for name in options:  # each of them counts
        less = {key: value for key, value in options.items() if key != name}
        other = reverse_probs(world, world.words, 2.0, 0.0, **less)
        assert not torch.allclose(step, other), name


# The loop


def test_steps_say_what_happened():
    steps = list(run_world(50))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 5, 6]
    assert {step.num_steps for step in steps} == {6}
    assert [step.sigma_bar for step in steps] == noise_levels(GeometricNoise(), 6).tolist()
    assert not steps[0].changed.any()
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert torch.equal(after.changed, before.tokens != after.tokens)
    assert sum(step.changed.sum() for step in steps) > 50
    options = {"num_steps": 6, "vocab_size": 3, "generator": sample_generators(3, 50)}
    last = sample_diffusion(three_letter_world(), GeometricNoise(), 50, 2, **options)
    assert last.dtype == torch.int64
    assert torch.equal(last, steps[-1].tokens)


def test_both_entries_take_the_same_options_and_hand_them_on():
    steps, samples = (inspect.signature(f) for f in (denoising_steps, sample_diffusion))
    assert steps.parameters == samples.parameters
    by_name = [p for p in steps.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert len(by_name) == len(steps.parameters) - 4
    world, noise = three_letter_world(), GeometricNoise(0.5, 3.0)
    base = {"num_steps": 3, "schedule": "cosine", "churn": 0.5}
    for option in (
        {"num_steps": 5},
        {"schedule": "fraction"},
        {"method": "euler"},
        {"temperature": 0.2},
        {"churn": 1.0},
        {"denoise_last": False},
        {"template": torch.tensor([2, 2]), "condition_mask": torch.tensor([True, False])},
        {"vocab_size": 2},  # the random start has two letters
        {"device": "cpu"},  # where it is anyway
    ):
        options = {**base, "generator": sample_generators(1, 500), **option}
        (*_, last) = denoising_steps(world, noise, 500, 2, **options)
        options["generator"] = sample_generators(1, 500)
        assert torch.equal(sample_diffusion(world, noise, 500, 2, **options), last.tokens)
        plain = sample_diffusion(world, noise, 500, 2, **base, generator=sample_generators(1, 500))
        assert torch.equal(plain, last.tokens) == ("device" in option), option


def test_sampling_leaves_nothing_switched_on():
    class Network(torch.nn.Module):
        config = SimpleNamespace(vocab_size=3)

        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(3))

        def denoise(self, x_t, sigma_bar):
            assert torch.is_inference_mode_enabled()
            assert sigma_bar.dtype == torch.float32
            assert sigma_bar.shape == (2,)
            return self.logits.log_softmax(-1).expand(*x_t.shape, 3)

    for step in denoising_steps(Network(), GeometricNoise(), 2, 4, num_steps=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert not step.tokens.is_inference()  # so the samples can be trained on


def test_the_text_is_written_where_the_model_is():
    class Network(torch.nn.Module):
        config = SimpleNamespace(vocab_size=3)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, device="meta"))

    generators = sample_generators(0, 2)
    start = next(denoising_steps(Network(), GeometricNoise(), 2, 4, generator=generators))
    assert start.tokens.device.type == "meta"
    assert start.changed.device.type == "meta"
    start = next(denoising_steps(Network(), GeometricNoise(), 2, 4, device="cpu"))
    assert start.tokens.device.type == "cpu"
    start = next(denoising_steps(three_letter_world(), GeometricNoise(), 2, 4))
    assert start.tokens.device.type == "cpu"


def test_samples_do_not_depend_on_the_batch_split():
    (*_, whole), (*_, first), (*_, rest) = run_world(20), run_world(7), run_world(13, first=7)
    assert torch.equal(whole.tokens, torch.cat([first.tokens, rest.tokens]))
    (*_, other) = run_world(20, generator=sample_generators(4, 20))
    assert not torch.equal(whole.tokens, other.tokens)
    one = [list(run_world(20, generator=torch.Generator().manual_seed(0)))[-1] for _ in range(2)]
    assert torch.equal(one[0].tokens, one[1].tokens)
    assert len(one[0].tokens.unique(dim=0)) > 3


def test_without_a_generator_pytorch_draws():
    torch.manual_seed(5)
    (*_, first) = run_world(20, generator=None)
    (*_, second) = run_world(20, generator=None)
    assert not torch.equal(first.tokens, second.tokens)
    torch.manual_seed(5)
    (*_, again) = run_world(20, generator=None)
    assert torch.equal(first.tokens, again.tokens)


def test_cold_samples_are_what_the_model_believes_most():
    (*_, last) = run_world(300, temperature=0.05, num_steps=20)
    common = (last.tokens[:, 1] - last.tokens[:, 0]) % 3 == 1  # ab, bc, ca
    assert common.all()
    (*_, last) = run_world(300, num_steps=20)
    assert not ((last.tokens[:, 1] - last.tokens[:, 0]) % 3 == 1).all()


def test_short_steps_near_the_text_pay():
    world, noise = three_letter_world(), GeometricNoise()
    linear = total_variation(written(world, noise_levels(noise, 32)), world.probs)
    cosine = total_variation(written(world, noise_levels(noise, 24, "cosine")), world.probs)
    assert cosine < 0.75 * linear


# Conditions


def test_two_open_letters_converge_to_the_conditional():
    world, template = two_letter_world(), torch.tensor([0, 1, 0])
    given = {"template": template, "condition_mask": template.bool()}
    true, distances = world.probs * (world.words[:, 1] == 1), []
    for num_steps in (16, 32, 64, 128):
        run = written(world, noise_levels(GeometricNoise(), num_steps), **given)
        distances.append(total_variation(run, true / true.sum()))
    assert sorted(distances, reverse=True) == distances
    assert distances[-1] < 0.006


def test_given_letters_are_kept_in_every_step():
    template = torch.tensor([[1, 0]] * 4 + [[0, 2]] * 4)
    mask = torch.tensor([[True, False]] * 4 + [[False, True]] * 4)
    for step in run_world(8, template=template, condition_mask=mask):
        assert torch.equal(step.tokens[mask], template[mask])
    (*_, last) = run_world(4000, template=template[0], condition_mask=mask[0])
    shares = last.tokens[:, 1].bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.05, 0.9]), rtol=0, atol=0.015)
    everything = torch.ones(2, dtype=torch.bool)
    (*_, last) = run_world(3, template=torch.tensor([2, 2]), condition_mask=everything)
    assert (last.tokens == 2).all()


def test_what_is_not_given_may_hold_anything():
    template, mask = torch.tensor([1, -7]), torch.tensor([True, False])
    (*_, last) = run_world(5, template=template, condition_mask=mask)
    assert (last.tokens[:, 0] == 1).all()
    assert ((last.tokens >= 0) & (last.tokens < 3)).all()


# What is refused

KEEP, WORD = torch.tensor([True, False]), torch.tensor([1, 0])
REFUSED = {
    "num_steps must be a whole number from 1": {"num_steps": 0},
    "schedule must be one of": {"schedule": "square"},
    "method must be one of analytic, euler, got 'magic'": {"method": "magic"},
    "temperature must be 1, or above 0": {"temperature": 0.0},
    "temperature must be 1, or above 0 and": {"temperature": float("nan")},
    "temperature must be 1, or above 0 and finite": {"temperature": float("inf")},
    "churn must be a number from 0.0 to 1.0, got 1.5": {"churn": 1.5},
    "churn must be a number from 0.0 to 1.0, got -0.5": {"churn": -0.5},
    "template and condition_mask go together": {"template": WORD},
    "go together: both must be tensors": {"condition_mask": KEEP},
    "condition_mask go together: both": {"template": WORD, "condition_mask": [True, False]},
    r"template must be torch.int64 of shape \(2,\) or \(5, 2\), got torch.int64 \(3,\)": {
        "template": torch.tensor([1, 0, 0]),
        "condition_mask": KEEP,
    },
    "condition_mask must be torch.bool of shape": {
        "template": WORD,
        "condition_mask": torch.ones(2, 2).bool(),
    },
    "condition_mask must be torch.bool": {"template": WORD, "condition_mask": WORD},
    "template must be torch.int64": {"template": WORD.float(), "condition_mask": KEEP},
    "the template has tokens outside 0 to 2": {"template": WORD + 2, "condition_mask": KEEP},
    "template has tokens outside 0": {"template": WORD - 2, "condition_mask": KEEP},
    "2 generators for a batch of 5": {"generator": sample_generators(0, 2)},
    "if the model has a denoiser": {
        "world": ScoresOnly(torch.ones(1, 1, 3)),
        "temperature": 0.5,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_refused_at_the_call(message: str):
    with pytest.raises(ValueError, match=message) as error:
        run_world(5, **REFUSED[message])
    assert "\n" not in str(error.value)


def test_an_empty_batch_or_text_is_refused():
    for batch_size, seq_len, name in ((0, 2, "batch_size"), (2, 0, "seq_len"), (1.5, 2, "batch")):
        with pytest.raises(ValueError, match=f"{name}.* must be a whole number from 1"):
            denoising_steps(three_letter_world(), GeometricNoise(), batch_size, seq_len)


def test_a_graph_says_what_works_with_it():
    world = three_letter_world()
    world.graph = OneWayGraph()
    for message, options in {
        "the method euler does not work with the one-way graph": {"method": "euler"},
        "churn must be 0 with the one-way graph, got 0.5": {"churn": 0.5},
    }.items():
        with pytest.raises(UserError, match=message):
            run_world(2, world=world, **options)
        with pytest.raises(UserError, match=message):
            churned_probs(world, world.words, 2.0, 1.0, **options)
    with pytest.raises(UserError, match="does not work with the one-way graph"):
        reverse_probs(world, world.words, 2.0, 1.0, method="euler")
    (*_, last) = run_world(2, world=world)
    assert last.tokens.shape == (2, 2)
    scores = ScoresOnly(torch.ones(1, 1, 3))
    scores.graph = OneWayGraph()
    with pytest.raises(UserError, match="the one-way graph needs a model with a denoiser"):
        run_world(2, world=scores)
