"""A run in MLflow's store, and what waits in a file while the store has an outage.

MLflow's own client raises, or drops what it holds, when a server is away for longer than its
retries; training goes on here, and what could not be written arrives later in the same order.
"""

import fcntl
import json
import logging
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from prismatic.config.paths import absolute, sqlite_uri
from prismatic.files import append_line

from .store import connect, experiment_id, find_run, outage, page, sqlite_path, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

UID = "uid"  # the tag that a run is found by when it is created again
UNSENT = "unsent.jsonl"
RETRY_FACTOR = 20  # a failed try is repeated after so many times its length: it costs 5 % at most

log = logging.getLogger(__name__)


class RunWriter:
    """A run in MLflow's store: `create` or `find` it, then write.

    Every method may be repeated, with the effect of once, and takes only what JSON can hold: so a
    call can wait in a file. Times are in milliseconds since 1970.
    """

    client: "MlflowClient"
    repeating = False  # whether what is called may have been called before, with no answer heard
    run_id = ""
    experiment_id = ""
    tracking_uri = ""
    past: dict[str, set[int]] | None = None  # of a resumed run: steps of metrics, by name

    def create(
        self, tracking_uri: str, experiment: str, name: str | None, tags: Mapping[str, str],
        uid: str, time: int,
    ) -> None:  # fmt: skip
        """Create the run, or find the one that an attempt without an answer has created."""
        self.tracking_uri = tracking_uri
        self.client = connect(tracking_uri)
        self.experiment_id = experiment_id(self.client, experiment, tracking_uri)
        mine = f"tags.{UID} = '{uid}'"
        found = self.client.search_runs([self.experiment_id], mine) if self.repeating else []
        tags = {**tags, UID: uid}
        run = found[0] if found else self.client.create_run(self.experiment_id, time, tags, name)
        self.run_id = run.info.run_id

    def find(self, tracking_uri: str, run_id: str) -> None:
        """Write to a run that exists."""
        self.tracking_uri = tracking_uri
        self.client = connect(tracking_uri)
        info = find_run(self.client, run_id, tracking_uri).info
        self.experiment_id, self.run_id = info.experiment_id, run_id

    def resume(self, name: str | None, tags: Mapping[str, str]) -> None:
        """Let an ended run go on, under a new name if one is given."""
        self.client.update_run(self.run_id, status="RUNNING", name=name)
        self.set_tags(tags)
        self.past = {}

    def log_metrics(self, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """Write entries of name, value, time and step.

        A resumed run repeats the steps between its checkpoint and the end of the one before. They
        are in the store already; those of step 0, which has results too, are written anew.
        """
        from mlflow.entities import Metric

        entries = [Metric(*entry) for entry in metrics]
        if self.past is not None:
            for name in {entry.key for entry in entries} - self.past.keys():
                history = self.client.get_metric_history(self.run_id, name)
                self.past[name] = {entry.step for entry in history} - {0}
            entries = [entry for entry in entries if entry.step not in self.past[entry.key]]
        self.client.log_batch(self.run_id, metrics=entries, synchronous=True)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write parameters; a known one that has changed becomes the tag `changed.<name>`."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in params.items() if name not in known]
        self.client.log_batch(self.run_id, params=new, synchronous=True)
        changed = {k: v for k, v in params.items() if known.get(k, v) != v}
        self.set_tags({f"changed.{name}": value for name, value in changed.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, or change them."""
        from mlflow.entities import RunTag

        if tags:
            entries = [RunTag(name, value) for name, value in tags.items()]
            self.client.log_batch(self.run_id, tags=entries, synchronous=True)

    def log_artifact(self, name: str, content: str) -> None:
        """Store a file under a name with `/`; bytes that are no UTF-8 come as lone surrogates."""
        folder, _, file = name.rpartition("/")
        with TemporaryDirectory() as drafts:
            draft = Path(drafts, file)
            draft.write_bytes(content.encode(errors="surrogateescape"))
            self.client.log_artifact(self.run_id, str(draft), folder or None)

    def end(self, status: str, time: int) -> None:
        """End the run; the last status wins."""
        self.client.set_terminated(self.run_id, status, time)

    @property
    def page(self) -> str:
        """Where a person finds the run: its address, below the command that serves a local one."""
        return page(self.tracking_uri, self.experiment_id, self.run_id)


class Spool:
    """Calls the methods of a `RunWriter`; while its store has an outage, calls wait in a file.

    From the first call that fails on, every call is a line `[method, arguments]` of `path`. They
    are done in order as soon as the store works again, and the file is removed: each new call tries
    that, but not within `seconds` of the last try. Every method may be repeated, so what was done
    in part can be done again from the start. The file is locked while this process may write to it.
    Without a path an outage is an error.
    """

    def __init__(self, path: Path | None = None, seconds: float = 10.0) -> None:
        self.path, self.seconds = path, seconds
        self.run = RunWriter()
        self.file: BinaryIO | None = None  # open, and locked, while anything waits
        self.sent = 0  # bytes of it
        self.next_try = 0.0

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of the run, after all that waits."""
        if self.file is None:
            begun = time.monotonic()
            try:
                return getattr(self.run, method)(**arguments)
            except Exception as error:
                reason = outage(error)
                if self.path is None or reason is None:
                    raise
                log.warning(
                    f"warning: MLflow at {without_password(self.run.tracking_uri)} cannot be "
                    f"written to ({reason}). The run goes on; what it logs waits in {self.path} "
                    "and is sent as soon as that works again"
                )
                self._postpone(begun)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.run.run_id:
                    self._append("find", tracking_uri=self.run.tracking_uri, run_id=self.run.run_id)
        self._append(method, **arguments)
        self.retry()

    def _append(self, method: str, **arguments: Any) -> None:
        assert self.path is not None
        store = sqlite_path(arguments.get("tracking_uri", ""))
        if store is not None and store.parent in self.path.parents:  # they move together
            arguments["tracking_uri"] = sqlite_uri(os.path.relpath(store, self.path.parent))
        append_line(self.path, json.dumps([method, arguments]))
        if self.file is None:
            self.file = open_locked(self.path)
            weakref.finalize(self, self.file.close)

    def _postpone(self, begun: float) -> None:
        now = time.monotonic()
        self.next_try = now + max(self.seconds, RETRY_FACTOR * (now - begun))

    def retry(self, now: bool = False) -> None:
        """Do what waits, if it is time to try again or `now`."""
        begun = time.monotonic()
        if self.file is None or not (now or begun >= self.next_try):
            return
        try:
            self.replay()
        except Exception as error:
            if outage(error) is None:
                raise
            self._postpone(begun)
        else:
            self.remove()
            log.info("MLflow can be written to again: all that waited has been sent")

    def replay(self) -> None:
        """Do what waits, but for what this object has done of it before."""
        assert self.file is not None and self.path is not None
        self.run.repeating = True
        self.file.seek(self.sent)
        for line in self.file:
            if line.endswith(b"\n"):  # else a kill tore it
                method, arguments = json.loads(line)
                store = sqlite_path(arguments.get("tracking_uri", ""), self.path.parent)
                if store is not None:
                    arguments["tracking_uri"] = sqlite_uri(store)
                getattr(self.run, method)(**arguments)
            self.sent += len(line)

    def remove(self) -> None:
        """Remove the file: nothing waits any more."""
        assert self.file is not None and self.path is not None
        self.path.unlink()
        self.file.close()
        self.file, self.sent = None, 0


def open_locked(path: Path) -> BinaryIO:
    """The file for reading, locked until it is closed. Raises `BlockingIOError`."""
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(f"{path} is of a run that goes on and sends it itself") from None
    return file


def send(path: Path) -> list[RunWriter]:
    """Send what waits in a file, or in the run folders at and below a folder; the runs.

    Each file is removed when all of it has arrived. A run without an end is ended as KILLED.
    """
    files = [path] if path.is_file() else sorted(path.rglob(UNSENT))
    if not files:
        raise FileNotFoundError(f"nothing waits to be sent: {path} holds no {UNSENT}")
    runs = []
    for file in files:
        spool = Spool(file)
        with open_locked(file) as spool.file:
            try:
                spool.replay()
                if spool.run.client.get_run(spool.run.run_id).info.status == "RUNNING":
                    spool.run.set_tags({"reason": "the process was killed before the run's end"})
                    spool.run.end("KILLED", int(file.stat().st_mtime * 1000))
            except Exception as error:
                reason = outage(error)
                if reason is None:
                    raise
                raise ConnectionError(
                    f"MLflow at {without_password(spool.run.tracking_uri)} cannot be written to "
                    f"({reason}): {file} is kept; try again later"
                ) from error
            spool.remove()
        runs.append(spool.run)
    return runs


def main(config: Any) -> None:
    """What `src/eval.py send=` does."""
    for run in send(absolute(config.send)):
        print(f"sent: {run.page}")
