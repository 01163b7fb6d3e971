import abc
from collections.abc import Callable
from typing import Any, get_args, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Real, Shaped

from .._checks import (
    as_inexact_array,
    check_callable,
    check_choice,
    check_instance,
    check_integer,
    said,
    shown,
    valid_or_nan,
)
from .._paths import as_samples, as_steps, as_times, check_resolved, integrating, resolved
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation

Interpolation = Literal["linear", "cubic", "previous"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


class AbstractModel(eqx.Module):
    r"""A continuous-time recurrent model: a vector field for its hidden state, and a readout.

    $$\dot h_t = f(t, h_t, x_t), \qquad \hat y_t = r(h_t), \qquad h_{-\infty} = 0.$$

    Calling the model integrates the hidden state with Diffrax along an input path. To write a
    model, subclass it and give `initial_hidden`, `vector_field` and `readout`; every
    inexact-array leaf outside a reparametrisation or a [`memjax.Fixed`][] is then trained by the
    flows. `residual` discretises any model by Euler's method; models with linear recurrence have
    a `scan` beside it, which is exact in the step.
    """

    @abc.abstractmethod
    def initial_hidden(self) -> PyTree[Array]:
        """The hidden state at rest, before any input."""

    @abc.abstractmethod
    def vector_field(
        self, t: Float[Array, ""], hidden: PyTree[Array], x: Shaped[Array, "..."]
    ) -> PyTree[Array]:
        """The time derivative of the hidden state under the input `x` at time `t`."""

    @abc.abstractmethod
    def readout(self, hidden: PyTree[Array]) -> Shaped[Array, "..."]:
        """The output of a hidden state."""

    @property
    def modes(self) -> tuple[Shaped[Array, " modes"], ...] | None:
        """What tells the modes of a diagonal model from each other, one entry a mode; `None` for a
        model whose weights are not all of that kind. Modes that are equal in all of it can be
        exchanged."""
        return None

    def __call__(
        self,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "times ..."] | Callable[[Float[Array, ""]], Array],
        *,
        interpolation: Interpolation = "linear",
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        max_steps: int | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
    ) -> Float[Array, "times ..."]:
        """The outputs at times `ts`, starting from rest at `ts[0]`.

        **Arguments:**

        - `ts`: increasing times, shape `(times,)`, in units of the model's own clock.
        - `xs`: the input path: samples at `ts`, shape `(times, ...)`, or a function of time.
        - `interpolation`: how samples become a path: `"linear"`, `"cubic"` (Hermite with
            backward differences) or `"previous"` (held constant until the next sample).
            Ignored if `xs` is a function.
        - `solver`: a Diffrax solver. Defaults to `diffrax.Kvaerno5()`, since rates of very
            different size make the hidden state stiff.
        - `stepsize_controller`: defaults to `PIDController(rtol=1e-8, atol=1e-10)`, told of
            the kinks or jumps that the interpolation makes at `ts`.
        - `max_steps`: bound on the number of steps. Defaults to 4096 plus 64 per sample.
        - `adjoint`: how Diffrax differentiates. Defaults to
            `diffrax.RecursiveCheckpointAdjoint()`; in a [`memjax.FunctionLoss`][], whose
            Hessian needs forward over reverse mode, pass `diffrax.DirectAdjoint()`.

        **Returns:**

        The outputs, shape `(times, ...)`.

        **Raises:**

        `ValueError` if `ts` does not increase or does not match `xs`, for an integration that
        takes more than `max_steps`, or if the rounding of times in single precision is more than
        0.2 % of their steps. (Traced ones give NaN or an error of Diffrax; `scan` and `residual`
        have no such limit for even times.)
        """
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        if max_steps is not None:
            check_integer("max_steps", max_steps)
        for name, given, kind, example in (
            ("solver", solver, diffrax.AbstractSolver, "diffrax.Kvaerno5()"),
            (
                "stepsize_controller",
                stepsize_controller,
                diffrax.AbstractStepSizeController,
                "diffrax.PIDController(rtol=1e-8, atol=1e-10)",
            ),
            ("adjoint", adjoint, diffrax.AbstractAdjoint, "diffrax.DirectAdjoint()"),
        ):
            if given is not None:
                wanted = f"a diffrax.{kind.__name__}"
                check_instance(name, given, kind, wanted, f"pass for example {example}")
        jump_ts = step_ts = None
        if callable(xs):
            check_callable("xs", xs, "pass samples, or a function of time")
            ts = as_times(ts)
            path = xs
        else:
            ts, xs = as_samples(ts, xs)
            check_resolved(ts)
            path = _interpolate(ts, xs, interpolation)
            # Across a kink or a jump no method has its order. After a jump those whose last stage
            # is the first of the next step must evaluate that anew, which Diffrax does where it is
            # told of one.
            if interpolation == "previous":
                jump_ts = ts[1:-1]
            else:
                step_ts = ts[1:-1]
        self._check_dynamics(ts[0], _first_input(path, ts[0]))
        if solver is None:
            solver = diffrax.Kvaerno5()
        if stepsize_controller is None:
            stepsize_controller = diffrax.PIDController(rtol=1e-8, atol=1e-10)
            if jump_ts is not None or step_ts is not None:
                stepsize_controller = diffrax.ClipStepSizeController(
                    stepsize_controller, step_ts=step_ts, jump_ts=jump_ts
                )

        def vector_field(t: Any, hidden: PyTree[Array], args: None) -> PyTree[Array]:
            return self.vector_field(t, hidden, path(t))

        # Samples end steps, so that the bound grows with them.
        max_steps = 4096 + 64 * ts.shape[0] if max_steps is None else max_steps
        with integrating(max_steps):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(vector_field),
                solver,
                t0=ts[0],
                t1=ts[-1],
                # Controllers that do not adapt have no way to choose the first step.
                dt0=None if isinstance(stepsize_controller, _ADAPTIVE) else ts[1] - ts[0],
                y0=self.initial_hidden(),
                saveat=diffrax.SaveAt(ts=ts, fn=lambda t, hidden, args: self.readout(hidden)),
                stepsize_controller=stepsize_controller,
                max_steps=max_steps,
                adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
            )
        assert solution.ys is not None
        if callable(xs):
            return solution.ys
        return jax.tree.map(lambda ys: valid_or_nan(ys, resolved(ts)), solution.ys)

    def _check_dynamics(self, t: Float[Array, ""], x: Array) -> None:
        hidden = self.initial_hidden()
        check_same_state("vector_field", hidden, jax.eval_shape(self.vector_field, t, hidden, x))

    def residual(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        r"""The outputs of the residual discretisation (Euler's method), starting from rest.

        $$h_{k+1} = h_k + (t_{k+1} - t_k)\, f(t_k, h_k, x_k), \qquad \hat y_k = r(h_k).$$

        **Arguments:**

        - `ts`: increasing times, shape `(times,)`, in units of the model's own clock; of float32
            as in [`memjax.DiagonalLinearRNN.scan`][].
        - `xs`: the inputs at `ts`, shape `(times, ...)`; the last one does not act any more.

        **Returns:**

        The outputs at `ts`, shape `(times, ...)`.

        **Raises:**

        `ValueError` if `ts` does not increase or does not match `xs`.
        """
        given = ts
        ts, xs = as_samples(ts, xs)
        # By shapes alone, before anything is compiled.
        self._check_dynamics(ts[0], xs[0])
        steps = as_steps(given)

        def move(hidden: PyTree[Array], now: tuple[Array, Array, Array]) -> tuple[PyTree, Array]:
            t, step, x = now
            slope = self.vector_field(t, hidden, x)
            moved = jax.tree.map(lambda h, f: (h + step * f).astype(h.dtype), hidden, slope)
            return moved, self.readout(hidden)

        # The last step, of no length, only reads the last hidden state.
        steps = jnp.append(steps, 0)
        return jax.lax.scan(move, self.initial_hidden(), (ts, steps, xs))[1]


def check_same_state(name: str, hidden: PyTree[Array], found: PyTree) -> None:
    """Refuse dynamics of one's own that do not give a hidden state like the one they got."""
    like = lambda tree: jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree)
    if like(hidden) != like(found):
        raise TypeError(
            f"`{name}` must map a hidden state to one of the same shapes, got {shown(like(found))} "
            f"for {shown(like(hidden))}; check the order of its arguments and what it returns."
        )


class Fixed(eqx.Module):
    """A value that the flows do not train, such as the clock rate of a [`memjax.GatedRNN`][].

    Its arrays are leaves: they can still be swept and differentiated. In a model of your own,
    keep constants as `Fixed(constant)` and read them from `value`.

    **Arguments:**

    - `value`: an array, or any PyTree of arrays.
    """

    value: PyTree


_ADAPTIVE = (diffrax.AbstractAdaptiveStepSizeController, diffrax.ClipStepSizeController)


def _first_input(path: Callable[[Any], Any], t: Array) -> Array:
    """What a path gives at a time, of which it has to be a function."""
    try:
        return as_inexact_array("xs", path(t))
    except Exception as error:
        raise TypeError(
            f"`xs` must be samples or a function of time, got an error: {said(error)}"
        ) from error


def _interpolate(
    ts: Float[Array, " times"], xs: Float[Array, "times ..."], interpolation: Interpolation
) -> Callable[[Any], Array]:
    if interpolation == "linear":
        return diffrax.LinearInterpolation(ts, xs).evaluate
    if interpolation == "cubic":
        coefficients = diffrax.backward_hermite_coefficients(ts, xs)
        return diffrax.CubicInterpolation(ts, coefficients).evaluate

    def held(t: Any) -> Array:
        index = jnp.clip(jnp.searchsorted(ts, t, side="right") - 1, 0, ts.shape[0] - 1)
        return xs[index]

    return held


def trainable(model: PyTree) -> PyTree[bool]:
    """Which leaves of a model the flows train: its inexact arrays.

    Those in reparametrisations and in a [`memjax.Fixed`][] are left out.

    **Arguments:**

    - `model`: a model, or any PyTree.

    **Returns:**

    The same with a flag for every leaf: a filter specification for `equinox.partition` and
    `equinox.filter`.
    """

    def spec(node: Any) -> Any:
        if isinstance(node, _HELD):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(spec, model, is_leaf=lambda node: isinstance(node, _HELD))


_HELD = (AbstractReparametrisation, Fixed)
