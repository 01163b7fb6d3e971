"""What is slow to import is imported when it is first used."""

import subprocess
import sys

import jax
import pytest

import memjax as mj

SLOW = ["matplotlib", "pandas", "scipy.stats", "tqdm", "tyro", "xarray", "zarr"]
if jax.__version_info__ >= (0, 10):  # older versions import it themselves
    SLOW.append("scipy.sparse")


@pytest.mark.parametrize(
    "code",
    [
        "import memjax",
        "import memjax; memjax.measure_plateau; memjax.sweep; memjax.memory_function",
        "import memjax; memjax.best_exponential_sum; memjax.diagnose; memjax.REPRODUCTIONS",
    ],
)
def test_slow_modules_are_left_until_they_are_used(code):
    script = f"import sys; {code}; print([name for name in {SLOW} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in mj.__all__:
        assert getattr(mj, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        mj.no_such_name  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
