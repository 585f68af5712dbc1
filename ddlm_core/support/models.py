"""From the name of a model to the folder that holds it."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from ddlm_core.support.errors import UserError, error_context

FILES = ["config.json", "model.safetensors"]


def bundled_models() -> dict[str, Path]:
    """Name and folder of each model that ships with the package."""
    configs = Path(str(files("ddlm_core"))).glob("pretrained/*/config.json")
    return {config.parent.name: config.parent for config in sorted(configs)}


def model_folder(source: str | Path | None, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        source: a path, a bundled name, a Hub id, or None for the default. Folders come first.
        revision: branch, tag or commit, if it is a Hub id; each commit has its own place in the cache.

    Raises:
        UserError: there is no such model, or it cannot be downloaded; one line says why.
    """
    name, bundled = str("pocket-stories" if source is None else source), bundled_models()
    on_disk = bundled.get(name)
    if source is not None and Path(name).is_dir():
        on_disk = Path(name)
    if on_disk is not None:
        if revision is not None:
            raise UserError(f"{name!r} lies on this disk: only models of the Hub have a revision")
        return on_disk
    hint = f"name a folder, a Hub id (user/model), {', '.join(bundled)}"
    kinds = (errors.HTTPError, errors.HFValidationError, ImportError)  # of what a SOCKS proxy needs
    with error_context(f"no model {name!r}", hint, *kinds):
        if Path(name).parent.is_dir():
            raise FileNotFoundError("no such folder")
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
