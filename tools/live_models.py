"""Put the bundled models that the pages of the book run into _vendor/models/.

`ddlm-export` writes them from the weights in the package, once: again only if these, or what exports them,
have changed. Weights in half precision cost nothing that we could measure (benchmarks/README.md).
"""

import ast
import hashlib
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "float16"
MOST_BYTES = 4_000_000  # of a network
MAKERS = ("apps/export.py", "support/weights.py", "model.py", "blocks.py", "config.py")


def fingerprint(source: Path) -> str:
    """What the exported model depends on."""
    paths = [source / "model.safetensors", source / "config.json", source / "README.md"]
    paths += [ROOT / "ddlm_core" / name for name in MAKERS]
    found = hashlib.sha256(WEIGHTS.encode())
    for path in paths:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def named(root: Path = ROOT) -> set[str]:
    """The models of the elements that name none, and those that a ``Live(model=…)`` of a chapter names."""
    script = (root / "web/live/element.js").read_text(encoding="utf-8")
    found = set(re.findall(r"\bmodel: '([^']+)'", script))
    for chapter in (root / "notebooks").glob("*.py"):
        for node in ast.walk(ast.parse(chapter.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Live":
                found |= {
                    ast.literal_eval(word.value) for word in node.keywords if word.arg == "model"
                }
    return found


def main(folder: Path = ROOT / "_vendor/models") -> None:
    wanted = named()
    for source in sorted((ROOT / "ddlm_core/pretrained").iterdir()):
        if source.name not in wanted:
            continue
        target = folder / source.name
        stamp, version = target / "version.txt", fingerprint(source)
        if stamp.exists() and stamp.read_text() == version:
            continue
        from ddlm_core.apps.export import export  # takes seconds, so only if it is needed

        shutil.rmtree(target, ignore_errors=True)
        said = list(export(source, target, WEIGHTS))
        size = (target / "model.onnx").stat().st_size
        if size > MOST_BYTES:
            raise SystemExit(f"{target / 'model.onnx'} has {size} bytes, more than a page may load")
        stamp.write_text(version)  # last: a half-written folder is written again
        print(said[-1])


if __name__ == "__main__":
    sys.exit(main())
