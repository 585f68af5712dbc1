"""Tokens on disk: prepared once, there whole or not at all, and read through a memory map.

A text gets a folder in the cache of the Hugging Face libraries (`HF_HOME`, or `HF_ASSETS_CACHE`),
whose name is a hash of all that the tokens depend on. Deleting it costs a new preparation, no more.
"""

import atexit
import json
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from ddlm_core.support.files import not_written

# a row of tokens, and where its stories end, and a hash of each story
FIELDS = {"tokens": np.uint8, "ends": np.int64, "hashes": np.uint64}
Block = tuple[np.ndarray, ...]  # one array for each field
VERSION = 1  # of what lies in a folder


class Unwritable(OSError):
    """The disk refused, and not the source of the text."""


class MappedArray:
    """The first ``size`` numbers of a file, mapped into memory when they are first read.

    A pickle of it is where the file lies, so each worker of a loader maps the file itself.
    """

    def __init__(self, path: Path, dtype: Any, size: int | None = None) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.size = path.stat().st_size // self.dtype.itemsize if size is None else size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    @cached_property
    def array(self) -> np.ndarray:
        """The numbers, read-only."""
        if self.size == 0:  # an empty file cannot be mapped
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=(self.size,))

    def first(self, size: int) -> "MappedArray":
        """The first ``size`` of these numbers."""
        return MappedArray(self.path, self.dtype, size)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "array"}


class StoredText(NamedTuple):
    """A text on disk."""

    tokens: MappedArray  # uint8
    ends: MappedArray  # int64: where its stories end
    hashes: MappedArray  # uint64, one for each story


def cache_folder() -> Path:
    """Where the tokens of all texts lie."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "ddlm"


def stored(key: Any, blocks: Callable[[], Iterable[Block]]) -> StoredText:
    """The blocks of a text, joined to one memory-mapped array for each field.

    They come from the cache if ``key`` is the same. If the cache cannot be written, they go to a
    temporary folder, with a warning.
    """
    name = sha256(repr((VERSION, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    try:
        folder = _prepare(cache_folder() / name, blocks)
    except Unwritable as error:
        other = Path(tempfile.mkdtemp(prefix="ddlm-"))
        atexit.register(shutil.rmtree, other, ignore_errors=True)
        warnings.warn(f"{error}; the tokens go to {other}, for this run only", stacklevel=4)
        folder = _prepare(other / name, blocks)
    return StoredText(*(MappedArray(folder / field, dtype) for field, dtype in FIELDS.items()))


def _prepare(folder: Path, blocks: Callable[[], Iterable[Block]]) -> Path:
    """Fill a folder, unless it is whole already; of several processes, one does, the others wait."""
    from huggingface_hub.utils import WeakFileLock

    if _is_whole(folder):
        return folder
    with ExitStack() as stack:
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(folder.with_suffix(".lock")))
            if _is_whole(folder):
                return folder
            for left in (folder, *folder.parent.glob(f"{folder.name}.part-*")):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        part = folder.with_name(f"{folder.name}.part-{uuid.uuid4().hex[:8]}")
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        _write(part, blocks())
        with _writing(folder):
            part.rename(folder)
    return folder


def _write(folder: Path, blocks: Iterable[Block]) -> None:
    from tqdm.auto import tqdm

    with ExitStack() as stack:
        with _writing(folder):
            folder.mkdir()
            files = [stack.enter_context((folder / field).open("wb")) for field in FIELDS]
        progress = tqdm(desc="preparing tokens", unit="B", unit_scale=True, leave=False, delay=5)
        stack.enter_context(progress)  # the delay in seconds: short texts show nothing
        for block in blocks:
            with _writing(folder):
                for file, array, dtype in zip(files, block, FIELDS.values(), strict=True):
                    file.write(np.ascontiguousarray(array, dtype).data)
            progress.update(len(block[0]))
        with _writing(folder):
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            sizes = {field: file.tell() for field, file in zip(FIELDS, files)}
            (folder / "sizes.json").write_text(json.dumps(sizes))


def _is_whole(folder: Path) -> bool:
    """Whether every file is there, as long as it was when it was written."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return all((folder / field).stat().st_size == sizes[field] for field in FIELDS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(not_written(path, error)) from error


def fingerprint(tokens: Any) -> str:
    """How many tokens a row (N,) has, and a checksum of 64 blocks that are spread over it."""
    block, count = 1 << 16, len(tokens)
    starts = np.linspace(0, max(0, count - block), 64).astype(int)
    checksum = 0
    for start in sorted(set(starts.tolist())):
        checksum = crc32(np.ascontiguousarray(tokens[start : start + block]).data, checksum)
    return f"{count:,} tokens, checksum {checksum:08x}"
