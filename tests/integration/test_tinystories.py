"""Chapter 10 looks for its stories: in files, on the Hub, and where there are neither."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import jupytext
import pytest
import torch

from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

CHAPTER = Path(__file__).parents[2] / "notebooks/10_pipeline.py"
SIZES = {"train_samples": 40, "val_samples": 4, "context_length": 160, "batch_size": 8}
HUB = "roneneldan/TinyStories"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """No test finds what another one has prepared."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))


@pytest.fixture
def load_stories(monkeypatch) -> Callable:
    """The chapter's own function, in an environment that names no files."""
    cells = [c.source for c in jupytext.read(CHAPTER).cells if "def load_stories" in c.source]
    for name in ("DDLM_TINYSTORIES", "DDLM_TINYSTORIES_VALID"):
        monkeypatch.delenv(name, raising=False)
    names = {"os": os, "Any": object}
    exec(cells[0], names)
    return names["load_stories"]


def no_network(*_, **__):
    raise ConnectionError("no network")


def untouched(*_, **__):
    pytest.fail("the network was asked")


def text_of(loader) -> str:
    tokens = torch.cat(list(loader))
    return CharacterLevelTokenizer().decode(tokens[tokens != PAD_ID])


def test_files_come_first(load_stories, tmp_path, monkeypatch, capsys):
    rows = [json.dumps({"text": f"A pig sat on log {i}. " * 9}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.txt").write_text("A cow sang. " * 50)
    monkeypatch.setattr(datasets, "load_dataset", untouched)
    monkeypatch.setenv("DDLM_TINYSTORIES", str(tmp_path / "*.jsonl"))
    for preset in ("smoke", "cpu"):
        real, train, val = load_stories(preset, **SIZES)
        assert real and "pig" in text_of(train) and text_of(val).startswith("A pig sat on log ")
    monkeypatch.setenv("DDLM_TINYSTORIES_VALID", str(tmp_path / "b.txt"))
    real, train, val = load_stories("cpu", **SIZES)
    assert real and text_of(val) == "A cow sang. " * 50 and "cow" not in text_of(train)
    said = capsys.readouterr().out
    assert said == "TinyStories, from local files\n" * 3  # and not from where
    monkeypatch.setenv("DDLM_TINYSTORIES", str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError):  # a slip of the pen is no reason to take other stories
        load_stories("cpu", **SIZES)


def test_the_hub_comes_next(load_stories, monkeypatch, capsys):
    def hub(name: str, split: str):
        assert name == HUB
        return datasets.Dataset.from_list(
            [{"text": f"{split} story {i}. " * 20} for i in range(50)]
        )

    monkeypatch.setattr(datasets, "load_dataset", hub)
    real, train, val = load_stories("cpu", **SIZES)
    assert real and "validation story" in text_of(val) and "train" not in text_of(val)
    assert "train story" in text_of(train) and "validation" not in text_of(train)
    assert capsys.readouterr().out == "TinyStories, from the Hugging Face Hub\n"


@pytest.mark.parametrize(("preset", "lines"), [("cpu", 2), ("smoke", 1)])
def test_without_both_the_story_world_stands_in(load_stories, monkeypatch, capsys, preset, lines):
    monkeypatch.setattr(datasets, "load_dataset", untouched if preset == "smoke" else no_network)
    real, train, val = load_stories(preset, **SIZES)
    assert not real and next(iter(train)).shape == (8, 160) and len(torch.cat(list(val))) == 4
    said = capsys.readouterr().out.splitlines()
    assert len(said) == lines and "pocket-stories" in said[-1]
    assert lines == 1 or "no network" in said[0]
