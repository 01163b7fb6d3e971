"""Fixed points, Jacobians and Lyapunov exponents of recurrent models."""

from ._fixed_points import fixed_points as fixed_points
from ._fixed_points import FixedPoints as FixedPoints
from ._jacobians import jacobians as jacobians
from ._jacobians import JacobianSpectra as JacobianSpectra
from ._lyapunov import lyapunov_spectrum as lyapunov_spectrum
from ._lyapunov import LyapunovSpectrum as LyapunovSpectrum
