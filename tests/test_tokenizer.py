# Generated from notebooks/01_tokenizer.py by tools/export.py: edit that, then run `make export`.

import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import torch

from ddlm_core.tokenizer import UNK_ID, VOCAB, CharacterLevelTokenizer

# The same examples every time, no file with past ones, no limit on the time of one.
repeatable = hypothesis.settings(derandomize=True, database=None, deadline=None)


@repeatable
@hypothesis.given(st.text(alphabet=VOCAB[2:], max_size=500), st.integers(0, 20))
def test_round_trip(text, padding):
    tokenizer = CharacterLevelTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64 and ids.shape == (len(text),)
    for same in (ids, ids.tolist(), tokenizer.encode_numpy(text)):
        assert tokenizer.decode(same) == text
    padded = tokenizer.pad(text, len(text) + padding)
    assert padded.tolist() == [*ids.tolist(), *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode_batch(torch.stack([padded, padded])) == [text, text]


@repeatable
@hypothesis.given(st.text(st.characters(exclude_categories=()), max_size=200))
@hypothesis.example("a\ud800b")  # half of a character, from a damaged file
@hypothesis.example("<PAD><UNK>")
def test_unknown_characters_are_replaced_one_for_one(text):
    tokenizer = CharacterLevelTokenizer()
    known = set(VOCAB[2:])
    expected = "".join(c if c in known else "\ufffd" for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.unknown_characters(text) == sorted({c for c in text if c not in known})
    assert tokenizer.pad_token_id not in tokenizer.encode(text)


def test_the_table_agrees_with_a_dictionary_on_all_of_unicode():
    position = {character: i for i, character in enumerate(VOCAB)}
    text = "".join(map(chr, range(sys.maxunicode + 1))) + "the end"
    tokenizer = CharacterLevelTokenizer()
    assert len(text) > 17 * tokenizer.BLOCK
    ids = tokenizer.encode_numpy(text)
    assert ids.dtype == np.uint8 and ids.tolist() == [position.get(c, UNK_ID) for c in text]
