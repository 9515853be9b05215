"""A sweep's run in MLflow, and the runs of its trials nested in it.

A trial's own process writes its run. What it cannot know, or did not live to write, is added here:
how the trial ended, what was searched, and the run itself if the trial died before it had one.
"""

import json
import math
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.prismatic_optuna.configurations import best_configurations
from hydra_plugins.prismatic_optuna.study import (
    AGAIN,
    FINISHED,
    count_trials,
    finished_trials,
    objectives,
    read_trials,
    search_space,
    short_reason,
    state_of,
)
from prismatic.tracking import SCORE, WORKFLOW, Recorder, connect, objective_metric

from .standing import FIRST, compute_worth, describe_distribution

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Not the Lightning logger of the trials: importing that takes longer than a trial.
RECORDER = f"{Recorder.__module__}.{Recorder.__qualname__}"
RUN = "mlflow_run"  # the study's attribute that names its run
STATE = "state"  # the tag that says how a trial ended
SETTLE = 2.0  # seconds in which sweeps that began together have named their runs
REASON_LENGTH, NOTE_LENGTH = 5000, 6000  # MLflow's longest tag has 8000 characters
VIEW = "mlflow.sharedViewState."  # the tag of an experiment that holds a view of its runs
MOST_COMPARED = 100  # runs in one of the UI's charts


class SweepRun:
    """The run of a sweep: a new one, or that of the study which goes on.

    `stopped` are the trials that end with the sweep. Every method takes as long as the server does;
    errors are MLflow's.
    """

    def __init__(
        self, study: Study, config: DictConfig, folder: Path, stopped: Collection[int]
    ) -> None:
        self.study, self.name, self.stopped = study, study.study_name, stopped
        self.client = connect(config.logger.tracking_uri)
        self.logger = self.opened(config, self.known())
        if config.hydra.sweeper.get("shared"):
            self.logger = self.agreed(config)
        self.id = self.logger.version
        self.logger.log_hyperparams(question_params(study, config))
        self.logger.log_file(folder / "multirun.yaml")
        run = self.client.get_run(self.id)
        self.experiment_id = run.info.experiment_id
        self.logged = int(run.data.metrics.get("sweep/finished", 0))
        view = shared_view(study, self.id)
        self.client.set_experiment_tag(self.experiment_id, f"{VIEW}{self.id}", view)
        states = [state_of(trial) for trial in read_trials(study)]
        self.recorded = {n for n, run in self.children() if run.data.tags.get(STATE) == states[n]}

    def known(self) -> str | None:
        """The study's run, if there is one."""
        known = self.study.user_attrs.get(RUN)
        return known if known and is_active(self.client, known) else None

    def opened(self, config: DictConfig, run_id: str | None) -> Recorder:
        """The run of this id, or a new one, which is now the study's."""
        logger: Recorder = instantiate(
            config.logger, _target_=RECORDER, run_name=self.name, tags={"sweep": self.name},
            run_id=run_id, parent_run_id=None,
        )  # fmt: skip
        if logger.version != self.known():
            self.study.set_user_attr(RUN, logger.version)
        return logger

    def agreed(self, config: DictConfig) -> Recorder:
        """Of sweeps that began together, all take the run of the last; the others' are deleted."""
        time.sleep(SETTLE)
        own, common = self.logger.version, self.known()
        if common == own:
            return self.logger
        self.client.delete_run(own)
        return self.opened(config, common)

    def children(self, condition: str = "") -> Iterable[tuple[int, "Run"]]:
        """The runs of trials by the trials' numbers."""
        query, token = f"tags.`mlflow.parentRunId` = '{self.id}'{condition}", None
        while True:
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            yield from ((int(r.data.tags["trial"]), r) for r in page if "trial" in r.data.tags)
            token = page.token
            if not token:
                return

    def update(self) -> None:
        """Record the trials that ended since, and how the sweep stands."""
        for trial in read_trials(self.study):
            if trial.number in self.recorded or "reused" in trial.user_attrs:  # that has no run
                continue
            if trial.state.is_finished():
                self.record(trial)
        ended, found = finished_trials(self.study), count_trials(self.study)
        alone = len(self.study.directions) == 1
        name = f"best/{objectives(self.study)[0]}" if alone else "hypervolume"
        for step in range(self.logged + 1, len(ended) + 1):
            worth = compute_worth(self.study, ended[:step])
            if math.isfinite(worth):
                self.logger.log_metrics({f"sweep/{name}": worth}, step)
        if len(ended) > self.logged:
            states = (*FINISHED, *AGAIN, "finished")
            counts = {f"sweep/{state}": found[state] for state in states}
            counts |= {} if alone else {"sweep/front": len(best_configurations(self.study))}
            self.logger.log_metrics(counts, len(ended))
        self.logged = len(ended)
        self.logger.flush()

    def record(self, trial: FrozenTrial) -> None:
        """Say in a trial's run how it ended."""
        from mlflow.entities import Param, RunTag

        status = self.status(trial)
        found = dict(self.children(f" and tags.trial = '{trial.number}'"))
        if not found and status == "FINISHED":
            return  # its logger may still wait for the server
        child = found[trial.number] if found else self.missing(trial)
        tags = {STATE: state_of(trial), "sweep": self.name}
        if trial.state is not TrialState.COMPLETE:
            tags["reason"] = str(trial.user_attrs.get("reason", ""))[:REASON_LENGTH]
        known = child.data.params
        params = {key.lstrip("+"): str(value) for key, value in trial.params.items()}
        self.client.log_batch(
            child.info.run_id, tags=[RunTag(k, v) for k, v in tags.items()],
            params=[Param(k, v) for k, v in params.items() if k not in known],
        )  # fmt: skip
        if child.info.status == "RUNNING":
            self.client.set_terminated(child.info.run_id, status, milliseconds(trial))
        elif child.info.status != status:
            self.client.update_run(child.info.run_id, status)
        self.recorded.add(trial.number)

    def status(self, trial: FrozenTrial) -> str:
        """The status that MLflow's UI shows; a pruned trial has done what it should."""
        if trial.state is not TrialState.FAIL:
            return "FINISHED"
        return "KILLED" if trial.number in self.stopped else "FAILED"

    def missing(self, trial: FrozenTrial) -> "Run":
        """A run for a trial that ended before it had one."""
        begun = int((trial.datetime_start or datetime.now()).timestamp() * 1000)
        tags = {"mlflow.parentRunId": self.id, "trial": str(trial.number)}
        name = f"{trial.number}: {short_reason(trial)[:60]}"
        return self.client.create_run(self.experiment_id, begun, tags, name)

    def show(self, note: str, files: Sequence[Path]) -> None:
        """Bring the files and the description up to date; it has a link to the first of them."""
        page = f"#/experiments/{self.experiment_id}/runs"
        shared = f"{page}?{WORKFLOW}&viewStateShareKey={self.id}"
        links = (
            f"trials: [table]({shared}), [charts]({shared}&compareRunsMode=CHART) | "
            f"[{files[0].name}]({page}/{self.id}/artifacts/{files[0].name}?{WORKFLOW})"
        )
        pictures = [path.name for path in files if path.suffix == ".png"]
        self.logger.describe(f"{links}\n\n{note[:NOTE_LENGTH]}", pictures)
        for path in files:
            if path.exists():
                self.logger.log_file(path)


def is_active(client: "MlflowClient", run_id: str) -> bool:
    """Whether the store has this run, and not in its bin."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def question_params(study: Study, config: DictConfig) -> dict[str, Any]:
    """What a sweep looks for, and how, as parameters of its run."""
    sweeper, question = config.hydra.sweeper, study.user_attrs["question"]
    names = objectives(study)
    directions = [direction.name.lower() for direction in study.directions]
    space = search_space(study).items()
    found = {
        "objectives": ", ".join(f"{d} {n}" for n, d in zip(names, directions, strict=True)),
        "space": {name.lstrip("+"): describe_distribution(d) for name, d in space},
        "constraints": {n: f"at most {bound:g}" for n, bound in question["constraints"].items()},
        "overrides": " ".join(study.user_attrs.get("fixed", [])),
        "n_trials": study.user_attrs["total"],
        **{key: sweeper[key] for key in ("sampler", "seed", "pruning") if key in sweeper},
    }
    if len(names) > 1:
        worst = f"the worst of the first {FIRST} complete trials"
        found["reference"] = {name: 0 if name.startswith(SCORE) else worst for name in names}
    return found


def milliseconds(trial: FrozenTrial) -> int:
    """When a trial ended, as MLflow says it."""
    return int((trial.datetime_complete or datetime.now()).timestamp() * 1000)


def shared_view(study: Study, parent_id: str) -> str:
    """A sweep in MLflow's own charts, set up as the UI's "Share" would keep it.

    The trials best first, parallel coordinates, and a scatter of two objectives, or of one over the
    first parameter. A UI that cannot read the view says so and shows its usual one.
    """
    metrics = [objective_metric(name) for name in objectives(study)]
    params = [name.lstrip("+") for name in search_space(study)]
    axes = [{"key": name, "type": "METRIC"} for name in metrics[:2]]
    axes = [{"key": name, "type": "PARAM"} for name in params[: 2 - len(axes)]] + axes
    parallel = {"selectedParams": params, "selectedMetrics": metrics, "showAllRuns": False}
    charts = [chart("PARALLEL", **parallel)]
    if len(axes) == 2:
        charts.append(chart("SCATTER", xaxis=axes[0], yaxis=axes[1]))
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in params]
    section = {"uuid": "sweep", "name": "the sweep", "display": True, "columns": 1}
    section |= {"cardHeight": 400, "isReordered": False, "deleted": False, "isGenerated": False}
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_id}'",
        "orderByKey": columns[0],
        "orderByAsc": study.directions[0].name != "MAXIMIZE",
        "selectedColumns": ["tags.`state`", *columns],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # the section of a sweep comes first
        "compareRunCharts": charts,
        "compareRunSections": [section],
    }
    return json.dumps(state)


def chart(kind: str, **settings: Any) -> dict[str, Any]:
    """A chart of MLflow's UI."""
    own = {"uuid": kind.lower(), "type": kind, "metricSectionId": "sweep", "deleted": False}
    return {**own, "isGenerated": False, "runsCountToCompare": MOST_COMPARED, **settings}
