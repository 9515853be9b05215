"""Two ranks with half the batch each compute what one does with all of it."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from prismatic.perturb import Focal
from prismatic.routers import PrismaticRouter

WIDTH, ROWS = 48, 4
POOLS = {"token": "causal_mean", "sequence": "mean"}
FOCALS = [Focal(length=3.0, wavelength=30.0), Focal("helical")]


def routers() -> nn.Sequential:
    torch.manual_seed(0)
    levels = [(level, focal) for level in POOLS for focal in FOCALS]
    return nn.Sequential(*(
        PrismaticRouter(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)), WIDTH, 3,
            focal=focal, level=level, pool=POOLS[level], name=str(at),
        )
        for at, (level, focal) in enumerate(levels)
    ))  # fmt: skip


def wrapped(kind: str, module: nn.Sequential) -> Any:
    if kind == "ddp":
        return DistributedDataParallel(module)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for router in module:
        fully_shard(router, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def full(x: Any) -> torch.Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()


def steps(module: Any, rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two steps, so that the second selects from weights that an optimiser wrote."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for at in range(2):
        x = torch.randn(ROWS, 6, WIDTH, generator=torch.Generator().manual_seed(at))[rows]
        optimizer.zero_grad()
        y = module(x)
        y.square().mean().backward()
        optimizer.step()
    grads = {name.removeprefix("module."): full(p.grad) for name, p in module.named_parameters()}
    return y.detach(), grads


def rank(index: int, kind: str, port: str, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=index, world_size=2)
    found = steps(wrapped(kind, routers()), slice(2 * index, 2 * index + 2))
    torch.save(found, out / f"{index}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # tests/test_ddp.py has a quick one
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_one(kind: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = [[sys.executable, __file__, str(i), kind, str(port), str(tmp_path)] for i in (0, 1)]
    path = os.pathsep.join(sys.path)
    ranks = [subprocess.Popen(c, env=os.environ | {"PYTHONPATH": path}) for c in commands]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0]
    alone, grads = steps(copy.deepcopy(routers()), slice(None))
    halves = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    torch.testing.assert_close(torch.cat([y for y, _ in halves]), alone, rtol=0, atol=2e-6)
    for name, grad in grads.items():
        scale = max(float(grad.abs().max()), 1e-6)
        for _, theirs in halves:
            assert float((theirs[name] - grad).abs().max()) <= 2e-6 * max(scale, 1e-3), name


if __name__ == "__main__":
    rank(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
