"""From the name of a model to the folder that holds it."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download

from ddlm_core.support.errors import error_context


def bundled_models() -> dict[str, Path]:
    """Name and folder of each model that ships with the package."""
    configs = Path(str(files("ddlm_core"))).glob("pretrained/*/config.json")
    return {config.parent.name: config.parent for config in sorted(configs)}


def model_folder(source: str | Path | None) -> Path:
    """The folder of a model: a path, a bundled name, a Hub id, or None for the default."""
    name, bundled = str("pocket-stories" if source is None else source), bundled_models()
    if source is not None and Path(name).is_dir():
        return Path(name)
    if name in bundled:
        return bundled[name]
    with error_context(
        f"no model {name!r}", f"name a folder, a Hub id (user/model), {', '.join(bundled)}"
    ):
        if Path(name).parent.is_dir():
            raise FileNotFoundError("no such folder")
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
