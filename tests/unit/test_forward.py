"""Corrupting text: composition, seeds, masks, devices, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from ddlm_core.forward import noise_column, perturb_batch, sample_prior, transition
from ddlm_core.noise import transition_matrix


def tail(observed: Tensor, expected: Tensor) -> float:
    """Chance of an X² at least as large if ``expected`` is right, by PyTorch's gamma function."""
    half = ((observed - expected) ** 2 / expected).sum() / 2
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).to(half), half).item()


def test_transition_composes():
    x, V = torch.arange(5)[None], 5
    first, second = torch.tensor(0.4).double(), torch.tensor(1.1).double()
    two_steps = transition(x, first, V) @ transition(x, second, V)
    torch.testing.assert_close(two_steps, transition(x, first + second, V), rtol=0, atol=1e-15)


def test_two_perturbations_are_one():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(5)
    x_t = perturb_batch(torch.full((100, N // 100), 2), 0.3, V, generator=generator)
    x_t = perturb_batch(x_t, 0.5, V, generator=generator)
    expected = N * transition_matrix(0.8, V)[2]
    assert tail(x_t.flatten().bincount(minlength=V), expected) > 1e-6


def test_perturb_batch_keeps_its_contract():
    x_0 = sample_prior(4, 50, 7, torch.Generator().manual_seed(0))
    before, mask = x_0.clone(), torch.arange(50).expand(4, 50) % 3 == 0
    first, again, other = (
        perturb_batch(x_0, 1.0, 7, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    masked = perturb_batch(x_0, math.inf, 7, mask, torch.Generator().manual_seed(1))
    assert torch.equal(masked[mask], x_0[mask]) and not torch.equal(masked[~mask], x_0[~mask])
    assert torch.equal(perturb_batch(x_0, 0.0, 7), x_0)
    assert torch.equal(perturb_batch(x_0, torch.tensor(0), 7), x_0)
    assert torch.equal(x_0, before)


def test_prior_is_uniform_over_all_tokens():
    x = sample_prior(20, 1000, 5, torch.Generator().manual_seed(3))
    assert x.shape == (20, 1000) and x.dtype == torch.int64
    expected = torch.full((5,), 4000.0, dtype=torch.float64)
    assert tail(x.flatten().bincount(minlength=5), expected) > 1e-6


def test_wrong_shapes_are_refused():
    x = torch.zeros(2, 3, dtype=torch.int64)
    wrong = [
        (x[0], 0.5, None),  # one text, not a batch
        (x.int(), 0.5, None),  # not int64
        (x, torch.zeros(3), None),  # one noise a position
        (x, torch.zeros(2, 1), None),
        (x, 0.5, torch.ones(2, 3)),  # a mask of numbers
        (x, 0.5, torch.ones(3, dtype=torch.bool)),
    ]
    for tokens, noise, mask in wrong:
        with pytest.raises(ValueError, match="^(tokens|noise|mask) must be .* got [^\n]*$"):
            perturb_batch(tokens, noise, 5, mask)
        if mask is None:
            with pytest.raises(ValueError, match="^(tokens|noise) must be"):
                transition(tokens, noise, 5)


def test_noise_is_a_scalar_or_one_for_each_text():
    x = torch.zeros(2, 3, dtype=torch.int64)
    for noise, values, dtype in (
        (0.5, [0.5, 0.5], torch.float32),
        (2, [2.0, 2.0], torch.float32),
        (torch.tensor(0.5), [0.5, 0.5], torch.float32),
        (torch.tensor([1, 2]), [1.0, 2.0], torch.float32),
        (torch.tensor([0.5, 2.0]).double(), [0.5, 2.0], torch.float64),
        (torch.tensor([0.5, 2.0]).half(), [0.5, 2.0], torch.float16),
    ):
        column = noise_column(noise, x)
        assert column.shape == (2, 1) and column.dtype == dtype
        assert column[:, 0].tolist() == values


def test_beside_a_table_the_noise_has_its_dtype():
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        table = torch.zeros(2, 3, 5, dtype=dtype)
        for noise in (0.5, torch.tensor(0.5).double(), torch.tensor([0.5, 2.0])):
            column = noise_column(noise, table)
            assert column.shape == (2, 1, 1) and column.dtype == expected
            assert column[0] == 0.5
    for bad in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"a scalar or \(2,\), got"):
            noise_column(bad, table)


def test_the_noise_sets_the_dtype_of_the_rows():
    x = torch.zeros(2, 3, dtype=torch.int64)
    for noise, dtype in ((0.5, torch.float32), (torch.ones(2).double(), torch.float64)):
        assert transition(x, noise, 4).dtype == dtype


def test_everything_stays_on_the_device_of_the_tokens():
    """On `meta`, which has shapes and no values, so that a machine without a GPU sees the fault."""
    x = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    assert noise_column(0.5, x).device.type == transition(x, 0.5, 4).device.type == "meta"
    for generator in (None, torch.Generator()):
        assert perturb_batch(x, 0.5, 4, generator=generator).device.type == "meta"
        assert sample_prior(2, 3, 4, generator, "meta").device.type == "meta"
    assert sample_prior(2, 3, 4).device.type == "cpu"


def test_the_same_draws_on_every_device_of_a_generator():
    """What is drawn depends on the generator alone: uniform numbers first, replacements then."""
    x_0, generator = torch.zeros(2, 500, dtype=torch.int64), torch.Generator().manual_seed(4)
    resampled = torch.rand(x_0.shape, generator=generator) < 1 - math.exp(-0.5)
    expected = torch.where(resampled, torch.randint(7, x_0.shape, generator=generator), x_0)
    assert torch.equal(
        perturb_batch(x_0, 0.5, 7, generator=torch.Generator().manual_seed(4)), expected
    )


def test_resampled_tokens_come_from_the_prior():
    def sevens(batch_size, length, vocab_size, generator, device):
        assert (batch_size, length, vocab_size) == (2, 3, 9)
        return torch.full((batch_size, length), 7)

    x_0 = torch.zeros(2, 3, dtype=torch.int64)
    noise = torch.tensor([0.0, math.inf])
    assert perturb_batch(x_0, noise, 9, prior=sevens).tolist() == [[0, 0, 0], [7, 7, 7]]


def test_no_noise_changes_nothing_even_if_the_draw_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    x_0 = torch.full((1, 500), 3)
    assert torch.equal(perturb_batch(x_0, 0.0, 7), x_0)
