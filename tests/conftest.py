import atexit
import os
import shutil
import tempfile

# Before JAX is imported, for this process and for those that it starts: tests that build the
# same program in different places need not compile it twice.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="memjax-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax

jax.config.update("jax_enable_x64", True)
