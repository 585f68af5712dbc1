"""Frames as they come, and an animation in each of its views."""

import html
import io
import json
import re

import pytest
import torch
from PIL import Image

from ddlm_core.animation import (
    Animation,
    Frame,
    characters,
    draw,
    encode_pictures,
    iter_frames,
    make_frames,
)
from ddlm_core.support.drawing import PAD_MARK, Picture
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import CharacterLevelTokenizer


def story_frames() -> list[Frame]:
    """Noise, a half-way text, and a text with padding, quotes, a newline and dangerous marks."""
    tokenizer = CharacterLevelTokenizer()
    end = tokenizer.pad("“Hi,” said\nMo. </script><b>&", 40)
    start = torch.randint(0, len(tokenizer), (40,), generator=torch.Generator().manual_seed(0))
    middle = torch.where(torch.arange(40) % 2 == 0, start, end)
    return make_frames([start, middle, end, end], [20.0, 0.51234, 0.0001, 0.0])


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


def test_player_is_self_contained_and_safe():
    animation = Animation(story_frames(), CharacterLevelTokenizer(), "<i>Mo</i>", 'a"b')
    page = animation.to_html()
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|innerHTML", page)
    assert page.count("</script>") == page.count("<script") == 1  # of the page around it
    assert "<b>" not in page and "<i>" not in page and 'id="a&quot;b"' in page
    end = "“Hi,” said\nMo. &lt;/script&gt;&lt;b&gt;&amp;"
    assert f'<pre style="white-space: pre-wrap">{end}</pre>' in page  # needs no script
    inside, outside = animation._repr_html_().split(">", 1)  # all but the text is in attributes
    assert "<title>&lt;i&gt;Mo&lt;/i&gt;</title>" in page and "sigma" in inside
    assert not re.search("steps|sigma|function|=>|\\{", outside)


def test_player_is_small():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randint(0, 106, (256,), generator=generator)]
    for _ in range(63):  # short steps, 64 frames
        redrawn = torch.rand(256, generator=generator) < 0.25
        fresh = torch.randint(0, 106, (256,), generator=generator)
        states.append(torch.where(redrawn, fresh, states[-1]))
    html = Animation(make_frames(states, [1.0] * 64), CharacterLevelTokenizer())._repr_html_()
    assert len(html.encode()) < 25_000


def test_saved_files(tmp_path):
    animation = Animation(story_frames(), CharacterLevelTokenizer())
    page = animation.save(tmp_path / "run.html")
    assert page.read_text(encoding="utf-8") == animation.to_html()
    with Image.open(animation.save(f"{tmp_path}/run.gif")) as gif:
        assert gif.n_frames == 4 and gif.size == (664, 88)
        assert gif.info["duration"] == 80  # milliseconds at 12 frames per second, in hundredths
        gif.seek(3)
        assert gif.info["duration"] == 3000
    with pytest.raises(UserError, match=".html or .gif, got 'run.mp4'"):
        animation.save(tmp_path / "run.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"run.html", "run.gif"}


def test_an_animation_needs_a_frame():
    with pytest.raises(ValueError, match="at least one frame"):
        Animation([], CharacterLevelTokenizer())


def test_marks_and_text_of_a_frame():
    tokenizer = CharacterLevelTokenizer(("<UNK>", "<PAD>", "a", "\n", "\t", "\x1b", "\u00a0"))
    frame = Frame((2, 1, 3, 0, 4, 5, 6, 1), 0.5, (1, 3))
    marks = f"a{PAD_MARK}\n�\t�\u00a0{PAD_MARK}"
    text = "a\n<|endoftext|>\n\n�\t�\u00a0"
    assert draw(frame, tokenizer) == Picture(marks, text, 0.5, (1, 3))
    assert characters([], tokenizer) == ""


def test_the_record_of_a_run():
    pictures = [
        Picture("the cat", "", float("inf"), ()),
        Picture("the hat", "", 0.123456, (4,)),
        Picture(f"a hat{PAD_MARK * 2}", "", 0.1, ()),
        Picture(f"a hat{PAD_MARK * 2}", "", 0.1, ()),
    ]
    data = json.loads(encode_pictures(pictures))
    assert data["pad"] == PAD_MARK and data["first"] == "the cat"
    assert data["steps"] == [
        ["∞", [], ""],
        [0.123, [4], "h"],
        [0.1, [0, 1, 1, 1, 1, 1, 1], f"a hat{PAD_MARK * 2}"],
        [0.1, [], ""],
    ]
    assert data["cleanest"] == 2  # the first of the least noise: lines break by this one
    assert PAD_MARK in encode_pictures(pictures) and " [" not in encode_pictures(
        pictures
    )  # compact


def test_what_an_animation_says_of_itself():
    animation = Animation(story_frames(), CharacterLevelTokenizer())
    assert repr(animation) == "Animation(4 frames of 40 characters)"
    assert str(animation) == "“Hi,” said\nMo. </script><b>&"
    half = Animation(story_frames()[:2], animation.tokenizer)
    assert str(half) == draw(half.frames[1], animation.tokenizer).text
    assert animation.pictures() == [draw(f, animation.tokenizer) for f in animation.frames]
    player = html.unescape(animation._repr_html_())
    assert 'id="ddlm-player"' in player and 'data-fps="12"' in player
    assert "<title>Animation</title>" in animation.to_html() and 'ddlm-title"' not in player
    assert 'data-fps="2.5"' in Animation(story_frames(), animation.tokenizer, fps=2.5).to_html()


def test_elsewhere_than_on_a_terminal_the_final_text_is_printed():
    stream = io.StringIO()
    Animation(story_frames(), CharacterLevelTokenizer()).play_in_terminal(stream, fps=0)
    assert stream.getvalue() == "“Hi,” said\nMo. </script><b>&\n"


@pytest.mark.parametrize(("fps", "used"), [(None, 30.0), (0.0, 0.0), (5.0, 5.0)])
def test_the_speed_of_the_terminal(monkeypatch, fps, used):
    seen = []
    monkeypatch.setattr(
        "ddlm_core.support.terminal.render_terminal", lambda pictures, stream, fps: seen.append(fps)
    )
    Animation(story_frames(), CharacterLevelTokenizer(), fps=30.0).play_in_terminal(fps=fps)
    assert seen == [used]
