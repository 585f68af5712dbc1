"""What a training run shows and leaves, and how it hears signals."""

import json
import signal
import threading

import pytest

from ddlm_core.bound import Bound
from ddlm_core.support import progress
from ddlm_core.support.progress import Report, StepResult, StopSignals, read_log


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "has_bar", lambda: True)
    with Report(tmp_path, step=0, total=6, every=2, show=True) as report:
        for step in (1, 2, 3, 4):
            bound = Bound(9.0, 3.25) if step == 3 else None
            report(StepResult(step, 0.5 * step, 100, bound))
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a crash in the middle of a line
    lines = read_log(tmp_path / "train_log.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.0), (3, 1.5), (4, 2.0)]
    assert lines[1]["bits_per_character"] == 3.25 and lines[0]["characters_per_second"] > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err
    assert "loss 2.000, 3.250 bits/char, " in shown and "char/s" in shown

    with Report(tmp_path, step=3, total=6, every=10, show=False) as report:
        report(StepResult(4, 7.0, 100, Bound(8.0, 3.0)))
        report(StepResult(5, 6.0, 100))  # not due
        report(StepResult(6, 5.0, 100))  # the last step always is
    text = (tmp_path / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in text] == [2, 3, 4, 6]
    assert json.loads(text[2])["loss"] == 7.0
    assert json.loads(text[2])["seconds"] >= json.loads(text[1])["seconds"]
    assert capsys.readouterr().err == ""


def test_a_board_gets_numbers_and_is_closed(tmp_path, monkeypatch):
    class Board:
        def __init__(self):
            self.seen, self.closed = [], False

        def add_scalar(self, name, value, step):
            self.seen.append((name, value, step))

        def close(self):
            self.closed = True

    board = Board()
    monkeypatch.setattr(progress, "tensorboard", lambda folder, step: board)
    with Report(tmp_path, step=0, total=6, every=1, show=False) as report:
        report(StepResult(1, 2.5, 100, Bound(9.0, 3.25)))
    assert {("loss", 2.5, 1), ("bits_per_character", 3.25, 1)} <= {*board.seen} and board.closed
    assert not {"step", "seconds"} & {name for name, _, _ in board.seen}
    board.closed = False
    monkeypatch.setattr("tqdm.auto.tqdm", lambda **_: 1 / 0)  # what comes after it fails
    with pytest.raises(ZeroDivisionError):
        Report(tmp_path, step=0, total=6, every=1, show=False).__enter__()
    assert board.closed


def test_a_run_without_lines_draws_nothing(tmp_path):
    with Report(tmp_path, step=0, total=6, every=1, show=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["train_log.jsonl"]


def test_signals_wait_for_the_end_of_the_step_but_not_forever():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        assert not signals
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert signals
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopSignals() as signals:
            seen.append((signal.getsignal(signal.SIGINT), bool(signals)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
