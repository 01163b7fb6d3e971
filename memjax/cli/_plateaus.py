import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from .. import viz
from .._checks import as_existing_file, check_positive
from ..flows import GradientFlow
from ..losses import WhiteNoiseLoss
from ..models import DiagonalLinearRNN
from ..plateaus import fit_scaling_law, measure_plateau, OUTCOMES
from ..reparam import ReparametrisationName, REPARAMETRISATIONS
from ..report import tabulate_fit
from ..sweeps import (
    check_output,
    ExitName,
    load_dataset,
    make_exit,
    replacing,
)
from ..targets import AbstractKernel, ExponentialSum, GaussianBump, SampledKernel
from ._output import show
from ._tables import list_records, write_table


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Measure one plateau from explicit initial values.

    The target is an exponential sum plus a Gaussian bump at the memory 1/omega, or with
    --kernel a measured impulse response from a file, alone or with the exponentials named.

    Example: memjax plateau --memory 20 --amplitudes 1 0 --rates 1 0.6 --delta 0.02
    """

    amplitudes: tuple[float, ...] = (1.0, 0.0)
    """Initial amplitudes of the model, one per neuron."""
    rates: tuple[float, ...] = (1.0, 0.6)
    """Initial decay rates of the model, in units of 1/clock."""
    memory: float = 20.0
    """Memory 1/omega of the target, in units of the model's clock. Unused with --kernel."""
    bump_amplitude: float = 1.0
    """Height of the bump. Unused with --kernel."""
    bump_width: float = 0.5
    """Width sigma of the bump, in units of the clock. Unused with --kernel."""
    target_amplitudes: tuple[float, ...] | None = None
    """Amplitudes of the target's exponential part; 1 by default, none with --kernel."""
    target_rates: tuple[float, ...] | None = None
    """Decay rates of the target's exponential part; 1 by default, none with --kernel."""
    kernel: Path | None = None
    """CSV file with two columns, time and kernel: the target's impulse response."""
    exit: ExitName = "relative-loss-drop"
    """Exit condition; a drop is relative to the loss at the start."""
    delta: float = 0.02
    """Threshold of the exit condition."""
    reparametrisation: ReparametrisationName = "direct"
    """Map from free weights to decay rates."""
    rtol: float = 1e-6
    """Tolerance of the integration, relative to the displacement of every weight."""
    max_time: float = 1e300
    """Training time after which the run is stopped."""
    max_steps: int = 4096
    """Number of attempted steps after which the run is stopped."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""

    def target(self) -> AbstractKernel:
        given = (self.target_amplitudes, self.target_rates)
        amplitudes, rates = (() if value is None else value for value in given)
        if self.kernel is None and given == (None, None):
            amplitudes, rates = (1.0,), (1.0,)
        if self.kernel is None:
            check_positive("memory", self.memory, "pass 1/omega > 0")
            remainder = GaussianBump(1 / self.memory, self.bump_amplitude, self.bump_width)
        else:
            remainder = SampledKernel.from_csv(as_existing_file("kernel", self.kernel))
        if not amplitudes and not rates:
            return remainder
        return ExponentialSum(jnp.asarray(amplitudes), jnp.asarray(rates)) + remainder

    def run(self) -> int:
        reparametrisation = REPARAMETRISATIONS[self.reparametrisation]()
        model = DiagonalLinearRNN(
            jnp.asarray(self.amplitudes), jnp.asarray(self.rates), reparametrisation
        )
        plateau = measure_plateau(
            GradientFlow(WhiteNoiseLoss(self.target())),
            model,
            make_exit(self.exit, self.delta),
            rtol=self.rtol,
            max_time=self.max_time,
            max_steps=self.max_steps,
            throw=False,
        )
        outcome = OUTCOMES[int(plateau.result_code)]
        values = {
            "result": outcome,
            "time": float(plateau.time),
            "time_reached": float(plateau.time_reached),
            "initial_loss": float(plateau.initial_loss),
            "loss": float(plateau.loss),
            "distance": float(plateau.distance),
            "amplitudes": np.asarray(plateau.model.amplitudes).tolist(),  # pyright: ignore
            "rates": np.asarray(plateau.model.rates).tolist(),  # pyright: ignore
            "curvature": float(plateau.curvature),
            "rounding": float(plateau.rounding),
            **{name: int(value) for name, value in plateau.stats.items()},
        }
        lines = (f"{name:>20}  {_write(value)}" for name, value in values.items())
        show(self.json, values, "\n".join(lines))
        return 0 if outcome in ("exited", "converged", "max_time_reached") else 1


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit log time against the memory, or another axis, to the dataset of a sweep.

    Example: memjax fit results/plateau-sweep --axis memory --axis-range 16 30
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """Folder that `memjax sweep` wrote, or a Zarr store."""
    axis: str | None = None
    """Axis of the sweep, or coordinate along one, to fit against; by default the memory, and where
    there is none, the only axis of several numbers."""
    axis_range: tuple[float, float] | None = None
    """Smallest and largest value of the axis to use; by default the larger half that exited."""
    memory_range: tuple[float, float] | None = None
    """The old name of --axis-range, for one more release."""
    confidence: float = 0.95
    """Level of the confidence intervals."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        between = self.axis_range
        if self.memory_range is not None:
            if between is not None:
                raise ValueError(
                    f"`memory_range` must not be given with `axis_range`, got "
                    f"{self.memory_range}; it is its old name."
                )
            between = self.memory_range
            print("memjax: warning: --memory-range is now --axis-range.", file=sys.stderr)
        dataset = load_dataset(self.dataset)
        fit = fit_scaling_law(dataset, self.axis, axis_range=between, confidence=self.confidence)
        show(self.json, list_records(fit), write_table(tabulate_fit(fit, dataset)))
        return 0


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw a figure from the dataset of a sweep.

    Example: memjax plot results/plateau-sweep --figure curves --out curves.pdf
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """Folder that `memjax sweep` wrote, or a Zarr store."""
    out: Path
    """File to write; its ending (.png, .pdf, .svg) decides the format."""
    figure: Literal["law", "curves"] = "law"
    """The law (time against memory) or the curves (loss against time)."""
    axis: str | None = None
    """Axis of the sweep, or coordinate along one, in place of the memory."""
    overwrite: bool = False
    """Replace the file if it exists."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        check_output(self.out, self.overwrite, folder=False)
        dataset = load_dataset(self.dataset)
        draw = {"law": viz.plot_plateau_law, "curves": viz.plot_loss_curves}[self.figure]
        ending = self.out.suffix.lstrip(".")
        figure = draw(dataset, axis=self.axis)
        if ending not in figure.canvas.get_supported_filetypes():
            raise ValueError(
                f"`out` must end in .png, .pdf or .svg, got {str(self.out)!r}; name a format."
            )
        with replacing(self.out, self.overwrite, folder=False) as partial:
            figure.savefig(partial, format=ending)
        show(self.json, {"out": str(self.out)}, f"written: {self.out}")
        return 0


def _write(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_write, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
