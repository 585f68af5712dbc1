# Generated from notebooks/ by tools/export.py: edit that, then run `make export`.
"""A character-level discrete diffusion language model. Names resolve lazily, see `__init__.pyi`."""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
