"""One of two processes of `jax.distributed` that fill a store together.

python two_processes.py PORT NUMBER STORE
"""

import sys

import jax
import numpy as np

import memjax as mj

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    port, number, store = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    memories = tuple(np.linspace(5, 9, 8))
    spec = mj.PlateauSweep(memories=memories, widths=(2,), seeds=(0,), curve_points=0)
    spec.run(progress=False, store=store, block_size=1)
    print(jax.process_count())
