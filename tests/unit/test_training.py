"""Chapter 8, module training: settings, draws, loss, optimizers, the run and how it goes on."""

import copy
import json
import math
import signal
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch import nn

from ddlm_core.data import POCKET, evaluation_loader, setup_dataloaders
from ddlm_core.loss import compute_loss
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.support.checkpoints import LATEST, PREVIOUS, read_checkpoint
from ddlm_core.support.errors import UserError
from ddlm_core.testing import same_bits, tiny_network, tiny_trainer
from ddlm_core.training import (
    TrainingConfig,
    TrainingLoss,
    build_optimizers,
    draw_condition,
    draw_noise,
    draw_step,
    learning_rate_factor,
    load_preset,
    proposal_times,
    training_loss,
    update_average,
    update_weights,
    validation_bound,
    window_nats,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in log_of(folder)]


# settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"max_steps": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"batch_size": None},
        {"noise_power": -1.0},
        {"ema_decay": 1.5},
        {"optimizer": "sgd"},
        {"objective": "elbo"},
        {"context_length": 2.5},
        {"seed": -1},
        {"num_workers": True},
        {"mixed_precision": "bf17"},
        {"betas": (2, 3)},
        {"progress": "maybe"},
        {"auxiliary_loss_weight": -0.1},
        {"dataset_name": 3},
        {"betas": (0.9, math.nan)},
        {"learning_rate": math.inf},
    ],
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} must be"):
        TrainingConfig(**wrong)


def test_good_configs_are_taken():
    TrainingConfig(noise_power=None, max_steps=None, seed=0, warmup_steps=0, learning_rate=1)
    config = TrainingConfig(batch_size=np.int64(8), betas=[0, 0.5])
    assert config.batch_size == 8 and config.betas == (0, 0.5)
    with pytest.raises(FrozenInstanceError):
        config.batch_size = 9
    for wrong in ({"betas": (0.9,)}, {"betas": (0.9,) * 3}, {"model": "small"}):
        with pytest.raises(UserError, match="need two betas and a mapping model"):
            TrainingConfig(**wrong)


def test_the_defaults():
    """Every run that says nothing depends on them: a change is a decision, and stands here."""
    config = TrainingConfig()
    counts = ("val_samples", "context_length", "batch_size", "gradient_accumulation_steps")
    assert [getattr(config, name) for name in counts] == [1000, 256, 64, 1]
    counts = ("num_workers", "num_epochs", "warmup_steps", "save_every", "save_every_steps")
    assert [getattr(config, name) for name in counts] == [0, 1, 50, 1, 500]
    counts = ("eval_every_steps", "eval_windows", "log_every_steps", "seed")
    assert [getattr(config, name) for name in counts] == [500, 256, 10, 0]
    rates = ("learning_rate", "matrix_learning_rate", "weight_decay", "gradient_clip")
    assert [getattr(config, name) for name in rates] == [3e-3, 0.03, 0, 1]
    shares = ("decay_fraction", "ema_decay", "sampling_eps", "condition_share")
    assert [getattr(config, name) for name in shares] == [0.5, 0.995, 0, 0.1]
    assert config.betas == (0.9, 0.98) and config.noise_power == 1
    assert config.auxiliary_loss_weight == 0 and config.progress
    off = (
        "torch_compile",
        "gradient_checkpointing",
        "use_8bit_optimizer",
        "max_steps",
        "sigma_min",
    )
    assert not any(getattr(config, name) for name in off)


def test_presets_are_what_the_command_sees():
    pocket = load_preset("pocket", seed=7)
    assert (
        pocket.dataset_name == POCKET and pocket.auxiliary_loss_weight == 0.3 and pocket.seed == 7
    )
    assert pocket.betas == TrainingConfig().betas  # what a preset does not name is the default
    assert "block_size" not in pocket.model and pocket.model["n_layer"] == 6
    assert load_preset("gpu").model["n_embd"] == 640
    with pytest.raises(UserError, match="no preset 'nonsense': there are .*pocket"):
        load_preset("nonsense")


# noise levels


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


# draws


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


# loss


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


def test_a_trainer_leaves_the_methods_of_the_network_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, torch_compile=True, gradient_checkpointing=True)
    assert trainer.model.gradient_checkpointing
    assert not trainer.average.training and trainer.model.training
    assert not any(p.requires_grad for p in trainer.average.parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())
    for module in trainer.model.modules():
        assert not {"forward", "logits", "denoise"} & vars(module).keys()
    assert not tiny_trainer(tmp_path).model.gradient_checkpointing


# optimizers, average


def test_learning_rate_and_average():
    how = {"warmup_steps": 10, "decay_fraction": 0.4}
    factors = [learning_rate_factor(step, 100, **how) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[70] == pytest.approx(0.75) and factors[80] == pytest.approx(0.5)
    assert factors[100] == 0
    assert learning_rate_factor(0, 10, warmup_steps=0, decay_fraction=0.0) == 1
    assert learning_rate_factor(11, 10, warmup_steps=0, decay_fraction=0.5) == 0
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    before = old.weight.detach().clone()
    update_average(old, new, decay=0.9, step=10**6)
    assert torch.allclose(old.weight, 0.9 * before + 0.1 * new.weight)
    update_average(old, new, decay=0.9, step=0)
    assert torch.allclose(old.weight, 0.1 * (0.9 * before + 0.1 * new.weight) + 0.9 * new.weight)
    middle = old.weight.detach().clone()
    update_average(old, new, decay=0.9, step=5)  # 6 / 15
    assert torch.allclose(old.weight, 0.4 * middle + 0.6 * new.weight)


def test_which_optimizer_moves_what():
    model = tiny_network(n_layer=3)
    config = TrainingConfig(learning_rate=0.5, matrix_learning_rate=0.25, betas=(0.1, 0.2))
    config = replace(config, weight_decay=0.125)
    names = {id(p): name for name, p in model.named_parameters()}
    found = build_optimizers(model, config)
    (muon,), (adamw,) = (found[name].param_groups for name in ("muon", "adamw"))
    matrices = [names[id(p)] for p in muon["params"]]
    # five in each of three blocks, and the two convolutions of each stack
    assert len(matrices) == 3 * 5 + 2 * 2 and all("blocks." in name for name in matrices)
    assert not any("modulation" in n or "embedding" in n or "bias" in n for n in matrices)
    assert len(matrices) + len(adamw["params"]) == len(names)
    assert (muon["lr"], muon["weight_decay"]) == (0.25, 0.125)
    assert (adamw["lr"], adamw["betas"], adamw["weight_decay"]) == (0.5, (0.1, 0.2), 0.125)
    assert build_optimizers(model, replace(config, optimizer="adamw")).keys() == {"adamw"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it may work")
def test_8_bit_optimizer_is_turned_off_without_a_gpu():
    with pytest.warns(UserWarning, match="use_8bit_optimizer is off"):
        build_optimizers(nn.Linear(2, 2), TrainingConfig(use_8bit_optimizer=True))


# the bound


def test_bound_of_an_untrained_network():
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    model = DiscreteDiffusionTransformer(config)
    loader = evaluation_loader(torch.randint(2, 106, (20_000,)).numpy().astype("uint8"), 10, 500)
    bound = validation_bound(model, loader, 2000)
    assert bound.nats_per_window == pytest.approx(10 * math.log(106), rel=0.02)
    assert bound.bits_per_character == pytest.approx(math.log2(106), rel=0.02)
    assert (
        validation_bound(model, loader, 2000) == bound != validation_bound(model, loader, 2000, 1)
    )


def test_a_bound_counts_the_first_windows_and_no_padding():
    """40 characters, then 120 of <PAD>; only the first 6 windows, though batches have 4."""
    torch.manual_seed(0)
    sizes = {"block_size": 160, "n_layer": 1, "n_head": 1, "n_embd": 8, "cond_dim": 4}
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**sizes))
    tokens = np.ones((9, 160), np.uint8)
    tokens[:, :40] = 7
    tokens[6:] = 9
    loader = evaluation_loader(tokens.flatten(), 160, 4)
    bound = validation_bound(model, loader, 6)
    assert bound.bits_per_character == pytest.approx(
        bound.nats_per_window / 40 / math.log(2), rel=1e-6
    )
    short = evaluation_loader(tokens[:6].flatten(), 160, 4)
    assert validation_bound(model, short, 6) == bound
    empty = evaluation_loader(np.ones(320, np.uint8), 160, 4)  # nothing but padding
    assert math.isfinite(validation_bound(model, empty, 6).bits_per_character)


@pytest.mark.parametrize("limits", [(1e-4, 20.0), (1e-4, 0.5)])
def test_the_three_terms_of_the_bound(limits):
    """An untrained network has log V per token, whatever noise is left at t = 1."""
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(
        block_size=10,
        n_layer=1,
        n_head=1,
        n_embd=8,
        cond_dim=4,
        sigma_min=limits[0],
        sigma_max=limits[1],
    )
    model, x_0 = DiscreteDiffusionTransformer(config), torch.randint(2, 106, (8000, 10))
    nats = window_nats(model, x_0, config.noise, generator())
    assert nats.shape == (8000,) and nats.mean().item() == pytest.approx(
        10 * math.log(106), rel=0.02
    )


@pytest.mark.parametrize("graph", ["uniform", "absorbing"])
def test_the_bound_lives_on_the_device_of_the_windows(graph):
    """On `meta` no number is ever computed, but tensors of two devices do not mix there either."""
    config = DiscreteDiffusionConfig(
        block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4, graph=graph
    )
    model = DiscreteDiffusionTransformer(config)
    drawn = draw_noise(torch.full((2, 10), 7), TrainingConfig(), model, generator())
    loss = training_loss(model.to("meta"), [v.to("meta") for v in drawn])
    assert loss.device.type == "meta"


# divergence


def diverging(trainer, match):
    weights = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(FloatingPointError, match=match):
        trainer.train()
    assert trainer.step == 0
    for old, new in zip(weights.values(), trainer.model.state_dict().values()):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def test_divergence_stops_before_the_weights_change(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.model.head.bias.data.fill_(math.nan)
    diverging(trainer, "step 0 the loss is nan.*lower learning_rate")
    trainer = tiny_trainer(tmp_path)
    trainer.model.head.weight.register_hook(lambda grad: grad * math.inf)
    diverging(trainer, r"step 0 the loss is [\d.]+, its gradient (inf|nan)")
    trainer = tiny_trainer(tmp_path)
    trainer.model.head.bias.data[5] = 1e9  # very sure, and wrong
    diverging(trainer, r"the loss is \d+")


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_limit_is_ten_times_the_uniform_baseline(tmp_path, weight):
    trainer = tiny_trainer(tmp_path, auxiliary_loss_weight=weight, model={"n_layer": 3})
    limit = 10 * math.log(106) * (1 + 2 * weight)
    update_weights(trainer.state, trainer.config, 0.999 * limit)
    with pytest.raises(FloatingPointError):
        update_weights(trainer.state, trainer.config, 1.001 * limit)
    assert trainer.step == 1


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_an_overflow_of_fp16_changes_the_scale_alone(tmp_path, broken):
    trainer, x_0 = tiny_trainer(tmp_path), torch.randint(2, 106, (4, 160), dtype=torch.uint8)
    trainer.state.scaler = torch.amp.GradScaler("cpu", 2.0**10)
    trainer.train_step(x_0)  # from now on the optimizers have momentum
    before = copy.deepcopy(trainer.model.state_dict())
    query = trainer.model.blocks[0].attention.query.weight  # Muon's part
    query.register_hook(lambda grad: torch.full_like(grad, broken))
    trainer.train_step(x_0)
    assert same_bits(trainer.model.state_dict(), before)
    assert trainer.state.scaler.get_scale() == 2.0**9


def test_gradients_are_clipped_together(tmp_path):
    trainer = tiny_trainer(tmp_path, gradient_clip=0.5)
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    seen = []
    for optimizer in trainer.state.optimizers.values():
        optimizer.step = lambda group=optimizer.param_groups[0]: seen.extend(
            p.grad.norm() for p in group["params"]
        )
    update_weights(trainer.state, trainer.config, 1.0)
    assert torch.stack(seen).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert all(p.grad is None for p in trainer.model.parameters())


# the run


def test_what_a_run_leaves(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4)
    bound = trainer.train()
    assert bound == trainer.evaluate()  # same seed, same noise
    names = ["best_model_hf", LATEST, PREVIOUS, "curve.png", "final_model_hf", "train_log.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    config = json.loads((tmp_path / "final_model_hf" / "config.json").read_text())
    assert config["step"] == 4 and config["ema"] is True and len(config["vocab"]) == 106
    again = tiny_trainer(tmp_path, max_steps=4)
    again.resume(tmp_path / LATEST)
    assert again.train() is None and again.step == 4  # nothing left to do


def test_when_a_run_measures_and_saves(tmp_path):
    saved, measured = [], []
    trainer = tiny_trainer(tmp_path, callbacks=[lambda r: measured.append((r.step, r.bound))])
    trainer.files.save = lambda state: saved.append(state.step)
    trainer.train()
    assert saved == [3, 6, 8]
    assert [step for step, bound in measured if bound is not None] == [4, 8]
    saved.clear()
    trainer = tiny_trainer(tmp_path, save_every_steps=100)  # an epoch of 6 steps
    trainer.files.save = lambda state: saved.append(state.step)
    trainer.train()
    assert saved == [6, 8]


def test_the_best_weights_are_those_of_the_lowest_bound(tmp_path):
    trainer, bounds = tiny_trainer(tmp_path, eval_every_steps=1), iter([5.0, 7, 4, 4, 6, 3, 9, 8])
    saved = []
    bound = trainer.evaluate()
    trainer.evaluate = lambda: replace(bound, nats_per_window=next(bounds))
    trainer.files.save_weights = lambda name, state: saved.append((name, state.step))
    trainer.train()
    best = [step for name, step in saved if name == "best_model_hf"]
    assert best == [1, 3, 6] and ("final_model_hf", 8) in saved and trainer.state.best == 3


def test_a_trainer_without_validation(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.val_loader = None
    assert trainer.train() is None
    assert not (tmp_path / "best_model_hf").exists() and (tmp_path / "final_model_hf").exists()
    with pytest.raises(UserError, match="val_loader"):
        trainer.evaluate()


def test_epochs_and_steps(tmp_path):
    assert tiny_trainer(tmp_path, num_epochs=1).total_steps == 6  # 24 stories, 4 a step
    assert tiny_trainer(tmp_path, num_epochs=2, max_steps=7).total_steps == 7
    assert tiny_trainer(tmp_path, num_epochs=2, max_steps=None).total_steps == 12
    assert tiny_trainer(tmp_path, gradient_accumulation_steps=2, max_steps=None).total_steps == 27
    with pytest.raises(UserError, match="which takes 9 batches"):
        tiny_trainer(tmp_path, gradient_accumulation_steps=9)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"gradient_checkpointing": True},
        {"noise_power": None},
        {"auxiliary_loss_weight": 0.3, "model": {"n_layer": 3}},
        {"mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_training_lowers_the_bound_in_every_mode(tmp_path, changes):
    trainer = tiny_trainer(tmp_path, max_steps=30, learning_rate=0.02, **changes)
    before = trainer.evaluate().nats_per_window
    assert trainer.train().nats_per_window < 0.9 * before


def test_checkpointing_changes_no_gradient(tmp_path):
    for name in ("off", "on"):
        tiny_trainer(tmp_path / name, gradient_checkpointing=name == "on").train()
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), rel=1e-6)


def test_the_curve_depends_on_the_global_batch_alone(tmp_path):
    """Batches of 4 in two micro-batches are batches of 8; so are gradients scaled as for fp16."""
    plain = {"max_steps": 6, "warmup_steps": 0, "learning_rate": 0.02, "dropout": 0.0}
    tiny_trainer(tmp_path / "8", batch_size=8, **plain).train()
    tiny_trainer(tmp_path / "4", batch_size=4, gradient_accumulation_steps=2, **plain).train()
    scaled = tiny_trainer(tmp_path / "scaled", batch_size=8, **plain)
    scaled.state.scaler = torch.amp.GradScaler("cpu", 2.0**10)
    scaled.train()
    for name in ("4", "scaled"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "8"), rel=1e-4)


def test_two_trainers_may_differ_in_precision(tmp_path):
    trainers = [tiny_trainer(tmp_path, mixed_precision=name) for name in ("bf16", "no", "bf16")]
    assert [trainer.precision for trainer in trainers] == ["bf16", "no", "bf16"]
    x_0 = torch.randint(2, 106, (4, 160), dtype=torch.uint8)
    for trainer in trainers:
        trainer.model.head.weight.data.normal_(generator=generator())
    found = [trainer.train_step(x_0)[0] for trainer in trainers]
    assert found[0] == found[2] != found[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it works")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="mixed_precision=fp16 needs a GPU"):
        tiny_trainer(tmp_path, mixed_precision="fp16")


def test_the_seams(tmp_path):
    """A loss, a schedule and callbacks of one's own, without touching the class."""

    class Constant(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x_0, *_):
            return 0.0 * self.model.denoise(x_0, torch.ones(len(x_0))).sum() + 2.5

    rates, results = [], []

    def schedule(step, total):
        rates.append((step, total))
        return 0.0

    first = tiny_trainer(tmp_path)
    trainer = tiny_trainer(
        tmp_path, loss_fn=Constant(first.model), lr_schedule=schedule, callbacks=[results.append]
    )
    weights = copy.deepcopy(trainer.model.state_dict())
    bound = trainer.train()
    assert rates == [(step, 8) for step in range(8)]
    assert [r.step for r in results] == list(range(1, 9)) and {r.loss for r in results} == {2.5}
    assert results[-1].bound == bound and results[0].bound is None
    assert all(4 * 50 < r.characters < 4 * 160 for r in results)
    assert same_bits(weights, trainer.model.state_dict())  # a learning rate of 0


# one owner of noise and vocabulary


def test_settings_of_other_noise_than_the_networks_are_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    for name, value in (("sigma_min", 1e-3), ("sigma_max", 6.3)):
        config = replace(trainer.config, **{name: value})
        with pytest.raises(
            UserError, match=f"{name} is {value:g} in the settings, .* in the network"
        ):
            type(trainer)(trainer.model, trainer.train_loader, None, config)
    agreeing = replace(trainer.config, sigma_min=1e-4, sigma_max=20.0)
    type(trainer)(trainer.model, trainer.train_loader, None, agreeing)


def test_the_bound_of_a_trainer_is_that_of_the_networks_noise(tmp_path):
    trainer = tiny_trainer(tmp_path, model={"sigma_max": 2.0})
    noise = trainer.model.config.noise
    (windows,) = trainer.val_loader
    nats = window_nats(trainer.average, windows.long(), noise, generator())
    assert trainer.evaluate().nats_per_window == pytest.approx(nats.double().mean().item())


def test_data_of_another_vocabulary_are_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    vocab = ("<UNK>", "<PAD>", *"abcdefghijklmnopqrstuvwxyz .,")
    model = tiny_network(vocab=vocab)
    with pytest.raises(UserError, match="another vocabulary than the network"):
        type(trainer)(model, trainer.train_loader, None, trainer.config)
    data = setup_dataloaders(
        POCKET,
        train_samples=20,
        val_samples=4,
        context_length=160,
        batch_size=4,
        tokenizer=model.config.tokenizer,
    )
    assert type(trainer)(model, data.train, data.val, trainer.config).train()
    masked = tiny_network(graph="absorbing")  # the mask state comes last, so the ids are the same
    type(trainer)(masked, trainer.train_loader, None, trainer.config)


# going on


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 6)])
def test_resume_is_exact(tmp_path, number, step):
    """Weights, average, optimizers, losses: the same bits as without the stop, dropout included."""
    tiny_trainer(tmp_path / "whole").train()
    stopped = tiny_trainer(tmp_path / "halves")
    take = stopped.train_step

    def train_step(x_0, stop):
        if stopped.step == step - 1:
            signal.raise_signal(number)
            stop = True
        return take(x_0, stop)

    stopped.train_step = train_step
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
        stopped.train()
    assert signal.getsignal(number) is before
    second = tiny_trainer(tmp_path / "halves")
    second.resume(tmp_path / "halves" / LATEST)
    assert second.step == step
    second.train()
    whole, halves = (read_checkpoint(tmp_path / name / LATEST) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() >= {"model", "average", "muon", "adamw", "scaler", "run"}
    for key in whole.keys() - {"run"}:
        assert same_bits(whole[key], halves[key]), key
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert len(losses(tmp_path / "whole")) == 8


def test_a_signal_is_heard_in_train(tmp_path):
    def interrupt(result):
        if result.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        tiny_trainer(tmp_path, callbacks=[interrupt]).train()
    assert read_checkpoint(tmp_path / LATEST)["step"] == 3


@pytest.mark.parametrize("failing", ["report", "step", "callback"])
def test_handlers_come_back_whatever_fails(tmp_path, failing):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder = tmp_path / "run"
    trainer = tiny_trainer(folder)
    if failing == "report":
        folder.write_text("")  # a file where the folder should be
    if failing == "step":
        trainer.train_step = lambda *_: 1 / 0
    if failing == "callback":
        trainer.callbacks = [lambda result: 1 / 0]
    with pytest.raises((OSError, ZeroDivisionError)):
        trainer.train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def refused(trainer, path, match):
    """Resuming raises, and the trainer is as it was."""
    before = copy.deepcopy(trainer.state.state_dict())
    files = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=match):
        trainer.resume(path)
    assert same_bits(trainer.state.state_dict(), before)
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 2}, "windows_per_step: 4 → 2"),
        ({"gradient_accumulation_steps": 2}, "windows_per_step: 4 → 8"),
        ({"seed": 1}, "seed: 0 → 1"),
        ({"train_samples": 30}, "train_samples: 20 → 30; training_text: '3,840 tokens"),
        ({"objective": "score_entropy"}, "objective: 'cross_entropy' → 'score_entropy'"),
        ({"noise_power": None}, "noise_power: 1.0 → None"),
        ({"warmup_steps": 9}, "warmup_steps: 50 → 9"),
        ({"model": {"n_embd": 32}}, "model.n_embd: 16 → 32"),
        ({"model": {"sigma_max": 2.0}}, "model.sigma_max: 20.0 → 2.0"),
        ({"dropout": 0.2}, "model.dropout: 0.1 → 0.2"),
        ({"eval_windows": 5}, "eval_windows: 4 → 5"),
        ({"max_steps": 7}, "the checkpoint has 8 steps, the settings 7"),
    ],
    ids=str,
)
def test_another_run_is_refused(tmp_path, changes, said):
    tiny_trainer(tmp_path).train()
    refused(tiny_trainer(tmp_path, **changes), tmp_path / LATEST, said)


def test_what_may_differ(tmp_path):
    tiny_trainer(tmp_path).train()
    harmless = {"max_steps": 12, "num_epochs": 20, "num_workers": 1, "save_every_steps": 2}
    harmless |= {"eval_every_steps": 3, "log_every_steps": 2, "mixed_precision": "bf16"}
    harmless |= {"gradient_checkpointing": True, "gradient_clip": 0.5, "save_every": 2}
    harmless |= {"sigma_max": 20.0, "text_column": "story"}  # the network's, and the same text
    trainer = tiny_trainer(tmp_path / "elsewhere", **harmless)
    trainer.resume(tmp_path / LATEST)
    assert trainer.step == 8 and trainer.train() and trainer.step == 12


def test_the_same_windows_may_be_dealt_out_differently(tmp_path):
    tiny_trainer(tmp_path, batch_size=4, max_steps=2).train()
    trainer = tiny_trainer(tmp_path, batch_size=2, gradient_accumulation_steps=2, max_steps=3)
    trainer.resume(tmp_path / LATEST)
    assert trainer.train() and trainer.step == 3


def test_a_resumed_run_takes_the_new_learning_rates(tmp_path):
    tiny_trainer(tmp_path).train()
    slow = {"learning_rate": 1e-9, "matrix_learning_rate": 1e-9}
    trainer = tiny_trainer(tmp_path, max_steps=12, **slow)
    trainer.resume(tmp_path / LATEST)
    before = copy.deepcopy(trainer.model)
    trainer.train()
    for old, new in zip(before.parameters(), trainer.model.parameters()):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-7)


def test_half_a_load_is_taken_back(tmp_path):
    """The model fits, an optimizer does not: nothing stays of either."""
    tiny_trainer(tmp_path).train()
    content = read_checkpoint(tmp_path / LATEST)
    trainer = tiny_trainer(tmp_path)
    trainer.train_step(next(iter(trainer.train_loader)))
    for broken in ({"muon": {"state": {}, "param_groups": []}}, {"average": {}}):
        torch.save(content | broken, tmp_path / "other.pth")
        refused(trainer, tmp_path / "other.pth", "belongs to another network or optimizer")
    del content["scaler"]
    torch.save(content, tmp_path / "other.pth")
    refused(trainer, tmp_path / "other.pth", "another network or optimizer: 'scaler'")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    refused(
        trainer, tmp_path / "other.pth", r"no checkpoint of ddlm-train: it has no \['run', 'step'\]"
    )


def test_the_previous_checkpoint_replaces_a_damaged_one(tmp_path, monkeypatch):
    tiny_trainer(tmp_path).train()  # saves after steps 3, 6 and 8
    monkeypatch.chdir(tmp_path.parent)  # the folder by another name is the same folder
    latest, previous = tmp_path / LATEST, tmp_path / PREVIOUS
    content, trainer = bytearray(latest.read_bytes()), tiny_trainer(tmp_path.name)
    weights = read_checkpoint(latest)["model"]["position_embedding"].numpy().tobytes()
    content[content.index(weights)] ^= 1
    latest.write_bytes(content)  # a single bit is wrong
    older = previous.read_bytes()
    with pytest.warns(UserWarning, match="latest.pth is damaged.*going on from .*previous"):
        trainer.resume(latest)
    assert trainer.step == 6 and previous.read_bytes() == older and not latest.exists()
    assert (tmp_path / f"{LATEST}.damaged").read_bytes() == content  # kept
    with pytest.warns(UserWarning, match="there is no checkpoint .*going on from"):  # killed here
        trainer.resume(latest)
    trainer.train()
    assert read_checkpoint(latest)["step"] == 8
    previous.unlink()
    latest.write_bytes(b"")
    for name, said in ((LATEST, "is damaged"), ("missing.pth", "there is no checkpoint")):
        with pytest.raises(UserError, match=said):
            trainer.resume(tmp_path / name)


def test_a_damaged_checkpoint_of_another_folder_is_left_alone(tmp_path):
    tiny_trainer(tmp_path / "a").train()
    (tmp_path / "a" / LATEST).write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        (trainer := tiny_trainer(tmp_path / "b")).resume(tmp_path / "a" / LATEST)
    assert trainer.step == 6 and (tmp_path / "a" / LATEST).read_bytes() == b""
