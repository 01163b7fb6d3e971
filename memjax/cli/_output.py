import json
from typing import Any, Literal, TypeAlias

import numpy as np

# Figures for papers are vectors.
Format: TypeAlias = Literal["png", "pdf", "svg"]


def to_json(value: Any, indent: int | None = 2) -> str:
    """Plain values as JSON."""

    # JSON has no infinity and no NaN: a time that is not there is null.
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def show(as_json: bool, record: Any, text: str, indent: int | None = 2) -> None:
    """Print what was found, as JSON or as text."""
    print(to_json(record, indent) if as_json else text)
