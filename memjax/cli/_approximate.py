import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from .. import viz
from .._checks import as_number
from ..approximation import approximate, approximation_dataset, Norm, Samples
from ..sweeps import check_output, replacing
from ..targets import read_columns, SampledKernel, since
from ._output import Format, show, to_json


@dataclasses.dataclass(frozen=True)
class Approximate:
    """Say how many neurons a measured impulse response needs, and find the best weights.

    The file has a column of times and one of the response, separated by commas, semicolons, tabs
    or white space. Lines at the top that are no numbers (names, units) and what follows a # are
    skipped. Times ascend, at any spacing.

    Samples are points: sums are fitted at the samples alone, by least squares in the norm L2, with
    standard errors and intervals of rates and amplitudes. With --samples linear the response is
    the straight line from sample to sample and 0 before the first, as in the white-noise loss, and
    errors count at all times up to the last.

    If noise or the straight lines stand in the way of the error, the sum that is shown is a
    smaller one that is down to them. With --out, writes a folder with approximation.png (the
    response, the fit and the residual), weights.csv and summary.json. An offset is the row of
    rate 0 in weights.csv.

    Example: memjax approximate response.csv --error 1e-3 --relative --out results/response
    """

    data: Annotated[Path, tyro.conf.Positional]
    """CSV file with a column of times and one of the response."""
    error: float | None = None
    """Error to reach, in units of the norm, or with --relative of that of the response."""
    neurons: int | None = None
    """Number of neurons to fit, in place of an error to reach."""
    relative: bool = False
    """Take the error relative to the norm of the response."""
    samples: Samples = "points"
    """Whether samples are points, or joined by straight lines (linear)."""
    norm: Norm = "L2"
    """Of points: L1 (mean absolute error), L2 (root mean square error) or sup (largest error). Of
    lines: L1 (largest error of an output under inputs up to 1), L2 (root mean square error of an
    output under white noise) or sup (largest error of the response itself)."""
    offset: bool = False
    """Add a constant to the sum."""
    origin: float = 0.0
    """Time at which the response begins; it is subtracted, and samples before it are left out."""
    time_column: int = 0
    """Column of the times, counted from 0."""
    value_column: int = 1
    """Column of the response."""
    weight_column: int | None = None
    """Column of weights, one over the variance of each sample; by default they weigh the same."""
    absolute_weights: bool = False
    """Take weights for one over the variances themselves, and not just in proportion to them."""
    confidence: float = 0.95
    """Level of the confidence intervals."""
    min_rate: float = 0.0
    """Stability margin that no decay rate falls below, in units of 1/time."""
    complex: bool = False
    """Allow rates with a frequency, as a response that oscillates needs."""
    max_neurons: int = 32
    """Largest number of neurons to try."""
    out: Path | None = None
    """Folder to write; by default none."""
    format: Format = "png"
    """Format of the figure."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        if self.out is not None:
            check_output(self.out, self.overwrite)
        if (self.error is None) == (self.neurons is None):
            got = "none" if self.error is None else "both"
            raise ValueError(f"`error` or `neurons` must be given, got {got}; pass one of them.")
        kernel, weights = self._read()
        shared = (
            "error", "neurons", "relative", "samples", "norm", "offset", "absolute_weights",
            "confidence", "min_rate", "complex", "max_neurons",
        )  # fmt: skip
        options = {name: getattr(self, name) for name in shared}
        found = approximate(kernel, **options, weights=weights, progress=not self.quiet)
        text = f"{found}\n"
        if self.out is not None:
            with replacing(self.out, self.overwrite) as folder:
                folder.mkdir()
                figure = viz.plot_approximation(approximation_dataset(kernel, found.best))
                figure.savefig(folder / f"approximation.{self.format}")
                (folder / "weights.csv").write_text(_write_csv(found.columns()))
                (folder / "summary.json").write_text(to_json(found.to_dict()) + "\n")
            text += f"\nwritten: {self.out}/approximation.{self.format}, weights.csv, summary.json"
        show(self.json, found.to_dict(), text)
        for warning in found.warnings:
            print(f"memjax: warning: {warning}", file=sys.stderr)
        return 0 if found.reached else 1

    def _read(self) -> tuple[SampledKernel, np.ndarray | None]:
        columns = {"time_column": self.time_column, "value_column": self.value_column}
        if self.weight_column is not None:
            columns["weight_column"] = self.weight_column
        origin = float(as_number("origin", self.origin))
        times, values, *weights = since(origin, *read_columns("data", self.data, columns))
        return SampledKernel(times, values), weights[0] if weights else None


def _write_csv(columns: Mapping[str, Sequence[float]]) -> str:
    rows = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n"
