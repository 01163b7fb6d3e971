import atexit
import shutil
import tempfile

import jax

jax.config.update("jax_enable_x64", True)

# Tests that build the same program in different ways need not compile it twice.
_cache = tempfile.mkdtemp(prefix="memjax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
