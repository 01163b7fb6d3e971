"""Losses: a target and a model joined into one number."""

from ._base import AbstractLoss as AbstractLoss
from ._base import check_model as check_model
from ._base import check_trained as check_trained
from ._base import coordinates as coordinates
from ._base import displaced as displaced
from ._base import from_real_parts as from_real_parts
from ._base import gradient_rounding as gradient_rounding
from ._base import real_parts as real_parts
from ._base import weights as weights
from ._coloured_noise import ColouredNoiseLoss as ColouredNoiseLoss
from ._function import FunctionLoss as FunctionLoss
from ._lane_base import AbstractLossLanes as AbstractLossLanes
from ._lane_base import Linearisation as Linearisation
from ._lanes import DENSE_WIDTH as DENSE_WIDTH
from ._lanes import SpectralLanes as SpectralLanes
from ._oscillating import OscillatingLanes as OscillatingLanes
from ._sampled_path import SampledPathLoss as SampledPathLoss
from ._sampled_path import TemporalWeight as TemporalWeight
from ._stationary_noise import StationaryNoiseLoss as StationaryNoiseLoss
from ._white_noise import WhiteNoiseLoss as WhiteNoiseLoss
