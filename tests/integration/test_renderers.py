"""The renderers: what the terminal, the GIF and a sanitized page make of a run."""

import io
import os
import re
from unittest import mock

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from ddlm_core.animation import Animation, draw, make_frames
from ddlm_core.support.drawing import ARROWS, PAD_MARK, Picture, cells, harmless, visible
from ddlm_core.support.gif import _font, _lay_out
from ddlm_core.support.live import text_html
from ddlm_core.support.player import HINT
from ddlm_core.support.terminal import _rows, render_terminal
from ddlm_core.tokenizer import CharacterLevelTokenizer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def story() -> Animation:
    """Noise, a half-way text, and a text with padding, quotes, a newline and dangerous marks."""
    tokenizer = CharacterLevelTokenizer()
    end = tokenizer.pad("“Hi,” said\nMo. </script><b>&", 40)
    start = torch.randint(0, len(tokenizer), (40,), generator=torch.Generator().manual_seed(0))
    middle = torch.where(torch.arange(40) % 2 == 0, start, end)
    frames = make_frames([start, middle, end, end], [20.0, 0.51234, 0.0001, 0.0])
    return Animation(frames, tokenizer, title="How <i>Mo</i> ends")


def story_pictures() -> list[Picture]:
    return story().pictures()


SCREEN = {"TERM": "xterm", "COLUMNS": "21", "LINES": "24"}


def test_terminal_draws_in_place():
    stream = Terminal()
    with mock.patch.dict(os.environ, SCREEN):
        last = render_terminal(iter(story_pictures()), stream, fps=0)
    shown = stream.getvalue()
    assert last == story_pictures()[-1]
    assert shown.startswith("\x1b[?25l") and shown.endswith("\x1b[?25h")
    assert shown.count("\x1b[3A") == 4  # two rows and a status line, gone over four times
    assert "\x1b[1;4;35m" in shown
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).split("\n")
    assert max(map(len, lines[:-3])) == 20
    assert lines[-3:-1] == ["“Hi,” said", "Mo. </script><b>&"]


def test_a_text_taller_than_the_terminal_does_not_scroll_it():
    stream = Terminal()
    with mock.patch.dict(os.environ, SCREEN | {"COLUMNS": "6", "LINES": "5"}):
        render_terminal(story_pictures()[:1], stream, fps=0)
    # 3 of 8 rows and the status: one line less than the screen.
    assert "\x1b[4A" in stream.getvalue()


def test_terminal_marks_exactly_what_changed():
    bold, off = "\x1b[1;4;35m", "\x1b[0m"
    assert _rows("ab\ncde", [1, 2, 3, 5], 3) == [f"a{bold}b↵{off}", f"{bold}c{off}d{bold}e{off}"]


def test_terminal_shows_each_frame_before_it_asks_for_the_next():
    stream, seen = Terminal(), []
    live = (seen.append(stream.getvalue().count("step")) or frame for frame in story_pictures())
    with mock.patch.dict(os.environ, SCREEN):
        render_terminal(live, stream, fps=0)
    assert seen == [0, 1, 2, 3]


def test_terminal_gives_back_the_cursor_on_interrupt():
    def interrupted():
        yield story_pictures()[0]
        raise KeyboardInterrupt

    stream = Terminal()
    with mock.patch.dict(os.environ, SCREEN), pytest.raises(KeyboardInterrupt):
        render_terminal(interrupted(), stream, fps=0)
    assert stream.getvalue().endswith("\x1b[?25h")


def test_no_terminal_gets_the_final_text_alone():
    stream = io.StringIO()
    render_terminal(iter(story_pictures()), stream)
    assert stream.getvalue() == "“Hi,” said\nMo. </script><b>&\n"
    assert render_terminal([], stream) is None
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render_terminal(story_pictures(), narrow)
    assert narrow.buffer.getvalue() == b"?Hi,? said\nMo. </script><b>&\n"
    dumb = Terminal()
    with mock.patch.dict(os.environ, TERM="dumb"):
        render_terminal(story_pictures(), dumb)
    assert dumb.getvalue() == stream.getvalue()


def test_control_characters_do_not_reach_the_terminal():
    tokenizer, stream = CharacterLevelTokenizer(("<UNK>", "<PAD>", "a", "\x1b")), io.StringIO()
    (frame,) = make_frames([torch.tensor([2, 3, 1, 0])], [0.0])
    render_terminal([draw(frame, tokenizer)], stream)
    assert stream.getvalue() == "a�\n<|endoftext|>\n�\n"


def test_the_font_has_every_token():
    font, marks = _font(16), "".join(CharacterLevelTokenizer().vocab[2:]) + "�·¶"
    assert font.getname()[0] == "DejaVu Sans Mono"
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(mark)) != missing for mark in marks.translate(ARROWS))


def test_lines_break_between_words():
    rows = {}
    text = f"ab cdef\ng{PAD_MARK * 2}hijklmno"
    for mark, (row, column) in zip(text, _lay_out(text, 6)):
        rows[row] = rows.get(row, "") + mark
        assert len(rows[row]) == column + 1  # no gap, no overlap
    assert list(rows.values()) == ["ab ", "cdef\n", f"g{PAD_MARK * 2}", "hijklm", "no"]


TITLE, TEXT = "How <i>Mo</i> ends", "“Hi,” said\nMo. </script><b>&"


def test_a_sanitized_page_shows_the_text_its_title_and_how_to_play_it():
    """`jupyter nbconvert --to html --HTMLExporter.sanitize_html=True`."""
    data = {"text/html": story()._repr_html_(), "text/plain": repr(story())}
    output = nbformat.v4.new_output("display_data", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    page, _ = HTMLExporter(sanitize_html=True).from_notebook_node(notebook)
    (shown,) = BeautifulSoup(page, "html.parser").select(".jp-OutputArea-output")
    assert shown.pre.text == TEXT
    assert [line for line in shown.text.split("\n") if line] == [TITLE, *TEXT.split("\n"), HINT]


@pytest.mark.parametrize("kept", [set(), {"class", "id"}, {"class", "id", "style", "aria-label"}])
def test_nothing_but_text_is_left_where_attributes_go(kept):
    """GitHub, JupyterLab and others differ in what they drop: here, it may be anything."""
    player = BeautifulSoup(story()._repr_html_(), "html.parser")
    assert not player.find_all(["script", "style", "svg", "object"])
    for element in player.find_all(True):
        element.attrs = {name: value for name, value in element.attrs.items() if name in kept}
    assert [line for line in player.text.split("\n") if line] == [TITLE, *TEXT.split("\n"), HINT]


def test_the_first_padding_before_more_text_is_a_pilcrow():
    for marks, shown in (
        ("a~~b~c~~", "a¶·b¶c··"),
        ("~a\n\t", "¶a↵⇥"),
        ("~~", "··"),
        ("·¶a", "·¶a"),  # letters of the text
        ("", ""),
    ):
        assert visible(marks.replace("~", PAD_MARK)) == shown
    html = text_html(f"a{PAD_MARK}b·¶{PAD_MARK}", [2])
    assert html == "<pre>a<i>¶</i><b>b</b>·¶<i>·</i></pre>"


def test_what_reaches_a_terminal():
    assert all(map(harmless, "aЖ日😀\n\t\u00a0\u202f\u3000\u200c\u200d\u0301"))
    assert not any(map(harmless, "\x00\x1b\x7f\x9b\r\u202e\u2028\ufeff\ue000\ud800"))


def test_rows_count_the_cells_of_a_terminal():
    assert [*map(cells, "a日Ж😀\u0301\u200dｱ")] == [1, 2, 1, 2, 0, 0, 1]
    assert _rows("日本語", [], 5) == ["日本", "語"] and _rows("日本", [], 1) == ["", "日", "本"]
    assert _rows("abe\u0301c", [], 3) == ["abe\u0301", "c"]
    assert _rows("\u0301a", [], 2) == ["◌\u0301a"]  # an accent needs a letter
    assert _rows("", [], 3) == [""]


def test_a_gif_says_what_its_font_lacks(tmp_path):
    tokenizer = CharacterLevelTokenizer(("<UNK>", "<PAD>", *"aЖ日本 \n"))
    (plain, foreign) = (
        Animation(make_frames([tokenizer.pad(text, 9)], [0.0]), tokenizer)
        for text in ("a Ж\na", "日a 本日")
    )
    plain.save(tmp_path / "a.gif")
    with pytest.warns(UserWarning, match="^the font DejaVu Sans Mono lacks 日本: a .gif shows"):
        foreign.save(tmp_path / "b.gif")
