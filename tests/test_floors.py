"""A module imports its own room and lower floors only, and each floor knows few libraries."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
FLOORS = {
    "errors": 0, "files": 1, "progress": 1, "perturb": 1, "stats": 1, "data": 2,
    "routers": 2, "models": 3, "huggingface": 4, "measures": 4, "report": 5, "training": 6,
    "config": 7, "tracking": 8, "run_folder": 9, "experiment": 10, "replicas": 11, "dashboard": 11,
    "evaluation": 12, "studies": 12, "bench": 12,
}  # fmt: skip
LIGHTNING, CONFIG = {"pytorch_lightning", "lightning_utilities"}, {"hydra", "omegaconf", "mlflow"}
LIGHT = {"hydra", "importlib", "omegaconf", "prismatic", "os", "sys", "pathlib"}
MODULES = sorted(SOURCES.rglob("*.py"))


def imported(path: Path, inside: bool = True) -> set[str]:
    """Absolute names of what a file imports, inside functions too or at its top only."""
    package = path.relative_to(SOURCES).parts[:-1]
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "prismatic" and parts[1:] and parts[1] in FLOORS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_imports_go_down(path):
    module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    names = imported(path)
    libraries = {name.split(".")[0] for name in names}
    own = room(module)
    if own is None:
        if module.startswith("hydra_plugins."):
            assert "prismatic" not in libraries, "a plugin stands alone"
            assert "optuna" not in libraries or "optuna" in module, "the launcher knows no sweeper"
        else:
            assert module == "prismatic.__init__" or "." not in module, "a room without a floor"
        return
    rooms = {room(name) for name in names} - {None, own}
    assert {r for r in rooms if FLOORS[r] >= FLOORS[own]} == set()
    assert FLOORS[own] >= FLOORS["training"] or not libraries & LIGHTNING
    assert FLOORS[own] >= FLOORS["config"] or not libraries & CONFIG
    assert own != "stats" or "torch" not in libraries


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_and_import_heavy_things_late(path):
    assert len(path.read_text().splitlines()) <= 40
    assert {name.split(".")[0] for name in imported(path, inside=False)} <= LIGHT
    assert {room(name) for name in imported(path, inside=False)} <= {"config", None}


def test_no_circles():
    """Of files, in plugins too; what a file takes from its own package counts as its siblings'."""
    names = {".".join(path.relative_to(SOURCES).with_suffix("").parts): path for path in MODULES}
    graph = {
        name: {used for used in imported(path, inside=False) if used in names and used != name}
        | {
            f"{used}.__init__"
            for used in imported(path, inside=False)
            if f"{used}.__init__" in names and not name.startswith(f"{used}.")
        }
        for name, path in names.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_two_classes_have_one_name():
    counts = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in counts.items() if count > 1] == []
