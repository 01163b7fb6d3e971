"""What there is: packages, devices, threads and variables, each looked at by itself, so that what
is broken hides nothing else."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Others change what memjax computes, or how fast, only by way of these.
_PACKAGES = (
    "jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax", "numpy", "scipy",
    "matplotlib", "xarray", "zarr",
)  # fmt: skip
_PREFIXES = ("JAX_", "XLA_", "MEMJAX_", "OMP_", "OPENBLAS_", "MKL_", "LIBTPU_", "TPU_", "NVIDIA_")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "MPLBACKEND",
    "PYTHONPATH", "XDG_CACHE_HOME",
)  # fmt: skip


def find_versions() -> dict[str, str]:
    """The versions of Python, memjax and what it is built on, "missing" for what is not there."""
    versions = {"python": platform.python_version()}
    return versions | {name: _version(name) for name in ("memjax", *_PACKAGES)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def find_faulty_packages() -> Iterator[str]:
    """What is missing or of another version than memjax needs, a line for each."""
    for name, bound, extra in _requirements():
        found = _version(name)
        if extra or (found != "missing" and not _is_older(found, bound)):
            continue
        yield f"{name} is {found}, and must be {bound} or newer; run pip install '{name}>={bound}'."


def find_extras() -> dict[str, list[str]]:
    """The packages that are missing for every optional part of memjax."""
    missing: dict[str, list[str]] = {}
    for name, bound, extra in _requirements():
        if extra:
            found = _version(name)
            absent = found == "missing" or _is_older(found, bound)
            missing.setdefault(extra, []).extend([name] if absent else [])
    return missing


def _requirements() -> Iterator[tuple[str, str, str]]:
    """What memjax asks for: the package, its least version and the extra that asks, "" for none."""
    for line in importlib.metadata.requires("memjax") or ():
        needed, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", needed)
        bound = re.search(r">=\s*([\w.]+)", needed)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if name:
            yield name[0], bound[1] if bound else "0", extra[1] if extra else ""


def _is_older(found: str, bound: str) -> bool:
    numbers = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (found, bound))
    first, last = ([*n, 0, 0, 0][:3] for n in numbers)
    return first < last


def find_devices() -> list[dict[str, Any]]:
    """The devices that JAX computes on, with the number of bytes that each may use.

    **Raises:**

    What JAX raises where it finds none.
    """
    import jax

    return [
        {
            "name": str(device),
            "platform": device.platform,
            "kind": device.device_kind,
            "memory": _find_memory(device),
        }
        for device in jax.devices()
    ]


def _find_memory(device: Any) -> int | None:
    try:
        known = device.memory_stats() or {}
        if "bytes_limit" in known:
            return int(known["bytes_limit"])
        if device.platform == "cpu":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except Exception:  # some devices do not tell
        pass
    return None


def has_unused_gpu(devices: list[dict[str, Any]]) -> bool:
    """Whether there is an NVIDIA GPU here of which JAX does not know."""
    if any(device["platform"] != "cpu" for device in devices) or os.environ.get("JAX_PLATFORMS"):
        return False
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def find_cache() -> dict[str, Any]:
    """Where compiled programs are kept for the next process, how many they are and their bytes."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore
    if not folder or not enabled:
        return {"used": False, "folder": None, "programs": 0, "bytes": 0}
    sizes = []
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith("-cache"):
                sizes.append(entry.stat().st_size)
    except OSError:  # it is elsewhere, or not yet there
        pass
    return {"used": True, "folder": str(folder), "programs": len(sizes), "bytes": sum(sizes)}


def find_threads() -> dict[str, Any]:
    """The cores of the machine and of this process, and the threads of its numerical libraries."""
    import threadpoolctl

    from ..sweeps import cores

    pools = [
        f"{pool.get('internal_api', '?')} {pool.get('version') or ''}".strip()
        + f": {pool.get('num_threads')}"
        for pool in threadpoolctl.threadpool_info()
    ]
    return {"machine": os.cpu_count(), "process": cores(), "pools": pools}


def find_variables() -> dict[str, str]:
    """The environment variables that change what memjax does."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _VARIABLES
    }
