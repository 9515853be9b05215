"""Launchers that stream, and those that only know batches, behind one interface; job folders."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict, read_write


@runtime_checkable
class Streaming(Protocol):
    """A launcher whose slots are filled one by one.

    `finished` waits up to `timeout` seconds (None: without end) for jobs to end, and returns all
    that did, those after `stop` included. A job whose process died has an exception with the
    attribute `lost` true. `close` ends whatever still runs, and may come twice.
    """

    n_jobs: int

    def start(self, number: int, overrides: Sequence[str]) -> None: ...

    def finished(self, timeout: float | None = None) -> list[tuple[int, JobReturn]]: ...

    def stop(self, number: int) -> None: ...

    def close(self) -> None: ...


class Batches:
    """Any launcher as a streaming one: what was started runs together in the next `finished`."""

    def __init__(self, launcher: Launcher, n_jobs: int) -> None:
        self.launcher, self.n_jobs = launcher, n_jobs
        self._waiting: list[tuple[int, list[str]]] = []

    def start(self, number: int, overrides: Sequence[str]) -> None:
        self._waiting.append((number, list(overrides)))

    def finished(self, timeout: float | None = None) -> list[tuple[int, JobReturn]]:
        """Run one batch to its end; with a timeout of 0, nothing."""
        if timeout == 0 or not self._waiting:
            return []
        # A launcher numbers its batch upwards from one index: stop at a gap.
        self._waiting.sort()
        first = self._waiting[0][0]
        batch = [w for i, w in enumerate(self._waiting) if w[0] == first + i]
        del self._waiting[: len(batch)]
        results = self.launcher.launch([overrides for _, overrides in batch], first)
        return [(number, job) for (number, _), job in zip(batch, results, strict=True)]

    def stop(self, number: int) -> None:
        self._waiting = [w for w in self._waiting if w[0] != number]

    def close(self) -> None:
        self._waiting.clear()


def adapt(launcher: Any, n_jobs: int | None) -> Streaming:
    """The launcher with its slots; `n_jobs` below 1 is one per core, None the launcher's own."""
    streams = isinstance(launcher, Streaming)
    wanted = n_jobs if n_jobs is not None else launcher.n_jobs if streams else 1
    wanted = wanted if wanted >= 1 else os.cpu_count() or 1
    return launcher if streams else Batches(launcher, wanted)


def slots(launcher: Streaming, n_jobs: int | None) -> int:
    """How many trials run at once."""
    own = launcher.n_jobs
    return own if n_jobs is None or n_jobs < 1 else min(n_jobs, own)


class Folders:
    """Where the jobs live: `hydra.sweep.dir`/`hydra.sweep.subdir`, by trial number."""

    def __init__(self, config: DictConfig) -> None:
        self.config = copy.deepcopy(config)
        self.root = Path(config.hydra.sweep.dir).absolute()
        if self(0) == self(1):
            raise ValueError(
                f"hydra.sweep.subdir={config.hydra.sweep.subdir} is the same for all trials: "
                "it must contain ${hydra.job.num}"
            )

    def __call__(self, number: int) -> Path:
        hydra = self.config.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.job.num, hydra.job.id = number, str(number)
        return self.root / str(hydra.sweep.subdir)

    def fresh(self, number: int) -> Path:
        """The trial's folder, without what an earlier study may have left for this number."""
        folder = self(number)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("stop", "progress.jsonl"):
            (folder / name).unlink(missing_ok=True)
        return folder
