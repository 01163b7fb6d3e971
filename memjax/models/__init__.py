"""Hypothesis spaces: Equinox modules whose hidden state Diffrax integrates."""

from ._base import AbstractModel as AbstractModel
from ._base import trainable as trainable
from ._diagonal import DiagonalLinearRNN as DiagonalLinearRNN
