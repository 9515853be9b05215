"""One page per sweep, which opens offline: the best, what matters, failures, cost, what next."""

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra_plugins.prismatic_optuna.study import count_trials, number
from prismatic.files import write_text
from prismatic.report import markup

from .account import Account
from .failures import group_failures
from .pictures import READINGS

HTML = "report.html"  # in the sweep's folder
SHRINKAGE = "shrinkage.json"  # in that of a sweep on fresh seeds, below it
CHAPTERS = {
    "Is the best better than chance?": ("seeds", "front"),
    "Which knob matters?": ("effects", "importance", "parameters", "contour", "parallel"),
    "Would more trials help?": ("history",),
}


def write_page(account: Account, pictures: Sequence[Path]) -> Path:
    """Write the page with these pictures into the sweep's folder; where it is."""
    parts = [*overview(account), *fresh_seeds(account.folder)]
    for question, kinds in CHAPTERS.items():
        shown = [path for kind in kinds for path in pictures if kind_of(path) == kind]
        if shown:
            parts.append(f"<h2>{question}</h2>")
            parts += [illustrated(path) for path in shown]
    parts += [*failures(account), *cost(account), *next_steps(account)]
    path = account.folder / HTML
    write_text(path, markup.page(f"Sweep {account.study.study_name}", parts))
    return path


def kind_of(picture: Path) -> str:
    """A picture's name without the number of its objective."""
    return picture.stem.rstrip("_0123456789")


def illustrated(picture: Path) -> str:
    return markup.picture(picture.read_bytes(), picture.stem, READINGS[kind_of(picture)])


def overview(account: Account) -> Iterator[str]:
    """How far the sweep came, what it found, and its table."""
    found, total = count_trials(account.study), account.study.user_attrs.get("total")
    states = ", ".join(f"{count} {state}" for state, count in found.items() if count)
    yield markup.paragraph(f"{total} trials asked for: {states}", "facts")
    yield markup.notice("calm" if not account.ranking.empty else "alarm", account.summary)
    if account.failures:
        yield markup.notice("alarm", account.failures[0], "Their reasons are below.")
    head, rows = account.table
    if rows:
        yield markup.paragraph(account.title, "facts")
        yield markup.table(head, rows)
    for line in account.remarks:
        yield markup.paragraph(line, "facts")


def fresh_seeds(folder: Path) -> Iterator[str]:
    """What was left of the best on seeds that the sweep had not seen, where that was tried."""
    for path in sorted(folder.glob(f"fresh-*/{SHRINKAGE}")):
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        head = ["trial", "objective", "sweep", "fresh", "standard_error", "shrinkage"]
        cells = [[number(row.get(key, "failed")) for key in head] for row in rows]
        yield "<h2>What is left on fresh seeds?</h2>"
        yield markup.paragraph("Shrinkage below 0: it was worse than it seemed.", "facts")
        yield markup.table(head, cells)


def failures(account: Account) -> Iterator[str]:
    """Reasons, how often, and in which trials."""
    groups = group_failures(account.study)
    if groups:
        rows = [
            [str(len(trials)), reason, ", ".join(map(str, trials))]
            for reason, trials in groups.items()
        ]
        yield "<h2>What failed?</h2>"
        yield markup.table(["trials", "reason", "which"], rows)


def cost(account: Account) -> Iterator[str]:
    """Time that trials took, in all and by how they ended."""
    trials = account.runs.drop_duplicates("trial").dropna(subset="seconds")
    if trials.empty:
        return
    groups = [("all", trials), *trials.groupby("state")]
    rows = [
        [str(state), str(len(own)), *map(duration, (own["seconds"].sum(), own["seconds"].median()))]
        for state, own in groups
    ]
    yield "<h2>What did it cost?</h2>"
    yield markup.table(["trials", "number", "time in all", "median"], rows)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def next_steps(account: Account) -> Iterator[str]:
    """What can be typed next."""
    yield "<h2>How to go on</h2>"
    for what, typed in account.commands.items():
        yield markup.command(what.capitalize(), typed)
