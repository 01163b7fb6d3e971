"""Imports go down the rooms, never in a circle, and no room uses what is private to another."""

import ast
from collections import defaultdict
from pathlib import Path

import memjax

PACKAGE = Path(memjax.__file__).parent

# From the ground up: a room imports from those before it only.
ROOMS = (
    "_lazy",
    "_deprecation",
    "_checks",
    "_paths",
    "_text",
    "_typing",
    "numerics",
    "reparam",
    "targets",
    "models",
    "curvature",
    "losses",
    "flows",
    "solvers",
    "plateaus",
    "sweeps",
    "installation",
    "memory",
    "approximation",
    "dynamics",
    "viz",
    "report",
    "reproductions",
    "cli",
)


def modules():
    for path in PACKAGE.rglob("*.py"):
        parts = ("memjax", *path.relative_to(PACKAGE).with_suffix("").parts)
        yield path, parts[:-1] if parts[-1] == "__init__" else parts


def imports():
    """Every import between memjax's modules: who, what it imports from, and the names. Those
    inside functions count too: they would hide a circle."""
    known = {parts for _, parts in modules()}
    for path, importer in modules():
        package = importer if path.name == "__init__.py" else importer[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "memjax" for alias in node.names), path
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            source = package[: len(package) - node.level + 1]
            source += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                inner = (*source, alias.name)
                yield importer, (inner if inner in known else source), alias.name


def room(module):
    return module[1] if len(module) > 1 else "memjax"


def test_every_room_has_its_place():
    assert {room(parts) for _, parts in modules()} - {"memjax"} == set(ROOMS)


def test_rooms_import_from_those_below_only():
    order = {name: k for k, name in enumerate(ROOMS)} | {"memjax": len(ROOMS)}
    for importer, source, name in imports():
        assert order[room(source)] <= order[room(importer)], (importer, source, name)


def test_no_room_uses_what_is_private_to_another():
    for importer, source, name in imports():
        if room(source) != room(importer):
            private = [part for part in (*source[2:], name) if part.startswith("_")]
            assert not private, (importer, source, name)


def test_no_circle_between_modules():
    graph = defaultdict(set)
    for importer, source, _ in imports():
        if importer != source:
            graph[importer].add(source)

    done, path = set(), []

    def visit(module):
        assert module not in path, [*path[path.index(module) :], module]
        if module in done:
            return
        path.append(module)
        for source in graph[module]:
            visit(source)
        path.pop()
        done.add(module)

    for module in list(graph):
        visit(module)
