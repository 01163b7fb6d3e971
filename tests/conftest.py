import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# Before JAX is imported, for this process and for those that it starts: tests that build the
# same program in different places need not compile it twice. Not with old versions of JAX: what
# 0.6.0 reads back from its cache on a CPU computes something else.
_jax = tuple(map(int, version("jax").split(".")[:2]))
if _jax >= (0, 10) and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="memjax-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# Most of the time of the tests goes into compiling. It is less with XLA's older emitter of loops
# and without LLVM's optimizations, which `.ci/run` puts on for the thorough tests. A version that
# does not know a flag would not start.
if _jax <= (0, 10) and "XLA_FLAGS" not in os.environ:
    _flags = ["--xla_cpu_use_fusion_emitters=false"]
    if os.environ.get("MEMJAX_OPTIMIZED_TESTS") != "1":
        _flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    os.environ["XLA_FLAGS"] = " ".join(_flags)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Every call inside memjax is compared with its annotations.
if os.environ.get("MEMJAX_CHECK_SHAPES") == "1":
    jaxtyping.install_import_hook("memjax", "shapes.checked")

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def no_programs_of_other_modules():
    """Compiled programs are mapped into memory piece by piece, and a process that keeps those
    of hundreds of tests runs out of mappings: XLA then crashes."""
    yield
    jax.clear_caches()
