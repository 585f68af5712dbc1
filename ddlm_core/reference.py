# Generated from notebooks/09_evaluation.py by tools/export.py: edit that, then run `make export`.
"""Reference networks that need no training: what they score is known, or cannot be beaten."""

import itertools
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.loss import denoiser_log_score, kappa
from ddlm_core.noise import GeometricNoise, NoiseSchedule
from ddlm_core.stories import Grammar, Word, parts_of, skeletons
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import CharacterLevelTokenizer

__all__ = ["UnigramModel", "BayesDenoiser"]


class UnigramModel:
    """A network that believes in independent letters of fixed probabilities, whatever it sees.

    Its bound is an equality: it is the cross-entropy of the letters, which can be counted.

    Args:
        *probs: the probability of each token of the vocabulary, each above 0, together 1.
        noise: its noise schedule, for what reads ``config.noise``; by default the standard one.
    """

    def __init__(self, *probs: float, noise: NoiseSchedule | None = None) -> None:
        self.log_q = torch.tensor(probs, dtype=torch.float64).log()
        self.config = SimpleNamespace(vocab_size=len(probs), noise=noise or GeometricNoise())

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the clean token, (B, L, V), the same everywhere, for tokens (B, L)."""
        return self.log_q.expand(*x_t.shape, -1)

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) of tokens (B, L) at noise (B,)."""
        return denoiser_log_score(self.denoise(x_t, sigma_bar), sigma_bar, x_t)

    def nats(self, tokens: Tensor) -> Tensor:
        """Exact negative log-likelihood of each window (N, L) in nats: (N,)."""
        return -self.log_q[tokens].sum(-1)


def _fill(skeleton: str, words: dict[str, Word]) -> str:
    """The text of a skeleton with these words in its fields."""
    cut = (part.strip("{}").partition(".") for part in parts_of(skeleton))
    return "".join(words[v][form] if v in words else v + dot + form for v, dot, form in cut)


def _templates(grammar: Grammar) -> Iterator[tuple[str, float, dict[str, list[Word]]]]:
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


class BayesDenoiser:
    """The Bayes-optimal denoiser of a story grammar, to be used like a trained network.

    It answers by Bayes' rule over all stories, so no network can be better; its bound is the
    entropy of the stories.

    Args:
        grammar: no text of it can be told in two ways.
        tokenizer: of the characters.
        length: tokens of a window, L; every story fits.
    """

    def __init__(self, grammar: Grammar, tokenizer: CharacterLevelTokenizer, length: int) -> None:
        self.size = tokenizer.vocab_size
        slots: dict[tuple, int] = {}
        self.config = SimpleNamespace(vocab_size=self.size, noise=GeometricNoise())
        log_p, fixed, uses = [], [], []
        for skeleton, p, words in _templates(grammar):
            first = {variable: choice[0] for variable, choice in words.items()}
            base, used = tokenizer.pad(_fill(skeleton, first), length), []
            for v, choice in words.items():
                told = [tokenizer.pad(_fill(skeleton, first | {v: w}), length) for w in choice]
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

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log of its distribution over the clean token, (B, L, V), for tokens (B, L), noise (B,).

        Raises:
            UserError: if there is a ``condition_mask``, for no token can be given.
        """
        if condition_mask is not None:
            raise UserError("the Bayes denoiser takes all tokens for noisy: no condition_mask")
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

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Log-scores (B, L, V) of tokens (B, L) at noise (B,); errors as in ``denoise``."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return denoiser_log_score(log_q, sigma_bar, x_t)
