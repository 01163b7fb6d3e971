"""Why a model, run with a step, says nothing of lags: it is unstable, or Euler's method is."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..losses import coordinates, weights
from ..models import hidden_states
from ._runner import Runner

# What counts as unstable: outputs that grow so much within half of a run, and modes that decay but
# are amplified so much by Euler's method over the lags. Linearised up to so many states.
_GROWTH, _SWOLLEN, _MODES = 10.0, 1.1, 1000


def find_instability(
    model: Any, step: float, inputs: int | None, most: int, scale: float, key: PRNGKeyArray
) -> str | None:
    """Why signals of the model, run with this step, say nothing; `None` if they do.

    In an unstable recursion signals grow with the lag, and the easiest lag is the longest that
    was looked at.
    """
    readout_key, input_key, _ = jax.random.split(key, 3)
    runner = Runner.make(model, step, inputs, readout_key)
    shape = () if runner.inputs is None else (runner.inputs,)
    dtype = coordinates(weights(runner.model))[0].dtype
    times = max(2 * most + 2, 64)
    xs = scale * jax.random.normal(input_key, (2, times, *shape), dtype)
    # A cell is a recursion of its own, and no Euler step of a model in continuous time.
    if runner.method == "residual" and runner.model is model:
        found = _find_euler_growth(runner, xs[0], most)
        if found is not None:
            return found
    ys = np.abs(np.asarray(eqx.filter_jit(_run)(runner, xs)))
    if not np.all(np.isfinite(ys)):
        return (
            f"The outputs of the model are not finite within {times} steps of white noise: make "
            "it stable, or take a smaller `step` if it is discretised."
        )
    # What arrives with a delay makes outputs grow once; in an unstable model they always do.
    sizes = [float(np.max(part)) for part in np.array_split(ys[:, times // 2 :], 4, axis=1)]
    if not all(late > 2 * early for early, late in itertools.pairwise(sizes)):
        return None
    if not (sizes[0] > 0 and sizes[-1] > _GROWTH * sizes[0]):
        return None
    return (
        f"The model is unstable: under white noise its outputs grow {sizes[-1] / sizes[0]:.2g}-"
        f"fold from step {times // 2} to {times}. Make it stable, or take a smaller `step` if it "
        "is discretised."
    )


def _run(runner: Runner, xs: Array) -> Array:
    return jax.vmap(runner)(xs)


def _find_euler_growth(runner: Runner, xs: Array, most: int) -> str | None:
    """Whether Euler's method lets modes grow that decay in the model, to first order around
    states of rest and under way."""
    model, step = runner.model, runner.step
    rest = model.initial_hidden()
    flat, back = coordinates(rest)

    def slopes(hidden: Array, x: Array) -> Array:
        field = lambda h: coordinates(model.vector_field(jnp.zeros(()), back(h), x))[0]
        return jax.jacfwd(field)(hidden)

    if flat.size > _MODES:
        return None
    index = np.unique(np.linspace(0, xs.shape[0] - 1, 4).astype(int))
    hidden = eqx.filter_jit(_follow_euler)(runner, xs)[index]
    matrices = np.concatenate(
        [
            np.asarray(slopes(flat, jnp.zeros_like(xs[0])))[None],
            np.asarray(jax.vmap(slopes)(hidden, xs[index])),
        ]
    )
    # States that are no numbers any more are for the outputs to tell.
    matrices = np.where(np.all(np.isfinite(matrices), axis=(1, 2), keepdims=True), matrices, 0)
    rates = np.linalg.eigvals(matrices.astype(float))
    multipliers = np.abs(1 + step * rates)
    decaying = rates.real <= 1e-9 * np.abs(rates)
    growing = decaying & (most * np.log(np.maximum(multipliers, 1)) > math.log(_SWOLLEN))
    # A nonlinear model may pass through states in which it is unstable, and be stable in the long
    # run.
    if not (np.any(growing[0]) or np.all(np.any(growing[1:], axis=1))):
        return None
    worst = np.argmax(np.where(growing, multipliers, 0))
    rate, multiplier = rates.ravel()[worst], multipliers.ravel()[worst]
    longest = np.min(-2 * rates.real[growing] / np.abs(rates[growing]) ** 2)
    cure = f"a `step` below {longest:.2g}" if longest > 0 else "a far smaller `step`"
    return (
        f"Euler's method with steps of {step:g} is unstable: a mode of decay rate {-rate.real:.2g} "
        f"and frequency {abs(rate.imag):.2g} is multiplied by {multiplier:.3g} in every step. Take "
        f"{cure}, or give the model an exact `scan`."
    )


def _follow_euler(runner: Runner, xs: Array) -> Array:
    """The hidden states of Euler's method, in real coordinates."""
    model = runner.model
    states = hidden_states(model, runner.step * np.arange(xs.shape[0]), xs, model.initial_hidden())
    return jax.vmap(lambda hidden: coordinates(hidden)[0])(states)
