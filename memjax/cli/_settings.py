"""Settings of the process that runs a command."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from ..installation import check_devices, check_figures


def configure() -> None:
    """What holds for every command."""
    jax.config.update("jax_enable_x64", True)
    # NaN is what stands where there is no answer.
    jax.config.update("jax_debug_nans", False)
    jax.config.update("jax_debug_infs", False)
    _keep_compiled()


def _keep_compiled() -> None:
    """Keep what is compiled for the next time, in the user's folder for caches, unless JAX has been
    told where to keep it or not to.

    Code for one processor may not run on another, and a home may be shared: every kind of machine
    has a folder of its own.
    """
    told, enabled = (
        getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    )
    # What jax 0.6 reads back on a CPU computes something else.
    if told or not enabled or tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10):
        return
    try:
        kind = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        kind = platform.processor()
    machine = hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]
    given = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        home = Path(given) if given else Path.home() / ".cache"
        folder = home / "memjax" / f"jax-{jax.__version__}-{machine}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # To read even the smallest program takes less time than to compile it.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_environment() -> None:
    """Refuse the environment variables of others that would stop a command late."""
    check_devices()
    check_figures()
