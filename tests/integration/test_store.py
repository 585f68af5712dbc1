"""Prepared tokens: the cache, what makes it new, what is never used, how much memory it takes."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddlm_core import stories
from ddlm_core.data import (
    encode_stories,
    pocket_stories,
    setup_dataloaders,
    stored_tokens,
)
from ddlm_core.support import sources, store
from ddlm_core.tokenizer import CharacterLevelTokenizer

TOLD = stories.sample(300, seed=0)
PREPARED = [*store.FIELDS, "contents.json"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "ddlm"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "told.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in TOLD))
    return path


def batches(path, **changes):
    settings = {"val_samples": 10, "context_length": 64, "batch_size": 4} | changes
    *loaders, _ = setup_dataloaders(str(path), **settings)
    return [torch.cat(list(loader)) for loader in loaders]


def kept(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


def no_reading(monkeypatch):
    monkeypatch.setattr("ddlm_core.data.read_stories", lambda *source: pytest.fail("read again"))


def test_a_second_start_reads_nothing_and_gives_the_same_batches(cache, file, monkeypatch):
    first = batches(file)
    (folder,) = kept(cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PREPARED)
    assert (folder / "tokens").stat().st_size == sum(map(len, TOLD)) + len(TOLD)  # one byte each
    no_reading(monkeypatch)
    for before, after in zip(first, batches(file), strict=True):
        assert before.dtype == torch.uint8 and torch.equal(before, after)


def test_the_batches_are_those_of_memory(cache, file):
    """The same windows as from the text itself, encoded here without files."""
    train, _, test = batches(file)
    tokenizer = CharacterLevelTokenizer()
    whole = torch.from_numpy(np.concatenate([tokenizer.encode_numpy(s + "\0") for s in TOLD]))
    whole[np.cumsum([len(story) + 1 for story in TOLD]) - 1] = tokenizer.pad_token_id
    held = sum(len(story) + 1 for story in TOLD[-10:])
    assert (
        torch.equal(test.flatten()[:held], whole[-held:]) and not (test.flatten()[held:] - 1).any()
    )
    windows = {row.numpy().tobytes() for row in whole.unfold(0, 64, 1)}
    assert all(row.numpy().tobytes() in windows for row in train)


def test_whatever_the_tokens_depend_on_makes_a_new_key(cache, file):
    changes = [{}, {"train_samples": 200}, {"val_samples": 20}]
    for number in (batches(file, **change) and len(kept(cache)) for change in changes):
        pass
    assert number == 2  # how many are held out is decided later
    tokens = batches(file)[0]
    file.write_text(file.read_text().replace("a", "e"))  # the same length
    os.utime(file, ns=(0, 1))
    assert not torch.equal(batches(file)[0], tokens) and len(kept(cache)) == 3
    with file.open("a") as lines:
        lines.write(json.dumps({"text": "One more."}) + "\n")
    os.utime(file, ns=(0, 1))
    batches(file)
    assert len(kept(cache)) == 4
    (file.parent / "more.jsonl").write_text(json.dumps({"text": "Another file."}))
    batches(file.parent / "*.jsonl")
    assert len(kept(cache)) == 5
    for change in ({"text_column": "text"}, {"encoding": "ascii"}, {"separator": "One"}):
        batches(file.parent / "*.jsonl", **change)
    assert len(kept(cache)) == 8


def test_a_vocabulary_has_its_own_tokens(cache, file):
    small = CharacterLevelTokenizer(["<UNK>", "<PAD>", "a"])
    stored_tokens(str(file), small)
    text = stored_tokens(str(file), CharacterLevelTokenizer())
    assert text.tokens[:].max() > 2 and len(kept(cache)) == 2
    assert stored_tokens(str(file), small).tokens[:].max() == 2
    stored_tokens(str(file), small, pad_to=160)
    assert len(kept(cache)) == 3


def test_half_a_preparation_is_never_used(cache, file, monkeypatch):
    lines = file.read_text()
    file.write_text(lines + '{"text": null}\n')
    with pytest.raises(ValueError, match="row 301"):
        batches(file)
    assert not kept(cache)
    file.write_text(lines)
    whole = batches(file)
    (folder,) = kept(cache)
    for name in PREPARED:  # a disk may lose the end of a file; then it is made again
        os.truncate(folder / name, (folder / name).stat().st_size - 1)
        assert all(map(torch.equal, batches(file), whole))
    no_reading(monkeypatch)
    batches(file)


KILLED = """
import os, signal, sys
from ddlm_core.data import encode_stories, setup_dataloaders

def encode(*arguments):
    yield from encode_stories(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

import ddlm_core.data
ddlm_core.data.encode_stories = encode
setup_dataloaders(sys.argv[1])
"""


def test_killed_in_the_middle(cache, file):
    environment = os.environ | {"HF_ASSETS_CACHE": str(cache.parent)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], env=environment)
    assert done.returncode == -signal.SIGKILL
    (left,) = kept(cache)
    assert ".part-" in left.name and (left / "tokens").exists()
    assert len(batches(file)[0]) and kept(cache) == [left.with_name(left.name.split(".")[0])]


def test_blocks_join_to_the_whole(monkeypatch):
    pieces = [("One.", True), ("", True), ("Two ", False), ("and ", False), ("three.", True)] * 2
    whole = next(encode_stories(pieces, CharacterLevelTokenizer()))
    for size in (1, 7, 30):
        monkeypatch.setattr(sources, "BLOCK", size)
        blocks = list(encode_stories(pieces, CharacterLevelTokenizer()))
        assert len(blocks) > 1
        for array, parts in zip(whole, zip(*blocks)):
            assert array.dtype == parts[0].dtype and np.array_equal(array, np.concatenate(parts))
    _, ends, hashes = whole
    assert ends.tolist() == [5, 6, 21, 26, 27, 42]
    assert len(set(hashes[:3].tolist())) == 3 and (hashes[:3] == hashes[3:]).all()


def test_a_cache_that_cannot_be_written_costs_a_warning(cache, file):
    cache.parent.write_text("")  # a file where the folder should be
    with pytest.warns(UserWarning, match="could not write .*the tokens go to .*this run only"):
        first = batches(file)
    cache.parent.unlink()
    assert all(map(torch.equal, first, batches(file)))


def test_a_full_disk_is_said_in_one_line(cache, file):
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file may be longer
        with (
            pytest.warns(UserWarning, match="could not write"),
            pytest.raises(OSError, match=r"^could not write .*; [\d,]+ MB are free there"),
        ):
            batches(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not kept(cache)


def test_processes_wait_for_the_first(cache, file):
    """Three start at once: one reads, and all of them have the same tokens."""
    script = """
import sys, time
from ddlm_core import data
read = data.read_stories
def slowly(*source):
    time.sleep(1)
    print("reads", flush=True)
    return read(*source)
data.read_stories = slowly
loader, *_ = data.setup_dataloaders(sys.argv[1], val_samples=10)
print(loader.dataset.tokens[:].sum())
"""
    environment = os.environ | {"HF_ASSETS_CACHE": str(cache.parent)}
    call = [sys.executable, "-c", script, str(file)]
    started = [
        subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate()[0].split() for process in started]
    assert sum("reads" in words for words in said) == 1
    assert len({words[-1] for words in said}) == 1 and len(kept(cache)) == 1


def test_workers_read_the_same_file(cache, file):
    alone, together = batches(file), batches(file, num_workers=2)
    assert all(map(torch.equal, alone, together))
    loader, *_ = setup_dataloaders(str(file), val_samples=10, context_length=64)
    tokens = loader.dataset.tokens
    tokens[0]  # it is mapped now
    copied = pickle.dumps(loader.dataset)  # what a worker that is not forked gets
    assert len(copied) < 2000 < len(tokens)
    again = pickle.loads(copied).tokens
    assert "array" not in vars(again) and np.array_equal(again[:], tokens[:])
    assert len(again) == len(tokens) and isinstance(again[:], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens.array[0] = 0


def test_a_part_of_a_file_and_an_empty_one(tmp_path):
    np.arange(6, dtype=np.int64).tofile(tmp_path / "numbers")
    numbers = store.MappedArray(tmp_path / "numbers", np.int64)
    assert len(numbers) == 6 and numbers[2:].tolist() == [2, 3, 4, 5]
    assert numbers.first(2)[:].tolist() == [0, 1] and numbers.first(0)[:].size == 0
    (tmp_path / "empty").touch()
    assert len(store.MappedArray(tmp_path / "empty", np.uint8)[:]) == 0


def test_a_fingerprint_sees_the_length_and_the_letters():
    tokens = np.arange(1000, dtype=np.int64).astype(np.uint8)
    seen = {store.fingerprint(tokens), store.fingerprint(tokens[:-1])}
    for place in (0, 500, 999):
        other = tokens.copy()
        other[place] += 1
        seen.add(store.fingerprint(other))
    assert len(seen) == 5 and store.fingerprint(tokens).startswith("1,000 tokens, checksum ")
    assert store.fingerprint(tokens) == store.fingerprint(tokens.copy())
    assert store.fingerprint(np.zeros(0, np.uint8)) == "0 tokens, checksum 00000000"
    long = np.zeros(10**7, np.uint8)
    before = store.fingerprint(long)
    long[-1] = 1
    assert store.fingerprint(long) != before


def test_a_data_set_of_the_hub_is_keyed_by_its_revision(cache, monkeypatch):
    revisions = iter(["first", "first", "second"])
    monkeypatch.setattr(sources, "hub_revision", lambda source: next(revisions))
    monkeypatch.setattr(
        "ddlm_core.data.read_stories", lambda *source: ((story, True) for story in TOLD)
    )
    for count in (1, 1, 2):
        batches("someone/some-data")
        assert len(kept(cache)) == count


def test_without_a_network_the_revision_is_unknown(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    assert sources.hub_revision("someone/some-data") is None


def test_pocket_stories_are_those_of_the_grammar(cache):
    told = [story for story, _ in pocket_stories(300, seed=0)]
    assert told == TOLD
    train, val, test = batches("pocket-stories", context_length=160, train_samples=60)
    assert [len(part) for part in (train, val, test)] == [64, 8, 8]


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
@pytest.mark.filterwarnings("ignore:stories repeat")  # the same stories, many times
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_memory_does_not_grow_with_the_text(cache, tmp_path, kind):
    block = "".join(f"{story}\n" for story in TOLD)
    row = (json.dumps({"text": block[:1000]}) + "\n") if kind == "jsonl" else block
    path = tmp_path / f"long.{kind}"
    with path.open("w") as lines:
        while lines.tell() < 10**8:
            lines.write(row * 100)
    setup_dataloaders(
        "pocket-stories", train_samples=20, val_samples=4
    )  # so that everything is imported
    before, most = anonymous(), 0

    def watched(blocks):
        nonlocal most
        for encoded in blocks:
            most = max(most, anonymous())
            yield encoded

    tokenizer = CharacterLevelTokenizer()
    pieces = sources.read_stories(str(path))
    tokens, ends, *_ = store.stored(str(path), lambda: watched(encode_stories(pieces, tokenizer)))
    assert len(tokens) > 9 * 10**7 and (len(ends) > 90_000 or kind == "txt")
    loader, *_ = setup_dataloaders(str(path), context_length=64)
    next(iter(loader))
    assert max(most, anonymous()) - before < 60e6
