"""Plateaus: exit conditions and the measurement of how long training takes to meet them."""

from ._exits import AbstractExit as AbstractExit
from ._exits import FirstOf as FirstOf
from ._exits import LossChange as LossChange
from ._exits import ParameterDistance as ParameterDistance
from ._exits import RelativeLossDrop as RelativeLossDrop
from ._exits import TrainingState as TrainingState
from ._measure import LossCurve as LossCurve
from ._measure import measure_plateau as measure_plateau
from ._measure import Plateau as Plateau
from ._measure import RESULTS as RESULTS
