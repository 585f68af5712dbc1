"""The pipeline of chapter 11, as engineering: both kinds of networks, options, errors."""

from dataclasses import asdict

import pytest
import torch

from ddlm_core.block_pipeline import BlockPipeline, default_steps, merged, with_room
from ddlm_core.blocks import make_config
from ddlm_core.comparison import side_by_side, timed_run
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.sampler import DenoisingStep
from ddlm_core.sampling_options import SamplingOptions
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID


@pytest.fixture
def pipeline(tiny_network) -> BlockPipeline:
    return BlockPipeline(tiny_network(block_size=16, n_layer=3, block_length=4), "cpu")


def test_a_whole_window_is_written_as_chapter_10_does(tiny_network):
    network = tiny_network()
    how = {"num_steps": 5, "seed": 1, "template": "Hi ___."}
    assert BlockPipeline(network, "cpu").generate(2, **how) == DiffusionPipeline(
        network, "cpu"
    ).generate(2, **how)


def test_defaults(pipeline):
    assert default_steps(pipeline.config) == 16
    assert default_steps(make_config()) == 128
    assert default_steps(make_config(block_length=1)) == 1
    steps = list(pipeline.generate_streaming(seed=0))
    assert len(steps) == 4 * 17 and steps[-1].index == steps[-1].num_steps
    assert len(steps[-1].texts[0].replace("<|endoftext|>\n", "�")) > 0


def test_room_is_made_for_what_is_asked(pipeline):
    config = pipeline.config
    assert with_room(config, SamplingOptions()) is not None
    assert with_room(config, SamplingOptions(seq_len=90)).block_size == 90
    assert with_room(config, SamplingOptions(template="_{70}")).block_size == 70
    padded = make_config(**asdict(config) | {"padded": True})
    assert with_room(padded, SamplingOptions(seq_len=90)).block_size == 16


def test_any_length_but_with_padding(pipeline, tiny_network):
    assert pipeline.generate(1, seq_len=70, num_steps=2, seed=0, return_tokens=True).shape == (
        1,
        70,
    )
    text = pipeline.generate(1, template="ab_{60}cd", num_steps=2, seed=0)[0]
    assert text.startswith("ab") and text.endswith("cd")
    padded = BlockPipeline(tiny_network(block_size=16, block_length=4, padded=True), "cpu")
    with pytest.raises(UserError, match="seq_len"):
        padded.generate(1, seq_len=17)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"sampler": "magic"}, "sampler must be one of grid, entropy_bound"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"first": -1}, "first"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_steps": 0}, "num_steps"),
        ({"template": "no blank"}, "no blank"),
    ],
)
def test_bad_options_are_told_before_any_work(pipeline, wrong, reason):
    with pytest.raises(UserError, match=reason):
        pipeline.generate_streaming(**wrong)


def test_runs_of_different_lengths_end_together():
    def steps(count, length):
        for index in range(count):
            tokens = torch.full((1, length), 10 * length + index)
            yield DenoisingStep(index, count - 1, 0.0, tokens, torch.ones(1, length).bool())

    found = list(merged([steps(2, 2), steps(3, 3)]))
    assert [[step.tokens.tolist() for step in pair] for pair in found] == [
        [[[20, 20, PAD_ID]], [[30, 30, 30]]],
        [[[21, 21, PAD_ID]], [[31, 31, 31]]],
        [[[21, 21, PAD_ID]], [[32, 32, 32]]],
    ]
    assert found[0][0].changed.tolist() == [[True, True, False]]


@pytest.mark.parametrize("block_length", [None, 4])
def test_the_samplers_of_chapter_11(tiny_network, block_length):
    blocks = {} if block_length is None else {"block_length": block_length}
    pipeline = BlockPipeline(tiny_network(block_size=16, n_layer=3, **blocks), "cpu")
    usual = pipeline.generate(2, seed=0)
    steps = list(
        pipeline.generate_streaming(2, seed=0, sampler="entropy_bound", entropy_bound=500.0)
    )
    assert steps[-1].texts != usual
    assert len(steps) == (2 if block_length is None else 8)  # all is accepted at once
    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[-1].index == steps[-1].num_steps
    assert pipeline.generate(2, seed=0, top_p=0.01) != usual
    assert pipeline.generate(2, seed=0, top_p=1.0, entropy_bound=9.0, annealing=1.0) == usual
    assert pipeline.generate(2, seed=0, annealing=0.01) != usual


def test_annealing_is_a_share_of_the_temperature(tiny_network):
    pipeline = BlockPipeline(tiny_network(block_size=16, n_layer=3), "cpu")
    network, x_t = pipeline.model, torch.randint(50, (2, 8))
    start, end = network.config.noise.sigma_bar(torch.tensor([1.0, 0.0]))
    seen = {}

    class Watched(Exception):
        pass

    def watch(model, *where, **options):
        seen["model"] = model
        raise Watched

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Watched):
        patch.setattr("ddlm_core.block_pipeline.denoising_steps", watch)
        pipeline.generate(1, seq_len=8, temperature=0.8, annealing=0.5, seed=0)
    for level, share in ((start, 1.0), (end, 0.5)):
        expected = (network.denoise(x_t, level.expand(2)) / share).log_softmax(-1)
        got = seen["model"].denoise(x_t, level.expand(2))
        torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "count"), [({"template": "ab____"}, 6), ({"template": "ab_{2-6}"}, 8), ({}, 16)]
)
def test_the_number_of_steps_is_told_from_the_start(tiny_network, options, count):
    pipeline = BlockPipeline(tiny_network(block_size=16, n_layer=3, block_length=4), "cpu")
    first = next(iter(pipeline.generate_streaming(num_steps=3, seed=0, **options)))
    assert first.num_steps == -(-count // 4) * (3 + 1) - 1


@pytest.mark.parametrize(
    "wrong", [{"top_p": 1.5}, {"entropy_bound": -1.0}, {"top_p": "x"}, {"annealing": 0}]
)
def test_bad_options_of_samplers(pipeline, wrong):
    with pytest.raises(UserError):
        pipeline.generate_streaming(**wrong)


@pytest.mark.parametrize("blocks", [{}, {"block_length": 4}])
def test_a_blank_of_unknown_length(tiny_network, blocks):
    pipeline = BlockPipeline(tiny_network(block_size=16, n_layer=3, **blocks), "cpu")
    how = {"template": "ab_{1-3}cd_", "num_steps": 2, "seed": 3}
    texts = pipeline.generate(6, **how)
    assert all(text.startswith("ab") and text.rstrip("�")[-4:-1] != "" for text in texts)
    assert pipeline.generate(2, first=4, **how) == texts[4:]  # each text by its number
    one = {"num_steps": 2, "seed": 3}
    assert pipeline.generate(template="ab_{3-3}cd", **one) == pipeline.generate(
        template="ab_{3}cd", **one
    )
    with pytest.raises(UserError, match="range"):
        pipeline.generate_streaming(template="ab_{3-1}cd")


def test_the_same_text_alone_and_among_others(pipeline):
    together = pipeline.generate(3, seq_len=20, num_steps=2, seed=5)
    assert pipeline.generate(1, seq_len=20, num_steps=2, seed=5, first=2) == together[2:]


def test_an_animation_while_it_writes(pipeline):
    shown = pipeline.generate_with_visualization(seq_len=12, num_steps=2, seed=0)
    assert len(shown.frames) == 9 and str(shown)


def test_side_by_side_on_one_clock(pipeline, tiny_network):
    other = BlockPipeline(tiny_network(), "cpu")
    how = {"num_steps": 2, "seed": 0}
    runs = [timed_run("blocks", pipeline, **how), timed_run("window", other, **how)]
    assert [len(run.frames) for run in runs] == [12, 3]
    assert all(run.seconds == sorted(run.seconds) for run in runs)
    shown = side_by_side(runs, pipeline, 5)
    pictures = shown.pictures()
    assert len(pictures) == 5 and len({len(picture.marks) for picture in pictures}) == 1
    assert "step 11 of 11" in pictures[-1].marks and "step 2 of 2" in str(shown)
    assert "blocks" in shown._repr_html_()
    with pytest.raises(UserError):
        side_by_side([], pipeline)


def test_a_block_model_goes_through_a_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = BlockPipeline.from_pretrained(tmp_path, device="cpu")
    how = {"seq_len": 20, "num_steps": 2, "seed": 0}
    assert again.generate(1, **how) == pipeline.generate(1, **how)
    assert again.bits_per_character("Hello there").mean > 0
    with pytest.raises(UserError, match="no model"):
        BlockPipeline.from_pretrained(tmp_path / "nothing")


def test_temperature_matters(pipeline):
    cold, warm = (pipeline.generate(1, seq_len=16, temperature=t, seed=0) for t in (0.01, 1.0))
    assert cold != warm
