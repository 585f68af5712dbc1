"""Chapter 8, module data: blocks, splits, windows and loaders."""

import numpy as np
import pytest
import torch

from ddlm_core import stories
from ddlm_core.data import (
    POCKET,
    TokenWindows,
    WindowSampler,
    batches_from,
    encode_stories,
    evaluation_loader,
    setup_dataloaders,
    split_stories,
    stored_tokens,
)
from ddlm_core.support.sources import Reading, TextCounts
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

TOKENIZER = CharacterLevelTokenizer()


def encoded(*told, pad_to=None):
    return next(encode_stories([(story, True) for story in told], TOKENIZER, pad_to))


def test_a_pad_behind_each_story_or_up_to_the_window():
    tokens, ends, hashes = encoded("Hi.", "Go on!")
    assert TOKENIZER.decode(tokens) == "Hi.Go on!" and ends.tolist() == [4, 11]
    assert np.flatnonzero(tokens == PAD_ID).tolist() == [3, 10] and len(set(hashes)) == 2
    tokens, ends, _ = encoded("Hi.", "Go on!", pad_to=6)
    assert ends.tolist() == [6, 12] and np.flatnonzero(tokens == PAD_ID).tolist() == [3, 4, 5]


def test_a_story_longer_than_its_window_is_refused():
    assert len(encoded("four", pad_to=4)[0]) == 4
    with pytest.raises(ValueError, match="a story of 4 characters does not fit in 3"):
        encoded("one", "four", pad_to=3)


def test_parts_are_cut_where_stories_end_and_not_copied():
    tokens, ends, hashes = encoded(*(f"Story number {i}." for i in range(30)))
    parts = split_stories(tokens, ends, hashes, held_out=2)
    assert all(part[-1] == PAD_ID for part in parts)
    assert np.shares_memory(parts[0], tokens)
    train, test = split_stories(tokens, ends, hashes, held_out=2, parts=1)
    assert np.array_equal(train, np.concatenate(parts[:2])) and np.array_equal(test, parts[2])


def test_at_most_a_tenth_is_held_out():
    for count, held in ((7, 1), (29, 2), (30, 3), (100, 7)):
        story = encoded(*(f"Story number {i:3}." for i in range(count)))
        sizes = [np.count_nonzero(part == PAD_ID) for part in split_stories(*story, held_out=7)]
        assert sizes == [count - 2 * held, held, held]


def test_long_stories_are_held_out_in_smaller_numbers():
    """Two parts are at most two sixths of the text; of 30 stories, the last ones are long."""
    for lengths, sizes in (([], [24, 3, 3]), ([250], [28, 1, 1]), ([120, 120], [28, 1, 1])):
        told = [f"{i:20}" for i in range(30 - len(lengths))]
        told += [f"{i:{length}}" for i, length in enumerate(lengths)]
        parts = split_stories(*encoded(*told), held_out=3)
        assert [np.count_nonzero(part == PAD_ID) for part in parts] == sizes


def test_few_stories_are_cut_as_running_text_unless_they_must_stay_whole():
    few = encoded(*(f"Story number {i}." for i in range(5)))
    assert [len(part) for part in split_stories(*few, held_out=2)] == [72, 4, 4]
    parts = split_stories(*few, held_out=2, whole=True)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [3, 1, 1]
    giant = encoded(*(f"Story {i}." for i in range(40)), "x" * 999)
    assert np.count_nonzero(split_stories(*giant, held_out=2)[0] == PAD_ID) == 40


def test_running_text_loses_its_last_twentieths():
    for count in (1, 2):
        tokens, ends, hashes = encoded(*("x" * (200 // count - 1) for _ in range(count)))
        parts = split_stories(tokens, ends, hashes, held_out=2)
        assert [len(part) for part in parts] == [180, 10, 10]
        parts = split_stories(tokens, ends, hashes, held_out=2, parts=1)
        assert [len(part) for part in parts] == [190, 10]


def test_no_story_is_shared(monkeypatch):
    told = [f"Story {i}." for i in range(30)]
    told[25], told[29] = told[3], told[26]  # validation repeats training; testing, validation
    parts = split_stories(*encoded(*told), held_out=3)
    texts = [TOKENIZER.decode(part) for part in parts]
    assert texts == ["".join(told[:24]), "Story 24.Story 26.", "Story 27.Story 28."]


def test_stories_that_all_repeat_are_kept_with_a_warning():
    same = encoded(*["The same."] * 10)
    with pytest.warns(UserWarning, match="stories repeat"):
        assert all(map(len, split_stories(*same, held_out=1)))


def test_a_repeat_is_found_in_every_block_of_hashes():
    """The earlier hashes are compared a million at a time."""
    count = (1 << 20) + 100
    hashes = np.arange(count, dtype=np.uint64)
    tokens, ends = np.arange(count) % 251, np.arange(1, count + 1)
    for early in (0, (1 << 20) - 1, 1 << 20, (1 << 20) + 50):
        repeated = hashes.copy()
        repeated[-1] = early
        train, val, test = split_stories(tokens, ends, repeated, held_out=3)
        assert (len(val), len(test)) == (3, 2)


def test_a_window_beyond_the_end_is_filled_with_pad():
    windows = TokenWindows(np.array([5, 6, 7], np.uint8), length=2)
    assert windows[0].tolist() == [5, 6] and windows[2].tolist() == [7, PAD_ID]
    (batch,) = evaluation_loader(np.array([5, 6, 7], np.uint8), 2, batch_size=4)
    assert batch.tolist() == [[5, 6], [7, PAD_ID]] and batch.dtype == torch.uint8


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
    cuts = {min(sampler) % 10 for sampler.epoch in range(60)}
    assert cuts == ({0} if aligned else set(range(10)))


def test_cuts_reach_the_last_token_and_no_farther():
    sampler = WindowSampler(tokens=15, length=4)
    starts = {tuple(sorted(sampler)) for sampler.epoch in range(60)}
    assert starts == {(cut, cut + 4) for cut in range(5)}
    sampler = WindowSampler(tokens=5, length=4)  # one window, two places
    assert {tuple(sampler) for sampler.epoch in range(20)} == {(0,), (1,)}
    assert list(WindowSampler(tokens=4, length=4)) == [0]
    with pytest.raises(ValueError, match="3 tokens are shorter than one window of 4"):
        WindowSampler(tokens=3, length=4)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = set()
    for seed in range(4):
        sampler = WindowSampler(1000, 10, seed, aligned=True)
        orders |= {tuple(sampler) for sampler.epoch in range(4)}
    assert len(orders) == 16


def test_a_long_text_has_its_windows_in_more_than_one_block():
    starts = list(WindowSampler(tokens=70_000, length=1, aligned=True))
    assert sorted(starts) == list(range(70_000))


@pytest.mark.parametrize("ours", [True, False])
def test_steps_join_batches_and_go_on_anywhere(ours):
    """11 batches, 3 a step: 3 steps in an epoch, and 2 batches are left over."""
    if ours:
        tokens = np.arange(220, dtype=np.uint8)
        windows, sampler = TokenWindows(tokens, 10), WindowSampler(220, 10, aligned=True)
        loader = torch.utils.data.DataLoader(windows, 2, sampler=sampler)
    else:
        loader = torch.utils.data.DataLoader(torch.arange(22)[:, None], 2)
    steps = batches_from(loader, 3, 0)
    first = [next(steps) for _ in range(7)]
    assert all(len(step) == 6 for step in first)
    assert torch.equal(first[0], first[3]) != ours  # another order in another epoch
    assert len(torch.cat(first[:3]).unique(dim=0)) == 18
    for start in range(7):
        later = batches_from(loader, 3, start)
        assert all(torch.equal(next(later), step) for step in first[start:])


def test_loaders_give_stories_and_running_text(tmp_path):
    train, val, test, tokenizer = setup_dataloaders(
        POCKET, train_samples=40, val_samples=4, context_length=160, batch_size=8
    )
    batch = next(iter(train))
    assert batch.dtype == torch.uint8 and batch.shape == (8, 160) and len(train) == 5
    assert all(stories.is_flawless(row, tokenizer) for row in batch.tolist())
    told = {s for part in (train, val, test) for b in part for s in tokenizer.decode_batch(b)}
    assert told == set(stories.sample(48, seed=0))
    (tmp_path / "a.txt").write_text("The lamb ran and ran. " * 100)
    data = setup_dataloaders(str(tmp_path / "a.txt"), context_length=32, batch_size=7)
    assert len(data.train.sampler) == 60 and [len(batch) for batch in data.train] == [7] * 8
    assert tokenizer.decode(next(iter(data.val))[0]) in "The lamb ran and ran. " * 100
    few = setup_dataloaders(str(tmp_path / "a.txt"), context_length=500, batch_size=64)
    assert next(iter(few.train)).shape == (2, 500)  # a batch is never larger than the text
    with pytest.raises(ValueError, match="shorter than one window"):
        setup_dataloaders(str(tmp_path / "a.txt"), context_length=9999)


def test_another_text_to_validate_on():
    data = setup_dataloaders(
        POCKET, train_samples=40, val_samples=4, context_length=160, val_dataset_name=POCKET
    )
    told = data.tokenizer.decode_batch(next(iter(data.val)))
    assert told == stories.sample(4, seed=1)
    assert len(data.train.dataset.tokens) == 44 * 160  # only the test stories are held out


def test_the_vocabulary_of_the_network_is_taken():
    small = CharacterLevelTokenizer(["<UNK>", "<PAD>", "a", "e", " "])
    data = setup_dataloaders(POCKET, train_samples=20, context_length=160, tokenizer=small)
    assert data.tokenizer is small and data.train.dataset.vocab == small.vocab
    assert max(int(batch.max()) for batch in data.train) == 4
    assert data.val.dataset.vocab == data.test.dataset.vocab == small.vocab


def test_how_many_stories_are_read(monkeypatch):
    """Ours never run out: those held out come on top, and 100,000 are told if nothing is said."""
    asked = []

    def stop(source, tokenizer, how, **_):
        asked.append(how.limit)
        raise InterruptedError

    monkeypatch.setattr("ddlm_core.data.stored_tokens", stop)
    for source, count in ((POCKET, None), (POCKET, 50), ("a.txt", None), ("a.txt", 50)):
        with pytest.raises(InterruptedError):
            setup_dataloaders(source, train_samples=count, val_samples=7)
    assert asked == [100_014, 64, None, 50]


def test_stored_stories_are_those_of_the_grammar():
    text = stored_tokens(POCKET, TOKENIZER, Reading(limit=3))
    assert TOKENIZER.decode(text.tokens[:]) == "".join(stories.sample(3, seed=0))
    other = stored_tokens(POCKET, TOKENIZER, Reading(limit=3), seed=1)
    assert TOKENIZER.decode(other.tokens[:]) == "".join(stories.sample(3, seed=1))


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("One text.", "Another text."):
        path.write_text(text)
        tokens = stored_tokens(str(path), TOKENIZER).tokens
        assert TOKENIZER.decode(tokens[:]) == text


def test_what_is_not_in_the_vocabulary_is_counted():
    pieces = [("Ein Bär ", False), ("Ж\U0001f43bЖ", True), ("", True), ("Ж", True)]
    found = TextCounts()
    blocks = list(encode_stories(pieces, TOKENIZER, found=found))
    assert len(blocks) == 1 and (found.documents, found.characters) == (3, 12)
    assert found.unknown == {"Ж": 3, "ä": 1, "\U0001f43b": 1}


def test_a_summary_says_what_the_text_is_also_from_the_cache(tmp_path, monkeypatch):
    """Thirty documents in two files, one of them with separators."""
    tales = "<|endoftext|>".join(f"Ein Bär saß {i:02}." for i in range(20))
    (tmp_path / "a.txt").write_text(tales, encoding="utf-8")
    rows = "".join(f'{{"tale": "Ein Bär saß {i}."}}\n' for i in range(20, 30))
    (tmp_path / "b.jsonl").write_text(rows, encoding="utf-8")

    def summary():
        return setup_dataloaders(str(tmp_path), val_samples=2, context_length=16).summary

    first = summary()
    assert (first.files, first.documents, first.characters) == (2, 30, 30 * 15)
    assert first.unknown == 60 and first.most_frequent_unknown == [("ß", 30), ("ä", 30)]
    assert first.ends_found == 19 and first.columns == ["tale"]
    assert first.windows == 26 * 16 // 16 - 1 and first.held_out == pytest.approx(4 / 30)
    monkeypatch.setattr("ddlm_core.data.read_stories", lambda *_: pytest.fail("read again"))
    assert summary() == first


def test_a_summary_of_the_grammar_and_of_many_unknown_characters(tmp_path):
    summary = setup_dataloaders(POCKET, train_samples=20, val_samples=4, context_length=160).summary
    assert (summary.files, summary.documents, summary.windows) == (0, 28, 24)
    assert summary.unknown == summary.ends_found == 0 and summary.held_out == 4 / 28
    (tmp_path / "a.txt").write_text("".join(map(chr, range(0x4E00, 0x4F00))) * 2, encoding="utf-8")
    summary = setup_dataloaders(str(tmp_path / "a.txt"), context_length=16).summary
    assert summary.unknown == 512 and len(summary.most_frequent_unknown) == 10
    other = setup_dataloaders(
        str(tmp_path / "a.txt"), context_length=16, val_dataset_name=POCKET, val_samples=5
    ).summary
    assert other.documents == 1 and other.held_out == pytest.approx(1 / 20, abs=0.01)


def test_how_a_text_is_read_reaches_its_source(tmp_path, monkeypatch):
    asked = []

    def stop(source, tokenizer, how, **_):
        asked.append((source, how))
        if len(asked) == 2:
            raise InterruptedError
        return stored_tokens(POCKET, tokenizer, Reading(limit=9))

    monkeypatch.setattr("ddlm_core.data.stored_tokens", stop)
    options = {"text_column": "tale", "dataset_config": "de", "encoding": "cp1252"}
    with pytest.raises(InterruptedError):
        setup_dataloaders("a/b", separator="***", val_dataset_name="a/c", val_samples=7, **options)
    same = {"column": "tale", "config": "de", "encoding": "cp1252", "separator": "***"}
    assert asked == [("a/b", Reading(**same)), ("a/c", Reading("validation", 7, **same))]
