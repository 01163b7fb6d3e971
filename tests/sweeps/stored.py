"""Sweeps through a store whose blocks take no time, for tests of all but the engine."""

import os
import time
from pathlib import Path

import numpy as np

from memjax.sweeps._blocks import Blocks
from memjax.sweeps._grid import Grid
from memjax.sweeps._identity import identity_of
from memjax.sweeps._setup import _growing
from memjax.sweeps._store import encoded_array
from memjax.sweeps._stored import Content, fill, Way
from memjax.sweeps._work import Plan, variables_of

VARIABLES = variables_of([], None)


class Cheap:
    """Numbers that follow from the cell, after a while.

    **Arguments:**

    - `seconds`: how long a block takes.
    - `log`: a file that gets a line for every block that is computed.
    - `raises`, `dies`, `hangs`: the numbers of blocks that do so.
    """

    def __init__(self, seconds=0.0, log=None, raises=(), dies=(), hangs=()):
        self.seconds, self.log = seconds, log
        self.raises, self.dies, self.hangs = raises, dies, hangs

    def compute(self, block, stopped, report=None, device=None):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{block.index}\n")
        if block.index in self.raises:
            raise ZeroDivisionError("of no use")
        if block.index in self.dies:
            os.kill(os.getpid(), 9)
        while block.index in self.hangs:
            time.sleep(0.05)
            if stopped.is_set():
                return None
        time.sleep(self.seconds)
        columns = block.columns
        number = 1000.0 * columns["a"] + columns["b"] + dict(block.fixed)["s"] / 7
        found = {n: number.astype(dtype) for n, (dtype, _) in VARIABLES.items()}
        return found | {"time": np.exp(-number), "result": (number % 3).astype(np.int8)}


def content(a=8, b=6, cells=8, build=len, **attrs):
    """The blocks of a sweep over three axes, one of them static, and its empty store."""
    grid = Grid.build({"a": range(a), "s": [1, 2], "b": np.arange(b)}, ["s"])
    blocks = Blocks.of(grid, cells)
    plan = Plan(blocks.shape, (8, 8), (), True)

    class Fixed:
        def attributes(self):
            return {"rtol": 1e-5}

    return blocks, Content(
        {name: encoded_array(values, (name,), {}) for name, values in grid.values.items()},
        _growing(blocks, VARIABLES, {}),
        {"rtol": 1e-5} | attrs,
        identity_of(build, grid, Fixed(), None, "auto", attrs, plan),
    )


def run(path, work=None, what=None, **way):
    """Fill a store, as `mj.sweep` does."""
    blocks, made = content() if what is None else what
    return fill(Path(path), work or Cheap(), blocks, Way(**way), made, 2)
