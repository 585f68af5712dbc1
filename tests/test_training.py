# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import json
import math

import pytest
import torch
from torch import Tensor, nn

from ddlm_core.data import evaluation_loader, setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import GeometricNoise
from ddlm_core.training import (
    Trainer,
    TrainingConfig,
    TrainingDiverged,
    draw_given,
    learning_rate_factor,
    proposal_times,
    update_average,
    validation_bound,
    write_whole,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"max_steps": -1},
        {"learning_rate": 0.0},
        {"noise_power": -1.0},
        {"ema_decay": 1.5},
        {"optimizer": "sgd"},
        {"mixed_precision": "int3"},
        {"context_length": 2.5},
    ],
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        TrainingConfig(**wrong)


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
    given = draw_given((4000, 50), 0.25, torch.Generator().manual_seed(0))
    touched = given.any(-1).double().mean().item()
    assert 0.2 < touched < 0.27  # a chosen row may happen to have no given span
    assert 0.4 < given[given.any(-1)].double().mean().item() < 0.6
    assert (given[:, 1:] != given[:, :-1]).sum(-1).max() <= 4
    assert not draw_given((100, 50), 0.0, torch.Generator().manual_seed(0)).any()


def test_learning_rate_and_average():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.5) and factors[100] == 0
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    before = old.weight.detach().clone()
    update_average(old, new, decay=0.9, step=10**6)
    assert torch.allclose(old.weight, 0.9 * before + 0.1 * new.weight)
    update_average(old, new, decay=0.9, step=0)
    assert torch.allclose(old.weight, 0.1 * (0.9 * before + 0.1 * new.weight) + 0.9 * new.weight)


def test_bound_of_an_untrained_network():
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    model = DiscreteDiffusionTransformer(config)
    loader = evaluation_loader(torch.randint(2, 106, (20_000,)).numpy().astype("uint8"), 10, 500)
    bound = validation_bound(model, loader, config.noise, 2000)
    assert bound.nats_per_window == pytest.approx(10 * math.log(106), rel=0.02)
    assert bound.bits_per_character == pytest.approx(math.log2(106), rel=0.02)


def test_write_whole_keeps_the_old_file_if_writing_fails(tmp_path):
    def fail(part):
        part.write_text("half")
        raise KeyboardInterrupt

    write_whole(tmp_path / "a", lambda part: part.write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    write_whole(tmp_path / "a", lambda part: part.write_text("new"))
    for _ in range(2):  # a folder, and the same folder again
        write_whole(tmp_path / "b", lambda part: (part.mkdir(), (part / "x").write_text("x")))
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "b" / "x").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def tiny_trainer(folder, **changes):
    """A network of a few thousand weights that reads 16 stories."""
    torch.manual_seed(0)
    train, val, _, _ = setup_dataloaders(
        "pocket-stories", train_samples=20, val_samples=4, context_len=160, batch_size=4
    )
    network = DiscreteDiffusionConfig(block_size=160, n_layer=1, n_head=2, n_embd=16, cond_dim=8)
    settings = {"batch_size": 4, "num_epochs": 9, "max_steps": 8, "eval_windows": 4}
    settings |= {"context_length": 160, "mixed_precision": "no", "progress": False}
    settings |= {"eval_every_steps": 4, "save_every_steps": 3, "log_every_steps": 1}
    config = TrainingConfig(checkpoint_dir=str(folder), **(settings | changes))
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


def test_resume_is_exact(tmp_path):
    tiny_trainer(tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        stopped = tiny_trainer(tmp_path / "halves")
        stopped.train_loader = interrupted(stopped.train_loader, after=5)
        stopped.fit()
    second = tiny_trainer(tmp_path / "halves")
    second.resume(tmp_path / "halves" / "checkpoint_latest.pth")
    assert second.state.step == 5
    second.fit()
    whole, halves = (
        torch.load(tmp_path / name / "checkpoint_latest.pth", weights_only=True)
        for name in ("whole", "halves")
    )
    for key in ("model", "average", "optimizers", "step", "best"):
        assert same(whole[key], halves[key]), key
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("whole", "halves")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 8


class interrupted:
    """A loader during which the user presses Ctrl-C after some batches."""

    def __init__(self, loader, after):
        self.loader, self.after = loader, after

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            yield batch


def test_what_a_run_leaves(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4)
    bound = trainer.fit()
    assert bound == trainer.evaluate()  # same seed, same noise
    names = ["best_model_hf", "checkpoint_latest.pth", "final_model_hf", "train_log.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    config = json.loads((tmp_path / "final_model_hf" / "config.json").read_text())
    assert config["step"] == 4 and config["ema"] is True and len(config["vocab"]) == 106
    again = tiny_trainer(tmp_path, max_steps=4)
    again.resume(tmp_path / "checkpoint_latest.pth")
    assert again.fit() is None and again.state.step == 4  # nothing left to do


def test_bad_checkpoints_and_bad_losses(tmp_path):
    trainer = tiny_trainer(tmp_path)
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    for name in ("bad.pth", "missing.pth"):
        with pytest.raises(ValueError, match="is no checkpoint that this run can resume"):
            trainer.resume(tmp_path / name)
    with torch.no_grad():
        trainer.state.model.head.bias.fill_(float("nan"))
    weight = trainer.state.model.embedding.weight.clone()
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        trainer.fit()
    assert torch.equal(weight, trainer.state.model.embedding.weight)


def test_training_lowers_the_bound_in_every_mode(tmp_path):
    for i, changes in enumerate(
        ({"optimizer": "adamw"}, {"gradient_checkpointing": True}, {"noise_power": None})
    ):
        trainer = tiny_trainer(tmp_path / str(i), max_steps=30, learning_rate=0.02, **changes)
        before = trainer.evaluate().nats_per_window
        assert trainer.fit().nats_per_window < 0.9 * before
