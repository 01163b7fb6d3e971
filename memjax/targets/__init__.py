"""Targets: the functionals that a model is to learn."""

from ._base import AbstractKernel as AbstractKernel
from ._base import AbstractTarget as AbstractTarget
from ._bump import GaussianBump as GaussianBump
from ._exponential import ExponentialSum as ExponentialSum
from ._inner import inner_product as inner_product
from ._sampled import SampledKernel as SampledKernel
from ._sum import KernelSum as KernelSum
from ._sum import split_exponential as split_exponential
