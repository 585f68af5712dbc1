"""Where text comes from: files, or the Hugging Face Hub; and how it becomes pieces of stories."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category, normalize

import numpy as np

from ddlm_core.support.store import remembered
from ddlm_core.support.tables import file_texts, hub_texts
from ddlm_core.support.textfiles import TABLES, find_files, kind_of, open_text

BLOCK = 1 << 20  # characters that are read and encoded at a time
Piece = tuple[str, bool]  # some text, and whether a story ends after it


class Reading(NamedTuple):
    """How a source is read: see :func:`setup_dataloaders` for what each of these means."""

    split: str = "train"
    limit: int | None = None
    column: str | None = None
    config: str | None = None
    encoding: str = "utf-8"
    separator: str = "<|endoftext|>"


AS_IT_IS = Reading()


@dataclass
class TextCounts:
    """What was seen while a source was read and encoded."""

    files: int = 0
    documents: int = 0
    characters: int = 0
    ends_found: int = 0  # separators
    columns: list[str] = field(default_factory=list)  # that the texts were in
    unknown: Counter[str] = field(default_factory=Counter)  # not in the vocabulary

    def count(self, texts: str, documents: int, is_unknown: np.ndarray) -> None:
        """Add a block of text with its ends of stories; bool (L,) says which characters are unknown."""
        self.characters += len(texts)
        self.documents += documents
        if is_unknown.any():
            self.unknown.update(_counted(_code_points(texts)[is_unknown]))

    def plain(self) -> dict[str, Any]:
        """What :meth:`TextSummary.of` takes."""
        return {
            "files": self.files,
            "documents": self.documents,
            "characters": self.characters,
            "unknown": self.unknown.total(),
            "most_frequent_unknown": sorted(self.unknown.items(), key=lambda x: (-x[1], x[0]))[:10],
            "ends_found": self.ends_found,
            "columns": self.columns,
        }


class TextSummary(NamedTuple):
    """What a text is, and what became of it."""

    files: int  # 0: not from files
    documents: int  # stories, rows, files: whatever is followed by a <PAD>
    characters: int
    unknown: int  # how many of these the vocabulary does not have
    most_frequent_unknown: list[tuple[str, int]]  # at most 10 of them, and how often they occur
    ends_found: int  # separators inside running text
    windows: int  # to train on, in an epoch
    held_out: float  # share of the tokens, to validate and to test with
    columns: list[str]  # of tables: that the texts were in

    @classmethod
    def of(cls, about: dict[str, Any], windows: int, held_out: float) -> "TextSummary":
        """From :meth:`TextCounts.plain`, which was a file in the meantime."""
        frequent = [(character, count) for character, count in about["most_frequent_unknown"]]
        about = about | {"most_frequent_unknown": frequent}
        return cls(**about, windows=windows, held_out=held_out)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _counted(code_points: np.ndarray) -> Counter[str]:
    values, counts = np.unique(code_points, return_counts=True)
    return Counter(dict(zip(map(chr, values.tolist()), counts.tolist())))


def character_counts(source: str | Iterable[Piece], how: Reading = AS_IT_IS) -> Counter[str]:
    """How often each character occurs in a source, as it is trained on; counted once, then remembered."""
    if isinstance(source, str):
        key = "characters", source_key(source, how)
        return Counter(remembered(key, lambda: character_counts(read_stories(source, how))))
    total: Counter[str] = Counter()
    for texts, _, _ in in_blocks(source):
        total.update(_counted(_code_points("".join(texts))))
    return total


def read_stories(
    source: str, how: Reading = AS_IT_IS, found: TextCounts | None = None
) -> Iterator[Piece]:
    r"""The first pieces of a source: NFC, and every line end is ``\n``. ``found`` gets what was seen.

    A limit counts stories, and millions of characters of those that are longer.

    Raises:
        FileNotFoundError: if it must be a file, and there is none of that name.
        UserError: if a file cannot be read.
        ConnectionError: if the Hub cannot be reached.
    """
    found = found or TextCounts()
    left, is_long = how.limit, False
    if left == 0:
        return
    for text, last in _pieces(source, how, found):
        yield text, last
        if left is not None:
            long_piece = len(text) > BLOCK // 2
            left -= long_piece or (last and not is_long)
            is_long = not last and (is_long or long_piece)
            if left <= 0:
                return


def _pieces(source: str, how: Reading, found: TextCounts) -> Iterator[Piece]:
    files = local_files(source, how.encoding)
    for path in files:
        found.files += 1
        if kind_of(path) not in TABLES:
            with open_text(path, how.encoding) as file:
                yield from split_text(iter(lambda: file.read(BLOCK), ""), how.separator, found)
            continue
        yield from _rows(file_texts(path, how.column, how.encoding, found.columns), how, found)
    if not files:
        texts = hub_texts(source, how.split, how.column, how.config, found.columns)
        yield from _rows(texts, how, found)


def _rows(texts: Iterable[str], how: Reading, found: TextCounts) -> Iterator[Piece]:
    for text in texts:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if how.separator and how.separator in text:
            yield from split_text([text], how.separator, found)
        else:
            yield normalize("NFC", text), True


def split_text(parts: Iterable[str], separator: str, found: TextCounts) -> Iterator[Piece]:
    """One text that comes in parts, as pieces in NFC; a story ends at each ``separator``, and at its end.

    Line breaks around a separator are left out, and stories without any text.
    """
    rest, has_begun, separated = "", False, False
    keep = 100 + len(separator)  # of each part, in case a separator or a letter goes on in the next
    for part in parts:
        rest += part
        *stories, rest = rest.split(separator) if separator else [rest]
        for story in stories:
            story = normalize("NFC", story.rstrip("\n"))
            story = story.lstrip("\n") if separated and not has_begun else story
            if story or has_begun:
                yield story, True
            found.ends_found += 1
            has_begun, separated = False, True
        if separated and not has_begun:
            rest = rest.lstrip("\n")
        if cut := _cut(rest, keep):
            yield normalize("NFC", rest[:cut]), False
            rest, has_begun = rest[cut:], True
    rest = rest.rstrip("\n") if separated else rest
    if rest or has_begun:
        yield normalize("NFC", rest), True


def _cut(text: str, keep: int) -> int:
    """Where ``text`` can be cut: nothing after it changes in NFC what is before, nor the other way."""
    for place in range(len(text) - keep, 0, -1):
        if category(text[place])[0] != "M" and not "\u1160" <= text[place] <= "\u11ff":
            return place  # no accent, no second or third part of a Korean syllable
    return 0


def local_files(source: str, encoding: str = "utf-8") -> list[Path]:
    """The files of a source; none, if it is the name of a data set on the Hub.

    Raises:
        FileNotFoundError: if it cannot be such a name, and no file has it.
    """
    files = find_files(source, encoding) if source else []
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)
    endings = (*TABLES, ".txt", ".md")
    if not files and (not is_name or kind_of(Path(source)) in endings):
        raise FileNotFoundError(f"no file matches {source}")
    return files


def source_key(source: str, how: Reading = AS_IT_IS) -> tuple[Any, ...]:
    """All that the text of :func:`read_stories` depends on, to know whether it is still the same.

    Of a file these are name, size, and the times of its last change, the system's own too, which no
    program can set back; of a data set on the Hub its name and revision (without a network, the name alone).
    """
    files = []
    for path in local_files(source, how.encoding):
        status = path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns
        files.append((str(path.resolve()), status.st_size, status.st_ino, *times))
    return tuple(files) or (source, hub_revision(source)), tuple(how)


def hub_revision(source: str) -> str | None:
    """The commit of a data set on the Hub, or None if the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source, timeout=10).sha
    except Exception:  # noqa: BLE001  which ones depends on the HTTP library, and that on the version
        return None


def in_blocks(
    pieces: Iterable[Piece], characters: int | None = None
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Pieces in blocks of some ``characters`` (of ``BLOCK`` if not given): texts, does a story end, hashes.

    A story that ends in the block has a hash, uint64: the same wherever, and for the same text.
    """
    characters = characters or BLOCK
    texts, is_end, hashes, size, story = [], [], bytearray(), 0, blake2b(digest_size=8)
    for text, last in pieces:
        texts.append(text)
        is_end.append(last)
        size += len(text) + 1
        story.update(text.encode("utf-8", "surrogatepass"))
        if last:
            hashes += story.digest()
            story = blake2b(digest_size=8)
        if size >= characters:
            yield texts, np.array(is_end), np.frombuffer(hashes, "<u8")
            texts, is_end, hashes, size = [], [], bytearray(), 0
    if texts:
        yield texts, np.array(is_end), np.frombuffer(hashes, "<u8")
