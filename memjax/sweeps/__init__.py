"""Sweeps: many measurements over a grid, as one labelled dataset."""

from ._engine import cores as cores
from ._executors import as_executor as as_executor
from ._executors import close as close
from ._listing import write_list as write_list
from ._merge import merge as merge
from ._output import check_output as check_output
from ._output import replacing as replacing
from ._setup import as_way as as_way
from ._spec import ExitName as ExitName
from ._spec import make_exit as make_exit
from ._spec import PlateauSweep as PlateauSweep
from ._status import load_as_far as load_as_far
from ._status import sweep_status as sweep_status
from ._status import SweepStatus as SweepStatus
from ._status import Watch as Watch
from ._store import load_dataset as load_dataset
from ._store import save_dataset as save_dataset
from ._stored import holding as holding
from ._sweep import sweep as sweep
from ._toml import checked as checked
from ._toml import read_toml as read_toml
from ._variables import UNFINISHED as UNFINISHED
