"""What tests of several files use."""

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlm_core.blocks import BlockDiffusionTransformer, make_config
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline
from pages import lacking

BROWSERS = "chromium chromium-browser google-chrome google-chrome-stable"
TINY = {"block_size": 40, "n_layer": 1, "n_head": 1, "n_embd": 8, "cond_dim": 4}


def _tiny_network(
    network_class: type[DiscreteDiffusionTransformer] = DiscreteDiffusionTransformer,
    *,
    seed: int = 0,
    **changes: Any,
) -> DiscreteDiffusionTransformer:
    """A network in which every weight is random, zero-initialized ones too.

    ``changes`` are options of its configuration; with a ``block_length`` it is a block network. It is
    in training mode, as a new one is.
    """
    kind = BlockDiffusionTransformer if "block_length" in changes else network_class
    network = kind(make_config(**TINY | changes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., DiscreteDiffusionTransformer]:
    """A function that makes a tiny network: `tiny_network(block_size=10)`."""
    return _tiny_network


@pytest.fixture(scope="module")
def tiny_pipeline() -> DiffusionPipeline:
    """A pipeline around a tiny network, on the CPU."""
    return DiffusionPipeline(_tiny_network(), "cpu")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` writes it, with a tiny network."""
    folder, network = tmp_path_factory.mktemp("models") / "tiny", _tiny_network()
    network.save_pretrained(folder, config=asdict(network.config))
    return folder


@pytest.fixture
def train_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``ddlm-train`` in this process: exit code, and what it wrote to stdout and stderr."""
    from ddlm_core.apps import train

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddlm-train", *arguments])
        capfd.readouterr()
        try:
            train.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    before, showwarning = signal.getsignal(signal.SIGTERM), warnings.showwarning
    yield run
    signal.signal(signal.SIGTERM, before)
    warnings.showwarning = showwarning


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium that reaches this machine and nothing else; what uses it is slow.

    It is that of the system, or the one that `playwright install chromium` has fetched.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS.split())), None)
    flags = ["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as play:
        if program is None and not Path(play.chromium.executable_path).exists():
            lacking("Chromium: `apt-get install chromium`, or `playwright install chromium`")
        chromium = play.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()
