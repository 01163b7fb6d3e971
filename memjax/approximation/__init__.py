"""Approximation: the best exponential sums for a kernel, how many neurons they need, and bounds."""

from ._best import approximation_lower_bounds as approximation_lower_bounds
from ._best import best_exponential_sum as best_exponential_sum
from ._dataset import approximation_dataset as approximation_dataset
from ._neurons import neurons_needed as neurons_needed
from ._neurons import NeuronsNeeded as NeuronsNeeded
from ._rate import approximation_rate as approximation_rate
from ._rate import ApproximationRate as ApproximationRate
from ._report import approximate as approximate
from ._report import Approximation as Approximation
from ._statistics import FitStatistics as FitStatistics
from ._sum import BestExponentialSum as BestExponentialSum
from ._sum import Norm as Norm
from ._sum import Samples as Samples
