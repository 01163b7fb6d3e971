"""A sweep under `mpiexec -n 3 python -m mpi4py.futures mpi_sweep.py STORE`."""

import sys

import jax
from mpi4py.futures import MPIPoolExecutor  # pyright: ignore[reportMissingImports]

import memjax as mj
import stored

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    with MPIPoolExecutor() as executor:
        if sys.argv[2] == "engine":
            spec = mj.PlateauSweep(memories=(6.0, 9.0), widths=(2,), seeds=(0, 1), curve_points=0)
            spec.run(store=sys.argv[1], block_size=1, executor=executor, progress=False)
        else:
            stored.run(sys.argv[1], stored.Cheap(0.05, sys.argv[2]), executor=executor)
        print("workers", executor.num_workers)
