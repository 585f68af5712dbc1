# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

"""From weights to stories."""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from ddlm_core.animation import Animation, make_frames
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.tokenizer import PAD_ID

__all__ = [
    "DEFAULT_MODEL",
    "bundled_models",
    "model_folder",
    "hub_folder",
    "load_model",
    "BLANK",
    "parse_template",
    "encode_template",
    "TextStep",
    "best_device",
    "DiffusionPipeline",
    "stream",
    "generate_tokens",
]

DEFAULT_MODEL = "pocket-stories"  # ships with the package


def bundled_models() -> dict[str, Path]:
    """Name and folder of each model that ships with the package."""
    root = Path(str(files("ddlm_core"))) / "pretrained"
    return {config.parent.name: config.parent for config in sorted(root.glob("*/config.json"))}


def model_folder(source: str | Path | None) -> Path:
    """The folder of a model: a path, the name of a bundled model, a Hub id, or None (the default).

    Raises:
        ValueError: if there is no such model.
    """
    bundled = bundled_models()
    name = str(DEFAULT_MODEL if source is None else source)
    if Path(name).is_dir():
        return Path(name)
    if name in bundled:
        return bundled[name]
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        known = ", ".join(bundled) or "none"
        raise ValueError(f"there is no model {name!r}: no such folder, and bundled are: {known}")
    return hub_folder(name)


def hub_folder(name: str) -> Path:
    """Download a model from the Hugging Face Hub, its two safe files only."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # no network, no such repository, no permission
        reason = type(error).__name__
        raise ValueError(f"no folder {name!r}, and the Hub did not give it ({reason})") from error


def load_model(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder with ``config.json`` and ``model.safetensors``, ready to use.

    Raises:
        ValueError: if a file is missing, broken, or does not fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = DiscreteDiffusionConfig(**json.loads((folder / "config.json").read_text("utf-8")))
        weights = load_file(folder / "model.safetensors")
        model = DiscreteDiffusionTransformer(config)
        model.load_state_dict(weights)
    except FileNotFoundError as error:
        missing = Path(error.filename or "model.safetensors").name
        raise ValueError(f"{folder} is no model: {missing} is missing") from None
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{folder} is no model that can be loaded: {reason}") from error
    return model.eval().requires_grad_(False)


BLANK = re.compile(r"\\(_)|_\{(\d{1,6})\}|(_)|(.)", re.DOTALL)


def parse_template(template: str) -> list[str | None]:
    """The characters of a template, None for each blank."""
    characters: list[str | None] = []
    for escaped, number, blank, plain in BLANK.findall(template):
        if number:
            characters += [None] * int(number)
        else:
            characters.append(None if blank else escaped or plain)
    return characters


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Tokens of a template and where they are given.

    Args:
        template: text with blanks, see :func:`parse_template`.
        seq_len: length of the text; by default the template is the whole text.
        config: of the model that is to fill it.

    Returns:
        Tokens, int64 (L,), and a mask, bool (L,), true where the token is given.

    Raises:
        ValueError: if the template is too long, or has a character that the model does not know.
    """
    characters = parse_template(template)
    length = config.block_size if seq_len is None and config.padded else seq_len or len(characters)
    if not 0 < len(characters) <= length:
        raise ValueError(
            f"the template has {len(characters)} characters, there is room for {length}"
        )
    text = "".join(character or " " for character in characters)
    if unknown := config.tokenizer.unknown_characters(text):
        raise ValueError(f"the model does not know {' '.join(map(repr, unknown))} in the template")
    tokens = torch.full((length,), PAD_ID)
    tokens[: len(text)] = config.tokenizer.encode(text)
    given = [character is not None for character in characters]
    rest = [seq_len is None] * (length - len(given))  # beyond the template: <PAD>, or more text
    return tokens, torch.tensor(given + rest)


@dataclass(frozen=True)
class TextStep:
    """What a run has written after one step.

    Args:
        index: 0 for the random start, ``num_steps`` for the finished text.
        num_steps: number of steps of the run.
        sigma_bar: total noise that is left.
        texts: the texts so far, one for each sample.
        tokens: the same as tokens, int64 (B, L).
        changed: true where this step changed a token, bool (B, L).
    """

    index: int
    num_steps: int
    sigma_bar: float
    texts: list[str]
    tokens: Tensor
    changed: Tensor


def best_device() -> torch.device:
    """The fastest device at hand: a CUDA GPU, Apple's, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class DiffusionPipeline:
    """From the name of a model to stories.

    Args:
        model: the network; its config knows tokenizer and noise.
        device: where to work; by default the fastest device at hand.
    """

    def __init__(
        self, model: DiscreteDiffusionTransformer, device: torch.device | str | None = None
    ) -> None:
        self.model = model.to(best_device() if device is None else device).eval()
        self.config, self.tokenizer = model.config, model.config.tokenizer

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, device: torch.device | str | None = None
    ) -> "DiffusionPipeline":
        """Load a folder, a bundled model by its name, a Hub id, or (with nothing) the default."""
        return cls(load_model(model_folder(source)), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.model.save_pretrained(folder)

    def generate_streaming(self, num_samples: int = 1, **options: object) -> Iterator[TextStep]:
        """Every step of one batch; the options are those of :meth:`generate`."""
        for step in stream(self, num_samples, **options):
            texts = self.tokenizer.decode_batch(step.tokens)
            yield TextStep(
                step.index, step.num_steps, step.sigma_bar, texts, step.tokens, step.changed
            )

    def generate(
        self,
        num_samples: int = 1,
        return_tokens: bool = False,
        batch_size: int = 64,
        **options: object,
    ) -> list[str] | Tensor:
        """Write texts; see :func:`stream` for the options.

        Args:
            num_samples: number of texts.
            return_tokens: return tokens, int64 (num_samples, L), instead of texts.
            batch_size: texts written at once; it does not change them.
            options: ``seq_len``, ``num_steps``, ``schedule``, ``template``, ``temperature``, ``seed``.
        """
        tokens = generate_tokens(self, num_samples, batch_size, **options)
        return tokens if return_tokens else self.tokenizer.decode_batch(tokens)

    def generate_with_visualization(self, **options: object) -> Animation:
        """Write one text and return the animation of it; a notebook shows it as a player."""
        steps = list(stream(self, 1, **options))
        frames = make_frames(
            [step.tokens[0].cpu() for step in steps], [step.sigma_bar for step in steps]
        )
        return Animation(frames, self.tokenizer)

    __call__ = generate


def stream(
    pipeline: "DiffusionPipeline",
    num_samples: int = 1,
    seq_len: int | None = None,
    num_steps: int = 128,
    schedule: str = "fraction",
    template: str | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    first: int = 0,
) -> Iterator[DenoisingStep]:
    """The steps of one batch.

    Args:
        pipeline: model and device.
        num_samples: number of texts, at least 1.
        seq_len: tokens in a text; by default as many as the model takes, or as the template has.
        num_steps: number of steps, each with one evaluation of the network.
        schedule: where the steps lie, see ``create_timestep_schedule``.
        template: text with blanks to fill in.
        temperature: below 1 the model trusts its favorite characters more.
        seed: the same seed, the same texts; drawn at random if not given.
        first: number of the first text, for a batch that continues another one.

    Raises:
        ValueError: for arguments that cannot work.
    """
    config = pipeline.config
    tokens, mask = None, None
    if template is not None:
        tokens, mask = encode_template(template, seq_len, config)
        seq_len = len(tokens)
    seq_len = config.block_size if seq_len is None else seq_len
    if not 1 <= seq_len <= config.block_size:
        raise ValueError(f"seq_len must be from 1 to {config.block_size}, got {seq_len}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    seed = secrets.randbits(31) if seed is None else seed
    return denoising_steps(
        pipeline.model,
        config.noise,
        num_samples,
        seq_len,
        num_steps=num_steps,
        schedule=schedule,
        temperature=temperature,
        template=tokens,
        mask=mask,
        generator=sample_generators(seed, num_samples, first),
    )


def generate_tokens(
    pipeline: "DiffusionPipeline", num_samples: int, batch_size: int, **options: object
) -> Tensor:
    """Tokens of ``num_samples`` texts, int64 (num_samples, L), in batches of ``batch_size``."""
    if options.get("seed") is None:
        options["seed"] = secrets.randbits(31)
    parts = []
    for first in range(0, max(num_samples, 1), batch_size):
        count = min(batch_size, num_samples - first)
        for step in stream(pipeline, count, first=first, **options):
            last = step.tokens
        parts.append(last.cpu())
    return torch.cat(parts)
