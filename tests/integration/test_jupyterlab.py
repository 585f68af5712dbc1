"""A chapter in JupyterLab, through the contents manager that jupytext gives it.

Whoever edits an .ipynb in VS Code or on Colab, edits a .py in an editor, or has a checkout with
other file times, opens both halves without an error, sees the newest edit, and loses nothing.
"""

import os
import shutil
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

import notebooks

ROOT = Path(__file__).parents[2]
SOURCE = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sum

# %% tags=["export"]
def two():
    return 2


# %%
two()
"""
DAY = 86_400


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """A chapter and its executed notebook, as the tools write them."""
    book = tmp_path_factory.mktemp("lab")
    (book / "notebooks").mkdir()
    (book / "notebooks/01_sum.py").write_text(SOURCE)
    for name in ("jupytext.toml", "pyproject.toml"):
        shutil.copy(ROOT / name, book)
    assert notebooks.main([f"--root={book}"]) == 0
    return book


@pytest.fixture
def book(executed, tmp_path) -> Path:
    return Path(shutil.copytree(executed, tmp_path / "book"))


class Lab:
    """What JupyterLab does with the two halves."""

    def __init__(self, book: Path) -> None:
        self.folder = book / "notebooks"
        self.manager = jupytext.TextFileContentsManager(root_dir=str(book))

    def open(self, half: str) -> nbformat.NotebookNode:
        """Open one half as a notebook; raises HTTPError where JupyterLab would show one."""
        return self.manager.get(f"notebooks/01_sum{half}", type="notebook")["content"]

    def save(self, half: str, notebook: nbformat.NotebookNode) -> None:
        model = {"type": "notebook", "content": notebook}
        self.manager.save(model, f"notebooks/01_sum{half}")


@pytest.fixture
def lab(book) -> Lab:
    return Lab(book)


def text(book: Path, half: str) -> str:
    return (book / f"notebooks/01_sum{half}").read_text()


def make_newer(book: Path, half: str, seconds: float = DAY) -> None:
    path, then = book / f"notebooks/01_sum{half}", time.time() + seconds
    os.utime(path, (then, then))


def edit(book: Path, half: str, old: str, new: str) -> None:
    """As another program does it; the edited half is the newer one by a day."""
    path = book / f"notebooks/01_sum{half}"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    make_newer(book, half)


def last_output(notebook: nbformat.NotebookNode) -> str:
    return notebook.cells[-1].outputs[0]["data"]["text/plain"]


def check(book: Path, capsys) -> str:
    capsys.readouterr()
    notebooks.main([f"--root={book}", "--check"])
    return capsys.readouterr().err


@pytest.mark.parametrize("newer", [".py", ".ipynb"])
@pytest.mark.parametrize("opened", [".py", ".ipynb"])
def test_equal_halves_with_times_apart(book, lab, capsys, newer, opened):
    before = text(book, ".py"), text(book, ".ipynb")
    make_newer(book, newer)
    notebook = lab.open(opened)
    assert [cell.source for cell in notebook.cells] == [
        "# Sum",
        "def two():\n    return 2",
        "two()",
    ]
    if opened == ".ipynb":
        assert last_output(notebook) == "2"
    assert (text(book, ".py"), text(book, ".ipynb")) == before
    lab.save(opened, notebook)
    assert check(book, capsys) == ""  # saved as it was: still in step, and executed
    assert text(book, ".py") == before[0] or opened == ".py"


def test_an_ipynb_that_was_edited_elsewhere(book, lab, capsys):
    source = text(book, ".py")
    edit(book, ".ipynb", "return 2", "return 1 + 2\\n")  # with a blank line at the end of the cell
    notebook = lab.open(".ipynb")
    assert "return 1 + 2" in notebook.cells[1].source
    lab.save(".ipynb", notebook)
    assert "return 1 + 2" in text(book, ".ipynb") and text(book, ".py") == source
    assert "takes what you edited in the .ipynb into the .py" in check(book, capsys)
    make_newer(book, ".py", 2 * DAY)  # the times of the files say nothing
    assert notebooks.main([f"--root={book}"]) == 0
    assert text(book, ".py") == source.replace("return 2", "return 1 + 2")
    assert last_output(lab.open(".ipynb")) == "3"


def test_a_py_that_was_edited_elsewhere(book, lab, capsys):
    edit(book, ".py", "return 2", "return 4")
    edited, stored = text(book, ".py"), text(book, ".ipynb")
    assert "return 4" in lab.open(".py").cells[1].source
    notebook = lab.open(".ipynb")  # what was executed: the edit has no outputs yet
    assert "return 2" in notebook.cells[1].source and last_output(notebook) == "2"
    lab.save(".ipynb", notebook)
    assert text(book, ".py") == edited and lab.open(".ipynb") == notebook
    assert "out of step" in check(book, capsys)
    make_newer(book, ".ipynb", 2 * DAY)
    assert notebooks.main([f"--root={book}"]) == 0
    assert last_output(lab.open(".ipynb")) == "4" and text(book, ".ipynb") != stored
    assert text(book, ".py") == edited


@pytest.mark.parametrize("arguments", [[], ["--pull"]])
def test_nothing_is_lost_where_both_were_edited(book, lab, capsys, arguments):
    edit(book, ".py", "return 2", "return 4")
    edit(book, ".ipynb", "return 2", "return 3")
    both = text(book, ".py"), text(book, ".ipynb")
    assert "return 4" in lab.open(".py").cells[1].source
    assert "return 3" in lab.open(".ipynb").cells[1].source
    assert notebooks.main([f"--root={book}", *arguments]) == 1
    assert "both halves were edited, and one would be lost" in capsys.readouterr().err
    assert (text(book, ".py"), text(book, ".ipynb")) == both
    assert "both halves were edited" in check(book, capsys)
    assert notebooks.main([f"--root={book}", "--force"]) == 0  # keeps the .py
    assert last_output(lab.open(".ipynb")) == "4"


def test_pulling_survives_the_formatter(book, capsys):
    """`make notebooks` pulls, formats and exports, and then executes."""
    edit(book, ".ipynb", "return 2", "return  3")
    assert notebooks.main([f"--root={book}", "--pull"]) == 0
    edit(book, ".py", "return  3", "return 3")
    assert notebooks.main([f"--root={book}"]) == 0
    assert "return 3" in text(book, ".py") and "return 3" in text(book, ".ipynb")
    assert check(book, capsys) == ""


def test_the_digests_stay_out_of_the_py_half(book, lab):
    notebook = lab.open(".ipynb")
    assert set(notebook.metadata["ddlm"]) == {"cells", "code"}
    config = jupytext.config.load_jupytext_config(str(book / "notebooks/01_sum.py"))
    assert "ddlm" not in jupytext.writes(notebook, "py:percent", config=config)
    lab.save(".ipynb", notebook)
    assert lab.open(".ipynb").metadata["ddlm"] == notebook.metadata["ddlm"]


def test_no_chapter_is_paired_by_file_times():
    assert "formats" not in tomllib.loads((ROOT / "jupytext.toml").read_text(encoding="utf-8"))
    for path in sorted((ROOT / "notebooks").glob("**/*.py")):
        assert "formats" not in jupytext.read(path).metadata.get("jupytext", {}), path
