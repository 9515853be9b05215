"""Runs in MLflow: a Lightning logger that writes in batches."""

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
STATUSES = ("FINISHED", "FAILED", "KILLED")
# Without these MLflow's UI opens an experiment as a collection of chat traces, and shows no runs.
WORKFLOW = "workflowType=machine_learning"
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
PARAM_LENGTH = 6000  # MLflow cuts a longer one

# Telemetry reports to MLflow's makers from a thread: only for a user who asks for it. MLflow reads
# this as it is imported, which the fork server of a sweep does before anything connects.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


class MLflowLogger(Logger):
    """Writes one MLflow run, opened at the first use; a Lightning logger that also works alone.

    `tracking_uri` is `sqlite:////absolute/path.db` (a relative path starts at the working
    directory; what is missing is created), `http(s)://host:port` or what else MLflow accepts. A
    sqlite store keeps artifacts in `mlartifacts` beside its file. `run_id` resumes that run,
    `parent_run_id` nests a new one. One write costs as much as a hundred metrics, so up to `buffer`
    of them wait, for `flush_seconds` while more arrive; only a process killed outright loses them.
    What is logged while `prefix` is set gets it before its name; then it is one of several
    Lightning runs in one of MLflow's, which does not end with it. MLflow's databases keep NaN, and
    an infinity as the largest float. Above rank 0 nothing happens.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str = "prismatic",
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        buffer: int = 1000,
        flush_seconds: float = 10.0,
    ) -> None:
        super().__init__()
        if not (buffer >= 1 and flush_seconds >= 0):
            raise ValueError(f"{buffer=} must be at least 1, {flush_seconds=} at least 0")
        if tracking_uri.startswith(SQLITE):
            tracking_uri = f"{SQLITE}{Path(tracking_uri.removeprefix(SQLITE)).absolute()}"
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tags = dict(tags or {})
        if parent_run_id:
            self.tags["mlflow.parentRunId"] = parent_run_id
        self.buffer = buffer
        self.flush_seconds = flush_seconds
        self.prefix = ""
        self._run_id = run_id or ""
        self._experiment_id = ""
        self._client: MlflowClient | None = None
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._flushed = time.monotonic()
        self._status = "RUNNING"

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """The run's id; opens the run. Above rank 0 empty, unless it was given."""
        _ = self.experiment
        return self._run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """MLflow's client; opens the run."""
        if self._client is None:
            self._client = self._open()
        return self._client

    def _open(self) -> "MlflowClient":
        client = connect(self.tracking_uri)
        from mlflow.tracking.context.registry import resolve_tags

        if self._run_id:
            run = client.get_run(self._run_id)
            client.update_run(self._run_id, status="RUNNING", name=self.run_name)
            for key, value in self.tags.items():
                client.set_tag(self._run_id, key, value)
        else:
            experiment_id = _experiment(client, self.experiment_name, self.tracking_uri)
            tags = resolve_tags(self.tags)  # adds user, script, commit: columns of MLflow's UI
            run = client.create_run(experiment_id, tags=tags, run_name=self.run_name)
        self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
        return client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics at `step` (0 if None); written when the buffer is full or old."""
        if len(self._waiting) + len(metrics) > self.buffer:
            self.flush()
        now = int(time.time() * 1000)
        named = ((f"{self.prefix}{key}", float(value)) for key, value in metrics.items())
        self._waiting += [(key, value, now, step or 0) for key, value in named]
        self._status = "RUNNING"
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Flush if `flush_seconds` have passed; Lightning calls this after each `log_metrics`."""
        if time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write every waiting metric; on an error they go on waiting (writing twice is safe)."""
        from mlflow.entities import Metric

        if self._waiting:
            metrics = [Metric(*entry) for entry in self._waiting]
            self.experiment.log_batch(self._run_id, metrics=metrics, synchronous=True)
            self._waiting.clear()
        self._flushed = time.monotonic()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record a nested mapping under dotted names, as typed (`perturbation.scale`).

        A value of more than 6000 characters is kept whole as the artifact `params/<name>.txt`. As
        MLflow never changes a parameter, a resumed run's new value is the tag `changed.<name>`.
        """
        from mlflow.entities import Param

        values = {key: self._fitting(key, value) for key, value in _flatten(params)}
        known = self.experiment.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in values.items() if key not in known]
        self.experiment.log_batch(self._run_id, params=new, synchronous=True)
        self.set_tags({f"changed.{k}": v for k, v in values.items() if known.get(k, v) != v})

    def _fitting(self, key: str, value: str) -> str:
        if len(value) <= PARAM_LENGTH:
            return value
        self.log_artifact_text(f"params/{key}.txt", value)
        pointer = f"... [whole value: params/{key}.txt]"
        return value[: PARAM_LENGTH - len(pointer)] + pointer

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; values become text."""
        for key, value in tags.items():
            self.experiment.set_tag(self._run_id, key, str(value))

    def log_artifact_text(self, name: str, text: str) -> None:
        """Store `text` as the artifact `name`, a path with `/` inside the run."""
        self.experiment.log_text(self._run_id, text, f"{self.prefix}{name}")

    def log_artifact_json(self, name: str, obj: Any) -> None:
        """Store `obj` as JSON; what JSON does not know becomes text."""
        self.log_artifact_text(name, json.dumps(obj, indent=2, default=str) + "\n")

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, under `folder` if given."""
        self.experiment.log_artifact(self._run_id, str(path), folder)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning's end; its "failed" in the except clause of Ctrl-C or SIGTERM means KILLED."""
        killed = isinstance(sys.exception(), KeyboardInterrupt | SystemExit)
        good = status in ("success", "finished")
        if self.prefix and not killed:
            return self.flush()
        self.end("FINISHED" if good else "KILLED" if killed else "FAILED")

    @rank_zero_only
    def end(self, status: str) -> None:
        """Flush and close the run as FINISHED, FAILED or KILLED; the last status wins."""
        if status not in STATUSES:
            raise ValueError(f"status={status!r} is not one of {', '.join(STATUSES)}")
        if status == self._status or not (self._client or self._waiting):
            return
        try:
            self.flush()
        finally:
            self.experiment.set_terminated(self._run_id, status)
        self._status = status

    def url(self) -> str:
        """Where a person finds the run: its address, below the command that serves a local one."""
        run_id = self.version
        page = f"/#/experiments/{self._experiment_id}/runs/{run_id}?{WORKFLOW}"
        store = re.sub(r"//([^:/@]*):[^/@]*@", r"//\1:***@", self.tracking_uri)  # logs show this
        if store.startswith("http"):
            return store.rstrip("/") + page
        command = f"mlflow ui --backend-store-uri {shlex.quote(store)} --host 127.0.0.1"
        return f"{command}\nhttp://127.0.0.1:5000{page}"


def connect(tracking_uri: str) -> "MlflowClient":
    """A client for the store. A missing sqlite store is created, once for all that ask."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING"))
    path = Path(tracking_uri.removeprefix(SQLITE))
    if tracking_uri.startswith(SQLITE) and not path.exists():
        _create_sqlite(path)
    return MlflowClient(tracking_uri=tracking_uri)


def _create_sqlite(path: Path) -> None:
    """Build the database under another name: a file at `path` is always a whole store."""
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            draft = path.with_name(f"{path.name}.draft")
            draft.unlink(missing_ok=True)  # left by a process that died here
            store = SqlAlchemyStore(f"{SQLITE}{draft}", str(path.with_name("mlartifacts")))
            store.engine.dispose()
            draft.rename(path)


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """The id of the experiment, which is created if it is missing."""
    from mlflow.exceptions import MlflowException

    folder = str(Path(uri.removeprefix(SQLITE)).with_name("mlartifacts"))
    location = folder if uri.startswith(SQLITE) else None
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, location, tags=TRAINING)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # otherwise another process was quicker
                raise
    return found.experiment_id


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
