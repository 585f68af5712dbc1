# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

import math

import pytest
import torch
from torch import Tensor

from ddlm_core.forward import perturb_batch, sample_prior, transition
from ddlm_core.noise import transition_matrix


def test_transition_gives_the_rows_of_the_matrix():
    x_t = torch.tensor([[0, 1, 2], [4, 4, 3]])
    delta = torch.tensor([0.3, 5.0], dtype=torch.float64)
    rows = transition(x_t, delta, vocab_size=5)  # (2, 3, 5)
    assert rows.shape == (2, 3, 5) and rows.dtype == torch.float64
    for b in range(2):
        matrix = transition_matrix(delta[b], vocab_size=5)
        torch.testing.assert_close(rows[b], matrix[x_t[b]], rtol=0, atol=1e-15)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(transition(x_t, 0.3, 5)[0].double(), rows[0], rtol=0, atol=1e-7)


def test_transition_composes():
    x, V = torch.arange(5)[None], 5
    first, second = torch.tensor(0.4).double(), torch.tensor(1.1).double()
    two_steps = transition(x, first, V) @ transition(x, second, V)
    torch.testing.assert_close(two_steps, transition(x, first + second, V), rtol=0, atol=1e-15)


def chi_squared_tail(observed: Tensor, expected: Tensor) -> float:
    """Chance of an X² at least as large if ``expected`` is right, for an odd number of outcomes."""
    half = ((observed - expected) ** 2 / expected).sum().item() / 2
    terms = (half**j / math.factorial(j) for j in range((len(observed) - 1) // 2))
    return math.exp(-half) * sum(terms)


def test_tail_of_chi_squared():
    # X² = 33.4: two outcomes are 40.87 away from 100 (2 · 40.87² / 100 = 33.4), three are exact.
    off = 40.865633 * torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    even = torch.full((5,), 100.0, dtype=torch.float64)
    assert chi_squared_tail(even, even) == 1
    assert abs(chi_squared_tail(even + off, even) - 17.7 * math.exp(-16.7)) < 1e-12  # 0.99e-6


def test_frequencies_meet_the_kernel():
    V, N, levels = 5, 20_000, torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for start in range(V):
        x_0 = torch.full((len(levels), N), start)
        x_t = perturb_batch(x_0, levels, V, generator=generator)
        for row, level in zip(x_t, levels, strict=True):
            expected = N * transition_matrix(level, V)[start]
            assert chi_squared_tail(row.bincount(minlength=V), expected) > 1e-6


def test_two_perturbations_are_one():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(5)
    x_t = perturb_batch(torch.full((100, N // 100), 2), 0.3, V, generator=generator)
    x_t = perturb_batch(x_t, 0.5, V, generator=generator)
    expected = N * transition_matrix(0.8, V)[2]
    assert chi_squared_tail(x_t.flatten().bincount(minlength=V), expected) > 1e-6


def test_neighbors_are_independent():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(6)
    x_t = perturb_batch(torch.tensor([[0, 3]]).repeat(N, 1), 0.7, V, generator=generator)
    row = transition_matrix(0.7, V)
    pairs = (x_t[:, 0] * V + x_t[:, 1]).bincount(minlength=V * V)
    assert chi_squared_tail(pairs, N * torch.outer(row[0], row[3]).flatten()) > 1e-6


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
    assert chi_squared_tail(x.flatten().bincount(minlength=5), expected) > 1e-6


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
