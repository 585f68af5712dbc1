# Generated from notebooks/03_noise.py by tools/export.py: edit that, then run `make export`.
"""Geometric noise."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddlm_core.support.errors import UserError

__all__ = [
    "rate_matrix",
    "as_float_tensor",
    "resample_probability",
    "transition_matrix",
    "NoiseSchedule",
    "GeometricNoise",
]


def rate_matrix(vocab_size: int) -> Tensor:
    r"""Rates $Q = \tfrac1V J - I$ at one jump per unit of time: (V, V), float64.

    A V below 1 raises a ValueError. (SEDD's uniform graph, up to their factor V.)
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    ones = torch.ones(vocab_size, vocab_size, dtype=torch.float64)
    return ones / vocab_size - torch.eye(vocab_size)


def as_float_tensor(value: Tensor | float) -> Tensor:
    """Floating tensors unchanged; integer tensors and plain numbers as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def resample_probability(sigma_bar: Tensor | float) -> Tensor:
    r"""Probability $1 - e^{-\bar\sigma}$ that a character was resampled, of any shape."""
    return -torch.expm1(-as_float_tensor(sigma_bar))


def transition_matrix(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""The kernel $e^{\bar\sigma Q}$: (V, V), rows are distributions, dtype of ``sigma_bar``.

    A noise that is negative, NaN or not one number, or V below 1, raises a ValueError.
    """
    sigma_bar = as_float_tensor(sigma_bar)
    if sigma_bar.ndim != 0 or not sigma_bar >= 0:
        raise ValueError(f"sigma_bar must be one number, at least 0, got {sigma_bar}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    stay = torch.eye(vocab_size, dtype=sigma_bar.dtype, device=sigma_bar.device)
    return torch.exp(-sigma_bar) * stay + resample_probability(sigma_bar) / vocab_size


class NoiseSchedule(Protocol):
    r"""What a noise schedule offers; t and $\bar\sigma$ may have any shape, and results have theirs."""

    @property
    def sigma_min(self) -> float: ...  # total noise at t = 0

    @property
    def sigma_max(self) -> float: ...  # total noise at t = 1; may be infinite

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]: ...  # both of the next two

    def sigma_bar(self, t: Tensor | float) -> Tensor: ...  # total noise at time t

    def sigma(self, t: Tensor | float) -> Tensor: ...  # its derivative, the noise rate

    def time(self, sigma_bar: Tensor | float) -> Tensor: ...  # the inverse of sigma_bar


@dataclass(frozen=True)
class GeometricNoise:
    r"""The geometric schedule of SEDD (Lou, Meng & Ermon 2024): equal factors in equal times.

    Called with t in [0, 1] (any shape, not checked) it returns total noise $\bar\sigma(t)$ and rate
    $\sigma(t)$, of the shape and dtype of t. Plain numbers count as float64; bfloat16 is too coarse.
    Limits that are not 0 < sigma_min < sigma_max < inf raise a UserError.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"noise limits must satisfy 0 < sigma_min < sigma_max < inf: {self}")

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    @property
    def log_growth(self) -> float:
        r"""$\log(\sigma_{\max}/\sigma_{\min})$: the slope of $\log\bar\sigma(t)$."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = \sigma_{\min}^{1-t}\,\sigma_{\max}^{t}$, of the shape of ``t``."""
        t = as_float_tensor(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = d\bar\sigma/dt$, of the shape of ``t``."""
        return self.sigma_bar(t) * self.log_growth

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the inverse."""
        return (torch.log(as_float_tensor(sigma_bar)) - math.log(self.sigma_min)) / self.log_growth
