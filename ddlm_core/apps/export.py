"""``ddlm-export``: a model for other programs and for web pages (ONNX, and a JSON file)."""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from ddlm_core.apps.commandline import OneLineParser, one_line_errors
from ddlm_core.apps.onnx_trial import (
    INPUTS,
    OUTPUT,
    READING,
    exact_logits,
    largest_difference,
    run,
    softmax,
    trial_inputs,
)
from ddlm_core.support.errors import UserError

if TYPE_CHECKING:
    from ddlm_core.config import DiscreteDiffusionConfig
    from ddlm_core.model import DiscreteDiffusionTransformer

LIMIT = 1e-3  # a network that differs by more from PyTorch's is refused
OPSET = 18
EXAMPLES = """examples:
  ddlm-export pocket-stories --output pocket       the model that ships with ddlm
  ddlm-export checkpoints/best_model_hf --output mine
                                                   a model that ddlm-train wrote
  ddlm-export user/model --revision v2 --output v2 one from the Hugging Face Hub, the version tagged v2
  ddlm-export pocket-stories --output pocket --weights int8
                                                   a quarter of the size; the arithmetic stays float32

The folder gets model.onnx, the network: tokens int32 (B, L), sigma_bar float32 (B,) and condition_mask
bool (B, L), all false if nothing is given, to logits float32 (B, L, V). And model.json: the vocabulary,
the noise, the graph, what the logits are (parametrization: log q before it is normalized, or log s),
and the model card. The network is compared with PyTorch before anything is written.

A model of blocks (block_length in model.json) takes two inputs more: clean int32 (B, S + 1), the S tokens
of the window that are written already, whole blocks, and any one more, which is not read; and places
int32 (L,), where in the window the L noisy tokens are: those of the next block, S to S + L - 1.
"""


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    p = OneLineParser(
        prog="ddlm-export",
        description="Write a discrete diffusion language model as ONNX and JSON.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", help="folder, bundled name or Hub id")
    p.add_argument("--output", type=Path, required=True, help="folder to write")
    p.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    p.add_argument(
        "--weights",
        default="float32",
        help="how they are stored: float32, float16 or int8 (default: float32)",
    )
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    with one_line_errors("ddlm-export"):
        try:
            for line in export(args.model, args.output, args.weights, args.revision):
                print(line, flush=True)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def export(
    source: str | Path, folder: Path, weights: str = "float32", revision: str | None = None
) -> Iterator[str]:
    """Write ``model.onnx`` and ``model.json`` of a model into ``folder``; yields lines that tell of it.

    Raises:
        UserError: no such model, no ``onnx``, blocks in a window of 1 or 2 tokens, an unknown ``weights``,
            or a network that differs by more than ``LIMIT`` from PyTorch's; one line says why, and nothing
            has been written.
    """
    from ddlm_core.support.checks import check_choice
    from ddlm_core.support.weights import WEIGHTS, pack

    check_choice(WEIGHTS, weights=weights)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is a file; give the name of a folder")
    needed()
    from ddlm_core.block_pipeline import load_network
    from ddlm_core.support.models import model_folder

    found = model_folder(source, revision)
    model = load_network(found)
    network = onnx_network(model)
    cases = list(trial_inputs(model.config))
    exact = [exact_logits(model, *case).numpy() for case in cases]
    off = largest_difference(exact, run(network.SerializeToString(), cases))
    yield f"largest difference from PyTorch: {off:.1e} in a logit"
    if not off <= LIMIT:
        raise UserError(f"the exported network differs from PyTorch by {off:.1e}, above {LIMIT}")
    pack(network, weights)
    written = network.SerializeToString()
    if weights != "float32":
        packed = run(written, cases)
        off = largest_difference([softmax(x) for x in exact], [softmax(x) for x in packed])
        yield f"weights as {weights}: largest difference {off:.1e} in a probability"
    card = found / "README.md"
    about = description(model.config) | {
        "name": found.name,
        "weights": weights,
        "network": {
            "file": "model.onnx",
            "bytes": len(written),
            "sha256": hashlib.sha256(written).hexdigest(),
        },
        "card": card.read_text(encoding="utf-8") if card.exists() else None,
    }
    write(folder / "model.onnx", written)
    write(folder / "model.json", json.dumps(about, ensure_ascii=False, indent=1).encode())
    yield f"wrote {folder} (model.onnx, {len(written) / 1e6:.1f} MB, and model.json)"


def needed() -> None:
    """Raise a ``UserError`` that tells how to install what an export needs."""
    from importlib.util import find_spec

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        raise UserError(
            f"this needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime"
        )


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there at all."""
    from ddlm_core.support.files import atomic_write

    atomic_write(path, lambda part: part.write_bytes(content))


def description(config: "DiscreteDiffusionConfig") -> dict[str, Any]:
    """What ``model.json`` says of the model itself."""
    infinite = config.noise.sigma_max == float("inf")  # JSON knows no infinity
    return {
        "format": 1,
        "vocab": list(config.vocab),
        "graph": config.graph,
        "noise": {
            "name": type(config.noise).__name__,
            "sigma_min": config.noise.sigma_min,
            "sigma_max": None if infinite else config.noise.sigma_max,
        },
        "parametrization": config.parametrization,
        "block_size": config.block_size,
        "block_length": getattr(config, "block_length", None),
        "padded": config.padded,
        "step": config.step,
        "ema": config.ema,
    }


def onnx_network(model: "DiscreteDiffusionTransformer") -> Any:
    """The logits of a network as an ONNX model, for any number of texts of any length it takes."""
    import torch

    import ddlm_core.blocks as blocks
    import ddlm_core.model as chapter
    from ddlm_core.support.weights import tidy

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            if not isinstance(model, blocks.BlockDiffusionTransformer):
                return model.logits(tokens.long(), *rest)
            sigma_bar, mask, clean, places = rest
            past = model.read(clean.long(), clean.shape[1])  # it shifts: the last one is not read
            view = blocks.BlockView(model, past, places.long())
            return view.denoise(tokens.long(), sigma_bar, mask)

    longest, reads = model.config.block_size, isinstance(model, blocks.BlockDiffusionTransformer)
    if reads and longest <= 2:
        raise UserError(
            f"a model of blocks needs a block_size of at least 3, this one has {longest}"
        )
    length, batch = min(longest, 7), torch.export.Dim("batch")
    case = [torch.zeros(2, length).int(), torch.ones(2), torch.zeros(2, length).bool()]
    shapes: list[dict[int, Any]] = [{0: batch}, {0: batch}, {0: batch}]
    if reads:
        case += [torch.zeros(2, min(longest, 5)).int(), torch.arange(length).int()]
        shapes += [{0: batch}, {}]
    if length > 2:  # an export takes a length of 1 or 2 for a constant
        size = torch.export.Dim("length", max=longest)
        shapes[0][1] = shapes[2][1] = size
        if reads:
            shapes[3][1], shapes[4][0] = torch.export.Dim("read", max=longest), size
    symbolic = [mock.patch.object(m, "len", length_of, create=True) for m in (chapter, blocks)]
    with quiet(), symbolic[0], symbolic[1]:
        program = torch.onnx.export(
            Logits().eval(),
            tuple(case),
            dynamo=True,
            input_names=INPUTS + READING if reads else INPUTS,
            output_names=[OUTPUT],
            dynamic_shapes=(shapes[0], tuple(shapes[1:])),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    network = program.model_proto
    tidy(network)
    return network


def length_of(x: Any) -> int:
    """``len(x)``, which stays a symbol where it is that of a traced tensor.

    The true ``len`` gives a plain number, and would fix all texts to the length of the one example.
    """
    return x.shape[0] if hasattr(x, "shape") else len(x)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the words of the exporter about packages that it does not need."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


if __name__ == "__main__":
    main()
