"""The network of chapter 6 as a left-to-right model: its loss, its exact likelihood, how it writes.

All of its blocks are given to the left reader: position i hears what comes before it and predicts
character i. The noise level is a constant. A module of `autoregressive.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddlm_core.model import DiscreteDiffusionTransformer, modulate, neighbors, rope_angles


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
