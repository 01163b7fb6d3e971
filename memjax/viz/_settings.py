from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .._checks import check_instance, said, shown, unknown_name
from .._lazy import matplotlib

# No settings of a figure, but of how a session shows figures.
_OF_SESSIONS = ("backend", "backend_fallback", "interactive", "toolbar", "timezone")

_CHOSEN: ContextVar[Mapping[str, Any]] = ContextVar("memjax_viz_settings")


# The keys of `rcParams` have a type of their own, and a mapping has one type of keys.
@contextmanager
def style(settings: Mapping[Any, Any]) -> Iterator[None]:
    """Settings of matplotlib that go before those of memjax, in a `with` statement.

    Figures that are drawn in it have these settings whenever they are shown or saved; a figure that
    was drawn before has them while it is saved in it.

    ```python
    with mj.viz.style({"font.size": 8, "figure.figsize": (3.4, 2.6)}):
        figure = mj.viz.plot_plateau_law(dataset)
    ```

    `with mj.viz.style(matplotlib.rcParams)` takes all of your own settings. `axes.prop_cycle` may
    have `color`, `marker` and `linestyle`; `lines.linewidth` and `lines.markersize` scale the
    series. Blocks may be nested: the inner one goes first.

    **Arguments:**

    - `settings`: a mapping from names of `matplotlib.rcParams` to values.

    **Raises:**

    `TypeError` for no mapping, `ValueError` for a name or value that matplotlib does not know.
    """
    check_instance("settings", settings, Mapping, "a mapping", 'write {"font.size": 8}')
    known = matplotlib.rcParams
    for name in settings:
        if name not in known:
            hint = unknown_name(name, list(known))
            raise ValueError(
                f"`settings` must have names of matplotlib.rcParams, got {shown(name)}; {hint}"
            )
    # The backend is looked up, and a window opened for it, as soon as it is read.
    mine: Any = {name: settings[name] for name in settings if name not in _OF_SESSIONS}
    try:
        with matplotlib.rc_context(mine):
            pass
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`settings` must have values that matplotlib takes, got {said(error)}; correct it."
        ) from None
    token = _CHOSEN.set(chosen_settings() | mine)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen_settings() -> dict[str, Any]:
    """The settings of the `style` blocks that we are in."""
    return dict(_CHOSEN.get({}))
