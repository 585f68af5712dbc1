"""Text in the form that models read, and the ends of texts."""

import pytest

from ddlm_core.support.text import END, END_OF_TEXT, normalized, with_ends


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a\r\nb\rc\nd\r\n\r\n", "a\nb\nc\nd\n\n"),
        ("\r\r\n", "\n\n"),
        ("Cafe\u0301 u\u0308", "Café ü"),
        ("\u212b", "Å"),  # the sign of the unit Ångström is the letter
        ("हिन्दी ½ ﬁ", "हिन्दी ½ ﬁ"),  # signs that only look alike stay apart
        ("", ""),
    ],
)
def test_one_form_of_each_text(given, read):
    assert normalized(given) == read == normalized(read)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ([*"ab"], "ab"),
        ([*"ab", "", "", ""], "ab"),
        ([*"ab", "", *"cd", ""], "ab\n<|endoftext|>\ncd"),
        ([*"ab", "", "", *"cd"], "ab\n<|endoftext|>\ncd"),
        (["", *"ab"], "<|endoftext|>\nab"),
        ([*"a\n", "", *"\nb"], "a\n\n<|endoftext|>\n\nb"),
        (["", ""], ""),
        ([], ""),
        ([END_OF_TEXT], END_OF_TEXT),
    ],
)
def test_an_end_is_shown_where_more_follows(shown, text):
    assert with_ends(shown) == with_ends(iter(shown)) == text


def test_an_end_is_read_with_the_line_that_it_stands_on():
    for parts in (["ab", "cd"], ["", "ab"], ["a\n", "\nb"], ["a", "", "b"]):
        text = "\n<|endoftext|>\n".join(parts)
        assert END.split(text) == parts
    assert END.split("ab<|endoftext|>cd") == ["ab", "cd"] and END.split("<|endoftex|>") != ["", ""]
