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
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ddlm_core.support.files import not_written

# a row of tokens, and where its stories end, and a hash of each story
FIELDS = {"tokens": np.uint8, "ends": np.int64, "hashes": np.uint64}
Arrays = tuple[np.ndarray, ...]  # one for each field
VERSION = 1  # of what lies in a folder


class Unwritable(OSError):
    """The disk refused, and not the source of the text."""


class Mapped(np.memmap):
    """A file as a row of numbers. Its pickle is where they lie, so a worker of a loader maps it too."""

    def __reduce__(self) -> Any:
        if self._mmap is None or not self.flags.c_contiguous:
            return np.array(self).__reduce__()
        start = self.ctypes.data - np.frombuffer(self._mmap, np.uint8, 1).ctypes.data
        start //= self.itemsize
        return _map_part, (str(self.filename), self.dtype.str, start, start + self.size)


def map_file(path: str | Path, dtype: Any) -> np.ndarray:
    """All numbers in a file, read-only; an empty file cannot be mapped."""
    return Mapped(path, dtype, "r") if os.path.getsize(path) else np.zeros(0, dtype)


def _map_part(path: str, dtype: str, start: int, stop: int) -> np.ndarray:
    return map_file(path, dtype)[start:stop]


def cache_folder() -> Path:
    """Where the tokens of all texts lie."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "ddlm"


def stored(key: Any, blocks: Callable[[], Iterable[Arrays]]) -> Arrays:
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
    return tuple(map_file(folder / field, dtype) for field, dtype in FIELDS.items())


def _prepare(folder: Path, blocks: Callable[[], Iterable[Arrays]]) -> Path:
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


def _write(folder: Path, blocks: Iterable[Arrays]) -> None:
    from tqdm.auto import tqdm

    bar = {"desc": "preparing tokens", "unit": "B", "unit_scale": True, "leave": False}
    with ExitStack() as stack:
        with _writing(folder):
            folder.mkdir()
            files = [stack.enter_context((folder / field).open("wb")) for field in FIELDS]
        progress = stack.enter_context(tqdm(delay=5, **bar))  # seconds: short texts show nothing
        for block in blocks:
            with _writing(folder):
                for file, array, dtype in zip(files, block, FIELDS.values(), strict=True):
                    file.write(np.ascontiguousarray(array, dtype))
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
