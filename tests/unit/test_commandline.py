"""What a command does about errors: those of the user in one line, bugs with their traceback."""

import os
import subprocess
import sys

import pytest

from ddlm_core.apps.commandline import environment, one_line_errors
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.errors import UserError, error_context


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("it is\n  too long"), "ddlm-test: it is too long\n"),
        (FileNotFoundError(2, "No such file", "x.txt"), "[Errno 2] No such file: 'x.txt'\n"),
        (ConnectionError(), "ddlm-test: ConnectionError\n"),
    ],
)
def test_errors_of_the_user_are_one_line(error, line, capsys, monkeypatch):
    for debug in ("", "0", "1"):
        monkeypatch.setenv("DDLM_DEBUG", debug)
        with pytest.raises(SystemExit) as end, one_line_errors("ddlm-test"):
            raise error
        assert end.value.code == 2 and end.value.__cause__ is error
        told = capsys.readouterr().err
        assert told.endswith(line) and ("Traceback" in told) == (debug == "1")
        assert debug == "1" or told.count("\n") == 1


@pytest.mark.parametrize("bug", [ValueError("not enough values"), TypeError(), KeyError("x")])
def test_bugs_pass(bug, capsys):
    with pytest.raises(type(bug)) as caught, one_line_errors("ddlm-test"):
        raise bug
    assert caught.value is bug and capsys.readouterr().err == ""


BUG = """
import sys
from ddlm_core.apps import {module}
def bug(*arguments):
    first, second = [1]
{module}.{function} = bug
sys.argv = ["command", *{arguments}]
{module}.main()
"""


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        ("generate", "write_texts", []),
        ("ui", "serve", []),
        ("train", "train", ["--config-name", "smoke"]),
    ],
)
def test_a_bug_inside_a_command_shows_its_traceback(module, function, arguments, tmp_path):
    program = BUG.format(module=module, function=function, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: not enough values to unpack (expected 2, got 1)" in done.stderr
    assert "in bug" in done.stderr  # the line where it happened


def test_context_is_added_to_what_is_expected_and_nothing_else():
    for error in (UserError("too long"), OSError("too\nlong"), KeyError("too long")):
        told = pytest.raises(UserError, match=r"^no ([\"'(]*)too long([\"')]*): hint$")
        with told as caught, error_context("no", "hint", KeyError):
            raise error
        assert caught.value.__cause__ is error
    with pytest.raises(UserError, match=r"^no \(OSError\): hint$"), error_context("no", "hint"):
        raise OSError
    for bug in (ValueError("x"), TypeError("x"), RuntimeError("x")):
        with pytest.raises(type(bug)) as caught, error_context("no", "hint", KeyError):
            raise bug
        assert caught.value is bug


def test_one_rule_for_numbers():
    import numpy as np

    check_range(1, 3, a=1, b=3, c=np.int64(2))
    check_range(0.0, 1.0, a=0, b=1, c=np.float32(0.5))
    for least, most, value, words in (
        (1, 3, 0, "a whole number from 1 to 3, got 0"),
        (1, 3, 4, "a whole number from 1 to 3, got 4"),
        (1, 3, True, "a whole number from 1 to 3, got True"),
        (1, 3, 2.0, r"a whole number from 1 to 3, got 2\.0"),
        (1, 3, "2", "a whole number from 1 to 3, got '2'"),
        (0.0, 1.0, False, r"a number from 0\.0 to 1\.0, got False"),
        (0.0, 1.0, float("nan"), r"a number from 0\.0 to 1\.0, got nan"),
        (0.0, 1.0, None, r"a number from 0\.0 to 1\.0, got None"),
    ):
        with pytest.raises(UserError, match=f"^name must be {words}$"):
            check_range(least, most, fine=least, name=value)


def test_choices():
    check_choice(["a", "b"], name="b")
    for wrong in ("c", None, ["a"], 1):
        with pytest.raises(UserError, match=r"^name must be one of a, b, got "):
            check_choice(["a", "b"], name=wrong)


def test_variables_hold_inside_only(monkeypatch):
    monkeypatch.setenv("DDLM_A", "1")
    with pytest.raises(KeyError), environment(DDLM_A="2", DDLM_B="3"):  # also after an error
        assert (os.environ["DDLM_A"], os.environ["DDLM_B"]) == ("2", "3")
        raise KeyError
    assert os.environ["DDLM_A"] == "1" and "DDLM_B" not in os.environ
