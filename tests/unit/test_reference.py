"""The networks that need no training, against an enumeration of all stories."""

import itertools

import pytest
import torch

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import kappa
from ddlm_core.noise import GeometricNoise
from ddlm_core.reference import BayesDenoiser, UnigramModel
from ddlm_core.stories import Grammar
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import CharacterLevelTokenizer


def small_grammar() -> Grammar:
    """Stories short enough to list; a word comes twice, and *he* and *she* differ in length."""
    who = ({"": "Al", "he": "he"}, {"": "Bo", "he": "he"}, {"": "Cy", "he": "she"})
    return Grammar(("{who} [ran|sat]. {who.he} saw {x}.", "{x} and {who}."), {"who": who, "x": who})


def told(who: dict, x: dict) -> list[tuple[str, float]]:
    """The stories of the small grammar about two words, with their probabilities, written out."""
    one = [f"{who['']} {did}. {who['he']} saw {x['']}." for did in ("ran", "sat")]
    return [(text, 1 / 4 / 9) for text in one] + [(f"{x['']} and {who['']}.", 1 / 2 / 9)]


def test_the_bayes_denoiser_adds_up_all_stories():
    grammar, tokenizer = small_grammar(), CharacterLevelTokenizer()
    words = grammar.variables["who"]
    all_told = dict(pair for two in itertools.product(words, repeat=2) for pair in told(*two))
    assert len(all_told) == 27 and sum(all_told.values()) == pytest.approx(1)
    texts = torch.stack([tokenizer.pad(text, 24) for text in all_told])
    p = torch.tensor([*all_told.values()], dtype=torch.float64)
    sigma_bar = torch.tensor([0.1, 0.7, 2.0, 4.0])
    g = torch.Generator().manual_seed(0)
    x_t = perturb_batch(texts[[3, 11, 20, 25]], sigma_bar, 106, generator=g)
    perfect = BayesDenoiser(grammar, tokenizer, 24)
    found = perfect.denoise(x_t, sigma_bar).exp().double()
    for row in range(4):
        factor = 1 + kappa(sigma_bar[row].double(), 106)
        seen = torch.where(x_t[row] == texts, factor, 1.0)  # (stories, L)
        for place in range(24):
            others = seen.prod(1) / seen[:, place] * p  # without its own letter
            q = torch.zeros_like(found[row, place]).index_add(0, texts[:, place], others)
            torch.testing.assert_close(found[row, place], q / q.sum(), rtol=1e-3, atol=1e-5)


def test_reference_networks_are_models_like_others():
    perfect = BayesDenoiser(small_grammar(), CharacterLevelTokenizer(), 24)
    for model in (UnigramModel(0.1, 0.2, 0.3, 0.4), perfect):
        x_t, sigma_bar = torch.zeros(2, 24, dtype=torch.long), torch.tensor([0.5, 2.0])
        score = model(x_t, sigma_bar)
        assert score.shape == (2, 24, model.config.vocab_size)
        assert not score[..., 0].any() and score.isfinite().all()  # 0 where nothing changes
    assert UnigramModel(0.5, 0.5).config.noise == GeometricNoise()
    with pytest.raises(UserError, match="condition_mask"):
        perfect(x_t, sigma_bar, torch.ones_like(x_t, dtype=torch.bool))


def test_unigram_letters_are_counted_and_scored_in_float64():
    model = UnigramModel(0.1, 0.2, 0.7)
    expected = -torch.tensor([0.1 * 0.1 * 0.7, 0.2 * 0.7 * 0.7], dtype=torch.float64).log()
    torch.testing.assert_close(model.nats(torch.tensor([[0, 0, 2], [1, 2, 2]])), expected)
    sigma_bar = torch.tensor([0.1])
    k = 3 / torch.expm1(sigma_bar.double())  # of float32 noise, but not in float32
    found = model(torch.tensor([[2]]), sigma_bar)[0, 0, 0]
    torch.testing.assert_close(found, ((1 + k * 0.1) / (1 + k * 0.7)).log()[0], rtol=1e-12, atol=0)
