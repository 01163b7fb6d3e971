import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_integers, as_list, check_choice, check_dataset, check_flag, shown
from .._deprecation import renamed_arguments
from .._lazy import matplotlib, tqdm, xr
from ..memory import perturbation_error
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..sweeps import cores
from ..viz import drawing, look, published
from ._base import check_integers, describe, empty, Reproduction
from ._w24_protocol import (
    ACTIVATIONS,
    directions,
    errors_along,
    kernel_matrix,
    KERNELS,
    LENGTH,
    PARAMETRISATIONS,
    RADII,
    start,
    target_power,
    train_below,
    UPDATES,
    weighted_error,
)
from ._w24_published import check, Plot, PLOTS, PUBLISHED, Published, radii_at, WIDTHS


class Sizes(NamedTuple):
    """How large an experiment is: sequences an update, epochs at most, sequences of the validation
    loss and of perturbed errors, and the precision."""

    batch: int
    epochs: int
    validation: int
    tests: int
    dtype: str


# The published ones, and those of the default, which fits a small machine.
FULL = Sizes(512, 1000, 12_800, 12_800, "float64")
SMALL = Sizes(64, 30, 1280, 128, "float32")


class Effort(NamedTuple):
    """How hard is searched for the worst perturbation: by random ones, and by ascent in a ball."""

    draws: int
    restarts: int
    steps: int
    ball: Literal["operator", "max"]


# Ascent sees the first so many of the test sequences.
_ASCENT = 64


@renamed_arguments(norm="ball")
def run(
    progress: bool = True,
    *,
    plots: Sequence[str] = tuple(PUBLISHED),
    widths: Sequence[int] = WIDTHS,
    seeds: int = 3,
    full: bool = False,
    batch: int | None = None,
    epochs: int | None = None,
    tests: int | None = None,
    draws: int = 30,
    restarts: int = 1,
    steps: int = 4,
    ball: Literal["operator", "max"] = "operator",
) -> "xr.Dataset":
    """Perturbation errors over `plot`, `width`, `seed` and `radius`.

    `full` takes the published sizes: batches of 512, up to 1,000 epochs, 12,800 test sequences and
    float64, for which JAX must have it enabled. `batch`, `epochs` and `tests` replace single ones.
    """
    check_choice("ball", ball, ("operator", "max"))
    _check_plots(plots)
    widths = as_integers("widths", widths)
    check_integers(seeds=seeds, draws=draws, restarts=restarts, steps=steps)
    given = {"batch": batch, "epochs": epochs, "tests": tests}
    given = {name: value for name, value in given.items() if value is not None}
    check_integers(**given)
    sizes = (FULL if check_flag("full", full) else SMALL)._replace(**given)
    if sizes.dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError(
            '`full` needs float64, which is off; set `jax.config.update("jax_enable_x64", True)` '
            "before making any array."
        )
    names = {"plot": list(plots), "width": list(widths), "seed": list(range(seeds))}
    curves = {name: empty(names, RADII.size) for name in _CURVES}
    values = {name: empty(names) for name in _VALUES}
    effort = Effort(draws, restarts, steps, ball)
    dtypes = [_precision(name, sizes) for name in plots]
    experiments = {
        dtype: _Experiment.of(sizes._replace(dtype=dtype), effort) for dtype in set(dtypes)
    }
    # Models with a matrix and those without it are two kinds of programs, in each precision.
    kinds: dict[tuple[bool, str], list[tuple[int, int]]] = {}
    for seed in range(seeds):
        for index, name in enumerate(plots):
            dense = PLOTS[name].parametrisation != "diagonal"
            kinds.setdefault((dense, dtypes[index]), []).append((index, seed))
    jobs = list(kinds.values())
    if jax.default_backend() == "cpu":
        # One at a time: side by side all wait for the run that trains longest, and nothing gets
        # faster. The first ones compile the programs of all others.
        first, others = [runs[:1] for runs in jobs], [runs[1:] for runs in jobs]
        jobs = first + [[run] for runs in others for run in runs]
    total = len(plots) * seeds * len(widths)
    bar = tqdm.tqdm(total=total, unit="model", disable=not progress)

    def measure(runs: list[tuple[int, int]], check_stopped: Callable[[], None]) -> None:
        thresholds = np.full(len(runs), _LOOSEST)
        cells = [(PLOTS[plots[index]], seed) for index, seed in runs]
        experiment = experiments[dtypes[runs[0][0]]]
        for column, width in enumerate(widths):
            found = experiment.measure(cells, width, thresholds, check_stopped)
            for k, (index, seed) in enumerate(runs):
                for name, array in (curves | values).items():
                    array[index, column, seed] = found[name][k]
            thresholds = found["validation"] / 2
            bar.update(len(runs))

    with bar:
        _in_threads(measure, jobs)
    targets = next(iter(experiments.values())).targets
    power = [float(target_power(targets[PLOTS[name].kernel])) for name in plots]
    result = np.where(values.pop("diverged"), DIVERGED, MAX_TIME_REACHED).astype(np.int8)
    return xr.Dataset(
        describe(curves, (*names, "radius"), _CURVES)
        | describe(values, tuple(names), {name: _VALUES[name] for name in values})
        | {
            "result": (tuple(names), result, {"long_name": "how the training ended"}),
            "power": ("plot", power, {"long_name": "weighted mean square of the target"}),
        },
        names
        | {"radius": RADII}
        | {part: ("plot", [getattr(PLOTS[n], part) for n in plots]) for part in Plot._fields},
        {**sizes._asdict(), "draws": draws, "restarts": restarts, "steps": steps, "norm": ball},
    )


def _precision(name: str, sizes: Sizes) -> str:
    """The precision of a plot. Wide linear models are unstable at the start, and their gradients
    overflow in single precision: nothing bounds their hidden states."""
    linear = PLOTS[name].activation == "linear"
    return "float64" if linear and jax.config.jax_enable_x64 else sizes.dtype  # pyright: ignore


def _check_plots(plots: Any) -> None:
    for name in as_list("plots", plots, "names") or [""]:
        if isinstance(name, str) and name in PLOTS:
            continue
        raise (ValueError if isinstance(name, str) else TypeError)(
            f"`plots` must be names such as 'tanh vanilla, power law', got {shown(name)}; write "
            f"one of {', '.join(ACTIVATIONS)}, one of {', '.join(PARAMETRISATIONS)}, a comma, and "
            f"{' or '.join(KERNELS)}."
        )


# Width 8 stops as soon as it may.
_LOOSEST = 100.0
_CURVES = {
    "shifted": "largest error of random perturbations, all rates lowered by the radius",
    "drawn": "largest error of random perturbations",
    "error": "largest error found in the ball",
}
_VALUES = {
    "trained": "error of the trained model",
    "validation": "validation loss of the trained model",
    "threshold": "validation loss at which training stops",
    "epochs": "epochs of training",
    "slowest_rate": "smallest positive rate of the trained model",
    "diverged": "whether training diverged",
}


def _in_threads(measure: Callable[[Any, Callable[[], None]], None], jobs: Sequence[Any]) -> None:
    """Do jobs side by side, one a processor: a program of one model keeps but one busy.

    `measure` is given a function to call now and then: it ends the job if another one failed or
    was interrupted.
    """
    stopped = threading.Event()

    def check_stopped() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    with ThreadPoolExecutor(cores() if jax.default_backend() == "cpu" else 1) as pool:
        running = [pool.submit(measure, job, check_stopped) for job in jobs]
        try:
            for job in as_completed(running):
                job.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Experiment(NamedTuple):
    """What all runs have in common: inputs, targets, and how hard is tried."""

    sizes: Sizes
    effort: Effort
    validation: Float[Array, "sequences times"]
    tests: Float[Array, "sequences times"]
    targets: dict[str, Float[Array, "times times"]]

    @classmethod
    def of(cls, sizes: Sizes, effort: Effort) -> "_Experiment":
        rng, dtype = np.random.default_rng([0, 2]), jnp.dtype(sizes.dtype)
        inputs = lambda count: jnp.asarray(rng.standard_normal((count, LENGTH)), dtype)
        targets = {name: kernel_matrix(make(), dtype) for name, make in KERNELS.items()}
        return cls(sizes, effort, inputs(sizes.validation), inputs(sizes.tests), targets)

    def measure(
        self,
        cells: Sequence[tuple[Plot, int]],
        width: int,
        thresholds: np.ndarray,
        after_epoch: Callable[[], None],
    ) -> dict[str, np.ndarray]:
        """Train and perturb models of one kind and width, one for each plot and seed."""
        dtype = jnp.dtype(self.sizes.dtype)
        # As in the public code, a seed is the same for all widths and models.
        make = lambda plot, seed: start(width, plot.activation, plot.parametrisation, seed, dtype)
        trained = train_below(
            [make(*cell) for cell in cells],
            [self.targets[plot.kernel] for plot, _ in cells],
            thresholds,
            self.validation,
            batch=self.sizes.batch,
            updates=UPDATES,
            most_epochs=self.sizes.epochs,
            keys=[seed for _, seed in cells],
            after_epoch=after_epoch,
        )
        found: dict[str, list] = {name: [] for name in (*_CURVES, "trained", "slowest_rate")}
        for (plot, seed), last in zip(cells, trained.models, strict=True):
            model, matrix = last.settled(), self.targets[plot.kernel]
            draws = self.effort.draws
            for name, shifted in (("shifted", True), ("drawn", False)):
                steps = directions(model, draws, shifted, seed)
                bare, errors = errors_along(model, steps, self.tests, matrix)
                found[name].append(errors)
            key = jax.random.key(seed)
            found["error"].append(_ascend(model, self.tests[:_ASCENT], matrix, self.effort, key))
            found["trained"].append(bare)
            found["slowest_rate"].append(model.slowest)
            after_epoch()
        return {name: np.stack(value) for name, value in found.items()} | {
            "validation": trained.losses,
            "threshold": thresholds,
            "epochs": trained.epochs,
            "diverged": trained.diverged,
        }


@eqx.filter_jit
def _ascend(
    model: Any,
    xs: Float[Array, "sequences times"],
    matrix: Float[Array, "times times"],
    effort: Effort,
    key: PRNGKeyArray,
) -> Float[Array, " radii"]:
    """The largest errors in balls around the weights."""
    return perturbation_error(
        model,
        lambda model: weighted_error(model, xs, matrix),
        jnp.asarray(RADII, xs.dtype),
        ball=effort.ball,
        restarts=effort.restarts,
        steps=effort.steps,
        draws=1,
        key=key,
    ).error


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error against the radius of the perturbation, and the radius at 10 % against the width.

    A pair of panels a plot: above, the largest error of random perturbations with all rates
    lowered by the radius, a line a width, divided by the mean square of the target; filled markers
    with a black edge are what was read off the published plot, namely the error without
    perturbation (at the left edge) and the radii at 10 % and at 100 %, which are the horizontal
    lines. Below, the radii at 10 %: published, ours, with rates drawn as well, and of the supremum
    by ascent. All are medians over seeds; thin lines are single seeds.
    """
    needed = {
        **dict.fromkeys(("shifted", "drawn", "error"), ["plot", "width", "seed", "radius"]),
        "trained": ["plot", "width", "seed"],
        "power": ["plot"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction w24-perturbation")
    names = [str(name) for name in dataset["plot"].values]
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    heights = {"height_ratios": [1.3, 1] * rows}
    size = (0.6 + 2.2 * columns, 0.5 + 3.5 * rows)
    with drawing(*size, {"axes.titlesize": "small"}) as figure:
        grid = figure.subplots(2 * rows, columns, squeeze=False, sharey="row", gridspec_kw=heights)
        for index, name in enumerate(names):
            row, column = divmod(index, columns)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            cell, known = dataset.sel(plot=name), PUBLISHED.get(name)
            _draw_curves(above, cell, known)
            _draw_radii(below, cell, known)
            above.set_title(name)
        for axes in grid.ravel():
            if not axes.has_data():
                axes.set_axis_off()
        for above, below in zip(grid[::2, 0], grid[1::2, 0], strict=True):
            above.set_ylabel("relative error")
            below.set_ylabel(r"radius $\beta$ at 10 %")
        # Once for all panels of a kind.
        above, below = (grid[k, 0].get_legend_handles_labels() for k in (0, 1))
        ncols = 4 if columns > 2 else 2
        figure.legend(*above, loc="outside upper center", ncols=ncols)
        figure.legend(*below, loc="outside lower center", ncols=ncols)
    return figure


# Where errors without perturbation are drawn, in units of the smallest radius.
_EDGE = 0.6


def _draw_curves(axes: Any, cell: "xr.Dataset", known: Published | None) -> None:
    power, radii = float(cell["power"]), cell["radius"].values
    median, edge = cell.median("seed"), _EDGE * cell["radius"].values[0]
    for index, width in enumerate(cell["width"].values):
        own = look(index)
        line = own | {"ms": 3, "mew": 0.7, "markevery": 3}
        error = median[["trained", "shifted"]].sel(width=width) / power
        values = np.append(error["trained"], error["shifted"])
        axes.loglog(np.append(edge, radii), values, label=f"$m$ = {width}", **line)
        if known and width in WIDTHS:
            at = WIDTHS.index(width)
            axes.loglog(
                [edge, known.tenth[at], known.lost[at]],
                [known.unperturbed[at] / power, 0.1, 1.0],
                label=f"published, $m$ = {width}",
                **published(own, ms=4),
            )
    for level in (0.1, 1):
        axes.axhline(level, color="0.6", lw=0.6, zorder=0)
    axes.set(ylim=(1e-6, 1e4), xlabel=r"radius $\beta$ (units of the weights)")


def _draw_radii(axes: Any, cell: "xr.Dataset", known: Published | None) -> None:
    widths = cell["width"].values
    for index, (source, label) in enumerate(_RADII_OF.items()):
        axes.loglog(widths, radii_at(cell, source, 0.1), label=label, **look(index, ms=4))
    for seed in range(cell.sizes["seed"] if cell.sizes["seed"] > 1 else 0):
        single = radii_at(cell.isel(seed=[seed]), "shifted", 0.1)
        label = "ours, rates lowered, single seeds" if seed == 0 else None
        axes.loglog(widths, single, color="0.7", lw=0.6, zorder=0, label=label)
    if known:
        axes.loglog(WIDTHS, known.tenth, "D", color="black", ms=3.5, label="published")
    axes.set_xscale("log", base=2)
    axes.set(xticks=widths, xticklabels=[str(width) for width in widths], xlabel="width $m$")
    axes.minorticks_off()


_RADII_OF = {
    "shifted": "ours, rates lowered",
    "drawn": "ours, rates drawn",
    "error": "ours, supremum",
}


REPRODUCTION = Reproduction(
    name="w24-perturbation",
    title="Error under perturbed weights against the radius, for growing width",
    source="Wang, Li, Li, ICLR 2024, Section 4 and Appendix, and its public code",
    description=f"RNNs learn y_k = sum_j rho(j) x_(k-j) for rho = exp(-t) and (1 + 0.1 t)^(-1.1) "
    f"on sequences of {LENGTH} standard normal inputs, in the protocol of the public code of July "
    f"2023: Adam with rate 0.01, {UPDATES} updates an epoch, errors weighted by t^2 (their squares "
    "by t^4), a penalty on slow rates, and width after width, each trained until its validation "
    "loss is half of that of the width before. By default batches have "
    f"{SMALL.batch} sequences instead of {FULL.batch}, errors are means over {SMALL.tests} instead "
    f"of {FULL.tests}, in float32 but for linear models, which overflow there; --full takes the "
    "published sizes, in float64. Then all weights are "
    "perturbed, as for the published figures: free rates by minus the radius, the other arrays by "
    "Gaussian draws whose largest entry is the radius; the largest error of 30 counts. Besides, "
    "with rates drawn as well, and by gradient ascent (supremum) in the ball of the definition, in "
    "which the radius bounds the operator norm of each array. The published numbers are read off "
    "the figures of 16 July 2023. Numbers agree if at least three of four are within a factor 2, "
    "medians over seeds; orders if they are those published at every width.",
    run=run,
    check=check,
    plot=plot,
)
