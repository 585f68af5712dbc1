"""What the machine is fast at."""

from typing import Any

import torch


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
    return Accelerator(mixed_precision=fast if precision == "auto" else precision)
