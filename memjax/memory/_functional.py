import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Real

from .._checks import as_inexact_array, check_choice, check_flag, check_integer, is_traced, shown
from .._paths import as_samples, as_times, even_step
from .._typing import ArrayLike
from ..models import (
    AbstractModel,
    cell_at_rest,
    CELLS,
    check_same_state,
    HasScan,
    known_input_shape,
    scans_exactly,
)
from ..targets import (
    AbstractKernel,
    AbstractTarget,
    Attention,
    HasKernel,
    Lorenz96,
    Teacher,
    Volterra,
)

Method: TypeAlias = Literal["response", "scan", "diffrax", "residual", "cell", "sequence", "path"]
Functional: TypeAlias = AbstractTarget | AbstractModel | Callable[..., Any]

_MODEL_METHODS: tuple[Method, ...] = ("scan", "diffrax", "residual")
_CALLABLE_METHODS: tuple[Method, ...] = ("sequence", "path")


class SampledFunctional(eqx.Module):
    """Anything that maps input sequences to output sequences, behind one call.

    Made by [`memjax.as_functional`][]. The arrays of the object that was given are leaves.

    **Attributes:**

    - `source`: the object that was given.
    - `method`: how its outputs are computed, as in [`memjax.as_functional`][].
    - `inputs`: the number of inputs, or `None` for a scalar.
    - `batched`: whether the source wants a leading batch axis.
    """

    source: Any
    method: Method = eqx.field(static=True)
    inputs: int | None = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    @property
    def linear(self) -> bool:
        """Whether the outputs are known to be linear in the inputs."""
        if isinstance(self.source, AbstractTarget):
            return self.source.linear
        return isinstance(self.source, AbstractModel) and isinstance(self.source, HasKernel)

    def __call__(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Inexact[Array, "times ..."]:
        """The outputs for a sampled input, starting from rest.

        **Arguments:**

        - `ts`: increasing times, shape `(times,)`; evenly spaced for cells and sequence models,
            which do one step a sample.
        - `xs`: the samples, shape `(times,)` for a scalar input or `(times, inputs)`.

        **Returns:**

        The outputs, shape `(times,)` or `(times, outputs)`.

        **Raises:**

        `ValueError` for times that do not increase, or are not even where they have to be, for
        samples that do not match, and for outputs that are not one a time.
        """
        times, xs = as_samples(ts, xs, self.inputs)
        self.check_clock(ts)
        ys = self._outputs(ts, times, xs)
        shape = jnp.shape(ys)
        if len(shape) not in (1, 2) or shape[0] != times.size:
            raise ValueError(
                f"`functional` must return one output a time, got shape {shape} for {times.size} "
                "times; return an array of shape (times,) or (times, outputs), or say "
                "`batched=True` for one with a batch axis in front."
            )
        return ys

    def check_clock(self, ts: Real[ArrayLike, " times"]) -> None:
        """Refuse uneven times where every sample is one step.

        **Arguments:**

        - `ts`: increasing times, shape `(times,)`; traced ones pass.

        **Raises:**

        `ValueError` for a cell or a sequence model and times that are not evenly spaced.
        """
        as_times(ts)
        clocked = self.method in ("cell", "sequence")
        if not clocked or is_traced(ts) or even_step(ts) is not None:
            return
        steps = np.diff(np.asarray(ts, float))
        # So do clocks with a little jitter.
        if np.max(steps) - np.min(steps) > 1e-3 * np.mean(steps):
            raise ValueError(
                f"`ts` must be evenly spaced for {_name(self.source)}, which does one step a "
                "sample; pass for example jnp.arange(n) * step."
            )

    def _outputs(self, ts: ArrayLike, times: Array, xs: Array) -> Array:
        # Times go on as they were given: their differences are to be exact, and even ones cheaper.
        source = self.source
        if self.method == "response":
            return source.response(ts, xs)
        if self.method == "scan":
            return source.scan(ts, xs)
        if self.method == "residual":
            return source.residual(ts, xs)
        if self.method == "diffrax":
            return source(ts, xs)
        weights = jax.tree.leaves(eqx.filter(source, eqx.is_inexact_array))
        if weights:
            # Weights in single precision are not to meet samples in double.
            xs = xs.astype(jnp.finfo(jnp.result_type(*weights)).dtype)
        if self.method == "cell":
            return _run_cell(source, xs)
        xs = xs[None] if self.batched else xs
        ys = source(xs) if self.method == "sequence" else source(times, xs)
        ys = as_inexact_array("functional", ys)
        if not self.batched:
            return ys
        if ys.ndim == 0 or ys.shape[0] != 1:
            raise ValueError(
                f"`functional` must keep the batch axis with `batched=True`, got shape {ys.shape} "
                f"for inputs of shape {xs.shape}; return one output sequence a batch member."
            )
        return ys[0]


def as_functional(
    functional: Functional,
    *,
    method: Method | None = None,
    batched: bool = False,
    inputs: int | None = None,
) -> SampledFunctional:
    r"""One kind of module for targets, models, recurrent cells and any other callable.

    **Arguments:**

    - `functional`: what maps input sequences to output sequences:
        - an [`memjax.AbstractTarget`][], by its `response`;
        - an [`memjax.AbstractModel`][], by its exact `scan` if it has one, otherwise by Diffrax;
        - an `equinox.nn.GRUCell` or `equinox.nn.LSTMCell`, one step a sample from the zero
            state; the output is the hidden state $h$. A cell of one input takes scalars;
        - any other callable that JAX can trace. One with a single required positional argument
            is called as `functional(xs)`, one with two as `functional(ts, xs)`; outputs are of
            shape `(times,)` or `(times, outputs)`. For Flax pass
            `lambda xs: model.apply(params, xs)`.
    - `method`: asks for one way out of several: `"scan"`, `"diffrax"` or `"residual"` (Euler's
        method) for a model; `"sequence"`, called as `functional(xs)`, or `"path"`, called as
        `functional(ts, xs)`, for a callable whose signature does not tell.
    - `batched`: whether a callable wants and returns a batch axis in front of `xs` and outputs.
    - `inputs`: the number of inputs, for samples of shape `(times, inputs)`, or `None` for a
        scalar input, with samples of shape `(times,)`. Only needed for objects that do not know
        it themselves: callables, and targets or models of your own.

    **Returns:**

    A [`memjax.SampledFunctional`][], to be called as `functional(ts, xs)`.

    **Raises:**

    `TypeError` for what cannot be called, or whose signature does not tell how; `ValueError` for
    a method that the object does not have, for `batched=True` with anything but a callable, and
    for another number of inputs than the object's.
    """
    return named_functional("functional", functional, method, batched, inputs)


def named_functional(
    name: str,
    functional: Any,
    method: Method | None = None,
    batched: bool = False,
    inputs: int | None = None,
) -> SampledFunctional:
    """As `as_functional`, for an argument that has another name."""
    check_flag("batched", batched)
    if inputs is not None:
        check_integer("inputs", inputs)
    if isinstance(functional, SampledFunctional):
        if method is None and not batched and inputs in (None, functional.inputs):
            return functional
        functional = functional.source
    methods = _methods(name, functional)
    if batched and methods != _CALLABLE_METHODS:
        raise ValueError(
            f"`batched` is for plain callables, got {_name(functional)}; leave it out, or wrap it "
            "in a function of your own."
        )
    if method is None:
        method = _default(name, functional, methods)
    hint = f"this is for {_name(functional)}; choose one, or leave it out"
    check_choice("method", method, methods, hint)
    shape = _input_shape(functional)
    if shape is not None:
        number = shape[0] if shape else None
        if inputs is not None and inputs != number:
            raise ValueError(
                f"`inputs` must be {number} for this {_name(functional)}, got {inputs}; leave it "
                "out."
            )
        inputs = number
    return SampledFunctional(functional, method, inputs, bool(batched))


def _methods(name: str, functional: Any) -> tuple[Method, ...]:
    """The methods that an object has."""
    if isinstance(functional, AbstractTarget):
        return ("response",)
    if isinstance(functional, AbstractModel):
        return _MODEL_METHODS if isinstance(functional, HasScan) else _MODEL_METHODS[1:]
    if isinstance(functional, CELLS):
        return ("cell",)
    if callable(functional) and not isinstance(functional, type):
        return _CALLABLE_METHODS
    raise TypeError(
        f"`{name}` must be a target, a model, a GRU or LSTM cell of Equinox, or a function of "
        f"sequences, got {shown(functional)}; pass an instance."
    )


def _default(name: str, functional: Any, methods: tuple[Method, ...]) -> Method:
    if methods == _CALLABLE_METHODS:
        return _called(name, functional)
    if isinstance(functional, AbstractModel):
        # Every model has a scan or not; only an exact one is taken unasked.
        return "scan" if scans_exactly(functional) else "diffrax"
    return methods[0]


def _called(name: str, functional: Callable[..., Any]) -> Method:
    hint = "pass method='sequence' for f(xs) or method='path' for f(ts, xs)"
    try:
        parameters = inspect.signature(functional).parameters.values()
    except (TypeError, ValueError) as error:
        message = f"`{name}` has no signature that says how to call it; {hint}."
        raise TypeError(message) from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    if len(required) not in (1, 2):
        raise TypeError(
            f"`{name}` must take one required argument, xs, or two, ts and xs, got "
            f"{len(required)}; {hint}."
        )
    return "sequence" if len(required) == 1 else "path"


def _input_shape(functional: Any) -> tuple[int, ...] | None:
    """The shape of one sample of the input, `None` for objects that do not know it."""
    if isinstance(functional, Teacher):
        return _input_shape(functional.function)
    if isinstance(functional, Attention):
        return () if functional.scalar else (functional.queries.shape[2],)
    if isinstance(functional, (Volterra, Lorenz96)):
        return ()
    if isinstance(functional, AbstractKernel):
        number = functional.sizes[1]
        return () if number is None else (number,)
    return known_input_shape(functional)


def _run_cell(cell: Any, xs: Array) -> Array:
    hidden = cell_at_rest(cell, xs.dtype)

    def move(hidden: Any, x: Array) -> tuple[Any, Array]:
        hidden = cell(jnp.atleast_1d(x), hidden)
        return hidden, jax.tree.leaves(hidden)[0]

    check_same_state("functional", hidden, jax.eval_shape(move, hidden, xs[0])[0])
    return jax.lax.scan(move, hidden, xs)[1]


def _name(functional: Any) -> str:
    return getattr(functional, "__name__", type(functional).__name__)
