from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._checks import as_integers, check_dataset
from .._lazy import matplotlib, xr
from ..memory import crossings
from ..viz import beside, drawing, explain, label_grid, look
from ._base import (
    as_radii,
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    near,
    Reproduction,
    Verdict,
)

EXPONENTIAL, POWER = "0.9^t", "(1 + t)^-1.1"
KERNELS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    EXPONENTIAL: lambda t: 0.9**t,
    POWER: lambda t: (1 + t) ** -1.1,
}
GROWING, BOUNDED = "up to 1 - 0.8/m", "up to 0.93"
# The smallest distance of a multiplier from 1, by width.
MULTIPLIERS: Mapping[str, Callable[[int], float]] = {
    GROWING: lambda width: 0.8 / width,
    BOUNDED: lambda width: 0.07,
}
WIDTHS = (2, 4, 6, 8, 14)
TIMES = np.arange(1.0, 101.0)

# Read off the two published panels: the error without perturbation, by kernel and width (of the
# widest exponential sum, whose curve has no flat part, at the smallest radius, 5e-4); the radius
# at which the curve of each wider sum crosses that of m = 2; and that at which the error is 100.
PUBLISHED_ERRORS = {
    EXPONENTIAL: (0.32, 0.098, 0.034, 0.010, 0.0018),
    POWER: (0.091, 0.022, 0.0115, 0.0073, 0.0031),
}
PUBLISHED_CROSSINGS = {EXPONENTIAL: (0.07,) * 4, POWER: (0.115, 0.085, 0.07, 0.037)}
PUBLISHED_LOST = {
    EXPONENTIAL: (0.55, 0.42, 0.28, 0.26, 0.155),
    POWER: (0.57, 0.51, 0.30, 0.265, 0.135),
}
_FARTHEST, _RIDGE = 0.8, 0.075
_LOST, _FACTOR = 100.0, 2.0
# The share by which crossings have to fall from the first to the last to count as moving.
_MOVES = 2.0


def fit_sum(kernel: str, width: int, nearest: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Amplitudes and multipliers of $\sum_i c_i \lambda_i^t$ near a kernel at t = 1, ..., 100.

    The distances $1 - \lambda_i$ are in geometric progression from 0.8 to `nearest`. Amplitudes
    are those of least squares with a small price on their squares: without it they are so large
    for many neurons that the sum is lost at the smallest radius.
    """
    multipliers = 1 - np.geomspace(_FARTHEST, nearest, width)
    powers = multipliers ** TIMES[:, None]
    normal = powers.T @ powers + _RIDGE**2 * np.eye(width)
    return np.linalg.solve(normal, powers.T @ KERNELS[kernel](TIMES)), multipliers


def sum_error(amplitudes: np.ndarray, multipliers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The largest distance from a kernel over the times; leading axes of weights are draws."""
    with np.errstate(over="ignore", invalid="ignore"):
        powers = multipliers[..., None, :] ** TIMES[:, None]
        distances = np.abs(np.einsum("...ti,...i->...t", powers, amplitudes) - values)
    return np.max(np.nan_to_num(distances, nan=np.inf), axis=-1)


def drawn_errors(
    amplitudes: np.ndarray,
    multipliers: np.ndarray,
    values: np.ndarray,
    radii: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The largest error so far of random perturbations: Gaussian, amplitudes and multipliers each
    scaled so that the largest entry is the radius, the same directions at every radius."""
    noise = rng.normal(size=(draws, 2, amplitudes.size))
    noise /= np.abs(noise).max(axis=2, keepdims=True)
    moved = lambda radius: (amplitudes + radius * noise[:, 0], multipliers + radius * noise[:, 1])
    errors = [np.max(sum_error(*moved(radius), values)) for radius in radii]
    return np.maximum.accumulate([float(sum_error(amplitudes, multipliers, values)), *errors])[1:]


def worst_errors(
    amplitudes: np.ndarray, multipliers: np.ndarray, values: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    r"""The supremum of the error over all perturbations of each weight by at most the radius.

    Exact: at a fixed time the terms are independent of each other, each is linear in its
    amplitude, and $\lambda^t$ is monotone on either side of 0, so that a term is largest and
    smallest at a corner of its square, or on the axis $\lambda = 0$.
    """
    found = []
    for radius in radii:
        ends = np.stack([multipliers - radius, multipliers + radius])
        edges = np.stack([*ends, np.clip(0.0, *ends)])
        with np.errstate(over="ignore", invalid="ignore"):
            powers = edges[:, None, :] ** TIMES[:, None]
            low, high = powers.min(axis=0), powers.max(axis=0)
            terms = np.stack(
                [(amplitudes + sign * radius) * power for sign in (-1, 1) for power in (low, high)]
            )
            above = np.sum(terms.max(axis=0), axis=1) - values
            below = values - np.sum(terms.min(axis=0), axis=1)
        found.append(np.max(np.nan_to_num(np.maximum(above, below), nan=np.inf)))
    return np.asarray(found)


def run(
    progress: bool = True,
    *,
    kernels: Sequence[str] = tuple(KERNELS),
    multipliers: Sequence[str] = tuple(MULTIPLIERS),
    widths: Sequence[int] = WIDTHS,
    radii: Sequence[float] = tuple(5e-4 * 2 ** (np.arange(23) / 2)),
    draws: int = 10,
    seeds: int = 9,
) -> "xr.Dataset":
    """Errors of perturbed sums over `kernel`, `multipliers`, `width`, `radius`, and `seed`."""
    check_known("kernels", kernels, KERNELS)
    check_known("multipliers", multipliers, MULTIPLIERS)
    widths, radii = as_integers("widths", widths, 2), as_radii(radii)
    check_integers(draws=draws, seeds=seeds)
    names = {"kernel": list(kernels), "multipliers": list(multipliers), "width": list(widths)}
    balls = np.asarray(radii)
    worst, drawn = empty(names, balls.size), empty(names, seeds, balls.size)
    nominal = empty(names)
    for cell, (kernel, rule, width) in each_cell(names, "sum", progress):
        own = fit_sum(kernel, width, MULTIPLIERS[rule](width))
        values = KERNELS[kernel](TIMES)
        nominal[cell] = sum_error(*own, values)
        worst[cell] = worst_errors(*own, values, balls)
        for seed in range(seeds):
            rng = np.random.default_rng((seed, width))
            drawn[cell][seed] = drawn_errors(*own, values, balls, draws, rng)
    dims = tuple(names)
    return xr.Dataset(
        describe(
            {"nominal": nominal, "result": np.zeros(nominal.shape, np.int8)},
            dims,
            {"nominal": "error without perturbation", "result": "how it ended"},
        )
        | describe({"error": worst}, (*dims, "radius"), {"error": "largest error in the ball"})
        | describe(
            {"drawn": drawn},
            (*dims, "seed", "radius"),
            {"drawn": f"largest error of {draws} draws"},
        ),
        names | {"radius": list(radii), "seed": np.arange(seeds)},
        {"draws": draws},
    )


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims of both panels beside a dataset of `run`, and what becomes of them."""
    verdicts = []
    for rule in map(str, dataset["multipliers"].values):
        for kernel in map(str, dataset["kernel"].values):
            cell = dataset.sel(kernel=kernel, multipliers=rule)
            if rule == GROWING:
                judges = (_judge_errors, _judge_lost, _judge_crossings)
                verdicts += [judge(kernel, cell) for judge in judges]
            verdicts.append(_judge_limit(kernel, cell, rule))
    return verdicts


def _listed(values: Any, digits: str = ".2g") -> str:
    return ", ".join("none" if not np.isfinite(v) else f"{v:{digits}}" for v in values)


def _published(table: Sequence[float], widths: np.ndarray) -> np.ndarray:
    """The entries of the widths that were measured, NaN for others."""
    known: dict[int, float] = dict(zip(WIDTHS, table, strict=True))
    return np.asarray([known.get(int(width), np.nan) for width in widths])


def _judge_errors(kernel: str, cell: "xr.Dataset") -> Verdict:
    published = _published(PUBLISHED_ERRORS[kernel], cell["width"].values)
    # The widest published sum of exponentials is shown under the smallest perturbation only.
    found = np.median(cell["drawn"].isel(radius=0).transpose("seed", "width").values, axis=0)
    if np.all(np.isnan(published)):
        agrees = None
    else:
        agrees = bool(np.all(near(found, published, _FACTOR)[np.isfinite(published)]))
    return Verdict(
        f"{kernel}: errors {_listed(published)} at the smallest radius, m = "
        f"{_listed(cell['width'].values, 'd')}",
        f"{_listed(found)}, multipliers {GROWING}",
        agrees,
    )


def _find_lost(cell: "xr.Dataset") -> np.ndarray:
    curves = cell["drawn"].median("seed").transpose("width", "radius").values
    return _find_passed(cell["radius"].values, curves)


def _find_passed(radii: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """By width the radius at which an error passes 100, infinite if none does."""
    above = curves > _LOST
    return np.where(above.any(axis=1), radii[np.argmax(above, axis=1)], np.inf)


def _judge_lost(kernel: str, cell: "xr.Dataset") -> Verdict:
    published = _published(PUBLISHED_LOST[kernel], cell["width"].values)
    found = _find_lost(cell)
    known = np.isfinite(published)
    return Verdict(
        f"{kernel}: the error is {_LOST:g} at the radii {_listed(published)}",
        f"{_listed(found)} in the median over seeds; by the supremum "
        f"{_listed(_find_passed(cell['radius'].values, cell['error'].values))}",
        bool(np.all(near(found, published, _FACTOR)[known])) if known.any() else None,
    )


def _judge_crossings(kernel: str, cell: "xr.Dataset") -> Verdict:
    """Where the curves of wider sums rise above that of the narrowest."""
    radii = cell["radius"].values
    curves = cell["drawn"].median("seed").transpose("width", "radius").values
    drawn, worst = (
        np.asarray([crossings(radii, values[[0, k]])[0] for k in range(1, len(values))])
        for values in (curves, cell["error"].transpose("width", "radius").values)
    )
    moving = kernel == POWER
    seen = drawn[np.isfinite(drawn)]
    agrees = None
    if seen.size > 1:
        agrees = bool((seen[0] > _MOVES * seen[-1]) == moving)
    return Verdict(
        f"{kernel}: wider curves cross that of m = "
        f"{int(cell['width'][0])} at {_listed(PUBLISHED_CROSSINGS[kernel])}"
        + (", moving left" if moving else ""),
        f"draws at {_listed(drawn)}; supremum at {_listed(worst)}",
        agrees,
    )


def _judge_limit(kernel: str, cell: "xr.Dataset", rule: str) -> Verdict:
    """Whether the radius at which a sum is lost tends to 0 as the width grows."""
    found, widths = _find_lost(cell), cell["width"].values
    steady = rule == BOUNDED or kernel == EXPONENTIAL
    claim = "does not vanish as m grows" if steady else "tends to 0 as m grows"
    source = "expected" if rule == BOUNDED else "0.07" if steady else "limit drawn"
    if len(widths) < 2 or not np.all(np.isfinite(found)):
        return Verdict(f"{kernel}, multipliers {rule}: the radius {claim}", "not measured", None)
    fell = found[0] / found[-1]
    smallest = float(cell["nominal"].min())
    return Verdict(
        f"{kernel}, multipliers {rule}: the radius of stable approximation {claim} ({source})",
        f"the error is {_LOST:g} at {found[0]:.2g} for m = {widths[0]} and {found[-1]:.2g} for m = "
        f"{widths[-1]}; errors go down to {smallest:.2g}",
        bool((fell < _MOVES) == steady),
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Largest errors against the radius, a line a width: a row the multipliers, a column a kernel.

    Lines with hollow markers are the median over seeds of the largest error of some draws, dotted
    ones with small filled markers the exact supremum. Black crosses are the published errors, at
    the left, and the published crossings with the curve of m = 2.
    """
    needed = {
        "error": ["kernel", "multipliers", "width", "radius"],
        "drawn": ["kernel", "multipliers", "width", "seed", "radius"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction w24-sums")
    rules, kernels = dataset["multipliers"].values, dataset["kernel"].values
    radii = dataset["radius"].values
    size = (0.9 + 3.2 * len(kernels), 0.9 + 2.4 * len(rules))
    with drawing(*size, {"axes.titlesize": "small"}) as figure:
        grid = figure.subplots(len(rules), len(kernels), squeeze=False, sharex=True, sharey=True)
        for (i, j), axes in np.ndenumerate(grid):
            cell = dataset.sel(multipliers=rules[i], kernel=kernels[j])
            for index, width in enumerate(dataset["width"].values):
                own = look(index, ms=3.5, markevery=2)
                drawn = cell["drawn"].sel(width=width).median("seed").values
                axes.loglog(radii, drawn, label=f"$m$ = {width}, draws", **own)
                worst = cell["error"].sel(width=width).values
                axes.loglog(radii, worst, **beside(own, lw=1.0, markevery=(1, 2)))
            if rules[i] == GROWING:
                _mark_published(axes, str(kernels[j]), radii[0])
            axes.set_title(f"{kernels[j]}, multipliers {rules[i]}")
            axes.set_ylim(3e-4, 300)
        label_grid(grid, r"radius $\beta$ (units of the weights)", "largest error, $t$ = 1 to 100")
        more = [
            explain("supremum", ls=":", lw=1.0, marker="o", ms=2.2),
            explain("published", color="k", ls="", marker="x"),
        ]
        handles = [*grid[0, 0].get_legend_handles_labels()[0], *more]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _mark_published(axes: Any, kernel: str, left: float) -> None:
    errors = PUBLISHED_ERRORS[kernel]
    axes.plot([left] * len(errors), errors, "kx", ms=5, clip_on=False, zorder=5)
    heights = {EXPONENTIAL: (0.4,) * 4, POWER: (0.16, 0.14, 0.13, 0.11)}[kernel]
    axes.plot(PUBLISHED_CROSSINGS[kernel], heights, "kx", ms=5, zorder=5)


REPRODUCTION = Reproduction(
    name="w24-sums",
    title="Sums of exponentials under perturbed weights, for an exponential and a power law",
    source="Wang, Li, Li, ICLR 2024, Figure 1",
    description="Sums of m exponentials c_i lambda_i^t are fitted to 0.9^t and (1 + t)^-1.1 on "
    "t = 1 to 100, then amplitudes and multipliers are perturbed by at most the radius: by ten "
    "random draws, the median over 9 sets of them, and by the exact supremum. Which sums were "
    "taken, and in which norm, is not published. Ours were chosen to come near the published "
    f"errors: 1 - lambda in geometric progression from {_FARTHEST:g} to 0.8/m, amplitudes of least "
    f"squares with the price {_RIDGE:g}^2 on their squares, the largest error over the times. As a "
    "second choice the largest multiplier is 0.93 at every width. Values agree if each is within a "
    f"factor of {_FACTOR:g}; crossings move if the last radius is less than half of the first.",
    run=run,
    check=check,
    plot=plot,
)
