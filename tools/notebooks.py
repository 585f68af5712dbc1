"""Keep each pair of notebooks/ and notebooks/deeper/ in step: the source .py, the executed .ipynb.

`python tools/notebooks.py` executes the chapters whose .py changed since their .ipynb was made, or
whose .ipynb was made with other code of the package; give names (04_forward) to take these only,
`--force` to execute them in any case. `--pull` takes what was edited in an .ipynb into its .py.
With `--check` it changes nothing, and fails if a pair is out of step, was executed with other code,
or would not look right where it is read.

The metadata of an .ipynb hold two digests: of its cells when both halves were last the same (so it
can be told which half was edited since, whatever the times of the files say), and of the code
that it was executed with (see tools/used.py).
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from used import digest_of_code

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {
    "kernelspec": KERNEL,
    "language_info": {"name": "python"},  # without the version, which differs between machines
}
STAMP = "ddlm"
LOCAL_PATH = re.compile(r"(?<![\w.])/(work|home|root|tmp|Users)/")
PROGRESS = re.compile(r"(\d+)%\|")
OUTSIDE = re.compile(r"(?<!\.)\.\.[/\\]|[\"']\.\.[\"']")


def content(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """What the two halves of a pair must agree on: type, source and tags of each cell.

    Blank lines at the end of a cell do not count: the .py half cannot hold them.
    """
    return [
        (cell.cell_type, cell.source.rstrip("\n"), tuple(cell.metadata.get("tags", ())))
        for cell in notebook.cells
    ]


def digest(notebook: NotebookNode) -> str:
    return hashlib.sha256(json.dumps(content(notebook)).encode()).hexdigest()[:16]


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
    if "formats" in notebook.metadata.get("jupytext", {}):
        problems.append("paired by file times (metadata.jupytext.formats)")
    if "widgets" in notebook.metadata:
        problems.append("the state of widgets is stored (metadata.widgets): GitHub shows nothing")
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


def source_problems(source: Path) -> list[str]:
    """What would keep a chapter from running where it lies alone, or trap JupyterLab."""
    notebook, problems = jupytext.read(source), []
    for cell in code_cells(notebook):
        for line in cell.source.splitlines():
            if OUTSIDE.search(line.split("#")[0]):
                problems.append(f"{line.strip()[:60]!r} leads out of notebooks/: use package data")
    if "formats" in notebook.metadata.get("jupytext", {}):
        problems.append("its head has `jupytext: formats:`, which pairs the halves by file times")
    return [f"{named(source)}: {problem}" for problem in problems]


def difference(ours: list, theirs: list) -> str:
    """Where two contents first differ."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    same = next((n for n, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    cell = (ours[same:] or theirs[same:])[0][1].strip().splitlines() or [""]
    return f"from cell {same + 1} ({cell[0][:50]!r})"


def edited(source: Path) -> set[str]:
    """Which halves were edited since they were the same: a subset of {".py", ".ipynb"}."""
    ours, theirs = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    if content(ours) == content(theirs):
        return set()
    stamp = theirs.metadata.get(STAMP, {}).get("cells")
    if stamp is None:  # executed by an older tool: take the .py, as that did
        return {".py"}
    return {s for s, half in ((".py", ours), (".ipynb", theirs)) if digest(half) != stamp}


def check(source: Path) -> list[str]:
    """What is wrong with one pair, as lines that name the file and what mends it."""
    stored = source.with_suffix(".ipynb")
    name = named(stored)
    if not stored.exists():
        return [f"{name} is missing: run `make notebooks`"]
    notebook = jupytext.read(stored)
    if halves := edited(source):
        where = difference(content(jupytext.read(source)), content(notebook))
        mend = "run `make notebooks`"
        if halves == {".ipynb"}:
            mend += ", which takes what you edited in the .ipynb into the .py"
        if halves == {".py", ".ipynb"}:
            mend = both_edited(source)
        return [f"{name} is out of step with {named(source)} {where}: {mend}"]
    code = digest_of_code(source, root_of(source))
    if notebook.metadata.get(STAMP, {}).get("code") != code:
        return [f"{name} was executed with other code: run `make notebooks`"]
    mend = f"mend {named(source)}, then run `make notebooks`"
    return [f"{name}: {p}: {mend}" for p in output_problems(notebook)]


def both_edited(source: Path) -> str:
    stored = named(source.with_suffix(".ipynb"))
    return (
        f"both halves were edited, and one would be lost. Either keep the .py (`python "
        f"tools/notebooks.py --force {named(source)}`), or the .ipynb (`jupytext --to py:percent "
        f"{stored}`), then run `make notebooks`"
    )


def pull(source: Path) -> list[str]:
    """Take what was edited in the .ipynb, and not in the .py, into the .py."""
    stored = source.with_suffix(".ipynb")
    if not stored.exists() or ".ipynb" not in (halves := edited(source)):
        return []
    if ".py" in halves:
        return [f"{named(source)}: {both_edited(source)}"]
    notebook = jupytext.read(stored)
    notebook.metadata.kernelspec = KERNEL  # not the one of whoever edited it
    for cell in notebook.cells:
        cell.source = cell.source.rstrip("\n")
    write(source, jupytext.writes(notebook, "py:percent", config=load_jupytext_config(str(source))))
    notebook.metadata[STAMP] = {"cells": digest(notebook)}
    write(stored, nbformat.writes(notebook))
    print(f"took what was edited in {named(stored)} into {named(source)}")
    return []


def write(path: Path, text: str) -> None:
    """All of it, or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8", newline="\n")
    part.replace(path)


def execute(source: Path) -> NotebookNode:
    """The chapter as a notebook, run from a clean kernel, in a form that makes small diffs."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = cell.source.rstrip("\n")
        if "hide-input" in tags:
            cell.metadata["jupyter"] = {"source_hidden": True}  # collapsed in JupyterLab as well
        mark = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[mark] += 1  # ids follow from the source: a new cell changes no other cell's id
        cell.id = mark if seen[mark] == 1 else f"{mark}-{seen[mark]}"
    code = digest_of_code(source, root_of(source))  # before: it may be edited meanwhile
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
    notebook.metadata[STAMP] = {"cells": digest(notebook), "code": code}
    return notebook


def pages(folder: Path, suffix: str) -> list[Path]:
    """Chapters, and the pages of deeper/."""
    return sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"deeper/*{suffix}")])


def named(path: Path) -> str:
    """A page as it is shown: notebooks/deeper/x.py."""
    return path.as_posix()[path.as_posix().rindex("notebooks/") :]


def root_of(source: Path) -> Path:
    """The project that a page is in."""
    return next(p.parent for p in source.parents if p.name == "notebooks")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="such as 04_forward (default: all)")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--pull", action="store_true", help="take edits of an .ipynb into its .py")
    parser.add_argument("--force", action="store_true", help="execute unchanged chapters too")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args(arguments)
    folder = options.root.resolve() / "notebooks"
    wanted = {name.removeprefix("notebooks/").split(".")[0] for name in options.chapters}
    halves = {
        suffix: {p.relative_to(folder).with_suffix("").as_posix() for p in pages(folder, suffix)}
        for suffix in (".py", ".ipynb")
    }
    known = halves[".py"]
    os.environ["DDLM_STORED"] = "1"  # chapters leave out what needs a live kernel
    problems = [f"notebooks/{name}.py: no such chapter" for name in sorted(wanted - known)]
    if options.check:
        orphans = sorted(halves[".ipynb"] - known)
        problems += [f"notebooks/{name}.ipynb has no .py half" for name in orphans]
    for source in [folder / f"{name}.py" for name in sorted(wanted & known if wanted else known)]:
        if not options.check and not options.force and (refused := pull(source)):
            problems += refused
            continue
        if options.pull:
            continue
        if not options.check and (options.force or check(source)):
            start = time.monotonic()
            try:
                notebook = execute(source)
            except CellExecutionError as error:
                problems.append(f"{named(source)}: {error}")
                continue
            write(source.with_suffix(".ipynb"), nbformat.writes(notebook))
            seconds = time.monotonic() - start
            print(f"executed {named(source)} in {seconds:.0f} s", flush=True)
        problems += source_problems(source) + check(source)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
