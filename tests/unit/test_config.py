"""The configuration of a network: what it knows, stores and refuses."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from ddlm_core.absorbing import ABSORBING
from ddlm_core.config import GRAPHS, DiscreteDiffusionConfig
from ddlm_core.loss import UNIFORM
from ddlm_core.noise import GeometricNoise
from ddlm_core.testing import small_config


def test_config_knows_its_alphabet_and_its_noise():
    config = small_config(sigma_max=5.0, vocab=["<UNK>", "<PAD>", "x"])
    assert config.vocab == ("<UNK>", "<PAD>", "x") and config.vocab_size == 3
    assert config.tokenizer.encode("xyx").tolist() == [2, 0, 2]
    assert config.noise == GeometricNoise(1e-4, 5.0)
    assert DiscreteDiffusionConfig().vocab_size == 106


def test_defaults():
    """A checkpoint of another default would not load, or would act differently."""
    config = DiscreteDiffusionConfig()
    sizes = (config.block_size, config.n_layer, config.n_head, config.n_embd, config.cond_dim)
    assert sizes == (256, 6, 4, 128, 64) and config.conv_size == 3
    assert (config.sigma_min, config.sigma_max, config.dropout) == (1e-4, 20.0, 0.0)
    assert (config.step, config.bias, config.padded, config.ema) == (0, False, False, False)
    assert (config.graph, config.parametrization) == ("uniform", "denoiser")


def test_graphs_go_by_their_names():
    assert GRAPHS == {"uniform": UNIFORM, "absorbing": ABSORBING}


@pytest.mark.parametrize("name", ["block_size", "n_layer", "n_head"])
def test_least_sizes_are_allowed(name):
    assert getattr(small_config(**{name: 1}), name) == 1
    assert small_config(conv_size=0, cond_dim=2).cond_dim == 2


def test_config_is_frozen_and_its_parts_are_never_stale():
    config = small_config()
    with pytest.raises(FrozenInstanceError):
        config.graph = "absorbing"
    assert config.process is UNIFORM and config.noise is config.noise
    other = replace(config, graph="absorbing", sigma_max=5.0)
    assert other.process is ABSORBING and other.vocab_size == config.vocab_size + 1
    assert replace(config, sigma_max=5.0).noise == GeometricNoise(1e-4, 5.0)
    assert hash(config) == hash(small_config()) and config != other


def test_config_stores_plain_whole_numbers():
    config = small_config(n_layer=np.int64(3), step=np.int32(7), sigma_max=5)
    assert config == small_config(n_layer=3, step=7, sigma_max=5.0)
    assert type(config.n_layer) is int and type(config.step) is int
    json.dumps([config.n_layer, config.step])


BAD_CONFIGS = {
    "block_size must be a whole number, at least 1": {"block_size": 0},
    "n_layer must be a whole number, at least 1, got 2.0": {"n_layer": 2.0},
    "n_layer must be a whole number, at least 1, got True": {"n_layer": True},
    "n_layer must be a whole number, at least 1, got 0": {"n_layer": 0},
    "n_head must be a whole number, at least 1": {"n_head": 0},
    "n_embd must be a whole number, at least 1": {"n_embd": 0},
    "cond_dim must be a whole number, at least 1": {"cond_dim": 0},
    "step must be a whole number, at least 0": {"step": -1},
    "n_embd must be a multiple of 2 n_head = 4, got 18": {"n_embd": 18},
    "conv_size must be a whole number, at least 0, got -1": {"conv_size": -1},
    "cond_dim must be even, got 7": {"cond_dim": 7},
    "dropout must be a number, at least 0 and below 1, got 1.0": {"dropout": 1.0},
    "dropout must be a number, .* got -0.1": {"dropout": -0.1},
    "dropout must be a number, .* got '0.1'": {"dropout": "0.1"},
    "bias must be true or false, got 1": {"bias": 1},
    "parametrization must be denoiser or score, got 'x'": {"parametrization": "x"},
    "graph must be uniform or absorbing, got 'ring'": {"graph": "ring"},
    r"graph must be a text, got \['uniform'\]": {"graph": ["uniform"]},
    "absorbing graph needs the parametrization": {"graph": "absorbing", "parametrization": "score"},
    "noise limits must satisfy": {"sigma_min": 30.0},
    "sigma_max must be a number, got nan": {"sigma_max": math.nan},
    "a vocabulary starts with": {"vocab": "abc"},
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_config_refuses_what_cannot_be_built(message):
    with pytest.raises(ValueError, match=message) as error:
        small_config(**BAD_CONFIGS[message])
    assert "\n" not in str(error.value)
