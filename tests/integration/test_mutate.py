"""The mutation script, on a made-up package of one module."""

import ast
from pathlib import Path

import pytest

import mutate

ROOT = Path(__file__).parents[2]
RAIN = '''\
"""Rain: 1 + 1 < 3."""

__all__ = ["wet"]


def wet(hours: "1 + 1", most=8) -> "2 < 3":
    # κ, before the line that is changed: places are counted in bytes
    if hours < 0:
        raise ValueError(f"{hours - 1} hours" + "!")
    return min(hours + 1, most)
'''
TESTS = """\
from ddlm_core.rain import wet


def test_wet():
    assert wet(2) == 3
"""
SAME = "rain | most=8 | most=9 | the fragment is the reason\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts faster
    files = {
        "ddlm_core/__init__.py": "",
        "ddlm_core/rain.py": RAIN,
        "tests/test_rain.py": TESTS,
        "tools/mutants.txt": "# a comment\n" + SAME,
        "notebooks/test_rain.py": "raise RuntimeError  # is not copied\n",
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--nbval-lax --nbval-x=3 -q"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(project: Path, *arguments: str) -> int:
    return mutate.main(["rain", "--root", str(project), *arguments])


def changes(source: str) -> set[str]:
    return {mutant.after for mutant in mutate.all_mutants(source.encode())}


def test_killed_survivor_equivalent(project: Path, capsys):
    assert run(project, "--line", "6", "--jobs", "2", "--least", "0.5") == 1
    *lines, _, head, row = capsys.readouterr().out.splitlines()
    line = 'rain:6  def wet(hours: "1 + 1", most=8) -> "2 < 3":  ->  '
    assert lines == [
        line + 'def wet(hours: "1 + 1", most=16) -> "2 < 3":',
        line
        + 'def wet(hours: "1 + 1", most=9) -> "2 < 3":  # equivalent: the fragment is the reason',
    ]
    assert head.split() == ["module", "killed", "drawn", "equivalent", "score"]
    assert row.split() == ["rain", "0", "2", "1", "0.00"]

    # `hours + 1` became `hours - 1`, `hours + 2` (twice the same), or min() was left out
    assert run(project, "--line", "10", "--least", "0.6") == 0
    *lines, _, head, row = capsys.readouterr().out.splitlines()
    assert lines == ["rain:10  return min(hours + 1, most)  ->  return (hours + 1)"]
    assert row.split() == ["rain", "2", "3", "0", "0.67"]
    assert (project / "ddlm_core/rain.py").read_text(encoding="utf-8") == RAIN


def test_killed_is_not_equivalent(project: Path, capsys):
    entry = "rain | hours + 1 | hours - 1 | a lie\n"
    (project / "tools/mutants.txt").write_text(entry, encoding="utf-8")
    assert run(project, "--line", "10") == 1
    assert "# KILLED: a lie" in capsys.readouterr().out


def test_endless_mutant_is_killed(project: Path, capsys):
    loop = "def wet(hours):\n    while hours < 2:\n        hours += 1\n    return 3\n"
    (project / "ddlm_core/rain.py").write_text(loop, encoding="utf-8")
    (project / "tests/test_rain.py").write_text(TESTS.replace("wet(2)", "wet(1)"), encoding="utf-8")
    (project / "tools/mutants.txt").write_text("", encoding="utf-8")
    assert run(project, "--line", "3", "--timeout", "10") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("->  hours += 2")  # -= 1 never ends
    # and nothing else survives


def test_list_is_deterministic(project: Path, capsys):
    def listed(*arguments: str) -> list[str]:
        assert run(project, "--list", *arguments) == 0
        return capsys.readouterr().out.splitlines()

    assert listed("--count", "4") == listed("--count", "4") != listed("--count", "4", "--seed", "1")
    whole = listed("--count", "99")
    assert len(set(whole)) == len(whole) > 4 == len(listed("--count", "4"))
    assert set(listed("--count", "4")) < set(whole)


def test_tests_must_pass_and_see_the_module(project: Path):
    (project / "tests/test_rain.py").write_text("def test_wet():\n    pass\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="do not import"):
        run(project)
    (project / "tests/test_rain.py").write_text("def test_wet():\n    assert 0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="its tests fail as it is"):
        run(project)
    (project / "tests/test_rain.py").unlink()
    with pytest.raises(SystemExit, match="rain: no tests"):
        run(project)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a + b", "a - b"),
        ("x**2", "x*2, x**3, x**4"),
        ("a < b", "a <= b, a >= b"),
        ("(a)  is  not (b)", "a is b"),
        ("a in b and c", "a not in b and c, a in b or c"),
        ("x += y", "x -= y"),
        ("x = True", "x = False"),
        ("not x", "x"),
        ("x.clamp(min=y)", "pass"),
        ("z = x.clamp(min=y)", "z = x"),
        ("import m; y = m.exp(-x)", "import m; y = (-x), import m; y = m.exp(x)"),
        ("y = f(0).z", "y = f(1).z"),
        ("y = a if b else c", "y = a if not (b) else c"),
        ("y = (a + b).sum()", "y = (a - b).sum(), y = (a + b)"),
        ("__all__ = ['a']; raise E(1 + 1)", ""),
        ("def f(x: 1) -> 1: 'a' 'b'", ""),
        ("x: 1 = y; f'{1 + 1}'", ""),
    ],
)
def test_changes(before: str, after: str):
    shorter = {ast.dump(ast.parse(text)) for text in after.split(", ") if after}
    assert {ast.dump(ast.parse(text)) for text in changes(before)} == shorter


def test_entries_are_up_to_date():
    """Each line of mutants.txt is a mutant of the module that it names."""
    for line in (ROOT / "tools/mutants.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            module, old, new, reason = line.split(" | ")
            mutants = mutate.all_mutants((ROOT / f"ddlm_core/{module}.py").read_bytes())
            assert any(m.before.replace(old, new) == m.after for m in mutants), line
            assert reason
