# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.
"""Corrupting text: animation."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch import Tensor

from ddlm_core.support.drawing import PAD_MARK, Picture, harmless
from ddlm_core.support.errors import UserError
from ddlm_core.support.text import with_ends
from ddlm_core.tokenizer import CharacterLevelTokenizer

__all__ = [
    "Frame",
    "iter_frames",
    "make_frames",
    "characters",
    "draw",
    "encode_pictures",
    "Animation",
]


@dataclass(frozen=True)
class Frame:
    """One moment of a text that changes: its tokens, the total noise, and what has just changed."""

    tokens: tuple[int, ...]
    sigma_bar: float
    changed: tuple[int, ...]  # positions whose token differs from the frame before, ascending


def iter_frames(states: Iterable[tuple[Tensor, float]]) -> Iterator[Frame]:
    """Frames of a run that is still going on: each one as soon as its state arrives.

    A state is (tokens, total noise), all tokens integers of one shape (L,): else a ``ValueError``.
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
    """Frames of a finished run: its states, each (L,), and as many noise levels, else a ``ValueError``."""
    if len(tokens) != len(sigma_bars):
        raise ValueError(f"{len(tokens)} states need as many noise levels, got {len(sigma_bars)}")
    return list(iter_frames(zip(tokens, sigma_bars, strict=True)))


def characters(tokens: Iterable[int], tokenizer: CharacterLevelTokenizer) -> str:
    """One mark a token: ``PAD_MARK`` for ``<PAD>``, ``�`` for what a terminal would obey."""
    shown = [mark if mark and harmless(mark) else "�" for mark in tokenizer.shown]
    shown[tokenizer.pad_token_id] = PAD_MARK
    return "".join([shown[token] for token in tokens])


def draw(frame: Frame, tokenizer: CharacterLevelTokenizer) -> Picture:
    """A frame as plain data: marks to watch, and the text as it is read (see ``with_ends``)."""
    marks = characters(frame.tokens, tokenizer)
    text = with_ends("" if mark == PAD_MARK else mark for mark in marks)
    return Picture(marks, text, frame.sigma_bar, frame.changed)


def encode_pictures(pictures: Sequence[Picture]) -> str:
    """Pictures (one at least) as JSON: the first text, then differences only.

    A step is ``[noise, gaps, characters]``: the changed positions, each as its distance from the
    one before, and what stands there now.
    """
    first = before = pictures[0].marks
    steps = []
    for text, _, sigma_bar, _ in pictures:
        moved = [i for i in range(len(text)) if text[i] != before[i]]
        gaps = [here - last for here, last in zip(moved, [0, *moved], strict=False)]
        noise = float(f"{sigma_bar:.3g}") if sigma_bar < float("inf") else "∞"
        steps.append([noise, gaps, "".join(text[i] for i in moved)])
        before = text
    cleanest = min(range(len(pictures)), key=lambda k: pictures[k].sigma_bar)
    data = {"pad": PAD_MARK, "first": first, "steps": steps, "cleanest": cleanest}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, repr=False)
class Animation:
    """A run to look at: in a notebook, in a terminal, as a web page or as a GIF.

    ``str()`` of it is the final text, without padding.
    """

    frames: Sequence[Frame]  # at least one, else a ValueError
    tokenizer: CharacterLevelTokenizer
    title: str = ""  # shown above the text
    player_id: str = "ddlm-player"  # of the HTML element: fixed, so stored outputs stay the same
    fps: float = 12.0  # frames per second

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("an animation needs at least one frame")

    def __repr__(self) -> str:
        return f"Animation({len(self.frames)} frames of {len(self.frames[0].tokens)} characters)"

    def __str__(self) -> str:
        return self.pictures()[-1].text

    def pictures(self) -> list[Picture]:
        """The frames as every renderer draws them."""
        return [draw(frame, self.tokenizer) for frame in self.frames]

    def _repr_html_(self) -> str:
        from ddlm_core.support.player import render_player

        pictures = self.pictures()
        steps, text = encode_pictures(pictures), pictures[-1].text
        return render_player(steps, text, title=self.title, player_id=self.player_id, fps=self.fps)

    def to_html(self) -> str:
        """A whole page that holds the player."""
        from ddlm_core.support.player import render_page

        return render_page(self._repr_html_(), self.title)

    def play_in_terminal(self, stream: TextIO | None = None, fps: float | None = None) -> None:
        """Play in place on a terminal (by default, standard output); elsewhere print the final text."""
        from ddlm_core.support.terminal import render_terminal

        render_terminal(self.pictures(), stream, self.fps if fps is None else fps)

    def save(self, path: str | Path) -> Path:
        """Write a page or a picture, and return its path, which ends in .html or .gif: else a UserError."""
        path = Path(path)
        if path.suffix == ".html":
            path.write_text(self.to_html(), encoding="utf-8")
        elif path.suffix == ".gif":
            from ddlm_core.support.gif import save_gif

            save_gif(self.pictures(), path, self.fps)
        else:
            raise UserError(f"an animation is saved as .html or .gif, got {path.name!r}")
        return path
