"""The multiprecision references as one sweep of the lane engine.

Cases of one width and reparametrisation share their programs.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import xarray as xr

import memjax as mj

CASES = json.loads(pathlib.Path(__file__).with_name("plateau_references.json").read_text())
GROUPS = sorted({(len(case["a0"]), case["reparam"]) for case in CASES})


def _members(group: int) -> list[dict[str, Any]]:
    return [case for case in CASES if (len(case["a0"]), case["reparam"]) == GROUPS[group]]


def build(group: int, member: Any) -> tuple[Any, Any, Any]:
    """The flow, the start and the exit of a case."""
    cases = _members(group)
    row = jnp.minimum(member, len(cases) - 1)
    pick = lambda key: jnp.asarray([case[key] for case in cases], float)[row]
    target = mj.ExponentialSum(pick("A"), pick("W"))
    target = target + mj.GaussianBump(1 / pick("inverse_omega"), pick("c0"), pick("sigma"))
    reparametrisation = mj.Exp() if GROUPS[group][1] == "exp" else mj.Direct()
    model = mj.DiagonalLinearRNN(pick("a0"), pick("w0"), reparametrisation)
    relative = jnp.asarray([case["exit"] == "RelativeLossDrop" for case in cases])[row]
    delta = pick("delta")
    exit = mj.FirstOf(
        mj.RelativeLossDrop(jnp.where(relative, delta, 1 - 1e-9)),
        mj.ParameterDistance(jnp.where(relative, 1e9, delta)),
    )
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, exit


def measured(**options: Any) -> xr.Dataset:
    """All cases; places beyond the last of a group repeat it."""
    size = max(len(_members(group)) for group in range(len(GROUPS)))
    axes = {"group": range(len(GROUPS)), "member": range(size)}
    return mj.sweep(build, axes, static=("group",), progress=False, **options)


def cells(dataset: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every case with its cell."""
    for group in range(len(GROUPS)):
        for member, case in enumerate(_members(group)):
            yield case, dataset.isel(group=group, member=member)
