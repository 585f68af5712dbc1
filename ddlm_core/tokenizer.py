# Generated from notebooks/01_tokenizer.py by tools/export.py: edit that, then run `make export`.

"""Text as characters."""

import string
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ['UNK_ID', 'PAD_ID', 'SPECIAL_TOKENS', 'VOCAB', 'look_up', 'CharacterLevelTokenizer']  # fmt: skip

UNK_ID, PAD_ID = 0, 1
SPECIAL_TOKENS = ("<UNK>", "<PAD>")
_ON_THE_KEYBOARD = string.digits + string.ascii_letters + string.punctuation + " \t\n"
VOCAB: tuple[str, ...] = (*SPECIAL_TOKENS, *_ON_THE_KEYBOARD, *"“”‘’—–…")


def _check_vocabulary(vocab: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary as a tuple, once it is sure that each token can be told from all others."""
    vocab = tuple(vocab)
    if vocab[:2] != SPECIAL_TOKENS:
        raise ValueError(f"a vocabulary starts with {SPECIAL_TOKENS}, got {vocab[:2]}")
    if len(vocab) > 256:
        raise ValueError(f"an id is one byte, so there are at most 256 tokens, got {len(vocab)}")
    if odd := [token for token in vocab[2:] if not isinstance(token, str) or len(token) != 1]:
        raise ValueError(f"every token after the first two is one character, got {odd[:5]}")
    if repeated := sorted({token for token in vocab if vocab.count(token) > 1}):
        raise ValueError(f"every token occurs once, but these occur again: {repeated[:5]}")
    return vocab


def _code_point_table(vocab: tuple[str, ...]) -> np.ndarray:
    """Entry p is the id of ``chr(p)``: uint8, one longer than the largest code point needs."""
    code_points = [ord(token) for token in vocab[2:]]
    table = np.full(max(code_points, default=0) + 2, UNK_ID, dtype=np.uint8)
    table[code_points] = np.arange(2, len(vocab), dtype=np.uint8)
    return table


def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """Ids of a text of L characters, uint8 of shape (L,), by one look-up of its code points."""
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table.take(code_points, mode="clip")


def _integer_array(ids: Tensor | np.ndarray | Sequence, vocab_size: int) -> np.ndarray:
    """Ids of any shape as an array, once it is sure that they are integers in [0, vocab_size)."""
    if isinstance(ids, Tensor):
        if ids.is_floating_point():
            raise ValueError(f"token ids are integers, got {ids.dtype}")
        ids = ids.numpy(force=True)
    ids = np.asarray(ids)
    if ids.size == 0:  # nothing to look at; an empty list would count as floats
        return ids
    if ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
    return ids


class CharacterLevelTokenizer:
    """Text to token ids, one id a character, and back: int64 tensors (L,), L the length of the text.

    Ids of characters that are not in ``vocab`` are ``unk_token_id``. Text that is too long to
    ``pad``, ids out of range, not integers or of the wrong shape raise a ValueError.

    Args:
        vocab: ``"<UNK>"`` and ``"<PAD>"``, then distinct single characters, at most 256 tokens in
            all; else a ValueError.
    """

    BLOCK = 1 << 16  # characters looked up at a time
    unk_token_id, pad_token_id = UNK_ID, PAD_ID

    def __init__(self, vocab: Iterable[str] = VOCAB) -> None:
        self.vocab = _check_vocabulary(vocab)
        self.vocab_size = len(self.vocab)
        self.table = _code_point_table(self.vocab)
        self.shown = ("\ufffd", "", *self.vocab[2:])  # what decode writes for each id

    def __len__(self) -> int:
        return self.vocab_size

    def encode_numpy(self, text: str) -> np.ndarray:
        """Ids (L,) as uint8, one byte a character: the form in which a data set is stored."""
        ids = np.empty(len(text), dtype=np.uint8)
        for start in range(0, len(text), self.BLOCK):
            block = slice(start, start + self.BLOCK)
            ids[block] = look_up(text[block], self.table)
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids as a model takes them: an int64 tensor (L,)."""
        return torch.from_numpy(self.encode_numpy(text).astype(np.int64))

    def pad(self, text: str, length: int) -> Tensor:
        """Ids, filled up with ``<PAD>`` to an int64 tensor (length,); nothing is cut off."""
        if len(text) > length:
            raise ValueError(f"a text of {len(text)} characters does not fit in {length} tokens")
        filling = torch.full((length - len(text),), PAD_ID)
        return torch.cat([self.encode(text), filling])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (L,); ``<UNK>`` gives U+FFFD (replacement character), ``<PAD>`` nothing."""
        ids = _integer_array(ids, self.vocab_size)
        if ids.ndim != 1:
            raise ValueError(f"decode takes ids of shape (L,), got {ids.shape}; see decode_batch")
        return "".join([self.shown[i] for i in ids.tolist()])

    def decode_batch(self, ids: Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The texts of the rows of ids (B, L)."""
        ids = _integer_array(ids, self.vocab_size)
        if ids.ndim != 2:
            raise ValueError(f"decode_batch takes ids of shape (B, L), got {ids.shape}")
        return [self.decode(row) for row in ids]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters that ``encode`` turns into ``<UNK>``, each once, in code-point order."""
        return sorted(set(text) - set(self.vocab))
