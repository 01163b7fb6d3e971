"""Random linear systems with phases in a cone, students of them, and Adam on sampled batches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from . import _z24_identification as z24_identification
from ._z24_identification import make_blocks, student_response, Weights

LENGTH = 300
_BATCH, _PADDED = 128, 640


def make_teacher(modulus: float, seed: int, cone: float = np.pi) -> np.ndarray:
    """The response of a random linear system to an impulse, of so many lags."""
    return z24_identification.make_teacher(modulus, seed, cone, stream=31)


def make_student(
    kind: str,
    modulus: float,
    seed: int,
    width: int,
    heads: int = 1,
    cone: float = np.pi,
    start: float = 0.0,
) -> dict[str, np.ndarray]:
    """The weights at the start, as the public code draws them: moduli of blocks begin at 0, if no
    other start is given, those of diagonal students at that of the teacher."""
    rng = np.random.default_rng([seed, 37])
    if kind == "RNN":
        weights = make_blocks(rng, width, heads, start, cone)
    else:
        moduli = np.sqrt(rng.uniform(modulus**2, 1, width))
        phases = np.mod(rng.uniform(-cone, cone, width), 2 * np.pi)
        weights = {"drive": rng.normal(size=(2, width)), "readout": rng.normal(size=(2, width))}
        if kind == "S4":
            # Of the two starts in the public code that with steps of 1: from the other one these
            # systems are not learnt, and the effective learning rates are not the published ones.
            weights["step"] = np.full(width, np.log(np.expm1(1.0)))
            weights["modes"] = np.stack([np.log(moduli), phases])
        else:
            weights["drive"] /= np.sqrt(width)
            if kind == "LRU":
                weights["modes"] = np.stack([np.log(-np.log(moduli)), np.log(phases)])
                weights["log_scale"] = 0.5 * np.log(1 - moduli**2)
            else:
                weights["modes"] = moduli * np.stack([np.cos(phases), np.sin(phases)])
    weights["skip"] = rng.normal(size=())
    return {name: value.astype(np.float32) for name, value in weights.items()}


def response(weights: Weights) -> Float[Array, " lags"]:
    """The response of a student to an impulse; one with steps (S4) is a complex diagonal one."""
    if "step" in weights:
        step = jax.nn.softplus(weights["step"])
        values = jnp.exp(step * jax.lax.complex(*weights["modes"]))
        weights = {
            "modes": jnp.stack([values.real, values.imag]),
            "drive": step * weights["drive"],
            "readout": weights["readout"],
            "skip": weights["skip"],
        }
    return student_response(weights)


def sampled_loss(
    weights: Weights, teacher: Float[Array, " lags"], inputs: Float[Array, "batch lags"]
) -> Float[Array, ""]:
    """Half the mean squared error over a batch of sequences.

    The error at a time is the product of earlier inputs with the difference of responses, so
    that nothing is unrolled in time.
    """
    apart = jnp.fft.rfft(response(weights) - teacher, _PADDED)
    errors = jnp.fft.irfft(jnp.fft.rfft(inputs, _PADDED) * apart, _PADDED)[:, :LENGTH]
    return 0.5 * jnp.mean(errors**2)


@functools.partial(jax.jit, static_argnames=("updates", "parts", "cosine"))
def train_sampled(
    weights: Weights,
    teacher: Array,
    rate: Array,
    key: PRNGKeyArray,
    updates: int,
    parts: int = 1,
    cosine: bool = False,
) -> tuple[Weights, Array, Weights]:
    """Train on batches of 128 sequences.

    Returns the last weights, the mean loss in each of the parts of the training, and after each
    of them the effective learning rates: by how much Adam would move every weight down a slope
    of 1.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, updates) if cosine else rate)

    def update(carry: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        weights, memory = carry
        inputs = jax.random.normal(key, (_BATCH, LENGTH), teacher.dtype)
        loss, slopes = jax.value_and_grad(sampled_loss)(weights, teacher, inputs)
        changes, memory = optimiser.update(slopes, memory)
        return (optax.apply_updates(weights, changes), memory), loss

    def part(carry: Any, keys: Array) -> tuple[Any, Any]:
        carry, losses = jax.lax.scan(update, carry, keys)
        changes, _ = optimiser.update(jax.tree.map(jnp.ones_like, carry[0]), carry[1])
        return carry, (jnp.mean(losses), jax.tree.map(jnp.negative, changes))

    keys = jax.random.split(key, (parts, updates // parts))
    (weights, _), (losses, rates) = jax.lax.scan(part, (weights, optimiser.init(weights)), keys)
    return weights, losses, rates
