# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Samplers of today: a denoiser made surer, and steps that accept what is sure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddlm_core.graph import Denoiser, ScoreModel, graph_of
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.reverse import has_denoiser, reverse_probs
from ddlm_core.sampler import DenoisingStep, _sample_categorical, _uniform, denoising_steps
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError

__all__ = [
    "Reshaped",
    "TopP",
    "Annealed",
    "accepting_probs",
    "AcceptingStep",
    "entropy_bound_steps",
]


class Reshaped(nn.Module):
    r"""A denoiser whose $\log q$ is that of another one, reshaped: the parent of those below.

    It has the parameters, ``config`` and ``graph`` of ``model``. One that gives scores alone is refused with a ``UserError``.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        if not has_denoiser(model):
            raise UserError(
                f"{type(self).__name__} needs a model with a denoiser, not scores alone"
            )
        self.model, self.config, self.graph = model, model.config, graph_of(model)

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        r"""The new $\log q$, normalized: (B, L, V) at noise (B,) to (B, L, V)."""
        raise NotImplementedError

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        r"""The reshaped $\log q$ (B, L, V) for tokens (B, L) and noise (B,)."""
        condition = () if condition_mask is None else (condition_mask,)
        return self.reshape(self.model.denoise(x_t, sigma_bar, *condition), sigma_bar)

    def forward(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        """The log-scores (B, L, V) that follow from it, 0 at the current token."""
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return self.graph.log_score(log_q, sigma_bar, x_t)


class TopP(Reshaped):
    """Only the nucleus of q: its most probable letters, as few as have p together (Holtzman et al. 2020)."""

    def __init__(self, model: Denoiser, p: float) -> None:
        super().__init__(model)
        check_range(0.0, 1.0, p=p)
        self.p = p

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        sorted_q, order = log_q.exp().sort(-1, descending=True)
        more = sorted_q.cumsum(-1)[..., :-1] < self.p  # the letters so far are not enough
        kept = nn.functional.pad(more, (1, 0), value=True)
        kept = torch.zeros_like(kept).scatter(-1, order, kept)
        return log_q.masked_fill(~kept, -math.inf).log_softmax(-1)


class Annealed(Reshaped):
    r"""Temperature ``first`` in pure noise, ``last`` without noise, linear in $f = 1 - e^{-\bar\sigma}$ between."""

    def __init__(self, model: Denoiser, first: float, last: float) -> None:
        super().__init__(model)
        if not (0 < first < math.inf and 0 < last < math.inf):
            raise UserError(f"temperatures must be above 0 and finite, got {first} and {last}")
        self.first, self.last = first, last

    def reshape(self, log_q: Tensor, sigma_bar: Tensor) -> Tensor:
        fraction = resample_probability(sigma_bar).to(log_q.dtype)
        temperature = torch.lerp(
            fraction.new_tensor(self.last), fraction.new_tensor(self.first), fraction
        )
        largest = log_q.amax(-1, keepdim=True)  # becomes 0 first, and stays 0 however small T is
        return ((log_q - largest) / temperature[:, None, None]).log_softmax(-1)


def accepting_probs(
    model: ScoreModel,
    x_t: Tensor,
    sigma_bar_t: Tensor | float,
    *,
    bound: float = 0.3,
    temperature: float = 1.0,
    condition_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A step that accepts what is sure: probabilities (B, L, V), and which positions it accepts, bool (B, L).

    Accepted ones are drawn from $p(x_0 \mid x_t)$, the others uniformly: the largest set of positions of
    least entropy whose entropies, without the largest, sum to at most ``bound`` nats. At least one of those that are
    not given is accepted, and so are all given ones. Arguments and errors are those of ``reverse_probs``.
    (Ben-Hamu et al. 2025; DiffusionGemma.)
    """
    probs = reverse_probs(
        *(model, x_t, sigma_bar_t, 0.0), temperature=temperature, condition_mask=condition_mask
    )
    entropy = torch.special.entr(probs).sum(-1)  # nats, (B, L)
    if condition_mask is not None:
        entropy = entropy.masked_fill(condition_mask, 0.0)
    least, order = entropy.sort(dim=-1, stable=True)
    all_but_largest = nn.functional.pad(least.cumsum(-1)[:, :-1], (1, 0))
    accepted = torch.zeros_like(order, dtype=torch.bool)
    accepted = accepted.scatter(-1, order, all_but_largest <= bound)
    return torch.where(accepted[..., None], probs, 1 / probs.shape[-1]), accepted


@dataclass(frozen=True)
class AcceptingStep(DenoisingStep):
    """A step of a run whose length is known only at its end: until then ``num_steps`` is the most it may take."""

    # sigma_bar: of the noisiest text, 0 when all are finished
    accepted: Tensor  # bool (B, L): true where a token is given or was accepted
    evaluations: Tensor  # int64 (B,): function evaluations that each text has needed so far


def _run_accepting(
    step_probs: Callable[..., tuple[Tensor, Tensor]],
    tokens: Tensor,
    free: Tensor,
    noise: NoiseSchedule,
    generators: Sequence[torch.Generator | None],
    bound: float,
    max_steps: int,
) -> Iterator[AcceptingStep]:
    """The start (B, L), then what each step leaves, until no position that is ``free`` is left open."""
    lowest, highest = noise.sigma_bar(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    changed, accepted, live = torch.zeros_like(free), ~free, free.any(-1)  # (B, L), (B, L), (B,)
    sigma_bar = torch.full(live.shape, highest, device=free.device)
    index, evaluations = 0, torch.zeros_like(live, dtype=torch.int64)
    while True:
        ends = max_steps if live.any() else index
        level = torch.where(live, sigma_bar, 0.0).max().item()
        yield AcceptingStep(index, ends, level, tokens, changed, accepted, evaluations)
        if index == ends:
            return
        index += 1
        enough = bound if index < max_steps else math.inf  # the last step accepts all
        probs, sure = step_probs(tokens, sigma_bar, bound=enough)
        uniform = torch.zeros(tokens.shape, dtype=torch.float64)
        for row in live.nonzero()[:, 0].tolist():  # a finished text draws no more
            uniform[row] = _uniform(generators[row], tokens.shape[1])
        drawn = _sample_categorical(probs, uniform)
        changed = (drawn != tokens) & free & live[:, None]
        tokens = torch.where(changed, drawn, tokens)
        accepted = torch.where(live[:, None], sure, accepted)
        evaluations = evaluations + live
        fraction = (~accepted).sum(-1) / free.sum(-1).clamp(min=1)
        live = fraction > 0
        sigma_bar = (-torch.log1p(-fraction)).clamp(lowest, highest)


def entropy_bound_steps(
    model: ScoreModel,
    noise: NoiseSchedule,
    batch_size: int,
    seq_len: int,
    *,
    vocab_size: int | None = None,
    bound: float = 0.3,
    max_steps: int = 128,
    temperature: float = 1.0,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[AcceptingStep]:
    """Write B texts of L tokens with as many function evaluations as each needs, at most ``max_steps``.

    Yields the random start and each step of ``accepting_probs``. The noise of a text is what would resample the
    share of its letters that was not accepted; it is finished when all are, and waits for the others. All else as
    ``denoising_steps``, which draws the same start. A negative bound, a ``max_steps`` below 1, and a graph
    that takes no fresh noise raise a ``UserError``, too. (Ben-Hamu et al. 2025; DiffusionGemma, which also stops when the
    most probable letters stay the same.)
    """
    check_range(0.0, math.inf, bound=bound)
    check_range(1, math.inf, max_steps=max_steps)
    graph = graph_of(model)
    if not graph.supports_churn:
        raise UserError(f"entropy-bound acceptance does not work with the {graph.name} graph")
    options: dict[str, Any] = {"vocab_size": vocab_size, "temperature": temperature}
    options |= {"template": template, "condition_mask": condition_mask}
    options |= {"generator": generator, "device": device, "num_steps": 1}
    start = next(denoising_steps(model, noise, batch_size, seq_len, **options)).tokens  # checked
    free = torch.ones_like(start, dtype=torch.bool)
    if condition_mask is not None:
        condition_mask = condition_mask.expand_as(start).to(start.device)
        free = ~condition_mask
    step_probs = partial(
        accepting_probs, model, temperature=temperature, condition_mask=condition_mask
    )
    generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
    return _run_accepting(step_probs, start, free, noise, generators, bound, max_steps)
