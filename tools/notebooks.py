"""Keep each chapter's pair in step: NN_name.py (the source) and NN_name.ipynb (executed).

`python tools/notebooks.py` executes the chapters whose .py changed since their .ipynb was made;
give names (04_forward) to take these only, `--force` to execute them in any case. With `--check`
it changes nothing, and fails if a pair is out of step or a stored output is not fit to be seen.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},  # without the version, which differs between machines
}
LOCAL_PATH = re.compile(r"(?<![\w.])/(work|home|root|tmp|Users)/")
PROGRESS = re.compile(r"(\d+)%\|")


def content(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the two halves of a pair must agree on: type, source and tags of each cell."""
    return [
        (cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ())))
        for cell in notebook.cells
    ]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def output_text(output: NotebookNode) -> str:
    """Everything a reader could read in one output; pictures left out."""
    texts = [output.get("text", ""), *output.get("traceback", [])]
    texts += [str(v) for kind, v in output.get("data", {}).items() if kind[:6] != "image/"]
    return "\n".join(texts)


def output_problems(notebook: NotebookNode) -> list[str]:
    """What a reader must never see in a stored output."""
    problems = []
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        problems.append("not executed from top to bottom")
    for cell in code_cells(notebook):
        where = f"the output of {cell.source.strip().splitlines()[0][:50]!r}"
        for output in cell.outputs:
            text = output_text(output)
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
                "tags", []
            ):
                problems.append(f"{where} is an error")
            if output.get("name") == "stderr":
                problems.append(f"{where} is on stderr (a warning, or a progress bar?)")
            if LOCAL_PATH.search(text):
                problems.append(f"{where} holds a path of one machine")
            if (percents := PROGRESS.findall(text)) and percents[-1] != "100":
                problems.append(f"{where} is an unfinished progress bar")
    return problems


def check(source: Path) -> list[str]:
    """What is wrong with one pair, as lines that name the file and what mends it."""
    stored = source.with_suffix(".ipynb")
    if not stored.exists():
        return [f"notebooks/{stored.name} is missing: run `make notebooks`"]
    notebook = jupytext.read(stored)
    ours, theirs = content(jupytext.read(source)), content(notebook)
    if ours != theirs:
        same = sum(1 for _ in zip_equal(ours, theirs))
        cell = (ours[same:] or theirs[same:])[0][1].strip().splitlines() or [""]
        return [
            f"notebooks/{stored.name} is out of step with notebooks/{source.name} "
            f"from cell {same + 1} ({cell[0][:50]!r}): run `make notebooks`\n"
            f"    (was it the .ipynb that you edited? First `jupytext --to py:percent "
            f"notebooks/{stored.name}`)"
        ]
    mend = f"mend notebooks/{source.name}, then run `make notebooks`"
    return [f"notebooks/{stored.name}: {p}: {mend}" for p in output_problems(notebook)]


def zip_equal(ours: list, theirs: list):
    """The common beginning of two lists."""
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return
        yield one


def execute(source: Path) -> NotebookNode:
    """The chapter as a notebook, run from a clean kernel, in a form that makes small diffs."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "hide-input" in tags:
            cell.metadata["jupyter"] = {"source_hidden": True}  # collapsed in JupyterLab as well
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] += 1  # ids follow from the source: a new cell changes no other cell's id
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # of the kernel itself; the chapter's warnings stay
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # execution adds the version of Python
    return notebook


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="such as 04_forward (default: all)")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--force", action="store_true", help="execute unchanged chapters too")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args(arguments)
    folder = options.root.resolve() / "notebooks"
    wanted = {Path(name).stem for name in options.chapters}
    halves = {suffix: {p.stem for p in folder.glob(f"*{suffix}")} for suffix in (".py", ".ipynb")}
    known = halves[".py"]
    os.environ["DDLM_STORED"] = "1"  # chapters leave out what needs a live kernel
    problems = [f"notebooks/{name}.py: no such chapter" for name in sorted(wanted - known)]
    if options.check:
        orphans = sorted(halves[".ipynb"] - known)
        problems += [f"notebooks/{name}.ipynb has no .py half" for name in orphans]
    sources = [folder / f"{name}.py" for name in sorted(wanted & known if wanted else known)]
    for source in sources:
        if not options.check and (options.force or check(source)):
            start = time.monotonic()
            try:
                notebook = execute(source)
            except CellExecutionError as error:
                problems.append(f"notebooks/{source.name}: {error}")
                continue
            half_written = source.with_suffix(".ipynb.part")
            nbformat.write(notebook, half_written)
            half_written.replace(source.with_suffix(".ipynb"))
            seconds = time.monotonic() - start
            print(f"executed notebooks/{source.name} in {seconds:.0f} s", flush=True)
        problems += check(source)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
