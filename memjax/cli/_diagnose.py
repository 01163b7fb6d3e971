import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import numpy as np
import tyro

from .._checks import as_seed, said, shown
from ..memory import diagnose
from ..models import AbstractModel
from ._output import show


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say whether training a model will sit on a plateau, and try what may help.

    Reports the model's memory, its sensitivity and the gradient signal of a dependency at a lag.

    Example: memjax diagnose mypackage.models:make_model --lag 100
    """

    model: Annotated[str, tyro.conf.Positional]
    """Where the model is, as module:name: the model itself, or a function without arguments that
    makes it. Modules of the current directory are found."""
    lag: float | None = None
    """Lag of the dependency, in units of the model's clock."""
    data: Path | None = None
    """NPZ file with arrays xs and ys, of shape (times,), (batch, times) or (batch, times, d), to
    estimate the lag from."""
    step: float = 1.0
    """Length of a step, in units of the model's clock."""
    inputs: int | None = None
    """Number of inputs, for models that do not know it; by default one scalar, or that of data."""
    samples: int = 16
    """Number of sampled inputs."""
    length: float | None = None
    """Length of training, to say too whether the model will hold at four times that length."""
    seed: int = 0
    """Seed of the sampled inputs."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        if (self.lag is None) == (self.data is None):
            raise ValueError(
                f"`lag` or `data` must be given, got {'none' if self.lag is None else 'both'}; "
                "pass one of them."
            )
        asked = self.lag if self.data is None else _read_data(self.data)
        key = jax.random.key(as_seed("seed", self.seed))
        model = _import_model(self.model)
        # memjax's own errors say what is wrong.
        with _refuse_errors("`model` must run on sampled inputs", (ValueError, TypeError)):
            diagnosis = diagnose(
                model,
                asked,  # pyright: ignore[reportArgumentType]
                step=self.step,
                inputs=self.inputs,
                samples=self.samples,
                length=self.length,
                key=key,
            )
        show(self.json, diagnosis.to_dict(), str(diagnosis))
        return 1 if diagnosis.verdict == "undecided" else 0


@contextmanager
def _refuse_errors(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a user's own code raises, as a `ValueError`; interrupts and what may pass go on."""
    try:
        yield
    except (KeyboardInterrupt, *passing):
        raise
    except BaseException as error:  # `SystemExit` too
        raise ValueError(f"{what}, got {said(error)}") from error


def _import_model(text: str) -> Any:
    """The object that `module:name` stands for, made if it is a function without arguments."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"`model` must be given as module:name, got {shown(text)}; name both.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with _refuse_errors(f"`model` must be in a module that can be imported, as {module_name!r}"):
        found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        with _refuse_errors(f"`model` must name something in {module_name!r}"):
            found = getattr(found, part)
    if isinstance(found, AbstractModel | eqx.nn.GRUCell | eqx.nn.LSTMCell) or not callable(found):
        return found
    try:
        required = [
            parameter
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except Exception:  # there is none
        return found
    if required:
        return found
    with _refuse_errors(f"`model` must be made by {text!r}"):
        return found()


def _read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["xs"], arrays["ys"]
    except OSError as error:
        raise OSError(
            f"`data` must be a file that can be read, got {shown(str(path))}: {said(error)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"`data` must be an NPZ file with arrays xs and ys, got {shown(str(path))}: "
            f"{said(error)}"
        ) from error
