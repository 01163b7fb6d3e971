"""Laplace-transformed moments of a Gaussian have full relative accuracy here.

They are closed under differentiation, so their derivatives are stated in terms of themselves, to
any order. A loss near its plateau is made of numbers as small as 1e-300.
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, Real

# From this argument on the recursion upwards in k cancels and the continued fraction is used;
# its number of terms gives full accuracy at the switch, where it converges most slowly.
_SWITCH = 1.25
_FRACTION_TERMS = 60
# The terms that give it from an argument on.
_FEWER = {12.0: 11, 4.0: 24}
# Up to this argument the half line holds all of the Gaussian, but for 1e-18 of it.
_WHOLE = -6.2


def gaussian_moment(
    k: int,
    s: Real[ArrayLike, "..."],
    center: Real[ArrayLike, "..."],
    width: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""Laplace-transformed moments of a Gaussian on the half line,
    $M_k = \int_0^\infty t^k e^{-st} e^{-(t-T)^2/(2\sigma^2)} \,\mathrm{d}t$.

    In float64 the relative error stays below 1e-12 wherever the value is a normal number.
    With $z = (s\sigma^2 - T)/(\sigma\sqrt 2)$ and $I_k(z) = \int_0^\infty u^k e^{-u^2-2zu}
    \,\mathrm{d}u$ this is $M_k = (\sigma\sqrt 2)^{k+1} e^{-T^2/(2\sigma^2)} I_k(z)$, where
    $I_0 = \tfrac{\sqrt\pi}{2} e^{z^2} \operatorname{erfc}(z)$. Derivatives of any order with
    respect to `s`, `center` and `width` are combinations of the $M_k$ themselves.

    **Arguments:**

    - `k`: The power, a Python integer of 0 or more.
    - `s`: The Laplace variable $s$.
    - `center`: The centre $T$, of either sign.
    - `width`: The width $\sigma > 0$.

    **Returns:**

    An array of the broadcast shape of the arguments.
    """
    return _gaussian_moment(k, *_as_floats(s, center, width))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)  # outside of jit the loop would compile every time
def _gaussian_moment(k: int, s: Array, center: Array, width: Array) -> Array:
    scale = width * math.sqrt(2)
    z = (s * width**2 - center) / scale
    below = z < _SWITCH
    ratios, denominator = _fraction(k, z, _FRACTION_TERMS)
    fraction = math.prod(ratios, start=jnp.ones_like(z)) / denominator
    half = _half_exponential(below, s, center, width)
    return half * (scale ** (k + 1) * jnp.where(below, _upwards_below(k, z)[k], fraction)) * half


@functools.partial(_gaussian_moment.defjvp, symbolic_zeros=True)
def _gaussian_moment_jvp(k, primals, tangents):
    s, center, width = primals
    s_dot, center_dot, width_dot = tangents

    def moment(j: int) -> Array:
        return _gaussian_moment(j, s, center, width)

    out = moment(k)
    out_dot = jnp.zeros_like(out)
    if type(s_dot) is not SymbolicZero:
        out_dot = out_dot - moment(k + 1) * s_dot

    # Two exact forms of each derivative: from the derivatives of the Gaussian, and integrated by
    # parts. The first cancels where exp(-st) pulls the mass into a peak inside the half line,
    # the second where the mass sits against t = 0.
    against_zero = s * width**2 >= center
    start = jnp.exp(-((center / width) ** 2) / 2)
    if type(center_dot) is not SymbolicZero:
        direct = (moment(k + 1) - center * out) / width**2
        by_parts = (k * moment(k - 1) if k > 0 else start) - s * out
        out_dot = out_dot + jnp.where(against_zero, direct, by_parts) * center_dot
    if type(width_dot) is not SymbolicZero:
        direct = (moment(k + 2) - 2 * center * moment(k + 1) + center**2 * out) / width**3
        # The heat equation: d/dwidth = 1/width + width d^2/dcenter^2.
        curvature = s**2 * out
        if k == 0:
            curvature = curvature - (s + center / width**2) * start
        if k == 1:
            curvature = curvature + start
        if k > 0:
            curvature = curvature - 2 * k * s * moment(k - 1)
        if k > 1:
            curvature = curvature + k * (k - 1) * moment(k - 2)
        by_parts = out / width + width * curvature
        out_dot = out_dot + jnp.where(against_zero, direct, by_parts) * width_dot
    return out, out_dot


def gaussian_moments(order: int, s: Array, center: Array, width: Array) -> tuple[Array, ...]:
    r"""All of $M_0, \dots, M_k$ of `gaussian_moment` at the price of little more than one.

    The continued fraction and the error function are evaluated only if an argument asks for them,
    which is a saving outside of `jax.vmap`. Not for differentiation, for which the moments
    themselves serve.
    """
    scale = width * math.sqrt(2)
    z = (s * width**2 - center) / scale
    # What is no number stays none in either form, and must not ask for the dear one.
    below = ~(z >= _SWITCH)

    def near() -> list[Array]:
        return _upwards_below(order, z)

    def whole() -> list[Array]:
        return upwards(order, z, jnp.full_like(z, math.sqrt(math.pi)), 0.0)

    def far(terms: int) -> list[Array]:
        ratios, denominator = _fraction(order, z, terms)
        values = itertools.accumulate(reversed(ratios), operator.mul, initial=1 / denominator)
        return [jnp.where(below, a, b) for a, b in zip(near(), values, strict=True)]

    # The farther from the switch, the fewer terms give full accuracy; most arguments beyond it are
    # those of iterates that are given up, and lie far out.
    nearest = jnp.min(jnp.where(below, jnp.inf, z), initial=jnp.inf)
    ways = [whole, near, *(functools.partial(far, n) for n in _FEWER.values())]
    ways.append(functools.partial(far, _FRACTION_TERMS))
    way = jnp.astype(jnp.any(z > _WHOLE), int)
    way = way + sum(jnp.astype(nearest < bound, int) for bound in (jnp.inf, *_FEWER))
    values = jax.lax.switch(way, ways)
    half = _half_exponential(below, s, center, width)
    return tuple(half * (scale ** (k + 1) * value) * half for k, value in enumerate(values))


def gaussian_transform(
    s: Real[ArrayLike, "..."],
    center: Real[ArrayLike, "..."],
    width: Real[ArrayLike, "..."],
    horizon: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""Laplace transform of a Gaussian cut off at a horizon,
    $\int_0^h e^{-st} e^{-(t-T)^2/(2\sigma^2)} \,\mathrm{d}t$.

    A difference of two half-line integrals, counted from whichever end of $[0, h]$ the mass
    leans on. The relative accuracy of `gaussian_moment` holds unless the integrand changes
    little over $[0, h]$; then the absolute error is that accuracy times the larger half-line
    integral.

    **Arguments:**

    - `s`, `center`, `width`: As in `gaussian_moment`.
    - `horizon`: The horizon $h \ge 0$, finite.

    **Returns:**

    An array of the broadcast shape of the arguments.
    """
    s, center, width, horizon = _as_floats(s, center, width, horizon)
    # exp(-st) times the Gaussian peaks at center - s width^2. With the peak past the horizon, t
    # is counted backwards from there. Only the arguments are selected, so no unused branch
    # is there to overflow.
    backwards = center - s * width**2 > horizon
    decay = jnp.exp(-s * horizon)
    outer = _gaussian_moment(
        0,
        jnp.where(backwards, -s, s),
        jnp.where(backwards, horizon - center, center),
        width,
    )
    inner = _gaussian_moment(
        0,
        jnp.where(backwards, -s, s),
        jnp.where(backwards, -center, center - horizon),
        width,
    )
    return jnp.where(backwards, decay, 1) * outer - jnp.where(backwards, 1, decay) * inner


def upwards(
    order: int, z: Inexact[Array, "..."], value: Array, start: Array | float
) -> list[Inexact[Array, "..."]]:
    r"""$I_0, \dots, I_k$ of `gaussian_moment`, or multiples of all, by recursion from $I_0$.

    **Arguments:**

    - `order`: The largest power $k$.
    - `z`: The argument.
    - `value`: $I_0$, or a multiple of it.
    - `start`: The same multiple of 1.
    """
    values = [value]
    for k in range(order):
        first = start if k == 0 else k * values[k - 1]
        values.append(first / 2 - z * values[k])
    return values


def _upwards_below(order: int, z: Array) -> list[Array]:
    # Below the switch exp(z^2) joins the exponent, so that neither factor over- or underflows
    # on its own: upwards recursion of exp(-z^2) I_k, free of cancellation for z <= 0.
    near = jnp.minimum(z, _SWITCH)
    return upwards(order, near, math.sqrt(math.pi) / 2 * erfc(near), jnp.exp(-(near**2)))


def _fraction(order: int, z: Array, terms: int) -> tuple[list[Array], Array]:
    """The ratios I_k / I_{k-1}, ..., I_1 / I_0 above the switch, and 1 / I_0."""
    # The ratios r_j = I_j / I_{j-1} = (j/2) / (z + r_{j+1}) from the far end, where r is the
    # fixed point of its recursion, corrected for its slow drift with j.
    far = jnp.maximum(z, _SWITCH)
    last = order + terms
    numerator = 2 * last - 1 + far / jnp.sqrt(far**2 + 2 * last)
    ratio = numerator / (far + jnp.sqrt(far**2 + numerator)) / 2
    step = lambda i, ratio: (last - 1 - i).astype(far.dtype) / 2 / (far + ratio)
    ratio = jax.lax.fori_loop(0, terms - 1, step, ratio)
    ratios = []
    for j in reversed(range(1, order + 1)):
        ratio = j / 2 / (far + ratio)
        ratios.append(ratio)
    return ratios, 2 * (far + ratio)


def _half_exponential(below: Array, s: Array, center: Array, width: Array) -> Array:
    # Half the exponential on either side: the product underflows only if the result does.
    exponent = jnp.where(below, s * (s * width**2 / 2 - center), -((center / width) ** 2) / 2)
    return jnp.exp(exponent / 2)


def _as_floats(*values: ArrayLike) -> list[Array]:
    """`values` as arrays of one floating-point type and one shape."""
    dtype = jnp.result_type(*values, 1.0)
    return jnp.broadcast_arrays(*(jnp.asarray(value, dtype) for value in values))
