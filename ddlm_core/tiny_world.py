# Generated from notebooks/07_sampler.py by tools/export.py: edit that, then run `make export`.
"""Languages so small that all about them can be computed: the truth to hold a sampler against."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score
from ddlm_core.noise import transition_matrix
from ddlm_core.reverse import churned_probs

__all__ = [
    "TinyWorld",
    "three_letter_world",
    "two_letter_world",
    "product_of_positions",
    "word_kernel",
    "true_reverse",
    "written",
    "total_variation",
]


class TinyWorld:
    """A language given by the probabilities of all its words, and its Bayes-optimal denoiser."""

    def __init__(self, probs: Tensor) -> None:  # (V, V, …): one axis for each letter of a word
        self.vocab_size, self.length = probs.shape[0], probs.ndim
        self.config = SimpleNamespace(vocab_size=self.vocab_size)
        letters = torch.arange(self.vocab_size)
        words = torch.cartesian_prod(*[letters] * self.length)
        self.words = words.view(-1, self.length)  # (W, L), W = V**L
        self.probs = probs.flatten()  # (W,), in the order of `words`

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""The exact $\log q$, float64 (B, L, V)."""
        seen = transition(x_t, sigma_bar.double(), self.vocab_size)  # (B, L, V): p(x_t | letter)
        if condition_mask is not None:
            certain = one_hot(x_t, self.vocab_size).double()
            seen = torch.where(condition_mask[..., None], certain, seen)
        q = []
        for i in range(self.length):
            others = [j for j in range(self.length) if j != i]
            weight = self.probs * seen[:, others, self.words[:, others]].prod(-1)  # (B, W)
            q.append(weight @ one_hot(self.words[:, i], self.vocab_size).double())  # (B, V)
        q = torch.stack(q, 1)
        return (q / q.sum(-1, keepdim=True)).log()

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The exact log-scores, float64 (B, L, V)."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return denoiser_log_score(log_q, sigma_bar, x_t)


def three_letter_world() -> TinyWorld:
    """Three letters; words of two."""
    probs = torch.full((3, 3), 0.1 / 6, dtype=torch.float64)
    probs[0, 1], probs[1, 2], probs[2, 0] = 0.4, 0.3, 0.2  # ab, bc, ca
    return TinyWorld(probs)


def two_letter_world() -> TinyWorld:
    """Two letters; words of three."""
    probs = torch.tensor([0.30, 0.05, 0.10, 0.05, 0.05, 0.15, 0.05, 0.25], dtype=torch.float64)
    return TinyWorld(probs.reshape(2, 2, 2))


def product_of_positions(world: TinyWorld, probs: Tensor) -> Tensor:
    """(B, L, V) to (B, W): the probability of each word if its letters are drawn independently."""
    return probs[:, range(world.length), world.words].prod(-1)


def word_kernel(world: TinyWorld, sigma_bar: Tensor) -> Tensor:
    """(W, W): probabilities that one word has turned into another after a total noise."""
    letter = transition_matrix(sigma_bar, world.vocab_size)  # (V, V)
    return letter[world.words[:, None], world.words[None]].prod(-1)


def true_reverse(world: TinyWorld, sigma_bar_t: Tensor, sigma_bar_s: Tensor) -> Tensor:
    """(W, W): p(x_s | x_t) for whole words by Bayes' rule, one row for each x_t."""
    p_s = world.probs @ word_kernel(world, sigma_bar_s)  # (W,)
    joint = p_s[:, None] * word_kernel(world, sigma_bar_t - sigma_bar_s)
    return (joint / joint.sum(0)).T


def written(
    world: TinyWorld,
    levels: Tensor,
    *,
    method: str = "analytic",
    churn: float = 0.0,
    template: Tensor | None = None,  # (L,), given where the mask, (L,), is true
    condition_mask: Tensor | None = None,
    pass_mask: bool = True,  # whether the denoiser sees the mask
) -> Tensor:
    """(W,): exact probabilities of the words that a run through the noise levels writes."""
    words, vocab_size = world.words, world.vocab_size
    given = torch.zeros_like(words, dtype=torch.bool)
    if condition_mask is not None:
        given = condition_mask.expand_as(words)  # (W, L)
    fits = ~(given & (words != (0 if template is None else template))).any(-1)
    probs = fits / fits.sum().double()
    seen = given if pass_mask and given.any() else None
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        step = churned_probs(
            *(world, words, now, after), churn=churn, method=method, condition_mask=seen
        )
        if template is not None:
            step = torch.where(given[..., None], one_hot(template, vocab_size).double(), step)
        probs = probs @ product_of_positions(world, step)
    return probs


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half of the sum of the absolute differences."""
    return (p - q).abs().sum().item() / 2
