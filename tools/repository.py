"""Write the address of the repository everywhere: `python tools/repository.py https://github.com/…`.

It is defined once, in pyproject.toml. Badges, buttons, links and install cells repeat it; `--check`
fails if one of them has another.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "README.md",
    "CITATION.cff",
    "_config.yml",
    "book/*.md",
    "notebooks/**/*.py",
    "notebooks/**/*.ipynb",
    "ddlm_core/support/element.py",
)
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def address(root: Path = ROOT) -> str:
    """What pyproject.toml says."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def mentions(url: str) -> re.Pattern:
    """The repository in a link to GitHub, Colab (`github/…`) or Binder (`gh/…`)."""
    name = re.escape(ADDRESS.fullmatch(url)[1])
    return re.compile(rf"((?:github\.com|github|gh)/){name}(?![\w-])")


def pages(url: str) -> str:
    """Where GitHub publishes the book of a repository."""
    owner, name = ADDRESS.fullmatch(url)[1].split("/")
    return f"https://{owner}.github.io/{name}/"


def write(root: Path, new: str) -> list[str]:
    """Put `new` in the place of the old address; names of the files that changed."""
    pattern, slug = mentions(address(root)), ADDRESS.fullmatch(new)[1]
    before, after = pages(address(root)), pages(new)
    changed = []
    for path in sorted(path for place in ("pyproject.toml", *PLACES) for path in root.glob(place)):
        text = path.read_text(encoding="utf-8")
        written = pattern.sub(rf"\g<1>{slug}", text).replace(before, after)
        if written != text:
            path.write_text(written, encoding="utf-8")
            changed.append(path.relative_to(root).as_posix())
    return changed


def problems(root: Path) -> list[str]:
    """Places where the address must stand, and does not."""
    pattern = mentions(address(root))
    wanted = [
        root / "README.md",
        root / "CITATION.cff",
        root / "_config.yml",
        root / "book/index.md",
    ]
    wanted += sorted(root.glob("notebooks/**/*.py"))
    found = [
        f"{path.relative_to(root)} does not have the address of the repository, {address(root)}"
        for path in wanted
        if not pattern.search(path.read_text(encoding="utf-8"))
    ]
    element = root / "ddlm_core/support/element.py"
    if pages(address(root)) not in element.read_text(encoding="utf-8"):
        found.append(f"{element.relative_to(root)} does not have {pages(address(root))}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="https://github.com/OWNER/NAME")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project")
    options = parser.parse_args(arguments)
    if options.url:
        if not ADDRESS.fullmatch(options.url):
            parser.error(f"{options.url} is not like https://github.com/OWNER/NAME")
        print(*write(options.root, options.url), sep="\n")
    found = problems(options.root) if options.check else []
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
