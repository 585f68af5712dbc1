"""What every renderer draws: a text as plain data, one mark for each token."""

import re
import unicodedata
from typing import NamedTuple

PAD_MARK = "\ue000"  # stands for <PAD>: a code point for private use, which no text shows
ARROWS = {ord("\n"): "↵", ord("\t"): "⇥"}  # for renderers without room for a line break or a tab
JOINERS = (
    "\u200c\u200d"  # invisible, between the letters of some scripts and the parts of some emoji
)


class Picture(NamedTuple):
    """One moment of a text that changes, ready to be drawn."""

    marks: str  # one character for each token
    text: str  # as it is read, without padding
    sigma_bar: float  # total noise
    changed: tuple[int, ...]  # positions that have just changed, ascending


def harmless(mark: str) -> bool:
    """Whether a terminal only shows a character: no control, nothing that turns the line around."""
    return mark.isprintable() or mark in "\n\t" + JOINERS or unicodedata.category(mark) == "Zs"


def visible(marks: str) -> str:
    """The same number of marks, for a renderer with a cell for each.

    The first of the padding before more text is a ``¶``, other padding a dot.
    """
    end = len(marks.rstrip(PAD_MARK))
    stops = re.sub(f"(?<!{PAD_MARK}){PAD_MARK}", "¶", marks[:end])
    return (stops + marks[end:]).translate(ARROWS | {ord(PAD_MARK): "·"})


def cells(mark: str) -> int:
    """Cells that a mark takes on a terminal: 0 (it joins the letter before it), 1, or 2 (East Asian)."""
    if mark in JOINERS or unicodedata.category(mark) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(mark) in "WF" else 1
