# Generated from notebooks/01_tokenizer.py by tools/export.py: edit that, then run `make export`.
"""Text as characters."""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddlm_core.support.errors import UserError, error_context
from ddlm_core.support.text import normalized

__all__ = [
    "UNK_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "VOCAB",
    "vocabulary_of",
    "resolve_vocabulary",
    "look_up",
    "CharacterLevelTokenizer",
]

UNK_ID, PAD_ID = 0, 1
SPECIAL_TOKENS = ("<UNK>", "<PAD>")
_ON_THE_KEYBOARD = string.digits + string.ascii_letters + string.punctuation + " \t\n"
VOCAB: tuple[str, ...] = (*SPECIAL_TOKENS, *_ON_THE_KEYBOARD, *"“”‘’—–…")


def _checked_vocabulary(vocab: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary as a tuple, or a UserError that says what is wrong with it."""
    vocab = tuple(vocab)
    if vocab[:2] != SPECIAL_TOKENS:
        raise UserError(f"a vocabulary starts with {SPECIAL_TOKENS}, got {vocab[:2]}")
    if len(vocab) > 256:
        raise UserError(f"an id is one byte, so there are at most 256 tokens, got {len(vocab)}")
    if odd := [token for token in vocab[2:] if not isinstance(token, str) or len(token) != 1]:
        raise UserError(f"every token after the first two is one character, got {odd[:5]}")
    if repeated := sorted({token for token in vocab if vocab.count(token) > 1}):
        raise UserError(f"every token occurs once, but these occur again: {repeated[:5]}")
    return vocab


def vocabulary_of(counts: Counter[str], size: int = 254) -> tuple[str, ...]:
    """The special tokens, then the ``size`` most frequent characters; of equal ones, by code point.

    U+FFFD and lone surrogates are left out: they stand for characters that are lost.
    """
    whole = [c for c in counts if c != "\ufffd" and not "\ud800" <= c <= "\udfff"]
    return (*SPECIAL_TOKENS, *sorted(whole, key=lambda c: (-counts[c], c))[:size])


def resolve_vocabulary(
    setting: str | Sequence[str], counts: Callable[[], Counter[str]], size: int = 254
) -> tuple[str, ...]:
    """The vocabulary that a setting asks for, special tokens first.

    Args:
        setting: ``ascii106``, which is ``VOCAB``; ``auto``, the most frequent characters of the text;
            a text file, whose characters they are; or a list of them.
        counts: counts the characters of the text; only called for ``auto``.
        size: characters at most: 254 and the special tokens fill a byte.

    Raises:
        UserError: no such file, or no list of single, distinct characters of that size.
    """
    if setting == "ascii106":
        return VOCAB
    if setting == "auto":
        return vocabulary_of(counts(), size)
    hint = "auto, ascii106, a text file that holds the characters, or a list of them"
    with error_context(f"cannot use vocabulary={setting!r:.80}", hint, ValueError):
        if isinstance(setting, str):
            found = [*dict.fromkeys(normalized(Path(setting).read_text("utf-8-sig")))]
        else:
            found = [normalized(str(c)) for c in setting if c not in SPECIAL_TOKENS]
        if not 1 <= len(found) <= size:
            raise UserError(f"need 1 to {size} characters, got {len(found)}")
        return _checked_vocabulary((*SPECIAL_TOKENS, *found))


def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """Ids (L,) of a text of L characters, as uint8, by one look-up of all its code points.

    ``table`` (m + 2,), uint8, holds the id of code point p at entry p; all above m get the last one.
    """
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table.take(code_points, mode="clip")


def _checked_ids(ids: Tensor | np.ndarray | Sequence, vocab_size: int, ndim: int) -> np.ndarray:
    """Ids as an array, once it is sure that they are integers in [0, vocab_size), in ndim axes."""
    # tolist() works on any device, for any dtype
    array = (
        np.array(ids.tolist()).reshape(ids.shape) if isinstance(ids, Tensor) else np.asarray(ids)
    )
    if array.ndim != ndim:
        raise ValueError(f"ids must have shape {('(L,)', '(B, L)')[ndim - 1]}, got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {array.min()}..{array.max()}")
    return array


class CharacterLevelTokenizer:
    """Text to token ids, one id per character, and back: int64 tensors (L,), L the length of the text.

    ``vocab`` starts with ``SPECIAL_TOKENS``, then come distinct characters, at most 256 tokens in all.
    A vocabulary or a length that cannot work raises a UserError, ids that cannot a ValueError.
    """

    BLOCK = 1 << 16  # characters looked up at a time
    unk_token_id, pad_token_id = UNK_ID, PAD_ID

    def __init__(self, vocab: Iterable[str] = VOCAB) -> None:
        self.vocab = _checked_vocabulary(vocab)
        self.vocab_size = len(self.vocab)
        self.shown = ("\ufffd", "", *self.vocab[2:])  # what decode writes for each id
        code_points = [ord(token) for token in self.vocab[2:]]
        self.table = np.full(max(code_points, default=0) + 2, UNK_ID, dtype=np.uint8)
        self.table[code_points] = np.arange(2, self.vocab_size, dtype=np.uint8)

    def __len__(self) -> int:
        return self.vocab_size

    def encode_numpy(self, text: str) -> np.ndarray:
        """Ids (L,) as uint8, one byte per character: the form in which a data set is stored."""
        starts = range(0, len(text) + 1, self.BLOCK)  # + 1: no text at all is one block, too
        return np.concatenate([look_up(text[i : i + self.BLOCK], self.table) for i in starts])

    def encode(self, text: str) -> Tensor:
        """Ids as a model takes them: an int64 tensor (L,); unknown characters are ``<UNK>``."""
        return torch.from_numpy(self.encode_numpy(text).astype(np.int64))

    def pad(self, text: str, length: int) -> Tensor:
        """Ids, filled up with ``<PAD>`` to an int64 tensor (length,); a longer text is a UserError."""
        if len(text) > length:
            raise UserError(f"a text of {len(text)} characters does not fit in {length} tokens")
        return torch.cat([self.encode(text), torch.full((length - len(text),), PAD_ID)])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (L,); ``<UNK>`` gives U+FFFD (replacement character), ``<PAD>`` nothing."""
        return "".join([self.shown[i] for i in _checked_ids(ids, self.vocab_size, ndim=1).tolist()])

    def decode_batch(self, ids: Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The texts of the rows of ids (B, L)."""
        return [self.decode(row) for row in _checked_ids(ids, self.vocab_size, ndim=2)]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters that ``encode`` turns into ``<UNK>``, each once, in code-point order."""
        return sorted(set(text) - set(self.vocab))
