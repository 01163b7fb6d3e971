"""From the checked arguments of a sweep to its store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import as_list, as_plain, as_positive, check_flag, check_integer, shown
from .._lazy import xr
from ._blocks import Blocks
from ._build import Build, BuildRuns, shapes_of
from ._cells import attributes_of, coordinates_of, Described, provenance
from ._durable import Growing, Variable
from ._executors import as_executor, close
from ._grid import Grid
from ._identity import identity_of, plan_in, read_identity
from ._jobs import Method, pad
from ._options import Options
from ._store import encoded_array, plain_attributes
from ._stored import check_same, Content, fill, is_stored, Way
from ._variables import CURVE, TIMES
from ._work import make_plan, Plan, PlateauWork, variables_of


class Setup(NamedTuple):
    """A sweep, checked.

    **Attributes:**

    - `build`: the user's.
    - `builds`: with every combination of the static axes.
    - `grid`, `options`, `curve_times`, `precision`, `attrs`: those of the sweep.
    - `own`: whether every run goes through `measure_plateau`.
    - `records`: what each of the builds records, as shapes.
    """

    build: Callable[..., tuple]
    builds: list[Build]
    grid: Grid
    options: Options
    curve_times: Any
    precision: str
    own: bool
    records: list[dict[str, Any]]
    attrs: dict[str, Any]


def as_way(
    store: Any,
    resume: Any,
    overwrite: Any,
    *,
    block_size: Any,
    executor: Any,
    shard: Any,
    retries: Any,
    timeout: Any,
    progress: bool = False,
) -> Way:
    """How a store is to be filled, of arguments of [`memjax.sweep`][]; nothing is started yet."""
    check_flag("resume", resume)
    check_flag("overwrite", overwrite)
    if block_size is not None:
        check_integer("block_size", block_size)
    retries = check_integer("retries", retries, 0)
    if timeout is not None:
        timeout = as_plain(as_positive, "timeout", timeout)
    if shard is not None:
        shard = _as_shard(shard)
    if store is None:
        given = {
            "resume": resume, "overwrite": overwrite, "block_size": block_size,
            "executor": executor, "shard": shard, "timeout": timeout,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"`{name}` must not be given without a `store`, got {shown(value)}; pass for "
                    "example store='results/run'."
                )
    if resume and overwrite:
        raise ValueError("`resume` and `overwrite` must not both be True, got True; choose one.")
    if shard is not None and (overwrite or executor is not None):
        name = "overwrite" if overwrite else "executor"
        raise ValueError(
            f"`{name}` must not be given for a `shard`, whose process does its part in a store "
            "that others fill, too; leave it out."
        )
    if shard is None and executor is None and store is not None and jax.process_count() > 1:
        shard = jax.process_index(), jax.process_count()
    return Way(None, retries, timeout, resume, overwrite, shard, progress)


def _as_shard(value: Any) -> tuple[int, int]:
    pair = as_list("shard", value, "two integers")
    if len(pair) != 2:
        raise ValueError(f"`shard` must be two integers, got {shown(value)}; pass (k, n).")
    number = check_integer("shard", pair[1])
    index = check_integer("shard", pair[0], 0)
    if index >= number:
        raise ValueError(
            f"`shard` must be (k, n) with k below n, got {shown(value)}; count k from 0."
        )
    return index, number


def sweep_stored(
    path: Path,
    setup: Setup,
    way: Way,
    sizes: tuple[int | None, int | None],
    executor: Any,
    described: Described,
    stacklevel: int,
) -> "xr.Dataset":
    """A sweep through a store.

    **Arguments:**

    - `path`: the store.
    - `setup`: the sweep.
    - `way`: how the store is filled, but for the executor.
    - `sizes`: the block size and the number of lanes that were asked for.
    - `executor`: as given to [`memjax.sweep`][].
    - `described`: attributes of what is recorded.
    - `stacklevel`: of warnings.
    """
    computer, mine = as_executor(executor)
    try:
        return _filled(path, setup, way._replace(executor=computer), sizes, described, stacklevel)
    finally:
        if mine:
            close(computer)


def _filled(
    path: Path,
    setup: Setup,
    way: Way,
    sizes: tuple[int | None, int | None],
    described: Described,
    stacklevel: int,
) -> "xr.Dataset":
    plan = _plan(path, setup, way, sizes)
    blocks = Blocks(setup.grid, plan.span)
    grid, times = setup.grid, setup.curve_times
    times = None if times is None else np.asarray(times)
    identity = identity_of(
        setup.build, grid, setup.options, times, setup.precision, setup.attrs, plan
    )
    if is_stored(path) and not way.overwrite:
        check_same(path, identity, way)
    fixed = [build.fixed for build in setup.builds]
    work = PlateauWork(
        setup.build,
        setup.options,
        times,
        setup.precision,
        setup.own,
        dict(zip(fixed, plan.lanes or [1] * len(fixed), strict=True)),
        dict(zip(fixed, plan.widths or [None] * len(fixed), strict=True)),
        blocks.cells,
        plan.quick,
    )
    content = Content(
        {
            name: encoded_array(values, (dim,), attributes)
            for name, (dim, values, attributes) in coordinates_of(grid, times).items()
        },
        _growing(blocks, variables_of(setup.records, times), described),
        plain_attributes("attrs", {**provenance(), **setup.options.attributes(), **setup.attrs}),
        identity,
    )
    return fill(path, work, blocks, way, content, stacklevel + 2)


def _plan(path: Path, setup: Setup, way: Way, sizes: tuple[int | None, int | None]) -> Plan:
    """How the sweep is cut: as its store is, if there is one, and nothing else is asked for."""
    if is_stored(path) and not way.overwrite and sizes == (None, None):
        try:
            return plan_in(read_identity(path))
        except (ValueError, KeyError, TypeError):
            pass  # it is refused later
    runs, widths = [], []
    if not setup.own:
        first = setup.grid.rows(np.zeros(1, int))
        builds = pad([BuildRuns(build) for build in setup.builds], first, setup.grid.count)
        runs = [shapes_of(build, first) for build in builds]
        widths = [build.width for build in builds]
        for run in runs:
            Method.of(run, setup.options, jnp.zeros(0), setup.precision)  # refuses what cannot be
    costly = setup.options.max_steps > 100_000
    return make_plan(setup.grid, runs, widths, *sizes, costly)


def _growing(blocks: Blocks, variables: Any, described: Described) -> dict[str, Growing]:
    names = tuple(blocks.grid.values)
    shape = blocks.grid.shape(names)
    found = {}
    for name, (dtype, more) in variables.items():
        dims = (*names, *([TIMES] if name == CURVE else []))
        variable = Variable(dtype, (*shape, *more), (*blocks.shape, *more))
        attributes = plain_attributes(name, attributes_of(name, described))
        found[name] = Growing(dims, variable, attributes)
    return found
