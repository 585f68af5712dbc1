"""Checkpoint files: what is damage and what is not; reading never writes."""

import pytest
import torch

from ddlm_core.support import checkpoints
from ddlm_core.support.checkpoints import (
    LATEST,
    PREVIOUS,
    DamagedCheckpoint,
    differences,
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from ddlm_core.support.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of steps 6 and 8."""
    for step in (6, 8):
        save_checkpoint(tmp_path / LATEST, {"step": step, "x": torch.arange(1000.0)})
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_one_before_is_kept(folder):
    assert contents(folder).keys() == {LATEST, PREVIOUS}
    assert [read_checkpoint(folder / name)["step"] for name in (LATEST, PREVIOUS)] == [8, 6]
    assert find_checkpoint(folder / LATEST)[1] == folder / LATEST


@pytest.mark.parametrize("place", range(0, 6000, 97))
def test_a_single_wrong_bit_is_found_and_nothing_is_written(folder, place):
    latest = folder / LATEST
    content = bytearray(latest.read_bytes())
    content[place % len(content)] ^= 4
    latest.write_bytes(content)
    before = contents(folder)
    try:
        content = read_checkpoint(latest)
    except DamagedCheckpoint:
        with pytest.warns(UserWarning, match="latest.pth is damaged.*going on from .*previous"):
            content, source = find_checkpoint(latest)
        assert content["step"] == 6 and source == folder / PREVIOUS
    else:  # between the records of a zip file lie bytes that mean nothing
        assert content["step"] == 8 and torch.equal(content["x"], torch.arange(1000.0))
    assert contents(folder) == before


@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_a_file_that_was_cut_off_is_damaged(folder, length):
    (folder / LATEST).write_bytes((folder / LATEST).read_bytes()[:length])
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        read_checkpoint(folder / LATEST)


@pytest.mark.parametrize("failure", [PermissionError, MemoryError, RuntimeError])
def test_what_is_no_damage_changes_nothing(folder, monkeypatch, failure):
    """An intact newest checkpoint that cannot be read now: no older one takes its place."""

    def refuse(*_, **__):
        raise failure("not now")

    monkeypatch.setattr(checkpoints.torch, "load", refuse)
    before = contents(folder)
    with pytest.raises((UserError, PermissionError, MemoryError), match="not now"):
        find_checkpoint(folder / LATEST)
    assert contents(folder) == before


def test_a_whole_file_that_torch_refuses_is_kept(folder):
    save_checkpoint(folder / LATEST, {"step": 8, "code": pytest.raises})
    save_checkpoint(folder / LATEST, {"step": 9, "code": pytest.raises})
    before = contents(folder)
    with pytest.raises(UserError, match="latest.pth is no checkpoint of ddlm-train") as caught:
        find_checkpoint(folder / LATEST)
    assert not isinstance(caught.value, DamagedCheckpoint) and "\n" not in str(caught.value)
    assert contents(folder) == before
    torch.save(torch.ones(1), folder / "tensor.pth")
    with pytest.raises(UserError, match="it holds no dictionary"):
        read_checkpoint(folder / "tensor.pth")


def test_missing_files(folder):
    (folder / LATEST).unlink()
    with pytest.warns(UserWarning, match="there is no checkpoint .*going on from"):
        assert find_checkpoint(folder / LATEST)[0]["step"] == 6
    with pytest.raises(UserError, match="there is no checkpoint .*other.pth"):
        find_checkpoint(folder / "other.pth")  # only the latest has a previous one
    (folder / PREVIOUS).write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="previous.pth is damaged"):
        find_checkpoint(folder / LATEST)
    (folder / PREVIOUS).unlink()
    with pytest.raises(UserError, match="there is no checkpoint"):
        find_checkpoint(folder / LATEST)


def test_differences_are_named_with_both_values():
    before, now = {"a": 1, "b": 2, "gone": 3}, {"a": 1, "b": 5, "new": None, "late": 0}
    assert differences(before, now) == ["b: 2 → 5", "gone: 3 → None", "late: None → 0"]
    assert differences(before, now, {"b", "gone"}) == ["late: None → 0"]
