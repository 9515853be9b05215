"""Tasks of every kind reach their trials: of a script, of a package, callables, decorated ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
CONFIG = """\
defaults:
  - _self_
  - override hydra/launcher: prismatic_local
x: 0
hydra:
  launcher:
    preload: []
"""
FILES = {
    "config.yaml": CONFIG,
    "package/config.yaml": CONFIG,
    "tool": """\
import sys
from package.cli import main

if __name__ == "__main__":
    sys.exit(main())
""",
    "package/__init__.py": "",
    "package/helper.py": "def double(x):\n    return 2 * x\n",
    "package/cli.py": """\
import functools
import hydra
from .helper import double

SEEN = []

def increased(task):
    @functools.wraps(task)
    def increased_task(config):
        return task(config) + 1
    return increased_task

def note(x):
    SEEN.append(x)

@hydra.main(version_base="1.3", config_path=".", config_name="config")
@increased
def main(config):
    note(double(config.x))
    return SEEN[0]
""",
    "instance.py": """\
import threading
import hydra

class Task:
    def __init__(self, factor, held):
        self.factor, self.held = factor, held
    def __call__(self, config):
        return self.factor * config.x + 1

HELD = None
if __name__ == "__main__":
    main = hydra.main(version_base="1.3", config_path=".", config_name="config")
    main(Task(2, HELD))()
""",
    "unguarded.py": """\
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(config):
    return 2 * config.x + 1

main()
""",
}


@pytest.fixture
def sweep(tmp_path):
    """Sweeps with a program: sweep(["tool"], executor="fork")."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(program: list[str], executor: str) -> subprocess.CompletedProcess:
        keys = ["x=3,4", f"hydra.launcher.executor={executor}", "hydra.sweep.dir=out"]
        return subprocess.run(
            [sys.executable, *program, "-m", *keys], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCES)},
        )  # fmt: skip

    run.folder = tmp_path
    return run


def results(sweep) -> list[int]:
    files = sorted((sweep.folder / "out").glob("*/result.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("executor", ["fork", "process"])
@pytest.mark.parametrize("program", ["tool", "instance.py"])
def test_a_task_need_not_stand_in_the_script(sweep, program, executor):
    """`tool` is a console script: its task is decorated, and knows relatives and its module."""
    done = sweep([program], executor)
    assert (done.returncode, results(sweep)) == (0, [7, 9]), done.stderr


def test_a_module_is_run_again_as_a_module(sweep):
    (sweep.folder / "package/__main__.py").write_text("from .cli import main\nmain()\n")
    done = sweep(["-m", "package"], "process")
    assert (done.returncode, results(sweep)) == (0, [7, 9]), done.stderr


def test_a_script_without_a_guard(sweep):
    """`fork` would start the sweep again by importing it, and says so; a command may run it."""
    done = sweep(["unguarded.py"], "fork")
    assert done.returncode == 1 and results(sweep) == []
    assert 'a script starts Hydra under `if __name__ == "__main__":` alone' in done.stderr
    assert "executor=process" in done.stderr and "Traceback" not in done.stderr
    done = sweep(["unguarded.py"], "process")
    assert (done.returncode, results(sweep)) == (0, [7, 9]), done.stderr


def test_a_task_that_cannot_be_sent_is_named(sweep):
    script = sweep.folder / "instance.py"
    script.write_text(script.read_text().replace("HELD = None", "HELD = threading.Lock()"))
    done = sweep(["instance.py"], "fork")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Task object" in done.stderr and "cannot pickle '_thread.lock' object" in done.stderr
    assert "executor=inline" in done.stderr
