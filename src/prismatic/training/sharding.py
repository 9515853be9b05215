"""Parameters, gradients and optimiser state shared out over processes (FSDP), on the CPU too."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from prismatic.models import full_tensor


def shared_out(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    """What an optimiser keeps of a parameter, as this process's share; a count stays as it is."""
    if value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


class FullySharded(DDPStrategy):
    """Lightning's ddp, but with torch's `fully_shard` (arXiv 2304.11277) in place of replicas.

    A block has its whole parameters while it computes, so views are chosen from whole tensors.
    Checkpoints hold whole tensors, too: they are those of one process, and resume in either. Of
    Lightning's own strategies FSDPStrategy needs CUDA, and ModelParallelStrategy leaves a module's
    extra state out when a run is resumed: the views that a router drops would be others.
    """

    def configure_ddp(self) -> None:
        """Called by Lightning between the model's weights and its optimiser."""
        model: Any = self.lightning_module.model  # type: ignore[union-attr]
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for module in (*model.routers, model):
            fully_shard(module, mesh=mesh)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self.gathered(super().optimizer_state(optimizer))

    def gathered(self, state: Any) -> Any:
        return tree_map_only(DTensor, lambda share: full_tensor(share).cpu(), state)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                state.update({name: shared_out(state[name], parameter) for name in state})
