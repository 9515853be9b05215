"""Sizes that keep the code readable, the admired code's own figures."""

import ast
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "prismatic"
FILES = sorted(PACKAGE.parent.rglob("*.py"))
READ_FIRST = (
    "perturb/kernel.py", "routers/prismatic.py", "models/transformer.py", "training/module.py",
    "experiment.py",
)  # fmt: skip
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.match_case)


def lengths() -> list[int]:
    return sorted(
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )


def test_functions_are_short():
    lines = lengths()
    assert median(lines) <= 12
    assert lines[int(0.9 * len(lines))] <= 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_model_hardly_branches():
    tree = ast.parse((PACKAGE / "models" / "transformer.py").read_text())
    assert sum(isinstance(node, BRANCHES) for node in ast.walk(tree)) <= 20


def test_what_a_newcomer_reads_first_is_short():
    assert sum(len((PACKAGE / name).read_text().splitlines()) for name in READ_FIRST) < 1100
