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
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from ddlm_core.support.files import atomic_write, not_written
from ddlm_core.support.progress import has_bar

# a row of tokens, and where its stories end, and a hash of each story
FIELDS = {"tokens": np.uint8, "ends": np.int64, "hashes": np.uint64}
Block = tuple[np.ndarray, ...]  # one array for each field
VERSION = 2  # of what lies in a folder


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
    about: dict[str, Any]  # what else was said about it, plain values


def cache_folder() -> Path:
    """Where the tokens of all texts lie."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "ddlm"


def _name_of(key: Any) -> str:
    return sha256(repr((VERSION, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def remembered(key: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` gave, plain values, when it was called for the same ``key``, if that is in the cache."""
    path = cache_folder() / f"{_name_of(key)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = make()
    with suppress(OSError):  # then it is made again next time
        atomic_write(path, lambda part: part.write_text(json.dumps(made), encoding="utf-8"))
    return made


def stored(
    key: Any,
    blocks: Callable[[], Iterable[Block]],
    about: Callable[[], dict[str, Any]] = dict,
) -> StoredText:
    """The blocks of a text, joined to one memory-mapped array for each field.

    ``about`` is asked after the last block, and what it says is kept with them. All comes from the
    cache if ``key`` is the same. If the cache cannot be written, it goes to a temporary folder,
    with a warning.
    """
    name = _name_of(key)
    try:
        folder = _prepare(cache_folder() / name, blocks, about)
    except Unwritable as error:
        other = Path(tempfile.mkdtemp(prefix="ddlm-"))
        atexit.register(shutil.rmtree, other, ignore_errors=True)
        warnings.warn(f"{error}; the tokens go to {other}, for this run only", stacklevel=4)
        folder = _prepare(other / name, blocks, about)
    arrays = {field: MappedArray(folder / field, dtype) for field, dtype in FIELDS.items()}
    return StoredText(**arrays, about=_contents(folder)["about"])


def _prepare(folder: Path, blocks: Callable[[], Iterable[Block]], about: Callable) -> Path:
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
        _write(part, blocks(), about)
        with _writing(folder):
            part.rename(folder)
    return folder


def _write(folder: Path, blocks: Iterable[Block], about: Callable[[], dict[str, Any]]) -> None:
    from tqdm.auto import tqdm

    with ExitStack() as stack:
        with _writing(folder):
            folder.mkdir()
            files = [stack.enter_context((folder / field).open("wb")) for field in FIELDS]
        how = partial(tqdm, unit="B", unit_scale=True, leave=False, disable=not has_bar())
        progress = how(desc="preparing tokens", delay=5)
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
            (folder / "contents.json").write_text(json.dumps({"sizes": sizes, "about": about()}))


def _contents(folder: Path) -> dict[str, Any]:
    """How long every file is, and what was said about the text."""
    return json.loads((folder / "contents.json").read_text())


def _is_whole(folder: Path) -> bool:
    """Whether every file is there, as long as it was when it was written."""
    try:
        sizes = _contents(folder)["sizes"]
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
