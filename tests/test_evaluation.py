# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.

import math

import torch
from torch import Tensor

from ddlm_core import stories
from ddlm_core.evaluation import estimate_bound, wilson
from ddlm_core.reference import BayesDenoiser, UnigramModel
from ddlm_core.tokenizer import CharacterLevelTokenizer


def draw(windows: int, length: int, g: torch.Generator) -> Tensor:
    """Windows (N, L) of the two-letter language: 1 is *b*, with probability 1/4."""
    return (torch.rand(windows, length, generator=g) < 1 / 4).long()


def coverage(q: float, windows: int, repeats: int, fixed: bool, runs: int = 200) -> float:
    """How often the interval holds the bound of the text (fixed), or that of the hard language."""
    g, model, covered = torch.Generator().manual_seed(1), UnigramModel(q, 1 - q), 0
    language = -20 * (0.75 * math.log(q) + 0.25 * math.log(1 - q))
    text = draw(windows, 20, g)
    for run in range(runs):
        text = text if fixed else draw(windows, 1, g).repeat(1, 20)
        truth = model.nats(text).mean().item() if fixed else language
        found = estimate_bound(model, text, repeats, seed=run)
        covered += found.low <= truth <= found.high
    return covered / runs


def test_interval_covers_the_bound_of_a_text():
    assert 0.9 <= coverage(0.6, windows=2, repeats=64, fixed=True) < 0.995


def test_interval_covers_the_bound_of_a_language():
    assert 0.9 <= coverage(0.9, windows=60, repeats=8, fixed=False) < 0.995


def test_bound_of_the_perfect_network_is_the_entropy():
    tokenizer = CharacterLevelTokenizer()
    perfect = BayesDenoiser(stories.STORIES, tokenizer, stories.MAX_LENGTH)
    texts = stories.sample(64, seed=5)
    windows = torch.stack([tokenizer.pad(text, stories.MAX_LENGTH) for text in texts])
    exact = -sum(map(stories.log_prob, texts)) / 64
    found = estimate_bound(perfect, windows, repeats=32)
    assert found.low < exact < found.high < 1.1 * exact


def test_wilson_covers_as_often_as_it_says():
    n, hit = 40, []
    for p in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        chances = [math.comb(n, h) * p**h * (1 - p) ** (n - h) for h in range(n + 1)]
        intervals = [wilson(h, n) for h in range(n + 1)]
        hit.append(sum(c for c, i in zip(chances, intervals) if i.low <= p <= i.high))
    assert min(hit) > 0.92 and 0.94 < sum(hit) / len(hit) < 0.97
