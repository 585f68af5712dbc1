"""Each notebook from a copy that lies alone in an empty folder with the package, as on Colab.

Nothing else of the project can be reached from there: the package is copied beside it as well.
"""

import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

import notebooks

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(
    str(p.relative_to(ROOT / "notebooks").with_suffix("")) for p in ROOT.glob("notebooks/**/*.py")
)
QUICK = ("01_tokenizer", "03_noise")


def chapters(*slow: pytest.MarkDecorator) -> list:
    return [pytest.param(c, marks=[] if c in QUICK else slow) for c in CHAPTERS]


@pytest.mark.parametrize("chapter", chapters())
def test_no_path_leads_out_of_the_folder(chapter):
    assert notebooks.source_problems(ROOT / f"notebooks/{chapter}.py") == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package alone, as `pip install` leaves it."""
    folder = tmp_path_factory.mktemp("site")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ddlm_core", folder / "ddlm_core", ignore=unwanted)
    return folder


@pytest.mark.parametrize("chapter", chapters(pytest.mark.slow))
def test_it_runs_alone(chapter, installed, tmp_path, monkeypatch):
    place = tmp_path / "alone"
    place.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(installed))  # before what an editable install adds
    notebook = jupytext.read(ROOT / f"notebooks/{chapter}.py")  # its stored pair may be older
    where = nbformat.v4.new_code_cell("import ddlm_core\nddlm_core.__file__")
    notebook.cells.append(where)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(place)}},
    ).execute()
    assert str(installed) in where.outputs[0]["data"]["text/plain"]
