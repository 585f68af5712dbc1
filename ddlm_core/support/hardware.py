"""What the machine has, and what it is fast at."""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ddlm_core.support.errors import UserError, error_context

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator() -> "Accelerator":
    """An ``accelerate.Accelerator`` for devices and processes; the precision is not its business.

    (It keeps its precision for the whole process: two trainers could not differ.)
    """
    from accelerate import Accelerator

    device = torch.accelerator.current_accelerator(check_available=True)
    # without GPUs that can talk, it would not notice that torchrun has started it several times
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and getattr(device, "type", "mps") == "mps"
    return Accelerator(mixed_precision="no", cpu=several)


def pick_precision(name: str, device: torch.device) -> str:
    """``no``, ``bf16`` or ``fp16``; for ``auto`` the one that the hardware multiplies fast."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in 32 bits
    if name == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU: take bf16, no or auto")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = device.type == "cpu" and (found.get("avx512_bf16") or found.get("amx_bf16"))
    return "bf16" if fast else "no"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which matrix products have the precision of :func:`pick_precision`."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "no")


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, compiled if a compiler is at hand; a line is compiled first, to see whether one is."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # noqa: BLE001  it depends on the compiler, which is none of ours
        reason = " ".join(str(error).split()).partition(" Set TORCH")[0] or type(error).__name__
        hint = "install a C++ compiler, on a GPU triton, too"
        warnings.warn(f"torch_compile is off ({shorten(reason, 200)}): {hint}", stacklevel=3)
        return module
    return cast("nn.Module", torch.compile(module))


def adamw(use_8bit: bool) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer AdamW, if it can be had the one whose memory takes 8 bits a number."""
    if use_8bit and torch.cuda.is_available() and find_spec("bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit
    if use_8bit:
        warnings.warn("use_8bit_optimizer is off: it needs CUDA and bitsandbytes", stacklevel=3)
    return torch.optim.AdamW


def pick_device(name: str | None) -> torch.device:
    """A device, once it has held a number; by default a GPU if there is one."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    what = f"device {str(name)!r} cannot be used here"
    # PyTorch says so with a RuntimeError, or an AssertionError if it was built without this kind
    with error_context(what, "'cpu' always can", RuntimeError, AssertionError):
        torch.ones(1, device=name).item()
    return torch.device(name)
