"""Records a run in MLflow: a buffer of metrics, and how a run ends. Knows nothing of Lightning."""

import json
import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismatic.config.paths import sqlite_uri
from prismatic.errors import one_of, require

from .run import Spool
from .store import sqlite_path, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCORE = "objective/"  # begins the names of measures from 0 to 1, of which more is better
PARAM_LENGTH = 6000  # MLflow cuts a longer one
REASON_LENGTH = 2000

log = logging.getLogger(__name__)


class Recorder:
    """Writes one MLflow run, opened at the first use.

    `tracking_uri` is `sqlite:////absolute/path.db` (a relative path starts at the working
    directory; what is missing is created), `http(s)://host:port` or what else MLflow accepts. A
    sqlite store keeps artifacts in `mlartifacts` beside its file. `run_id` resumes that run,
    `parent_run_id` nests a new one. One write costs as much as a hundred metrics, so up to `buffer`
    of them wait, for `flush_seconds` while more arrive; only a process killed outright loses them.
    While the store has an outage, everything waits in the file `spool` (see `Spool`). What is
    logged while `prefix` is set gets it before its name. MLflow's databases keep NaN, and an
    infinity as the largest float.
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
        spool: str | Path | None = None,
    ) -> None:
        require(buffer >= 1, "logger.buffer", buffer, "give a whole number >= 1")
        require(flush_seconds >= 0, "logger.flush_seconds", flush_seconds, "give a number >= 0")
        path = sqlite_path(tracking_uri)
        self.tracking_uri = sqlite_uri(path) if path else tracking_uri
        self.experiment_name = str(experiment_name)  # a user may type a number
        self.run_name = None if run_name is None else str(run_name)
        self.tags = dict(tags or {})
        if parent_run_id:
            self.tags["mlflow.parentRunId"] = parent_run_id
        self.buffer = buffer
        self.flush_seconds = flush_seconds
        self.prefix = ""
        self.spool = Spool(Path(spool).absolute() if spool else None, flush_seconds)
        self._run_id = "" if run_id is None else str(run_id)
        self._open = False
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._flushed = time.monotonic()
        self._status = "RUNNING"

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """The run's id; opens the run. Empty while it waits to be created, and above rank 0."""
        _ = self.experiment
        return self.spool.run.run_id or self._run_id

    @property
    def experiment(self) -> "MlflowClient | None":
        """MLflow's client; opens the run. None while its store cannot be opened."""
        if not self._open:
            self._begin()
            self._open = True
        return getattr(self.spool.run, "client", None)

    def _begin(self) -> None:
        from mlflow.tracking.context.registry import resolve_tags

        if self._run_id:
            self.spool.call("find", tracking_uri=self.tracking_uri, run_id=self._run_id)
            self.spool.call("resume", name=self.run_name, tags=self.tags)
        else:
            self.spool.call(
                "create", tracking_uri=self.tracking_uri, experiment=self.experiment_name,
                name=self.run_name, uid=secrets.token_hex(8), time=milliseconds(),
                tags=resolve_tags(self.tags),  # adds user, script, commit: columns of MLflow's UI
            )  # fmt: skip

    def _call(self, method: str, **arguments: Any) -> None:
        _ = self.experiment
        self.spool.call(method, **arguments)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics at `step` (0 if None); written when the buffer is full or old."""
        if len(self._waiting) + len(metrics) > self.buffer:
            self.flush()
        now = milliseconds()
        for name, value in metrics.items():
            self._waiting.append((f"{self.prefix}{name}", float(value), now, step or 0))
        self._status = "RUNNING"
        self.save()

    def save(self) -> None:
        """Flush if `flush_seconds` have passed."""
        if time.monotonic() - self._flushed >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write every waiting metric; on an error they go on waiting (writing twice is safe)."""
        if self._waiting:
            self._call("log_metrics", metrics=self._waiting)
            self._waiting = []
        self._flushed = time.monotonic()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record a nested mapping under dotted names, as typed (`perturbation.scale`).

        A value of more than 6000 characters is kept whole as the artifact `params/<name>.txt`. As
        MLflow never changes a parameter, a resumed run's new value is the tag `changed.<name>`.
        """
        values = dict(flatten(params))
        for key, value in values.items():
            if len(value) > PARAM_LENGTH:
                self.log_artifact_text(f"params/{key}.txt", value)
                pointer = f"... [whole value: params/{key}.txt]"
                values[key] = value[: PARAM_LENGTH - len(pointer)] + pointer
        self._call("log_params", params=values)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run; values become text."""
        self._call("set_tags", tags={key: str(value) for key, value in tags.items()})

    def describe(self, text: str, pictures: Iterable[str] = ()) -> None:
        """Show Markdown, and pictures among the artifacts, on the run's page.

        Nothing while `prefix` is set: it would be the description of one of several.
        """
        if not self.prefix:
            source = f"get-artifact?run_uuid={self.version}&path="
            shown = [f"![{path}]({source}{path})" for path in pictures]
            self.set_tags({"mlflow.note.content": "\n\n".join([text, *shown])})

    def log_artifact_text(self, name: str, text: str) -> None:
        """Store `text` as the artifact `name`, a path with `/` inside the run."""
        self._call("log_artifact", name=f"{self.prefix}{name}", content=text)

    def log_artifact_json(self, name: str, obj: Any) -> None:
        """Store `obj` as JSON; what JSON does not know becomes text."""
        self.log_artifact_text(name, json.dumps(obj, indent=2, default=str) + "\n")

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Copy a file into the run's artifacts, under `folder` if given."""
        content = Path(path).read_bytes().decode(errors="surrogateescape")
        self.log_artifact_text(f"{folder}/{Path(path).name}".lstrip("/"), content)

    def end(self, status: str, reason: str = "") -> None:
        """Flush and close the run as FINISHED, FAILED or KILLED; the last status wins."""
        one_of("status", status, ("FINISHED", "FAILED", "KILLED"))
        if status == self._status or not (self._open or self._waiting):
            return
        try:
            self.flush()
        finally:
            if reason:
                self.set_tags({"reason": reason[:REASON_LENGTH]})
            self._call("end", status=status, time=milliseconds())
        self.spool.retry(now=True)
        self._status = status
        if self.unsent and status != "FINISHED":
            log.warning(self.unsent)

    @property
    def unsent(self) -> str:
        """What to do about that which has not reached the store; empty if all has."""
        path = self.spool.path
        if self.spool.file is None or path is None:
            return ""
        store = without_password(self.tracking_uri)
        return (
            f"not sent:     {path} waits for MLflow at {store}\n"
            f"send it:      python src/eval.py send={path.parent}"
        )

    def url(self) -> str:
        """Where a person finds the run: its address, below the command that serves a local one."""
        _ = self.experiment
        return self.spool.run.page


def milliseconds() -> int:
    """The time as MLflow counts it."""
    return int(time.time() * 1000)


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping's entries by dotted names, as text."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def objective_metric(name: str) -> str:
    """Under which name MLflow keeps what a run ends with in an objective: `objective/loss/val`."""
    return name if name.startswith(SCORE) else SCORE + name
