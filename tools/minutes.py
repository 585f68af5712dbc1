"""How long each page takes to read, and where this is said.

`python tools/minutes.py` writes the line under each title (*About 40 minutes. You need: …*), the
column of the README's table of chapters and the table of deeper pages in book/index.md, and prints
a table; `--check` fails where one is missing or old, or a chapter takes longer than it may.

Minutes = words / 150 + 0.8 · display formulas + visible lines of code / 8 + of tests / 20: fitted to
careful readings of the first edition. Collapsed cells do not count.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"00": 35, "01": 20, "02": 35, "03": 35, "04": 35, "05": 60, "06": 60, "07": 60}
LIMITS |= {"08": 60, "09": 50, "10": 45, "11": 60, "A": 45, "B": 30}
MAIN_LINE, IN_ALL = [f"{n:02}" for n in range(1, 11)], 420
COLLAPSED = ("hide-input", "hide-cell", "remove-cell", "remove-input", "solution")
LINE = re.compile(r"^# \*About (\d+) minutes?\. ", re.MULTILINE)
CELL = re.compile(r"^# %%", re.MULTILINE)
TITLE = re.compile(r"^# # (.+)", re.MULTILINE)
ROW = re.compile(r"(\(notebooks/(\w+)\.ipynb\)) \|[^|]*\|")  # of the table of chapters
DEEPER = "<!-- deeper -->\n{}<!-- end of deeper -->"


class Reading(NamedTuple):
    """What a reader of a page sees."""

    words: int = 0
    formulas: int = 0
    code: int = 0
    tests: int = 0

    @property
    def minutes(self) -> float:
        return self.words / 150 + 0.8 * self.formulas + self.code / 8 + self.tests / 20

    @property
    def about(self) -> int:
        """To the nearest five minutes, as the line says it."""
        return max(5, 5 * round(self.minutes / 5))


def measure(source: str) -> Reading:
    """The words, formulas and visible lines of a page's .py half."""
    words = formulas = code = tests = 0
    for cell in CELL.split(source)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            lines = [line for line in body.splitlines() if line.startswith("#")]
            text = "\n".join(line.lstrip("#").removeprefix(" ") for line in lines)
            formulas += len(re.findall(r"\$\$.*?\$\$", text, flags=re.DOTALL))
            words += len(re.sub(r"\$[^$]*\$", " x ", text).split())
        elif not any(tag in head for tag in COLLAPSED):
            count = sum(1 for line in body.splitlines() if line.strip())
            tests, code = (tests + count, code) if '"test' in head else (tests, code + count)
    return Reading(words, formulas, code, tests)


def chapters_table(readme: str, pages: dict[str, str]) -> str:
    """The README with the minutes of each chapter in the second column of their table."""

    def row(match: re.Match) -> str:
        page = pages.get(match[2])
        return f"{match[1]} | {measure(page).about} |" if page else match[0]

    return ROW.sub(row, readme)


def deeper_table(pages: dict[str, str], deeper: dict[str, str]) -> str:
    """A row for each deeper page, in the order in which the chapters lead to them."""
    rows = []
    for name, source in deeper.items():
        link = f"](deeper/{name}.ipynb"
        asks = [(page, text.index(link)) for page, text in pages.items() if link in text]
        number = asks[0][0].split("_")[0].removeprefix("0") if asks else ""
        chapter = f"[{number}](../notebooks/{asks[0][0]}.ipynb)" if asks else ""
        title, minutes = TITLE.search(source)[1], measure(source).about
        cells = f"[{title}](../notebooks/deeper/{name}.ipynb) | {minutes} | {chapter}"
        rows.append((asks[:1], f"| {cells} |\n"))
    table = "".join(row for _, row in sorted(rows))
    return f"| page | minutes | from chapter |\n|---|---|---|\n{table}"


def tables(root: Path) -> dict[Path, str]:
    """README.md and book/index.md as they should be."""
    pages, deeper = (
        {path.stem: path.read_text(encoding="utf-8") for path in sorted(root.glob(pattern))}
        for pattern in ("notebooks/*.py", "notebooks/deeper/*.py")
    )
    readme, index = root / "README.md", root / "book/index.md"
    text, table = index.read_text(encoding="utf-8"), deeper_table(pages, deeper)
    pattern = re.compile(DEEPER.format(".*?"), re.DOTALL)
    return {
        readme: chapters_table(readme.read_text(encoding="utf-8"), pages),
        index: pattern.sub(lambda _: DEEPER.format(table), text),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project")
    options = parser.parse_args(arguments)
    problems, total = [], 0.0
    if not options.check:
        print(f"{'page':28}{'words':>7}{'formulas':>10}{'code':>6}{'tests':>7}{'minutes':>9}")
    for path in sorted(options.root.glob("notebooks/**/*.py")):
        source = path.read_text(encoding="utf-8")
        reading, number = measure(source), path.stem.split("_")[0]
        if path.parent.name == "deeper":
            number = ""
        if number in MAIN_LINE:
            total += reading.minutes
        if reading.minutes > (limit := LIMITS.get(number, 999)):
            problems.append(f"{path.name} takes {reading.minutes:.0f} minutes, {limit} at most")
        if not options.check:
            row = "".join(f"{v:{w}}" for v, w in zip(reading, (7, 10, 6, 7), strict=True))
            print(f"{path.stem:28}{row}{reading.minutes:9.0f}")
        written = LINE.sub(f"# *About {reading.about} minutes. ", source, count=1)
        if not LINE.search(source):
            problems.append(f"{path.name} has no line `*About … minutes. …*` under its title")
        elif written != source and options.check:
            problems.append(f"{path.name} says another time: run `python tools/minutes.py`")
        elif written != source:
            path.write_text(written, encoding="utf-8")
    for path, written in tables(options.root).items():
        if written != path.read_text(encoding="utf-8") and options.check:
            problems.append(f"{path.name}: its table is old: run `python tools/minutes.py`")
        elif not options.check:
            path.write_text(written, encoding="utf-8")
    if total > IN_ALL:
        problems.append(f"chapters 1 to 10 take {total:.0f} minutes, {IN_ALL} at most")
    if not options.check:
        print(f"chapters 1 to 10: {total:.0f} minutes")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
