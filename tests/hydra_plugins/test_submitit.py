"""Hydra's launcher for SLURM, with its local executor: a fresh python finds the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="hydra-submitit-launcher is not installed (extra `test`)")
SCRIPT = """\
import sys
sys.path.insert(0, {sources!r})  # as python does for a script that stands there
import hydra
from prismatic.config import command_line, paths

paths.register()

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    open("seen", "w").write(paths.root())

if __name__ == "__main__":
    command_line.run(main)
"""


def test_a_trial_finds_what_its_script_imports(tmp_path):
    sources = Path(__file__).parents[2] / "src"
    (tmp_path / "script.py").write_text(SCRIPT.format(sources=str(sources)))
    keys = ["hydra/launcher=submitit_local", "hydra.sweep.dir=out", "hydra.job.chdir=true"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "script.py", "-m", *keys], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/0/seen").read_text() == str(sources.parent)
