"""Engineering tests of `ddlm_core.evaluation`: formulas by hand, edges, and refusals."""

import math

import pytest
import torch

from ddlm_core import stories
from ddlm_core.evaluation import (
    Estimate,
    bits_per_character,
    estimate_bound,
    first_flaw,
    mean_of,
    spread_times,
    wilson,
    word_entropy,
)
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import UnigramModel
from ddlm_core.support.errors import UserError

LETTERS = UnigramModel(0.1, 0.2, 0.3, 0.4)


# --- means and shares


def test_mean_and_interval():
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]))
    error = (50 / 4) ** 0.5 / 5**0.5  # squares of the distances from 4 add up to 50
    assert found == pytest.approx((4, 4 - 1.96 * error, 4 + 1.96 * error))
    assert all(type(value) is float for value in found)
    assert mean_of(torch.tensor([1.0, 2.0]), 0.5) == pytest.approx((1.5, 0.52, 2.48))
    assert mean_of(torch.tensor([1.0, 3.0]), 0.0) == (2.0, 2.0, 2.0)


def test_an_estimate_in_another_unit_and_in_a_text():
    found = Estimate(1.0, 0.5, 1.5)
    assert found.scaled(3) == Estimate(3.0, 1.5, 4.5)
    assert f"{found:.2f}" == "1.00 (0.50 to 1.50)"


def test_wilson_ends_are_where_the_share_is_just_possible():
    for hits, n in ((0, 10), (3, 10), (16, 16), (94, 128), (0, 1), (1, 1)):
        share = hits / n
        found = wilson(hits, n)
        assert found.mean == share and 0 <= found.low <= share <= found.high <= 1
        for end in found[1:]:
            far = abs(share - end) - 1.96 * math.sqrt(end * (1 - end) / n)
            assert far == pytest.approx(0, abs=1e-9)


def test_a_share_never_leaves_the_unit_interval():
    """Rounding alone would put some ends below 0 or above 1."""
    for n in range(1, 300):
        assert wilson(0, n).low == pytest.approx(0, abs=1e-12) and wilson(0, n).low >= 0
        assert wilson(n, n).high == pytest.approx(1) and wilson(n, n).high <= 1


@pytest.mark.parametrize(("hits", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_an_impossible_share_is_refused(hits, n):
    with pytest.raises(UserError, match="trials"):
        wilson(hits, n)


def test_word_entropy():
    assert word_entropy(["a b", "c d"]) == pytest.approx(math.log(4))
    assert word_entropy(["a a", "a"]) == pytest.approx(0, abs=1e-6)
    assert word_entropy(["a b", "a c"]) == pytest.approx(1.5 * math.log(2))
    for empty in ([], [" ", ""]):
        with pytest.raises(UserError, match="no word"):
            word_entropy(empty)


# --- noise levels


def test_times_follow_the_mixture_and_weights_keep_the_integral():
    noise, count = GeometricNoise(1e-3, 6.0), 4096
    t, weight = spread_times(count, noise, torch.Generator().manual_seed(0))
    assert t.shape == weight.shape == (count,) and t.dtype == weight.dtype == torch.float32
    assert t.min() >= 0 and t.max() <= 1 and weight.max() < 2.001
    for power in (0, 1, 2):  # the integral of t^power over [0, 1]
        assert (weight * t**power).mean().item() == pytest.approx(1 / (1 + power), abs=1e-3)
    f0, f1 = (-math.expm1(-s) for s in (1e-3, 6.0))
    for end in (0.1, 0.3, 0.5, 0.7, 0.9):
        fraction = -math.expm1(-(1e-3 ** (1 - end) * 6.0**end))
        must = (end + (fraction - f0) / (f1 - f0)) / 2
        assert (t <= end).double().mean().item() == pytest.approx(must, abs=1e-3)
    again, _ = spread_times(count, noise, torch.Generator().manual_seed(1))
    assert not torch.equal(t, again)


# --- the bound


def by_hand(nats: torch.Tensor, of_windows: bool) -> tuple[float, float, float]:
    """Mean and interval of draws (R, N), by loops over plain numbers."""
    rows = nats.tolist()
    repeats, windows = len(rows), len(rows[0])
    mean = sum(map(sum, rows)) / repeats / windows
    if of_windows:
        own = [sum(row[n] for row in rows) / repeats for n in range(windows)]
        square = sum((v - mean) ** 2 for v in own) / (windows - 1) / windows
    else:
        pairs = [
            (rows[r + 1][n] - rows[r][n]) ** 2 for r in range(repeats - 1) for n in range(windows)
        ]
        square = sum(pairs) / len(pairs) / 2 / (repeats * windows)
    return mean, mean - 1.96 * math.sqrt(square), mean + 1.96 * math.sqrt(square)


@pytest.mark.parametrize(
    ("rows", "of_windows"),
    [
        ([[2, 3, 2, 1, 0]], False),  # a single window has no second error
        ([[2, 3, 2, 1, 0], [2, 3, 2, 0, 1], [3, 2, 2, 0, 1]], False),  # equal windows
        ([[0] * 5, [3] * 5, [0] * 5], True),  # windows that differ
    ],
)
def test_the_error_is_the_larger_of_two(rows, of_windows):
    tokens = torch.tensor(rows)
    nats = bound_draws(LETTERS, tokens, 7, torch.Generator().manual_seed(3))
    assert nats.shape == (7, len(rows)) and nats.dtype == torch.float64
    expected = by_hand(nats, of_windows)
    assert estimate_bound(LETTERS, tokens, 7, seed=3) == pytest.approx(expected)
    if len(rows) > 1:  # the case is decided, not a draw
        other = by_hand(nats, not of_windows)
        assert expected[2] - expected[1] > other[2] - other[1]


def test_many_windows_are_taken_64_levels_at_a_time():
    tokens = torch.randint(4, (21, 5), generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    nats = torch.cat([bound_draws(LETTERS, part, 8, g) for part in tokens.split(8)], dim=1)
    assert estimate_bound(LETTERS, tokens).mean == pytest.approx(nats.mean().item())
    nats = torch.cat([bound_draws(LETTERS, t, 100, g.manual_seed(0)) for t in tokens[:1, None]], 1)
    assert estimate_bound(LETTERS, tokens[:1], 100).mean == pytest.approx(nats.mean().item())


def test_draws_are_sorted_by_window_and_carry_no_gradient():
    model = UnigramModel(0.99, 0.01)
    model.log_q.requires_grad_()
    nats = bound_draws(model, torch.tensor([[0] * 9, [1] * 9]), 400, torch.Generator())
    assert nats.shape == (400, 2) and not nats.requires_grad
    assert nats[:, 0].mean() < 1 and nats[:, 1].mean().item() == pytest.approx(41.4, rel=0.2)


def test_bound_counts_windows_and_characters():
    text = torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    found, exact = estimate_bound(LETTERS, text[:1], 4000), LETTERS.nats(text)[0].item()
    assert exact == pytest.approx(-math.log(0.3 * 0.4 * 0.3 * 0.2))
    assert found.low < exact < found.high < 1.1 * exact
    found = estimate_bound(LETTERS, text)
    bits = bits_per_character(found, text)  # four characters: <PAD> is token 1
    assert bits == pytest.approx(tuple(value * 2 / 4 / math.log(2) for value in found))
    assert bits_per_character(found, text[:1, 3:]).mean == pytest.approx(found.mean / math.log(2))


@pytest.mark.parametrize(
    ("probs", "noise"),
    [  # much is left to the last step; something is left at the start
        ((0.1, 0.2, 0.3, 0.4), GeometricNoise(0.5, 20.0)),
        ((0.25, 0.25, 0.25, 0.25), GeometricNoise(1e-4, 1.0)),
    ],
)
def test_the_bound_holds_its_two_small_terms(probs, noise):
    model, text = UnigramModel(*probs, noise=noise), torch.tensor([[2, 3, 2, 1]])
    found = estimate_bound(model, text, 4000)
    assert found.low < model.nats(text)[0].item() < found.high < 1.1 * found.mean


def test_a_seed_gives_one_bound_whatever_the_type_of_the_tokens():
    text = torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    same = estimate_bound(LETTERS, text, 8, 0)
    assert estimate_bound(LETTERS, text.to(torch.uint8)) == same
    assert estimate_bound(LETTERS, text, seed=4) != same


@pytest.mark.parametrize(
    ("shape", "repeats"), [((4,), 8), ((0, 4), 8), ((2, 0), 8), ((2, 4), 1), ((1, 2, 4), 8)]
)
def test_a_bound_of_nothing_is_refused(shape, repeats):
    with pytest.raises(UserError, match="need tokens"):
        estimate_bound(LETTERS, torch.ones(shape, dtype=torch.long), repeats)
    assert estimate_bound(LETTERS, torch.ones(1, 1, dtype=torch.long), 2).mean > 0


# --- what breaks first


def test_first_flaw_is_found():
    frog = "Lily met a kind frog in the park. It was tired, so she gave it a soft bed. "
    frog += "Then the frog was not tired any more. Lily sang a new song."
    assert first_flaw(frog) is None
    for old, new, kind in (
        ("so she", "so he", "hero.he"),
        ("Lily sang", "Rose sang", "hero"),
        ("Lily sang", "Luky sang", "spelling"),
        ("the frog", "the toad", "animal"),
        ("a soft bed", "a hot bath", "need.gift"),
        ("not tired", "not bored", "need"),
        ("kind", "kinf", "spelling"),
        ("in the park", "in the farm", "spelling"),
        (" new song.", " new", "end"),
        ("song.", "song..", "end"),
    ):
        assert old in frog
        place, found = first_flaw(frog.replace(old, new))
        assert found == kind
        assert frog.index(old) <= place <= frog.index(old) + len(old)


def test_first_flaw_of_any_story_with_a_blot():
    for number, story in enumerate(stories.sample(50, seed=1)):
        at = 7 * number % len(story)
        assert first_flaw(story) is None
        assert first_flaw(story[:at] + "#" + story[at + 1 :]) == (at, "spelling")
        assert first_flaw(story[:at]) == (at, "end")
