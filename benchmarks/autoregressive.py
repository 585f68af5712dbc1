"""A left-to-right model beside the diffusion model: same network, data, optimizers and steps.

The network is that of chapter 6 with all of its blocks given to the left reader: position i hears
what comes before it and predicts character i. All else is the training of the bundled model
(`ddlm-train --config-name pocket`). The noise level is a constant. Writes a file for chapter 9.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sampling import fresh_windows, judge, weights_id
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddlm_core import DiffusionPipeline, stories
from ddlm_core.data import setup_dataloaders
from ddlm_core.evaluation import Estimate, estimate_bound, mean_of
from ddlm_core.model import (
    DiscreteDiffusionConfig,
    DiscreteDiffusionTransformer,
    modulate,
    neighbors,
    rope_angles,
)
from ddlm_core.sampler import sample_diffusion, sample_generators
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.training import Trainer

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/autoregressive.json"  # package data


def next_logits(model: DiscreteDiffusionTransformer, tokens: Tensor) -> Tensor:
    """What the network says about each token, having read those before it: (B, L) → (B, L, V)."""
    config, length = model.config, tokens.shape[1]
    left, _ = neighbors(model.embedding(tokens), model.position_embedding[:length])
    cond = model.noise_embedding(torch.ones(len(tokens), device=tokens.device))
    angles = rope_angles(length, config.n_embd // config.n_head, tokens.device)
    before = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    for block in model.blocks:
        left = block(left, None, cond, angles, before)
    return model.head(modulate(left, *model.modulation(cond))).float()


class LeftToRightLoss(nn.Module):
    """In place of ``TrainingLoss``: mean cross-entropy of the next token, nats per token."""

    def __init__(self, model: DiscreteDiffusionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_0: Tensor, *_: Tensor) -> Tensor:
        """Of the windows x_0 (B, L): a scalar."""
        return cross_entropy(next_logits(self.model, x_0).flatten(0, 1), x_0.flatten())


@torch.inference_mode()
def exact_nats(model: DiscreteDiffusionTransformer, tokens: Tensor) -> Tensor:
    """-log p of each window (N, L), in nats: (N,)."""
    parts = []
    for x_0 in tokens.split(64):
        logits = next_logits(model, x_0).double().transpose(1, 2)
        parts.append(cross_entropy(logits, x_0, reduction="none").sum(-1))
    return torch.cat(parts)


@torch.inference_mode()
def write(model: DiscreteDiffusionTransformer, n: int, length: int, seed: int = 0) -> Tensor:
    """Sample windows (n, length), one token after the other."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(n, 0, dtype=torch.int64)
    for _ in range(length):
        tokens = torch.cat([tokens, torch.zeros(n, 1, dtype=torch.int64)], dim=1)
        probs = next_logits(model, tokens)[:, -1].softmax(-1)
        tokens[:, -1:] = torch.multinomial(probs, 1, generator=generator)
    return tokens


def check_causal(model: DiscreteDiffusionTransformer, length: int) -> None:
    """Stop if a later token can be seen."""
    tokens = torch.randint(model.config.vocab_size, (1, length))
    other = tokens.clone()
    other[:, length // 2 :] = (other[:, length // 2 :] + 1) % model.config.vocab_size
    with torch.inference_mode():
        a, b = next_logits(model, tokens), next_logits(model, other)
    same = torch.allclose(a[:, : length // 2 + 1], b[:, : length // 2 + 1], atol=1e-4)
    if not same or torch.equal(a, b):
        raise SystemExit("the network is not causal")


def train(config: TrainingConfig, causal: bool) -> tuple[DiscreteDiffusionTransformer, float]:
    """The averaged weights of a run, and its seconds."""
    loader, _, _, _ = setup_dataloaders(
        config.dataset_name,
        train_samples=config.train_samples,
        val_samples=config.val_samples,
        context_length=config.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    network = {"block_size": config.context_length, "padded": True} | config.model
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**network))
    loss_fn = LeftToRightLoss(model) if causal else None
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        config = replace(config, checkpoint_dir=folder)
        trainer = Trainer(model, loader, None, config, loss_fn=loss_fn)
        trainer.train()
    return trainer.average.cpu(), time.perf_counter() - start


def row(
    model: DiscreteDiffusionTransformer, nats: Estimate, tokens: Tensor, seconds: float, **more: Any
) -> dict[str, Any]:
    """What the table of chapter 9 says about a model."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nats": [round(value, 3) for value in nats],
        **judge(tokens, model.config.tokenizer),
        "seconds_a_sample": round(seconds / len(tokens), 2),
        **more,
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, help="training steps (default: those of the bundled model)")
    p.add_argument("--batch-size", type=int, help="windows in a step (default: likewise)")
    p.add_argument("--samples", type=int, default=256, help="samples of each model (default: 256)")
    p.add_argument("--windows", type=int, default=512, help="held-out stories (default: 512)")
    p.add_argument("--sampling-steps", type=int, default=128, help="of the diffusion model")
    p.add_argument(
        "--diffusion",
        choices=("train", "bundled"),
        default="bundled",
        help="its partner: trained here by the same loop, or the bundled model (default)",
    )
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument("--quick", action="store_true", help="two steps, four samples: does it run?")
    return p


def main() -> None:
    args = parser().parse_args()
    chosen: dict[str, Any] = {}
    if args.quick:
        args.steps, args.samples, args.windows, args.sampling_steps = 2, 4, 8, 4
        chosen |= {"train_samples": 500, "val_samples": 16}
    chosen |= {"max_steps": args.steps} if args.steps else {}
    chosen |= {"batch_size": args.batch_size} if args.batch_size else {}
    config = load_preset("pocket", **chosen)
    length = config.context_length
    work = {"steps": config.max_steps, "batch": config.batch_size}

    model, seconds = train(config, causal=True)
    check_causal(model, length)
    tokenizer = model.config.tokenizer
    fresh = fresh_windows(max(args.windows, args.samples), tokenizer, length)
    windows, start = fresh[: args.windows], time.perf_counter()
    tokens = write(model, args.samples, length)
    result: dict[str, Any] = {
        "entropy": round(stories.entropy(), 3),
        "windows": args.windows,
        "stories": judge(fresh[: args.samples], tokenizer),
        "left to right": row(
            *(model, mean_of(exact_nats(model, windows)), tokens, time.perf_counter() - start),
            **work | {"train_seconds": round(seconds), "passes": length},
        ),
    }

    if args.diffusion == "train":
        model, seconds = train(config, causal=False)
        work |= {"train_seconds": round(seconds)}
    else:
        model = DiffusionPipeline.from_pretrained(device="cpu").model
        work |= {"steps": model.config.step, "weights": weights_id()}
    start, noise = time.perf_counter(), model.config.noise
    how = {"num_steps": args.sampling_steps, "schedule": "cosine"}
    parts = [
        sample_diffusion(model, noise, len(part), length, generator=part, **how)
        for part in batched(sample_generators(0, args.samples), 32)
    ]
    seconds = time.perf_counter() - start
    result["diffusion"] = row(
        *(model, estimate_bound(model, windows, of="source"), torch.cat(parts), seconds),
        **work | {"passes": args.sampling_steps},
    )
    text = json.dumps(result, indent=1) + "\n"
    if args.output or not args.quick:
        (args.output or OUTPUT).write_text(text, encoding="utf-8")
    causal = result["left to right"]
    print(f"entropy of the stories: {result['entropy']} nats\n")
    print("| figure | left to right | diffusion |\n|---|---|---|")
    for name, value in result["diffusion"].items():
        print(f"| {name.replace('_', ' ')} | {causal.get(name, '')} | {value} |")


def batched(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


if __name__ == "__main__":
    main()
