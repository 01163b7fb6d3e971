"""A recurrent model as a dynamical system: a map or a vector field, on a vector of real numbers."""

import inspect
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import (
    as_finite_array,
    as_inexact_array,
    check_finite,
    check_float64,
    said,
    shown,
)
from ..losses import coordinates
from ..models import AbstractModel, cell_at_rest, CELLS, known_input_shape

_Kind = Literal["model", "cell", "map", "step", "field"]
# A function says by the number of its arguments what it is.
_FUNCTIONS: dict[int, _Kind] = {1: "map", 2: "step", 3: "field"}
_WANTED = (
    "a model, a GRU or LSTM cell of Equinox, a step `f(hidden)` or `f(hidden, x)`, or a vector "
    "field `f(t, hidden, x)`"
)


class System(eqx.Module):
    r"""The recurrence of a model: $h_{k+1} = F(h_k, x_k)$, or $\dot h = f(t, h, x)$.

    `rate` is $F$ or $f$ in real coordinates, where the real parts of complex numbers are followed
    by their imaginary parts.
    """

    source: Any
    hidden: PyTree[Array]
    kind: _Kind = eqx.field(static=True)

    @property
    def continuous(self) -> bool:
        """Whether time is."""
        return self.kind in ("model", "field")

    @property
    def flat(self) -> Float[Array, " coordinates"]:
        """The hidden state that the model starts from, in real coordinates."""
        return coordinates(self.hidden)[0]

    def back(self, vector: Float[Array, " coordinates"]) -> PyTree[Array]:
        """The hidden state with these coordinates."""
        return coordinates(self.hidden)[1](vector)

    def rate(
        self, t: Float[Array, ""], vector: Float[Array, " coordinates"], x: Float[Array, "..."]
    ) -> Float[Array, " coordinates"]:
        """Where a state moves to in a step, or how fast it moves."""
        return coordinates(self.move(t, self.back(vector), x))[0]

    def move(self, t: Float[Array, ""], hidden: PyTree[Array], x: Float[Array, "..."]) -> PyTree:
        """The same for the hidden state as the model has it."""
        if self.kind == "model":
            return self.source.vector_field(t, hidden, x)
        if self.kind == "cell":
            return self.source(jnp.atleast_1d(x), hidden)
        if self.kind == "map":
            return self.source(hidden)
        if self.kind == "step":
            return self.source(hidden, x)
        return self.source(t, hidden, x)


def as_system(model: Any, hidden: Any) -> System:
    """`model` as a system that starts from `hidden`, or from rest."""
    if isinstance(model, diffrax.ODETerm):
        model = model.vector_field
    kind = _kind_of(model)
    rest = None
    if kind == "model":
        rest = model.initial_hidden()
    elif kind == "cell":
        rest = cell_at_rest(model, jnp.result_type(float))
    elif hidden is None:
        raise TypeError(
            "`hidden` must be given for a function, got None; pass a hidden state to start from, "
            "such as jnp.zeros(3)."
        )
    if rest is not None and hidden is not None:
        _check_like(rest, hidden)
    return System(model, _in_float64(rest if hidden is None else hidden), kind)


def as_input(system: System, x: Any) -> Float[Array, "..."]:
    """`x` as a constant input of the system, which must be able to take it."""
    x = as_finite_array("x", x)
    shape = known_input_shape(system.source)
    if shape is not None:
        if x.shape not in ((), shape):
            raise ValueError(
                f"`x` must be a number or of shape {shape} for this model, got shape {x.shape}; "
                "pass one value for each input."
            )
        x = jnp.broadcast_to(x, shape)
    x = x.astype(float)
    _check_moves(system, "x", x)
    return x


def as_inputs(system: System, xs: Any) -> Float[Array, "times ..."]:
    """`xs` as samples of the input of the system."""
    xs = as_finite_array("xs", xs)
    shape = known_input_shape(system.source)
    wanted = "(times, ...)" if shape is None else f"({', '.join(map(str, ('times', *shape)))},)"
    if xs.ndim == 0 or xs.shape[0] < 2 or (shape is not None and xs.shape[1:] != shape):
        raise ValueError(
            f"`xs` must be samples at two times or more, of shape {wanted}, got shape {xs.shape}; "
            "pass one sample a time."
        )
    xs = xs.astype(float)
    _check_moves(system, "xs", xs[0])
    return xs


def _kind_of(model: Any) -> _Kind:
    if isinstance(model, AbstractModel):
        return "model"
    if isinstance(model, CELLS):
        return "cell"
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"`model` must be {_WANTED}, got {shown(model)}; pass one of them.")
    hint = "pass a lambda with these arguments"
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`model` must be {_WANTED}, got a function without a signature; {hint}."
        ) from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    number = sum(p.kind in positional and p.default is p.empty for p in parameters)
    if number not in _FUNCTIONS:
        raise TypeError(
            f"`model` must be {_WANTED}, got a function of {number} required arguments; {hint}."
        )
    return _FUNCTIONS[number]


def _in_float64(hidden: PyTree) -> PyTree[Array]:
    """A hidden state in double precision, to which single weights are promoted as they meet it."""
    leaves, tree = jax.tree.flatten(hidden)
    if not leaves:
        raise ValueError(
            f"`hidden` must hold numbers, got {shown(hidden)}; pass a hidden state, such as "
            "jnp.zeros(3)."
        )
    arrays = [as_inexact_array("hidden", leaf) for leaf in leaves]
    for leaf in leaves:
        check_finite("hidden", leaf)
    if not sum(array.size for array in arrays):
        raise ValueError(
            "`hidden` must hold numbers, got arrays without any; pass a hidden state, such as "
            "jnp.zeros(3)."
        )
    complexes = [jnp.issubdtype(array.dtype, jnp.complexfloating) for array in arrays]
    arrays = [
        array.astype(complex if parts else float)
        for array, parts in zip(arrays, complexes, strict=True)
    ]
    # Exponents are averages of many small numbers, and fixed points are told apart by their
    # distance: in single precision neither means much.
    check_float64("hidden", arrays)
    return jax.tree.unflatten(tree, arrays)


def shape_of(leaf: Any) -> tuple[int, ...] | None:
    """The shape of a number or an array, `None` of anything else."""
    number = isinstance(leaf, (int, float, complex, np.generic, np.ndarray, jax.Array))
    return tuple(np.shape(leaf)) if number else getattr(leaf, "shape", None)


def _shapes(tree: Any) -> PyTree:
    return jax.tree.map(shape_of, tree)


def _check_like(rest: PyTree[Array], hidden: Any) -> None:
    if _shapes(rest) != _shapes(hidden):
        raise ValueError(
            f"`hidden` must be like the hidden state of the model, of shapes "
            f"{shown(_shapes(rest))}, got {shown(hidden)}; pass such arrays."
        )


def _check_moves(system: System, name: str, x: Array) -> None:
    """Refuse a system that does not map hidden states to their like, before anything runs."""
    zero = jnp.zeros(())
    try:
        found = eqx.filter_eval_shape(lambda s, x: s.move(zero, s.hidden, x), system, x)
    except Exception as error:  # of the model's own
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"`model` must take `hidden` and `{name}`, here inputs of shape {x.shape}; got an "
            f"error: {said(error)}"
        ) from error
    if _shapes(found) != _shapes(system.hidden):
        raise TypeError(
            f"`model` must map a hidden state to one of the same shapes, got "
            f"{shown(_shapes(found))} for {shown(_shapes(system.hidden))}; check the order of its "
            "arguments, what it returns, and `hidden`."
        )
    check_float64("model", found)
