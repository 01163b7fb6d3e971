"""The one file that imports matplotlib as it is imported; `_style.py` does so at a first figure."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ._settings import chosen_settings


class StyledFigure(Figure):
    """A figure that is drawn, shown and saved in the settings that it was made with.

    Matplotlib reads some settings when a figure is saved, such as the kind of its fonts, and not
    when it is made.
    """

    def __init__(self, *args: Any, settings: Mapping[str, Any], **kwargs: Any) -> None:
        self._settings = dict(settings)
        super().__init__(*args, **kwargs)

    def draw(self, renderer: Any) -> None:
        with matplotlib.rc_context(self._own_settings()):
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        with matplotlib.rc_context(self._own_settings()):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> bytes:
        """What notebooks show, also where nobody has imported `matplotlib.pyplot`."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.get_dpi(), bbox_inches="tight")
        return buffer.getvalue()

    def _own_settings(self) -> Any:
        return self._settings | chosen_settings()
