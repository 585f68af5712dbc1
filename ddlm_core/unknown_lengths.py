# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
"""Blanks of unknown length: which of several templates fits what is given best."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.evaluation import spread_times
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import Denoiser, graph_of
from ddlm_core.noise import NoiseSchedule
from ddlm_core.objective import in_context
from ddlm_core.reverse import has_denoiser
from ddlm_core.sampler import sample_diffusion
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.tokenizer import PAD_ID

__all__ = [
    "MOST_LENGTHS",
    "expand_lengths",
    "aligned_columns",
    "common_start",
    "ROWS",
    "told_at",
    "told_letters",
    "BEHIND",
    "NEAR",
    "race",
    "filled",
    "free_nats",
    "LengthChoice",
    "choose_length",
]

MOST_LENGTHS = 64  # templates that one with ranges may stand for


def _range_of(inside: str) -> tuple[int, int]:
    """The ends of a range such as ``2-9``."""
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", inside.replace(" ", ""))
    low, high = [int(min(float(end), 9999)) for end in ends.groups()] if ends else (0, 0)
    if not 1 <= low <= high:
        hint = "write _{2-9} for 2 to 9 characters, or _{9} for nine"
        raise UserError(f"_{{{inside:.20}}} is no range of lengths: {hint}")
    return low, high


def expand_lengths(template: str) -> list[str]:
    r"""The plain templates that one with ranges stands for: ``_{2-3}`` for ``_{2}`` and ``_{3}``.

    The lengths of the first range change slowest. ``\_`` is an underscore; without a range the template
    stands for itself alone.

    Raises:
        UserError: a range is empty, reversed or begins at 0, or there are more than 64 templates.
    """
    parts = re.split(r"(?<!\\)_\{((?:[0-9 -]*-[0-9 -]*)?)\}", template)
    ranges = [_range_of(inside) for inside in parts[1::2]]
    if (count := math.prod(high - low + 1 for low, high in ranges)) > MOST_LENGTHS:
        hint = f"at most {MOST_LENGTHS} can be compared: narrow a range, or fix one, such as _{{5}}"
        raise UserError(f"the ranges of the template allow {count} lengths: {hint}")
    chosen = itertools.product(*(range(low, high + 1) for low, high in ranges))
    blanks = ([f"_{{{length}}}" for length in lengths] for lengths in chosen)
    return ["".join(itertools.chain(*zip(parts[::2], [*some, ""], strict=True))) for some in blanks]


def aligned_columns(masks: Sequence[Tensor]) -> list[Tensor]:
    """Columns of a common table, int64 (L_n,), for each place of templates with masks bool (L_n,).

    The i-th given place has the same column in all of them, and so has the j-th blank behind it.
    """
    keys = []
    for given in masks:
        place = torch.arange(len(given), device=given.device)
        last = torch.where(given, place, -1).cummax(0).values  # the given place before a blank
        keys.append(torch.stack([given.cumsum(0), place - last], 1))
    columns = torch.cat(keys).unique(dim=0, return_inverse=True)[1]
    return list(columns.split([len(given) for given in masks]))


def common_start(masks: Sequence[Tensor]) -> int:
    """The first place at which masks differ, or where the shortest one ends."""
    shortest = min(map(len, masks))
    differ = torch.stack([mask[:shortest] != masks[0][:shortest] for mask in masks]).any(0)
    return int(differ.nonzero()[0]) if differ.any() else shortest


ROWS = 8  # evaluations at once


def told_at(tokens: Tensor, given: Tensor, block_length: int) -> Tensor:
    """The step, int64 (L,), at which each place is told: its place in its block.

    But what follows two ``<PAD>`` that end a text is certain, and told together with the second one.
    """
    place = torch.arange(len(tokens), device=tokens.device)
    ended = int(((tokens == PAD_ID) & given).flip(0).cumprod(0).sum())
    step = place.clamp(max=len(tokens) - ended + 1) - place // block_length * block_length
    return step.clamp(min=0)


@torch.inference_mode()
def told_letters(
    model: Denoiser,
    noise: NoiseSchedule,
    tokens: Tensor,
    given: Tensor,
    start: int,
    pure: Tensor,
) -> Iterator[tuple[float, int]]:
    """The log-probability of the given letters from ``start`` on, told one by one, in parts.

    Each part comes with its number of evaluations.

    ``tokens``, int64, and ``given``, bool, are (L,); row i of ``pure``, (L, L), is the noise around letter i.
    """
    step = told_at(tokens, given, getattr(model.config, "block_length", len(tokens)))
    asked = given & (torch.arange(len(tokens), device=tokens.device) >= start)
    level = noise.sigma_bar(torch.ones(1, device=tokens.device))
    for steps in step[asked].unique().split(ROWS):
        now = asked & (step == steps[:, None])  # (n, L): asked for
        told = given & (step < steps[:, None])
        x_t = torch.where(told, tokens, pure[now.int().argmax(1)])
        clean = tokens.expand_as(x_t)
        log_q = cast("Denoiser", in_context(model, clean)).denoise(
            x_t, level.expand(len(x_t)), told
        )
        yield log_q.gather(-1, clean[..., None])[..., 0][now].double().sum().item(), len(x_t)


BEHIND, NEAR = 14.0, 7.0  # nats: factors of a million and a thousand


def race(runs: Sequence[Iterator[tuple[float, int]]], behind: float) -> tuple[list[float], int]:
    """Sums of the first entries of ``runs``, which only fall, and the total of the second ones.

    The run with the largest sum goes on; one that is ``behind`` a finished one stops where it is.
    """
    sums, finished, total = [0.0] * len(runs), set[int](), 0
    while True:
        least = max((sums[n] for n in finished), default=-math.inf) - behind
        going = [n for n in range(len(runs)) if n not in finished and sums[n] >= least]
        if not going:
            return sums, total
        first = max(going, key=lambda n: sums[n])
        if (part := next(runs[first], None)) is None:
            finished.add(first)
        else:
            sums[first], total = sums[first] + part[0], total + part[1]


def filled(
    model: Denoiser,
    noise: NoiseSchedule,
    tokens: Tensor,
    given: Tensor,
    seed: int,
    **options: Any,
) -> Tensor:
    """A template (L,) with its blanks filled by the sampler of the model: int64 (L,)."""
    if given.all():
        return tokens
    blocks, end = isinstance(model, BlockDiffusionTransformer), len(tokens)
    uniform = graph_of(model).supports_churn
    how: dict[str, Any] = {
        "num_steps": 16 if blocks else 24,
        "schedule": "cosine",
        "churn": float(uniform),
    }
    how |= {"generator": torch.Generator().manual_seed(seed)} | options
    if isinstance(model, BlockDiffusionTransformer):
        end = int((~given).nonzero().max()) + 1  # the blocks after the last blank are given
        part: dict[str, Any] = {"template": tokens[:end], "condition_mask": given[:end]}
        *_, step = denoising_blocks(model, 1, end, **part, **how)
        return torch.cat([step.tokens[0], tokens[end:]])
    part = {"template": tokens, "condition_mask": given, "device": tokens.device}
    return sample_diffusion(model, noise, 1, end, **part, **how)[0]


@torch.inference_mode()
def free_nats(
    model: Denoiser,
    noise: NoiseSchedule,
    x_0: Tensor,
    given: Tensor,
    column: Tensor,
    levels: int,
    seed: int,
) -> float:
    r"""The bound on $-\log p$ of what is not given in x_0, int64 (L,), if the rest is: nats.

    Places with the same ``column``, int64 (L,), see the same noise at the same ``seed``.
    """
    generator, graph = torch.Generator().manual_seed(seed), graph_of(model)
    t, weight = spread_times(levels, noise, generator)
    sigma_bar, sigma = noise(torch.cat([t, torch.zeros(1)]))  # the last one: reconstruction
    noisy = []
    for letter, c in zip(x_0.cpu(), column.tolist(), strict=True):
        generator.manual_seed(derive_seed(seed, "column", c))
        one = letter.expand(levels + 1, 1)
        draw = perturb_batch(
            one, sigma_bar, model.config.vocab_size, None, generator, graph.sample_prior
        )
        noisy.append(draw)
    x_t = torch.where(given, x_0, torch.cat(noisy, 1).to(x_0.device))
    clean, mask = x_0.expand_as(x_t), given.expand_as(x_t)
    parts = zip(*(v.split(32) for v in (x_t, clean, mask, sigma_bar.to(x_0.device))), strict=True)
    read = [cast("Denoiser", in_context(model, x)).denoise(y, s, m) for y, x, m, s in parts]
    log_q, sigma_bar = torch.cat(read), sigma_bar.to(x_0.device)
    loss = graph.expected_loss(log_q[:-1], sigma_bar[:-1], clean[:-1])[:, ~given].sum(1).cpu()
    last = graph.expected_reconstruction(log_q[-1:], sigma_bar[-1:], clean[-1:])[:, ~given].sum()
    return ((weight * sigma[:-1]).double() * loss).mean().item() + last.item()


class LengthChoice(NamedTuple):
    """One of N templates, chosen in proportion to the probability of what they give."""

    log_weights: Tensor  # float64 (N,), nats, up to a constant; of one given up, an upper limit
    probabilities: Tensor  # float64 (N,)
    chosen: int  # index of a template
    evaluations: int  # of the network on one text, those that fill blanks not included


def choose_length(
    model: Denoiser,
    noise: NoiseSchedule,
    templates: Sequence[tuple[Tensor, Tensor]],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    levels: int = 64,
    **options: Any,
) -> LengthChoice:
    """Choose between templates that give the same letters, with blanks of different lengths between them.

    Args:
        model: a network with a denoiser, or an exact one.
        noise: its schedule.
        templates: of each its tokens, int64 (L,), and its mask, bool (L,), true where a token is given,
            as ``encode_template`` makes them; L may differ. They are compared as whole texts.
        temperature: T chooses in proportion to the power 1/T of the probabilities, 0 the best.
        seed: of all that is random; the same seed gives the same choice.
        levels: noise levels of each bound; with 0 what is told in pure noise decides alone.
        **options: of the sampler that fills blanks (default: churned cosine steps, 24, or 16 a block).

    Raises:
        UserError: the model has no denoiser, there is no template, or an argument is out of range.
    """
    check_range(0.0, 1000.0, temperature=temperature)
    check_range(0, 100_000, levels=levels)
    check_range(1, 1000, templates=len(templates))
    if not has_denoiser(model):
        raise UserError("lengths are compared by a denoiser: this model has scores alone")
    weights, evaluations = _told_weights(model, noise, templates, seed, options)
    near = (weights >= weights.max() - NEAR).nonzero()[:, 0].tolist()
    if levels and evaluations and len(near) > 1:
        columns, bounds = aligned_columns([given for _, given in templates]), []
        for n in near:
            tokens, given = templates[n]
            x_0 = filled(model, noise, tokens, given, derive_seed(seed, "fill"), **options)
            how = (columns[n], levels, derive_seed(seed, "bound"))
            whole = free_nats(model, noise, x_0, torch.zeros_like(given), *how)
            bounds.append(free_nats(model, noise, x_0, given, *how) - whole)
        found = torch.tensor(bounds, dtype=torch.float64)
        weights = weights - weights[near].logsumexp(0) + found.logsumexp(0)
        weights[near] = found
        evaluations += 2 * (levels + 1) * len(near)
    best = torch.nn.functional.one_hot(weights.argmax(), len(weights)).double()
    probs = (weights.clamp(min=-1e30) / temperature).softmax(0) if temperature else best
    draw = torch.Generator().manual_seed(derive_seed(seed, "length"))
    return LengthChoice(weights, probs, int(probs.multinomial(1, generator=draw)), evaluations)


def _told_weights(
    model: Denoiser,
    noise: NoiseSchedule,
    templates: Sequence[tuple[Tensor, Tensor]],
    seed: int,
    options: dict[str, Any],
) -> tuple[Tensor, int]:
    """Log-probabilities of what is given, (N,), told in pure noise, and the evaluations."""
    masks = [given for _, given in templates]
    start, columns = common_start(masks), aligned_columns(masks)
    texts = [tokens for tokens, _ in templates]
    if isinstance(model, BlockDiffusionTransformer) and len(templates) > 1:
        start = min(start, int(masks[0].int().argmin()))  # what is filled differs from there
        fill = derive_seed(seed, "fill")
        texts = [filled(model, noise, x, given, fill, **options) for x, given in templates]
    width, generator = 1 + max(int(c.max()) for c in columns), torch.Generator()
    generator.manual_seed(derive_seed(seed, "lengths"))
    pure = graph_of(model).sample_prior(width, width, model.config.vocab_size, generator)
    pure = pure.to(texts[0].device)
    runs = [
        told_letters(model, noise, x, given, start, pure[column][:, column])
        for x, given, column in zip(texts, masks, columns, strict=True)
    ]
    sums, evaluations = race(runs, BEHIND)
    return torch.tensor(sums, dtype=torch.float64), evaluations
