"""Filling the slots of a launcher: a job starts as soon as another one ends.

`run_jobs` is the one loop of this kind: sweeps, the launcher's own batches and studies use it. A
launcher that only knows batches, as most of Hydra's do, takes part by `stream`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

POLL_SECONDS = 1.0

NumberedJob = tuple[int, Sequence[str]]  # no two running jobs have one number; its overrides
EndedJobs = list[tuple[int, JobReturn]]


@runtime_checkable
class StreamingLauncher(Protocol):
    """A launcher whose slots are filled one by one.

    `start` returns the folder in which the job runs, `hydra.sweep.dir`/`hydra.sweep.subdir` of its
    own configuration. `finished` waits up to `timeout` seconds (None: without end) for jobs to end,
    and returns all that did, those after `stop` included. A job whose process died has an exception
    with the attribute `lost` true. `close` ends whatever still runs, and may come twice.
    """

    n_jobs: int

    def start(self, number: int, overrides: Sequence[str]) -> Path: ...

    def finished(self, timeout: float | None = None) -> EndedJobs: ...

    def stop(self, number: int) -> None: ...

    def close(self) -> None: ...


def run_jobs(
    launcher: StreamingLauncher,
    next_job: Callable[[], NumberedJob | None],
    *,
    slots: int | None = None,
    started: Callable[[int, Path], None] | None = None,
) -> Iterator[EndedJobs]:
    """Run jobs until none is left; yields those that ended, an empty list after a second without.

    `next_job` is asked whenever a slot is free, of which there are `slots` (None: the launcher's
    own number). When it returns None nothing starts for now, and if no job runs, all is done.
    `started` hears of each job's number and folder. A job that cannot be started has failed. On an
    error or an interrupt the caller closes the launcher.
    """
    slots = slots or launcher.n_jobs
    running: set[int] = set()
    while True:
        failed: EndedJobs = []
        while len(running) < slots and (job := next_job()) is not None:
            number, overrides = job
            try:
                folder = launcher.start(number, overrides)
                running.add(number)
            except Exception as error:
                failed.append((number, JobReturn(status=JobStatus.FAILED, _return_value=error)))
                break
            if started is not None:
                started(number, folder)
        if not failed and not running:
            return
        ended = failed or launcher.finished(POLL_SECONDS)
        running.difference_update(number for number, _ in ended)
        yield ended


class BatchLauncher:
    """Any launcher of Hydra as a streaming one: what was started runs in the next `finished`."""

    def __init__(
        self, launcher: Launcher, n_jobs: int, folder_of: Callable[[int, Sequence[str]], Path]
    ) -> None:
        self.launcher, self.n_jobs, self.folder_of = launcher, n_jobs, folder_of
        self._waiting: list[tuple[int, list[str]]] = []

    def start(self, number: int, overrides: Sequence[str]) -> Path:
        folder = self.folder_of(number, overrides)
        self._waiting.append((number, list(overrides)))
        return folder

    def finished(self, timeout: float | None = None) -> EndedJobs:
        """Run one batch to its end; with a timeout of 0, nothing."""
        if timeout == 0 or not self._waiting:
            return []
        # A launcher numbers its batch upwards from one index: stop at a gap.
        self._waiting.sort()
        first = self._waiting[0][0]
        batch = [job for i, job in enumerate(self._waiting) if job[0] == first + i]
        del self._waiting[: len(batch)]
        results = self.launcher.launch([overrides for _, overrides in batch], first)
        return [(number, job) for (number, _), job in zip(batch, results, strict=True)]

    def stop(self, number: int) -> None:
        self._waiting = [job for job in self._waiting if job[0] != number]

    def close(self) -> None:
        self._waiting.clear()


def stream(
    launcher: Any, n_jobs: int | None, folder_of: Callable[[int, Sequence[str]], Path]
) -> StreamingLauncher:
    """The launcher itself if it streams, else in batches of `n_jobs`; below 1 is one per core."""
    if isinstance(launcher, StreamingLauncher):
        return launcher
    n_jobs = 1 if n_jobs is None else n_jobs
    return BatchLauncher(launcher, n_jobs if n_jobs >= 1 else os.cpu_count() or 1, folder_of)
