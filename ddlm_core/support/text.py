"""Text as people give it, in the one form that models read."""

import unicodedata

END_OF_TEXT = "<|endoftext|>"  # how the end of a text is written where more text follows


def normalized(text: str) -> str:
    r"""The same text with ``\n`` at the end of each line, and one spelling of each letter (Unicode NFC).

    An ``e`` and its accent become one ``é``; ``\r\n`` and ``\r``, as Windows and old files have them, a ``\n``.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
