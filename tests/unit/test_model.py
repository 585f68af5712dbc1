"""The network in detail: each layer by hand, precision, gradients, checkpoints, refusals."""

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import (
    Attention,
    Block,
    DiscreteDiffusionTransformer,
    Modulation,
    apply_rope,
    causal_conv,
    modulate,
    neighbors,
    rope_angles,
    sinusoidal_features,
)
from ddlm_core.objective import compute_loss
from ddlm_core.support.errors import UserError
from ddlm_core.testing import fresh_network, noised_batch, randomize, small_config, small_network

# The noise level


def test_noise_features_tell_levels_apart():
    levels = torch.logspace(-4, math.log10(20), 60, dtype=torch.float64)
    features = sinusoidal_features(levels, 64)
    assert features.shape == (60, 64) and features.abs().max() <= 1
    apart = torch.cdist(features, features) + 9 * torch.eye(60)
    assert apart.min() > 1.5  # levels that differ by a fifth are far from each other
    for factor in (1.1, 2.0, 100.0):  # the distance depends on the factor, not on the level
        moved = (sinusoidal_features(factor * levels, 64) - features).norm(dim=-1)
        assert torch.allclose(moved, moved[0].expand(60), rtol=1e-9)


def test_noise_features_by_hand():
    features = sinusoidal_features(torch.tensor([math.e], dtype=torch.float64), 4)
    slow, fast = 10**-1.5, 10.0
    expected = [math.sin(slow), math.sin(fast), math.cos(slow), math.cos(fast)]
    assert features[0].tolist() == pytest.approx(expected)


def test_noise_features_are_finite_and_precise():
    ends = torch.tensor([0.0, 1e-30, 1e-4, 20.0, math.inf])
    assert sinusoidal_features(ends, 8).isfinite().all()
    limits = torch.tensor([1e-12, 1e-12, 1e-4, 20.0, 1e12])
    assert torch.equal(sinusoidal_features(ends, 8), sinusoidal_features(limits, 8))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = sinusoidal_features(ends.to(dtype), 8)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        exact = sinusoidal_features(ends.to(dtype).double(), 8)
        assert (found - exact).abs().max() < 1e-4


def test_modulate_by_hand():
    x = torch.tensor([[[1.0, 3.0], [300.0, 100.0]]], dtype=torch.float64)
    shift, scale = torch.tensor([[[0.0, 10.0]]]), torch.tensor([[[2.0, -0.5]]])
    expected = torch.tensor([[[-3.0, 10.5], [3.0, 9.5]]], dtype=torch.float64)
    assert torch.allclose(modulate(x, shift, scale), expected, atol=1e-4)


def test_modulation_hands_out_its_parts_in_order():
    modulation = Modulation(2, 3, 2)
    assert all((part == 0).all() for part in modulation(torch.randn(5, 2)))
    with torch.no_grad():
        modulation.linear.bias += torch.arange(6)
        modulation.linear.weight[4] = 10.0
    first, second = modulation(torch.tensor([[1.0, 2.0]]))
    assert first.tolist() == [[[0, 1, 2]]] and second.tolist() == [[[3, 34, 5]]]


# Rotary positions


def test_rotary_products_depend_on_the_distance_only():
    g, length, size = torch.Generator().manual_seed(0), 40, 8
    q, k = torch.randn(2, 1, 1, 1, size, generator=g).double()
    angles = rope_angles(length, size).double()
    q, k = (apply_rope(x.expand(1, 1, length, size), angles)[0, 0] for x in (q, k))
    products = q @ k.T  # (L, L): query at the row, key at the column
    first = torch.stack([products.diagonal(d)[0] for d in range(-39, 40)])
    for distance in range(-39, 40):
        along = products.diagonal(distance)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-5)
    apart = (first[:, None] - first).abs() + torch.eye(79)
    assert apart.min() > 1e-4  # no two distances look alike, nor does left look like right


def test_rotation_keeps_lengths_and_the_first_position():
    x = torch.randn(2, 3, 10, 8, generator=torch.Generator().manual_seed(0))
    y = apply_rope(x, rope_angles(10, 8))
    assert torch.equal(y[:, :, 0], x[:, :, 0]) and not torch.allclose(y[:, :, 1:], x[:, :, 1:])
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.equal(rope_angles(3, 4), torch.tensor([[0, 0], [1, 0.01], [2, 0.02]]))


def test_rotation_in_bfloat16_still_counts():
    x = torch.randn(1, 1, 300, 8, generator=torch.Generator().manual_seed(0))
    angles = rope_angles(300, 8)
    assert (apply_rope(x.bfloat16(), angles) - apply_rope(x, angles)).abs().max() < 0.05


# Attention and blocks


def attention_by_hand(
    attention: Attention, x: Tensor, context: Tensor, attn_mask: Tensor
) -> Tensor:
    """One text (L, 16) that attends to (M, 16), two heads of 8 features, pair by pair.

    To share no code with ``apply_rope``, rotations are products with complex numbers.
    """
    frequencies = 10_000 ** -(torch.arange(4).double() / 4)

    def rotated(row: Tensor, norm: nn.RMSNorm, position: int) -> Tensor:
        row = norm.weight * row / row.square().mean().sqrt()
        return torch.complex(row[:4], row[4:]) * torch.exp(1j * position * frequencies)

    y = torch.zeros_like(x)
    keys, values = attention.key_value.weight.chunk(2)
    for h in (0, 1):
        here = slice(8 * h, 8 * h + 8)
        query = x @ attention.query.weight[here].T
        key, value = context @ keys[here].T, context @ values[here].T
        for i in range(len(x)):
            q = rotated(query[i], attention.query_norm, i)
            allowed = attn_mask[i].nonzero()[:, 0].tolist()
            k = [rotated(key[j], attention.key_norm, j % len(x)) for j in allowed]
            weights = torch.stack([(q * kj.conj()).real.sum() / 8**0.5 for kj in k]).softmax(0)
            y[i, here] = weights @ value[allowed]
    return y @ attention.out.weight.T


def attention_inputs() -> tuple[Attention, Tensor, Tensor, Tensor]:
    """Random weights, two texts of 5, a context of 10 for each, and which pairs are allowed."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 16, generator=g, dtype=torch.float64)
    context = torch.randn(2, 10, 16, generator=g, dtype=torch.float64)
    attn_mask = torch.rand(5, 10, generator=g) < 0.6
    attention = Attention(small_config()).double()
    randomize(attention)
    return attention, x, context, attn_mask


def test_attention_is_the_formula():
    attention, x, context, attn_mask = attention_inputs()
    found = attention(x, context, rope_angles(5, 8).double(), attn_mask)
    for b in range(2):
        by_hand = attention_by_hand(attention, x[b], context[b], attn_mask)
        assert torch.allclose(found[b], by_hand, atol=1e-6)


def test_large_queries_and_keys_change_nothing():
    attention, x, context, attn_mask = attention_inputs()
    before = attention(x, context, rope_angles(5, 8), attn_mask)
    with torch.no_grad():
        attention.query.weight *= 1000
        attention.key_value.weight[:16] *= 1000  # the keys, not the values
    assert torch.allclose(attention(x, context, rope_angles(5, 8), attn_mask), before)


def test_causal_conv_by_hand():
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 7.0, 9.0]])[..., None]  # (2, 4, 1)
    weights = torch.tensor([[10.0], [100.0]])  # one back, two back
    expected = [
        [1.0, 2 + 10, 4 + 20 + 100, 8 + 40 + 200],
        [3.0, 5 + 30, 7 + 50 + 300, 9 + 70 + 500],
    ]
    assert causal_conv(x, weights)[..., 0].tolist() == expected
    assert torch.equal(causal_conv(x[:, :1], weights), x[:, :1])  # nothing is before the first


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_causal_conv_is_the_depthwise_convolution_of_pytorch(length):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, 5, generator=g, dtype=torch.float64)
    weights = torch.randn(3, 5, generator=g, dtype=torch.float64)
    conv = nn.Conv1d(5, 5, 4, groups=5, bias=False, dtype=torch.float64)
    with torch.no_grad():  # its last weight belongs to the position itself
        conv.weight[:, 0] = torch.cat([weights.flip(0), torch.ones(1, 5)]).T
    expected = conv(nn.functional.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
    assert torch.allclose(causal_conv(x, weights), expected)


def test_each_gate_opens_its_branch():
    g, angles = torch.Generator().manual_seed(1), rope_angles(5, 8)
    x = torch.randn(2, 5, 16, generator=g, dtype=torch.float64)
    other = torch.randn(2, 5, 16, generator=g, dtype=torch.float64)
    cond = torch.randn(2, 8, generator=g, dtype=torch.float64)
    attn_mask = torch.ones(5, 5, dtype=torch.bool).tril()
    block = Block(small_config(), causal=True).double()
    assert torch.equal(block(x, None, cond, angles, attn_mask), x)
    randomize(block.attention)
    randomize(block.feed_forward)
    randomize(block.conv, seed=2)
    assert torch.equal(block(x, other, cond, angles, attn_mask), x)
    parts = block.modulation.linear.bias.data.view(6, 16)  # shift, scale, gate; and once more

    def normed(y: Tensor) -> Tensor:
        return 1.5 * nn.functional.layer_norm(y, (16,)) + 0.2

    for context in (None, other):
        first, second = (causal_conv(normed(x), weights) for weights in block.conv)
        attended = first if context is None else normed(context)
        for start, step in (
            (0, block.attention(first, attended, angles, attn_mask)),
            (3, block.feed_forward(second)),
        ):
            parts.zero_()
            parts[start], parts[start + 1], parts[start + 2] = 0.2, 0.5, -2.0
            assert torch.allclose(block(x, context, cond, angles, attn_mask), x - 2.0 * step)


def test_only_causal_blocks_have_a_convolution():
    network = small_network(n_layer=7)
    assert [len(block.conv) for block in network.blocks] == 6 * [2] + [0]
    assert [len(block.conv) for block in small_network(n_layer=4).blocks] == [2, 2, 0, 0]
    assert not any(len(block.conv) for block in small_network(conv_size=0).blocks)
    assert network.blocks[0].conv[1].shape == (3, 16)


# The network at its start


def test_modulation_is_zero_after_construction():
    sigma_bar = torch.logspace(-4, math.log10(20), 50)
    for config in (DiscreteDiffusionConfig(), small_config()):
        network = DiscreteDiffusionTransformer(config)
        modulations = [m for m in network.modules() if isinstance(m, Modulation)]
        assert len(modulations) == config.n_layer + 1
        cond = network.noise_embedding(sigma_bar)
        assert cond.std(dim=0).min() > 0  # the noise does get this far
        for modulation in modulations:
            assert all((part == 0).all() for part in modulation(cond))


def test_embedding_starts_small():
    torch.manual_seed(0)
    weight = DiscreteDiffusionTransformer(DiscreteDiffusionConfig()).embedding.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.02)


def test_gradients_arrive_from_the_top():
    network = fresh_network().train()
    optimizer, g = torch.optim.SGD(network.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    x_0, mask = torch.randint(8, (64, 9), generator=g), torch.rand(64, 9, generator=g) < 0.3
    for step in range(3):
        optimizer.zero_grad()
        t = torch.rand(64, generator=g, dtype=torch.float64)
        compute_loss(network, x_0, network.config.noise, t, mask, generator=g).mean().backward()
        optimizer.step()
        moving = {name for name, p in network.named_parameters() if (p.grad != 0).any()}
        names = {name for name, _ in network.named_parameters()}
        head = {"head.weight", "head.bias"}
        embeddings = {"embedding.weight", "position_embedding", "condition_embedding"}
        if step == 0:
            assert moving == head
        elif step == 1:
            assert moving == head | embeddings | {name for name in names if "modulation" in name}
    assert moving == names


def test_number_of_parameters():
    for config in (
        DiscreteDiffusionConfig(),
        small_config(),
        small_config(bias=True, n_layer=3, n_head=4, cond_dim=6, conv_size=1),
        small_config(conv_size=0),
    ):
        V, d, d_c = config.vocab_size, config.n_embd, config.cond_dim
        attention, feed_forward = 4 * d * d + 2 * d // config.n_head, 8 * d * d
        biases = (4 + 5) * d if config.bias else 0  # query, key, value, out; up 4, down 1
        block = 6 * d * (d_c + 1) + attention + feed_forward + biases
        ends = (V + config.block_size + 1) * d + 2 * (d_c + d) * (d_c + 1) + V * (d + 1)
        convs = (config.n_layer - 1) // 2 * 4 * config.conv_size * d
        expected = ends + config.n_layer * block + convs
        network = DiscreteDiffusionTransformer(config)
        assert sum(p.numel() for p in network.parameters()) == expected


# What a position may depend on


def test_neighbors_by_hand():
    x, position_embedding = (
        torch.tensor([[[1.0], [2.0], [4.0]]]),
        torch.tensor([[10.0], [20], [30]]),
    )
    left, right = neighbors(x, position_embedding)
    assert left[..., 0].tolist() == [[10, 21, 32]] and right[..., 0].tolist() == [[12, 24, 30]]


def test_positions_are_added():
    x_t, sigma_bar = noised_batch()
    network = fresh_network()  # its blocks do nothing yet
    assert (network.position_embedding == 0).all() and (network.condition_embedding == 0).all()
    randomize(network.head)
    alike = network.logits(torch.full_like(x_t, 5), sigma_bar)
    inner = alike[:, 1:-1]
    assert torch.equal(inner, inner[:, :1].expand_as(inner))  # nothing tells positions apart
    assert not torch.equal(alike[:, 0], alike[:, 1])  # but the ends, with one neighbor
    with torch.no_grad():
        g = torch.Generator().manual_seed(0)
        network.position_embedding.copy_(torch.randn(12, 16, generator=g))
    for i in range(7):
        x = 2 * network.position_embedding[i].expand(3, 16)  # one from each causal stack
        for j in (i - 1, i + 1):
            x = x + network.embedding.weight[x_t[:, j]] if 0 <= j < 7 else x
        expected = network.head(nn.functional.layer_norm(x, (16,)))
        assert torch.allclose(network.logits(x_t, sigma_bar)[:, i], expected)


def test_each_text_has_its_own_noise():
    network, (x_t, sigma_bar) = small_network(), noised_batch()
    jacobian = torch.autograd.functional.jacobian(lambda s: network.logits(x_t, s), sigma_bar)
    moved = jacobian.abs().amax(dim=(1, 2))  # (B, B): the text that answers, the noise that moves
    assert ((moved > 1e-6) == torch.eye(3, dtype=torch.bool)).all()


def test_condition_matters_only_through_its_embedding():
    network, (x_t, sigma_bar) = small_network(), noised_batch()
    none, some = torch.zeros(3, 7, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool)
    some[0, 2] = True
    plain = network(x_t, sigma_bar)
    assert torch.equal(network(x_t, sigma_bar, none), plain)
    conditioned = network(x_t, sigma_bar, condition_mask=some)
    changed = (conditioned != plain).any(-1)
    assert changed[0].tolist() == [i != 2 for i in range(7)] and not changed[1:].any()
    with torch.no_grad():
        network.condition_embedding.zero_()
    assert torch.equal(network(x_t, sigma_bar, some), plain)


def test_each_stack_knows_its_side():
    network, (x_t, sigma_bar) = small_network(n_layer=5), noised_batch(2, 9)
    moved = x_t.clone()
    moved[:, 4] = (x_t[:, 4] + 1) % 8
    before, after = (network.stack_logits(x, sigma_bar) for x in (x_t, moved))
    assert before.shape == (3, 2, 9, 8)
    assert torch.equal(before[0], network.logits(x_t, sigma_bar))
    i, changed = torch.arange(9), (before != after).any(-1)  # changed: (3, B, L)
    for stack, expected in enumerate((i != 4, i > 4, i < 4)):  # merge, left-to-right, right-to-left
        assert torch.equal(changed[stack], expected.expand(2, 9))


def test_stacks_take_the_condition_and_are_distributions():
    network, (x_t, sigma_bar) = small_network(), noised_batch()
    mask = x_t > 5
    log_q = network.denoise_stacks(x_t, sigma_bar, mask)
    assert torch.equal(log_q[0], network.denoise(x_t, sigma_bar, mask))
    assert torch.equal(log_q, network.stack_logits(x_t, sigma_bar, mask).log_softmax(-1))
    assert not torch.equal(log_q, network.denoise_stacks(x_t, sigma_bar))
    assert torch.allclose(log_q.exp().sum(-1), torch.ones(3, 3, 7).double())


# What it answers


def test_log_score_is_zero_at_the_current_token():
    x_t, sigma_bar = noised_batch()
    for parametrization in ("denoiser", "score"):
        network = small_network(parametrization=parametrization)
        log_score = network(x_t, sigma_bar)
        assert log_score.shape == (3, 7, 8) and log_score.isfinite().all()
        assert (log_score.gather(-1, x_t[..., None]) == 0).all()
        assert (log_score != 0).sum() == 3 * 7 * 7  # and nowhere else
    logits = network.logits(x_t, sigma_bar)  # parametrization "score": differences of logits
    difference = logits[0, 0] - logits[0, 0, x_t[0, 0]]
    assert torch.equal(log_score[0, 0], difference)


def test_denoise_is_a_distribution():
    x_t, sigma_bar = noised_batch()
    log_q = small_network().denoise(x_t, sigma_bar)
    assert torch.allclose(log_q.exp().sum(-1), torch.ones(3, 7).double())
    assert log_q.std(-1).min() > 0.1  # and not the uniform one
    network = small_network(parametrization="score")
    for method in (network.denoise, network.denoise_stacks):
        with pytest.raises(TypeError, match="'score' has no denoiser"):
            method(x_t, sigma_bar)


def test_texts_up_to_the_block_size():
    network = small_network()
    for length in (1, 2, 12):
        x_t, sigma_bar = noised_batch(2, length)
        assert network(x_t, sigma_bar).shape == (2, length, 8)


def test_precision_of_the_answer():
    x_t, sigma_bar = noised_batch(2, 200)
    sizes = {"block_size": 200, "n_embd": 32}
    network, answers, angles = DiscreteDiffusionTransformer(small_config(**sizes)), {}, []
    network.blocks[0].register_forward_pre_hook(lambda block, inputs: angles.append(inputs[3]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        randomize(network.to(dtype), size=0.15)
        answers[dtype] = network.denoise(x_t, sigma_bar.to(dtype))
        assert answers[dtype].dtype == torch.promote_types(dtype, torch.float32)
        network(x_t, sigma_bar.float())  # noise and network may differ in precision
    randomize(network.float(), size=0.15)
    attended = []
    out = network.blocks[0].attention.out
    out.register_forward_pre_hook(lambda layer, inputs: attended.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network.denoise(x_t, sigma_bar.float())
    assert attended == [torch.float32]  # exact up to here, whatever the linear maps do
    assert all(torch.equal(a, rope_angles(200, 16)) for a in angles)  # never rounded
    exact = answers[torch.float64]
    assert exact.std(-1).min() > 0.05
    assert (answers[torch.float32] - exact).abs().max() < 1e-4
    for half in (answers[torch.bfloat16], mixed):
        assert half.dtype == torch.float32 and (half - exact).abs().max() < 0.1


def test_no_dropout_unless_asked_for():
    x_t, sigma_bar = noised_batch()
    for dropout, same in ((0.0, True), (0.5, False)):
        network = small_network(dropout=dropout)
        settled = network(x_t, sigma_bar)
        assert torch.equal(network(x_t, sigma_bar), settled)
        assert torch.equal(network.train()(x_t, sigma_bar), settled) is same


def test_network_refuses_inputs_in_one_line():
    network, (x_t, s) = small_network(), noised_batch()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for message, inputs in {
        r"int64 of shape \(B, L\), got torch.int32": (x_t.int(), s),
        r"int64 of shape \(B, L\), got torch.int64, \(7,\)": (x_t[0], s),
        "1 to 12 tokens here, got 0": (x_t[:, :0], s),
        "a text has 1 to 12 tokens here, got 13": noised_batch(3, 13),
        r"sigma_bar must be floating, of shape \(B,\) = \(3,\)": (x_t, s[:2]),
        r"sigma_bar .* got torch.float64, \(\)": (x_t, s[0]),
        "sigma_bar .* got torch.int64": (x_t, s.long()),
        "condition_mask must be bool .* got torch.float32": (x_t, s, mask.float()),
        r"condition_mask must be bool \(3, 7\), got torch.bool, \(3, 6\)": (x_t, s, mask[:, :6]),
    }.items():
        for method in (network, network.stack_logits):
            with pytest.raises(UserError, match=message) as error:
                method(*inputs)
            assert "\n" not in str(error.value)


# Gradient checkpointing


def gradients(network: DiscreteDiffusionTransformer) -> tuple[dict[str, Tensor], int]:
    """The gradient of each parameter, and how often attention ran for it."""
    calls = []
    hook = network.blocks[0].attention.register_forward_hook(lambda *call: calls.append(call[0]))
    torch.manual_seed(0)  # of the dropout
    x_t, sigma_bar = noised_batch()
    network.zero_grad()
    network(x_t, sigma_bar, x_t > 5).square().mean().backward()
    hook.remove()
    return {name: p.grad.clone() for name, p in network.named_parameters()}, len(calls)


def test_gradient_checkpointing_gives_the_same_gradients():
    network = small_network(dropout=0.2).train()
    assert network.gradient_checkpointing is False
    plain, once = gradients(network)
    network.gradient_checkpointing = True
    assert network.gradient_checkpointing and all(b.gradient_checkpointing for b in network.blocks)
    again, twice = gradients(network)
    assert (once, twice) == (1, 2)  # computed again in the backward pass
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    network.gradient_checkpointing = False
    assert gradients(network)[1] == 1


def test_gradient_checkpointing_without_gradients_and_in_a_copy():
    network, (x_t, sigma_bar) = small_network(), noised_batch()
    plain = network(x_t, sigma_bar)
    network.gradient_checkpointing = True
    with torch.inference_mode():
        assert torch.equal(network(x_t, sigma_bar), plain)
    copied = deepcopy(network)
    copied.gradient_checkpointing = False
    assert network.gradient_checkpointing is True
    assert torch.equal(copied(x_t, sigma_bar), plain)


# Files


def test_save_and_load(tmp_path: Path):
    x_t, sigma_bar = noised_batch()
    mask = x_t > 5
    for parametrization in ("denoiser", "score"):
        changes = {"parametrization": parametrization, "sigma_max": 5.0, "padded": True}
        network = small_network(**changes).float()
        described = replace(network.config, step=1234, ema=True)
        network.save_pretrained(tmp_path, config=described)
        assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
        saved = json.loads((tmp_path / "config.json").read_text())
        assert DiscreteDiffusionConfig(**saved) == described
        assert saved["step"] == 1234 and saved["ema"] is True
        torch.manual_seed(1)  # whatever was random at construction must be replaced
        loaded = DiscreteDiffusionTransformer.from_pretrained(tmp_path)
        assert loaded.config == described and not loaded.training
        assert isinstance(loaded.config.vocab, tuple)
        sigma = sigma_bar.float()
        assert torch.equal(loaded(x_t, sigma, mask), network(x_t, sigma, mask))


def test_missing_weights_are_an_error(tmp_path: Path):
    network = DiscreteDiffusionTransformer(small_config())
    network.save_pretrained(tmp_path, config=small_config(n_layer=5))  # a block that is not there
    with pytest.raises(RuntimeError, match="blocks.4"):
        DiscreteDiffusionTransformer.from_pretrained(tmp_path)
