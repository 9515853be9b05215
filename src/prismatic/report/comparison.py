"""Several runs side by side: their curves in one picture, their results in one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .losses import NATS
from .markup import page, paragraph, picture, table
from .page import compute_alarms, compute_reached
from .record import Floats, NothingToDrawError, Record, Steps
from .style import LINES, MARKERS, STEP, legend, plain, png, styled, title

Runs = Mapping[str, Record | None]  # by label; None where a run left no record
NO_RECORD = "None of the runs left a record: they are older than it, or were made without it."
WIDTH = 44  # characters of a column on a terminal
CAPTION = "Falling entropy: some views get more weight. Whether that is good, only the loss says."
MEASURES = {
    "routing entropy": "routing/entropy_L",
    "input dependence": "routing/input_dependence",
    "input dependence, untrained twin": "routing/input_dependence_null",
    "mutual information with domain": "routing/mutual_information",
    "mutual information, untrained twin": "routing/mutual_information_null",
    "disagreement (bits)": "views/disagreement",
}


def compute_curves(runs: Runs, name: str) -> dict[str, tuple[Steps, Floats]]:
    """Steps (S,) and values (S,) under a name, averaged over its further axes, by run."""
    found = {label: run.series(name) for label, run in runs.items() if run is not None}
    return {
        label: (steps, values.reshape(len(steps), -1).mean(1))
        for label, (steps, values) in found.items()
        if len(steps)
    }


@styled
def draw_comparison(figure: Figure, runs: Runs) -> None:
    """Validation loss and routing entropy over training, a line per run."""
    loss = compute_curves(runs, "loss/val")
    entropy = compute_curves(runs, "routing/entropy_L")
    if not loss:
        raise NothingToDrawError(NO_RECORD)
    title(figure, "Validation loss and routing entropy over training")
    axes = figure.subplots(1, 2)
    for curves, one in zip((loss, entropy), axes, strict=True):
        for k, label in enumerate(runs):
            if label in curves:
                one.plot(*curves[label], label=plain(label), **run_style(k, len(runs)))
    axes[0].set(xlabel=STEP, ylabel=NATS)
    axes[1].set(xlabel=STEP, ylabel="routing entropy (share of ln N)")
    legend(figure, axes[0])


def run_style(k: int, runs: int) -> dict[str, Any]:
    """Look of one of several runs; none of the colours is a view's."""
    colour = colormaps["cividis"](0.85 * k / max(1, runs - 1))
    line, marker = LINES[k % len(LINES)], MARKERS[k % len(MARKERS)]
    return {"color": colour, "linestyle": line, "marker": marker}


def compute_summary(record: Record) -> dict[str, str]:
    """What a run came to, by readable names; what it did not record is left out."""
    values: dict[str, float | None] = {**compute_reached(record)}
    for name, key in MEASURES.items():
        latest = record.last(key)
        values[name] = None if latest is None else float(np.mean(latest))
    norm_E = record.about.get("norm_E") or []
    values["relative norm of the strongest view"] = max(norm_E[1:], default=None)
    alarms = ", ".join(alarm.name for alarm in compute_alarms(record)) or "none"
    known = {name: f"{value:.5g}" for name, value in values.items() if value is not None}
    return known | {"alarms": alarms}


def compute_differences(configs: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Rows of a key and its value in every run, for the keys in which runs differ.

    A key that only some of the components know is left out: their `_target_` says it already.
    """
    first, *others = configs.values()
    keys = [key for key in first if all(key in other for other in others)]
    rows = [[key, *(config[key] for config in configs.values())] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def compute_rows(runs: Runs) -> list[list[str]]:
    """Rows of a result and its value in every run."""
    summaries = [{} if run is None else compute_summary(run) for run in runs.values()]
    names = dict.fromkeys(name for summary in summaries for name in summary)
    return [[name, *(summary.get(name, "-") for summary in summaries)] for name in names]


def write_comparison(
    runs: Runs, configs: Mapping[str, Mapping[str, str]], folder: Path
) -> tuple[Path, str]:
    """Write `compare.png` and `compare.html` to a folder; the page's path, and its tables as text.

    `configs` holds each run's configuration by dotted keys, under the same labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head, results = ["", *runs], compute_rows(runs)
    differences = compute_differences(configs) or [["no difference"]]
    silent = [f"{label} left no record to draw from." for label, run in runs.items() if run is None]
    figure = draw_comparison(runs)
    drawn = folder / "compare.png"
    drawn.write_bytes(png(figure))
    parts = [
        *(paragraph(line, "absent") for line in silent),
        picture(drawn.read_bytes(), "Loss and routing entropy of the runs", CAPTION),
        "<h2>Results</h2>", table(head, results),
        "<h2>What differs in the configuration</h2>", table(head, differences),
    ]  # fmt: skip
    path = folder / "compare.html"
    path.write_text(page("Comparison of runs", parts), encoding="utf-8")
    blocks = (silent, aligned([head, *results]), ["", "configuration:"], aligned(differences))
    return path, "\n".join(line for block in blocks for line in block)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns, long texts cut."""
    short = [[cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in short]


def cut(text: str) -> str:
    """The text, or its beginning where it is too long for a column."""
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
