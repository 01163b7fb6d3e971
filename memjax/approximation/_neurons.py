from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from .._checks import as_list, as_positive, check_flag, check_integer
from .._text import readable
from .._typing import ArrayLike, ScalarLike
from ..targets import AbstractKernel
from ._arguments import make_search
from ._problem import Rates
from ._search import extend_rates
from ._sum import BestExponentialSum, Norm, Samples


@readable()
class NeuronsNeeded(eqx.Module):
    r"""How many neurons a memory needs.

    **Attributes:**

    - `neurons`: the smallest order found whose sum reaches the error, and 0 if none did.
    - `lower_bound`: no sum of fewer neurons reaches the error, whatever its (complex) rates: a
        statement about the kernel, not about the search
        ([`memjax.approximation_lower_bounds`][]). The smallest possible order lies between the
        two.
    - `reached`: whether an order up to `max_neurons` reached the error.
    - `best`: the sum of that order, or the best of all that were tried.
    - `orders`, `errors`: all orders that were tried, ascending, and their errors.
    - `sums`: the sums themselves.
    - `error`: the error asked for, in the norm itself.
    """

    neurons: Int[Array, ""]
    lower_bound: Int[Array, ""]
    reached: Bool[Array, ""]
    best: BestExponentialSum
    orders: Int[Array, " tried"]
    errors: Float[Array, " tried"]
    error: Float[Array, ""]
    sums: tuple[BestExponentialSum, ...]


def neurons_needed(
    kernel: AbstractKernel,
    error: Real[ScalarLike, ""],
    *,
    norm: Norm = "L2",
    min_rate: Real[ScalarLike, ""] = 0.0,
    complex: bool = False,
    horizon: Real[ScalarLike, ""] | None = None,
    relative: bool = False,
    max_neurons: int = 64,
    samples: Samples = "points",
    weights: Real[ArrayLike, " samples"] | None = None,
    absolute_weights: bool = False,
    offset: bool = False,
    also: Sequence[int] = (),
    progress: bool = False,
) -> NeuronsNeeded:
    r"""The smallest number of neurons with which a linear RNN approximates a kernel to an error.

    Orders are tried from the certified lower bound on, in growing steps and then by bisection,
    each from the sums already found as well. That an order fails is a statement about the
    search; that no order below `lower_bound` can succeed is certain.

    **Arguments:**

    - `kernel`, `norm`, `min_rate`, `complex`, `horizon`, `samples`, `weights`,
        `absolute_weights`, `offset`, `progress`: as for [`memjax.best_exponential_sum`][].
    - `error`: The error to reach, above 0, in units of the norm.
    - `relative`: Whether `error` is relative to the norm of the kernel.
    - `max_neurons`: The largest order to try; of samples that are points no more than they
        determine.
    - `also`: Orders below the answer to try as well, to see how the error falls.

    **Returns:**

    A [`memjax.NeuronsNeeded`][].

    **Raises:** as [`memjax.best_exponential_sum`][], and `ValueError` for an error that is not
    positive.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4 (theory, section 2).
    """
    wanted = as_positive("error", error, "no finite number of neurons reaches 0 in general")
    check_flag("relative", relative)
    check_flag("progress", progress)
    check_integer("max_neurons", max_neurons)
    more = [check_integer("also", m) for m in as_list("also", also, "integers")]
    search = make_search(
        kernel, norm, min_rate, complex, horizon, samples, weights, absolute_weights, offset
    )
    target = float(wanted) * (search.norm_of_kernel() if relative else 1.0)
    bounds, max_neurons = search.bounds * search.norm_unit(), min(max_neurons, search.most)
    lowest = max(int(np.argmax(np.append(bounds, 0.0) <= target)), 1)
    tried: dict[int, tuple[BestExponentialSum, Rates]] = {}

    def reaches(m: int) -> bool:
        warm = [start for k in sorted(tried) if k < m for start in extend_rates(tried[k][1], m)]
        tried[m] = search.run(m, warm[-m - 2 :])
        return float(tried[m][0].error) <= target

    failed, m, step = lowest - 1, min(lowest, max_neurons), 1
    with search.watched(progress):
        reached = reaches(m)
        while not reached and m < max_neurons:
            failed, m, step = m, min(m + step, max_neurons), 2 * step
            reached = reaches(m)
        while reached and m - failed > 1:
            middle = (failed + m) // 2
            if reaches(middle):
                m = middle
            else:
                failed = middle
        for other in sorted(set(more)):
            if other < m and other not in tried:
                reaches(other)
    orders = sorted(tried)
    errors = [float(tried[k][0].error) for k in orders]
    chosen = m if reached else orders[int(np.argmin(errors))]
    return NeuronsNeeded(
        neurons=jnp.asarray(m if reached else 0),
        lower_bound=jnp.asarray(lowest),
        reached=jnp.asarray(reached),
        best=tried[chosen][0],
        orders=jnp.asarray(orders),
        errors=jnp.asarray(errors),
        error=jnp.asarray(target),
        sums=tuple(tried[k][0] for k in orders),
    )
