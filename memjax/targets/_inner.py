import itertools
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_horizon, check_instance
from .._typing import ArrayLike
from ._base import AbstractKernel
from ._exponential import ExponentialSum, join_modes
from ._oscillation import as_oscillation, DampedOscillation
from ._state_space import StateSpaceKernel
from ._sums import scalar_product, terms, total
from ._system import side_by_side, state_space

Terms: TypeAlias = list[tuple[float | Array, AbstractKernel]]


def inner_product(
    first: AbstractKernel,
    second: AbstractKernel,
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

    Kernels of your own join in: by [`memjax.targets.register_inner_product`][], and by
    [`memjax.targets.state_space`][], which makes those that have one state spaces in this sense.

    All other pairs are integrated by Gauss's rule with 32 points on panels between the
    `breakpoints` of both, to about 1e-10 relative to $\int |\rho_1 \rho_2|$ and usually far
    better. A product that the panels do not resolve, for instance of a kernel of your own that
    does not say where it has kinks, is an error, or NaN under `jax.jit`.

    **Arguments:**

    - `first`, `second`: The kernels $\rho_1$ and $\rho_2$: scalar ones, or
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
    finite = _check_pair(first, second, horizon)
    if first.shape:
        systems = state_space(first), state_space(second)
        if systems[0] is not None and systems[1] is not None:
            return systems[0].inner_product(systems[1], finite)
    pairs = zip(first.entries(), second.entries(), strict=True)
    return total([scalar_product(a, b, finite) for a, b in pairs])


def squared_distance(
    first: AbstractKernel, second: AbstractKernel, horizon: Real[ArrayLike, "..."] | None = jnp.inf
) -> Float[Array, "..."]:
    r"""The squared distance of two kernels, $\int_0^h |\rho_1(t) - \rho_2(t)|^2 \,\mathrm{d}t$.

    What both have of exponentials, oscillations and state spaces is first joined into one kernel
    of the same kind, so that what they share cancels inside its squared norm.

    **Arguments:** and **Raises:** as for [`memjax.inner_product`][].

    **Returns:**

    An array of the shape of `horizon`.
    """
    finite = _check_pair(first, second, horizon)
    if first.shape:
        systems = state_space(first), state_space(second)
        if systems[0] is not None and systems[1] is not None:
            error = systems[0] + -1.0 * systems[1]
            return error.inner_product(error, finite)
    pairs = zip(first.entries(), second.entries(), strict=True)
    return total([_scalar_distance(a, b, finite) for a, b in pairs])


def describe_sizes(kernel: AbstractKernel) -> str:
    outputs, inputs = kernel.sizes
    return (
        f"{'a scalar input' if inputs is None else f'an input of shape ({inputs},)'} and "
        f"{'a scalar output' if outputs is None else f'an output of shape ({outputs},)'}"
    )


def separate(kernel: AbstractKernel) -> tuple[Terms, Terms]:
    """The terms of a scalar kernel with their factors: those of finite dimension, all others."""
    finite, rest = [], []
    for factor, term in terms(kernel):
        (rest if state_space(term) is None else finite).append((factor, term))
    return finite, rest


def joint(terms: Terms) -> AbstractKernel:
    """The sum of terms of finite dimension, as one kernel of the narrowest kind."""
    # The narrower the kind, the cheaper its inner products: sums over pairs of modes, where state
    # spaces solve equations between matrices.
    kinds = {type(kernel) for _, kernel in terms}
    if kinds <= {ExponentialSum}:
        return join_modes(ExponentialSum, terms, ("amplitudes",))  # pyright: ignore
    if kinds <= {ExponentialSum, DampedOscillation}:
        waves = [(factor, as_oscillation(kernel)) for factor, kernel in terms]  # pyright: ignore
        return join_modes(DampedOscillation, waves, ("cosine", "sine"))
    w, u, c = side_by_side([factor * state_space(term) for factor, term in terms])  # pyright: ignore
    return StateSpaceKernel(w, u[:, 0], c[0])


def _check_pair(
    first: AbstractKernel, second: AbstractKernel, horizon: ArrayLike | None
) -> Array | None:
    """Refuse what has no inner product; gives the horizon."""
    for name, kernel in (("first", first), ("second", second)):
        check_instance(
            name, kernel, AbstractKernel, "a kernel", "pass an instance of memjax.AbstractKernel"
        )
    if first.sizes != second.sizes:
        raise ValueError(
            f"`first` and `second` must have the same inputs and outputs, got "
            f"{describe_sizes(first)}, against {describe_sizes(second)}."
        )
    finite = as_horizon(horizon)
    if finite is None:
        for name, kernel in (("first", first), ("second", second)):
            check_square_integrable(name, kernel)
    return finite


def check_square_integrable(name: str, kernel: AbstractKernel) -> None:
    """Refuse a kernel whose squared norm over the half line is infinite."""
    if not kernel.in_l2:
        raise ValueError(
            f"`{name}` must be square integrable for an infinite horizon, got "
            f"{type(kernel).__name__}, whose squared norm is infinite; pass a finite horizon."
        )


def _scalar_distance(first: AbstractKernel, second: AbstractKernel, horizon: Array | None) -> Array:
    negative = lambda terms: [(-factor, term) for factor, term in terms]
    (systems, rest), (other_systems, other_rest) = separate(first), separate(second)
    # What has no state space cannot be joined: its inner products are taken one by one, and cancel.
    error = joint(systems + negative(other_systems))
    rest = rest + negative(other_rest)
    value = scalar_product(error, error, horizon)
    for factor, term in rest:
        value = value + 2 * factor * scalar_product(error, term, horizon)
        value = value + factor**2 * scalar_product(term, term, horizon)
    for (factor, term), (other_factor, other) in itertools.combinations(rest, 2):
        value = value + 2 * factor * other_factor * scalar_product(term, other, horizon)
    return value
