"""Writing in blocks, as engineering: context, numbers of steps, templates, ends."""

import pytest
import torch

from ddlm_core.block_sampler import context_start, denoising_blocks, numbered
from ddlm_core.sampler import DenoisingStep, sample_generators
from ddlm_core.support.errors import UserError
from ddlm_core.testing import randomize
from ddlm_core.tokenizer import PAD_ID


def run(model, rows=1, length=24, seed=0, first=0, **options):
    how = {"num_steps": 3, "generator": sample_generators(seed, rows, first)} | options
    return list(denoising_blocks(model, rows, length, **how))


@pytest.fixture
def model(tiny_network):
    return tiny_network(block_size=16, n_layer=3, block_length=4).eval()


@pytest.mark.parametrize(
    ("block_length", "block_size"), [(16, 160), (20, 160), (1, 40), (5, 12), (8, 8)]
)
def test_the_context_fits_and_is_no_shorter_than_half(block_length, block_size):
    for written in range(0, 50 * block_length, block_length):
        start = context_start(written, block_length, block_size)
        kept = written - start
        assert start % block_length == 0 and 0 <= kept <= block_size - block_length
        if written > block_size:
            assert kept >= min(block_size // 2, block_size - block_length) - block_length
    assert context_start(0, block_length, block_size) == 0


def test_it_starts_again_with_half_a_window():
    starts = [context_start(16 * k, 16, 160) for k in range(20)]
    assert starts == [0] * 10 + [80] * 5 + [160] * 5


def test_steps_are_counted_through_all_blocks(model):
    steps = run(model)
    assert [step.index for step in steps] == list(range(24))  # 6 blocks of a start and 3 steps
    assert {step.num_steps for step in steps} == {23}
    assert all(step.tokens.shape == (1, 24) for step in steps)


def test_a_run_that_ends_early_says_so():
    def step(index):
        return DenoisingStep(index, 9, 0.0, torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))

    found = list(numbered(iter([step(0), step(1), step(0)]), 5))
    assert [(s.index, s.num_steps) for s in found] == [(0, 5), (1, 5), (2, 2)]
    assert list(numbered(iter([]), 5)) == []


def test_later_blocks_are_padding_and_earlier_ones_stay(model):
    steps = run(model, 2)
    for before, after in zip(steps, steps[1:], strict=False):
        block = after.index // 4 * 4
        assert (after.tokens[:, block + 4 :] == PAD_ID).all()
        assert torch.equal(after.tokens[:, :block], before.tokens[:, :block])
        inside = after.changed.nonzero()[:, 1]
        assert ((inside >= block) & (inside < block + 4)).all()


def test_same_seed_same_text_in_any_batch(model):
    together = run(model, 3)[-1].tokens
    for i in range(3):
        assert torch.equal(run(model, 1, first=i)[-1].tokens, together[i : i + 1])


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 17, 50])
def test_any_length(model, length):
    assert run(model, length=length)[-1].tokens.shape == (1, length)


def test_a_template_across_blocks(model):
    template = torch.randint(2, 106, (10,))
    mask = torch.tensor([True, False] * 5)
    tokens = run(model, 2, 10, template=template, condition_mask=mask)[-1].tokens
    assert (tokens[:, mask] == template[mask]).all()


def test_what_cannot_work_is_told_at_the_call(model):
    for wrong in ({"num_steps": 0}, {"churn": 2.0}, {"temperature": 0.0}, {"schedule": "x"}):
        with pytest.raises(UserError):
            denoising_blocks(model, 1, 8, generator=sample_generators(0, 1), **wrong)
    with pytest.raises(UserError, match="seq_len"):
        denoising_blocks(model, 1, 0, generator=sample_generators(0, 1))


def test_no_block_begins_once_all_texts_have_ended(model):
    letters = torch.full((1, 12), 20)
    letters[:, 6:] = PAD_ID  # given: the text ends in the second block
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[:, 8:] = False
    how = {"template": letters[0], "condition_mask": mask[0]}
    steps = run(model, 1, 12, stop_at_end=True, **how)
    assert len(steps) == 8 and steps[-1].index == steps[-1].num_steps == 7
    assert len(run(model, 1, 12, **how)) == 12


@pytest.mark.parametrize("block_length", [1, 4])
def test_what_was_read_is_not_read_again(tiny_network, block_length):
    network = tiny_network(block_size=16, n_layer=5, block_length=block_length)
    network = randomize(network).double().eval()
    text, noise = torch.randint(106, (2, 8)), torch.full((2,), 0.7).double()
    x_t = torch.randint(106, (2, block_length))
    grown, letters = None, text.clone()
    for end in range(block_length, 9, block_length):
        grown = network.after(letters[:, :end], grown and grown.past)
        letters[:, :end] = 0  # nobody looks there any more
    whole = network.after(text)
    torch.testing.assert_close(grown.denoise(x_t, noise), whole.denoise(x_t, noise))
    assert all(
        a.keys.shape == b.keys.shape
        for a, b in zip(grown.past.layers, whole.past.layers, strict=True)
    )


def test_each_letter_is_read_once_until_some_are_forgotten(model, monkeypatch):
    read, counts = type(model).read, []

    def counted(self, tokens, count, past=None):
        counts.append(count - (past.left.shape[1] if past else 0))
        return read(self, tokens, count, past)

    monkeypatch.setattr(type(model), "read", counted)
    run(model, length=32)
    # a window of 16 has room for three blocks of past; then two of them are read anew
    assert counts == [1, 4, 4, 4, 9, 4, 9, 4]
