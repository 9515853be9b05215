"""Sweeps as a user starts them: commands in processes of their own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = "SWEPT_BY"  # in the environment of a sweep and of all that it starts
REAL = [str(ROOT / "src/train.py"), "-m", "optuna=loss", "debug=tiny"]


class Command:
    """A sweep's command, run in a folder of its own, once or again."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = [sys.executable, *arguments, f"hydra.sweep.dir={folder}/out"]
        settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", MARK: str(folder)}
        self.environment = os.environ | settings | {"PRISMATIC_OUTPUTS": str(folder)}

    def start(self, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.arguments, *more], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, *more: str) -> str:
        """Run to the end; what was printed."""
        with self.start(*more) as running:
            out, _ = running.communicate(timeout=500)
        assert running.returncode == 0, out
        return out

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        backend = JournalFileBackend(str(self.folder / "out/study.journal"))
        [name] = optuna.get_all_study_names(JournalStorage(backend))
        return optuna.load_study(study_name=name, storage=JournalStorage(backend)).trials

    def left(self, seconds: float = 20) -> list[int]:
        """Processes of the sweep that still run after that time."""
        until = time.monotonic() + seconds
        while (found := list(self.processes())) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def processes(self) -> Iterator[int]:
        mark = f"{MARK}={self.folder}\0".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    yield int(path.parent.name)
            except OSError:
                continue  # it has ended, or is another user's


def toy(folder: Path) -> Command:
    """The launcher's app, copied into the folder and swept by Optuna, two trials at a time."""
    for name in ("app.py", "app.yaml"):
        shutil.copy(HERE / name, folder / name)
    arguments = ["-m", "hydra/sweeper=prismatic_optuna", "hydra.launcher.n_jobs=2"]
    return Command(folder, str(folder / "app.py"), *arguments)


def finished(trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """Those that count; what was lost is asked again."""
    return [t for t in trials if t.state.is_finished() and not t.user_attrs.get("again")]
