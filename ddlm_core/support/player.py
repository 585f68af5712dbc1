"""The player: one piece of HTML that makes no request; without scripts the final text stands there.

Hosts that do not trust an output (GitHub, `nbconvert --HTMLExporter.sanitize_html=True`, a notebook that
JupyterLab has not been told to trust) drop attributes, but many of them show the *contents* of a
``<script>`` or ``<style>`` element as text. So the text is in plain elements that all of them allow, and
all else is in attributes: the steps, the looks, and the script, which is the handler of two events.
``contentvisibilityautostatechange`` comes by itself when the player nears the screen, however the HTML
got into the page; ``pointerover`` is for browsers that do not know the first. ``START`` does the same for
all players of a page that is ours.
"""

from html import escape
from importlib.resources import files
from string import Template

START = 'document.querySelectorAll(".ddlm-player").forEach((player) => player.onpointerover?.());'
HINT = "To play it, run this cell, or open the chapter in the book."  # until the script removes it


def _file(name: str) -> str:
    return files("ddlm_core.support").joinpath(name).read_text("utf-8")


def render_player(
    steps: str, text: str, *, title: str = "", player_id: str = "ddlm-player", fps: float = 12.0
) -> str:
    """The player, for a notebook or to put into a page.

    Args:
        steps: the run as JSON (``encode_pictures`` of chapter 4).
        text: the finished text, for those who see no script run.
        title: shown above the text.
        player_id: of the HTML element; a page that has it already gets the same with a number.
        fps: pictures per second.
    """
    attributes = {
        "class": "ddlm-player",
        "role": "figure",
        "aria-label": title or "Animation of a text",
        "id": player_id,
        "data-fps": f"{fps:g}",
        "data-steps": steps,
        "data-style": _file("player.css"),
        "onpointerover": _file("player.js"),
        "oncontentvisibilityautostatechange": "this.onpointerover()",
    }
    opening = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    caption = f'<div class="ddlm-title">{escape(title)}</div>\n' if title else ""
    return (
        f'<div {opening}>\n{caption}<pre style="white-space: pre-wrap">{escape(text)}</pre>\n'
        f'<div>{HINT}</div>\n<div style="content-visibility: auto"></div>\n</div>'
    )


def render_page(player: str, title: str = "") -> str:
    """A whole page that holds a player, or several."""
    page = Template(_file("page.html"))
    return page.substitute(title=escape(title or "Animation"), player=player, start=START)
