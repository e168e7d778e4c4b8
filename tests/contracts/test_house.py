"""How the house is built: imports go one way, the package knows nothing of its doors, and nothing grows too large."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMPONENTS = {"registry", "component", "component_source", "python_source", "declared"}
GROUND = COMPONENTS | {"errors", "files", "memory", "tensor_files", "startup", "randomness"}
FLOORS = [  # a room may import from its own floor's ground, and from floors above it in this list
    GROUND | {"client_update", "saving", "locks"},
    {"config", "local_methods"},
    {"provenance"},
    {"networks"},
    {"datasets", "partitions", "checkpoint"},
    {"local_training"},
    {"compressors"},
    {"wire", "merging"},
    {"algorithms"},
    {"simulation"},
    {"reporting"},
    {"api", "tuning"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"fedalg", "agg_utils", "data", "models", "utils", "plotting", "report", "import_TIN", "tune"}
SAME_FLOOR = {("partitions", "datasets")}  # a split is of a dataset's images
MODULES = sorted((ROOT / "fedmerge").rglob("*.py"))
SOURCES = [*MODULES, *sorted(ROOT.glob("*.py"))]
LONG = {}  # functions of more than 40 lines, and why


def imported(path):
    """Return (line, dotted name) of all that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "fedmerge" else [node.module]
            )
            found += [(node.lineno, name) for name in names]
    return found


def room_of(path):
    return path.relative_to(ROOT / "fedmerge").with_suffix("").parts[0]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for line, name in imported(path):
        place = f"{name_of(path)}: line {line}: {name}"
        assert name.split(".")[0] not in DOORS or (room, name) == ("api", "fedalg"), f"{place} is a door"
        if name.startswith("fedmerge."):
            other = name.split(".")[1]
            down = FLOOR[other] < FLOOR[room] or other == room or (room, other) in SAME_FLOOR
            assert down or (other in FLOORS[0] and room in FLOORS[0]), f"{place} is not below {room}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_grows_too_large(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (name_of(path), node.name) not in LONG:
            assert node.end_lineno - node.lineno + 1 <= 40, f"{name_of(path)}: {node.name}"


def test_every_room_has_its_floor():
    assert {room_of(path) for path in MODULES} - {"__init__", "__main__"} == set(FLOOR)
