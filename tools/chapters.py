"""What a chapter is made of: cells with tags, imports and definitions.

Tags: `export` goes to ddlm_core/<chapter>.py, `export:name` to ddlm_core/name.py; `test` and
`test:name` go to tests/test_<chapter>.py and tests/test_name.py. A text in triple quotes that opens
the first cell of a module is the docstring of that module. A plain `pytest` leaves out the tests of
cells that are tagged `slow` as well.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jupytext

CHAPTER_FILE = re.compile(r"(?:\d\d|[A-Z])_([a-z]\w*)\.py")
OUR_TAG = re.compile(r"(export|test)(?::([a-z]\w*))?")
OTHER_TAG = re.compile(
    r"slow|solution|parameters|raises-exception|nbval-[a-z-]+|(hide|remove)-(input|output|cell)"
)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def problem(where: str, message: str, line: int | None = None) -> str:
    """One line that says what is wrong, and where."""
    return f"{where}{f':{line}' if line else ''}: {message}"


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@dataclass
class Cell:
    source: str
    tree: ast.Module
    tags: list[str]
    line: int  # of the cell's first line in the chapter

    def docstring(self) -> ast.Expr | None:
        """The text that opens the cell, if one does."""
        first = self.tree.body[0] if self.tree.body else None
        return first if ast.get_docstring(self.tree) is not None else None

    def text(self, nodes: list[ast.stmt]) -> list[str]:
        """The source of some of its statements."""
        lines = self.source.splitlines()
        return ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]

    def without(self, nodes: list[ast.stmt]) -> str:
        """The source of all but some of its statements, comments included."""
        gone = {n for node in nodes for n in range(node.lineno, node.end_lineno + 1)}
        kept = [s for n, s in enumerate(self.source.splitlines(), 1) if n not in gone]
        return "\n".join(kept).strip()

    def definitions(self) -> Iterator[tuple[str, int]]:
        """Each name defined at top level (imports aside), and its line in the chapter."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, self.line + node.lineno - 1
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for part in (part for target in targets for part in ast.walk(target)):
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        yield part.id, self.line + node.lineno - 1

    def code_lines(self) -> int:
        """Lines of code: no docstring, blank line or comment; a long string counts once."""
        silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        lines = {t.start[0] for t in tokens if t.type not in silent and t.string}
        for node in ast.walk(self.tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        return len(lines)


@dataclass
class Chapter:
    path: str  # relative to the root
    title: str = ""
    cells: list[Cell] = field(default_factory=list)
    broken: bool = False  # by a syntax error: its files are left as they are

    @property
    def name(self) -> str:
        return CHAPTER_FILE.fullmatch(Path(self.path).name)[1]

    def tagged(self, kind: str) -> dict[str, list[Cell]]:
        """Module → the cells tagged `kind` or `kind:module`."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            for match in filter(None, map(OUR_TAG.fullmatch, cell.tags)):
                if match[1] == kind:
                    found.setdefault(match[2] or self.name, []).append(cell)
        return found

    def exports(self) -> dict[str, str]:
        """Exported name → module, private names included, in the order of the chapter."""
        exported = self.tagged("export").items()
        return {
            name: m for m, cells in exported for cell in cells for name, _ in cell.definitions()
        }

    def bindings(self) -> dict[str, str]:
        """Name → the statement that imports it: one of the chapter's, or from its own modules."""
        found = {}
        for cell in self.cells:
            for node in filter(is_import, cell.tree.body):
                for alias in node.names:
                    found[alias.asname or alias.name.split(".")[0]] = cell.text([node])[0]
        own = {name: f"from ddlm_core.{m} import {name}" for name, m in self.exports().items()}
        return found | own


def read_chapter(path: Path) -> tuple[Chapter, list[str]]:
    """The chapter, and what is wrong with it: one line each."""
    chapter, problems = Chapter(f"notebooks/{path.name}"), []
    text, cursor = path.read_text(encoding="utf-8"), 0
    for raw in jupytext.reads(text, fmt="py:percent").cells:
        if raw.cell_type == "markdown" and not chapter.title:
            heading = re.search(r"^# (.+)", raw.source, re.MULTILINE)
            chapter.title = heading[1].strip() if heading else ""
        if raw.cell_type != "code" or raw.source.startswith("%%"):
            continue
        cursor = max(cursor, text.find(raw.source, cursor))
        line = text[:cursor].count("\n") + 1
        tags = raw.metadata.get("tags", [])
        for tag in tags:
            if not OUR_TAG.fullmatch(tag) and not OTHER_TAG.fullmatch(tag):
                problems.append(problem(chapter.path, f"unknown tag {tag!r} (misspelt?)", line))
        # Lines for IPython (%pip install …) are not Python.
        source = re.sub(r"^(\s*)[%!].*", r"\1pass", raw.source, flags=re.MULTILINE)
        try:
            chapter.cells.append(Cell(source, ast.parse(source), tags, line))
        except SyntaxError as error:
            chapter.broken = True
            where = line + (error.lineno or 1) - 1
            problems.append(problem(chapter.path, f"syntax error: {error.msg}", where))
        cursor += len(raw.source)
    if not chapter.title:
        problems.append(problem(chapter.path, "no title (a Markdown cell with `# Title`)"))
    return chapter, problems
