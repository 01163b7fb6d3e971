"""Prints the lower bounds in pyproject.toml as constraints for pip: `name==version`, one a line.

    python .ci/lower_bounds.py test > constraints.txt

Arguments name extras, whose bounds are added.
"""

import re
import sys
import tomllib
from pathlib import Path

BOUND = re.compile(r"^(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<version>[\w.]+)$")


def lower_bounds(project: dict, extras: list[str]) -> list[str]:
    """The constraints, each requirement with the lowest version that it allows."""
    requirements = [*project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    constraints = []
    for requirement in requirements:
        match = BOUND.match(requirement)
        if match is None:
            raise ValueError(f"'{requirement}' has no lower bound of the form name>=version")
        constraints.append(f"{match['name']}=={match['version']}")
    return sorted(constraints)


if __name__ == "__main__":
    content = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    print(*lower_bounds(content["project"], sys.argv[1:]), sep="\n")
