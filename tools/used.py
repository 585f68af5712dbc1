"""What a chapter is executed with: a digest of the code and the files of the package that it uses.

Counted are the modules of ddlm_core that its cells name, those that these name in turn, and the
files of the package (configurations, weights, styles) that occur in their texts. Comments,
docstrings, layout, and types of arguments and results do not count, so correcting a docstring
executes nothing again.
"""

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from chapters import DOCUMENTED, read_chapter

DOTTED = re.compile(r"\bddlm_core((?:\.\w+)+)")
COMMAND = re.compile(r"\bddlm-\w+")
NOT_USED = {".py", ".pyi", ".pyc", ".md"}  # code is followed by its imports; cards are for readers


def is_docstring(parent: ast.AST, field: str, index: int) -> bool:
    documented = isinstance(parent, DOCUMENTED | ast.AsyncFunctionDef)
    return documented and field == "body" and index == 0 and ast.get_docstring(parent) is not None


def plain(node: Any) -> Any:
    """A syntax tree as lists: no docstrings, no line numbers, the same on every Python."""
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            value = [plain(v) for i, v in enumerate(value) if not is_docstring(node, name, i)]
        elif value is not None and name not in ("annotation", "returns"):
            value = plain(value)
        elif isinstance(node, ast.AnnAssign) and name == "annotation":
            value = plain(value)  # of a field: a dataclass may act on it
        else:
            value = None  # types of arguments and results
        if value and name != "kind":  # what is empty, other versions of Python may not have
            fields.append([name, value])
    return [type(node).__name__, *fields]


@cache
def parsed(path: Path, changed: int) -> tuple[list, frozenset[str], frozenset[str]]:
    """The code of a file, the dotted names of ddlm_core in it, and the words of its texts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return plain(tree), frozenset(names(tree, path.parent)), frozenset(words(tree))


def names(tree: ast.AST, folder: Path | None = None) -> Iterator[str]:
    """What a piece of code asks for in ddlm_core: `noise.GeometricNoise`, `support.files`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name[10:] for a in node.names if a.name.startswith("ddlm_core."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and folder:  # relative: from its own folder, or one above
                parts = folder.parts[folder.parts.index("ddlm_core") :]
                module = ".".join([*parts[: len(parts) + 1 - node.level], *filter(None, [module])])
            if module.split(".")[0] == "ddlm_core":
                yield from (f"{module}.{alias.name}"[10:] for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield from (m[1:] for m in DOTTED.findall(ast.unparse(node)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (m[1:] for m in DOTTED.findall(node.value))


def texts_in(tree: ast.AST) -> Iterator[str]:
    """All texts in a piece of code, docstrings aside."""
    bodies = (n.body for n in ast.walk(tree) if isinstance(n, DOCUMENTED | ast.AsyncFunctionDef))
    silent = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in silent:
            yield node.value


def words(tree: ast.AST) -> Iterator[str]:
    """The words of these texts, and the names of files."""
    for text in texts_in(tree):
        yield from re.split(r"[^\w-]+", text)
        yield from re.findall(r"[\w-]+\.json\b", text)


def module_of(name: str, package: Path, home: dict[str, str]) -> Path | None:
    """The file that defines a dotted name, or None."""
    parts = name.split(".")
    if not (package / parts[0]).is_dir() and not (package / f"{parts[0]}.py").exists():
        parts = home.get(parts[0], "").split(".")
    for n in range(len(parts), 0, -1):
        place = package.joinpath(*parts[:n])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if parts[0] and path.exists():
                return path
    return None


def public_names(package: Path) -> dict[str, str]:
    """Name that `ddlm_core` itself offers → the module that defines it."""
    stub = package / "__init__.pyi"
    text = stub.read_text(encoding="utf-8") if stub.exists() else ""
    return {name: m for m, name in re.findall(r"^from \.([\w.]+) import (\w+) as", text, re.M)}


def keywords(path: Path) -> set[str]:
    """The words that must all be said in texts, for a file of the package to count as used."""
    if path.parts[0] == "configs":  # they name each other: all of them, or none
        return {"configs"}
    if path.parts[0] == "results":  # a stem may be any word, such as "sampling"
        return {path.name}
    return set(path.parts[:2]) if path.parts[0] == "pretrained" else {path.stem}


def files_of_chapter(source: Path, root: Path) -> list[Path]:
    """The files of the package that a chapter uses, in order."""
    package = root / "ddlm_core"
    home = public_names(package)
    chapter, _ = read_chapter(source)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked, said = set(), set()
    for cell in chapter.cells:
        asked |= {*names(cell.tree)}
        said |= {*words(cell.tree)}
    lines = re.findall(r"^(?:# )?[!%]\S.*$", source.read_text(encoding="utf-8"), re.MULTILINE)
    run = [text for cell in chapter.cells for text in texts_in(cell.tree)] + lines
    for command in COMMAND.findall("\n".join(run)):  # to name one in prose is not to use it
        entry = project.get("scripts", {}).get(command, "")
        asked |= {m[1:] for m in DOTTED.findall(entry)}
    code: set[Path] = set()
    while asked:
        path = module_of(asked.pop(), package, home)
        if path and path not in code:
            code.add(path)
            _, more, texts = parsed(path, path.stat().st_mtime_ns)
            asked |= more
            said |= texts
    data = (p for p in package.rglob("*") if p.is_file() and p.suffix not in NOT_USED)
    return sorted(code | {p for p in data if keywords(p.relative_to(package)) <= said})


def digest_of_code(source: Path, root: Path) -> str:
    """Changes when what a chapter uses changes in what it does."""
    found = hashlib.sha256()
    for path in files_of_chapter(source, root):
        if path.suffix == ".py":
            text = json.dumps(parsed(path, path.stat().st_mtime_ns)[0]).encode()
        elif path.suffix in (".yaml", ".yml"):  # without its comments
            text = json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))).encode()
        else:
            text = path.read_bytes().replace(b"\r\n", b"\n")  # as git may write it on Windows
        name = path.relative_to(root).as_posix().encode()
        found.update(b"%d %s %d\n" % (len(name), name, len(text)) + text)
    return found.hexdigest()[:16]
