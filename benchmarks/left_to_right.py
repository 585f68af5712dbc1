"""The network of chapter 6 as a left-to-right model: its loss, its exact likelihood, how it writes.

All of its blocks are given to the left reader: position i hears what comes before it and predicts
character i. The noise level is a constant. A module of `autoregressive.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddlm_core.blocks import Kept, block_layer
from ddlm_core.model import DiscreteDiffusionTransformer, modulate, neighbors, rope_angles
from ddlm_core.sampler import sample_generators


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


def read_one(
    model: DiscreteDiffusionTransformer, tokens: Tensor, cond: Tensor, past: list[Kept]
) -> tuple[Tensor, list[Kept]]:
    """The last of ``next_logits`` of tokens (B, S) and one more, (B, V), and what is kept now.

    Only the last letter is read: ``past`` is what was kept of those before it, one entry a block,
    or empty before the first. The convolutions look back a few letters, so no more is kept of
    their inputs.
    """
    config, place = model.config, tokens.shape[1]
    x = model.embedding(tokens[:, -1:]) if place else cond.new_zeros(len(tokens), 1, config.n_embd)
    x = x + model.position_embedding[place]
    angles = rope_angles(place + 1, config.n_embd // config.n_head, x.device)[-1:]
    seen = torch.ones(1, place + 1, dtype=torch.bool, device=x.device)
    start = torch.zeros(1, dtype=torch.int64, device=x.device)  # each letter is a block of its own
    places = start + min(place, config.conv_size)  # among the inputs that are kept
    now = []
    for block, old in zip(model.blocks, past or [None] * len(model.blocks), strict=True):
        x, new = block_layer(block, x, None, cond, angles, seen, start, places, old)
        new = old.joined(new) if old else new
        now.append(new._replace(inputs=tuple(y[:, -config.conv_size :] for y in new.inputs)))
    return model.head(modulate(x, *model.modulation(cond)))[:, -1].float(), now


@torch.inference_mode()
def write(
    model: DiscreteDiffusionTransformer,
    n: int,
    length: int,
    *,
    seed: int = 0,
    first: int = 0,
    cache: bool = True,
) -> Tensor:
    """Sample windows (n, length), one token after the other.

    Text i depends on ``seed`` and ``first + i`` alone, not on the others, nor on ``cache`` (up to
    rounding): with it each letter is read once, else all that is there is read anew.
    """
    chances = [torch.rand(length, generator=g) for g in sample_generators(seed, n, first)]
    cond = model.noise_embedding(torch.ones(n))
    tokens, past = torch.zeros(n, 0, dtype=torch.int64), []
    for chance in torch.stack(chances).double().unbind(1):
        if cache:
            logits, past = read_one(model, tokens, cond, past)
        else:
            logits = next_logits(model, nn.functional.pad(tokens, (0, 1)))[:, -1]
        below = logits.double().softmax(-1).cumsum(-1)  # of each token and those before it
        token = (below < chance[:, None]).sum(-1, keepdim=True)
        tokens = torch.cat([tokens, token.clamp(max=logits.shape[-1] - 1)], dim=1)
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
