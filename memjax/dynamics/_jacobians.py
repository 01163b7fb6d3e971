from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PyTree, Real, Shaped

from .._checks import as_plain, as_positive, check_integer
from .._text import readable
from .._typing import ArrayLike
from ._flow import advance, as_integrator, Integrator
from ._system import as_inputs, as_system, System


@readable()
class JacobianSpectra(eqx.Module):
    r"""Spectra of the recurrent Jacobian along a trajectory, from [`memjax.jacobians`][].

    The Jacobian is $\partial h_{k+1} / \partial h_k$ in discrete time, and $\partial f / \partial
    h$ at $(t_k, h_k, x_k)$ in continuous time.

    **Attributes:**

    - `hidden`: the hidden states before every step, with `times` first in every shape.
    - `eigenvalues`: of the Jacobians, in the order of their growth, from the fastest growing on,
        shape `(times, coordinates)`.
    - `singular_values`: of the Jacobians, from the largest on, shape `(times, coordinates)`.
    - `lag_singular_values`: of $\partial h_{k + \text{lag}} / \partial h_k$, from the largest on,
        shape `(times - lag + 1, coordinates)` in discrete time, one fewer in continuous time;
        `None` without `lag`. They are known to the rounding of the largest.
    - `continuous`: whether time is.
    """

    hidden: PyTree[Array]
    eigenvalues: Complex[Array, "times coordinates"]
    singular_values: Float[Array, "times coordinates"]
    lag_singular_values: Float[Array, "starts coordinates"] | None
    continuous: bool = eqx.field(static=True)


def jacobians(
    model: Any,
    xs: Real[ArrayLike, "times ..."],
    *,
    step: float = 1.0,
    hidden: PyTree[Shaped[ArrayLike, "..."]] | None = None,
    lag: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    max_steps: int = 4096,
) -> JacobianSpectra:
    r"""The spectra of the recurrent Jacobian along a trajectory under a sampled input.

    $$\frac{\partial h_{k+L}}{\partial h_k} = J_{k+L-1} \cdots J_{k+1} J_k, \qquad
      J_k = \frac{\partial h_{k+1}}{\partial h_k}.$$

    What the hidden state at $k + L$ still knows of that at $k$, and what a gradient carries back
    over $L$ steps, is multiplied by the singular values of this product: where all of them are
    small, gradients vanish, and where one is large, they explode. Works under `jax.jit` and
    `jax.vmap`.

    !!! Example

        ```python
        cell = eqx.nn.GRUCell(1, 16, key=key)
        spectra = mj.jacobians(cell, jax.random.normal(key, (200,)), lag=50)
        spectra.lag_singular_values[:, 0]  # the most that a gradient keeps over 50 steps
        ```

    **Arguments:**

    - `model`: as in [`memjax.fixed_points`][].
    - `xs`: the samples of the input, shape `(times, ...)`; one that takes no input needs them for
        their number only. In continuous time they are joined by straight lines.
    - `step`: the time between samples, in units of the model's clock. Without effect in discrete
        time.
    - `hidden`: the hidden state at the first sample. Defaults to that at rest; for a function it
        must be given.
    - `lag`: the number $L$ of steps over which Jacobians are multiplied, or `None` for no product.
        In continuous time the factors are integrated: derivatives of the hidden state at one sample
        with respect to that at the one before.
    - `solver`: a Diffrax solver for continuous time. Defaults to `diffrax.Dopri8()`.
    - `rtol`, `atol`: its tolerances.
    - `max_steps`: bound on its number of steps from one sample to the next.

    **Returns:**

    A [`memjax.JacobianSpectra`][], with NaN where the trajectory does not stay finite, or the
    integration took more than `max_steps`.

    **Raises:**

    `TypeError` for what is no recurrent model, and without float64; `ValueError` for samples or
    hidden states that do not match the model, for a lag of more steps than there are, and for
    numbers out of range.

    ??? cite "Reference"

        Pascanu, Mikolov, Bengio, *On the Difficulty of Training Recurrent Neural Networks*, ICML
        2013.
    """
    step = as_plain(as_positive, "step", step)
    integrator = as_integrator(solver, rtol, atol, max_steps)
    system = as_system(model, hidden)
    xs = as_inputs(system, xs)
    most = xs.shape[0] - 1 if system.continuous else xs.shape[0]
    if lag is not None:
        check_integer("lag", lag)
        if lag > most:
            raise ValueError(
                f"`lag` must be at most {most} for {xs.shape[0]} samples, got {lag}; pass more "
                "samples."
            )
    states, eigenvalues, sizes, products = _measure(
        system, integrator, xs, jnp.asarray(step, xs.dtype), lag
    )
    return JacobianSpectra(
        jax.vmap(system.back)(states), eigenvalues, sizes, products, system.continuous
    )


@eqx.filter_jit
def _measure(
    system: System, integrator: Integrator, xs: Array, length: Array, lag: int | None
) -> tuple[Array, Array, Array, Array | None]:
    size = system.flat.size
    frame = jnp.eye(size) if lag is not None else jnp.zeros((size, 0))
    continuous = system.continuous

    def move(vector: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        k, ends = now
        moved, factor = advance(system, integrator, k * length, length, vector, frame, ends)
        return moved, (vector, factor)

    ends = jnp.stack([xs[:-1], xs[1:]], axis=1) if continuous else xs[:, None]
    last, (states, factors) = jax.lax.scan(move, system.flat, (jnp.arange(ends.shape[0]), ends))
    if continuous:
        states = jnp.concatenate([states, last[None]])
    times = length * jnp.arange(xs.shape[0])
    slopes = jax.vmap(jax.jacfwd(system.rate, argnums=1))(times, states, xs)
    values = _eigenvalues(slopes)
    growth = jnp.real(values) if continuous else jnp.abs(values)
    values = jnp.take_along_axis(values, jnp.argsort(-growth, axis=1), axis=1)
    products = None if lag is None else _singular_values(_multiply(factors, lag))
    return states, values, _singular_values(slopes), products


def _multiply(
    factors: Float[Array, "steps size size"], lag: int
) -> Float[Array, "starts size size"]:
    """The products of `lag` neighbours, by doubling."""
    product, covered = factors, 0
    power, width = factors, 1
    while covered < lag:
        if lag & width:
            # Those that begin where the product so far ends.
            count = factors.shape[0] - covered - width + 1
            product = power[covered:] @ product[:count] if covered else power
            covered += width
        power = power[width:] @ power[:-width] if covered < lag else power
        width *= 2
    return product


def _eigenvalues(matrices: Float[Array, "times size size"]) -> Complex[Array, "times size"]:
    finite = jnp.all(jnp.isfinite(matrices), axis=(1, 2))
    # LAPACK may not return from what is not finite.
    values = jnp.linalg.eigvals(jnp.where(finite[:, None, None], matrices, 0.0))
    return jnp.where(finite[:, None], values, jnp.nan)


def _singular_values(matrices: Float[Array, "times size size"]) -> Float[Array, "times size"]:
    finite = jnp.all(jnp.isfinite(matrices), axis=(1, 2))
    sizes = jnp.linalg.svd(jnp.where(finite[:, None, None], matrices, 0.0), compute_uv=False)
    return jnp.where(finite[:, None], sizes, jnp.nan)
