"""What is released says one version, is whole, and is built by scripts that are there."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from lower_bounds import lower_bounds

import memjax as mj

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_that_of_the_project():
    assert mj.__version__ == version("memjax") == PROJECT["version"]
    assert str(CITATION["version"]) == PROJECT["version"]


def test_the_citation_has_what_archives_ask_for():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    for name in ("abstract", "authors", "date-released", "keywords", "license", "message", "title"):
        assert CITATION[name], name


def test_types_are_announced():
    assert (Path(mj.__file__).parent / "py.typed").is_file()


def test_lower_bounds_are_constraints():
    found = lower_bounds(PROJECT, ["test"])
    assert f"jax=={PROJECT_BOUND['jax']}" in found
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in found)
    with pytest.raises(ValueError, match="'numpy<3' has no lower bound"):
        lower_bounds({"dependencies": ["numpy<3"]}, [])


PROJECT_BOUND = dict(requirement.split(">=") for requirement in PROJECT["dependencies"])


def steps(workflow):
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_scripts_that_are_there(path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    called = [step["run"] for step in steps(workflow) if "run" in step]
    assert called
    for command in called:
        scripts = re.findall(r"\.ci/\w+(?:\.py)?", command)
        assert scripts or command == "python -m mkdocs build --strict", command
        assert all((ROOT / script).is_file() for script in scripts), command


def test_workflows_are_there():
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]
