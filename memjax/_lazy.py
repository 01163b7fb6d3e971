"""Modules that are slow to import, and are imported when they are first used.

A type of theirs in an annotation is quoted, since an annotation is evaluated at import.
"""

import importlib
from typing import Any, TYPE_CHECKING


class _Lazy:
    """Stands for a module until one of its attributes is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(self._name)
        if not hasattr(module, attribute):
            # Parts such as `matplotlib.figure` that a package does not import by itself.
            importlib.import_module(f"{self._name}.{attribute}")
        return getattr(module, attribute)


if TYPE_CHECKING:
    import matplotlib
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.lines
    import matplotlib.rcsetup
    import matplotlib.ticker
    import scipy
    import scipy.linalg
    import scipy.ndimage
    import scipy.optimize
    import scipy.sparse.linalg
    import scipy.special
    import scipy.stats
    import tqdm
    import xarray as xr
    import zarr
else:
    # SciPy imports its own parts when they are first used.
    matplotlib, scipy, tqdm = _Lazy("matplotlib"), _Lazy("scipy"), _Lazy("tqdm")
    xr, zarr = _Lazy("xarray"), _Lazy("zarr")
# Its annotations refuse much that it takes.
bokeh: Any = _Lazy("bokeh")
