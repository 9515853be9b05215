"""Trials that failed, by reason, and the command that runs only those again."""

import re
from typing import TYPE_CHECKING

from hydra_plugins.prismatic_optuna.study import count_trials, finished_trials, short_reason

if TYPE_CHECKING:
    from optuna.study import Study

NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")  # at which step, of how many bytes
MOST_TRIALS = 5  # that are named for one reason


def group_failures(study: "Study") -> dict[str, list[int]]:
    """The trials that failed by the reason of the first of them; numbers in it may differ."""
    reasons: dict[str, str] = {}
    groups: dict[str, list[int]] = {}
    for trial in finished_trials(study):
        if trial.state.name == "FAIL":
            reason = short_reason(trial) or "no reason is known"
            first = reasons.setdefault(NUMBER.sub("#", reason), reason)
            groups.setdefault(first, []).append(trial.number)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def describe_failures(study: "Study") -> list[str]:
    """How many failed, and a line for each reason; empty if none did."""
    found, groups = count_trials(study), group_failures(study)
    if not groups:
        return []
    lines = [f"{found['failed']} of {found['finished']} failed:"]
    for reason, trials in groups.items():
        more = f" and {len(trials) - MOST_TRIALS} more" if len(trials) > MOST_TRIALS else ""
        named = ", ".join(map(str, sorted(trials)[:MOST_TRIALS]))
        lines.append(f"  {len(trials)} x {reason} (trial {named}{more})")
    return lines
