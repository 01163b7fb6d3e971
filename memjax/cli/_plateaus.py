import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from .. import viz
from .._checks import as_existing_file, check_positive
from .._lazy import xr
from .._text import format_table
from ..flows import GradientFlow
from ..losses import WhiteNoiseLoss
from ..models import DiagonalLinearRNN
from ..plateaus import fit_scaling_law, measure_plateau, MEMORY, OUTCOMES
from ..reparam import ReparametrisationName, REPARAMETRISATIONS
from ..sweeps import (
    check_output,
    ExitName,
    load_dataset,
    make_exit,
    PlateauSweep,
    replacing,
    save_dataset,
)
from ..targets import AbstractKernel, ExponentialSum, GaussianBump, SampledKernel
from ._output import show


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Measure how long training sits on its plateau, swept over memory, and fit the law.

    Writes a folder with plateaus.zarr (the dataset), plateau_law.png, loss_curves.png and
    sweep.toml (the specification that was run), and prints the plateau times and the fit.

    Example: memjax sweep --memories 8 12 16 20 24 --widths 2 4 --out results/short
    """

    specification: Annotated[PlateauSweep, tyro.conf.arg(name="")]
    out: Path = Path("results/plateau-sweep")
    """Folder to write."""
    spec: Path | None = None
    """TOML file with the specification; other options override it."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    json: bool = False
    """Print JSON instead of tables."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        with replacing(self.out, self.overwrite) as folder:
            # Made before the work, which would be lost if it could not be.
            folder.mkdir()
            dataset = self.specification.run(progress=not self.quiet)
            save_dataset(dataset, folder / "plateaus.zarr")
            (folder / "sweep.toml").write_text(self.specification.to_toml())
            if not dataset.attrs["complete"]:
                print(f"interrupted; what was finished is in {self.out}.", file=sys.stderr)
                return 1
            fit = fit_scaling_law(dataset)
            viz.plot_plateau_law(dataset, fit).savefig(folder / "plateau_law.png")
            if "curve_loss" in dataset:
                viz.plot_loss_curves(dataset).savefig(folder / "loss_curves.png")
        summary = {"out": str(self.out), "outcomes": _count_outcomes(dataset)}
        tables = f"{_tabulate_times(dataset)}\n{_tabulate_fit(fit, dataset)}"
        written = f"written: {self.out}/plateaus.zarr, *.png, sweep.toml"
        show(self.json, summary | {"fit": _list_records(fit)}, f"{tables}\n{written}")
        return 0


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
        show(self.json, _list_records(fit), _tabulate_fit(fit, dataset))
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


def _list_records(fit: "xr.Dataset") -> list[Any]:
    return fit.to_dataframe().reset_index().to_dict("records")


def _count_outcomes(dataset: "xr.Dataset") -> dict[str, int]:
    # Cells that are not finished have a code below these, and those that are missing none at all.
    result = dataset["result"].values
    return {name: int(np.sum(result == code)) for code, name in enumerate(OUTCOMES)}


def _write(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_write, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _find_groups(values: "xr.DataArray", apart: Sequence[str]) -> list[dict[str, Any]]:
    dims = [str(dim) for dim in values.dims if dim not in apart]
    indices = np.ndindex(*(values.sizes[dim] for dim in dims))
    return [
        {dim: values[dim].values[i] for dim, i in zip(dims, index, strict=True)}
        for index in indices
    ]


def _label_group(group: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """What tells a group from the others."""
    short = {"width": "m"}
    differing = [n for n in group if len({str(other[n]) for other in groups}) > 1]
    return ", ".join(f"{short.get(n, n)}={group[n]}" for n in differing or ["width"] if n in group)


def _tabulate_times(dataset: "xr.Dataset") -> str:
    """Median plateau times: a row a memory, a column a group."""
    groups = _find_groups(dataset["time"], ("omega", "seed"))
    rows = []
    for index in np.argsort(dataset["memory"].values):
        row = [f"{dataset['memory'].values[index]:g}"]
        for group in groups:
            cells = dataset.isel(omega=index).sel(group)
            times = np.atleast_1d(cells["time"].values)
            failed = np.isnan(times).sum()
            # A run that never exits counts as an infinite time; one without an answer does not.
            text = f"{np.nanmedian(times):.4g}" if failed < times.size else "-"
            row.append(text + (f" ({failed} unknown)" if failed else ""))
        rows.append(row)
    header = ["1/omega", *(_label_group(group, groups) for group in groups)]
    return (
        f"Plateau time (median over seeds, units of training time)\n{format_table(header, rows)}\n"
    )


def _tabulate_fit(fit: "xr.Dataset", dataset: "xr.Dataset") -> str:
    """Fitted exponents, against the memory beside the published bound."""
    axis, level = fit.attrs["axis"], f"{100 * fit.attrs['confidence']:g} %"
    law = axis == MEMORY
    groups = _find_groups(fit["slope"], ("correction",))
    names = {"none": f"slope [{level}]", "omega^2": "with omega^2"}
    corrections = [name for name in names if name in fit["correction"]]
    bounded = law and "decay_rate" in dataset
    header = ["group", "1/omega" if law else axis, *(names[name] for name in corrections)]
    header += ["bound c0", "2 mean c0"] if bounded else []
    rows = []
    for group in groups:
        one, cells = fit.sel(group), dataset.sel(group)
        low, high = float(one[f"{axis}_low"]), float(one[f"{axis}_high"])
        row = [_label_group(group, groups), f"{low:g}..{high:g}"]
        for correction in corrections:
            ends = (one[f"slope{end}"].sel(correction=correction) for end in ("", "_low", "_high"))
            values = [float(value) for value in ends]
            finite = np.isfinite(values[0])
            row.append("{:.3f} [{:.3f}, {:.3f}]".format(*values) if finite else "too few")
        if bounded:
            mean = float(cells["decay_rate"].mean())
            row += [f"{float(one['decay_rate']):.3f}", f"{2 * mean:.3f}"]
        counts = _count_outcomes(cells)
        others = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
        rows.append([*row, ", ".join(others)])
    table = format_table([*header, "runs"], rows)
    if not law:
        return f"Law: log(time) = slope * {axis} + constant\n{table}\n"
    return (
        f"Law: log(time) = slope / omega + constant\n{table}\n\n"
        "The published bound omega^2 exp(c0/omega) makes the slope at least c0, the smallest rate\n"
        "in play, as omega -> 0. It is not attained: for one silent mode (m one above the number\n"
        "of target exponentials) the slope tends to 2 c0, from below in the plain fit. Several\n"
        "silent modes act together and leave earlier; for them no such limit is known.\n"
    )
