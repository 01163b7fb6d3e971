import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import as_integers, check_dataset
from .._lazy import matplotlib, xr
from ..memory import functional_distance, functional_norm, perturbation_error, stability_criterion
from ..models import DiagonalLinearRNN
from ..reparam import AbstractReparametrisation, REPARAMETRISATIONS
from ..targets import AbstractKernel, ExponentialSum, PowerLaw, ScaledKernel
from ..viz import beside, drawing, explain, look
from ._base import (
    as_radii,
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    Reproduction,
    Verdict,
)

DIRECT = "direct"
TEMPERED, POWER, DAMPED = "exp(-t) (1 + t)^-1.5", "(1 + t)^-1.5", "(1 + 0.1 t)^-1.1"
# Power, time scale, and by how much all rates are raised.
KERNELS: Mapping[str, tuple[float, float, float]] = {
    TEMPERED: (1.5, 1.0, 1.0),
    POWER: (1.5, 1.0, 0.0),
    DAMPED: (1.1, 10.0, 0.0),
}

# Which maps S24 calls stable.
_STABLE = {DIRECT: False, "exp": True, "softplus": True, "inverse": True, "best": True}

# In units of the output this small no perturbation of the amplitudes counts.
_UNIT = 1e60
# The share of the norm of the kernel that a perturbation may cost, and by which factor the radius
# at which it does may fall from the smallest width to the largest.
_LEVEL, _FALL = 0.2, 2.0


def power_law_modes(
    power: float, scale: float, shift: float, width: int, low: float, high: float
) -> ExponentialSum:
    r"""A tempered power law as an exponential sum, by the trapezoidal rule.

    $$e^{-\mu t} (1 + t/\tau)^{-p} = \frac{1}{\Gamma(p)} \int_{-\infty}^\infty
        e^{p x - e^x} e^{-(\mu + e^x / \tau) t} \,\mathrm{d}x$$

    with `width` points between `low` and `high`: positive amplitudes, rates spread geometrically
    (Beylkin, Monzón, Applied and Computational Harmonic Analysis 28, 2010).
    """
    x, step = np.linspace(low, high, width, retstep=True)
    amplitudes = step / math.gamma(power) * np.exp(power * x - np.exp(x))
    return ExponentialSum(jnp.asarray(amplitudes), jnp.asarray(shift + np.exp(x) / scale))


def approximation(name: str, width: int) -> ExponentialSum:
    """The exponential sum of smallest distance from a kernel among those of `power_law_modes`."""
    power, scale, shift = KERNELS[name]
    t = np.exp(np.linspace(-10, 70, 1500))
    value = np.exp(-shift * t) * (1 + t / scale) ** -power

    def distance(ends: tuple[float, float]) -> float:
        modes = power_law_modes(power, scale, shift, width, *ends)
        model = np.exp(-np.outer(t, modes.rates)) @ np.asarray(modes.amplitudes)
        return float(np.trapezoid(np.abs(model - value) * t, np.log(t)))

    ends = [(-low, high) for low in np.geomspace(1, 60, 30) for high in np.linspace(0.3, 3.0, 7)]
    modes = power_law_modes(power, scale, shift, width, *min(ends, key=distance))
    # Beyond there are but amplitudes of less than 1e-3.
    return ExponentialSum(modes.amplitudes, jnp.minimum(modes.rates, _FASTEST))


def target(name: str) -> AbstractKernel:
    power, scale, shift = KERNELS[name]
    if shift == 0:
        return PowerLaw(power - 1, scale)
    # To rounding: the rule converges exponentially in the number of its points.
    return power_law_modes(power, scale, shift, 64, -18.0, 3.6)


def run(
    progress: bool = True,
    *,
    kernels: Sequence[str] = tuple(KERNELS),
    reparametrisations: Sequence[str] = tuple(REPARAMETRISATIONS),
    widths: Sequence[int] = (4, 8, 16, 32),
    radii: Sequence[float] = tuple(1e-3 * 2.0**k for k in range(11)),
    draws: int = 30,
    restarts: int = 1,
    steps: int = 6,
) -> "xr.Dataset":
    """Errors of perturbed models over `kernel`, `reparametrisation`, `width` and `radius`."""
    check_known("kernels", kernels, KERNELS)
    check_known("reparametrisations", reparametrisations, REPARAMETRISATIONS)
    widths, radii = as_integers("widths", widths, 2), as_radii(radii)
    check_integers(draws=draws, restarts=restarts, steps=steps)
    most, balls = max(widths), jnp.asarray(radii, float)
    goals = {kernel: target(kernel) for kernel in kernels}
    sums = {"kernel": list(kernels), "width": list(widths)}
    distance, slowest, amplitude_slope = empty(sums), empty(sums), empty(sums)
    modes = {}
    for cell, (kernel, width) in each_cell(sums, "sum", progress):
        modes[kernel, width] = found = approximation(kernel, width)
        distance[cell] = functional_distance(goals[kernel], found)
        slowest[cell] = jnp.min(found.rates)
        amplitude_slope[cell] = jnp.sum(1 / found.rates)
    names = {
        "kernel": list(kernels),
        "reparametrisation": list(reparametrisations),
        "width": list(widths),
    }
    words = {
        "error": "largest distance in the ball",
        "drawn": f"largest distance of {draws} draws",
        "upper": "upper bound",
    }
    curves = {name: empty(names, len(radii)) for name in words}
    for cell, (kernel, name, width) in each_cell(names, "curve", progress):
        # Silent modes make all models of one width, for which one program is compiled.
        own, silent = modes[kernel, width], (0, most - width)
        amplitudes = jnp.pad(_UNIT * own.amplitudes, silent)
        rates = jnp.pad(own.rates, silent, constant_values=_FASTEST)
        found = perturbation_error(
            DiagonalLinearRNN(amplitudes, rates, REPARAMETRISATIONS[name]()),
            ScaledKernel(goals[kernel], _UNIT),
            balls,
            restarts=restarts,
            steps=steps,
            draws=draws,
            key=jax.random.key(0),
        )
        for curve, values in curves.items():
            values[cell] = getattr(found, curve) / _UNIT
    maps = [REPARAMETRISATIONS[name]() for name in reparametrisations]
    growth = np.stack([stability_criterion(each, balls).growth for each in maps])
    ratio = np.stack([_measure_ratio(each) for each in maps])
    return xr.Dataset(
        describe(curves, (*names, "radius"), words)
        | {
            "distance": (tuple(sums), distance),
            "slowest": (tuple(sums), slowest),
            "amplitude_slope": (tuple(sums), amplitude_slope),
            "norm": ("kernel", [float(functional_norm(goals[kernel])) for kernel in kernels]),
            "criterion": (("reparametrisation", "radius"), growth, {"long_name": "g(beta)"}),
            "gradient_over_weight": (
                ("reparametrisation", "rate"),
                ratio,
                {"long_name": "gradient over weight"},
            ),
            "result": (tuple(names), np.zeros(tuple(map(len, names.values())), np.int8)),
        },
        names | {"radius": list(radii), "rate": _RATES},
        {"draws": draws},
    )


# The range of the map "best" ends at 10.
_FASTEST = 9.99
_RATES = np.geomspace(1e-8, 1.0, 33)


def _measure_ratio(reparametrisation: AbstractReparametrisation) -> np.ndarray:
    free = reparametrisation.inverse(jnp.asarray(_RATES))
    return np.asarray(reparametrisation.gradient_over_weight_scale(free) / jnp.abs(free))


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims beside the curves of a dataset of `run`."""
    verdicts = []
    for kernel in dataset["kernel"].values:
        for name in dataset["reparametrisation"].values:
            cell = dataset.sel(kernel=kernel, reparametrisation=name)
            verdicts.append(_judge_stability(str(kernel), str(name), cell))
    verdicts += [_judge_draws(dataset), _judge_gradients(dataset)]
    slope = dataset["amplitude_slope"]
    widths = dataset["width"].values
    ends = {str(k): slope.sel(kernel=k).values for k in slope["kernel"].values}
    memories = [str(k) for k in ends if k != TEMPERED]
    grow = all(ends[k][-1] > 10 * ends[k][0] for k in memories)
    verdicts.append(
        Verdict(
            "reparametrised rates make the approximation stable in all weights (expected)",
            "not in amplitudes of unnormalised modes: their perturbation costs sum 1/w times the "
            f"radius, from m = {widths[0]} to {widths[-1]}: "
            + "; ".join(f"{k} {v[0]:.3g} to {v[-1]:.3g}" for k, v in ends.items()),
            not grow if memories and len(widths) > 1 else None,
        )
    )
    return verdicts


def _judge_stability(kernel: str, name: str, cell: "xr.Dataset") -> Verdict:
    expected = _STABLE[name] or kernel == TEMPERED
    survived = [_survived(cell.sel(width=width)) for width in cell["width"].values]
    widths = cell["width"].values
    listed = ", ".join(
        f"m = {m} too coarse" if np.isnan(r) else f"{r:.2g} (m = {m})"
        for r, m in zip(survived, widths, strict=True)
    )
    found: bool | None = None
    seen = np.asarray([radius for radius in survived if np.isfinite(radius)])
    if seen.size > 1:
        smallest = float(cell["radius"].values[0])
        found = bool(seen[-1] * _FALL >= seen[0] and seen[-1] > smallest)
    return Verdict(
        f"{kernel}, {name}: {'stable' if expected else 'unstable'}",
        f"radius that costs {_LEVEL:.0%} of the norm: {listed}",
        None if found is None else found == expected,
    )


def _survived(curve: "xr.Dataset") -> float:
    """The radius at which the error has grown by the level; NaN if the approximation itself is
    worse than that, infinity if no radius reaches it."""
    norm, error = float(curve["norm"]), curve["error"].values
    if float(curve["distance"]) > _LEVEL * norm:
        return np.nan
    lost = np.flatnonzero(error - float(curve["distance"]) > _LEVEL * norm)
    if lost.size == 0:
        return float(curve["radius"].values[-1])
    return float(curve["radius"].values[lost[0] - 1]) if lost[0] else 0.0


def _judge_draws(dataset: "xr.Dataset") -> Verdict:
    draws = dataset.attrs["draws"]
    error, drawn = dataset["error"].values, dataset["drawn"].values
    both = np.isfinite(error) & np.isfinite(drawn)
    ratio = error[both] / drawn[both]
    missed = int(np.sum(np.isinf(error) & np.isfinite(drawn)))
    return Verdict(
        f"the largest error of {draws} draws stands for the supremum (practice of W24, S24)",
        f"the supremum is {np.median(ratio):.2g} times as large in the median and up to "
        f"{ratio.max():.3g} times; {missed} of {int(np.isinf(error).sum())} infinite ones look "
        "finite"
        if ratio.size
        else "no finite errors",
        bool(ratio.max() <= 1.1 and missed == 0) if ratio.size else None,
    )


def _judge_gradients(dataset: "xr.Dataset") -> Verdict:
    ratio = dataset["gradient_over_weight"]
    slow = ratio.sel(rate=slice(None, 1e-2))
    names = [str(name) for name in ratio["reparametrisation"].values]
    spread = {
        name: float(slow.sel(reparametrisation=name).max() / slow.sel(reparametrisation=name).min())
        for name in names
    }
    bounded = [name for name in names if spread[name] < 2]
    return Verdict(
        "gradient over weight is the same for all rates with the best map only (S24)",
        "largest over smallest for rates from 1e-8 to 1e-2: "
        + ", ".join(f"{name} {spread[name]:.3g}" for name in names),
        bounded == ["best"] if "best" in names and len(names) > 1 else None,
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """The largest distance under perturbations of the rates against the radius, and two criteria.

    A row a kernel and a panel a reparametrisation, a line a width; distances are divided by the
    norm of the kernel, and a line that leaves the panel ends at a filled marker at the upper edge.
    Dotted lines with small markers are the largest distances of random draws. The last row has the
    criterion g over the radius, and the ratio of the gradient scale to the weight over the rate.
    """
    needed = {
        **dict.fromkeys(("error", "drawn"), ["kernel", "reparametrisation", "width", "radius"]),
        "norm": ["kernel"],
        "criterion": ["reparametrisation", "radius"],
        "gradient_over_weight": ["reparametrisation", "rate"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction s24-reparametrisations")
    kernels, names = dataset["kernel"].values, dataset["reparametrisation"].values
    radii, top = dataset["radius"].values, 10.0
    with drawing(0.8 + 1.85 * max(len(names), 3), 0.8 + 1.8 * (len(kernels) + 1)) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=[len(kernels), 1.15])
        above, below = parts
        grid = above.subplots(len(kernels), len(names), squeeze=False, sharex=True, sharey=True)
        for (i, j), axes in np.ndenumerate(grid):
            cell = dataset.sel(kernel=kernels[i], reparametrisation=names[j])
            for index, width in enumerate(dataset["width"].values):
                error, drawn = (
                    (cell[source] / cell["norm"]).sel(width=width).values
                    for source in ("error", "drawn")
                )
                own = look(index, ms=3)
                beyond = np.flatnonzero(error > top)
                last = beyond[0] + 1 if beyond.size else error.size
                axes.loglog(
                    radii[:last], np.minimum(error, top)[:last], label=f"m = {width}", **own
                )
                if beyond.size:
                    end = beside(own, ls="", ms=4.5, clip_on=False)
                    axes.loglog(radii[beyond[0]], top, **end)
                drawn = np.where(drawn > top, np.nan, drawn)
                axes.loglog(radii, drawn, **beside(own, ms=1.8, lw=0.8))
            axes.set_ylim(1e-4, top)
        for axes, name in zip(grid[0], names, strict=True):
            axes.set_title(str(name))
        for axes, kernel in zip(grid[:, 0], kernels, strict=True):
            axes.set_ylabel(f"{kernel}\ndistance / norm")
        for axes in grid[-1]:
            axes.set_xlabel(r"radius $\beta$ (free weights)")
        handles = [*grid[0, 0].get_legend_handles_labels()[0]]
        handles.append(explain("random draws", ls=":", lw=0.8, marker="o", ms=1.8))
        handles.append(explain("above 10 from here", ls="", marker="o", ms=4.5))
        above.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        left, right = below.subplots(1, 2)
        for index, name in enumerate(names):
            cell = dataset.sel(reparametrisation=name)
            criterion, own = cell["criterion"].values, look(index, ms=4)
            label = str(name) if np.isfinite(criterion).any() else f"{name} (infinite)"
            criterion = np.where(np.isinf(criterion), np.nan, criterion)
            left.loglog(radii, criterion, label=label, **own)
            right.loglog(dataset["rate"], cell["gradient_over_weight"], markevery=4, **own)
        left.set(
            xlabel=r"radius $\beta$ (units of the free weights)", ylabel=r"criterion $g(\beta)$"
        )
        left.legend(loc="lower right")
        right.set(xlabel="rate (1 / time)", ylabel="gradient scale / weight")
    return figure


REPRODUCTION = Reproduction(
    name="s24-reparametrisations",
    title="Stable approximation of exponential and power-law memory, by reparametrisation",
    source="Wang, Li, ICML 2024, Section 3; Wang, Li, Li, ICLR 2024, Section 3",
    description="Diagonal linear models of growing width approximate each kernel by the "
    "trapezoidal rule of its integral representation, with the range of rates that makes the "
    "distance smallest. Their free rates are then perturbed, each by at most the radius, and the "
    "exact supremum of the L1 distance of the kernels is taken (the amplitudes are apart, in the "
    f"last verdict). A map is stable if the radius that costs {_LEVEL:.0%} of the kernel's norm "
    f"does not fall more than {_FALL:g}-fold between the smallest and the largest width that "
    "approximate the kernel to that level.",
    run=run,
    check=check,
    plot=plot,
)
