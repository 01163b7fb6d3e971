"""Kernels as functions of time: norms over all times up to a horizon."""

import numpy as np

from ..targets import AbstractKernel, SampledKernel
from ._curve import Curve
from ._distance import Distance, distance, signed_parts, Terms
from ._grid import compressed, MOST, thinned
from ._hankel import abel, flat, lower_bounds, POINTS, shift_cuts, spectrum
from ._points import residuals
from ._problem import as_problem, Problem
from ._start import Realisation, realise


class Continuous:
    """A kernel at all times, in units of time and of size of its own.

    **Attributes:**

    - `time`, `size`, `start`: the units, and the time that counts as 0 in those of the user.
    """

    def __init__(
        self, kernel: AbstractKernel, horizon: float, norm: str, oscillating: bool
    ) -> None:
        self.curve = Curve(kernel, horizon, norm, oscillating)
        self.time, self.size, self.start = self.curve.time, self.curve.size, 0.0
        self.norm, self.oscillating = norm, oscillating

    def problem(self, min_rate: float, offset: bool) -> tuple[Problem, Problem]:
        """What sums are fitted to, of a size that can be searched with, and all of it."""
        grid, oscillating = self.curve.grid, self.oscillating
        small = thinned(grid, MOST)[0]
        if self.norm == "L2":
            # Nodes of two panels apart lie between different samples.
            lag = 2 * grid.times.size // (self.curve.cuts.size - 1) + 1
            small = compressed(grid, oscillating, lag)
        if grid.times.size <= MOST:
            small = grid
            if self.norm == "sup":
                # Between these an extremum of the error rises no further.
                times = grid.times
                between = [times[:-1] + share * np.diff(times) for share in (1 / 3, 2 / 3)]
                times = np.unique(np.concatenate([times, *between]))
                grid = grid._replace(times=times, weights=times, values=self.curve(times))
        return as_problem(small, min_rate, offset), as_problem(grid, min_rate, offset)

    @property
    def end(self) -> float:
        """The longest time on which the kernel changes."""
        return self.curve.grid.end

    def first_weights(self, problem: Problem) -> np.ndarray:
        """Weights of squares to begin with."""
        # Every time scale counts alike.
        return problem.weights / (problem.times + 1 if self.norm == "sup" else 1)

    def measure(self, terms: Terms) -> Distance:
        """The norm of the error, by a quadrature that shares nothing with the search."""
        return distance(self.curve, terms, self.norm)

    def parts(self, terms: Terms) -> np.ndarray:
        """The error between its sign changes, part by part."""
        return signed_parts(self.curve, terms, self.norm)

    def residuals(self, terms: Terms) -> np.ndarray:
        """The errors at samples that are not rounding; of other kernels none."""
        kernel = self.curve.kernel
        if not isinstance(kernel, SampledKernel):
            return np.zeros(0)
        times = np.asarray(kernel.times) / self.time
        return residuals(times, np.asarray(kernel.values) / self.size, terms)

    def bounds(self) -> np.ndarray:
        """Bounds for the orders 0, 1, ... that no sum of as many exponentials falls below."""
        return lower_bounds(self.curve, self.norm)

    def realisations(self) -> list[Realisation]:
        curve, cuts = self.curve, shift_cuts(self.curve)
        step = 1.0 if not curve.ends else float(curve.grid.end / 32)
        spectra = [spectrum(curve, cuts, density, POINTS) for density in (abel, flat)]
        return [realise(curve, found, step) for found in spectra]
