"""Sweeps: many measurements over a grid, as one labelled dataset."""

from ._spec import PlateauSweep as PlateauSweep
from ._store import load_dataset as load_dataset
from ._store import save_dataset as save_dataset
from ._sweep import sweep as sweep
