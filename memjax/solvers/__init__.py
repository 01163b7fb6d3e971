"""Solvers of stiff differential equations, for Diffrax, and root finders for their stages."""

from ._newton import StageNewton as StageNewton
from ._radau import RadauIIA5 as RadauIIA5
from ._radau_formula import RADAU as RADAU
from ._radau_newton import RadauNewton as RadauNewton
from ._rosenbrock import Rodas5P as Rodas5P
