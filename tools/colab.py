"""Keep the first code cell of every chapter: on Colab it installs the package, elsewhere nothing.

`python tools/colab.py` writes it right after the title; `--check` fails where it is missing or old.
It installs without dependencies and then the light ones by name, so that Colab keeps its own torch.
"""

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

from chapters import CHAPTER_FILE
from repository import address

ROOT = Path(__file__).resolve().parents[1]
FIRST_LINE = "# On Colab this installs the package of the book. Elsewhere it does nothing."
TEMPLATE = '''\
# %% tags=["hide-input"]
{first_line}
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+{url}"], check=True)
    needs = """{needs}"""
    subprocess.run([*pip, *needs.split()], check=True)

'''


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def imports(source: str) -> set[str]:
    """Top-level packages that a chapter imports."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    return {name.split(".")[0] for name in names}


def needs(root: Path, source: str) -> list[str]:
    """What a chapter needs besides torch: the package's dependencies, and its own test tools."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [name_of(line) for line in project["dependencies"]]
    dev = [name_of(line) for line in project["optional-dependencies"]["dev"]]
    return [name for name in own if name != "torch"] + [n for n in dev if n in imports(source)]


def cell(root: Path, source: str) -> str:
    """The cell as a chapter's .py half holds it."""
    lines, names = [""], needs(root, source)
    for name in names:
        if len(lines[-1]) + len(name) > 76:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".strip()
    text = "\n        ".join(lines)
    return TEMPLATE.format(first_line=FIRST_LINE, url=address(root), needs=text)


def with_cell(root: Path, source: str) -> str:
    """The chapter with the cell right after its title, whatever it had before."""
    cells = re.split(r"(?m)^(?=# %%)", source)
    head, title, *rest = [part for part in cells if FIRST_LINE not in part]
    return "".join([head, title, cell(root, source), *rest])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project")
    options = parser.parse_args(arguments)
    stale = 0
    for path in sorted(options.root.glob("notebooks/**/*.py")):
        source, chapter = path.read_text(encoding="utf-8"), CHAPTER_FILE.fullmatch(path.name)
        if not (chapter or path.parent.name == "deeper"):
            continue
        if source == with_cell(options.root, source):
            continue
        if options.check:
            stale = 1
            print(f"notebooks/{path.name}: run `python tools/colab.py`", file=sys.stderr)
        else:
            path.write_text(with_cell(options.root, source), encoding="utf-8")
            print(f"wrote the install cell of notebooks/{path.name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
