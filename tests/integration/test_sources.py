"""Reading text: every kind of source, what it becomes, and what is wrong with a broken one."""

import bz2
import codecs
import gzip
import json
import logging
import lzma
import os
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlm_core.support import sources
from ddlm_core.support.errors import UserError
from ddlm_core.support.sources import (
    BLOCK,
    Reading,
    TextCounts,
    character_counts,
    read_stories,
    source_key,
    split_text,
)
from ddlm_core.support.tables import choose_column, choose_split, hub_texts
from ddlm_core.support.textfiles import find_files

datasets.disable_progress_bars()
ROWS = ["A bear sat.", "Two “words”.", "", "12", "2020-01-01", "NA", 'A "comma", and\na line']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, and a cache of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write(name: str, text: str | bytes, encoding: str = "utf-8") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return name


def lines(rows: list[str], column: str = "text") -> str:
    return "".join(json.dumps({"id": 1, column: row}, ensure_ascii=False) + "\n" for row in rows)


def texts(source: str, **how) -> list[str]:
    """The stories of a source, whole."""
    told = [""]
    for text, last in read_stories(source, Reading(**how)):
        told[-1] += text
        told += [""] * last
    assert told[-1] == ""  # the last one has an end
    return told[:-1]


def refused(source: str, said: str, **how) -> None:
    """One line that names the file, and ``said`` in it."""
    with pytest.raises(UserError) as error:
        texts(source, **how)
    message = str(error.value)
    assert said in message and "\n" not in message and len(message) < 400, message


# what is in a file


def test_a_text_is_one_story_and_several_files_are_several():
    write("a.txt", "A bear sat.\n\nIt was cold.\n")
    write("b.md", "# A frog\n")
    assert texts("a.txt") == ["A bear sat.\n\nIt was cold.\n"]
    assert texts("*") == ["A bear sat.\n\nIt was cold.\n", "# A frog\n"]
    assert texts("*", limit=1) == texts("a.txt") and texts("*", limit=0) == []


def csv_of(rows: list[str], sign: str = ",", end: str = "\r\n") -> str:
    quoted = ['"' + row.replace('"', '""') + '"' for row in rows]
    return end.join(["id" + sign + "text", *(f"1{sign}{row}" for row in quoted)]) + end


TABLES = {
    "a.jsonl": lines(ROWS),
    "blank.jsonl": "\n" + lines(ROWS).replace("\n", "\n\n"),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n"),
    "a.ndjson": lines(ROWS),
    "lines.json": lines(ROWS),
    "array.json": json.dumps([{"text": row} for row in ROWS], indent=1),
    "array.jsonl": json.dumps([{"text": row} for row in ROWS]),
    "strings.json": json.dumps(ROWS),
    "a.csv": csv_of(ROWS),
    "unix.csv": csv_of(ROWS, end="\n"),
    "semicolon.csv": csv_of(ROWS, ";"),
    "a.tsv": csv_of(ROWS, "\t"),
    "A.CSV": csv_of(ROWS),
    "commas.tsv": csv_of(ROWS, "\t").replace("id", "a,b,c,d", 1),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_a_story(name):
    assert texts(write(name, TABLES[name])) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252", "utf-16-le"])
def test_any_encoding(name, encoding):
    content = TABLES.get(name, "A bear.\r\nIt’s a café.")
    told = encoding if encoding in ("cp1252", "utf-16-le") else "utf-8"  # others have a mark
    expected = texts(write(name, content))
    assert texts(write("other-" + name, content, encoding), encoding=told) == expected


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_compressed_files_are_read_as_they_are(pack):
    ending = {gzip: "gz", bz2: "bz2", lzma: "xz"}[pack]
    for name in ("a.jsonl", "array.json", "A.CSV"):
        assert texts(write(f"{name}.{ending}", pack.compress(TABLES[name].encode()))) == ROWS
    assert texts(write(f"a.txt.{ending}", pack.compress("“A bear.”".encode()))) == ["“A bear.”"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_parquet_and_arrow_are_read_through_datasets(kind):
    table = datasets.Dataset.from_dict({"n": [1] * 7, "story": ROWS})
    if kind == "parquet":
        table.to_parquet("rows [v2].parquet")
    else:
        table.save_to_disk("saved")
        os.rename("saved/data-00000-of-00001.arrow", "rows [v2].arrow")
    found = TextCounts()
    told = [text for text, _ in read_stories(f"rows [v2].{kind}", found=found)]
    assert told == ROWS and found.columns == ["story"]


def test_numbers_in_a_column_of_texts_stay_as_they_were_written():
    content = "text,n\n" + "12,1\n" * 200 + "007,1\n1.50,1\n"
    assert set(texts(write("a.csv", content))) == {"12", "007", "1.50"}
    assert texts(write("long.csv", f"text\n{'x' * 200_000}\n")) == ["x" * 200_000]


def test_line_ends_are_read_as_newlines():
    assert texts(write("a.txt", "one\r\ntwo\rthree\n")) == ["one\ntwo\nthree\n"]
    assert texts(write("a.jsonl", lines(["one\r\ntwo\rthree"]))) == ["one\ntwo\nthree"]
    long = "x" * (BLOCK - 1) + "\r\n" + "y" * 10  # cut between the two
    assert texts(write("long.txt", long)) == [long.replace("\r\n", "\n")]


def test_text_is_in_nfc():
    apart = normalize("NFD", "Ein Bär, 각")
    assert (
        texts(write("a.txt", apart)) == texts(write("a.jsonl", lines([apart]))) == ["Ein Bär, 각"]
    )


PIECES = st.text("aä̈é́\u0323각\u1100\u1161\u11a8\n|", max_size=40)


@given(st.lists(PIECES, max_size=6), st.sampled_from(["", "|", "||"]))
def test_how_a_text_comes_in_parts_does_not_matter(parts, separator):
    def stories(parts, keep):
        found = TextCounts()
        told = [""]
        with pytest.MonkeyPatch.context() as patch:
            cut = sources._cut
            patch.setattr(sources, "_cut", lambda text, wanted: cut(text, min(wanted, keep)))
            for text, last in split_text(parts, separator, found):
                told[-1] += text
                told += [""] * last
        return told, found.ends_found

    text = "".join(parts)
    told, ends = stories(parts, 6)
    assert (told, ends) == stories([text], 10**9)
    if not separator:
        assert told == ([normalize("NFC", text), ""] if text else [""])
    else:
        assert ends == text.count(separator) and not any(separator in story for story in told)


def test_a_text_is_cut_where_no_letter_goes_on():
    for text, place in (
        ("ab", 1),
        ("a\u0308", 0),
        ("ba\u0323\u0308", 1),
        ("한\u1100\u1161\u11a8", 1),
    ):
        assert sources._cut(text, 1) == place
    assert sources._cut("abc", 2) == 1 and sources._cut("abc", 9) == 0


# where stories end


def test_a_separator_ends_a_story_and_the_line_breaks_around_it_go():
    told = write("tiny.txt", "\nOne.\nTwo.\n<|endoftext|>\n\nThree.<|endoftext|>\n<|endoftext|>\n")
    found = TextCounts()
    assert list(read_stories(told, found=found)) == [("\nOne.\nTwo.", True), ("Three.", True)]
    assert found.ends_found == 3 and found.files == 1
    assert texts(write("a.jsonl", lines(["One.<|endoftext|>", "Two."]))) == ["One.", "Two."]
    assert texts(write("stars.txt", "One.\n***\nTwo.\n"), separator="***") == ["One.", "Two."]
    assert texts("stars.txt", separator="") == texts("stars.txt") == ["One.\n***\nTwo.\n"]


def test_a_separator_is_found_across_blocks():
    for shift in range(20):
        long = "x" * (BLOCK - shift) + "\n<|endoftext|>\nThe next."
        assert texts(write("long.txt", long)) == ["x" * (BLOCK - shift), "The next."]


def test_a_limit_counts_stories_and_megabytes_of_longer_ones():
    write("long.txt", "x" * (5 * BLOCK))
    read = [len(text) for text, _ in read_stories("long.txt", Reading(limit=2))]
    assert len(read) == 2 and BLOCK < sum(read) <= 2 * BLOCK
    for name in "abc":
        write(f"many/{name}.txt", "A bear sat. " * 50)
    assert len(texts("many", limit=2)) == 2
    write("many/tales.txt", "<|endoftext|>".join(["One."] * 100))
    assert len(texts("many/tales.txt", limit=70)) == 70


# which files


def test_folders_patterns_and_paths_as_they_stand():
    for name in ("b/two.txt", "a.txt", "b/.hidden", ".git/config", "b/one.jsonl"):
        write(f"tales/{name}", lines([name]) if name.endswith("jsonl") else name)
    assert texts("tales") == ["a.txt", "b/one.jsonl", "b/two.txt"]
    assert texts("tales/*") == texts("tales/**") == texts("tales")
    assert texts("tales/**/*.txt") == ["a.txt", "b/two.txt"]
    assert texts(write("texts [v2]/rain.txt", "It rained.")) == ["It rained."]
    assert texts("texts [v2]") == ["It rained."]
    assert texts(write("text s/ra*n?.csv", csv_of(["It."]))) == ["It."]


def test_folders_behind_links_are_read_once():
    write("tales/a.txt", "A bear.")
    write("elsewhere/b.txt", "A frog.")
    try:
        Path("tales/more").symlink_to(Path("elsewhere").absolute())
        Path("tales/circle").symlink_to(Path("tales").absolute())
    except OSError:
        pytest.skip("links need rights on Windows")
    assert texts("tales") == ["A bear.", "A frog."]


def test_a_data_set_saved_to_disk_is_a_folder():
    rows = datasets.Dataset.from_dict({"text": ROWS})
    datasets.DatasetDict({"train": rows}).save_to_disk("saved")
    assert texts("saved") == texts("saved/train") == ROWS


def test_home_is_a_tilde(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    write("a.txt", "At home.")
    assert texts("~/a.txt") == ["At home."]


def test_what_holds_no_text_is_left_out_of_a_folder_and_said():
    write("tales/a.txt", "A bear.")
    write("tales/cover.png", b"\x89PNG\r\n\x1a\n\0\0")
    write("tales/data.bin", b"A\0B")
    with pytest.warns(UserWarning, match="tales: 2 without text left out .*cover.png, .*data.bin"):
        assert find_files("tales") == [Path("tales/a.txt")]


NO_TEXT = {
    "a.gif": (b"GIF89a", "no text, but image"),
    "a.pdf": (b"%PDF-1.4", "save it as text"),
    "a.docx": (b"PK\3\4\0\0", "save it as text"),
    "a.zip": (b"PK\3\4", "unpack it"),
    "a.txt": ("A bear.".encode("utf-16-le"), "encoding=utf-16-le"),
    "a.txt.gz": (b"no gzip", "cannot unpack it"),
    "a.jsonl.gz": (gzip.compress(lines(ROWS).encode())[:-9], "cannot unpack it"),
    "a.parquet": (b"no parquet", "cannot read it"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_a_file_without_text_is_refused(name):
    content, said = NO_TEXT[name]
    refused(write(name, content), said)
    refused(name, name)


def test_datasets_adds_no_lines_of_its_own(monkeypatch):
    datasets.logging.set_verbosity_warning()
    logged, logger = [], logging.getLogger("datasets")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    refused(write("a.parquet", b"no parquet"), "cannot read it")
    assert not logged


def test_no_such_file():
    Path("empty").mkdir()
    refused("empty", "there are no files in this folder")
    for name in ("none.txt", "none/*.md", "./none", "a/b/c", "none.csv.gz", "~nobody/x", "", "a b"):
        with pytest.raises(FileNotFoundError, match="no file matches"):
            texts(name)


# what is wrong with a file


def test_bytes_of_another_encoding_are_told_with_file_and_place():
    bad = write("a.txt", "A bear.\n" * 9 + "Ein Bär.\n", "cp1252")
    refused(bad, "a.txt is not utf-8 (line 10, byte 0xe4): name what it is, encoding=cp1252")
    assert texts(bad, encoding="cp1252") == ["A bear.\n" * 9 + "Ein Bär.\n"]
    for name in ("a.jsonl", "a.csv", "array.json", "crlf.jsonl"):
        content = TABLES[name].replace("12", "cafés")
        refused(write(f"bad-{name}", content, "cp1252"), f"bad-{name} is not utf-8 (line ")
    refused(write("cut.txt", codecs.BOM_UTF16_LE + b"A\0b"), "cut.txt is not utf-16")
    refused(write("cut8.txt", "Ein B\u00e4"[:-1].encode() + b"\xc3"), "cut8.txt is not utf-8")
    refused(bad, "there is no encoding 'latin-99'", encoding="latin-99")
    refused(bad, "there is no encoding 'hex'", encoding="hex")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"txt": "y"}', "row 2: need an object with a text 'text'"),
        ('{"text": null}', "row 2: need an object with a text 'text'"),
        ("[1]", "row 2: need an object with a text 'text'"),
        ('{"text": "cut o', "row 2: need an object with a text, got no JSON: Unterminated string"),
    ],
)
def test_bad_rows_are_refused(row, said):
    refused(write("a.jsonl", '{"text": "x"}\n' + row), f"a.jsonl, {said}")
    array = write("a.json", '[{"text": "x"},\n' + row + "]")
    refused(array, "a.json" if row[-2:] == " o" else f"a.json, {said}")


BAD_TABLES = {
    "a.jsonl": ("[1]\n", "row 1: need an object with a text 'text'"),
    "a.json": ('{"data": [1]}', "no column 'text', and no other holds text (data)"),
    "cut.json": ('[{"text": "x"}', "no JSON: Expecting"),
    "a.csv": ("id,text\n1,a,b\n", "row 1 has 3 fields, and the header 2: quote texts"),
    "b.csv": ("id,text\n1,a\n2,a,b\n", "row 2 has 3 fields, and the header 2"),
    "quote.csv": ('id,text\n1,b\n2,"a\n', "row 2: unexpected end of data: a quote inside"),
    "short.csv": ("text,id\na\n", "row 1 has 1 fields, and the header 2"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused(name):
    content, said = BAD_TABLES[name]
    refused(write(name, content), said)
    refused(name, name)


# columns


def test_the_only_column_with_text_is_taken_and_told():
    for name, content in {"a.jsonl": lines(["x"] * 9, "story"), "a.csv": "n,story\n1,x\n"}.items():
        found = TextCounts()
        (text, _), *_ = read_stories(write(name, content), found=found)
        assert text == "x" and found.columns == ["story"]


def test_a_column_that_is_missing_or_one_of_several():
    rows = [{"title": "a", "story": "b", "n": 1}, {"title": "a", "story": None, "n": None}]
    assert choose_column(rows, "story", "x") == "story" and choose_column([], None, "x") == "text"
    assert choose_column([row | {"text": "c"} for row in rows], None, "x") == "text"
    with pytest.raises(
        UserError, match=r"^x: no column 'text', but text in title, story: text_col"
    ):
        choose_column(rows, None, "x")
    with pytest.raises(UserError, match=r"^x: no column 'content', but text in title, story: text"):
        choose_column(rows, "content", "x")
    with pytest.raises(UserError, match=r"^x: no column 'text', and no other holds text \(n\)"):
        choose_column([{"n": 1}], None, "x")
    refused(write("a.csv", "title,story\na,b\n"), "a.csv: no column 'text', but text in title, st")
    assert texts("a.csv", column="story") == ["b"]


# the Hub


@pytest.fixture
def hub(here, monkeypatch):
    """A data set `some/tales` with the configurations de and en, as `datasets` would find it."""
    parts = [(config, split) for config in ("de", "en") for split in ("train", "test")]
    for config, split in parts:
        write(f"hub/{config}-{split}.jsonl", lines([f"{config} {split} {i}" for i in range(3)]))
    known = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - {{split: {s}, path: {config}-{s}.jsonl}}\n" for s in ("train", "test"))
        for config in ("de", "en")
    )
    write("hub/README.md", f"---\nconfigs:\n{known}---\n")
    load = datasets.load_dataset

    def local(name, *config, **options):
        assert name == "some/tales"
        return load(str(here / "hub"), *config, cache_dir=str(here / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)


def test_configurations_and_splits_of_a_data_set(hub):
    assert list(hub_texts("some/tales", config="de")) == ["de train 0", "de train 1", "de train 2"]
    with pytest.warns(UserWarning, match="'some/tales' has no split 'validation': 'test' is taken"):
        assert next(hub_texts("some/tales", "validation", config="en")) == "en test 0"
    for config, said in ((None, "pick one among .*'de', 'en'"), ("fr", "'fr' not found.*'de'")):
        with pytest.raises(
            UserError, match=f"^cannot use 'some/tales' .*{said}.*dataset_config=…$"
        ) as e:
            next(hub_texts("some/tales", config=config))
        assert "Example" not in str(e.value)  # of Python, which the library gives
    with pytest.raises(UserError, match="some/tales: no column 'story', but text in text"):
        next(hub_texts("some/tales", column="story", config="de"))


def test_splits_that_stand_in():
    for names, wanted, chosen in (
        (["train", "dev", "test"], "validation", "dev"),
        (["test"], "train", "test"),
    ):
        with pytest.warns(UserWarning, match=f"{chosen!r} is taken"):
            assert choose_split(names, wanted, "some/tales") == chosen
    with pytest.raises(UserError, match="no split 'validation', only train: leave out val_data"):
        choose_split(["train"], "validation", "some/tales")
    with pytest.raises(UserError, match="no split 'train', only a, b: save one of them as a file"):
        choose_split(["a", "b"], "train", "some/tales")


def test_a_hub_that_cannot_be_reached_gives_the_reason(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the cable is out")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConnectionError, match="OSError: the cable is out.*local files and folders"):
        texts("some/tales")


# counting, and knowing whether a text has changed


def test_characters_are_counted_once_as_they_are_trained_on(monkeypatch):
    content = "Ein Ba\u0308r.\r\nЖ\U0001f43b<|endoftext|>\n\ud83d".encode("utf-8", "surrogatepass")
    write("a.txt", content[:-4])
    counted = character_counts("a.txt")
    assert counted == Counter("Ein Bär.\nЖ\U0001f43b")
    assert character_counts([("ab", False), ("b", True)]) == Counter("abb")
    monkeypatch.setattr(sources, "read_stories", lambda *_: pytest.fail("read again"))
    assert character_counts("a.txt") == counted


def test_a_cache_that_cannot_be_written_costs_time_alone(here):
    (here.parent / "assets").write_text("a file where the folder should be")
    assert character_counts(write("a.txt", "aab")) == Counter("aab")


def test_a_file_replaced_with_the_same_size_and_time_is_another():
    keys = set()
    for text in ("one", "two"):
        os.utime(write("a.txt", text), ns=(0, 1))
        keys.add(source_key("a.txt"))
    write("b.txt", "six")
    os.utime("b.txt", ns=(0, 1))
    os.replace("b.txt", "a.txt")
    assert len(keys | {source_key("a.txt")}) == 3


def test_every_way_of_reading_has_a_key_of_its_own(monkeypatch):
    monkeypatch.setattr(sources, "hub_revision", lambda source: "1")
    changes = {"split": "test", "limit": 5, "column": "story", "config": "de"}
    changes |= {"encoding": "cp1252", "separator": "***"}
    keys = {source_key("some/tales", Reading(**{name: value})) for name, value in changes.items()}
    assert set(Reading._fields) == set(changes) and source_key("some/tales") not in keys
    assert len(keys) == len(changes)
