"""Languages small enough to list: what chapters and tests compare with, by counting alone.

Nothing here knows a formula of a chapter, and nothing in the package uses it.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot


class World:
    """All N = V^L texts with their probabilities, and the true answers of a network.

    Made from the probabilities (N,), V and L. The noise is uniform; S is a number of noise levels.
    """

    def __init__(self, p_0: Tensor, vocab_size: int, length: int) -> None:
        self.p_0, self.vocab_size, self.length = p_0, vocab_size, length
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.place = vocab_size ** torch.arange(length - 1, -1, -1)
        number = torch.arange(vocab_size**length)
        self.texts = number[:, None] // self.place % vocab_size  # (N, L)
        change = (torch.arange(vocab_size) - self.texts[..., None]) * self.place[:, None]
        self.swapped = number[:, None, None] + change  # (N, L, V): the text with letter i := y

    def letter_kernel(self, sigma_bar: Tensor) -> Tensor:
        """p(letter i of x_t | letter i of x_0) for noise (S,): shape (S, x_0, x_t, L)."""
        decay = torch.exp(-sigma_bar.double())[:, None, None, None]
        same = self.texts[:, None] == self.texts
        return decay * same + (1 - decay) / self.vocab_size

    def joint(self, sigma_bar: Tensor) -> Tensor:
        """p(x_0, x_t): shape (S, N, N)."""
        return self.p_0[:, None] * self.letter_kernel(sigma_bar).prod(-1)

    def log_score(self, sigma_bar: Tensor) -> Tensor:
        """The true log-score of every text: shape (S, N, L, V)."""
        log_p = self.joint(sigma_bar).sum(1).log()
        return log_p[:, self.swapped] - log_p[:, :, None, None]

    def log_q(self, sigma_bar: Tensor) -> Tensor:
        """Log p(letter i of x_0 | all other letters of x_t): shape (S, N, L, V)."""
        others = self.joint(sigma_bar)[..., None] / self.letter_kernel(sigma_bar)
        letters = one_hot(self.texts, self.vocab_size).double()
        q = torch.einsum("sabi,aiy->sbiy", others, letters)
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Any = None) -> Tensor:
        """What a perfect network says: log-scores (B, L, V) for texts (B, L) and noise (B,)."""
        return self.log_score(sigma_bar)[range(len(x_t)), self.number(x_t)]

    def denoise(self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Any = None) -> Tensor:
        """The true log q, (B, L, V)."""
        return self.log_q(sigma_bar)[range(len(x_t)), self.number(x_t)]

    def number(self, texts: Tensor) -> Tensor:
        """The place of texts (…, L) in the list: (…,)."""
        return (texts * self.place).sum(-1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random clean texts: (count, L)."""
        return self.texts[torch.multinomial(self.p_0, count, True, generator=generator)]

    def entropy(self) -> float:
        """In nats per text."""
        return -torch.special.xlogy(self.p_0, self.p_0).sum().item()

    def information(self, sigma_bar: float) -> float:
        """Mutual information between x_0 and x_t at one noise, in nats."""
        joint = self.joint(torch.tensor([sigma_bar], dtype=torch.float64))[0]
        apart = joint.sum(1, keepdim=True) * joint.sum(0)
        return torch.where(joint > 0, joint * (joint / apart).log(), 0.0).sum().item()

    def expected_loss(
        self, loss: Callable, log_score: Tensor, sigma_bar: Tensor, power: int = 1
    ) -> Tensor:
        """Exact mean over x_0 and x_t of ``loss(log_score, sigma_bar, x_t, x_0)`` of a text.

        For scores (S, N, L, V) and noise (S,): (S,). With power 2, the mean of its square.
        """
        n = len(self.texts)
        x_0, x_t = self.texts.repeat_interleave(n, 0), self.texts.repeat(n, 1)  # all pairs
        losses = [
            loss(scores.repeat(n, 1, 1), noise, x_t, x_0).sum(-1).view(n, n)
            for scores, noise in zip(log_score, sigma_bar, strict=True)
        ]
        return (self.joint(sigma_bar) * torch.stack(losses) ** power).sum((1, 2))

    def written(self, step: Callable, levels: Tensor, start: Tensor) -> Tensor:
        """Exact probabilities (N,) of what a sampler writes through noise levels, if it starts so.

        ``step(x_t, now, after)`` gives its probabilities (N, L, V) for all texts and noises (N,).
        """
        probs, n = start, len(self.texts)
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            positions = step(self.texts, now.expand(n), after.expand(n))  # (N, L, V)
            probs = probs @ positions[:, range(self.length), self.texts].prod(-1)
        return probs


class MaskedWorld(World):
    """A world whose last state is a mask, which noise puts over letters and which no word contains.

    Made from a table of probabilities, (V - 1, V - 1, …): one axis for each letter.
    """

    def __init__(self, table: Tensor, graph: Any = None) -> None:
        padded = torch.nn.functional.pad(table, (0, 1) * table.ndim)  # no word has a mask
        super().__init__(padded.flatten(), len(padded), table.ndim)
        self.graph = graph  # what turns log q into scores, where the world is called

    def letter_kernel(self, sigma_bar: Tensor) -> Tensor:
        """p(letter i of x_t | letter i of x_0) for noise (S,): shape (S, x_0, x_t, L)."""
        decay = torch.exp(-sigma_bar.double())[:, None, None, None]
        same = self.texts[:, None] == self.texts
        return decay * same + (1 - decay) * (self.texts == self.vocab_size - 1)

    def denoise(self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Any = None) -> Tensor:
        """The true log q, (B, L, V): the words that fit the open letters at all other places."""
        q, seen = [], x_t[:, None]  # (B, 1, L)
        fits = (seen == self.texts) | (seen == self.vocab_size - 1)  # (B, N, L)
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            weight = self.p_0 * fits[:, :, others].all(-1)  # (B, N)
            q.append(weight @ one_hot(self.texts[:, i], self.vocab_size).double())  # (B, V)
        q = torch.stack(q, 1)
        return (q / q.sum(-1, keepdim=True)).log()

    def log_q(self, sigma_bar: Tensor) -> Tensor:
        """The true log q of every text: (S, N, L, V), the same at all noise levels."""
        return self.denoise(self.texts, sigma_bar).expand(len(sigma_bar), -1, -1, -1)

    def __call__(self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Any = None) -> Tensor:
        """Log-scores (B, L, V) by the graph."""
        return self.graph.log_score(self.denoise(x_t, sigma_bar), sigma_bar, x_t)


def small_worlds() -> list[World]:
    """Three worlds with random probabilities, V and L being 2 and 3, 3 and 2, 5 and 1."""
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (3, 2), (5, 1)]  # (V, L)
    tables = [torch.randn(v**n, generator=g, dtype=torch.float64).softmax(0) for v, n in shapes]
    return [World(p, v, n) for p, (v, n) in zip(tables, shapes, strict=True)]


def three_letter_words(graph: Any = None) -> MaskedWorld:
    """Words of two letters from three: ab 0.4, bc 0.3, ca 0.2, the six others share 0.1."""
    table = torch.full((3, 3), 0.1 / 6, dtype=torch.float64)
    table[0, 1], table[1, 2], table[2, 0] = 0.4, 0.3, 0.2
    return MaskedWorld(table, graph)


def noise_nodes(sigma_min: float, sigma_max: float, count: int = 100) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes in log noise, and their weights for an integral over the noise."""
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(count))
    half = math.log(sigma_max / sigma_min) / 2
    sigma_bar = sigma_min * torch.exp(half * (1 + nodes))
    return sigma_bar, half * weights * sigma_bar
