# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

"""Training: data."""

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core.apps.sources import POCKET, read_stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ['encode_stories', 'split_stories', 'TokenWindows', 'WindowSampler', 'evaluation_loader', 'setup_dataloaders']  # fmt: skip


def encode_stories(
    pieces: Iterable[tuple[str, bool]],
    tokenizer: CharacterLevelTokenizer,
    pad_to: int | None = None,
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
    """Starts of the windows of ``epoch``, shuffled, without ``skip``; cut anew unless ``aligned``."""

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
