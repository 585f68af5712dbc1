"""Set-up for every test run, before any test or notebook kernel starts; and how much is run.

`pytest` runs what is quick. What is named is run whole: `pytest tests/test_loss.py`, `pytest
tests`, `pytest notebooks/05_loss.ipynb`. `pytest --all` runs everything, every chapter too.
"""

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# Chapters that would take minutes shrink; `DDLM_PRESET=cpu pytest notebooks` has them at full size.
os.environ.setdefault("DDLM_PRESET", "smoke")
# The tensors of the tests are small, and the notebook kernels share the machine with pytest.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

# What the tests prepare does not go to the cache of whoever runs them.
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="ddlm-tests-")
atexit.register(shutil.rmtree, os.environ["HF_ASSETS_CACHE"], ignore_errors=True)

# The same examples on every run, however slow the machine is; and no folder left behind.
settings.register_profile("ddlm", deadline=None, derandomize=True, database=None)
settings.load_profile("ddlm")


def nothing_named(config: pytest.Config) -> bool:
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="slow tests too, and every chapter")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all") and nothing_named(config):
        config.args.append("notebooks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    if nothing_named(config) and not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
