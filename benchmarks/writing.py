"""What texts cost and, of stories, how good they are: left to right and by diffusion, alike.

In float32, not compiled, on one thread, whole windows with their padding: a left-to-right model
could stop at the end of a story. Seconds are those of the processor. A module of `autoregressive.py`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from left_to_right import write
from sampling import judge
from torch import Tensor

from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.sampler import sample_diffusion, sample_generators

Writer = Callable[[int, int], Tensor]  # (n, first): texts first to first + n - 1, int64 (n, L)
BATCH = 50  # texts that are written at a time
ALONE = 5  # texts that are written alone, to see what it costs


def timed(writer: Writer, count: int, size: int) -> tuple[Tensor, float]:
    """So many texts (count, L), ``size`` at a time; seconds for each."""
    start, parts = time.process_time(), []
    for first in range(0, count, size):
        parts.append(writer(min(size, count - first), first))
    return torch.cat(parts), (time.process_time() - start) / count


def costs(writer: Writer, count: int, alone: int = ALONE) -> tuple[Tensor, dict[str, float]]:
    """``count`` texts, written in batches, and what one of them costs so, and alone."""
    writer(1, 0)  # the first call is slow
    _, single = timed(writer, min(alone, count), 1)
    tokens, each = timed(writer, count, BATCH)
    return tokens, {
        "seconds_a_text": round(single, 4),
        "seconds_a_text_in_batches": round(each, 4),
    }


def figures(
    model: DiscreteDiffusionTransformer, args: argparse.Namespace, writer: Writer
) -> tuple[Tensor, dict[str, Any]]:
    """Texts, what they cost, and what the grammar says to stories."""
    stories = model.config.padded
    tokens, cost = costs(writer, args.samples if stories else min(args.samples, BATCH))
    return tokens, (judge(tokens, model.config.tokenizer) if stories else {}) | cost


def left_to_right(
    model: DiscreteDiffusionTransformer, args: argparse.Namespace, anew: bool = True
) -> dict[str, Any]:
    """With a cache of keys, values and the convolutions' inputs; ``anew``: what it costs without."""
    length = int(model.config.block_size)
    tokens, row = figures(model, args, lambda n, first: write(model, n, length, first=first))
    if anew:
        again: Writer = lambda n, first: write(model, n, length, first=first, cache=False)  # noqa: E731
        same, cost = costs(again, min(BATCH, len(tokens)), 2)
        share = (same == tokens[: len(same)]).all(-1).double().mean().item()  # but for rounding
        row["without_cache"] = cost | {"same_texts": share}
    return row | {"passes": length}


def by_diffusion(model: DiscreteDiffusionTransformer, args: argparse.Namespace) -> dict[str, Any]:
    """With the last number of steps; the others are listed as ``fewer_steps``."""
    length, rows = int(model.config.block_size), []
    for steps in args.sampling_steps:
        how: dict[str, Any] = {"num_steps": steps, "schedule": "cosine", "churn": 1.0}

        def writer(n: int, first: int, how: dict[str, Any] = how) -> Tensor:
            parts = sample_generators(0, n, first)
            return sample_diffusion(model, model.config.noise, n, length, generator=parts, **how)

        rows.append(figures(model, args, writer)[1] | {"passes": steps})
    return rows[-1] | {"fewer_steps": rows[:-1]}
