"""How a model is found, and a device for it."""

from pathlib import Path

import pytest
import torch

from ddlm_core.support.errors import UserError
from ddlm_core.support.hardware import pick_device
from ddlm_core.support.models import bundled_models, model_folder


def test_a_name_finds_its_folder(tmp_path):
    bundled, asked = tmp_path / "package/pretrained/pocket-stories", []
    for folder in (bundled, tmp_path / "mine/pocket-stories"):
        folder.mkdir(parents=True)
    (bundled / "config.json").touch()

    def hub(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert allow_patterns == ["config.json", "model.safetensors"]
        if name != "user/model":
            raise ConnectionError("no network\ntoday")
        return "cache/user/model"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bundled_models.__globals__, "files", lambda package: tmp_path / "package")
        patch.setitem(model_folder.__globals__, "snapshot_download", hub)
        patch.chdir(tmp_path)
        assert model_folder(None) == model_folder("pocket-stories") == bundled
        assert model_folder("mine") == Path("mine") and model_folder(tmp_path) == tmp_path
        patch.chdir("mine")  # a folder of the same name: meant where it is named, not by default
        assert model_folder("pocket-stories") == Path("pocket-stories")
        assert model_folder(None) == bundled
        for name in ("nothing", "./model", "pocket-stories/beast"):
            with pytest.raises(
                ValueError, match=r"no model .* \(no such folder\): name a folder, "
            ):
                model_folder(name)
        assert not asked and model_folder("user/model") == Path("cache/user/model")
        model_folder("user/model", "v2")
        assert asked == [("user/model", None), ("user/model", "v2")]
        for source in (None, "pocket-stories", tmp_path):
            with pytest.raises(ValueError, match="only models of the Hub have a revision"):
                model_folder(source, "v2")
        with pytest.raises(ValueError, match=r"no model 'a/b' \(no network today\): name a folder"):
            model_folder("a/b")


def test_devices_are_tried_out():
    assert pick_device(None).type in ("cuda", "mps", "xpu", "cpu")
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:99", "vulkan", "cpu:-1"):
        with pytest.raises(ValueError, match=r"cannot be used here \(.*\): 'cpu' always can$"):
            pick_device(name)


def test_a_proxy_that_nothing_here_can_talk_to(monkeypatch):
    def hub(*_: object, **__: object) -> str:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setitem(model_folder.__globals__, "snapshot_download", hub)
    with pytest.raises(
        UserError, match=r"^no model 'user/model' \(Using SOCKS proxy, but the 'soc"
    ):
        model_folder("user/model")
