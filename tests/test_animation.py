# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

import io
import json
import os
import re
import tempfile
from itertools import accumulate
from pathlib import Path
from unittest import mock

import pytest
import torch

from ddlm_core.animation import (
    _ARROWS,
    Animation,
    Frame,
    _characters,
    _encode,
    _font,
    _lay_out,
    _rows,
    iter_frames,
    make_frames,
    render_terminal,
)
from ddlm_core.tokenizer import CharacterLevelTokenizer


def test_frames_know_what_changed():
    states = [torch.tensor([5, 6, 7]), torch.tensor([5, 9, 8]), torch.tensor([5, 9, 8])]
    frames = make_frames(states, [3.0, torch.tensor(2.0), 1.0])
    assert [frame.changed for frame in frames] == [(), (1, 2), ()]
    assert [frame.tokens for frame in frames] == [(5, 6, 7), (5, 9, 8), (5, 9, 8)]
    assert [frame.sigma_bar for frame in frames] == [3.0, 2.0, 1.0]
    assert make_frames([], []) == []


def test_frames_arrive_one_by_one():
    asked = []
    states = ((asked.append(k) or torch.tensor([k]), 0.0) for k in range(3))
    next(iter_frames(states))
    assert asked == [0]


def test_frames_refuse_other_shapes():
    for states in ([torch.zeros(2, 2)], [torch.zeros(2), torch.zeros(3)]):
        with pytest.raises(ValueError, match=r"shape \(L,\)"):
            make_frames(states, [0.0] * len(states))
    with pytest.raises(ValueError, match="noise levels"):
        make_frames([torch.zeros(2)], [])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def story_frames() -> list[Frame]:
    """Noise, a half-way text, and a text with padding, quotes, a newline and dangerous marks."""
    tokenizer = CharacterLevelTokenizer()
    end = tokenizer.pad("“Hi,” said\nMo. </script><b>&", 40)
    start = torch.randint(0, len(tokenizer), (40,), generator=torch.Generator().manual_seed(0))
    middle = torch.where(torch.arange(40) % 2 == 0, start, end)
    return make_frames([start, middle, end, end], [20.0, 0.51234, 0.0001, 0.0])


SCREEN = {"TERM": "xterm", "COLUMNS": "21", "LINES": "24"}


def test_terminal_draws_in_place():
    tokenizer, stream = CharacterLevelTokenizer(), Terminal()
    with mock.patch.dict(os.environ, SCREEN):
        last = render_terminal(iter(story_frames()), tokenizer, stream, fps=0)
    shown = stream.getvalue()
    assert last == story_frames()[-1]
    assert shown.startswith("\x1b[?25l") and shown.endswith("\x1b[?25h")
    assert shown.count("\x1b[3A") == 4  # two rows and a status line, gone over four times
    assert "\x1b[1;4;35m" in shown
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).split("\n")
    assert max(map(len, lines[:-3])) == 20
    assert lines[-3:-1] == ["“Hi,” said", "Mo. </script><b>&"]


def test_a_text_taller_than_the_terminal_does_not_scroll_it():
    stream = Terminal()
    with mock.patch.dict(os.environ, SCREEN | {"COLUMNS": "6", "LINES": "5"}):
        render_terminal(story_frames()[:1], CharacterLevelTokenizer(), stream, fps=0)
    # 3 of 8 rows and the status: one line less than the screen.
    assert "\x1b[4A" in stream.getvalue()


def test_terminal_marks_exactly_what_changed():
    bold, off = "\x1b[1;4;35m", "\x1b[0m"
    assert _rows("ab\ncde", [1, 2, 3, 5], 3) == [f"a{bold}b↵{off}", f"{bold}c{off}d{bold}e{off}"]


def test_terminal_shows_each_frame_before_it_asks_for_the_next():
    stream, seen = Terminal(), []
    live = (seen.append(stream.getvalue().count("step")) or frame for frame in story_frames())
    with mock.patch.dict(os.environ, SCREEN):
        render_terminal(live, CharacterLevelTokenizer(), stream, fps=0)
    assert seen == [0, 1, 2, 3]


def test_terminal_gives_back_the_cursor_on_interrupt():
    def interrupted():
        yield story_frames()[0]
        raise KeyboardInterrupt

    stream = Terminal()
    with mock.patch.dict(os.environ, SCREEN), pytest.raises(KeyboardInterrupt):
        render_terminal(interrupted(), CharacterLevelTokenizer(), stream, fps=0)
    assert stream.getvalue().endswith("\x1b[?25h")


def test_no_terminal_gets_the_final_text_alone():
    stream, tokenizer = io.StringIO(), CharacterLevelTokenizer()
    render_terminal(iter(story_frames()), tokenizer, stream)
    assert stream.getvalue() == "“Hi,” said\nMo. </script><b>&\n"
    assert render_terminal([], tokenizer, stream) is None
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render_terminal(story_frames(), tokenizer, narrow)
    assert narrow.buffer.getvalue() == b"?Hi,? said\nMo. </script><b>&\n"
    dumb = Terminal()
    with mock.patch.dict(os.environ, TERM="dumb"):
        render_terminal(story_frames(), tokenizer, dumb)
    assert dumb.getvalue() == stream.getvalue()


def test_control_characters_do_not_reach_the_terminal():
    tokenizer, stream = CharacterLevelTokenizer(("<UNK>", "<PAD>", "a", "\x1b")), io.StringIO()
    render_terminal(make_frames([torch.tensor([2, 3, 1, 0])], [0.0]), tokenizer, stream)
    assert stream.getvalue() == "a��\n"


def decode_player(html: str) -> list[str]:
    """The frames inside a player, decoded without its script."""
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    text, texts = list(data["first"]), []
    for _, gaps, marks in data["steps"]:
        for position, mark in zip(accumulate(gaps), marks, strict=True):
            text[position] = mark
        texts.append("".join(text))
    return texts


def test_player_carries_every_frame():
    frames, tokenizer = story_frames(), CharacterLevelTokenizer()
    for chosen in (frames, frames[::2], frames[:1]):
        expected = [_characters(frame.tokens, tokenizer) for frame in chosen]
        assert decode_player(Animation(chosen, tokenizer)._repr_html_()) == expected
    assert expected[0].replace("·", "") == tokenizer.decode(frames[0].tokens)


def test_player_is_self_contained_and_safe():
    frames, tokenizer = story_frames(), CharacterLevelTokenizer()
    assert "<" not in _encode(frames[::-1], tokenizer)  # the first text holds "</script>"
    html = Animation(frames, tokenizer, "<i>Mo</i>", 'a"b').to_html()
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|innerHTML", html)
    assert html.count("</script>") == html.count("<script") == 2
    assert "<b>" not in html and "<i>" not in html and 'id="a&quot;b"' in html
    assert "<pre>“Hi,” said\nMo. &lt;/script&gt;&lt;b&gt;&amp;</pre>" in html  # needs no script


def test_player_is_small():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randint(0, 106, (256,), generator=generator)]
    for _ in range(63):  # a sampler rewrites a character about 15 times
        redrawn = torch.rand(256, generator=generator) < 0.25
        fresh = torch.randint(0, 106, (256,), generator=generator)
        states.append(torch.where(redrawn, fresh, states[-1]))
    html = Animation(make_frames(states, [1.0] * 64), CharacterLevelTokenizer())._repr_html_()
    assert len(html.encode()) < 25_000


def test_saved_files():
    from PIL import Image

    animation = Animation(story_frames(), CharacterLevelTokenizer())
    with tempfile.TemporaryDirectory() as folder:
        page = animation.save(Path(folder) / "run.html")
        assert page.read_text(encoding="utf-8") == animation.to_html()
        with Image.open(animation.save(f"{folder}/run.gif")) as gif:
            assert gif.n_frames == 4 and gif.size == (664, 88)
            gif.seek(3)
            assert gif.info["duration"] == 3000
        with pytest.raises(ValueError, match=".html or .gif"):
            animation.save(Path(folder) / "run.mp4")
        assert len(list(Path(folder).iterdir())) == 2
    with pytest.raises(ValueError, match="at least one frame"):
        Animation([], CharacterLevelTokenizer())


def test_the_font_has_every_token():
    font, marks = _font(16), "".join(CharacterLevelTokenizer().vocab[2:]) + "�·"
    assert font.getname()[0] == "DejaVu Sans Mono"
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(mark)) != missing for mark in marks.translate(_ARROWS))


def test_lines_break_between_words():
    rows = {}
    for mark, (row, column) in zip("ab cdef\ng··hijklmno", _lay_out("ab cdef\ng··hijklmno", 6)):
        rows[row] = rows.get(row, "") + mark
        assert len(rows[row]) == column + 1  # no gap, no overlap
    assert list(rows.values()) == ["ab ", "cdef\n", "g··", "hijklm", "no"]
