"""The player: one piece of HTML that makes no request; without scripts the final text stands there."""

from html import escape
from importlib.resources import files
from string import Template

from ddlm_core.animation import Animation, encode_frames, final_text


def _file(name: str) -> str:
    return files("ddlm_core.views").joinpath(name).read_text("utf-8")


def render_player(animation: Animation) -> str:
    """The player, for a notebook or to put into a page."""
    frames, tokenizer = animation.frames, animation.tokenizer
    title = f"<figcaption>{escape(animation.title)}</figcaption>\n" if animation.title else ""
    return (
        f'<figure class="ddlm-player" id="{escape(animation.player_id)}"'
        f' data-fps="{animation.fps:g}">\n<style>{_file("player.css")}</style>\n{title}'
        f"<pre>{escape(final_text(frames[-1], tokenizer))}</pre>\n"
        f'<script type="application/json">{encode_frames(frames, tokenizer)}</script>\n'
        f"<script>{{{_file('player.js')}}}</script>\n</figure>"
    )


def render_page(animation: Animation) -> str:
    """A whole page that holds the player."""
    title = escape(animation.title or "Animation")
    return Template(_file("page.html")).substitute(title=title, player=render_player(animation))
