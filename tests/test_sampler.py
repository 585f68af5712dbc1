# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import GeometricNoise, rate_matrix, resample_probability, transition_matrix
from ddlm_core.sampler import (
    _sample_categorical,
    analytic_probs,
    churned_probs,
    create_timestep_schedule,
    denoising_steps,
    euler_probs,
    noise_levels,
    reverse_probs,
    sample_diffusion,
    sample_generators,
    staggered_score,
)


class TinyWorld:
    """A language given by the probabilities of all its words, and its ideal denoiser."""

    def __init__(self, probs: Tensor) -> None:  # (V, V, …): one axis for each letter of a word
        self.vocab_size, self.length = probs.shape[0], probs.ndim
        letters = torch.arange(self.vocab_size)
        words = torch.cartesian_prod(*[letters] * self.length)
        self.words = words.view(-1, self.length)  # (W, L), W = V**L
        self.probs = probs.flatten()  # (W,), in the order of `words`

    def denoise(self, x_t: Tensor, sigma_bar: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = transition(x_t, sigma_bar.double(), self.vocab_size)  # (B, L, V): p(x_t | letter)
        if mask is not None:
            seen = torch.where(mask[..., None], one_hot(x_t, self.vocab_size).double(), seen)
        q = []
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            weight = self.probs * seen[:, others, self.words[:, others]].prod(-1)  # (B, W)
            q.append(weight @ one_hot(self.words[:, i], self.vocab_size).double())  # (B, V)
        q = torch.stack(q, 1)
        return (q / q.sum(-1, keepdim=True)).log()


def three_letter_world() -> TinyWorld:
    """Three letters; words of two."""
    probs = torch.full((3, 3), 0.1 / 6, dtype=torch.float64)
    probs[0, 1], probs[1, 2], probs[2, 0] = 0.4, 0.3, 0.2  # ab, bc, ca
    return TinyWorld(probs)


def two_letter_world() -> TinyWorld:
    """Two letters; words of three."""
    probs = torch.tensor([0.30, 0.05, 0.10, 0.05, 0.05, 0.15, 0.05, 0.25], dtype=torch.float64)
    return TinyWorld(probs.reshape(2, 2, 2))


def product_of_positions(world: TinyWorld, probs: Tensor) -> Tensor:
    """(B, L, V) to (B, W): the probability of each word if its letters are drawn independently."""
    return probs[:, range(world.length), world.words].prod(-1)


def word_kernel(world: TinyWorld, sigma_bar: Tensor) -> Tensor:
    """(W, W): probabilities that one word has turned into another after a total noise."""
    letter = transition_matrix(sigma_bar, world.vocab_size)  # (V, V)
    return letter[world.words[:, None], world.words[None]].prod(-1)


def true_reverse(world: TinyWorld, sigma_bar_t: Tensor, sigma_bar_s: Tensor) -> Tensor:
    """(W, W): p(x_s | x_t) for whole words by Bayes' rule, one row for each x_t."""
    before = world.probs @ word_kernel(world, sigma_bar_s)  # (W,): p_s
    joint = before[:, None] * word_kernel(world, sigma_bar_t - sigma_bar_s)
    return (joint / joint.sum(0)).T


def test_euler_jumps_at_the_reverse_rates():
    world, now = three_letter_world(), torch.tensor(0.7, dtype=torch.float64)
    log_q = world.denoise(world.words, now.expand(len(world.words)))
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


def test_analytic_step_is_exact_for_each_position():
    world = three_letter_world()
    now, after = torch.tensor([2.0, 0.6], dtype=torch.float64)
    log_q = world.denoise(world.words, now.expand(len(world.words)))
    step = analytic_probs(log_q, world.words, now, after)
    true = true_reverse(world, now, after)  # (W, W)
    for i in range(world.length):
        marginal = true @ one_hot(world.words[:, i], world.vocab_size).double()
        torch.testing.assert_close(step[:, i], marginal)
    assert (product_of_positions(world, step) - true).abs().max() > 0.05  # but not for the word


def test_step_is_a_distribution_at_the_extremes():
    log_q = torch.tensor([[[0.0, -torch.inf, -torch.inf], [-60.0, -50.0, 0.0]]])  # float32
    x_t = torch.tensor([[1, 1]])
    for now, after in ((20.0, 16.5), (20.0, 0.0), (1.2e-4, 1e-4), (1e-4, 0.0), (torch.inf, 3.0)):
        step = analytic_probs(log_q, x_t, now, after)
        assert (step >= 0).all()
        torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "fraction"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 64, 1000])
def test_schedule_falls_from_one_to_zero(schedule: str, num_steps: int):
    times = create_timestep_schedule(num_steps, schedule)
    assert times.shape == (num_steps + 1,) and times.dtype == torch.float64
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    steep = GeometricNoise(1e-6, 60.0)  # 1 - exp(-60) is 1 in float64
    assert (create_timestep_schedule(num_steps, schedule, steep).diff() < 0).all()
    levels = noise_levels(steep, num_steps, schedule)
    assert levels[-1] == 0 and (levels.diff() < 0).all()
    assert noise_levels(steep, num_steps, schedule, denoise_last=False)[-1] > 9e-7


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


def test_schedule_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="linear, cosine, fraction"):
        create_timestep_schedule(8, "quadratic")
    with pytest.raises(ValueError, match="at least 1"):
        create_timestep_schedule(0)


def test_dart_hits_letters_as_often_as_their_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64)
    darts = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 1e-12], dtype=torch.float64)
    expected = torch.tensor([0, 0, 2, 2, 3, 3])
    assert torch.equal(_sample_categorical(probs.expand(6, 5), darts), expected)
    assert torch.equal(_sample_categorical(7 * probs.float().expand(6, 5), darts), expected)
    evenly = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = _sample_categorical(probs.expand(1000, 5), evenly).bincount(minlength=5)
    assert counts.tolist() == [500, 0, 250, 250, 0]


def test_generators_depend_on_seed_and_number_alone():
    def numbers(*arguments: int) -> list[float]:
        return [torch.rand(1, generator=g).item() for g in sample_generators(*arguments)]

    assert numbers(7, 5) == numbers(7, 2) + numbers(7, 3, 2)
    assert len({*numbers(7, 300), *numbers(8, 300)}) == 600


class ScoreModel:
    """A model of the paper's kind, which says the same to everything."""

    config = SimpleNamespace(parametrization="score")
    denoise = None  # must not be asked

    def __init__(self, score: Tensor) -> None:
        self.score = score

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.score.log()


def test_one_step_is_the_step_of_its_method():
    world, x_t = three_letter_world(), three_letter_world().words
    now, after = torch.full((9,), 2.0).double(), torch.full((9,), 0.5).double()
    log_q = world.denoise(x_t, now)
    score = denoiser_log_score(log_q, now, x_t).exp()
    analytic, euler = analytic_probs(log_q, x_t, now, after), euler_probs(score, x_t, 1.5)
    for model, method, expected in (
        (world, "analytic", analytic),
        (world, "euler", euler),
        (ScoreModel(score), "analytic", analytic),
        (ScoreModel(score).__call__, "analytic", analytic),  # any function will do
        (ScoreModel(score), "euler", euler),
    ):
        torch.testing.assert_close(reverse_probs(model, x_t, now, after, method), expected)


def test_step_from_an_impossible_score_is_a_distribution():
    score, noise = torch.tensor([[[2.0, 1.0, 0.0], [0.5, 1.0, 0.5]]]), torch.tensor([2.0])
    assert (staggered_score(score, noise) < 0).any()
    step = reverse_probs(ScoreModel(score), torch.tensor([[1, 1]]), noise, 0 * noise)
    assert (step >= 0).all()
    torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))


def test_temperature_sharpens_what_the_model_believes():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]], dtype=torch.float64), torch.tensor([[3]])
    noise = torch.tensor([torch.inf])
    for temperature, expected in (
        (1.0, [0.5, 0.3, 0.2, 0.0]),
        (0.5, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38, 0.0]),
        (1e-40, [1.0, 0.0, 0.0, 0.0]),
        (1e9, [1 / 3, 1 / 3, 1 / 3, 0.0]),
    ):
        for dtype in (torch.float32, torch.float64):
            log_q = q.to(dtype).log()
            model = SimpleNamespace(denoise=lambda x_t, sigma_bar, log_q=log_q: log_q)
            step = reverse_probs(model, x_t, noise, torch.zeros(1), temperature=temperature)
            torch.testing.assert_close(step, torch.tensor([[expected]], dtype=dtype))


@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_churn_keeps_the_law_of_one_letter(churn: float):
    world = TinyWorld(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    levels = torch.tensor([2.0, 0.6, 0.1, 0.0], dtype=torch.float64)
    probs = world.probs @ word_kernel(world, levels[0])
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(world, world.words, now.expand(3), after.expand(3), churn)
        probs = probs @ step[:, 0]
        torch.testing.assert_close(probs, world.probs @ word_kernel(world, after))


def test_churn_goes_too_far_and_comes_back():
    world, rows = two_letter_world(), torch.ones(8, dtype=torch.float64)
    left = -torch.log1p(-0.25 * resample_probability(0.8 * rows))  # a quarter of what shall be left
    far = reverse_probs(world, world.words, 2.0 * rows, left, temperature=0.7)
    back = far @ transition_matrix(0.8 - left[0], 2)
    step = churned_probs(world, world.words, 2.0 * rows, 0.8 * rows, 0.75, "analytic", 0.7)
    torch.testing.assert_close(step, back)
    for churn in (0.0, 0.5, 1.0):
        last = churned_probs(world, world.words, 2.0 * rows, 0.0 * rows, churn)
        torch.testing.assert_close(last, reverse_probs(world, world.words, 2 * rows, 0 * rows))


def run_world(batch_size: int, first: int = 0, world: TinyWorld | None = None, **options):
    options = {"num_steps": 6, "generator": sample_generators(3, batch_size, first), **options}
    world = world or three_letter_world()
    return denoising_steps(world, GeometricNoise(), batch_size, 2, vocab_size=3, **options)


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
    assert last.dtype == torch.int64 and torch.equal(last, steps[-1].tokens)


def test_sampling_leaves_nothing_switched_on():
    class Network(torch.nn.Module):
        config = SimpleNamespace(vocab_size=3)

        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(3))

        def denoise(self, x_t, sigma_bar):
            assert torch.is_inference_mode_enabled()
            return self.logits.log_softmax(-1).expand(*x_t.shape, 3)

    for step in denoising_steps(Network(), GeometricNoise(), 2, 4, num_steps=3):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert not step.tokens.is_inference()  # so the samples can be trained on


def test_samples_do_not_depend_on_the_batch_split():
    (*_, whole), (*_, first), (*_, rest) = run_world(20), run_world(7), run_world(13, first=7)
    assert torch.equal(whole.tokens, torch.cat([first.tokens, rest.tokens]))
    (*_, other) = run_world(20, generator=sample_generators(4, 20))
    assert not torch.equal(whole.tokens, other.tokens)
    one = [list(run_world(20, generator=torch.Generator().manual_seed(0)))[-1] for _ in range(2)]
    assert torch.equal(one[0].tokens, one[1].tokens) and len(one[0].tokens.unique(dim=0)) > 3


def test_cold_samples_are_what_the_model_believes_most():
    (*_, last) = run_world(300, temperature=0.05, num_steps=20)
    common = (last.tokens[:, 1] - last.tokens[:, 0]) % 3 == 1  # ab, bc, ca
    assert common.all()
    (*_, last) = run_world(300, num_steps=20)
    assert not ((last.tokens[:, 1] - last.tokens[:, 0]) % 3 == 1).all()


def written(
    world: TinyWorld,
    levels: Tensor,
    method: str = "analytic",
    template: Tensor | None = None,
    mask: Tensor | None = None,
    told: bool = True,
    churn: float = 0.0,
) -> Tensor:
    """(W,): exact probabilities of the words that a run through the noise levels writes."""
    words, vocab_size = world.words, world.vocab_size
    free = torch.zeros(words.shape, dtype=torch.bool)
    given = free if mask is None else mask.expand_as(words)  # (W, L)
    fits = (free if template is None else (words != template) & given).any(-1).logical_not()
    probs = fits / fits.sum().double()
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        now, after = now.expand(len(words)), after.expand(len(words))
        heard = given if told else None
        step = churned_probs(world, words, now, after, churn, method, 1.0, heard)
        if template is not None:
            step = torch.where(given[..., None], one_hot(template, vocab_size).double(), step)
        probs = probs @ product_of_positions(world, step)
    return probs


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


@pytest.mark.parametrize("method", ["analytic", "euler"])
@pytest.mark.parametrize("make_world", [three_letter_world, two_letter_world])
def test_total_variation_falls_like_one_over_the_steps(method: str, make_world):
    world, distances = make_world(), []
    for num_steps in (4, 8, 16, 32, 64, 128, 256):
        levels = noise_levels(GeometricNoise(), num_steps)
        distances.append(total_variation(written(world, levels, method), world.probs))
    assert sorted(distances, reverse=True) == distances
    assert distances[-1] < 0.006
    assert 1.9 < distances[-2] / distances[-1] < 2.1


def test_short_steps_near_the_text_pay():
    world, noise = three_letter_world(), GeometricNoise()
    linear = total_variation(written(world, noise_levels(noise, 32)), world.probs)
    cosine = total_variation(written(world, noise_levels(noise, 24, "cosine")), world.probs)
    assert cosine < 0.75 * linear


@pytest.mark.parametrize("method", ["analytic", "euler"])
@pytest.mark.parametrize("churn", [0.0, 0.6])
def test_loop_writes_what_the_exact_computation_says(method: str, churn: float):
    world, number = three_letter_world(), 4000
    levels = noise_levels(GeometricNoise(), 4, "fraction")
    how = {"num_steps": 4, "schedule": "fraction", "method": method, "churn": churn}
    (*_, last) = run_world(number, **how)
    counts = (last.tokens @ torch.tensor([3, 1])).bincount(minlength=9)

    def chi_squared(probs: Tensor) -> float:
        return ((counts - number * probs) ** 2 / (number * probs)).sum().item()

    exact = written(world, levels, method, churn=churn)
    assert chi_squared(exact) < 31.8  # 8 degrees of freedom: p = 1e-4
    assert chi_squared(world.probs) > 500


def test_given_letters_condition_the_rest():
    world = three_letter_world()
    template, mask = torch.tensor([1, 0]), torch.tensor([True, False])
    true = world.probs * (world.words[:, 0] == 1)
    true = true / true.sum()
    for num_steps in (1, 7):
        told = written(world, noise_levels(GeometricNoise(), num_steps), "analytic", template, mask)
        torch.testing.assert_close(told, true)
    levels = noise_levels(GeometricNoise(), 256)
    assert total_variation(written(world, levels, "analytic", template, mask, False), true) > 0.1


def test_two_open_letters_converge_to_the_conditional():
    world, template = two_letter_world(), torch.tensor([0, 1, 0])
    mask, distances = template.bool(), []
    true = world.probs * (world.words[:, 1] == 1)
    for num_steps in (16, 32, 64, 128):
        levels = noise_levels(GeometricNoise(), num_steps)
        run = written(world, levels, "analytic", template, mask)
        distances.append(total_variation(run, true / true.sum()))
    assert sorted(distances, reverse=True) == distances and distances[-1] < 0.006


def test_given_letters_are_kept_in_every_step():
    template = torch.tensor([[1, 0]] * 4 + [[0, 2]] * 4)
    mask = torch.tensor([[True, False]] * 4 + [[False, True]] * 4)
    for step in run_world(8, template=template, mask=mask):
        assert torch.equal(step.tokens[mask], template[mask])
    (*_, last) = run_world(4000, template=template[0], mask=mask[0])
    shares = last.tokens[:, 1].bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.05, 0.9]), rtol=0, atol=0.015)
    everything = torch.ones(2, dtype=torch.bool)
    (*_, last) = run_world(3, template=torch.tensor([2, 2]), mask=everything)
    assert (last.tokens == 2).all()


def test_bad_arguments_are_refused_at_the_call():
    keep, word = torch.tensor([True, False]), torch.tensor([1, 0])
    for message, options in {
        "num_steps must be": {"num_steps": 0},
        "schedule must be one of": {"schedule": "square"},
        "method must be one of": {"method": "magic"},
        "temperature must be": {"temperature": 0.0},
        "churn must be a number from 0.0 to 1.0, got 1.5": {"churn": 1.5},
        "temperature must be 1, or above 0": {"temperature": float("nan")},
        "go together": {"template": word},
        r"template must be torch.int64 of shape \(2,\) or \(5, 2\)": {
            "template": torch.tensor([1, 0, 0]),
            "mask": keep,
        },
        "go together: mask must be torch.bool of shape": {
            "template": word,
            "mask": torch.ones(2, 2).bool(),
        },
        "mask must be torch.bool": {"template": word, "mask": word},
        "template must be torch.int64": {"template": word.float(), "mask": keep},
        "tokens outside 0 to 2": {"template": word + 2, "mask": keep},
        "2 generators for a batch of 5": {"generator": sample_generators(0, 2)},
        "if the model has a denoiser": {"world": torch.nn.Identity(), "temperature": 0.5},
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            run_world(5, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least 1"):
        run_world(0)
