"""Engineering tests of `ddlm_core.evaluation`: formulas by hand, edges, and refusals."""

import math

import pytest
import torch

from ddlm_core import evaluation, stories
from ddlm_core.evaluation import (
    Estimate,
    bits_per_character,
    estimate_bound,
    first_flaw,
    mean_of,
    spread_times,
    sweep,
    wilson,
    word_entropy,
)
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import UnigramModel
from ddlm_core.support.errors import UserError
from ddlm_core.tiny_world import three_letter_world

LETTERS = UnigramModel(0.1, 0.2, 0.3, 0.4)


# --- means and shares


def test_mean_and_interval():
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]))
    error = (50 / 4) ** 0.5 / 5**0.5  # squares of the distances from 4 add up to 50
    assert found == pytest.approx((4, 4 - 2.776 * error, 4 + 2.776 * error))
    assert all(type(value) is float for value in found)
    assert mean_of(torch.tensor([1.0, 2.0]), 0.5) == pytest.approx((1.5, 0.52, 2.48))
    assert mean_of(torch.tensor([1.0, 3.0]), 0.0) == (2.0, 2.0, 2.0)


def test_the_factor_is_that_of_student():
    """The density between minus and plus the factor, by Simpson's rule: 95 %."""
    for n in (2, 3, 4, 5, 6, 7, 8, 16, 17, 50, 1000):
        values, freedom = torch.tensor([0.0, 1.0] * n)[:n], n - 1
        found = mean_of(values)
        factor = (found.high - found.mean) / (values.std().item() / n**0.5)
        scale = math.lgamma(n / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
        x = torch.linspace(-factor, factor, 2001, dtype=torch.float64)
        density = torch.exp(scale - n / 2 * torch.log1p(x**2 / freedom))
        weights = torch.tensor([1.0, *[4.0, 2.0] * 999, 4.0, 1.0], dtype=torch.float64)
        inside = (density * weights).sum().item() * 2 * factor / 2000 / 3
        assert inside == pytest.approx(0.95, abs=2e-4)


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
    assert t.min() >= 0 and t.max() <= 1 and weight.max() < 4.001
    for power in (0, 1, 2):  # the integral of t^power over [0, 1]
        assert (weight * t**power).mean().item() == pytest.approx(1 / (1 + power), abs=1e-3)
    f0, f1 = (-math.expm1(-s) for s in (1e-3, 6.0))
    for end in (0.1, 0.3, 0.5, 0.7, 0.9):
        fraction = -math.expm1(-(1e-3 ** (1 - end) * 6.0**end))
        rise = (fraction - f0) * (1 + fraction + f0) / (f1 - f0) / (1 + f1 + f0)
        must = (end + 3 * rise) / 4
        assert (t <= end).double().mean().item() == pytest.approx(must, abs=1e-3)
    again, _ = spread_times(count, noise, torch.Generator().manual_seed(1))
    assert not torch.equal(t, again)


# --- the bound


def measured(monkeypatch, tokens, repeats, of):
    """An estimate from made-up sweeps, and what each was asked: windows, levels."""
    asked, values = [], iter([3.0, 5.0, 4.0, *[4.0, 6.0] * 7])

    def sweep(model, x_0, levels, generator):
        asked.append((x_0, levels))
        return torch.tensor(next(values), dtype=torch.float64)

    monkeypatch.setattr(evaluation, "sweep", sweep)
    return estimate_bound(LETTERS, tokens, repeats, of=of), asked


@pytest.mark.parametrize(
    ("repeats", "sweeps", "levels"), [(2, 2, 1), (3, 3, 1), (16, 16, 1), (17, 16, 2), (256, 16, 16)]
)
def test_every_sweep_of_a_text_reads_all_of_it(monkeypatch, repeats, sweeps, levels):
    tokens = torch.arange(12).view(3, 4)
    found, asked = measured(monkeypatch, tokens, repeats, "text")
    assert len(asked) == sweeps
    assert all(torch.equal(x_0, tokens) and asked_for == levels for x_0, asked_for in asked)
    values = torch.tensor([3.0, 5.0, 4.0, *[4.0, 6.0] * 7])[:sweeps]
    assert found == pytest.approx(mean_of(values))


@pytest.mark.parametrize(("windows", "sweeps"), [(2, 2), (5, 5), (16, 16), (37, 16)])
def test_the_sweeps_of_a_source_share_its_windows(monkeypatch, windows, sweeps):
    tokens = torch.arange(2 * windows).view(-1, 2)
    found, asked = measured(monkeypatch, tokens, 3, "source")
    assert len(asked) == sweeps and {levels for _, levels in asked} == {3}
    assert torch.equal(torch.cat([x_0 for x_0, _ in asked]), tokens)
    sizes = [len(x_0) for x_0, _ in asked]
    assert max(sizes) - min(sizes) <= 1
    assert found == pytest.approx(mean_of(torch.tensor([3.0, 5.0, 4.0, *[4.0, 6.0] * 7])[:sweeps]))


def test_a_sweep_deals_its_levels_out_evenly(monkeypatch):
    rows = []

    def nats(model, x_0, noise, generator, times):
        rows.append(x_0[:, 0])
        assert times is spread_times and noise is LETTERS.config.noise
        return torch.arange(len(x_0), dtype=torch.float32)

    monkeypatch.setattr(evaluation, "window_nats", nats)
    tokens, g = torch.arange(20)[:, None], torch.Generator().manual_seed(0)
    for _ in range(2):
        found = sweep(LETTERS, tokens, 3, g)
        assert found == 29.5 and found.dtype == torch.float64
    for order in (row.view(3, 20) for row in rows):
        assert torch.equal(order, order[:1].expand(3, 20))
        assert torch.equal(order[0].sort()[0], tokens[:, 0])
    assert not torch.equal(rows[0], rows[1])


def test_a_sweep_is_unbiased_and_carries_no_gradient():
    """Three words of an enumerated world, each with its exact surprisal."""
    world, g = three_letter_world(), torch.Generator().manual_seed(0)
    world.config.noise = GeometricNoise()
    world.probs.requires_grad_()
    words = torch.tensor([1, 4, 6])
    values = torch.stack([sweep(world, world.words[words], 4, g) for _ in range(2000)])
    assert values.shape == (2000,) and not values.requires_grad
    error = values.std().item() / 2000**0.5
    truth = -world.probs.detach().log()[words].mean().item()
    assert values.mean().item() == pytest.approx(truth, abs=3 * error) and error < 0.01 * truth


def test_four_sweeps_cover_as_often_as_sixteen():
    """With 1.96 in place of Student's factor, four would cover 85 %."""
    world, hits = three_letter_world(), 0
    world.config.noise = GeometricNoise()
    words = torch.arange(18) % 9
    truth = -world.probs.log().mean().item()
    for seed in range(400):
        found = estimate_bound(world, world.words[words], 4, seed)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 400 <= 0.97


def test_bound_counts_windows_and_characters():
    text = torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    found, exact = estimate_bound(LETTERS, text[:1], 4000), LETTERS.nats(text)[0].item()
    assert exact == pytest.approx(-math.log(0.3 * 0.4 * 0.3 * 0.2))
    assert found.mean == pytest.approx(exact, rel=1e-3) and found.high - found.low < 0.01
    found = estimate_bound(LETTERS, text)
    bits = bits_per_character(found, text)  # four characters: <PAD> is token 1
    assert [type(value) for value in bits] == [float, float, float]
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
    assert found.mean == pytest.approx(model.nats(text)[0].item(), rel=1e-3)


def test_a_seed_gives_one_bound_whatever_the_type_of_the_tokens():
    text = torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    same = estimate_bound(LETTERS, text, 8, 0)
    assert estimate_bound(LETTERS, text.to(torch.uint8)) == same
    assert estimate_bound(LETTERS, text, seed=4) != same


@pytest.mark.parametrize(
    ("shape", "repeats", "of"),
    [
        ((4,), 8, "text"),
        ((0, 4), 8, "text"),
        ((2, 0), 8, "text"),
        ((2, 4), 1, "text"),
        ((1, 2, 4), 8, "text"),
        ((1, 4), 8, "source"),
        ((0, 4), 8, "source"),
        ((2, 4), 0, "source"),
        ((2, 4), 8, "book"),
    ],
)
def test_a_bound_of_nothing_is_refused(shape, repeats, of):
    with pytest.raises(UserError, match="need tokens"):
        estimate_bound(LETTERS, torch.ones(shape, dtype=torch.long), repeats, of=of)
    assert estimate_bound(LETTERS, torch.ones(1, 1, dtype=torch.long), 2).mean > 0
    assert estimate_bound(LETTERS, torch.ones(2, 1, dtype=torch.long), 1, of="source").mean > 0


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
