import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_integers, check_choice, check_dataset, check_flag
from .._deprecation import renamed_arguments
from .._lazy import matplotlib, tqdm, xr
from ..memory import perturbation_error
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, look
from ._base import check_integers, check_known, describe, empty, Reproduction
from ._training import batched, select
from ._w24_protocol import (
    drawn_errors,
    kernel_matrix,
    KERNELS,
    LENGTH,
    RADII,
    start,
    target_power,
    train_below,
    UPDATES,
    weighted_error,
)
from ._w24_published import check, Plot, PLOTS, Published, PUBLISHED, radii_at, WIDTHS


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
SMALL = Sizes(128, 60, 1280, 128, "float32")
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
    check_known("plots", plots, PLOTS)
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
    # Kernels and seeds of one kind of model are runs of one program.
    kinds: dict[tuple[str, str], list[int]] = {}
    for index, name in enumerate(plots):
        kinds.setdefault(PLOTS[name][:2], []).append(index)
    stopped = threading.Event()
    bar = tqdm.tqdm(total=len(kinds) * len(widths), unit="cell", disable=not progress)

    def check_stopped() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    def measure(indices: list[int]) -> None:
        runs = [(index, seed) for index in indices for seed in range(seeds)]
        parts = [runs]
        if jax.default_backend() == "cpu":
            # Side by side, all wait for the one that trains longest, and nothing gets faster.
            parts = [[run] for run in runs]
        before = dict.fromkeys(runs, _LOOSEST)
        for width in widths:
            for part in parts:
                thresholds = np.array([before[run] for run in part])
                cells = [PLOTS[plots[index]] for index, _ in part]
                found = _measure_runs(
                    cells, [seed for _, seed in part], width, thresholds, sizes,
                    (draws, restarts, steps, ball), check_stopped,
                )  # fmt: skip
                for k, (index, seed) in enumerate(part):
                    place = (index, widths.index(width), seed)
                    for name, array in (curves | values).items():
                        array[place] = found[name][k]
                    before[index, seed] = found["validation"][k] / 2
            bar.update()

    with bar, ThreadPoolExecutor(_count_threads()) as pool:
        jobs = [pool.submit(measure, indices) for indices in kinds.values()]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    power = [float(target_power(_target(PLOTS[name], sizes))) for name in plots]
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


def _count_threads() -> int:
    """How many kinds of models are worked on side by side."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _target(plot: Plot, sizes: Sizes) -> Float[Array, "times times"]:
    return kernel_matrix(KERNELS[plot.kernel](), jnp.dtype(sizes.dtype))


def _measure_runs(
    cells: Sequence[Plot],
    seeds: Sequence[int],
    width: int,
    thresholds: np.ndarray,
    sizes: Sizes,
    effort: tuple[int, int, int, Literal["operator", "max"]],
    after_epoch: Callable[[], None],
) -> dict[str, np.ndarray]:
    """Train and perturb models of one kind and width."""
    dtype = jnp.dtype(sizes.dtype)
    training, validating, testing = jax.random.split(jax.random.key(0), 3)
    inputs = lambda key, count: jax.random.normal(key, (count, LENGTH), dtype)
    # As in the public code, one seed for all widths and kinds of models.
    numbers = [jax.random.fold_in(jax.random.key(1), seed) for seed in seeds]
    make = lambda key: start(width, cells[0].activation, cells[0].parametrisation, key, dtype)
    matrices = jnp.stack([_target(cell, sizes) for cell in cells])
    trained = train_below(
        batched(make, jnp.stack(numbers)),
        matrices,
        thresholds,
        inputs(validating, sizes.validation),
        batch=sizes.batch,
        most_epochs=sizes.epochs,
        key=jax.random.fold_in(training, seeds[0]),
        after_epoch=after_epoch,
    )
    xs = inputs(testing, sizes.tests)
    found: dict[str, list] = {name: [] for name in (*_CURVES, "trained", "slowest_rate")}
    for k, key in enumerate(numbers):
        model = select(trained.models, k).settled()
        for name, value in _perturb(model, xs, matrices[k], key, *effort).items():
            found[name].append(np.asarray(value))
        after_epoch()
    return {name: np.stack(value) for name, value in found.items()} | {
        "validation": trained.losses,
        "threshold": thresholds,
        "epochs": trained.epochs,
        "diverged": trained.diverged,
    }


@eqx.filter_jit
def _perturb(
    model: Any,
    xs: Float[Array, "sequences times"],
    matrix: Float[Array, "times times"],
    key: PRNGKeyArray,
    draws: int,
    restarts: int,
    steps: int,
    ball: Literal["operator", "max"],
) -> dict[str, Array]:
    """The errors of a model and of its perturbations, and its slowest rate."""
    noise, ascent = jax.random.split(key)
    few = xs[:_ASCENT]
    reached = perturbation_error(
        model,
        lambda model: weighted_error(model, few, matrix),
        jnp.asarray(RADII, xs.dtype),
        ball=ball,
        restarts=restarts,
        steps=steps,
        draws=1,
        key=ascent,
    )
    return {
        "shifted": drawn_errors(model, xs, matrix, draws, True, noise),
        "drawn": drawn_errors(model, xs, matrix, draws, False, noise),
        "error": reached.error,
        "trained": weighted_error(model, xs, matrix),
        "slowest_rate": model.slowest,
    }


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error against the radius of the perturbation, and the radius at 10 % against the width.

    A pair of panels a plot: above, the largest error of random perturbations with all rates
    lowered by the radius, a line a width, divided by the mean square of the target; markers are
    what was read off the published plot, namely the error without perturbation (at the left edge)
    and the radii at 10 % and at 100 %. Below, the radii at 10 %: published, ours, with rates drawn
    as well, and of the supremum by ascent. All are medians over seeds; thin lines are single seeds.
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
    ratios = {"height_ratios": [1.25, 1] * rows}
    with drawing(0.6 + 2.3 * columns, 0.7 + 3.4 * rows) as figure:
        grid = figure.subplots(2 * rows, columns, squeeze=False, sharey="row", gridspec_kw=ratios)
        for index, name in enumerate(names):
            row, column = divmod(index, columns)
            cell = dataset.sel(plot=name)
            _draw_curves(grid[2 * row, column], cell, PUBLISHED.get(name))
            _draw_radii(grid[2 * row + 1, column], cell, PUBLISHED.get(name))
            grid[2 * row, column].set_title(name, fontsize=7.5)
        for axes in grid.ravel()[:0]:
            axes.set_axis_off()
        for axes in grid[::2, 0]:
            axes.set_ylabel("relative error")
        for axes in grid[1::2, 0]:
            axes.set_ylabel(r"radius at 10 %")
        for empty_axes in [axes for axes in grid.ravel() if not axes.has_data()]:
            empty_axes.set_axis_off()
        grid[0, 0].legend(loc="lower right", fontsize=6)
        grid[1, 0].legend(loc="upper left", fontsize=6)
    return figure


# Where errors without perturbation are drawn, in units of the smallest radius.
_EDGE = 0.6


def _draw_curves(axes: Any, cell: "xr.Dataset", known: Published | None) -> None:
    power = float(cell["power"])
    radii = cell["radius"].values
    median = cell.median("seed")
    for index, width in enumerate(cell["width"].values):
        own = look(index)
        error = median["shifted"].sel(width=width).values / power
        bare = float(median["trained"].sel(width=width)) / power
        axes.loglog(
            np.append(_EDGE * radii[0], radii),
            np.append(bare, error),
            color=own["color"],
            ls=own["ls"],
            lw=1.2,
            label=f"$m$ = {width}",
        )
        if known and width in WIDTHS:
            at = WIDTHS.index(width)
            points = {"mfc": own["color"], "mec": "black", "mew": 0.5, "ms": 4, "zorder": 3}
            axes.loglog(
                [_EDGE * radii[0], known.tenth[at], known.lost[at]],
                [known.unperturbed[at] / power, 0.1, 1.0],
                own["marker"],
                **points,
                label=f"published, $m$ = {width}",
            )
    axes.axhline(1, color="0.6", lw=0.6, zorder=0)
    axes.axhline(0.1, color="0.6", lw=0.6, zorder=0)
    axes.set(ylim=(1e-6, 1e4), xlabel=r"radius $\beta$ (units of the weights)")


def _draw_radii(axes: Any, cell: "xr.Dataset", known: Published | None) -> None:
    widths = cell["width"].values
    for index, (source, label) in enumerate(_RADII_OF.items()):
        own = look(index, ms=4)
        axes.loglog(widths, radii_at(cell, source, 0.1), label=label, **own)
    for seed in range(cell.sizes["seed"]):
        axes.loglog(
            widths, radii_at(cell.isel(seed=[seed]), "shifted", 0.1), color="0.7", lw=0.6, zorder=0
        )
    if known:
        axes.loglog(WIDTHS, known.tenth, "kX", ms=5, label="published")
    axes.set_xscale("log", base=2)
    axes.set(xticks=widths, xticklabels=[str(width) for width in widths], xlabel="width $m$")
    axes.minorticks_off()


_RADII_OF = {
    "shifted": "ours, the same way",
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
    f"of {FULL.tests}, in float32; --full takes the published sizes. Then all weights are "
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
