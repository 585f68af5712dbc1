"""The rules of the house, each broken once: layers, types, pins, tracked files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import pins
import tracked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package."""
    folder = tmp_path_factory.mktemp("house")
    unwanted = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "ddlm_core", folder / "ddlm_core", ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint_imports(house: Path) -> tuple[int, str]:
    code = "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports; "
    code += "sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=house, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_arrows_point_down(house):
    code, said = lint_imports(house)
    assert code == 0 and "Contracts: 1 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("low", "high"),
    [("support.files", "apps.train"), ("support.files", "noise"), ("noise", "pipeline")],
)
def test_an_arrow_that_points_up_is_found(house, low, high):
    path = house / "ddlm_core" / (low.replace(".", "/") + ".py")
    text = path.read_text()
    path.write_text(f"{text}\n\ndef lazy():\n    import ddlm_core.{high}\n")
    try:
        code, said = lint_imports(house)
    finally:
        path.write_text(text)
    assert code == 1 and f"ddlm_core.{low} -> ddlm_core.{high}" in said


def test_a_module_without_a_layer_is_found(house):
    (house / "ddlm_core/extra.py").write_text("")
    try:
        code, said = lint_imports(house)
    finally:
        (house / "ddlm_core/extra.py").unlink()
    assert code == 1 and "extra" in said


def test_a_wrong_type_is_found(house):
    path = house / "ddlm_core/support/wrong.py"
    path.write_text("def half(n: int) -> int:\n    return n / 2\n")
    settings = [
        "--config-file=pyproject.toml",
        "--follow-imports=skip",
        f"--cache-dir={house / '.mypy_cache'}",
    ]
    command = [sys.executable, "-m", "mypy", *settings, str(path)]
    done = subprocess.run(command, cwd=house, capture_output=True, text=True)
    path.unlink()
    assert done.returncode == 1 and 'got "float", expected "int"' in done.stdout


@pytest.fixture
def requirements(tmp_path) -> Path:
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "other", "complaint"),
    [
        (r"numpy==.*", "", "has no pin for numpy"),
        (r"numpy==.*", "numpy==1.0", "has numpy==1.0, which is not numpy>="),
        (r"hydra-core==(.*)", r"hydra_core==\1", ""),  # a name may be written in several ways
    ],
)
def test_pins_fit_what_the_project_asks_for(requirements, capsys, line, other, complaint):
    arguments, path = [f"--root={requirements}", "--check"], requirements / "requirements.txt"
    assert pins.main(arguments) == 0
    text, changes = re.subn(f"(?m)^{line}$", other, path.read_text())
    path.write_text(text)
    assert changes == 1 and pins.main(arguments) == bool(complaint)
    assert complaint in capsys.readouterr().err


def test_lowest_versions_keep_torch(requirements, capsys):
    assert pins.main([f"--root={requirements}", "--lowest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("torch==2.13.0") == 1 and not [x for x in lines if "==" not in x]
    assert len(lines) == len(pins.wanted(ROOT))


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_tracked_file_that_is_ignored_is_found(tmp_path, capsys):
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert tracked.main([f"--root={tmp_path}"]) == 0  # no repository
    git("init")
    (tmp_path / "made.bin").touch()
    git("add", ".")
    assert tracked.main([f"--root={tmp_path}"]) == 0
    (tmp_path / ".gitignore").write_text("*.bin\n")
    assert tracked.main([f"--root={tmp_path}"]) == 1
    assert "made.bin is tracked and ignored" in capsys.readouterr().err


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))


def commands(jobs: dict) -> str:
    return "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])


def test_ci_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = ["ddlm-generate --visualize", "pytest --all"]
    bash = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert [line.split(" && ")[-1] for line in bash] == wanted
    shell = [line for line in readme.splitlines() if line.startswith("py -m venv")]
    assert [line.rsplit("\\", 1)[-1] for line in shell] == wanted
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "pytest --all"
    assert ".ci/run" in commands(workflow("ci")["jobs"])


def test_ci_has_every_system_and_the_first_and_newest_python():
    matrix = workflow("ci")["jobs"]["quick"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.13"]
    weekly = commands(workflow("weekly")["jobs"])
    assert "cache" not in weekly and "-r requirements.txt" not in weekly
    for name in ("ci", "weekly", "book"):
        for job in workflow(name)["jobs"].values():
            assert job["timeout-minutes"]
            for step in job["steps"]:
                assert ("run" in step) != ("uses" in step)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = pins.read_project(ROOT)
    assert citation["version"] == project["version"]
    assert citation["repository-code"] == project["urls"]["Repository"]
    assert citation["license"] == project["license"]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in project["authors"]]
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ([], "quick"),
        (["--all"], "quick slow cell"),
        (["tests"], "quick slow"),
        (["tests/test_a.py"], "quick slow"),
        (["tests", "-k", "slow"], "slow"),
        (["notebooks"], "cell"),
    ],
)
def test_pytest_runs_what_is_quick_or_named(tmp_path, arguments, run):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\ntestpaths = tests\nmarkers = slow\naddopts = --nbval-lax\n"
    )
    (tmp_path / "tests").mkdir()
    slow = "import pytest\n\n@pytest.mark.slow\ndef test_slow(): pass\n"
    (tmp_path / "tests/test_a.py").write_text(f"{slow}\ndef test_quick(): pass\n")
    (tmp_path / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell("1 + 1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks/a.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    names = {"quick": "test_quick", "slow": "test_slow", "cell": "Cell 0"}
    assert sorted(found) == sorted(f for f in found for r in run.split() if f.endswith(names[r]))
    assert len(found) == len(run.split())
