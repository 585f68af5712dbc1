"""What configurations and arguments may hold; what is wrong is a ``ValueError`` of one line."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ddlm_core.support.errors import UserError


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


def has_denoiser(model: Any) -> bool:
    """Whether a model can say what it believes, log q (B, L, V); if not, it only has scores."""
    kind = getattr(getattr(model, "config", None), "parametrization", "denoiser")
    return hasattr(model, "denoise") and kind == "denoiser"


def check_sampling(
    model: Any, method: str, temperature: float, churn: float, each: Sequence, shape: tuple
) -> None:
    """Raise a ``ValueError`` of one line if no tokens (B, L) can be sampled like this."""
    graph = getattr(model, "graph", None)
    if min(shape) < 1:
        raise ValueError(f"batch_size and seq_len must be at least 1, got {shape}")
    if method not in ("analytic", "euler"):
        raise ValueError(f"method must be one of analytic, euler, got {method!r}")
    if method == "euler" and not getattr(graph, "supports_scores", True):
        raise ValueError("the method euler is made for the uniform graph alone")
    if temperature != 1 and not (0 < temperature < torch.inf and has_denoiser(model)):
        limits = "1, or above 0 and finite if the model has a denoiser"
        raise ValueError(f"temperature must be {limits}, got {temperature}")
    check_range(0.0, 1.0, churn=churn)
    if churn and not getattr(graph, "supports_churn", True):
        raise ValueError(f"churn is made for the uniform graph alone: it must be 0, got {churn}")
    if len(each) != shape[0]:
        raise ValueError(f"got {len(each)} generators for a batch of {shape[0]}")


def check_range(least: float, most: float, **values: Any) -> None:
    """Raise a ``ValueError`` that names a value out of limits, or not whole if the limits are."""
    kind, what = (Integral, "a whole number") if isinstance(least, int) else (Real, "a number")
    for name, value in values.items():
        if not isinstance(value, kind) or not least <= value <= most:
            raise ValueError(f"{name} must be {what} from {least} to {most}, got {value!r}")


def with_given(template: Any, mask: Any, start: Tensor, vocab_size: int) -> tuple[Tensor, Any]:
    """Tokens (B, L) of the start with the given ones in their places, and the mask (B, L)."""
    if template is None and mask is None:
        return start, None
    shape = tuple(start.shape)
    for name, value, kind in (("template", template, torch.int64), ("mask", mask, torch.bool)):
        if getattr(value, "dtype", None) != kind or value.shape not in (shape, shape[1:]):
            need = f"{name} must be {kind} of shape {shape[1:]} or {shape}"
            raise ValueError(f"template and mask go together: {need}")
    template, mask = (given.expand(shape).to(start.device) for given in (template, mask))
    if ((template < 0) | (template >= vocab_size))[mask].any():
        raise ValueError(f"the template has tokens outside 0 to {vocab_size - 1}")
    return torch.where(mask, template, start), mask
