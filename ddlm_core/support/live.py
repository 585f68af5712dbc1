"""A text while it is being written: HTML for the web page and the playground, and where to show it."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from math import exp
from typing import Any

from ddlm_core.support.drawing import PAD_MARK, Picture, visible
from ddlm_core.support.terminal import render_terminal

SECONDS_BETWEEN = 0.08  # what is redrawn more often only looks restless
CSS = files("ddlm_core.support").joinpath("live.css").read_text("utf-8")


def text_html(marks: str, changed: Iterable[int]) -> str:
    """One text: ``<b>`` marks what has changed, ``<i>`` the dots and ``¶`` of ``<PAD>``."""
    moved = set(changed)
    kinds = ["b" if i in moved else "i" if mark == PAD_MARK else "" for i, mark in enumerate(marks)]
    html = ""
    for kind, group in groupby(zip(kinds, visible(marks)), key=lambda pair: pair[0]):
        text = escape("".join(mark for _, mark in group))
        html += f"<{kind}>{text}</{kind}>" if kind else text
    return f"<pre>{html}</pre>"


def status(index: int, num_steps: int, sigma_bar: float, changed: int) -> str:
    """Where a run is, in words."""
    plural = "" if changed == 1 else "s"
    return (
        f"step {index} of {num_steps} · noise σ̄ = {sigma_bar:.3g} · "
        f"{changed} character{plural} changed"
    )


def noise_plot(levels: Sequence[float], here: int, num_steps: int) -> str:
    """The fraction of characters that the noise has redrawn after each step so far, as inline SVG."""
    points = [(300 * k / num_steps, 60 * exp(-level)) for k, level in enumerate(levels)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[here]
    return (
        '<svg viewBox="-8 -8 316 88" role="img" aria-label="noise after each step">'
        '<path d="M0 0V60H300" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="2"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#d55e00"/>'
        '<g fill="currentColor" font-size="11"><text x="300" y="10" text-anchor="end">noise</text>'
        f'<text x="300" y="76" text-anchor="end">step {here} of {num_steps}</text></g></svg>'
    )


def live_html(picture: Picture, index: int, num_steps: int, below: str = "") -> str:
    """One text after a step, above it in words where the run is, ``below`` it more HTML."""
    words = status(index, num_steps, picture.sigma_bar, len(picture.changed))
    text = text_html(picture.marks, picture.changed)
    return f'<style>{CSS}</style><div class="ddlm-live"><p>{words}</p>{text}{below}</div>'


def notebook_cell() -> int | None:
    """The number of the cell that is running, if this is a notebook."""
    ipython = sys.modules.get("IPython")  # whoever runs in a notebook has imported it
    shell: Any = ipython.get_ipython() if ipython else None
    return shell.execution_count if hasattr(shell, "kernel") else None


def watch(pictures: Iterable[Picture], num_steps: int, finished: Callable[[], Any]) -> Any:
    """Show a run while it goes on: in a notebook or a terminal. Elsewhere nothing is shown.

    Args:
        pictures: of the random start and each of the ``num_steps`` steps, as they arrive.
        num_steps: of the whole run.
        finished: called after the last picture; what it makes takes their place in a notebook.

    Returns:
        What ``finished`` has made.
    """
    if notebook_cell() is not None:
        return _watch_in_a_notebook(pictures, num_steps, finished)
    if sys.stdout is not None and sys.stdout.isatty():
        render_terminal(pictures)
    for _ in pictures:
        pass
    return finished()


def _watch_in_a_notebook(
    pictures: Iterable[Picture], num_steps: int, finished: Callable[[], Any]
) -> Any:
    from IPython.display import display

    handle, due = display({"text/plain": ""}, raw=True, display_id=True), 0.0
    for index, picture in enumerate(pictures):
        if time.monotonic() >= due:
            page = {"text/html": live_html(picture, index, num_steps), "text/plain": picture.text}
            handle.update(page, raw=True)
            due = time.monotonic() + SECONDS_BETWEEN
    made = finished()
    handle.update(_player(made), raw=True)
    return made


def show_in_other_cells(animation: Any, cell: int | None) -> None:
    """Show a player in a notebook, but for the cell whose output holds it already."""
    from IPython.display import display

    if notebook_cell() is None or notebook_cell() != cell:
        display(_player(animation), raw=True)


def _player(animation: Any) -> dict[str, str]:
    return {"text/html": animation._repr_html_(), "text/plain": repr(animation)}
