"""What arguments may be; what is wrong is a ``UserError`` of one line."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import is_real, is_whole


def check_input(
    input_ids: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None, longest: int
) -> None:
    """Raise a ``UserError`` of one line for inputs that the network cannot take."""
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or input_ids.dtype != torch.int64:
        raise UserError(f"input_ids must be int64 of shape (B, L), got {input_ids.dtype}, {shape}")
    if not 1 <= shape[1] <= longest:
        raise UserError(f"a text has 1 to {longest} tokens here, got {shape[1]}")
    if sigma_bar.shape != shape[:1] or not sigma_bar.is_floating_point():
        got = f"{sigma_bar.dtype}, {tuple(sigma_bar.shape)}"
        raise UserError(f"sigma_bar must be floating, of shape (B,) = {shape[:1]}, got {got}")
    mask = condition_mask
    if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
        got = f"{mask.dtype}, {tuple(mask.shape)}"
        raise UserError(f"condition_mask must be bool {shape}, got {got}")


def check_range(least: float, most: float, **values: Any) -> None:
    """Raise a ``UserError`` that names a value out of limits, or not whole if ``least`` is an ``int``."""
    fits, what = (is_whole, "a whole number") if isinstance(least, int) else (is_real, "a number")
    for name, value in values.items():
        if not fits(value) or not least <= value <= most:
            raise UserError(f"{name} must be {what} from {least} to {most}, got {value!r}")


def check_choice(choices: Iterable[str], **values: Any) -> None:
    """Raise a ``UserError`` that names a value which is none of the ``choices``."""
    allowed = tuple(choices)
    for name, value in values.items():
        if not isinstance(value, str) or value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
