"""Plateaus of starts whose modes merge, against multiprecision integrations."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.plateaus import OUTCOMES

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "coalescing_references.json"
CASES = json.loads(REFERENCE.read_text())
MAPS = {"direct": mj.Direct(), "exp": mj.Exp(), "softplus": mj.Softplus()}


def kind(case):
    """What has programs of its own."""
    return len(case["a0"]), len(case["A"]), case["reparam"]


# Every kind compiles programs of its own: one of them before a merge, the others by hand.
KINDS = [
    pytest.param(shape, marks=[] if shape == (2, 1, "direct") else pytest.mark.slow)
    for shape in sorted({kind(case) for case in CASES})
]


def build(cases, member):
    """The flow, the start and the exit of one of several cases of a kind."""
    pick = lambda key: jnp.asarray([case[key] for case in cases])[member]
    bump = mj.GaussianBump(1 / pick("inverse_omega"), pick("c0"), pick("sigma"))
    target = mj.ExponentialSum(pick("A"), pick("W")) + bump
    model = mj.DiagonalLinearRNN(pick("a0"), pick("w0"), MAPS[cases[0]["reparam"]])
    leave = mj.RelativeLossDrop(pick("delta"), bump.squared_norm())
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, leave


def fault(case, code, time, loss, steps):
    """What is wrong with an answer, in words; empty if nothing is."""
    limit = 1000 if kind(case) == (2, 1, "direct") and case["inverse_omega"] == 20 else 4096
    exited = case["result"] == "exited"
    expected = float(case["time"]) if exited else np.inf
    right = OUTCOMES[int(code)] == case["result"]
    right &= bool(np.isclose(time, expected, rtol=1e-3, atol=0))
    right &= bool(np.isclose(loss, float(case["loss_exit"]), rtol=1e-6 if exited else 1e-9, atol=0))
    if right and steps <= limit:
        return ""
    found = f"{OUTCOMES[int(code)]} {time:.8g}, loss {loss:.12g}, {int(steps)} steps"
    due = f"{case['result']} {expected:.8g}, loss {case['loss_exit']}, at most {limit}"
    return f"{case['name']}: {found}; expected {due}"


def test_the_references_are_confirmed():
    assert len(CASES) >= 30
    assert max(case["disagreement"] for case in CASES) < 1e-8


@pytest.fixture(scope="module", params=KINDS, ids=lambda shape: "-".join(map(str, shape)))
def cases(request):
    """The cases of a kind, whose programs are dropped after them as after a module."""
    yield [case for case in CASES if kind(case) == request.param]
    jax.clear_caches()


@pytest.mark.slow
def test_a_sweep(cases):
    axes = {"member": range(len(cases))}
    cells = mj.sweep(lambda member: build(cases, member), axes, progress=False)
    names = ("result", "time", "loss", "num_steps")
    columns = zip(*(cells[name].values for name in names), strict=True)
    faults = [fault(case, *column) for case, column in zip(cases, columns, strict=True)]
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.thorough
def test_single_runs(cases):
    faults = []
    for case in cases:
        plateau = mj.measure_plateau(*build([case], 0), throw=False)
        answer = plateau.time, plateau.loss, plateau.stats["num_steps"]
        faults.append(fault(case, plateau.result_code, *answer))
    assert not any(faults), "\n".join(filter(None, faults))
