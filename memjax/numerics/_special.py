"""Families of integrals with full relative accuracy and exact derivatives.

Differentiating a quotient such as `(1 - exp(-x)) / x` loses all digits near `x = 0`, and a loss
near its plateau is made of numbers as small as 1e-300. The families are closed under
differentiation, so their derivatives are stated in terms of themselves, to any order.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Inexact, Real


def _as_floats(*values: ArrayLike) -> list[Array]:
    """`values` as arrays of one floating-point type and one shape."""
    dtype = jnp.result_type(*values, 1.0)
    return jnp.broadcast_arrays(*(jnp.asarray(value, dtype) for value in values))


def exponential_moment(k: int, x: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Moments of an exponential over the unit interval,
    $\varphi_k(x) = \int_0^1 u^k e^{-xu} \,\mathrm{d}u$.

    In float64 the relative error is about 1e-15 for every $x \ge -1$, infinity included. The
    derivative is $-\varphi_{k+1}$.

    **Arguments:**

    - `k`: The power, a Python integer of 0 or more.
    - `x`: Any shape, elementwise.

    **Returns:**

    An array of the shape of `x`.
    """
    return _exponential_moment(k, *_as_floats(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _exponential_moment(k: int, x: Array) -> Array:
    # Below `switch`, Kummer's series exp(-x) sum_n x^n / ((k+1) ... (k+1+n)), all terms positive;
    # above it, the closed form, in which 1 - exp(-x) sum_j x^j / j! no longer cancels.
    switch = k + 2.0
    terms, size = 1, 1.0
    while size > 1e-18:
        size *= switch / (k + 1 + terms)
        terms += 1
    small = jnp.minimum(x, switch)
    series = jnp.ones_like(x)
    for n in reversed(range(1, terms)):
        series = 1 + small * series / (k + 1 + n)
    series = jnp.exp(-small) * series / (k + 1)

    large = jnp.maximum(x, switch)
    # exp(-x) x^k is far under one rounding unit by then; the cap keeps it from being 0 * inf.
    capped = jnp.minimum(large, switch + 200.0)
    partial_sum = jnp.ones_like(x)
    for j in reversed(range(1, k + 1)):
        partial_sum = 1 + capped * partial_sum / j
    closed = math.factorial(k) * (1 - jnp.exp(-capped) * partial_sum) / large ** (k + 1)
    return jnp.where(x < switch, series, closed)


@_exponential_moment.defjvp
def _exponential_moment_jvp(k, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return _exponential_moment(k, x), -_exponential_moment(k + 1, x) * x_dot


def complex_exponential_moment(
    k: int, z: Complex[Array, "..."] | Real[ArrayLike, "..."]
) -> Complex[Array, "..."]:
    r"""The same moments $\varphi_k(z) = \int_0^1 u^k e^{-zu} \,\mathrm{d}u$ of a complex argument
    with a real part of 0 or more.

    In float64 the absolute error is about 1e-15 of $1/(1 + |z|)$: relative accuracy is lost only
    near the zeros that an undamped oscillation has. The derivative is $-\varphi_{k+1}$.

    **Arguments:**

    - `k`: The power, a Python integer of 0 or more.
    - `z`: Any shape, elementwise, finite.

    **Returns:**

    An array of the shape of `z`.
    """
    z = jnp.asarray(z)
    return _complex_exponential_moment(k, z.astype(jnp.result_type(z.dtype, jnp.complex64)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _complex_exponential_moment(k: int, z: Array) -> Array:
    # Taylor's series about 0 where its terms do not yet cancel, elsewhere integration by parts,
    # upwards from the closed form of order 0, which is stable until the order exceeds |z|.
    switch = max(1, k)
    below = jnp.abs(z) < switch
    small = jnp.where(below, z, 0)
    series = jnp.zeros_like(z)
    for n in reversed(range(20 + 4 * k)):
        series = 1 / (k + 1 + n) - small * series / (n + 1)

    large = jnp.where(below, switch, z)
    decay = jnp.exp(-large)
    closed = (1 - decay) / large
    for j in range(1, k + 1):
        closed = (j * closed - decay) / large
    return jnp.where(below, series, closed)


@_complex_exponential_moment.defjvp
def _complex_exponential_moment_jvp(k, primals, tangents):
    (z,), (z_dot,) = primals, tangents
    return _complex_exponential_moment(k, z), -_complex_exponential_moment(k + 1, z) * z_dot


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


# From this argument on the recursion upwards in k cancels and the continued fraction is used;
# its number of terms gives full accuracy at the switch, where it converges most slowly.
_SWITCH = 1.25
_FRACTION_TERMS = 60
# The terms that give it from an argument on.
_FEWER = {12.0: 11, 4.0: 24}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)  # outside of jit the loop would compile every time
def _gaussian_moment(k: int, s: Array, center: Array, width: Array) -> Array:
    scale = width * math.sqrt(2)
    z = (s * width**2 - center) / scale
    below = z < _SWITCH

    # Below the switch exp(z^2) joins the exponent, so that neither factor over- or underflows
    # on its own: upwards recursion of exp(-z^2) I_k, free of cancellation for z <= 0.
    near = jnp.minimum(z, _SWITCH)
    previous, current = jnp.zeros_like(z), math.sqrt(math.pi) / 2 * erfc(near)
    for j in range(k):
        first = jnp.exp(-(near**2)) if j == 0 else j * previous
        previous, current = current, first / 2 - near * current
    upwards = current

    # Above it, the ratios r_j = I_j / I_{j-1} = (j/2) / (z + r_{j+1}) from the far end, where r
    # is the fixed point of its recursion, corrected for its slow drift with j.
    far = jnp.maximum(z, _SWITCH)
    last = k + _FRACTION_TERMS
    numerator = 2 * last - 1 + far / jnp.sqrt(far**2 + 2 * last)
    ratio = numerator / (far + jnp.sqrt(far**2 + numerator)) / 2
    ratio = jax.lax.fori_loop(
        0,
        _FRACTION_TERMS - 1,
        lambda i, ratio: (last - 1 - i).astype(far.dtype) / 2 / (far + ratio),
        ratio,
    )
    product = jnp.ones_like(z)
    for j in reversed(range(1, k + 1)):
        ratio = j / 2 / (far + ratio)
        product = product * ratio
    fraction = product / (2 * (far + ratio))

    exponent = jnp.where(below, s * (s * width**2 / 2 - center), -((center / width) ** 2) / 2)
    # Half the exponential on either side: the product underflows only if the result does.
    half = jnp.exp(exponent / 2)
    return half * (scale ** (k + 1) * jnp.where(below, upwards, fraction)) * half


def gaussian_moments(order: int, s: Array, center: Array, width: Array) -> tuple[Array, ...]:
    r"""All of $M_0, \dots, M_k$ of `gaussian_moment` at the price of little more than one.

    The continued fraction is evaluated only if an argument asks for it, which is a saving
    outside of `jax.vmap`. Not for differentiation, for which the moments themselves serve.
    """
    scale = width * math.sqrt(2)
    z = (s * width**2 - center) / scale
    # What is no number stays none in either form, and must not ask for the dear one.
    below = ~(z >= _SWITCH)
    near = jnp.minimum(z, _SWITCH)
    start = jnp.exp(-(near**2))
    upwards = [math.sqrt(math.pi) / 2 * erfc(near)]
    for j in range(order):
        first = start if j == 0 else j * upwards[j - 1]
        upwards.append(first / 2 - near * upwards[j])

    def fractions(terms: int) -> list[Array]:
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
        values = [1 / (2 * (far + ratio))]
        for ratio in reversed(ratios):
            values.append(values[-1] * ratio)
        return values

    # The farther from the switch, the fewer terms give full accuracy; most arguments beyond it are
    # those of iterates that are given up, and lie far out.
    nearest = jnp.min(jnp.where(below, jnp.inf, z), initial=jnp.inf)
    ways = [lambda: upwards, *(functools.partial(fractions, n) for n in _FEWER.values())]
    ways.append(functools.partial(fractions, _FRACTION_TERMS))
    way = sum(jnp.astype(nearest < bound, int) for bound in (jnp.inf, *_FEWER))
    values = jax.lax.switch(way, ways)
    exponent = jnp.where(below, s * (s * width**2 / 2 - center), -((center / width) ** 2) / 2)
    half = jnp.exp(exponent / 2)
    return tuple(
        half * (scale ** (k + 1) * jnp.where(below, upwards[k], values[k])) * half
        for k in range(order + 1)
    )


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


def complex_gaussian_moments(
    order: int, s: Complex[Array, "..."], center: Array, width: Array
) -> tuple[Complex[Array, "..."], ...]:
    r"""All of $M_0, \dots, M_k$ of `gaussian_moment` for a complex Laplace variable.

    In float64 the error is about 1e-13 relative to the larger of the two parts of which $M_k$ is
    made where $\operatorname{Re} z < 0$: the whole Gaussian, and what of it would lie at negative
    times. The derivative of $M_k$ in `s` is $-M_{k+1}$.

    **Arguments:**

    - `order`: The largest power $k$.
    - `s`: The Laplace variable, of a real part of 0 or more.
    - `center`, `width`: As in `gaussian_moment`.

    **Returns:**

    The tuple of `order + 1` arrays of the broadcast shape of the arguments.
    """
    scale = width * math.sqrt(2)
    z = (s * width**2 - center) / scale
    reflected = z.real < 0
    own = _half_line_moments(order, jnp.where(reflected, -z, z))
    # Of u^k exp(-u^2 - 2 z u) over the whole line, without exp(z^2).
    whole = [jnp.full_like(z, math.sqrt(math.pi))]
    for k in range(order):
        whole.append((k / 2 * whole[k - 1] if k > 0 else 0) - z * whole[k])
    # Half of each exponential on either side: products underflow only if the result does.
    half = jnp.exp(s * (s * width**2 / 2 - center) / 2)
    edge = jnp.exp(-((center / width) ** 2) / 4)
    moments = []
    for k in range(order + 1):
        factor = scale ** (k + 1)
        tail = edge * (factor * own[k]) * edge
        full = half * (factor * whole[k]) * half
        moments.append(jnp.where(reflected, full - (-1) ** k * tail, tail))
    return tuple(moments)


# Inside this radius a rational approximation serves, outside a continued fraction of so many terms.
_RADIUS, _COMPLEX_TERMS = 6.5, 20


def _rational(terms: int) -> tuple[float, np.ndarray]:
    """The length and the coefficients, highest power first, of Weideman's approximation of the
    Faddeeva function (SIAM J. Numer. Anal. 31, 1994)."""
    length = math.sqrt(terms / math.sqrt(2))
    angles = np.arange(1 - 2 * terms, 2 * terms) * np.pi / (2 * terms)
    t = length * np.tan(angles / 2)
    samples = np.concatenate([[0.0], np.exp(-(t**2)) * (length**2 + t**2)])
    coefficients = np.fft.fft(np.fft.fftshift(samples)).real / (4 * terms)
    return length, coefficients[terms:0:-1]


# With 40 terms the relative error is 8e-16 inside the radius, in the right half plane.
_LENGTH, _COEFFICIENTS = _rational(40)


def _half_line_moments(order: int, z: Complex[Array, "..."]) -> list[Array]:
    r"""$I_0, \dots, I_k$ of `gaussian_moment` at $\operatorname{Re} z \ge 0$.

    Loops are in real arithmetic, since compilers make no vectors of complex numbers, and each of
    the two forms is evaluated only if an argument asks for it.
    """
    inside = ~(jnp.abs(z) >= _RADIUS)

    def rational() -> list[Array]:
        near = jnp.where(inside, z, 0)
        denominator = 1 / (_LENGTH + near)
        ratio = (_LENGTH - near) * denominator
        x, y = jnp.zeros_like(near.real), jnp.zeros_like(near.real)
        for coefficient in _COEFFICIENTS:
            product = x * ratio.real - y * ratio.imag
            x, y = product + coefficient, x * ratio.imag + y * ratio.real
        value = jax.lax.complex(x, y)
        upwards = [(math.sqrt(math.pi) * value * denominator + 0.5) * denominator]
        for k in range(order):
            first = 1.0 if k == 0 else k * upwards[k - 1]
            upwards.append(first / 2 - near * upwards[k])
        return upwards

    def fractions() -> list[Array]:
        far = jnp.where(inside, _RADIUS, z)
        # Where the square of a modulus is not there, the first term alone is right.
        simple, first = jnp.abs(far) > 1e150, 0.5 / far
        x, y = (jnp.where(simple, 1e150, part) for part in (far.real, far.imag))
        a, b, quotients = x, y, []
        for k in reversed(range(1, order + _COMPLEX_TERMS + 1)):
            size = k / 2 / (a * a + b * b)
            p, q = size * a, -size * b
            a, b = x + p, y + q
            quotients.append(jax.lax.complex(p, q))
        size = 0.5 / (a * a + b * b)
        fraction = [jnp.where(simple, first, jax.lax.complex(size * a, -size * b))]
        for k in range(order):
            quotient = jnp.where(simple, (k + 1) * first, quotients[-1 - k])
            fraction.append(fraction[k] * quotient)
        return fraction

    unused = lambda: [jnp.zeros_like(z)] * (order + 1)
    near = jax.lax.cond(jnp.any(inside), rational, unused)
    far = jax.lax.cond(jnp.all(inside), unused, fractions)
    return [jnp.where(inside, a, b) for a, b in zip(near, far, strict=True)]


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


def exponential_increments(z: Inexact[Array, "*shape"]) -> tuple[Array, Array]:
    r"""$\varphi_1(z) = (e^z - 1) / z$ and $\varphi_2(z) = (\varphi_1(z) - 1) / z$."""
    small = jnp.abs(z) < 1
    # Each branch gets arguments at which it and its derivatives are finite.
    near = jnp.where(small, z, 0)
    series = jnp.zeros_like(z)
    for k in reversed(range(18)):
        series = series * near + 1 / math.factorial(k + 2)
    far = jnp.where(small, 1, z)
    ratio = (jnp.exp(far) - 1) / far
    first = jnp.where(small, 1 + near * series, ratio)
    return first, jnp.where(small, series, (ratio - 1) / far)
