"""The three-stage Radau IIA formula, with its interpolation and its estimate of the error."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from ._interpolation import rows_at


class RadauFormula(NamedTuple):
    """The three-stage Radau IIA formula, in the form in which its stages are solved for.

    With the increments $z$ of the stages, a step solves $A^{-1} z = h f(y_0 + z)$. The inverse of
    the weights $A$ has one real eigenvalue and a complex pair, so that in the basis of its
    eigenvectors Newton's system of size $3n$ becomes a real and a complex one of size $n$.

    **Attributes:**

    - `times`: where the stages are, as shares of the step.
    - `inverse`: $A^{-1}$.
    - `error`: the weights of the stages in the estimate of the error.
    - `real`, `pair`: the real eigenvalue of $A^{-1}$, and the one of the pair whose imaginary part
        is positive.
    - `real_column`, `pair_column`: their eigenvectors.
    - `real_row`, `pair_row`: their rows of the inverse of the matrix of eigenvectors.
    """

    times: Float[np.ndarray, "3"]
    inverse: Float[np.ndarray, "3 3"]
    error: Float[np.ndarray, "3"]
    real: float
    pair: complex
    real_column: Float[np.ndarray, "3"]
    pair_column: Complex[np.ndarray, "3"]
    real_row: Float[np.ndarray, "3"]
    pair_row: Complex[np.ndarray, "3"]


def _formula() -> RadauFormula:
    # Hairer & Wanner II, Table IV.5.6 and Section IV.8.
    root = np.sqrt(6)
    weights = np.array(
        [
            [(88 - 7 * root) / 360, (296 - 169 * root) / 1800, (-2 + 3 * root) / 225],
            [(296 + 169 * root) / 1800, (88 + 7 * root) / 360, (-2 - 3 * root) / 225],
            [(16 - root) / 36, (16 + root) / 36, 1 / 9],
        ]
    )
    inverse = np.linalg.inv(weights)
    values, vectors = np.linalg.eig(inverse)
    rows = np.linalg.inv(vectors)
    real, pair = np.argmin(np.abs(np.imag(values))), np.argmax(np.imag(values))
    # The eigenvector of the real eigenvalue is real up to a factor, which cancels.
    phase = vectors[0, real] / abs(vectors[0, real])
    return RadauFormula(
        times=np.array([(4 - root) / 10, (4 + root) / 10, 1]),
        inverse=inverse,
        # Minus the slope of the polynomial at the start. The factor gamma_0 of Hairer & Wanner, one
        # over the real eigenvalue, is in the solve that follows.
        error=np.array([-13 - 7 * root, -13 + 7 * root, -1]) / 3,
        real=float(values[real].real),
        pair=complex(values[pair]),
        real_column=(vectors[:, real] / phase).real,
        pair_column=vectors[:, pair],
        real_row=(rows[real] * phase).real,
        pair_row=rows[pair],
    )


RADAU = _formula()


def _bubble() -> np.ndarray:
    """From the stages to the coefficients of their interpolation, less its chord."""
    # z_i - s_i z_3 = s_i (1 - s_i) (b_0 + b_1 s_i) for the stages but the last, which is the end.
    s = RADAU.times[:2]
    slopes = np.array([[1 / s[0], 0, -1], [0, 1 / s[1], -1]]) / (1 - s)[:, None]
    return np.linalg.solve(np.stack([np.ones(2), s], axis=1), slopes)


BUBBLE = _bubble()

# Where the polynomial is compared with the equation: at the start, and between the stages where
# the interpolation of a smooth function is furthest from it, as s (s - c_1) (s - c_2) (s - 1). Of
# the extrema the first is left out, close to the start.
PLACES = np.append(
    0, np.sort(np.polynomial.Polynomial.fromroots([0, *RADAU.times]).deriv().roots())[1:]
)
VALUES, SLOPES = rows_at(PLACES, np.array([0.0, 0.0, 1.0]), BUBBLE)
# At the start its value is right and only its slope is off, and by more than elsewhere. This
# weight makes up for it where nothing is stiff: there the defect, which is 0 at the stages, goes as
# (s - c_1) (s - c_2) (s - 1).
_SIZES = np.abs(np.polynomial.Polynomial.fromroots(RADAU.times)(PLACES))
WEIGHT = np.array([_SIZES[1] / _SIZES[0], 1, 1])
