# Generated from notebooks/03_noise.py by tools/export.py: edit that, then run `make export`.

"""Geometric noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['rate_matrix', 'as_float_tensor', 'corrupted_fraction', 'transition_matrix', 'GeometricNoise']  # fmt: skip


def rate_matrix(vocab_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Rates $Q = \tfrac1V J - I$, shape (V, V), at one redraw per unit of time; V at least 1."""
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    ones = torch.ones(vocab_size, vocab_size, dtype=dtype)
    return ones / vocab_size - torch.eye(vocab_size, dtype=dtype)


def as_float_tensor(value: Tensor | float) -> Tensor:
    """Floating tensors unchanged; integer tensors and plain numbers as float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def corrupted_fraction(sigma_bar: Tensor | float) -> Tensor:
    r"""Expected fraction of redrawn characters, $1 - e^{-\bar\sigma}$, of any shape."""
    return -torch.expm1(-as_float_tensor(sigma_bar))


def transition_matrix(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""Probabilities $e^{\bar\sigma Q}$ that one token has turned into another: (V, V), rows sum to 1.

    Args:
        sigma_bar: total noise, at least 0 (or infinite), a number or 0-dim tensor; sets the dtype.
        vocab_size: number of tokens V, at least 1.

    Raises:
        ValueError: if ``sigma_bar`` is negative, NaN or not one number, or V less than 1.
    """
    sigma_bar = as_float_tensor(sigma_bar)
    if sigma_bar.ndim != 0 or not sigma_bar >= 0:
        raise ValueError(f"sigma_bar must be one number, at least 0, got {sigma_bar}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    stay = torch.eye(vocab_size, dtype=sigma_bar.dtype, device=sigma_bar.device)
    return torch.exp(-sigma_bar) * stay + corrupted_fraction(sigma_bar) / vocab_size


@dataclass(frozen=True)
class GeometricNoise:
    r"""The geometric schedule of SEDD (Lou, Meng & Ermon 2024): equal factors in equal times.

    Called with times t in [0, 1], of any shape and not checked, it returns the total noise
    $\bar\sigma(t)$ (redraws per character) and the rate $\sigma(t)$ (redraws per unit of time), both
    of the shape and dtype of t. A plain number counts as float64; bfloat16 is too coarse.

    Args:
        sigma_min: total noise at t = 0, above 0.
        sigma_max: total noise at t = 1, above ``sigma_min`` and finite; else a ValueError.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "noise limits must satisfy 0 < sigma_min < sigma_max < inf, "
                f"got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$."""
        return self.sigma_bar(t), self.sigma(t)

    @property
    def log_growth(self) -> float:
        r"""$\log(\sigma_{max}/\sigma_{min})$: the slope of $\log\bar\sigma(t)$."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = \sigma_{min}^{1-t}\,\sigma_{max}^{t}$, of the shape of ``t``."""
        t = as_float_tensor(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = d\bar\sigma/dt$, of the shape of ``t``."""
        return self.sigma_bar(t) * self.log_growth

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        """Time at which the total noise is ``sigma_bar``, of its shape: the inverse."""
        return (torch.log(as_float_tensor(sigma_bar)) - math.log(self.sigma_min)) / self.log_growth
