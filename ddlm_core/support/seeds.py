"""One way to derive seeds, so that no two purposes share random numbers."""

import numpy as np


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed from 0 to 2^63 - 1 for one purpose of a run, such as ``derive_seed(seed, "noise", step)``.

    All arguments are mixed by numpy's ``SeedSequence``, so seeds that are close together give
    unrelated numbers.
    """
    entropy = [seed, int.from_bytes(purpose.encode()), *numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
