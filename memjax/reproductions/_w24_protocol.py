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

from ..models import trainable
from ..numerics import in_batches
from ..targets import AbstractKernel, ExponentialSum, PowerLaw
from ._training import train

LENGTH = 100
UPDATES = 250
RADII = 1e-3 * 2 ** (np.arange(21) / 2)

# Made when asked for: importing memjax computes nothing.
KERNELS: Mapping[str, Callable[[], AbstractKernel]] = {
    "exponential": lambda: ExponentialSum(np.ones(1), np.ones(1)),  # pyright: ignore[reportArgumentType]
    "power law": lambda: PowerLaw(0.1, 10.0),
}
ACTIVATIONS = ("tanh", "hardtanh", "linear")
PARAMETRISATIONS = ("vanilla", "softplus", "diagonal")

_LEARNING_RATE, _CLIP = 1e-2, 0.5
# The learning rate is cut after more than so many epochs that do not lower the smallest
# validation loss by a share.
_PATIENCE, _PROGRESS, _CUT = 10, 1e-4, 0.1
PENALTY = 0.01
FEWEST_EPOCHS = 2


class PublishedRNN(eqx.Module):
    r"""The RNN of the public code, $h_{k+1} = h_k + \sigma(u x_k + b - P^\top D P h_k)$.

    $D$ holds the rates, $P$ is any matrix (or none, for the diagonal model), and the outputs are
    $c \cdot h_{k+1} + d$. All arrays of numbers are trained. The rates $\varphi(v)$ are those of a
    softplus, or of a ReLU as long as the model is trained, and of the identity after.

    What $\sigma$ and $\varphi$ are is data, so that one program is compiled for all models of a
    width: most of a run's time goes into compiling otherwise.
    """

    free_rates: Float[Array, " width"]
    turn: Float[Array, "width width"] | None
    input: Float[Array, " width"]
    bias: Float[Array, " width"]
    readout_weights: Float[Array, " width"]
    offset: Float[Array, "1"]
    is_tanh: Bool[Array, ""]
    is_clipped: Bool[Array, ""]
    is_softplus: Bool[Array, ""]
    is_settled: Bool[Array, ""]

    @property
    def rates(self) -> Float[Array, " width"]:
        direct = jnp.where(self.is_settled, self.free_rates, jax.nn.relu(self.free_rates))
        return jnp.where(self.is_softplus, jax.nn.softplus(self.free_rates), direct)

    @property
    def slowest(self) -> Float[Array, ""]:
        """The smallest rate above 0; infinity if there is none."""
        return jnp.min(jnp.where(self.rates > 0, self.rates, jnp.inf))

    def activation(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        bent = jnp.where(self.is_clipped, jax.nn.hard_tanh(x), x)
        return jnp.where(self.is_tanh, jnp.tanh(x), bent)

    def outputs(self, xs: Float[Array, "batch times"]) -> Float[Array, "batch times"]:
        """The outputs on some inputs, from rest; each is read after its input has acted."""
        return residual_outputs(self, self.rates, xs, recompute=True)

    def settled(self) -> "PublishedRNN":
        """The trained model as it is perturbed: rates are no longer kept from being negative."""
        free = jnp.where(self.is_softplus, self.free_rates, jax.nn.relu(self.free_rates))
        return dataclasses.replace(self, free_rates=free, is_settled=jnp.ones_like(self.is_settled))


def residual_outputs(
    model: Any,
    rates: Float[Array, " width"],
    xs: Float[Array, "batch times"],
    recompute: bool = False,
) -> Float[Array, "batch times"]:
    """The outputs of a residual RNN with the arrays of a `PublishedRNN`.

    For large batches, to compute a step once more for its gradient (`recompute`) is faster than to
    keep its parts.
    """
    if model.turn is None:
        decay = lambda hidden: rates[:, None] * hidden
    else:
        matrix = (model.turn.T * rates) @ model.turn
        decay = lambda hidden: matrix @ hidden

    # Sequences are the last axis, which takes two thirds of the time of the other order.
    def move(hidden: Array, x: Array) -> tuple[Array, Array]:
        drive = model.input[:, None] * x + model.bias[:, None]
        hidden = hidden + model.activation(drive - decay(hidden))
        return hidden, model.readout_weights @ hidden

    if recompute:
        move = jax.checkpoint(move, prevent_cse=False)
    rest = jnp.zeros((model.input.shape[0], xs.shape[0]), xs.dtype)
    return jax.lax.scan(move, rest, xs.T)[1].T + model.offset


def start(
    width: int, activation: str, parametrisation: str, seed: int, dtype: Any = jnp.float32
) -> PublishedRNN:
    """A random model: free rates are standard normals, of which a ReLU makes half 0 for all
    parametrisations but the softplus; P is orthogonal, and the other weights are uniform, as
    PyTorch's linear layers have them."""
    # By NumPy, since JAX would compile every draw anew for every width.
    rng = np.random.default_rng(seed)
    array = lambda values: jnp.asarray(values, dtype)
    most = width**-0.5
    rates, square = rng.standard_normal(width), rng.standard_normal((width, width))
    return PublishedRNN(
        array(rates),
        None if parametrisation == "diagonal" else array(np.linalg.qr(square)[0]),
        array(rng.uniform(-1, 1, width)),
        array(rng.uniform(-1, 1, width)),
        array(rng.uniform(-most, most, width)),
        array(rng.uniform(-most, most, 1)),
        jnp.asarray(activation == "tanh"),
        jnp.asarray(activation == "hardtanh"),
        jnp.asarray(parametrisation == "softplus"),
        jnp.asarray(False),
    )


# --- Errors -------------------------------------------------------------------------------------


def kernel_matrix(kernel: AbstractKernel, dtype: Any = jnp.float32) -> Float[Array, "times times"]:
    r"""The discrete target as a matrix, $y_k = \sum_{j \le k} \rho(j) x_{k-j}$."""
    lags = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    return jnp.where(lags < 0, 0, kernel(jnp.maximum(lags, 0.0))).astype(dtype)


def squared_weights(times: int = LENGTH) -> Float[np.ndarray, " times"]:
    r"""$w_k^2$ for $w_k = k^2 / \overline{k^2}$, $k = 1, \dots, T$: errors, not their squares, are
    weighted by the square of time."""
    weights = np.arange(1.0, times + 1) ** 2
    return (weights / np.mean(weights)) ** 2


def target_power(matrix: Float[Array, "times times"]) -> Float[Array, ""]:
    """The error of no output at all: the weighted mean square of the target."""
    weights = jnp.asarray(squared_weights(), matrix.dtype)
    return jnp.mean(weights * jnp.sum(matrix**2, axis=1))


def weighted_error(
    model: PublishedRNN, xs: Float[Array, "batch times"], matrix: Float[Array, "times times"]
) -> Float[Array, ""]:
    """The mean over inputs and times of the squares of weighted errors."""
    errors = model.outputs(xs) - xs @ matrix.T
    return jnp.mean(jnp.asarray(squared_weights(), xs.dtype) * errors**2)


def penalty(model: PublishedRNN) -> Float[Array, ""]:
    """What training pays for a slowest rate below 1; rates of 0 are not counted."""
    return PENALTY * jax.nn.relu(1 - model.slowest)


# --- Training -----------------------------------------------------------------------------------


class Samples(eqx.Module):
    """The loss on inputs that are new at every update, other ones for every run."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: PublishedRNN, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        matrix, run = data
        # As in the public code, inputs are drawn in float32 also where the rest is in float64.
        xs = jax.random.normal(jax.random.fold_in(key, run), (self.batch, LENGTH), jnp.float32)
        return weighted_error(model, xs.astype(matrix.dtype), matrix) + penalty(model)


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


class Epochs(NamedTuple):
    """What became of the runs of `train_below`.

    **Attributes:**

    - `models`: those of the smallest validation loss, one a run.
    - `losses`: their validation losses, shape `(runs,)`.
    - `epochs`: how many epochs each was trained, shape `(runs,)`.
    - `diverged`: whether a loss or a gradient was not finite, shape `(runs,)`.
    """

    models: list[PublishedRNN]
    losses: Float[np.ndarray, " runs"]
    epochs: Int[np.ndarray, " runs"]
    diverged: Bool[np.ndarray, " runs"]


OPTIMISER = optax.chain(optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(), optax.scale(-1.0))

_validate = eqx.filter_jit(eqx.filter_vmap(weighted_error, in_axes=(eqx.if_array(0), None, 0)))


def train_below(
    models: list[PublishedRNN],
    matrices: list[Float[Array, "times times"]],
    thresholds: Float[np.ndarray, " runs"],
    validation: Float[Array, "sequences times"],
    *,
    batch: int,
    updates: int,
    most_epochs: int,
    keys: list[int],
    after_epoch: Callable[[], None] = lambda: None,
) -> Epochs:
    """Train every run until its validation loss is below its threshold.

    By AdamW without decay, that is Adam, for two epochs at least. Runs that are done are left out
    of the next epochs, for which another program is compiled once.

    **Arguments:**

    - `models`: of one width, all diagonal or none.
    - `matrices`: the target of each.
    - `thresholds`: the losses to fall below.
    - `validation`: the inputs of the validation loss.
    - `batch`, `updates`: sequences an update, and updates an epoch.
    - `most_epochs`: where a run ends that has not fallen below.
    - `keys`: a number for every run, from which its batches follow.
    - `after_epoch`: called after every epoch; what it raises ends the training.
    """
    count = len(models)
    sample, schedule = Samples(batch), Schedule.start(count)
    batch_of = _stack(models)
    memory = jax.vmap(OPTIMISER.init)(eqx.filter(batch_of, trainable(batch_of)))
    data = jnp.stack(matrices), jnp.asarray(keys)
    best, losses = list(models), np.full(count, np.inf)
    epochs, diverged = np.zeros(count, int), np.zeros(count, bool)
    active = np.arange(count)
    for epoch in range(1, most_epochs + 1):
        result = train(
            batch_of,
            sample,
            OPTIMISER,
            updates,
            key=jax.random.fold_in(jax.random.key(1), epoch),
            data=data,
            scales=jnp.asarray(schedule.rates, validation.dtype),
            memory=memory,
        )
        batch_of, memory = result.models, result.memory
        found = np.asarray(_validate(batch_of, validation, data[0]), float)
        schedule = advance(schedule, found)
        for k in np.flatnonzero(found < losses[active]):
            best[active[k]] = _pick(batch_of, k)
        losses[active] = np.fmin(found, losses[active])
        epochs[active], diverged[active] = epoch, result.diverged
        after_epoch()
        on = (losses[active] >= thresholds[active]) | (epoch < FEWEST_EPOCHS)
        on &= ~diverged[active]
        if not on.any():
            break
        if not on.all():
            batch_of, memory, data = _pick((batch_of, memory, data), on)
            schedule, active = Schedule(*(each[on] for each in schedule)), active[on]
    return Epochs(best, losses, epochs, diverged)


def _stack(models: list[PublishedRNN]) -> PublishedRNN:
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)


def _pick(tree: Any, index: Any) -> Any:
    """Some rows of all arrays, by NumPy: JAX would compile a program for every shape."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[index]), tree)


# --- Perturbations ------------------------------------------------------------------------------

# So many sequences at once keep the processor busy and its caches warm.
_AT_ONCE = 4096


def directions(model: PublishedRNN, draws: int, shifted: bool, seed: int) -> PublishedRNN:
    """Random perturbations of radius 1 of all weights, with a leading axis.

    Gaussian, each array scaled so that its largest entry is 1. If `shifted`, the free rates are not
    drawn: all of them are lowered by 1, as for the published figures. The public code draws them
    too from November 2023 on.
    """
    # Another stream than that of `start`.
    rng = np.random.default_rng([seed, 1])
    weights = eqx.filter(model, trainable(model))

    def draw(leaf: Array) -> Array:
        noise = rng.standard_normal((draws, *leaf.shape))
        largest = np.max(np.abs(noise), axis=tuple(range(1, noise.ndim)), keepdims=True)
        return jnp.asarray(noise / largest, leaf.dtype)

    drawn = jax.tree.map(draw, weights)
    if not shifted:
        return drawn
    # What is no weight is `None` here, so that it is no model that a constructor would make.
    return eqx.tree_at(lambda tree: tree.free_rates, drawn, -jnp.ones_like(drawn.free_rates))


@eqx.filter_jit
def errors_along(
    model: PublishedRNN,
    steps: PublishedRNN,
    xs: Float[Array, "sequences times"],
    matrix: Float[Array, "times times"],
) -> tuple[Float[Array, ""], Float[Array, " radii"]]:
    """The error of a model, and the largest so far of its perturbations in some directions, by
    radius: the same directions at every radius, and from no perturbation on."""
    error = lambda model: weighted_error(model, xs, matrix)
    count = jax.tree.leaves(steps)[0].shape[0]

    def at(draw: Array, radius: Array) -> Float[Array, ""]:
        step = jax.tree.map(lambda leaf: radius * leaf[draw], steps)
        value = error(eqx.apply_updates(model, step))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    radii = jnp.asarray(RADII, xs.dtype)
    draws = jnp.repeat(jnp.arange(count), radii.size)
    errors = in_batches(at, draws, jnp.tile(radii, count), size=max(1, _AT_ONCE // xs.shape[0]))
    bare = error(model)
    largest = jnp.max(errors.reshape(count, radii.size), axis=0)
    return bare, jax.lax.cummax(jnp.maximum(largest, bare))
