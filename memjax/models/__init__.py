"""Hypothesis spaces: Equinox modules whose hidden state Diffrax integrates."""

from ._base import AbstractModel as AbstractModel
from ._base import check_same_state as check_same_state
from ._base import Fixed as Fixed
from ._base import trainable as trainable
from ._complex import ComplexDiagonalRNN as ComplexDiagonalRNN
from ._diagonal import DiagonalLinearRNN as DiagonalLinearRNN
from ._diagonal_nonlinear import DiagonalNonlinearRNN as DiagonalNonlinearRNN
from ._gated import GatedRNN as GatedRNN
from ._init import log_uniform_rates as log_uniform_rates
from ._init import ring as ring
from ._init import s4d_lin as s4d_lin
from ._init import s4d_real as s4d_real
from ._init import stable_gaussian as stable_gaussian
from ._init import uniform_rates as uniform_rates
from ._linear import LinearRNN as LinearRNN
from ._maps import as_reparametrisation as as_reparametrisation
from ._nonlinear import NonlinearRNN as NonlinearRNN
from ._state_space import LRULayer as LRULayer
from ._state_space import StateSpaceLayer as StateSpaceLayer
from ._state_space import StateSpaceStack as StateSpaceStack
