"""Reparametrisations: maps from free weights to decay rates (theory: Wang & Li 2024)."""

from ._base import AbstractReparametrisation as AbstractReparametrisation
from ._base import as_radii as as_radii
from ._elementwise import as_callable as as_callable
from ._elementwise import Elementwise as Elementwise
from ._maps import Best as Best
from ._maps import Direct as Direct
from ._maps import Exp as Exp
from ._maps import Inverse as Inverse
from ._maps import ReparametrisationName as ReparametrisationName
from ._maps import REPARAMETRISATIONS as REPARAMETRISATIONS
from ._maps import Softplus as Softplus
from ._maps import Tanh as Tanh
