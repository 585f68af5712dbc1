# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.

import math

import torch
from torch import Tensor

from ddlm_core import stories
from ddlm_core.evaluation import estimate_bound, wilson
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import BayesDenoiser
from ddlm_core.tiny_world import three_letter_world
from ddlm_core.tokenizer import CharacterLevelTokenizer


def draw(windows: int, length: int, g: torch.Generator) -> Tensor:
    """Windows (N, L) of the two-letter language: 1 is *b*, with probability 1/4."""
    return (torch.rand(windows, length, generator=g) < 1 / 4).long()


def coverage(windows: int, of: str, runs: int = 400) -> float:
    """How often the interval holds the surprisal of some words, or the entropy of their language."""
    world, g, covered = three_letter_world(), torch.Generator().manual_seed(1), 0
    world.config.noise, surprisal = GeometricNoise(), -world.probs.log()
    words = torch.multinomial(world.probs, windows, replacement=True, generator=g)
    for run in range(runs):
        truth = surprisal[words].mean() if of == "text" else world.probs @ surprisal
        found = estimate_bound(world, world.words[words], seed=run, of=of)
        covered += (found.low <= truth <= found.high).item()
        if of == "source":
            words = torch.multinomial(world.probs, windows, replacement=True, generator=g)
    return covered / runs


def test_interval_covers_the_bound_of_a_text():
    assert 0.93 <= coverage(32, "text") <= 0.97


def test_interval_covers_the_bound_of_a_source():
    assert 0.93 <= coverage(64, "source") <= 0.97


def test_bound_of_the_perfect_network_is_the_entropy():
    tokenizer = CharacterLevelTokenizer()
    perfect = BayesDenoiser(stories.STORIES, tokenizer, stories.MAX_LENGTH)
    texts = stories.sample(64, seed=5)
    windows = torch.stack([tokenizer.pad(text, stories.MAX_LENGTH) for text in texts])
    exact = -sum(map(stories.log_prob, texts)) / 64
    found = estimate_bound(perfect, windows, repeats=16)
    assert found.low < exact < found.high < 1.1 * exact


def test_wilson_covers_as_often_as_it_says():
    n, hit = 40, []
    for p in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        chances = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
        intervals = [wilson(h, n) for h in range(n + 1)]
        hit.append(sum(c for c, i in zip(chances, intervals) if i.low <= p <= i.high))
    assert min(hit) > 0.92 and 0.94 < sum(hit) / len(hit) < 0.97
