"""Files that are whole or not there at all, whatever crashes: how checkpoints are kept."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LATEST, PREVIOUS = "checkpoint_latest.pth", "checkpoint_previous.pth"


def atomic_write(path: Path, write: Callable[[Path], Any], keep: Path | None = None) -> None:
    """Let ``write`` make a file or folder beside ``path``; once it is whole, put it in its place.

    A rename happens whole or not at all. What was in its place (a file) goes to ``keep``.
    An ``OSError`` says what went wrong; then nothing has changed.
    """
    part = path.with_name(path.name + ".part")
    _remove(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
    except Exception as error:
        _remove(part)
        raise OSError(not_written(path, error)) from error
    if part.is_dir():  # a folder cannot take the place of a folder, but its files can
        path.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.replace(path / file.name)
        part.rmdir()
        return
    if keep is not None and path.exists():
        path.replace(keep)
    part.replace(path)


def not_written(path: Path, error: Exception) -> str:
    """What to say if ``path`` could not be written: how much room there is, and what went wrong."""
    where = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(where).free // 10**6
    return f"could not write {path}; {free:,} MB are free there: {error}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, nothing else is unpickled.

    If the latest one is damaged or missing, the previous one takes its place, with a warning.

    Raises:
        ValueError: if there is no whole checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # compares every checksum, which torch.load does not
                raise ValueError(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        message = f"{path} is no whole checkpoint ({error})"
        previous = path.with_name(PREVIOUS)
        if path.name != LATEST or not previous.exists():
            raise ValueError(message) from error
        content = read_checkpoint(previous)
        warnings.warn(f"{message}; {PREVIOUS} takes its place", stacklevel=2)
        previous.replace(path)
        return content
