# Generated from notebooks/04_forward.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Corrupting text."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddlm_core.noise import resample_probability

__all__ = ["noise_column", "transition", "sample_prior", "perturb_batch"]


def noise_column(noise: Tensor | float, like: Tensor) -> Tensor:
    """The noise of a batch, a scalar or (B,), as a column (B, 1, …) beside ``like``, (B, …).

    It is on the device of ``like``. Beside a floating table it has its dtype, but at least float32.
    Beside tokens it keeps its own; plain numbers and integers get PyTorch's default one. Other shapes
    raise a ValueError; values are not checked.
    """
    floating = like.is_floating_point()
    dtype = torch.promote_types(like.dtype, torch.float32) if floating else None
    noise = torch.as_tensor(noise, dtype=dtype, device=like.device)
    if noise.shape not in ((), like.shape[:1]):
        raise ValueError(
            f"noise must be a scalar or ({len(like)},), got shape {tuple(noise.shape)}"
        )
    if not noise.is_floating_point():
        noise = noise.to(torch.get_default_dtype())
    return noise.expand(len(like)).reshape(-1, *[1] * (like.dim() - 1))


def _check_tokens(x: Tensor) -> None:
    """Raise a ValueError if a text is not int64 of shape (B, L)."""
    if x.dim() != 2 or x.dtype != torch.int64:
        raise ValueError(f"tokens must be int64 of shape (B, L), got {x.dtype} {tuple(x.shape)}")


def transition(x_t: Tensor, delta_sigma: Tensor | float, vocab_size: int) -> Tensor:
    r"""Kernel rows $p(y \mid x_t) = e^{-\Delta}[y = x_t] + (1 - e^{-\Delta})/V$: (B, L, V).

    The tokens are int64 (B, L), the noise $\Delta \ge 0$ yet to come is a scalar or (B,) and sets the
    dtype; other shapes raise a ValueError, values are not checked. (SEDD's uniform graph.)
    """
    _check_tokens(x_t)
    delta = noise_column(delta_sigma, x_t)[..., None]  # (B, 1, 1)
    leak = resample_probability(delta) / vocab_size
    rows = leak.expand(*x_t.shape, vocab_size).clone()  # (B, L, V)
    stay = torch.exp(-delta).expand(*x_t.shape, 1)
    return rows.scatter_add_(-1, x_t[:, :, None], stay)


def sample_prior(
    batch_size: int,
    length: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pure noise: tokens drawn uniformly from all V, int64 (B, L).

    They are drawn on the device of the generator and then move to ``device``, if that is given.
    """
    where = device if generator is None else generator.device
    draw = torch.randint(vocab_size, (batch_size, length), generator=generator, device=where)
    return draw if device is None else draw.to(device)


def perturb_batch(
    x_0: Tensor,
    sigma_bar: Tensor | float,
    vocab_size: int,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    prior: Callable[..., Tensor] = sample_prior,
) -> Tensor:
    r"""Draw $x_t$ given $x_0$, int64 (B, L): each token is resampled with probability $1 - e^{-\bar\sigma}$.

    A resampled token is uniform over all V tokens, so it may come out as it was. The noise is a scalar
    or (B,); ``mask``, bool (B, L), is true where a token is kept; else a ValueError. The draws happen
    on the device of ``generator``, the new tokens come from ``prior``. (The uniform graph of SEDD, Lou, Meng & Ermon 2024.)
    """
    _check_tokens(x_0)
    chance = resample_probability(noise_column(sigma_bar, x_0))  # (B, 1)
    where = x_0.device if generator is None else generator.device
    u = torch.rand(x_0.shape, generator=generator, device=where).to(x_0.device)
    resampled = u < chance  # (B, L)
    if mask is not None:
        if mask.shape != x_0.shape or mask.dtype != torch.bool:
            got = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"mask must be bool of shape {tuple(x_0.shape)}, got {got}")
        resampled = resampled & ~mask
    return torch.where(resampled, prior(*x_0.shape, vocab_size, generator, x_0.device), x_0)
