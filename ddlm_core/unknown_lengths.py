# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
"""Blanks of unknown length: which of several templates fits what is given best."""

import itertools
import math
import re
from collections.abc import Sequence
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

__all__ = [
    "MOST_LENGTHS",
    "expand_lengths",
    "aligned_columns",
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

    log_weights: Tensor  # float64 (N,), nats
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
            as ``encode_template`` makes them; L may differ.
        temperature: T chooses in proportion to the power 1/T of the probabilities, 0 the best.
        seed: of all that is random; the same seed gives the same choice.
        levels: noise levels of each bound.
        **options: of the sampler that fills blanks (default: churned cosine steps, 24, or 16 a block).

    Raises:
        UserError: the model has no denoiser, there is no template, or an argument is out of range.
    """
    check_range(0.0, 1000.0, temperature=temperature)
    check_range(1, 100_000, levels=levels)
    check_range(1, 1000, templates=len(templates))
    if not has_denoiser(model):
        raise UserError("lengths are compared by a denoiser: this model has scores alone")
    found: list[float] = []
    columns = aligned_columns([given for _, given in templates])
    for (tokens, given), column in zip(templates, columns, strict=True):
        if len(templates) > 1:
            x_0 = filled(model, noise, tokens, given, derive_seed(seed, "fill"), **options)
            how = (column, levels, derive_seed(seed, "bound"))
            whole = free_nats(model, noise, x_0, torch.zeros_like(given), *how)
            found.append(free_nats(model, noise, x_0, given, *how) - whole)
    weights = torch.tensor(found or [0.0], dtype=torch.float64)
    best = torch.nn.functional.one_hot(weights.argmax(), len(weights)).double()
    probs = (weights.clamp(min=-1e30) / temperature).softmax(0) if temperature else best
    draw = torch.Generator().manual_seed(derive_seed(seed, "length"))
    chosen = int(probs.multinomial(1, generator=draw))
    return LengthChoice(weights, probs, chosen, 2 * (levels + 1) * len(found))
