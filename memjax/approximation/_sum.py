from typing import Literal

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from .._text import readable
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ._statistics import FitStatistics

Norm = Literal["L1", "L2", "sup"]
NORMS = ("L1", "L2", "sup")
Samples = Literal["points", "linear"]
SAMPLES = ("points", "linear")


@readable()
class BestExponentialSum(eqx.Module):
    r"""The best sum of exponentials that was found for a kernel.

    **Attributes:**

    - `model`: the sum as a model, a [`memjax.DiagonalLinearRNN`][] or, if complex rates were
        allowed, a [`memjax.ComplexDiagonalRNN`][].
    - `error`: the norm of $\rho - \hat\rho$, by a quadrature that shares nothing with the search.
    - `relative_error`: the same over the norm of $\rho$.
    - `uncertainty`: by how much `error` may be wrong: what a coarser rule makes of it, and the
        rounding errors of the kernel and of the sum's terms.
    - `lower_bound`: a number that no sum of the same order falls below: that of
        [`memjax.approximation_lower_bounds`][] or, where only real rates are allowed, that of de
        la Vallee-Poussin if it is larger: the smallest of $2m + 1$ parts of the error between its
        sign changes, as two sums of $m$ real exponentials agree at no more than $2m - 1$ times.
        In the sup norm that proves an error of equal extrema to be the best.
    - `active`: the number of rates that lie on `min_rate`.
    - `resolved`: whether `error` stands clear of its uncertainty. If not, the sum is as good as
        float64 can tell, and `error` is an upper estimate.
    - `confluent`: whether terms cancel to a hundred-thousandth of their size or less: rates run
        together, the infimum need not be attained, and weights this large are of no use to a
        model that is to be trained.
    - `noise_limited`: for a [`memjax.SampledKernel`][], whether the residuals at the samples
        change sign as often as independent noise does, so that more neurons would fit noise.
    - `offset`: the constant that was added to the sum, and 0 without one.
    - `statistics`: for samples taken as points and the norm `"L2"`, the standard errors of all
        parameters, a [`memjax.FitStatistics`][]; otherwise `None`.
    - `order`: the number of real neurons asked for.
    - `norm`: the norm.
    - `samples`: how samples were taken, `"points"` or `"linear"`; `None` for other kernels.
    """

    model: DiagonalLinearRNN | ComplexDiagonalRNN
    error: Float[Array, ""]
    relative_error: Float[Array, ""]
    uncertainty: Float[Array, ""]
    lower_bound: Float[Array, ""]
    active: Int[Array, ""]
    resolved: Bool[Array, ""]
    confluent: Bool[Array, ""]
    noise_limited: Bool[Array, ""]
    offset: Float[Array, ""]
    statistics: FitStatistics | None
    order: int = eqx.field(static=True)
    norm: Norm = eqx.field(static=True)
    samples: Samples | None = eqx.field(static=True)
