# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""TinyStories from end to end."""

import json
import math
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddlm_core.animation import Animation, Frame, draw, iter_frames
from ddlm_core.evaluation import Estimate, mean_of, sweep
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.sampling_options import SamplingOptions, cut_at_end, texts_of
from ddlm_core.support.checks import check_range
from ddlm_core.support.drawing import Picture
from ddlm_core.support.errors import UserError, error_context
from ddlm_core.support.hardware import pick_device
from ddlm_core.support.live import notebook_cell, show_in_other_cells, watch
from ddlm_core.support.models import model_folder
from ddlm_core.support.text import END, normalized
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = [
    "load_model",
    "TextStep",
    "join_steps",
    "ended_texts",
    "PretrainedModel",
    "WatchedAnimation",
    "watched",
    "DiffusionPipeline",
]


def _read_config(path: Path, kind: type[DiscreteDiffusionConfig]) -> DiscreteDiffusionConfig:
    """What a ``config.json`` says, if it has the fields of a configuration and no others."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"it must be a mapping, not a {type(found).__name__}")
    if unknown := sorted(found.keys() - {field.name for field in fields(kind)}):
        hint = ": BlockPipeline loads such a model" if "block_length" in unknown else ""
        raise UserError(f"there is no field {unknown[0]!r}{hint}")
    return kind(**found)


def load_model(
    folder: Path,
    network: type[DiscreteDiffusionTransformer] = DiscreteDiffusionTransformer,
    kind: type[DiscreteDiffusionConfig] = DiscreteDiffusionConfig,
) -> DiscreteDiffusionTransformer:
    """The network of a folder, in evaluation mode; it is read as data, and never unpickled.

    ``network`` and ``kind`` are classes. A ``UserError`` names a file that is missing or broken, and says why.
    """
    hint = "a model is a folder that ddlm-train or save_pretrained wrote"
    path = folder / "config.json"
    with error_context(f"cannot use {path}", hint, ValueError, TypeError, RecursionError):
        config = _read_config(path, kind)
    model, path = network(config), folder / "model.safetensors"
    with error_context(f"cannot use {path}", hint, SafetensorError, RuntimeError):
        weights = load_file(path)
        if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise UserError(f"{bad[0]} holds NaN or infinity")
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class TextStep(DenoisingStep):
    """A step of the sampler, and the texts that it leaves, one for each sample."""

    texts: list[str]


def join_steps(parts: tuple[DenoisingStep, ...], tokenizer: CharacterLevelTokenizer) -> TextStep:
    """The same step of several batches as one, on the CPU."""
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    changed = torch.cat([part.changed for part in parts]).cpu()
    texts = texts_of(tokens.tolist(), tokenizer)
    index, num_steps, sigma_bar = parts[0].index, parts[0].num_steps, parts[0].sigma_bar
    return TextStep(index, num_steps, sigma_bar, tokens, changed, texts)


def ended_texts(
    steps: Iterator[TextStep], tokenizer: CharacterLevelTokenizer
) -> Iterator[TextStep]:
    """The same steps; the texts of the last one end where they first say so."""
    before = None
    for step in steps:
        if step.index == step.num_steps:
            cut = cut_at_end(step.tokens)
            changed = step.changed if before is None else cut != before
            texts = texts_of(cut.tolist(), tokenizer, stopped=True)
            step = replace(step, tokens=cut, changed=changed, texts=texts)
        before = step.tokens
        yield step


def _write(
    model: DiscreteDiffusionTransformer,
    options: SamplingOptions,
    seed: int | None,
    num_samples: int = 1,
    first: int = 0,
    batch_size: int = 1,
) -> Iterator[TextStep]:
    """The random start and each step of ``num_samples`` texts; checks at the call."""
    seed = secrets.randbits(32) if seed is None else seed
    check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
    check_range(0, 2**63, seed=seed, first=first)
    config, how = model.config, options.arguments(model.config)
    rows = 1 if next(model.parameters()).device.type == "cpu" else batch_size
    generators = sample_generators(seed, num_samples, first)
    batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
    runs = [denoising_steps(model, config.noise, len(b), generator=b, **how) for b in batches]
    steps = (join_steps(parts, config.tokenizer) for parts in zip(*runs, strict=True))
    return ended_texts(steps, config.tokenizer) if options.stop_at_end else steps


def _text_tokens(text: str, config: DiscreteDiffusionConfig) -> Tensor:
    """The tokens of a text, int64 (N,), in whole windows if the model knows padding."""
    stories = END.split(normalized(text)) if isinstance(text, str) else []
    if not any(stories):
        raise UserError(f"need a text of at least one character, got {text!r:.50}")
    if unknown := config.tokenizer.unknown_characters("".join(stories)):
        few = shorten(", ".join(map(repr, unknown)), 100)
        words = (
            "they count as <UNK>; to read them, train with vocabulary=auto on text that has them"
        )
        warnings.warn(f"the model does not know {few}: {words}", stacklevel=4)
    ended = [
        config.tokenizer.pad(story, len(story) + 1) for story in stories
    ]  # with one <PAD> each
    tokens = torch.cat(ended)[:-1]
    missing = -len(tokens) % config.block_size if config.padded else 0
    return torch.nn.functional.pad(tokens, (0, missing), value=PAD_ID)


def _text_bound(model: DiscreteDiffusionTransformer, text: str, seed: int) -> Estimate:
    """The bound on a text, in bits per character."""
    tokens = _text_tokens(text, model.config).to(next(model.parameters()).device)
    cut = len(tokens) // (length := model.config.block_size) * length
    parts = [part for part in (tokens[:cut].view(-1, length), tokens[None, cut:]) if part.numel()]
    generator, nats = torch.Generator().manual_seed(seed), torch.zeros(8, dtype=torch.float64)
    for part in parts:  # eight independent measurements of each
        for k in range(8):
            nats[k] += len(part) * sweep(model, part, max(1, 32 // len(part)), generator)
    unit = int((tokens != PAD_ID).sum()) * math.log(2)
    return mean_of(nats).scaled(1 / unit)


class PretrainedModel:
    """A trained network on ``device``, by default a GPU if there is one: what loads, saves and judges."""

    def __init__(self, model: DiscreteDiffusionTransformer, device: str | None = None) -> None:
        self.device = pick_device(device)
        self.model, self.config = model.to(self.device).eval(), model.config
        self.tokenizer = model.config.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """The model of a folder, a bundled name (none: pocket-stories), or a Hub id; else a ``UserError``."""
        return cls(load_model(model_folder(source, revision)), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.model.save_pretrained(folder, config=asdict(self.config))

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload that folder as ``user/model``; options (``private``…) are those of the mixin."""
        hint = "log in with `hf auth login`"
        with error_context(f"cannot push {repo_id!r}", hint, HTTPError, HFValidationError):
            return self.model.push_to_hub(repo_id, config=asdict(self.config), **options)

    def bits_per_character(self, text: str, seed: int = 0) -> Estimate:
        """A bound on -log p of a text, in bits per character, with its 95 % interval; UserError: no text.
        Unknown characters count as ``<UNK>``, with a warning; ``<|endoftext|>`` is the ``<PAD>`` it stands for.
        """
        check_range(0, 2**63, seed=seed)
        return _text_bound(self.model, text, seed)


@dataclass(frozen=True, repr=False)
class WatchedAnimation(Animation):
    """An animation that stands in the output of the cell that wrote it."""

    cell: int | None = None  # the number of that cell, in a notebook

    def _ipython_display_(self) -> None:
        show_in_other_cells(self, self.cell)


def watched(
    steps: Iterator[TextStep], num_steps: int, tokenizer: CharacterLevelTokenizer
) -> Animation:
    """Show the first text of a run while it is written, then keep it."""
    frames: list[Frame] = []

    def pictures() -> Iterator[Picture]:
        for frame in iter_frames((step.tokens[0], step.sigma_bar) for step in steps):
            frames.append(frame)
            yield draw(frame, tokenizer)

    def finished() -> Animation:
        return WatchedAnimation(frames, tokenizer, cell=notebook_cell())

    return watch(pictures(), num_steps, finished)


class DiffusionPipeline(PretrainedModel):
    """From a model to stories."""

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        stop_at_end: bool = False,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each of ``num_steps`` steps; all else as :meth:`generate`."""
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
        return _write(self.model, options, seed, num_samples, first, batch_size)

    def generate(
        self,
        num_samples: int = 1,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        stop_at_end: bool = False,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        return_tokens: bool = False,
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The same ``seed`` gives the same texts (on a GPU, nearly always); None draws one. ``first`` numbers
        the first text, to go on where another call ended; ``batch_size`` is for a GPU, a CPU takes one
        text at a time. The other options are those of :class:`SamplingOptions`. What cannot work is a
        ``UserError``, one line, before any work is done.
        """
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
        for step in _write(self.model, options, seed, num_samples, first, batch_size):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(
        self,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        stop_at_end: bool = False,
        seed: int | None = None,
    ) -> Animation:
        """Write one text, live; ``str()`` of the animation is the text. All else as :meth:`generate`."""
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
        return watched(_write(self.model, options, seed), num_steps, self.tokenizer)

    __call__ = generate
