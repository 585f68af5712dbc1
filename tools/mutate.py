"""Break the code on purpose and see whether its tests notice: `python tools/mutate.py loss noise`.

A mutant is a module with one random small change: `<` for `<=`, `n + 1` for `n`, a call left out.
The tests kill it if they fail or run out of time. The score is the share killed, give or take 0.05
(of 25), without those of tools/mutants.txt, which cannot act differently. A survivor is a line that
may be wrong unnoticed. Single changes, as two may hide each other; random, so as to favor no test.
"""

import argparse
import ast
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import NamedTuple

MORE_TESTS = {
    "bound": ["tests/unit/test_training.py", "tests/test_training.py"],
    "sampling_options": ["tests/unit/test_pipeline.py", "tests/test_pipeline.py"],
    "reverse": ["tests/test_sampler.py", "tests/unit/test_sampler.py"],
    "animation": ["tests/integration/test_renderers.py"],
    "training": ["tests/test_data.py"],
}
NEEDED = {"ddlm_core", "tests", "tools", "conftest.py", "pyproject.toml"}
SWAPS = {
    "+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "**": ["*"], "//": ["*"], "%": ["*"],
    "+=": ["-="], "-=": ["+="], "*=": ["/="], "/=": ["*="], "&": ["|"], "|": ["&"],
    "<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="],
    "!=": ["=="], "is": ["is not"], "is not": ["is"], "in": ["not in"], "not in": ["in"],
    "and": ["or"], "or": ["and"],
}  # fmt: skip
SIMPLE = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Constant)  # need no parentheses


class Mutant(NamedTuple):  # the touched lines joined, before and after, and the changed module
    line: int
    before: str
    after: str
    source: bytes


def visible(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without annotations, what is raised, and f-strings."""
    if not isinstance(node, ast.Raise | ast.JoinedStr):  # f-string positions: wrong in Python 3.11
        yield node
        for child in ast.iter_child_nodes(node):
            if child not in [getattr(node, name, None) for name in ("annotation", "returns")]:
                yield from visible(child)


def all_mutants(source: bytes) -> list[Mutant]:
    """Every mutant that is valid Python and another program, in the order of the file."""
    tree = ast.parse(source)
    starts = [0, *(newline.end() for newline in re.finditer(b"\n", source))]
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    owners = {a.asname or a.name.split(".")[0] for n in imports for a in n.names} | {"self", "cls"}
    statements = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found: dict[str, Mutant | None] = {ast.dump(tree): None}

    def span(node: ast.AST) -> tuple[int, int]:
        start, end = starts[node.lineno - 1], starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def add(start: int, end: int, new: str) -> None:
        mutated = source[:start] + new.encode() + source[end:]
        first = source.rfind(b"\n", 0, start) + 1
        rest = len(source) - (source + b"\n").find(b"\n", end)
        texts = (text[first : len(text) - rest].decode() for text in (source, mutated))
        before, after = (" ".join(map(str.strip, text.strip().split("\n"))) for text in texts)
        made = Mutant(source.count(b"\n", 0, start) + 1, before, after, mutated)
        with suppress(SyntaxError):  # f(0).x: 0.x
            found.setdefault(ast.dump(ast.parse(mutated)), made)

    def keep(node: ast.AST, inner: ast.AST, prefix: str = "") -> None:
        text = source[slice(*span(inner))].decode()
        plain = isinstance(inner, SIMPLE) and "\n" not in text and not prefix
        add(*span(node), text if plain else f"{prefix}({text})")

    def swap(left: ast.AST, right: ast.AST) -> None:
        start, end = span(left)[1], span(right)[0]
        symbol = re.search(rb"[^\s()\\]+(\s+(in|not))?", source[start:end])
        for other in SWAPS.get(" ".join(symbol[0].decode().split()), []):
            add(start + symbol.start(), start + symbol.end(), other)

    for node in visible(tree):
        match node:
            case ast.BinOp(left=left, right=right) | ast.AugAssign(target=left, value=right):
                swap(left, right)
            case ast.Compare() | ast.BoolOp():
                operands = getattr(node, "values", None) or [node.left, *node.comparators]
                for left, right in zip(operands, operands[1:]):
                    swap(left, right)
            case ast.UnaryOp():
                keep(node, node.operand)  # -x, ~x, not x: x
            case ast.Constant(value=int() | float() as value):
                for new in [not value] if isinstance(value, bool) else [value + 1, 2 * value]:
                    add(*span(node), repr(new))
            case ast.Expr(value=ast.Call()):
                add(*span(node), "pass")
            case ast.Call() if node not in statements:
                root = owner = getattr(node.func, "value", None)
                while isinstance(root, ast.Attribute):
                    root = root.value
                if owner and getattr(root, "id", None) not in owners:
                    keep(node, owner)  # x.clamp(min=1): x
                elif node.args and not isinstance(node.args[0], ast.Starred):
                    keep(node, node.args[0])  # torch.exp(x): x
            case ast.If(test=test) | ast.IfExp(test=test):
                if not isinstance(test, ast.Compare | ast.UnaryOp):  # those are negated above
                    keep(test, test, "not ")
    return sorted(filter(None, found.values()))


def survivals(module: str, mutants: list[Mutant], options: argparse.Namespace) -> list[bool]:
    """Whether each mutant passes the tests; ends all if the module itself does not."""
    root, file = options.root, f"test_{module.split('/')[-1]}.py"
    tests = [f"tests/unit/{file}", f"tests/{file}", *MORE_TESTS.get(module, [])]
    tests = [path for path in tests if (root / path).exists()] or sys.exit(f"{module}: no tests")
    command = [sys.executable, "-m", "pytest", "-xq", "-pno:cacheprovider", "-pno:nbval", *tests]
    # A mutant of the same size and second as the one before must not run with its bytecode.
    # Nor are options for a surrounding pytest (CI: --cov) meant for these.
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    base = os.environ | quiet
    free: list[Path] = []  # copies of the project, as many as threads

    def passes(source: bytes, timeout: float | None = None) -> bool:
        folder = free.pop()
        (folder / f"ddlm_core/{module}.py").write_bytes(source)
        env = base | {"PYTHONPATH": str(folder), "TMPDIR": str(folder)}
        with (folder / "log").open("wb") as log:
            run = Popen(command, cwd=folder, env=env, stdout=log, stderr=log, process_group=0)
            try:
                run.wait(timeout)
            except TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)  # with the commands that a test started
                run.wait()
        free.append(folder)
        return run.returncode == 0

    with tempfile.TemporaryDirectory(prefix="mutate-") as temporary:
        skip = {str(root): set(os.listdir(root)) - NEEDED}
        for job in range(options.jobs):
            free.append(folder := Path(temporary, str(job)))
            shutil.copytree(root, folder, ignore=lambda at, _: skip.get(at, ()))
            config = folder / "pyproject.toml"  # nbval would execute chapters
            config.write_text(re.sub(r"--nbval[\w=-]*", "", config.read_text("utf-8")), "utf-8")
        begin = time.monotonic()
        if not passes((root / f"ddlm_core/{module}.py").read_bytes()):
            sys.exit((folder / "log").read_text("utf-8") + f"{module}: its tests fail as it is")
        timeout = options.timeout or 10 + 10 * (time.monotonic() - begin)
        if passes(b"raise RuntimeError"):
            sys.exit(f"{module}: its tests do not import the copy that is broken")
        with ThreadPoolExecutor(options.jobs) as pool:
            return list(pool.map(lambda mutant: passes(mutant.source, timeout), mutants))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", help="below ddlm_core: loss, support/errors")
    parser.add_argument("--count", type=int, default=25, help="mutants to draw per module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", type=int, help="only mutants of this line")
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, help="seconds; default 10 + 10 x the clean run")
    parser.add_argument("--least", type=float, default=0.0, help="exit code 1 below this score")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the project")
    options = parser.parse_args(arguments)
    rows, good = [f"{'module':20}  killed   drawn  equivalent   score"], True
    for module in options.modules:
        source = (options.root / f"ddlm_core/{module}.py").read_bytes()
        mutants = [m for m in all_mutants(source) if options.line in (None, m.line)]
        chance = random.Random(f"{options.seed} {module}")  # whatever other modules are named
        mutants = sorted(chance.sample(mutants, min(options.count, len(mutants))))
        lines = (options.root / "tools/mutants.txt").read_text("utf-8").splitlines()
        listed = [line.split(" | ") for line in lines if line.startswith(f"{module} | ")]
        alive = [True] * len(mutants) if options.list else survivals(module, mutants, options)
        killed = equivalent = 0
        for m, survived in zip(mutants, alive):
            reasons = [why for _, old, new, why in listed if m.before.replace(old, new) == m.after]
            killed += not survived and not reasons
            equivalent += bool(reasons)
            good &= survived or not reasons
            if survived or reasons:
                note = (
                    f"  # {'equivalent' if survived else 'KILLED'}: {reasons[0]}" if reasons else ""
                )
                print(f"{module}:{m.line}  {m.before}  ->  {m.after}{note}", flush=True)
        score = killed / (len(mutants) - equivalent or 1)
        good &= options.list or score >= options.least
        rows.append(f"{module:20}{killed:8}{len(mutants):8}{equivalent:12}{score:8.2f}")
    if not options.list:
        print("", *rows, sep="\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
