"""Flows: losses turned into training dynamics, as Diffrax terms."""

from ._gradient import AbstractDisplacedFlow as AbstractDisplacedFlow
from ._gradient import AbstractFlow as AbstractFlow
from ._gradient import DisplacedGradientFlow as DisplacedGradientFlow
from ._gradient import GradientFlow as GradientFlow
from ._lanes import FlowLanes as FlowLanes
from ._lanes import lanes_of as lanes_of
