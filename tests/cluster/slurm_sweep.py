"""One shard of a job array: `slurm_sweep.py STORE LOG SECONDS`."""

import os
import sys

import stored

number = int(os.environ["SLURM_ARRAY_TASK_COUNT"])
index = int(os.environ["SLURM_ARRAY_TASK_ID"]) - 1
store, log, seconds = sys.argv[1:]
stored.run(store, stored.Cheap(float(seconds), log), shard=(index, number))
