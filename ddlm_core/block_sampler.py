# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Block after block: texts of any length."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddlm_core.blocks import BlockDiffusionTransformer, BlockView
from ddlm_core.sampler import DenoisingStep, denoising_steps
from ddlm_core.sampling_options import cut_at_end
from ddlm_core.support.checks import check_range
from ddlm_core.tokenizer import PAD_ID

__all__ = ["Step", "context_start", "numbered", "BlockWriter", "denoising_blocks"]

Step = TypeVar("Step", bound=DenoisingStep)


def context_start(written: int, block_length: int, block_size: int) -> int:
    """The first token that the block after ``written`` tokens, all whole blocks, is given.

    What has been read grows until it fills the window with that block; then half of it is forgotten.
    """
    most = max(block_size // block_length - 1, 0)  # whole blocks that may be read
    forget = max(1, (most + 1) // 2)  # at once
    return -(-max(0, written // block_length - most) // forget) * forget * block_length


def numbered(steps: Iterator[Step], expected: int) -> Iterator[Step]:
    """The same steps, counted; ``expected``, the number of the last one, is mended where a run ends early."""
    before, index = None, -1
    for index, step in enumerate(steps):
        if before is not None:
            yield replace(before, index=index - 1, num_steps=max(expected, index))
        before = step
    if before is not None:
        yield replace(before, index=index, num_steps=index)


@dataclass(frozen=True)
class BlockWriter:
    """How one block after the other is written: a network, a sampler and its options."""

    model: BlockDiffusionTransformer
    write: Callable[..., Iterator[DenoisingStep]]  # such as denoising_steps
    options: dict[str, Any]
    template: Tensor | None = None  # int64 (L,), as in denoising_steps
    condition_mask: Tensor | None = None  # bool (L,)

    def view(self, tokens: Tensor, start: int, before: BlockView | None = None) -> BlockView:
        """The network after what it is given of ``tokens`` (B, L) before ``start``; ``before``: one block earlier."""
        length, size = self.model.config.block_length, self.model.config.block_size
        first = context_start(start, length, size)
        goes_on = before and first == context_start(start - length, length, size)
        return self.model.after(tokens[:, first:start], before.past if before and goes_on else None)

    def begin(self, view: BlockView, tokens: Tensor, start: int) -> Iterator[DenoisingStep]:
        """The run for the block from ``start`` on of ``tokens`` (B, L), by the network that has read."""
        config, end = self.model.config, start + self.model.config.block_length
        given: dict[str, Tensor] = {}
        if self.template is not None and self.condition_mask is not None:
            given["template"] = self.template[start:end]
            given["condition_mask"] = self.condition_mask[start:end]
        size = len(tokens[0, start:end])
        return self.write(view, config.noise, len(tokens), size, **given, **self.options)

    def is_over(self, tokens: Tensor, start: int) -> bool:
        """Whether all texts have ended before ``start``, and no character is given from there on."""
        template, mask = self.template, self.condition_mask
        rest = () if template is None or mask is None else template[start:][mask[start:]].tolist()
        return {*rest} <= {PAD_ID} and bool((cut_at_end(tokens[:, :start])[:, -1] == PAD_ID).all())

    def run(self, tokens: Tensor, stop_at_end: bool) -> Iterator[DenoisingStep]:
        """All steps of all blocks of ``tokens`` (B, L); what cannot work is told at the call."""
        view = self.view(tokens, 0)
        return self._run(tokens, view, self.begin(view, tokens, 0), stop_at_end)

    def _run(
        self, tokens: Tensor, view: BlockView, steps: Iterator[DenoisingStep], stop_at_end: bool
    ) -> Iterator[DenoisingStep]:
        length = self.model.config.block_length
        for start in range(0, tokens.shape[1], length):
            if start and stop_at_end and self.is_over(tokens, start):
                return
            if start:
                view = self.view(tokens, start, view)
                steps = self.begin(view, tokens, start)
            for step in steps:
                changed = torch.zeros_like(tokens, dtype=torch.bool)
                changed[:, start : start + length] = step.changed
                tokens = tokens.clone()
                tokens[:, start : start + length] = step.tokens
                yield replace(step, tokens=tokens, changed=changed)


def denoising_blocks(
    model: BlockDiffusionTransformer,
    batch_size: int,
    seq_len: int,
    *,
    template: Tensor | None = None,
    condition_mask: Tensor | None = None,
    stop_at_end: bool = False,
    write: Callable[..., Iterator[DenoisingStep]] = denoising_steps,
    **options: Any,
) -> Iterator[DenoisingStep]:
    """Write B texts of L tokens: an iterator over the random start and all steps of each block.

    Each block is a run of ``write`` with these ``options`` after the text before it; tokens of later blocks are
    ``<PAD>``. With ``stop_at_end`` no block begins once all texts have ended. ``template`` and
    ``condition_mask``, (L,), as in ``denoising_steps``: what is given is known in its block and later.
    What cannot work raises a ``UserError`` at the call.
    """
    check_range(1, math.inf, batch_size=batch_size, seq_len=seq_len)
    device = next(model.parameters()).device
    tokens = torch.full((batch_size, seq_len), PAD_ID, device=device)
    writer = BlockWriter(model, write, options | {"device": device}, template, condition_mask)
    run = writer.run(tokens, stop_at_end)
    blocks = math.ceil(seq_len / model.config.block_length)
    return numbered(run, blocks * (options.get("num_steps", 128) + 1) - 1)
