"""One way to derive seeds."""

from ddlm_core.support.seeds import derive_seed


def test_seeds_differ_in_everything_they_are_made_of():
    numbers = ((), (1,), (2,), (1, 1))
    seeds = {derive_seed(s, p, *n) for s in range(3) for p in ("a", "b") for n in numbers}
    assert len(seeds) == 24 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "noise", 5) == derive_seed(3, "noise", 5) != derive_seed(5, "noise", 3)
