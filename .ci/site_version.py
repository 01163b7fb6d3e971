"""A hook of MkDocs: the foot of every page says which version of memjax it describes."""

import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def on_config(config: Any) -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    config.copyright = f"memjax {project['version']}, licence {project['license']}"
