"""What is kept of a run before it trains: all that is needed to rebuild it."""

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.config.paths import ROOT, in_sweep
from prismatic.data import Task
from prismatic.files import write_text
from prismatic.models import Transformer
from prismatic.tracking.logger import MLflowLogger

from .contents import CONFIG, MANIFEST
from .provenance import provenance


@rank_zero_only
def record(
    config: DictConfig, run_dir: Path, task: Task, model: Transformer, logger: MLflowLogger | None
) -> None:
    """Keep the configuration and the data's manifest in the folder, and in the logger.

    The logger also gets the state of the code, and the losses that this one is compared with.
    """
    resolved = OmegaConf.to_yaml(config, resolve=True)
    manifest = {
        "vocab_size": task.vocab_size,
        "seq_len": task.seq_len,
        "domains": task.domains,
        "sources": task.manifest,
        "baselines": task.baselines,
        "bayes_loss": task.bayes_loss,
    }
    write_text(run_dir / CONFIG, resolved)
    write_text(run_dir / MANIFEST, json.dumps(manifest, indent=2))
    if logger is None:
        return
    if not (logger.prefix or in_sweep()):  # a trial's are there already
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    logger.log_artifact_text(CONFIG, resolved)
    logger.log_artifact_json(MANIFEST, manifest)
    code = asdict(provenance(ROOT))
    diff = code.pop("diff")
    logger.log_artifact_text("dirty.diff", diff)
    logger.log_artifact_json("provenance.json", code)
    logger.set_tags({"git_commit": code["commit"], "dirty": bool(diff), "run_dir": run_dir})
    if task.predicts == "next" and not all(router.causal for router in model.routers):
        logger.set_tags({"leaky": "true"})
    known = {f"baseline/{name}": value for name, value in task.baselines.items()}
    if task.bayes_loss is not None:
        known["loss/bayes"] = task.bayes_loss
    logger.log_metrics(known, 0)
