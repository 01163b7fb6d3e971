"""The protocol of the published perturbation plots: models, training, perturbations."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..losses import TemporalWeight
from ..models import trainable
from ..numerics import in_batches
from ..targets import AbstractKernel, ExponentialSum, PowerLaw
from ._training import select, train

LENGTH = 100
UPDATES = 250
RADII = 1e-3 * 2 ** (np.arange(21) / 2)

# Made when asked for: importing memjax computes nothing.
KERNELS: Mapping[str, Callable[[], AbstractKernel]] = {
    "exponential": lambda: ExponentialSum(np.ones(1), np.ones(1)),  # pyright: ignore[reportArgumentType]
    "power law": lambda: PowerLaw(0.1, 10.0),
}
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "hardtanh": jax.nn.hard_tanh,
    "tanh": jnp.tanh,
}
PARAMETRISATIONS = ("vanilla", "diagonal", "softplus")

_LEARNING_RATE, _CLIP = 1e-2, 0.5
# The learning rate is cut after more than so many epochs that do not lower the smallest
# validation loss by a share.
_PATIENCE, _PROGRESS, _CUT = 10, 1e-4, 0.1
_PENALTY = 0.01
_FEWEST_EPOCHS = 2


class PublishedRNN(eqx.Module):
    r"""The RNN of the public code, $h_{k+1} = h_k + \sigma(u x_k + b - P^\top D P h_k)$.

    $D$ holds the rates $\varphi(v)$, $P$ is any matrix (or none, for the diagonal model), and the
    outputs are $c \cdot h_{k+1} + d$. All arrays are trained.
    """

    free_rates: Float[Array, " width"]
    turn: Float[Array, "width width"] | None
    input: Float[Array, " width"]
    bias: Float[Array, " width"]
    readout_weights: Float[Array, " width"]
    offset: Float[Array, "1"]
    rate_map: Callable[[Array], Array] = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @property
    def rates(self) -> Float[Array, " width"]:
        return self.rate_map(self.free_rates)

    def outputs(self, xs: Float[Array, "batch times"]) -> Float[Array, "batch times"]:
        """The outputs on some inputs, from rest; each is read after its input has acted."""
        if self.turn is None:
            decay = lambda hidden: self.rates[:, None] * hidden
        else:
            matrix = (self.turn.T * self.rates) @ self.turn
            decay = lambda hidden: matrix @ hidden

        # Sequences are the last axis, which takes two thirds of the time of the other order.
        def move(hidden: Array, x: Array) -> tuple[Array, Array]:
            drive = self.input[:, None] * x + self.bias[:, None]
            hidden = hidden + self.activation(drive - decay(hidden))
            return hidden, self.readout_weights @ hidden

        rest = jnp.zeros((self.input.shape[0], xs.shape[0]), xs.dtype)
        return jax.lax.scan(move, rest, xs.T)[1].T + self.offset

    @property
    def slowest(self) -> Float[Array, ""]:
        """The smallest rate above 0; infinity if there is none."""
        return jnp.min(jnp.where(self.rates > 0, self.rates, jnp.inf))

    def settled(self) -> "PublishedRNN":
        """The trained model as it is perturbed: rates are no longer kept from being negative."""
        if self.rate_map is not jax.nn.relu:
            return self
        return dataclasses.replace(self, free_rates=self.rates, rate_map=_same)


def _same(rates: Array) -> Array:
    return rates


def start(
    width: int, activation: str, parametrisation: str, key: PRNGKeyArray, dtype: Any = jnp.float32
) -> PublishedRNN:
    """A random model: free rates are standard normals, of which a ReLU makes half 0 for all
    parametrisations but the softplus; P is orthogonal, and the other weights are uniform, as
    PyTorch's linear layers have them."""
    rates, turn, drive, bias, readout, offset = jax.random.split(key, 6)
    uniform = lambda key, *shape, most: jax.random.uniform(key, shape, dtype, -most, most)
    most = width**-0.5
    matrix = None
    if parametrisation != "diagonal":
        # The factor of a fixed sign in each column, whatever the library behind it.
        q, r = jnp.linalg.qr(jax.random.normal(turn, (width, width), dtype))
        matrix = q * jnp.sign(jnp.diagonal(r))
    return PublishedRNN(
        jax.random.normal(rates, (width,), dtype),
        matrix,
        uniform(drive, width, most=1.0),
        uniform(bias, width, most=1.0),
        uniform(readout, width, most=most),
        uniform(offset, 1, most=most),
        jax.nn.softplus if parametrisation == "softplus" else jax.nn.relu,
        ACTIVATIONS[activation],
    )


# --- Errors -------------------------------------------------------------------------------------


def kernel_matrix(kernel: AbstractKernel, dtype: Any = jnp.float32) -> Float[Array, "times times"]:
    r"""The discrete target as a matrix, $y_k = \sum_{j \le k} \rho(j) x_{k-j}$."""
    lags = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    return jnp.where(lags < 0, 0, kernel(jnp.maximum(lags, 0.0))).astype(dtype)


def _squared_weights(dtype: Any) -> Float[Array, " times"]:
    r"""$w_k^2$ for $w_k = k^2 / \overline{k^2}$, $k = 1, \dots, T$: errors, not their squares, are
    weighted by the square of time."""
    ts = jnp.arange(LENGTH + 1, dtype=float)
    weights = TemporalWeight(2.0)(ts)[1:]
    return ((weights / jnp.mean(weights)) ** 2).astype(dtype)


def target_power(matrix: Float[Array, "times times"]) -> Float[Array, ""]:
    """The error of no output at all: the weighted mean square of the target."""
    return jnp.mean(_squared_weights(matrix.dtype) * jnp.sum(matrix**2, axis=1))


def weighted_error(
    model: PublishedRNN, xs: Float[Array, "batch times"], matrix: Float[Array, "times times"]
) -> Float[Array, ""]:
    """The mean over inputs and times of the squares of weighted errors."""
    errors = model.outputs(xs) - xs @ matrix.T
    return jnp.mean(_squared_weights(xs.dtype) * errors**2)


def penalty(model: PublishedRNN) -> Float[Array, ""]:
    """What training pays for a slowest rate below 1; rates of 0 are not counted."""
    return _PENALTY * jax.nn.relu(1 - model.slowest)


# --- Training -----------------------------------------------------------------------------------


class Samples(eqx.Module):
    """The loss on inputs that are new at every update, other ones for every run."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: PublishedRNN, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        matrix, run = data
        xs = jax.random.normal(jax.random.fold_in(key, run), (self.batch, LENGTH), matrix.dtype)
        return weighted_error(model, xs, matrix) + penalty(model)


class Epochs(eqx.Module):
    """What became of the runs of `train_below`.

    **Attributes:**

    - `models`: those of the smallest validation loss.
    - `losses`: their validation losses, shape `(runs,)`.
    - `epochs`: how many epochs each was trained, shape `(runs,)`.
    - `reached`: whether the loss is below the threshold, shape `(runs,)`.
    - `diverged`: whether a loss or a gradient was not finite, shape `(runs,)`.
    """

    models: Any
    losses: Float[np.ndarray, " runs"]
    epochs: Int[np.ndarray, " runs"]
    reached: Bool[np.ndarray, " runs"]
    diverged: Bool[np.ndarray, " runs"]


class Schedule(NamedTuple):
    """The learning rate of every run, and what decides when it is cut."""

    rates: np.ndarray
    smallest: np.ndarray
    waited: np.ndarray

    @classmethod
    def start(cls, runs: int) -> "Schedule":
        return cls(np.full(runs, _LEARNING_RATE), np.full(runs, np.inf), np.zeros(runs, int))


def advance(schedule: Schedule, losses: np.ndarray) -> Schedule:
    """The schedule after one more epoch, from the validation losses then."""
    rates, smallest, waited = schedule
    better = losses < smallest * (1 - _PROGRESS)
    waited = np.where(better, 0, waited + 1)
    cut = waited > _PATIENCE
    return Schedule(
        np.where(cut, _CUT * rates, rates),
        np.where(better, losses, smallest),
        np.where(cut, 0, waited),
    )


OPTIMISER = optax.chain(optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(), optax.scale(-1.0))

_validate = eqx.filter_jit(eqx.filter_vmap(weighted_error, in_axes=(eqx.if_array(0), None, 0)))


def train_below(
    models: Any,
    matrices: Float[Array, "runs times times"],
    thresholds: np.ndarray,
    validation: Float[Array, "sequences times"],
    *,
    batch: int,
    most_epochs: int,
    updates: int = UPDATES,
    key: PRNGKeyArray,
    after_epoch: Callable[[], None] = lambda: None,
) -> Epochs:
    """Train every run until its validation loss is below its threshold.

    AdamW without decay, that is Adam, for two epochs at least. Runs that are done are left out of
    the next epochs, for which another program is compiled once.

    **Arguments:**

    - `models`: as those of `batched`; all have the same width.
    - `matrices`: the target of each.
    - `thresholds`: the losses to fall below, shape `(runs,)`.
    - `validation`: the inputs of the validation loss.
    - `batch`, `updates`: sequences an update, and updates an epoch.
    - `most_epochs`: where a run ends that has not fallen below.
    - `key`: the PRNG key of the batches; a run's are those of its place among `models`.
    - `after_epoch`: called after every epoch; what it raises ends the training.
    """
    count = matrices.shape[0]
    sample, schedule = Samples(batch), Schedule.start(count)
    memory = jax.vmap(OPTIMISER.init)(eqx.filter(models, trainable(models)))
    best, losses = models, np.full(count, np.inf)
    epochs, diverged = np.zeros(count, int), np.zeros(count, bool)
    active = np.arange(count)
    for epoch in range(1, most_epochs + 1):
        result = train(
            models,
            sample,
            OPTIMISER,
            updates,
            key=jax.random.fold_in(key, epoch),
            data=(matrices[active], jnp.asarray(active)),
            scales=jnp.asarray(schedule.rates, matrices.dtype),
            memory=memory,
        )
        found = np.asarray(_validate(result.models, validation, matrices[active]), float)
        schedule = advance(schedule, found)
        better = found < losses[active]
        losses[active] = np.where(better, found, losses[active])
        best = _replace(best, active[better], select(result.models, better))
        epochs[active], diverged[active] = epoch, result.diverged
        after_epoch()
        on = (losses[active] >= thresholds[active]) | (epoch < _FEWEST_EPOCHS)
        on &= ~diverged[active]
        if not on.any():
            break
        models, memory, schedule = select((result.models, result.memory, schedule), on)
        active = active[on]
    return Epochs(best, losses, epochs, losses < thresholds, diverged)


def _replace(models: Any, index: np.ndarray, others: Any) -> Any:
    """The models of a batch with some of them replaced."""
    put = lambda leaf, new: leaf.at[index].set(new) if eqx.is_array(leaf) else leaf
    return jax.tree.map(put, models, others)


# --- Perturbations ------------------------------------------------------------------------------

# So many sequences at once keep the processor busy and its caches warm.
_AT_ONCE = 4096


def drawn_errors(
    model: PublishedRNN,
    xs: Float[Array, "sequences times"],
    matrix: Float[Array, "times times"],
    draws: int,
    shifted: bool,
    key: PRNGKeyArray,
) -> Float[Array, " radii"]:
    """The largest error so far of random perturbations, from none on.

    Gaussian, each array scaled so that its largest entry is the radius, in the same directions at
    every radius. If `shifted`, the free rates are not drawn: all of them are lowered by the
    radius, as for the published figures. The public code of November 2023 draws them too.
    """
    error = lambda model: weighted_error(model, xs, matrix)

    def at(key: PRNGKeyArray, radius: Array) -> Float[Array, ""]:
        value = error(perturb(model, radius, shifted, key))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    radii = jnp.asarray(RADII, xs.dtype)
    keys = jnp.repeat(jax.random.split(key, draws), radii.size)
    size = max(1, _AT_ONCE // xs.shape[0])
    errors = in_batches(at, keys, jnp.tile(radii, draws), size=size)
    largest = jnp.max(errors.reshape(draws, radii.size), axis=0)
    return jax.lax.cummax(jnp.maximum(largest, error(model)))


def perturb(
    model: PublishedRNN, radius: Float[Array, ""], shifted: bool, key: PRNGKeyArray
) -> PublishedRNN:
    """A model with all its arrays moved, see `drawn_errors`."""
    leaves, structure = jax.tree.flatten(model)

    def move(leaf: Array, key: PRNGKeyArray) -> Array:
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        return leaf + radius * noise / jnp.max(jnp.abs(noise))

    keys = jax.random.split(key, len(leaves))
    moved = jax.tree.unflatten(structure, list(map(move, leaves, keys)))
    if not shifted:
        return moved
    return dataclasses.replace(moved, free_rates=model.free_rates - radius)
