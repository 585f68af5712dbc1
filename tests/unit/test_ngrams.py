"""The n-grams of `benchmarks/ngrams.py`: distributions, and texts that follow them."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture
def ngrams(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from ngrams import NGrams

    return NGrams


@pytest.mark.parametrize("start", [b"", bytes([3])])
def test_every_order_is_a_distribution(ngrams, start):
    model = ngrams([bytes([0, 1, 2, 0]), bytes([0, 1, 1])], 4, 3, start)
    every = [model.nats(bytes(text)) for text in itertools.product(range(3), repeat=4)]
    for order in zip(*every, strict=True):
        assert sum(math.exp(-nats) for nats in order) == pytest.approx(1)


def test_weights_are_those_of_witten_and_bell(ngrams):
    model = ngrams([bytes([0, 1, 0, 2])], 2, 3)
    p_0 = (2 + 3 / 3) / (4 + 3)  # seen 4 times, 3 kinds
    p_1 = (1 + 3 / 3) / (4 + 3)
    after_0 = (1 + 2 * p_1) / (2 + 2)
    assert model.nats(bytes([0, 1])) == pytest.approx(
        [-math.log(p_0 * p_1), -math.log(p_0 * after_0)]
    )


def test_a_beginning_is_known(ngrams):
    text = bytes([0, 1, 2, 2, 2, 2, 2])
    plain, marked = ngrams([text] * 9, 3, 3), ngrams([text] * 9, 3, 3, bytes([3]))
    assert marked.nats(text)[0] == pytest.approx(plain.nats(text)[0])
    assert marked.nats(text)[2] < plain.nats(text)[2] - 1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_texts_follow_the_distribution(ngrams, order):
    model, rng = ngrams([bytes([0, 1, 2]), bytes([0, 0, 1])], 3, 3, bytes([3])), random.Random(0)
    seen, n = Counter(model.write(order, 2, rng) for _ in range(4000)), 4000
    for text in itertools.product(range(3), repeat=2):
        p = math.exp(-model.nats(bytes(text))[order - 1])
        assert seen[bytes(text)] / n == pytest.approx(p, abs=4 * math.sqrt(p / n))
