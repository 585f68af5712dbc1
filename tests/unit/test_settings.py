"""Chapter 8, module settings: what a run may be told."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from ddlm_core.data import POCKET
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.support.errors import UserError


def test_the_smallest_values_that_make_sense():
    least = {
        "max_steps": 1,
        "train_samples": 1,
        "batch_size": 1,
        "warmup_steps": 0,
        "betas": (0.0, 0.0),
    }
    config = TrainingConfig(**least)
    assert {name: getattr(config, name) for name in least} == least


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
        {"betas": (0.9, 1.0)},
        {"betas": (0.9, 1.5)},
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
