"""Files that are whole or not there at all."""

import pytest
import torch

from ddlm_core.support.checkpoints import read_checkpoint
from ddlm_core.support.files import atomic_write


def test_a_file_or_folder_is_replaced_when_it_is_whole(tmp_path):
    def fail(part):
        part.write_text("half")
        raise RuntimeError("the disk is on fire")

    def two(part):
        part.mkdir()
        (part / "x").write_text("x")

    atomic_write(tmp_path / "a", lambda part: part.write_text("old"))
    with pytest.raises(
        OSError, match=r"could not write .*a; [\d,]+ MB are free there: the disk is"
    ):
        atomic_write(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    atomic_write(tmp_path / "a", lambda part: part.write_text("new"), tmp_path / "b")
    (tmp_path / "c.part").mkdir()  # a crash left it
    (tmp_path / "c.part" / "y").touch()
    for _ in range(2):  # a folder, and the same folder again
        atomic_write(tmp_path / "c", two)
    assert [(tmp_path / name).read_text() for name in ("a", "b", "c/x")] == ["new", "old", "x"]
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["a", "b", "c", "c/x"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    path, first, second = tmp_path / "x.pth", torch.zeros(10_000), torch.ones(10_000)
    atomic_write(path, lambda part: torch.save({"x": first}, part))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file may be longer
        with pytest.raises(OSError, match=r"could not write .*x.pth; [\d,]+ MB are free there"):
            atomic_write(path, lambda part: torch.save({"x": second}, part), tmp_path / "old.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    assert torch.equal(read_checkpoint(path)["x"], first)


def test_the_place_of_a_folder_is_never_half_filled(tmp_path, monkeypatch):
    """Killed between the two renames: the old folder is whole, and the next call puts it back."""

    def fill(part, text):
        part.mkdir()
        for name in "xy":
            (part / name).write_text(text)

    place = tmp_path / "model"
    atomic_write(place, lambda part: fill(part, "old"))
    rename = type(place).rename

    def killed(self, target):
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(place), "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(place, lambda part: fill(part, "new"))
    monkeypatch.undo()
    assert not place.exists() and {p.read_text() for p in tmp_path.glob("*.old/*")} == {"old"}

    def fail(part):
        raise RuntimeError("no room")

    with pytest.raises(OSError, match="no room"):
        atomic_write(place, fail)
    assert {p.read_text() for p in place.iterdir()} == {"old"}
    atomic_write(place, lambda part: fill(part, "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert {p.read_text() for p in place.iterdir()} == {"new"}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    place = tmp_path / "model"
    atomic_write(place, lambda part: part.mkdir())
    (place / "x").touch()
    rename = type(place).rename

    def refuse(self, target):
        if self.suffix == ".part":
            raise PermissionError("not here")
        return rename(self, target)

    monkeypatch.setattr(type(place), "rename", refuse)
    with pytest.raises(OSError, match="not here"):
        atomic_write(place, lambda part: part.mkdir())
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "x"]
