"""What a run is found to be at one moment: arrays by name, with their axes at the names' ends.

Shapes: L passes, R routers, E views, D domains, S sequences, M heads, X, Y the two tokens of a
mixed task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prismatic.data import Batch, MixedTask
from prismatic.measures.adaptation import DomainRouting, by_row
from prismatic.measures.edge import Predictions, look_at_attention
from prismatic.measures.guard import CONCENTRATION, LEAST_USED, STRENGTH
from prismatic.measures.views import RoutingMeasure, entropy, most_entropy
from prismatic.models import Transformer, watched
from prismatic.routers import Routing

from .module import Learner

Arrays = dict[str, torch.Tensor]


class HeldOutSums:
    """What is added up over a validation, and over ranks: predictions, routing by domain, and all
    that the twins' routing has to be compared with.
    """

    def __init__(self, learner: Learner) -> None:
        model, num_domains = learner.model, len(learner.task.domains)
        num_views = model.routers[0].num_experts
        shape = (model.depth, num_domains, num_views, learner.device)
        self.predictions = Predictions(learner.device)
        self.by_domain, self.by_domain_null = DomainRouting(*shape), DomainRouting(*shape)
        self.null = RoutingMeasure(model.depth, num_views, learner.device)

    def update(
        self, logits_BTV: torch.Tensor, batch: Batch, routing: Sequence[Routing],
        twins: Sequence[Routing],
    ) -> None:  # fmt: skip
        self.predictions.update(logits_BTV, batch.targets_BT)
        if twins:
            self.by_domain.update(routing, batch.domain_B)
            self.by_domain_null.update(twins, batch.domain_B)
            self.null.update(twins, len(batch.domain_B))

    def tensors(self) -> list[torch.Tensor]:
        tables = [self.by_domain.total_LDE, self.by_domain_null.total_LDE]
        return [*tables, *self.null.tensors(), *self.predictions.tensors()]

    def compute(self) -> Arrays:
        """Routing only where there are several views, by domain only where there are several."""
        found = self.predictions.compute()
        _, num_domains, num_views = self.by_domain.total_LDE.shape
        if num_views > 1:
            null_L = self.null.dependence_L / most_entropy(num_views)
            found |= over_passes("routing/input_dependence_null", null_L)
        if num_views > 1 and num_domains > 1:
            for suffix, table in (("", self.by_domain), ("_null", self.by_domain_null)):
                found[f"routing/domain{suffix}_DE"] = table.weights()
                found |= over_passes(f"routing/mutual_information{suffix}", table.information())
        return found


def over_passes(name: str, value_L: torch.Tensor) -> Arrays:
    """What is measured of each pass, and its mean."""
    return {name: value_L.mean(), f"{name}_L": value_L}


def is_routed(model: Transformer) -> bool:
    return model.routers[0].num_experts > 1


def by_router(model: Transformer) -> torch.Tensor:
    """Each router's mean routing weights in the last forward, over its passes: (R, E)."""
    weight_LE = torch.stack([r.probs.detach().flatten(0, -2).mean(0) for r in model.routing])
    num_routers = len(model.routers)
    return torch.stack([weight_LE[k::num_routers].mean(0) for k in range(num_routers)])


def use(weight_RE: torch.Tensor) -> dict[str, float]:
    """The most that even the least collapsed router gives one view, and the most that any router
    gives the least used view.
    """
    return {
        CONCENTRATION: float(weight_RE.amax(1).min()),
        LEAST_USED: float(weight_RE.amax(0).min()),
    }


def strength(measures: Mapping[str, Any]) -> dict[str, float]:
    """The strongest view's relative norm, over all weights or over matrices if that is less."""
    if "views/relative_norm" not in measures:
        return {}
    norms = measures["views/relative_norm"], measures["views/relative_norm_matrices"]
    return {STRENGTH: float(min(norms))}


@torch.no_grad()
def look_at_probe(learner: Learner) -> Arrays:
    """Attention and routing on the probe, and on all pairs of tokens of a mixed task."""
    model, device = learner.model, learner.device
    tokens_BT = learner.probe.tokens_BT.to(device)
    found = look_at_attention(model, tokens_BT)
    if is_routed(model):
        found["routing/sample_SLE"] = by_row(model.routing, len(tokens_BT)).transpose(0, 1)
    if isinstance(learner.task, MixedTask):
        found |= look_at_pairs(model, learner.task, device)
    return found


def look_at_pairs(model: Transformer, task: MixedTask, device: torch.device) -> Arrays:
    """For every pair of tokens, at the last position and averaged over passes: routing, and each
    head's attention on x.
    """
    num_x, num_y, _ = task.joint_XYZ.shape
    pairs_BT = torch.cartesian_prod(torch.arange(num_x), torch.arange(num_y)).to(device)
    on_x: list[torch.Tensor] = []
    with watched(model, lambda logits, probs: on_x.append(probs[:, :, -1, 0])):
        model(pairs_BT)
    tables = {"table/attention_XYM": on_x} if on_x else {}
    if is_routed(model):
        last = [r.probs[:, -1].expand(len(pairs_BT), -1) for r in model.routing]
        tables["table/routing_XYE"] = last
    return {
        name: torch.stack(table).mean(0).unflatten(0, (num_x, num_y))
        for name, table in tables.items()
    }


def scalars(found: Arrays) -> dict[str, float]:
    """What a run logs of its diagnostics as numbers of their own."""
    logged = {name: float(x) for name, x in found.items() if x.ndim == 0}
    if "edge/logit_absmax_L" in found:
        logged["edge/logit_absmax"] = float(found["edge/logit_absmax_L"].max())
        for name in ("out_of_range", "attention_entropy", "softmax_gain", "log_partition"):
            logged[f"edge/{name}"] = float(found[f"edge/{name}_L"].mean())
    return logged


def passes(found: Arrays) -> dict[str, float]:
    """What is one number per pass, named by it."""
    logged: dict[str, float] = {}
    for name, value_L in found.items():
        if name.endswith("_L"):
            room, _, measure = name.removesuffix("_L").partition("/")
            logged |= {f"{room}/pass_{t}/{measure}": x for t, x in enumerate(value_L.tolist())}
    return logged


def held_out(learner: Learner, logged: Mapping[str, torch.Tensor]) -> Arrays:
    """Losses by domain and by view, and routing by pass, of the validation that just ended."""
    sums = learner.held_out
    found = {}
    if len(learner.task.domains) > 1:
        found["loss/domain_D"] = sums.loss_D / sums.count_D
    if is_routed(learner.model):
        num_views = learner.model.routers[0].num_experts
        weight_LE = found["routing/weight_LE"] = sums.routing.mean_LE
        found["routing/entropy_L"] = entropy(weight_LE) / most_entropy(num_views)
        found["loss/forced_E"] = torch.stack([logged[f"views/{i}/loss"] for i in range(num_views)])
    return found
