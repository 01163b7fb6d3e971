"""Straight lines through points."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class LineErrors(NamedTuple):
    """Standard errors of a line of least squares."""

    slope: float
    intercept: float


class Line(NamedTuple):
    """A line of least squares, what it leaves of the values, and the mean and the sum of squared
    deviations of its points."""

    slope: float
    intercept: float
    residuals: Float[np.ndarray, " points"]
    mean: float
    spread: float

    @property
    def squares(self) -> float:
        """The sum of squared residuals."""
        return float(np.sum(self.residuals**2))

    def errors(self, independent: float | None = None) -> LineErrors:
        """The standard errors, if the residuals are worth so many independent ones; by default all.

        From the residuals, and not from the correlation: of nearly exact lines one less its square
        would be rounding, and of constant values it is not known.
        """
        count = self.residuals.size
        freedom = (count if independent is None else independent) - 2
        variance = self.squares / freedom
        at_zero = variance * (1 / count + self.mean**2 / self.spread)
        return LineErrors(float(np.sqrt(variance / self.spread)), float(np.sqrt(at_zero)))


def fit_line(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]) -> Line:
    """The line of least squares through points, at least two of them distinct in `x`."""
    mean = float(np.mean(x))
    # Around the mean, slope and height do not hang on each other.
    centred = x - mean
    spread = float(np.sum(centred**2))
    slope, height = float(np.sum(centred * y) / spread), float(np.mean(y))
    return Line(slope, height - slope * mean, y - height - slope * centred, mean, spread)
