"""Models of growing width, each trained until it is twice as good as the one before.

Narrower models are padded with zeros to the width of the widest, so that one compiled program
serves all of them: compiling takes longer than training.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..memory import stability_radius
from ..models import trainable
from ..numerics import compiled
from ._training import train
from ._w24_protocol import advance, FEWEST_EPOCHS, OPTIMISER, PENALTY, residual_outputs, Schedule

_SHARE = 0.5


class ResidualRNN(eqx.Module):
    r"""The RNN of the public code, $h_{k+1} = h_k + \sigma(u x_k + b - P^\top D P h_k)$.

    $D$ holds the rates $\varphi(v)$, $P$ is any matrix, or none for the diagonal model, and the
    outputs are $c \cdot h_{k+1} + d$. All arrays are trained: NumPy's at first, then those of all
    runs together.
    """

    free_rates: Float[Array | np.ndarray, "*runs width"]
    turn: Float[Array | np.ndarray, "*runs width width"] | None
    input: Float[Array | np.ndarray, "*runs width"]
    bias: Float[Array | np.ndarray, "*runs width"]
    readout_weights: Float[Array | np.ndarray, "*runs width"]
    offset: Float[Array | np.ndarray, "*runs 1"]
    rate_map: Callable[[Any], Array] = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        parametrisation: str,
        activation: Callable[[Array], Array],
        width: int,
        rng: np.random.Generator,
    ) -> "ResidualRNN":
        """A random model with NumPy arrays: vanilla, diagonal, or with softplus rates and P."""
        return cls(
            normal(rng, width),
            None if parametrisation == "diagonal" else orthogonal(rng, width),
            uniform(rng, 1, width),
            uniform(rng, 1, width),
            uniform(rng, width, width),
            uniform(rng, width, 1),
            jax.nn.softplus if parametrisation == "softplus" else jax.nn.relu,
            activation,
        )

    def outputs(self, xs: Float[Array, "batch times"]) -> Float[Array, "batch times"]:
        """The outputs on some inputs, from rest; each is read after its input has acted."""
        return residual_outputs(self, self.rate_map(self.free_rates), xs)

    def penalty(self) -> Float[Array, ""]:
        """What training pays for a slowest rate below 1; rates of 0 are not counted."""
        rates = self.rate_map(self.free_rates)
        slowest = jnp.min(jnp.where(rates > 0, rates, jnp.inf))
        return PENALTY * jax.nn.relu(1 - slowest)

    def settled(self) -> "ResidualRNN":
        """As it is perturbed: direct rates are no longer kept from being negative."""
        if self.rate_map is not jax.nn.relu:
            return self
        rates = self.rate_map(self.free_rates)
        return dataclasses.replace(self, free_rates=rates, rate_map=same)


def same(rates: Array) -> Array:
    """The map of rates that may become negative."""
    return rates


class Staged(eqx.Module):
    """Models of one width after training, one a run.

    **Attributes:**

    - `models`: those of the smallest error, every array with the axis of the runs.
    - `masks`: 1 for every weight of a model and 0 for what pads it, in a tree of its structure.
    - `errors`: their errors, shape `(runs,)`.
    - `epochs`: how many epochs each was trained, shape `(runs,)`.
    - `reached`: whether the error is below the threshold, shape `(runs,)`.
    - `diverged`: whether a loss or a gradient was not finite, shape `(runs,)`.
    """

    models: Any
    masks: Any
    errors: Float[np.ndarray, " runs"]
    epochs: Int[np.ndarray, " runs"]
    reached: Bool[np.ndarray, " runs"]
    diverged: Bool[np.ndarray, " runs"]


def train_widths(
    widths: Sequence[int],
    make: Callable[[int, np.random.Generator], Any],
    loss: Callable[[Any, PRNGKeyArray, Any], Float[Array, ""]],
    error: Callable[[Any, Any], Float[Array, ""]],
    *,
    seeds: int,
    data: PyTree[Array],
    updates: int,
    most_epochs: int,
    key: PRNGKeyArray,
    fewest: Sequence[int] | None = None,
) -> Iterator[Staged]:
    """Models of ascending width, a run for every seed: the first for two epochs, and the others
    until their error is below half of that of the model before.

    **Arguments:**

    - `make`: `make(width, rng)`, a random model with NumPy arrays.
    - `loss`, `error`: `loss(model, key, data)` is trained, and `error(model, data)` decides; both
        get the entry of `data` of their run.
    - `fewest`: the fewest epochs by width; two by default.
    """
    thresholds = np.full(seeds, np.inf)
    largest = make(max(widths), np.random.default_rng(0))
    for place, width in enumerate(widths):
        rngs = [np.random.default_rng((seed, width)) for seed in range(seeds)]
        padded = [_pad(make(width, rng), largest) for rng in rngs]
        models, masks = (jax.tree.map(_stack, *parts) for parts in zip(*padded, strict=True))
        found = _train_until(
            models, masks, loss, error, thresholds, data, updates, most_epochs,
            FEWEST_EPOCHS if fewest is None else fewest[place], jax.random.fold_in(key, width),
        )  # fmt: skip
        thresholds = _SHARE * found.errors
        yield found


def _pad(model: Any, largest: Any) -> tuple[Any, Any]:
    """A model with its arrays filled up with zeros, and where they are its own."""

    def fill(own: Any, wide: Any, one: bool) -> Any:
        if not isinstance(own, np.ndarray):
            return own
        own = np.ones_like(own) if one else own
        edges = [(0, w - o) for o, w in zip(own.shape, wide.shape, strict=True)]
        return np.pad(own, edges) if edges else own

    return tuple(
        jax.tree.map(lambda own, wide: fill(own, wide, one), model, largest)  # noqa: B023
        for one in (False, True)
    )  # pyright: ignore[reportReturnType]


def _stack(*leaves: Any) -> Any:
    return jnp.asarray(np.stack(leaves)) if isinstance(leaves[0], np.ndarray) else leaves[0]


class _Masked(eqx.Module):
    """A loss that does not see what pads a model, which thus is never trained."""

    loss: Callable

    def __call__(self, model: Any, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        mask, own = data
        return self.loss(_mask(model, mask), key, own)


def _mask(model: Any, mask: Any) -> Any:
    keep = lambda leaf, one: leaf * one if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(keep, model, mask)


def _measure(error: Callable, models: Any, data: Any) -> Float[Array, " runs"]:
    return eqx.filter_vmap(error, in_axes=(eqx.if_array(0), eqx.if_array(0)))(models, data)


def _train_until(
    models: Any,
    masks: Any,
    loss: Callable,
    error: Callable,
    thresholds: np.ndarray,
    data: Any,
    updates: int,
    most_epochs: int,
    fewest_epochs: int,
    key: PRNGKeyArray,
) -> Staged:
    count = thresholds.size
    schedule = Schedule.start(count)
    weights = eqx.filter(models, trainable(models))
    dtype = jax.tree.leaves(weights)[0].dtype
    ones = eqx.filter(masks, eqx.is_array)
    # Optax starts from zeros; made here, they need no program of their own.
    like = jax.eval_shape(jax.vmap(OPTIMISER.init), weights)
    memory = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), like)
    best, errors = models, np.full(count, np.inf)
    epochs, diverged = np.zeros(count, int), np.zeros(count, bool)
    on = np.ones(count, bool)
    for epoch in range(1, most_epochs + 1):
        result = train(
            models, _Masked(loss), OPTIMISER, updates, key=jax.random.fold_in(key, epoch),
            data=(ones, data), scales=jnp.asarray(schedule.rates.astype(dtype)), memory=memory,
        )  # fmt: skip
        models, memory = result.models, result.memory
        found = np.asarray(compiled(_measure, "least")(error, models, data), float)
        schedule = advance(schedule, found)
        better = on & (found < errors)
        errors = np.where(better, found, errors)
        best = jax.tree.map(lambda new, old, b=better: _choose(b, new, old), models, best)
        epochs, diverged = np.where(on, epoch, epochs), np.where(on, result.diverged, diverged)
        on = on & ~diverged & ((errors >= thresholds) | (epoch < fewest_epochs))
        if not on.any():
            break
    return Staged(best, masks, errors, epochs, errors < thresholds, diverged)


def _choose(which: np.ndarray, new: Any, old: Any) -> Any:
    if not eqx.is_array(new):
        return old
    return np.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


# --- Perturbations ------------------------------------------------------------------------------


def perturbed_errors(
    models: Any,
    masks: Any,
    error: Callable[[Any, Any], Float[Array, ""]],
    radii: Float[np.ndarray, " radii"],
    draws: int,
    *,
    data: PyTree[Array],
    lowered: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "runs radii+1"]:
    """The largest error so far of random perturbations, from none on, for each of a batch.

    Gaussian, each array scaled so that its largest entry is the radius, in the same directions at
    every radius. The array `lowered(model)` is not drawn: all of its entries are lowered by the
    radius. `error(model, data)` gets the entry of `data` of its run.
    """
    rng = np.random.default_rng(seed)

    def draw(mask: Any) -> Any:
        if not eqx.is_inexact_array(mask):
            return None
        noise = rng.normal(size=(draws, *mask.shape)) * np.asarray(mask)
        most = np.abs(noise).max(axis=tuple(range(2, noise.ndim)), keepdims=True)
        return (noise / np.where(most > 0, most, 1)).astype(mask.dtype)

    noise = jax.tree.map(draw, eqx.filter(masks, trainable(masks)))
    if lowered is not None:
        minus = -np.broadcast_to(np.asarray(lowered(masks)), lowered(noise).shape)
        noise = eqx.tree_at(lowered, noise, minus)
    noise = jax.tree.map(lambda leaf: jnp.asarray(np.moveaxis(leaf, 0, 1)), noise)
    balls = jnp.asarray(np.concatenate([[0.0], radii]))
    return np.asarray(compiled(_perturb, "least")(error, models, noise, balls, data))


def _perturb(
    error: Callable, models: Any, noise: Any, radii: Float[Array, " radii"], data: Any
) -> Float[Array, "runs radii"]:
    def curve(model: Any, noise: Any, data: Any) -> Float[Array, " radii"]:
        def drawn(noise: Any) -> Float[Array, " radii"]:
            def at(radius: Float[Array, ""]) -> Float[Array, ""]:
                step = jax.tree.map(lambda leaf: radius.astype(leaf.dtype) * leaf, noise)
                value = error(eqx.apply_updates(model, step), data)
                return jnp.where(jnp.isnan(value), jnp.inf, value)

            return jax.vmap(at)(radii)

        return jax.lax.cummax(jnp.max(jax.lax.map(drawn, noise), axis=0))

    return eqx.filter_vmap(curve, in_axes=(eqx.if_array(0), 0, eqx.if_array(0)))(
        models, noise, data
    )


def radius_at(
    radii: Float[np.ndarray, " radii"],
    curves: Float[np.ndarray, "seeds widths radii"],
    widths: Any,
    level: float,
) -> Float[np.ndarray, " widths"]:
    """The median over seeds of the radius at which errors pass a level, by width; the smallest
    radius if they start above, the largest if they stay below."""
    radius = stability_radius(widths, radii, np.nan_to_num(curves, nan=np.inf), level=level).radius
    return np.median(np.asarray(radius), axis=0)


# NumPy arrays that stand in models for JAX arrays, hence their type.


def uniform(rng: np.random.Generator, fan_in: int, *shape: int) -> Any:
    """Weights or biases of a layer of so many inputs as PyTorch starts them, in single
    precision."""
    return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> Any:
    """Standard normal numbers, in single precision."""
    return rng.normal(size=shape).astype(np.float32)


def orthogonal(rng: np.random.Generator, width: int) -> Any:
    """A random orthogonal matrix, in single precision."""
    q, r = np.linalg.qr(rng.normal(size=(width, width)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def lay_out(xs: Float[Array, "batch times"]) -> Float[Array, "batch times lags"]:
    """The inputs of all lags at every time, 0 before the first."""
    times = jnp.arange(xs.shape[1])
    index = times[:, None] - times
    return jnp.where(index >= 0, xs[:, jnp.maximum(index, 0)], 0)
