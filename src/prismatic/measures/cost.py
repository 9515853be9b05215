"""What a training step will take, from one row of a batch: memory, and time at the most speed."""

import time
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prismatic.data import IGNORE, Batch
from prismatic.models import RoutedModel

GRADIENT_AND_MOMENTS = 3  # tensors of a trained weight's size: AdamW keeps two
SIDE = 1024  # of the matrices by which a device's speed is measured


class Cost(NamedTuple):
    """Of a model in training, before it trains."""

    num_weights: int
    num_trained: int
    weights_bytes: int
    """Of weights, gradients and the optimiser's moments."""
    row_bytes: int
    """Of what a row of a batch keeps from its forward to its backward."""
    row_flops: int
    """Of a row's forward and backward, recomputed activations included."""


def measure_cost(model: RoutedModel, row: Batch, precision: str) -> Cost:
    """The cost of a step by its parts. `row` is a batch of one row; the model is as it was after.

    Operations are those of matrix products, as torch counts them; those inside a fused attention
    are left out where it does not (on a CPU). What is kept is what autograd saves, each storage
    once and no weight: where activations are computed again, those of one block come on top.
    """
    parameters = list(model.parameters())
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor

    steps = [router.dropout_step.clone() for router in model.routers]
    device = parameters[0].device.type
    narrow = torch.autocast(device, torch.bfloat16, enabled=precision in ("bf16-mixed", "16-mixed"))
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counted:
        with narrow, saved_tensors_hooks(pack, lambda tensor: tensor):
            logits_TV, target_T = model(row.tokens_BT)[0], row.targets_BT[0]
            loss = F.cross_entropy(logits_TV, target_T, ignore_index=IGNORE)
        loss.backward()
    model.zero_grad()
    for router, step in zip(model.routers, steps, strict=True):
        router.dropout_step.copy_(step)
    trained = [p for p in parameters if p.requires_grad]
    return Cost(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in trained),
        sum(p.nbytes for p in parameters) + GRADIENT_AND_MOMENTS * sum(p.nbytes for p in trained),
        kept,
        counted.get_total_flops(),
    )


def measure_speed(device: torch.device, precision: str) -> float:
    """Operations per second of a product of square matrices: what no training exceeds."""
    dtype = torch.float32 if precision.startswith("32") else torch.bfloat16
    a = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    rounds = []
    for _ in range(5):
        begun = time.perf_counter()
        (a @ a)[0, 0].item()
        rounds.append(time.perf_counter() - begun)
    return 2 * SIDE**3 / min(rounds)
