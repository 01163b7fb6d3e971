"""Spectra to start from: rates, eigenvalues and recurrent matrices of stable models."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import (
    as_key,
    as_positive,
    as_range,
    check_integer,
    is_traced,
    shown,
    valid_or_nan,
)
from .._typing import ScalarLike


def uniform_rates(
    width: int, low: Real[ScalarLike, ""], high: Real[ScalarLike, ""], *, key: PRNGKeyArray
) -> Float[Array, " width"]:
    """Independent decay rates, uniform between two.

    **Arguments:**

    - `width`: how many.
    - `low`, `high`: the smallest and the largest, in units of one over the model's clock.
    - `key`: the PRNG key.

    **Returns:**

    The rates, shape `(width,)`.

    **Raises:**

    `ValueError` unless `0 < low < high`.
    """
    check_integer("width", width)
    low, high = as_range("low", low, "high", high)
    return jax.random.uniform(as_key("key", key), (width,), minval=low, maxval=high)


def log_uniform_rates(
    width: int, low: Real[ScalarLike, ""], high: Real[ScalarLike, ""], *, key: PRNGKeyArray
) -> Float[Array, " width"]:
    """Independent decay rates with uniform logarithms, so that every time scale is as likely.

    **Arguments:**

    - `width`: how many.
    - `low`, `high`: the smallest and the largest, in units of one over the model's clock.
    - `key`: the PRNG key.

    **Returns:**

    The rates, shape `(width,)`.

    **Raises:**

    `ValueError` unless `0 < low < high`.
    """
    check_integer("width", width)
    low, high = as_range("low", low, "high", high)
    first, last = jnp.log(low), jnp.log(high)
    logarithms = jax.random.uniform(as_key("key", key), (width,), minval=first, maxval=last)
    # The exponential of a logarithm may lie a rounding outside.
    return jnp.clip(jnp.exp(logarithms), low, high)


def ring(
    width: int,
    inner: Real[ScalarLike, ""],
    outer: Real[ScalarLike, ""],
    *,
    max_phase: Real[ScalarLike, ""] = 2 * np.pi,
    step: Real[ScalarLike, ""] = 1.0,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
    r"""Eigenvalues whose discrete-time multipliers are uniform on a ring, as in the LRU.

    The multipliers $e^{(-w + i\nu) \Delta t}$ are uniform in area over moduli between `inner` and
    `outer` and phases between 0 and `max_phase`.

    **Arguments:**

    - `width`: how many.
    - `inner`, `outer`: the radii, `0 < inner < outer <= 1`.
    - `max_phase`: the largest phase. Defaults to the whole circle; with conjugate pairs half of
        it covers all.
    - `step`: the time step $\Delta t > 0$.
    - `key`: the PRNG key.

    **Returns:**

    The rates $w$ and the angular frequencies $\nu$, shape `(width,)` each.

    **Raises:**

    `ValueError` for radii or steps outside these bounds.

    ??? cite "Reference"

        Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, ICML 2023,
        Section 3.2.1.
    """
    check_integer("width", width)
    inner, outer = as_range("inner", inner, "outer", outer)
    if not is_traced(outer) and outer > 1:
        raise ValueError(
            f"`outer` must be at most 1, got {shown(outer)}; pass a radius of a stable ring."
        )
    outer = valid_or_nan(outer, outer <= 1)
    max_phase, step = as_positive("max_phase", max_phase), as_positive("step", step)
    first, second = jax.random.split(as_key("key", key))
    # Uniform in area is uniform in the squared modulus. One minus that: near the unit circle it has
    # all its digits, and with `outer` 1 it is above 0, so that every mode decays.
    share = jax.random.uniform(first, (width,), minval=jnp.finfo(float).eps)
    inside = (1 - outer) * (1 + outer) + share * (outer - inner) * (outer + inner)
    phases = jax.random.uniform(second, (width,), maxval=max_phase)
    # The squared modulus is e^(-2 w dt).
    return -jnp.log1p(-inside) / (2 * step), phases / step


def s4d_real(width: int, *, scale: Real[ScalarLike, ""] = 1.0) -> Float[Array, " width"]:
    r"""The rates $1, 2, \dots, m$ of S4D-Real, the diagonal of the HiPPO matrix, over a scale.

    **Arguments:**

    - `width`: the number $m$.
    - `scale`: the time scale $T$; the rates are $n / T$. Defaults to 1.

    **Returns:**

    The rates, shape `(width,)`, for a [`memjax.DiagonalLinearRNN`][].

    ??? cite "Reference"

        Gu, Gupta, Goel, Ré, *On the Parameterization and Initialization of Diagonal State Space
        Models*, NeurIPS 2022, Section 4.
    """
    check_integer("width", width)
    return jnp.arange(1.0, width + 1) / as_positive("scale", scale)


def s4d_lin(
    width: int, *, scale: Real[ScalarLike, ""] = 1.0
) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
    r"""The eigenvalues $-\tfrac12 + i \pi n$, $n = 0, \dots, m - 1$, of S4D-Lin, over a scale.

    **Arguments:**

    - `width`: the number $m$ of conjugate pairs.
    - `scale`: the time scale $T$; the eigenvalues are divided by it. Defaults to 1.

    **Returns:**

    The rates and the angular frequencies, shape `(width,)` each, for a
    [`memjax.ComplexDiagonalRNN`][].

    ??? cite "Reference"

        Gu, Gupta, Goel, Ré, *On the Parameterization and Initialization of Diagonal State Space
        Models*, NeurIPS 2022, Section 4.
    """
    check_integer("width", width)
    scale = as_positive("scale", scale)
    return jnp.full(width, 0.5) / scale, jnp.pi * jnp.arange(0.0, width) / scale


def stable_gaussian(
    width: int,
    *,
    gain: Real[ScalarLike, ""] = 1.0,
    margin: Real[ScalarLike, ""] = 0.1,
    key: PRNGKeyArray,
) -> Float[Array, "width width"]:
    r"""A dense Gaussian matrix, shifted so that $|e^{Wt}| \le e^{-\mu t}$.

    $$W = \frac{g}{\sqrt m} G - s I, \qquad
      s = \mu + \frac{g}{2 \sqrt m} \lambda_{\max}(G + G^\mathsf{T}),$$

    with independent standard normal entries of $G$. The largest eigenvalue of the symmetric part
    of $W$ is $-\mu$, so that every eigenvalue of $W$ has a real part of at most $-\mu$.

    **Arguments:**

    - `width`: the number $m$ of neurons.
    - `gain`: the gain $g > 0$, in units of one over the model's clock.
    - `margin`: the margin $\mu > 0$, in the same units.
    - `key`: the PRNG key.

    **Returns:**

    The matrix, shape `(width, width)`, for a [`memjax.LinearRNN`][].
    """
    check_integer("width", width)
    gain, margin = as_positive("gain", gain), as_positive("margin", margin)
    noise = gain * jax.random.normal(as_key("key", key), (width, width)) / jnp.sqrt(width)
    # d/dt |h|^2 = h^T (W + W^T) h: the symmetric part bounds growth at all times, where eigenvalues
    # of W bound it at late ones only.
    shift = margin + jnp.linalg.eigvalsh((noise + noise.T) / 2)[-1]
    return noise - shift * jnp.eye(width)
