"""Hessians of losses, in the form that implicit steps need: arrays, or blocks plus a low rank."""

from ._base import AbstractCurvature as AbstractCurvature
from ._base import AbstractShifted as AbstractShifted
from ._base import AbstractShiftedComplex as AbstractShiftedComplex
from ._blocks import BlockCurvature as BlockCurvature
from ._coupled import couple as couple
from ._coupled import couple_arrays as couple_arrays
from ._dense import DenseCurvature as DenseCurvature
from ._dense import each_lane as each_lane
from ._dense import inverse_root as inverse_root
from ._dense import multiply as multiply
from ._eliminate import invert_complex as invert_complex
from ._eliminate import invert_real as invert_real
from ._graded import GradedCurvature as GradedCurvature
from ._lanczos import lanczos as lanczos
from ._lanczos import LanczosCurvature as LanczosCurvature
