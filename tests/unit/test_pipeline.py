"""The pipeline, as engineering: broken folders, options and where they arrive, windows of text."""

import inspect
import json
import math
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ddlm_core import pipeline as module
from ddlm_core.evaluation import mean_of
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline, _text_tokens, load_model
from ddlm_core.sampling_options import (
    SamplingOptions,
    cut_at_end,
    default_churn,
    encode_template,
    texts_of,
)
from ddlm_core.support.errors import UserError
from ddlm_core.support.models import bundled_models
from ddlm_core.tokenizer import PAD_ID

SIZES = {"block_size": 24, "n_head": 2, "n_embd": 16, "cond_dim": 8}
Network = DiscreteDiffusionTransformer


@pytest.fixture
def network(tiny_network) -> Callable[..., Network]:
    return lambda kind=Network, **changes: tiny_network(kind, **SIZES | changes)


@pytest.fixture
def make(network) -> Callable[..., DiffusionPipeline]:
    """A pipeline around a tiny network, whose class and configuration can be changed."""
    return lambda kind=Network, **changes: DiffusionPipeline(network(kind, **changes), "cpu")


def save_network(network: torch.nn.Module, folder: Path) -> None:
    network.save_pretrained(folder, config=asdict(network.config))


def refusal(network: Network, folder: Path, file: str, content: bytes | None) -> str:
    """What ``load_model`` says once a file of a good folder has other content, or is gone."""
    save_network(network, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(f"cannot use {folder / file} (") and "\n" not in message
    return message


def test_a_broken_config_is_refused(network, tmp_path):
    save_network(network(), tmp_path / "good")
    config = json.loads((tmp_path / "good/config.json").read_text())
    for content, reason in (
        (None, "No such file"),
        (b"", "Expecting value"),
        (b'{"n_layer": 1,', "Expecting property name"),
        (b"\xff\xfe{}", "can't decode"),
        (b"[" * 100_000, "recursion"),
        (b"[1, 2]", "must be a mapping, not a list"),
        (json.dumps(config | {"layers": 2}).encode(), "there is no field 'layers'"),
        (json.dumps(config | {"n_layer": "two"}).encode(), "n_layer must be a whole number"),
        (json.dumps(config | {"vocab": ["a", "b"]}).encode(), "a vocabulary starts with"),
        (json.dumps(config | {"vocab": 3}).encode(), "not iterable"),
    ):
        assert reason in refusal(network(), tmp_path / "bad", "config.json", content)


def test_broken_weights_are_refused(network, tmp_path):
    good = network().state_dict()
    small = network(vocab=DiscreteDiffusionConfig().vocab[:-1]).state_dict()
    fewer = {name: weight for name, weight in good.items() if name != "condition_embedding"}
    for content, reason in (
        (None, "No such file"),
        (b"", "header too small"),
        (save(good)[:-1], "incomplete"),
        (save(good)[:100], "header"),
        (pickle.dumps({"a": 1}), "header too large"),
        (save(small), "size mismatch for embedding.weight"),
        (save(fewer), 'Missing key(s) in state_dict: "condition_embedding"'),
        (save(good | {"more": torch.ones(2)}), 'Unexpected key(s) in state_dict: "more"'),
        (
            save(good | {"condition_embedding": torch.full((16,), float("nan"))}),
            "condition_embedding holds NaN or infinity",
        ),
    ):
        assert reason in refusal(network(), tmp_path / "bad", "model.safetensors", content)


def test_a_pickle_is_refused_and_does_not_run(network, tmp_path):
    save_network(network(), tmp_path / "model")
    weights, victim = tmp_path / "model/model.safetensors", tmp_path / "victim"
    trap = f"cos\nmkdir\n(S'{victim.as_posix()}'\ntR.".encode()  # a pickle: call os.mkdir(victim)
    weights.write_bytes(trap)
    with pytest.raises(UserError, match="^cannot use .*model.safetensors .*header"):
        load_model(tmp_path / "model")
    assert not victim.exists()
    pickle.loads(trap)
    assert victim.exists()  # it was armed


def test_a_saved_model_comes_back(network, tmp_path):
    saved = network(sigma_max=9.0, padded=True, step=7, ema=True)
    save_network(saved, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == saved.config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, weight in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def read_back(template: str, seq_len: int | None = None, config=None) -> str:
    """Given characters as they are, ``_`` for a blank, ``~`` for a given <PAD>."""
    config = config or DiscreteDiffusionConfig(block_size=24)
    tokens, mask = encode_template(template, seq_len, config)
    shown = ["", "~", *config.vocab[2:]]
    return "".join(shown[token] if given else "_" for token, given in zip(tokens, mask))


def test_template_is_read_sign_by_sign():
    tokens, mask = encode_template("_", None, DiscreteDiffusionConfig())
    assert mask.tolist() == [False] and len(tokens) == 1
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
        ("_{10000}", None, "has 9999 characters"),
    ):
        with pytest.raises(ValueError) as caught:
            encode_template(template, seq_len, DiscreteDiffusionConfig(block_size=24))
        assert reason in str(caught.value) and "\n" not in str(caught.value)


class Jittery(DiscreteDiffusionTransformer):
    """A network whose answer depends on the size of the batch."""

    def logits(self, input_ids, *given):
        return super().logits(input_ids, *given) * (1 + len(input_ids) / 10)


def test_texts_do_not_depend_on_their_batch(make):
    for parametrization in ("denoiser", "score"):
        pipeline = make(Jittery, parametrization=parametrization)
        options = {"num_steps": 4, "seed": 7, "template": "a_{9}"}
        texts = pipeline.generate(5, **options)
        assert len(set(texts)) == 5
        for batch_size in (1, 2, 64):
            assert pipeline.generate(5, batch_size=batch_size, **options) == texts
        assert pipeline.generate(2, first=3, **options) == texts[3:]
        assert [*pipeline.generate_streaming(5, **options)][-1].texts == texts
        assert pipeline.generate(5, **options | {"seed": 8}) != texts


def test_a_saved_pipeline_comes_back(make, tmp_path):
    pipeline = make(step=7, padded=True)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.config == pipeline.config and loaded.device.type == "cpu"
    assert loaded(num_steps=2, seed=0) == pipeline(num_steps=2, seed=0)


def test_without_a_seed_every_text_is_another(make):
    pipeline = make()
    texts = pipeline.generate(3, num_steps=2, batch_size=1) + pipeline(3, num_steps=2)
    assert len(set(texts)) == 6
    assert pipeline(2, num_steps=2, return_tokens=True).shape == (2, 24)


def test_a_pushed_pipeline_comes_back(make, tmp_path):
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

    pipeline = make(sigma_max=9.0)
    pipeline.config = replace(pipeline.config, step=7)  # as after more training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_mixin, "HfApi", Hub)
        assert pipeline.push_to_hub("user/model") == "uploaded user/model"
        with pytest.raises(ValueError, match=r"cannot push 'x' \(401 unauthorized\): log in with"):
            pipeline.push_to_hub("x")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "user/model", device="cpu")
    assert loaded.config == pipeline.config
    assert loaded(num_steps=2, seed=0) == pipeline(num_steps=2, seed=0)


def test_given_characters_are_kept_in_every_step(make):
    for padded, seq_len, end in ((False, None, 6), (True, None, 6), (True, 20, 20)):
        pipeline = make(padded=padded)
        options = {"template": r"I\___!.", "seq_len": seq_len, "num_steps": 3, "seed": 0}
        steps = [*pipeline.generate_streaming(2, **options)]
        assert [step.index for step in steps] == [0, 1, 2, 3]
        for step in steps:
            for row in step.tokens.tolist():
                given = pipeline.tokenizer.decode(row[:2] + row[4:6])
                assert given == "I_!." and set(row[end:]) <= {PAD_ID}
        assert steps[-1].texts == pipeline.generate(2, **options)


def test_every_view_shows_the_same_run(make):
    pipeline, options = make(), {"num_steps": 5, "seed": 3}
    steps = [*pipeline.generate_streaming(**options)]
    animation = pipeline.generate_with_visualization(**options)
    assert [(*row,) for step in steps for row in step.tokens.tolist()] == [
        frame.tokens for frame in animation.frames
    ]
    assert str(animation) == steps[-1].texts[0]
    for step, frame in zip(steps, animation.frames):
        assert step.changed[0].nonzero()[:, 0].tolist() == [*frame.changed]
        assert step.sigma_bar == frame.sigma_bar and step.num_steps == 5
    assert "ddlm-player" in animation._repr_html_()
    assert pipeline.generate(**options) == steps[-1].texts


def test_every_option_reaches_the_loop(make):
    texts = set()
    for change in (
        *({}, {"num_steps": 5}, {"schedule": "linear"}, {"temperature": 0.1}, {"churn": 0.0}),
        *({"seed": 1}, {"first": 1}, {"seq_len": 23}, {"template": "a_{23}"}),
    ):
        texts |= {*make().generate(**{"num_steps": 4, "seed": 0} | change)}
    assert len(texts) == 9


def test_a_network_that_knows_nothing_needs_all_bits(make):
    pipeline = make()
    for parameter in pipeline.model.parameters():
        parameter.data.zero_()
    for text in ("x" * 20, "Once upon a time. " * 8):
        estimate = pipeline.bits_per_character(text)
        assert all(type(value) is float for value in estimate)
        assert estimate.low < estimate.mean < estimate.high < estimate.low + 1.5
        assert abs(estimate.mean - math.log2(106)) < 0.4


def test_the_interval_holds_the_truth(make):
    pipeline, text = make(), "A cat sat. " * 2
    estimates = [pipeline.bits_per_character(text, seed) for seed in range(8)]
    means, widths = torch.tensor([(e.mean, e.high - e.low) for e in estimates]).T
    assert sum(e.low <= means.mean() <= e.high for e in estimates) >= 7
    assert 0.5 < widths.mean() / (4 * means.std()) < 2


def test_every_character_counts(make):
    pipeline, text = make(), "The dog ran home and was happy, at last."
    assert pipeline.bits_per_character(text) == pipeline.bits_per_character(text)
    texts = [text[:i] + "Q" + text[i + 1 :] for i in (0, 23, 24, 39)] + [text, text[:-1]]
    assert len({pipeline.bits_per_character(other) for other in texts}) == 6
    padded, short = make(padded=True), text[:10]
    assert padded.bits_per_character(short).mean > 1.2 * pipeline.bits_per_character(short).mean


def test_unknown_characters_are_told_once(make):
    pipeline = make()
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


def test_what_cannot_work_is_refused_at_the_call(network, make):
    pipeline = make()
    scores = make(parametrization="score")
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
        ("churn must be a number from 0 to 1, got -1", {"churn": -1}),
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
        DiffusionPipeline(network(), "cuda:99")
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


def test_a_template_keeps_what_its_signs_quote(make):
    """Signs of regular expressions, backslashes and braces are characters like all others."""
    for template, text in (
        (r"[(.*)+?]^$|{2}_", "[(.*)+?]^$|{2}"),
        (r"\\n\_\x_", r"\\n_\x"),
        (r"\_{3}\\_", r"_{3}\_"),
        ("\t\n _", "\t\n "),
    ):
        if template.endswith(r"\_"):
            with pytest.raises(UserError, match="no blank"):
                make().generate(template=template)
            continue
        (written,) = make().generate(template=template, num_steps=1, seed=0)
        assert written.startswith(text) and len(written) <= len(text) + 1


def test_one_set_of_defaults_and_every_option_by_its_name(make):
    wanted = {field.name: field.default for field in fields(SamplingOptions)}
    pipeline = make()
    for method, more in (
        (pipeline.generate, {"seed", "first", "batch_size", "return_tokens", "num_samples"}),
        (pipeline.generate_streaming, {"seed", "first", "batch_size", "num_samples"}),
        (pipeline.generate_with_visualization, {"seed"}),
    ):
        found = inspect.signature(method).parameters
        assert {name: found[name].default for name in wanted} == wanted
        assert found.keys() - wanted == more
        assert all(p.kind == p.KEYWORD_ONLY for n, p in found.items() if n != "num_samples")
        for wrong in ("num_stepz", "generator", "condition_mask", "vocab_size"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'"):
                method(**{wrong: 1})
    for wrong in ("num_samples", "first"):  # it writes one text
        with pytest.raises(TypeError, match=wrong):
            pipeline.generate_with_visualization(**{wrong: 3})
    assert pipeline(num_steps=2, seed=0) == pipeline.generate(num_steps=2, seed=0, churn=1.0)


def test_churn_is_off_where_the_sampler_cannot(make):
    assert default_churn(DiscreteDiffusionConfig()) == 1
    for kind in ({"graph": "absorbing"}, {"parametrization": "score"}):
        pipeline = make(**kind)
        assert default_churn(pipeline.config) == 0
        options = {"num_steps": 3, "seed": 0}
        assert pipeline.generate(**options) == pipeline.generate(churn=0.0, **options)


def test_options_are_checked_when_they_are_made():
    for wrong, words in (
        ({"num_steps": True}, "num_steps must be a whole number from 1 to 100000, got True"),
        ({"num_steps": 100_001}, "num_steps must be a whole number from 1 to 100000, got 100001"),
        ({"seq_len": 2.5}, "seq_len must be a whole number, got 2.5"),
        ({"template": 3}, "template must be a text, got 3"),
        ({"schedule": None}, "schedule must be "),
        ({"temperature": 1001}, "temperature must be a number from 0.001 to 1000, got 1001"),
    ):
        with pytest.raises(UserError, match=f"^{words}"):
            SamplingOptions(**wrong)
    assert SamplingOptions(num_steps=np.int64(100_000), temperature=np.float32(1)).num_steps == 1e5
    options = SamplingOptions(temperature=1000)
    assert options.temperature == 1000
    with pytest.raises(FrozenInstanceError):
        options.temperature = 1.0


def test_all_that_is_asked_for_is_written_and_no_more(make, monkeypatch):
    sizes = []

    def steps(*arguments, **options):
        sizes.append(arguments[2])
        return denoising_steps(*arguments, **options)

    denoising_steps = module.denoising_steps
    monkeypatch.setattr(module, "denoising_steps", steps)
    texts = make().generate(5, num_steps=1, seed=0, batch_size=2)
    assert sizes == [1] * 5 and len(texts) == 5  # one at a time on a CPU
    for name, most in (("num_samples", 100_000), ("batch_size", 100_000), ("seed", 2**63)):
        with pytest.raises(UserError, match=f"{name} must be a whole number from [01] to {most}, "):
            make().generate(**{name: most + 1})
    assert make().generate(num_steps=1, seed=2**63, first=2**31, batch_size=100_000)


def test_windows_are_filled_with_padding_only_if_the_model_knows_it():
    for padded in (False, True):
        config = DiscreteDiffusionConfig(block_size=8, padded=padded)
        for length in (1, 7, 8, 9, 16, 17):
            tokens = _text_tokens("x" * length, config)
            whole = -(-length // 8) * 8 if padded else length
            assert len(tokens) == whole and (tokens[:length] == tokens[0]).all()
            assert (tokens[length:] == PAD_ID).all()


def test_the_parts_of_a_bound_are_added_by_their_windows(make, monkeypatch):
    asked = []

    def measured(model, windows, levels, generator):
        asked.append((tuple(windows.shape), levels, generator.initial_seed()))
        whole = len(windows) > 1  # two windows of 30, 31, … nats on average; one of 10, 12, …
        count = sum(shape == tuple(windows.shape) for shape, *_ in asked) - 1
        return torch.tensor(30.0 + count if whole else 10.0 + 2 * count)

    monkeypatch.setattr(module, "sweep", measured)
    found = make().bits_per_character("y" * (2 * 24 + 7), seed=5)
    assert asked == [((2, 24), 16, 5)] * 8 + [((1, 7), 32, 5)] * 8
    sums = torch.tensor([2 * (30.0 + k) + 10.0 + 2 * k for k in range(8)])
    assert found == pytest.approx(mean_of(sums / 55 / math.log(2)))
    asked.clear()
    make().bits_per_character("y" * 24 * 200)
    assert asked == [((200, 24), 1, 0)] * 8


def test_the_hub_is_asked_for_a_revision(make, monkeypatch, tmp_path):
    make().save_pretrained(tmp_path)
    asked = []
    download = "ddlm_core.support.models.snapshot_download"
    monkeypatch.setattr(download, lambda name, **how: asked.append((name, how)) or str(tmp_path))
    DiffusionPipeline.from_pretrained("user/model", device="cpu", revision="v2")
    assert asked[0][0] == "user/model" and asked[0][1]["revision"] == "v2"
    for source in (None, tmp_path, "tinystories-cpu"):
        with pytest.raises(UserError, match="only models of the Hub have a revision"):
            DiffusionPipeline.from_pretrained(source, revision="v2")


def test_a_bug_is_no_broken_file(network, monkeypatch, tmp_path):
    save_network(network(), tmp_path)

    def bug(path):
        _first, _second = [path]

    monkeypatch.setattr(module, "load_file", bug)
    with pytest.raises(ValueError, match="not enough values to unpack") as caught:
        load_model(tmp_path)
    assert not isinstance(caught.value, UserError)


def test_a_template_is_read_in_one_form():
    config = DiscreteDiffusionConfig(block_size=24, vocab=("<UNK>", "<PAD>", *"Café\n"))
    assert read_back("Cafe\u0301_", None, config) == "Café_"
    assert read_back("Ca\r\nf\r_", None, config) == "Ca\nf\n_"
    with pytest.raises(UserError, match="does not know 'x', 'y' of the template: leave them out, "):
        encode_template("yx_", None, config)


def test_the_end_of_a_text_in_a_template_is_padding():
    for template in ("a_\n<|endoftext|>\nb_", "a_<|endoftext|>b_", "a_\r\n<|endoftext|>b_"):
        assert read_back(template) == "a_~b_"
    assert read_back("<|endoftext|>_{2}<|endoftext|>") == "~__~"
    assert read_back("<|endoftext_") == "<|endoftext_"


def test_the_end_of_a_text_is_shown_and_read_back(make):
    pipeline, config = make(), DiscreteDiffusionConfig(block_size=24)
    row = [*config.tokenizer.encode("hi.").tolist(), 1, *config.tokenizer.encode("yo").tolist()]
    (text,) = texts_of([[*row, 1, 1]], config.tokenizer)
    assert text == "hi.\n<|endoftext|>\nyo"
    for stopped, front in ((False, "<|endoftext|>\n"), (True, "")):
        assert texts_of([(1, 1, *row[:3], 1)], config.tokenizer, stopped) == [f"{front}hi."]
    assert _text_tokens(text, config).tolist() == row
    padded = _text_tokens(text, replace(config, padded=True))
    assert padded.tolist() == row + [PAD_ID] * 18
    options = {"template": "hi<|endoftext|>yo_", "num_steps": 2, "seed": 0}
    (written,) = pipeline.generate(**options)
    assert written.startswith("hi\n<|endoftext|>\nyo")
    assert str(pipeline.generate_with_visualization(**options)) == written


def test_an_end_is_no_character(make, monkeypatch):
    monkeypatch.setattr(module, "sweep", lambda *_: torch.tensor(1.0))
    found = make().bits_per_character("ab\n<|endoftext|>\ncde\r\n")
    assert found.mean == pytest.approx(1 / (6 * math.log(2)))
    for nothing in ("<|endoftext|>", "\n<|endoftext|>\n<|endoftext|>"):
        with pytest.raises(UserError, match="need a text of at least one character"):
            make().bits_per_character(nothing)


@pytest.mark.parametrize(
    ("row", "cut"),
    [
        ([5, 6, 1, 7, 1, 8], [5, 6, 1, 1, 1, 1]),
        ([1, 1, 5, 1, 1, 6], [1, 1, 5, 1, 1, 1]),  # nothing has begun before the 5
        ([5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 9, 0]),
        ([0, 1, 2, 1, 1, 1], [0, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_text_is_cut_where_it_first_ends(row, cut):
    assert cut_at_end(torch.tensor([row, row[::-1]]))[0].tolist() == cut


def test_only_the_last_step_stops_at_the_end(make):
    pipeline, options = make(), {"num_steps": 3, "seed": 2, "template": "a_{5}<|endoftext|>b_{9}"}
    whole = [*pipeline.generate_streaming(2, **options)]
    steps = [*pipeline.generate_streaming(2, stop_at_end=True, **options)]
    for a, b in zip(whole[:-1], steps[:-1], strict=True):
        assert torch.equal(a.tokens, b.tokens) and a.texts == b.texts
    last = steps[-1]
    assert torch.equal(last.tokens, cut_at_end(whole[-1].tokens))
    assert torch.equal(last.changed, last.tokens != steps[-2].tokens)
    assert last.texts == pipeline.generate(2, stop_at_end=True, **options)
    assert all("\n<|endoftext|>\nb" in text for text in whole[-1].texts)
    assert not any("<|endoftext|>" in text for text in last.texts)
    assert [*map(len, last.texts)] <= [6, 6]
    animation = pipeline.generate_with_visualization(stop_at_end=True, **options)
    assert str(animation) == last.texts[0]
    assert [*animation.frames[-1].changed] == last.changed[0].nonzero()[:, 0].tolist()


def test_a_watched_animation_is_shown_again_in_other_cells(make, monkeypatch):
    text = make().generate_with_visualization(num_steps=2, seed=0)
    assert (
        repr(text)
        == f"Animation({len(text.frames)} frames of {len(text.frames[0].tokens)} characters)"
    )
    shown = []
    monkeypatch.setattr(
        "ddlm_core.pipeline.show_in_other_cells", lambda *asked: shown.append(asked)
    )
    text._ipython_display_()
    assert shown == [(text, text.cell)]
