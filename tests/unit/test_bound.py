"""Chapter 8, module bound: every term of it counts, and the mean is taken in double precision."""

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from ddlm_core import bound
from ddlm_core.bound import Bound, validation_bound, window_nats
from ddlm_core.loss import prior_kl
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import UnigramModel
from ddlm_core.testing import small_network, tiny_network


def test_all_three_terms_count():
    """Of a short schedule the reconstruction and the prior are large; the sum is the cross-entropy."""
    model, noise = UnigramModel(0.9, 0.1), GeometricNoise(0.5, 3.0)
    generator = torch.Generator().manual_seed(0)
    x_0 = (torch.rand(40_000, 1, generator=generator) < 0.1).long()
    truth = -math.log(0.9) + x_0.double().mean().item() * (math.log(0.9) - math.log(0.1))
    nats = window_nats(model, x_0, noise, generator)
    assert nats.shape == (40_000,)
    error = nats.std().item() / math.sqrt(5000)  # an eighth of the windows is reconstructed
    assert nats.mean().item() == pytest.approx(truth, abs=4 * error) and error < 0.005


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


def test_windows_of_one_character_each(monkeypatch):
    monkeypatch.setattr(bound, "window_nats", lambda *_: torch.tensor([3.0, 3.0]))
    windows = torch.tensor([[5, 1, 1], [6, 1, 1]], dtype=torch.uint8)
    found = validation_bound(tiny_network(block_size=3), DataLoader(windows, 2), 2)
    assert found.bits_per_character == pytest.approx(3 / math.log(2))


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


def test_the_noise_of_validation_does_not_depend_on_the_batch():
    tokens = torch.randint(8, (150, 12), generator=torch.Generator().manual_seed(0))
    found = {
        validation_bound(small_network().float(), DataLoader(tokens.byte(), size), 140)
        for size in (1, 7, 64, 150)
    }
    assert len(found) == 1


def test_the_network_reads_64_windows_at_a_time_and_an_eighth_of_them_again():
    asked = []

    class Watched(UnigramModel):
        def denoise(self, x_t, sigma_bar, condition_mask=None):
            asked.append(len(x_t))
            return super().denoise(x_t, sigma_bar)

    x_0 = torch.arange(130)[:, None].expand(130, 9) % 2
    x_0 = x_0 ^ (torch.arange(130)[:, None] >> torch.arange(9) & 1)  # no two are equal
    times = torch.full((130,), 0.5), torch.linspace(0, 2, 130)
    nats = window_nats(
        Watched(0.9, 0.1),
        x_0,
        GeometricNoise(1e-9, 3.0),
        torch.Generator().manual_seed(0),
        lambda count, noise, generator: times,
    )
    assert asked == [64, 8, 64, 8, 2, 1] and nats.dtype == torch.float64
    assert nats[0] < 1e-5 + 9 * prior_kl(3.0, 2) < nats[1:].min()  # each has its own weight


def test_a_network_without_a_denoiser_is_measured_by_what_it_has():
    """The same scores, once with the denoising distribution behind them and once without."""

    class Scores:
        def __init__(self, model):
            self.config, self.score = model.config, model

        def __call__(self, x_t, sigma_bar, condition_mask=None):
            return self.score(x_t, sigma_bar)

    model, noise = UnigramModel(0.6, 0.4), GeometricNoise(0.5, 20.0)
    x_0 = torch.zeros(40_000, 2, dtype=torch.int64)
    nats = window_nats(model, x_0, noise, torch.Generator().manual_seed(0))
    drawn = window_nats(Scores(model), x_0, noise, torch.Generator().manual_seed(0))
    assert nats.mean().item() == pytest.approx(-2 * math.log(0.6), abs=1e-4)
    assert drawn.mean().item() == pytest.approx(-2 * math.log(0.6), abs=0.03)
    assert drawn.std() > 2 * nats.std()
