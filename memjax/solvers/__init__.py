"""Solvers of stiff differential equations, for Diffrax, and root finders for their stages."""

from ._newton import StageNewton as StageNewton
from ._radau import ERROR as ERROR
from ._radau import INVERSE as INVERSE
from ._radau import PAIR as PAIR
from ._radau import PAIR_COLUMN as PAIR_COLUMN
from ._radau import PAIR_ROW as PAIR_ROW
from ._radau import RadauIIA5 as RadauIIA5
from ._radau import RadauNewton as RadauNewton
from ._radau import REAL as REAL
from ._radau import REAL_COLUMN as REAL_COLUMN
from ._radau import REAL_ROW as REAL_ROW
from ._radau import TIMES as TIMES
from ._rosenbrock import Rodas5P as Rodas5P
