"""Chapter 8, module bound: every term of it counts, and the mean is taken in double precision."""

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from ddlm_core import bound
from ddlm_core.bound import Bound, validation_bound, window_nats
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import UnigramModel
from ddlm_core.testing import tiny_network


def test_all_three_terms_count():
    """Of a short schedule the reconstruction and the prior are large; the sum is the cross-entropy."""
    model, noise = UnigramModel(0.9, 0.1), GeometricNoise(0.5, 3.0)
    generator = torch.Generator().manual_seed(0)
    x_0 = (torch.rand(40_000, 1, generator=generator) < 0.1).long()
    truth = -math.log(0.9) + x_0.double().mean().item() * (math.log(0.9) - math.log(0.1))
    nats = window_nats(model, x_0, noise, generator)
    assert nats.shape == (40_000,)
    assert nats.mean().item() == pytest.approx(truth, abs=4 * nats.std().item() / 200)
    assert nats.std().item() / 200 < 0.01


def test_every_position_of_a_window_counts_alike():
    model, noise = UnigramModel(0.9, 0.1), GeometricNoise(0.5, 3.0)
    generator = torch.Generator().manual_seed(0)
    nats = window_nats(model, torch.tensor([[0, 1, 0]]).expand(20_000, 3), noise, generator)
    truth = -2 * math.log(0.9) - math.log(0.1)
    assert nats.mean().item() == pytest.approx(truth, abs=4 * nats.std().item() / math.sqrt(20_000))


def test_the_mean_is_taken_in_double_precision(monkeypatch):
    values = torch.tensor([2.0**24, 1.0, 1.0, 1.0])
    monkeypatch.setattr(bound, "window_nats", lambda *_: values)
    loader = DataLoader(torch.full((4, 8), 5, dtype=torch.uint8), 4)
    found = validation_bound(tiny_network(block_size=8), loader, 4)
    assert found.nats_per_window == (2**24 + 3) / 4
    assert found.bits_per_character == pytest.approx(found.nats_per_window / 8 / math.log(2))


def test_a_bound_is_a_value():
    found = Bound(2.0, 1.0)
    assert found == Bound(nats_per_window=2.0, bits_per_character=1.0) and {found}
    with pytest.raises(FrozenInstanceError):
        found.nats_per_window = 1.0


def test_windows_that_come_through_unchanged_are_asked_once():
    asked = []

    class Watched(UnigramModel):
        def denoise(self, x_t, sigma_bar, condition_mask=None):
            asked.append(SimpleNamespace(rows=len(x_t), noise=sigma_bar.max().item()))
            return super().denoise(x_t, sigma_bar)

    noise = GeometricNoise(1e-9, 3.0)
    x_0 = torch.zeros(50, 2, dtype=torch.int64)
    window_nats(Watched(0.9, 0.1), x_0, noise, torch.Generator().manual_seed(0))
    assert [a.rows for a in asked if a.noise < 1e-6] == [1]
