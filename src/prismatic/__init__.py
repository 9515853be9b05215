"""Prismatic routing: soft mixtures over deterministic views of one set of weights."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from prismatic.models import Transformer


def load(run_dir: str | Path, checkpoint: str = "best") -> "tuple[Transformer, DictConfig]":
    """Rebuild a finished run: its model in evaluation mode, and its resolved configuration.

    `checkpoint` is `best` (lowest validation loss) or `last`. Raises `FileNotFoundError` or
    `ValueError` for a folder that is no run. Nothing is unpickled but tensors and plain containers.
    """
    from prismatic.experiment import load_run

    return load_run(run_dir, checkpoint)
