"""Targets: the functionals that a model is to learn."""

from ._airy import Airy as Airy
from ._base import AbstractKernel as AbstractKernel
from ._base import AbstractTarget as AbstractTarget
from ._box import Box as Box
from ._bump import GaussianBump as GaussianBump
from ._composed import check_kernel as check_kernel
from ._composed import DelayedKernel as DelayedKernel
from ._composed import ScaledKernel as ScaledKernel
from ._composed import WindowedKernel as WindowedKernel
from ._exponential import ExponentialSum as ExponentialSum
from ._exponential import kernel_of_modes as kernel_of_modes
from ._inner import inner_product as inner_product
from ._lorenz import Lorenz96 as Lorenz96
from ._nonlinear import Attention as Attention
from ._nonlinear import Teacher as Teacher
from ._nonlinear import Volterra as Volterra
from ._oscillation import DampedOscillation as DampedOscillation
from ._power_law import PowerLaw as PowerLaw
from ._sampled import SampledKernel as SampledKernel
from ._sine import Sine as Sine
from ._state_space import check_stable as check_stable
from ._state_space import state_space as state_space
from ._state_space import StateSpaceKernel as StateSpaceKernel
from ._sum import KernelSum as KernelSum
from ._sum import split_exponential as split_exponential
from ._vector import VectorKernel as VectorKernel
