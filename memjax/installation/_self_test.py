"""Three answers that are known without memjax, computed here."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..flows import GradientFlow
from ..losses import WhiteNoiseLoss
from ..models import DiagonalLinearRNN
from ..numerics import double_double
from ..plateaus import measure_plateau, RelativeLossDrop
from ..targets import ExponentialSum, GaussianBump, inner_product

# By an integration in 50 digits without JAX, confirmed by another method and precision to 1e-17:
# `on-plateau-direct-m2-T20-RelativeLossDrop-0.02` of tests/reference/plateau_references.json.
_PLATEAU = 74511.929741701803014


@dataclasses.dataclass(frozen=True)
class Test:
    """What a test of the installation has found.

    **Attributes:**

    - `name`: what is computed.
    - `referee`: where the right answer is from.
    - `expected`: the right answer.
    - `found`: what is computed here.
    - `tolerance`: the largest relative error that passes.
    """

    name: str
    referee: str
    expected: float
    found: float
    tolerance: float

    # No class of tests, to pytest.
    __test__ = False

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return abs(self.found - self.expected) <= self.tolerance * abs(self.expected)


def run_tests() -> list[Test]:
    """All of them, the quick ones first."""
    return [
        Test("sum in double-double", "exact arithmetic", 2.0**-80, _add(), 0.0),
        Test("squared norm of a bump", "Python's math.erf", _norm(), _inner(), 1e-13),
        Test("plateau at memory 20", "integration in 50 digits", _PLATEAU, _time(), 1e-6),
    ]


def _add() -> float:
    # Compilers that reorder sums lose what the second number holds.
    difference: Callable = jax.jit(
        lambda a, b: double_double.add(double_double.two_sum(a, b), double_double.from_float(-a))
    )
    high, low = difference(jnp.asarray(1.0), jnp.asarray(2.0**-80))
    return float(high) + float(low)


_OMEGA, _WIDTH = 1 / 20, 0.5


def _norm() -> float:
    ratio = 1 / (_OMEGA * _WIDTH)
    return _WIDTH * math.sqrt(math.pi) / 2 * (1 + math.erf(ratio))


def _inner() -> float:
    bump = GaussianBump(_OMEGA, 1.0, _WIDTH)
    return float(inner_product(bump, bump))


def _time() -> float:
    target = ExponentialSum([1.0], [1.0]) + GaussianBump(_OMEGA, 1.0, _WIDTH)
    start = DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6])
    flow = GradientFlow(WhiteNoiseLoss(target))
    return float(measure_plateau(flow, start, RelativeLossDrop(0.02), throw=False).time)
