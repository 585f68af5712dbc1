"""Fail if git tracks a file that .gitignore names: what others wrote, or a command made.

`python tools/tracked.py` lists such files. Without git, or in a copy without history, it is silent.
"""

import argparse
import subprocess
import sys
from pathlib import Path


def ignored(root: Path) -> list[str]:
    """The tracked files below ``root`` that are ignored."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    found = ignored(parser.parse_args(arguments).root)
    for path in found:
        print(f"{path} is tracked and ignored: git rm --cached {path}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
