# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""A pipeline for networks of either kind."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddlm_core.animation import Animation
from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import (
    PretrainedModel,
    TextStep,
    ended_texts,
    join_steps,
    load_model,
    watched,
)
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.sampling_options import SamplingOptions, template_characters
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.models import model_folder

__all__ = ["SAMPLERS", "load_network", "default_steps", "with_room", "merged", "BlockPipeline"]

SAMPLERS = ("grid", "entropy_bound")


def load_network(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder, of either kind; errors as :func:`load_model`."""
    try:
        blocks = "block_length" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        blocks = False  # load_model says what is wrong
    if blocks:
        return load_model(folder, BlockDiffusionTransformer, BlockDiffusionConfig)
    return load_model(folder)


def default_steps(config: DiscreteDiffusionConfig) -> int:
    """Steps of a run: 128 for a whole window, 16 for a block, 1 for a block of one token."""
    if isinstance(config, BlockDiffusionConfig):
        return 16 if config.block_length > 1 else 1
    return 128


def with_room(config: DiscreteDiffusionConfig, options: SamplingOptions) -> DiscreteDiffusionConfig:
    """The configuration with room for the text that is asked for, if the network writes in blocks that go on."""
    if not isinstance(config, BlockDiffusionConfig) or config.padded:
        return config
    needed = len(template_characters(options.template)) if options.template else 1
    return replace(config, block_size=max(config.block_size, needed, options.seq_len or 1))


def merged(runs: list[Iterator[DenoisingStep]]) -> Iterator[tuple[DenoisingStep, ...]]:
    """The same step of several runs, until the last one has ended; one that has keeps its last step."""
    kept: list[DenoisingStep | None] = [None] * len(runs)
    while True:
        new = [next(run, None) for run in runs]
        if not any(new):
            return
        kept = [step or last for step, last in zip(new, kept, strict=True)]
        yield tuple(step for step in kept if step)


class BlockPipeline(PretrainedModel):
    """:class:`DiffusionPipeline` for networks of either kind, with the samplers of chapter 11.

    Of a block model ``num_steps`` are those of a block, and unless its texts are padded ``seq_len`` is free.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """As :meth:`PretrainedModel.from_pretrained`, block models included."""
        return cls(load_network(model_folder(source, revision)), device)

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        sampler: str = "grid",
        entropy_bound: float = 0.3,
        top_p: float = 1.0,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        **options: Any,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each step; all else as :meth:`generate`."""
        check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
        check_range(0, 2**63, first=first, **{} if seed is None else {"seed": seed})
        check_choice(SAMPLERS, sampler=sampler)
        how = SamplingOptions(**{"num_steps": default_steps(self.config)} | options)
        seed = secrets.randbits(32) if seed is None else seed
        generators = sample_generators(seed, num_samples, first)
        rows = 1 if self.device.type == "cpu" else batch_size
        batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
        runs = [self._run(batch, how) for batch in batches]
        steps = (join_steps(parts, self.tokenizer) for parts in merged(runs))
        return ended_texts(steps, self.tokenizer) if how.stop_at_end else steps

    def _run(
        self, generators: list[torch.Generator], how: SamplingOptions
    ) -> Iterator[DenoisingStep]:
        arguments = how.arguments(with_room(self.config, how)) | {"generator": generators}
        if isinstance(self.model, BlockDiffusionTransformer):
            return denoising_blocks(
                self.model, len(generators), stop_at_end=how.stop_at_end, **arguments
            )
        return denoising_steps(self.model, self.config.noise, len(generators), **arguments)

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The options are those of :meth:`DiffusionPipeline.generate`.

        Raises:
            UserError: what was asked for cannot work; one line says why, before any work is done.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, live in a terminal or a notebook; ``str()`` of what it returns is the text."""
        steps = self.generate_streaming(**options)
        return watched(steps, 1, self.tokenizer)

    __call__ = generate
