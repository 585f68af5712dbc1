# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import copy
import json
import math
import signal

import pytest
import torch
from torch import Tensor, nn

from ddlm_core.data import evaluation_loader, setup_dataloaders
from ddlm_core.forward import transition
from ddlm_core.loss import compute_loss, denoiser_log_score, score_entropy_loss
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import GeometricNoise
from ddlm_core.support.files import LATEST, PREVIOUS, read_checkpoint
from ddlm_core.training import (
    Objective,
    Trainer,
    TrainingConfig,
    build_optimizers,
    draw_condition,
    draw_noise,
    learning_rate_factor,
    proposal_times,
    train_step,
    training_loss,
    update_average,
    validation_bound,
)


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
    ],
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        TrainingConfig(**wrong)
    TrainingConfig(noise_power=None, max_steps=None, seed=0, warmup_steps=0, learning_rate=1)


@pytest.mark.parametrize("power", [None, 0.7, 1.0, 2.0])
def test_every_proposal_has_the_same_integral(power):
    noise, generator = GeometricNoise(), torch.Generator().manual_seed(0)
    t, weight = proposal_times(200_000, noise, power, generator=generator)
    assert t.min() >= -1e-6 and t.max() <= 1 + 1e-6
    for g, truth in (
        (lambda t: noise.sigma(t) * torch.exp(-noise.sigma_bar(t)), math.exp(-1e-4)),
        (lambda t: noise.sigma(t) * torch.exp(-3 * noise.sigma_bar(t)), math.exp(-3e-4) / 3),
    ):
        assert abs((weight * g(t)).double().mean().item() - truth) < 2e-3
    late, _ = proposal_times(1000, noise, power, sampling_eps=0.3, generator=generator)
    assert late.min() > 0.299


def test_given_spans():
    given = draw_condition((4000, 50), 0.25, torch.Generator().manual_seed(0))
    touched = given.any(-1).double().mean().item()
    assert 0.2 < touched < 0.27  # a chosen row may happen to have no given span
    assert 0.4 < given[given.any(-1)].double().mean().item() < 0.6
    assert (given[:, 1:] != given[:, :-1]).sum(-1).max() <= 4
    assert not draw_condition((100, 50), 0.0, torch.Generator().manual_seed(0)).any()


def test_surprise_is_score_entropy_integrated_over_the_own_noise():
    tau = torch.logspace(-7, 1.6, 2001, dtype=torch.float64)
    log_q = torch.tensor([0.05, 0.3, 0.1, 0.2, 0.34, 0.01], dtype=torch.float64).log()
    for clean in range(6):
        x_0, area = torch.full((2001, 1), clean), 0.0
        weights = transition(x_0, tau, 6)[:, 0]  # (2001, 6): chances of the noisy letter
        for seen in range(6):
            x_t = torch.full_like(x_0, seen)
            log_score = denoiser_log_score(log_q.expand(2001, 1, 6), tau, x_t)
            area = area + weights[:, seen] * score_entropy_loss(log_score, tau, x_t, x_0)[:, 0]
        area = torch.trapezoid(area, tau).item()
        assert area == pytest.approx(-log_q[clean].item(), rel=1e-4)


def tiny_network(**changes):
    """A network of a few thousand weights, no longer at its start."""
    torch.manual_seed(0)
    sizes = {"block_size": 160, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("objective", ["guess", "graded", "score_entropy"])
def test_parts_of_a_step_add_up(objective):
    model, config = tiny_network(n_layer=3), TrainingConfig(condition_share=0.5)
    x_0 = torch.randint(2, 106, (8, 160), generator=torch.Generator().manual_seed(1))
    drawn = draw_noise(x_0, config, model, torch.Generator().manual_seed(2))
    whole = training_loss(model, drawn, objective)
    parts = [training_loss(model, [values[k::4] for values in drawn], objective) for k in range(4)]
    torch.testing.assert_close(sum(parts) / 4, whole)
    if objective == "score_entropy":
        generator = torch.Generator().manual_seed(2)  # the same draws, through compute_loss
        t, weight = proposal_times(8, model.config.noise, generator=generator)
        mask = draw_condition((8, 160), 0.5, generator)
        loss = compute_loss(model, x_0, model.config.noise, t, mask, generator)
        torch.testing.assert_close((weight * loss).mean(), whole)
    else:
        expected, heads = 0.0, []
        model.head.register_forward_hook(lambda head, _, logits: heads.append(logits))
        model.denoise_stacks(drawn[1], drawn[3], drawn[2])
        for weight, logits in zip((1.0, 0.3, 0.3), heads[0].log_softmax(-1)):
            for b, free in enumerate(~drawn[2]):
                surprise = -logits[b, torch.arange(160), x_0[b]]
                weighs = weight if objective == "graded" else float(weight == 1)
                expected += weighs * (surprise * free).sum() / free.sum() / 8
        torch.testing.assert_close(expected, whole)


def test_readers_are_graded_for_what_they_have_read():
    model = tiny_network(n_layer=3)
    x_t = torch.randint(2, 106, (1, 12), generator=torch.Generator().manual_seed(1))
    moved = x_t.clone()
    moved[0, 5] = 50
    told = [model.denoise_stacks(x, torch.ones(1))[:, 0] for x in (x_t, moved)]
    heard = (told[0] != told[1]).any(-1)  # (3, 12): whose answer letter 5 has changed, and where
    places = torch.arange(12)
    assert torch.equal(heard, torch.stack([places != 5, places > 5, places < 5]))
    assert torch.equal(model.denoise(x_t, torch.ones(1)), told[0][None, 0])


def test_a_network_of_scores_is_trained_on_score_entropy():
    model = tiny_network(parametrization="score")
    x_0 = torch.full((2, 160), 7)
    drawn = draw_noise(x_0, TrainingConfig(), model, torch.Generator().manual_seed(2))
    expected = training_loss(model, drawn, "score_entropy")
    assert torch.equal(Objective(model, TrainingConfig())(*drawn), expected)


def test_learning_rate_and_average():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[70] == pytest.approx(0.75) and factors[80] == pytest.approx(0.5)
    assert factors[100] == 0
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    before = old.weight.detach().clone()
    update_average(old, new, decay=0.9, step=10**6)
    assert torch.allclose(old.weight, 0.9 * before + 0.1 * new.weight)
    update_average(old, new, decay=0.9, step=0)
    assert torch.allclose(old.weight, 0.1 * (0.9 * before + 0.1 * new.weight) + 0.9 * new.weight)


def test_8_bit_optimizer_is_turned_off_without_a_gpu():
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="use_8bit_optimizer is off"):
            build_optimizers(nn.Linear(2, 2), TrainingConfig(use_8bit_optimizer=True))


def test_bound_of_an_untrained_network():
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    model = DiscreteDiffusionTransformer(config)
    loader = evaluation_loader(torch.randint(2, 106, (20_000,)).numpy().astype("uint8"), 10, 500)
    bound = validation_bound(model, loader, config.noise, 2000)
    assert bound.nats_per_window == pytest.approx(10 * math.log(106), rel=0.02)
    assert bound.bits_per_character == pytest.approx(math.log2(106), rel=0.02)


def tiny_trainer(folder, dropout=0.1, **changes):
    """A network of a few thousand weights, 24 stories to train on, 2 to validate with."""
    torch.manual_seed(0)
    settings = {"batch_size": 4, "num_epochs": 9, "max_steps": 8, "eval_windows": 4}
    settings |= {"context_length": 160, "mixed_precision": "no", "progress": False}
    settings |= {"eval_every_steps": 4, "save_every_steps": 3, "log_every_steps": 1}
    config = TrainingConfig(checkpoint_dir=str(folder), **(settings | changes))
    train, val, _, _ = setup_dataloaders(
        "pocket-stories",
        train_samples=20,
        val_samples=4,
        context_len=160,
        batch_size=config.batch_size,
    )
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "dropout": dropout}
    network = DiscreteDiffusionConfig(block_size=160, **sizes)
    return Trainer(DiscreteDiffusionTransformer(network), train, val, config)


def same(a, b):
    """Whether two nested structures hold the same bits."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def losses(folder):
    """The losses in a run's log."""
    lines = (folder / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


class Interrupted:
    """A loader during which a signal arrives after some batches."""

    def __init__(self, loader, after, number):
        self.loader, self.after, self.number = loader, after, number

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.after == 0:
                signal.raise_signal(self.number)
            self.after -= 1
            yield batch


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 6)])
def test_resume_is_exact(tmp_path, number, step):
    """Weights, average, optimizers, losses: the same bits as without the stop, dropout included."""
    tiny_trainer(tmp_path / "whole").fit()
    stopped = tiny_trainer(tmp_path / "halves")
    stopped.train_loader = Interrupted(stopped.train_loader, step - 1, number)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
        stopped.fit()
    assert signal.getsignal(number) is before
    second = tiny_trainer(tmp_path / "halves")
    second.resume(tmp_path / "halves" / LATEST)
    assert second.step == step
    second.fit()
    whole, halves = (read_checkpoint(tmp_path / name / LATEST) for name in ("whole", "halves"))
    for key in whole.keys() - {"config"}:
        assert same(whole[key], halves[key]), key
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert len(losses(tmp_path / "whole")) == 8


def test_what_a_run_leaves(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4)
    bound = trainer.fit()
    assert bound == trainer.evaluate()  # same seed, same noise
    names = ["best_model_hf", LATEST, PREVIOUS, "curve.png", "final_model_hf", "train_log.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    config = json.loads((tmp_path / "final_model_hf" / "config.json").read_text())
    assert config["step"] == 4 and config["ema"] is True and len(config["vocab"]) == 106
    again = tiny_trainer(tmp_path, max_steps=4)
    again.resume(tmp_path / LATEST)
    assert again.fit() is None and again.step == 4  # nothing left to do


def test_a_resumed_run_takes_the_new_learning_rates(tmp_path):
    tiny_trainer(tmp_path).fit()
    slow = {"learning_rate": 1e-9, "matrix_learning_rate": 1e-9}
    trainer = tiny_trainer(tmp_path, max_steps=12, **slow)
    trainer.resume(tmp_path / LATEST)
    before = copy.deepcopy(trainer.model)
    trainer.fit()
    for old, new in zip(before.parameters(), trainer.model.parameters()):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-7)


def test_the_previous_checkpoint_replaces_a_damaged_one(tmp_path):
    tiny_trainer(tmp_path).fit()  # saves after steps 3, 6 and 8
    latest, previous = tmp_path / LATEST, tmp_path / PREVIOUS
    content, trainer = bytearray(latest.read_bytes()), tiny_trainer(tmp_path)
    content[
        content.index(read_checkpoint(latest)["model"]["position_embedding"].numpy().tobytes())
    ] ^= 1
    latest.write_bytes(content)  # a single bit is wrong
    older = previous.read_bytes()
    with pytest.warns(UserWarning, match="latest.pth is no whole checkpoint .*damaged.*previous"):
        trainer.resume(latest)
    assert trainer.step == 6 and latest.read_bytes() == older and not previous.exists()
    latest.rename(previous)  # killed between two renames
    with pytest.warns(UserWarning, match="No such file"):
        trainer.resume(latest)
    latest.write_bytes(b"")
    for name in (LATEST, "missing.pth"):
        with pytest.raises(ValueError, match=f"{name} is no whole checkpoint"):
            trainer.resume(tmp_path / name)


def test_divergence_stops_before_the_weights_change(tmp_path):
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.head.bias.fill_(math.nan)
    weight = trainer.model.embedding.weight.clone()
    with pytest.raises(FloatingPointError, match="the loss is nan.*lower learning_rate"):
        trainer.fit()
    assert torch.equal(weight, trainer.model.embedding.weight)
    trainer = tiny_trainer(tmp_path)
    trainer.model.head.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(
        FloatingPointError, match=r"step 0 the loss is [\d.]+, its gradient (inf|nan)"
    ):
        trainer.fit()
    trainer = tiny_trainer(tmp_path)
    trainer.model.head.bias.data[5] = 1e9  # very sure, and wrong
    with pytest.raises(FloatingPointError, match=r"the loss is \d+"):
        trainer.fit()


def test_training_lowers_the_bound_in_every_mode(tmp_path):
    for i, changes in enumerate(
        ({"optimizer": "adamw"}, {"gradient_checkpointing": True}, {"noise_power": None})
    ):
        trainer = tiny_trainer(tmp_path / str(i), max_steps=30, learning_rate=0.02, **changes)
        before = trainer.evaluate().nats_per_window
        assert trainer.fit().nats_per_window < 0.9 * before


def test_the_curve_depends_on_the_global_batch_alone(tmp_path):
    """Batches of 4 in two parts are batches of 8; so are gradients scaled as for fp16."""
    plain = {"max_steps": 6, "warmup_steps": 0, "learning_rate": 0.02, "dropout": 0.0}
    tiny_trainer(tmp_path / "8", batch_size=8, **plain).fit()
    tiny_trainer(tmp_path / "4", batch_size=4, gradient_accumulation_steps=2, **plain).fit()
    scaled = tiny_trainer(tmp_path / "scaled", batch_size=8, **plain)
    scaled.accelerator.scaler = scaled.scaler = torch.amp.GradScaler("cpu", 2.0**10)
    scaled.fit()
    for name in ("4", "scaled"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "8"), rel=1e-4)
    with pytest.raises(ValueError, match="which takes 9 batches"):
        tiny_trainer(tmp_path, gradient_accumulation_steps=9)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_an_overflow_of_fp16_changes_the_scale_alone(tmp_path, broken):
    trainer, x_0 = tiny_trainer(tmp_path), torch.randint(2, 106, (4, 160), dtype=torch.uint8)
    trainer.accelerator.scaler = trainer.scaler = torch.amp.GradScaler("cpu", 2.0**10)
    train_step(trainer, x_0)  # from now on the optimizers have momentum
    before = copy.deepcopy(trainer.model.state_dict())
    backward = trainer.accelerator.backward

    def overflow(loss):
        backward(loss)
        trainer.model.blocks[0].attention.query.weight.grad[0, 0] = broken  # Muon's part

    trainer.accelerator.backward = overflow
    train_step(trainer, x_0)
    assert same(trainer.model.state_dict(), before) and trainer.scaler.get_scale() == 2.0**9
