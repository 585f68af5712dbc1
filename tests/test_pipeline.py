# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

import torch

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.sampling_options import encode_template


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


def tiny_network(kind: type = DiscreteDiffusionTransformer) -> torch.nn.Module:
    """A network of random weights: it writes nonsense, but it writes it fast."""
    network = kind(DiscreteDiffusionConfig(block_size=24, n_layer=1, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


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
