# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""TinyStories on a GPU."""

import json
import math
import re
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddlm_core.animation import Animation, iter_frames
from ddlm_core.evaluation import Estimate, estimate_bound
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.support.checks import check_range
from ddlm_core.support.errors import error_context
from ddlm_core.support.hardware import pick_device
from ddlm_core.support.models import model_folder
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ["load_model", "encode_template", "TextStep", "text_bound", "DiffusionPipeline"]


def load_model(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder; a ``ValueError`` names the file that is missing or broken."""
    mend = "a model is a folder that ddlm-train or save_pretrained wrote"
    with error_context(f"cannot use {(path := folder / 'config.json')}", mend):
        config = json.loads(path.read_text(encoding="utf-8"))
        model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**config))
    with error_context(f"cannot use {(path := folder / 'model.safetensors')}", mend):
        weights = load_file(path)
        if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise ValueError(f"{bad[0]} holds NaN or infinity")
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    r"""Tokens of a template, int64 (L,), and a mask, bool (L,), true where a token is given.

    A ``_`` is a blank, ``_{12}`` is twelve, ``\_`` is an underscore. Without ``seq_len`` the template
    is the whole text. A ``ValueError`` says why the model of ``config`` cannot fill it in.
    """
    long = re.sub(r"(?<!\\)_\{(\d+)\}", lambda m: "_" * int(min(float(m[1]), 9999)), template)
    characters = [None if c == "_" else c[-1] for c in re.findall(r"\\_|.", long, re.DOTALL)]
    room, count = config.block_size if seq_len is None else seq_len, len(characters)
    if not 1 <= count <= room:
        raise ValueError(f"the template has {count} characters, there is room for 1 to {room}")
    text = "".join(filter(None, characters))
    if unknown := config.tokenizer.unknown_characters(text):
        raise ValueError(f"the model does not know {', '.join(map(repr, unknown))} of the template")
    length = count if seq_len is None and not config.padded else room
    mask = torch.full((length,), seq_len is None)  # after the template: <PAD> is given, or all free
    mask[:count] = torch.tensor([character is not None for character in characters])
    if mask.all():
        raise ValueError("the template has no blank: write _ for each character to fill in")
    tokens = torch.full((length,), PAD_ID)
    tokens[:count][mask[:count]] = config.tokenizer.encode(text)
    return tokens, mask


def _arguments(
    config: DiscreteDiffusionConfig, seq_len: int | None = None, template: str | None = None, **how
) -> dict[str, Any]:
    """Arguments for ``denoising_steps``, from what :meth:`DiffusionPipeline.generate` was asked."""
    churn = float(config.graph == "uniform" and config.parametrization == "denoiser")
    how = {"num_steps": 128, "schedule": "cosine", "temperature": 1.0, "churn": churn} | how
    how["seq_len"] = config.block_size if seq_len is None else seq_len
    check_range(1, config.block_size, seq_len=how["seq_len"])
    check_range(0.001, 1000, temperature=how["temperature"])
    if template is not None:
        how["template"], how["condition_mask"] = encode_template(template, seq_len, config)
        how["seq_len"] = len(how["condition_mask"])
    return how


@dataclass(frozen=True)
class TextStep(DenoisingStep):
    """A step of the sampler, and the texts that it leaves, one for each sample."""

    texts: list[str]


def _join(parts: tuple[DenoisingStep, ...], tokenizer: CharacterLevelTokenizer) -> TextStep:
    """The same step of several batches as one, on the CPU."""
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    changed = torch.cat([part.changed for part in parts]).cpu()
    joined = {"tokens": tokens, "changed": changed, "texts": tokenizer.decode_batch(tokens)}
    return TextStep(**vars(parts[0]) | joined)


def _text_tokens(text: str, config: DiscreteDiffusionConfig) -> Tensor:
    """The tokens of a text, int64 (N,), in whole windows if the model knows padding."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"need a text of at least one character, got {text!r:.50}")
    if unknown := config.tokenizer.unknown_characters(text):
        few = shorten(", ".join(map(repr, unknown)), 100)
        warnings.warn(f"the model does not know {few}: they count as <UNK>", stacklevel=4)
    missing = -len(text) % config.block_size if config.padded else 0
    return config.tokenizer.pad(text, len(text) + missing)


def text_bound(model: DiscreteDiffusionTransformer, text: str, seed: int = 0) -> Estimate:
    """The bound on a text, in bits for each of its characters."""
    tokens = _text_tokens(text, model.config).to(next(model.parameters()).device)
    cut = len(tokens) // (length := model.config.block_size) * length
    parts = [part for part in (tokens[:cut].view(-1, length), tokens[None, cut:]) if part.numel()]
    found = [estimate_bound(model, part, max(2, 256 // len(part)), seed) for part in parts]
    total = sum(e.mean * len(part) for e, part in zip(found, parts))
    reach = math.hypot(*((e.high - e.mean) * len(part) for e, part in zip(found, parts)))
    unit = len(text) * math.log(2)
    return Estimate(total / unit, (total - reach) / unit, (total + reach) / unit)


class DiffusionPipeline:
    """From a model to stories, on ``device``: by default a GPU if there is one."""

    def __init__(self, model: DiscreteDiffusionTransformer, device: str | None = None) -> None:
        self.device = pick_device(device)
        self.model, self.config = model.to(self.device).eval(), model.config
        self.tokenizer = model.config.tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, device: str | None = None) -> Self:
        """The pipeline of a folder, a bundled model (by default) or a Hub id, else ``ValueError``."""
        return cls(load_model(model_folder(source)), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.model.save_pretrained(folder, config=asdict(self.config))

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload that folder as ``user/model``; options (``private``…) are those of the mixin."""
        with error_context(f"cannot push {repo_id!r}", "log in with `hf auth login`"):
            return self.model.push_to_hub(repo_id, config=asdict(self.config), **options)

    def generate_streaming(
        self, num_samples: int = 1, *, seed: int | None = None, first: int = 0, **options: Any
    ) -> Iterator[TextStep]:
        """Write texts side by side: an iterator over the random start and each of ``num_steps`` steps.

        The same ``seed`` gives the same texts (on a GPU, nearly always); one is drawn if none is given.
        ``first`` numbers the first text, to go on where another call ended. More: :meth:`generate`.
        """
        rows, seed = options.pop("batch_size", 64), secrets.randbits(32) if seed is None else seed
        how = _arguments(self.config, **options)
        check_range(
            1, 100_000, num_samples=num_samples, batch_size=rows, num_steps=how["num_steps"]
        )
        check_range(0, 2**63, seed=seed, first=first)
        rows = 1 if self.device.type == "cpu" else rows
        own = sample_generators(seed, num_samples, first)
        batches = [own[i : i + rows] for i in range(0, num_samples, rows)]
        ask = partial(denoising_steps, self.model, self.config.noise, **how)
        runs = [ask(len(batch), generator=batch) for batch in batches]
        return (_join(parts, self.tokenizer) for parts in zip(*runs))

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """The finished texts, or tokens (num_samples, L); ``ValueError`` before any work is done.

        Options: ``seq_len``, by default what the model takes; ``num_steps`` (128); ``schedule`` ("cosine");
        ``churn`` (1.0; with masks 0.0); ``temperature`` (1.0), less is surer; ``template``: see
        :func:`encode_template`; ``batch_size`` (64) on a GPU; ``seed``, ``first``: see the method above.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, with the options of :meth:`generate`, and keep all steps for a player."""
        steps = self.generate_streaming(**options)
        frames = iter_frames((step.tokens[0], step.sigma_bar) for step in steps)
        return Animation(list(frames), self.tokenizer)

    def bits_per_character(self, text: str, seed: int = 0) -> Estimate:
        """A bound on the surprise of a text, per character; unknown ones count as ``<UNK>``."""
        check_range(0, 2**63, seed=seed)
        return text_bound(self.model, text, seed)

    __call__ = generate
