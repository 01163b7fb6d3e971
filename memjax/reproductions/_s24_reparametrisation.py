import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import xarray as xr

from .. import viz
from .._checks import as_integers, check_integer
from ..memory import functional_distance, functional_norm, perturbation_error, stability_criterion
from ..models import DiagonalLinearRNN
from ..reparam import AbstractReparametrisation, Best, Direct, Exp, Inverse, Softplus
from ..targets import AbstractKernel, ExponentialSum, PowerLaw, ScaledKernel
from ._base import as_radii, check_known, Reproduction, Verdict

DIRECT = "direct"
# Made when asked for: importing memjax computes nothing.
REPARAMETRISATIONS: Mapping[str, Callable[[], AbstractReparametrisation]] = {
    DIRECT: Direct, "exp": Exp, "softplus": Softplus, "inverse": Inverse, "best": Best,
}  # fmt: skip

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
) -> xr.Dataset:
    """Errors of perturbed models over `kernel`, `reparametrisation`, `width` and `radius`."""
    check_known("kernels", kernels, KERNELS)
    check_known("reparametrisations", reparametrisations, REPARAMETRISATIONS)
    widths, radii = as_integers("widths", widths, 2), as_radii(radii)
    for name, value in (("draws", draws), ("restarts", restarts), ("steps", steps)):
        check_integer(name, value)
    names = {
        "kernel": list(kernels),
        "reparametrisation": list(reparametrisations),
        "width": list(widths),
    }
    shape = tuple(map(len, names.values()))
    curves = {name: np.full((*shape, len(radii)), np.nan) for name in ("error", "drawn", "upper")}
    per_width = {
        name: np.full((shape[0], shape[2]), np.nan)
        for name in ("distance", "slowest", "amplitude_slope")
    }
    norms = np.full(shape[0], np.nan)
    most, balls = max(widths), jnp.asarray(radii, float)
    with tqdm.tqdm(total=int(np.prod(shape)), unit="curve", disable=not progress) as bar:
        for i, kernel in enumerate(kernels):
            goal = target(kernel)
            norms[i] = functional_norm(goal)
            for k, width in enumerate(widths):
                modes = approximation(kernel, width)
                per_width["distance"][i, k] = functional_distance(goal, modes)
                per_width["slowest"][i, k] = jnp.min(modes.rates)
                per_width["amplitude_slope"][i, k] = jnp.sum(1 / modes.rates)
                # Silent modes make all models of one width, for which one program is compiled.
                silent = (0, most - width)
                amplitudes = jnp.pad(_UNIT * modes.amplitudes, silent)
                rates = jnp.pad(modes.rates, silent, constant_values=_FASTEST)
                for j, name in enumerate(reparametrisations):
                    model = DiagonalLinearRNN(amplitudes, rates, REPARAMETRISATIONS[name]())
                    found = perturbation_error(
                        model,
                        ScaledKernel(goal, _UNIT),
                        balls,
                        restarts=restarts,
                        steps=steps,
                        draws=draws,
                        key=jax.random.key(0),
                    )
                    for curve, values in curves.items():
                        values[i, j, k] = getattr(found, curve) / _UNIT
                    bar.update()
    return xr.Dataset(
        {
            "error": (
                (*names, "radius"),
                curves["error"],
                {"long_name": "largest distance in the ball"},
            ),
            "drawn": (
                (*names, "radius"),
                curves["drawn"],
                {"long_name": f"largest distance of {draws} draws"},
            ),
            "upper": ((*names, "radius"), curves["upper"], {"long_name": "upper bound"}),
            "distance": (("kernel", "width"), per_width["distance"]),
            "slowest": (("kernel", "width"), per_width["slowest"]),
            "amplitude_slope": (("kernel", "width"), per_width["amplitude_slope"]),
            "norm": ("kernel", norms),
            "criterion": (
                ("reparametrisation", "radius"),
                np.stack(
                    [
                        stability_criterion(REPARAMETRISATIONS[name](), balls).growth
                        for name in reparametrisations
                    ]
                ),
                {"long_name": "g(beta)"},
            ),
            "gradient_over_weight": (
                ("reparametrisation", "rate"),
                np.stack([_ratio(REPARAMETRISATIONS[name]()) for name in reparametrisations]),
                {"long_name": "gradient over weight"},
            ),
            "result": (names, np.zeros(shape, np.int8)),
        },
        names | {"radius": list(radii), "rate": _RATES},
        {"draws": draws},
    )


# The range of the map "best" ends at 10.
_FASTEST = 9.99
_RATES = np.geomspace(1e-8, 1.0, 33)


def _ratio(reparametrisation: AbstractReparametrisation) -> np.ndarray:
    free = reparametrisation.inverse(jnp.asarray(_RATES))
    return np.asarray(reparametrisation.gradient_over_weight_scale(free) / jnp.abs(free))


def check(dataset: xr.Dataset) -> list[Verdict]:
    """The claims beside the curves of a dataset of `run`."""
    verdicts = []
    for kernel in dataset["kernel"].values:
        for name in dataset["reparametrisation"].values:
            cell = dataset.sel(kernel=kernel, reparametrisation=name)
            verdicts.append(_stability(str(kernel), str(name), cell))
    verdicts += [_draws(dataset), _gradients(dataset)]
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


def _stability(kernel: str, name: str, cell: xr.Dataset) -> Verdict:
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


def _survived(curve: xr.Dataset) -> float:
    """The radius at which the error has grown by the level; NaN if the approximation itself is
    worse than that, infinity if no radius reaches it."""
    norm, error = float(curve["norm"]), curve["error"].values
    if float(curve["distance"]) > _LEVEL * norm:
        return np.nan
    lost = np.flatnonzero(error - float(curve["distance"]) > _LEVEL * norm)
    if lost.size == 0:
        return float(curve["radius"].values[-1])
    return float(curve["radius"].values[lost[0] - 1]) if lost[0] else 0.0


def _draws(dataset: xr.Dataset) -> Verdict:
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


def _gradients(dataset: xr.Dataset) -> Verdict:
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


S24_REPARAMETRISATIONS = Reproduction(
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
    plot=lambda dataset: viz.plot_s24_reparametrisations(dataset),
)
