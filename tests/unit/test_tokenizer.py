"""The tokenizer: vocabularies from files, ids from everywhere, and what is refused."""

from collections import Counter

import numpy as np
import pytest
import torch

from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import (
    PAD_ID,
    UNK_ID,
    VOCAB,
    CharacterLevelTokenizer,
    look_up,
    resolve_vocabulary,
    vocabulary_of,
)


def test_a_vocabulary_from_a_file_works_the_same():
    stored = ["<UNK>", "<PAD>", "\U0001f98a", "b", "\x00"]
    tokenizer = CharacterLevelTokenizer(stored)
    assert len(tokenizer) == tokenizer.vocab_size == 5 and list(tokenizer.vocab) == stored
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer.encode("b\U0001f98a\x00a").tolist() == [3, 2, 4, 0]
    assert tokenizer.decode([3, 1, 2, 1, 4, 0]) == "b\U0001f98a\x00\ufffd"


def test_a_vocabulary_that_cannot_work_is_refused():
    assert len(CharacterLevelTokenizer(["<UNK>", "<PAD>", *map(chr, range(254))])) == 256
    for vocab, reason in (
        ([], "starts with"),
        (["<PAD>", "<UNK>", "a"], "starts with"),
        (["<UNK>", "<PAD>", "a", "b", "a"], "occurs once.*'a'"),
        (["<UNK>", "<PAD>", "a", "the"], "one character.*'the'"),
        (["<UNK>", "<PAD>", "a", ""], "one character"),
        (["<UNK>", "<PAD>", "a", 7], "one character.*7"),
        (["<UNK>", "<PAD>", *map(chr, range(255))], "at most 256 tokens, got 257"),
    ):
        with pytest.raises(UserError, match=reason):
            CharacterLevelTokenizer(vocab)


def test_bad_ids_are_refused():
    tokenizer = CharacterLevelTokenizer()
    for ids, reason in (
        ([5, 106], "0..105, got 5..106"),
        (torch.tensor([-1, 3]), "0..105, got -1..3"),
        (np.array([300], dtype=np.uint16), "got 300..300"),
        ([0.5, 1.0], "integers, got float64"),
        (torch.zeros(3, dtype=torch.bfloat16), "integers, got float64"),
        (torch.ones(3, dtype=torch.bool), "integers, got bool"),
        (torch.tensor(7), r"shape \(L,\), got \(\)"),
        ([[1, 2]], r"shape \(L,\), got \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match=r"shape \(B, L\), got \(2,\)"):
        tokenizer.decode_batch([1, 2])
    with pytest.raises(ValueError, match="3 characters does not fit in 2"):
        tokenizer.pad("abc", 2)
    assert tokenizer.decode([]) == "" and tokenizer.decode_batch(torch.zeros(0, 4).long()) == []


def test_a_vocabulary_without_characters_works():
    tokenizer = CharacterLevelTokenizer(("<UNK>", "<PAD>"))
    assert tokenizer.encode("\x00a").tolist() == [UNK_ID, UNK_ID]
    assert tokenizer.decode([UNK_ID, PAD_ID]) == "\ufffd"


def test_every_id_comes_back():
    """From lists, arrays of each integer type, and tensors; two have no character."""
    tokenizer = CharacterLevelTokenizer()
    ids = list(range(106))
    text = "\ufffd" + "".join(VOCAB[2:])
    for same in (ids, np.array(ids, dtype=np.uint8), np.array(ids), torch.tensor(ids)):
        assert tokenizer.decode(same) == text
    assert tokenizer.decode_batch(np.array([ids[:3], ids[3:6]])) == ["\ufffd0", "123"]
    assert tokenizer.encode_numpy(text[1:]).tolist() == ids[2:]


def test_blocks_meet_without_a_seam():
    tokenizer = CharacterLevelTokenizer()
    for length in (0, 1, tokenizer.BLOCK - 1, tokenizer.BLOCK, tokenizer.BLOCK + 1):
        text = ("ab" * length)[:length]
        ids = tokenizer.encode_numpy(text)
        assert ids.dtype == np.uint8 and ids.shape == (length,)
        assert tokenizer.decode(ids) == text


def test_code_points_beyond_the_table_find_its_last_entry():
    table = np.array([5, 6, 7], dtype=np.uint8)
    assert look_up("\x00\x01\x02\x03\U0010ffff", table).tolist() == [5, 6, 7, 7, 7]
    tokenizer = CharacterLevelTokenizer()
    assert len(tokenizer.table) == ord("…") + 2 and tokenizer.table.dtype == np.uint8
    assert tokenizer.table[-1] == UNK_ID


def test_padding_fills_up_and_never_cuts():
    tokenizer = CharacterLevelTokenizer()
    assert tokenizer.pad("ab", 2).tolist() == tokenizer.encode("ab").tolist()
    padded = tokenizer.pad("", 3)
    assert padded.tolist() == [PAD_ID] * 3 and padded.dtype == torch.int64
    with pytest.raises(UserError, match="a text of 1 characters does not fit in 0 tokens"):
        tokenizer.pad("a", 0)


def test_the_vocabulary_is_the_promised_one():
    assert VOCAB[:2] == ("<UNK>", "<PAD>")
    digits, lower, upper = range(48, 58), range(97, 123), range(65, 91)
    marks = [p for p in range(33, 127) if p not in {*digits, *lower, *upper}]
    quotes_dashes_dots = [0x201C, 0x201D, 0x2018, 0x2019, 0x2014, 0x2013, 0x2026]
    promised = [*digits, *lower, *upper, *marks, 32, 9, 10, *quotes_dashes_dots]
    assert [ord(character) for character in VOCAB[2:]] == promised
    assert len(VOCAB) == len(set(VOCAB)) == 106


def test_a_vocabulary_is_made_of_what_is_frequent():
    counts = Counter({"b": 3, "a": 3, "\n": 9, "é": 1, "\ufffd": 99, chr(0xDC80): 99})
    assert vocabulary_of(counts) == ("<UNK>", "<PAD>", "\n", "a", "b", "é")
    assert vocabulary_of(counts, size=2) == ("<UNK>", "<PAD>", "\n", "a")
    many = Counter({chr(0x4E00 + i): i for i in range(300)})
    assert len(vocabulary_of(many)) == 256 and vocabulary_of(many)[2] == chr(0x4E00 + 299)
    CharacterLevelTokenizer(vocabulary_of(many))


def never() -> Counter[str]:
    raise AssertionError("only auto needs the text")


def test_a_setting_names_a_vocabulary(tmp_path):
    path = tmp_path / "characters.txt"
    path.write_bytes("\ufeffzab\r\nzaße\u0301".encode())
    special = ("<UNK>", "<PAD>")
    assert resolve_vocabulary("ascii106", never) == VOCAB
    assert resolve_vocabulary("auto", lambda: Counter("aab")) == (*special, "a", "b")
    assert resolve_vocabulary("auto", lambda: Counter("aab"), size=1) == (*special, "a")
    assert resolve_vocabulary(str(path), never) == (*special, *"zab\nßé")
    for characters in (["a", "e\u0301", " "], ("<UNK>", "<PAD>", "a", "é", " ")):
        assert resolve_vocabulary(characters, never) == (*special, "a", "é", " ")
    assert resolve_vocabulary([1, "x"], never) == (*special, "1", "x")  # as YAML reads a digit


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("Auto", r"cannot use vocabulary='Auto' \(.*No such file.*\): auto, ascii106, a text file"),
        ("{tmp}", "Is a directory"),
        ("{tmp}/empty", "need 1 to 254 characters, got 0"),
        ("{tmp}/latin", "can't decode byte 0xe9"),
        ("{tmp}/many", "need 1 to 254 characters, got 300"),
        ("a\x00b", "null"),
        ([], "need 1 to 254 characters, got 0"),
        (["a", "bc"], "one character.*'bc'"),
        (["a", "a"], "occurs once.*'a'"),
        (["a", None], "one character.*'None'"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_is_told_in_one_line(setting, reason, tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "many").write_text("".join(chr(0x4E00 + i) for i in range(300)), encoding="utf-8")
    if isinstance(setting, str):
        setting = setting.replace("{tmp}", str(tmp_path))
    with pytest.raises(UserError, match=reason) as caught:
        resolve_vocabulary(setting, never)
    assert "\n" not in str(caught.value) and "vocabulary=" in str(caught.value)
