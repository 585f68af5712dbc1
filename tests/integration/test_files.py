"""Files that are whole or not there at all."""

import pytest
import torch

from ddlm_core.support.files import atomic_write, read_checkpoint


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


def test_nothing_but_plain_values_is_unpickled(tmp_path):
    torch.save({"x": pytest.raises}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth is no whole checkpoint"):
        read_checkpoint(tmp_path / "code.pth")
