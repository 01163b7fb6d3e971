from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real, Shaped

from .._checks import as_key, as_plain, as_positive, check_integer
from .._text import readable
from .._typing import ArrayLike
from ._flow import advance, as_integrator, Integrator
from ._system import as_input, as_inputs, as_system, System


@readable()
class LyapunovSpectrum(eqx.Module):
    r"""Lyapunov exponents along a trajectory, from [`memjax.lyapunov_spectrum`][].

    **Attributes:**

    - `exponents`: from the largest on, shape `(exponents,)`, in units of one over the model's
        clock, or a step. Minus infinity where a direction is lost altogether, and NaN where the
        trajectory does not stay finite or the integration took more than `max_steps`.
    - `standard_errors`: of the exponents, as averages along a trajectory of this length, shape
        `(exponents,)`: from the means of `batches` and their correlation (Geyer's initial positive
        sequence), where it makes them larger. Where growth in one batch is paid back in the next,
        as along the flow, they are several times too large. They know nothing of the error of the
        integration, and nothing of another attractor.
    - `batches`: the exponents in each part of the trajectory, shape `(batches, exponents)`. A
        trend says that the transient was too short.
    - `duration`: the length of the trajectory without its transient, in units of the model's
        clock, or in steps.
    - `hidden`: the last hidden state, from which a longer run can go on.
    - `size`: the number of real coordinates of the hidden state.
    """

    exponents: Float[Array, " exponents"]
    standard_errors: Float[Array, " exponents"]
    batches: Float[Array, "batches exponents"]
    duration: Float[Array, ""]
    hidden: PyTree[Array]
    size: int = eqx.field(static=True)

    @property
    def total(self) -> Float[Array, ""]:
        """The sum of the exponents: of all of them the rate at which volumes grow."""
        return jnp.sum(self.exponents)

    @property
    def entropy(self) -> Float[Array, ""]:
        """The sum of the positive exponents: a bound of the entropy rate, in nats over the units of
        time (Ruelle), and by Pesin's formula often that rate."""
        return jnp.sum(jnp.maximum(self.exponents, 0))

    @property
    def dimension(self) -> Float[Array, ""]:
        """The dimension of Kaplan and Yorke. NaN if the exponents at hand are too few to tell it:
        their sum is not below 0."""
        sums = jnp.cumsum(self.exponents)
        count = jnp.sum(jnp.cumprod(sums >= 0))
        last = jnp.where(count > 0, sums[jnp.maximum(count - 1, 0)], 0.0)
        next_one = self.exponents[jnp.minimum(count, self.exponents.size - 1)]
        full = float(self.size) if self.exponents.size == self.size else jnp.nan
        found = jnp.where(count < self.exponents.size, count + last / jnp.abs(next_one), full)
        return jnp.where(jnp.all(jnp.isnan(self.exponents)), jnp.nan, found)

    @property
    def memory_time(self) -> Float[Array, ""]:
        r"""$-1 / \lambda_1$: the time in which the difference of two hidden states under the same
        input decays by the factor $e$. Infinite where it does not decay."""
        largest = self.exponents[0]
        return jnp.where(largest >= 0, jnp.inf, -1 / largest)


def lyapunov_spectrum(
    model: Any,
    x: Real[ArrayLike, "..."] = 0.0,
    *,
    key: PRNGKeyArray,
    xs: Real[ArrayLike, "times ..."] | None = None,
    hidden: PyTree[Shaped[ArrayLike, "..."]] | None = None,
    num_exponents: int | None = None,
    num_intervals: int | None = None,
    transient: int = 1000,
    interval: float | None = None,
    num_batches: int = 32,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    max_steps: int = 4096,
) -> LyapunovSpectrum:
    r"""The Lyapunov exponents of a recurrent model, or of any map or vector field, with error bars.

    $$\lambda_i = \lim_{t \to \infty} \frac{1}{t} \log \sigma_i(t), \qquad
      \sigma_i(t) \text{ the singular values of } \frac{\partial h_t}{\partial h_0},$$

    by the method of Benettin: directions at the hidden state are moved on with it and made
    orthonormal again by a QR decomposition after every interval; the exponents are the averages of
    $\log |R_{ii}|$ over time. A first exponent below 0 says that the model forgets its initial
    state under this input, one above 0 that it is chaotic. In discrete time derivatives are exact.
    In continuous time the variational equation is integrated together with the state by Diffrax,
    to `rtol` and `atol`. The whole trajectory is one `jax.lax.scan`, under `jax.jit` and
    `jax.vmap` as well.

    A model starts from rest by default. Without input and biases that is a fixed point in most
    models, and the exponents are those of this fixed point, even if it is unstable: pass `hidden`
    for those of an attractor.

    !!! Example

        ```python
        lorenz = lambda t, y, args: jnp.stack(
            [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]
        )
        found = mj.lyapunov_spectrum(lorenz, hidden=jnp.ones(3), key=key)
        found.exponents, found.standard_errors  # about 0.906, 0, -14.572
        ```

    **Arguments:**

    - `model`: as in [`memjax.fixed_points`][]; a vector field may depend on time, which starts at
        0.
    - `x`: a constant input, a number or of shape `(inputs,)`.
    - `key`: the PRNG key for the first directions.
    - `xs`: a sampled input in place of `x`, shape `(times, ...)`: one sample a step in discrete
        time; in continuous time samples that are `interval` apart, joined by straight lines. The
        exponents are then those of the model under this input (conditional ones).
    - `hidden`: the hidden state to start from. Defaults to that at rest; for a function it must be
        given.
    - `num_exponents`: how many, from the largest on. Defaults to all.
    - `num_intervals`: how many intervals the averages are over. Defaults to 10 000, or what `xs`
        is enough for.
    - `transient`: how many intervals before these are left out, in which the state comes to the
        attractor and the directions to theirs.
    - `interval`: the time from one QR decomposition to the next, over which no direction should
        be lost to rounding beside another; in discrete time a number of steps. Defaults to 0.1, or
        1 step.
    - `num_batches`: how many parts of the trajectory the errors are from. Correlation over a
        quarter of the trajectory or more is not seen.
    - `solver`: a Diffrax solver. Defaults to `diffrax.Dopri8()`.
    - `rtol`, `atol`: its tolerances in continuous time, for the state and the directions.
    - `max_steps`: bound on its number of steps in an interval.

    **Returns:**

    A [`memjax.LyapunovSpectrum`][].

    **Raises:**

    `TypeError` for what is no recurrent model, and without float64: exponents are averages of
    many small numbers. `ValueError` for inputs or hidden states that do not match the model, for
    numbers out of range, and for fewer intervals than batches.

    ??? cite "Reference"

        Benettin, Galgani, Giorgilli, Strelcyn, *Lyapunov Characteristic Exponents for Smooth
        Dynamical Systems and for Hamiltonian Systems*, Meccanica 15, 1980; Pikovsky, Politi,
        *Lyapunov Exponents*, 2016, Chapters 2 and 3; errors: Geyer, *Practical Markov Chain Monte
        Carlo*, Statistical Science 7, 1992, Section 3.3; of recurrent networks: Engelken, Wolf,
        Abbott, *Lyapunov Spectra of Chaotic Recurrent Neural Networks*, Physical Review Research
        5, 2023.
    """
    key = as_key("key", key)
    check_integer("transient", transient, 0)
    check_integer("num_batches", num_batches, 2)
    integrator = as_integrator(solver, rtol, atol, max_steps)
    system = as_system(model, hidden)
    size = system.flat.size
    count = (
        size if num_exponents is None else check_integer("num_exponents", num_exponents, 1, size)
    )
    interval = _as_interval(system, interval)
    # Steps for each sample: in continuous time an interval has a sample at both of its ends.
    each, both = (1, 1) if system.continuous else (int(interval), 0)
    if xs is None:
        x = as_input(system, x)
        number = 10_000 if num_intervals is None else check_integer("num_intervals", num_intervals)
    else:
        x = as_inputs(system, xs)
        number = (x.shape[0] - both) // each - transient
        if num_intervals is not None:
            check_integer("num_intervals", num_intervals)
            if num_intervals > number:
                raise ValueError(
                    f"`num_intervals` must be at most {max(number, 0)} for {x.shape[0]} samples "
                    f"and a transient of {transient} intervals, got {num_intervals}; pass more "
                    "samples."
                )
            number = num_intervals
    if number < num_batches:
        raise ValueError(
            f"`num_batches` must be at most the number of intervals, {max(number, 0)} after the "
            f"transient, got {num_batches}; lower it, or follow the model for longer."
        )
    length = jnp.asarray(interval, system.flat.dtype)
    frame = jnp.linalg.qr(jax.random.normal(key, (size, count), system.flat.dtype))[0]
    rates, last = _follow(
        system, integrator, x, frame, transient + number, length, each, xs is not None
    )
    means, errors, batches = _average(rates[transient:], num_batches)
    return LyapunovSpectrum(means, errors, batches, number * length, system.back(last), size)


def _as_interval(system: System, interval: Any) -> float:
    if system.continuous:
        return 0.1 if interval is None else as_plain(as_positive, "interval", interval)
    if interval is None:
        return 1
    number = as_plain(as_positive, "interval", interval)
    if number != int(number):
        raise ValueError(
            f"`interval` must be a number of steps in discrete time, got {interval}; pass an "
            "integer."
        )
    return check_integer("interval", int(number))


@eqx.filter_jit
def _follow(
    system: System,
    integrator: Integrator,
    x: Float[Array, "..."],
    frame: Float[Array, "coordinates exponents"],
    number: int,
    length: Float[Array, ""],
    each: int,
    sampled: bool,
) -> tuple[Float[Array, "intervals exponents"], Float[Array, " coordinates"]]:
    """The growth rates of the directions in every interval, and the last state."""

    def move(pair: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        if not sampled:
            samples = jnp.broadcast_to(x, (each, *x.shape))
        else:
            width = each + 1 if system.continuous else each
            samples = jax.lax.dynamic_slice_in_dim(x, k * each, width)
        vector, moved = advance(system, integrator, k * length, length, *pair, samples)
        directions, triangle = jnp.linalg.qr(moved)
        return (vector, directions), jnp.log(jnp.abs(jnp.diagonal(triangle))) / length

    (last, _), rates = jax.lax.scan(move, (system.flat, frame), jnp.arange(number))
    return rates, last


def _average(
    rates: Float[Array, "intervals exponents"], num_batches: int
) -> tuple[Array, Array, Array]:
    """Means from the largest on, their standard errors, and the means of batches."""
    means = jnp.mean(rates, axis=0)
    length = rates.shape[0] // num_batches
    # The last ones: what is left of the transient is at the beginning.
    used = rates[rates.shape[0] - length * num_batches :]
    batches = jnp.mean(used.reshape(num_batches, length, -1), axis=1)
    errors = jnp.sqrt(_variance(batches) / num_batches)
    order = jnp.argsort(-means)
    return means[order], errors[order], batches[:, order]


def _variance(batches: Float[Array, "batches exponents"]) -> Float[Array, " exponents"]:
    """That of the mean of correlated batches, times their number."""
    number = batches.shape[0]
    apart = batches - jnp.mean(batches, axis=0)
    lagged = lambda lag: jnp.sum(apart[lag:] * apart[: number - lag], axis=0) / (number - 1)
    covariances = jnp.stack([lagged(lag) for lag in range(2 * max(number // 4, 1))])
    # Geyer's initial positive sequence: pairs of neighbouring lags, until one is noise.
    pairs = covariances[::2] + covariances[1::2]
    kept = jnp.cumprod(pairs > 0, axis=0)
    summed = 2 * jnp.sum(pairs * kept, axis=0) - covariances[0]
    # Growth in one batch is often paid back in the next, and the mean is then better known than
    # this says. In so few batches chance looks the same, so nothing is taken off for it.
    return jnp.maximum(summed, covariances[0])
