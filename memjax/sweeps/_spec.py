import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w
from jaxtyping import Array

from .._checks import (
    as_range,
    as_seed,
    as_tolerance,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_nonnegative,
    check_positive,
    said,
    shown,
)
from .._lazy import xr
from ..flows import GradientFlow
from ..losses import WhiteNoiseLoss
from ..models import DiagonalLinearRNN
from ..plateaus import (
    AbstractExit,
    LossChange,
    near_plateau,
    on_plateau,
    ParameterDistance,
    plateau_lower_bound,
    random_start,
    RelativeLossDrop,
)
from ..reparam import ReparametrisationName, REPARAMETRISATIONS
from ..targets import AbstractKernel, ExponentialSum, GaussianBump
from ._sweep import sweep
from ._toml import check_keys, checked, read_toml

Start = Literal["on-plateau", "near-plateau", "random"]
ExitName = Literal["relative-loss-drop", "loss-change", "parameter-distance"]
Precision = Literal["auto", "float64", "double-double"]


def make_exit(name: str, delta: Any, plateau: Array | None = None) -> AbstractExit:
    """An exit condition by its name; `plateau` is the loss that a drop is relative to."""
    if name == "relative-loss-drop":
        return RelativeLossDrop(delta, plateau)
    return {"loss-change": LossChange, "parameter-distance": ParameterDistance}[name](delta)


@dataclasses.dataclass(frozen=True)
class PlateauSweep:
    """The specification of a sweep of plateau times over memory, as `memjax sweep` runs it.

    The target is an exponential sum plus a Gaussian bump at time 1/omega, the model a diagonal
    linear RNN, the loss its squared error under white noise, and training gradient flow.
    """

    memories: tuple[float, ...] = tuple(float(memory) for memory in range(8, 32, 2))
    """Memories 1/omega at which the bump sits, in units of the model's clock."""
    widths: tuple[int, ...] = (2, 4, 8)
    """Numbers of neurons m."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of the starts."""
    deltas: tuple[float, ...] = (0.02,)
    """Thresholds of the exit condition."""
    exit: ExitName = "relative-loss-drop"
    """Exit condition; a drop is relative to the height of the plateau, the bump's squared norm."""
    reparametrisations: tuple[ReparametrisationName, ...] = ("direct",)
    """Maps from free weights to decay rates."""
    target_amplitudes: tuple[float, ...] = (1.0,)
    """Amplitudes of the target's exponential part."""
    target_rates: tuple[float, ...] = (1.0,)
    """Decay rates of the target's exponential part, in units of 1/clock."""
    bump_amplitude: float = 1.0
    """Height of the bump."""
    bump_width: float = 0.5
    """Width sigma of the bump, in units of the clock."""
    start: Start = "on-plateau"
    """Start: the target's exponential part and silent modes; the same, perturbed; or random."""
    slowest: float = 0.6
    """Smallest rate of the silent modes (or of a random start), in units of 1/clock."""
    fastest: float = 3.0
    """Largest rate of the silent modes (or of a random start), in units of 1/clock."""
    jitter: float = 0.02
    """Standard deviation over the seeds of the log rates of the silent modes, and for
    near-plateau starts of all log rates and amplitudes."""
    rtol: float = 1e-5
    """Tolerance of the integration, relative to the displacement of every weight."""
    precision: Precision = "auto"
    """Arithmetic: "auto" repeats in double-double what float64 does not resolve."""
    max_time: float = 1e300
    """Training time after which a run is stopped."""
    max_steps: int = 4096
    """Number of attempted steps after which a run is stopped."""
    curve_start: float = 1e-2
    """First training time at which the loss curves are recorded."""
    curve_stop: float = 1e16
    """Last training time at which the loss curves are recorded."""
    curve_points: int = 181
    """Number of log-spaced training times of the loss curves; 0 records none."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(type(self), field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name in (
            "memories", "deltas", "target_rates", "bump_width", "slowest", "fastest", "max_time",
            "curve_start", "curve_stop",
        ):  # fmt: skip
            check_positive(name, np.asarray(getattr(self, name)))
        for width in self.widths:
            check_integer("widths", width)
        check_integer("max_steps", self.max_steps)
        as_tolerance("rtol", self.rtol)
        for name in ("memories", "widths", "seeds", "deltas", "reparametrisations"):
            given = getattr(self, name)
            if not given:
                raise ValueError(f"`{name}` must not be empty, got (); pass at least one value.")
            if len(set(given)) != len(given):
                raise ValueError(
                    f"`{name}` must not repeat a value, got {shown(given)}; keep one of each."
                )
        if len(self.target_amplitudes) != len(self.target_rates):
            raise ValueError(
                f"`target_amplitudes` and `target_rates` must have the same length, got "
                f"{len(self.target_amplitudes)} and {len(self.target_rates)}; pass one of each "
                "per exponential."
            )
        modes = len(self.target_rates)
        if self.start != "random" and min(self.widths) <= modes:
            raise ValueError(
                f"`widths` must exceed the {modes} exponential(s) of the target for a start on "
                f"or near the plateau, got {min(self.widths)}; pass at least {modes + 1}."
            )
        if self.start != "random" and modes == 0:
            raise ValueError(
                "`target_rates` must not be empty for a start on or near the plateau, got (); "
                "pass a rate, or start='random'."
            )
        check_nonnegative("jitter", self.jitter)
        as_range("slowest", self.slowest, "fastest", self.fastest)
        if check_integer("curve_points", self.curve_points, 0) == 1:
            raise ValueError("`curve_points` must be 0 or at least 2, got 1; a curve has two ends.")
        if self.curve_points:
            as_range("curve_start", self.curve_start, "curve_stop", self.curve_stop)

    @classmethod
    def from_toml(cls, path: str | Path) -> "PlateauSweep":
        """Read a specification that `to_toml` wrote, or one that names only what differs from
        the defaults.

        **Raises:**

        `FileNotFoundError`, or `ValueError` for a file that is not TOML, unknown keys or values
        of the wrong kind.
        """
        return cls(**read_toml(path, cls))

    def to_toml(self) -> str:
        """The specification as TOML."""
        return tomli_w.dumps(dataclasses.asdict(self))

    @classmethod
    def from_dataset(cls, dataset: "xr.Dataset") -> "PlateauSweep":
        """The specification of the dataset of `run`, or of what several of them were joined to:
        the axes from its coordinates, the rest from its attribute `specification`.

        **Raises:**

        `ValueError` for a dataset that has no such attribute or coordinates, or an attribute with
        unknown keys; `TypeError` for what is no dataset.
        """
        check_instance("dataset", dataset, xr.Dataset, "an xarray.Dataset", "pass one of a sweep")
        try:
            common = tomllib.loads(dataset.attrs["specification"])
            axes = {field: np.ravel(dataset[axis]) for field, axis in _AXES.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "`dataset` must have the coordinates and the attribute 'specification' of one of "
                f"PlateauSweep.run, got {said(error)}; pass it as it was returned."
            ) from error
        check_keys("dataset", common, cls, "its attribute 'specification'")
        values: dict[str, Any] = {name: tuple(value.tolist()) for name, value in axes.items()}
        values["memories"] = tuple(_reciprocal(omega) for omega in values["memories"])
        # The coordinates know better than an attribute of an older dataset, which had the axes too.
        return cls(**common | values)

    def target(self, omega: float | Array) -> AbstractKernel:
        """The target whose memory sits at 1/omega."""
        bump = GaussianBump(omega, self.bump_amplitude, self.bump_width)
        amplitudes, rates = jnp.asarray(self.target_amplitudes), jnp.asarray(self.target_rates)
        return ExponentialSum(amplitudes, rates) + bump

    def model(
        self, omega: float | Array, width: int, seed: int | Array, reparametrisation: str = "direct"
    ) -> DiagonalLinearRNN:
        """The start of a run."""
        check_choice("reparametrisation", reparametrisation, REPARAMETRISATIONS)
        reparam = REPARAMETRISATIONS[reparametrisation]()
        key = jax.random.key(as_seed("seed", seed))
        if self.start == "random":
            return random_start(
                width,
                slowest=self.slowest,
                fastest=self.fastest,
                reparametrisation=reparam,
                key=key,
            )
        silent = check_integer("width", width, len(self.target_rates) + 1) - len(self.target_rates)
        steps = jnp.arange(silent) / max(silent - 1, 1)
        rates = self.slowest * (self.fastest / self.slowest) ** steps
        first, second = jax.random.split(key)
        rates = rates * jnp.exp(self.jitter * jax.random.normal(first, (silent,)))
        model = on_plateau(self.target(omega), rates, reparametrisation=reparam)
        if self.start == "near-plateau":
            model = near_plateau(model, scale=self.jitter, key=second)
        return model

    def build(
        self,
        omega: float | Array,
        width: int,
        seed: int | Array,
        delta: float | Array,
        reparametrisation: str,
    ):
        """One cell of the grid, for [`memjax.sweep`][]."""
        target = self.target(omega)
        model = self.model(omega, width, seed, reparametrisation)
        bump = GaussianBump(omega, self.bump_amplitude, self.bump_width)
        exit = make_exit(self.exit, delta, bump.squared_norm())
        rates = jnp.concatenate([model.rates, jnp.asarray(self.target_rates)])
        slowest = jnp.min(rates)
        record = {
            "decay_rate": slowest,
            "lower_bound": plateau_lower_bound(omega, delta=delta, decay_rate=slowest, width=width),
        }
        return GradientFlow(WhiteNoiseLoss(target)), model, exit, record

    def run(self, *, progress: bool = True, **options: Any) -> "xr.Dataset":
        """Run the sweep.

        **Arguments:**

        - `progress`: whether to show a progress bar.
        - `options`: passed on to [`memjax.sweep`][], such as `lanes`.

        **Returns:**

        The dataset of [`memjax.sweep`][] over `omega`, `width`, `seed`, `delta` and
        `reparametrisation`, with `decay_rate` (the smallest rate in play, $c_0$) and
        `lower_bound` (the published bound, up to its constant) for every cell. Its attribute
        `specification` is the specification but for the axes, as TOML.
        """
        check_flag("progress", progress)
        times = None
        if self.curve_points:
            times = jnp.geomspace(self.curve_start, self.curve_stop, self.curve_points)
        axes = {axis: getattr(self, field) for field, axis in _AXES.items()}
        axes["omega"] = 1 / np.asarray(self.memories)
        common = {k: v for k, v in dataclasses.asdict(self).items() if k not in _AXES}
        options.setdefault("precision", self.precision)
        return sweep(
            _Cells(self),
            axes,
            static=("width", "reparametrisation"),
            rtol=self.rtol,
            max_time=self.max_time,
            max_steps=self.max_steps,
            curve_times=times,
            progress=progress,
            # Without the axes, so that it stays true of what several sweeps are joined to.
            attrs={"specification": tomli_w.dumps(common)},
            **options,
        )


# The fields that are axes of the dataset.
_AXES = {
    "memories": "omega",
    "widths": "width",
    "seeds": "seed",
    "deltas": "delta",
    "reparametrisations": "reparametrisation",
}


def _reciprocal(omega: float) -> float:
    """The memory of fewest digits with this `omega`, as it was most likely given."""
    rounded = (float(f"{1 / omega:.{digits}g}") for digits in range(1, 17))
    return next((memory for memory in rounded if 1 / memory == omega), 1 / omega)


# What the variables are that a specification records.
_RECORDED = {
    "decay_rate": {"long_name": "smallest decay rate in play", "units": "1/clock"},
    "lower_bound": {
        "long_name": "published lower bound, up to its constant",
        "units": "training time",
    },
}


@dataclasses.dataclass(frozen=True)
class _Cells:
    """The `build` of a specification, equal for equal specifications, so that they share
    what was compiled."""

    specification: PlateauSweep

    @property
    def described(self) -> dict[str, dict[str, str]]:
        """Attributes of what is recorded."""
        return _RECORDED

    def __call__(self, omega: Any, width: int, seed: Any, delta: Any, reparametrisation: str):
        return self.specification.build(omega, width, seed, delta, reparametrisation)
