"""What the machine has, and what it is fast at."""

import os
import warnings
from importlib.util import find_spec
from typing import Any

import torch

from ddlm_core.support.errors import error_context


def make_accelerator(precision: str) -> Any:
    """An ``accelerate.Accelerator``; precision "auto" is bf16, fp16 or none, as the hardware likes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it is global: two trainers could not differ in precision
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    fast = "no"
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
        fast = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif cpu.get("avx512_bf16") or cpu.get("amx_bf16"):
        fast = "bf16"
    device = torch.accelerator.current_accelerator(check_available=True)
    # without GPUs that can talk, it would not notice that torchrun has started it several times
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and getattr(device, "type", "mps") == "mps"
    return Accelerator(mixed_precision=fast if precision == "auto" else precision, cpu=several)


def adamw(use_8bit: bool) -> type[torch.optim.Optimizer]:
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
    with error_context(f"device {str(name)!r} cannot be used here", "'cpu' always can"):
        torch.ones(1, device=name).item()
    return torch.device(name)
