"""What least squares at samples knows of its parameters."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from .._checks import as_plain, as_share
from .._lazy import scipy
from .._text import format_table, readable
from .._typing import ScalarLike
from ._distance import EPS, Terms
from ._grid import triangular

_CHUNK = 2**15  # samples at once


@readable()
class FitStatistics(eqx.Module):
    r"""How well samples determine the parameters of a sum that was fitted to them.

    The covariance is that of the linearised problem, $s^2 (J^\top V J)^{-1}$ with the Jacobian
    $J$ of the sum at the samples and the weights $V$, as that of `scipy.optimize.curve_fit` and
    of NIST's reference problems. It takes the model to be right, and the errors of the samples to
    be independent, with variances in inverse proportion to the weights.

    **Attributes:**

    - `names`: the names of the parameters: `amplitudes` and `rates`, or for complex rates
        `cosine`, `sine`, `rates` and `frequencies`, each once for every neuron in the order of the
        model, and `offset` if there is one.
    - `estimates`: their values, shape `(parameters,)`.
    - `covariance`: their covariance, shape `(parameters, parameters)`. It is NaN for what was not
        free (a rate that lies on `min_rate`, the sine and the frequency of a real rate), and
        infinite where the samples do not determine the parameters.
    - `residual_deviation`: the residual standard deviation $s$ of a sample of weight 1: the root
        of the weighted sum of squares over the degrees of freedom.
    - `degrees_of_freedom`: the number of samples less that of free parameters.
    - `absolute_weights`: whether the weights are one over the variances themselves, so that the
        covariance is $(J^\top V J)^{-1}$.
    """

    estimates: Float[Array, " parameters"]
    covariance: Float[Array, "parameters parameters"]
    residual_deviation: Float[Array, ""]
    degrees_of_freedom: Int[Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)
    absolute_weights: bool = eqx.field(static=True)

    @property
    def standard_errors(self) -> dict[str, Float[Array, "..."]]:
        """The standard errors by the names of the parameters, in the shapes of the model's."""
        return self._by_name(jnp.sqrt(jnp.diagonal(self.covariance)))

    def intervals(
        self, confidence: Real[ScalarLike, ""] = 0.95
    ) -> dict[str, tuple[Float[Array, "..."], Float[Array, "..."]]]:
        """Confidence intervals by the names of the parameters: the lower ends and the upper ones.

        **Arguments:**

        - `confidence`: The level, between 0 and 1. The quantiles are Student's, and with absolute
            weights those of the normal distribution.

        **Raises:** `ValueError` for a level that is not between 0 and 1.
        """
        level = as_plain(as_share, "confidence", confidence, "pass a level such as 0.95")
        freedom = np.inf if self.absolute_weights else max(int(self.degrees_of_freedom), 1)
        quantile = float(scipy.special.stdtrit(freedom, (1 + level) / 2))
        half = quantile * jnp.sqrt(jnp.diagonal(self.covariance))
        low, high = self._by_name(self.estimates - half), self._by_name(self.estimates + half)
        return {name: (low[name], high[name]) for name in low}

    def __str__(self) -> str:
        columns = (self.estimates, jnp.sqrt(jnp.diagonal(self.covariance)))
        rows = [
            [name, f"{float(value):.10g}", f"{float(error):.3g}"]
            for name, value, error in zip(self.names, *columns, strict=True)
        ]
        return (
            f"{format_table(['parameter', 'estimate', 'std. error'], rows)}\n"
            f"Residual standard deviation {float(self.residual_deviation):.6g} with "
            f"{int(self.degrees_of_freedom)} degrees of freedom."
        )

    def _by_name(self, values: Float[Array, " parameters"]) -> dict[str, Array]:
        found = {}
        for name in dict.fromkeys(self.names):
            places = np.array([k for k, other in enumerate(self.names) if other == name])
            found[name] = values[places[0]] if name == "offset" else values[places]
        return found


def statistics(
    times: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    sums: Terms,
    margin: float,
    complex: bool,
    offset: bool,
    absolute_weights: bool,
) -> FitStatistics:
    """The statistics of sums fitted to samples by weighted least squares, an offset last.

    Rates that lie on the `margin` are not free.
    """
    count = sums.rates.size - offset
    free_rates = sums.rates[:count] > margin * (1 + 1e-6)
    groups = {"amplitudes": (sums.cosine[:count], np.ones(count, bool))}
    moving = sums.frequencies[:count] != 0
    if complex:
        groups = {"cosine": groups["amplitudes"], "sine": (sums.sine[:count], moving)}
    groups["rates"] = (sums.rates[:count], free_rates)
    if complex:
        groups["frequencies"] = (sums.frequencies[:count], moving)
    if offset:
        groups["offset"] = (sums.cosine[count:], np.ones(1, bool))
    names = [name for name, (entries, _) in groups.items() for _ in entries]
    estimates, free = (np.concatenate(part) for part in zip(*groups.values(), strict=True))

    triangle, squares = np.zeros((0, int(np.sum(free)))), 0.0
    for k in range(0, times.size, _CHUNK):
        t, root = times[k : k + _CHUNK], np.sqrt(weights[k : k + _CHUNK])
        columns = root[:, None] * _jacobian(t, sums, count, complex, offset)[:, free]
        triangle = triangular(triangle, columns)
        squares += float(np.sum((root * (values[k : k + _CHUNK] - sums(t))) ** 2))
    freedom = times.size - triangle.shape[1]
    deviation = np.sqrt(squares / freedom) if freedom > 0 else np.nan
    covariance = np.full((estimates.size, estimates.size), np.nan)
    factor = 1.0 if absolute_weights else deviation**2
    covariance[np.ix_(free, free)] = factor * _inverse(triangle) if freedom > 0 else np.inf
    return FitStatistics(
        estimates=jnp.asarray(estimates),
        covariance=jnp.asarray(covariance),
        residual_deviation=jnp.asarray(deviation),
        degrees_of_freedom=jnp.asarray(freedom),
        names=tuple(names),
        absolute_weights=absolute_weights,
    )


def _jacobian(
    times: np.ndarray, sums: Terms, count: int, complex: bool, offset: bool
) -> np.ndarray:
    t, (a, b, w, nu) = times[:, None], (part[:count] for part in sums)
    decays, cosines, sines = np.exp(-w * t), np.cos(nu * t), np.sin(nu * t)
    columns = [decays * cosines, -t * decays * (a * cosines + b * sines)]
    if complex:
        columns.insert(1, decays * sines)
        columns.append(t * decays * (b * cosines - a * sines))
    if offset:
        columns.append(np.ones((times.size, 1)))
    return np.concatenate(columns, axis=1)


def _inverse(triangle: np.ndarray) -> np.ndarray:
    """The inverse of R'R, infinite if it has none."""
    norms = np.linalg.norm(triangle, axis=0)
    if triangle.shape[0] < triangle.shape[1] or np.any(norms == 0):
        return np.full((norms.size, norms.size), np.inf)
    _, singular, right = np.linalg.svd(triangle / norms)
    if singular[-1] <= EPS * norms.size * singular[0]:
        return np.full((norms.size, norms.size), np.inf)
    half = right.T / singular / norms[:, None]
    return half @ half.T
