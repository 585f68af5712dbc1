"""``ddlm-generate``: what it prints, what it refuses, how it ends."""

import io
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddlm_core.apps import generate
from ddlm_core.block_pipeline import WRITING, default_steps
from ddlm_core.blocks import make_config
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampling_options import SamplingOptions, default_churn
from ddlm_core.support.errors import UserError
from ddlm_core.support.text import END

COMMAND = [sys.executable, "-m", "ddlm_core.apps.generate", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny network of random weights."""
    config = DiscreteDiffusionConfig(block_size=40, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    network, generator = DiscreteDiffusionTransformer(config), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network.save_pretrained(folder, config=asdict(config))
    return folder


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = ["--model", str(model), "--device", "cpu", "--num-steps", "3"]
        try:
            code = generate.main([*defaults, *arguments]) or 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def texts(*arguments: str, run: Callable) -> list[str]:
    """The texts of a good call, ended by NUL: the tiny network writes line breaks too."""
    code, out, err = run("--null", *arguments)
    assert (code, err) == (0, "") and out.endswith("\0")
    return out[:-1].split("\0")


def test_prints_texts_and_nothing_else(run):
    five = texts("--num-samples", "5", "--seed", "4", run=run)
    letters = [END.sub("", text) for text in five]
    assert len(set(five)) == 5 and all(0 < len(text) <= 40 for text in letters)
    assert texts("--num-samples", "2", "--seed", "4", run=run) == five[:2]
    assert texts("--visualize", "--seed", "4", run=run) == five[:1]  # no terminal: the text alone
    assert run("--seed", "4") == (0, five[0] + "\n", "")
    assert texts("--seed", "5", run=run) != five[:1]


def test_every_option_changes_the_text(run):
    changes = ("--seq-len 39", "--num-steps 4", "--schedule linear", "--temperature 0.2")
    found = {tuple(texts("--seed", "0", *change.split(), run=run)) for change in ("", *changes)}
    assert len(found) == 5


def test_help_tells_the_defaults_of_the_pipeline():
    """They stand in the help as words, so that --help need not import PyTorch."""
    told = " ".join(generate.parser().format_help().split())
    for option, words in (
        ("num_steps", "denoising steps (default: {})"),
        ("schedule", "cosine or fraction (default: {})"),
        ("temperature", "below 1: fewer mistakes (default: {:g})"),
    ):
        assert words.format(getattr(SamplingOptions(), option)) in told
    assert f"those of each block (default: {default_steps(make_config(block_length=8))})" in told
    assert f"what it accepts at once (default: {WRITING['entropy_bound']:g})" in told
    assert f"from the top (default: {WRITING['top_p']:g}, all)" in told
    assert f"left at the end (default: {WRITING['annealing']:g}, all)" in told
    assert f"{WRITING['sampler']} (default) or" in told
    assert default_churn(DiscreteDiffusionConfig()) == 1
    assert "fresh (default: 1, for most models)" in told


def test_tells_the_seed_that_it_drew(run):
    code, out, err = run()
    assert code == 0 and re.fullmatch(r"seed \d+\n", err)
    assert run("--seed", err.split()[1]) == (0, out, "")
    assert run()[1] != out


def test_keeps_the_template(run):
    for arguments, pattern in (
        (["--template", r"Max_{3} \_ “__”"], r"Max.{0,3} _ “.{0,2}”"),
        (["--template", "One\nday", "--seq-len", "20"], "One\nday.{0,13}"),
    ):
        for text in texts("--num-samples", "3", *arguments, "--seed", "0", run=run):
            assert re.fullmatch(pattern, text, re.DOTALL)


BAD = {
    "--num-samples 0": "num_samples must be a whole number from 1 to",
    "--num-samples -3": "num_samples must be",
    "--num-samples many": "argument --num-samples: invalid int value: 'many'",
    "--num-samples": "argument --num-samples: expected one argument",
    "--num-steps 0": "num_steps must be a whole number from 1 to",
    "--num-steps 1000000000000": "num_steps must be",
    "--num-steps 2.5": "argument --num-steps: invalid int value: '2.5'",
    "--seq-len 0": "seq_len must be a whole number from 1 to 40, got 0",
    "--seq-len 41": "seq_len must be a whole number from 1 to 40, got 41",
    "--seed -1": "seed must be a whole number from 0 to",
    "--seed 99999999999999999999": "seed must be",
    "--temperature 0": "temperature must be a number from 0.001 to 1000, got 0.0",
    "--temperature nan": "temperature must be",
    "--temperature -1": "temperature must be",
    "--temperature warm": "argument --temperature: invalid float value: 'warm'",
    "--schedule slow": "schedule must be one of linear, cosine, fraction, got 'slow'",
    "--template ''": "the template has 0 characters, there is room for 1 to 40",
    "--template _{41}": "the template has 41 characters, there is room for 1 to 40",
    "--template _{3}. --seq-len 3": "the template has 4 characters, there is room for 1 to 3",
    "--template done": "the template has no blank: write _ for each character",
    "--template smile_😀é": "the model does not know 'é', '😀' of the template",
    "--template _\udc80": r"the model does not know '\udc80' of the template",
    "--device gpu": "device 'gpu' cannot be used here (Expected one of cpu, cuda",
    "--device cuda:99": "device 'cuda:99' cannot be used here",
    "--device meta": "device 'meta' cannot be used here",
    "--model nothing": "no model 'nothing' (no such folder): name a folder, a Hub id",
    "--model {tmp}/nothing": "no such folder",
    "--model {tmp}": "config.json ([Errno 2] No such file or directory",
    "--model {tmp}/file": "no such folder",
    "--model {tmp}/list": "config.json (",
    "--model {tmp}/broken": "config.json (Unterminated string",
    "--model {tmp}/cut": "model.safetensors (Error while deserializing header",
    "--model {tmp}/pickle": "model.safetensors (Error while deserializing header",
    "--model {tmp}/other": "model.safetensors (Error(s) in loading state_dict",
    "--what": "unrecognized arguments: --what (try ddlm-generate --help)",
    "story": "unrecognized arguments: story",
}


@pytest.fixture(scope="module")
def broken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that are almost models."""
    root = tmp_path_factory.mktemp("broken")
    (root / "file").write_text("no folder")
    config, weights = [(model / n).read_bytes() for n in ("config.json", "model.safetensors")]
    for name, files in {
        "list": (b"[1]", weights),
        "broken": (config[:50], weights),
        "cut": (config, weights[:-100]),
        "pickle": (config, pickle.dumps({"head.bias": [0.0] * 106})),
        "other": (config.replace(b'"n_embd": 8', b'"n_embd": 16'), weights),
    }.items():
        (root / name).mkdir()
        (root / name / "config.json").write_bytes(files[0])
        (root / name / "model.safetensors").write_bytes(files[1])
    return root


@pytest.mark.parametrize("line", BAD)
def test_bad_input_gets_one_line(line: str, run, broken: Path):
    code, out, err = run(*shlex.split(line.replace("{tmp}", str(broken))))
    assert (code, out) == (2, "")
    assert err.startswith("ddlm-generate: ") and err.count("\n") == 1 and err.endswith("\n")
    assert BAD[line] in err


def test_help_has_an_example_of_each_option(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "") and generate.EXAMPLES in out
    lines = re.findall(r"^  (ddlm-generate.*?)(?:  .*)?$", generate.EXAMPLES, re.MULTILINE)
    used = set()
    for line in lines:
        arguments = shlex.split(re.split(" [>|] ", line)[0])[1:]
        generate.parser().parse_args(arguments)
        used |= {argument for argument in arguments if argument.startswith("--")}
    options = {option for action in generate.parser()._actions for option in action.option_strings}
    assert used == options - {"-h", "--help"}


def test_models_side_by_side(model, capsys, tmp_path):
    """Each text under the name of its model; as a page, too."""
    how = ["--num-steps", "2", "--seed", "1", "--compare", str(model), str(model)]
    generate.main(how)
    out, err = capsys.readouterr()
    assert out.count("step 2 of 2") == 2 and err.count("is writing") == 2
    generate.main([*how, "--output", str(tmp_path / "both.html")])
    assert "step 0 of 2" in (tmp_path / "both.html").read_text(encoding="utf-8")
    for wrong in (["--model", str(model)], ["--output", "x.txt"]):
        with pytest.raises(SystemExit) as stop:
            generate.main([*how, *wrong])
        assert stop.value.code == 2
    assert capsys.readouterr().err.count("ddlm-generate:") == 2


def test_a_blank_of_unknown_length(run):
    code, out, err = run("--template", "ab_{1-2}cd", "--num-steps", "2", "--seed", "1")
    assert code == 0 and "comparing 2 lengths" in err
    assert re.fullmatch(r"ab.{1,2}cd\n", out, re.DOTALL)
    assert run("--template", "ab_{2-1}cd")[0] == 2


def test_writes_texts_to_a_file(run, tmp_path):
    three = texts("--num-samples", "3", "--seed", "4", run=run)
    arguments = ["--num-samples", "3", "--seed", "4", "--visualize", "--output"]
    for name in ("stories.txt", "stories.jsonl"):
        path = tmp_path / name
        path.write_text("old")
        assert run(*arguments, str(path)) == (0, "", f"wrote {path}\n")
    assert (tmp_path / "stories.txt").read_text(encoding="utf-8") == "".join(
        f"{t}\n" for t in three
    )
    lines = (tmp_path / "stories.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    assert [(r["text"], r["number"], r["seed"]) for r in records] == [
        (text, number, 4) for number, text in enumerate(three)
    ]
    assert all(r["num_steps"] == 3 and r["schedule"] == "cosine" for r in records)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "stories.jsonl", tmp_path / "stories.txt"]


def test_writes_an_animation_to_a_file(run, tmp_path):
    for name in ("story.html", "story.gif"):
        assert run("--seed", "4", "--output", str(tmp_path / name))[:2] == (0, "")
    assert (tmp_path / "story.html").read_text(encoding="utf-8").count('class="ddlm-player"') == 1
    with Image.open(tmp_path / "story.gif") as picture:
        assert picture.n_frames == 4  # the start, and three steps


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--output story.pdf", "--output must end in one of .txt, .jsonl, .html, .gif, got"),
        ("--output story.gif --num-samples 2", "a .gif file shows one text: write .txt or .jsonl"),
        ("--output nowhere/story.txt", "(no such file or directory): make its folder first"),
        ("--output old.txt/story.txt", "(not a directory): make its folder first"),
        ("--output folder.txt", "it is a folder; give the name of a file"),
        ("--output old.txt --num-steps 0", "num_steps must be"),
        ("--output old.txt --model nothing", "no model 'nothing'"),
    ],
)
def test_a_bad_call_overwrites_nothing(arguments, reason, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "old.txt").write_text("old")
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "") and reason in err and err.count("\n") == 1
    assert (tmp_path / "old.txt").read_text() == "old"
    assert len([*tmp_path.rglob("*")]) == 2


def test_an_interrupt_leaves_the_old_file(run, tmp_path, monkeypatch):
    def interrupt(path: Path, *_):
        path.write_text("half of the n")
        raise KeyboardInterrupt

    (tmp_path / "old.txt").write_text("old")
    monkeypatch.setattr(generate, "save", interrupt)
    assert run("--seed", "1", "--output", str(tmp_path / "old.txt")) == (130, "", "")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_terminal_without_the_character_shows_a_question_mark(run, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    assert run("--template", "“_”", "--seed", "0")[0] == 0
    assert re.fullmatch(rb"\?.?\?\n", screen.buffer.getvalue(), re.DOTALL)


def test_interrupt_ends_with_130(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "write_texts", interrupt)
    assert run() == (130, "", "")


def test_an_error_of_many_lines_is_told_in_one(run, monkeypatch):
    def fail(*_):
        raise UserError("too\n  bad")

    monkeypatch.setattr(generate, "write_texts", fail)
    assert run() == (2, "", "ddlm-generate: too bad\n")


def test_in_a_process_of_its_own(model: Path, run):
    arguments = ["--model", str(model), "--num-steps", "3", "--num-samples", "2", "--seed", "4"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == run(*arguments)[1]


def test_a_closed_pipe_is_no_error(model: Path):
    arguments = ["--model", str(model), "--num-steps", "1", "--num-samples", "9999", "--seed", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *arguments], **pipes) as process:
        assert process.stdout.read(100)
        process.stdout.close()
        assert process.wait(timeout=60) == 0 and process.stderr.read() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_gives_the_terminal_back(model: Path):
    screen, terminal = os.openpty()
    arguments = ["--model", str(model), "--num-steps", "9999", "--seed", "0", "--visualize"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with subprocess.Popen([*COMMAND, *arguments], env=environment, **streams) as process:
        os.close(terminal)
        seen = b""
        while b"step 2 " not in seen:
            seen += os.read(screen, 1 << 16)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(screen, 1 << 16):
                seen += chunk
        except OSError:  # the other end is closed
            pass
        assert process.wait(timeout=60) == 130
    os.close(screen)
    assert b"Traceback" not in seen
    assert seen.startswith(b"\x1b[?25l") and seen.endswith(b"\x1b[0m\x1b[?25h")  # cursor off and on


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\nb\t_", "a\nb\t_"),
        (r"a\\nb\\t_", r"a\nb\t_"),
        (r"\_ \x \\ _\n", "\\_ \\x \\\\ _\n"),
        ("a\nb_", "a\nb_"),
    ],
)
def test_a_typed_line_break_is_one(typed, meant):
    assert generate.typed(typed) == meant


def test_stops_at_the_end(run):
    for template, text in ((r"Hi.<|endoftext|>\nMax_", "Hi."), (r"A\nb<|endoftext|>_", "A\nb")):
        asked = ["--template", template, "--seed", "0"]
        assert f"{text}\n<|endoftext|>\n" in run(*asked)[1]
        assert run(*asked, "--stop-at-end") == (0, text + "\n", "")


def test_a_terminal_gets_no_codes_from_a_model(model, tmp_path, capsys, monkeypatch):
    config = DiscreteDiffusionConfig(
        block_size=9, n_layer=1, n_head=1, n_embd=8, cond_dim=4, vocab=("<UNK>", "<PAD>", "\x1b")
    )
    DiscreteDiffusionTransformer(config).save_pretrained(tmp_path, config=asdict(config))
    asked = ["--model", str(tmp_path), "--device", "cpu", "--num-steps", "2", "--seed", "1"]
    generate.main(asked)
    assert "\x1b" in capsys.readouterr().out  # a file or a program gets the text as it is
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    generate.main(asked)
    assert "\x1b" not in capsys.readouterr().out
