"""What a run says at its start and at its end."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from textwrap import fill
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import Batch
from prismatic.files import write_text
from prismatic.measures import measure_cost, measure_speed, view_measures
from prismatic.models import RoutedModel
from prismatic.report.answer import EXCESS, compute_answer, tell
from prismatic.report.page import FOLDER, HTML
from prismatic.stats import t_interval

from .contents import METRICS, read_metrics, read_run, seed_folder

LARGE = 20_000_000  # weights, below which no one asks what a step will take

log = logging.getLogger(__name__)


@rank_zero_only
def report_strength(model: RoutedModel, logger: Any) -> None:
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
def report_cost(model: RoutedModel, row: Batch, *, trainer: Any, batch_size: int) -> None:
    """Say what a step of a large model will take, measured on one row of a batch.

    The rate is what its matrix products would have alone, at the device's best.
    """
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return
    cost, num_rows = measure_cost(model, row, trainer.precision), batch_size // trainer.world_size
    speed = measure_speed(trainer.strategy.root_device, trainer.precision)
    gigabytes = (cost.weights_bytes + num_rows * cost.row_bytes) / 1e9
    weights, learn = cost.num_weights / 1e6, cost.num_trained / 1e6
    per_second = trainer.world_size * speed * row.tokens_BT.numel() / cost.row_flops
    log.info(
        f"size: {weights:.0f} million weights, of which {learn:.0f} learn; about "
        f"{gigabytes:.1f} GB for {num_rows} sequences at a time; at most {per_second:,.0f} tokens/s"
    )


@rank_zero_only
def summarise(
    metrics: Mapping[str, float], run_dir: Path, logger: Any, settle: str | None = None
) -> None:
    """Print the result beside what it is to be compared with, what it shows, and where to look
    next. `settle` is the command that decides what one run cannot.
    """
    known = read_run(run_dir)[1]
    rows = compute_answer(metrics)
    if "loss/bits_per_byte" in metrics:
        rows["bits per byte"] = f"{metrics['loss/bits_per_byte']:.4f}"
    rows |= {f"{name} (baseline)": f"{value:.4f}" for name, value in known["baselines"].items()}
    if known["bayes_loss"] is not None:
        rows["bayes (least possible)"] = f"{known['bayes_loss']:.4f}"
    print_rows("result, in nats per token unless named otherwise", rows)
    for sentence in tell(metrics):
        log.info(fill(sentence, 100))
    if settle:
        log.info(f"settle it:    {settle}")
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
    seeds: Sequence[int],
    logger: Any,
) -> None:
    """Keep and print what several trainings come to together: means, and how far seeds spread."""
    write_text(run_dir / METRICS, json.dumps(metrics, indent=2) + "\n")
    ended = [read_metrics(seed_folder(run_dir, seed)) for seed in seeds]
    shown = dict.fromkeys([*names, *({EXCESS} & metrics.keys())])
    samples = {name: [found[name] for found in ended if name in found] for name in shown}
    rows = {name: f"{metrics[name]:.6g}{spread(sample)}" for name, sample in samples.items()}
    print_rows(f"result of {len(seeds)} seeds: mean ± sd (95 % interval of the mean)", rows)
    if len(samples.get(EXCESS, ())) > 1:
        low, high = t_interval(samples[EXCESS])
        noise = "within noise" if low <= 0 <= high else "more than noise explains"
        log.info(f"The difference to the dense model of the same seeds is {noise}.")
    log.info(f"run folder:   {run_dir}\nall means:    {run_dir / METRICS}")
    if logger is not None:
        logger.set_tags({"run_dir": run_dir})  # each seed has set its own
    print_address(logger)


def spread(sample: Sequence[float]) -> str:
    """Standard deviation and interval of several seeds' values; nothing of one."""
    if len(sample) < 2:
        return ""
    low, high = t_interval(sample)
    return f" ± {stdev(sample):.2g} ({low:.6g} to {high:.6g})"


def print_rows(title: str, rows: Mapping[str, str]) -> None:
    width = max(map(len, rows), default=0) + 2
    right = max(map(len, rows.values()), default=0)
    log.info("\n".join(["", title, *(f"  {k:<{width}}{v:>{right}}" for k, v in rows.items())]))


def print_address(logger: Any) -> None:
    if logger is not None:
        log.info(logger.unsent or f"browse:       make ui, or {logger.url()}")
