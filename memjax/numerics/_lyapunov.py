"""Matrix exponentials and Gramians by doubling, for stable and stiff matrices alike.

The step $h$ is short against the fastest rate, where Taylor series give `expm(A h) - 1` and the
Gramian over $[0, h]$, and both are doubled from there. What is kept is the exponential less the
identity: in $1 + x$ a slow mode of a stiff matrix would lose the digits of $x$, and squaring
would magnify the loss.
"""

from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TERMS = 18  # 1 / 19! is below the rounding of float64
_DOUBLINGS = 64


@jax.jit
def gramian(
    a: Float[Array, "m m"],
    b: Float[Array, "n n"],
    c: Float[Array, "m n"],
    horizon: Float[Array, ""] | None = None,
) -> Float[Array, "m n"]:
    r"""The Gramian $\int_0^T e^{At} C e^{Bt} \,\mathrm{d}t$.

    Over the half line it is the solution of Sylvester's equation $AX + XB + C = 0$, and so are
    its derivatives, in forward and reverse mode and of any order. No eigenvectors are used, so
    that defective matrices are as good as others.

    **Arguments:**

    - `a`, `b`: The matrices $A$ and $B$; over the half line the eigenvalues of both must lie
         in the open left half-plane.
    - `c`: The matrix $C$.
    - `horizon`: The finite horizon $T$, or `None` for the half line, as `as_horizon` gives it.

    **Returns:**

    The matrix; over the half line NaN where the integral does not converge.
    """
    if horizon is not None:
        count, step = _halvings(jnp.maximum(_size(a), _size(b)), horizon)
        start = (_expm1(a, step), _expm1(b, step), _short_gramian(a, b, c, step))

        def doubled(state: Any, k: Array) -> tuple[Any, None]:
            more = _double(state)
            return jax.tree.map(lambda x, y: jnp.where(k < count, x, y), more, state), None

        return lax.scan(doubled, start, jnp.arange(_DOUBLINGS))[0][2]

    def operator(x: Array) -> Array:
        return -(a @ x + x @ b)

    def solve(_: Any, c: Array) -> Array:
        return _refined(*lax.stop_gradient((a, b)), c)

    def transpose_solve(_: Any, c: Array) -> Array:
        return _refined(*lax.stop_gradient((a.T, b.T)), c)

    return lax.custom_linear_solve(operator, c, solve, transpose_solve)


@jax.jit
def exponential_action(
    a: Float[Array, "m m"], u: Float[Array, "m d"], t: Float[Array, " times"]
) -> Float[Array, "times m d"]:
    r"""The matrices $e^{At} U$ at many times $t \ge 0$, in any order.

    The exponentials of $h, 2h, 4h, \dots$ are formed once; each time then takes those of its
    binary digits, which costs products with $U$ only.

    **Arguments:**

    - `a`: The matrix $A$.
    - `u`: The matrix $U$.
    - `t`: The finite times.

    **Returns:**

    One matrix a time, differentiable in all arguments.
    """
    longest = lax.stop_gradient(jnp.max(t, initial=1.0))
    _, step = _halvings(_size(a), longest)
    whole = jnp.floor(lax.stop_gradient(t) / step)
    rest = t - whole * step

    def term(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        power, total = state
        power = rest[:, None, None] * (a @ power) / k
        return (power, total + power), None

    start = jnp.broadcast_to(u, (*t.shape, *u.shape))
    values = lax.scan(term, (start, start), jnp.arange(1, _TERMS + 1).astype(t.dtype))[0][1]

    def digit(state: Any, _: None) -> tuple[Any, None]:
        def take(state: Any) -> Any:
            values, expm1, whole = state
            half = jnp.floor(whole / 2)
            values = values + (whole - 2 * half)[:, None, None] * (expm1 @ values)
            return values, 2 * expm1 + expm1 @ expm1, half

        # Past the last digit nothing is left to take, and squaring could only overflow.
        return lax.cond(jnp.any(state[2] > 0), take, lambda state: state, state), None

    state = (values, _expm1(a, step), whole)
    return lax.scan(digit, state, None, length=_DOUBLINGS)[0][0]


@jax.jit
def decay_time(a: Float[Array, "m m"]) -> Float[Array, ""]:
    """A time by which `expm(a t)` is below rounding, within a factor of two; infinity for a
    matrix that is not stable. It has no derivative."""
    a = lax.stop_gradient(a)
    step = 0.5 / jnp.maximum(_size(a), jnp.finfo(a.dtype).tiny)

    def unfinished(state: Any) -> Array:
        k, size, _ = state
        return (k < _DOUBLINGS) & (size > jnp.finfo(a.dtype).eps / 4)

    def doubled(state: Any) -> Any:
        k, _, expm1 = state
        expm1 = 2 * expm1 + expm1 @ expm1
        return k + 1, jnp.max(jnp.abs(_identity(a) + expm1), initial=0), expm1

    start = (0, jnp.asarray(1.0, a.dtype), _expm1(a, step))
    k, size, _ = lax.while_loop(unfinished, doubled, start)
    # The comparison is false for NaN too.
    return jnp.where(size <= jnp.finfo(a.dtype).eps / 4, step * 2.0**k, jnp.inf)


def _size(a: Array) -> Array:
    """An upper bound on the spectral norm, cheap and without a derivative."""
    a = jnp.abs(lax.stop_gradient(a))
    return jnp.sqrt(jnp.max(jnp.sum(a, 0), initial=0) * jnp.max(jnp.sum(a, 1), initial=0))


def _halvings(size: Array, horizon: Array) -> tuple[Array, Array]:
    """How often to halve a horizon for a step of at most 1/2 in units of the fastest rate."""
    reach = jnp.maximum(2 * size * lax.stop_gradient(horizon), 1)
    count = jnp.clip(jnp.ceil(jnp.log2(reach)), 0, _DOUBLINGS)
    return count, horizon * 0.5**count


def _expm1(a: Array, step: Array) -> Array:
    """`expm(a step) - 1` for a short step."""

    def term(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        power, total = state
        power = step * (a @ power) / k
        return (power, total + power), None

    orders = jnp.arange(1, _TERMS + 1).astype(a.dtype)
    start = (_identity(a), jnp.zeros_like(a))
    return lax.scan(term, start, orders)[0][1]


def _short_gramian(a: Array, b: Array, c: Array, step: Array) -> Array:
    def term(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        power, total = state
        power = step * (a @ power + power @ b) / k
        return (power, total + power), None

    orders = jnp.arange(2, _TERMS + 2).astype(a.dtype)
    return lax.scan(term, (step * c, step * c), orders)[0][1]


def _double(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    left, right, x = state
    moved = x + left @ x
    return 2 * left + left @ left, 2 * right + right @ right, x + moved + moved @ right


def _doubling(a: Array, b: Array, c: Array) -> Array:
    """The Gramian over the half line: doubled until nothing is added."""
    step = 0.5 / jnp.maximum(jnp.maximum(_size(a), _size(b)), jnp.finfo(a.dtype).tiny)
    start = (_expm1(a, step), _expm1(b, step), _short_gramian(a, b, c, step))

    def unfinished(state: Any) -> Array:
        k, done, _ = state
        return (k < _DOUBLINGS) & ~done

    def doubled(state: Any) -> Any:
        k, _, x = state
        left, right, x = _double(x)
        # What is still to come is at most the product of these times the Gramian. Each alone
        # must decay too: one that has become exactly 0 would hide that the other grows.
        left_size = jnp.max(jnp.abs(_identity(left) + left), initial=0)
        right_size = jnp.max(jnp.abs(_identity(right) + right), initial=0)
        done = (left_size <= 1) & (right_size <= 1)
        done &= left_size * right_size < jnp.finfo(x.dtype).eps / 4
        return k + 1, done, (left, right, x)

    _, done, (_, _, x) = lax.while_loop(unfinished, doubled, (0, jnp.array(False), start))
    return jnp.where(done & jnp.all(jnp.isfinite(x)), x, jnp.nan)


def _identity(a: Array) -> Array:
    return jnp.eye(a.shape[0], dtype=a.dtype)


def _refined(a: Array, b: Array, c: Array) -> Array:
    x = _doubling(a, b, c)
    return x + _doubling(a, b, a @ x + x @ b + c)
