"""Root finders for the implicit stages of stiff training flows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from equinox.internal import ω
from jaxtyping import Array, PyTree, Scalar


class _NewtonState(eqx.Module):
    size: Scalar
    previous_size: Scalar
    result: optx.RESULTS
    step: Scalar


class StageNewton(optx.AbstractRootFinder):
    """Newton's method for the stages of implicit Runge--Kutta methods.

    It differs from `optimistix.Newton` in when it stops: as soon as the last update is small
    against the tolerance, be it the first. The test of Hairer & Wanner on the ratio of two
    updates, which `optimistix.Newton(cauchy_termination=False)` and `diffrax.VeryChord` apply
    from the second update on, calls a divergence what is the rounding noise of a stage that
    the first update had solved already; on plateaus, where stages are almost linear, it then
    refuses steps of any length.

    **Arguments:**

    - `rtol`, `atol`: the tolerance, relative to and beside the unknown; `atol` may be an array
        of the unknown's shape.
    - `norm`: the norm of an update in units of the tolerance.
    - `kappa`: the share of the tolerance at which to stop.
    - `linear_solver`: a Lineax solver.

    ??? cite "Reference"

        Hairer, Wanner, *Solving Ordinary Differential Equations II*, Section IV.8.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    kappa: float = 1e-2
    linear_solver: lx.AbstractLinearSolver = lx.AutoLinearSolver(well_posed=None)

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> _NewtonState:
        dtype = jax.tree.leaves(f_struct)[0].dtype
        infinite = jnp.array(jnp.inf, dtype)
        return _NewtonState(infinite, infinite, optx.RESULTS.successful, jnp.array(0))

    def step(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Any, _NewtonState, Any]:
        value, linear, aux = jax.linearize(lambda y: fn(y, args), y, has_aux=True)
        jacobian = lx.FunctionLinearOperator(linear, jax.eval_shape(lambda: y), tags=tags)
        solution = lx.linear_solve(jacobian, value, self.linear_solver, throw=False)
        new_y = (y**ω - solution.value**ω).ω
        scale = (self.atol + self.rtol * ω(new_y).call(jnp.abs)).ω
        size = self.norm((solution.value**ω / scale**ω).ω)
        result = optx.RESULTS.promote(solution.result)
        return new_y, _NewtonState(size, state.size, result, state.step + 1), aux

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Array, optx.RESULTS]:
        # What is left if updates go on to fall at this rate: size (rate + rate^2 + ...).
        rate = state.size / state.previous_size
        contracting = (state.step >= 2) & (rate < 1)
        converged = state.size <= self.kappa
        converged = converged | (contracting & (state.size * rate / (1 - rate) <= self.kappa))
        # Not 1: of two updates that are rounding noise either may be the larger.
        growing = (state.step >= 2) & (rate > 2)
        diverged = (state.step >= 1) & ~converged & (growing | ~jnp.isfinite(state.size))
        result = optx.RESULTS.where(
            diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        failed = state.result != optx.RESULTS.successful
        result = optx.RESULTS.where(failed, state.result, result)
        return converged | diverged | failed, result

    def postprocess(
        self,
        fn: Any,
        y: Any,
        aux: Any,
        args: Any,
        options: Any,
        state: _NewtonState,
        tags: Any,
        result: optx.RESULTS,
    ) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}
