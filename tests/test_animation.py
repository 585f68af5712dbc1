# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

import json
import re
import tempfile
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from ddlm_core.animation import (
    Animation,
    Frame,
    characters,
    encode_pictures,
    iter_frames,
    make_frames,
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


def story_frames() -> list[Frame]:
    """Noise, a half-way text, and a text with padding, quotes, a newline and dangerous marks."""
    tokenizer = CharacterLevelTokenizer()
    end = tokenizer.pad("“Hi,” said\nMo. </script><b>&", 40)
    start = torch.randint(0, len(tokenizer), (40,), generator=torch.Generator().manual_seed(0))
    middle = torch.where(torch.arange(40) % 2 == 0, start, end)
    return make_frames([start, middle, end, end], [20.0, 0.51234, 0.0001, 0.0])


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
        expected = [characters(frame.tokens, tokenizer) for frame in chosen]
        assert decode_player(Animation(chosen, tokenizer)._repr_html_()) == expected
    assert expected[0].replace("·", "") == tokenizer.decode(frames[0].tokens)
    assert (
        json.loads(encode_pictures(Animation(frames, tokenizer).pictures()))["cleanest"] == 3
    )  # the lines break by this one


def test_player_is_self_contained_and_safe():
    frames, tokenizer = story_frames(), CharacterLevelTokenizer()
    assert "<" not in encode_pictures(
        Animation(frames[::-1], tokenizer).pictures()
    )  # the first text holds "</script>"
    html = Animation(frames, tokenizer, "<i>Mo</i>", 'a"b').to_html()
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|innerHTML", html)
    assert html.count("</script>") == html.count("<script") == 2
    assert "<b>" not in html and "<i>" not in html and 'id="a&quot;b"' in html
    assert "<pre>“Hi,” said\nMo. &lt;/script&gt;&lt;b&gt;&amp;</pre>" in html  # needs no script


def test_player_is_small():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randint(0, 106, (256,), generator=generator)]
    for _ in range(63):  # short steps, 64 frames
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
