"""Inner products of two kernels come from a table of closed forms. For all other pairs there are
state spaces and Gauss's rule."""

import operator
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_traced
from ..numerics import panels, resolved
from ._system import state_space

# Of two kernels and a horizon, which is `None` for the half line.
Product: TypeAlias = Callable[[Any, Any, Array | None], Array]

_FORMS: dict[tuple[type, type], Product] = {}


@runtime_checkable
class Panelled(Protocol):
    """What quadrature has to know of a kernel."""

    def __call__(self, t: Array, /) -> Array: ...
    def support(self) -> Array: ...
    def _panels(self, end: Array) -> tuple[Array, bool]: ...


def register_inner_product(first: type, second: type) -> Callable[[Product], Product]:
    r"""Register the closed form of the inner products of two classes of scalar kernels.

    ```python
    @memjax.targets.register_inner_product(Mine, memjax.GaussianBump)
    def _(mine, bump, horizon): ...
    ```

    The function takes the two kernels, in this order, and the horizon: `None` for the half line,
    or an array of finite times, whose shape the result has. Give `memjax.AbstractKernel` as the
    second class for all kernels. The closest classes of a pair count, in either order; of those
    that fit equally well, the pair that was registered first.

    **Arguments:**

    - `first`, `second`: The two classes.

    **Returns:**

    A decorator, which gives the function back.
    """

    def register(form: Product) -> Product:
        _FORMS[first, second] = form
        return form

    return register


def pair_product(first: Any, second: Any, horizon: Array | None) -> Array:
    """The inner product of two kernels by the closest form in the table."""
    if first is second:
        return first._squared_norm(horizon)
    # A form fits the better the nearer both of its classes are to those of the kernels.
    found: list[tuple[int, bool, Product]] = []
    for kinds, form in _FORMS.items():
        for swapped, pair in ((False, (first, second)), (True, (second, first))):
            if all(map(isinstance, pair, kinds)):
                places = [type(x).__mro__.index(kind) for x, kind in zip(pair, kinds, strict=True)]
                found.append((sum(places), swapped, form))
    _, swapped, form = min(found, key=operator.itemgetter(0))
    return form(second, first, horizon) if swapped else form(first, second, horizon)


def product_without_a_form(first: Any, second: Any, horizon: Array | None) -> Array:
    """Of two kernels of finite dimension that of their state spaces, otherwise by quadrature."""
    one, other = state_space(first), state_space(second)
    if one is None or other is None:
        return quadrature(first, second, horizon)
    return one.inner_product(other, horizon)


def quadrature(first: Panelled, second: Panelled, horizon: Array | None) -> Array:
    """The inner product by Gauss's rule on panels that resolve both kernels."""

    def integral(horizon: Array | None) -> Array:
        t, weights = panels(edges((first, second), horizon))
        return resolved(first(t) * second(t), weights)

    value = integral(None) if horizon is None else jnp.vectorize(integral)(horizon)
    if not is_traced(value) and np.any(np.isnan(value)):
        raise ValueError(
            f"`first` and `second` have a product that quadrature does not resolve, got "
            f"{type(first).__name__} and {type(second).__name__}; say where they have kinks in "
            "`breakpoints`, or sample one of them into a `SampledKernel`."
        )
    return value


def edges(kernels: tuple[Panelled, ...], horizon: Array | None) -> Float[Array, " edges"]:
    """Edges of panels that resolve every one of the kernels, up to the end of the shortest."""
    # The product is over with the first of the two.
    end = jnp.asarray(jnp.inf if horizon is None else horizon)
    for kernel in kernels:
        end = jnp.minimum(end, kernel.support())
    points, reaching = zip(*(kernel._panels(end) for kernel in kernels), strict=True)
    points = jnp.concatenate([jnp.zeros(1), *points])
    # Past its breakpoints a kernel changes on the scale of time itself.
    if not any(reaching) and (is_traced(end) or not np.isfinite(end)):
        last = jnp.max(points)
        octaves = 2.0 ** jnp.arange(-40, 120)
        points = jnp.concatenate([points, jnp.where(last > 0, last, 1) * octaves])
    points = jnp.sort(jnp.minimum(jnp.append(points, end), end))
    # Without an end the panels stop far beyond all that float64 can tell from 0.
    return jnp.minimum(points, jnp.max(points, where=jnp.isfinite(points), initial=0))


def oscillation_points(
    rotations: Array, find: Callable[[np.ndarray], np.ndarray], end: Array
) -> tuple[Array, bool]:
    """The `_panels` of oscillations: panels of four periods each, all the way to the end.

    **Arguments:**

    - `rotations`: What the angular frequencies are found from.
    - `find`: Finds them.
    - `end`: The end.
    """
    # Traced frequencies are not known, and 64 panels are then tried.
    count = 64
    if not is_traced((rotations, end)):
        fastest = np.max(np.abs(find(np.asarray(rotations))), initial=0)
        count = min(max(1, int(np.ceil(fastest * float(end) / (8 * np.pi)))), 4096)
    even = jnp.linspace(0, 1, count + 1)
    # Besides, halvings towards 0, where modes that decay fast are steep.
    decays = 2.0 ** jnp.arange(-48, 0)
    return end * jnp.concatenate([even, decays]), True
