"""Series with long memory, and tests for it."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, ndtr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Real

from .._checks import as_finite_array, as_key, as_number, check_integer, is_traced, valid_or_nan
from .._text import readable
from .._typing import ArrayLike, ScalarLike
from ..numerics import golden_section

# Orders between which the estimate is sought: it is consistent for series that are differences of
# stationary ones too.
_LOWEST, _HIGHEST = -0.5, 1.0
_SHORT = 16  # the fewest values of a series


@readable()
class LocalWhittle(eqx.Module):
    """An estimate of the order of fractional integration, from [`memjax.local_whittle`][].

    **Attributes:**

    - `order`: the order $d$, shape `()`: 0 for short memory, between 0 and 1/2 for long memory of a
        stationary series, and between 1/2 and 1 for one that is not stationary.
    - `error`: its standard error.
    - `p_value`: how likely an estimate as large is if there is no long memory, $d = 0$.
    - `bandwidth`: the number of frequencies.
    """

    order: Float[Array, ""]
    error: Float[Array, ""]
    p_value: Float[Array, ""]
    bandwidth: int = eqx.field(static=True)


@readable()
class RescaledRange(eqx.Module):
    """The modified rescaled range of a series, from [`memjax.rescaled_range`][].

    **Attributes:**

    - `statistic`: the range over the long-run standard deviation and the root of the length.
    - `p_value`: how likely a statistic as large is for short memory.
    - `lags`: how many autocovariances are in the long-run variance.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    lags: Float[Array, ""]


def local_whittle(
    series: Real[ArrayLike, " times"], *, bandwidth: int | None = None
) -> LocalWhittle:
    r"""The order of fractional integration of a series, and a test for long memory.

    Near the frequency 0 the spectrum of a fractionally integrated series is $g \lambda^{-2d}$.
    The estimate minimises Whittle's likelihood of the periodogram $I$ at the lowest $m$ Fourier
    frequencies,

    $$\log \Bigl( \frac{1}{m} \sum_{j=1}^m \lambda_j^{2d} I(\lambda_j) \Bigr)
      - \frac{2d}{m} \sum_{j=1}^m \log \lambda_j,$$

    and has the standard error $1 / (2 \sqrt m)$ in the limit of long series, whatever short memory
    there is besides. Works under `jax.jit` and `jax.vmap`.

    !!! Example

        ```python
        xs = jax.random.normal(key, (4000,))
        ys = mj.as_functional(model)(jnp.arange(4000.0), xs)
        mj.local_whittle(ys)  # does the model make long memory of white noise?
        ```

    **Arguments:**

    - `series`: the values at even times, shape `(times,)`.
    - `bandwidth`: the number $m$ of frequencies. Defaults to `times**0.65`: more of them have less
        noise, and are further from the frequency 0.

    **Returns:**

    A [`memjax.LocalWhittle`][], with NaN for a series that is constant.

    **Raises:**

    `ValueError` for fewer than 16 values, values that are not finite, or a bandwidth of more than
    half of them.

    ??? cite "Reference"

        Robinson, *Gaussian Semiparametric Estimation of Long Range Dependence*, Annals of
        Statistics 23, 1995; Greaves-Tunnell, Harchaoui, *A Statistical Investigation of Long Memory
        in Language and Music*, ICML 2019 (its use on networks).
    """
    series = _as_series(series)
    most = (series.size - 1) // 2
    if bandwidth is None:
        bandwidth = min(most, round(series.size**0.65))
    check_integer("bandwidth", bandwidth, 2)
    if bandwidth > most:
        raise ValueError(
            f"`bandwidth` must be at most {most} for {series.size} values, got {bandwidth}; pass "
            "fewer frequencies, or a longer series."
        )
    return _fit_whittle(series, bandwidth)


@eqx.filter_jit
def _fit_whittle(series: Array, bandwidth: int) -> LocalWhittle:
    spectrum = jnp.abs(jnp.fft.rfft(series - jnp.mean(series))[1 : bandwidth + 1]) ** 2
    frequencies = 2 * jnp.pi * jnp.arange(1, bandwidth + 1, dtype=series.dtype) / series.size
    logs = jnp.log(frequencies)
    # Relative to the largest, which changes nothing but the size of numbers.
    spectrum = spectrum / jnp.max(spectrum)

    def likelihood(order: Array) -> Array:
        weighted = jnp.exp(2 * order[..., None] * (logs - jnp.mean(logs))) * spectrum
        return jnp.log(jnp.mean(weighted, axis=-1))

    # It is convex in the order.
    low = jnp.asarray(_LOWEST, series.dtype)
    order, _ = golden_section(likelihood, low, jnp.asarray(_HIGHEST, series.dtype), 60)
    # A parabola through neighbours has the digits that the search loses at a flat minimum.
    width = jnp.asarray(1e-3, series.dtype)
    left, here, right = likelihood(order + width * jnp.asarray([-1.0, 0.0, 1.0], series.dtype))
    shift = width / 2 * (left - right) / (left - 2 * here + right)
    order = jnp.clip(order + shift, _LOWEST, _HIGHEST)
    order = jnp.where(jnp.all(jnp.isfinite(spectrum)), order, jnp.nan)
    error = jnp.full_like(order, 1 / (2 * math.sqrt(bandwidth)))
    return LocalWhittle(order, error, ndtr(-order / error), bandwidth)


def rescaled_range(series: Real[ArrayLike, " times"], *, lags: int | None = None) -> RescaledRange:
    r"""The modified rescaled range of a series, a test of short memory against long.

    The range of the sums $S_k = \sum_{j \le k} (x_j - \bar x)$ over $\hat\sigma \sqrt n$, where

    $$\hat\sigma^2 = \hat\gamma_0 + 2 \sum_{j=1}^q \Bigl(1 - \frac{j}{q + 1}\Bigr) \hat\gamma_j$$

    takes up the autocovariances of a short memory. For short memory it is the range of a Brownian
    bridge, of mean 1.25, in the limit of long series; for long memory it grows with the length.
    With `lags=0` it is the rescaled range of Hurst, which is also large for a strong short memory.
    Works under `jax.jit` and `jax.vmap`.

    **Arguments:**

    - `series`: the values at even times, shape `(times,)`.
    - `lags`: the number $q$ of autocovariances. By default Andrews' choice for an autoregression of
        order 1, $(3n/2)^{1/3} (2\rho / (1 - \rho^2))^{2/3}$ for the correlation $\rho$ of
        neighbours.

    **Returns:**

    A [`memjax.RescaledRange`][], with NaN for a series that is constant.

    **Raises:**

    `ValueError` for fewer than 16 values, values that are not finite, or as many lags as values.

    ??? cite "Reference"

        Hurst, *Long-Term Storage Capacity of Reservoirs*, Transactions of the ASCE 116, 1951; Lo,
        *Long-Term Memory in Stock Market Prices*, Econometrica 59, 1991.
    """
    series = _as_series(series)
    if lags is not None:
        check_integer("lags", lags, 0)
        if lags >= series.size:
            raise ValueError(
                f"`lags` must be fewer than the {series.size} values, got {lags}; pass a smaller "
                "number."
            )
    return _rescale(series, lags)


@eqx.filter_jit
def _rescale(series: Array, lags: int | None) -> RescaledRange:
    count = series.size
    centred = series - jnp.mean(series)
    padded = jnp.fft.rfft(centred, 2 * count)
    covariances = jnp.fft.irfft(jnp.abs(padded) ** 2, 2 * count)[:count] / count
    if lags is None:
        # Neighbours without correlation need none, and those with all of it have no finite number.
        rho = jnp.abs(covariances[1] / covariances[0])
        fitted = (1.5 * count) ** (1 / 3) * (2 * rho / (1 - rho**2)) ** (2 / 3)
        number = jnp.minimum(jnp.floor(fitted), count - 1)
    else:
        number = jnp.asarray(float(lags), series.dtype)
    places = jnp.arange(1, count, dtype=series.dtype)
    shares = jnp.maximum(1 - places / (number + 1), 0)
    variance = covariances[0] + 2 * jnp.sum(shares * covariances[1:])
    sums = jnp.cumsum(centred)
    # What starts from 0 ends there.
    span = jnp.maximum(jnp.max(sums), 0) - jnp.minimum(jnp.min(sums), 0)
    statistic = span / jnp.sqrt(variance * count)
    return RescaledRange(statistic, 1 - _range_distribution(statistic), number)


def _range_distribution(value: Float[Array, ""]) -> Float[Array, ""]:
    """The distribution function of the range of a Brownian bridge (Kuiper)."""
    k = jnp.arange(1, 101, dtype=value.dtype)
    squares = (k * jnp.maximum(value, 0.1)) ** 2
    found = 1 + 2 * jnp.sum((1 - 4 * squares) * jnp.exp(-2 * squares))
    return jnp.where(value < 0.1, 0.0, jnp.clip(found, 0, 1))


def arfima(
    order: Real[ScalarLike, ""],
    times: int,
    *,
    ar: Real[ArrayLike, " p"] = (),
    ma: Real[ArrayLike, " q"] = (),
    warm_up: int = 1000,
    key: PRNGKeyArray,
) -> Float[Array, " times"]:
    r"""A sampled ARFIMA(p, d, q) series, with long memory for $0 < d < 1/2$.

    $$\Bigl(1 - \sum_{i=1}^p a_i B^i\Bigr) (1 - B)^d\, y_t
      = \Bigl(1 + \sum_{i=1}^q b_i B^i\Bigr) \varepsilon_t$$

    with standard normal $\varepsilon$ and the backshift $B$. The fractional part is stationary and
    has exactly its covariances, from a circulant embedding; the ARMA part starts `warm_up` steps
    before. Works under `jax.jit` and `jax.vmap` over keys.

    **Arguments:**

    - `order`: the order $d$, between -1/2 and 1/2.
    - `times`: the number of values.
    - `ar`, `ma`: the coefficients $a$ and $b$. The autoregression must be stationary.
    - `warm_up`: the number of steps before the first value.
    - `key`: the PRNG key.

    **Returns:**

    The series, shape `(times,)`.

    **Raises:**

    `ValueError` for an order out of range, coefficients that are not finite or not in a row, an
    autoregression that is not stationary, and fewer than two values.

    ??? cite "Reference"

        Hosking, *Fractional Differencing*, Biometrika 68, 1981; Davies, Harte, *Tests for Hurst
        Effect*, Biometrika 74, 1987 (the embedding).
    """
    order = as_number("order", order)
    if not is_traced(order) and not -0.5 < order < 0.5:
        raise ValueError(
            f"`order` must be between -0.5 and 0.5, got {float(order):g}; sum a stationary series "
            "for a larger one."
        )
    check_integer("times", times, 2)
    check_integer("warm_up", warm_up, 0)
    ar, ma = _as_coefficients("ar", ar), _as_coefficients("ma", ma)
    if not is_traced(ar) and ar.size:
        largest = np.max(np.abs(np.roots(np.concatenate([[1.0], -np.asarray(ar)]))))
        if largest >= 1:
            raise ValueError(
                f"`ar` must be stationary, got coefficients with a root of modulus {largest:.6g}; "
                "pass smaller ones."
            )
    order = valid_or_nan(order, (jnp.abs(order) < 0.5) & _is_stationary(ar))
    return _simulate(order, ar, ma, times, warm_up, as_key("key", key))


def _is_stationary(ar: Float[Array, " order"]) -> Bool[Array, ""]:
    """Whether all partial autocorrelations, by the Levinson recursion, are below 1."""
    found = jnp.asarray(True)
    while ar.size:
        last, rest = ar[-1], ar[:-1]
        found &= jnp.abs(last) < 1
        ar = (rest + last * rest[::-1]) / (1 - last**2)
    return found


@eqx.filter_jit
def _simulate(
    order: Array, ar: Array, ma: Array, times: int, warm_up: int, key: PRNGKeyArray
) -> Array:
    count = times + (warm_up if ar.size + ma.size else 0)
    steps = jnp.arange(count, dtype=order.dtype)
    ratios = (steps + order) / (steps + 1 - order)
    variance = jnp.exp(gammaln(1 - 2 * order) - 2 * gammaln(1 - order))
    covariances = variance * jnp.concatenate([jnp.ones(1, order.dtype), jnp.cumprod(ratios)])
    circle = jnp.concatenate([covariances, covariances[-2:0:-1]])
    # All are above 0 but for rounding.
    sizes = jnp.sqrt(jnp.maximum(jnp.fft.fft(circle).real, 0) / circle.size)
    real, imaginary = jax.random.normal(key, (2, circle.size), order.dtype)
    noise = jnp.fft.fft(sizes * jax.lax.complex(real, imaginary)).real[:count]

    def move(past: tuple[Array, Array], now: Array) -> tuple[tuple[Array, Array], Array]:
        outputs, inputs = past
        output = now + jnp.dot(ar, outputs) + jnp.dot(ma, inputs)
        shifted = lambda kept, new: jnp.concatenate([new[None], kept])[: kept.size]
        return (shifted(outputs, output), shifted(inputs, now)), output

    if ar.size + ma.size:
        rest = jnp.zeros(ar.size, order.dtype), jnp.zeros(ma.size, order.dtype)
        noise = jax.lax.scan(move, rest, noise)[1]
    return noise[count - times :]


def _as_series(series: Any) -> Float[Array, " times"]:
    series = as_finite_array("series", series)
    if series.ndim != 1 or series.size < _SHORT:
        raise ValueError(
            f"`series` must have {_SHORT} values or more in one dimension, got shape "
            f"{series.shape}; use jax.vmap for several."
        )
    # No level matters; of a constant, this one leaves exactly 0, and the mean only about 0.
    return series - series[0]


def _as_coefficients(name: str, values: Any) -> Float[Array, " order"]:
    none = isinstance(values, (tuple, list)) and not values
    array = jnp.atleast_1d(as_finite_array(name, np.zeros(0) if none else values))
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must be a list of coefficients, got shape {array.shape}; pass one dimension."
        )
    return array
