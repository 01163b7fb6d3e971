from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree, Real, Scalar

from .._checks import (
    as_float_array,
    as_nonnegative,
    check_callable,
    check_flag,
    check_nonnegative,
    check_positive,
    check_scalar,
)
from .._typing import ScalarLike


class _NewtonState(eqx.Module):
    size: Scalar
    previous_size: Scalar
    step: Scalar


class RadauNewton(optx.AbstractRootFinder):
    r"""Newton's method for the three stages of [`memjax.RadauIIA5`][] together.

    By default every iteration uses the Jacobian of the start of the step, for which the
    stages decouple into a real and a complex system of the size of the state. With `full=True`
    each iteration evaluates the Jacobian of every stage, and solves one real system of three
    times the size.

    It stops when the last update, or the estimate of the error that is left, is below `kappa`
    times the tolerance of the step, or below the rounding of the state; and gives up as soon as
    updates grow.

    **Arguments:**

    - `rtol`, `atol`, `norm`: the tolerances and the norm of updates, as of the step size
        controller. `diffrax.with_stepsize_controller_tols(RadauNewton)(...)` takes them from it.
    - `kappa`: the share of the tolerance at which to stop.
    - `full`: whether to evaluate the Jacobian at every stage of every iteration.

    **Raises:** `ValueError` and `TypeError` for negative tolerances and arguments of the wrong
    kind, and where anything but the stages of [`memjax.RadauIIA5`][] is to be solved.

    ??? cite "Reference"

        Hairer, Wanner, *Solving Ordinary Differential Equations II*, Section IV.8.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar]
    kappa: Any
    full: bool = eqx.field(static=True)

    def __init__(
        self,
        rtol: Any,
        atol: Any,
        norm: Callable[[PyTree], Scalar] = optx.rms_norm,
        kappa: Real[ScalarLike, ""] = 1e-2,
        full: bool = False,
    ) -> None:
        # `diffrax.with_stepsize_controller_tols` stands in for what is to come by infinity.
        if rtol is not np.inf:
            as_nonnegative("rtol", rtol, "pass a tolerance such as 1e-8")
        if atol is not np.inf:
            as_float_array("atol", atol)
            check_nonnegative("atol", atol, "pass a tolerance such as 1e-8")
        check_callable("norm", norm, "pass a norm of PyTrees such as optimistix.rms_norm")
        # Not converted: there must be no JAX operation when memjax is imported.
        check_positive("kappa", kappa, "pass a share of the tolerance such as 0.01")
        check_scalar("kappa", kappa)
        check_flag("full", full)
        self.rtol, self.atol, self.norm, self.kappa, self.full = rtol, atol, norm, kappa, full

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> _NewtonState:
        if "correct" not in options:
            raise ValueError(
                "`RadauNewton` solves the stages of `RadauIIA5` only; pass "
                "optimistix.Newton(rtol=..., atol=...) elsewhere."
            )
        infinite = jnp.array(jnp.inf, jnp.result_type(*jax.tree.leaves(y)))
        return _NewtonState(infinite, infinite, jnp.array(0))

    def step(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Any, _NewtonState, Any]:
        residual, aux = fn(y, args)
        coordinates, start = options["coordinates"], options["start"]
        pack, unpack = jax.vmap(coordinates.pack), jax.vmap(coordinates.parts)
        update = unpack(options["correct"](pack(y), pack(residual)))
        new_y = jax.tree.map(jnp.subtract, y, update)
        join = coordinates.join

        def scaled(update: Array, start: Array, stage: Array) -> Array:
            # Updates of less than 10 roundings of the state count as converged: they fall no
            # further, and their ratio would pass for a divergence.
            size = jnp.maximum(jnp.abs(start), jnp.abs(start + stage))
            rounding = 10 * jnp.finfo(size.dtype).eps * size
            return update / jnp.maximum(self.atol + self.rtol * size, rounding / self.kappa)

        # The tolerances may be of any precision, and `atol` of the shape of the state.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            size = self.norm(jax.tree.map(scaled, join(update), start, join(new_y)))
        size = size.astype(state.size.dtype)
        return new_y, _NewtonState(size, state.size, state.step + 1), aux

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Array, optx.RESULTS]:
        # What is left if updates go on to fall at this rate: size (rate + rate^2 + ...).
        rate = state.size / state.previous_size
        left = state.size * rate / (1 - rate)
        second = state.step >= 2
        converged = (state.size <= self.kappa) | (second & (rate < 1) & (left <= self.kappa))
        stuck = (second & (rate >= 1)) | ~jnp.isfinite(state.size)
        diverged = (state.step >= 1) & ~converged & stuck
        result = optx.RESULTS.where(
            diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return converged | diverged, result

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}
