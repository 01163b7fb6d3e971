"""What a stored sweep is a sweep of: two processes that say the same may share its store."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import shown
from ._cells import PACKAGES
from ._fingerprint import fingerprint
from ._grid import Grid
from ._options import Options
from ._store import IDENTITY
from ._work import Plan

_FORMAT = 1
# Longer axes are kept as a digest only; the store has their values as coordinates.
_LONGEST = 1000


def identity_of(
    build: Any,
    grid: Grid,
    options: Options,
    curve_times: np.ndarray | None,
    precision: str,
    attrs: Mapping[str, Any],
    plan: Plan,
) -> dict[str, Any]:
    """All that the numbers of a sweep follow from, as JSON has it."""
    kind = build if hasattr(build, "__qualname__") else type(build)
    return json.loads(
        json.dumps(
            {
                "format": _FORMAT,
                "axes": {name: _axis(values) for name, values in grid.values.items()},
                "static": sorted(grid.static),
                "options": {
                    **options.attributes(),
                    "precision": precision,
                    "curve_times": None if curve_times is None else _axis(np.asarray(curve_times)),
                },
                "attrs": dict(attrs),
                "build": {"its name": f"{kind.__module__}.{kind.__qualname__}"}
                | fingerprint(build),
                "versions": {package: version(package) for package in PACKAGES}
                | {"python": ".".join(platform.python_version_tuple()[:2])},
                "block": {
                    "shape": list(plan.span),
                    "lanes": list(plan.lanes),
                    "widths": list(plan.widths),
                    "quick": plan.quick,
                },
            }
        )
    )


def _axis(values: np.ndarray) -> dict[str, Any]:
    plain = np.ascontiguousarray(values)
    digest = hashlib.sha256(f"{plain.dtype.str} {plain.shape}".encode() + plain.tobytes())
    found = {"dtype": plain.dtype.str, "length": len(plain), "digest": digest.hexdigest()}
    return found | ({"values": plain.tolist()} if len(plain) <= _LONGEST else {})


def plan_in(identity: dict[str, Any]) -> Plan:
    """How a stored sweep is cut."""
    block = identity["block"]
    shape, lanes, widths = (tuple(block[name]) for name in ("shape", "lanes", "widths"))
    return Plan(shape, lanes, widths, bool(block["quick"]))


def read_identity(store: Path) -> dict[str, Any]:
    """What a store is a sweep of.

    **Raises:**

    `ValueError` for a file that is damaged or of another version, `OSError` if there is none.
    """
    data = (store / IDENTITY).read_bytes()
    try:
        found = json.loads(data)
        if found["format"] == _FORMAT:
            return found
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{IDENTITY!r} is damaged") from error
    raise ValueError(f"{IDENTITY!r} has format {shown(found['format'])}, which is not known here")


def first_difference(stored: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The first thing in which two sweeps differ, as a message says it."""
    for part, words in (
        ("axes", "axis `{}`"),
        ("static", "`static`"),
        ("options", "`{}`"),
        ("attrs", "the attribute {!r}"),
        ("build", "`build`, {}"),
        ("versions", "the version of {}"),
        ("block", "the {} of blocks"),
    ):
        one, other = stored.get(part), here.get(part)
        if one == other and list(one or ()) == list(other or ()):
            continue
        if not isinstance(one, dict) or not isinstance(other, dict):
            return f"{words}: {shown(one)} there, {shown(other)} here"
        if part == "axes" and list(one) != list(other):
            return f"the axes: {shown(list(one))} there, {shown(list(other))} here"
        for name in [*one, *(name for name in other if name not in one)]:
            if one.get(name) != other.get(name):
                there, now = _said(one.get(name)), _said(other.get(name))
                told = f": {there} there, {now} here" if part != "build" or "name" in name else ""
                return words.format(name) + told
    return None


def _said(value: Any) -> str:
    if isinstance(value, dict) and "length" in value:
        values = value.get("values")
        return f"{value['length']} values" + (f" {shown(values)}" if values else "")
    return "nothing" if value is None else shown(value)
