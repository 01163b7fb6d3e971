"""Environment variables of others that would stop a command late."""

import os

import jax

from .._checks import said, shown


def check_devices() -> None:
    """Refuse a platform that JAX does not find."""
    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms is None:
            raise ValueError(
                f"JAX must find a device, got {said(error)}; set `JAX_PLATFORMS` to cpu to do "
                "without."
            ) from error
        raise ValueError(
            f"`JAX_PLATFORMS` must name a platform that JAX finds here, got {shown(platforms)}; "
            "unset it, or set it to cpu."
        ) from error


def check_figures() -> None:
    """Refuse a backend that Matplotlib does not know."""
    if "MPLBACKEND" not in os.environ:
        return
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        raise ValueError(
            f"`MPLBACKEND` must name a backend of Matplotlib, got "
            f"{shown(os.environ['MPLBACKEND'])}; unset it."
        ) from error
