"""The API reference: which modules it has, and how docstrings become its entries."""

import ast
import re
from pathlib import Path

import pytest

import book_api

ROOT = Path(__file__).parents[2]


def test_every_module_has_a_section_below_those_that_it_uses():
    text = (ROOT / book_api.PAGE).with_suffix(".md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\w+)\n\n```\{eval-rst\}\n\.\. automodule:: (\S+)$", text, re.M)
    modules = [module for module, _ in sections]
    assert [full for _, full in sections] == [f"ddlm_core.{module}" for module in modules]
    assert sorted(modules) == sorted(book_api.exports())
    for place, module in enumerate(modules):
        source = (ROOT / f"ddlm_core/{module}.py").read_text(encoding="utf-8")
        used = set(re.findall(r"^ *from ddlm_core\.(\w+) import", source, re.M)) - {"support"}
        assert used <= set(modules[:place]), module


@pytest.mark.parametrize(
    ("text", "typeset"),
    [
        ("the rate $\\sigma(t)$.", "the rate :math:`\\sigma(t)`."),
        ("$B$ texts, $L$ places", ":math:`B` texts, :math:`L` places"),
        ("of two\n$a\nb$ lines", "of two\n:math:`a\nb` lines"),
        ("the $k$th of x$k$", "the :math:`k`\\ th of x\\ :math:`k`"),
        ("``$HOME`` and ``US$``", "``$HOME`` and ``US$``"),
        ("``$a`` is $a$", "``$a`` is :math:`a`"),
    ],
)
def test_formulas_of_a_docstring(text, typeset):
    assert book_api.with_math(text) == typeset


def test_what_is_returned_is_no_type():
    lines = ["Tell.", "", "Returns:", "    times: in [0, 1],", "    float32 (B,).", "", "Raises:"]
    book_api.process_docstring(None, "function", "f", None, None, lines)
    field = [":returns: times: in [0, 1],", "    float32 (B,)."]
    assert lines == ["Tell.", "", *field, "Raises:"]


def test_a_comment_describes_a_value():
    source = "A = 1  # the first\nB = (\n    2  # in nats.\n)\nC = 3\n"
    found = [book_api.comment_of(node, source.splitlines()) for node in ast.parse(source).body]
    assert found == [["The first."], ["In nats."], []]
