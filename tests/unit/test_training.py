"""Chapter 8, module training: the bound, the run, and how it goes on."""

import copy
import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ddlm_core.bound import validation_bound, window_nats
from ddlm_core.data import POCKET, evaluation_loader, setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.objective import (
    draw_noise,
    training_loss,
)
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.checkpoints import LATEST, PREVIOUS, read_checkpoint
from ddlm_core.support.errors import UserError
from ddlm_core.testing import same_bits, tiny_network, tiny_trainer
from ddlm_core.training import update_weights


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in log_of(folder)]


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
        ({"max_steps": 7}, "the checkpoint is at step 8, this run would end at step 7"),
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


def test_a_trainer_leaves_the_methods_of_the_network_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, torch_compile=True, gradient_checkpointing=True)
    assert trainer.model.gradient_checkpointing
    assert not trainer.average.training and trainer.model.training
    assert not any(p.requires_grad for p in trainer.average.parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())
    for module in trainer.model.modules():
        assert not {"forward", "logits", "denoise"} & vars(module).keys()
    assert not tiny_trainer(tmp_path).model.gradient_checkpointing


def test_a_loss_is_compiled_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("ddlm_core.training.compiled", lambda loss_fn, device: ("compiled", device))
    trainer = tiny_trainer(tmp_path, torch_compile=True)
    assert trainer.loss_fn == ("compiled", trainer.accelerator.device)
    assert isinstance(tiny_trainer(tmp_path, torch_compile=False).loss_fn, torch.nn.Module)
