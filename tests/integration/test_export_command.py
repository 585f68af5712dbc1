"""``ddlm-export``: what it writes, and what it refuses."""

import hashlib
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ddlm_core.absorbing import LogLinearNoise
from ddlm_core.apps import export

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def command(capsys, *arguments) -> tuple[int, str, str]:
    try:
        export.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def logits(folder: Path, tokens, sigma_bar, mask) -> torch.Tensor:
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    values = [tokens.numpy().astype(np.int32), sigma_bar.numpy(), mask.numpy()]
    return torch.from_numpy(session.run(["logits"], dict(zip(export.INPUTS, values)))[0])


def test_it_writes_a_network_and_what_it_takes_to_use_it(tiny_network, tmp_path, capsys):
    network = tiny_network(n_layer=3, padded=True).eval()
    network.save_pretrained(tmp_path / "mine", config=asdict(network.config))
    (tmp_path / "mine/README.md").write_text("# Mine — ours", encoding="utf-8")
    code, out, err = command(capsys, tmp_path / "mine", "--output", tmp_path / "new/out")
    assert code == 0 and "Traceback" not in err
    assert out.startswith("largest difference from PyTorch: ") and "model.json" in out
    folder = tmp_path / "new/out"
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx"]
    about, content = (
        json.loads((folder / "model.json").read_bytes()),
        (folder / "model.onnx").read_bytes(),
    )
    assert about["vocab"] == list(network.config.vocab) and about["card"] == "# Mine — ours"
    assert about["network"] == {
        "file": "model.onnx",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert about["noise"] == {"name": "GeometricNoise", "sigma_min": 1e-4, "sigma_max": 20.0}
    assert [about[k] for k in ("name", "graph", "padded", "block_size")] == [
        "mine",
        "uniform",
        True,
        40,
    ]
    for batch, length in ((1, 1), (3, 2), (2, 40)):  # other numbers than the example of the export
        tokens = torch.randint(106, (batch, length))
        mask, sigma_bar = torch.rand(batch, length) < 0.5, torch.rand(batch)
        for given in (mask, torch.zeros_like(mask)):
            found = logits(folder, tokens, sigma_bar, given)
            wanted = network.logits(tokens, sigma_bar, given)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    without = network.logits(tokens, sigma_bar)  # no mask, and one in which nothing is given
    torch.testing.assert_close(found, without, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        {"graph": "absorbing"},
        {"parametrization": "score", "conv_size": 0, "bias": True},
        {"block_size": 1},
        {"block_size": 2, "n_layer": 3},
        {"block_size": 3},
        {"block_length": 1},
        {"block_length": 2, "block_size": 3, "n_layer": 3},
        {"block_length": 7, "n_layer": 3, "graph": "absorbing"},
    ],
)
def test_every_kind_of_network_can_be_exported(tiny_network, tmp_path, kind):
    network = tiny_network(**kind).eval()
    network.save_pretrained(tmp_path / "a", config=asdict(network.config))
    (tmp_path / "a/README.md").unlink()  # a card need not be there
    list(export.export(tmp_path / "a", tmp_path / "b"))  # compares it, at several lengths
    about = json.loads((tmp_path / "b/model.json").read_text(encoding="utf-8"))
    assert about["parametrization"] == network.config.parametrization and about["card"] is None
    if isinstance(network.config.noise, LogLinearNoise):
        assert about["noise"]["sigma_max"] is None and about["vocab"][-1] == "░"


def answers(folder: Path, *case: torch.Tensor) -> torch.Tensor:
    """What the network of blocks in a folder says: log q (B, n, V)."""
    about = (folder / "model.onnx").read_bytes()
    return torch.from_numpy(export.run(about, [case])[0]).log_softmax(-1)


def test_a_block_is_denoised_after_what_is_written_already(tiny_network, tmp_path):
    network = tiny_network(n_layer=3, block_length=4).eval()
    network.save_pretrained(tmp_path / "a", config=asdict(network.config))
    list(export.export(tmp_path / "a", tmp_path / "b"))
    about = json.loads((tmp_path / "b/model.json").read_text(encoding="utf-8"))
    assert about["block_length"] == 4
    case = (torch.tensor([0.3]), torch.tensor([[True, False, False, False]]))
    x_t, text = torch.randint(106, (1, 4)), torch.randint(106, (1, 41))
    for start in (0, 4, 20, 36):
        places = torch.arange(start, start + 4)
        found = answers(tmp_path / "b", x_t, *case, text[:, : start + 1], places)
        wanted = network.after(text[:, :start]).denoise(x_t, *case)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        other = text[:, : start + 1].clone()
        other[:, -1] = 105 - other[:, -1]  # what stands there is not read
        assert torch.equal(found, answers(tmp_path / "b", x_t, *case, other, places))
        if start:
            other[:, start - 1] = 105 - other[:, start - 1]  # this is
            assert not torch.allclose(found, answers(tmp_path / "b", x_t, *case, other, places))
    whole = text[:, :40]  # all blocks at once, each after the clean ones before it
    case = (torch.tensor([0.3]), torch.zeros(1, 40, dtype=torch.bool))
    x_t = torch.randint(106, (1, 40))
    found = answers(tmp_path / "b", x_t, *case, text[:, :37], torch.arange(40))
    wanted = network.given(whole).denoise(x_t, *case)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_smaller_weights_are_smaller_and_said_to_differ(tiny_network, tmp_path, capsys):
    network = tiny_network(n_embd=32).eval()
    network.save_pretrained(tmp_path / "a", config=asdict(network.config))
    sizes = []
    for weights in ("float32", "float16", "int8"):
        code, out, _ = command(
            capsys, tmp_path / "a", "--output", tmp_path / weights, "--weights", weights
        )
        assert code == 0 and (f"weights as {weights}: largest difference" in out) == (
            weights != "float32"
        )
        assert json.loads((tmp_path / weights / "model.json").read_text())["weights"] == weights
        sizes.append((tmp_path / weights / "model.onnx").stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, ["no/such/folder"], "no model 'no/such/folder'"),
        (None, ["MODEL", "--weights", "int4"], "weights must be one of float32, float16, int8"),
        (None, ["MODEL", "--revision", "v2"], "only models of the Hub have a revision"),
        ("file", ["MODEL"], "it is a file"),
        ("package", ["MODEL"], "pip install onnx"),
        ("blocks", ["MODEL"], "needs a block_size of at least 3"),
        ("network", ["MODEL"], "differs from PyTorch by 2.0e-03, above 0.001"),
        ("nan", ["MODEL"], "differs from PyTorch by nan"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(
    change, arguments, said, tiny_network, tiny_model_folder, tmp_path, capsys, monkeypatch
):
    arguments = [str(tiny_model_folder) if a == "MODEL" else a for a in arguments]
    output = tmp_path / "out"
    if change == "file":
        output.write_text("mine")
    if change == "blocks":
        network = tiny_network(block_size=2, block_length=1)
        arguments = [str(tmp_path / "small")]
        network.save_pretrained(tmp_path / "small", config=asdict(network.config))
    if change == "package":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if change in ("network", "nan"):
        true, off = export.run, {"network": 2e-3, "nan": float("nan")}[change]
        monkeypatch.setattr(export, "run", lambda *case: [found + off for found in true(*case)])
    code, _, err = command(capsys, *arguments, "--output", output)
    assert code == 2 and err.startswith("ddlm-export: ") and err.count("\n") == 1 and said in err
    assert output.read_text() == "mine" if change == "file" else not output.exists()


def test_the_model_and_the_folder_must_be_named(capsys):
    for arguments in ([], ["pocket-stories"], ["--output", "x"]):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and err.count("\n") == 1 and "--help" in err
