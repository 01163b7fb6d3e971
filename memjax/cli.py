"""The command line: thin commands over the public API."""

import dataclasses
import importlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xarray as xr

from . import viz
from ._checks import (
    as_existing_file,
    as_number,
    as_plain,
    as_seed,
    as_share,
    check_positive,
    said,
    shown,
)
from .approximation import (
    approximation_dataset,
    best_exponential_sum,
    BestExponentialSum,
    between_samples,
    neurons_needed,
    Norm,
    Samples,
)
from .flows import GradientFlow
from .losses import WhiteNoiseLoss
from .memory import diagnose
from .models import AbstractModel, ComplexDiagonalRNN, DiagonalLinearRNN
from .plateaus import fit_scaling_law, measure_plateau, OUTCOMES
from .reproductions import find_reproduction, num_failed, REPRODUCTIONS, Verdict
from .sweeps import (
    check_output,
    checked,
    ExitName,
    load_dataset,
    make_exit,
    PlateauSweep,
    read_toml,
    Reparametrisation,
    REPARAMETRISATIONS,
    replacing,
    save_dataset,
)
from .targets import (
    AbstractKernel,
    ExponentialSum,
    GaussianBump,
    read_columns,
    SampledKernel,
    since,
)


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
        if self.json:
            summary = {"out": str(self.out), "outcomes": _outcomes(dataset)}
            _print_json(summary | {"fit": _records(fit)})
        else:
            print(_times_table(dataset))
            print(_fit_table(fit, dataset))
            print(f"written: {self.out}/plateaus.zarr, *.png, sweep.toml")
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
    reparametrisation: Reparametrisation = "direct"
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
        if self.json:
            _print_json(values)
        else:
            for name, value in values.items():
                print(f"{name:>20}  {_text(value)}")
        return 0 if outcome in ("exited", "converged", "max_time_reached") else 1


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit log time against memory to the dataset of a sweep.

    Example: memjax fit results/plateau-sweep --memory-range 16 30
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """Folder that `memjax sweep` wrote, or a Zarr store."""
    memory_range: tuple[float, float] | None = None
    """Shortest and longest memory 1/omega to use; by default the longer half that exited."""
    confidence: float = 0.95
    """Level of the confidence intervals."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        dataset = load_dataset(self.dataset)
        fit = fit_scaling_law(dataset, memory_range=self.memory_range, confidence=self.confidence)
        if self.json:
            _print_json(_records(fit))
        else:
            print(_fit_table(fit, dataset))
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
        figure = draw(dataset)
        if ending not in figure.canvas.get_supported_filetypes():
            raise ValueError(
                f"`out` must end in .png, .pdf or .svg, got {str(self.out)!r}; name a format."
            )
        with replacing(self.out, self.overwrite, folder=False) as partial:
            figure.savefig(partial, format=ending)
        if self.json:
            _print_json({"out": str(self.out)})
        else:
            print(f"written: {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Measure a published result again, and say whether what is found agrees.

    Writes a folder with dataset.zarr, verdicts.json and the figure, and prints a table of what
    is published and what was found.

    Example: memjax reproduce plateau-flows --out results/plateau-flows
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the reproduction."""
    list: bool = False
    """List the reproductions."""
    out: Path | None = None
    """Folder to write; by default results/ and the name."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    json: bool = False
    """Print JSON instead of tables."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        if self.list:
            titles = {item.name: item.title for item in REPRODUCTIONS.values()}
            if self.json:
                _print_json(titles)
            else:
                width = max(map(len, titles))
                print("\n".join(f"{name.ljust(width)}  {titles[name]}" for name in titles))
            return 0
        if self.name is None:
            raise ValueError(
                f"`name` must be given, got none; they are {', '.join(REPRODUCTIONS)}."
            )
        reproduction = find_reproduction(self.name)
        out = Path("results") / self.name if self.out is None else self.out
        with replacing(out, self.overwrite) as folder:
            folder.mkdir()
            dataset = reproduction.run(not self.quiet)
            save_dataset(dataset, folder / "dataset.zarr")
            verdicts = reproduction.check(dataset)
            records = [dataclasses.asdict(verdict) for verdict in verdicts]
            (folder / "verdicts.json").write_text(json.dumps(records, indent=2) + "\n")
            reproduction.plot(dataset).savefig(folder / f"{self.name}.png")
        failed = num_failed(dataset)
        if self.json:
            _print_json({"out": str(out), "failed": failed, "verdicts": records})
        else:
            print(f"{reproduction.title}\n{reproduction.source}\n")
            print(_wrapped(reproduction.description))
            print(_verdicts_table(verdicts))
            print(f"written: {out}/dataset.zarr, {self.name}.png, verdicts.json")
        if failed:
            print(f"{failed} measurements ended without an answer.", file=sys.stderr)
        return 1 if failed else 0


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say whether training a model will sit on a plateau, and try what may help.

    Reports the model's memory, its sensitivity and the gradient signal of a dependency at a lag.

    Example: memjax diagnose mypackage.models:make_model --lag 100
    """

    model: Annotated[str, tyro.conf.Positional]
    """Where the model is, as module:name: the model itself, or a function without arguments that
    makes it. Modules of the current directory are found."""
    lag: float | None = None
    """Lag of the dependency, in units of the model's clock."""
    data: Path | None = None
    """NPZ file with arrays xs and ys, of shape (times,), (batch, times) or (batch, times, d), to
    estimate the lag from."""
    step: float = 1.0
    """Length of a step, in units of the model's clock."""
    inputs: int | None = None
    """Number of inputs, for models that do not know it; by default one scalar, or that of data."""
    samples: int = 16
    """Number of sampled inputs."""
    seed: int = 0
    """Seed of the sampled inputs."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        if (self.lag is None) == (self.data is None):
            raise ValueError(
                f"`lag` or `data` must be given, got {'none' if self.lag is None else 'both'}; "
                "pass one of them."
            )
        asked = self.lag if self.data is None else _read_data(self.data)
        key = jax.random.key(as_seed("seed", self.seed))
        model = _import_model(self.model)
        # memjax's own errors say what is wrong.
        with _users_code("`model` must run on sampled inputs", (ValueError, TypeError)):
            diagnosis = diagnose(
                model,
                asked,  # pyright: ignore[reportArgumentType]
                step=self.step,
                inputs=self.inputs,
                samples=self.samples,
                key=key,
            )
        if self.json:
            _print_json(diagnosis.to_dict())
        else:
            print(diagnosis)
        return 1 if diagnosis.verdict == "undecided" else 0


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
    overwrite: bool = False
    """Replace the folder if it exists."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        if (self.error is None) == (self.neurons is None):
            got = "none" if self.error is None else "both"
            raise ValueError(f"`error` or `neurons` must be given, got {got}; pass one of them.")
        as_plain(as_share, "confidence", self.confidence)
        if self.out is not None:
            check_output(self.out, self.overwrite)
        kernel, weights = self._samples()
        options = {
            "norm": self.norm,
            "min_rate": self.min_rate,
            "complex": self.complex,
            "samples": self.samples,
            "weights": weights,
            "absolute_weights": self.absolute_weights,
            "offset": self.offset,
            "progress": not self.quiet,
        }
        summary: dict[str, Any] = {"samples": self.samples, "norm": self.norm}
        if self.neurons is not None:
            best, sums = best_exponential_sum(kernel, self.neurons, **options), ()
            summary |= {"neurons": self.neurons, "noise_from": None}
            if bool(best.noise_limited):
                summary["noise_from"] = self.neurons
        else:
            found = neurons_needed(
                kernel,
                self.error,  # pyright: ignore[reportArgumentType]
                relative=self.relative,
                max_neurons=self.max_neurons,
                also=(1, 2, 4, 8, 16),
                **options,
            )
            best, sums, reached = found.best, found.sums, bool(found.reached)
            limited = bool(best.noise_limited)
            # Sums that are too small show how the error falls, and where it becomes noise.
            smaller = [one for one in sums if one.order < best.order]
            noisy = [one for one in smaller if limited and bool(one.noise_limited)]
            # More neurons would only follow the noise, or the straight lines between the samples.
            done = [one for one in smaller if one in noisy or _limited_by_lines(kernel, one)]
            summary |= {
                "neurons": int(found.neurons),
                "lower_bound": int(found.lower_bound),
                "reached": reached,
                "target_error": float(found.error),
                "noise_from": noisy[0].order if noisy else best.order if limited else None,
            }
            if done and not reached:
                best = done[0]
        summary["best"] = _summary(kernel, best, self.confidence)
        summary["errors"] = [
            {"neurons": s.order, "error": float(s.error), "lower_bound": float(s.lower_bound)}
            for s in sums
        ]
        if self.out is not None:
            with replacing(self.out, self.overwrite) as folder:
                folder.mkdir()
                figure = viz.plot_approximation(approximation_dataset(kernel, best))
                figure.savefig(folder / "approximation.png")
                (folder / "weights.csv").write_text(_weights_csv(summary["best"]))
                (folder / "summary.json").write_text(_json(summary) + "\n")
        if self.json:
            print(_json(summary))
        else:
            print(_approximation_text(summary, self.confidence))
            if self.out is not None:
                print(f"written: {self.out}/approximation.png, weights.csv, summary.json")
        for warning in _approximation_warnings(kernel, summary):
            print(f"memjax: warning: {warning}", file=sys.stderr)
        return 0 if summary.get("reached", True) else 1

    def _samples(self) -> tuple[SampledKernel, np.ndarray | None]:
        columns = {"time_column": self.time_column, "value_column": self.value_column}
        if self.weight_column is not None:
            columns["weight_column"] = self.weight_column
        origin = float(as_number("origin", self.origin))
        times, values, *weights = since(origin, *read_columns("data", self.data, columns))
        return SampledKernel(times, values), weights[0] if weights else None


COMMANDS = {
    "sweep": Sweep, "plateau": Plateau, "fit": Fit, "plot": Plot, "reproduce": Reproduce,
    "diagnose": Diagnose, "approximate": Approximate,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    **Arguments:**

    - `arguments`: the words after `memjax`; by default those of the process.

    **Returns:**

    The exit status: 0 if all went well, 1 if a measurement has no trustworthy answer or was
    interrupted, 2 for wrong input, 3 for a bug in memjax.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _configure()
        return _parse(arguments).run()
    except KeyboardInterrupt:
        print("memjax: interrupted; nothing was written.", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        if os.environ.get("MEMJAX_TRACEBACK"):
            raise
        return _report(error)


def _configure() -> None:
    """Settings of the process, and the environment variables of others that would stop it late."""
    jax.config.update("jax_enable_x64", True)
    # NaN is what stands where there is no answer.
    jax.config.update("jax_debug_nans", False)
    jax.config.update("jax_debug_infs", False)
    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms is None:
            raise
        raise ValueError(
            f"`JAX_PLATFORMS` must name a platform that JAX finds here, got {shown(platforms)}; "
            "unset it, or set it to cpu."
        ) from error
    if "MPLBACKEND" in os.environ:
        try:
            import matplotlib  # noqa: F401
        except ValueError as error:
            raise ValueError(
                f"`MPLBACKEND` must name a backend of Matplotlib, got "
                f"{shown(os.environ['MPLBACKEND'])}; unset it."
            ) from error


def _report(error: Exception) -> int:
    """Say what went wrong, in a line where it is the input; the exit status."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        print("memjax: error: not enough memory; make the problem smaller.", file=sys.stderr)
        return 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        print(f"memjax: error: {textwrap.shorten(str(error), 600)}", file=sys.stderr)
        return 2
    print(
        f"memjax: error: {said(error)}\n"
        "This is a bug in memjax. Please report it, with the command and what it prints with\n"
        "MEMJAX_TRACEBACK=1 in its environment.",
        file=sys.stderr,
    )
    return 3


@contextmanager
def _users_code(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a user's own code raises, as a `ValueError`; interrupts and what may pass go on."""
    try:
        yield
    except (KeyboardInterrupt, *passing):
        raise
    except BaseException as error:  # `SystemExit` too
        raise ValueError(f"{what}, got {said(error)}") from error


def _parse(arguments: list[str]) -> Any:
    for word in arguments:
        if len(word) > 1000:
            raise ValueError(
                f"`{arguments[0][:40]}` must have arguments of at most 1000 characters, got "
                f"{shown(word)}; shorten it."
            )
    if not arguments or arguments[0] not in COMMANDS:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="memjax",
            description="The curse of memory in recurrent models, measured.",
            args=arguments or ["--help"],
        )
    name, rest = arguments[0], arguments[1:]
    command, default = COMMANDS[name], None
    path = _spec_path(rest)
    if path is not None and command is Sweep:
        default = Sweep(PlateauSweep(**read_toml(path, PlateauSweep, "spec")))
    elif path is not None:
        # What has no default and is not in the file either is asked for on the command line.
        absent = {
            field.name: tyro.MISSING
            for field in dataclasses.fields(command)
            if field.default is dataclasses.MISSING
        }
        given = read_toml(path, command, "spec")
        given = {key: checked(command, key, value) for key, value in given.items()}
        default = command(**absent | given)
    return tyro.cli(command, prog=f"memjax {name}", args=rest, default=default)


def _import_model(text: str) -> Any:
    """The object that `module:name` stands for, made if it is a function without arguments."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"`model` must be given as module:name, got {shown(text)}; name both.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with _users_code(f"`model` must be in a module that can be imported, as {module_name!r}"):
        found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        with _users_code(f"`model` must name something in {module_name!r}"):
            found = getattr(found, part)
    if isinstance(found, AbstractModel | eqx.nn.GRUCell | eqx.nn.LSTMCell) or not callable(found):
        return found
    try:
        required = [
            parameter
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except Exception:  # there is none
        return found
    if required:
        return found
    with _users_code(f"`model` must be made by {text!r}"):
        return found()


def _read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["xs"], arrays["ys"]
    except OSError as error:
        raise OSError(
            f"`data` must be a file that can be read, got {shown(str(path))}: {said(error)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"`data` must be an NPZ file with arrays xs and ys, got {shown(str(path))}: "
            f"{said(error)}"
        ) from error


def _spec_path(arguments: list[str]) -> Path | None:
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        if word == "--spec" and following is not None:
            return Path(following)
        if word.startswith("--spec="):
            return Path(word.removeprefix("--spec="))
    return None


def _json(value: Any) -> str:
    # JSON has no infinity and no NaN: a time that is not there is null.
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(plain(value), indent=2, allow_nan=False)


def _print_json(value: Any) -> None:
    print(_json(value))


def _records(fit: xr.Dataset) -> list[Any]:
    return fit.to_dataframe().reset_index().to_dict("records")


def _outcomes(dataset: xr.Dataset) -> dict[str, int]:
    counts = np.bincount(dataset["result"].values.ravel(), minlength=len(OUTCOMES))
    return dict(zip(OUTCOMES, counts.tolist(), strict=True))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_text, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _limited_by_lines(kernel: SampledKernel, best: BestExponentialSum) -> bool:
    """Whether most of the error is that of straight lines between samples."""
    return best.samples == "linear" and between_samples(kernel, best) > float(best.error) / 2


def _summary(kernel: SampledKernel, best: BestExponentialSum, confidence: float) -> dict[str, Any]:
    """What there is to say of a sum; its weights from the slowest rate on."""
    model, order = best.model, np.argsort(np.asarray(best.model.rates), kind="stable")
    names = {"rate": "rates", "frequency": "frequencies", "cosine": "cosine", "sine": "sine"}
    if not isinstance(model, ComplexDiagonalRNN):
        names = {"rate": "rates", "amplitude": "amplitudes"}
    sorted_by = lambda values: np.asarray(values)[order].tolist()
    found: dict[str, Any] = {
        "neurons": best.order,
        "error": float(best.error),
        "relative_error": float(best.relative_error),
        "uncertainty": float(best.uncertainty),
        "between_samples": between_samples(kernel, best) if best.samples == "linear" else None,
        "lower_bound": float(best.lower_bound),
        "active": int(best.active),
        "resolved": bool(best.resolved),
        "confluent": bool(best.confluent),
        "noise_limited": bool(best.noise_limited),
        "weights": {name: sorted_by(getattr(model, part)) for name, part in names.items()},
        "offset": float(best.offset),
    }
    statistics = best.statistics
    if statistics is not None:
        errors, intervals = statistics.standard_errors, statistics.intervals(confidence)
        found |= {
            "residual_deviation": float(statistics.residual_deviation),
            "degrees_of_freedom": int(statistics.degrees_of_freedom),
            "confidence": confidence,
        }
        for label, values in (
            ("standard_errors", errors),
            ("low", {name: ends[0] for name, ends in intervals.items()}),
            ("high", {name: ends[1] for name, ends in intervals.items()}),
        ):
            found[label] = {name: sorted_by(values[part]) for name, part in names.items()}
            if "offset" in values:
                found[label]["offset"] = float(values["offset"])
    return found


_SPREADS = {"standard_errors": "error", "low": "low", "high": "high"}


def _weights_csv(best: dict[str, Any]) -> str:
    """A row a mode, and one of rate 0 for an offset."""
    columns = dict(best["weights"])
    first = "amplitude" if "amplitude" in columns else "cosine"
    constant = dict.fromkeys(columns, 0.0) | {first: best["offset"]}
    for label, ending in _SPREADS.items():
        for name, values in best.get(label, {}).items():
            if name == "offset":
                constant[f"{first}_{ending}"] = values
            else:
                columns[f"{name}_{ending}"] = values
    rows = list(zip(*columns.values(), strict=True))
    if best["offset"] != 0:
        rows.append(tuple(constant.get(name, float("nan")) for name in columns))
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def _approximation_text(summary: dict[str, Any], confidence: float) -> str:
    """The answer, errors against the number of neurons, and the weights."""
    best, found = summary["best"], []
    if "reached" in summary:
        goal = f"the {summary['norm']} error {summary['target_error']:.4g}"
        most = summary["errors"][-1]["neurons"]
        answer = f"no number of neurons up to {most} reached {goal}"
        if summary["reached"]:
            answer = f"{summary['neurons']} neurons reach {goal}"
        found.append(f"{answer}; fewer than {summary['lower_bound']} certainly cannot.\n")
        rows = [
            [str(row["neurons"]), f"{row['error']:.4g}", f"{row['lower_bound']:.4g}"]
            for row in summary["errors"]
        ]
        found.append(f"{_grid(['neurons', 'error', 'no sum below'], rows)}\n")
    found.append(
        f"Best sum of {best['neurons']}: {summary['norm']} error {best['error']:.4g} "
        f"({best['relative_error']:.3g} of the norm), uncertain by {best['uncertainty']:.2g}; "
        f"no sum of as many falls below {best['lower_bound']:.4g}."
    )
    if summary["samples"] == "linear":
        found.append("The response was taken for straight lines from sample to sample.")
    elif "standard_errors" not in best:
        found.append("Samples were taken as points: errors count at the samples alone.")
    else:
        found.append(
            "Samples were taken as points, by least squares: residual standard deviation "
            f"{best['residual_deviation']:.6g} with {best['degrees_of_freedom']} degrees of "
            "freedom."
        )
    header, columns = [], []
    level = f"{100 * confidence:g} %"
    for name, values in best["weights"].items():
        header.append(name)
        columns.append([f"{value:.10g}" for value in values])
        if "standard_errors" in best:
            header += ["std. error", level]
            columns.append([f"{value:.3g}" for value in best["standard_errors"][name]])
            ends = zip(best["low"][name], best["high"][name], strict=True)
            columns.append([f"[{low:.6g}, {high:.6g}]" for low, high in ends])
    found.append(_grid(header, [list(row) for row in zip(*columns, strict=True)]))
    if best["offset"] != 0:
        text = f"offset {best['offset']:.10g}"
        if "standard_errors" in best:
            low, high = best["low"]["offset"], best["high"]["offset"]
            error = best["standard_errors"]["offset"]
            text += f", std. error {error:.3g}, {level} [{low:.6g}, {high:.6g}]"
        found.append(text)
    return "\n".join(found) + "\n"


def _approximation_warnings(kernel: SampledKernel, summary: dict[str, Any]) -> list[str]:
    best = summary["best"]
    found = []
    if summary["samples"] == "linear" and kernel.times[0] > 0:
        found.append(
            f"the first sample is at time {float(kernel.times[0]):g}, and before it the response "
            "counts as 0; pass --origin if it begins there."
        )
    if summary["noise_from"] is not None:
        found.append(
            f"from {summary['noise_from']} neurons on the residual changes sign as often as noise "
            "does; more would fit noise."
        )
    if summary["samples"] == "linear" and best["between_samples"] > best["error"] / 2:
        found.append(
            "much of the error lies between the samples, where the response is taken for straight "
            f"lines and the sum bends by {best['between_samples']:.2g}; sample more densely, or "
            "take the samples as points."
        )
    if best["confluent"]:
        found.append(
            "terms cancel to a hundred-thousandth of their size or less; weights this large are "
            "of no use to training, and complex rates or fewer neurons may do better."
        )
    if np.any(np.isinf(best.get("standard_errors", {}).get("rate", []))):
        found.append(
            "the samples do not determine all rates and amplitudes; fit fewer neurons for standard "
            "errors that are finite."
        )
    if not best["resolved"]:
        found.append("the error is within its own uncertainty, and so an upper estimate.")
    if best["active"]:
        found.append(f"{best['active']} rates lie on the stability margin, and would be slower.")
    return found


def _wrapped(text: str, width: int = 96) -> str:
    return textwrap.fill(text, width) + "\n"


def _verdicts_table(verdicts: Sequence[Verdict]) -> str:
    """What is published and what was found, side by side."""
    words = {True: "yes", False: "NO", None: "not decided"}
    column = 42
    lines = [f"{'published':{column}}  {'found':{column}}  agrees"]
    lines.append(f"{'-' * column}  {'-' * column}  {'-' * 11}")
    for verdict in verdicts:
        cells = [textwrap.wrap(text, column) for text in (verdict.published, verdict.found)]
        for left, right, last in zip_longest(*cells, [words[verdict.agrees]], fillvalue=""):
            lines.append(f"{left:{column}}  {right:{column}}  {last}".rstrip())
        lines.append("")
    return "\n".join(lines)


def _groups(dataset: xr.Dataset, apart: Sequence[str]) -> list[dict[str, Any]]:
    dims = [str(dim) for dim in dataset["time"].dims if dim not in apart]
    indices = np.ndindex(*(dataset.sizes[dim] for dim in dims))
    return [
        {dim: dataset[dim].values[i] for dim, i in zip(dims, index, strict=True)}
        for index in indices
    ]


def _label(group: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """What tells a group from the others."""
    short = {"width": "m"}
    differing = [n for n in group if len({str(other[n]) for other in groups}) > 1]
    return ", ".join(f"{short.get(n, n)}={group[n]}" for n in differing or ["width"] if n in group)


def _times_table(dataset: xr.Dataset) -> str:
    """Median plateau times: a row a memory, a column a group."""
    groups = _groups(dataset, ("omega", "seed"))
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
    header = ["1/omega", *(_label(group, groups) for group in groups)]
    return f"Plateau time (median over seeds, units of training time)\n{_grid(header, rows)}\n"


def _fit_table(fit: xr.Dataset, dataset: xr.Dataset) -> str:
    """Fitted exponents beside the published bound."""
    groups = _groups(dataset, ("omega", "seed"))
    rows = []
    for group in groups:
        law = fit.sel(group)
        counts = _outcomes(dataset.sel(group))
        cells = []
        for correction in ("none", "omega^2"):
            one = law.sel(correction=correction)
            values = [float(one[f"slope{end}"]) for end in ("", "_low", "_high")]
            finite = np.isfinite(values[0])
            cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*values) if finite else "too few")
        rate = float(law["decay_rate"]) if "decay_rate" in law else np.nan
        mean = float(dataset.sel(group)["decay_rate"].mean()) if "decay_rate" in dataset else np.nan
        low, high = float(law["memory_low"]), float(law["memory_high"])
        others = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
        rows.append(
            [_label(group, groups), f"{low:g}..{high:g}", *cells, f"{rate:.3f}", f"{2 * mean:.3f}"]
            + [", ".join(others)]
        )
    level = f"{100 * fit.attrs['confidence']:g} %"
    header = [
        "group", "1/omega", f"slope [{level}]", "with omega^2", "bound c0", "2 mean c0", "runs",
    ]  # fmt: skip
    return (
        f"Law: log(time) = slope / omega + constant\n{_grid(header, rows)}\n\n"
        "The published bound omega^2 exp(c0/omega) makes the slope at least c0, the smallest rate\n"
        "in play, as omega -> 0. It is not attained: for one silent mode (m one above the number\n"
        "of target exponentials) the slope tends to 2 c0, from below in the plain fit. Several\n"
        "silent modes act together and leave earlier; for them no such limit is known.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
