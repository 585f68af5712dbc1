"""Files that hold text: which there are, and how their bytes become characters."""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import mimetypes
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ddlm_core.support.errors import UserError

# read as they are
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".zst")  # a person unpacks these
BINARY_TABLES = (".parquet", ".arrow")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *BINARY_TABLES)
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # beside what save_to_disk writes
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is how this one begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def kind_of(path: Path) -> str:
    """The ending of a file's name, in small letters, without that of its compression."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in PACKED else ending


def find_files(source: str, encoding: str = "utf-8") -> list[Path]:
    """The files that ``source`` means, sorted; none, if there is nothing of that name.

    A path that exists is taken as it stands, otherwise ``source`` is a pattern. Of a folder come all
    files that hold text, those of the folders in it too, but no hidden ones; a warning names the
    files that hold no text.

    Raises:
        UserError: if there are files, but none that holds text.
    """
    path = os.path.expanduser(source)
    found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    files = sorted({file for start in found for file in _files_of(Path(start))})
    if found and not files:
        raise UserError(f"{source}: there are no files in this folder")
    reasons = {file: why_no_text(file, encoding) for file in files}
    if left_out := [file for file in files if reasons[file]]:
        if len(left_out) == len(files):
            raise UserError(f"{files[0]}: {reasons[files[0]]}")
        names = ", ".join(str(file) for file in left_out[:3])
        names += ", …" if len(left_out) > 3 else ""
        warnings.warn(f"{source}: {len(left_out)} without text left out ({names})", stacklevel=2)
    return [file for file in files if not reasons[file]]


def _files_of(start: Path) -> Iterator[Path]:
    if not start.is_dir():
        yield start
    seen = set()  # links may lead in a circle
    for folder, folders, names in os.walk(start, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        wanted = (name for name in names if not name.startswith(".") and name not in SAVED)
        yield from (Path(folder, name) for name in wanted)


def why_no_text(path: Path, encoding: str = "utf-8") -> str:
    """Why a file cannot be read as text or as a table of texts, and what to do; empty if it can."""
    kind = kind_of(path)
    if kind in BINARY_TABLES:
        return ""
    if kind in ARCHIVES:
        return "an archive: unpack it, and name what was in it"
    media = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    with open_bytes(path) as file:
        head = file.read(1 << 13)
    wide = _has_mark(head) or encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
    is_binary = head.startswith(b"%PDF-") or (b"\0" in head and not wide)
    if is_binary or (media in ("image", "audio", "video", "font") and kind != ".ts"):
        return (
            "no text: save it as text (.txt); UTF-16 without a byte order mark needs encoding=utf-16-le"
            if is_binary
            else f"no text, but {media}: need text, or a table ({', '.join(TABLES)})"
        )
    return ""


def _has_mark(head: bytes) -> bool:
    return head.startswith(tuple(BYTE_ORDER_MARKS))


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked; a UserError says if it is damaged."""
    try:
        with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot unpack it ({error}): copy it again") from error


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[TextIO]:
    r"""The text of a file, unpacked, without a byte order mark, with ``\n`` for every line end.

    Raises:
        UserError: where the bytes are not of this ``encoding``, or if there is no such encoding.
    """
    encoding = encoding_of(path, encoding)
    with open_bytes(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding)
        except UnicodeError as error:
            raise undecodable(path, encoding) from error


def encoding_of(path: Path, encoding: str = "utf-8") -> str:
    """The encoding that a byte order mark tells, or the given one; a UserError if it does not exist."""
    try:
        "".encode(encoding)  # looks it up
    except (LookupError, UnicodeError):
        hint = "encoding=utf-8, cp1252, utf-16-le, …"
        raise UserError(f"there is no encoding {encoding!r} of text: {hint}") from None
    with open_bytes(path) as file:
        head = file.read(4)
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark))
    return next(marks, encoding)


def undecodable(path: Path, encoding: str) -> UserError:
    """Where the bytes of a file are not of this encoding, and what to do."""
    decoder, where = codecs.getincrementaldecoder(encoding)(), "at its end"
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, 1):
                where = f"line {number}"
                decoder.decode(line)
        except UnicodeDecodeError as error:
            where += f", byte 0x{error.object[error.start]:02x}"
        except UnicodeError as error:
            where += f", {error}"
    hint = "encoding=cp1252 (Western Europe), cp1251 (Cyrillic), shift_jis …, or save it as UTF-8"
    return UserError(f"{path} is not {encoding} ({where}): name what it is, {hint}")
