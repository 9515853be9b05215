"""How a study is read: its question, where each trial stands, the best ones, its result files.

The user attributes of a study say what it asks: `question` (params, objectives, directions,
constraints), `fixed` (the overrides of every job) and `total` (the trials it shall finish). Those
of a trial, besides Optuna's own: `owner` (who runs it), `folder` (below the sweep's), `reason` (of
its end), `again` (lost, and not counted since its parameters are asked again), `retry_of` and
`retries`, `enqueued`, `reused` (whose result it has), `metrics`, `progress:<step>`.
"""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

PROGRESS = "progress:"
RESULTS, TABLE, CONFIG = "optimization_results.yaml", "trials.csv", "multirun.yaml"
FINISHED = ("complete", "pruned", "failed")
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def load_study(folder: Path) -> "Study":
    """The study of a sweep's folder. FileNotFoundError or ValueError where there is none."""
    import optuna

    from ._storage import open_storage

    for name in (CONFIG, RESULTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: give the folder of a sweep, such as "
                "outputs/sweeps/<study>"
            )
    storage = OmegaConf.select(OmegaConf.load(folder / CONFIG), "hydra.sweeper.storage")
    name = yaml.safe_load((folder / RESULTS).read_text(encoding="utf-8"))["study_name"]
    try:
        given = OmegaConf.to_container(storage) if OmegaConf.is_config(storage) else storage
        return optuna.load_study(study_name=name, storage=open_storage(given, folder))
    except KeyError:
        raise ValueError(f"{folder}: its storage has no study {name!r} any more") from None


def objectives(study: "Study") -> list[str]:
    """The objectives' names, or value, or value_0, value_1, ..."""
    count = len(study.directions)
    generic = ["value"] if count == 1 else [f"value_{i}" for i in range(count)]
    return study.user_attrs["question"]["objectives"] or generic


def search_space(study: "Study") -> dict[str, "BaseDistribution"]:
    """What the study searches."""
    from optuna.distributions import json_to_distribution

    params = study.user_attrs["question"]["params"]
    return {name: json_to_distribution(json.dumps(node)) for name, node in params.items()}


def is_finished(trial: "FrozenTrial") -> bool:
    """Does the trial count towards `n_trials`?"""
    return trial.state.is_finished() and not trial.user_attrs.get("again", False)


def is_feasible(trial: "FrozenTrial") -> bool:
    """Does it keep to its constraints?"""
    return all(distance <= 0 for distance in trial.constraints.values())


def state_of(trial: "FrozenTrial") -> str:
    """complete, pruned, failed, lost (and asked again), running or waiting."""
    if trial.state.is_finished() and not is_finished(trial):
        return "lost"
    return STATES.get(trial.state.name, "waiting")


def count_trials(study: "Study") -> dict[str, int]:
    """Trials by their state, and under `finished` those that are complete, pruned or failed."""
    found = dict.fromkeys(["finished", *STATES.values(), "lost", "waiting"], 0)
    for trial in study.get_trials(deepcopy=False):
        found[state_of(trial)] += 1
    return found | {"finished": sum(found[state] for state in FINISHED)}


def finished_trials(study: "Study") -> list["FrozenTrial"]:
    """The finished trials in the order in which they ended."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def best_trials(study: "Study", count: int = 1) -> list["FrozenTrial"]:
    """The front, by its first objective; of one objective the best `count` feasible trials."""
    if len(study.directions) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.values[0])
    trials = study.get_trials(deepcopy=False)
    done = [t for t in trials if t.state.name == "COMPLETE" and is_feasible(t)]
    downwards = study.direction.name == "MAXIMIZE"
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=downwards)[:count]


def describe(trial: "FrozenTrial", names: list[str]) -> str:
    """A finished trial in one line: number, state, values or reason, parameters."""
    done = trial.state.name == "COMPLETE"
    what = pairs(dict(zip(names, trial.values, strict=True))) if done else short_reason(trial)
    limit = "" if is_feasible(trial) else " (infeasible)"
    return f"trial {trial.number} {state_of(trial)}: {what}{limit} | {pairs(trial.params)}"


def short_reason(trial: "FrozenTrial") -> str:
    """The line of the reason that says most: a log's tail ends with the exception."""
    reason = str(trial.user_attrs.get("reason", "")).strip().partition("\nfull_key: ")[0]  # Hydra's
    lines = reason.splitlines() or [""]
    return lines[0 if trial.user_attrs.get("again") else -1][:300]


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return " ".join(f"{key}={number(value)}" for key, value in values.items())


def number(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def closing(study: "Study") -> str:
    """The last words of a sweep: how far it came, the best, how to go on."""
    found, total = count_trials(study), study.user_attrs["total"]
    shown = [*FINISHED, "running", "lost"]
    parts = ", ".join(f"{found[state]} {state}" for state in shown if found[state]) or "none"
    text = f"{study.study_name}: {found['finished']} of {total} trials ({parts})"
    best = best_trials(study)
    if not best:
        text += "; none is complete and feasible"
    elif len(study.directions) > 1:
        text += f"; {len(best)} on the front"
    else:
        text += f"; best: {describe(best[0], objectives(study))}"
    rest = total - found["finished"]
    if rest > found["running"]:
        return f"{text}\nThe same command goes on with the rest"
    elsewhere = "The rest runs in other sweeps; if one dies, the same command goes on with it"
    return f"{text}\n{elsewhere}" if rest > 0 else text


def write_results(study: "Study", folder: Path) -> None:
    """Write the results and the table of trials, each whole or not at all. OSError: a full disk."""
    text = yaml.safe_dump(results(study), sort_keys=False, allow_unicode=True)
    replace(folder / RESULTS, text)
    names = objectives(study)
    rows = [_row(trial, names) for trial in study.get_trials(deepcopy=False)]
    columns = list({key: None for row in rows for key in row}) or ["number"]
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns)
    writer.writeheader()
    writer.writerows(rows)
    replace(folder / TABLE, sheet.getvalue())


def results(study: "Study") -> dict[str, Any]:
    """Upstream's keys (`name`, `best_params`, `best_value`, `solutions`) and ours."""
    best = best_trials(study)
    found: dict[str, Any] = {"name": "optuna", "study_name": study.study_name}
    if len(study.directions) > 1:
        found["solutions"] = [
            {"number": t.number, "params": dict(t.params), "values": list(t.values)} for t in best
        ]
    elif best:
        found["best_params"] = dict(best[0].params)
        found["best_value"] = best[0].value
        found["best_number"] = best[0].number
    return {**found, "trials": count_trials(study)}


def _row(trial: "FrozenTrial", names: list[str]) -> dict[str, Any]:
    attrs = trial.user_attrs
    values = trial.values if trial.state.name == "COMPLETE" else [None] * len(names)
    metrics = attrs.get("metrics", {})
    return {
        "number": trial.number,
        "state": "LOST" if attrs.get("again") else trial.state.name,
        **dict(zip(names, values, strict=True)),
        **trial.params,
        **{f"constraint:{key}": value for key, value in trial.constraints.items()},
        **{f"metric:{key}": value for key, value in metrics.items() if key not in names},
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "retry_of": attrs.get("retry_of"),
        "reason": attrs.get("reason"),
    }


def replace(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
