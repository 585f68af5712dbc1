"""Files and folders that are whole or not there at all, whatever crashes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], Any], keep: Path | None = None) -> None:
    """Let ``write`` make a file or folder beside ``path``; once it is whole, put it in its place.

    A rename happens whole or not at all. A file that was in the place goes to ``keep``, if named.
    No system swaps two folders in one go: if the machine dies between the two renames, no folder is
    at ``path``, the old one is whole beside it, and the next call puts it back first.

    Raises:
        OSError: if it could not be written; it says why, and nothing has changed.
    """
    part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        old.rename(path)
    _remove(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        if part.is_dir():
            _replace_folder(part, path, old)
            return
        if keep is not None and path.exists():
            path.replace(keep)
        part.replace(path)
    except Exception as error:
        _remove(part)
        raise OSError(not_written(path, error)) from error


def _replace_folder(part: Path, path: Path, old: Path) -> None:
    _remove(old)
    if path.exists():
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _remove(old)


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
