"""memjax: the curse of memory in recurrent models, measured."""

from importlib.metadata import version as _version

import lazy_loader as _lazy_loader

# The public names are those in `__init__.pyi`.
__getattr__, __dir__, __all__ = _lazy_loader.attach_stub(__name__, __file__)

__version__ = _version("memjax")
