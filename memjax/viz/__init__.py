"""Figures: one function a figure, from a dataset to a matplotlib `Figure`."""

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
