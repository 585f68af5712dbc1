"""Samplers of today: reshaped denoisers, entropy-bound acceptance, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ddlm_core.absorbing import ABSORBING
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.modern_samplers import (
    AcceptingStep,
    Annealed,
    TopP,
    accepting_probs,
    entropy_bound_steps,
)
from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import analytic_probs, reverse_probs
from ddlm_core.sampler import denoising_steps, sample_diffusion, sample_generators
from ddlm_core.support.errors import UserError
from ddlm_core.testing import SMALL, randomize, small_network
from ddlm_core.tiny_world import three_letter_world, two_letter_world

NOISE = GeometricNoise()


def run(model=None, batch_size=3, length=2, first=0, **options) -> list[AcceptingStep]:
    model = three_letter_world() if model is None else model
    options = {"bound": 0.6, "generator": sample_generators(3, batch_size, first)} | options
    return list(entropy_bound_steps(model, NOISE, batch_size, length, **options))


def noisy(world, sigma_bar: float) -> tuple[Tensor, Tensor]:
    return world.words, torch.full((len(world.words),), sigma_bar, dtype=torch.float64)


# Denoisers, reshaped


def test_nucleus_is_the_fewest_letters_that_have_p():
    world = SimpleNamespace(
        config=None, denoise=lambda x_t, sigma_bar: torch.tensor([[[0.2, 0.5, 0.3]]]).log()
    )
    for p, expected in (
        (0.0, [0, 1, 0]),
        (0.49, [0, 1, 0]),
        (0.51, [0, 0.625, 0.375]),
        (0.79, [0, 0.625, 0.375]),
        (0.81, [0.2, 0.5, 0.3]),
        (1.0, [0.2, 0.5, 0.3]),
    ):
        q = TopP(world, p).denoise(torch.tensor([[0]]), torch.tensor([1.0])).exp()
        assert q[0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("p, number", [(0.25, 1), (0.5, 2), (0.6, 3)])
def test_nucleus_of_equal_letters_has_as_few_as_p_needs(p, number):
    model = SimpleNamespace(config=None, denoise=lambda x_t, s: torch.full((1, 1, 4), 0.25).log())
    q = TopP(model, p).denoise(torch.tensor([[0]]), torch.tensor([1.0])).exp()
    expected = [0.0] * (4 - number) + [1 / number] * number
    assert sorted(q[0, 0].tolist()) == pytest.approx(expected)


def test_annealing_goes_from_the_first_temperature_to_the_last():
    world = three_letter_world()
    for sigma_bar, temperature in ((0.0, 0.5), (math.log(2), 1.25), (60.0, 2.0)):
        x_t, noise = noisy(world, sigma_bar)
        q = Annealed(world, 2.0, 0.5).denoise(x_t, noise).exp()
        expected = world.denoise(x_t, noise).exp() ** (1 / temperature)
        torch.testing.assert_close(q, expected / expected.sum(-1, keepdim=True))


def test_annealing_with_one_temperature_is_the_temperature_of_chapter_7():
    world = three_letter_world()
    x_t, noise = noisy(world, 0.8)
    step = reverse_probs(Annealed(world, 0.7, 0.7), x_t, noise, 0.2)
    torch.testing.assert_close(step, reverse_probs(world, x_t, noise, 0.2, temperature=0.7))
    extreme = Annealed(world, 1e-30, 1e-30).denoise(x_t, noise)
    assert torch.equal(extreme.exp().amax(-1).round(decimals=6), torch.ones(9, 2).double())


def test_each_text_is_annealed_by_its_own_noise():
    world, noise = three_letter_world(), torch.linspace(0.1, 3, 9, dtype=torch.float64)
    together = Annealed(world, 1.0, 0.5).denoise(world.words, noise)
    for i in range(9):
        alone = Annealed(world, 1.0, 0.5).denoise(world.words[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("reshape", [lambda m: TopP(m, 0.9), lambda m: Annealed(m, 1.0, 0.5)])
def test_a_reshaped_network_goes_where_a_network_goes(reshape):
    network = small_network()
    model = reshape(network)
    assert model.config is network.config and model.graph is network.graph
    assert [p.data_ptr() for p in model.parameters()] == [
        p.data_ptr() for p in network.parameters()
    ]
    x_t, noise = torch.arange(10).view(2, 5) % 8, torch.tensor([0.5, 1.0], dtype=torch.float64)
    mask = torch.tensor([True, False, False, True, False]).expand(2, 5)
    log_q = model.denoise(x_t, noise, mask)
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(log_q, model.reshape(network.denoise(x_t, noise, mask), noise))
    expected = network.graph.log_score(log_q, noise, x_t)
    torch.testing.assert_close(model(x_t, noise, mask), expected)
    options = {"num_steps": 3, "generator": sample_generators(0, 2)}
    assert sample_diffusion(model, NOISE, 2, 5, **options).shape == (2, 5)


def test_reshaped_denoisers_can_be_stacked():
    world = three_letter_world()
    x_t, noise = noisy(world, 0.5)
    q = Annealed(TopP(world, 0.8), 0.5, 0.5).denoise(x_t, noise).exp()
    expected = TopP(world, 0.8).denoise(x_t, noise).exp() ** 2
    torch.testing.assert_close(q, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.9"])
def test_nucleus_of_no_probability_is_refused(p):
    with pytest.raises(UserError, match="p must be"):
        TopP(three_letter_world(), p)


@pytest.mark.parametrize("first, last", [(0, 1), (1, 0), (-1, 1), (1, math.inf), (math.nan, 1)])
def test_temperatures_that_are_none_are_refused(first, last):
    with pytest.raises(UserError, match="temperatures must be"):
        Annealed(three_letter_world(), first, last)


def test_scores_alone_cannot_be_reshaped():
    scores = SimpleNamespace(config=SimpleNamespace(parametrization="score"), denoise=None)
    for reshape in (lambda: TopP(scores, 0.9), lambda: Annealed(scores, 1.0, 0.5)):
        with pytest.raises(UserError, match="needs a model with a denoiser"):
            reshape()


# One step


def test_accepted_letters_are_drawn_from_their_posterior_and_the_others_uniformly():
    world = two_letter_world()
    x_t, noise = noisy(world, 0.4)
    posterior = analytic_probs(world.denoise(x_t, noise), x_t, noise, 0.0)
    for bound in (0.0, 0.3, 0.6):
        probs, accepted = accepting_probs(world, x_t, noise, bound=bound)
        torch.testing.assert_close(probs[accepted], posterior[accepted])
        assert (probs[~accepted] == 0.5).all() and not accepted.all()


def test_accepted_are_the_surest_as_many_as_the_bound_allows():
    world = two_letter_world()
    x_t, noise = noisy(world, 0.4)
    posterior = analytic_probs(world.denoise(x_t, noise), x_t, noise, 0.0)
    entropies = torch.special.entr(posterior).sum(-1)
    for bound in (0.0, 0.2, 0.4, 0.6, 0.9):
        _, accepted = accepting_probs(world, x_t, noise, bound=bound)
        for row, mask in zip(entropies.tolist(), accepted.tolist(), strict=True):
            surest = sorted(row)
            number = max(n for n in (1, 2, 3) if n == 1 or sum(surest[: n - 1]) <= bound)
            expected = sorted(range(3), key=row.__getitem__)[:number]
            assert [i for i in range(3) if mask[i]] == sorted(expected)


def test_limits_of_the_bound():
    world = two_letter_world()
    x_t, noise = noisy(world, 0.4)
    assert (accepting_probs(world, x_t, noise, bound=0.0)[1].sum(-1) == 1).all()
    probs, accepted = accepting_probs(world, x_t, noise, bound=math.inf)
    assert accepted.all()
    torch.testing.assert_close(probs, reverse_probs(world, x_t, noise, 0.0))


def test_given_letters_cost_nothing_and_one_more_is_always_accepted():
    world = two_letter_world()
    x_t, noise = noisy(world, 3.0)
    mask = torch.tensor([False, True, False]).expand(8, 3)
    _, accepted = accepting_probs(world, x_t, noise, bound=0.0, condition_mask=mask)
    assert accepted[:, 1].all() and (accepted.sum(-1) == 2).all()


# The run


def test_a_bound_without_limit_is_one_step_of_chapter_7():
    *_, last = run(bound=math.inf)
    assert last.index == last.num_steps == 1 and last.evaluations.tolist() == [1, 1, 1]
    options = {"num_steps": 1, "generator": sample_generators(3, 3)}
    assert torch.equal(last.tokens, sample_diffusion(three_letter_world(), NOISE, 3, 2, **options))


def test_a_run_starts_as_chapter_7_and_ends_when_all_is_accepted():
    steps = run(batch_size=20)
    start = next(denoising_steps(three_letter_world(), NOISE, 20, 2, generator=_generators(20)))
    assert torch.equal(steps[0].tokens, start.tokens) and not steps[0].changed.any()
    assert steps[0].sigma_bar == pytest.approx(20.0) and not steps[0].accepted.any()
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.num_steps for step in steps[:-1]] == [128] * (len(steps) - 1)
    last = steps[-1]
    assert last.index == last.num_steps < 128 and last.sigma_bar == 0 and last.accepted.all()
    assert last.evaluations.max() == last.index and last.evaluations.min() < last.index


def _generators(number: int) -> list[torch.Generator]:
    return sample_generators(3, number)


def test_noise_is_the_share_that_was_not_accepted():
    seen = []

    class Watched:
        config = SimpleNamespace(vocab_size=2)

        def denoise(self, x_t, sigma_bar):
            seen.append(sigma_bar.tolist())
            return two_letter_world().denoise(x_t, sigma_bar)

    steps = run(Watched(), batch_size=1, length=3, bound=0.0, max_steps=3)
    assert [noise for (noise,) in seen] == pytest.approx([20.0, math.log(3), math.log(3)], rel=1e-4)
    assert [step.sigma_bar for step in steps] == pytest.approx(
        [20.0, math.log(3), math.log(3), 0.0], rel=1e-4
    )


def test_a_finished_text_stays_as_it_is():
    steps = run(batch_size=20)
    for before, after in zip(steps, steps[1:], strict=False):
        done = before.accepted.all(-1)
        assert torch.equal(before.tokens[done], after.tokens[done])
        assert not after.changed[done].any()
        assert torch.equal(after.evaluations, before.evaluations + ~done)
        assert torch.equal(after.changed, before.tokens != after.tokens)


def test_what_a_network_says_of_a_finished_text_does_not_count():
    class Fickle:  # sure of the first text at once; doubts it as soon as it is finished
        config = SimpleNamespace(vocab_size=2)

        def denoise(self, x_t, sigma_bar):
            held = torch.nn.functional.one_hot(x_t, 2)
            doubt = torch.where(held == 1, 5e-5, 1 - 5e-5)
            sure = torch.tensor([1 - 1e-6, 1e-6]).expand(doubt.shape)
            q = torch.where(sigma_bar[:, None, None] > 1, sure, doubt)
            q[1:] = 0.5
            return q.log()

    steps = run(Fickle(), batch_size=2, length=3, bound=0.5, max_steps=4)
    assert [step.evaluations.tolist() for step in steps[1:]] == [[1, 1], [1, 2], [1, 3], [1, 4]]
    assert all(step.accepted[0].all() for step in steps[1:])


def test_noise_is_a_share_of_the_letters_that_are_not_given():
    template, mask = torch.tensor([0, 0, 1]), torch.tensor([True, False, False])
    options = {"template": template, "condition_mask": mask, "max_steps": 2}
    steps = run(two_letter_world(), batch_size=1, length=3, bound=0.0, **options)
    assert steps[1].sigma_bar == pytest.approx(math.log(2))  # one of two is open


def test_the_last_step_accepts_all():
    *_, last = run(bound=0.0, max_steps=5)
    assert last.index == last.num_steps == 5 and last.accepted.all() and last.sigma_bar == 0


def test_a_text_depends_on_its_seed_alone():
    together = run(batch_size=9)[-1]
    for i in range(9):
        alone = run(batch_size=1, first=i)[-1]
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert alone.index == together.evaluations[i]
    generators = [_generators(9), _generators(9)]
    run(batch_size=9, generator=generators[0])
    for i in range(9):  # what comes next from a generator does not depend on the others, either
        run(batch_size=1, generator=generators[1][i : i + 1])
    draws = [[torch.rand(1, generator=g).item() for g in each] for each in generators]
    assert draws[0] == draws[1]


def test_one_generator_for_all_texts():
    texts = [run(generator=torch.Generator().manual_seed(1))[-1].tokens for _ in range(2)]
    assert torch.equal(*texts)
    assert run(generator=None)[-1].tokens.shape == (3, 2)


@pytest.mark.parametrize("shape", [(2,), (3, 2)])
def test_given_letters_never_change(shape):
    template = torch.tensor([1, 0]).expand(shape)
    mask = torch.tensor([True, False]).expand(shape)
    steps = run(template=template, condition_mask=mask)
    for step in steps:
        assert (step.tokens[:, 0] == 1).all() and not step.changed[:, 0].any()
        assert step.accepted[:, 0].all()
    # given that b comes first, one evaluation from pure noise is exact: there is one letter to write
    assert steps[0].sigma_bar == pytest.approx(20.0) and len(steps) == 2


def test_nothing_to_write_takes_no_evaluation():
    template, mask = torch.tensor([1, 0]), torch.tensor([True, True])
    (step,) = run(template=template, condition_mask=mask)
    assert step.index == step.num_steps == 0 and step.sigma_bar == 0
    assert step.tokens.tolist() == [[1, 0]] * 3


def test_networks_write_with_it():
    network = small_network()
    assert run(network, length=7, bound=3.0)[-1].accepted.all()
    config = BlockDiffusionConfig(
        **SMALL | {"vocab": ("<UNK>", "<PAD>", *"abcdef")}, block_length=4
    )
    blocks = BlockDiffusionTransformer(config).double().eval()
    randomize(blocks)
    view = blocks.after(torch.tensor([[2, 3, 4, 5]] * 3))
    for model in (view, TopP(view, 0.9), Annealed(view, 1.0, 0.5)):
        last = run(model, length=4, bound=3.0)[-1]
        assert last.accepted.all() and last.tokens.shape == (3, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bound": -0.1}, "bound must be"),
        ({"bound": math.nan}, "bound must be"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"max_steps": 2.5}, "max_steps must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"batch_size": 0, "generator": []}, "batch_size must be"),
        ({"length": 0}, "seq_len must be"),
        ({"generator": sample_generators(0, 2)}, "got 2 generators for a batch of 3"),
        ({"condition_mask": torch.tensor([True, False])}, "go together"),
        ({"template": torch.tensor([5, 0]), "condition_mask": torch.tensor([True, False])}, "0 to"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call(options, message):
    options = {"batch_size": 3, "length": 2, "generator": sample_generators(0, 3)} | options
    size = options.pop("batch_size"), options.pop("length")
    with pytest.raises(UserError, match=message):
        entropy_bound_steps(three_letter_world(), NOISE, *size, **options)


def test_a_graph_without_fresh_noise_is_refused():
    model = SimpleNamespace(graph=ABSORBING, config=SimpleNamespace(vocab_size=3), denoise=None)
    with pytest.raises(UserError, match="absorbing"):
        entropy_bound_steps(model, NOISE, 1, 2)
