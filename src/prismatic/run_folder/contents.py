"""What lies in the folder of a run, and reading it back without running any code of it."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG, MANIFEST, CHECKPOINTS = "config.yaml", "manifest.json", "checkpoints"
METRICS = "metrics.json"  # the last of each

if TYPE_CHECKING:  # a sweep reads metrics without loading what trains
    import torch


def seed_folder(run_dir: Path, seed: int) -> Path:
    """Where a run of several seeds keeps the training of one."""
    return run_dir / f"seed_{seed}"


def read_metrics(run_dir: Path) -> dict[str, float]:
    """The last metrics that a run left; empty where it left none."""
    path = run_dir / METRICS
    return json.loads(path.read_text()) if path.is_file() else {}


def read_run(run_dir: Path) -> tuple[DictConfig, dict[str, Any]]:
    """A run's configuration and manifest. Raises `ValueError` or `FileNotFoundError`."""
    for name in (CONFIG, MANIFEST):
        if not (run_dir / name).is_file():
            raise FileNotFoundError(
                f"{run_dir} is no run folder: it has no {name}; give a folder that src/train.py "
                "printed, such as outputs/runs/<date>/<time>"
            )
    try:
        config = OmegaConf.load(run_dir / CONFIG)
        manifest = json.loads((run_dir / MANIFEST).read_text())
    except (ValueError, OmegaConfBaseException) as error:
        raise ValueError(
            f"{run_dir} cannot be read: {CONFIG} or {MANIFEST} is damaged ({error}); restore it "
            "from the run's artifacts in MLflow"
        ) from error
    assert isinstance(config, DictConfig)
    return config, manifest


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents; tensors and plain containers only are unpickled."""
    import torch

    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; give a file such as <run>/checkpoints/last.ckpt"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged or was not written by this project; "
            "use another one of <run>/checkpoints"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint {path} holds no model state; use one of <run>/checkpoints")
    return checkpoint


def earlier_part(run_dir: Path, config: DictConfig) -> tuple[Path | None, dict[str, float] | None]:
    """What a run of this very configuration left in its folder: the checkpoint to go on from, and
    the metrics if it came to its end.
    """
    kept, last = run_dir / CONFIG, run_dir / CHECKPOINTS / "last.ckpt"
    if not kept.is_file() or kept.read_text() != OmegaConf.to_yaml(config, resolve=True):
        return None, None
    limit = config.trainer.max_steps
    if last.is_file() and (limit < 0 or read_checkpoint(last)["global_step"] < limit):
        return last, None
    metrics = run_dir / METRICS
    return None, json.loads(metrics.read_text()) if metrics.is_file() else None


def require_resumable(path: Path, state: dict[str, "torch.Tensor"], max_steps: int) -> None:
    """Raise `ValueError` unless a run with this state can go on from the checkpoint."""
    checkpoint = read_checkpoint(path)
    step = checkpoint.get("global_step")
    if step is None or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"checkpoint {path} holds no training state; use one of <run>/checkpoints")
    saved = checkpoint["state_dict"]
    differing = [k for k in saved.keys() | state.keys() if shape(saved, k) != shape(state, k)]
    if differing:
        name = min(differing)
        raise ValueError(
            f"checkpoint {path} is of another model: {name} has shape {shape(saved, name)} there "
            f"and {shape(state, name)} here; resume with the run's own options, which are in its "
            "config.yaml"
        )
    if 0 <= max_steps <= step:
        raise ValueError(
            f"checkpoint {path} is at step {step} of trainer.max_steps={max_steps}: nothing is "
            "left to do; give a larger trainer.max_steps"
        )


def require_same_data(sources: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
    """Raise `ValueError` unless a task's manifest is that of the run; a folder without has none."""
    kept = run_dir / MANIFEST
    known = json.loads(kept.read_text())["sources"] if kept.is_file() else sources
    before, now = ({row["source"]: row["sha256"] for row in rows} for rows in (known, sources))
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    if changed:
        raise ValueError(
            f"data {', '.join(changed)} are not what the run was trained on (other sha256): a test "
            "loss would mix their training and test parts; restore the files or package versions "
            "listed in the run's manifest.json"
        )


def shape(state: dict[str, Any], name: str) -> object:
    """The shape of an entry, `state` for one that is no tensor, None for one that is missing."""
    import torch

    value = state.get(name)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value and "state"
