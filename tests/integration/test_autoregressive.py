"""The left-to-right opponent of `benchmarks/autoregressive.py`: its cache, and runs that are cut off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddlm_core.evaluation import mean_of
from ddlm_core.settings import TrainingConfig
from ddlm_core.testing import same_bits, small_network

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("sizes", [{}, {"conv_size": 0}, {"conv_size": 5}, {"n_layer": 7}])
def test_cache_writes_the_same_texts(sizes):
    from left_to_right import write

    network = small_network(**sizes)
    texts = write(network, 30, 12)
    assert len(texts.unique(dim=0)) > 20
    assert torch.equal(texts, write(network, 30, 12, cache=False))
    assert torch.equal(texts[10:15], write(network, 5, 12, first=10))
    assert not torch.equal(texts, write(network, 30, 12, seed=1))


def test_cache_says_what_the_whole_text_says():
    from left_to_right import exact_nats, next_logits, read_one

    network, past, logits = small_network(), [], []
    tokens = torch.randint(8, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cond = network.noise_embedding(torch.ones(3))
        for place in range(12):
            one, past = read_one(network, tokens[:, :place], cond, past)
            logits.append(one)
        whole = next_logits(network, tokens)
    torch.testing.assert_close(torch.stack(logits, 1), whole)
    log_p = whole.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(exact_nats(network, tokens).float(), -log_p)


def test_short_windows_are_a_language():
    from left_to_right import exact_nats

    network = small_network()
    every = torch.cartesian_prod(*[torch.arange(8)] * 3)
    assert exact_nats(network, every).neg().exp().sum().item() == pytest.approx(1)


def test_points_are_even_in_the_logarithm():
    from by_the_clock import points_of

    assert points_of(10_000, 5) == [100, 316, 1000, 3162, 10_000]
    assert points_of(3, 12) == [1, 2, 3] and points_of(7, 1) == [7]


def test_numbers_are_in_a_line(tmp_path):
    from by_the_clock import write_json

    content = {"curve": [[1.5, 2, 3], [4, 5, 6]], "rows": [{"a b": ["c  d", "[ 1 ]"]}], "none": []}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == content and "[1.5, 2, 3],\n" in text


def run(folder: Path, causal: bool, cut: int = 0) -> tuple[dict, dict]:
    """Train 12 steps; stop dead when the ``cut``-th time something was told."""
    from by_the_clock import make_trainer, train_by_clock
    from left_to_right import exact_nats

    config = TrainingConfig(
        dataset_name="pocket-stories",
        train_samples=40,
        val_samples=4,
        context_length=160,
        batch_size=4,
        max_steps=12,
        num_epochs=99,
        checkpoint_dir=str(folder),
        model={"n_layer": 3, "n_head": 2, "n_embd": 16, "cond_dim": 8},
    )
    trainer, told = make_trainer(config, causal), []
    windows = next(iter(trainer.val_loader)).long()

    def tell(clock: dict) -> None:
        told.append(clock)
        if len(told) == cut:
            raise ConnectionAbortedError

    clock = train_by_clock(
        trainer, [3, 6], lambda model, _: mean_of(exact_nats(model, windows)), tell
    )
    return clock, trainer.state.state_dict()


@pytest.mark.parametrize("causal", [True, False])
def test_run_that_is_cut_off_goes_on(tmp_path, causal):
    whole, weights = run(tmp_path / "whole", causal)
    for cut in (2, 2):  # after the first point, after the second
        with pytest.raises(ConnectionAbortedError):
            run(tmp_path / "cut", causal, cut)
    clock, state = run(tmp_path / "cut", causal)
    assert [step for _, step, _ in clock["curve"]] == [3, 6, 12]
    assert [p[1:] for p in clock["curve"]] == [p[1:] for p in whole["curve"]]
    assert same_bits(state, weights) and clock["seconds"] > 0
    again, _ = run(tmp_path / "cut", causal)  # there is nothing left to do
    assert again == clock
    for part in ("best_model_hf", "final_model_hf"):
        assert (tmp_path / "cut" / part / "model.safetensors").exists()


def test_folder_of_another_run_is_refused(tmp_path):
    from by_the_clock import planned

    plan = planned(tmp_path, {"seconds": 10.0}, lambda: 0.5)
    assert plan["steps"] == 20
    assert planned(tmp_path, {"seconds": 10.0}, lambda: 0.1) == plan
    with pytest.raises(SystemExit, match="another run"):
        planned(tmp_path, {"seconds": 11.0}, lambda: 0.5)


@pytest.mark.slow
def test_quick_run_keeps_what_the_file_holds(tmp_path):
    output = tmp_path / "a.json"
    output.write_text('{"entropy": 1.5, "runs": [{"data": "b", "kind": "c"}]}')
    command = [sys.executable, str(BENCHMARKS / "autoregressive.py"), "--quick", "--output", output]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = json.loads(output.read_text())
    assert found["entropy"] == 1.5 and found["runs"][0] == {"data": "b", "kind": "c"}
    kinds = {row["kind"]: row for row in found["runs"][1:]}
    assert kinds.keys() == {"diffusion", "left-to-right"}
    assert kinds["diffusion"]["seconds_by_estimate"]
    assert kinds["left-to-right"]["without_cache"]["same_texts"] == 1
    for row in kinds.values():
        assert row["curve"] and row["seconds_a_text"] > 0 and row["flawless"] <= row["samples"]
