"""Limits beside the fields of a dataclass: what passes, what is refused, and in which words."""

import re
from dataclasses import FrozenInstanceError, dataclass
from math import inf, nan
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields


@dataclass(frozen=True)
class Settings:
    size: Annotated[int, Limits(1)] = 8
    steps: Annotated[int | None, Limits(1)] = None
    share: Annotated[float, Limits(0, 1)] = 0.5
    rate: Annotated[float, Limits(above=0)] = 0.1
    dropout: Annotated[float | None, Limits(0, below=1)] = None
    seed: int = 0
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    name: str | None = None
    words: Any = ()

    def __post_init__(self) -> None:
        check_fields(self)


def test_numbers_of_any_kind_become_plain_ones():
    settings = Settings(size=np.int64(8), share=np.float32(0.5), rate=2, steps=np.uint8(3))
    assert settings == Settings(size=8, share=0.5, rate=2.0, steps=3)
    assert [type(v) for v in (settings.size, settings.steps)] == [int, int]
    assert [type(v) for v in (settings.share, settings.rate)] == [float, float]


@pytest.mark.parametrize(
    "good",
    [
        {"size": 1},
        {"share": 0},
        {"share": 1},
        {"seed": -5},
        {"dropout": 0},
        {"dropout": 0.999},
        {"steps": 1},
        {"rate": 1e-30},
        {"flag": True},
        {"kind": "b"},
        {"name": "x"},
        {"words": [1]},
    ],
)
def test_the_limits_themselves_and_what_has_none(good):
    settings, (name, value) = Settings(**good), *good.items()
    assert getattr(settings, name) == value


BAD = [
    ({"size": 0}, "size must be a whole number, at least 1, got 0"),
    ({"size": True}, "size must be a whole number, at least 1, got True"),
    ({"size": 2.0}, "size must be a whole number, at least 1, got 2.0"),
    ({"size": "2"}, "size must be a whole number, at least 1, got '2'"),
    ({"size": None}, "size must be a whole number, at least 1, got None"),
    ({"steps": 0}, "steps must be a whole number, at least 1, got 0"),
    ({"share": -0.1}, "share must be a number from 0 to 1, got -0.1"),
    ({"share": 1.5}, "share must be a number from 0 to 1, got 1.5"),
    ({"share": False}, "share must be a number from 0 to 1, got False"),
    ({"share": nan}, "share must be a number from 0 to 1, got nan"),
    ({"rate": 0}, "rate must be a number, above 0, got 0"),
    ({"rate": inf}, "rate must be a number, above 0, got inf"),
    ({"rate": 1j}, "rate must be a number, above 0, got 1j"),
    ({"dropout": 1.0}, "dropout must be a number, at least 0 and below 1, got 1.0"),
    ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ({"flag": 1}, "flag must be true or false, got 1"),
    ({"kind": "c"}, "kind must be a or b, got 'c'"),
    ({"kind": []}, "kind must be a or b, got []"),
    ({"name": 3}, "name must be a text, got 3"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_refused_and_how(bad, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Settings(**bad)


def test_checked_dataclass_stays_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().size = 9
