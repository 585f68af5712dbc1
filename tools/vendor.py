"""Put MathJax and ONNX Runtime Web into _vendor/, so that no page of the book asks another host.

`npm pack` fetches the pinned versions, once; checksums are compared before anything is unpacked.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).resolve().parents[1] / "_vendor"


class Package(NamedTuple):
    """A package of the npm registry, and what of it goes where."""

    name: str  # and version
    sha512: str  # of the archive, in base64, as `npm view NAME dist.integrity` prints it
    folder: str
    top: str  # this folder of the package is left out of the names
    wanted: tuple[str, ...]  # beginnings of names


PACKAGES = (
    Package(
        "mathjax@3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        "mathjax",
        "es5/",
        (  # of 24 MB: TeX to HTML with its fonts, what TeX commands load when they are used, and speech
            "LICENSE",
            "es5/tex-chtml.js",
            "es5/output/chtml/fonts/woff-v2/",
            "es5/input/tex/extensions/",
            "es5/a11y/",
            "es5/sre/mathmaps/base.json",
            "es5/sre/mathmaps/en.json",
        ),
    ),
    Package(
        "onnxruntime-web@1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        "onnxruntime",
        "dist/",
        (  # of 130 MB: what computes in WebAssembly, and nothing for GPUs (MIT: package.json says it)
            "package.json",
            "dist/ort.wasm.bundle.min.mjs",
            "dist/ort-wasm-simd-threaded.wasm",
        ),
    ),
)


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """Check the archive and write the wanted files, without the name of their top folder."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise SystemExit(f"{package.name} is not the file that it should be: its sha512 is {found}")
    with tarfile.open(archive) as files:
        for member in filter(tarfile.TarInfo.isfile, files):
            name = member.name.removeprefix("package/")
            if name.startswith(package.wanted) and not name.endswith(".map"):
                target = folder / name.removeprefix(package.top)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.extractfile(member).read())


def fetch(package: Package) -> None:
    """Put a package into its folder, if it is not there yet."""
    folder = VENDOR / package.folder
    stamp = folder / "version.txt"
    if stamp.exists() and stamp.read_text() == package.sha512:
        return
    if not (npm := shutil.which("npm")):
        raise SystemExit(
            f"{package.name} comes from the npm registry: install Node.js, which has npm"
        )
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", package.name, "--silent", "--pack-destination", place]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"npm could not fetch {package.name}: is there a network?")
        unpack(package, next(Path(place).glob("*.tgz")), folder)
    stamp.write_text(package.sha512)  # last: a half-written folder is written again
    print(f"vendored {package.name}")


def main() -> None:
    for package in PACKAGES:
        fetch(package)


if __name__ == "__main__":
    sys.exit(main())
