"""What a run's record says of the run itself: its axes, its views, and what its task allows.

Shapes: P tensors, E views, K positions of one tensor, X, Y, Z values of a mixed task's tokens.
"""

from collections.abc import Iterable
from typing import Any

import torch

from prismatic.data import MixedTask, Task
from prismatic.measures.edge import QUANTILES, TIERS
from prismatic.measures.numerics import FLOATS
from prismatic.measures.views import Change, changes
from prismatic.models import Transformer
from prismatic.perturb import modulation

EVEN, LARGEST = 1500, 500  # positions of a lens that are kept: evenly spread, and most changed


def about(model: Transformer, task: Task) -> dict[str, Any]:
    """The first line of a record. What a run does not have is left out."""
    router = model.routers[0]
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return {
        "views": router.num_experts,
        "passes": model.depth,
        "router": type(router).__name__.removesuffix("Router").lower(),
        "level": router.level,
        "domains": list(task.domains),
        "quantiles": list(QUANTILES),
        "tiers": list(TIERS),
        "dtype": dtype,
        "exp_limit": FLOATS[dtype].exp_finite,
        "task": type(task).__name__.removesuffix("Task").lower(),
        "predicts": task.predicts,
        "classes": task.joint_XYZ.shape[2] if isinstance(task, MixedTask) else task.vocab_size,
        "vocab": task.vocab_size,
        "baselines": task.baselines,
        "bayes": task.bayes_loss,
        **views(changes(model)),
    }


def views(found: Iterable[Change]) -> dict[str, Any]:
    """How strong each view is, tensor by tensor, and the lens on one tensor of each kind.

    Kinds are matrices, gains and biases. Of a tensor of zeros nothing can be selected.
    """
    names, matrix, energy_PE, total_P = [], [], [], []
    lenses: dict[tuple[int, str], Change] = {}
    for change in found:
        names.append(change.name)
        matrix.append(change.weight.ndim > 1)
        energy_PE.append((change.f_EP * change.weight.flatten()).square().sum(1))
        total_P.append(change.weight.square().sum())
        if change.weight.any():
            lenses.setdefault((change.weight.ndim, change.name.rpartition(".")[2]), change)
    if not names:
        return {}
    energies, totals = torch.stack(energy_PE), torch.stack(total_P)
    least = torch.finfo(totals.dtype).tiny
    return {
        "tensors": names,
        "matrix": matrix,
        "norm_E": (energies.sum(0) / totals.sum().clamp(min=least)).sqrt().tolist(),
        "change_PE": (energies / totals.clamp(min=least)[:, None]).sqrt().tolist(),
        "lens": {change.name: lens(change) for change in lenses.values()},
    }


def lens(change: Change) -> dict[str, Any]:
    """A tensor's focal pattern and the relative change it makes, at positions evenly spread over
    the tensor and at those that are changed most.
    """
    num_views, numel = change.f_EP.shape
    even = torch.linspace(0, numel - 1, min(EVEN, numel)).long()
    # In random order, so that of changes of one size not those of the first positions are kept.
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(0))
    largest = change.f_EP.abs().amax(0)[order].topk(min(LARGEST, numel)).indices
    at_K = torch.cat([even, order[largest]]).unique()
    shapes = [
        modulation(at_K.double(), numel, view, num_views, change.router.focal).tolist()
        for view in range(1, num_views)
    ]
    return {
        "position": at_K.tolist(),
        "modulation": shapes,
        "selected": change.f_EP[1:, at_K].tolist(),
    }
