"""How the slopes of linear modes are tied by one input without end, in closed form.

The covariance of the slopes of two modes depends on the correlation of the input. A table of them
is the Hessian in the eigenvalues at the solution.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Complex, Float

from ..memory import multiplier_sensitivity

MODES, _MODULUS = 10, 0.99


def slope_covariance(
    first: Complex[Array, ""], second: Complex[Array, ""], correlation: float
) -> Complex[Array, ""]:
    """S, which is E[dh/dl dh'/dl'] for two modes driven by one input of this correlation."""
    shared = lambda a, b: (
        (1 - correlation**2 * a * b) / ((1 - a * b) * (1 - correlation * a) * (1 - correlation * b))
    )
    slope = jax.grad(shared, 0, holomorphic=True)
    return jax.grad(slope, 1, holomorphic=True)(first, second)


def covariance_formula(first: Any, second: Any, correlation: float, power: int = 2) -> Any:
    """S in closed form. The public notebook has the power 1 of the correlation in the factor
    1 - correlation^2."""
    a, b, c = first, second, correlation
    left = 1 - c**power
    terms = left * (1 + a * b) + c**2 * (1 - a * b) ** 3
    terms -= c * left * a * b * (2 * a + 2 * b - c * a * b * (1 + a * b))
    return terms / ((1 - c * a) ** 2 * (1 - c * b) ** 2 * (1 - a * b) ** 3)


def largest_covariance(
    mode: complex, correlation: float, power: int = 2, points: int = 121
) -> complex:
    """Where in the disc of radius 0.99 the size of S with a mode is largest, by the right formula
    or by the printed one."""
    moduli = np.linspace(0, 0.99, points)
    phases = np.linspace(-np.pi, np.pi, 8 * (points - 1) + 1)
    grid = (moduli[:, None] * np.exp(1j * phases)).reshape(-1)
    sizes = np.abs(covariance_formula(grid, mode, correlation, power))
    return complex(grid[int(np.argmax(sizes))])


def slope_variance(moduli: Float[np.ndarray, " n"], correlation: float) -> Float[np.ndarray, " n"]:
    """E|dh/dl|^2; for inputs that never change it is 1/(1 - l)^4."""
    if correlation == 1:
        return 1 / (1 - moduli) ** 4
    return np.asarray(multiplier_sensitivity(moduli, correlation))


def eigenvalue_hessian(
    values: Complex[np.ndarray, " n"], products: Complex[np.ndarray, " n"], correlation: float
) -> Float[np.ndarray, "m m"]:
    """The Hessian in the real and imaginary parts of eigenvalues, for inputs without end.

    The output is the real part of a sum of modes, each times the product of its weights.
    """
    table = lambda a, b, p, q: (
        p[:, None] * q * covariance_formula(a[:, None], b[None, :], correlation)
    )
    same = table(values, values, products, products)
    turned = table(values, values.conj(), products, products.conj())
    real, imag = np.real, np.imag
    return 0.5 * np.block(
        [
            [real(turned + same), imag(turned - same)],
            [-imag(turned + same), real(turned - same)],
        ]
    )


def cone_slopes(cone: float, correlation: float, seed: int) -> Float[np.ndarray, "m m"]:
    """A root of that Hessian for ten random modes, with phases of at most `cone` times pi."""
    rng = np.random.default_rng([seed, 43])
    moduli = np.sqrt(rng.uniform(_MODULUS**2, ((1 + _MODULUS) / 2) ** 2, MODES))
    values = moduli * np.exp(1j * np.pi * cone * rng.uniform(-1, 1, MODES))
    normal = rng.normal(size=(2, 2, MODES)) / np.sqrt(2)
    products = np.prod(normal[0] + 1j * normal[1], axis=0)
    hessian = eigenvalue_hessian(values, products, correlation)
    found, vectors = np.linalg.eigh(hessian)
    return np.sqrt(np.maximum(found, found[-1] * 1e-17))[:, None] * vectors.T
