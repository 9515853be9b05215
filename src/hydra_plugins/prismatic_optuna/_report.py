"""What a sweep leaves in its folder: `optimization_results.yaml` and `trials.csv`."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ._study import counts, finished


def names_of(study: Study, objectives: Sequence[str]) -> list[str]:
    """The objectives' names, or value, or value_0, value_1, ..."""
    count = len(study.directions)
    generic = ["value"] if count == 1 else [f"value_{i}" for i in range(count)]
    return list(objectives) or generic


def best_trials(study: Study) -> list[FrozenTrial]:
    """The best feasible trial, or the front; empty before there is one."""
    if len(study.directions) > 1:
        return study.best_trials
    try:
        return [study.best_trial]
    except ValueError:
        return []


def results(study: Study) -> dict[str, Any]:
    """Upstream's keys (`name`, `best_evaluated_params`, `best_value`, `solutions`) and ours."""
    best = best_trials(study)
    found: dict[str, Any] = {"name": "optuna", "study_name": study.study_name}
    if len(study.directions) > 1:
        found["solutions"] = [
            {"number": t.number, "params": dict(t.params), "values": list(t.values)} for t in best
        ]
    elif best:
        found["best_evaluated_params"] = dict(best[0].params)
        found["best_value"] = best[0].value
        found["best_number"] = best[0].number
    return {**found, "trials": counts(study)}


def table(study: Study, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """One row per trial; all rows have the same keys."""
    names = names_of(study, objectives)
    trials = study.get_trials(deepcopy=False)
    rows = [_row(trial, names) for trial in trials]
    columns = {key: None for row in rows for key in row}
    return [{key: row.get(key) for key in columns} for row in rows]


def _row(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    attrs = trial.user_attrs
    values = trial.values if trial.state is TrialState.COMPLETE else [None] * len(names)
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


def write(study: Study, objectives: Sequence[str], folder: Path) -> None:
    """Write both files, each whole or not at all. OSError when the disk is full."""
    text = yaml.safe_dump(results(study), sort_keys=False, allow_unicode=True)
    replace(folder / "optimization_results.yaml", text)
    rows = table(study, objectives)
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, fieldnames=rows[0] if rows else ["number"])
    writer.writeheader()
    writer.writerows(rows)
    replace(folder / "trials.csv", sheet.getvalue())


def replace(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def line(trial: FrozenTrial, names: Sequence[str]) -> str:
    """A finished trial in one line: number, state, values or reason, parameters."""
    attrs = trial.user_attrs
    state = "lost" if attrs.get("again") else trial.state.name.lower()
    pairs = zip(names, trial.values or [], strict=False)
    done = trial.state is TrialState.COMPLETE
    what = _pairs(dict(pairs)) if done else gist(trial)
    limit = "" if all(c <= 0 for c in trial.constraints.values()) else " (infeasible)"
    return f"trial {trial.number} {state}: {what}{limit} | {_pairs(trial.params)}"


def gist(trial: FrozenTrial) -> str:
    """The line of the reason that says most: a log's tail ends with the exception."""
    reason = str(trial.user_attrs.get("reason", "")).strip().partition("\nfull_key: ")[0]  # Hydra's
    lines = reason.splitlines() or [""]
    return lines[0 if trial.user_attrs.get("again") else -1][:300]


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.5g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def closing(study: Study, n_trials: int, names: Sequence[str]) -> str:
    """The last words of a sweep: how far it came, the best, how to go on."""
    found = counts(study)
    best = best_trials(study)
    parts = ", ".join(f"{number} {name}" for name, number in found.items() if number)
    text = f"{study.study_name}: {finished(found)} of {n_trials} trials ({parts or 'none'})"
    if not best:
        text += "; none is complete and feasible"
    elif len(study.directions) > 1:
        text += f"; {len(best)} on the front"
    else:
        text += f"; best: {line(best[0], names)}"
    rest = n_trials - finished(found)
    if rest > found["running"]:
        return f"{text}\nThe same command goes on with the rest"
    elsewhere = "The rest runs in other sweeps; if one dies, the same command goes on with it"
    return f"{text}\n{elsewhere}" if rest > 0 else text
