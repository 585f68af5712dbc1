"""Turn the tagged cells of the chapters into the package `ddlm_core` and its unit tests.

`python tools/export.py` writes the files that changed; with `--check` it writes nothing, and fails
if a file is out of step with its chapter or a rule below is broken.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chapters import CHAPTER_FILE, Cell, Chapter, is_import, problem, read_chapter

MODULE_ONLY = {"stories", "tiny_world"}  # sample()… means something only as stories.sample()
MAX_LINES, MAX_CLASS_LINES = 40, 85  # of an exported cell; a class cannot be split over cells
# `import ddlm_core` stays cheap, and the modules of the method know nothing of plots, UIs, data.
METHOD_BANS = ["datasets", "gradio", "hydra", "matplotlib", "ipywidgets"]
PACKAGE_BANS = [*METHOD_BANS, "accelerate", "huggingface_hub"]
LINE_LENGTH = 110  # as pyproject.toml allows for texts
LONG_LINES = "# ruff: noqa: E501"
HEADER = "# Generated from {} by tools/export.py: edit that, then run `make export`."
INIT = '''
"""A character-level discrete diffusion language model. Names resolve lazily, see `__init__.pyi`."""

import lazy_loader

__version__ = {version!r}
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
'''
BY_HAND = {  # public names that no chapter exports
    "apps.playground": ["Playground"],
    "apps.warm_start": ["warm_start"],
    "support.element": ["Live"],
}
FOLDERS_BY_HAND = ("support", "apps")  # below and above the chapters


@dataclass
class Output:
    """A file to generate."""

    chapter: Chapter
    head: list[str]
    imports: list[str]
    body: list[str]

    def text(self) -> str:
        top = "\n".join([HEADER.format(self.chapter.path), *self.head])
        return "\n\n".join([top, *self.imports, *self.body])


def modules_of(node: ast.Import | ast.ImportFrom, home: dict[str, str]) -> set[str]:
    """The modules of ddlm_core that an import statement asks for; `home`: name → module."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = node.module == "ddlm_core"  # from ddlm_core import noise, GeometricNoise
        names = [f"ddlm_core.{home.get(n, n)}" for n in names] if package else [node.module or ""]
    return {name.split(".")[1] for name in names if name.startswith("ddlm_core.")}


def layers(root: Path) -> dict[str, int]:
    """Module or folder of ddlm_core → its layer, 0 at the bottom: as pyproject.toml has it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            return {name: n for n, name in enumerate(reversed(contract["layers"]))}
    raise SystemExit("tools/export.py: pyproject.toml has no contract of layers")


def check_imports(
    chapters: list[Chapter], owner: dict[str, int], layer: dict[str, int]
) -> Iterator[str]:
    """Exported cells import from layers below theirs, all others from chapters before them.

    Chapter 0, the overview, compares what it says with the modules of all chapters.
    """
    home = {name: m for chapter in chapters for name, m in chapter.exports().items()}
    for order, chapter in enumerate(chapters):
        exported = {id(c): m for m, cells in chapter.tagged("export").items() for c in cells}
        overview = chapter.path.startswith("notebooks/00_")
        for module in sorted({*exported.values()} - layer.keys()):
            message = f"ddlm_core.{module} is in no layer of [tool.importlinter] in pyproject.toml"
            yield problem(chapter.path, message)
        for cell in chapter.cells:
            own = exported.get(id(cell))
            for node in filter(is_import, ast.walk(cell.tree)):
                line = cell.line + node.lineno - 1
                if any(alias.name == "*" for alias in node.names):
                    yield problem(chapter.path, "star import: name what you import", line)
                for module in sorted(modules_of(node, home)):
                    if own and layer.get(own, 0) <= layer.get(module, -1) and own != module:
                        message = f"ddlm_core.{own} imports ddlm_core.{module}, which is above it"
                        yield problem(chapter.path, message, line)
                    elif not own and not overview and owner.get(module, -1) > order:
                        later = f"ddlm_core.{module} of the later {chapters[owner[module]].path}"
                        yield problem(chapter.path, f"imports {later}", line)


def check_definitions(chapters: list[Chapter], owner: dict[str, int]) -> Iterator[str]:
    """Exported cells are short, and a name is defined once."""
    seen: dict[str, str] = {}
    for chapter in chapters:
        for module, cells in chapter.tagged("export").items():
            if (first := chapters[owner[module]]) is not chapter:
                yield problem(chapter.path, f"exports to {module}, a module of {first.path}")
            for cell in cells:
                has_class = any(isinstance(node, ast.ClassDef) for node in cell.tree.body)
                most = MAX_CLASS_LINES if has_class else MAX_LINES
                if (lines := cell.code_lines()) > most:
                    message = f"exports a cell of {lines} lines; at most {most}"
                    yield problem(chapter.path, message, cell.line)
                if cell.docstring() and cell is not cells[0]:
                    message = f"the docstring of {module} belongs into its first cell"
                    yield problem(chapter.path, message, cell.line)
        for kind in ("export", "test"):
            for module, cells in chapter.tagged(kind).items():
                for name, line in (pair for cell in cells for pair in cell.definitions()):
                    public = kind == "export" and not name.startswith("_")
                    key = name if public else f"{kind}:{module}.{name}"
                    where = seen.setdefault(key, f"{chapter.path}:{line}")
                    if where != f"{chapter.path}:{line}":
                        message = f"defines {name} again: {kind}ed at {where}"
                        yield problem(chapter.path, message, line)
                    if public and name in owner:
                        message = f"exports {name}, also the name of a module"
                        yield problem(chapter.path, message, line)


def check_tests(chapters: list[Chapter]) -> Iterator[str]:
    """A test cell shows nothing: what it does beside its tests would be lost."""
    for chapter in chapters:
        for cell in (cell for cells in chapter.tagged("test").values() for cell in cells):
            for node in cell.tree.body:
                if isinstance(node, ast.Expr | ast.For | ast.While) and not calls_tests(node):
                    message = "a test cell holds imports, definitions and calls of its tests only"
                    yield problem(chapter.path, message, cell.line + node.lineno - 1)


def module_output(chapter: Chapter, module: str, cells: list[Cell]) -> Output:
    """Docstring, imports, `__all__`, then the definitions in the order of the chapter.

    The docstring is the text that opens the first cell; without one, the title of the chapter.
    """
    title = chapter.title if module == chapter.name else f"{chapter.title}: {module}"
    docstring = f'"""{title}{"" if title.endswith(("?", "!")) else "."}"""'
    if text := cells[0].docstring():
        [docstring] = cells[0].text([text])
    output = Output(chapter, [docstring], [], [])
    for cell in cells:
        imports = list(filter(is_import, cell.tree.body))
        output.imports += cell.text(imports)
        output.body.append(cell.without(imports + ([text] if text and cell is cells[0] else [])))
    names = [n for n, m in chapter.exports().items() if m == module and not n.startswith("_")]
    output.body.insert(0, f"__all__ = {names!r}")
    return output


def calls_tests(node: ast.stmt, names: tuple[str, ...] = ()) -> bool:
    """True for `test_x(…)`, and for a loop that does nothing but call tests."""
    if isinstance(node, ast.For):
        names += tuple(n.id for n in ast.walk(node.target) if isinstance(n, ast.Name))
        return all(calls_tests(inner, names) for inner in node.body)
    called = node.value.func if isinstance(getattr(node, "value", None), ast.Call) else None
    return isinstance(called, ast.Name) and (called.id.startswith("test_") or called.id in names)


def test_output(chapter: Chapter, cells: list[Cell]) -> Output:
    """Imports and definitions, without the calls that show a reader that the tests pass."""
    output = Output(chapter, [], [], [])
    for cell in cells:
        imports = list(filter(is_import, cell.tree.body))
        calls = list(filter(calls_tests, cell.tree.body))
        output.imports += cell.text(imports)
        body = cell.without(imports + calls)
        if "slow" in cell.tags:
            output.imports.append("import pytest")
            body = re.sub(r"^(?=def test_)", "@pytest.mark.slow\n", body, flags=re.MULTILINE)
        output.body.append(body)
    return output


def init_texts(chapters: list[Chapter], root: Path) -> dict[str, str]:
    """`ddlm_core/__init__.py`, and the stub beside it that lists the public names."""
    modules = [m for chapter in chapters for m in chapter.tagged("export")]
    exports = [pair for chapter in chapters for pair in chapter.exports().items()]
    names = {module: [n for n, m in exports if m == module and n[0] != "_"] for module in modules}
    by_hand = {
        m: n for m, n in BY_HAND.items() if (root / f"ddlm_core/{m.replace('.', '/')}.py").exists()
    }
    named = {m: names[m] for m in modules if m not in MODULE_ONLY} | by_hand
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    if top := set(settings.get("tool", {}).get("ddlm", {}).get("top_level", [])):
        named = {m: [n for n in found if n in top] for m, found in named.items()}
        if missing := sorted(top - {n for found in named.values() for n in found}):
            raise SystemExit(f"tools/export.py: nothing exports {missing} of [tool.ddlm] top_level")
    lines = [f"from . import {m} as {m}" for m in modules]
    lines += [f"from .{m} import {n} as {n}" for m in named for n in named[m]]
    project, head = settings["project"], HEADER.format("notebooks/")
    return {
        "ddlm_core/__init__.py": head + INIT.format(version=project["version"]),
        "ddlm_core/__init__.pyi": "\n".join([head, *lines, ""]),
    }


def ruff(root: Path, stage: Path, *arguments: str) -> str:
    config = [f"--config={root / 'pyproject.toml'}", "--no-cache", "--quiet", str(stage)]
    command = [sys.executable, "-m", "ruff", *arguments, *config]
    done = subprocess.run(command, capture_output=True, text=True, cwd=stage)
    if done.stderr:
        sys.exit(f"tools/export.py: ruff: {done.stderr.strip()}")
    return done.stdout


def undefined_names(root: Path, stage: Path) -> list[tuple[str, str]]:
    """(file, name) for each name that a file uses but does not define (F821)."""
    found = json.loads(ruff(root, stage, "check", "--select=F821", "--output-format=json"))
    pairs = {(Path(f["filename"]).resolve(), f["message"].split("`")[1]) for f in found}
    return sorted((path.relative_to(stage).as_posix(), name) for path, name in pairs)


def build(
    root: Path, chapters: list[Chapter], stage: Path
) -> tuple[dict[str, Output | None], list[str]]:
    """Write every generated file below `stage`.

    Returns path → output (None: `__init__`), and what is wrong.
    """
    outputs: dict[str, Output] = {}
    for chapter in chapters:
        for module, cells in chapter.tagged("export").items():
            outputs[f"ddlm_core/{module}.py"] = module_output(chapter, module, cells)
        for module, cells in chapter.tagged("test").items():
            outputs[f"tests/test_{module}.py"] = test_output(chapter, cells)
    for folder in ("ddlm_core", "tests"):
        (stage / folder).mkdir()
    for folder in FOLDERS_BY_HAND:  # what is generated imports some of it
        if (root / "ddlm_core" / folder).exists():
            (stage / "ddlm_core" / folder).symlink_to(root / "ddlm_core" / folder)
    inits = init_texts(chapters, root)
    for path, text in inits.items():
        (stage / path).write_text(text, encoding="utf-8")
    for path, output in outputs.items():
        (stage / path).write_text(output.text(), encoding="utf-8")
    # What a file uses and does not define, it imports the way the chapter has it.
    for path, name in undefined_names(root, stage):
        if name in (known := outputs[path].chapter.bindings()):
            outputs[path].imports.append(known[name])
            (stage / path).write_text(outputs[path].text(), encoding="utf-8")
    wrong = []
    for path, name in undefined_names(root, stage):
        if not (chapter := outputs[path].chapter).broken:
            message = f"{path} uses {name}, which no cell exports or imports (F821)"
            wrong.append(problem(chapter.path, message))
    for rule in ("F401", "I"):  # in this order: what is not used would make an import too long
        ruff(root, stage, "check", f"--select={rule}", "--fix-only")
    ruff(root, stage, "format")
    for path in outputs:  # the formatter has seen the code; docstrings and texts are the chapter's
        text = (stage / path).read_text(encoding="utf-8")
        if max(map(len, text.splitlines())) > LINE_LENGTH:
            text = text.replace("\n", f"\n{LONG_LINES}\n", 1)
            (stage / path).write_text(text, encoding="utf-8")
    return dict.fromkeys(inits) | outputs, wrong


def check_import(stage: Path, module: str) -> list[str]:
    """Import one module in a clean process: it must work, and bring in nothing heavy."""
    banned = PACKAGE_BANS if module == "ddlm_core" else METHOD_BANS
    code = f"import sys, {module}; print(*[m for m in {banned} if m in sys.modules])"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=stage)
    if done.returncode:
        return [problem(module, f"does not import alone: {done.stderr.strip().splitlines()[-1]}")]
    if heavy := done.stdout.strip():
        return [problem(module, f"imports {heavy} when it is imported: import it where it is used")]
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; also try the imports")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the project")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    chapters, problems = [], []
    for path in sorted((root / "notebooks").glob("*.py")):
        if CHAPTER_FILE.fullmatch(path.name):
            chapter, wrong = read_chapter(path)
            chapters.append(chapter)
            problems += wrong
        else:
            message = "a chapter is named NN_name.py or A_name.py"
            problems.append(problem(f"notebooks/{path.name}", message))
    owner: dict[str, int] = {}  # module → index of its chapter
    for order, chapter in enumerate(chapters):
        for module in chapter.tagged("export"):
            owner.setdefault(module, order)
    problems += check_imports(chapters, owner, layers(root))
    problems += check_definitions(chapters, owner)
    problems += check_tests(chapters)

    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder).resolve()
        files, wrong = build(root, chapters, stage)
        problems += wrong
        if options.check:
            with ThreadPoolExecutor() as pool:
                modules = ["ddlm_core", *(f"ddlm_core.{m}" for m in owner)]
                for wrong in pool.map(lambda m: check_import(stage, m), modules):
                    problems += wrong
        for name, output in files.items():
            path, new = root / name, (stage / name).read_text(encoding="utf-8")
            if path.exists() and path.read_text(encoding="utf-8") == new:
                continue
            source = output.chapter.path if output else "notebooks/"
            if options.check:
                problems.append(problem(name, f"out of step with {source}: run `make export`"))
            elif not (output and output.chapter.broken):
                path.parent.mkdir(exist_ok=True)
                path.write_text(new, encoding="utf-8")
                print(f"wrote {name}")
    for path in sorted([*root.glob("ddlm_core/*.py*"), *root.glob("tests/test_*.py")]):
        name, ours = path.relative_to(root).as_posix(), HEADER.split("{}")[0]
        if name not in files and path.read_text(encoding="utf-8").startswith(ours):
            if options.check:
                problems.append(problem(name, "no chapter exports it any more: run `make export`"))
            elif not any(chapter.broken for chapter in chapters):
                path.unlink()
                print(f"removed {name}")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
