# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.

import itertools
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core import stories
from ddlm_core.evaluation import (
    Estimate,
    bits_per_character,
    estimate_bound,
    mean_of,
    spread_times,
    wilson,
    word_entropy,
)
from ddlm_core.forward import perturb_batch
from ddlm_core.loss import denoiser_log_score, kappa
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.stories import STORIES, Grammar, Word, log_prob, options, parts_of, skeletons
from ddlm_core.tokenizer import CharacterLevelTokenizer


def test_mean_and_interval():
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    error = (14 / 3) ** 0.5 / 2  # squares of the distances from 3 add up to 14
    assert found == pytest.approx((3, 3 - 1.96 * error, 3 + 1.96 * error))
    assert all(type(value) is float for value in found)
    assert found.scaled(2) == pytest.approx(tuple(2 * value for value in found))
    assert f"{Estimate(1.0, 0.5, 1.5):.2f}" == "1.00 (0.50 to 1.50)"


class Letters:
    """A network that believes in independent letters, whatever it sees."""

    def __init__(self, *probs: float, noise: GeometricNoise | None = None) -> None:
        self.log_q = torch.tensor(probs, dtype=torch.float64).log()
        self.config = SimpleNamespace(vocab_size=len(probs), noise=noise or GeometricNoise())

    def denoise(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return self.log_q.expand(*x_t.shape, -1)

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar.double(), x_t)

    def nats(self, tokens: Tensor) -> Tensor:
        """Exact -log q of each window (N, L): (N,)."""
        return -self.log_q[tokens].sum(-1)


def draw(windows: int, length: int, g: torch.Generator) -> Tensor:
    """Windows of the two-letter language."""
    return (torch.rand(windows, length, generator=g) < 1 / 4).long()


@cache
def share_of_hits(q: float, windows: int, repeats: int, fixed: bool, runs: int = 200) -> float:
    """How often the interval holds the bound of the text (fixed), or that of the hard language."""
    g, model, hits = torch.Generator().manual_seed(1), Letters(q, 1 - q), 0
    language = -20 * (0.75 * math.log(q) + 0.25 * math.log(1 - q))
    text = draw(windows, 20, g)
    for run in range(runs):
        text = text if fixed else draw(windows, 1, g).repeat(1, 20)
        truth = model.nats(text).mean().item() if fixed else language
        found = estimate_bound(model, text, repeats, seed=run)
        hits += found.low <= truth <= found.high
    return hits / runs


def test_interval_hits_the_bound_of_a_text():
    assert 0.9 <= share_of_hits(0.6, windows=2, repeats=64, fixed=True) < 0.995


def test_interval_hits_the_bound_of_a_language():
    assert 0.9 <= share_of_hits(0.9, windows=60, repeats=8, fixed=False) < 0.995


def test_levels_are_spread_and_weights_keep_the_integral():
    noise, g = GeometricNoise(), torch.Generator().manual_seed(0)
    t, weight = spread_times(4096, noise, g)
    assert t.min() >= 0 and t.max() <= 1 and weight.max() < 2.001
    for power in (0, 1, 2):  # the integral of t^power over [0, 1]
        assert (weight * t**power).mean().item() == pytest.approx(1 / (1 + power), abs=1e-3)
    f = resample_probability(noise.sigma_bar(t))
    in_the_middle = ((f > 0.3) & (f < 0.7)).double().mean().item()
    assert in_the_middle > 0.2  # 0.4 of the half that is uniform in f
    assert (t < 0.2).double().mean().item() > 0.1  # 0.2 of the half that is uniform in t


def test_bound_counts_windows_and_characters():
    model, text = Letters(0.1, 0.2, 0.3, 0.4), torch.tensor([[2, 3, 2, 1], [3, 1, 1, 1]])
    found, exact = estimate_bound(model, text[:1], 4000), model.nats(text)[0].item()
    assert found.low < exact < found.high < 1.1 * exact
    found = estimate_bound(model, text)
    bits = bits_per_character(found, text)  # four characters: <PAD> is token 1
    assert bits.mean == pytest.approx(found.mean * 2 / 4 / math.log(2))
    for probs, noise in (  # much is left to the last step; something is left at the start
        ((0.1, 0.2, 0.3, 0.4), GeometricNoise(0.5, 20.0)),
        ((0.25, 0.25, 0.25, 0.25), GeometricNoise(1e-4, 1.0)),
    ):
        other = Letters(*probs, noise=noise)
        near = estimate_bound(other, text[:1], 4000)
        assert near.low < other.nats(text)[0].item() < near.high < 1.1 * near.mean
    assert estimate_bound(model, text.to(torch.uint8), seed=3) == estimate_bound(model, text, 8, 3)
    assert estimate_bound(model, text, seed=4) != estimate_bound(model, text, seed=3)
    for bad, repeats in ((text[0], 8), (text[:0], 8), (text, 1)):
        with pytest.raises(ValueError, match="need tokens"):
            estimate_bound(model, bad, repeats)


def test_wilson_ends_are_where_the_share_is_just_possible():
    for hits, n in ((0, 10), (3, 10), (16, 16), (94, 128)):
        share = hits / n
        found = wilson(hits, n)
        assert found.mean == share and 0 <= found.low <= share <= found.high <= 1
        for end in found[1:]:
            far = abs(share - end) - 1.96 * math.sqrt(end * (1 - end) / n)
            assert far == pytest.approx(0, abs=1e-9)


def test_wilson_hits_as_often_as_it_says():
    n, hit = 40, []
    for p in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        chances = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
        intervals = [wilson(h, n) for h in range(n + 1)]
        hit.append(sum(c for c, i in zip(chances, intervals) if i.low <= p <= i.high))
    assert min(hit) > 0.92 and 0.94 < sum(hit) / len(hit) < 0.97


def flaws(parts: tuple, text: str, at: int, bound: dict) -> Iterator[tuple[int, int, str]]:
    """Where each reading of ``text`` from ``at`` on gives up: (explained up to, flaw at, kind)."""
    if not parts:
        yield at, at, "end"
        return
    variable, _, form = parts[0].strip("{}").partition(".")
    for new, wanted, drawn in options(parts[0], STORIES, bound):
        place = at + len(os.path.commonprefix([text[at:], wanted]))
        if place == at + len(wanted):
            yield from flaws(new + parts[1:], text, place, bound | drawn)
            continue
        yield place, place, "end" if place == len(text) else "spelling"
        if variable in bound:
            others = [word[form] for word in STORIES.variables[variable]]
            ends = [at + len(other) for other in others if text.startswith(other, at)]
            yield from ((end, place, parts[0].strip("{}")) for end in ends)


def first_flaw(text: str) -> tuple[int, str] | None:
    """Place and kind of the first flaw, by the reading that explains most; None for a story."""
    if log_prob(text) > -math.inf:
        return None
    plots = [parts_of(plot) for plot in STORIES.plots]
    return max(flaw for parts in plots for flaw in flaws(parts, text, 0, {}))[1:]


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


def fill(skeleton: str, words: dict[str, Word]) -> str:
    """The text of a skeleton with these words in its fields."""
    cut = (part.strip("{}").partition(".") for part in parts_of(skeleton))
    return "".join(words[v][form] if v in words else v + dot + form for v, dot, form in cut)


def templates(grammar: Grammar) -> Iterator[tuple[str, float, dict[str, list[Word]]]]:
    """Skeletons, split until all words of a variable have equally many letters in all forms."""
    for skeleton, p, _ in skeletons(grammar):
        kinds = []  # for each variable: its words, sorted by how long their forms are
        variables = sorted(set(re.findall(r"\{(\w+)", skeleton)))
        for variable in variables:
            groups: dict[tuple, list[Word]] = {}
            for word in grammar.variables[variable]:
                groups.setdefault(tuple(map(len, word.values())), []).append(word)
            kinds.append(groups.values())
        for chosen in itertools.product(*kinds):
            words = dict(zip(variables, chosen))
            share = math.prod(len(ws) / len(grammar.variables[v]) for v, ws in words.items())
            yield skeleton, p * share, words


class PerfectNetwork:
    """Answers by Bayes' rule over all stories of a grammar; to be used like a trained network."""

    def __init__(self, grammar: Grammar, tokenizer: CharacterLevelTokenizer, length: int) -> None:
        self.size, slots = tokenizer.vocab_size, {}
        self.config = SimpleNamespace(vocab_size=self.size, noise=GeometricNoise())
        log_p, fixed, uses = [], [], []
        for skeleton, p, words in templates(grammar):
            first = {variable: choice[0] for variable, choice in words.items()}
            base, used = tokenizer.pad(fill(skeleton, first), length), []
            for v, choice in words.items():
                told = [tokenizer.pad(fill(skeleton, first | {v: w}), length) for w in choice]
                told = torch.stack(told)  # (n, L): the text with each word of this variable
                places = (told != told[0]).any(0).nonzero()[:, 0]
                slot = tuple(places.tolist()), tuple(map(tuple, told[:, places].tolist()))
                used.append(slots.setdefault(slot, len(slots)))  # templates share most slots
                base = base.index_fill(0, places, -1)
            log_p.append(math.log(p))
            fixed.append(base)
            uses.append(one_hot(torch.tensor(used), 1000).sum(0))
        self.log_p = torch.tensor(log_p, dtype=torch.float64)  # (T,)
        self.fixed = one_hot(torch.stack(fixed) + 1, self.size + 1)[..., 1:].flatten(1).float()
        self.uses = torch.stack(uses)[:, : len(slots)].double()  # (T, slots)
        self.slots = [tuple(torch.tensor(part, dtype=torch.long) for part in s) for s in slots]

    def denoise(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        factor = 1 + kappa(sigma_bar.double(), self.size)[:, None]  # (B, 1)
        same = one_hot(x_t, self.size).flatten(1).float() @ self.fixed.T  # (B, T): m_fixed
        log_weights = [
            factor.log() * (x_t[:, None, places] == told).sum(-1) for places, told in self.slots
        ]  # (B, n) for each slot
        sums = [w.logsumexp(1) - math.log(w.shape[1]) for w in log_weights]
        weight = self.log_p + factor.log() * same + torch.stack(sums, 1) @ self.uses.T
        weight = weight.softmax(1)  # (B, T): p(template | x_t)
        p = (weight.float() @ self.fixed).view(*x_t.shape, self.size)  # (B, L, V)
        in_slot = (weight @ self.uses).T  # (slots, B)
        for (places, told), w, share in zip(self.slots, log_weights, in_slot):
            words = (share[:, None] * w.softmax(1)).float()  # (B, n)
            letters = one_hot(told, self.size).float()  # (n, places, V)
            p[:, places] += torch.einsum("bn,npv->bpv", words, letters)
        heard = torch.where(one_hot(x_t, self.size) > 0, factor[..., None], 1.0)  # (B, L, V)
        q = p / heard.float()
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar, x_t)


def small_grammar() -> Grammar:
    """Stories short enough to list; a word comes twice, and *he* and *she* differ in length."""
    who = ({"": "Al", "he": "he"}, {"": "Bo", "he": "he"}, {"": "Cy", "he": "she"})
    return Grammar(("{who} [ran|sat]. {who.he} saw {x}.", "{x} and {who}."), {"who": who, "x": who})


def test_perfect_network_adds_up_all_stories():
    grammar, tokenizer = small_grammar(), CharacterLevelTokenizer()
    perfect, told = PerfectNetwork(grammar, tokenizer, 24), {}
    for skeleton, p, n in skeletons(grammar):
        for who, x in itertools.product(grammar.variables["who"], repeat=2):
            told[fill(skeleton, {"who": who, "x": x})] = p / n
    assert sum(told.values()) == pytest.approx(1)
    texts = torch.stack([tokenizer.pad(text, 24) for text in told])
    p = torch.tensor([*told.values()], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    sigma_bar = torch.tensor([0.1, 0.7, 2.0, 4.0])
    x_t = perturb_batch(texts[[3, 11, 20, 25]], sigma_bar, 106, None, g)
    found = perfect.denoise(x_t, sigma_bar).exp().double()
    for row in range(4):
        factor = 1 + kappa(sigma_bar[row].double(), 106)
        seen = torch.where(x_t[row] == texts, factor, 1.0)  # (stories, L)
        for place in range(24):
            others = seen.prod(1) / seen[:, place] * p  # without its own letter
            q = torch.zeros_like(found[row, place]).index_add(0, texts[:, place], others)
            torch.testing.assert_close(found[row, place], q / q.sum(), rtol=1e-3, atol=1e-5)


def test_bound_of_the_perfect_network_is_the_entropy():
    tokenizer = CharacterLevelTokenizer()
    perfect = PerfectNetwork(stories.STORIES, tokenizer, stories.MAX_LENGTH)
    texts = stories.sample(64, seed=5)
    windows = torch.stack([tokenizer.pad(text, stories.MAX_LENGTH) for text in texts])
    exact = -sum(map(stories.log_prob, texts)) / 64
    found = estimate_bound(perfect, windows, repeats=32)
    assert found.low < exact < found.high < 1.1 * exact


def test_word_entropy():
    assert word_entropy(["a b", "c d"]) == pytest.approx(math.log(4))
    assert word_entropy(["a a", "a"]) == pytest.approx(0, abs=1e-6)
    assert word_entropy(["a b", "a c"]) == pytest.approx(1.5 * math.log(2))
