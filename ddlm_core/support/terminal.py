"""The terminal view: each frame is drawn over the one before, without flicker."""

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TextIO

from ddlm_core.support.drawing import Picture, cells, visible


def _rows(marks: str, changed: Iterable[int], width: int) -> list[str]:
    """Rows of at most ``width`` cells for a terminal; what changed is bold, underlined and magenta."""
    on, off, marked = "\x1b[1;4;35m", "\x1b[0m", set(changed)
    rows, room = [""], width
    for i, mark in enumerate(visible(marks)):
        if cells(mark) > room:
            rows, room = [*rows, ""], width
        if not rows[-1] and not cells(mark):  # an accent needs a letter
            mark, room = f"◌{mark}", room - 1
        room -= cells(mark[-1])
        rows[-1] += f"{on}{mark}{off}" if i in marked else mark
    return [row.replace(off + on, "") for row in rows]


def _in_sight(rows: list[str], height: int) -> list[str]:
    """As many rows as a screen takes: the first ones, or those up to the last one with a change."""
    last = max((i for i, row in enumerate(rows) if "\x1b" in row), default=0)
    first = max(0, min(last + 1, len(rows)) - height)
    return rows[first : first + height]


def _write(stream: TextIO, text: str) -> None:
    """Write at once, with ``?`` for what the encoding of the stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def _draw(pictures: Iterable[Picture], stream: TextIO, fps: float) -> Picture | None:
    """Draw each picture over the one before, then leave the final text and give back the cursor."""
    picture, up = None, ""
    columns, height = shutil.get_terminal_size()
    try:
        _write(stream, "\x1b[?25l")
        for step, picture in enumerate(pictures):
            due = time.monotonic() + (1 / fps if fps else 0)
            rows = _rows(picture.marks, picture.changed, max(columns - 1, 1))
            status = f"step {step} · noise {picture.sigma_bar:.3g} · {len(picture.changed)} changed"
            lines = [*_in_sight(rows, max(height - 2, 1)), status[: columns - 1]]
            _write(stream, up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            up = f"\x1b[{len(lines)}A"
            time.sleep(max(0, due - time.monotonic()))
        if picture is not None:
            _write(stream, f"{up}\x1b[J{picture.text}\n")
        return picture
    finally:
        _write(stream, "\x1b[0m\x1b[?25h")


def render_terminal(
    pictures: Iterable[Picture], stream: TextIO | None = None, fps: float = 12.0
) -> Picture | None:
    """Show pictures in place as they arrive; where that cannot be, print the final text alone.

    Args:
        pictures: from a list, or from a sampler that is still at work.
        stream: where to write; by default the standard output.
        fps: pictures per second at most; 0 never waits.

    Returns:
        The last picture; None if there was none.
    """
    stream = sys.stdout if stream is None else stream
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return _draw(pictures, stream, fps)
    for picture in deque(pictures, maxlen=1):
        _write(stream, picture.text + "\n")
        return picture
    return None
