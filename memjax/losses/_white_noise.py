from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree, Real

from .._checks import as_horizon, as_positive, check_instance, is_traced, shown
from .._typing import ArrayLike, ScalarLike
from ..models import AbstractModel, HasKernelDisplacement, trainable
from ..numerics import exponential_moment
from ..targets import (
    AbstractKernel,
    check_square_integrable,
    describe_sizes,
    elementwise_derivative,
    ExponentialSum,
    HasKernel,
    inner_product,
    split_exponential,
    squared_distance,
)
from ._base import AbstractLoss, displaced, from_real_parts, real_parts


class WhiteNoiseLoss(AbstractLoss):
    r"""The squared error under white-noise input: the distance of two memory kernels.

    $$J(\theta) = \int_0^T |\hat\rho_\theta(t) - \rho(t)|^2\,dt, \qquad T \le \infty.$$

    For a model whose kernel is an exponential sum, loss, gradient and Hessian are closed
    forms. The exponential part of the target is kept apart from the remainder, so that
    $\hat\rho - \bar\rho$ cancels exactly where the model matches it, and the gradient sees the
    remainder alone.

    For other linear models, and for several inputs and outputs, over whose pairs the squares
    are added up, the loss is the squared norm of one state space that holds the model and all
    of the target that has one,

    $$J = \operatorname{tr} C P C^\top, \qquad W P + P W^\top + U U^\top = 0,$$

    plus the inner products with the rest of the target ([`memjax.inner_product`][]).
    Derivatives are then by JAX, as in [`memjax.AbstractLoss`][], and the loss is accurate to
    rounding of the squared norms of the two kernels.

    With an infinite horizon the loss of an unstable model is infinite, and its gradient NaN.

    **Arguments:**

    - `target`: the kernel to be learnt, scalar or with several inputs and outputs.
    - `horizon`: $T$, in units of the model's clock; infinity, for which `None` stands too, is the
        default.

    **Raises:**

    `TypeError` if the target is not a kernel, or when called if the model has none;
    `ValueError` if the horizon is not positive, if it is infinite and the target is not square
    integrable, and when called for a model of other inputs or outputs than the target.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5 (theory, section 3).
    """

    target: AbstractKernel
    horizon: Float[Array, ""] | None

    def __init__(
        self, target: AbstractKernel, horizon: Real[ScalarLike, ""] | None = jnp.inf
    ) -> None:
        check_target(target)
        self.target = target
        self.horizon = as_loss_horizon(target, horizon)

    @property
    def exchangeable(self) -> bool:
        return True

    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        kernel = model_kernel(model, self.target)
        if not self._is_spectral(kernel, model):
            return finite_if_stable(
                squared_distance(kernel, self.target, self._horizon), kernel, self.horizon
            )
        active, remainder = split_target(self.target)
        merged, b, v = residual_modes(kernel.amplitudes, kernel.rates, active)
        still = lax.stop_gradient(v)
        cauchy = lambda v1, v2: _decay(0, v1[:, None] + v2[None, :], self.horizon)
        # With K(v, v) the matrix of 1 / (v_i + v_j), split into its value at fixed rates, its
        # change in one argument, twice, and what both change together. All but the first are zero;
        # multiplied by the amplitudes as they are, they restore the derivatives that the merging
        # lost, to any order.
        one = cauchy(still, v) - cauchy(still, still)
        both = cauchy(v, v) - cauchy(v, still) - one
        value = merged @ cauchy(still, still) @ merged + 2 * (merged @ one @ b) + b @ both @ b
        if remainder is not None:
            transform = lambda v: remainder.laplace(v, self._horizon)
            # The same for the inner product with the remainder.
            tail = jnp.dot(merged, transform(still))
            tail = tail + jnp.dot(b, transform(v) - transform(still))
            value = value - 2 * tail + remainder.squared_norm(self._horizon)
        return finite_if_stable(value, kernel, self.horizon)

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        kernel = model_kernel(model, self.target)
        if not self._is_spectral(kernel, model):
            size = squared_norms(kernel, self.target, self.horizon)
            return 16 * jnp.finfo(size.dtype).eps * size
        active, remainder = split_target(self.target)
        merged, _, v = residual_modes(kernel.amplitudes, kernel.rates, active)
        # The moduli of what is added up in the loss.
        b = jnp.abs(merged)
        size = b @ _decay(0, v[:, None] + v[None, :], self.horizon) @ b
        if remainder is not None:
            size = size + 2 * jnp.dot(b, jnp.abs(remainder.laplace(v, self._horizon)))
            size = size + remainder.squared_norm(self._horizon)
        return 8 * jnp.finfo(v.dtype).eps * size

    def gradient(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        if not self._is_spectral(model_kernel(model, self.target), model):
            return super().gradient(model, displacement)
        moves, rest, pullback = self._spectral(model, displacement)
        return pullback(_spectral_gradient(moves, rest))

    def gradient_noise(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        if not self._is_spectral(model_kernel(model, self.target), model):
            return super().gradient_noise(model, displacement)
        moves, rest, pullback = self._spectral(model, displacement)
        # Errors go the way of gradients where every weight moves one amplitude or one rate, as
        # those of diagonal models do: nothing cancels.
        noise = real_parts(pullback(_spectral_noise(moves, rest)))
        return from_real_parts(jax.tree.map(jnp.abs, noise))

    @property
    def _horizon(self) -> Float[Array, ""] | float:
        return jnp.inf if self.horizon is None else self.horizon

    def _is_spectral(
        self, kernel: AbstractKernel, model: AbstractModel
    ) -> TypeGuard[ExponentialSum]:
        return (
            isinstance(kernel, ExponentialSum)
            and isinstance(model, HasKernelDisplacement)
            and self.target.shape == ()
        )

    def _spectral(self, model: AbstractModel, displacement: PyTree[Array] | None):
        """The problem in amplitudes and rates, and the way back to the weights."""
        kernel = model_kernel(model, self.target)
        assert isinstance(kernel, ExponentialSum) and isinstance(model, HasKernelDisplacement)
        moved = displaced(model, displacement)
        if displacement is None:
            moves = (jnp.zeros_like(kernel.amplitudes), jnp.zeros_like(kernel.rates))
        else:
            assert isinstance(model, HasKernelDisplacement)
            moves = model.kernel_displacement(displacement)
        active, remainder = split_target(self.target)
        residual = residual_modes(kernel.amplitudes, kernel.rates, active)
        rest = (kernel.amplitudes, kernel.rates, *residual, remainder, self.horizon)

        free, fixed = eqx.partition(moved, trainable(moved))

        def amplitudes_and_rates(free: PyTree[Array]):
            kernel = eqx.combine(free, fixed).kernel()
            return kernel.amplitudes, kernel.rates

        out, pullback = jax.vjp(amplitudes_and_rates, free)

        def to_weights(cotangent: PyTree[Array]) -> PyTree[Array]:
            # Targets and weights may differ in precision.
            cotangent = jax.tree.map(lambda c, like: c.astype(like.dtype), cotangent, out)
            # What JAX pulls back is the conjugate of the direction in which the loss rises.
            return jax.tree.map(jnp.conj, pullback(cotangent)[0])

        return moves, rest, to_weights


def check_target(target: AbstractKernel) -> None:
    """Refuse a target that has no kernel."""
    hint = (
        "pass for example memjax.ExponentialSum(...) + memjax.GaussianBump(...), or use "
        "memjax.SampledPathLoss"
    )
    check_instance("target", target, AbstractKernel, "a memory kernel", hint)


def as_loss_horizon(
    target: AbstractKernel, horizon: Real[ScalarLike, ""] | None
) -> Float[Array, ""] | None:
    """A positive horizon as an array, or `None` for the half line."""
    if not is_traced(horizon) and as_horizon(horizon) is None:
        check_square_integrable("target", target)
        return None
    return as_positive("horizon", horizon, "pass T > 0 or jnp.inf")


def model_kernel(model: AbstractModel, target: AbstractKernel) -> AbstractKernel:
    """The kernel of a model, which must have the inputs and outputs of the target's."""
    kernel = None
    if isinstance(model, HasKernel) and not isinstance(model, type) and callable(model.kernel):
        kernel = model.kernel()
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(
            f"`model` must be linear, with a method `kernel`, got {shown(model)}; use "
            "memjax.SampledPathLoss for other models."
        )
    if kernel.sizes != target.sizes:
        raise ValueError(
            f"`model` must have the inputs and outputs of the target, got "
            f"{describe_sizes(kernel)}, but the target has {describe_sizes(target)}."
        )
    return kernel


def finite_if_stable(
    value: Float[Array, ""], kernel: AbstractKernel, horizon: Float[Array, ""] | None
) -> Float[Array, ""]:
    """The loss, or infinity where the model's kernel has no squared norm."""
    if horizon is not None:
        return value
    # Past the imaginary axis closed forms go on with finite numbers that mean nothing.
    return jnp.where(kernel.decays(), value, jnp.inf)


def squared_norms(
    kernel: AbstractKernel, target: AbstractKernel, horizon: Float[Array, ""] | None
) -> Float[Array, ""]:
    """The sum of the squared norms of both kernels, from which the loss may cancel."""
    end = jnp.inf if horizon is None else horizon
    return inner_product(kernel, kernel, end) + inner_product(target, target, end)


def split_target(target: AbstractKernel) -> tuple[ExponentialSum, AbstractKernel | None]:
    """The exponential part of a scalar target, and all the rest as one kernel, if any."""
    active, rest = split_exponential(target)
    return active, sum(rest[1:], rest[0]) if rest else None


def residual_modes(
    amplitudes: Float[Array, " width"], rates: Float[Array, " width"], active: ExponentialSum
) -> tuple[Float[Array, " modes"], Float[Array, " modes"], Float[Array, " modes"]]:
    """The modes of model minus target: amplitudes with those of equal rate merged into the
    first of them, amplitudes, and rates.

    Where the model matches the target the merged amplitudes are exact zeros, instead of
    terms that cancel up to rounding in every sum they enter. But merging is right for one
    value of the rates only, so that derivatives have to be taken of the modes as they are.
    """
    return merge_modes(
        jnp.concatenate([amplitudes, -active.amplitudes]), jnp.concatenate([rates, active.rates])
    )


def merge_modes(
    b: Inexact[Array, " modes"], v: Inexact[Array, " modes"]
) -> tuple[Array, Array, Array]:
    """Amplitudes with those of equal rate merged into the first of them, amplitudes, and rates."""
    # Exactly equal ones only: of rates that are close the kernels differ. The others keep their
    # places, with an amplitude of 0, so that mode j of the model stays mode j.
    equal = v[:, None] == v[None, :]
    first = jnp.argmax(equal, axis=1)
    return jnp.zeros_like(b).at[first].add(b), b, v


def _decay(order: int, s: Array, horizon: Float[Array, ""] | None) -> Array:
    r"""The derivative of that order of $\int_0^T e^{-st} dt$."""
    if horizon is None:
        return [1.0, -1.0, 2.0][order] / s ** (order + 1)
    # Of e^(-st) the moments, with a sign for every factor -t. Over [0, T] they are T^(k + 1) times
    # those over the unit interval, which keep their digits where s T is small.
    sign = -1.0 if order % 2 else 1.0
    return sign * horizon ** (order + 1) * exponential_moment(order, s * horizon)


def _change(
    order: int,
    s: Array,
    moves: tuple[Array, Array],
    start: tuple[Array, Array],
    horizon: Float[Array, ""] | None,
) -> tuple[Array, Array]:
    r"""How the transform of the model's kernel changed, $\partial_s^k$ of
    $\sum_i (a_i + \alpha_i) K(w_i + \nu_i + s) - a_i K(w_i + s)$, and the sum of the moduli of
    its terms."""
    (alpha, nu), (a0, w0) = moves, start
    s = s[:, None]
    x, x0 = w0 + nu + s, w0 + s
    moved = alpha * _decay(order, x, horizon)
    if horizon is None:
        # The difference of two reciprocals as one product, p - p0 = -nu p p0: exact for tiny
        # changes. Its derivatives follow from p' = -p^2.
        p, q = 1 / x, 1 / x0
        powers = [p * q, -(p**2 * q + p * q**2), 2 * (p**3 * q + p**2 * q**2 + p * q**3)]
        shifted = -a0 * nu * powers[order]
        moduli = jnp.abs(moved) + jnp.abs(shifted)
    else:
        # Over a finite horizon there is no such product. The difference may cancel, so that both of
        # its terms count as noise.
        after, before = (a0 * _decay(order, y, horizon) for y in (x, x0))
        shifted = after - before
        moduli = jnp.abs(moved) + jnp.abs(after) + jnp.abs(before)
    return jnp.sum(moved + shifted, axis=1), jnp.sum(moduli, axis=1)


def _residual_transform(
    order: int, s: Array, moves: tuple[Array, Array], rest: tuple
) -> tuple[Array, Array]:
    r"""$\partial_s^k E(s)$, $E$ the Laplace transform of model minus target, with the sum of
    the moduli of its terms."""
    a0, w0, merged, b, v, remainder, horizon = rest
    value, moduli = _change(order, s, moves, (a0, w0), horizon)
    # The second term is zero, and restores the derivatives in rates that the merging lost.
    still = _decay(order, lax.stop_gradient(v) + s[:, None], horizon)
    start = merged * still + b * (_decay(order, v + s[:, None], horizon) - still)
    value = value + jnp.sum(start, axis=1)
    moduli = moduli + jnp.sum(jnp.abs(start), axis=1)
    if remainder is not None:
        transform = lambda s: remainder.laplace(s, jnp.inf if horizon is None else horizon)
        for _ in range(order):
            transform = elementwise_derivative(transform)
        tail = transform(s)
        value, moduli = value - tail, moduli + jnp.abs(tail)
    return value, moduli


def _moved(moves: tuple[Array, Array], rest: tuple) -> tuple[Array, Array]:
    """Amplitudes and rates after the move; NaN for a mode whose kernel is not square
    integrable, where the closed forms would go on with finite but meaningless numbers."""
    a, w = rest[0] + moves[0], rest[1] + moves[1]
    return a, w if rest[-1] is not None else jnp.where(w > 0, w, jnp.nan)


def _plain_gradient(moves: tuple[Array, Array], rest: tuple) -> tuple[Array, Array]:
    a, w = _moved(moves, rest)
    e0, _ = _residual_transform(0, w, moves, rest)
    e1, _ = _residual_transform(1, w, moves, rest)
    return 2 * e0, 2 * a * e1


@eqx.filter_custom_jvp
def _spectral_gradient(moves: tuple[Array, Array], rest: tuple) -> tuple[Array, Array]:
    """The gradient in amplitudes and rates. Its derivative along `moves` is the Hessian in
    closed form, which costs one Cauchy matrix instead of one per direction."""
    return _plain_gradient(moves, rest)


@_spectral_gradient.def_jvp
def _spectral_gradient_jvp(primals: Any, tangents: Any) -> Any:
    (moves, rest), (t_moves, t_rest) = primals, tangents
    out = _plain_gradient(moves, rest)
    t_out = tuple(jnp.zeros_like(x) for x in out)
    is_none = lambda x: x is None
    if any(t is not None for t in t_moves):
        t_alpha, t_nu = (
            jnp.zeros_like(x) if t is None else t for x, t in zip(moves, t_moves, strict=True)
        )
        a, w = _moved(moves, rest)
        e1, _ = _residual_transform(1, w, moves, rest)
        e2, _ = _residual_transform(2, w, moves, rest)
        # Twice the Gram matrix of the derivatives of the model's kernel, and twice the residual
        # against its second derivatives, which join only the weights of one mode.
        sums = w[:, None] + w[None, :]
        k0, k1, k2 = (_decay(order, sums, rest[-1]) for order in range(3))
        t_out = (
            2 * (k0 @ t_alpha + k1 @ (a * t_nu) + e1 * t_nu),
            2 * (a * (k1 @ t_alpha) + e1 * t_alpha + a * (k2 @ (a * t_nu)) + a * e2 * t_nu),
        )
    # Derivatives in starts, targets and horizons are seldom asked for, and have no closed form
    # here.
    if not all(t is None for t in jax.tree.leaves(t_rest, is_leaf=is_none)):
        _, t_target = eqx.filter_jvp(lambda r: _plain_gradient(moves, r), (rest,), (t_rest,))
        t_out = jax.tree.map(jnp.add, t_out, t_target)
    return out, t_out


def _spectral_noise(moves: tuple[Array, Array], rest: tuple) -> tuple[Array, Array]:
    a, w = _moved(moves, rest)
    _, m0 = _residual_transform(0, w, moves, rest)
    _, m1 = _residual_transform(1, w, moves, rest)
    unit = 4 * jnp.finfo(w.dtype).eps
    remainder, horizon = rest[5:]
    norm = 0.0
    if remainder is not None:
        norm = remainder.squared_norm(jnp.inf if horizon is None else horizon)
    # What is flushed to 0 has lost all of its digits, other than what is rounded.
    lost = underflow(norm, float(jnp.finfo(w.dtype).tiny))
    return 2 * (unit * m0 + lost), 2 * (unit * jnp.abs(a) * m1 + lost)


def underflow(norm: ArrayLike, smallest: float) -> Float[Array, "..."]:
    """What may have been flushed to 0 of the transforms of a remainder of some squared norm: at a
    long memory they are exponentially small, and what they are still drives the flow."""
    return jnp.where(norm == 0, 0.0, smallest)
