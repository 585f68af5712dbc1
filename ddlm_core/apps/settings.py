"""What values a configuration may have; a wrong one is a ``ValueError`` of one line."""

from dataclasses import fields
from typing import Any

WHOLE, ANY = (int, int | None), (float, float | None)  # types of fields
FROM_ZERO = ("num_workers", "warmup_steps", "seed")
NAMES = {"optimizer": ("muon", "adamw"), "objective": ("guess", "score_entropy")}
SHARES = ("decay_fraction", "ema_decay", "sampling_eps", "given_share", "weight_decay")


def check_settings(config: Any) -> None:
    """Whole numbers start at 1, decimal numbers above 0, but for ``FROM_ZERO`` and ``SHARES``."""
    config.betas = tuple(config.betas)  # a list, if it comes from a file
    for f in (f for f in fields(config) if f.type in WHOLE + ANY):
        value, whole = getattr(config, f.name), f.type in WHOLE
        low = 0 if f.name in FROM_ZERO + SHARES else 1 if whole else 1e-9
        high = 1 if f.name in SHARES else 1e12
        right = type(value) is int or (type(value) is float and not whole)
        if not (right and low <= value <= high or value is None and f.type not in (int, float)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{f.name} must be {kind} from {low} to {high:g}, got {value!r}")
    for name, known in NAMES.items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
