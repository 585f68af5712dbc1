# Generated from notebooks/ by tools/export.py: edit that, then run `make export`.
"""A character-level discrete diffusion language model, exported from the chapters of the book.

The names are those of `__init__.pyi`. Each resolves on first use, so that `import ddlm_core` costs
next to nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
