"""Joining stores of one sweep that lie apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._checks import as_list, as_path, check_flag, shown
from ._durable import BlockStore
from ._identity import first_difference, read_identity
from ._output import check_output, replacing
from ._status import open_store


def merge(stores: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Path:
    """Join stores of the same sweep, each of which holds some of its blocks, into a new one.

    So shards that ran on machines without a common disk become one dataset. Blocks are compared
    with their checksums; of those that several stores hold the first that is whole is taken. If
    some are missing, the new store is unfinished, and `memjax.sweep(..., resume=True)` computes
    them.

    **Arguments:**

    - `stores`: the stores, or folders of `memjax sweep`.
    - `out`: the folder of the new store.
    - `overwrite`: whether a store of that name may be replaced, as in [`memjax.save_dataset`][].

    **Returns:**

    The path of the new store.

    **Raises:**

    `ValueError` for stores of different sweeps, which names the first difference;
    `FileNotFoundError` or `ValueError` for what is no store; `FileExistsError` or another `OSError`
    if the output cannot be written.
    """
    given = as_list("stores", stores, "paths")
    if not given:
        raise ValueError("`stores` must not be empty, got []; pass at least one store.")
    check_flag("overwrite", overwrite)
    out = as_path("out", out)
    check_output(out, overwrite)
    sources = [open_store("stores", path) for path in given]
    identities = [_identity(source) for source in sources]
    for source, identity in zip(sources, identities, strict=True):
        difference = first_difference(identities[0], identity)
        if difference is not None:
            raise ValueError(
                f"`stores` must be of one sweep, got {shown(str(source.path))}, which differs from "
                f"the first in {difference}; leave it out."
            )
    with replacing(out, overwrite) as partial:
        joined = sources[0].copy_empty(partial)
        for index in sorted({index for source in sources for index in source.present()}):
            for source in sources:
                if source.has(index) and source.check(index) is None:
                    joined.write({index: source.chunks(index)})
                    break
        if sum(1 for _ in joined.present()) == joined.number:
            joined.seal()
    return out


def _identity(store: BlockStore) -> dict[str, Any]:
    try:
        return read_identity(store.path)
    except ValueError as error:
        raise ValueError(
            f"`stores` must be stores of sweeps, got {shown(str(store.path))}: {error}; leave it "
            "out."
        ) from error
