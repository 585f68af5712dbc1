# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import numpy as np

from ddlm_core.data import encode_stories, split_stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def test_nothing_is_dropped_and_stories_stay_whole():
    told, tokenizer = [f"Story number {i}." for i in range(30)], CharacterLevelTokenizer()
    tokens, ends, hashes = next(encode_stories([(story, True) for story in told], tokenizer))
    parts = split_stories(tokens, ends, hashes, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)
