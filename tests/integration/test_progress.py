"""What a training run shows and leaves."""

import json
import signal
from types import SimpleNamespace

import pytest

from ddlm_core.support.progress import Progress, read_log
from ddlm_core.training import Bound, TrainingConfig


def run(folder, step=0, main=True, **settings):
    """What Progress knows of a trainer."""
    engine = SimpleNamespace(is_main_process=main)
    config = TrainingConfig(checkpoint_dir=str(folder), **settings)
    return SimpleNamespace(config=config, folder=folder, step=step, total=6, accelerator=engine)


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path, capsys):
    trainer = run(tmp_path, log_every_steps=2)
    with Progress(trainer) as progress:
        for trainer.step in (1, 2, 3, 4):
            progress.note(0.5 * trainer.step, 100, Bound(9.0, 3.25) if trainer.step == 3 else None)
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a crash in the middle of a line
    lines = read_log(tmp_path / "train_log.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.0), (3, 1.5), (4, 2.0)]
    assert lines[1]["bits_per_character"] == 3.25 and lines[0]["characters_per_second"] > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err
    assert "loss 2.000, 3.250 bits/char, " in shown and "char/s" in shown

    again = run(tmp_path, step=3, progress=False)
    with Progress(again) as progress:
        again.step = 4
        progress.note(7.0, 100, Bound(8.0, 3.0))
    text = (tmp_path / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in text] == [2, 3, 4]
    assert json.loads(text[-1])["loss"] == 7.0
    assert json.loads(text[-1])["seconds"] >= json.loads(text[-2])["seconds"]
    assert capsys.readouterr().err == ""


def test_signals_wait_for_the_end_of_the_step_but_not_forever(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Progress(run(tmp_path, main=False)) as progress:
        assert not progress.stop
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert progress.stop
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []  # not the first process: it writes nothing
