"""Fixed points, Jacobians and Lyapunov exponents of recurrent models."""

from ._fixed_points import fixed_points as fixed_points
from ._fixed_points import FixedPoints as FixedPoints
