"""What do smaller weights cost? The exported networks themselves write and judge (ONNX Runtime, CPU).

Prints for each kind of weights its size, bits per character of stories that the model has not seen,
and the share of flawless samples, with 95 % intervals: same stories, same random numbers for each.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ddlm_core.apps.export import INPUTS, export
from ddlm_core.evaluation import estimate_bound, wilson
from ddlm_core.pipeline import load_model
from ddlm_core.sampler import sample_diffusion, sample_generators
from ddlm_core.stories import is_flawless, sample
from ddlm_core.support.models import model_folder
from ddlm_core.support.weights import WEIGHTS

FRESH = 987_654_321  # a seed that no training used


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="pocket-stories", help="that writes our own stories")
    p.add_argument("--weights", nargs="+", default=WEIGHTS)
    p.add_argument("--samples", type=int, default=500, help="texts to write (default: 500)")
    p.add_argument("--steps", type=int, default=24, help="steps of each (default: 24)")
    p.add_argument("--windows", type=int, default=64, help="stories to judge (default: 64)")
    p.add_argument("--quick", action="store_true", help="few of everything")
    return p


class Exported:
    """An exported network, which looks to the sampler and the bound like the one of chapter 6."""

    def __init__(self, path: Path, model: Any) -> None:
        self.config, self.graph = model.config, model.graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def denoise(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        given = torch.zeros_like(x_t).bool() if condition_mask is None else condition_mask
        values = [x_t.numpy().astype(np.int32), sigma_bar.float().numpy(), given.numpy()]
        (logits,) = self.session.run(None, dict(zip(INPUTS, values)))
        return torch.from_numpy(logits).log_softmax(-1)

    def __call__(
        self, x_t: Tensor, sigma_bar: Tensor, condition_mask: Tensor | None = None
    ) -> Tensor:
        log_q = self.denoise(x_t, sigma_bar, condition_mask)
        return self.graph.log_score(log_q, sigma_bar, x_t)


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.samples, args.steps, args.windows = 4, 4, 4
    torch.set_num_threads(1)
    model = load_model(model_folder(args.model))
    config = model.config
    unseen = [config.tokenizer.pad(text, config.block_size) for text in sample(args.windows, FRESH)]
    characters = sum(int((tokens != 1).sum()) for tokens in unseen)
    unit = args.windows / characters / math.log(2)
    print("| weights | MB | bits per character | flawless | ms per evaluation of one text |")
    print("|---|---|---|---|---|")
    for weights in args.weights:
        with tempfile.TemporaryDirectory() as folder:
            list(export(args.model, Path(folder), weights))
            path = Path(folder, "model.onnx")
            network, size = Exported(path, model), path.stat().st_size / 1e6
        bits = estimate_bound(network, torch.stack(unseen)).scaled(unit)
        flawless = 0
        for first in range(0, args.samples, 4):
            generators = sample_generators(0, min(4, args.samples - first), first)
            options = {"num_steps": args.steps, "schedule": "cosine", "churn": 1.0}
            tokens = sample_diffusion(
                network,
                config.noise,
                len(generators),
                config.block_size,
                generator=generators,
                **options,
            )
            flawless += sum(is_flawless(row, config.tokenizer) for row in tokens.tolist())
        share = wilson(flawless, args.samples)
        row = f"{size:.2f} | {bits:.4f} | {share:.3f} | {milliseconds(network, unseen[0]):.1f}"
        print(f"| {weights} | {row} |", flush=True)


def milliseconds(network: Exported, tokens: Tensor) -> float:
    """The fastest of some evaluations."""
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        network.denoise(tokens[None], torch.tensor([1.0]))
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken)


if __name__ == "__main__":
    main()
