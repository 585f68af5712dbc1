"""Text as people give it and get it, and the one form that models read."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import groupby

END_OF_TEXT = "<|endoftext|>"  # how the end of a text is written where more text follows
END = re.compile(rf"\n?{re.escape(END_OF_TEXT)}\n?")  # with the line of its own that it stands on


def normalized(text: str) -> str:
    r"""The same text with ``\n`` at the end of each line, and one spelling of each letter (Unicode NFC).

    An ``e`` and its accent become one ``é``; ``\r\n`` and ``\r``, as Windows and old files have, a ``\n``.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def with_ends(characters: Iterable[str]) -> str:
    """A text of what its tokens show, the empty string where one is padding.

    Padding with more text behind it is the end of a text: ``<|endoftext|>`` on a line of its own, as
    ``END`` finds it. Padding with nothing behind it shows nothing.
    """
    parts = [(some, "".join(run)) for some, run in groupby(characters, bool)]
    if parts and not parts[-1][0]:
        parts.pop()
    return "\n".join(text if some else END_OF_TEXT for some, text in parts)
