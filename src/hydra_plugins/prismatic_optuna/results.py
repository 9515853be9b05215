"""What a sweep comes to: its result file, and its last words."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .configurations import best_configurations
from .study import AGAIN, FINISHED, RESULTS, count_trials, number, objectives, pairs

if TYPE_CHECKING:
    from optuna.study import Study


def closing(study: "Study") -> str:
    """The last words of a sweep: how far it came, the best, how to go on."""
    found, total = count_trials(study), study.user_attrs["total"]
    shown = [*FINISHED, "running", *AGAIN]
    parts = ", ".join(f"{found[state]} {state}" for state in shown if found[state]) or "none"
    text = f"{study.study_name}: {found['finished']} of {total} trials ({parts})"
    best = describe_best(study)
    text += f"; {best}" if best else "; none is complete and feasible"
    rest = total - found["finished"]
    if rest > found["running"]:
        return f"{text}\nThe same command goes on with the rest"
    elsewhere = "The rest runs in other sweeps; if one dies, the same command goes on with it"
    return f"{text}\n{elsewhere}" if rest > 0 else text


def describe_best(study: "Study") -> str:
    """The best configuration and its value, or the size of the front; empty without any."""
    best = best_configurations(study)
    if not best:
        return ""
    if len(study.directions) > 1:
        return f"{len(best)} on the front"
    n = len(best[0].complete)
    mean = f"mean of {n}" if n > 1 else f"trial {best[0].complete[0].number}"
    value = number(best[0].values[0])
    params = f" | {pairs(best[0].params)}" if best[0].params else ""
    return f"best {objectives(study)[0]}={value} ({mean}){params}"


def results(study: "Study") -> dict[str, Any]:
    """Upstream's keys (`name`, `best_params`, `best_value`, `solutions`), ours, and the states.

    Each best configuration has the numbers of its `trials`, of which its values are the means.
    """
    found: dict[str, Any] = {"name": "optuna", "study_name": study.study_name}
    solutions: list[dict[str, Any]] = [
        {"params": best.params, "values": best.values, "trials": [t.number for t in best.complete]}
        for best in best_configurations(study)
    ]
    if len(study.directions) > 1:
        found["solutions"] = solutions
    elif solutions:
        found["best_params"] = solutions[0]["params"]
        found["best_value"] = solutions[0]["values"][0]
        found["best_trials"] = solutions[0]["trials"]
    return {**found, "trials": count_trials(study)}


def write_results(study: "Study", folder: Path) -> None:
    """Write the result file, whole or not at all. OSError: a full disk."""
    text = yaml.safe_dump(results(study), sort_keys=False, allow_unicode=True)
    replace(folder / RESULTS, text)


def replace(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
