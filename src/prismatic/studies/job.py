"""One run of a study, in a process of its own: a plain run whose measures are all kept."""

import json
import math
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from prismatic.files import write_text
from prismatic.replicas import run
from prismatic.run_folder.contents import METRICS, read_run
from prismatic.training import DivergedError

MEASURED = "measures.json"  # in a run's folder: a list of rows, once it has ended


def alone(config: DictConfig) -> None:
    """Train what a configuration describes.

    Divergence is a result: the loss is then that of the uniform predictor.
    """
    begun, folder = time.perf_counter(), Path(HydraConfig.get().runtime.output_dir)
    try:
        run(config, folder)
        found = json.loads((folder / METRICS).read_text()) | {"diverged": 0.0}
    except DivergedError:
        vocabulary = read_run(folder)[1]["vocab_size"]
        found = {"diverged": 1.0, "loss/val": math.log(vocabulary)}
    keep(folder, [{"seed": config.seed, **found}], begun)


def together(config: DictConfig) -> None:
    """Train all seeds of a small model at once."""
    from .together import train

    begun, folder = time.perf_counter(), Path(HydraConfig.get().runtime.output_dir)
    found = train(config, list(config.seeds))
    rows = [{"seed": seed, "diverged": 0.0, **metrics} for seed, metrics in found.items()]
    keep(folder, rows, begun)


def keep(folder: Path, rows: list[dict[str, float]], begun: float) -> None:
    """Write the measures, with each row's share of the seconds since `begun`."""
    seconds = (time.perf_counter() - begun) / len(rows)
    timed = [{**row, "seconds": seconds} for row in rows]
    write_text(folder / MEASURED, json.dumps(timed, indent=2))
