"""Reading text: every kind of source, and what is wrong with a broken one."""

import json

import pytest

from ddlm_core.support.sources import read_file, read_stories


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
