"""Sweeps: many measurements over a grid, as one labelled dataset."""

from ._output import check_output as check_output
from ._output import replacing as replacing
from ._spec import ExitName as ExitName
from ._spec import make_exit as make_exit
from ._spec import PlateauSweep as PlateauSweep
from ._spec import Reparametrisation as Reparametrisation
from ._spec import REPARAMETRISATIONS as REPARAMETRISATIONS
from ._store import load_dataset as load_dataset
from ._store import save_dataset as save_dataset
from ._sweep import sweep as sweep
from ._toml import checked as checked
from ._toml import read_toml as read_toml
