# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

"""Corrupting text: animation."""

import json
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from torch import Tensor

from ddlm_core.tokenizer import CharacterLevelTokenizer

__all__ = ['Frame', 'iter_frames', 'make_frames', 'PAD_MARK', 'render_terminal', 'Animation']  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One moment of a text that changes.

    Args:
        tokens: the L token ids of the text.
        sigma_bar: the total noise at this moment.
        changed: the positions whose token differs from the frame before, ascending.
    """

    tokens: tuple[int, ...]
    sigma_bar: float
    changed: tuple[int, ...]


def iter_frames(states: Iterable[tuple[Tensor, float]]) -> Iterator[Frame]:
    """Frames of a run that is still going on: each one as soon as its state arrives.

    Args:
        states: pairs of tokens, integers of shape (L,), and total noise.

    Yields:
        One frame a state; in the first, nothing has changed.

    Raises:
        ValueError: if a state has not the shape (L,) of the first.
    """
    before = None
    for state, sigma_bar in states:
        if state.ndim != 1 or (before is not None and len(state) != len(before)):
            raise ValueError(f"every state needs one shape (L,), got {tuple(state.shape)}")
        tokens = tuple(state.tolist())
        pairs = zip(before or tokens, tokens, strict=True)
        yield Frame(tokens, float(sigma_bar), tuple(i for i, (a, b) in enumerate(pairs) if a != b))
        before = tokens


def make_frames(tokens: Sequence[Tensor], sigma_bars: Sequence[float]) -> list[Frame]:
    """Frames of a finished run.

    Args:
        tokens: the states of one text in order, each of integers of shape (L,).
        sigma_bars: the total noise of each state.

    Returns:
        One frame a state.

    Raises:
        ValueError: if there is not one noise level a state, or the states differ in shape.
    """
    if len(tokens) != len(sigma_bars):
        raise ValueError(f"{len(tokens)} states need as many noise levels, got {len(sigma_bars)}")
    return list(iter_frames(zip(tokens, sigma_bars, strict=True)))


PAD_MARK = "·"
_ARROWS = {ord("\n"): "↵", ord("\t"): "⇥"}


def _characters(tokens: Iterable[int], tokenizer: CharacterLevelTokenizer) -> str:
    """One character a token: ``<PAD>`` becomes a dot, what a terminal would obey becomes ``�``."""
    special = {tokenizer.unk_token_id: "�", tokenizer.pad_token_id: PAD_MARK}
    marks = [special.get(token) or tokenizer.vocab[token] for token in tokens]
    return "".join(mark if mark.isprintable() or mark in "\n\t" else "�" for mark in marks)


def _final_text(frame: Frame, tokenizer: CharacterLevelTokenizer) -> str:
    """The text of a frame as it is read: without ``<PAD>``."""
    kept = (token for token in frame.tokens if token != tokenizer.pad_token_id)
    return _characters(kept, tokenizer)


def _encode(frames: Sequence[Frame], tokenizer: CharacterLevelTokenizer) -> str:
    """Frames as JSON that is safe inside ``<script>``: the first text, then differences only.

    A step is ``[noise, gaps, characters]``: the changed positions, each as its distance from the
    one before, and what stands there now.
    """
    first = before = _characters(frames[0].tokens, tokenizer)
    steps = []
    for frame in frames:
        text = _characters(frame.tokens, tokenizer)
        moved = [i for i in range(len(text)) if text[i] != before[i]]
        gaps = [here - last for here, last in zip(moved, [0, *moved], strict=False)]
        steps.append([float(f"{frame.sigma_bar:.3g}"), gaps, "".join(text[i] for i in moved)])
        before = text
    cleanest = min(range(len(frames)), key=lambda k: frames[k].sigma_bar)
    data = {"pad": PAD_MARK, "first": first, "steps": steps, "cleanest": cleanest}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


_CSS = """
.ddlm-player { margin: 1em 0; }
.ddlm-player pre {
  margin: 0; padding: 0.5em 0; border: 0; box-shadow: none; background: none; color: inherit;
  font: 0.95em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.ddlm-player pre span { display: inline-block; vertical-align: top; }
.ddlm-player pre span span { width: 1ch; height: 1.5em; text-align: center; white-space: pre; }
.ddlm-player .ddlm-newline, .ddlm-player .ddlm-tab { overflow: hidden; }
.ddlm-player .ddlm-newline::before { content: "↵"; opacity: 0.5; }
.ddlm-player .ddlm-tab::before { content: "⇥"; opacity: 0.5; }
.ddlm-player .ddlm-pad::before { content: "·"; opacity: 0.5; }
.ddlm-player .ddlm-end::before { content: "·"; opacity: 0.15; }
.ddlm-player .ddlm-changed {
  color: #d55e00; color: color-mix(in srgb, #d55e00 75%, currentColor);
  background: rgba(213, 94, 0, 0.15); font-weight: bold; text-decoration: underline;
}
.ddlm-player div { display: flex; gap: 0.8em; align-items: center; }
.ddlm-player button { font: inherit; min-width: 5em; padding: 0.1em 0.6em; }
.ddlm-player input { flex: 1; min-width: 0; accent-color: #0072b2; }
.ddlm-player output, .ddlm-player figcaption { font-size: 0.9em; text-align: left; color: inherit; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(figure.ddlm-player) {
  background: none; color: inherit;
}
"""

_JS_DECODE = """
const decode = ({ first, steps }) => {
  let text = [...first];
  return steps.map(([sigma, gaps, marks]) => {
    const changed = new Set();
    let position = 0;
    text = [...text];
    [...marks].forEach((mark, i) => {
      position += gaps[i];
      changed.add(position);
      text[position] = mark;
    });
    return { sigma, text, changed };
  });
};
"""

_JS_CELLS = """
const make = (tag, parent) => parent.appendChild(document.createElement(tag));
const layOut = (pre, marks, pad) => {
  let word = null;
  pre.textContent = "";
  return marks.map((mark) => {
    word ||= make("span", pre);
    const cell = make("span", word);
    if (mark === "\\n") make("br", pre);
    if (" \\t\\n".includes(mark) || mark === pad) word = null;
    return cell;
  });
};
const draw = (cells, { text, changed }, pad) => {
  const end = text.reduce((end, mark, i) => (mark === pad ? end : i), -1);
  cells.forEach((cell, i) => {
    const name = { "\\n": "newline", "\\t": "tab", [pad]: i > end ? "end" : "pad" }[text[i]];
    cell.textContent = text[i] === pad ? "" : text[i];
    cell.className = (name ? `ddlm-${name}` : "") + (changed.has(i) ? " ddlm-changed" : "");
  });
};
"""

_JS_PLAY = """
const connect = (root, button, range, last, show) => {
  let timer, touched = false;
  const pause = () => {
    timer = clearInterval(timer);
    button.textContent = "Play";
  };
  const play = () => {
    if (+range.value === last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (+range.value < last) show(+range.value + 1);
      if (+range.value === last || !root.isConnected) pause();
    }, 1000 / root.dataset.fps);
  };
  button.onclick = () => { touched = true; timer ? pause() : play(); };
  range.oninput = () => { touched = true; pause(); show(+range.value); };
  pause();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    if (!touched) play();
  }, { threshold: 0.5 });
  seen.observe(root);
};
"""

_JS_START = """
document.querySelectorAll(".ddlm-player:not([data-ready])").forEach((root) => {
  root.dataset.ready = "yes";
  const { id } = root;
  for (let n = 2, other; (other = document.getElementById(root.id)) && other !== root; n++)
    root.id = `${id}-${n}`;
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const frames = decode(data), last = frames.length - 1;
  const cells = layOut(root.querySelector("pre"), frames[data.cleanest].text, data.pad);
  const bar = make("div", root), button = make("button", bar), range = make("input", bar);
  const caption = make("output", root);
  button.type = "button";
  Object.assign(range, { type: "range", min: 0, max: last });
  range.setAttribute("aria-label", "Step");
  caption.setAttribute("aria-live", "off");
  const show = (k) => {
    const { sigma, changed: { size } } = frames[k];
    draw(cells, frames[k], data.pad);
    caption.textContent = `step ${k} of ${last} · noise σ̄ = ${sigma} · `
      + `${size} character${size === 1 ? "" : "s"} changed`;
    range.value = k;
    range.setAttribute("aria-valuetext", caption.textContent);
  };
  show(last);
  connect(root, button, range, last, show);
});
"""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
</style>
<main>
{player}
</main>
</html>
"""


def _rows(text: str, changed: Iterable[int], width: int) -> list[str]:
    """Rows of ``width`` cells for a terminal; what changed is bold, underlined and magenta."""
    on, off, marked = "\x1b[1;4;35m", "\x1b[0m", set(changed)
    marks = text.translate(_ARROWS)
    cells = [f"{on}{mark}{off}" if i in marked else mark for i, mark in enumerate(marks)]
    lines = ["".join(cells[start : start + width]) for start in range(0, len(cells), width)]
    return [line.replace(off + on, "") for line in lines]


def _write(stream: TextIO, text: str) -> None:
    """Write at once, with ``?`` for what the encoding of the stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def _draw(
    frames: Iterable[Frame], tokenizer: CharacterLevelTokenizer, stream: TextIO, fps: float
) -> Frame | None:
    """Draw each frame over the one before, then leave the final text and give back the cursor."""
    frame, up = None, ""
    columns, height = shutil.get_terminal_size()
    try:
        _write(stream, "\x1b[?25l")
        for step, frame in enumerate(frames):
            due = time.monotonic() + (1 / fps if fps else 0)
            rows = _rows(_characters(frame.tokens, tokenizer), frame.changed, max(columns - 1, 1))
            status = f"step {step} · noise {frame.sigma_bar:.3g} · {len(frame.changed)} changed"
            lines = [*rows[: max(height - 2, 1)], status[: columns - 1]]
            _write(stream, up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            up = f"\x1b[{len(lines)}A"
            time.sleep(max(0, due - time.monotonic()))
        if frame is not None:
            _write(stream, f"{up}\x1b[J{_final_text(frame, tokenizer)}\n")
        return frame
    finally:
        _write(stream, "\x1b[0m\x1b[?25h")


def render_terminal(
    frames: Iterable[Frame],
    tokenizer: CharacterLevelTokenizer,
    stream: TextIO | None = None,
    fps: float = 12.0,
) -> Frame | None:
    """Show frames in place as they arrive; where that cannot be, print the final text alone.

    Args:
        frames: frames, from a list or from a sampler that is still at work.
        tokenizer: gives the characters.
        stream: where to write; by default the standard output.
        fps: frames per second at most; 0 never waits.

    Returns:
        The last frame; None if there was none.
    """
    stream = sys.stdout if stream is None else stream
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return _draw(frames, tokenizer, stream, fps)
    for frame in deque(frames, maxlen=1):
        _write(stream, _final_text(frame, tokenizer) + "\n")
        return frame
    return None


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


def _font(size: int):
    """DejaVu Sans Mono, as matplotlib ships it, for its typographic quotes; else PIL's own."""
    from PIL import ImageFont

    try:
        folder = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf"
        return ImageFont.truetype(folder / "DejaVuSansMono.ttf", size)
    except (AttributeError, OSError):
        return ImageFont.load_default(size)


def _pictures(frames: Sequence[Frame], tokenizer: CharacterLevelTokenizer) -> Iterator:
    """One PIL image a frame: a grid of characters, with what changed in red and underlined."""
    from PIL import Image, ImageDraw

    font, columns = _font(16), 64
    cleanest = min(frames, key=lambda frame: frame.sigma_bar)
    cells = _lay_out(_characters(cleanest.tokens, tokenizer), columns)
    bottom = 8 + 22 * (max((row for row, _ in cells), default=0) + 1)
    for step, frame in enumerate(frames):
        image = Image.new("RGB", (columns * 10 + 24, bottom + 36), "white")
        draw, changed = ImageDraw.Draw(image), set(frame.changed)
        for i, mark in enumerate(_characters(frame.tokens, tokenizer)):
            x, y = 12 + 10 * cells[i][1], 8 + 22 * cells[i][0]
            ink = "#b34700" if i in changed else "#222" if mark not in f"{PAD_MARK}\n\t" else "#bbb"
            draw.text((x, y), mark.translate(_ARROWS), ink, font)
            if i in changed:
                draw.line((x, y + 19, x + 9, y + 19), ink)
        status = f"step {step} of {len(frames) - 1}   noise {frame.sigma_bar:.3g}"
        draw.text((12, bottom + 8), status, "#666", font)
        yield image.quantize(32)


def _player(animation: "Animation") -> str:
    """The player: it makes no request; without scripts the final text stands there."""
    frames, tokenizer = animation.frames, animation.tokenizer
    title = f"<figcaption>{escape(animation.title)}</figcaption>\n" if animation.title else ""
    return (
        f'<figure class="ddlm-player" id="{escape(animation.player_id)}"'
        f' data-fps="{animation.fps:g}">\n<style>{_CSS}</style>\n{title}'
        f"<pre>{escape(_final_text(frames[-1], tokenizer))}</pre>\n"
        f'<script type="application/json">{_encode(frames, tokenizer)}</script>\n'
        f"<script>{{{_JS_DECODE}{_JS_CELLS}{_JS_PLAY}{_JS_START}}}</script>\n</figure>"
    )


def _page(animation: "Animation") -> str:
    """A whole page that holds the player."""
    return _PAGE.format(title=escape(animation.title or "Animation"), player=_player(animation))


def _save_gif(animation: "Animation", path: Path) -> None:
    """All pictures in one file; the last one stays for three seconds, then it starts again."""
    first, *rest = _pictures(animation.frames, animation.tokenizer)
    times = [round(1000 / animation.fps)] * len(rest) + [3000]
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)


@dataclass(frozen=True, repr=False)
class Animation:
    """A run to look at: in a notebook, in a terminal, as a web page or as a GIF.

    Args:
        frames: at least one frame.
        tokenizer: gives the characters.
        title: shown above the text.
        player_id: the id of the HTML element; fixed, so that a stored output stays the same.
        fps: frames per second.

    Raises:
        ValueError: if there is no frame.
    """

    frames: Sequence[Frame]
    tokenizer: CharacterLevelTokenizer
    title: str = ""
    player_id: str = "ddlm-player"
    fps: float = 12.0

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("an animation needs at least one frame")

    def __repr__(self) -> str:
        return f"Animation({len(self.frames)} frames of {len(self.frames[0].tokens)} characters)"

    _repr_html_ = _player
    to_html = _page

    def play_in_terminal(self, stream: TextIO | None = None, fps: float | None = None) -> None:
        """Play in place on a terminal; elsewhere print the final text."""
        render_terminal(self.frames, self.tokenizer, stream, self.fps if fps is None else fps)

    def save(self, path: str | Path) -> Path:
        """Write a web page or a GIF, by the ending of the name.

        Args:
            path: a name that ends in ``.html`` or ``.gif``.

        Returns:
            The path.

        Raises:
            ValueError: if the name ends in anything else.
        """
        path = Path(path)
        if path.suffix not in (".html", ".gif"):
            raise ValueError(f"an animation is saved as .html or .gif, got {path.name!r}")
        if path.suffix == ".html":
            path.write_text(self.to_html(), encoding="utf-8")
        else:
            _save_gif(self, path)
        return path
