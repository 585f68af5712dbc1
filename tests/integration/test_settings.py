"""Fields of configurations: the type says what they may hold."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest

from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.support.settings import Beta, Count, Natural, Positive, Share, check_fields


@dataclass
class Settings:
    count: Count = 1
    natural: Natural | None = None
    positive: Positive = 1.0
    share: Share = 0.0
    pair: tuple[Beta, Beta] = (0.9, 0.98)
    kind: Literal["muon", "adamw"] = "muon"
    flag: bool = False
    plain: int = 0
    words: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count must be a whole number from 1 to 1e+12, got 0"),
        ({"count": True}, "count must be a whole number from 1"),
        ({"count": 1.0}, "got 1.0"),
        ({"count": 10**12 + 1}, "got 1000000000001"),
        ({"natural": -1}, "natural must be a whole number from 0 to 1e+12 or null, got -1"),
        ({"positive": 0}, "positive must be a number from 1e-09 to 1e+12, got 0"),
        ({"positive": float("nan")}, "got nan"),
        ({"positive": "1"}, "got '1'"),
        ({"share": 1.001}, "share must be a number from 0 to 1, got 1.001"),
        ({"pair": (0.9, 1)}, "pair must be 2 numbers, each a number from 0 to 0.999999, got"),
        ({"pair": [0.9, 0.9]}, "pair must be 2 numbers"),
        ({"pair": (0.9,)}, "pair must be 2 numbers"),
        ({"kind": "sgd"}, "kind must be muon or adamw, got 'sgd'"),
        ({"kind": None}, "got None"),
        ({"flag": "maybe"}, "flag must be true or false, got 'maybe'"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"plain": False}, "plain must be a whole number, got False"),
        ({"words": [1]}, "words must be a mapping or null, got [1]"),
    ],
)
def test_wrong_values_are_named(wrong, said):
    with pytest.raises(UserError) as caught:
        Settings(**wrong)
    assert said in str(caught.value)


def test_right_values_of_every_kind():
    Settings(count=np.int64(8), natural=0, positive=np.float32(2), share=1, words={})
    Settings(count=10**12, natural=None, positive=Fraction(1, 2), share=0.0, pair=(0, 0.999999))


def test_seeds_differ_in_everything_they_are_made_of():
    seeds = {
        derive_seed(s, p, *n)
        for s in range(3)
        for p in ("a", "b")
        for n in ((), (1,), (2,), (1, 1))
    }
    assert len(seeds) == 24 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "noise", 5) == derive_seed(3, "noise", 5) != derive_seed(5, "noise", 3)
