"""Training flows: from a loss to dynamics of the weights."""

from ._adam import Adam as Adam
from ._base import AbstractFlow as AbstractFlow
from ._base import DisplacedFlow as DisplacedFlow
from ._discrete import AbstractTraining as AbstractTraining
from ._discrete import OptaxTraining as OptaxTraining
from ._discrete import StochasticGradientFlow as StochasticGradientFlow
from ._gradient import GradientFlow as GradientFlow
from ._gradient import PreconditionedFlow as PreconditionedFlow
from ._lanes import closed_form as closed_form
from ._lanes import COLUMNS as COLUMNS
from ._lanes import DENSE as DENSE
from ._lanes import FlowLanes as FlowLanes
from ._lanes import gradient_bytes as gradient_bytes
from ._lanes import lanes_of as lanes_of
from ._lanes import velocities as velocities
from ._linearised import acceleration as acceleration
from ._linearised import flow_jacobian as flow_jacobian
from ._linearised import linearise_flow as linearise_flow
from ._linearised import step_response as step_response
from ._momentum import HeavyBall as HeavyBall
from ._momentum import Nesterov as Nesterov
from ._newton_system import AbstractLinearisedFlow as AbstractLinearisedFlow
from ._newton_system import Solve as Solve
from ._pointwise import memory_solver as memory_solver
