"""Hessians of linear recurrent models at the solution, exact for the expected error.

One random system is written as a dense, a complex diagonal, an LRU and an S4 model. Where a model
is its teacher, the Hessian is the Gram matrix of the slopes of the response.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._lazy import scipy
from ._z24_identification import Weights
from ._z24_systems import LENGTH, response

MODELS = ("dense", "complex", "LRU", "S4")

_LOW, _HIGH, _STEP = 0.99, 0.993, 0.01
_ORDER = ("recurrent", "modes", "step", "log_scale", "drive", "readout", "skip")


def make_system(width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A real random system with complex eigenvalues of moduli between 0.99 and 0.993."""
    rng = np.random.default_rng([seed, 41])
    half = width // 2
    moduli = _LOW + (_HIGH - _LOW) * rng.uniform(size=half)
    values = moduli * np.exp(2j * np.pi * rng.uniform(size=half))
    basis = rng.normal(size=(half, width)) + 1j * rng.normal(size=(half, width))
    values = np.concatenate([values, values.conj()])
    basis = np.concatenate([basis, basis.conj()])
    recurrent = np.real(np.linalg.solve(basis, values[:, None] * basis))
    return recurrent, rng.normal(size=width), rng.normal(size=width) / np.sqrt(width), rng.normal()


def solutions(width: int, seed: int) -> dict[str, Weights]:
    """The weights of every model at which it is the same random system."""
    recurrent, drive, readout, skip = make_system(width, seed)
    values, columns = np.linalg.eig(recurrent)
    inputs, outputs = np.linalg.solve(columns, drive + 0j), readout @ columns
    parts = lambda z: np.stack([z.real, z.imag])
    scale, phases = np.sqrt(1 - np.abs(values) ** 2), np.mod(np.angle(values), 2 * np.pi)
    ends = {"readout": parts(outputs), "skip": np.asarray(skip)}
    found = {
        "dense": {"recurrent": recurrent[None], "drive": drive[None], "readout": readout[None]},
        "complex": {"modes": parts(values), "drive": parts(inputs)},
        "LRU": {
            "modes": np.stack([np.log(-np.log(np.abs(values))), np.log(phases)]),
            "log_scale": np.log(scale),
            "drive": parts(inputs / scale),
        },
        "S4": {
            "modes": np.stack([np.log(np.abs(values)), phases]) / _STEP,
            "step": np.full(width, np.log(np.expm1(_STEP))),
            "drive": parts(inputs) / _STEP,
        },
    }
    return {name: jax.tree.map(jnp.asarray, ends | own) for name, own in found.items()}


def slopes_of(weights: Weights) -> tuple[Float[np.ndarray, "lags weights"], list[str]]:
    """A matrix whose Gram matrix is the Hessian where a student is its teacher, and the name of the
    array that each of its columns belongs to.

    The expected error over sequences is a sum over lags of squared differences of responses, each
    with the share of the times that see it. Its Hessian at 0 is the Gram matrix of the slopes of
    the response. Singular values of the slopes are the roots of its eigenvalues, to all digits.
    """
    tables = _all_slopes(weights)
    shares = np.sqrt(1 - np.arange(LENGTH) / LENGTH)
    slopes = [np.asarray(tables[name]).reshape(LENGTH, -1) for name in sorted(weights)]
    names = [name for name in sorted(weights) for _ in range(weights[name].size)]
    return np.concatenate(slopes, axis=1) * shares[:, None], names


# Compiled once for each model and width.
_all_slopes = jax.jit(jax.jacrev(response))


def describe_hessian(
    slopes: Float[np.ndarray, "rows weights"], rank: int, leading: int
) -> dict[str, float]:
    """What matters of the Hessian with these slopes.

    - `largest`: its largest eigenvalue.
    - `condition`: that over the smallest of the `rank` eigenvalues above 0.
    - `spread`: over how many weights one of the `leading` eigenvectors is spread. The size of the
      projector on their space is shared out among the weights, p_i, and k^2 / sum p_i^2 / k is 1 if
      they are k weights. It does not depend on how equal eigenvalues are combined.
    - `scaled_largest`, `scaled_condition`: after every weight is scaled to a curvature of 1. The
      largest eigenvalue is then 1 for a diagonal Hessian, and the number of weights at most.
    """
    values, vectors = _decompose(slopes)
    shares = np.sum(vectors[:leading] ** 2, axis=0)
    scaled = np.linalg.svd(slopes / np.linalg.norm(slopes, axis=0), compute_uv=False)
    return {
        "largest": values[0] ** 2,
        "condition": (values[0] / values[rank - 1]) ** 2,
        "spread": leading / np.sum(shares**2),
        "scaled_largest": scaled[0] ** 2,
        "scaled_condition": (scaled[0] / scaled[rank - 1]) ** 2,
    }


def _decompose(slopes: Float[np.ndarray, "rows weights"]) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, and what they belong to in the weights.

    By QR iterations: the default, which divides and conquers, does not converge for some of these
    matrices with OpenBLAS 0.3.31 and two threads.
    """
    return scipy.linalg.svd(slopes, full_matrices=False, lapack_driver="gesvd")[1:]


def leading_share(model: str, slopes: np.ndarray, columns: list[str], leading: int) -> float:
    """The share of the leading eigenvectors in the phases (LRU) or steps (S4); NaN otherwise."""
    if model not in ("LRU", "S4"):
        return np.nan
    vectors = _decompose(slopes)[1][:leading]
    chosen = np.array(columns) == ("modes" if model == "LRU" else "step")
    if model == "LRU":
        # The phases are the second half of that array.
        chosen[np.flatnonzero(chosen)[: chosen.sum() // 2]] = False
    return float(np.sum(vectors[:, chosen] ** 2) / leading)


def hessian_of(weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian, recurrent weights first, and its eigenvalues."""
    slopes, columns = slopes_of(weights)
    order = sorted(range(len(columns)), key=lambda k: _ORDER.index(columns[k]))
    values = np.linalg.svd(slopes, compute_uv=False) ** 2
    return (slopes.T @ slopes)[np.ix_(order, order)], values
