"""Chapter 8, module optimizers: what moves the weights, how far, and their average."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddlm_core.optimizers import build_optimizers, learning_rate_factor, update_average
from ddlm_core.settings import TrainingConfig
from ddlm_core.testing import tiny_network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
