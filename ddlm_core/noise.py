# Generated from notebooks/03_noise.py by tools/export.py: edit that, then run `make export`.

"""Geometric noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "rate_matrix",
    "as_float_tensor",
    "corrupted_fraction",
    "transition_matrix",
    "GeometricNoise",
]


def rate_matrix(vocab_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Rates at which one token turns into another, at one redraw per unit of time.

    $Q = \tfrac1V J - I$, with $J$ the matrix of ones. This is the uniform graph of SEDD (Lou, Meng
    & Ermon 2024), divided by $V$.

    Args:
        vocab_size: number of tokens V, at least 1.
        dtype: floating type of the result.

    Returns:
        A symmetric matrix of shape (V, V) whose rows sum to 0.

    Raises:
        ValueError: if ``vocab_size`` is less than 1.
    """
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
    r"""Expected fraction of characters that were redrawn at least once: $1 - e^{-\bar\sigma}$.

    Args:
        sigma_bar: total noise, at least 0, any shape.

    Returns:
        Fractions in [0, 1], of the shape and dtype of ``sigma_bar``; float64 for a plain number.
    """
    return -torch.expm1(-as_float_tensor(sigma_bar))


def transition_matrix(sigma_bar: Tensor | float, vocab_size: int) -> Tensor:
    r"""Probabilities that one token has turned into another, after a total noise.

    $e^{\bar\sigma Q} = e^{-\bar\sigma} I + (1 - e^{-\bar\sigma}) \tfrac1V J$.

    Args:
        sigma_bar: total noise, at least 0 (infinity included): a number or a 0-dim tensor.
        vocab_size: number of tokens V, at least 1.

    Returns:
        A symmetric matrix of shape (V, V) whose rows sum to 1, of the dtype of ``sigma_bar``;
        float64 for a plain number.

    Raises:
        ValueError: if ``sigma_bar`` is negative, NaN or not a single number, or ``vocab_size`` is
            less than 1.
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
    r"""Noise that grows by equal factors in equal times: the geometric schedule of SEDD.

    Source: Lou, Meng & Ermon 2024, arXiv:2310.16834. Wherever a tensor goes in, a plain number may
    go in too; it counts as float64. Use single or double precision: a time in bfloat16 has so few
    digits that the noise is off by up to three percent.

    Times are not checked (that would make the processor wait for the GPU).

    Args:
        sigma_min: total noise at t = 0, above 0.
        sigma_max: total noise at t = 1, above ``sigma_min``.

    Raises:
        ValueError: if not ``0 < sigma_min < sigma_max < inf``.
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
        r"""Total noise and noise rate: $(\bar\sigma(t), \sigma(t))$.

        Args:
            t: times in [0, 1], any shape.

        Returns:
            Two tensors of the shape and dtype of ``t``.
        """
        return self.sigma_bar(t), self.sigma(t)

    @property
    def log_growth(self) -> float:
        r"""$\log(\sigma_{max}/\sigma_{min})$: the slope of $\log\bar\sigma(t)$."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def sigma_bar(self, t: Tensor | float) -> Tensor:
        r"""Total noise $\bar\sigma(t) = \sigma_{min}^{1-t}\,\sigma_{max}^{t}$.

        Args:
            t: times in [0, 1], any shape.

        Returns:
            Redraws per character since the clean text, of the shape and dtype of ``t``.
        """
        t = as_float_tensor(t)
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def sigma(self, t: Tensor | float) -> Tensor:
        r"""Noise rate $\sigma(t) = d\bar\sigma/dt = \bar\sigma(t)\log(\sigma_{max}/\sigma_{min})$.

        Args:
            t: times in [0, 1], any shape.

        Returns:
            Redraws per character and unit of time, of the shape and dtype of ``t``.
        """
        return self.sigma_bar(t) * self.log_growth

    def time(self, sigma_bar: Tensor | float) -> Tensor:
        r"""The time at which the total noise is ``sigma_bar``: the inverse of the function.

        Args:
            sigma_bar: total noise in [sigma_min, sigma_max], any shape.

        Returns:
            Times in [0, 1], of the shape and dtype of ``sigma_bar``.
        """
        return (torch.log(as_float_tensor(sigma_bar)) - math.log(self.sigma_min)) / self.log_growth
