# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import numpy as np
import pytest
import torch

from ddlm_core import stories
from ddlm_core.data import POCKET, WindowSampler, encode_stories, setup_dataloaders, split_stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def test_a_story_longer_than_its_window_is_refused():
    with pytest.raises(ValueError, match="does not fit in 3"):
        next(encode_stories([("long", True)], CharacterLevelTokenizer(), pad_to=3))


def test_nothing_is_dropped_and_stories_stay_whole():
    told, tokenizer = [f"Story number {i}." for i in range(30)], CharacterLevelTokenizer()
    tokens, ends, hashes = next(encode_stories([(story, True) for story in told], tokenizer))
    parts = split_stories(tokens, ends, hashes, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)
    assert all(part[-1] == PAD_ID for part in parts)  # cut where stories end
    assert np.shares_memory(parts[0], tokens)  # not copied
    running = split_stories(tokens, ends[-1:], hashes[-1:], held_out=2)
    assert sum(map(len, running)) == len(tokens) and min(map(len, running)) > 0
    train, test = split_stories(tokens, ends, hashes, held_out=2, parts=1)
    assert np.array_equal(train, np.concatenate(parts[:2])) and np.array_equal(test, parts[2])


def test_no_story_is_shared():
    told = [f"Story {i}." for i in range(30)]
    told[25], told[29] = told[3], told[26]  # validation repeats training; testing, validation
    tokenizer = CharacterLevelTokenizer()
    encoded = next(encode_stories([(s, True) for s in told], tokenizer))
    parts = split_stories(*encoded, held_out=3)
    texts = [tokenizer.decode(part) for part in parts]
    assert texts == ["".join(told[:24]), "Story 24.Story 26.", "Story 27.Story 28."]
    same = next(encode_stories([("The same.", True)] * 10, tokenizer))
    with pytest.warns(UserWarning, match="stories repeat"):
        assert all(map(len, split_stories(*same, held_out=1)))


@pytest.mark.parametrize("aligned", [True, False])
def test_windows_cover_the_text_once_and_can_be_resumed(aligned):
    sampler = WindowSampler(tokens=1000, length=10, seed=1, aligned=aligned)
    first, again = list(sampler), list(sampler)
    assert first == again and len(first) == len(sampler) == (100 if aligned else 99)
    assert first != sorted(first)  # shuffled
    covered = sorted(first)
    assert all(b - a == 10 for a, b in zip(covered, covered[1:])) and covered[-1] + 10 <= 1000
    sampler.skip = 7
    assert list(sampler) == first[7:] and list(sampler) == first  # skipped once
    sampler.epoch = 1
    assert list(sampler) != first
    cuts = {min(sampler) % 10 for sampler.epoch in range(20)}
    assert (len(cuts) == 1) == aligned


def test_loaders_give_stories_and_running_text(tmp_path):
    train, val, test, tokenizer = setup_dataloaders(
        POCKET, train_samples=40, val_samples=4, context_len=160, batch_size=8
    )
    batch = next(iter(train))
    assert batch.dtype == torch.uint8 and batch.shape == (8, 160)
    assert all(stories.is_flawless(row, tokenizer) for row in batch.tolist())
    told = {s for part in (train, val, test) for b in part for s in tokenizer.decode_batch(b)}
    assert told == set(stories.sample(48, seed=0))
    (tmp_path / "a.txt").write_text("The lamb ran and ran. " * 100)
    train, val, _, _ = setup_dataloaders(str(tmp_path / "a.txt"), context_len=32, batch_size=4)
    assert next(iter(train)).shape == (4, 32)
    assert tokenizer.decode(next(iter(val))[0]) in "The lamb ran and ran. " * 100
    with pytest.raises(ValueError, match="shorter than one window"):
        setup_dataloaders(str(tmp_path / "a.txt"), context_len=9999)
