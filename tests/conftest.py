import logging
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.singleton import Singleton
from hypothesis import settings

# A shell's background job ignores Ctrl-C, which some tests send, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The tests' tensors are small: threads would cost more than they give.
torch.set_num_threads(1)
settings.register_profile("prismatic", deadline=None, derandomize=True)
settings.load_profile("prismatic")
SOURCES = Path(__file__).parents[1] / "src"


class Outcome(NamedTuple):
    """What a script left behind: its exit status and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def script(tmp_path, monkeypatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `train` or `eval` in this process: script("train", "model=tiny", ...)."""
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root, before = logging.getLogger(), Singleton.get_state()
    handlers, level = root.handlers[:], root.level

    def run(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"src/{name}.py", *arguments])
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(SOURCES / f"{name}.py"), run_name="__main__")
        except SystemExit as done:
            status = int(done.code or 0)
        finally:
            Singleton.set_state(before)
            for handler in [h for h in root.handlers if h not in handlers]:
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
        return Outcome(status, *capfd.readouterr())

    return run
