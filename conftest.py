"""Set-up for every test run, before any test or notebook kernel starts."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# Chapters that would take minutes shrink; `DDLM_PRESET=cpu pytest` runs them at full size.
os.environ.setdefault("DDLM_PRESET", "smoke")
# The tensors of the tests are small, and the notebook kernels share the machine with pytest.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

# What the tests prepare does not go to the cache of whoever runs them.
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="ddlm-tests-")
atexit.register(shutil.rmtree, os.environ["HF_ASSETS_CACHE"], ignore_errors=True)

# The same examples on every run, however slow the machine is; and no folder left behind.
settings.register_profile("ddlm", deadline=None, derandomize=True, database=None)
settings.load_profile("ddlm")
