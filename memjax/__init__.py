"""memjax: the curse of memory in recurrent models, measured."""

from importlib.metadata import version as _version

from .flows import AbstractFlow as AbstractFlow
from .flows import AbstractTraining as AbstractTraining
from .flows import Adam as Adam
from .flows import DisplacedFlow as DisplacedFlow
from .flows import GradientFlow as GradientFlow
from .flows import HeavyBall as HeavyBall
from .flows import Nesterov as Nesterov
from .flows import OptaxTraining as OptaxTraining
from .flows import PreconditionedFlow as PreconditionedFlow
from .flows import StochasticGradientFlow as StochasticGradientFlow
from .losses import AbstractLoss as AbstractLoss
from .losses import FunctionLoss as FunctionLoss
from .losses import WhiteNoiseLoss as WhiteNoiseLoss
from .models import AbstractModel as AbstractModel
from .models import DiagonalLinearRNN as DiagonalLinearRNN
from .models import trainable as trainable
from .plateaus import AbstractExit as AbstractExit
from .plateaus import FirstOf as FirstOf
from .plateaus import fit_scaling_law as fit_scaling_law
from .plateaus import LossChange as LossChange
from .plateaus import LossCurve as LossCurve
from .plateaus import measure_plateau as measure_plateau
from .plateaus import near_plateau as near_plateau
from .plateaus import on_plateau as on_plateau
from .plateaus import ParameterDistance as ParameterDistance
from .plateaus import Plateau as Plateau
from .plateaus import plateau_asymptotics as plateau_asymptotics
from .plateaus import plateau_lower_bound as plateau_lower_bound
from .plateaus import random_start as random_start
from .plateaus import RelativeLossDrop as RelativeLossDrop
from .plateaus import RESULTS as RESULTS
from .plateaus import TrainingState as TrainingState
from .reparam import AbstractReparametrisation as AbstractReparametrisation
from .reparam import Direct as Direct
from .reparam import Exp as Exp
from .solvers import RadauIIA5 as RadauIIA5
from .solvers import RadauNewton as RadauNewton
from .solvers import Rodas5P as Rodas5P
from .sweeps import load_dataset as load_dataset
from .sweeps import PlateauSweep as PlateauSweep
from .sweeps import save_dataset as save_dataset
from .sweeps import sweep as sweep
from .targets import AbstractKernel as AbstractKernel
from .targets import AbstractTarget as AbstractTarget
from .targets import ExponentialSum as ExponentialSum
from .targets import GaussianBump as GaussianBump
from .targets import inner_product as inner_product
from .targets import KernelSum as KernelSum
from .targets import SampledKernel as SampledKernel

__version__ = _version("memjax")
