"""Warm start: training that begins from the weights of another model (fine-tuning)."""

from pathlib import Path

import torch
from torch import Tensor

from ddlm_core.block_pipeline import load_network
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.support.errors import UserError
from ddlm_core.support.models import model_folder

# fields of the network that a run names with a + before them
NO_KEYS = ("parametrization", "graph")
SAME = ("n_layer", "n_head", "n_embd", "cond_dim", "conv_size", "bias", *NO_KEYS)
BY_TOKEN = ("embedding.weight", "head.weight", "head.bias")  # a row for each token
BY_POSITION = "position_embedding"  # a row for each position


@torch.no_grad()
def warm_start(model: DiscreteDiffusionTransformer, source: str | Path) -> str:
    """Give a new network the weights of a trained one, before its training begins.

    The vocabulary and the block size may differ: tokens of both keep their rows of the embedding and of
    the head, positions of both keep theirs. What the source does not have stays as it is in ``model``.

    Args:
        model: as it was made, on any device; changed in place.
        source: a folder, a bundled name, or a Hub id.

    Returns:
        What was taken over and what starts fresh, in one line.

    Raises:
        UserError: no such model, or one of another shape; ``model`` is then as before.
    """
    old = load_network(model_folder(source))
    check_shape(old.config, model.config, source)
    found, wanted = old.state_dict(), model.state_dict()
    there = {token: i for i, token in enumerate(old.config.vocab)}
    shared = [token for token in model.config.vocab if token in there]
    here = torch.tensor([model.config.vocab.index(token) for token in shared])
    rows = torch.tensor([there[token] for token in shared])
    length = min(old.config.block_size, model.config.block_size)
    for name, weight in wanted.items():
        if name in BY_TOKEN:
            put(weight, here, found[name][rows])
        elif name == BY_POSITION:
            put(weight, torch.arange(length), found[name][:length])
        else:
            weight.copy_(found[name])
    return told(source, old.config, model.config, len(wanted), len(shared))


def put(weight: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write values (n, ...) into rows (n,) of a weight, on its device and in its type."""
    weight[rows.to(weight.device)] = values.to(weight)


def check_shape(
    old: DiscreteDiffusionConfig, new: DiscreteDiffusionConfig, source: str | Path
) -> None:
    """Raise a ``UserError`` that names the settings with which the networks would be of one shape."""
    if differ := [name for name in SAME if getattr(old, name) != getattr(new, name)]:
        has = ", ".join(setting(new, name) for name in differ)
        ask = " ".join("+" * (name in NO_KEYS) + f"model.{setting(old, name)}" for name in differ)
        raise UserError(f"cannot start from {source}: this network has {has}; ask for {ask}")


def setting(config: DiscreteDiffusionConfig, name: str) -> str:
    """A field as ``ddlm-train`` takes it: ``bias=false``."""
    value = getattr(config, name)
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"


def told(
    source: str | Path,
    old: DiscreteDiffusionConfig,
    new: DiscreteDiffusionConfig,
    tensors: int,
    shared: int,
) -> str:
    """What was taken over, in words."""
    words = [f"weights of {source} (step {old.step:,}): {tensors} tensors"]
    words.append(f"rows of the {shared} tokens that both vocabularies have")
    if fresh := new.vocab_size - shared:
        words.append(f"{fresh} tokens start fresh")
    if gone := old.vocab_size - shared:
        words.append(f"{gone} of the source are not used")
    if new.block_size > old.block_size:
        words.append(f"positions {old.block_size + 1} to {new.block_size} start fresh")
    elif new.block_size < old.block_size:
        words.append(f"positions after {new.block_size} are not used")
    return ", ".join(words)
