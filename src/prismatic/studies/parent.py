"""A study's run in MLflow, above those of its arms."""

import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from prismatic.dashboard.rerun import text
from prismatic.report.page import FOLDER
from prismatic.tracking import Recorder

from .spec import Study
from .verdict import Judgement
from .writing import verdict_of

RUN = "mlflow_run"  # the file that holds its id


class Parent:
    """The run of a study: a new one, or that of the study which goes on."""

    def __init__(
        self, logger: DictConfig, study: Study, tier: str, known: str, folder: Path
    ) -> None:
        self.logger, kept = logger, folder / RUN
        tags = {"study": study.name, "tier": tier, "study_hash": known}
        self.recorder = Recorder(
            logger.tracking_uri, logger.experiment_name, f"{study.name} ({tier})", tags,
            run_id=kept.read_text() if kept.exists() else None, spool=folder / "unsent.jsonl",
        )  # fmt: skip
        kept.write_text(self.recorder.version)
        self.tags = tags
        self.end_strays()
        self.recorder.set_tags({"question": study.question, "folder": folder})
        self.recorder.log_file(folder / "study.yaml")

    @property
    def overrides(self) -> list[str]:
        """What the study's runs need to be recorded below it."""
        return [
            f"++logger.tracking_uri={text(self.logger.tracking_uri)}",
            f"++logger.experiment_name={text(self.logger.experiment_name)}",
            f"++logger.parent_run_id={text(self.recorder.version)}",
            f"++tags={text(self.tags)}",
        ]

    def conclude(self, judged: Judgement, files: Iterable[Path]) -> None:
        """Record verdicts as tags, effects as metrics, the report as artifacts."""
        tags = {"verdict": verdict_of(judged)}
        metrics = {}
        for claim, found in judged.claims.items():
            for effect, one in found.items():
                name = valid(f"{claim}/{effect}" if effect else claim)
                tags[f"verdict.{name}"] = one.verdict
                metrics[f"effect/{name}"] = one.estimate
        self.recorder.set_tags(tags)
        self.recorder.log_metrics(metrics)
        for file in files:
            self.recorder.log_file(file, FOLDER)

    def end_strays(self) -> None:
        """End the runs of a study that was killed: nobody else does."""
        client = self.recorder.experiment
        if client is not None:
            below = f"tags.`mlflow.parentRunId` = '{self.recorder.version}'"
            experiment = client.get_run(self.recorder.version).info.experiment_id
            for run in client.search_runs([experiment], f"{below} and status = 'RUNNING'"):
                client.set_terminated(run.info.run_id, "KILLED")

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.recorder.end("KILLED" if stopped else "FAILED" if kind else "FINISHED")

    def url(self) -> str:
        return self.recorder.url()


def valid(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w .:/-]", "_", name)
