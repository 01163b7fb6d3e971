import functools
import itertools
import math
import operator
from typing import TypeAlias

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import as_horizon, check_instance, is_traced
from .._typing import ArrayLike
from ..numerics import decay_time, exponential_action, gramian, panels, resolved
from ._base import AbstractKernel
from ._bump import bump_product, GaussianBump
from ._composed import ScaledKernel
from ._exponential import ExponentialSum, kernel_of_modes
from ._oscillation import DampedOscillation, oscillation_product
from ._sampled import SampledKernel
from ._state_space import state_space, StateSpaceKernel
from ._sum import KernelSum
from ._vector import VectorKernel

Kernel: TypeAlias = AbstractKernel | StateSpaceKernel | VectorKernel
System: TypeAlias = tuple[Array, Array, Array]

_FINITE = (ExponentialSum, DampedOscillation, StateSpaceKernel)  # of finite dimension


def inner_product(
    first: Kernel,
    second: Kernel,
    horizon: Real[ArrayLike, "..."] | None = jnp.inf,
) -> Float[Array, "..."]:
    r"""The inner product of two kernels, $\int_0^h \rho_1(t) \cdot \rho_2(t) \,\mathrm{d}t$.

    It is the covariance of the two outputs under white-noise input, summed over inputs and
    outputs (theory, section 3). Sums distribute. Closed forms:

    - an exponential sum with any scalar kernel is $\sum_j a_j R(w_j)$, and a sampled kernel with
      any other than a state space is integrated by parts through that kernel's responses, so
      both also work with kernels of your own. The integration by parts is accurate to rounding
      of the product of the norms;
    - damped oscillations among themselves are summed mode by mode, and Gaussian bumps too;
    - state spaces $C_1 e^{W_1 t} U_1$, $C_2 e^{W_2 t} U_2$ give
      $\operatorname{tr} C_1 X C_2^\top$ with Sylvester's equation
      $W_1 X + X W_2^\top + U_1 U_2^\top = 0$.

    All other pairs are integrated by Gauss's rule with 32 points on panels between the
    `breakpoints` of both, to about 1e-10 relative to $\int |\rho_1 \rho_2|$ and usually far
    better. A product that the panels do not resolve, for instance of a kernel of your own that
    does not say where it has kinks, is an error, or NaN under `jax.jit`.

    **Arguments:**

    - `first`, `second`: The kernels $\rho_1$ and $\rho_2$: scalar kernels, or
        [`memjax.StateSpaceKernel`][] and [`memjax.VectorKernel`][] of the same numbers of inputs
        and outputs.
    - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

    **Returns:**

    An array of the shape of `horizon`.

    **Raises:** `TypeError` for anything but kernels; `ValueError` for different numbers of inputs
    or outputs, for a kernel that is not in $L^2$ with an infinite horizon, and for a product that
    quadrature does not resolve.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5 (theory, section 3).
    """
    horizon = jnp.inf if horizon is None else horizon
    _check_pair(first, second, horizon)
    if isinstance(first, AbstractKernel) and isinstance(second, AbstractKernel):
        return _scalar_product(first, second, horizon)
    systems = state_space(first), state_space(second)
    if systems[0] is not None and systems[1] is not None:
        return _state_space_product(systems[0], systems[1], horizon)
    pairs = zip(entries(first), entries(second), strict=True)
    return functools.reduce(operator.add, [_scalar_product(a, b, horizon) for a, b in pairs])


def squared_distance(
    first: Kernel, second: Kernel, horizon: Real[ArrayLike, "..."] | None = jnp.inf
) -> Float[Array, "..."]:
    r"""The squared distance of two kernels, $\int_0^h |\rho_1(t) - \rho_2(t)|^2 \,\mathrm{d}t$.

    What both have of exponentials, oscillations and state spaces is first joined into one kernel
    of the same kind, so that what they share cancels inside its squared norm.

    **Arguments:** and **Raises:** as for [`memjax.inner_product`][].

    **Returns:**

    An array of the shape of `horizon`.
    """
    _check_pair(first, second, horizon)
    if sizes(first) == (None, None):
        return _scalar_distance(first, second, horizon)
    systems = state_space(first), state_space(second)
    if systems[0] is not None and systems[1] is not None:
        joint = join([(1.0, systems[0]), (-1.0, systems[1])])
        return _state_space_product(joint, joint, horizon)
    pairs = zip(entries(first), entries(second), strict=True)
    return functools.reduce(operator.add, [_scalar_distance(a, b, horizon) for a, b in pairs])


def sizes(kernel: Kernel) -> tuple[int | None, int | None]:
    """The numbers of outputs and of inputs, `None` for a scalar."""
    if isinstance(kernel, AbstractKernel):
        return None, None
    if isinstance(kernel, StateSpaceKernel):
        outputs = kernel.readout.shape[0] if kernel.readout.ndim == 2 else None
        return outputs, kernel.input.shape[1] if kernel.input.ndim == 2 else None
    return kernel.shape[0] if len(kernel.shape) == 2 else None, kernel.inputs


def describe_sizes(kernel: Kernel) -> str:
    outputs, inputs = sizes(kernel)
    return (
        f"{'a scalar input' if inputs is None else f'an input of shape ({inputs},)'} and "
        f"{'a scalar output' if outputs is None else f'an output of shape ({outputs},)'}"
    )


def separate(kernel: Kernel) -> tuple[list[tuple[Array, Kernel]], list[tuple[Array, Kernel]]]:
    """The terms of a scalar kernel with their factors: those of finite dimension, all others."""
    if isinstance(kernel, KernelSum):
        parts = [separate(term) for term in kernel.terms]
        return [x for part in parts for x in part[0]], [x for part in parts for x in part[1]]
    if isinstance(kernel, ScaledKernel):
        finite, rest = separate(kernel.kernel)
        scaled = lambda terms: [(kernel.factor * factor, term) for factor, term in terms]
        return scaled(finite), scaled(rest)
    term = [(jnp.asarray(1.0), kernel)]
    return (term, []) if isinstance(kernel, _FINITE) else ([], term)


def joint(terms: list[tuple[Array, Kernel]]) -> Kernel:
    """The sum of state spaces times factors, as one kernel of the narrowest kind."""
    kernels = [term for _, term in terms]
    scaled = lambda name: jnp.concatenate(
        [factor * getattr(term, name) for factor, term in terms] or [jnp.zeros(0)]
    )
    plain = lambda name: jnp.concatenate(
        [getattr(term, name) for term in kernels] or [jnp.zeros(0)]
    )
    if all(isinstance(term, ExponentialSum) for term in kernels):
        return kernel_of_modes(
            ExponentialSum, amplitudes=scaled("amplitudes"), rates=plain("rates")
        )
    if all(isinstance(term, (ExponentialSum, DampedOscillation)) for term in kernels):
        terms = [(factor, _as_oscillation(term)) for factor, term in terms]
        kernels = [term for _, term in terms]
        return kernel_of_modes(
            DampedOscillation,
            cosine=scaled("cosine"),
            sine=scaled("sine"),
            rates=plain("rates"),
            frequencies=plain("frequencies"),
        )
    w, u, c = join([(factor, state_space(term)) for factor, term in terms])  # pyright: ignore
    return StateSpaceKernel(w, u[:, 0], c[0])


def _check_pair(first: Kernel, second: Kernel, horizon: ArrayLike | None) -> None:
    for name, kernel in (("first", first), ("second", second)):
        check_instance(
            name, kernel, Kernel, "a kernel", "pass an instance of memjax.AbstractKernel"
        )
    if sizes(first) != sizes(second):
        raise ValueError(
            f"`first` and `second` must have the same inputs and outputs, got "
            f"{describe_sizes(first)}, against {describe_sizes(second)}."
        )
    if as_horizon(horizon) is None:
        for name, kernel in (("first", first), ("second", second)):
            check_square_integrable(name, kernel)


def check_square_integrable(name: str, kernel: Kernel) -> None:
    """Refuse a kernel whose squared norm over the half line is infinite."""
    if not kernel.in_l2:
        raise ValueError(
            f"`{name}` must be square integrable for an infinite horizon, got "
            f"{type(kernel).__name__}, whose squared norm is infinite; pass a finite horizon."
        )


def entries(kernel: Kernel) -> list[Kernel]:
    """The scalar kernels of a matrix of them, row by row."""
    if isinstance(kernel, VectorKernel):
        return list(kernel.entries())
    if isinstance(kernel, AbstractKernel):
        return [kernel]
    columns = jnp.reshape(kernel.input, (kernel.input.shape[0], -1)).T
    rows = jnp.reshape(kernel.readout, (-1, kernel.readout.shape[-1]))
    return [StateSpaceKernel(kernel.recurrent, u, c) for c in rows for u in columns]


def _scalar_product(first: Kernel, second: Kernel, horizon: ArrayLike | None) -> Array:
    if first is second and isinstance(first, AbstractKernel):
        return first.squared_norm(horizon)
    for a, b in ((first, second), (second, first)):
        if isinstance(a, KernelSum):
            products = [_scalar_product(term, b, horizon) for term in a.terms]
            return functools.reduce(operator.add, products)
        if isinstance(a, ScaledKernel):
            return a.factor * _scalar_product(a.kernel, b, horizon)
    if isinstance(first, StateSpaceKernel) or isinstance(second, StateSpaceKernel):
        systems = state_space(first), state_space(second)
        if systems[0] is not None and systems[1] is not None:
            return _state_space_product(systems[0], systems[1], horizon)
        return _quadrature(first, second, horizon)
    assert isinstance(first, AbstractKernel) and isinstance(second, AbstractKernel)
    if isinstance(first, ExponentialSum):
        return _exponential_product(first, second, horizon)
    if isinstance(second, ExponentialSum):
        return _exponential_product(second, first, horizon)
    if isinstance(first, DampedOscillation) and isinstance(second, DampedOscillation):
        return oscillation_product(first, second, horizon)
    if isinstance(first, GaussianBump) and isinstance(second, GaussianBump):
        return bump_product(first, second, horizon)
    if isinstance(first, SampledKernel) and isinstance(second, SampledKernel):
        return _sampled_product(first, second, horizon)
    if isinstance(first, SampledKernel):
        return _product_by_parts(first, second, horizon)
    if isinstance(second, SampledKernel):
        return _product_by_parts(second, first, horizon)
    return _quadrature(first, second, horizon)


def _scalar_distance(first: Kernel, second: Kernel, horizon: ArrayLike | None) -> Array:
    (systems, rest), (other_systems, other_rest) = separate(first), separate(second)
    error = joint(systems + [(-factor, term) for factor, term in other_systems])
    rest = rest + [(-factor, term) for factor, term in other_rest]
    value = _scalar_product(error, error, horizon)
    for factor, term in rest:
        value = value + 2 * factor * _scalar_product(error, term, horizon)
        value = value + factor**2 * _scalar_product(term, term, horizon)
    for (factor, term), (other_factor, other) in itertools.combinations(rest, 2):
        value = value + 2 * factor * other_factor * _scalar_product(term, other, horizon)
    return value


def _as_oscillation(kernel: Kernel) -> DampedOscillation:
    if isinstance(kernel, ExponentialSum):
        still = jnp.zeros_like(kernel.rates)
        return kernel_of_modes(
            DampedOscillation,
            cosine=kernel.amplitudes,
            sine=still,
            rates=kernel.rates,
            frequencies=still,
        )
    assert isinstance(kernel, DampedOscillation)
    return kernel


def join(systems: list[tuple[Array | float, System]]) -> System:
    """The weighted sum of state spaces, as one."""
    recurrent = jax.scipy.linalg.block_diag(*(w for _, (w, _, _) in systems))
    inputs = jnp.concatenate([u for _, (_, u, _) in systems])
    readout = jnp.concatenate([factor * c for factor, (_, _, c) in systems], axis=1)
    return recurrent, inputs, readout


def _state_space_product(first: System, second: System, horizon: ArrayLike | None) -> Array:
    (w1, u1, c1), (w2, u2, c2) = first, second

    def product(horizon: Array | None) -> Array:
        return jnp.sum((c1 @ gramian(w1, w2.T, u1 @ u2.T, horizon)) * c2)

    finite = as_horizon(horizon)
    return product(None) if finite is None else jnp.vectorize(product)(finite)


def _quadrature(first: Kernel, second: Kernel, horizon: ArrayLike | None) -> Array:
    def integral(horizon: Array | None) -> Array:
        t, weights = panels(edges((first, second), horizon))
        return resolved(values(first, t) * values(second, t), weights)

    finite = as_horizon(horizon)
    value = integral(None) if finite is None else jnp.vectorize(integral)(finite)
    if not is_traced(value) and np.any(np.isnan(value)):
        raise ValueError(
            f"`first` and `second` have a product that quadrature does not resolve, got "
            f"{type(first).__name__} and {type(second).__name__}; say where they have kinks in "
            "`breakpoints`, or sample one of them into a `SampledKernel`."
        )
    return value


def edges(kernels: tuple[Kernel, ...], horizon: Array | None) -> Float[Array, " edges"]:
    """Edges of panels that resolve every one of the kernels, up to the end of the shortest."""
    end = jnp.asarray(jnp.inf if horizon is None else horizon)
    for kernel in kernels:
        end = jnp.minimum(end, _support(kernel))
    points = jnp.concatenate([jnp.zeros(1), *(_breakpoints(kernel, end) for kernel in kernels)])
    # Past its breakpoints a kernel changes on the scale of time itself; panels of oscillations
    # reach as far as they last anyway.
    bounded = any(isinstance(kernel, (DampedOscillation, StateSpaceKernel)) for kernel in kernels)
    if not bounded and (is_traced(end) or not np.isfinite(end)):
        last = jnp.max(points)
        octaves = 2.0 ** jnp.arange(-40, 120)
        points = jnp.concatenate([points, jnp.where(last > 0, last, 1) * octaves])
    points = jnp.sort(jnp.minimum(jnp.append(points, end), end))
    # Without an end the panels stop far beyond all that float64 can tell from 0.
    return jnp.minimum(points, jnp.max(points, where=jnp.isfinite(points), initial=0))


def values(kernel: Kernel, t: Float[Array, "panels nodes"]) -> Float[Array, "panels nodes"]:
    """A scalar kernel at the nodes of its panels."""
    if isinstance(kernel, StateSpaceKernel):
        states = exponential_action(kernel.recurrent, kernel.input[:, None], t.ravel())
        return jnp.reshape(states[..., 0] @ kernel.readout, t.shape)
    return kernel(t)


def _support(kernel: Kernel) -> Array:
    """Where a kernel ends. Only an end at which it jumps has a derivative that counts."""
    if isinstance(kernel, StateSpaceKernel):
        return decay_time(kernel.recurrent)
    assert isinstance(kernel, AbstractKernel)
    support = kernel.support()
    return lax.stop_gradient(support) if isinstance(kernel, _FINITE) else support


def _breakpoints(kernel: Kernel, end: Array) -> Array:
    """Where panels begin. Those of oscillations know for how long they are needed."""
    if isinstance(kernel, DampedOscillation):
        traced = is_traced((kernel.frequencies, end))
        frequencies = () if traced else np.asarray(kernel.frequencies)
    elif isinstance(kernel, StateSpaceKernel):
        traced = is_traced((kernel.recurrent, end))
        frequencies = () if traced else np.linalg.eigvals(np.asarray(kernel.recurrent)).imag
    else:
        assert isinstance(kernel, AbstractKernel)
        return kernel.breakpoints()
    # Four periods a panel; traced frequencies are not known, and 64 panels are then tried.
    count = 64
    if not traced:
        fastest = np.max(np.abs(frequencies), initial=0)
        count = min(max(1, math.ceil(fastest * float(end) / (8 * math.pi))), 4096)
    even = jnp.linspace(0, 1, count + 1)
    decays = 2.0 ** jnp.arange(-48, 0)
    return end * jnp.concatenate([even, decays])


def _exponential_product(
    first: ExponentialSum, second: AbstractKernel, horizon: ArrayLike | None
) -> Array:
    finite = as_horizon(horizon)
    transform = second.laplace(first.rates, jnp.inf if finite is None else finite[..., None])
    return jnp.sum(first.amplitudes * transform, axis=-1)


def _sampled_product(
    first: SampledKernel, second: SampledKernel, horizon: ArrayLike | None
) -> Array:
    # On the merged grid the product is quadratic between neighbours, and two Gauss points, which
    # never touch a jump at the ends of either kernel, integrate it exactly.
    grid = jnp.sort(jnp.concatenate([first.times, second.times]))
    finite = as_horizon(horizon)
    if finite is not None:
        grid = jnp.minimum(grid, finite[..., None])
    steps = jnp.diff(grid, axis=-1)
    middle = grid[..., :-1] + steps / 2
    offset = steps / (2 * math.sqrt(3))
    total = sum(first(point) * second(point) for point in (middle - offset, middle + offset))
    return jnp.sum(steps * total, axis=-1) / 2


def _product_by_parts(
    first: SampledKernel, second: AbstractKernel, horizon: ArrayLike | None
) -> Array:
    slopes = jnp.diff(first.values) / jnp.diff(first.times)
    times = first.times
    finite = as_horizon(horizon)
    if finite is not None:
        times = jnp.minimum(times, finite[..., None])
    steps = second.heaviside_response(times[..., [0, -1]])
    ramps = second.ramp_response(times)
    end = jnp.interp(times[..., -1], first.times, first.values)
    return (
        end * steps[..., 1]
        - first.values[0] * steps[..., 0]
        - jnp.sum(slopes * jnp.diff(ramps, axis=-1), axis=-1)
    )
