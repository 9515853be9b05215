"""Trainings on two processes: what they computed.

As a script it is one of the two: python ranks.py <rank> <port> <folder>
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback
from torch.distributed.tensor import DTensor

from prismatic.experiment import build
from prismatic.models import full_tensor

CONFIGS, FOUND = "configs.yaml", "found.pt"


class Record(Callback):
    """Keeps the gradient of the first step, and the loss of every step."""

    def __init__(self) -> None:
        self.gradient: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer, learner, optimizer) -> None:
        if not self.gradient:
            named = learner.model.named_parameters()
            self.gradient = {name: full_tensor(p.grad).clone() for name, p in named}

    def on_train_batch_end(self, trainer, *args) -> None:
        self.losses.append(trainer.callback_metrics["loss/train"].item())


def train(config: DictConfig, folder: Path) -> dict[str, Any]:
    """What a training of this process, and of others like it, computed.

    The whole gradient of the first step, the loss of every step, the last metrics, and how many
    elements this process held of a moment of the optimiser.
    """
    parts, kept = build(config, folder), Record()
    parts.trainer.callbacks.append(kept)
    parts.trainer.fit(parts.learner, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
    metrics = {name: value.item() for name, value in parts.trainer.callback_metrics.items()}
    moments = [state["exp_avg"] for state in parts.trainer.optimizers[0].state.values()]
    held = sum((m.to_local() if isinstance(m, DTensor) else m).numel() for m in moments)
    return {"gradient": kept.gradient, "losses": kept.losses, "metrics": metrics, "held": held}


def rank(index: int, port: str, folder: Path) -> None:
    """Run all trainings, one after the other; rank 0 keeps what they computed."""
    os.environ |= {"LOCAL_RANK": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    configs = OmegaConf.load(folder / CONFIGS)
    found = {name: train(config, folder / str(name)) for name, config in configs.items()}
    if index == 0:
        torch.save(found, folder / FOUND)


def on_two(configs: Mapping[str, DictConfig], folder: Path) -> dict[str, dict[str, Any]]:
    """What these trainings, run in turn on two processes, computed, by name."""
    resolved = {name: OmegaConf.to_container(c, resolve=True) for name, c in configs.items()}
    OmegaConf.save(resolved, folder / CONFIGS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, __file__, str(index), port, str(folder)] for index in range(2)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return torch.load(folder / FOUND)


if __name__ == "__main__":
    rank(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
