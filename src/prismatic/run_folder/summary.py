"""What a run says at its start and at its end."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import Task
from prismatic.files import write_text
from prismatic.measures import view_measures
from prismatic.models import Transformer
from prismatic.report.page import FOLDER, HTML

from .contents import METRICS

log = logging.getLogger(__name__)


@rank_zero_only
def report_strength(model: Transformer, logger: Any) -> None:
    """Say and record how strong the perturbation really is."""
    measured = view_measures(model)
    if not measured:
        return
    norm, matrices = measured["views/relative_norm"], measured["views/relative_norm_matrices"]
    log.info(
        f"perturbation: the strongest view changes the wrapped weights by {norm:.2%} of their norm "
        f"(the matrices alone by {matrices:.2%}) and moves {measured['views/share_moved']:.2%} of "
        "them by more than 1 %"
    )
    if logger is not None:
        logger.log_metrics(measured, 0)


@rank_zero_only
def summarise(task: Task, metrics: Mapping[str, float], run_dir: Path, *, logger: Any) -> None:
    """Print the result beside what it is to be compared with, and where to look next."""
    rows: dict[str, float] = {}
    rows |= {name: metrics[name] for name in ("loss/val", "loss/bits_per_byte") if name in metrics}
    rows |= {f"{name} (baseline)": value for name, value in task.baselines.items()}
    if task.bayes_loss is not None:
        rows["bayes (least possible)"] = task.bayes_loss
    print_rows("result, in nats per token unless named otherwise", rows, ".4f")
    log.info(f"run folder:   {run_dir}\nlook closer:  python src/eval.py run={run_dir}")
    pictures = run_dir / FOLDER / HTML
    if pictures.is_file():
        log.info(f"pictures:     {pictures}")
    print_address(logger)


@rank_zero_only
def summarise_seeds(
    metrics: Mapping[str, float],
    names: Sequence[str],
    run_dir: Path,
    *,
    num_seeds: int,
    logger: Any,
) -> None:
    """Keep and print what several trainings come to together."""
    write_text(run_dir / METRICS, json.dumps(metrics, indent=2) + "\n")
    print_rows(f"result of {num_seeds} seeds (means)", {n: metrics[n] for n in names}, ".6g")
    log.info(f"run folder:   {run_dir}\nall means:    {run_dir / METRICS}")
    if logger is not None:
        logger.set_tags({"run_dir": run_dir})  # each seed has set its own
    print_address(logger)


def print_rows(title: str, rows: Mapping[str, float], style: str) -> None:
    width = max(map(len, rows), default=0) + 2
    log.info("\n".join(["", title, *(f"  {k:<{width}}{v:{style}}" for k, v in rows.items())]))


def print_address(logger: Any) -> None:
    if logger is not None:
        log.info(logger.unsent or f"browse:       make ui, or {logger.url()}")
