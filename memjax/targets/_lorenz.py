from typing import Any, ClassVar, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import (
    as_key,
    as_nonnegative,
    as_number,
    as_plain,
    as_positive,
    as_tolerance,
    check_choice,
    check_integer,
    valid_or_nan,
)
from .._paths import as_samples, check_resolved, integrating, resolved
from .._typing import ArrayLike, ScalarLike
from ._target import AbstractTarget, Memory


class Lorenz96(AbstractTarget):
    r"""The two-level Lorenz-96 system, driven by its forcing: a chaotic, nonlinear target.

    $$\dot X_k = -X_{k-1} (X_{k-2} - X_{k+1}) - X_k + F + x_t - \frac{hc}{b} \sum_j Y_{j,k},
    \qquad \dot Y_{j,k} = -cb\, Y_{j+1,k} (Y_{j+2,k} - Y_{j-1,k}) - c\, Y_{j,k}
    + \frac{hc}{b} X_k$$

    The input path $x_t$ is the forcing on top of the constant $F$; the slow units are a ring of
    $K$, the fast units one ring of $KJ$ that runs on from one slow unit to the next. The output
    is one slow unit or the subgrid term that acts on it, less `mean`, over `std`. The system
    starts at `ts[0]` from `initial`, a state on the attractor.

    Since the system has a state of its own before the input begins, and is chaotic, this is a
    functional of the input for a fixed initial state only; over more than some 20 units of time
    outputs depend on rounding, and only their statistics are meaningful.

    **Arguments:**

    - `slow`: the number $K \ge 4$ of slow units.
    - `fast`: the number $J \ge 1$ of fast units to each slow one.
    - `key`: a PRNG key for the state from which the spin-up starts.
    - `forcing`: the constant part $F$ of the forcing.
    - `coupling`: the coupling $h$.
    - `time_ratio`: the ratio $c > 0$ of the time scales.
    - `space_ratio`: the ratio $b > 0$ of the amplitudes.
    - `output`: `"slow"` for $X_k$, or `"subgrid"` for $-\frac{hc}{b} \sum_j Y_{j,k}$.
    - `unit`: the index $k$ of the unit that is given out, from 0.
    - `mean`, `std`: subtracted from the output, and what the rest is divided by.
        `normalised` measures them.
    - `spin_up`: for how long the system runs under constant forcing before `ts[0]`.
    - `rtol`, `atol`: tolerances of the integration.
    - `max_steps`: the bound on the number of its steps, beyond which it is an error.

    **Raises:** `ValueError` for too few units, a unit that does not exist, an unknown output,
    and parameters out of range.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5; Lorenz, *Predictability: a problem partly
        solved*, 1996 (theory, section 3).
    """

    linear: ClassVar[bool] = False
    memory: ClassVar[Memory] = "unknown"

    initial: tuple[Float[Array, " slow"], Float[Array, "slow fast"]]
    forcing: Float[Array, ""]
    coupling: Float[Array, ""]
    time_ratio: Float[Array, ""]
    space_ratio: Float[Array, ""]
    mean: Float[Array, ""]
    std: Float[Array, ""]
    output: Literal["slow", "subgrid"] = eqx.field(static=True)
    unit: int = eqx.field(static=True)
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        slow: int = 8,
        fast: int = 8,
        *,
        key: PRNGKeyArray,
        forcing: Real[ScalarLike, ""] = 10.0,
        coupling: Real[ScalarLike, ""] = 1.0,
        time_ratio: Real[ScalarLike, ""] = 10.0,
        space_ratio: Real[ScalarLike, ""] = 10.0,
        output: Literal["slow", "subgrid"] = "slow",
        unit: int = 0,
        mean: Real[ScalarLike, ""] = 0.0,
        std: Real[ScalarLike, ""] = 1.0,
        spin_up: float = 10.0,
        rtol: float = 1e-8,
        atol: float = 1e-8,
        max_steps: int = 2**20,
    ) -> None:
        check_integer("slow", slow, 4)
        check_integer("fast", fast)
        check_integer("unit", unit, 0)
        if unit >= slow:
            raise ValueError(
                f"`unit` must be below the number of slow units, got {unit}; "
                f"pass an index from 0 to {slow - 1}."
            )
        check_choice("output", output, ("slow", "subgrid"))
        if slow * fast < 4:
            raise ValueError(
                f"`fast` must give a ring of at least 4 units, got {fast} for each of {slow}; "
                "pass more."
            )
        spin_up = as_plain(as_nonnegative, "spin_up", spin_up)

        self.forcing = as_number("forcing", forcing)
        self.coupling = as_number("coupling", coupling)
        self.time_ratio = as_positive("time_ratio", time_ratio)
        self.space_ratio = as_positive("space_ratio", space_ratio)
        self.mean = as_number("mean", mean)
        self.std = as_positive("std", std)
        self.output = output
        self.unit = unit
        self.rtol = as_plain(as_tolerance, "rtol", rtol)
        self.atol = as_plain(as_positive, "atol", atol)
        self.max_steps = check_integer("max_steps", max_steps)
        slow_key, fast_key = jax.random.split(as_key("key", key))
        # From equal units the ring would stay equal for ever.
        start = (
            self.forcing * jax.random.uniform(slow_key, (slow,)),
            0.1 * jax.random.normal(fast_key, (slow, fast)),
        )
        self.initial = start
        if spin_up > 0:
            states = self.states(jnp.asarray([0.0, spin_up]), jnp.zeros(2))
            self.initial = jax.tree.map(lambda leaf: leaf[-1], states)

    def vector_field(
        self,
        state: tuple[Float[Array, " slow"], Float[Array, "slow fast"]],
        x: Float[Array, ""],
    ) -> tuple[Float[Array, " slow"], Float[Array, "slow fast"]]:
        """The time derivative of slow and fast units under the input `x`."""
        return _vector_field(self._parameters(), state, x)

    def _parameters(self) -> tuple[Array, ...]:
        return self.forcing, self.coupling, self.time_ratio, self.space_ratio

    def states(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
    ) -> tuple[Float[Array, "times slow"], Float[Array, "times slow fast"]]:
        """All slow and fast units at the times of a sampled input.

        **Arguments:**

        - `ts`: Increasing times, shape `(times,)`.
        - `xs`: The samples of the input, shape `(times,)`, between which it runs linearly.

        **Returns:**

        The slow units, shape `(times, slow)`, and the fast ones, `(times, slow, fast)`.
        """
        ts, xs = as_samples(ts, xs, inputs=None)
        check_resolved(ts)
        tolerances = jnp.asarray(self.rtol), jnp.asarray(self.atol)
        parameters = self._parameters()
        with integrating(self.max_steps):
            states = _integrate(parameters, self.initial, ts, xs, tolerances, self.max_steps)
        return jax.tree.map(lambda state: valid_or_nan(state, resolved(ts)), states)

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
    ) -> Float[Array, " times"]:
        slow, fast = self.states(ts, xs)
        if self.output == "slow":
            output = slow[:, self.unit]
        else:
            exchange = self.coupling * self.time_ratio / self.space_ratio
            output = -exchange * jnp.sum(fast[:, self.unit], axis=-1)
        return (output - self.mean) / self.std

    def normalised(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
    ) -> "Lorenz96":
        """The same target with the mean and standard deviation of its output on one input.

        **Arguments:**

        - `ts`, `xs`: As in `response`; long enough for the statistics to mean something.

        **Returns:**

        A target whose response to that input has mean 0 and standard deviation 1.
        """
        output = self.response(ts, xs) * self.std + self.mean
        moments = (jnp.mean(output), jnp.std(output))
        return eqx.tree_at(lambda target: (target.mean, target.std), self, moments)


def _vector_field(
    parameters: tuple[Array, ...], state: tuple[Array, Array], x: Array
) -> tuple[Array, Array]:
    forcing, coupling, time_ratio, space_ratio = parameters
    slow, fast = state
    exchange = coupling * time_ratio / space_ratio
    slow_dot = (
        jnp.roll(slow, 1) * (jnp.roll(slow, -1) - jnp.roll(slow, 2))
        - slow
        + (forcing + x)
        - exchange * jnp.sum(fast, axis=1)
    )
    # One ring over all slow units: after the last fast unit of one comes the first of the next.
    ring = fast.ravel()
    advection = jnp.roll(ring, -1) * (jnp.roll(ring, 1) - jnp.roll(ring, -2))
    fast_dot = (
        time_ratio * (space_ratio * advection.reshape(fast.shape) - fast) + exchange * slow[:, None]
    )
    return slow_dot, fast_dot


@eqx.filter_jit
def _integrate(
    parameters: tuple[Array, ...],
    initial: tuple[Array, Array],
    ts: Float[Array, " times"],
    xs: Float[Array, " times"],
    tolerances: tuple[Array, Array],
    max_steps: int,
) -> tuple[Float[Array, "times slow"], Float[Array, "times slow fast"]]:
    path = diffrax.LinearInterpolation(ts, xs)

    def vector_field(t: Any, state: Any, args: Any) -> Any:
        return _vector_field(parameters, state, path.evaluate(t))

    # An explicit method of high order: the fast units never settle, so that their time has to be
    # followed anyway.
    # A kink of the input costs an adaptive method more steps, but no accuracy that its error
    # estimate does not see; so steps may pass over samples.
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        diffrax.Dopri8(),
        t0=ts[0],
        t1=ts[-1],
        dt0=None,
        y0=initial,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=diffrax.PIDController(*tolerances),
        max_steps=max_steps,
    )
    assert solution.ys is not None
    return solution.ys
