"""Figures: one function a figure, from a dataset to a matplotlib `Figure`."""

from ._plateaus import plot_loss_curves as plot_loss_curves
from ._plateaus import plot_plateau_law as plot_plateau_law
from ._reproductions import plot_plateau_flows as plot_plateau_flows
from ._reproductions import plot_plateau_width as plot_plateau_width
from ._reproductions import plot_training_comparison as plot_training_comparison
