"""Checkpoint files: written whole, compared with their checksums when they are read.

Reading never writes. Nothing but tensors and plain values is unpickled.
"""

import warnings
import zipfile
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch

from ddlm_core.support.errors import UserError
from ddlm_core.support.files import atomic_write

LATEST, PREVIOUS = "checkpoint_latest.pth", "checkpoint_previous.pth"


# what zipfile raises for a file with wrong bits: in its headers it may find another method, or a lock
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class DamagedCheckpoint(UserError):
    """The file is no whole checkpoint: cut off, or a bit of it is wrong."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values; a checkpoint that was there becomes ``checkpoint_previous``."""
    atomic_write(path, lambda part: torch.save(content, part), path.with_name(PREVIOUS))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. The file stays as it is, whatever is found.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedCheckpoint: if the file is cut off, or a checksum is wrong.
        UserError: if a whole file holds something else than a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # compares every checksum, which torch.load does not
                raise DamagedCheckpoint(f"{path} is damaged: a checksum of {damaged} is wrong")
    except DAMAGE as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "PytorchStreamReader" in reason:  # its reader of zip files is stricter than Python's
            raise DamagedCheckpoint(f"{path} is damaged: {reason}") from error
        raise UserError(f"{path} is no checkpoint of ddlm-train: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of ddlm-train: it holds no dictionary")
    return content


def find_checkpoint(path: Path) -> tuple[dict[str, Any], Path]:
    """What a checkpoint holds, and which file it was read from.

    If the latest one is damaged or missing, the previous one is read instead, with a warning. No
    other failure has this effect: a whole file that cannot be read now may be read later.

    Raises:
        UserError: if there is no whole checkpoint.
    """
    previous = path.parent / PREVIOUS
    try:
        return read_checkpoint(path), path
    except (DamagedCheckpoint, FileNotFoundError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = f"there is no checkpoint {path}" if missing else str(error)
        if path.name != LATEST or not previous.exists():
            raise UserError(f"{reason}: name a file that ddlm-train has written") from error
    content = read_checkpoint(previous)
    warnings.warn(f"{reason}; going on from {PREVIOUS}", stacklevel=2)
    return content, previous


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], harmless: Set[str] = frozenset()
) -> list[str]:
    """``key: old value → new value`` for each key that differs and is not harmless, in order."""
    keys = [key for key in {**before, **now} if key not in harmless]
    return [
        f"{key}: {change(before.get(key), now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def change(before: Any, now: Any) -> str:
    """``old value → new value``; of long lists, what only one of them has."""
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) > 8:
        gone = " ".join(repr(v) for v in before if v not in now)
        new = " ".join(repr(v) for v in now if v not in before)
        return f"without {gone or 'none':.60}, with {new or 'none':.60}"
    return f"{before!r:.80} → {now!r:.80}"
