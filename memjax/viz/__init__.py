"""Figures: one function a figure, from a dataset to a matplotlib `Figure`."""

import importlib
from typing import Any

from .._deprecation import warn_deprecated
from ._approximation import plot_approximation as plot_approximation
from ._approximation import plot_approximation_errors as plot_approximation_errors
from ._approximation import plot_neurons_needed as plot_neurons_needed
from ._length import plot_length_extension as plot_length_extension
from ._log import plot_log as plot_log
from ._memory import plot_memory_functions as plot_memory_functions
from ._plateaus import MEMORY as MEMORY
from ._plateaus import plot_loss_curves as plot_loss_curves
from ._plateaus import plot_plateau as plot_plateau
from ._plateaus import plot_plateau_law as plot_plateau_law
from ._plateaus import TIME as TIME
from ._settings import style as style
from ._stability import plot_perturbation_errors as plot_perturbation_errors
from ._stability import plot_stability_criterion as plot_stability_criterion
from ._style import beside as beside
from ._style import COLOURS as COLOURS
from ._style import DASHES as DASHES
from ._style import drawing as drawing
from ._style import explain as explain
from ._style import label_grid as label_grid
from ._style import look as look
from ._style import mark_stopped as mark_stopped
from ._style import MARKERS as MARKERS
from ._style import published as published
from ._style import spread_marks as spread_marks

# The figures of reproductions are in their files. Rooms above this one are not imported here: the
# old names are looked up there when they are asked for.
_MOVED = {
    "plot_digits_stability": "digits-stability",
    "plot_l21_approximation": "l21-approximation",
    "plot_memory_architectures": "memory-architectures",
    "plot_perturbation_grid": "w24-perturbation",
    "plot_plateau_flows": "plateau-flows",
    "plot_plateau_width": "plateau-width",
    "plot_s24_reparametrisations": "s24-reparametrisations",
    "plot_training_comparison": "l21-training",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    moved = _MOVED[name]
    warn_deprecated(f"memjax.viz.{name}", f"memjax.REPRODUCTIONS[{moved!r}].plot")
    return importlib.import_module("memjax.reproductions").REPRODUCTIONS[moved].plot
