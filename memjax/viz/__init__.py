"""Figures: one function a figure, from a dataset to a matplotlib `Figure`."""

import importlib
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from ._approximation import plot_approximation as plot_approximation
    from ._approximation import plot_approximation_errors as plot_approximation_errors
    from ._approximation import plot_neurons_needed as plot_neurons_needed
    from ._architectures import plot_digits_stability as plot_digits_stability
    from ._architectures import plot_memory_architectures as plot_memory_architectures
    from ._architectures import plot_s24_reparametrisations as plot_s24_reparametrisations
    from ._l21_approximation import plot_l21_approximation as plot_l21_approximation
    from ._memory import plot_memory_functions as plot_memory_functions
    from ._plateaus import plot_loss_curves as plot_loss_curves
    from ._plateaus import plot_plateau_law as plot_plateau_law
    from ._reproductions import plot_perturbation_grid as plot_perturbation_grid
    from ._reproductions import plot_plateau_flows as plot_plateau_flows
    from ._reproductions import plot_plateau_width as plot_plateau_width
    from ._reproductions import plot_training_comparison as plot_training_comparison
    from ._stability import plot_perturbation_errors as plot_perturbation_errors
    from ._stability import plot_stability_criterion as plot_stability_criterion

# Matplotlib is slow to import, and is not needed before a figure is drawn.
_MODULES = {
    "_approximation": (
        "plot_approximation",
        "plot_approximation_errors",
        "plot_neurons_needed",
    ),
    "_architectures": (
        "plot_digits_stability",
        "plot_memory_architectures",
        "plot_s24_reparametrisations",
    ),
    "_l21_approximation": ("plot_l21_approximation",),
    "_memory": ("plot_memory_functions",),
    "_plateaus": (
        "plot_loss_curves",
        "plot_plateau_law",
    ),
    "_reproductions": (
        "plot_perturbation_grid",
        "plot_plateau_flows",
        "plot_plateau_width",
        "plot_training_comparison",
    ),
    "_stability": (
        "plot_perturbation_errors",
        "plot_stability_criterion",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
