"""The lane engine against the multiprecision references."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.plateaus._measure import OUTCOMES

CASES = json.loads(
    (pathlib.Path(__file__).parents[1] / "reference" / "plateau_references.json").read_text()
)
GROUPS = sorted({(len(case["a0"]), case["reparam"]) for case in CASES})


def members(group):
    return [case for case in CASES if (len(case["a0"]), case["reparam"]) == GROUPS[group]]


def build(group, member):
    """The start, the target and the exit of a reference case: one compilation a group."""
    cases = members(group)
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


def measured(**options):
    size = max(len(members(group)) for group in range(len(GROUPS)))
    axes = {"group": range(len(GROUPS)), "member": range(size)}
    return mj.sweep(build, axes, static=("group",), progress=False, **options)


@pytest.fixture(scope="module")
def dataset():
    return measured()


def cells(dataset):
    for group in range(len(GROUPS)):
        for member, case in enumerate(members(group)):
            yield case, dataset.isel(group=group, member=member)


def test_times_agree_with_multiprecision_or_say_that_they_do_not(dataset):
    right = 0
    for case, cell in cells(dataset):
        outcome = OUTCOMES[int(cell["result"])]
        if outcome == "unresolved":
            continue
        assert outcome == case["result"], case["name"]
        if outcome == "exited":
            assert float(cell["time"]) == pytest.approx(float(case["time"]), rel=1e-3), case["name"]
            assert float(cell["loss"]) == pytest.approx(float(case["loss_exit"]), rel=1e-5)
        else:
            assert float(cell["time"]) == np.inf
        right += 1
    assert right >= 40
