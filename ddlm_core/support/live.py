"""HTML of a text while it is being written: the web page and the playground show it."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from math import exp

from ddlm_core.support.drawing import ARROWS, PAD_MARK

CSS = files("ddlm_core.support").joinpath("live.css").read_text("utf-8")


def text_html(marks: str, changed: Iterable[int]) -> str:
    """One text: ``<b>`` marks what has changed, ``<i>`` the dots of ``<PAD>``."""
    marks, moved = marks.translate(ARROWS), set(changed)
    kinds = ["b" if i in moved else "i" if mark == PAD_MARK else "" for i, mark in enumerate(marks)]
    html = ""
    for kind, group in groupby(zip(kinds, marks), key=lambda pair: pair[0]):
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
