# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

import math
import pickle
from dataclasses import asdict

import pytest
import torch

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline, encode_template, load_model


def tiny_network(kind: type = DiscreteDiffusionTransformer) -> torch.nn.Module:
    """A network of random weights: it writes nonsense, but it writes it fast."""
    network = kind(DiscreteDiffusionConfig(block_size=24, n_layer=1, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    network = tiny_network()
    network.save_pretrained(tmp_path / "model", config=asdict(network.config))
    weights, victim = tmp_path / "model/model.safetensors", tmp_path / "victim"
    trap = f"cos\nmkdir\n(S'{victim.as_posix()}'\ntR.".encode()  # a pickle: call os.mkdir(victim)
    weights.write_bytes(trap)
    with pytest.raises(ValueError, match="^cannot use .*model.safetensors .*header"):
        load_model(tmp_path / "model")
    assert not victim.exists()
    pickle.loads(trap)
    assert victim.exists()  # it was armed


def read_back(template: str, seq_len: int | None = None, **changes) -> str:
    """Given characters as they are, ``_`` for a blank, ``~`` for a given <PAD>."""
    config = DiscreteDiffusionConfig(**{"block_size": 24} | changes)
    tokens, mask = encode_template(template, seq_len, config)
    shown = ["", "~", *config.vocab[2:]]
    return "".join(shown[token] if given else "_" for token, given in zip(tokens, mask))


def test_template_becomes_tokens_and_mask():
    for template, text in (
        ("_{3}.__", "___.__"),
        (r"a\_\{3}__\n", r"a_\{3}__\n"),
        ("{3}\n_{}?_{x}_{0}", "{3}\n_{}?_{x}"),
    ):
        assert read_back(template) == text
    assert read_back("a_!", padded=True, block_size=9) == "a_!~~~~~~"
    assert read_back("a_!", 5) == read_back("a_!", 5, padded=True) == "a_!__"


class Jittery(DiscreteDiffusionTransformer):
    """A network whose answer depends on the size of the batch."""

    def logits(self, input_ids, *given):
        return super().logits(input_ids, *given) * (1 + len(input_ids) / 10)


def test_texts_do_not_depend_on_their_batch():
    pipeline = DiffusionPipeline(tiny_network(Jittery), "cpu")
    options = {"num_steps": 4, "seed": 7, "template": "a_{9}"}
    texts = pipeline.generate(5, **options)
    assert len(set(texts)) == 5 and all(text.startswith("a") for text in texts)
    assert pipeline.generate(5, batch_size=2, **options) == texts
    assert pipeline.generate(2, first=3, **options) == texts[3:]


def test_a_network_that_knows_nothing_needs_all_bits():
    pipeline = DiffusionPipeline(tiny_network(), "cpu")
    for parameter in pipeline.model.parameters():
        parameter.data.zero_()
    for text in ("x" * 20, "Once upon a time. " * 8):
        estimate = pipeline.bits_per_character(text)
        assert estimate.low < estimate.mean < estimate.high < estimate.low + 1.5
        assert abs(estimate.mean - math.log2(106)) < 0.4
