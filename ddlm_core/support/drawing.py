"""What every renderer draws: a text as plain data, one mark for each token."""

from typing import NamedTuple

PAD_MARK = "·"  # stands for <PAD> while a text is watched
ARROWS = {ord("\n"): "↵", ord("\t"): "⇥"}  # for renderers without room for a line break or a tab


class Picture(NamedTuple):
    """One moment of a text that changes, ready to be drawn."""

    marks: str  # one character for each token
    text: str  # as it is read, without padding
    sigma_bar: float  # total noise
    changed: tuple[int, ...]  # positions that have just changed, ascending
