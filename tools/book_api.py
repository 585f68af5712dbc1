"""The API reference (book/api.md): docstrings in the form that Sphinx wants, and links between each
public name and the cell of the chapter that builds it.
"""

import ast
import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "book/api"
GOOGLE = Config()
SUPPORT = {"UserError": "support.errors", "StepResult": "support.progress"}  # on the page as well
ROOT = Path(__file__).parents[1]
CHAPTER = re.compile(r"notebooks/0?(\d+|[A-Z])_\w+")
MATH = re.compile(r"(``.*?``)|(?:(\w)?\$([^$]+)\$(?=(\w)?))", re.DOTALL)
RETURNS = re.compile(r"^Returns:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)


@cache
def exports(root: Path = ROOT) -> dict[str, tuple[str, list[str]]]:
    """For each generated module the page of its chapter and its public names."""
    found = {}
    for path in sorted((root / "ddlm_core").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        header = re.match(r"# Generated from (notebooks/\w+)\.py", text)
        for node in ast.parse(text).body if header else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[path.stem] = header[1], ast.literal_eval(node.value)
    return found


def assigned(node: ast.stmt) -> list[str]:
    """The plain names that a statement gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    parts = [part for target in targets for part in ast.walk(target)]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def anchor(name: str) -> str:
    """The id, in its chapter, of the cell that defines a name."""
    return f"def-{name}"


# --- docstrings


def with_math(text: str) -> str:
    """``$…$`` as the role that typesets it; what stands in double backticks stays."""

    def role(match: re.Match) -> str:
        literal, before, tex, after = match.groups()
        if literal:
            return literal
        # Text that touches a role is parted from it by an escaped space, which is not shown.
        left = rf"{before}\ " if before else ""
        return rf"{left}:math:`{tex}`" + (r"\ " if after else "")

    return MATH.sub(role, text)


def comment_of(node: ast.stmt, lines: list[str]) -> list[str]:
    """The comment behind an assignment, as a sentence."""
    for line in lines[node.lineno - 1 : node.end_lineno]:
        if comment := line.partition("  # ")[2]:
            return [f"{comment[0].upper()}{comment[1:].rstrip('.')}."]
    return []


def describe_values(app: Sphinx) -> None:
    """For autodoc, the comment behind a public constant or a field is its docstring."""
    for module, (_, names) in exports().items():
        analyzer = ModuleAnalyzer.for_module(f"ddlm_core.{module}")
        docs, lines = analyzer.find_attr_docs(), analyzer.code.splitlines()
        places = {name: first for name, (_, first, _) in analyzer.tags.items()}
        for outer in ast.parse(analyzer.code).body:
            scope = outer.name if isinstance(outer, ast.ClassDef) else ""
            for node in outer.body if scope else [outer]:
                comment = comment_of(node, lines)
                for name in assigned(node):
                    if comment if scope else name in names:  # fields may go without
                        docs.setdefault((scope, name), comment or [""])
                    places[f"{scope}.{name}".lstrip(".")] = node.lineno
        analyzer.tagorder.update(places)


def process_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Formulas, and sections such as ``Args``, from the form they have in the code."""
    text = with_math("\n".join(lines))
    if what not in ("attribute", "data", "property"):  # of these, a colon would part off a type
        # The same for what is returned: it becomes a field at once.
        text = RETURNS.sub(lambda match: f":returns: {match[1].strip()}\n", text)
        text = str(GoogleDocstring(text, GOOGLE, app, what, name, obj, options))
    lines[:] = text.split("\n")


def short_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Of a dataclass the fields and their defaults: the types stand at the fields."""
    if what != "class" or not is_dataclass(obj):
        return None
    shown = []
    for field in (field for field in fields(obj) if field.init):
        value = "" if field.default is MISSING else f"={field.default!r}"
        missing = field.default_factory is not MISSING or len(value) > 30
        shown.append(field.name + ("=..." if missing else value))
    return f"({', '.join(shown)})", returned


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Fields of a named tuple without a comment say nothing."""
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number")


def public_name(app: Sphinx, env: Any, node: addnodes.pending_xref, content: nodes.Node) -> Any:
    """A docstring may name what another module exports without its module, as users import it."""
    home = {name: module for module, (_, names) in exports().items() for name in names}
    full = f"ddlm_core.{(home | SUPPORT).get(name := node['reftarget'])}.{name}"
    if node.get("refdomain") != "py" or name not in home | SUPPORT:
        return None
    where = (env, node["refdoc"], app.builder, node["reftype"], full, node, content)
    return env.get_domain("py").resolve_xref(*where)


# --- from a name to its chapter, and back


class ChapterLinks(SphinxPostTransform):
    """On the API page: behind each name a link to the cell that defines it."""

    default_priority = 500

    def run(self, **kwargs: Any) -> None:
        if self.env.docname != PAGE:
            return
        for signature in self.document.findall(addnodes.desc_signature):
            module, name = (signature.get(key, "") for key in ("module", "fullname"))
            page, names = exports().get((module or "").removeprefix("ddlm_core."), ("", []))
            if name in names:
                uri = f"{self.app.builder.get_relative_uri(PAGE, page)}#{anchor(name)}"
                number = CHAPTER.fullmatch(page)[1]
                label = f"{'chapter' if number.isdigit() else 'appendix'} {number}"
                signature += nodes.reference("", label, refuri=uri, classes=["api-chapter"])


class ApiLinks(SphinxTransform):
    """In a chapter: an id at each cell that defines a public name, and links to the API page."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        here = self.env.docname
        modules = {m: names for m, (page, names) in exports().items() if page == here}
        if not modules:
            return
        home = {name: module for module, names in modules.items() for name in names}
        self.mark_cells(home)
        uri = self.app.builder.get_relative_uri(here, PAGE)
        tables = [t for t in self.document.findall(nodes.table) if "exported name" in t.astext()]
        for table in tables:
            for code in list(table.findall(nodes.literal)):
                name = re.match(r"(?:[a-z_]+\.(?=[a-z]))?(\w*)", code.astext())[1]
                if name in home:
                    target = f"{uri}#ddlm_core.{home[name]}.{name}"
                    code.replace_self(nodes.reference("", "", code.deepcopy(), refuri=target))
        foot = nodes.paragraph(
            "", "Arguments, shapes and errors: the API of ", classes=["api-foot"]
        )
        for number, module in enumerate(modules):
            foot += [nodes.Text(" and ")] if number else []
            link = nodes.literal(module, module)
            foot += nodes.reference("", "", link, refuri=f"{uri}#module-ddlm_core.{module}")
        foot += nodes.Text(".")
        if tables:
            place = tables[-1].parent
            place.insert(place.index(tables[-1]) + 1, foot)
        else:
            [*self.document.findall(nodes.section)][-1].append(foot)

    def mark_cells(self, home: dict[str, str]) -> None:
        for cell in self.document.findall(nodes.container):
            if any(tag.startswith("tag_export") for tag in cell.get("classes", ())):
                code = next(cell.findall(nodes.literal_block)).astext()  # the source comes first
                for node in ast.parse(code).body:
                    for name in [*assigned(node), getattr(node, "name", "")]:
                        if name in home:
                            cell["ids"].append(anchor(name))


def lighter(app: Sphinx, page: str, template: str, context: dict, tree: nodes.Node) -> None:
    """A third of the reference would be marks that keep words of code from breaking."""
    if page == PAGE:
        context["body"] = re.sub(r'<span class="pre">(.*?)</span>', r"\1", context["body"])


def setup(app: Sphinx) -> dict:
    sys.path.insert(0, str(ROOT))  # autodoc imports the package of this very tree
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", describe_values)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", public_name)
    app.connect("html-page-context", lighter)
    app.add_transform(ApiLinks)
    app.add_post_transform(ChapterLinks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
