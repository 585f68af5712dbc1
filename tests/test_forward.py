# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

import torch
from torch import Tensor

from ddlm_core.forward import perturb_batch, transition
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


def p_value(observed: Tensor, expected: Tensor) -> float:
    """Probability of an X² at least as large if ``expected`` is right (chi-squared test)."""
    half = ((observed - expected) ** 2 / expected).sum().double() / 2
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), half).item()


def test_frequencies_meet_the_kernel():
    levels = torch.tensor([0.02, 0.2, 0.8, 3.0, 20.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    for V, N, starts in ((5, 20_000, range(5)), (106, 200_000, [0, 1, 70])):
        for start in starts:
            x_0 = torch.full((len(levels), N), start)
            x_t = perturb_batch(x_0, levels, V, generator=generator)
            for row, level in zip(x_t, levels, strict=True):
                expected = N * transition_matrix(level, V)[start]
                assert p_value(row.bincount(minlength=V), expected) > 1e-6


def test_neighbors_are_independent():
    V, N, generator = 5, 100_000, torch.Generator().manual_seed(6)
    x_t = perturb_batch(torch.tensor([[0, 3]]).repeat(N, 1), 0.7, V, generator=generator)
    row = transition_matrix(0.7, V)
    pairs = (x_t[:, 0] * V + x_t[:, 1]).bincount(minlength=V * V)
    assert p_value(pairs, N * torch.outer(row[0], row[3]).flatten()) > 1e-6
