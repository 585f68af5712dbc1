# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

"""Training: data."""

import glob
import json
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core import stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ['Piece', 'read_file', 'hub_stories', 'POCKET', 'read_stories', 'encode_stories', 'split_stories', 'TokenWindows', 'WindowSampler', 'evaluation_loader', 'setup_dataloaders']  # fmt: skip

Piece = tuple[str, bool]  # some text, and whether a story ends after it


def read_file(path: Path, column: str = "text") -> Iterator[Piece]:
    """Read a ``.txt`` (one running text), or the rows of a ``.jsonl`` or ``.parquet`` file."""
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(1 << 20):
                yield piece, False
        yield "", True
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from _texts(filter(str.strip, file), column, path)
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        yield from _texts(load_dataset("parquet", data_files=str(path))["train"], column, path)
    else:
        raise ValueError(f"{path}: need a .txt, .jsonl or .parquet file")


def _texts(rows: Iterable[dict | str], column: str, source: object) -> Iterator[Piece]:
    for number, row in enumerate(rows, 1):
        try:
            text = (json.loads(row) if isinstance(row, str) else row)[column]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{source}, row {number}: need an object with a text {column!r}")
        yield text, True


def hub_stories(source: str, split: str, column: str) -> Iterator[Piece]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one clear line, below, and not a line for every retry
    try:
        return _texts(load_dataset(source, split=split), column, source)
    except Exception as error:
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({type(error).__name__}); "
            f"without a network, {POCKET!r} and paths of local .txt, .jsonl and .parquet files work"
        ) from error


POCKET = "pocket-stories"


def read_stories(
    source: str, split: str = "train", limit: int | None = None, column: str = "text", seed: int = 0
) -> Iterator[Piece]:
    """The first ``limit`` pieces of a source: see :func:`setup_dataloaders` for what that can be."""
    paths = sorted(glob.glob(source, recursive=True))
    if source == POCKET:
        pieces = ((story, True) for story in stories.sample(limit or 100_000, seed))
    elif paths:
        pieces = (piece for path in paths for piece in read_file(Path(path), column))
    elif Path(source).suffix in (".txt", ".jsonl", ".parquet") or source.startswith((".", "/")):
        raise FileNotFoundError(f"no file matches {source}")
    else:
        pieces = hub_stories(source, split, column)
    yield from islice(pieces, limit)


def encode_stories(
    pieces: Iterable[Piece], tokenizer: CharacterLevelTokenizer, pad_to: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One row of tokens (uint8), with a ``<PAD>`` or ``pad_to`` tokens a story, and the ends (int64)."""
    tokens, ends = bytearray(), []
    for text, is_end in pieces:
        tokens += tokenizer.encode_numpy(text).tobytes()
        if pad_to is not None and len(text) > pad_to:
            raise ValueError(f"a story of {len(text)} characters does not fit in {pad_to}")
        if is_end:
            tokens += bytes([PAD_ID]) * (1 if pad_to is None else pad_to - len(text))
            ends.append(len(tokens))
    return np.frombuffer(tokens, np.uint8), np.array(ends, dtype=np.int64)


def split_stories(tokens: np.ndarray, ends: np.ndarray, held_out: int) -> list[np.ndarray]:
    """Training, validation and test tokens that share no story.

    The last two get at most ``held_out`` stories and a tenth of all, or a twentieth of one text.
    """
    if len(ends) < 3:
        return np.split(tokens, [len(tokens) * 18 // 20, len(tokens) * 19 // 20])
    count = min(held_out, max(1, len(ends) // 10))
    borders = [0, *ends.tolist()]
    rows = [tokens[a:b] for a, b in zip(borders[-2 * count - 1 :], borders[-2 * count :])]
    early = (tokens[a:b].tobytes() for a, b in zip(borders, borders[1 : -2 * count]))
    seen = {row.tobytes() for row in rows}.intersection(early)
    val = [row for row in rows[:count] if row.tobytes() not in seen]
    seen |= {row.tobytes() for row in val}
    test = [row for row in rows[count:] if row.tobytes() not in seen]
    if not (val and test):
        warnings.warn("stories repeat: those held out also occur in training", stacklevel=2)
        val, test = rows[:count], rows[count:]
    return [tokens[: borders[-2 * count - 1]], np.concatenate(val), np.concatenate(test)]


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, asked for by where they start, ``<PAD>`` beyond the end."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        padded = np.pad(window, (0, self.length - len(window)), constant_values=PAD_ID)
        return torch.from_numpy(padded)


class WindowSampler(Sampler[int]):
    """Where the windows of ``epoch`` start, shuffled, without the first ``skip``.

    Unless ``aligned``, every epoch cuts elsewhere.
    """

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        if tokens < length:
            raise ValueError(f"{tokens} tokens are shorter than one window of {length}")
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        slack = 0 if self.aligned else min(self.length, self.tokens - self.length)
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        starts, self.skip = shift + order[self.skip :] * self.length, 0
        yield from starts.tolist()


def evaluation_loader(tokens: np.ndarray, length: int, batch_size: int) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    return DataLoader(
        TokenWindows(tokens, length), batch_size, sampler=range(0, len(tokens), length)
    )


def setup_dataloaders(
    dataset_name: str = "roneneldan/TinyStories",
    train_samples: int | None = None,
    val_samples: int = 1000,
    context_len: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    val_dataset_name: str | None = None,
    text_column: str = "text",
    seed: int = 0,
) -> tuple[DataLoader, DataLoader, DataLoader, CharacterLevelTokenizer]:
    """Training, validation and test batches, uint8 (B, context_len), and the tokenizer.

    Args:
        dataset_name: ``"pocket-stories"``; a path or glob of ``.txt``, ``.jsonl`` or ``.parquet``
            files; or the name of a data set on the Hugging Face Hub.
        train_samples: stories to read (megabytes, for a ``.txt``); all if not given.
        val_samples: stories held out for validation, and again for testing.
        val_dataset_name: validate on all of this source instead; testing stays as it is.
        seed: of the order of the windows, and of ``pocket-stories``.
    """
    tokenizer, aligned = CharacterLevelTokenizer(), dataset_name == POCKET
    pad_to = context_len if aligned else None
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    pieces = read_stories(dataset_name, "train", limit, text_column, seed)
    train, *held = split_stories(*encode_stories(pieces, tokenizer, pad_to), val_samples)
    if val_dataset_name is not None:
        pieces = read_stories(val_dataset_name, "validation", val_samples, text_column, seed + 1)
        train = np.concatenate([train, held[0]])
        held[0], _ = encode_stories(pieces, tokenizer, pad_to)
    sampler = WindowSampler(len(train), context_len, seed, aligned)
    options = {"sampler": sampler, "drop_last": True, "num_workers": num_workers}
    loader = DataLoader(TokenWindows(train, context_len), min(batch_size, len(sampler)), **options)
    return loader, *(evaluation_loader(part, context_len, batch_size) for part in held), tokenizer
