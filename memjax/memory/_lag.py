from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from .._checks import as_finite_array, as_plain, as_positive, as_share, check_integer
from .._lazy import scipy
from .._text import readable
from .._typing import ArrayLike

# Up to this many coefficients the normal equations are solved at once, in about a second.
_MOST = 2000
_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)


@readable()
class LagEstimate(eqx.Module):
    """How far back the outputs of a data set depend on its inputs.

    **Attributes:**

    - `lag`: below which the asked share of the squared response lies, in units of `step`'s
        clock; NaN if no lag stands out of the noise.
    - `response`: the size of the response at each lag (the root of the sum of squares over
        inputs and outputs, with inputs in units of their standard deviations), shape `(lags,)`.
    - `explained`: the share of the outputs' variance that the regression explains on data that it
        was not fitted to.
    - `reliable`: whether data tell: the share stands out of the noise, and the lag is not at the
        end of the lags that were looked at, where it would be a lower bound.
    """

    lag: Float[Array, ""]
    response: Float[Array, " lags"]
    explained: Float[Array, ""]
    reliable: Bool[Array, ""]


def estimate_lag(
    xs: Real[ArrayLike, "..."],
    ys: Real[ArrayLike, "..."],
    *,
    step: float = 1.0,
    max_lag: int | None = None,
    level: float = 0.9,
) -> LagEstimate:
    r"""The memory that data ask for: a regularised regression of outputs on past inputs.

    $$y_k \approx \sum_{j=0}^{K-1} R_j\, x_{k-j}$$

    is fitted by ridge regression to three quarters of the data, with the penalty that predicts
    the last quarter best. Of the coefficients only those above the noise count,
    $|R_j|^2 > 2 \log(n)\, \sigma_j^2$ for $n$ of them. A dependency that is not seen by
    any linear regression is not seen here.

    **Arguments:**

    - `xs`: inputs, shape `(times,)`, `(batch, times)` or `(batch, times, d)`.
    - `ys`: outputs, shape `(times,)`, `(batch, times)` or `(batch, times, p)`.
    - `step`: the time between samples.
    - `max_lag`: the number $K$ of lags to look at. Defaults to half of the times, at most 2000
        over the number of inputs.
    - `level`: the share of the squared response below the lag. Defaults to 0.9.

    **Returns:**

    A [`memjax.LagEstimate`][].

    **Raises:**

    `ValueError` for arrays that do not match, entries that are not finite, constant inputs or
    outputs, or values out of range.
    """
    step = as_plain(as_positive, "step", step)
    level = as_plain(as_share, "level", level)
    inputs, outputs = _as_sequences("xs", xs), _as_sequences("ys", ys)
    batch, times = inputs.shape[:2]
    if outputs.shape[:2] != inputs.shape[:2]:
        raise ValueError(
            f"`ys` must have one output per input, got shapes {np.asarray(ys).shape} and "
            f"{np.asarray(xs).shape}; "
            "they are (times,), (batch, times) or (batch, times, d)."
        )
    number = inputs.shape[2]
    if max_lag is None:
        max_lag = max(1, min(times // 2, _MOST // number))
    check_integer("max_lag", max_lag)
    if max_lag >= times or max_lag * number > _MOST:
        raise ValueError(
            f"`max_lag` must be below {min(times, _MOST // number + 1)} for {times} times and "
            f"{number} inputs, got {max_lag}; shorten it or thin out the data."
        )
    inputs = _standardised("xs", inputs)
    outputs = outputs - outputs.mean((0, 1))
    if not np.any(outputs):
        raise ValueError("`ys` must vary, got constant outputs; they depend on nothing.")
    if batch >= 4:
        cut = batch - batch // 4
        fit, test = (slice(None, cut), slice(None)), (slice(cut, None), slice(None))
    else:
        cut = times - times // 4
        fit, test = (slice(None), slice(None, cut)), (slice(None), slice(cut, None))
    x, y = inputs[fit], outputs[fit]
    gram, cross = _moments(x, y, max_lag)
    count = x.shape[0] * x.shape[1]
    best = None
    for ridge in _RIDGES:
        factor = scipy.linalg.cho_factor(gram + ridge * np.eye(gram.shape[0]))
        weights = scipy.linalg.cho_solve(factor, cross)
        # The whole sequences are filtered, so that the test has its past.
        rows = inputs[test] if batch >= 4 else inputs
        error = (outputs[test if batch >= 4 else ...] - _filter(rows, weights))[
            (slice(None), slice(None)) if batch >= 4 else test
        ]
        squared = np.mean(error**2, (0, 1))
        if best is None or squared.sum() < best[0].sum():
            best = squared, weights, factor
    assert best is not None
    squared, weights, factor = best
    left = outputs[test] - outputs[test].mean((0, 1))
    explained = 1 - squared.sum() / np.mean(left**2, (0, 1)).sum()
    variances = np.diag(scipy.linalg.cho_solve(factor, np.eye(gram.shape[0])))[:, None] * squared
    squares = np.where(weights**2 > 2 * np.log(weights.size + 1) * variances / count, weights**2, 0)
    squares = squares.reshape(max_lag, -1).sum(1)
    total = squares.sum()
    lag = np.searchsorted(np.cumsum(squares), level * total) if total > 0 else np.nan
    tested = left.shape[0] * left.shape[1]
    reliable = total > 0 and explained > max(0.01, 3 / np.sqrt(tested)) and lag < 0.9 * max_lag
    return LagEstimate(
        jnp.asarray(lag * step),
        jnp.sqrt(jnp.asarray((weights.reshape(max_lag, -1) ** 2).sum(1))),
        jnp.asarray(explained),
        jnp.asarray(bool(reliable)),
    )


def _as_sequences(name: str, value: Any) -> np.ndarray:
    array = np.asarray(as_finite_array(name, value), float)
    if array.ndim not in (1, 2, 3) or array.size == 0:
        raise ValueError(
            f"`{name}` must have shape (times,), (batch, times) or (batch, times, d), got "
            f"{array.shape}; add an axis of length 1 for a single sequence of several numbers."
        )
    if array.ndim == 1:
        array = array[None]
    return array[..., None] if array.ndim == 2 else array


def _standardised(name: str, values: np.ndarray) -> np.ndarray:
    deviations = values.std((0, 1))
    if not np.all(deviations > 0):
        raise ValueError(
            f"`{name}` must vary, got a constant input; remove inputs that never change."
        )
    return (values - values.mean((0, 1))) / deviations


def _moments(x: np.ndarray, y: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Autocovariances of the inputs in Toeplitz blocks, and covariances with the outputs.

    Both as if the inputs were 0 outside of the data, which keeps the matrix positive.
    """
    length = 2 * x.shape[1]
    fx, fy = np.fft.rfft(x, length, 1), np.fft.rfft(y, length, 1)
    count = x.shape[0] * x.shape[1]

    def covariance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        spectrum = np.einsum("bfi,bfj->fij", first.conj(), second)
        return np.fft.irfft(spectrum, length, 0)[:lags] / count

    auto, cross = covariance(fx, fx), covariance(fx, fy)
    number = x.shape[2]
    index = np.arange(lags)
    difference = index[:, None] - index
    blocks = np.where(
        (difference >= 0)[..., None, None],
        np.swapaxes(auto, 1, 2)[np.abs(difference)],
        auto[np.abs(difference)],
    )
    gram = np.swapaxes(blocks, 1, 2).reshape(lags * number, lags * number)
    return (gram + gram.T) / 2, cross.reshape(lags * number, -1)


def _filter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    number = x.shape[2]
    response = weights.reshape(-1, number, weights.shape[1])
    length = x.shape[1] + response.shape[0]
    spectrum = np.einsum(
        "bfi,fij->bfj", np.fft.rfft(x, length, 1), np.fft.rfft(response, length, 0)
    )
    return np.fft.irfft(spectrum, length, 1)[:, : x.shape[1]]
