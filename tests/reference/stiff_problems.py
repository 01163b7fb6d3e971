"""Stiff problems of the literature, with their solutions at the end.

The solutions are those of the Test Set for IVP Solvers (Mazzia, Magherini, University of Bari),
made there by RADAU5 and RADAU in quadruple precision at tolerances of about 1e-18. SciPy's Radau
at rtol = 1e-12, memjax's `RadauIIA5` and its `Rodas5P`, in double precision, confirm them to
1e-9 for Robertson's problem (where rounding adds up over eleven decades) and to 1e-11 for the
others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Stiff(NamedTuple):
    """`atol` is the size below which a component does not count, times rtol."""

    vector_field: Callable[[Any, Any, Any], Any]
    start: np.ndarray
    args: Any
    end: float
    atol: float
    solution: np.ndarray


def robertson(t: Any, y: Any, args: Any) -> Any:
    k1, k2, k3 = args
    a, b, c = y
    return jnp.stack([k3 * b * c - k1 * a, k1 * a - k2 * b**2 - k3 * b * c, k2 * b**2])


def van_der_pol(t: Any, y: Any, mu: Any) -> Any:
    return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1] - y[0])])


def hires(t: Any, y: Any, args: Any) -> Any:
    y1, y2, y3, y4, y5, y6, y7, y8 = y
    bound = 280 * y6 * y8
    return jnp.stack(
        [
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
            -bound + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            bound - 1.81 * y7,
            -bound + 1.81 * y7,
        ]
    )


def oregonator(t: Any, y: Any, args: Any) -> Any:
    a, b, c = y
    return jnp.stack(
        [
            77.27 * (b + a * (1 - 8.375e-6 * a - b)),
            (c - (1 + a) * b) / 77.27,
            0.161 * (a - c),
        ]
    )


PROBLEMS = {
    "Robertson": Stiff(
        robertson,
        np.array([1.0, 0.0, 0.0]),
        (0.04, 3e7, 1e4),
        1e11,
        1e-6,
        np.array([0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050]),
    ),
    "van der Pol": Stiff(
        van_der_pol,
        np.array([2.0, 0.0]),
        1e6,
        2.0,
        1.0,
        np.array([0.1706167732170483e1, -0.8928097010247975]),
    ),
    "HIRES": Stiff(
        hires,
        np.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057]),
        None,
        321.8122,
        1e-4,
        np.array(
            [
                0.7371312573325668e-3,
                0.1442485726316185e-3,
                0.5888729740967575e-4,
                0.1175651343283149e-2,
                0.2386356198831331e-2,
                0.6238968252742796e-2,
                0.2849998395185769e-2,
                0.2850001604814231e-2,
            ]
        ),
    ),
    "Oregonator": Stiff(
        oregonator,
        np.array([1.0, 2.0, 3.0]),
        None,
        360.0,
        1e-6,
        np.array([0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3]),
    ),
}
