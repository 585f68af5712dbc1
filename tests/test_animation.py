# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.

import html
import json
import re
from itertools import accumulate

import torch

from ddlm_core.animation import Animation, characters, make_frames
from ddlm_core.tokenizer import CharacterLevelTokenizer


def decode_player(player: str) -> list[str]:
    """The frames inside a player, decoded without its script."""
    data = json.loads(html.unescape(re.search('data-steps="(.*?)"', player)[1]))
    text, texts = list(data["first"]), []
    for _, gaps, marks in data["steps"]:
        for position, mark in zip(accumulate(gaps), marks, strict=True):
            text[position] = mark
        texts.append("".join(text))
    return texts


def test_player_carries_every_frame():
    tokenizer, generator = CharacterLevelTokenizer(), torch.Generator().manual_seed(0)
    states = torch.randint(0, len(tokenizer), (5, 300), generator=generator)  # all tokens occur
    frames = make_frames(states, [1.0] * 5)
    for chosen in (frames, frames[::2], frames[:1]):
        expected = [characters(frame.tokens, tokenizer) for frame in chosen]
        assert decode_player(Animation(chosen, tokenizer)._repr_html_()) == expected
