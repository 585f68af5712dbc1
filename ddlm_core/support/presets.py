"""The YAML files in ``ddlm_core/configs``, put together by Hydra: for ``ddlm-train``, chapters, tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ddlm_core.support.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIGS = Path(__file__).parent.parent / "configs"


def preset_names() -> list[str]:
    """The names that ``--config-name`` takes."""
    return sorted(path.stem for path in (CONFIGS / "training").glob("*.yaml"))


def register_defaults(defaults: Mapping[str, Any], help_text: str = "") -> None:
    """Tell Hydra every key that a configuration may have, with its default; and what --help says."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="every_key", node=dict(defaults))
    store.store(group="hydra/help", name="ddlm", node={"template": help_text})


def plain_values(config: "DictConfig") -> dict[str, Any]:
    """A configuration as plain values, references resolved."""
    from omegaconf import OmegaConf

    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))


def compose_preset(
    name: str, defaults: Mapping[str, Any], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """All settings of a preset, as ``ddlm-train --config-name NAME KEY=VALUE …`` sees them."""
    if name not in preset_names():
        raise UserError(f"no preset {name!r}: there are {', '.join(preset_names())}")
    from hydra import compose, initialize_config_dir

    register_defaults(defaults)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return plain_values(compose(f"training/{name}", list(overrides)))
