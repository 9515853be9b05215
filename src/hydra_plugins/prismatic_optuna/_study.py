"""How a study is kept between sweeps: the same question as before, and what was lost, again."""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ._owner import Ownership, lives
from .study import LOST, RETRIED, read_trials, state_of

log = logging.getLogger(__name__)

UNCLAIMED_SECONDS = 60.0  # a trial of a shared study may be about to get its owner


def open_study(
    storage: BaseStorage, name: str, question: Mapping[str, Any], pruner: BasePruner | None
) -> Study:
    """Create the study, or open the one of this name if it asks the same `question`.

    `question` holds params, objectives, directions and constraints. ValueError says what
    differs from the question that the stored trials answer.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=question["directions"],
        pruner=pruner,
        load_if_exists=True,
    )
    asked = json.loads(json.dumps(question))
    stored = study.user_attrs.get("question")
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(
                f"the study {name!r} has trials of another program: give another "
                "hydra.sweeper.study_name"
            )
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        study.set_user_attr("question", asked)
        study.set_user_attr("hash", digest)
        if question["objectives"]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(question["objectives"])
    elif differing := list(differences(stored, asked)):
        raise ValueError(
            f"the study {name!r} asks another question than this command:\n  "
            + "\n  ".join(differing)
            + "\nTheir trials cannot be compared: give another hydra.sweeper.study_name (and a "
            "folder of its own), or the command that the study began with"
        )
    return study


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """One line for each part of the question that changed."""
    for part in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(part), asked.get(part)
        if isinstance(old, dict) and isinstance(new, dict):
            for key in [k for k in {**old, **new} if old.get(k) != new.get(k)]:
                yield f"{part}: {key} was {_short(old.get(key))}, is {_short(new.get(key))}"
        elif old != new:
            yield f"{part}: was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict) and "attributes" in value:
        inner = ", ".join(f"{k}={v}" for k, v in value["attributes"].items())
        return f"{value['name'].removesuffix('Distribution')}({inner})"
    return json.dumps(value)


def warn_of_other_overrides(study: Study, fixed: Sequence[str]) -> None:
    """Overrides that every job gets may change between sweeps, but not unseen."""
    before = study.user_attrs.get("fixed")
    if before is not None and before != list(fixed):
        gone, new = sorted(set(before) - set(fixed)), sorted(set(fixed) - set(before))
        log.warning("the overrides of every job changed: without %s, with %s", gone, new)
    study.set_user_attr("fixed", list(fixed))


def stored(study: Study, number: int) -> FrozenTrial:
    """A trial as the storage has it."""
    return study.get_trials(deepcopy=False)[number]


def set_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write to a trial that this process did not ask; Optuna has no public way."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def enqueue(study: Study, points: Iterable[Mapping[str, Any]]) -> None:
    """Queue the points that the study has not queued before."""
    # Compared as JSON, which tells 1 from true.
    known = {
        json.dumps(trial.user_attrs["enqueued"], sort_keys=True)
        for trial in study.get_trials(deepcopy=False)
        if "enqueued" in trial.user_attrs
    }
    for point in map(dict, points):
        if json.dumps(point, sort_keys=True) not in known:
            study.enqueue_trial(point, user_attrs={"enqueued": point})


def lose(study: Study, number: int, reason: str, max_retries: int, blame: bool = True) -> None:
    """Fail a running trial whose process is gone, and queue its parameters again.

    Its own losses count against `max_retries`; with its sweep's end (`blame` false) none does.
    The queue is filled first: a death in between is found and finished by the next sweep.
    """
    trial = stored(study, number)
    retries = trial.user_attrs.get("retries", 0) + blame
    again = retries <= max_retries
    known = any(t.user_attrs.get("retry_of") == number for t in study.get_trials(deepcopy=False))
    # A death between taking a trial from the queue and its first parameter leaves it without any.
    params = trial.params or trial.system_attrs.get("fixed_params")
    if again and params and not known:
        attrs = {"retry_of": number, "retries": retries}
        study.enqueue_trial(dict(params), user_attrs=attrs)
    fail(study, trial, reason, again=again)


def fail(study: Study, trial: FrozenTrial, reason: str, *, again: bool) -> None:
    """End a running trial; with `again` it was lost and does not count."""
    set_attr(study, trial, "reason", reason)
    set_attr(study, trial, "again", LOST if again else None)
    study.tell(trial.number, state=TrialState.FAIL)


def retry_failed(study: Study) -> None:
    """Queue the parameters of failed trials again, and count these no more."""
    failed = [trial for trial in read_trials(study) if state_of(trial) == "failed"]
    for trial in failed:
        study.enqueue_trial(dict(trial.params), user_attrs={"retry_of": trial.number})
    before = study.user_attrs.get(RETRIED, [])
    study.set_user_attr(RETRIED, [*before, *(trial.number for trial in failed)])


def give_back(study: Study, number: int, max_retries: int) -> None:
    """Fail a trial that is one too many; what came from the queue goes back there."""
    trial = stored(study, number)
    reason = "another sweep asked for the last trial at the same moment"
    if "fixed_params" in trial.system_attrs:
        lose(study, number, reason, max_retries, blame=False)
    else:
        fail(study, trial, reason, again=True)


def recover(study: Study, owner: Ownership, max_retries: int) -> None:
    """Lose the trials that dead sweeps left running; one sweep of a shared study sees to it."""
    if not owner.leads():
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        own = trial.user_attrs.get("owner")
        if own == owner.name or (own and lives(own, study)):
            continue
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        if own is None and owner.shared and time.time() - begun < UNCLAIMED_SECONDS:
            continue
        log.info("trial %d was lost with its sweep %s", trial.number, own or "")
        lose(study, trial.number, f"lost: its sweep {own or ''} died", max_retries, blame=False)
