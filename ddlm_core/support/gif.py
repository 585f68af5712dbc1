"""The GIF view: a grid of characters, with its lines broken between the words of the cleanest frame."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddlm_core.support.drawing import PAD_MARK, Picture, visible


def _lay_out(text: str, width: int) -> list[tuple[int, int]]:
    """A row and a column for each character; lines break between words where they can."""
    cells, row, column = [], 0, 0
    for word in re.findall(rf"[^\s{PAD_MARK}]*[\s{PAD_MARK}]|[^\s{PAD_MARK}]+", text):
        if column and column + len(word.rstrip()) > width:
            row, column = row + 1, 0
        for _ in word:
            if column == width:
                row, column = row + 1, 0
            cells.append((row, column))
            column += 1
        if word.endswith("\n"):
            row, column = row + 1, 0
    return cells


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans Mono, as matplotlib ships it, for its typographic quotes; else PIL's own."""
    matplotlib = find_spec("matplotlib")
    if matplotlib and matplotlib.origin:
        folder = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf"
        with suppress(OSError):
            return ImageFont.truetype(folder / "DejaVuSansMono.ttf", size)
    return ImageFont.load_default(size)


def _warn_of_missing(text: str, font: ImageFont.FreeTypeFont) -> None:
    """Say so if the font has no picture of a character."""
    nothing = bytes(font.getmask("\uffff"))
    missing = [
        c for c in dict.fromkeys(text) if c != "\uffff" and bytes(font.getmask(c)) == nothing
    ]
    if shown := "".join(c for c in missing if not c.isspace()):
        words = "a .gif shows a box for each; an .html file has the fonts of its reader"
        warnings.warn(f"the font {font.getname()[0]} lacks {shown:.40}: {words}", stacklevel=4)


def _images(pictures: Sequence[Picture]) -> Iterator[Image.Image]:
    """One image per picture: a grid of characters, with what changed in red and underlined."""
    font, columns = _font(16), 64
    cleanest = min(pictures, key=lambda picture: picture.sigma_bar)
    if isinstance(font, ImageFont.FreeTypeFont):
        _warn_of_missing(cleanest.text, font)
    places = _lay_out(cleanest.marks, columns)
    bottom = 8 + 22 * (max((row for row, _ in places), default=0) + 1)
    for step, picture in enumerate(pictures):
        image = Image.new("RGB", (columns * 10 + 24, bottom + 36), "white")
        draw, changed = ImageDraw.Draw(image), set(picture.changed)
        for i, (mark, shown) in enumerate(zip(picture.marks, visible(picture.marks))):
            x, y = 12 + 10 * places[i][1], 8 + 22 * places[i][0]
            ink = "#b34700" if i in changed else "#222" if mark not in f"{PAD_MARK}\n\t" else "#bbb"
            draw.text((x, y), shown, ink, font)
            if i in changed:
                draw.line((x, y + 19, x + 9, y + 19), ink)
        status = f"step {step} of {len(pictures) - 1}   noise {picture.sigma_bar:.3g}"
        draw.text((12, bottom + 8), status, "#666", font)
        yield image.quantize(32)


def save_gif(pictures: Sequence[Picture], path: Path, fps: float = 12.0) -> None:
    """All pictures in one file; the last one stays for three seconds, then it starts again."""
    first, *rest = _images(pictures)
    times = [round(1000 / fps)] * len(rest) + [3000]
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)
