import json
from typing import Any

import numpy as np


def to_json(value: Any) -> str:
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

    return json.dumps(plain(value), indent=2, allow_nan=False)


def show(as_json: bool, record: Any, text: str) -> None:
    """Print what was found, as JSON or as text."""
    print(to_json(record) if as_json else text)
