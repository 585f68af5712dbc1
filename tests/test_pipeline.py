# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.

import json
import math
import os
import pickle
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline, encode_template, load_model
from ddlm_core.support.models import bundled_models
from ddlm_core.tokenizer import PAD_ID


def tiny_network(kind: type = DiscreteDiffusionTransformer, **changes) -> torch.nn.Module:
    sizes = {"block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    network = kind(DiscreteDiffusionConfig(**sizes | changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


def save_network(network: torch.nn.Module, folder: Path) -> None:
    network.save_pretrained(folder, config=asdict(network.config))


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def refusal(folder: Path, file: str, content: bytes | None) -> str:
    """What ``load_model`` says once a file of a good folder has other content, or is gone."""
    save_network(tiny_network(), folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(f"cannot use {folder / file} (") and "\n" not in message
    return message


def test_a_broken_config_is_refused(tmp_path):
    save_network(tiny_network(), tmp_path / "good")
    config = json.loads((tmp_path / "good/config.json").read_text())
    for content, reason in (
        (None, "No such file"),
        (b"", "Expecting value"),
        (b'{"n_layer": 1,', "Expecting property name"),
        (b"\xff\xfe{}", "can't decode"),
        (b"[" * 100_000, "recursion"),
        (b"[1, 2]", "must be a mapping, not list"),
        (json.dumps(config | {"layers": 2}).encode(), "unexpected keyword argument 'layers'"),
        (json.dumps(config | {"n_layer": "two"}).encode(), "n_layer must be a whole number"),
        (json.dumps(config | {"vocab": ["a", "b"]}).encode(), "a vocabulary starts with"),
    ):
        assert reason in refusal(tmp_path / "bad", "config.json", content)


def test_broken_weights_are_refused(tmp_path):
    good = tiny_network().state_dict()
    small = tiny_network(vocab=DiscreteDiffusionConfig().vocab[:-1]).state_dict()
    fewer = {name: weight for name, weight in good.items() if name != "condition_embedding"}
    for content, reason in (
        (None, "No such file"),
        (b"", "header too small"),
        (save(good)[:-1], "incomplete"),
        (save(good)[:100], "header"),
        (pickle.dumps(Trap(tmp_path / "victim")), "header too large"),
        (save(small), "size mismatch for embedding.weight"),
        (save(fewer), 'Missing key(s) in state_dict: "condition_embedding"'),
        (save(good | {"more": torch.ones(2)}), 'Unexpected key(s) in state_dict: "more"'),
        (
            save(good | {"condition_embedding": torch.full((16,), float("nan"))}),
            "condition_embedding holds NaN or infinity",
        ),
    ):
        assert reason in refusal(tmp_path / "bad", "model.safetensors", content)
    assert not (tmp_path / "victim").exists()


def test_a_saved_model_comes_back(tmp_path):
    network = tiny_network(sigma_max=9.0, padded=True, step=7, ema=True)
    save_network(network, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == network.config and not loaded.training
    for name, weight in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def read_back(template: str, seq_len: int | None = None, config=None) -> str:
    """Given characters as they are, ``_`` for a blank, ``~`` for a given <PAD>."""
    config = config or DiscreteDiffusionConfig(block_size=24)
    tokens, mask = encode_template(template, seq_len, config)
    shown = ["", "~", *config.vocab[2:]]
    return "".join(shown[token] if given else "_" for token, given in zip(tokens, mask))


def test_template_becomes_tokens_and_mask():
    tokens, mask = encode_template("a_!", None, DiscreteDiffusionConfig())
    assert mask.tolist() == [True, False, True] and tokens[mask].tolist() == [12, 64]
    for template, text in (
        ("_{3}.__", "___.__"),
        (r"a\_\{3}__\n", r"a_\{3}__\n"),
        (r"\_{2}_{2}", "_{2}__"),
        ("{3}\n_{}?_{x}_{0}", "{3}\n_{}?_{x}"),
    ):
        assert read_back(template) == text


def test_the_rest_of_the_window_is_padding_or_free():
    padded = DiscreteDiffusionConfig(block_size=9, padded=True)
    assert read_back("a_!") == read_back("a_!", 3) == "a_!"
    assert read_back("a_!", None, padded) == "a_!~~~~~~"
    assert read_back("a_!", 5) == read_back("a_!", 5, padded) == "a_!__"
    no_space = DiscreteDiffusionConfig(vocab=("<UNK>", "<PAD>", "a", "_"))
    assert read_back("a_", None, no_space) == "a_"


def test_templates_that_cannot_work_are_refused():
    for template, seq_len, reason in (
        ("", None, "has 0 characters, there is room for 1 to 24"),
        ("_{0}", None, "has 0 characters"),
        ("_{25}", None, "has 25 characters, there is room for 1 to 24"),
        ("_{" + "9" * 5000 + "}", None, "has 9999 characters"),
        ("abcd_", 4, "has 5 characters, there is room for 1 to 4"),
        ("né_\ud800€", None, r"does not know 'é', '€', '\ud800' of the template"),
        ("abcd", None, "has no blank: write _ for"),
        (r"abc\_", 4, "has no blank"),
    ):
        with pytest.raises(ValueError) as caught:
            encode_template(template, seq_len, DiscreteDiffusionConfig(block_size=24))
        assert reason in str(caught.value) and "\n" not in str(caught.value)


class Jittery(DiscreteDiffusionTransformer):
    """A network whose answer depends on the size of the batch."""

    def logits(self, input_ids, *given):
        return super().logits(input_ids, *given) * (1 + len(input_ids) / 10)


def tiny_pipeline(kind: type = DiscreteDiffusionTransformer, **changes) -> DiffusionPipeline:
    return DiffusionPipeline(tiny_network(kind, **changes), "cpu")


def test_texts_do_not_depend_on_their_batch():
    for parametrization in ("denoiser", "score"):
        pipeline = tiny_pipeline(Jittery, parametrization=parametrization)
        options = {"num_steps": 4, "seed": 7, "template": "a_{9}"}
        texts = pipeline.generate(5, **options)
        assert len(set(texts)) == 5
        for batch_size in (1, 2, 64):
            assert pipeline.generate(5, batch_size=batch_size, **options) == texts
        assert pipeline.generate(2, first=3, **options) == texts[3:]
        assert [*pipeline.generate_streaming(5, **options)][-1].texts == texts
        assert pipeline.generate(5, **options | {"seed": 8}) != texts


def test_a_saved_pipeline_comes_back(tmp_path):
    pipeline = tiny_pipeline(step=7, padded=True)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", "cpu")
    assert loaded.config == pipeline.config and loaded.device.type == "cpu"
    assert loaded(num_steps=2, seed=0) == pipeline(num_steps=2, seed=0)


def test_without_a_seed_every_text_is_another():
    pipeline = tiny_pipeline()
    texts = pipeline.generate(3, num_steps=2, batch_size=1) + pipeline(3, num_steps=2)
    assert len(set(texts)) == 6
    assert pipeline(2, num_steps=2, return_tokens=True).shape == (2, 24)


def test_a_pushed_pipeline_comes_back(tmp_path):
    from huggingface_hub import hub_mixin

    class Hub:
        def __init__(self, **_) -> None:
            pass

        def create_repo(self, repo_id: str, **_):
            if repo_id != "user/model":
                raise PermissionError("401\n\nunauthorized")
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, repo_id: str, **_) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"uploaded {repo_id}"

    pipeline = tiny_pipeline(sigma_max=9.0)
    pipeline.config = replace(pipeline.config, step=7)  # as after more training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_mixin, "HfApi", Hub)
        assert pipeline.push_to_hub("user/model") == "uploaded user/model"
        with pytest.raises(ValueError, match=r"cannot push 'x' \(401 unauthorized\): log in with"):
            pipeline.push_to_hub("x")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "user/model", "cpu")
    assert loaded.config == pipeline.config
    assert loaded(num_steps=2, seed=0) == pipeline(num_steps=2, seed=0)


def test_given_characters_are_kept_in_every_step():
    for padded, seq_len, end in ((False, None, 6), (True, None, 6), (True, 20, 20)):
        pipeline = tiny_pipeline(padded=padded)
        options = {"template": r"I\___!.", "seq_len": seq_len, "num_steps": 3, "seed": 0}
        steps = [*pipeline.generate_streaming(2, **options)]
        assert [step.index for step in steps] == [0, 1, 2, 3]
        for step in steps:
            for row in step.tokens.tolist():
                given = pipeline.tokenizer.decode(row[:2] + row[4:6])
                assert given == "I_!." and set(row[end:]) <= {PAD_ID}
        assert steps[-1].texts == pipeline.generate(2, **options)


def test_every_view_shows_the_same_run():
    pipeline, options = tiny_pipeline(), {"num_steps": 5, "seed": 3}
    steps, animation = [*pipeline.generate_streaming(**options)], None
    animation = pipeline.generate_with_visualization(**options)
    assert [(*row,) for step in steps for row in step.tokens.tolist()] == [
        frame.tokens for frame in animation.frames
    ]
    for step, frame in zip(steps, animation.frames):
        assert step.changed[0].nonzero()[:, 0].tolist() == [*frame.changed]
        assert step.sigma_bar == frame.sigma_bar and step.num_steps == 5
    assert "ddlm-player" in animation._repr_html_()
    assert pipeline.generate(**options) == steps[-1].texts


def test_every_option_reaches_the_loop():
    texts = set()
    for change in (
        *({}, {"num_steps": 5}, {"schedule": "linear"}, {"temperature": 0.1}, {"churn": 0.0}),
        *({"seed": 1}, {"first": 1}, {"seq_len": 23}, {"template": "a_{23}"}),
    ):
        texts |= {*tiny_pipeline().generate(**{"num_steps": 4, "seed": 0} | change)}
    assert len(texts) == 9


def test_a_network_that_knows_nothing_needs_all_bits():
    pipeline = tiny_pipeline()
    for parameter in pipeline.model.parameters():
        parameter.data.zero_()
    for text in ("x" * 20, "Once upon a time. " * 8):
        estimate = pipeline.bits_per_character(text)
        assert all(type(value) is float for value in estimate)
        assert estimate.low < estimate.mean < estimate.high < estimate.low + 1.5
        assert abs(estimate.mean - math.log2(106)) < 0.4


def test_the_interval_holds_the_truth():
    pipeline, text = tiny_pipeline(), "A cat sat. " * 2
    estimates = [pipeline.bits_per_character(text, seed) for seed in range(8)]
    means, widths = torch.tensor([(e.mean, e.high - e.low) for e in estimates]).T
    assert sum(e.low <= means.mean() <= e.high for e in estimates) >= 7
    assert 0.5 < widths.mean() / (4 * means.std()) < 2


def test_every_character_counts():
    pipeline, text = tiny_pipeline(), "The dog ran home and was happy, at last."
    assert pipeline.bits_per_character(text) == pipeline.bits_per_character(text)
    texts = [text[:i] + "Q" + text[i + 1 :] for i in (0, 23, 24, 39)] + [text, text[:-1]]
    assert len({pipeline.bits_per_character(other) for other in texts}) == 6
    padded, short = tiny_pipeline(padded=True), text[:10]
    assert padded.bits_per_character(short).mean > 1.2 * pipeline.bits_per_character(short).mean


def test_unknown_characters_are_told_once():
    pipeline = tiny_pipeline()
    with pytest.warns(UserWarning, match="does not know 'é', '😀': they count as <UNK>") as caught:
        estimate = pipeline.bits_per_character("né😀é" * 20)
    assert len(caught) == 1
    with warnings.catch_warnings(action="error"):
        assert pipeline.bits_per_character("noon" * 20) != estimate
    for bad in ("", None, b"text", ["text"]):
        with pytest.raises(ValueError, match="need a text of at least one character, got "):
            pipeline.bits_per_character(bad)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        pipeline.bits_per_character("text", seed=-1)


def test_what_cannot_work_is_refused_at_the_call():
    pipeline = tiny_pipeline()
    scores = tiny_pipeline(parametrization="score")
    for reason, options in (
        ("num_samples must be a whole number from 1 to", {"num_samples": 0}),
        ("num_samples must be", {"num_samples": 2.5}),
        ("num_samples must be", {"num_samples": 10**12}),
        ("num_steps must be a whole number from 1 to", {"num_steps": 0}),
        ("num_steps must be", {"num_steps": 10**12}),
        ("num_steps must be", {"num_steps": None}),
        ("seq_len must be a whole number from 1 to 24, got 0", {"seq_len": 0}),
        ("seq_len must be a whole number from 1 to 24, got 25", {"seq_len": 25}),
        ("seq_len must be", {"seq_len": 25, "template": "a_"}),
        ("seed must be a whole number from 0 to", {"seed": -1}),
        ("seed must be", {"seed": 2**64}),
        ("seed must be", {"seed": "one"}),
        ("first must be", {"first": -1}),
        ("batch_size must be", {"batch_size": 0}),
        ("temperature must be a number from 0.001 to 1000", {"temperature": 0}),
        ("temperature must be", {"temperature": float("nan")}),
        ("temperature must be", {"temperature": 1e-40}),
        ("schedule must be one of linear, cosine, fraction", {"schedule": "slow"}),
        ("churn must be a number from 0.0 to 1.0, got -1", {"churn": -1}),
        ("the model does not know 'é'", {"template": "é_"}),
        ("the template has 25 characters", {"template": "_{25}"}),
        ("if the model has a denoiser", {"temperature": 0.5, "pipeline": scores}),
    ):
        model = options.pop("pipeline", pipeline)
        for method in (model.generate, model.generate_streaming):
            with pytest.raises(ValueError) as caught:
                method(**options)
            assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be used here"):
        DiffusionPipeline(tiny_network(), "cuda:99")
    assert pipeline.generate(seed=np.int64(2**40), num_steps=1)


@pytest.mark.skipif("pocket-stories" not in bundled_models(), reason="no bundled model")
def test_bundled_model_writes_and_fills_in():
    pipeline = DiffusionPipeline.from_pretrained(device="cpu")
    (text,) = pipeline.generate(seed=0, num_steps=16)
    assert len(text) > 40 and not pipeline.tokenizer.unknown_characters(text)
    assert pipeline.generate(seed=0, num_steps=16) == [text]
    template = "It was misty. ____ sat inside with ___ pink _{4}. Knock, knock!"
    (text,) = pipeline.generate(seed=0, num_steps=16, template=template)
    assert len(text) == len(template)
    assert all(b in ("_", a) for a, b in zip(text, template.replace("_{4}", "____")))
