# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""A pipeline for networks of either kind."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddlm_core.animation import Animation
from ddlm_core.block_sampler import denoising_blocks, numbered
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.modern_samplers import Annealed, TopP, entropy_bound_steps
from ddlm_core.pipeline import (
    PretrainedModel,
    TextStep,
    ended_texts,
    join_steps,
    load_model,
    watched,
)
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.sampling_options import SamplingOptions, encode_template, template_characters
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.models import model_folder
from ddlm_core.support.seeds import derive_seed
from ddlm_core.tokenizer import PAD_ID
from ddlm_core.unknown_lengths import choose_length, expand_lengths

__all__ = [
    "SAMPLERS",
    "WRITING",
    "load_network",
    "default_steps",
    "with_room",
    "merged",
    "filled_up",
    "Writer",
    "BlockPipeline",
]

SAMPLERS = ("grid", "entropy_bound")
WRITING: dict[str, Any] = {"sampler": "grid", "entropy_bound": 0.3, "top_p": 1.0, "annealing": 1.0}
# what this chapter adds to SamplingOptions, with its defaults


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
    """The configuration with room for the text that is asked for, if the network goes on block after block."""
    if not isinstance(config, BlockDiffusionConfig) or config.padded:
        return config
    needed = len(template_characters(options.template)) if options.template else 1
    return replace(config, block_size=max(config.block_size, needed, options.seq_len or 1))


def merged(runs: list[Iterator[DenoisingStep]]) -> Iterator[tuple[DenoisingStep, ...]]:
    """The same step of several runs, until the last one has ended; one that has keeps its last step.

    Shorter texts are filled up with ``<PAD>``.
    """
    kept: list[DenoisingStep | None] = [None] * len(runs)
    while any(new := [next(run, None) for run in runs]):
        kept = [step or last for step, last in zip(new, kept, strict=True)]
        steps = [step for step in kept if step]
        longest = max(step.tokens.shape[1] for step in steps)
        yield tuple(filled_up(step, longest) for step in steps)


def filled_up(step: DenoisingStep, length: int) -> DenoisingStep:
    """The same step of texts that have ``<PAD>`` behind them, up to ``length`` tokens."""
    if missing := length - step.tokens.shape[1]:
        tokens = torch.nn.functional.pad(step.tokens, (0, missing), value=PAD_ID)
        changed = torch.nn.functional.pad(step.changed, (0, missing), value=False)
        return replace(step, tokens=tokens, changed=changed)
    return step


@dataclass(frozen=True)
class Writer:
    """A network with a sampler and its options: what writes texts that belong together."""

    model: DiscreteDiffusionTransformer
    sampler: str
    entropy_bound: float
    top_p: float
    annealing: float

    def __post_init__(self) -> None:
        check_choice(SAMPLERS, sampler=self.sampler)
        check_range(0.0, 1000.0, entropy_bound=self.entropy_bound)
        check_range(0.0, 1.0, top_p=self.top_p)
        check_range(0.001, 1000.0, annealing=self.annealing)

    def steps(self, model: Any, *where: Any, **options: Any) -> Iterator[DenoisingStep]:
        """The run of a window or of a block: as ``denoising_steps``, whose arguments these are."""
        model = Annealed(model, 1.0, self.annealing) if self.annealing != 1 else model
        model = TopP(model, self.top_p) if self.top_p < 1 else model
        if self.sampler == "grid":
            return denoising_steps(model, *where, **options)
        how = {name: v for name, v in options.items() if name not in ("schedule", "churn")}
        how |= {"bound": self.entropy_bound, "max_steps": how.pop("num_steps")}
        return entropy_bound_steps(model, *where, **how)

    def run(
        self, generators: list[torch.Generator], how: SamplingOptions
    ) -> Iterator[DenoisingStep]:
        """All steps of as many texts as there are generators; what cannot work is told at the call."""
        config, rows = self.model.config, len(generators)
        arguments = how.arguments(with_room(config, how)) | {"generator": generators}
        if isinstance(self.model, BlockDiffusionTransformer):
            stop = how.stop_at_end or config.padded  # what follows an end is padding
            return denoising_blocks(
                self.model, rows, write=self.steps, stop_at_end=stop, **arguments
            )
        return self.steps(self.model, config.noise, rows, **arguments)

    def lengths(
        self, how: SamplingOptions, templates: list[str], seed: int
    ) -> Callable[[int], SamplingOptions]:
        """The options for each text by its number: one of the templates that a ``_{2-9}`` stands for."""
        options = [replace(how, template=template) for template in templates]
        pairs = [
            encode_template(str(each.template), each.seq_len, with_room(self.model.config, each))
            for each in options
        ]
        found: list[Tensor] = []  # computed when it is first asked for

        def chosen(number: int) -> SamplingOptions:
            if not found:
                choice = choose_length(self.model, self.model.config.noise, pairs, seed=seed)
                found.append(choice.probabilities)
            draw = torch.Generator().manual_seed(derive_seed(seed, "length", number))
            return options[int(found[0].multinomial(1, generator=draw))]

        return chosen


class BlockPipeline(PretrainedModel):
    """``DiffusionPipeline`` for networks of either kind, with the samplers of chapter 11.

    What is new: ``sampler="entropy_bound"`` with its ``entropy_bound`` (nats), ``top_p``, and ``annealing``, the
    share of the temperature that is left at the end; ``_{2-9}`` in a template, a blank of 2 to 9 characters. Of a block model ``num_steps`` are those of a block (for
    ``entropy_bound``: the most), and unless its texts are padded ``seq_len`` is free.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """As ``DiffusionPipeline.from_pretrained``, block models included."""
        return cls(load_network(model_folder(source, revision)), device)

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        sampler: str = "grid",
        entropy_bound: float = 0.3,
        top_p: float = 1.0,
        annealing: float = 1.0,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        **options: Any,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each step; all else as :meth:`generate`."""
        check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
        seed = secrets.randbits(32) if seed is None else seed
        check_range(0, 2**63, seed=seed, first=first)
        how = SamplingOptions(**{"num_steps": default_steps(self.config)} | options)
        writer = Writer(self.model, sampler, entropy_bound, top_p, annealing)
        generators = sample_generators(seed, num_samples, first)
        templates = expand_lengths(how.template) if how.template is not None else []
        if len(templates) == 1:
            how = replace(how, template=templates[0])  # a range of one length is none
        if len(templates) > 1:
            choose = writer.lengths(how, templates, seed)
            parts = self._unknown(writer, generators, choose, first)
        else:
            rows = 1 if self.device.type == "cpu" else batch_size
            batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
            parts = merged([writer.run(batch, how) for batch in batches])
        joined = (join_steps(part, self.tokenizer) for part in parts)
        steps = numbered(joined, self._expected(vars(how)))
        return ended_texts(steps, self.tokenizer) if how.stop_at_end else steps

    @staticmethod
    def _unknown(
        writer: Writer,
        generators: list[torch.Generator],
        choose: Callable[[int], SamplingOptions],
        first: int,
    ) -> Iterator[tuple[DenoisingStep, ...]]:
        """The steps of texts with blanks of unknown length: one after the other, for each has its own length."""
        yield from merged([writer.run([g], choose(first + i)) for i, g in enumerate(generators)])

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The options are those of ``DiffusionPipeline.generate``, and those of the class.

        Raises:
            UserError: what was asked for cannot work; one line says why, before any work is done.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, live in a terminal or a notebook; ``str()`` of what it returns is the text."""
        return watched(self.generate_streaming(**options), self._expected(options), self.tokenizer)

    def _expected(self, options: dict[str, Any]) -> int:
        """The number of the last step, if no text ends early."""
        steps = options.get("num_steps") or default_steps(self.config)
        length, template = options.get("seq_len"), options.get("template")
        if template and not length and not self.config.padded:  # it is the whole text
            length = len(template_characters(expand_lengths(template)[-1]))
        length = length or self.config.block_size
        block = getattr(self.config, "block_length", length)
        return -(-length // block) * (steps + 1) - 1

    __call__ = generate
