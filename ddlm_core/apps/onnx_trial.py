"""What ``ddlm-export`` tries a network with: the same inputs in PyTorch and in ONNX Runtime."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ddlm_core.config import DiscreteDiffusionConfig
    from ddlm_core.model import DiscreteDiffusionTransformer

INPUTS, OUTPUT = ("tokens", "sigma_bar", "condition_mask"), "logits"
READING = ("clean", "places")  # more inputs of a network that denoises block after block


def trial_inputs(config: "DiscreteDiffusionConfig") -> Iterator[tuple["Tensor", ...]]:
    """Random texts of several lengths and noise levels, with and without given tokens.

    For a network of blocks: at several starts, a shorter block too, and all blocks at once.
    """
    import torch

    from ddlm_core.blocks import BlockDiffusionConfig

    generator, longest = torch.Generator().manual_seed(0), config.block_size
    lengths = (longest, (longest + 1) // 2, 3) if longest > 2 else (longest,)
    where = [(0, 0, length) for length in lengths]  # tokens read, first noisy place, noisy tokens
    if isinstance(config, BlockDiffusionConfig):
        block = config.block_length
        last = (longest - 1) // block * block  # where the last block starts
        starts = sorted({0, min(block, last), last // block // 2 * block, last})
        where = [(start, start, min(block, longest - start)) for start in starts]
        where += [(0, 0, (block + 1) // 2), (last, 0, longest)]
    for read, start, length in where:
        tokens = torch.randint(config.vocab_size, (4, length), generator=generator)
        given = torch.rand(4, length, generator=generator) < torch.tensor([0, 0, 0.2, 0.8])[:, None]
        case = (tokens, torch.tensor([1e-4, 0.1, 1.0, 20.0]), given)
        clean = torch.randint(config.vocab_size, (4, read + 1), generator=generator)
        reads = isinstance(config, BlockDiffusionConfig)
        yield (*case, clean, torch.arange(start, start + length)) if reads else case


def exact_logits(model: "DiscreteDiffusionTransformer", *case: "Tensor") -> "Tensor":
    """What PyTorch computes of one of the ``trial_inputs``: (B, L, V)."""
    from torch.nn.functional import pad

    from ddlm_core.blocks import BlockDiffusionTransformer

    if not isinstance(model, BlockDiffusionTransformer):
        return model.logits(*case)
    tokens, sigma_bar, mask, clean, places = case
    written = clean[:, :-1]
    if places[0] == written.shape[1]:
        return model.after(written).denoise(tokens, sigma_bar, mask)
    x_0 = pad(written, (0, tokens.shape[1] - written.shape[1]))  # the last block is not read
    return model.given(x_0).denoise(tokens, sigma_bar, mask)


def run(network: bytes, cases: list[tuple["Tensor", ...]]) -> list["np.ndarray"]:
    """The logits that ONNX Runtime computes for each case."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network, options, ["CPUExecutionProvider"])
    found = []
    for case in cases:
        values = [value.numpy() for value in case]
        small = [value.astype(np.int32) if value.dtype == np.int64 else value for value in values]
        found += session.run([OUTPUT], dict(zip(INPUTS + READING, small)))
    return found


def largest_difference(some: list["np.ndarray"], others: list["np.ndarray"]) -> float:
    """The largest absolute difference between tables of the same shapes; NaN if there is one."""
    import numpy as np

    return float(np.max([np.abs(a - b).max() for a, b in zip(some, others, strict=True)]))


def softmax(logits: "np.ndarray") -> "np.ndarray":
    """Probabilities (…, V)."""
    import numpy as np

    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)
