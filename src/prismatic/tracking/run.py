"""A run in MLflow's store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .store import connect, experiment_id, page

if TYPE_CHECKING:
    from mlflow import MlflowClient

UID = "uid"  # the tag that a run is found by when it is created again


class Run:
    """A run in MLflow's store: `create` or `find` it, then write.

    Every method may be repeated, with the effect of once, and takes only what JSON can hold: so a
    call can wait in a file. Times are in milliseconds since 1970.
    """

    client: "MlflowClient"
    again = False  # whether what is called may have been called before, with no answer heard
    run_id = ""
    experiment_id = ""
    tracking_uri = ""

    def create(
        self, tracking_uri: str, experiment: str, name: str | None, tags: Mapping[str, str],
        uid: str, time: int,
    ) -> None:  # fmt: skip
        """Create the run, or find the one that an attempt without an answer has created."""
        self.tracking_uri, self.client = tracking_uri, connect(tracking_uri)
        self.experiment_id = experiment_id(self.client, experiment, tracking_uri)
        mine = f"tags.{UID} = '{uid}'"
        found = self.client.search_runs([self.experiment_id], mine) if self.again else []
        tags = {**tags, UID: uid}
        run = found[0] if found else self.client.create_run(self.experiment_id, time, tags, name)
        self.run_id = run.info.run_id

    def find(self, tracking_uri: str, run_id: str) -> None:
        """Write to a run that exists."""
        self.tracking_uri, self.client = tracking_uri, connect(tracking_uri)
        self.experiment_id = self.client.get_run(run_id).info.experiment_id
        self.run_id = run_id

    def resume(self, name: str | None, tags: Mapping[str, str]) -> None:
        """Let an ended run go on, under a new name if one is given."""
        self.client.update_run(self.run_id, status="RUNNING", name=name)
        self.set_tags(tags)

    def log_metrics(self, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """Write entries of name, value, time and step."""
        from mlflow.entities import Metric

        entries = [Metric(*entry) for entry in metrics]
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

        entries = [RunTag(name, value) for name, value in tags.items()]
        if entries:
            self.client.log_batch(self.run_id, tags=entries, synchronous=True)

    def log_artifact(self, name: str, content: str) -> None:
        """Store a file under a name with `/`; bytes that are no UTF-8 come as lone surrogates."""
        folder, _, file = name.rpartition("/")
        with TemporaryDirectory() as drafts:
            draft = Path(drafts, file)
            draft.write_bytes(content.encode(errors="surrogateescape"))
            self.client.log_artifact(self.run_id, str(draft), folder or None)

    def end(self, status: str, time: int | None = None) -> None:
        """End the run, now if no time is given; the last status wins."""
        self.client.set_terminated(self.run_id, status, time)

    @property
    def page(self) -> str:
        """Where a person finds the run: its address, below the command that serves a local one."""
        return page(self.tracking_uri, self.experiment_id, self.run_id)

    @property
    def status(self) -> str:
        """The status in the store."""
        return self.client.get_run(self.run_id).info.status


def end_run(tracking_uri: str, run_id: str, status: str, reason: str) -> None:
    """End a run whose process was killed and could not do so, with the tag `reason`."""
    run = Run()
    run.find(tracking_uri, run_id)
    run.set_tags({"reason": reason})
    run.end(status)
