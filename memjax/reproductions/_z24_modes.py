"""The loss of one linear mode that learns another from white noise, in closed form.

Its curvature depends on the coordinates of the eigenvalue: three maps are compared, and Adam is run
in the coordinates of each.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Complex, Float

START, GOAL = 0.99 * np.exp(0.25j * np.pi), 0.99 * np.exp(0.01j * np.pi)
# Figure 7 names Adam, but its steps all have one size: both are run.
_RATE = 1e-3
OPTIMISERS: Mapping[str, optax.GradientTransformation] = {
    "Adam": optax.adam(_RATE),
    "signs": optax.sign_sgd(_RATE),
}


def mode_loss(
    value: Complex[Array, ""], goal: Complex[Array, ""], normalised: bool = False
) -> Float[Array, ""]:
    """Half of E|h - h*|^2 for one mode and its teacher under white noise."""
    size = lambda z: jnp.real(z * jnp.conj(z))
    scale = lambda z: jnp.sqrt(1 - size(z)) if normalised else jnp.ones(())
    own, wanted = (scale(z) ** 2 / (1 - size(z)) for z in (value, goal))
    shared = scale(value) * scale(goal) * jnp.real(1 / (1 - value * jnp.conj(goal)))
    return 0.5 * (own + wanted) - shared


def _optimal_scale(modulus: Any) -> Any:
    # A power, for numbers and for arrays that are traced.
    return (1 - modulus**2) / (modulus * (1 + modulus**2) ** 0.5)


def _turned(modulus: Array, phase: Array) -> Array:
    return jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))


# From the coordinates of the modulus and of the phase to the multiplier.
COORDINATES: Mapping[str, Callable[[Any, Any], Array]] = {
    "polar": lambda v, u: _turned(v, u),
    "exp": lambda v, u: _turned(jnp.exp(-jnp.exp(v)), jnp.exp(u)),
    "optimal": lambda v, u: _turned(jnp.tanh(v), _optimal_scale(jnp.tanh(v)) * u),
}
# Those in which one mode is trained: the modulus is a tanh in all of them.
TRAINED: Mapping[str, Callable[[Any, Any], Array]] = {
    "polar": lambda v, u: _turned(jnp.tanh(v), u),
    "exp": lambda v, u: _turned(jnp.tanh(v), jnp.exp(u)),
    "optimal": COORDINATES["optimal"],
}


def coordinates_of(name: str, modulus: float, phase: float, trained: bool = False) -> np.ndarray:
    """The coordinates at which a map, or the trained variant of it, gives a multiplier."""
    first = {"polar": modulus, "exp": np.log(-np.log(modulus))}.get(name, np.arctanh(modulus))
    second = {"polar": phase, "exp": np.log(phase)}.get(name, phase / _optimal_scale(modulus))
    return np.array([np.arctanh(modulus) if trained else first, second])


def curvatures(name: str, goal: complex, normalised: bool = True) -> Float[np.ndarray, "2 2"]:
    """The Hessian of the loss of one mode at the solution, in the coordinates of a map."""
    place = jnp.asarray(coordinates_of(name, abs(goal), float(np.angle(goal))))
    loss = lambda at: mode_loss(COORDINATES[name](*at), jnp.asarray(goal), normalised)
    return np.asarray(jax.hessian(loss)(place))


def num_minima(name: str, goal: complex) -> int:
    """How many solutions there are along the coordinate of the phase: over a turn of it, or half of
    one (exp), or within 5 pi of 0 (optimal)."""
    first = coordinates_of(name, abs(goal), float(np.angle(goal)))[0]
    ranges = {"polar": (-np.pi, np.pi), "exp": (-10.0, np.log(np.pi))}
    low, high = ranges.get(name, (-5 * np.pi, 5 * np.pi))
    places = jnp.linspace(low, high, 20_001)
    loss = lambda u: mode_loss(COORDINATES[name](first, u), jnp.asarray(goal), True)
    values = np.asarray(jax.vmap(loss)(places))
    inner = values[1:-1]
    return int(np.sum((inner < values[:-2]) & (inner <= values[2:])))


@functools.partial(jax.jit, static_argnames=("name", "optimiser", "updates"))
def train_mode(
    name: str, optimiser: str, updates: int
) -> tuple[Float[Array, "updates 2"], Float[Array, " updates"]]:
    """The coordinates before every update, from the start of Figure 7, and the losses there."""
    method = OPTIMISERS[optimiser]
    loss = lambda at: mode_loss(TRAINED[name](*at), jnp.asarray(GOAL))

    def update(carry: Any, _: None) -> tuple[Any, Any]:
        place, memory = carry
        value, slope = jax.value_and_grad(loss)(place)
        change, memory = method.update(slope, memory)
        return (optax.apply_updates(place, change), memory), (place, value)

    start = jnp.asarray(coordinates_of(name, abs(START), float(np.angle(START)), trained=True))
    return jax.lax.scan(update, (start, method.init(start)), length=updates)[1]
