"""A sweep in MLflow's own charts: a view of its runs, set up as the UI's "Share" would keep it.

The UI reads such a view from a tag of the experiment, where the address names it. If it cannot
read the view, it says so and shows its usual one.
"""

import json
from collections.abc import Sequence
from typing import Any

from prismatic.tracking import WORKFLOW, objective_metric

TAG = "mlflow.sharedViewState."
MOST = 100  # runs that a chart compares


def view(parent_id: str, objectives: Sequence[str], maximise: bool, params: Sequence[str]) -> str:
    """The trials of a sweep, best first: parallel coordinates, and a scatter of two objectives.

    Of one objective the scatter is over the first parameter. `maximise` is that of the first.
    """
    metrics = [objective_metric(name) for name in objectives]
    axes = [{"key": name, "type": "METRIC"} for name in metrics[:2]]
    axes = [{"key": name, "type": "PARAM"} for name in params[: 2 - len(axes)]] + axes
    parallel = {"selectedParams": params, "selectedMetrics": metrics, "showAllRuns": False}
    charts = [chart("PARALLEL", **parallel)]
    if len(axes) == 2:
        charts.append(chart("SCATTER", xaxis=axes[0], yaxis=axes[1]))
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in params]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_id}'",
        "orderByKey": columns[0],
        "orderByAsc": not maximise,
        "selectedColumns": ["tags.`state`", *columns],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # the section of a sweep comes first
        "compareRunCharts": charts,
        "compareRunSections": [section()],
    }
    return json.dumps(state)


def chart(kind: str, **settings: Any) -> dict[str, Any]:
    """A chart of the UI."""
    own = {"uuid": kind.lower(), "type": kind, "metricSectionId": "sweep", "deleted": False}
    return {**own, "isGenerated": False, "runsCountToCompare": MOST, **settings}


def section() -> dict[str, Any]:
    """The part of the page that holds a sweep's charts."""
    own = {"uuid": "sweep", "name": "the sweep", "display": True, "columns": 1, "cardHeight": 400}
    return {**own, "isReordered": False, "deleted": False, "isGenerated": False}


def links(experiment_id: str, parent_id: str) -> str:
    """Markdown: where the UI shows the trials as a table and as charts, and the pictures."""
    page = f"#/experiments/{experiment_id}/runs"
    shared = f"{page}?{WORKFLOW}&viewStateShareKey={parent_id}"
    pictures = f"{page}/{parent_id}/artifacts/history.png?{WORKFLOW}"
    return (
        f"trials: [table]({shared}), [charts]({shared}&compareRunsMode=CHART) | "
        f"[pictures]({pictures})"
    )
