"""Write requirements.txt: one exact version of everything, for every Python and system we support.

`python tools/pins.py` lets uv resolve what pyproject.toml asks for, and keeps the pins that still
fit. Options of `uv pip compile` go through: `--upgrade` takes the newest versions,
`--upgrade-package NAME` that of one. With `--check` it needs no network and no uv: it fails where
a pin is missing, or does not fit what pyproject.toml asks for. `--lowest` prints the lowest version
that pyproject.toml allows for each (torch keeps its pin), to try whether these bounds are true.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("book", "export", "dev")
# What torch asks for on Linux, to the last digit, in its builds for GPUs; its CPU builds do not.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton\b")
HEAD = """\
# Written by tools/pins.py from pyproject.toml: edit that, then run `make pins`.
# One line installs everything, exactly as CI and the stored outputs had it:
#     pip install -r requirements.txt
# The package alone, with newer versions of its dependencies: pip install -e .

"""
LAST = f"""
# this project, editable
-e .[{",".join(EXTRAS)}]
"""


def read_project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pin_lines(root: Path) -> list[str]:
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(r"[\w.-]+==", line)]


def wanted(root: Path) -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    project = read_project(root)
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def lowest(root: Path) -> list[str]:
    """The lower bound of each requirement as a pin."""
    lines = [line for line in pin_lines(root) if line.startswith("torch==")]
    for need in wanted(root):
        if need.name != "torch":
            lines += [f"{need.name}=={s.version}" for s in need.specifier if s.operator == ">="]
    return lines


def problems(root: Path) -> list[str]:
    """Requirements that have no pin, or one that does not fit."""
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, pin_lines(root))}
    found = []
    for need in wanted(root):
        pin = pins.get(canonicalize_name(need.name))
        if pin is None:
            found.append(f"requirements.txt has no pin for {need}: run `make pins`")
        elif not need.specifier.contains(str(pin.specifier).removeprefix("==")):
            found.append(f"requirements.txt has {pin}, which is not {need}: run `make pins`")
    return found


def resolve(root: Path, options: list[str]) -> str:
    """The new text of requirements.txt."""
    if not (uv := shutil.which("uv")):
        raise SystemExit("tools/pins.py needs uv: pip install uv")
    python = read_project(root)["requires-python"].removeprefix(">=")
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")  # uv keeps what it finds here
        pins.write_text("\n".join(pin_lines(root)), encoding="utf-8")
        command = [uv, "pip", "compile", "pyproject.toml", "--universal", "--quiet", "--no-header"]
        command += [f"--extra={extra}" for extra in EXTRAS]
        command += ["--no-annotate", f"--python-version={python}", f"--output-file={pins}"]
        subprocess.run([*command, *options], cwd=root, check=True, stdout=subprocess.DEVNULL)
        lines = pins.read_text(encoding="utf-8").splitlines(keepends=True)
    return HEAD + "".join(line for line in lines if not OF_TORCH.match(line)) + LAST


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--lowest", action="store_true", help="print the lower bounds as pins")
    options, for_uv = parser.parse_known_args(arguments)
    if options.lowest:
        print(*lowest(options.root), sep="\n")
        return 0
    if not options.check:
        text = resolve(options.root.resolve(), for_uv)
        (options.root / "requirements.txt").write_text(text, encoding="utf-8")
    found = problems(options.root)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
