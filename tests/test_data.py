# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import json

import numpy as np
import pytest
import torch

from ddlm_core import stories
from ddlm_core.data import (
    POCKET,
    WindowSampler,
    encode_stories,
    read_file,
    read_stories,
    setup_dataloaders,
    split_stories,
)
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def test_files_are_read_whole(tmp_path):
    text = "A bear sat.\n\nIt was cold.\r\n"
    (tmp_path / "a.txt").write_text(text, newline="")
    rows = ["One.", "Two “words”.", ""]
    lines = "\n".join(json.dumps({"text": row}) for row in rows) + "\n\n"
    (tmp_path / "b.jsonl").write_text(lines, encoding="utf-8")
    assert "".join(piece for piece, _ in read_file(tmp_path / "a.txt")) == text
    assert [end for _, end in read_file(tmp_path / "a.txt")] == [False, True]  # one story
    assert list(read_file(tmp_path / "b.jsonl")) == [(row, True) for row in rows]
    both = list(read_stories(str(tmp_path / "*")))
    assert len(both) == 5 and list(read_stories(str(tmp_path / "*"), limit=2)) == both[:2]


def test_parquet_is_read_through_datasets(tmp_path):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_dict({"story": ["One.", "Two."]}).to_parquet(tmp_path / "c.parquet")
    assert list(read_file(tmp_path / "c.parquet", "story")) == [("One.", True), ("Two.", True)]
    with pytest.raises(ValueError, match="c.parquet, row 1: need an object with a text 'text'"):
        list(read_file(tmp_path / "c.parquet"))


@pytest.mark.parametrize("row", ['{"txt": "y"}', '{"text": null}', "[1]", '{"text": "cut o'])
def test_bad_rows_are_refused(tmp_path, row):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + row)
    with pytest.raises(ValueError, match="a.jsonl, row 2: need an object with a text 'text'"):
        list(read_file(tmp_path / "a.jsonl"))


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="need a .txt, .jsonl or .parquet file"):
        list(read_file(tmp_path / "a.csv"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        list(read_stories(str(tmp_path / "none.txt")))
    with pytest.raises(ValueError, match="does not fit in 3"):
        encode_stories([("long", True)], CharacterLevelTokenizer(), pad_to=3)


def test_nothing_is_dropped_and_stories_stay_whole():
    told, tokenizer = [f"Story number {i}." for i in range(30)], CharacterLevelTokenizer()
    tokens, ends = encode_stories([(story, True) for story in told], tokenizer)
    parts = split_stories(tokens, ends, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)
    assert all(part[-1] == PAD_ID for part in parts)  # cut where stories end
    running = split_stories(tokens, ends[-1:], held_out=2)
    assert sum(map(len, running)) == len(tokens) and min(map(len, running)) > 0


def test_no_story_is_shared():
    told = [f"Story {i}." for i in range(30)]
    told[25], told[29] = told[3], told[26]  # validation repeats training; testing, validation
    tokenizer = CharacterLevelTokenizer()
    parts = split_stories(*encode_stories([(s, True) for s in told], tokenizer), held_out=3)
    texts = [tokenizer.decode(part) for part in parts]
    assert texts == ["".join(told[:24]), "Story 24.Story 26.", "Story 27.Story 28."]
    same = encode_stories([("The same.", True)] * 10, tokenizer)
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
