"""Put MathJax into _vendor/, so that no page of the book asks another host for anything.

`npm pack` fetches the pinned version, once; its checksum is compared before anything is unpacked.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "mathjax@3.2.2"
SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
# Of 24 MB: TeX to HTML with its fonts, what TeX commands load when they are used, and speech.
WANTED = (
    "LICENSE",
    "es5/tex-chtml.js",
    "es5/output/chtml/fonts/woff-v2/",
    "es5/input/tex/extensions/",
    "es5/a11y/",
    "es5/sre/mathmaps/base.json",
    "es5/sre/mathmaps/en.json",
)


def unpack(archive: Path, folder: Path) -> None:
    """Check the archive and write the wanted files, without the name of their top folder."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != SHA512:
        raise SystemExit(f"{PACKAGE} is not the file that it should be: its sha512 is {found}")
    with tarfile.open(archive) as package:
        for member in filter(tarfile.TarInfo.isfile, package):
            name = member.name.removeprefix("package/")
            if name.startswith(WANTED):
                target = folder / name.removeprefix("es5/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(package.extractfile(member).read())


def main() -> None:
    folder = Path(__file__).resolve().parents[1] / "_vendor/mathjax"
    stamp = folder / "version.txt"
    if stamp.exists() and stamp.read_text() == SHA512:
        return
    if not (npm := shutil.which("npm")):
        raise SystemExit(f"{PACKAGE} comes from the npm registry: install Node.js, which has npm")
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", place]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"npm could not fetch {PACKAGE}: is there a network?")
        unpack(next(Path(place).glob("*.tgz")), folder)
    stamp.write_text(SHA512)  # last: a half-written folder is written again
    print(f"vendored {PACKAGE}")


if __name__ == "__main__":
    sys.exit(main())
