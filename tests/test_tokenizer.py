# Generated from notebooks/01_tokenizer.py by tools/export.py: edit that, then run `make export`.

import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from ddlm_core.tokenizer import (
    UNK_ID,
    VOCAB,
    CharacterLevelTokenizer,
    _check_vocabulary,
    _code_point_table,
    look_up,
)


def test_the_vocabulary_is_the_promised_one():
    assert VOCAB[:2] == ("<UNK>", "<PAD>")
    code_points = [ord(character) for character in VOCAB[2:]]
    digits, lower, upper = range(48, 58), range(97, 123), range(65, 91)
    letters_and_digits = {*digits, *lower, *upper}
    marks = [point for point in range(33, 127) if point not in letters_and_digits]
    quotes_dashes_dots = [0x201C, 0x201D, 0x2018, 0x2019, 0x2014, 0x2013, 0x2026]
    assert code_points == [*digits, *lower, *upper, *marks, 32, 9, 10, *quotes_dashes_dots]
    assert len(VOCAB) == len(set(VOCAB)) == 106


def test_a_vocabulary_that_cannot_work_is_refused():
    assert _check_vocabulary(list(VOCAB)) == VOCAB
    assert _check_vocabulary(["<UNK>", "<PAD>", *map(chr, range(254))])[-1] == chr(253)
    for vocab, reason in (
        ([], "starts with"),
        ("abc", "starts with"),
        (["<PAD>", "<UNK>", "a"], "starts with"),
        (["<UNK>", "<PAD>", "a", "b", "a"], "occurs once.*'a'"),
        (["<UNK>", "<PAD>", "a", "the"], "one character.*'the'"),
        (["<UNK>", "<PAD>", "a", ""], "one character"),
        (["<UNK>", "<PAD>", "a", 7], "one character.*7"),
        (["<UNK>", "<PAD>", *map(chr, range(255))], "at most 256 tokens, got 257"),
    ):
        with pytest.raises(ValueError, match=reason):
            _check_vocabulary(vocab)


def test_the_table_agrees_with_a_dictionary_on_all_of_unicode():
    table = _code_point_table(VOCAB)
    position = {character: i for i, character in enumerate(VOCAB)}
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert look_up(everything, table).tolist() == [position.get(c, UNK_ID) for c in everything]
    assert look_up("", table).shape == (0,)


# The same examples every time, no file with past ones, no limit on the time of one.
repeatable = hypothesis.settings(derandomize=True, database=None, deadline=None)


@repeatable
@hypothesis.given(st.text(alphabet=VOCAB[2:], max_size=500), st.integers(0, 20))
def test_round_trip(text, padding):
    tokenizer = CharacterLevelTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64 and ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode_numpy(text)) == text
    assert tokenizer.decode(ids.tolist()) == text
    padded = tokenizer.pad(text, len(text) + padding)
    assert padded.tolist() == [*ids.tolist(), *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode_batch(torch.stack([padded, padded])) == [text, text]


@repeatable
@hypothesis.given(st.text(st.characters(exclude_categories=()), max_size=200))
@hypothesis.example("a\ud800b")  # half of a character, from a damaged file
@hypothesis.example("<PAD><UNK>")
@hypothesis.example("Caf\u00e9 \U0001f600 \r\n")
def test_unknown_characters_are_replaced_one_for_one(text):
    tokenizer = CharacterLevelTokenizer()
    known = set(VOCAB[2:])
    expected = "".join(c if c in known else "\ufffd" for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.unknown_characters(text) == sorted({c for c in text if c not in known})
    assert tokenizer.pad_token_id not in tokenizer.encode(text)


def test_a_text_longer_than_a_block_is_read_whole():
    tokenizer = CharacterLevelTokenizer()
    length = 2 * tokenizer.BLOCK + 17
    text = ("The moon – “my moon” – rose… " * (length // 20))[:length]
    assert len(text) == length and tokenizer.decode(tokenizer.encode_numpy(text)) == text


def test_a_vocabulary_from_a_file_works_the_same():
    stored = ["<UNK>", "<PAD>", "\U0001f98a", "b", "\x00"]
    tokenizer = CharacterLevelTokenizer(stored)
    assert len(tokenizer) == tokenizer.vocab_size == 5 and list(tokenizer.vocab) == stored
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer.encode("b\U0001f98a\x00a").tolist() == [3, 2, 4, 0]
    assert tokenizer.decode([3, 1, 2, 1, 4, 0]) == "b\U0001f98a\x00\ufffd"
    assert tokenizer.encode_numpy("b").dtype == np.uint8


def test_bad_ids_are_refused():
    tokenizer = CharacterLevelTokenizer()
    for ids, reason in (
        ([5, 106], "0..105, got 5..106"),
        (torch.tensor([-1, 3]), "0..105, got -1..3"),
        (np.array([300], dtype=np.uint16), "got 300..300"),
        ([0.5, 1.0], "integers, got float64"),
        (torch.zeros(3, dtype=torch.bfloat16), "integers, got torch.bfloat16"),
        (torch.ones(3, dtype=torch.bool), "integers, got bool"),
        ("Hi", "integers"),
        (torch.tensor(7), r"shape \(L,\), got \(\)"),
        ([[1, 2]], r"shape \(L,\), got \(1, 2\); see decode_batch"),
    ):
        with pytest.raises(ValueError, match=reason):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match=r"shape \(B, L\), got \(2,\)"):
        tokenizer.decode_batch([1, 2])
    with pytest.raises(ValueError, match="3 characters does not fit in 2"):
        tokenizer.pad("abc", 2)
    assert tokenizer.decode([]) == "" and tokenizer.decode_batch(torch.zeros(0, 4).long()) == []
