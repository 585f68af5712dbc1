# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

from ddlm_core.pipeline import parse_template


def test_parse_template():
    assert parse_template("a_b") == ["a", None, "b"]
    assert parse_template("_{3}.") == [None, None, None, "."]
    assert parse_template(r"snake\_case") == list("snake_case")
    assert parse_template("{3}\n") == list("{3}\n")
