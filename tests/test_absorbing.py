# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.

import json
import math
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
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
    open_masks,
    with_mask,
)
from ddlm_core.data import evaluation_loader
from ddlm_core.evaluation import bound_draws, estimate_bound, spread_times
from ddlm_core.forward import perturb_batch
from ddlm_core.loss import compute_loss
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import resample_probability
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.sampler import (
    SCHEDULES,
    denoising_steps,
    noise_levels,
    reverse_probs,
    sample_generators,
)
from ddlm_core.training import (
    Trainer,
    TrainingConfig,
    draw_noise,
    proposal_times,
    training_loss,
    validation_bound,
)


def absorbing_rates(vocab_size: int) -> Tensor:
    """The rate from each state (row) to each other one: letters to the mask, at rate 1."""
    rates = -torch.eye(vocab_size, dtype=torch.float64)
    rates[:, -1] += 1
    return rates  # the row of the mask is 0


def kernel(f: Tensor | float, vocab_size: int) -> Tensor:
    """p(x_t | x_0) for a share f of masks: row x_0, column x_t."""
    table = (1 - f) * torch.eye(vocab_size, dtype=torch.float64)
    table[:, -1] += f
    return table


@pytest.mark.parametrize("sigma_bar", [0.01, 1.0, 6.0])
def test_kernel_is_the_exponential_of_the_rates(sigma_bar: float):
    exact = torch.linalg.matrix_exp(sigma_bar * absorbing_rates(4))
    torch.testing.assert_close(kernel(-math.expm1(-sigma_bar), 4), exact)


def test_noise_puts_masks():
    g, x_0 = torch.Generator().manual_seed(0), torch.arange(3).repeat(2, 15_000)
    x_t = perturb_batch(x_0, torch.tensor([0.5, 2.0]), 4, None, g, all_masked)
    assert ((x_t == x_0) | (x_t == 3)).all()
    for row, sigma_bar in zip(x_t, (0.5, 2.0), strict=True):
        for letter in range(3):
            share = (row[letter::3] == 3).double().mean().item()
            assert share == pytest.approx(-math.expm1(-sigma_bar), abs=0.02)
    keep = torch.rand(x_0.shape, generator=g) < 0.5
    x_t = perturb_batch(x_0, torch.tensor(3.0), 4, keep, g, all_masked)
    assert torch.equal(x_t[keep], x_0[keep]) and (x_t[~keep] == 3).double().mean() > 0.9
    assert (all_masked(2, 5, 4) == 3).all() and all_masked(2, 5, 4).dtype == torch.int64
    assert with_mask(["a", "b"]) == with_mask(("a", "b", MASK)) == ("a", "b", MASK)


def test_log_linear_noise():
    noise, t = LogLinearNoise(), torch.linspace(0, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(1 - torch.exp(-noise.sigma_bar(t)), t)
    torch.testing.assert_close(noise.time(noise.sigma_bar(t)), t)
    slope = (noise.sigma_bar(t[1:-1] + 1e-6) - noise.sigma_bar(t[1:-1] - 1e-6)) / 2e-6
    torch.testing.assert_close(noise.sigma(t[1:-1]), slope, rtol=1e-6, atol=0)
    assert noise.sigma_bar(0.0) == noise.sigma_min and noise.sigma_bar(1.0) == noise.sigma_max


def test_schedules_take_endless_noise():
    noise, share = LogLinearNoise(), torch.linspace(1, 0, 9, dtype=torch.float64)
    for schedule in SCHEDULES:
        levels = noise_levels(noise, 8, schedule)
        assert levels[0] == math.inf and levels[-1] == 0 and (levels.diff() < 0).all()
        if schedule != "cosine":
            torch.testing.assert_close(resample_probability(levels), share)
    g = torch.Generator().manual_seed(0)
    for times, weight in (proposal_times(999, noise, generator=g), spread_times(999, noise, g)):
        assert times.max() < 1 and times.dtype == torch.float32
        torch.testing.assert_close(weight, torch.ones(999))  # the share of masks *is* the time
        torch.testing.assert_close(times.sort()[0], torch.arange(999) / 999, rtol=0, atol=2e-3)


class MaskedWorld:
    """A language given by the probabilities of all its words, and its ideal denoiser."""

    def __init__(self, probs: Tensor) -> None:  # (V - 1, V - 1, …): one axis for each letter
        self.vocab_size, self.length = probs.shape[0] + 1, probs.ndim
        self.words = torch.cartesian_prod(*[torch.arange(self.vocab_size - 1)] * self.length)
        self.texts = torch.cartesian_prod(*[torch.arange(self.vocab_size)] * self.length)  # (N, L)
        self.probs = probs.flatten()  # (W,), in the order of `words`
        self.config = SimpleNamespace(vocab_size=self.vocab_size)

    def denoise(self, x_t: Tensor, sigma_bar: Tensor, mask: Tensor | None = None) -> Tensor:
        seen, q = x_t[:, None], []  # (B, 1, L)
        fits = (seen == self.words) | (seen == self.vocab_size - 1)  # (B, W, L)
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            weight = self.probs * fits[:, :, others].all(-1)  # (B, W)
            q.append(weight @ one_hot(self.words[:, i], self.vocab_size).double())  # (B, V)
        q = torch.stack(q, 1)
        return (q / q.sum(-1, keepdim=True)).log()


def three_letter_world() -> MaskedWorld:
    probs = torch.full((3, 3), 0.1 / 6, dtype=torch.float64)
    probs[0, 1], probs[1, 2], probs[2, 0] = 0.4, 0.3, 0.2  # ab, bc, ca
    return MaskedWorld(probs)


def text_kernel(world: MaskedWorld, f: float) -> Tensor:
    """p(x_t | x_0) for whole texts: (W, N)."""
    letter = kernel(f, world.vocab_size)
    return letter[world.words[:, None], world.texts[None]].prod(-1)


@pytest.mark.parametrize("f", [0.02, 0.5, 0.97])
def test_score_is_the_ratio_of_the_marginals(f: float):
    world, sigma_bar = three_letter_world(), torch.tensor(-math.log1p(-f), dtype=torch.float64)
    p_t = (world.probs @ text_kernel(world, f)).reshape(4, 4)
    log_s = mask_log_score(world.denoise(world.texts, sigma_bar), sigma_bar, world.texts)
    for text, found in zip(world.texts.tolist(), log_s.exp(), strict=True):
        for i in (0, 1):
            if text[i] == 3:
                row = p_t[:, text[1]] if i == 0 else p_t[text[0]]
                torch.testing.assert_close(found[i], row / row[3])
            else:
                assert torch.equal(found[i], one_hot(torch.tensor(text[i]), 4).double())


def test_posterior_never_believes_in_the_mask():
    log_q, x_t = torch.tensor([[[0.2, 0.2, 0.1, 0.5]] * 2]).log(), torch.tensor([[3, 1]])
    p = mask_posterior(log_q, None, x_t).exp()
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


def test_loss_is_the_sum_over_all_jumps():
    g = torch.Generator().manual_seed(0)
    for sigma_bar in torch.tensor([0.001, 0.3, 2.0, 12.0], dtype=torch.float64):
        for x_0, x_t in ((0, 3), (1, 3), (2, 3), (0, 0), (2, 2)):
            log_score = torch.randn(1, 1, 4, generator=g, dtype=torch.float64)
            pair = torch.tensor([[x_t]]), torch.tensor([[x_0]])
            found = mask_loss(log_score, sigma_bar, *pair).item()
            assert found >= 0
            exact = general_loss(log_score[0, 0], sigma_bar, x_t, x_0)
            assert found == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_loss_of_a_denoiser_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    log_q = torch.randn(3, 5, 107, generator=g).log_softmax(-1)
    x_0, sigma_bar = torch.randint(106, (3, 5), generator=g), torch.tensor([0.01, 0.7, 5.0])
    x_t = x_0.masked_fill(torch.rand(3, 5, generator=g) < 0.6, 106)
    found = mask_loss(mask_log_score(log_q, sigma_bar, x_t), sigma_bar, x_t, x_0)
    log_p = log_q[..., :106].log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
    expected = (x_t == 106) * -log_p / torch.expm1(sigma_bar)[:, None]
    torch.testing.assert_close(found, expected)
    certain = one_hot(x_0, 107).double().log()
    truth = mask_loss(mask_log_score(certain, sigma_bar, x_t), sigma_bar, x_t, x_0)
    assert truth.abs().max() < 1e-5


def test_loss_at_the_clean_end():
    x_0, sigma_bar = torch.tensor([[0, 1]]), torch.zeros(1)
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    log_score = mask_log_score(logits.log_softmax(-1), sigma_bar, x_0)
    mask_loss(log_score, sigma_bar, x_0, x_0).sum().backward()
    assert torch.equal(mask_loss(log_score, sigma_bar, x_0, x_0), torch.zeros(1, 2))
    assert torch.equal(logits.grad, torch.zeros(1, 2, 4))


def test_step_is_bayes_rule():
    for earlier, later in ((0.0, 0.7), (0.2, 0.21), (1.5, 9.0)):
        first, second = (
            torch.linalg.matrix_exp(s * absorbing_rates(4)) for s in (earlier, later - earlier)
        )
        for x_0, x_t in ((0, 0), (0, 3), (2, 3)):
            joint = first[x_0] * second[:, x_t]  # over x_s
            log_q = one_hot(torch.tensor([[x_0]]), 4).double().log()
            step = open_masks(log_q, torch.tensor([[x_t]]), later, earlier)
            torch.testing.assert_close(step[0, 0], joint / joint.sum())


def test_step_is_a_distribution_at_the_extremes():
    log_q = torch.tensor([[[0.0, -torch.inf, -torch.inf, -torch.inf], [-60.0, -50.0, 0.0, 9.0]]])
    for x_t in (torch.tensor([[3, 3]]), torch.tensor([[1, 3]])):
        for now, after in ((torch.inf, 16.0), (torch.inf, 0.0), (1e-6, 1e-7), (1e-30, 0.0)):
            step = open_masks(log_q, x_t, now, after)
            assert (step >= 0).all()
            torch.testing.assert_close(step.sum(-1), torch.ones(1, 2))
            if after == 0:
                assert (step[..., 3] == 0).all()  # at the end no mask is left
    letters = torch.tensor([[1, 2]])
    assert torch.equal(open_masks(log_q, letters, 0.0, 0.0), one_hot(letters, 4).float())


def absorbing_world() -> MaskedWorld:
    """The tiny world as a model: with its graph, and scores when it is called."""
    world = three_letter_world()
    world.graph, world.config.noise = ABSORBING, LogLinearNoise()
    MaskedWorld.__call__ = lambda self, x_t, sigma_bar, mask=None: ABSORBING.log_score(
        self.denoise(x_t, sigma_bar), sigma_bar, x_t
    )
    return world


def exact_area(world: MaskedWorld) -> float:
    """The integral over t of sigma(t) times the expected loss, in nats a word."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total, texts = 0.0, world.texts
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        sigma_bar, sigma = world.config.noise(torch.tensor(t, dtype=torch.float64))
        joint = world.probs[:, None] * text_kernel(world, t)  # (W, N)
        log_score = world(texts, sigma_bar)
        for word, row in zip(world.words, joint, strict=True):
            seen = row > 0
            loss = mask_loss(
                log_score[seen], sigma_bar, texts[seen], word.expand(int(seen.sum()), -1)
            )
            total += weight * sigma * (row[seen] @ loss.sum(-1))
    return float(total)


def test_area_is_the_entropy():
    world = absorbing_world()
    entropy = -(world.probs * world.probs.log()).sum().item()
    assert exact_area(world) == pytest.approx(entropy, abs=1e-12)


def test_estimates_of_chapters_5_and_9_are_unbiased():
    world, g = absorbing_world(), torch.Generator().manual_seed(0)
    entropy = -(world.probs * world.probs.log()).sum().item()
    x_0 = world.words[torch.multinomial(world.probs, 20_000, True, generator=g)]
    for nats in (
        2 * compute_loss(world, x_0, world.config.noise, generator=g),
        bound_draws(world, x_0, 1, g)[0],
    ):
        assert nats.mean().item() == pytest.approx(entropy, abs=4 * nats.std().item() / 20_000**0.5)
        assert nats.std().item() / 20_000**0.5 < 0.03


def written(world: MaskedWorld, levels: Tensor, template: Tensor | None = None) -> Tensor:
    """(W,): exact probabilities of the words that a run through the noise levels writes."""
    texts = world.texts
    start = torch.full((world.length,), world.vocab_size - 1)
    start = start if template is None else torch.where(template >= 0, template, start)
    probs = (texts == start).all(-1).double()
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = reverse_probs(world, texts, now.expand(len(texts)), after.expand(len(texts)))
        probs = probs @ step[:, range(world.length), texts].prod(-1)
    return probs[(texts < world.vocab_size - 1).all(-1)]


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


def test_distance_is_that_of_one_step_over_their_number():
    world = absorbing_world()
    one = total_variation(written(world, noise_levels(LogLinearNoise(), 1)), world.probs)
    assert one > 0.5
    for num_steps in (2, 3, 16, 128):
        run = written(world, noise_levels(LogLinearNoise(), num_steps, "fraction"))
        assert run.sum().item() == pytest.approx(1)  # no mask is left
        assert total_variation(run, world.probs) == pytest.approx(one / num_steps, rel=1e-9)


def test_loop_writes_what_the_exact_computation_says():
    world, number = absorbing_world(), 4000
    how = {"num_steps": 3, "schedule": "fraction", "generator": sample_generators(1, number)}
    (*steps, last) = denoising_steps(world, LogLinearNoise(), number, 2, **how)
    counts = (last.tokens @ torch.tensor([3, 1])).bincount(minlength=9)
    for probs, low, high in (
        (written(world, noise_levels(LogLinearNoise(), 3, "fraction")), 0, 31.8),
        (world.probs, 500, math.inf),
    ):  # chi-squared, 8 degrees of freedom: above 31.8 once in ten thousand trials
        assert low < ((counts - number * probs) ** 2 / (number * probs)).sum().item() < high
    assert (steps[0].tokens == 3).all() and steps[0].sigma_bar == math.inf
    for before, after in zip(steps, [*steps[1:], last], strict=True):
        opened = before.tokens < 3
        assert torch.equal(before.tokens[opened], after.tokens[opened])


def test_given_letters_condition_the_rest():
    world, template = absorbing_world(), torch.tensor([1, -1])  # b_
    true = world.probs * (world.words[:, 0] == 1)
    for num_steps in (1, 7):
        found = written(world, noise_levels(LogLinearNoise(), num_steps), template)
        torch.testing.assert_close(found, true / true.sum())


def small_model() -> DiscreteDiffusionTransformer:
    sizes = {"block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    torch.manual_seed(0)
    return DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**sizes, graph="absorbing")).eval()


def test_an_untrained_network_pays_log_106():
    tokens = torch.randint(2, 106, (32, 24), generator=torch.Generator().manual_seed(0))
    found = estimate_bound(small_model(), tokens, 64)
    assert found.low < 24 * math.log(106) < found.high and found.high - found.low < 12


def test_a_training_step_has_finite_gradients():
    model, g = small_model(), torch.Generator().manual_seed(0)
    x_0 = torch.randint(2, 106, (32, 24), generator=g)
    drawn = draw_noise(x_0, TrainingConfig(condition_share=0.5), model, g)
    _, x_t, given, sigma_bar, weight = drawn
    assert torch.equal(x_t[given], x_0[given]) and ((x_t == x_0) | (x_t == 106)).all()
    assert (x_t[~given] == 106).any()
    torch.testing.assert_close(weight, torch.exp(sigma_bar))  # the rate, 1 / (1 - t)
    for objective in ("guess", "score_entropy"):
        model.zero_grad()
        training_loss(model, drawn, objective).backward()
        assert model.head.weight.grad.isfinite().all() and model.head.weight.grad[:106].any()
    assert (
        model.head.weight.grad[106].abs().max() < 1e-8
    )  # of the score, the mask's own output is idle


def test_the_trainer_measures_with_the_noise_of_the_graph():
    model, g = small_model(), torch.Generator().manual_seed(0)
    loader = evaluation_loader(torch.randint(2, 106, (480,), generator=g).numpy(), 24, 10)
    config = TrainingConfig(eval_windows=20, context_length=24)
    found = Trainer(model, loader, loader, config).evaluate()
    assert found == validation_bound(model, loader, LogLinearNoise(), 20)


def test_a_checkpoint_remembers_its_graph():
    pipeline = DiffusionPipeline(small_model(), "cpu")
    how = {"num_steps": 5, "seed": 1, "template": "to ____ or _{4}"}
    with TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        again = DiffusionPipeline.from_pretrained(folder, device="cpu")
    assert again.config.vocab == pipeline.config.vocab and again.config.vocab_size == 107
    (text,) = again.generate(**how)
    assert [text] == pipeline.generate(**how) and MASK not in text
    assert text[:3] == "to " and text[7:11] == " or "


def test_a_player_shows_endless_noise():
    page = DiffusionPipeline(small_model(), "cpu").generate_with_visualization(num_steps=2, seed=0)
    data = page._repr_html_().split('application/json">')[1].split("</script>")[0]

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(data, parse_constant=refuse)
    assert data["steps"][0][0] == "∞" and set(data["first"]) == {MASK}


def test_what_cannot_work_says_so():
    with pytest.raises(ValueError, match="the absorbing graph needs the parametrization denoiser"):
        DiscreteDiffusionConfig(graph="absorbing", parametrization="score")
    with pytest.raises(ValueError, match="euler is made for the uniform graph"):
        denoising_steps(small_model(), LogLinearNoise(), 1, 24, method="euler")
    with pytest.raises(ValueError, match="churn is made for the uniform graph"):
        denoising_steps(small_model(), LogLinearNoise(), 1, 24, churn=1.0)
