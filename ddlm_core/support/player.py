"""The player: one piece of HTML that makes no request; without scripts the final text stands there."""

from html import escape
from importlib.resources import files
from string import Template


def _file(name: str) -> str:
    return files("ddlm_core.support").joinpath(name).read_text("utf-8")


def render_player(
    steps: str, text: str, *, title: str = "", player_id: str = "ddlm-player", fps: float = 12.0
) -> str:
    """The player, for a notebook or to put into a page.

    Args:
        steps: the run as JSON that is safe inside of ``<script>`` (``encode_pictures`` of chapter 4).
        text: the finished text, for those who see no script run.
        title: shown above the text.
        player_id: of the HTML element.
        fps: pictures per second.
    """
    caption = f"<figcaption>{escape(title)}</figcaption>\n" if title else ""
    return (
        f'<figure class="ddlm-player" id="{escape(player_id)}" data-fps="{fps:g}">\n'
        f"<style>{_file('player.css')}</style>\n{caption}<pre>{escape(text)}</pre>\n"
        f'<script type="application/json">{steps}</script>\n'
        f"<script>{{{_file('player.js')}}}</script>\n</figure>"
    )


def render_page(player: str, title: str = "") -> str:
    """A whole page that holds a player, or several."""
    page = Template(_file("page.html"))
    return page.substitute(title=escape(title or "Animation"), player=player)
