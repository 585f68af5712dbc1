# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

"""From weights to stories."""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from ddlm_core.animation import Animation, iter_frames
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ['load_model', 'bundled_models', 'encode_template', 'TextStep', 'DiffusionPipeline']  # fmt: skip


def load_model(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder; a ``ValueError`` names the file that is missing or broken."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**config))
        weights = load_file(path := folder / "model.safetensors")
        if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise ValueError(f"{bad[0]} holds NaN or infinity")
        model.load_state_dict(weights)
    except Exception as error:  # JSON, safetensors and PyTorch have no common one
        reason = shorten(str(error), 250)
        mend = "a model is a folder that ddlm-train or save_pretrained wrote"
        raise ValueError(f"cannot use {path} ({reason}): {mend}") from error
    return model.eval().requires_grad_(False)


def bundled_models() -> dict[str, Path]:
    """Name and folder of each model that ships with the package."""
    configs = Path(str(files("ddlm_core"))).glob("pretrained/*/config.json")
    return {config.parent.name: config.parent for config in sorted(configs)}


def _model_folder(source: str | Path | None) -> Path:
    """The folder of a model: a path, a bundled name, a Hub id, or None for the default."""
    name, bundled = str("pocket-stories" if source is None else source), bundled_models()
    if source is not None and Path(name).is_dir():
        return Path(name)
    if name in bundled:
        return bundled[name]
    try:
        if Path(name).parent.is_dir():
            raise FileNotFoundError("no such folder")
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # no network, no such id, no permission
        ways = ", ".join(["a folder", "a Hub id (user/model)", *bundled])
        raise ValueError(f"no model {name!r} ({shorten(str(error), 150)}): name {ways}") from error


def _pick_device(name: str | None) -> torch.device:
    """A device, once it has held a number; by default a GPU if there is one."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.ones(1, device=name).item()
    except Exception as error:  # PyTorch has many
        raise ValueError(f"device {str(name)!r} cannot be used here; 'cpu' always can") from error
    return torch.device(name)


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    r"""Tokens of a template, int64 (L,), and a mask, bool (L,), true where a token is given.

    Args:
        template: text with blanks: ``_`` is one, ``_{12}`` is twelve, ``\_`` is an underscore.
        seq_len: tokens in the text; by default the template is the whole text.
        config: of the model; a ``ValueError`` says why it cannot fill the template.
    """
    long = re.sub(r"(?<!\\)_\{(\d+)\}", lambda match: "_" * min(int(match[1]), 10**6), template)
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


def _check(least: float, most: float, **values: Any) -> None:
    """Raise a ``ValueError`` that names a value out of limits, or not whole if the limits are."""
    kind, what = (Integral, "a whole number") if isinstance(least, int) else (Real, "a number")
    for name, value in values.items():
        if not isinstance(value, kind) or not least <= value <= most:
            raise ValueError(f"{name} must be {what} from {least} to {most}, got {value!r}")


def _arguments(
    config: DiscreteDiffusionConfig, seq_len: int | None = None, template: str | None = None, **how
) -> dict[str, Any]:
    """Arguments for ``denoising_steps``, from what :meth:`DiffusionPipeline.generate` was asked."""
    how = {"num_steps": 128, "schedule": "cosine", "temperature": 1.0} | how
    how["seq_len"] = config.block_size if seq_len is None else seq_len
    _check(1, config.block_size, seq_len=how["seq_len"])
    _check(0.001, 1000, temperature=how["temperature"])
    if template is not None:
        how["template"], how["mask"] = encode_template(template, seq_len, config)
        how["seq_len"] = len(how["mask"])
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


class DiffusionPipeline:
    """From a model to stories, on ``device``: by default a GPU if there is one."""

    def __init__(self, model: DiscreteDiffusionTransformer, device: str | None = None) -> None:
        self.device = _pick_device(device)
        self.model, self.config = model.to(self.device).eval(), model.config
        self.tokenizer = model.config.tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None, device: str | None = None) -> Self:
        """The pipeline of a model; a ``ValueError`` says what is missing or broken.

        Args:
            source: a folder, the name of a bundled model, a Hub id, or None for the default.
            device: where to work; by default a GPU if there is one.
        """
        return cls(load_model(_model_folder(source)), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.model.save_pretrained(folder, config=asdict(self.config))

    def generate_streaming(
        self, num_samples: int = 1, *, seed: int | None = None, first: int = 0, **options: Any
    ) -> Iterator[TextStep]:
        """Write texts side by side: an iterator over the random start and each of ``num_steps`` steps.

        Args:
            num_samples: number of texts.
            seed: the same seed, the same texts; drawn if it is not given.
            first: number of the first text, to go on where another call has ended.
            options: those of :meth:`generate`.
        """
        rows, seed = options.pop("batch_size", 64), secrets.randbits(32) if seed is None else seed
        how = _arguments(self.config, **options)
        _check(1, 100_000, num_samples=num_samples, batch_size=rows, num_steps=how["num_steps"])
        _check(0, 2**63, seed=seed, first=first)
        rows = 1 if self.device.type == "cpu" else rows
        own = sample_generators(seed, num_samples, first)
        batches = [own[i : i + rows] for i in range(0, num_samples, rows)]
        ask = partial(denoising_steps, self.model, self.config.noise, **how)
        runs = [ask(len(batch), generator=batch) for batch in batches]
        return (_join(parts, self.tokenizer) for parts in zip(*runs))

    def generate(
        self, num_samples: int = 1, *, return_tokens: bool = False, **options: Any
    ) -> list[str] | Tensor:
        """The finished texts; a ``ValueError`` says what cannot work, before any work is done.

        Args:
            num_samples: number of texts.
            return_tokens: return tokens, int64 (num_samples, L), instead.
            options: ``seq_len``: tokens in a text, by default what the model takes; ``num_steps``
                (128); ``schedule`` ("cosine"); ``template``: see :func:`encode_template`;
                ``temperature`` (1.0), less is surer; ``batch_size`` (64), texts at once on a GPU,
                always one on a CPU; ``seed`` and ``first``: see :meth:`generate_streaming`.
        """
        for step in self.generate_streaming(num_samples, **options):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(self, **options: Any) -> Animation:
        """Write one text, with the options of :meth:`generate`, and keep all steps for a player."""
        steps = self.generate_streaming(**options)
        frames = iter_frames((step.tokens[0], step.sigma_bar) for step in steps)
        return Animation(list(frames), self.tokenizer)

    __call__ = generate
