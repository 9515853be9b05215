"""What stands above the pictures: what the run was, what it reached and what it was warned of."""

import math
from dataclasses import dataclass

import numpy as np

from .markup import notice, paragraph, table
from .record import Record

BYTES = 256  # a vocabulary of this size is text


@dataclass(frozen=True)
class Alarm:
    """A failure that a run was warned of, and what to do about it."""

    name: str
    message: str
    remedy: str
    step: int
    times: int


def compute_alarms(record: Record) -> list[Alarm]:
    """Alarms in the order of their first step; one that was raised again counts as one."""
    raised = [(line["step"], line["alarm"]) for line in record.lines if "alarm" in line]
    names = [alarm["name"] for _, alarm in raised]
    found = []
    for name in dict.fromkeys(names):
        step, first = raised[names.index(name)]
        found.append(Alarm(name, first["message"], first["remedy"], step, names.count(name)))
    return found


def compute_reached(record: Record) -> dict[str, float]:
    """The last and the best validation loss, and the step of the best; empty without any."""
    steps, val_S = record.series("loss/val")
    if not np.isfinite(val_S).any():
        return {}
    best = int(np.nanargmin(val_S))
    text = record.about.get("vocab") == BYTES
    return {
        "validation loss": float(val_S[-1]),
        **({"bits per byte": float(val_S[-1]) / math.log(2)} if text else {}),
        "best validation loss": float(val_S[best]),
        "best at step": float(steps[best]),
    }


def compute_results(record: Record) -> dict[str, float]:
    """Losses at the end beside what they are to be compared with, by readable names."""
    results = compute_reached(record)
    baselines = record.about.get("baselines") or {}
    results |= {f"{name} (baseline)": value for name, value in baselines.items()}
    if record.about.get("bayes") is not None:
        results["least possible"] = record.about["bayes"]
    by_domain, names = record.last("loss/domain_D"), record.about.get("domains") or []
    if by_domain is not None and len(by_domain) == len(names) > 1:  # else some were not seen
        named = zip(names, by_domain.tolist(), strict=True)
        results |= {f"validation loss on {name}": loss for name, loss in named}
    return results


def overview(record: Record) -> str:
    """The page's head: facts, alarms with their remedies, results."""
    about = record.about
    keys = ("router", "level", "views", "passes", "task", "dtype")
    facts = " · ".join(f"{key} {about[key]}" for key in keys if about.get(key) not in (None, ""))
    alarms = [alarm_html(alarm) for alarm in compute_alarms(record)]
    calm = notice("calm", "No alarm.", "None of the failures that are watched for was seen.")
    rows = [(name, f"{value:.5g}") for name, value in compute_results(record).items()]
    results = table(("result", "nats per token, if not named"), rows) if rows else ""
    return "\n".join([paragraph(facts, "facts"), *(alarms or [calm]), results])


def described(record: Record) -> str:
    """The same as Markdown, and where the pictures are."""
    alarms = [
        f"**Alarm: {alarm.name}.** Step {alarm.step}: {alarm.message}. What to do: {alarm.remedy}."
        for alarm in compute_alarms(record)
    ]
    rows = [f"| {name} | {value:.5g} |" for name, value in compute_results(record).items()]
    head = ["| result | nats per token, if not named |", "|---|---|"]
    results = ["\n".join(head + rows)] if rows else []
    where = "All pictures, in reading order: `report/report.html` among the artifacts."
    return "\n\n".join([*(alarms or ["**No alarm.**"]), *results, where])


def alarm_html(alarm: Alarm) -> str:
    """An alarm: at which step it came first, how often, and what to do."""
    when = f"step {alarm.step}" + (f", {alarm.times} times" if alarm.times > 1 else "")
    remedy = f"What to do: {alarm.remedy}"
    return notice("alarm", f"Alarm: {alarm.name}.", f"{when}: {alarm.message}", remedy)
