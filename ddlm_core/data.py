# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

"""Training: data."""

import glob
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core import stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ['Piece', 'read_file', 'POCKET', 'read_stories', 'hub_stories', 'encode_stories', 'split_stories', 'TokenWindows', 'WindowSampler', 'training_loader', 'evaluation_loader', 'setup_dataloaders']  # fmt: skip

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
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of(line, column, f"{path}, line {number}"), True
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(path), split="train")
        yield from ((row[column], True) for row in rows)
    else:
        raise ValueError(f"{path}: need a .txt, .jsonl or .parquet file")


def _text_of(line: str, column: str, where: str) -> str:
    try:
        return json.loads(line)[column]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: need a JSON object with a field {column!r}") from None


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


def hub_stories(source: str, split: str, column: str) -> Iterator[Piece]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one clear line, below, and not a line for every retry
    try:
        rows = load_dataset(source, split=split)
    except Exception as error:
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({type(error).__name__}); "
            f"without a network, {POCKET!r} and paths of local .txt, .jsonl and .parquet files work"
        ) from error
    return ((row[column], True) for row in rows)


def encode_stories(
    pieces: Iterable[Piece], tokenizer: CharacterLevelTokenizer, pad_to: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One row of tokens (uint8), and where its stories end (int64).

    One ``<PAD>`` follows each story, or as many as fill it up to ``pad_to`` tokens.
    """
    rows, ends, total = [], [], 0
    for text, is_end in pieces:
        row = tokenizer.encode_numpy(text)
        if pad_to is not None and len(row) > pad_to:
            raise ValueError(f"a story of {len(row)} characters does not fit in {pad_to}")
        padding = pad_to - len(row) if pad_to is not None else int(is_end)
        rows.append(np.pad(row, (0, padding), constant_values=PAD_ID))
        total += len(rows[-1])
        if is_end:
            ends.append(total)
    return np.concatenate([np.zeros(0, np.uint8), *rows]), np.array(ends, dtype=np.int64)


def split_stories(tokens: np.ndarray, ends: np.ndarray, held_out: int) -> list[np.ndarray]:
    """Training, validation and test tokens that share no story; the last ``held_out`` stories each.

    At most a tenth each; a single running text gives a twentieth each.
    """
    first, second = len(tokens) * 18 // 20, len(tokens) * 19 // 20
    if len(ends) > 2:
        count = min(held_out, max(1, len(ends) // 10))
        first, second = int(ends[-2 * count - 1]), int(ends[-count - 1])
    return [tokens[:first], tokens[first:second], tokens[second:]]


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, asked for by where they start, ``<PAD>`` beyond the end."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        missing = self.length - len(window)
        return torch.from_numpy(np.pad(window, (0, missing), constant_values=PAD_ID))


class WindowSampler(Sampler[int]):
    """Where the windows of epoch ``epoch`` start, in random order, without the first ``skip``.

    A function of ``seed`` and ``epoch`` alone. Unless ``aligned``, every epoch cuts elsewhere.
    """

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        slack = 0 if self.aligned else min(self.length, max(0, self.tokens - self.length))
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        skip, self.skip = self.skip, 0
        yield from (shift + order[skip:] * self.length).tolist()


def training_loader(
    tokens: np.ndarray, length: int, batch_size: int, seed: int, aligned: bool, num_workers: int = 0
) -> DataLoader:
    """Batches of random windows, uint8 (B, L)."""
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one window of {length}")
    sampler = WindowSampler(len(tokens), length, seed, aligned)
    size, windows = min(batch_size, len(sampler)), TokenWindows(tokens, length)
    return DataLoader(windows, size, sampler=sampler, drop_last=True, num_workers=num_workers)


def evaluation_loader(tokens: np.ndarray, length: int, batch_size: int) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    starts = range(0, len(tokens), length)
    return DataLoader(TokenWindows(tokens, length), batch_size=batch_size, sampler=starts)


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
            files; or the name of a data set on the Hugging Face Hub with a text column.
        train_samples: stories to read (megabytes, for a ``.txt``); all if not given.
        val_samples: stories held out for validation, and again for testing.
        context_len: tokens in a window.
        batch_size: windows in a batch.
        num_workers: processes that load batches; 0 loads them in this one.
        val_dataset_name: validate on all of this source instead; testing stays as it is.
        text_column: name of the field that holds the text.
        seed: of the order of the windows, and of ``pocket-stories``.

    Raises:
        OSError: if no file matches, or the Hub cannot be reached.
        ValueError: if a file cannot be read, or the text is shorter than a window.
    """
    tokenizer, aligned = CharacterLevelTokenizer(), dataset_name == POCKET
    pad_to = context_len if aligned else None
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    pieces = read_stories(dataset_name, "train", limit, text_column, seed)
    train, val, test = split_stories(*encode_stories(pieces, tokenizer, pad_to), val_samples)
    if val_dataset_name is not None:
        pieces = read_stories(val_dataset_name, "validation", val_samples, text_column, seed + 1)
        train, (val, _) = np.concatenate([train, val]), encode_stories(pieces, tokenizer, pad_to)
    loader = training_loader(train, context_len, batch_size, seed, aligned, num_workers)
    evaluations = [evaluation_loader(part, context_len, batch_size) for part in (val, test)]
    return loader, *evaluations, tokenizer
