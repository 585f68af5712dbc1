"""The exporter and the pair check, on a made-up book of two chapters."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jupytext
import nbformat
import pytest

import export as exporter
import notebooks
import used

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
version = "1.0"

[[tool.importlinter.contracts]]
type = "layers"
layers = ["apps", "wall", "rain", "weather", "support"]

[tool.ruff]
line-length = 100
"""
RAIN = '''\
# %% [markdown]
# # Rain

# %% tags=["export"]
import math
from math import exp


def survival(hours: float) -> float:
    """Probability that a letter is still readable."""
    return exp(-hours)


# %% tags=["export:weather"]
DRY = 0.0

# %% tags=["test"]
def test_survival_falls():
    assert survival(DRY) == 1.0 > survival(1.0) == math.exp(-1)


test_survival_falls()
for check in (test_survival_falls,):
    check()
'''
WALL = """\
# %% [markdown]
# # Is the wall dry?

# %% tags=["export"]
from ddlm_core.rain import survival


def readable(letters: int, hours: float) -> float:
    return letters * survival(hours)


# %% tags=["solution", "hide-input"]
readable(3, 0.0)
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_rain.py").write_text(RAIN)
    (tmp_path / "notebooks/02_wall.py").write_text(WALL)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


@pytest.fixture
def export(book: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the exporter on the book; returns what it complains about."""

    def run(*arguments: str) -> str:
        code = exporter.main([f"--root={book}", *arguments])
        complaints = capsys.readouterr().err
        assert code == (1 if complaints else 0)
        return complaints

    return run


def edit(book: Path, chapter: str, old: str, new: str) -> None:
    path = book / "notebooks" / chapter
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def snapshot(book: Path) -> dict[str, tuple[str, int]]:
    files = [*book.glob("ddlm_core/*.py*"), *book.glob("tests/*.py")]
    return {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in files}


def test_generated_files(book, export):
    assert export() == ""
    rain = (book / "ddlm_core/rain.py").read_text()
    assert rain.startswith("# Generated from notebooks/01_rain.py by tools/export.py: edit that, ")
    assert '"""Rain."""' in rain
    assert '__all__ = ["survival"]' in rain
    assert "import math\n" not in rain  # the module does not use it; the test does
    tests = (book / "tests/test_rain.py").read_text()
    assert "import math\n" in tests
    assert "from ddlm_core.rain import survival\n" in tests
    assert "from ddlm_core.weather import DRY\n" in tests
    assert tests.rstrip().endswith("== math.exp(-1)")  # the calls of the tests are gone
    assert '"""Is the wall dry?"""' in (book / "ddlm_core/wall.py").read_text()
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "tests"],
        cwd=book,
        env={"PYTHONPATH": str(book), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in passed.stdout, passed.stdout + passed.stderr


def test_a_text_that_opens_the_first_cell_is_the_docstring_of_the_module(book, export):
    text = '"""How rain wipes letters out.\n\nMore of it.\n"""'
    edit(book, "01_rain.py", "import math\nfrom", f"{text}\n\nimport math\nfrom")
    edit(book, "01_rain.py", "DRY = 0.0", '"""The state of the weather."""\n\nDRY = 0.0')
    assert export() == ""
    head = (book / "ddlm_core/rain.py").read_text().split("\n", 1)[1]
    assert head.startswith(f"{text}\n\nfrom math import exp\n") and head.count('"""') == 4
    head, _, rest = (book / "ddlm_core/weather.py").read_text().split("\n", 2)
    assert rest.strip() == '__all__ = ["DRY"]\n\nDRY = 0.0'
    doc = '# %% tags=["export"]\n"""A second one."""\n\nlate = 1\n'
    with (book / "notebooks/01_rain.py").open("a") as chapter:
        chapter.write(f"\n{doc}")
    assert "01_rain.py:34: the docstring of rain belongs into its first cell" in export()


def test_a_long_list_of_names_has_a_line_for_each(book, export):
    names = [f"a_rather_long_name_{i}" for i in range(6)]
    edit(book, "01_rain.py", "DRY = 0.0", "\n".join(f"{name} = 0.0" for name in ["DRY", *names]))
    assert export() == ""
    lines = (book / "ddlm_core/weather.py").read_text().splitlines()
    assert all(f'    "{name}",' in lines for name in names)


def test_a_slow_test_is_marked(book, export):
    edit(book, "01_rain.py", 'tags=["test"]', 'tags=["test", "slow"]')
    assert export() == export("--check") == ""
    tests = (book / "tests/test_rain.py").read_text()
    assert "\n\n\n@pytest.mark.slow\ndef test_survival_falls():" in tests
    assert "import pytest\n" in tests and tests.count("@") == 1


def test_only_files_with_long_texts_may_have_long_lines(book, export):
    text = "long " * 25
    edit(book, "02_wall.py", "    return", f'    """{text}"""\n    return')
    assert export() == ""
    assert (book / "ddlm_core/wall.py").read_text().splitlines()[1] == "# ruff: noqa: E501"
    assert "noqa" not in (book / "ddlm_core/rain.py").read_text()
    assert exporter.ruff(book, book / "ddlm_core", "check", "--select=E501,RUF100") == ""


def test_exporting_twice_changes_nothing(book, export):
    export()
    first = snapshot(book)
    assert export() == export("--check") == ""
    assert snapshot(book) == first
    assert set(first) == {
        "__init__.py",
        "__init__.pyi",
        "rain.py",
        "weather.py",
        "wall.py",
        "test_rain.py",
    }


def test_names_resolve_lazily(book, export):
    export()
    code = (
        "import sys, ddlm_core; assert 'ddlm_core.rain' not in sys.modules;"
        "assert ddlm_core.readable(2, ddlm_core.DRY) == 2.0 and ddlm_core.rain.survival(0) == 1.0;"
        "assert {'survival', 'rain'} <= set(dir(ddlm_core));"
        "ddlm_core.snow"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=book, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "AttributeError: No ddlm_core attribute snow"


def test_check_names_file_and_command(book, export):
    export()
    before = snapshot(book)
    edit(book, "01_rain.py", "exp(-hours)", "exp(-2 * hours)")
    complaint = export("--check")
    assert complaint == (
        "ddlm_core/rain.py: out of step with notebooks/01_rain.py: run `make export`\n"
    )
    assert snapshot(book) == before


def test_a_chapter_that_is_gone(book, export):
    export()
    (book / "notebooks/02_wall.py").unlink()
    assert "ddlm_core/wall.py: no chapter exports it any more" in export("--check")
    export()
    assert not (book / "ddlm_core/wall.py").exists()
    assert export("--check") == ""


LONG = "def long():\n" + "".join(f"    x{i} = {i}\n" for i in range(40)) + "    return x0\n"
CLASS = "class Long:\n" + "".join(f"    x{i} = {i}\n" for i in range(85))
FAULTS = {
    "undefined name": ("letters * survival", "letters * snow", "wall.py uses snow"),
    "name of a demo cell": ('["export"]', "[]", "wall.py uses readable"),
    "defined in two chapters": ("def readable", "def survival", "02_wall.py:8: defines survival"),
    "defined twice": (
        '# %% tags=["solution", "hide-input"]',
        '# %% tags=["export"]\nreadable = 1\n\n# %%',
        "02_wall.py:13: defines readable again: exported at notebooks/02_wall.py:8",
    ),
    "misspelt tag": ('"solution"', '"solutoin"', "02_wall.py:13: unknown tag 'solutoin'"),
    "misspelt module tag": ('"solution"', '"exports:x"', "unknown tag 'exports:x'"),
    "too long": (
        "def readable",
        LONG + "def readable",
        "02_wall.py:5: exports a cell of 45 lines; at most 40",
    ),
    "class too long": ("def readable", CLASS + "def readable", "at most 85"),
    "star import": ("import survival", "import *", "02_wall.py:5: star import"),
    "syntax error": ("return letters", "return return", "02_wall.py:9: syntax error"),
    "no title": ("# # Is", "# Is", "02_wall.py: no title"),
    "name of a module": ("def readable", "def rain", "exports rain, also the name of a module"),
    "module of another": ('["export"]', '["export:rain"]', "a module of notebooks/01_rain.py"),
    "does not import": (
        "def readable",
        "ZERO = 1 // 0\n\n\ndef readable",
        "ddlm_core.wall: does not import alone: ZeroDivisionError",
    ),
    "heavy import": (
        "def readable",
        "import matplotlib\n\nmatplotlib.rc\n\n\ndef readable",
        "ddlm_core.wall: imports matplotlib when it is imported",
    ),
    "display in a test": ('"solution", "hide-input"', '"test"', "a test cell holds imports,"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(book, export, fault):
    old, new, complaint = FAULTS[fault]
    if fault == "name of a demo cell":  # wall.py still needs what is no longer exported
        edit(book, "02_wall.py", '"solution"', '"export"')
    edit(book, "02_wall.py", old, new)
    slow = complaint.startswith("ddlm_core")  # --check alone tries the imports
    assert complaint in export(*["--check"] * slow)


LATER = ["from ddlm_core.wall import readable", "import ddlm_core.wall"]


@pytest.mark.parametrize("line", [*LATER, "from ddlm_core import readable"])
def test_an_exported_cell_imports_from_layers_below_only(book, export, line):
    edit(book, "01_rain.py", "    return exp", f"    {line}\n\n    return exp")
    complaint = "notebooks/01_rain.py:11: ddlm_core.rain imports ddlm_core.wall, which is above it"
    assert complaint in export()


def test_the_folders_by_hand_have_layers_too(book, export):
    edit(book, "02_wall.py", "    return", "    import ddlm_core.apps.ui\n\n    return")
    assert "02_wall.py:9: ddlm_core.wall imports ddlm_core.apps, which is above it" in export()
    edit(book, "02_wall.py", "ddlm_core.apps.ui", "ddlm_core.support.files")
    assert "above" not in export()


def test_a_module_needs_a_layer(book, export):
    edit(book, "01_rain.py", "export:weather", "export:snow")
    assert "01_rain.py: ddlm_core.snow is in no layer of [tool.importlinter]" in export()


@pytest.mark.parametrize("line", LATER)
def test_a_demonstration_imports_from_earlier_chapters_only(book, export, line):
    edit(book, "01_rain.py", "    check()", f"    check()\n\n# %%\n{line}")
    complaint = "notebooks/01_rain.py:27: imports ddlm_core.wall of the later notebooks/02_wall.py"
    assert complaint in export()


def test_chapter_0_looks_ahead(book, export):
    overview = "# %% [markdown]\n# # All\n\n# %%\nimport ddlm_core.wall\n"
    (book / "notebooks/00_all.py").write_text(overview)
    assert export() == ""


def test_docstrings_comments_and_texts_do_not_count_as_code(book, export):
    padding = '    """One.\n' + "\n    More.\n" * 20 + '    """\n' + "    # why\n\n" * 20
    edit(book, "02_wall.py", "    return letters", padding + "    return letters")
    edit(book, "02_wall.py", "def readable", 'PAGE = """' + "text\n" * 30 + '"""\n\n\ndef readable')
    assert export() == ""


def test_a_syntax_error_leaves_the_other_chapters_working(book, export):
    edit(book, "01_rain.py", "exp(-hours)", "exp(-hours")
    assert "01_rain.py:11: syntax error" in export()
    assert (book / "ddlm_core/wall.py").exists()
    assert not (book / "ddlm_core/rain.py").exists()


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chapter and its executed notebook."""
    book = tmp_path_factory.mktemp("book")
    (book / "notebooks").mkdir()
    source = '# %% [markdown]\n# # Sum\n\n# %% tags=["hide-input"]\n1 + 1\n\n# %%\nprint("a")\n'
    (book / "notebooks/01_sum.py").write_text(source)
    (book / "pyproject.toml").write_text(PROJECT)
    assert notebooks.main([f"--root={book}"]) == 0
    return book


@pytest.fixture
def pair(executed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(executed, tmp_path / "book")


@pytest.fixture
def pairs(pair: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the pair tool; returns all that it says."""

    def run(*arguments: str) -> str:
        code = notebooks.main([f"--root={pair}", *arguments])
        said = capsys.readouterr()
        assert code == (1 if said.err else 0)
        return said.out + said.err

    return run


def test_executing_again_changes_nothing(pair, pairs):
    path = pair / "notebooks/01_sum.ipynb"
    first = path.read_text()
    assert pairs() == pairs("--check") == ""  # it is in step
    assert pairs("--force", "01_sum").startswith("executed notebooks/01_sum.py")
    assert path.read_text() == first
    notebook = jupytext.read(path)
    assert notebook.cells[1].outputs[0].data["text/plain"] == "2"
    assert notebook.cells[1].metadata["jupyter"] == {"source_hidden": True}


def test_stale_output_is_caught_and_mended(pair, pairs):
    edit(pair, "01_sum.py", "1 + 1", "1 + 2")
    complaint = pairs("--check")
    assert "notebooks/01_sum.ipynb is out of step with notebooks/01_sum.py" in complaint
    assert "run `make notebooks`" in complaint
    assert pairs().startswith("executed")
    notebook = jupytext.read(pair / "notebooks/01_sum.ipynb")
    assert notebook.cells[1].outputs[0].data["text/plain"] == "3"


def test_a_missing_half_is_caught(pair, pairs):
    (pair / "notebooks/01_sum.py").rename(pair / "notebooks/02_sum.py")
    complaint = pairs("--check")
    assert "notebooks/01_sum.ipynb has no .py half" in complaint
    assert "notebooks/02_sum.ipynb is missing: run `make notebooks`" in complaint


def output(kind: str, text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=kind, text=text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda cell: cell.outputs.append(output("stderr", "careful")), "is on stderr"),
        (lambda cell: cell.outputs.append(output("stdout", "/home/me/x")), "path of one machine"),
        (lambda cell: cell.outputs.append(output("stdout", " 40%|####  |")), "unfinished progress"),
        (lambda cell: cell.update(execution_count=7), "not executed from top to bottom"),
        (lambda cell: cell.metadata.update(tags=["solution"]), "out of step"),
        (lambda cell: cell.update(source="1 + 3"), "takes what you edited in the .ipynb"),
        (
            lambda cell: cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue="")),
            "is an error",
        ),
    ],
)
def test_unfit_notebook_is_caught(pair, pairs, change, complaint):
    path = pair / "notebooks/01_sum.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells[1])
    nbformat.write(notebook, path)
    assert complaint in pairs("--check")


def test_the_state_of_widgets_is_refused(pair, pairs):
    """GitHub shows an error in the place of a notebook that holds it."""
    path = pair / "notebooks/01_sum.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, path)
    assert "the state of widgets is stored (metadata.widgets)" in pairs("--check")


@pytest.mark.parametrize("path", ['open("../benchmarks/x.json")', 'Path("..", "book")', "!ls ../"])
def test_a_chapter_stays_in_its_folder(pair, pairs, path):
    edit(pair, "01_sum.py", 'print("a")', f'if False:\n    {path}\nprint("a ... b")  # not ../this')
    complaint = pairs("--check")
    assert complaint.count("leads out of notebooks/") == 1 and path in complaint


def test_pairing_by_file_times_is_refused(pair, pairs):
    head = "# ---\n# jupyter:\n#   jupytext:\n#     formats: ipynb,py:percent\n# ---\n\n"
    edit(pair, "01_sum.py", "# %% [markdown]", f"{head}# %% [markdown]")
    assert "pairs the halves by file times" in pairs("--check")
    path = pair / "notebooks/01_sum.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    nbformat.write(notebook, path)
    assert "metadata.jupytext.formats" in pairs("--check")


PACKAGE = {
    "__init__.py": "",
    "__init__.pyi": "from .rain import survival as survival\n",
    "rain.py": """
        \"\"\"How rain falls.\"\"\"
        from ddlm_core.support.dice import throw  # why

        def survival(hours):
            \"\"\"Probability.\"\"\"
            from . import weather
            return throw(hours) + weather.DRY
    """,
    "weather.py": "DRY = 0.0\nSTYLE = 'the ddlm_core.book style'\n",
    "snow.py": "WHITE = 1\n",
    "support/__init__.py": "",
    "support/dice.py": "def throw(n):\n    return open(f'{n}/configs/small.yaml')\n",
    "configs/small.yaml": "layers: 2  # two\n",
    "book.mplstyle": "lines.linewidth: 2\n",
    "results/dice.json": "[6]",
    "pretrained/pocket/model.safetensors": "weights",
    "pretrained/pocket/README.md": "A card.",
}
OTHER_CODE = {  # a change → is it another program?
    ("rain.py", "Probability.", "Chance."): False,
    ("rain.py", "How rain falls.", "Rain."): False,
    ("rain.py", "# why", "# because"): False,
    ("rain.py", "throw(hours)", "throw( hours )"): False,
    ("rain.py", "throw(hours) +", "throw(hours) -"): True,
    ("weather.py", "0.0", "0.1"): True,  # imported in a function
    ("support/dice.py", "def throw(n)", "def throw(n=1)"): True,  # by what the chapter imports
    ("snow.py", "1", "2"): False,  # not used
    ("configs/small.yaml", "two", "pairs"): False,
    ("configs/small.yaml", "2", "3"): True,
    ("book.mplstyle", "2", "3"): True,
    ("pretrained/pocket/model.safetensors", "weights", "others"): False,  # not used
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / "ddlm_core" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ddlm_core" / name).write_text(textwrap.dedent(text))
    (tmp_path / "pyproject.toml").write_text(
        '[project.scripts]\nddlm-snow = "ddlm_core.snow:main"\n'
    )
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_a.py").write_text("# %%\nfrom ddlm_core import survival\n")
    return tmp_path


def used_code(package: Path, chapter: str | None = None) -> str:
    path = package / "notebooks/01_a.py"
    if chapter:
        path.write_text(f"# %%\n{chapter}\n")
    return used.digest_of_code(path, package)


@pytest.mark.parametrize("change", OTHER_CODE)
def test_the_digest_of_the_code_that_a_chapter_uses(package, change):
    name, old, new = change
    before, path = used_code(package), package / "ddlm_core" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (used_code(package) != before) == OTHER_CODE[change]


@pytest.mark.parametrize(
    ("chapter", "files"),
    [
        ("1 + 1", ""),
        ("import ddlm_core.snow", "snow.py"),
        ("import ddlm_core\nddlm_core.snow.WHITE", "snow.py"),
        ("from ddlm_core import snow", "snow.py"),
        ("from ddlm_core.support import dice", "configs/small.yaml support/dice.py"),
        ("!ddlm-snow --help", "snow.py"),
        ("'ddlm_core.weather:DRY'", "book.mplstyle weather.py"),
        ("folder / 'pretrained/pocket'", "pretrained/pocket/model.safetensors"),
        ("folder / 'pretrained/other'", ""),
        ("results / 'dice.json'", "results/dice.json"),
        ("folder / 'results/dice.json'", "results/dice.json"),
        ("print('json of dice')", ""),  # its stem alone
    ],
)
def test_what_a_chapter_uses(package, chapter, files):
    used_code(package, chapter)
    found = used.files_of_chapter(package / "notebooks/01_a.py", package)
    names = [path.relative_to(package / "ddlm_core").as_posix() for path in found]
    assert " ".join(names) == files


def test_an_output_of_other_code_is_caught_and_mended(pair, pairs):
    (pair / "ddlm_core").mkdir()
    (pair / "ddlm_core/rain.py").write_text("WET = 1\n")
    edit(pair, "01_sum.py", "1 + 1", "1 + 1  # no import runs: 'ddlm_core.rain'\n'ddlm_core.rain'")
    assert pairs().startswith("executed")
    (pair / "ddlm_core/rain.py").write_text("# twice\nWET = 1\n")
    assert pairs("--check") == ""
    (pair / "ddlm_core/rain.py").write_text("WET = 2\n")
    complaint = "notebooks/01_sum.ipynb was executed with other code: run `make notebooks`\n"
    assert pairs("--check") == complaint
    assert pairs().startswith("executed") and pairs("--check") == ""


def test_a_failing_cell_is_reported_and_not_stored(pair, pairs):
    edit(pair, "01_sum.py", "1 + 1", "1 / 0")
    assert "ZeroDivisionError" in pairs()
    assert "1 + 1" in (pair / "notebooks/01_sum.ipynb").read_text()
