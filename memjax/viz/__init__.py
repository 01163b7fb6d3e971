"""Figures: one function a figure, from a dataset to a matplotlib `Figure`."""

from ._plateaus import plot_loss_curves as plot_loss_curves
from ._plateaus import plot_plateau_law as plot_plateau_law
