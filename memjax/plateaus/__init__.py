"""Plateaus: exit conditions and the measurement of how long training takes to meet them."""

from ._exits import AbstractExit as AbstractExit
from ._exits import FirstOf as FirstOf
from ._exits import LossChange as LossChange
from ._exits import ParameterDistance as ParameterDistance
from ._exits import RelativeLossDrop as RelativeLossDrop
from ._exits import TrainingState as TrainingState
from ._measure import measure_plateau as measure_plateau
from ._outcomes import LossCurve as LossCurve
from ._outcomes import OUTCOMES as OUTCOMES
from ._outcomes import Plateau as Plateau
from ._outcomes import RESULTS as RESULTS
from ._scaling import fit_scaling_law as fit_scaling_law
from ._scaling import plateau_asymptotics as plateau_asymptotics
from ._scaling import plateau_lower_bound as plateau_lower_bound
from ._starts import near_plateau as near_plateau
from ._starts import on_plateau as on_plateau
from ._starts import random_start as random_start
