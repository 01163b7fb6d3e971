"""The recurrent networks of Zhao et al., with and without a memory filter, and their training."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..targets import fractional_weights
from ._staged import uniform

LENGTH, _TRAINED, _VALIDATED = 4001, 2000, 1200
# Of other series these shares are trained on and validated on.
_SHARES = (0.5, 0.25)
_RATE, _PATIENCE, _PROGRESS = 0.01, 100, 1e-5
_CHUNK = 50  # epochs of one program
# Weights of the memory filter are polynomials in d: of this degree they are exact to rounding on
# [0, 1/2].
_DEGREE = 12


def _filter_table(lags: int) -> np.ndarray:
    """The weights w_1, ..., w_K of the memory filter as polynomials in u = 4 d - 1, shape
    `(lags, degree + 1)`."""
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    weights = [fractional_weights((node + 1) / 4, lags + 1)[1:] for node in nodes]
    series = np.polynomial.chebyshev.chebfit(nodes, np.asarray(weights), _DEGREE)
    powers = [np.polynomial.chebyshev.cheb2poly(column) for column in series.T]
    return np.stack([np.pad(power, (0, _DEGREE + 1 - power.size)) for power in powers])


def _in_order(coefficients: Float[Array, "... degree"], order: Float[Array, "..."]) -> Array:
    """The value of polynomials at an order, by Horner's rule: the derivatives of a power of 0
    would not be finite."""
    found = coefficients[..., -1]
    for k in range(_DEGREE - 1, -1, -1):
        found = found * (4 * order - 1) + coefficients[..., k]
    return found


def _affine(weights: tuple[Any, Any], *parts: Array) -> Array:
    matrix, bias = weights
    return matrix @ jnp.concatenate(parts) + bias


def _draw(rng: np.random.Generator, outputs: int, *inputs: int) -> tuple[Any, Any]:
    """Weights and biases of a layer as PyTorch starts them; inputs that come from layers of their
    own have the range of their own number."""
    blocks = [uniform(rng, count, outputs, count) for count in inputs]
    return np.concatenate(blocks, axis=1), uniform(rng, inputs[0], outputs)


class Forecaster(eqx.Module):
    """A recurrent network of the paper, with the weights of its layers by name.

    Its hidden state is a tuple of arrays. A step takes the value of the series, and the values so
    far summed up with the weights of the filter, as a polynomial in the order.
    """

    weights: dict[str, tuple[Array, Array]]
    table: Float[Array, "lags degree"]
    width: int = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    @classmethod
    def init(cls, kind: str, width: int, lags: int, rng: np.random.Generator) -> "Forecaster":
        draw = functools.partial(_draw, rng)
        m = width
        layers: dict[str, Any] = {"out": draw(1, m)}
        if kind == "RNN":
            # Of PyTorch's two biases only their sum matters.
            layers["hidden"] = (uniform(rng, m, m, 1 + m), uniform(rng, m, 2, m).sum(axis=0))
        elif kind == "LSTM":
            draws = uniform(rng, m, 4 * m, 1 + m), uniform(rng, m, 2, 4 * m).sum(axis=0)
            layers["gates"] = draws
        elif kind in ("MRNNF", "MRNN"):
            layers |= {"hidden": draw(m, m, 1), "memory": draw(m, m, 1), "out": draw(1, m, m)}
            zero = np.zeros(1, np.float32)
            layers["order"] = draw(1, 1, m, m, 1) if kind == "MRNN" else (zero[:, None], zero)
        else:
            layers |= {name: draw(m, 1 + m) for name in ("enter", "leave", "new")}
            zero = np.zeros(m, np.float32)
            layers["order"] = draw(m, 1 + 2 * m) if kind == "MLSTM" else (zero[:, None], zero)
        layers = jax.tree.map(jnp.asarray, layers)
        return cls(layers, jnp.asarray(_filter_table(lags), jnp.float32), width, kind)

    def start(self) -> tuple[Array, ...]:
        """The hidden state at rest."""
        zero = jnp.zeros(self.width, jnp.float32)
        if self.kind in ("RNN", "LSTM"):
            return (zero,) if self.kind == "RNN" else (zero, zero)
        orders = jnp.zeros_like(self.weights["order"][1])
        if self.kind in ("MRNNF", "MRNN"):
            return zero, zero, orders
        return zero, orders, jnp.zeros((self.table.shape[0], self.width), jnp.float32)

    def step(
        self, state: tuple[Array, ...], x: Array, filtered: Array
    ) -> tuple[tuple[Array, ...], Array]:
        """The hidden state after a value of the series, and the forecast of the next value."""
        layer, x = self.weights, x[None]
        sigmoid = jax.nn.sigmoid
        if self.kind == "RNN":
            hidden = jnp.tanh(_affine(layer["hidden"], x, *state))
            return (hidden,), _affine(layer["out"], hidden)[0]
        if self.kind == "LSTM":
            hidden, cell = state
            enter, forget, new, leave = jnp.split(_affine(layer["gates"], x, hidden), 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * jnp.tanh(new)
            hidden = sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), _affine(layer["out"], hidden)[0]
        if self.kind in ("MRNNF", "MRNN"):
            hidden, memory, order = state
            if self.kind == "MRNN":
                order = 0.5 * sigmoid(_affine(layer["order"], order, hidden, memory, x))
            else:
                order = 0.5 * sigmoid(layer["order"][1])
            past = _in_order(filtered, order)
            memory = jnp.tanh(_affine(layer["memory"], memory, past))
            hidden = jnp.tanh(_affine(layer["hidden"], hidden, x))
            return (hidden, memory, order), _affine(layer["out"], hidden, memory)[0]
        hidden, orders, cells = state
        if self.kind == "MLSTM":
            orders = 0.5 * sigmoid(_affine(layer["order"], x, hidden, orders))
        else:
            orders = 0.5 * sigmoid(layer["order"][1])
        kept = _in_order(cells.T @ self.table, orders)
        enter, leave, new = (_affine(layer[name], x, hidden) for name in ("enter", "leave", "new"))
        cell = sigmoid(enter) * jnp.tanh(new) - kept
        hidden = sigmoid(leave) * jnp.tanh(cell)
        cells = jnp.concatenate([cell[None], cells[:-1]])
        return (hidden, orders, cells), _affine(layer["out"], hidden)[0]


def trained_leaves(model: Forecaster) -> Any:
    """Which arrays are trained: all but the table of the filter. Of a fixed order the matrix has
    no effect."""
    every = jax.tree.map(eqx.is_array, model)
    return eqx.tree_at(lambda model: model.table, every, False)


class Part(NamedTuple):
    """Values, values summed up with the filter, and the next values."""

    xs: Float[Array, " times"]
    filtered: Float[Array, "times degree"]
    ys: Float[Array, " times"]


def forecast(model: Forecaster, state: Any, part: Part) -> tuple[Any, Float[Array, " times"]]:
    move = lambda state, now: model.step(state, *now)
    return jax.lax.scan(move, state, (part.xs, part.filtered))


def filtered_values(xs: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The memory filter of all values so far, as polynomials in the order."""
    columns = [np.convolve(xs, column)[: xs.size] for column in table.T]
    return np.stack(columns, axis=1)


def split_series(values: np.ndarray, lags: int) -> tuple[Part, ...]:
    """The parts to train on, to validate on and to test on; of all values, between 0 and 1."""
    scaled = (values - values.min()) / np.ptp(values)
    xs, ys = scaled[:-1], scaled[1:]
    sizes = (_TRAINED, _VALIDATED)
    if values.size != LENGTH:
        sizes = tuple(int(share * xs.size) for share in _SHARES)
    ends = np.cumsum(sizes)
    columns = (xs, filtered_values(xs, _filter_table(lags)), ys)
    parts = zip(*(np.split(column.astype(np.float32), ends) for column in columns), strict=True)
    return tuple(Part(*part) for part in parts)


# --- Training -----------------------------------------------------------------------------------


class _Run(eqx.Module):
    """A training under way: the best model is that of the lowest error on the validation part."""

    model: Forecaster
    memory: Any
    best: Forecaster
    lowest: Array
    progress: Array
    stalled: Array
    epochs: Array


def _begin(model: Forecaster) -> _Run:
    memory = optax.adam(_RATE).init(eqx.filter(model, trained_leaves(model)))
    infinite, none = jnp.asarray(jnp.inf, jnp.float32), jnp.asarray(0)
    return _Run(model, memory, model, infinite, infinite, none, none)


@eqx.filter_jit
def _train(run: _Run, train: Part, validate: Part, most: int) -> _Run:
    """Some more epochs of one run; a run that has come to its end stays as it is."""
    optimiser = optax.adam(_RATE)

    def errors(weights: Forecaster, others: Forecaster) -> tuple[Array, Array]:
        model = eqx.combine(weights, others)
        state, found = forecast(model, model.start(), train)
        later = forecast(model, jax.lax.stop_gradient(state), validate)[1]
        held_out = jax.lax.stop_gradient(jnp.mean((later - validate.ys) ** 2))
        return jnp.mean((found - train.ys) ** 2), held_out

    arrays, rest = eqx.partition(run, eqx.is_array)

    def epoch(arrays: Any, _: None) -> tuple[Any, None]:
        run: _Run = eqx.combine(arrays, rest)
        weights, others = eqx.partition(run.model, trained_leaves(run.model))
        (loss, held_out), slopes = eqx.filter_value_and_grad(errors, has_aux=True)(weights, others)
        changes, memory = optimiser.update(slopes, run.memory)
        better = held_out < run.lowest
        choose = lambda yes, new, old: jax.tree.map(
            lambda a, b: jnp.where(yes, a, b) if eqx.is_array(a) else a, new, old
        )
        best = choose(better, run.model, run.best)
        advances = run.progress - loss > _PROGRESS
        moved = _Run(
            eqx.combine(eqx.apply_updates(weights, changes), others),
            memory,
            best,
            jnp.where(better, held_out, run.lowest),
            jnp.where(advances, loss, run.progress),
            jnp.where(advances, 0, run.stalled + 1),
            run.epochs + 1,
        )
        going = (run.stalled < _PATIENCE) & (run.epochs < most)
        return eqx.filter(choose(going, moved, run), eqx.is_array), None

    return eqx.combine(jax.lax.scan(epoch, arrays, length=_CHUNK)[0], rest)


@eqx.filter_jit
def _test(model: Forecaster, parts: tuple[Part, ...]) -> Array:
    """The mean squared error on the last part, which goes on from those before."""
    state, found = model.start(), jnp.zeros(())
    for part in parts:
        state, found = forecast(model, state, part)
    return jnp.mean((found - parts[-1].ys) ** 2)


def train_models(
    kind: str, parts: tuple[Part, ...], seeds: int, width: int, lags: int, epochs: int
) -> tuple[Forecaster, np.ndarray, np.ndarray]:
    """The best models of some seeds, their mean squared errors on the last part, and the epochs.

    The error of a run whose weights did not stay finite is NaN.
    """
    models = [Forecaster.init(kind, width, lags, np.random.default_rng(k)) for k in range(seeds)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    run = eqx.filter_vmap(_begin)(stacked)
    step = eqx.filter_vmap(_train, in_axes=(0, None, None, None))
    while bool(jnp.any((run.stalled < _PATIENCE) & (run.epochs < epochs))):
        run = step(run, parts[0], parts[1], epochs)
    errors = eqx.filter_vmap(_test, in_axes=(0, None))(run.best, parts)
    leaves = [jnp.reshape(leaf, (seeds, -1)) for leaf in jax.tree.leaves(run.model.weights)]
    finite = jnp.all(jnp.isfinite(jnp.concatenate(leaves, axis=1)), axis=1)
    return run.best, np.asarray(jnp.where(finite, errors, jnp.nan), float), np.asarray(run.epochs)
