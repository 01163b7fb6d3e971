from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..memory import arfima, local_whittle, rescaled_range
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..targets import fractional_weights
from ..viz import drawing, look, spread_marks
from ._base import check_integers, check_known, describe, empty, Reproduction, Verdict
from ._h20_networks import (
    filtered_values,
    forecast,
    Forecaster,
    LENGTH,
    Part,
    split_series,
    train_models,
)

# Root mean square errors of Table 2, means over 100 seeds, and their standard deviations.
PUBLISHED = {
    "RNN": (1.1620, 0.1980),
    "LSTM": (1.1340, 0.1200),
    "MRNNF": (1.1010, 0.1000),
    "MRNN": (1.0880, 0.1140),
    "MLSTMF": (1.1580, 0.1660),
    "MLSTM": (1.1490, 0.1660),
}
# The simulated series is not described in the public code: these are the parameters of the paper,
# and Whittle's estimates on the published series are within their errors of them.
ORDER, AR, MA = 0.4, (0.7, -0.4), (-0.2,)
SERIES = ("arfima", "nile", "sunspots", "co2")

_NOISE, _LAGS = 2**14, 300


# --- Series -----------------------------------------------------------------------------------


def load_series(name: str) -> np.ndarray:
    """A series by its name; those that are not simulated come with statsmodels."""
    if name == "arfima":
        return np.asarray(arfima(ORDER, LENGTH, ar=AR, ma=MA, key=jax.random.key(0)), float)
    try:
        from statsmodels.datasets import co2, nile, sunspots  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"the series {name!r} comes with statsmodels, which is not installed; run "
            "pip install 'memjax[notebooks]', or pass series=('arfima',)."
        ) from error
    if name == "co2":
        frame: Any = co2.load_pandas().data
        # The trend and the seasons are no memory: what changes from one year to the next.
        values = frame["co2"].resample("MS").mean().interpolate().diff(12).dropna()
    else:
        frame = (nile if name == "nile" else sunspots).load_pandas().data
        values = frame["volume" if name == "nile" else "SUNACTIVITY"]
    return np.asarray(values, float)


# --- What they remember -------------------------------------------------------------------------


@eqx.filter_jit
def _impulse(model: Forecaster, level: Array, count: int) -> Array:
    """The derivative of forecasts with respect to a value so many steps ago, at a constant series
    of some level."""
    size = 2 * count
    table = model.table

    def forecasts(xs: Array) -> Array:
        columns = jax.vmap(lambda column: jnp.convolve(xs, column)[:size], 1, 1)(table)
        return forecast(model, model.start(), Part(xs, columns, xs))[1]

    xs = jnp.full(size, level, jnp.float32)
    pulse = jnp.zeros(size, jnp.float32).at[count].set(1)
    return jax.jvp(forecasts, (xs,), (pulse,))[1][count:]


@eqx.filter_jit
def _noise_outputs(model: Forecaster, xs: Array, filtered: Array) -> Array:
    return forecast(model, model.start(), Part(xs, filtered, xs))[1]


def measure_orders(models: Forecaster, level: float, spread: float) -> np.ndarray:
    """The order of integration of what models make of white noise, of each of them."""
    noise = np.random.default_rng(5).normal(level, spread, _NOISE)
    table = np.asarray(models.table[0], float)
    xs, filtered = noise.astype(np.float32), filtered_values(noise, table).astype(np.float32)
    outputs = eqx.filter_vmap(_noise_outputs, in_axes=(0, None, None))(models, xs, filtered)
    whittle = lambda series: local_whittle(series, bandwidth=_bandwidth()).order
    return np.asarray(jax.vmap(whittle)(outputs.astype(float)))


def _bandwidth() -> int:
    # Few, far below the frequencies that short memories of tens of steps change.
    return round(_NOISE**0.5)


def linear_error(parts: tuple[Part, ...]) -> float:
    """The mean squared error of the best linear forecast of the simulated series."""
    count = 500
    # The coefficients of (1 - sum a_i B^i) (1 - B)^d / (1 + sum b_i B^i).
    response = np.convolve(np.asarray(fractional_weights(ORDER, count)), [1, *-np.asarray(AR)])
    for k in range(1, count):
        response[k] -= sum(b * response[k - 1 - i] for i, b in enumerate(MA) if k - 1 - i >= 0)
    xs = np.concatenate([part.xs for part in parts]).astype(float)
    ys = np.concatenate([part.ys for part in parts]).astype(float)
    level = xs.mean()
    found = np.convolve(xs - level, -response[1:count])[: xs.size] + level
    return float(np.mean((found - ys)[-parts[-1].ys.size :] ** 2))


def run(
    progress: bool = True,
    *,
    series: Sequence[str] = SERIES,
    models: Sequence[str] = tuple(PUBLISHED),
    seeds: int = 20,
    width: int = 1,
    lags: int = 100,
    epochs: int = 1000,
) -> "xr.Dataset":
    """Errors of forecasts over `series`, `model` and `seed`, and tests for long memory."""
    check_known("series", series, SERIES)
    check_known("models", models, PUBLISHED)
    check_integers(seeds=seeds, width=width, lags=lags, epochs=epochs)
    values = {name: load_series(name) for name in series}
    axes: Mapping[str, Any] = {
        "series": list(series),
        "model": list(models),
        "seed": np.arange(seeds),
    }
    errors, taken, result = empty(axes), empty(axes), empty(axes)
    orders, memory = np.full(errors.shape[1:], np.nan), np.full((len(models), _LAGS), np.nan)
    tests = np.zeros((4, len(series)))
    linear = np.nan
    with tqdm.tqdm(total=len(series) * len(models), unit="model", disable=not progress) as bar:
        for i, name in enumerate(series):
            whittle, scaled = local_whittle(values[name]), rescaled_range(values[name])
            tests[:, i] = [whittle.order, whittle.error, scaled.statistic, scaled.p_value]
            parts = split_series(values[name], lags)
            size = np.ptp(values[name])
            if name == "arfima":
                linear = size * linear_error(parts) ** 0.5
            for j, kind in enumerate(models):
                found, squares, taken[i, j] = train_models(kind, parts, seeds, width, lags, epochs)
                errors[i, j] = size * np.sqrt(squares)
                result[i, j] = np.where(np.isfinite(squares), MAX_TIME_REACHED, DIVERGED)
                if name == "arfima":
                    level, spread = float(parts[0].xs.mean()), float(parts[0].xs.std())
                    orders[j] = measure_orders(found, level, spread)
                    one = jax.tree.map(lambda leaf: leaf[0], found)
                    memory[j] = _impulse(one, jnp.asarray(level, jnp.float32), _LAGS)
                bar.update()
    words = {"error": "root mean square error on the last part", "epochs": "epochs of training"}
    order = {"long_name": "order of integration of outputs for white noise"}
    names = ("order", "order_error", "range", "range_p_value")
    return xr.Dataset(
        describe({"error": errors, "epochs": taken}, tuple(axes), words)
        | {
            "result": (tuple(axes), result.astype(np.int8)),
            "output_order": (("model", "seed"), orders, order),
            "memory": (("model", "lag"), memory, {"long_name": "slope of forecasts"}),
        }
        | {name: ("series", row) for name, row in zip(names, tests, strict=True)},
        dict(axes) | {"lag": np.arange(_LAGS)},
        {"width": width, "lags": lags, "linear_error": linear},
    )


# --- What is published --------------------------------------------------------------------------


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Table 2 on the simulated series, and the order of integration of series and outputs."""
    verdicts = []
    if "arfima" in dataset["series"]:
        verdicts += _judge_errors(dataset.sel(series="arfima"))
        verdicts += _judge_outputs(dataset)
    for name in map(str, dataset["series"].values):
        verdicts.append(_judge_series(dataset, name))
    return verdicts


def _judge_errors(cell: "xr.Dataset") -> list[Verdict]:
    mean = cell["error"].mean("seed").to_series().to_dict()
    spread = cell["error"].std("seed").to_series().to_dict()
    verdicts = [
        Verdict(
            f"{name}: RMSE {PUBLISHED[name][0]:.3f} ({PUBLISHED[name][1]:.3f})",
            f"{mean[name]:.3f} ({spread[name]:.3f}); best linear forecast "
            f"{cell.attrs['linear_error']:.3f}",
            abs(mean[name] - PUBLISHED[name][0]) <= PUBLISHED[name][1],
        )
        for name in mean
    ]
    for better, worse in (("MRNN", "RNN"), ("MRNNF", "RNN"), ("MRNN", "LSTM"), ("LSTM", "MLSTM")):
        if {better, worse} <= mean.keys():
            apart = mean[worse] - mean[better]
            count = cell.sizes["seed"]
            error = np.hypot(spread[better], spread[worse]) / np.sqrt(count)
            verdicts.append(
                Verdict(
                    f"{better} forecasts better than {worse}",
                    f"by {apart:.3f} +- {error:.3f}",
                    None if abs(apart) < 2 * error else bool(apart > 0),
                )
            )
    return verdicts


def _judge_outputs(dataset: "xr.Dataset") -> list[Verdict]:
    error = 1 / (2 * np.sqrt(_bandwidth()))
    verdicts = []
    for name in map(str, dataset["model"].values):
        order = float(dataset["output_order"].sel(model=name).median())
        short = name in ("RNN", "LSTM")
        verdicts.append(
            Verdict(
                f"{name}: trained, it makes no long memory of white noise"
                + ("" if short else " (expected: the filter is cut at its last lag)"),
                f"order of integration of its outputs {order:.2f} +- {error:.2f}",
                bool(abs(order) <= 2 * error),
            )
        )
    return verdicts


def _judge_series(dataset: "xr.Dataset", name: str) -> Verdict:
    cell = dataset.sel(series=name)
    order, error = float(cell["order"]), float(cell["order_error"])
    found = (
        f"order {order:.2f} +- {error:.2f}; rescaled range {float(cell['range']):.2f}, "
        f"p = {float(cell['range_p_value']):.2g}"
    )
    if name == "arfima":
        agrees = bool(abs(order - ORDER) <= 2 * error)
        return Verdict(f"arfima: integrated of order {ORDER:g}", found, agrees)
    return Verdict(f"{name}: long memory (expected of records of nature)", found, None)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Left, the root mean square error of forecasts of the simulated series, one dot a seed, beside
    the published means and standard deviations; right, the slope of a trained model's forecasts in
    the values so many steps ago. The dotted line is the error of the best linear forecast; bars are
    standard deviations over seeds."""
    dims = ["series", "model", "seed"]
    needed = {"error": dims, "memory": ["model", "lag"]}
    check_dataset("dataset", dataset, needed, "the reproduction h20-long-memory")
    names = [str(name) for name in dataset["model"].values]
    with drawing(7.2, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        errors = dataset["error"].sel(series="arfima")
        for place, name in enumerate(names):
            dots = errors.sel(model=name).values
            left.plot(
                np.full(dots.size, place - 0.12), dots, ".", color="0.6", ms=3,
                label="single seeds" if place == 0 else None,
            )  # fmt: skip
            mean, spread = PUBLISHED[name]
            left.errorbar(
                place - 0.12, dots.mean(), dots.std(), **look(0, ls="", mfc="w"),
                label="measured" if place == 0 else None,
            )  # fmt: skip
            left.errorbar(
                place + 0.12, mean, spread, **look(3, ls=""),
                label="published" if place == 0 else None,
            )  # fmt: skip
            slope = np.abs(dataset["memory"].sel(model=name).values)
            lags = dataset["lag"].values + 1
            right.loglog(
                lags, np.where(slope > 0, slope, np.nan), label=name,
                **look(place, markevery=spread_marks(lags, 12), ms=3.5),
            )  # fmt: skip
        best = dataset.attrs["linear_error"]
        left.axhline(best, color="0.4", lw=0.8, ls=":", label="best linear forecast")
        left.set_xticks(range(len(names)), names, rotation=30, ha="right")
        left.set(ylabel="root mean square error of forecasts")
        left.legend(ncols=2)
        right.set(xlabel="1 + lag (steps)", ylabel="slope of the forecast")
        right.set_ylim(1e-6, 3)
        right.legend(ncols=2)
    return figure


REPRODUCTION = Reproduction(
    name="h20-long-memory",
    title="Forecasts of a long-memory series by RNN and LSTM, with and without a memory filter",
    source="Zhao, Huang, Lv, Duan, Qin, Li, Tian, Do RNN and LSTM have Long Memory?, ICML 2020, "
    "Table 2, and its public code",
    description="Networks of one hidden unit forecast the next value of a simulated series, "
    "(1 - 0.7 B + 0.4 B^2) (1 - B)^0.4 y = (1 - 0.2 B) noise, of 4,001 values scaled to [0, 1]. As "
    "in the public code they are trained by Adam (0.01) on the first 2,000, all in one sequence, "
    "for at most 1,000 epochs or until the error has not improved by 1e-5 in 100 of them; the "
    "model with the lowest error on the next 1,200 is tested on the last 800. MRNN and MLSTM have "
    "the fractional filter of 100 lags, of an order that depends on the hidden state, or a fixed "
    "one (F). The series itself is another draw than the published one. Errors agree if they are "
    "within a published standard deviation. The same networks then read white noise, and the order "
    "of integration of what they make of it is estimated, as that of the series is, and of three "
    "that come with statsmodels: the yearly flow of the Nile, yearly sunspots, and by how much "
    "monthly CO2 changes from year to year.",
    run=run,
    check=check,
    plot=plot,
)
